"""Runs: a folder with the configuration, the measured values, the last checkpoint and, at the end, the trunk."""

import json
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from cofield.data import Source, open_source
from cofield.data.augment import prepared
from cofield.data.balance import balanced, classes_present
from cofield.data.folders import SkipBroken, readable
from cofield.data.fractions import Subset, labelled
from cofield.data.loader import Beside, Order, evaluation_batches, spread, training_batches
from cofield.data.partly import PartlyLabelled, still_labelled
from cofield.data.paste import Objects, Pasting, collect
from cofield.data.stored import Stored
from cofield.frame import Frame, collate
from cofield.grid import BoxGrid
from cofield.models.blocks import compute_in
from cofield.models.cylinder import Cylinder3D
from cofield.models.trunk import Trunk
from cofield.train.build import build_finetuning, build_pretraining
from cofield.train.checkpoint import LoadReport, load_trunk, save_trunk, write_whole
from cofield.train.config import (
    BoxTuning,
    Config,
    Data,
    Finetuning,
    Optim,
    PointTuning,
    Pretraining,
    SegmentTuning,
    as_yaml,
    differences,
    load_config,
)
from cofield.train.estimate import estimate
from cofield.train.foreign import load_foreign, shared_parts
from cofield.train.semi import SemiSegment, supplied
from cofield.train.tasks import Pretrain, Supervised
from cofield.train.watch import LAST, Watch, WholeFiles, is_measured, say

CONFIG, TRUNK, SCORES, OBJECTS = "config.yaml", "trunk.safetensors", "scores.json", "objects.safetensors"
LABELS = "labels.json"
Task = TypeVar("Task", Pretrain, Supervised)


def pretrain(config: Pretraining, folder: Path, source: Source | None = None, held_out: Source | None = None) -> bool:
    """Train in `folder`, from the start or from where it stopped; whether it is finished.

    Args:
        source, held_out: frames, in place of those that the configuration names.
    """
    start = claim(config, folder)
    task = build_pretraining(config)
    if start < config.optim.steps:
        source = source or open_split(config.data, "train")
        held_out = held_out or open_split(config.data, "val")
        say(f"{folder}: {describe(task.trunk)}; {len(source)} frames of {source.name}")
        if not fit(task, config, folder, start, source, held_out):
            return False
    if not (folder / TRUNK).exists():
        task.load_state_dict(read_checkpoint(folder / LAST)["state_dict"])
        save_trunk(task.trunk, folder / TRUNK, {"source": config.data.source, "steps": config.optim.steps})
    say(f"finished; the trunk is {folder / TRUNK}")
    return True


def finetune(
    config: Finetuning, folder: Path, source: Source | None = None, held_out: Source | None = None
) -> dict[str, float] | None:
    """Train trunk and head on the labelled share of a source; the held-out score, None if it was interrupted.

    The labelled frames are written to `labels.json`, what was loaded into the trunk to `loading.txt`, the score to
    `scores.json`: of the last step, and empty if `data.validation` is 0.
    """
    start = claim(config, folder)
    if (folder / SCORES).exists():
        say(f"{folder} is finished")
        return json.loads((folder / SCORES).read_text())
    source = source or open_split(config.data, "train", config.map_grid)
    held_out = held_out or open_split(config.data, "val", config.map_grid)
    check_classes(config, source)
    labels = config.labels
    chosen = labelled(source, labels.fraction, labels.split, labels.seed)
    task = build_finetuning(config)
    taken = {"source": source.name, "of": len(source), "frames": chosen}
    if start == 0:
        write_whole(folder / LABELS, json.dumps(taken).encode())
        report = start_trunk(task.trunk, config)
        write_whole(folder / "loading.txt", f"{report}\n".encode())
        say(f"{folder}: {describe(task.trunk)}, from {config.start.trunk or 'scratch'}: {report}")
    else:
        check_labels(folder / LABELS, taken)
    say(f"{len(chosen)} of {len(source)} frames of {source.name} are labelled")
    taught = Subset(source, chosen)
    if isinstance(config, SegmentTuning) and isinstance(task, SemiSegment):
        taught = supplied(task, config, source, chosen)
    pasting = None
    if isinstance(config, BoxTuning):
        pasting = build_pasting(config, taught, folder)
        if config.rare.balanced:
            taught = Subset(taught, balanced(classes_present(taught), config.optim.seed))
            say(f"balanced by class they are {len(taught)}")
    if not fit(task, config, folder, start, taught, held_out, pasting):
        return None
    scores = task.latest
    if not scores:
        say(f"no held-out frame was measured, so there is no score; cofield evaluate {folder} makes one")
    write_whole(folder / SCORES, json.dumps(scores).encode())
    save_trunk(task.trunk, folder / TRUNK, {"source": config.data.source, "steps": config.optim.steps})
    return scores


def check_labels(written: Path, taken: dict[str, Any]) -> None:
    """Refuse to go on with other labelled frames than a run began with, as when a download was completed meanwhile."""
    former = json.loads(written.read_text())
    if any(taken[name] != value for name, value in former.items()):
        was, now = (
            f"{len(each['frames'])} of {each.get('of', 'the')} frames of {each['source']}" for each in (former, taken)
        )
        raise ValueError(f"{written} says that this run began with {was} labelled; now it would be others, {now}")


def build_pasting(config: BoxTuning, source: Source, folder: Path) -> Pasting | None:
    """What pastes the labelled objects of a source, kept in the run's folder; None if nothing is to be pasted."""
    rare, path = config.rare, folder / OBJECTS
    if not rare.paste:
        return None
    if config.model.camera != "none":
        raise ValueError("images would not show what is pasted; with rare.paste choose model.camera none")
    if not path.exists():
        collect(source, rare.choice, rare.least_points).save(path)
    objects = Objects.load(path)
    say(f"{len(objects)} objects to paste, {path}")
    return Pasting(objects, rare.paste, config.optim.seed)


def in_turn(changes: list[Callable[[Frame, int], Frame]], frame: Frame, epoch: int) -> Frame:
    """The frame after all changes."""
    for change in changes:
        frame = change(frame, epoch)
    return frame


def check_classes(config: Finetuning, source: Source) -> None:
    """Refuse labels that do not count the classes of the head."""
    match config:
        case BoxTuning(head=head):
            own = source.box_classes
        case PointTuning(head=head) | SegmentTuning(head=head):
            own = source.point_classes
        case _:
            return
    if own is not None and own.space != head.classes:
        raise ValueError(
            f"{source.name} has labels of {own.space}, the head knows {head.classes}; make head.classes {own.space}"
        )


def start_trunk(trunk: Trunk | Cylinder3D, config: Finetuning) -> LoadReport | str:
    """Fill the trunk as the configuration says; what was loaded."""
    start = config.start
    if start.trunk is None:
        return "nothing loaded, every weight is fresh"
    path = trunk_file(start.trunk)
    if path.suffix in (".pth", ".pt"):
        if not isinstance(trunk, Trunk):
            raise ValueError(f"{path} holds weights of a trunk of boxes; a cylinder starts from a run of its own")
        return load_foreign(trunk, path, start.parts or shared_parts(trunk))
    return load_trunk(trunk, path, start.parts or None, start.allow_grid_change)


def trunk_file(trunk: str) -> Path:
    """The file of a trunk that is named by its run or by itself."""
    path = Path(trunk)
    return path / TRUNK if path.is_dir() else path


def fit(
    task: Pretrain | Supervised,
    config: Config,
    folder: Path,
    start: int,
    source: Source,
    held_out: Source,
    pasting: Pasting | None = None,
) -> bool:
    """Take the steps that are left; whether all were taken."""
    optim, data = config.optim, config.data
    compute_in(task, compute_type(optim.precision))
    augment = replace(config.augment, seed=optim.seed)
    change = None if augment.is_still() else partial(augment, centre=config.grid.origin_ego)
    if pasting is not None:
        change = partial(in_turn, [pasting] if change is None else [pasting, change])
    if isinstance(source, PartlyLabelled) and change is not None:
        change = partial(still_labelled, change)
    beside = source.beside if isinstance(source, PartlyLabelled) else 0
    watch = Watch(folder, optim.steps, optim.save_every, data.batch + beside, start)
    with quiet_engine():
        trainer = build_trainer(optim, folder, watch)
        process, processes = trainer.global_rank, trainer.world_size
        deal = (optim.seed, start, process, processes, optim.accumulate)
        if isinstance(source, PartlyLabelled):
            few, others = len(source.labelled), len(source.unlabelled)
            order = Beside(Order(few, data.batch, *deal), Order(others, beside, *deal))
        else:
            order = Order(len(source), data.batch, *deal)
        batches = training_batches(source, order, data.workers, change)
        rows = spread(len(held_out), data.validation)
        rows = readable(held_out, rows) if data.skip_broken else rows
        validation = evaluation_batches(prepared(held_out, config.augment), order.share, rows, data.workers)
        if trainer.is_global_zero and start == 0:
            # Of a source that is labelled in part, a frame of each kind.
            shown = [source[0], source[len(source) - 1]] if beside else [source[0]]
            shown = [frame if change is None else change(frame, 0) for frame in shown]
            device = trainer.strategy.root_device
            needed = estimate(task.to(device), collate(shown).to(device), task.objective)
            say(f"{folder}: {needed.describe(data.batch + beside, order.share, optim.steps)}")
            say(f"the learning rate rises to {task.optim.rate:.3g}, for {data.batch} frames a step")
        due = start == optim.steps or (start % optim.validate_every == 0 and not is_measured(folder, start))
        if start and due and rows:
            task.load_state_dict(read_checkpoint(folder / LAST)["state_dict"])
            trainer.validate(task, validation, verbose=False)
        trainer.fit(task, batches, validation, ckpt_path=folder / LAST if start else None, weights_only=True)
        if watch.interrupted and trainer.global_step < optim.steps:
            say(f"stopped at step {trainer.global_step} of {optim.steps}; the same command goes on from there")
            return False
        if start < optim.steps and optim.steps % optim.validate_every and rows:
            trainer.validate(task, validation, verbose=False)
    return True


def open_split(data: Data, split: str, map_grid: BoxGrid | None = None) -> Source:
    """The frames of a split, kept on disk if the configuration says so."""
    source = open_source(data.source, data.root, split, data.sweeps, map_grid)
    if data.skip_broken and split == "train":
        source = SkipBroken(source)
    return Stored(source, split) if data.store else source


def build_trainer(optim: Optim, folder: Path, watch: Watch) -> lightning.Trainer:
    """The engine, with nothing in it that our own order of frames, checkpoints or draws would fight with."""
    return lightning.Trainer(
        accelerator="auto",
        devices=optim.devices,
        num_nodes=optim.nodes,
        strategy="ddp" if optim.devices * optim.nodes > 1 else "auto",
        accumulate_grad_batches=optim.accumulate,
        max_steps=optim.steps,
        max_epochs=-1,
        gradient_clip_val=optim.clip,
        callbacks=[watch],
        plugins=[WholeFiles()],
        logger=TensorBoardLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        val_check_interval=optim.validate_every * optim.accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def claim(config: Config, folder: Path) -> int:
    """The step to start from: 0 in a new folder, later in one that holds the same run."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / CONFIG
    if not written.exists():
        if (folder / LAST).exists():
            raise ValueError(f"{folder} holds a checkpoint but no {CONFIG}: it is no run of ours; choose another --run")
        write_whole(written, as_yaml(config).encode())
        return 0
    former = load_config(written)
    if former != config:
        raise ValueError(f"{folder} holds another run; {differences(former, config)}; choose another --run")
    return steps_taken(folder)


def steps_taken(folder: Path) -> int:
    """The steps that the last checkpoint of a run has behind it."""
    if not (folder / LAST).exists():
        return 0
    return int(read_checkpoint(folder / LAST)["global_step"])


def read_checkpoint(path: Path) -> dict:
    """A checkpoint, of plain values and tensors only."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as problem:
        raise ValueError(f"{path} cannot be read ({problem}); is it complete? Remove it to start over") from problem


def open_run(folder: Path) -> tuple[Pretraining, Pretrain]:
    """The configuration of a pre-training run and its task with the weights of its last checkpoint."""
    config = run_config(folder)
    if not isinstance(config, Pretraining):
        raise ValueError(f"{folder} is a fine-tuning run; this needs a pre-training one")
    return config, _filled(build_pretraining(config), config, folder)


def open_finetuned(folder: Path) -> tuple[Finetuning, Supervised]:
    """The configuration of a fine-tuning run and its task with the weights of its last checkpoint."""
    config = run_config(folder)
    if not isinstance(config, Finetuning):
        raise ValueError(
            f"{folder} is a pre-training run; cofield finetune RECIPE --trunk {folder} makes a fine-tuned one"
        )
    return config, _filled(build_finetuning(config), config, folder)


def run_config(folder: Path) -> Config:
    """What a run is."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is no run: it has no {CONFIG}")
    return load_config(folder / CONFIG)


def _filled(task: Task, config: Config, folder: Path) -> Task:
    if not (folder / LAST).is_file():
        raise ValueError(f"{folder} has no {LAST} yet; the first is written after {config.optim.save_every} steps")
    task.load_state_dict(read_checkpoint(folder / LAST)["state_dict"])
    compute_in(task, compute_type(config.optim.precision))
    return task.eval()


def compute_type(precision: str) -> torch.dtype | None:
    """The type that layers compute in; `auto` asks the machine."""
    native = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else has_cpu_bf16()
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and native) else None


def has_cpu_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices itself."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def describe(trunk: Trunk | Cylinder3D) -> str:
    """The size of a trunk."""
    return f"a trunk of {sum(weight.numel() for weight in trunk.parameters()) / 1e6:.2f} M weights"


@contextmanager
def quiet_engine() -> Iterator[None]:
    """The training engine without its advertising and without warnings about what is meant here."""
    engine = logging.getLogger("lightning.pytorch")
    level = engine.level
    engine.setLevel(logging.ERROR)
    meant = [
        ".*does not have many workers.*",
        ".*LeafSpec.* is deprecated.*",
        ".*Total length of `DataLoader` across ranks is zero.*",
    ]
    with warnings.catch_warnings():
        for message in meant:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            engine.setLevel(level)
