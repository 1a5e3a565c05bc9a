"""Frames changed at random, with a calibration that stays exact.

Pixel, depth and range of a point agree after every change. `cam_T_ego` stays rigid: what it cannot hold
goes elsewhere. A scale multiplies its translation (the camera sees the same picture of a larger world),
and a mirror puts a minus sign into `pix_T_cam`, as flipping an image does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cofield.data import Source, Wrapped
from cofield.draw import generator
from cofield.frame import Boxes, Camera, Frame, Maps, Points
from cofield.geometry import pose, yaw_rotation
from cofield.grid import Triple

Range = tuple[float, float]


@dataclass(frozen=True)
class Augment:
    """What may happen to a frame; without arguments nothing does. `augment(frame, epoch)` makes it happen.

    Values in brackets are those of the released NS-MAE code (r); those it does not have are ours.

    Args:
        seed: of the run. Draws depend on it, the epoch, the frame and, for images, the camera.
        resize: the range of image scales (r: 0.38 to 0.55 of 900×1600).
        size: height and width to crop to after that; the lower edge stays (r: 256×704).
        centred: crop the middle columns instead of any.
        image_flip: probability of a left-right flip (r: 0.5).
        image_turn_deg: largest rotation about the image's centre (r: 5.4).
        scale: the range of world scales (r: 0.9 to 1.1).
        turn: largest rotation about the vertical (r: π/4).
        shift: standard deviation of a translation along each axis, in metres (r: 0.5).
        flip_x, flip_y: probability of exchanging front and back, left and right (r: 0.5 each).
        drop_points: largest share of points to drop (ours: 0.2); the share itself is uniform from 0.
        drop_beams: largest share of beams to drop (ours: 0.5), told apart by inclination.
        beams: how many there are in the LiDAR's field of view.
    """

    seed: int = 0
    resize: Range = (1.0, 1.0)
    size: tuple[int, int] | None = None
    centred: bool = False
    image_flip: float = 0.0
    image_turn_deg: float = 0.0
    scale: Range = (1.0, 1.0)
    turn: float = 0.0
    shift: float = 0.0
    flip_x: float = 0.0
    flip_y: float = 0.0
    drop_points: float = 0.0
    drop_beams: float = 0.0
    beams: int = 32

    def __call__(self, frame: Frame, epoch: int, centre: Triple = (0.0, 0.0, 0.0)) -> Frame:
        """The frame as it is seen in one epoch.

        Args:
            centre: what the world is scaled, turned and mirrored about, in ego; a run takes the zero of its grid, so
                that a LiDAR in the middle of the grid stays there.
        """
        if self.is_still():
            return frame
        draw = _Draw(self.seed, epoch, frame.token)
        if self.drop_beams:
            beam = beams_of(frame, self.beams)
            frame = replace(frame, points=frame.points.select(draw.keep("beams", self.beams, self.drop_beams)[beam]))
        if self.drop_points:
            frame = replace(frame, points=frame.points.select(draw.keep("points", len(frame.points), self.drop_points)))
        frame = moved(
            frame,
            scale=draw.uniform("scale", self.scale),
            flip=(draw.chance("flip x", self.flip_x), draw.chance("flip y", self.flip_y)),
            turn=draw.uniform("turn", (-self.turn, self.turn)),
            shift=draw.normal("shift") * self.shift,
            centre=centre,
        )
        cameras = tuple(self._camera(camera, draw) for camera in frame.cameras)
        boxes = frame.boxes
        if boxes is not None and boxes.box2d is not None and cameras:
            boxes = replace(boxes, box2d=_moved_box2d(boxes.box2d, frame.cameras[0], cameras[0]))
        return replace(frame, cameras=cameras, boxes=boxes)

    def is_still(self) -> bool:
        """Whether frames stay as they are."""
        return self == Augment(self.seed, centred=self.centred, beams=self.beams)

    def evaluation(self) -> "Augment":
        """The same image size without chance: the middle scale, the middle column, nothing else."""
        middle = sum(self.resize) / 2
        return Augment(self.seed, resize=(middle, middle), size=self.size, centred=True)

    def _camera(self, camera: Camera, draw: "_Draw") -> Camera:
        factor = draw.uniform(f"resize {camera.name}", self.resize)
        height, width = camera.image.shape[-2:]
        if factor != 1.0:
            camera = resized(camera, (max(1, round(height * factor)), max(1, round(width * factor))))
        if self.size is not None:
            spare = camera.image.shape[-1] - self.size[1]
            share = 0.5 if self.centred else draw.uniform(f"crop {camera.name}", (0.0, 1.0))
            camera = cropped(camera, camera.image.shape[-2] - self.size[0], round(share * spare), self.size)
        if draw.chance(f"flip {camera.name}", self.image_flip):
            camera = flipped(camera)
        angle = math.radians(draw.uniform(f"turn {camera.name}", (-self.image_turn_deg, self.image_turn_deg)))
        return turned(camera, angle) if angle else camera


class Prepared(Wrapped):
    """A source's frames as a run measures them: images of the size it trains on, and nothing by chance."""

    def __init__(self, source: Source, still: Augment) -> None:
        self.source, self.still = source, still

    def __len__(self) -> int:
        return len(self.source)

    def scenes(self) -> list[str]:
        return self.source.scenes()

    def __getitem__(self, index: int) -> Frame:
        return self.still(self.source[index], 0)


def prepared(source: Source, augment: Augment) -> Source:
    """The source as a run with these augmentations measures it; itself where images keep their size."""
    still = augment.evaluation()
    return source if still.is_still() else Prepared(source, still)


@dataclass(frozen=True)
class _Draw:
    """Numbers for one frame in one epoch, one generator for each purpose."""

    seed: int
    epoch: int
    token: str

    def generator(self, purpose: str) -> torch.Generator:
        return generator(self.seed, self.epoch, self.token, "augment", purpose)

    def uniform(self, purpose: str, between: Range) -> float:
        low, high = between
        if low == high:
            return low
        return low + (high - low) * torch.rand((), generator=self.generator(purpose), dtype=torch.float64).item()

    def chance(self, purpose: str, probability: float) -> bool:
        return self.uniform(purpose, (0.0, 1.0)) < probability

    def normal(self, purpose: str) -> Float[Tensor, "3"]:
        return torch.randn(3, generator=self.generator(purpose), dtype=torch.float64)

    def keep(self, purpose: str, count: int, largest: float) -> Tensor:
        source = self.generator(purpose)
        share = largest * torch.rand((), generator=source).item()
        return torch.rand(count, generator=source) >= share


def moved(
    frame: Frame,
    scale: float = 1.0,
    flip: tuple[bool, bool] = (False, False),
    turn: float = 0.0,
    shift: Float[Tensor, "3"] | None = None,
    centre: Triple = (0.0, 0.0, 0.0),
) -> Frame:
    """The frame in a world that was turned about a vertical, mirrored along ego x and y, scaled, then shifted.

    x' = scale · mirror · turn · (x − centre) + centre + shift. Images stay as they are.
    """
    sign = [-1.0 if each else 1.0 for each in flip]
    mirror = torch.diag(torch.tensor([*sign, 1.0], dtype=torch.float64))
    linear = mirror @ yaw_rotation(torch.tensor(turn, dtype=torch.float64))
    shift = torch.zeros(3, dtype=torch.float64) if shift is None else shift.double()
    still = torch.tensor(centre, dtype=torch.float64)
    shift = shift + still - scale * linear @ still
    if scale <= 0:
        raise ValueError(f"a scale is positive, got {scale}")

    def change(xyz: Tensor) -> Tensor:
        return (scale * (xyz.double() @ linear.mT) + shift).float()

    # The world is scaled and mirrored with the car, so that the car's pose stays rigid.
    world = pose(mirror @ frame.world_T_ego[:3, :3] @ linear.mT, scale * (mirror @ frame.world_T_ego[:3, 3]))
    world[:3, 3] -= world[:3, :3] @ shift
    return replace(
        frame,
        world_T_ego=world,
        cameras=tuple(_moved_camera(camera, scale, linear, shift) for camera in frame.cameras),
        points=replace(frame.points, xyz_ego=change(frame.points.xyz_ego)),
        origins_ego=change(frame.origins_ego),
        boxes=None if frame.boxes is None else _moved_boxes(frame.boxes, scale, linear, change(frame.boxes.centre)),
        maps=None if frame.maps is None else _moved_maps(frame.maps, scale, linear, shift),
    )


def resized(camera: Camera, size: tuple[int, int]) -> Camera:
    """The camera with an image of another height and width."""
    height, width = camera.image.shape[-2:]
    image = F.interpolate(camera.image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]
    change = torch.diag(torch.tensor([size[1] / width, size[0] / height, 1.0], dtype=torch.float64))

    def nearest(truth: Tensor) -> Tensor:
        return F.interpolate(truth[None, None].double(), size, mode="nearest-exact")[0, 0].to(truth.dtype)

    return _with_pixels(camera, image.clamp(0, 1), change, nearest)


def cropped(camera: Camera, top: int, left: int, size: tuple[int, int]) -> Camera:
    """A window of the image; black and not valid where it reaches beyond."""
    height, width = camera.image.shape[-2:]
    margins = (-left, left + size[1] - width, -top, top + size[0] - height)

    def window(values: Tensor, fill: float) -> Tensor:
        return F.pad(values, margins, value=fill)

    change = torch.eye(3, dtype=torch.float64)
    change[0, 2], change[1, 2] = -left, -top
    camera = _with_valid(camera) if max(margins) > 0 else camera
    return _with_pixels(camera, window(camera.image, 0.0), change, lambda truth: window(truth, _nothing(truth)))


def flipped(camera: Camera) -> Camera:
    """The image left-right reversed."""
    change = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    change[0, 2] = camera.image.shape[-1]
    return _with_pixels(camera, camera.image.flip(-1), change, lambda truth: truth.flip(-1))


def turned(camera: Camera, angle: float) -> Camera:
    """The image rotated clockwise, as it is looked at, about its centre; black and not valid where nothing was."""
    height, width = camera.image.shape[-2:]
    centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    change = torch.eye(3, dtype=torch.float64)
    change[:2, :2] = yaw_rotation(torch.tensor(angle, dtype=torch.float64))[:2, :2]
    change[:2, 2] = centre - change[:2, :2] @ centre
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    before = (torch.stack([x, y], -1).double() - change[:2, 2]) @ change[:2, :2]
    place = (before / centre - 1).float()[None]
    image = F.grid_sample(camera.image[None], place, "bilinear", "border", align_corners=False)[0]
    outside = ((before < 0) | (before >= 2 * centre)).any(-1)
    column, row = before.long().clamp(min=0).minimum(torch.tensor([width, height]) - 1).unbind(-1)

    def nearest(truth: Tensor) -> Tensor:
        return truth[row, column].masked_fill(outside, _nothing(truth))

    return _with_pixels(_with_valid(camera), image.masked_fill(outside, 0), change, nearest)


def beams_of(frame: Frame, beams: int) -> Int[Tensor, "p"]:
    """The beam of each point, counted from below: equal slices of the inclinations that occur."""
    angle = _inclination(frame)
    low, high = angle.min(), angle.max()
    return ((angle - low) / (high - low).clamp(min=1e-6) * beams).long().clamp(max=beams - 1)


def sectors(frame: Frame, inclinations: tuple[float, ...], slices: int = 1) -> Int[Tensor, "p"]:
    """The sector of each point, seen from its own sweep's LiDAR: inclination first, then azimuth.

    Args:
        inclinations: ascending borders in radians; what lies beyond counts to the first or last sector.
        slices: equal slices of the full turn, from straight back, counter-clockwise.
    """
    direction = frame.points.xyz_ego - frame.origins_ego[frame.points.origin]
    azimuth = torch.atan2(direction[:, 1], direction[:, 0])
    piece = ((azimuth / (2 * math.pi) + 0.5) * slices).long().clamp(max=slices - 1)
    return torch.bucketize(_inclination(frame), torch.tensor(inclinations)) * slices + piece


def mixed(first: Frame, second: Frame, first_sectors: Int[Tensor, "p"], second_sectors: Int[Tensor, "q"]) -> Frame:
    """The even sectors of one scan and the odd ones of another, as LaserMix; both must have labels or neither.

    Cameras, boxes and map are left out: they would show only one of the two.
    """
    a, b = first.points.select(first_sectors % 2 == 0), second.points.select(second_sectors % 2 == 1)
    if (a.labels is None) != (b.labels is None):
        raise ValueError("one of the two scans has point labels and the other has none; label or strip both")
    points = Points(
        xyz_ego=torch.cat([a.xyz_ego, b.xyz_ego]),
        intensity=torch.cat([a.intensity, b.intensity]),
        age=torch.cat([a.age, b.age]),
        origin=torch.cat([a.origin, b.origin + len(first.origins_ego)]),
        labels=None if a.labels is None or b.labels is None else torch.cat([a.labels, b.labels]),
        instances=None if a.instances is None or b.instances is None else torch.cat([a.instances, b.instances]),
    )
    origins = torch.cat([first.origins_ego, second.origins_ego])
    token = f"{first.token}+{second.token}"
    return replace(first, token=token, cameras=(), points=points, origins_ego=origins, boxes=None, maps=None)


def _inclination(frame: Frame) -> Float[Tensor, "p"]:
    direction = frame.points.xyz_ego - frame.origins_ego[frame.points.origin]
    return torch.atan2(direction[:, 2], direction[:, :2].norm(dim=-1))


def _moved_camera(camera: Camera, scale: float, linear: Tensor, shift: Tensor) -> Camera:
    cam_T_ego = camera.cam_T_ego.double()
    # Where a mirror leaves a left-handed camera, turning its x axis over makes it right-handed again.
    hand = torch.diag(torch.tensor([torch.linalg.det(linear).sign(), 1.0, 1.0], dtype=torch.float64))
    rotation = hand @ cam_T_ego[:3, :3] @ linear.mT
    translation = scale * (hand @ cam_T_ego[:3, 3]) - rotation @ shift
    pix_T_cam = camera.pix_T_cam.double()
    pix_T_cam[:3, :3] = pix_T_cam[:3, :3] @ hand
    depth = None if camera.depth is None else camera.depth * scale
    return replace(camera, pix_T_cam=pix_T_cam.float(), cam_T_ego=pose(rotation, translation).float(), depth=depth)


def _moved_boxes(boxes: Boxes, scale: float, linear: Tensor, centre: Tensor) -> Boxes:
    plane = linear[:2, :2]
    heading = torch.stack([boxes.yaw.cos(), boxes.yaw.sin()], -1).double() @ plane.mT
    return replace(
        boxes,
        centre=centre,
        size=boxes.size * scale,
        yaw=torch.atan2(heading[:, 1], heading[:, 0]).float(),
        velocity=(scale * (boxes.velocity.double() @ plane.mT)).float(),
    )


def _moved_maps(maps: Maps, scale: float, linear: Tensor, shift: Tensor) -> Maps:
    """The value at each cell's centre, from where that place was before; nothing beyond the old map."""
    centres = maps.grid.flat().centres()[0].double()
    before = ((centres - shift) @ linear / scale).float()
    before[..., 2] = centres[..., 2].float()
    cell, inside = maps.grid.flat().cell_of(before)
    return replace(maps, layers=maps.layers.flatten(1)[:, cell] & inside)


def _moved_box2d(box2d: Tensor, before: Camera, after: Camera) -> Tensor:
    """The upright rectangles around the moved corners of rectangles."""
    change = after.pix_T_cam[:3, :3].double() @ torch.linalg.inv(before.pix_T_cam[:3, :3].double())
    left, top, right, bottom = box2d.double().unbind(-1)
    corners = torch.stack([left, top, left, bottom, right, top, right, bottom], -1).unflatten(-1, (4, 2))
    corners = corners @ change[:2, :2].mT + change[:2, 2]
    return torch.cat([corners.amin(1), corners.amax(1)], -1).float()


def _with_pixels(camera: Camera, image: Tensor, change: Tensor, of_truth: Callable[[Tensor], Tensor]) -> Camera:
    """The camera after its pixels moved by a 3×3 matrix."""
    pix_T_cam = camera.pix_T_cam.double()
    pix_T_cam[:3] = change @ pix_T_cam[:3]
    truths = {name: getattr(camera, name) for name in ("depth", "semantics", "instances", "valid")}
    present = {name: of_truth(truth) for name, truth in truths.items() if truth is not None}
    return replace(camera, image=image, pix_T_cam=pix_T_cam.float(), **present)


def _with_valid(camera: Camera) -> Camera:
    if camera.valid is not None:
        return camera
    return replace(camera, valid=torch.ones(camera.image.shape[-2:], dtype=torch.bool))


def _nothing(truth: Tensor) -> float:
    """What stands outside the image: not valid, infinitely far, no label."""
    if truth.dtype == torch.bool:
        return 0.0
    return math.inf if truth.is_floating_point() else -1.0
