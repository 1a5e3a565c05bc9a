"""Training in several processes, and in several pieces, is the same training."""

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from cofield.data.loader import Order, training_batches
from cofield.train.build import build_pretraining
from cofield.train.tasks import Pretrain
from streets import Hand, config

STEPS, BATCH = 5, 4


class Learner(torch.nn.Module):
    """A step's loss as the forward that processes are kept in step by."""

    def __init__(self, task: Pretrain) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: object) -> torch.Tensor:
        return self.task.objective(batch)  # pyright: ignore[reportArgumentType]


def trained(process: int, processes: int) -> dict[str, torch.Tensor]:
    """The first gradients, and the weights after five steps of plain descent."""
    task = build_pretraining(config())
    model = Learner(task) if processes == 1 else DistributedDataParallel(Learner(task))
    descent = torch.optim.SGD(task.parameters(), lr=1e-2)
    source = Hand(6)
    found: dict[str, torch.Tensor] = {}
    batches = training_batches(source, Order(len(source), BATCH, seed=3, process=process, processes=processes))
    for batch in itertools.islice(batches, STEPS):
        descent.zero_grad()
        model(batch).backward()
        if not found:
            found |= {f"gradient {name}": weight.grad.clone() for name, weight in task.named_parameters()}  # pyright: ignore
        descent.step()
    return found | {name: weight.detach().clone() for name, weight in task.named_parameters()}


def worker(process: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=process, world_size=2)
    torch.save(trained(process, 2), f"{folder}/{process}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(tmp_path: Path) -> None:
    multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    alone = trained(0, 1)
    for process in (0, 1):
        together = torch.load(tmp_path / f"{process}.pt", weights_only=True)
        assert together.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(
                together[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )


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
