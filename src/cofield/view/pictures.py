"""What a pre-trained field paints, beside what it was shown and what is true."""

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from cofield.data import Source
from cofield.data.augment import prepared
from cofield.data.folders import readable
from cofield.data.loader import spread
from cofield.grid import BoxGrid, CylinderGrid, Grid
from cofield.models.render import Seen
from cofield.ops.voxelize import nearest
from cofield.train.config import Config
from cofield.train.measure import Painting, measure, paint_frame, with_novel
from cofield.train.results import write_results
from cofield.train.run import open_run, open_split
from cofield.train.views import View
from cofield.view.paint import Picture, depth_picture, picture, tiles, upward, write_ply

FINE = 0.25  # metres: what a cylinder is drawn in from above
WORST = 0.2  # a relative error, or half a metre of height, or a fifth of a colour: drawn in full red


def camera_pictures(painting: Painting, grid: Grid) -> list[tuple[str, Picture]]:
    """For every camera: input, what is left of it, rendered colour and depth, true depth, error of colour."""
    if not painting.frame.cameras:
        return []
    view, seen = painting.views["camera"]
    cameras, height, width = painting.batch.valid.shape[1:]
    shape = (cameras, height, width)
    visible = painting.batch.visible(painting.hidden).images[0]
    depth = scattered(view.rays.source, _depth(view, seen), shape)
    true = _true_depth(painting, shape)
    colour = None
    if "colour" in seen.channels:
        channels = [scattered(view.rays.source, c, shape) for c in seen.channels["colour"].unbind(-1)]
        colour = torch.stack(channels, 1)
    found: list[tuple[str, Picture]] = []
    for n, camera in enumerate(painting.frame.cameras):
        image = painting.batch.images[0, n]
        found += [(f"{camera.name}: input", picture(image)), ("visible", picture(visible[n]))]
        if colour is not None:
            found.append(("rendered", picture(colour[n])))
        found += [("rendered depth", depth_picture(depth[n])), ("true depth", depth_picture(true[n]))]
        if colour is not None:
            found.append(("error", heat((colour[n] - image).abs().mean(0) / WORST)))
    return found


def novel_pictures(painting: Painting) -> list[tuple[str, Picture]]:
    """For every camera half a metre aside: what it would see, and what is rendered there."""
    if "novel" not in painting.views:
        return []
    view, seen = painting.views["novel"]
    cameras, height, width = painting.batch.valid.shape[1:]
    shape = (cameras, height, width)
    found = []
    for n, camera in enumerate(painting.frame.cameras):
        pair = [
            torch.stack([scattered(view.rays.source, c, shape)[n] for c in values.unbind(-1)])
            for values in (view.targets["colour"].value, seen.channels["colour"])
        ]
        depth = scattered(view.rays.source, _depth(view, seen), shape)[n]
        found += [(f"{camera.name}, 0.5 m aside: true", picture(pair[0])), ("rendered", picture(pair[1]))]
        found.append(("rendered depth", depth_picture(depth)))
    return found


def beam_pictures(painting: Painting, columns: int = 360) -> list[tuple[str, Picture]]:
    """The LiDAR as a panorama of ranges: what was visible, rendered, true, and the relative error.

    Black is hidden, without a return, or never inside the grid; white passes through it. A row is a beam where the
    elevations tell beams apart, and else a thirty-second of the field of view.
    """
    view, seen = painting.views["beam"]
    away = view.rays.direction
    azimuth = torch.atan2(away[:, 1], away[:, 0])
    elevation = torch.asin(away[:, 2].clamp(-1, 1))
    beams = len((elevation.rad2deg() * 10).round().unique())
    rows = beams if 1 < beams <= 128 else 32
    low, high = (float(elevation.min()), float(elevation.max())) if len(away) else (0.0, 1.0)
    row = ((high - elevation) / max(1e-6, high - low) * (rows - 1)).round().long()
    column = ((np.pi - azimuth) / (2 * np.pi) * columns).long() % columns
    place, shape = row * columns + column, (rows, columns)
    true = torch.where(view.targets["range"].valid, view.targets["range"].value, view.rays.far)
    shown = torch.where(painting.hidden.points[view.rays.source], torch.nan, true)
    error = torch.where(true > 0, (seen.range - true).abs() / true / WORST, torch.nan)
    panorama = {"visible beams": shown, "rendered range": seen.range, "true range": true}
    found = [(name, depth_picture(_holes(scattered(place, value, shape)))) for name, value in panorama.items()]
    return [(name, _taller(each)) for name, each in [*found, ("relative error", heat(scattered(place, error, shape)))]]


def above_pictures(painting: Painting, grid: Grid) -> list[tuple[str, Picture]]:
    """From above, forward up: heights and colours, visible, rendered and true."""
    view, seen = painting.views["above"]
    low, high = grid.lower[2] + grid.origin_ego[2], grid.upper[2] + grid.origin_ego[2]
    target = view.targets["height"]
    height = view.rays.origin[:, 2] - seen.range
    nowhere = torch.full_like(height, torch.nan)
    layers = {
        "visible height": torch.where(target.valid & ~target.hidden, target.value, nowhere),
        "rendered height": height,
        "true height": torch.where(target.valid, target.value, nowhere),
    }
    found = [
        (name, _upward(heat((on_the_ground(view.rays.source, value, grid) - low) / (high - low))))
        for name, value in layers.items()
    ]
    error = torch.where(target.valid, (height - target.value).abs() / 0.5, nowhere)
    found.append(("height error", _upward(heat(on_the_ground(view.rays.source, error, grid)))))
    if "colour" in seen.channels:
        goal = view.targets["above_colour"]
        pairs = {"rendered colour": seen.channels["colour"], "colour seen by cameras": goal.value}
        for name, values in pairs.items():
            image = torch.stack([on_the_ground(view.rays.source, c, grid) for c in values.unbind(-1)])
            found.append((name, _upward(picture(image.nan_to_num()))))
    return found


def write_pictures(painting: Painting, grid: Grid, out: Path, name: str) -> list[Path]:
    """All pictures of a painting, as PNG files, and its rendered surface as a point cloud."""
    out.mkdir(parents=True, exist_ok=True)
    sheets = {
        "cameras": (camera_pictures(painting, grid), 6, 320),
        "beams": (beam_pictures(painting), 1, 1080),
        "above": (above_pictures(painting, grid), 3, 320),
        "novel": (novel_pictures(painting), 3, 320),
    }
    written = []
    for kind, (shown, columns, width) in sheets.items():
        if shown:
            path = out / f"{name}-{kind}.png"
            Image.fromarray(tiles(shown, columns, width)).save(path)
            written.append(path)
    view, seen = painting.views["camera"]
    solid = seen.opacity > 0.5
    xyz = (view.rays.origin + view.rays.direction * seen.range[:, None])[solid]
    colour = (seen.channels["colour"] if "colour" in seen.channels else torch.full_like(xyz, 0.7))[solid]
    write_ply(out / f"{name}.ply", xyz, (colour.clamp(0, 1) * 255).byte().numpy())
    return [*written, out / f"{name}.ply"]


def frames_of(config: Config, split: str, frames: int, skip_broken: bool = False) -> tuple[Source, list[int]]:
    """A split of a run's source and some of its frames, evenly spread; only readable ones, if so wanted."""
    source = prepared(open_split(replace(config.data, store=False), split), config.augment)
    indices = spread(len(source), frames)
    return source, readable(source, indices) if skip_broken or config.data.skip_broken else indices


def render_run(folder: Path, out: Path, frames: int, split: str = "val", skip_broken: bool = False) -> dict[str, float]:
    """Write the pictures of a run's held-out frames, spread over a split; the score of those frames."""
    config, task = open_run(folder)
    source, indices = frames_of(config, split, frames, skip_broken)
    for frame, novel in with_novel(task, source, indices):
        write_pictures(paint_frame(task, frame, novel), config.grid, out, frame.token)
    return measure(task, source, indices)


def measure_run(folder: Path, frames: int, results: Path | None = None, skip_broken: bool = False) -> dict[str, float]:
    """The score of a run on held-out frames, also written as results if a file is named."""
    began = time.monotonic()
    config, task = open_run(folder)
    source, indices = frames_of(config, "val", frames, skip_broken)
    scores = measure(task, source, indices)
    if results is not None:
        common = {"task": "pretrain", "source": source.name, "steps": config.optim.steps, "seed": config.optim.seed}
        common |= {"frames": len(indices)}
        rows = [common | {"metric": name, "value": value} for name, value in scores.items()]
        write_results(results, rows, time.monotonic() - began)
    return scores


def scattered(place: Tensor, values: Float[Tensor, "r"], shape: tuple[int, ...]) -> Tensor:
    """Values at flat places of a picture; NaN elsewhere."""
    flat = values.new_full((int(np.prod(shape)),), torch.nan)
    flat[place] = values
    return flat.view(shape)


def on_the_ground(columns: Tensor, values: Float[Tensor, "r"], grid: Grid) -> Float[Tensor, "y x"]:
    """Values of a grid's columns as a raster along x and y: that of boxes itself, of a cylinder the square around."""
    plan = grid.flat()
    every = scattered(columns, values, plan.shape[1:]).flatten()
    cell, inside = plan.cell_of(around(plan, FINE).centres()[0])
    return torch.where(inside, every[cell], torch.nan)


def around(grid: Grid, cell: float = 1.0) -> BoxGrid:
    """A grid of boxes about the same place: itself, or of a cylinder the square around it, in cells of that size."""
    match grid:
        case BoxGrid():
            return grid
        case CylinderGrid():
            cells = math.ceil(grid.upper[0] / cell)
            low = (-cells * cell, -cells * cell, grid.lower[2])
            size = (cell, cell, grid.upper[2] - grid.lower[2])
            return BoxGrid(low, size, (2 * cells, 2 * cells, 1), grid.origin_ego)
    raise ValueError(f"a {type(grid).__name__} is not drawn from above; boxes and cylinders are")


def heat(share: Float[Tensor, "h w"]) -> Picture:
    """0 dark blue, through teal and yellow, to 1 and above red; grey where there is no value."""
    stops = np.array([[15, 20, 60], [20, 110, 130], [120, 190, 90], [245, 200, 60], [215, 40, 35]])
    place = share.clamp(0, 1).nan_to_num().numpy() * (len(stops) - 1)
    colour = np.stack([np.interp(place, range(len(stops)), stops[:, k]) for k in range(3)], -1)
    colour[share.isnan().numpy()] = 60
    return colour.round().astype(np.uint8)


def _true_depth(painting: Painting, shape: tuple[int, int, int]) -> Tensor:
    """Per-pixel depth where the source knows it, else that of the nearest return."""
    known = [camera.depth for camera in painting.frame.cameras]
    if all(depth is not None for depth in known):
        return torch.stack([depth for depth in known if depth is not None])
    seen = painting.batch.seen_points()
    return _holes(nearest(seen.pixel, seen.depth, painting.batch.valid.numel()).view(shape), torch.inf)


def _depth(view: View, seen: Seen) -> Tensor:
    """Depth along the camera's axis; infinite, which is drawn white, where a ray passes through everything."""
    return torch.where(seen.opacity > 0.5, seen.range * view.rays.cosine, torch.inf)


def _holes(depth: Tensor, hole: float = torch.nan) -> Tensor:
    """Zero, which is drawn black, where there is nothing."""
    empty = depth.isnan() if np.isnan(hole) else depth == hole
    return torch.where(empty, 0.0, depth)


def _taller(image: Picture) -> UInt8[np.ndarray, "rows columns 3"]:
    """Panoramas are wide: every row drawn three times."""
    return image.repeat(3, 0).repeat(3, 1)


def _upward(image: Picture) -> UInt8[np.ndarray, "rows columns 3"]:
    """A raster [y x 3] with ego x up and y to the left, every cell drawn four times along and across."""
    return upward(image).repeat(4, 0).repeat(4, 1)
