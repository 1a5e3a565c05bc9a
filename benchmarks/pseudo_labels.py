"""How right pseudo-labels are, rendered and projected, by the same network from the same segments.

    python benchmarks/pseudo_labels.py RUN [RUN ...] [--sources world:small@report ...] [--frames 28] [--out FILE.json]

RUN are finished runs of the method nerf on a synthetic world: they have a field to render and a head for points, so
that nothing but the way from one to the other differs. Every pixel of every camera votes. `pixels` are all that show
something with a class; `points` are LiDAR returns that no other return hides, once by what the pixel shows that they
fall on and once by what they are themselves. `things` are vehicles, people and objects, the part of a town that moves.
With a camera that is late (`world:small@report+delay=0.1`) they are where the scan did not see them.
"""

import argparse
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cofield.classes import LIDARSEG, UNKNOWN
from cofield.data import open_source
from cofield.data.loader import spread
from cofield.frame import Frame, collate
from cofield.models.project import in_front
from cofield.train.config import SegmentTuning
from cofield.train.pseudo import look_at, prior_needed, segments_of
from cofield.train.results import write_results
from cofield.train.run import open_finetuned
from cofield.train.semi import SemiSegment

ROUTES = {"rendered": "nerf", "projected": "projection"}
THINGS = LIDARSEG.index("driveable_surface")  # classes before it


def main() -> None:
    """Score every run on every source."""
    options = parse()
    torch.set_num_threads(options.threads)
    began, rows = time.perf_counter(), []
    for run in options.runs:
        for source in options.sources:
            found = scored(run, source, options.frames)
            print("\n".join("  ".join(map(str, row.values())) for row in found), flush=True)
            rows += found
    if options.out:
        write_results(options.out, rows, time.perf_counter() - began)


def scored(folder: Path, name: str, frames: int) -> list[dict[str, object]]:
    """A row per route and measure."""
    config, task = open_finetuned(folder)
    if not isinstance(config, SegmentTuning) or not isinstance(task, SemiSegment) or task.field is None:
        raise SystemExit(f"{folder} is no run of the method nerf")
    task.eval()
    source, counted = open_source(name, split="val"), defaultdict[str, list[int]](lambda: [0, 0])
    prior = prior_needed(config, len(task.classes))
    for index in spread(len(source), frames):
        frame = source[index]
        segments = segments_of(config, name, frame)
        for route, method in ROUTES.items():
            task.semi = replace(task.semi, method=method, together=False)
            looked = look_at(task, frame, segments, prior)
            assert looked.truth is not None
            for measure, (hits, asked) in counts(frame, looked.taught, looked.truth, route).items():
                counted[f"{route} {measure}"][0] += hits
                counted[f"{route} {measure}"][1] += asked
    common = {"op": "pseudo", "run": folder.name, "source": name, "frames": frames}
    named = [(*key.split(" ", 1), value) for key, value in counted.items()]
    return [
        common | {"route": route, "metric": metric, "value": round(hits / max(asked, 1), 4)}
        for route, metric, (hits, asked) in named
    ]


def counts(frame: Frame, taught: Tensor, truth: Tensor, route: str) -> dict[str, tuple[int, int]]:
    """Of every measure the hits, and of how many."""
    at = in_front(collate([frame]))
    assert frame.points.labels is not None
    told, shown = (image.flatten()[at.pixel] for image in (taught, truth))
    pairs = {"points by what is shown": (told, shown), "points by what they are": (told, frame.points.labels[at.point])}
    if route == "rendered":
        pairs["pixels"] = taught.flatten(), truth.flatten()
    found = {}
    for what, (label, true) in pairs.items():
        for part, among in (("all", true != UNKNOWN), ("things", (true != UNKNOWN) & (true < THINGS))):
            right, named = among & (label == true), among & (label != UNKNOWN)
            found[f"{what}, {part}, precision"] = int(right.sum()), int(named.sum())
            found[f"{what}, {part}, recall"] = int(right.sum()), int(among.sum())
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--sources", nargs="+", default=["world:small@report", "world:small@report+delay=0.1"])
    parser.add_argument("--frames", type=int, default=28)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
