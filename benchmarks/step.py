"""Where the time of a pre-training step goes, and how many frames a second that makes.

    python benchmarks/step.py [RECIPE] [--steps 12] [--threads 2] [--out results/bench-cpu/step.json]

The same script runs on CUDA when there is a GPU.
"""

import argparse
import resource
import statistics
import time
from collections import defaultdict
from pathlib import Path

import torch

from cofield.data.loader import Order, training_batches
from cofield.models.blocks import compute_in
from cofield.models.mask import hide
from cofield.train.build import build_pretraining
from cofield.train.config import Pretraining
from cofield.train.losses import compare, total
from cofield.train.recipes import recipe_for
from cofield.train.results import write_results
from cofield.train.run import compute_type, open_split
from cofield.train.views import above_view, beam_view, camera_view


def main() -> None:
    """Time the parts of some steps."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = recipe_for(arguments.recipe, Pretraining)
    source = open_split(config.data, "train")
    task = build_pretraining(config).to(device)
    compute_in(task, compute_type(config.optim.precision))
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-4)
    batches = iter(training_batches(source, Order(len(source), config.data.batch, seed=0)))
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.steps + 2):
        clock = Clock(device, seconds)
        batch = next(batches)
        clock("read the frames")
        batch = batch.to(device)
        hidden = hide(batch, task.masking, 0)
        views = [make(batch, hidden, task.sampling, config.grid, 0) for make in (camera_view, beam_view, above_view)]
        clock("hide, draw rays, look up targets")
        volume, glow = task.encode(batch, hidden)
        clock("trunk")
        seen = [task.see(volume, glow, view) for view in views]
        clock("render")
        terms = {}
        for view, what in zip(views, seen, strict=True):
            terms |= compare(view, what, task.weights)
        loss = total(terms, task.weights)
        clock("compare")
        loss.backward()
        clock("backward")
        optimizer.step()
        optimizer.zero_grad()
        clock("update the weights")
    medians = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    step = sum(medians.values())
    rate = config.data.batch / step
    memory = (
        torch.cuda.max_memory_allocated() / 2**30
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    rows = [
        {"op": "step", "case": arguments.recipe, "part": name, "share": round(value / step, 3)}
        for name, value in medians.items()
    ]
    rows.append({"op": "step", "case": arguments.recipe, "part": "all", "frames_per_second": round(rate, 2),
                 "memory_gib": round(memory, 2), "threads": arguments.threads, "backend": device.type})  # fmt: skip
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items() if key not in ("op", "case")))
    if arguments.out:
        write_results(arguments.out, rows, sum(sum(values) for values in seconds.values()))


class Clock:
    """Each call adds the seconds since the last one to a part."""

    def __init__(self, device: torch.device, seconds: dict[str, list[float]]) -> None:
        self.device, self.seconds, self.last = device, seconds, time.perf_counter()

    def __call__(self, part: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[part].append(now - self.last)
        self.last = now


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="world:small")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
