"""A LiDAR volume in the layout it is looked up in, against torch's own convolutions: `python benchmarks/layout.py`.

From features of a plane to those of a volume, mixed, and looked up four times as a step of few-label segmentation does
(beams, points, pixels, the head), forward and backward, in the sizes of two recipes. The plain way is a 1×1 and a 1×1×1
convolution of the same weights: every look then copies the volume, there and back. The two take turns in one process on
one thread, and what is compared is process time. Writes `results/bench-cpu/layout.json` and prints a table.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from sparse import alternating
from torch import Tensor

from cofield.draw import generator
from cofield.models.blocks import Mix
from cofield.models.lidar import Unfold
from cofield.ops.sample import sample
from cofield.train.results import write_results

LOOKS = (10_000, 9_000, 15_000, 9_000)
CASES = {"64 × 64 × 8 cells, 32 channels": (64, 64, 32, 8), "128 × 128 × 16 cells, 16 channels": (128, 32, 16, 16)}


def main() -> None:
    """Time every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("results/bench-cpu/layout.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, rows = time.perf_counter(), []
    for name, (side, hidden, width, heights) in CASES.items():
        draw = generator("layout", name)
        plane = torch.randn(1, hidden, side, side, generator=draw, requires_grad=True)
        unfold, mix = Unfold(hidden, width, heights), Mix(width, width)
        places = [torch.rand(count, 3, generator=draw) for count in LOOKS]

        def looked(volume: Tensor, places: list[Tensor] = places) -> None:
            seen = [sample(volume, place, torch.zeros(len(place), dtype=torch.long)) for place in places]
            torch.stack([each.square().mean() for each in seen]).sum().backward()

        def ours(plane: Tensor = plane, unfold: Unfold = unfold, mix: Mix = mix) -> None:
            looked(mix(unfold(plane)))

        def plain(plane: Tensor = plane, unfold: Unfold = unfold, mix: Mix = mix) -> None:
            flat = F.conv2d(plane, unfold.weight, unfold.bias)
            looked(F.conv3d(flat.unflatten(1, (mix.in_channels, unfold.heights)), mix.weight, mix.bias))

        spent = alternating({"ours": ours, "plain": plain}, options.rounds)
        ratio = spent["ours"] / spent["plain"]
        rows.append({"op": "layout", "case": name, "ms": round(spent["ours"], 1), "peer_ms": round(spent["plain"], 1)})
        rows[-1]["ratio"] = round(ratio, 2)
        print(f"{name:34} {spent['ours']:7.1f} ms against {spent['plain']:7.1f} ms: {ratio:.2f}")
    write_results(options.out, rows, time.perf_counter() - began)


if __name__ == "__main__":
    main()
