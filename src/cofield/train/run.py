"""Runs: a folder with the configuration, the measured values, the last checkpoint and, at the end, the trunk."""

import logging
import pickle
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from cofield.data import Source, open_source
from cofield.data.loader import evaluation_batches, spread, training_batches
from cofield.data.stored import Stored
from cofield.models.blocks import compute_in
from cofield.train.build import build_pretraining
from cofield.train.checkpoint import save_trunk
from cofield.train.config import Data, Optim, Pretraining, as_yaml, differences, load_config
from cofield.train.tasks import Pretrain
from cofield.train.watch import LAST, Watch, WholeFiles, say

CONFIG, TRUNK = "config.yaml", "trunk.safetensors"


def pretrain(config: Pretraining, folder: Path, source: Source | None = None, held_out: Source | None = None) -> bool:
    """Train in `folder`, from the start or from where it stopped; whether it is finished.

    Args:
        source, held_out: frames, in place of those that the configuration names.
    """
    start = claim(config, folder)
    steps = config.optim.steps
    if start >= steps:
        say(f"{folder} is finished: {start} steps")
        return True
    source = source or open_split(config.data, "train")
    held_out = held_out or open_split(config.data, "val")
    task = build_pretraining(config)
    compute_in(task, compute_type(config.optim.precision))
    say(f"{folder}: {describe(task)}; {len(source)} frames, {steps} steps of {config.data.batch}")
    batches = training_batches(source, config.data.batch, config.optim.seed, start, config.data.workers)
    frames = spread(len(held_out), config.data.validation)
    validation = evaluation_batches(held_out, config.data.batch, frames)
    watch = Watch(folder, steps, config.optim.save_every, config.data.batch)
    began = time.monotonic()
    with quiet_engine():
        trainer = build_trainer(config.optim, folder, watch)
        trainer.fit(task, batches, validation, ckpt_path=folder / LAST if start else None, weights_only=True)
    if watch.interrupted and trainer.global_step < steps:
        say(f"stopped at step {trainer.global_step} of {steps}; the same command goes on from there")
        return False
    facts = {"source": source.name, "steps": steps, "seconds": round(time.monotonic() - began, 1)}
    save_trunk(task.trunk, folder / TRUNK, facts)
    say(f"the trunk is {folder / TRUNK}")
    return True


def open_split(data: Data, split: str) -> Source:
    """The frames of a split, kept on disk if the configuration says so."""
    source = open_source(data.source, data.root, split)
    return Stored(source, split) if data.store else source


def build_trainer(optim: Optim, folder: Path, watch: Watch) -> lightning.Trainer:
    """The engine, with nothing in it that our own order of frames, checkpoints or draws would fight with."""
    return lightning.Trainer(
        accelerator="auto",
        devices=1,
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
        val_check_interval=optim.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )


def claim(config: Pretraining, folder: Path) -> int:
    """The step to start from: 0 in a new folder, later in one that holds the same run."""
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / CONFIG
    if not written.exists():
        if (folder / LAST).exists():
            raise ValueError(f"{folder} holds a checkpoint but no {CONFIG}: it is no run of ours; choose another --run")
        written.write_text(as_yaml(config))
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
    """The configuration of a run and its task with the weights of its last checkpoint."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} is no run: it has no {CONFIG}")
    config = load_config(folder / CONFIG)
    if not (folder / LAST).is_file():
        raise ValueError(f"{folder} has no {LAST} yet; the first is written after {config.optim.save_every} steps")
    task = build_pretraining(config)
    task.load_state_dict(read_checkpoint(folder / LAST)["state_dict"])
    compute_in(task, compute_type(config.optim.precision))
    return config, task.eval()


def compute_type(precision: str) -> torch.dtype | None:
    """The type that layers compute in; `auto` asks the machine."""
    native = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else has_cpu_bf16()
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and native) else None


def has_cpu_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices itself."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def describe(task: Pretrain) -> str:
    """The size of what is trained."""
    trunk = sum(p.numel() for p in task.trunk.parameters())
    rest = sum(p.numel() for p in task.parameters()) - trunk
    return f"trunk {trunk / 1e6:.2f} M weights, field {rest / 1e3:.0f} k"


@contextmanager
def quiet_engine() -> Iterator[None]:
    """The training engine without its advertising and without warnings about what is meant here."""
    engine = logging.getLogger("lightning.pytorch")
    level = engine.level
    engine.setLevel(logging.ERROR)
    meant = [
        ".*does not have many workers.*",
        ".*LeafSpec.* is deprecated.*",
    ]
    with warnings.catch_warnings():
        for message in meant:
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            engine.setLevel(level)
