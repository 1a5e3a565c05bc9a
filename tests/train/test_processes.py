"""Training in several processes, and in several pieces, is the same training."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from cofield.data.loader import Order, training_batches
from cofield.frame import Batch
from cofield.train.build import build_pretraining
from cofield.train.config import Model
from cofield.train.tasks import Pretrain
from streets import Hand, config

STEPS, BATCH = 5, 4
SMALL = config().model
RELEASED = replace(SMALL, lidar="voxelnet", lidar_width=8, voxel=(0.5, 0.5, 0.25), lift="depth", lift_width=8)
MODELS = {
    "small": SMALL,
    "the released parts": replace(RELEASED, fuse="conv", field="frustum", sampler="twice"),
    "distances": replace(SMALL, field="distance", fuse="attention", sampler="skipping"),
}


class Learner(torch.nn.Module):
    """A step's loss as the forward that processes are kept in step by; `careless` leaves the counts to each alone."""

    def __init__(self, task: Pretrain) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: Batch, careless: bool = False) -> torch.Tensor:
        if careless:
            return self.task.weighed(self.task(batch, self.task.optim.seed)[0])
        return self.task.objective(batch)


@contextmanager
def computing_in(dtype: torch.dtype) -> Iterator[None]:
    """Within it frames, weights and all that is computed from them are of a type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def in_a_row(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


def gradient_of(model: torch.nn.Module, batch: Batch, **how: bool) -> torch.Tensor:
    """The gradients of all weights in a row."""
    model.zero_grad()
    model(batch, **how).backward()
    return torch.cat([w.new_zeros(w.numel()) if w.grad is None else w.grad.flatten() for w in model.parameters()])


def trained(model: Model, process: int, processes: int) -> dict[str, torch.Tensor]:
    """The first gradients, and the weights after five steps of plain descent and how far they came."""
    task = build_pretraining(replace(config(), model=model))
    learner = Learner(task) if processes == 1 else DistributedDataParallel(Learner(task))
    descent = torch.optim.SGD(task.parameters(), lr=1e-2)
    source, start = Hand(6), in_a_row(task)
    batches = training_batches(source, Order(len(source), BATCH, seed=3, process=process, processes=processes))
    found: dict[str, torch.Tensor] = {}
    for batch in itertools.islice(batches, STEPS):
        if not found:
            found["careless"] = gradient_of(learner, batch, careless=True)
        gradient = gradient_of(learner, batch)
        found.setdefault("gradient", gradient)
        descent.step()
    weights = in_a_row(task)
    return found | {"weights": weights, "way": weights - start}


def all_trained(process: int, processes: int) -> dict[str, dict[str, torch.Tensor]]:
    with computing_in(torch.float64):
        found = {name: trained(model, process, processes) for name, model in MODELS.items()}
    return found | {"fp32": trained(SMALL, process, processes)}


def worker(process: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=process, world_size=2)
    torch.save(all_trained(process, 2), f"{folder}/{process}.pt")
    distributed.destroy_process_group()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far two rows of numbers are from each other, relative to their size."""
    return float((one - other).norm() / other.norm())


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(tmp_path: Path) -> None:
    """Up to the rounding of sums: in fp64 nothing on the way from frames to gradients is of a smaller type."""
    multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    alone = all_trained(0, 1)
    for process in (0, 1):
        together = torch.load(tmp_path / f"{process}.pt", weights_only=True)
        assert together.keys() == alone.keys()
        for name in MODELS:
            mine, whole = together[name], alone[name]
            assert whole["gradient"].dtype == torch.float64
            assert torch.equal(whole["careless"], whole["gradient"])
            assert apart(mine["gradient"], whole["gradient"]) < 1e-10, name
            assert apart(mine["way"], whole["way"]) < 1e-10, name
            # The bound is worth something: with every process dividing by its own counts, gradients are far off.
            assert apart(mine["careless"], whole["gradient"]) > 1e-3, name
        assert alone["fp32"]["way"].abs().max() > 1e-3
        torch.testing.assert_close(together["fp32"]["weights"], alone["fp32"]["weights"], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_command_line_trains_in_two_processes_and_goes_on_in_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cofield", "pretrain", "world:tiny", "--run", str(tmp_path / "run")]
    command += ["--optim.devices", "2", "--optim.save-every", "1", "--data.validation", "2", "--data.no-store"]
    command += ["--optim.steps", "2", "--views.pixels", "8", "--views.beams", "8", "--views.above", "8"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("step 2/2") == 1, "one process speaks"
    assert (tmp_path / "run" / "trunk.safetensors").exists()


def test_processes_and_pieces_share_out_what_one_would_take() -> None:
    whole = list(itertools.islice(Order(7, 4, seed=1), 6))
    shares = [
        list(itertools.islice(Order(7, 4, seed=1, process=process, processes=2, pieces=2), 12)) for process in (0, 1)
    ]
    for step, rows in enumerate(whole):
        dealt = [row for share in shares for piece in share[2 * step : 2 * step + 2] for row in piece]
        assert sorted(dealt) == sorted(rows)
        assert all(len(piece) == 1 for share in shares for piece in share)
    with pytest.raises(ValueError, match="multiple of 3"):
        Order(7, 4, seed=1, processes=3)


def test_a_rate_meant_for_another_batch_is_scaled() -> None:
    optim = replace(config().optim, rate=1e-3, rate_batch=8)
    assert optim.scaled(32).rate == pytest.approx(4e-3)
    assert optim.scaled(32).scaled(32) == optim.scaled(32)
    assert replace(optim, rate_batch=0).scaled(32).rate == 1e-3
