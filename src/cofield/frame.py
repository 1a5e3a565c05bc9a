"""What a sensor frame is: cameras, points, boxes, a map; and many of them as a batch.

Everything is in the ego frame of the frame's own time t, the LiDAR keyframe's. Optional fields are
None where a source has no such thing; pre-training reads none of the labels.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cofield.draw import Key, generator
from cofield.geometry import inverse, project, rotate, transform, wrap_angle, yaw_of, yaw_rotation
from cofield.grid import Grid

NEAREST = 0.1  # metres: what is closer to a pinhole than this is on the car


@dataclass(frozen=True)
class Camera:
    """One exposure.

    Args:
        image: colours 0..1 at the image's own size, undistorted.
        cam_T_ego: the camera at its exposure, seen from ego(t): it holds the car's motion between the two.
        time: of the exposure, in the frame's clock.
        valid: where the image is image, and not the black beyond its border; None where all of it is.
        depth, semantics, instances: per-pixel truth where the source has it; depth is along z, infinite for the
            sky; semantics are labels; instances are the boxes' track ids, UNKNOWN elsewhere.
    """

    name: str
    image: Float[Tensor, "3 h w"]
    pix_T_cam: Float[Tensor, "4 4"]
    cam_T_ego: Float[Tensor, "4 4"]
    time: float
    depth: Float[Tensor, "h w"] | None = None
    semantics: Int[Tensor, "h w"] | None = None
    instances: Int[Tensor, "h w"] | None = None
    valid: Bool[Tensor, "h w"] | None = None

    @property
    def pix_T_ego(self) -> Float[Tensor, "4 4"]:
        return self.pix_T_cam @ self.cam_T_ego


@dataclass(frozen=True)
class Points:
    """LiDAR returns, moved to where they were at time t by the car's motion.

    Args:
        age: seconds before t; the keyframe sweep is 0.
        origin: for each point the row of the frame's `origins_ego` from which its beam left.
        labels: semantic labels, UNKNOWN where unlabelled.
        instances: track ids, UNKNOWN for stuff.
    """

    xyz_ego: Float[Tensor, "p 3"]
    intensity: Float[Tensor, "p"]
    age: Float[Tensor, "p"]
    origin: Int[Tensor, "p"]
    labels: Int[Tensor, "p"] | None = None
    instances: Int[Tensor, "p"] | None = None

    def __len__(self) -> int:
        return len(self.xyz_ego)

    def select(self, which: Bool[Tensor, "p"] | Int[Tensor, "n"]) -> "Points":
        """The points at the given places."""
        return replace(self, **{k: v[which] for k, v in _tensors(self).items()})


@dataclass(frozen=True)
class Boxes:
    """Upright cuboids by their geometric centre.

    Args:
        size: length, width, height along the box's own x, y, z.
        velocity: of the object over ground, in the axes of the frame that the boxes are in; NaN where unknown.
        track: the same object has the same id within a scene.
        num_points: LiDAR returns inside, of the keyframe sweep.
        box2d: left, top, right, bottom in the image that the label was drawn in.
    """

    centre: Float[Tensor, "n 3"]
    size: Float[Tensor, "n 3"]
    yaw: Float[Tensor, "n"]
    velocity: Float[Tensor, "n 2"]
    label: Int[Tensor, "n"]
    score: Float[Tensor, "n"] | None = None
    track: Int[Tensor, "n"] | None = None
    attribute: Int[Tensor, "n"] | None = None
    num_points: Int[Tensor, "n"] | None = None
    box2d: Float[Tensor, "n 4"] | None = None
    truncation: Float[Tensor, "n"] | None = None
    occlusion: Int[Tensor, "n"] | None = None

    def __len__(self) -> int:
        return len(self.centre)

    @classmethod
    def empty(cls) -> "Boxes":
        """No boxes at all."""
        return cls(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, 2), torch.zeros(0).long())

    def select(self, which: Bool[Tensor, "n"] | Int[Tensor, "m"]) -> "Boxes":
        """The boxes at the given places."""
        return replace(self, **{k: v[which] for k, v in _tensors(self).items()})

    def to(self, device: torch.device | str) -> "Boxes":
        """The boxes on another device."""
        return _mapped(self, lambda tensor: tensor.to(device))

    def corners(self) -> Float[Tensor, "n 8 3"]:
        """The corners; index bits 4, 2, 1 are the far side in x, y, z."""
        bits = torch.tensor([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], device=self.centre.device)
        offset = (bits.to(self.centre) - 0.5) * self.size[:, None]
        return offset @ yaw_rotation(self.yaw).mT + self.centre[:, None]

    def contains(self, xyz: Float[Tensor, "p 3"], margin: float = 0.0) -> Bool[Tensor, "n p"]:
        """Which points lie in which box, each face moved out by `margin`; for a handful of boxes."""
        local = (xyz[None] - self.centre[:, None]) @ yaw_rotation(self.yaw)
        return (local.abs() <= self.size[:, None] / 2 + margin).all(-1)

    def moved(self, a_T_b: Float[Tensor, "4 4"]) -> "Boxes":
        """The boxes of frame b in frame a, for frames that share the vertical."""
        velocity = torch.cat([self.velocity, torch.zeros_like(self.velocity[:, :1])], -1)
        return replace(
            self,
            centre=transform(a_T_b, self.centre),
            yaw=wrap_angle(self.yaw + yaw_of(a_T_b[:3, :3])),
            velocity=rotate(a_T_b, velocity)[:, :2],
        )


@dataclass(frozen=True)
class Maps:
    """Map layers as a raster: `layers[m, y, x]` says whether layer m covers that cell's centre."""

    layers: Bool[Tensor, "m y x"]
    grid: Grid


@dataclass(frozen=True)
class Frame:
    """Everything one keyframe knows.

    Args:
        time: seconds; any zero, but one per scene.
        world_T_ego: double precision, since maps are kilometres wide.
        origins_ego: where the LiDAR was at each sweep (or slice of one), seen from ego(t).
    """

    token: str
    scene: str
    time: float
    world_T_ego: Float[Tensor, "4 4"]
    cameras: tuple[Camera, ...]
    points: Points
    origins_ego: Float[Tensor, "s 3"]
    boxes: Boxes | None = None
    maps: Maps | None = None


@dataclass(frozen=True)
class Hidden:
    """What the encoders may not see; True is hidden. Patches tile the image from its upper left corner."""

    patches: Bool[Tensor, "b n h w"]
    points: Bool[Tensor, "p"]

    def pixels(self, height: int, width: int) -> Bool[Tensor, "b n height width"]:
        """The hidden patches at image size."""
        frames, cameras, rows, columns = self.patches.shape
        if not cameras:
            return self.patches.new_zeros(frames, 0, height, width)
        if height % rows or width % columns:
            raise ValueError(f"{rows}×{columns} patches do not tile an image of {height}×{width}")
        tall = self.patches.repeat_interleave(height // rows, -2)
        return tall.repeat_interleave(width // columns, -1)


@dataclass(frozen=True)
class SeenPoints:
    """Points where cameras see them: a row per point and camera.

    Args:
        point: the row of the batch's point table.
        pixel: the flat index into [b n h w].
        depth: along the camera's axis.
    """

    point: Int[Tensor, "n"]
    pixel: Int[Tensor, "n"]
    depth: Float[Tensor, "n"]


@dataclass(frozen=True)
class Batch:
    """Frames side by side; points of all frames in one table, in the order of the frames.

    Args:
        valid: image pixels that are image, not padding.
        sample: the frame that each point is of, ascending.
        offsets: frame b's points are rows offsets[b] to offsets[b + 1].
        points: their `origin` counts rows of this batch's `origins_ego`.
        epochs: how often each frame was seen before; draws depend on it.
    """

    images: Float[Tensor, "b n 3 h w"]
    valid: Bool[Tensor, "b n h w"]
    pix_T_cam: Float[Tensor, "b n 4 4"]
    cam_T_ego: Float[Tensor, "b n 4 4"]
    points: Points
    sample: Int[Tensor, "p"]
    offsets: Int[Tensor, "b1"]
    origins_ego: Float[Tensor, "s 3"]
    tokens: tuple[str, ...]
    epochs: tuple[int, ...]
    boxes: tuple[Boxes | None, ...]
    maps: Bool[Tensor, "b m y x"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def pix_T_ego(self) -> Float[Tensor, "b n 4 4"]:
        return self.pix_T_cam @ self.cam_T_ego

    @property
    def ego_T_cam(self) -> Float[Tensor, "b n 4 4"]:
        return inverse(self.cam_T_ego)

    def draw(self, frame: int, seed: Key, *purpose: Key) -> torch.Generator:
        """The generator of one frame's draws for a purpose: the same in whatever batch or process the frame is."""
        return generator(seed, self.epochs[frame], self.tokens[frame], *purpose)

    def select_points(self, keep: Bool[Tensor, "p"]) -> "Batch":
        """The same batch with fewer points."""
        sample = self.sample[keep]
        return replace(self, points=self.points.select(keep), sample=sample, offsets=_offsets(sample, len(self)))

    def select(self, frames: list[int]) -> "Batch":
        """Some frames of the batch, given in ascending order; `origins_ego` keeps the rows of all."""
        place = torch.full((len(self),), -1, device=self.sample.device)
        place[frames] = torch.arange(len(frames), device=place.device)
        part = self.select_points(place[self.sample] >= 0)
        sample = place[part.sample]
        return replace(
            part,
            images=self.images[frames],
            valid=self.valid[frames],
            pix_T_cam=self.pix_T_cam[frames],
            cam_T_ego=self.cam_T_ego[frames],
            sample=sample,
            offsets=_offsets(sample, len(frames)),
            tokens=tuple(self.tokens[b] for b in frames),
            epochs=tuple(self.epochs[b] for b in frames),
            boxes=tuple(self.boxes[b] for b in frames),
            maps=None if self.maps is None else self.maps[frames],
        )

    def visible(self, hidden: Hidden) -> "Batch":
        """The batch without what is hidden: points dropped, hidden pixels black."""
        seen = ~hidden.pixels(*self.images.shape[-2:])
        return replace(self, images=self.images * seen[:, :, None]).select_points(~hidden.points)

    def seen_points(self) -> "SeenPoints":
        """Every point in every camera whose image it falls on, whether or not something else hides it."""
        cameras, height, width = self.valid.shape[1:]
        if not cameras or not self.sample.shape[0]:
            none = self.sample.new_zeros(0)
            return SeenPoints(none, none, self.points.xyz_ego.new_zeros(0))
        pix_T_ego = self.pix_T_ego[self.sample]  # P N 4 4
        uv, depth = project(pix_T_ego, self.points.xyz_ego[:, None, None].expand(-1, cameras, 1, 3))
        uv, depth = uv[:, :, 0], depth[:, :, 0]
        size = uv.new_tensor([width, height])
        point, view = ((depth > NEAREST) & (uv >= 0).all(-1) & (uv < size).all(-1)).nonzero(as_tuple=True)
        column, row = uv[point, view].long().unbind(-1)
        pixel = ((self.sample[point] * cameras + view) * height + row) * width + column
        seen = self.valid.flatten()[pixel]
        return SeenPoints(point[seen], pixel[seen], depth[point, view][seen])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on another device."""
        return _mapped(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which copies to a GPU overlap with work."""
        return _mapped(self, Tensor.pin_memory)


def collate(frames: list[Frame], epochs: list[int] | None = None) -> Batch:
    """Frames as one batch; smaller images are padded below and on the right."""
    if not frames:
        raise ValueError("a batch needs at least one frame")
    counts = {len(frame.cameras) for frame in frames}
    if len(counts) > 1:
        raise ValueError(
            "frames of one batch need the same number of cameras, got "
            + ", ".join(f"{len(frame.cameras)} of {frame.token}" for frame in frames)
        )
    images, valid = _padded([frame.cameras for frame in frames])
    tables = [frame.points for frame in frames]
    for frame, table in zip(frames, tables, strict=True):
        if not bool(table.xyz_ego.isfinite().all()) or not bool(table.intensity.isfinite().all()):
            raise ValueError(f"frame {frame.token} has points that are not finite, which would be in every result")
    shifts = torch.tensor([0] + [len(frame.origins_ego) for frame in frames]).cumsum(0)
    points = Points(
        xyz_ego=torch.cat([table.xyz_ego for table in tables]),
        intensity=torch.cat([table.intensity for table in tables]),
        age=torch.cat([table.age for table in tables]),
        origin=torch.cat([table.origin + shift for table, shift in zip(tables, shifts[:-1], strict=True)]),
        labels=_cat_known([table.labels for table in tables]),
        instances=_cat_known([table.instances for table in tables]),
    )
    sample = torch.repeat_interleave(torch.arange(len(frames)), torch.tensor([len(table) for table in tables]))
    return Batch(
        images=images,
        valid=valid,
        pix_T_cam=_stacked([[camera.pix_T_cam for camera in frame.cameras] for frame in frames], (4, 4)),
        cam_T_ego=_stacked([[camera.cam_T_ego for camera in frame.cameras] for frame in frames], (4, 4)),
        points=points,
        sample=sample,
        offsets=_offsets(sample, len(frames)),
        origins_ego=torch.cat([frame.origins_ego for frame in frames]),
        tokens=tuple(frame.token for frame in frames),
        epochs=tuple(epochs) if epochs else (0,) * len(frames),
        boxes=tuple(frame.boxes for frame in frames),
        maps=_stacked_maps([frame.maps for frame in frames]),
    )


def _stacked(rows: list[list[Tensor]], shape: tuple[int, ...]) -> Tensor:
    """A tensor [b n ...] of nested lists, also when there are no cameras."""
    if not rows[0]:
        return torch.zeros(len(rows), 0, *shape)
    return torch.stack([torch.stack(row) for row in rows])


def _padded(rows: list[tuple[Camera, ...]]) -> tuple[Tensor, Tensor]:
    sizes = [camera.image.shape[-2:] for row in rows for camera in row]
    height, width = (max(size[axis] for size in sizes) if sizes else 0 for axis in (0, 1))
    images = torch.zeros(len(rows), len(rows[0]), 3, height, width)
    valid = torch.zeros(len(rows), len(rows[0]), height, width, dtype=torch.bool)
    for b, row in enumerate(rows):
        for n, camera in enumerate(row):
            tall, wide = camera.image.shape[-2:]
            images[b, n, :, :tall, :wide] = camera.image
            valid[b, n, :tall, :wide] = True if camera.valid is None else camera.valid
    return images, valid


def _stacked_maps(maps: list[Maps | None]) -> Tensor | None:
    known = [each.layers for each in maps if each is not None]
    if not known:
        return None
    if len(known) < len(maps):
        raise ValueError(f"{len(maps) - len(known)} of {len(maps)} frames of one batch have no map")
    return torch.stack(known)


def _cat_known(columns: list[Tensor | None]) -> Tensor | None:
    known = [column for column in columns if column is not None]
    if not known:
        return None
    if len(known) < len(columns):
        raise ValueError(f"{len(columns) - len(known)} of {len(columns)} frames of one batch have no point labels")
    return torch.cat(known)


def _offsets(sample: Tensor, frames: int) -> Tensor:
    counts = torch.bincount(sample, minlength=frames)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _tensors(table: Points | Boxes) -> dict[str, Tensor]:
    columns = {field.name: getattr(table, field.name) for field in fields(table)}
    return {name: column for name, column in columns.items() if column is not None}


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same structure of data classes and tuples with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(each, change) for each in value)
    if isinstance(value, Points | Boxes | Batch):
        return replace(value, **{field.name: _mapped(getattr(value, field.name), change) for field in fields(value)})
    return value
