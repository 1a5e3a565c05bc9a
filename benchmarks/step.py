"""Where the time of a pre-training step goes, how many frames a second that makes, and what it learns from one frame.

    python benchmarks/step.py [RECIPE] [--steps 12] [--threads 2] [--out results/bench-cpu/step.json]
    python benchmarks/step.py world:nuscenes-like --one-frame --steps 20 --out results/bench-cpu/full-size.json

With `--one-frame` every step takes the same frame with the same parts hidden, at a constant rate: every term
should fall and every parameter that is built should get a gradient. The same script runs on CUDA when there is a GPU.
"""

import argparse
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from cofield.data.augment import prepared
from cofield.data.loader import Order, training_batches
from cofield.frame import Batch, collate
from cofield.models.blocks import compute_in
from cofield.models.mask import hide
from cofield.train.build import build_pretraining
from cofield.train.config import Pretraining
from cofield.train.losses import compare
from cofield.train.recipes import recipe_for
from cofield.train.results import Row, write_results
from cofield.train.run import compute_type, open_split
from cofield.train.tasks import Pretrain, one_cycle_adamw


def main() -> None:
    """Time the parts of some steps."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = recipe_for(arguments.recipe, Pretraining)
    config = replace(config, data=replace(config.data, root=arguments.root or config.data.root))
    config = replace(config, optim=replace(config.optim, rate=arguments.rate or config.optim.rate))
    task = build_pretraining(config).to(device)
    compute_in(task, compute_type(config.optim.precision))
    optimizer = one_cycle_adamw(task, config.optim)["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = config.optim.rate  # the cycle starts below it
    batches = one_frame(config) if arguments.one_frame else frames(config)
    at_once = 1 if arguments.one_frame else config.data.batch
    history: dict[str, list[float]] = defaultdict(list)
    reached = dict.fromkeys((name for name, _ in task.named_parameters()), False)
    clock = Clock(device)
    for _ in range(arguments.steps + 2 * (not arguments.one_frame)):
        clock.start()
        batch = next(batches)
        clock("read the frames")
        take(task, batch.to(device), clock, history)
        for name, weight in task.named_parameters():
            reached[name] |= weight.grad is not None and bool(weight.grad.any())
        clock("look at the gradients")
        torch.nn.utils.clip_grad_norm_(task.parameters(), config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        clock("update the weights")
    rows = timing(arguments.recipe, clock, at_once, arguments.threads)
    if arguments.one_frame:
        rows += learning(arguments.recipe, history, [name for name, seen in reached.items() if not seen])
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items() if key not in ("op", "case")))
    if arguments.out:
        write_results(arguments.out, rows, sum(sum(values) for values in clock.seconds.values()))


def frames(config: Pretraining) -> Iterator[Batch]:
    """What training takes, without the changes it makes to frames."""
    source = prepared(open_split(config.data, "train"), config.augment)
    yield from training_batches(source, Order(len(source), config.data.batch, seed=0))


def one_frame(config: Pretraining) -> Iterator[Batch]:
    """The same frame again and again."""
    source = prepared(open_split(replace(config.data, store=False), "train"), config.augment)
    batch = collate([source[0]])
    while True:
        yield batch


def take(task: Pretrain, batch: Batch, clock: "Clock", history: dict[str, list[float]]) -> None:
    """A step up to its gradients."""
    hidden = hide(batch, task.masking, 0)
    views = task.views(batch, hidden, 0)
    clock("hide, draw rays, look up targets")
    scene = task.encode(batch, hidden, 0)
    clock("trunk")
    seen = [task.see(scene, view) for view in views]
    clock("render")
    terms = {}
    for view, what in zip(views, seen, strict=True):
        terms |= compare(view, what, task.weights)
    loss = task.weighed(terms)
    clock("compare")
    loss.backward()
    clock("backward")
    for name, term in terms.items():
        history[name].append(float(term.mean.detach()))


def timing(case: str, clock: "Clock", at_once: int, threads: int) -> list[Row]:
    """The share of every part, and all together."""
    medians = {name: statistics.median(values[2:]) for name, values in clock.seconds.items()}
    step = sum(medians.values())
    memory = (
        torch.cuda.max_memory_allocated() / 2**30
        if clock.device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    rows: list[Row] = [
        {"op": "step", "case": case, "part": name, "share": round(value / step, 3)} for name, value in medians.items()
    ]
    rows.append({"op": "step", "case": case, "part": "all", "frames_per_second": round(at_once / step, 3),
                 "memory_gib": round(memory, 2), "threads": threads, "backend": clock.device.type})  # fmt: skip
    return rows


def learning(case: str, history: dict[str, list[float]], untouched: list[str]) -> list[Row]:
    """Every term's mean over the first and over the last five steps, and the parameters without any gradient."""
    rows: list[Row] = [
        {"op": "learn", "case": case, "term": name, "steps": len(values), "first_five": statistics.mean(values[:5]),
         "last_five": statistics.mean(values[-5:]), "values": [round(value, 5) for value in values]}
        for name, values in history.items()
    ]  # fmt: skip
    return [*rows, {"op": "learn", "case": case, "without_gradient": untouched}]


class Clock:
    """Each call adds the seconds since the last one to a part."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.last = device, defaultdict[str, list[float]](list), 0.0

    def start(self) -> None:
        """Forget the seconds since the last part."""
        self.last = time.perf_counter()

    def __call__(self, part: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[part].append(now - self.last)
        self.last = now


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="world:small")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rate", type=float, help="constant, in place of the recipe's highest")
    parser.add_argument("--one-frame", action="store_true", help="always the same frame, with the same parts hidden")
    parser.add_argument("--root", help="the folder of a data set")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
