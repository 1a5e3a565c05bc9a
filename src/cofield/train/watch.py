"""What happens beside the steps of a run: checkpoints, measured values on disk, progress, and Ctrl-C."""

import csv
import signal
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from cofield.train.checkpoint import write_whole

LAST = "last.ckpt"


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that are written whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(Path(path), buffer.getvalue())


class Watch(Callback):
    """Keeps `last.ckpt` and `metrics.csv`, prints the rate and the time left, and stops in good order.

    Ctrl-C, or SIGTERM from a cluster, ends the run after the step in hand, with a checkpoint. A second one
    ends it at once.
    """

    def __init__(
        self, folder: Path, steps: int, save_every: int, batch: int, start: int = 0, quiet_seconds: float = 10.0
    ) -> None:
        self.folder, self.steps, self.save_every, self.batch = folder, steps, save_every, batch
        self.start, self.quiet_seconds = start, quiet_seconds
        self.interrupted = False
        self._spoken = self._began = 0.0
        self._first = 0
        self._former: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first, self._began, self._spoken = trainer.global_step, time.monotonic(), 0.0
        forget_after(self.folder / "metrics.csv", trainer.global_step)
        if _in_main_thread():
            self._former = {s: signal.signal(s, self._asked_to_stop) for s in (signal.SIGINT, signal.SIGTERM)}

    def _asked_to_stop(self, number: int, stack: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        # Whichever process was asked to stop, all of them do.
        self.interrupted = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" not in name}
        self._write(trainer, step, "train", values)
        done = step >= self.steps
        if trainer.is_global_zero and (done or time.monotonic() - self._spoken > self.quiet_seconds):
            self._spoken = time.monotonic()
            say(self._progress(step, values))
        if done or self.interrupted or step % self.save_every == 0:
            trainer.save_checkpoint(self.folder / LAST)
        if self.interrupted and not done:
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # whoever interrupts does not want to wait: it is measured on going on

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        held_out = {
            name.split("/", 1)[1]: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("held_out/")
        }
        # A measurement before the first step of a run that goes on is of the last one that was taken.
        self._write(trainer, max(trainer.global_step, self.start), "held_out", held_out)
        if trainer.is_global_zero:
            say("  held out: " + ", ".join(f"{name} {value:.4g}" for name, value in held_out.items()))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _progress(self, step: int, values: dict[str, float]) -> str:
        rate = (step - self._first) / max(1e-9, time.monotonic() - self._began)
        left = (self.steps - step) / max(1e-9, rate)
        terms = ", ".join(f"{name} {value:.3f}" for name, value in values.items() if name != "loss")
        loss = f"{values['loss']:.4f}" + f" ({terms})" * bool(terms)
        return (
            f"step {step}/{self.steps}  loss {loss}  "
            f"{rate * self.batch:.1f} frames/s, {int(left) // 60}:{int(left) % 60:02d} left"
        )

    def _write(self, trainer: Trainer, step: int, split: str, values: dict[str, float]) -> None:
        if not trainer.is_global_zero:
            return
        path = self.folder / "metrics.csv"
        fresh = not path.exists()
        with path.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if fresh:
                writer.writerow(["step", "split", "name", "value"])
            writer.writerows([step, split, name, repr(value)] for name, value in values.items())


def forget_after(path: Path, step: int) -> None:
    """Drop rows of steps that a resumed run will take again."""
    if not path.exists():
        return
    with path.open(newline="") as stream:
        head, *rows = list(csv.reader(stream)) or [[]]
    kept = [row for row in rows if len(row) == 4 and int(row[0]) <= step]
    text = "\r\n".join(",".join(row) for row in [head, *kept]) + "\r\n"
    write_whole(path, text.encode())


def is_measured(folder: Path, step: int) -> bool:
    """Whether a run has been measured on held-out frames after a step."""
    path = folder / "metrics.csv"
    curves = read_metrics(path) if path.exists() else {}
    return any(split == "held_out" and step in dict(curve) for (split, _), curve in curves.items())


def read_metrics(path: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """The curves of a run: for every split and name the steps and values."""
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            curves.setdefault((row["split"], row["name"]), []).append((int(row["step"]), float(row["value"])))
    return curves


def say(line: str) -> None:
    """A line of progress: to the error stream, so that results can be piped."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
