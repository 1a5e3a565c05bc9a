"""Milliseconds per frame of every world preset on one core, scene building included: `python benchmarks/world.py`.

Seven frames of each of several scenes are timed; a scene is built within its first frame, so the mean over
a scene is what a loader pays. Writes `results/bench-cpu/world.json` and prints a table.
"""

import argparse
import time
from pathlib import Path
from statistics import median

import torch

from cofield.data.rig import PRESETS
from cofield.data.simulate import FRAMES, World
from cofield.train.results import write_results

GOALS = {"tiny": 50.0, "small": 60.0, "nuscenes-like": 1200.0, "kitti-like": 700.0}


def seconds_per_frame(world: World, scenes: int) -> tuple[float, float]:
    """The median over scenes of the mean per frame, and the median of frames whose scene exists."""
    world[0]  # compiles kernels and builds the bodies
    means, steady = [], []
    for scene in range(1, scenes + 1):
        spent = []
        for index in range(scene * FRAMES, (scene + 1) * FRAMES):
            start = time.process_time()
            world[index]
            spent.append(time.process_time() - start)
        means.append(sum(spent) / FRAMES)
        steady += spent[1:]
    return median(means), median(steady)


def main() -> None:
    """Time every preset and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=5, help="scenes per preset")
    parser.add_argument("--out", type=Path, default=Path("results/bench-cpu/world.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, rows = time.perf_counter(), []
    for name in PRESETS:
        world = World(name, split="val")
        mean, steady = seconds_per_frame(world, options.scenes)
        row = {"op": "world", "case": name, "backend": "embree+numba", "peer": "goal", "ms": 1e3 * mean,
               "ms_scene_built": 1e3 * steady, "goal": GOALS[name], "ratio": 1e3 * mean / GOALS[name]}  # fmt: skip
        rows.append(row)
        print(f"{name:15} {row['ms']:8.1f} ms  (scene built: {row['ms_scene_built']:.1f})  goal {row['goal']:.0f}")
    write_results(options.out, rows, time.perf_counter() - began)


if __name__ == "__main__":
    main()
