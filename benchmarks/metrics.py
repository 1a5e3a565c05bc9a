"""Our nuScenes detection score against the devkit's, on as many boxes as a validation split has.

    COFIELD_DEVKIT_PYTHON=... python benchmarks/metrics.py [--frames 6019] [--boxes 200] [--out FILE]

The variable names the interpreter of an environment with nuscenes-devkit; docs/datasets.md says how to make one. Both
get the same boxes, parsed. Ours is timed from boxes to score, filters included; the devkit without reading or
filters. Times are those of the CPU.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cofield.classes import ATTRIBUTES, DETECTION
from cofield.draw import generator
from cofield.frame import Boxes
from cofield.metrics.nuscenes import DetectionScore, NuScenesScore
from cofield.train.results import write_results

ORACLE = Path("tests/data/oracles/detection.py")
TRUE_BOXES = 30  # of a frame: about what the validation split has


def main() -> None:
    """Generate boxes, score them twice, and write how long that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=6019)
    parser.add_argument("--boxes", type=int, default=200, help="predicted, of a frame")
    parser.add_argument("--out", type=Path, default=Path("results/bench-cpu/metrics.json"))
    options = parser.parse_args()
    devkit = os.environ.get("COFIELD_DEVKIT_PYTHON")
    if not devkit:
        parser.error(
            "COFIELD_DEVKIT_PYTHON names no Python with nuscenes-devkit; docs/datasets.md says how to make one"
        )
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tables, found = Path(folder) / "boxes.npz", Path(folder) / "found.json"
        frames = [generated(i, options.boxes) for i in range(options.frames)]
        NuScenesScore().compute()  # compiles the kernel
        ours, seconds = timed(frames)
        save(frames, tables)
        gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        del frames
        subprocess.run([devkit, ORACLE, "tables", tables, found], check=True)
        theirs = json.loads(found.read_text())["val"]
    difference = max(abs(ours.nds - theirs["nds"]), abs(ours.mean_ap - theirs["map"]))
    row = {"op": "nuscenes detection score", "case": f"{options.frames} frames × {options.boxes} boxes",
           "backend": "numpy+numba", "peer": "nuscenes-devkit 1.2.0", "ms": round(1e3 * seconds, 1),
           "ms_peer": round(1e3 * theirs["seconds"], 1), "ratio": round(theirs["seconds"] / seconds, 1),
           "goal": 10.0, "gib": round(gib, 2), "difference": difference}  # fmt: skip
    print("  ".join(f"{key} {value}" for key, value in row.items()))
    write_results(options.out, [row], time.perf_counter() - began)


def timed(frames: list[tuple[Boxes, Boxes]]) -> tuple[DetectionScore, float]:
    """The score, and the CPU seconds from boxes to numbers."""
    start = time.process_time()
    metric = NuScenesScore()
    for i, (predicted, truth) in enumerate(frames):
        metric.add(str(i), predicted, truth)
    score = metric.compute()
    return score, time.process_time() - start


def generated(frame: int, boxes: int) -> tuple[Boxes, Boxes]:
    """Predictions and truth: a third of the predictions are near a true box and share its class."""
    draw = generator("benchmark", frame)
    truth, predicted = (_drawn(count, draw) for count in (TRUE_BOXES, boxes))
    near = torch.arange(boxes // 3) % TRUE_BOXES
    noise = torch.randn(len(near), 3, generator=draw, dtype=torch.float64)
    predicted.centre[: len(near)] = truth.centre[near] + noise
    predicted.label[: len(near)] = truth.label[near]
    score = torch.rand(boxes, generator=draw, dtype=torch.float64)
    return Boxes(predicted.centre, predicted.size, predicted.yaw, predicted.velocity, predicted.label, score,
                 attribute=predicted.attribute), truth  # fmt: skip


def _drawn(count: int, draw: torch.Generator) -> Boxes:
    values = torch.rand(count, 9, generator=draw, dtype=torch.float64)
    return Boxes(
        centre=(values[:, :3] - 0.5) * torch.tensor([90.0, 90.0, 2.0]),
        size=values[:, 3:6] * 4 + 0.5,
        yaw=values[:, 6] * 6,
        velocity=values[:, 7:9] * 5,
        label=torch.randint(len(DETECTION), (count,), generator=draw),
        attribute=torch.randint(len(ATTRIBUTES), (count,), generator=draw),
        num_points=torch.randint(1, 9, (count,), generator=draw),
    )


def save(frames: list[tuple[Boxes, Boxes]], path: Path) -> None:
    """The boxes as the oracle reads them."""
    np.savez(
        path,
        names=np.array(DETECTION.names),
        attributes=np.array(ATTRIBUTES.names),
        **{
            "val.predicted": _table([predicted for predicted, _ in frames]),
            "val.truth": _table([truth for _, truth in frames]),
            "val.racks": np.zeros((0, 8)),
            "val.ego": np.zeros((len(frames), 3)),
        },
    )


def _table(frames: list[Boxes]) -> np.ndarray:
    rows = []
    for i, boxes in enumerate(frames):
        ids = torch.stack([torch.full_like(boxes.label, i), boxes.label, boxes.attribute], -1)
        extra = [torch.zeros(len(boxes)) if each is None else each for each in (boxes.score, boxes.num_points)]
        ends = torch.stack([each.double() for each in extra], -1)
        rows.append(torch.cat([ids, boxes.centre, boxes.size, boxes.yaw[:, None], boxes.velocity, ends], -1))
    return torch.cat(rows).numpy()


if __name__ == "__main__":
    main()
