"""Tensors as pictures: every function gives a uint8 array [h w 3] and touches no file, but `write_ply`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from cofield.classes import DETECTION, LIDARSEG, MAP_LAYERS, UNKNOWN
from cofield.frame import Boxes, Camera, Frame, Maps
from cofield.geometry import project
from cofield.grid import BoxGrid

Picture = UInt8[np.ndarray, "h w 3"]

# One colour per LIDARSEG class; the two label spaces share those of their common names.
_SEMANTIC = {
    "barrier": (230, 90, 60), "bicycle": (220, 30, 90), "bus": (250, 150, 20), "car": (40, 110, 230),
    "construction_vehicle": (220, 190, 30), "motorcycle": (150, 30, 180), "pedestrian": (240, 60, 180),
    "traffic_cone": (255, 120, 0), "trailer": (0, 170, 190), "truck": (20, 60, 140),
    "driveable_surface": (95, 95, 105), "other_flat": (165, 125, 110), "sidewalk": (190, 175, 190),
    "terrain": (140, 190, 90), "manmade": (200, 200, 205), "vegetation": (30, 130, 50),
}  # fmt: skip
SEMANTIC_PALETTE = np.array([_SEMANTIC[name] for name in LIDARSEG.names] + [(15, 15, 25)], np.uint8)
BOX_PALETTE = np.array([_SEMANTIC[name] for name in DETECTION.names], np.uint8)
_MAP = {
    "drivable_area": (88, 90, 98), "carpark_area": (105, 120, 140), "walkway": (170, 160, 150),
    "ped_crossing": (225, 225, 215), "stop_line": (235, 70, 60), "divider": (235, 190, 60),
}  # fmt: skip

_EDGES = ((0, 1), (0, 2), (1, 3), (2, 3), (4, 5), (4, 6), (5, 7), (6, 7), (0, 4), (1, 5), (2, 6), (3, 7))
_NEAREST = 0.5


def picture(image: Float[Tensor, "3 h w"]) -> Picture:
    """Colours 0..1 as bytes."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()


def depth_picture(depth: Float[Tensor, "h w"], near: float = 2.0, far: float = 80.0) -> Picture:
    """Depth from warm (near) to cold (far) on a logarithmic scale; black where there is none, white beyond."""
    share = (torch.log(depth.clamp(near, far)) - np.log(near)) / np.log(far / near)
    stops = np.array([[250, 230, 110], [245, 130, 60], [190, 50, 100], [85, 30, 120], [20, 20, 60]])
    place = share.nan_to_num().numpy() * (len(stops) - 1)
    colour = np.stack([np.interp(place, range(len(stops)), stops[:, k]) for k in range(3)], -1)
    colour[(torch.isinf(depth)).numpy()] = 255
    colour[(~(depth > 0)).numpy()] = 0
    return colour.round().astype(np.uint8)


def semantic_picture(labels: Int[Tensor, "h w"]) -> Picture:
    """LIDARSEG labels in the colours of `SEMANTIC_PALETTE`; UNKNOWN is nearly black."""
    return SEMANTIC_PALETTE[labels.numpy()]


def instance_picture(tracks: Int[Tensor, "h w"]) -> Picture:
    """Each track in a colour of its own, everything else grey."""
    ids = tracks.numpy()
    hue = (ids * 0.61803398875) % 1.0 * 6
    phase = np.stack([(hue + shift) % 6 for shift in (0, 4, 2)], -1)
    bright = np.clip(np.minimum(np.abs(phase - 3) - 1, 1), 0, 1)
    colour = (70 + 185 * bright).astype(np.uint8)
    colour[ids == UNKNOWN] = 45
    return colour


def map_picture(maps: Maps) -> Picture:
    """Map layers from above, ego x to the top and y to the left, on a green ground."""
    colour = np.full((*maps.layers.shape[1:], 3), (120, 150, 100), np.uint8)
    for name, tone in _MAP.items():
        colour[maps.layers[MAP_LAYERS.index(name)].numpy()] = tone
    return upward(colour)


def bird_picture(frame: Frame, grid: BoxGrid, scale: int = 6) -> Picture:
    """A frame from above: map, keyframe points, boxes with their heading and velocity, and the car."""
    if frame.maps is not None:
        base = map_picture(frame.maps)
        area = frame.maps.grid
    else:
        base, area = upward(np.full((*grid.shape[1:], 3), 60, np.uint8)), grid
    canvas = Image.fromarray(base).resize((base.shape[1] * scale, base.shape[0] * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)

    def pixels(xy_ego: Tensor) -> np.ndarray:
        """Columns and rows of ego positions."""
        xyz = torch.cat([xy_ego, torch.zeros_like(xy_ego[..., :1])], -1)
        unit = area.to_unit(xyz)[..., :2].numpy()
        return np.stack([(1 - unit[..., 1]) * canvas.width, (1 - unit[..., 0]) * canvas.height], -1)

    keyframe = frame.points.select(frame.points.age < 0.1)
    spots = pixels(keyframe.xyz_ego[:, :2].float())
    labels = np.full(len(keyframe), UNKNOWN) if keyframe.labels is None else keyframe.labels.numpy()
    for (x, y), label in zip(spots, labels, strict=True):
        if 0 <= x < canvas.width and 0 <= y < canvas.height:
            draw.point((x, y), fill=tuple((SEMANTIC_PALETTE[label] // 2 + 60).tolist()))
    if frame.boxes is not None:
        _draw_boxes(draw, frame.boxes, pixels)
    outline = pixels(torch.tensor([[3.3, 0.0], [-1.0, 0.95], [-1.0, -0.95]]))
    draw.polygon([tuple(p) for p in outline.tolist()], fill=(255, 255, 255), outline=(0, 0, 0))
    return np.asarray(canvas)


def _draw_boxes(draw: ImageDraw.ImageDraw, boxes: Boxes, pixels) -> None:
    corners = pixels(boxes.corners()[:, [0, 2, 6, 4], :2])
    front = pixels(boxes.corners()[:, [4, 6], :2])
    start, end = pixels(boxes.centre[:, :2]), pixels(boxes.centre[:, :2] + boxes.velocity.nan_to_num())
    for k in range(len(boxes)):
        colour = tuple(BOX_PALETTE[int(boxes.label[k])].tolist())
        draw.polygon([tuple(p) for p in corners[k].tolist()], outline=colour, width=2)
        draw.line([tuple(p) for p in front[k].tolist()], fill=(255, 255, 255), width=2)
        draw.line([tuple(start[k].tolist()), tuple(end[k].tolist())], fill=colour, width=1)


def with_boxes(
    image: UInt8[np.ndarray, "h w 3"], boxes: Boxes, camera: Camera, colour: tuple[int, int, int] = (255, 180, 0)
) -> UInt8[np.ndarray, "h w 3"]:
    """A camera's picture with the edges of the boxes that are wholly before it; their front faces are white."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    uv, depth = project(camera.pix_T_ego.expand(len(boxes), 4, 4), boxes.corners())
    width = max(1, canvas.width // 500)
    for corners, ahead in zip(uv.tolist(), (depth > _NEAREST).all(1).tolist(), strict=True):
        if not ahead:
            continue
        for a, b in _EDGES:
            # The front face is at the far side in x.
            tone = (255, 255, 255) if a >= 4 and b >= 4 else colour
            draw.line([tuple(corners[a]), tuple(corners[b])], fill=tone, width=width)
    return np.array(canvas)


def upward(raster: np.ndarray) -> np.ndarray:
    """A raster [y x 3] with ego x up and y to the left."""
    return np.ascontiguousarray(raster.transpose(1, 0, 2)[::-1, ::-1])


def tiles(
    pictures: Sequence[tuple[str, UInt8[np.ndarray, "_ _ 3"]]], columns: int, width: int | None = None
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Pictures side by side with their captions, each scaled to `width` (the first one's if not given)."""
    if not pictures:
        raise ValueError("tiles need at least one picture")
    wide, bar = width or int(pictures[0][1].shape[1]), 14
    cells = []
    for caption, shown in pictures:
        height = max(1, round(shown.shape[0] * wide / shown.shape[1]))
        smooth = Image.Resampling.NEAREST if wide > shown.shape[1] else Image.Resampling.BOX
        cell = Image.new("RGB", (wide, height + bar), (25, 25, 30))
        cell.paste(Image.fromarray(shown).resize((wide, height), smooth), (0, bar))
        ImageDraw.Draw(cell).text((3, 1), caption, fill=(235, 235, 235))
        cells.append(np.asarray(cell))
    rows = []
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        height = max(cell.shape[0] for cell in row)
        blank = [np.zeros((height, wide, 3), np.uint8)] * (columns - len(row) if len(cells) > columns else 0)
        rows.append(np.concatenate([_padded(cell, height) for cell in row] + blank, 1))
    return np.concatenate(rows)


def _padded(cell: np.ndarray, height: int) -> np.ndarray:
    return np.pad(cell, ((0, height - cell.shape[0]), (0, 0), (0, 0)))


def write_ply(path: Path, xyz: Float[Tensor, "p 3"], colour: UInt8[np.ndarray, "p 3"]) -> None:
    """A coloured point cloud as a binary PLY file, which MeshLab, CloudCompare and Blender open."""
    table = np.empty(len(xyz), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    table["xyz"], table["rgb"] = xyz.numpy(), colour
    properties = [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {c}" for c in ("red", "green", "blue")
    ]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(xyz)}", *properties, "end_header", ""]
    path.write_bytes("\n".join(head).encode() + table.tobytes())
