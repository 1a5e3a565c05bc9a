"""Sparse 3-D convolution against spconv's CPU build: `python benchmarks/sparse.py`, with `pip install spconv`.

A 3×3×3 submanifold convolution of 64 to 64 channels, forward and backward, over surfaces like those that a LiDAR sees,
kernel maps built beforehand; and the building of the maps. The two take turns in one process on one thread, and what
is compared is process time. Writes `results/bench-cpu/sparse.json` and prints a table.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from cofield.draw import generator
from cofield.ops.sparse import Sites, convolve
from cofield.train.results import write_results

WIDTH = 64


def surface(voxels: int) -> Sites:
    """About so many voxels on hilly ground of uneven density, with some ten neighbours each, itself included."""
    draw = generator("surface", voxels)
    side = int((voxels / 0.9) ** 0.5)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    height = 20 + 6 * (x / 17).sin() + 5 * (y / 13).cos() + 0.3 * torch.randn(side, side, generator=draw)
    z = height.round().long().clamp(0, 39)
    layers = [(z + up, torch.rand(side, side, generator=draw) < share) for up, share in ((0, 0.7), (1, 0.5))]
    cells = [torch.stack([torch.zeros_like(up[kept]), up[kept], y[kept], x[kept]], 1) for up, kept in layers]
    return Sites(torch.cat(cells).unique(dim=0)[:voxels], (41, side, side), 1)


def alternating(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median process time of each call in milliseconds; they take turns."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                spent[name].append(1e3 * (time.process_time() - start))
    return {name: median(times) for name, times in spent.items()}


def spconv_module():
    """Its package, with what its CPU build needs to go backward."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import spconv.pytorch as spconv
            import spconv.pytorch.ops as ops
    except ImportError as problem:
        raise SystemExit("this benchmark compares with spconv: pip install spconv") from problem
    ops.get_current_stream = lambda: 0
    return spconv


def main() -> None:
    """Time every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("results/bench-cpu/sparse.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    spconv = spconv_module()
    began, rows = time.perf_counter(), []
    for voxels in (30_000, 100_000):
        sites = surface(voxels)
        links = sites.neighbours((3, 3, 3))
        draw = generator("features", voxels)
        features = torch.randn(len(sites), WIDTH, generator=draw, requires_grad=True)
        weight = (torch.randn(3, 3, 3, WIDTH, WIDTH, generator=draw) / 24).requires_grad_()
        grad = torch.randn(len(sites), WIDTH, generator=draw)
        layer = spconv.SubMConv3d(WIDTH, WIDTH, 3, bias=False, indice_key="level")
        plain = spconv.SparseConvTensor(features, sites.coordinates.int(), list(sites.shape), 1)
        known = layer(plain).indice_dict

        def ours(features=features, weight=weight, links=links, grad=grad) -> None:
            convolve(features, weight, links, len(features)).backward(grad)

        def ours_bf16(ours=ours, features=features, weight=weight, links=links, grad=grad) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                out = convolve(features, weight, links, len(features))
            out.backward(grad.bfloat16())

        def theirs(features=features, layer=layer, sites=sites, known=known, grad=grad) -> None:
            volume = spconv.SparseConvTensor(features, sites.coordinates.int(), list(sites.shape), 1)
            volume.indice_dict = dict(known)
            layer(volume).features.backward(grad)

        def our_map(sites=sites) -> None:
            Sites(sites.coordinates, sites.shape, 1).neighbours((3, 3, 3))

        times = alternating({"spconv": theirs, "fp32": ours, "bf16": ours_bf16, "map": our_map}, options.rounds)
        for kind in ("fp32", "bf16"):
            row = {"op": "sparse", "case": f"{len(sites)} voxels, {WIDTH} to {WIDTH}",
                   "backend": f"cofield {kind}", "peer": "spconv 2.3 CPU fp32", "ms": times[kind],
                   "peer_ms": times["spconv"], "ratio": times[kind] / times["spconv"], "map_ms": times["map"],
                   "links_per_voxel": links.starts[-1] / len(sites), "goal": 1.0}  # fmt: skip
            rows.append(row)
            print(f"{row['case']:28} {kind}  {row['ms']:7.1f} ms  spconv {row['peer_ms']:7.1f} ms"
                  f"  ratio {row['ratio']:.2f}  map {row['map_ms']:.1f} ms")  # fmt: skip
    write_results(options.out, rows, time.perf_counter() - began)


if __name__ == "__main__":
    main()
