"""How long a fine-tuned model takes for a frame, and how much memory: as a run, and as an exported program.

    python benchmarks/predict.py [RECIPE ...] [--frames 20] [--threads 1] [--out results/bench-cpu/predict.json]

Each recipe is measured with cameras and LiDAR, with LiDAR alone and with cameras alone, from a frame in memory to its
prediction; boxes include suppression, of more candidates than a trained head has. Weights are fresh: they change no
time. Rows have the median over frames, after two that do not count, and the most memory that a process of its own
needed beyond its imports and the frames. A run computes in fp32, and in bf16 where the processor multiplies that
itself; a program in fp32.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

RECIPES = ("map:world:small", "boxes:world:small", "points:world:small")
SENSORS = {
    "cameras and LiDAR": {},
    "LiDAR": {"camera": "none"},
    "cameras": {"lidar": "none"},
}
UNCOUNTED = 2


def main() -> None:
    """Measure every case in processes of its own."""
    options = parse()
    torch.set_num_threads(options.threads)
    if options.case:
        print(json.dumps(measured(json.loads(options.case), options)))
        return
    from cofield.train.results import write_results
    from cofield.train.run import compute_type

    began, rows = time.perf_counter(), []
    backends = ["run 32", *(["run bf16"] if compute_type("auto") else []), "program 32"]
    with tempfile.TemporaryDirectory() as folder:
        for recipe in options.recipes:
            for sensors in SENSORS:
                for backend in ["export", *backends]:
                    case = {"recipe": recipe, "sensors": sensors, "backend": backend, "folder": folder}
                    given = ["--frames", options.frames, "--threads", options.threads, "--case", json.dumps(case)]
                    command = [sys.executable, __file__, *map(str, given)]
                    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
                    if backend != "export":
                        rows.append(json.loads(found))
                        print("  ".join(f"{key} {value}" for key, value in rows[-1].items() if key != "op"))
    if options.out:
        write_results(options.out, rows, time.perf_counter() - began)


def measured(case: dict[str, str], options: argparse.Namespace) -> dict[str, object]:
    """Export one case, or time it."""
    import cofield
    from cofield.data.augment import Augment
    from cofield.models.blocks import compute_in
    from cofield.train.build import build_finetuning
    from cofield.train.config import Finetuning
    from cofield.train.predict import predicted
    from cofield.train.program import write_program
    from cofield.train.recipes import recipe_for

    config = recipe_for(case["recipe"], Finetuning)
    config = replace(config, model=replace(config.model, **SENSORS[case["sensors"]]))
    program, stored = (Path(case["folder"]) / name for name in ("model.pt2", "frames.pt"))
    if case["backend"] == "export":
        source = cofield.open_source(config.data.source, split="val")
        frames = [source[index] for index in range(options.frames + UNCOUNTED)]
        write_program(build_finetuning(config), program, frames[0], Augment())
        torch.save(frames, stored)
        return {}
    # Read and not cast here: casting would need more memory than predicting, and the peak would be its.
    frames = torch.load(stored, weights_only=False)
    before = peak_gib()
    if case["backend"] == "program 32":
        predict = cofield.load(program)
    else:
        task = build_finetuning(config).eval()
        compute_in(task, torch.bfloat16 if case["backend"] == "run bf16" else None)

        def predict(frame: cofield.Frame) -> object:
            return predicted(task, frame)

    seconds = []
    for frame in frames:
        start = time.perf_counter()
        predict(frame)
        seconds.append(time.perf_counter() - start)
    backend, _, precision = case["backend"].partition(" ")
    return {"op": "predict", "case": case["recipe"], "sensors": case["sensors"], "backend": backend,
            "precision": precision, "ms": round(1e3 * statistics.median(seconds[UNCOUNTED:]), 1),
            "gib": round(peak_gib() - before, 2), "frames": options.frames, "threads": options.threads}  # fmt: skip


def peak_gib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
