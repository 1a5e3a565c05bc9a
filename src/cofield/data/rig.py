"""What a synthetic car carries, and the four presets: sensors, volume, map, number of scenes."""

from dataclasses import dataclass, replace
from math import cos, radians, sin

import torch
from jaxtyping import Float
from torch import Tensor

from cofield.frame import Camera
from cofield.grid import BoxGrid


@dataclass(frozen=True, eq=False)
class Mount:
    """A camera's calibration, its place on the car and when it is exposed.

    Args:
        size: rows and columns of its image.
        delay: seconds from the frame's time to the exposure; late is positive.
    """

    name: str
    size: tuple[int, int]
    pix_T_cam: Float[Tensor, "4 4"]
    cam_T_ego: Float[Tensor, "4 4"]
    delay: float = 0.0

    @classmethod
    def looking(
        cls, name: str, size: tuple[int, int], focal: float, centre: tuple[float, float],
        place: tuple[float, float, float], yaw_deg: float, pitch_deg: float = 0.0, delay: float = 0.0,
    ) -> "Mount":  # fmt: skip
        """A pinhole camera at a place of the ego frame; yaw turns it left, pitch down."""
        yaw, pitch = radians(yaw_deg), radians(pitch_deg)
        forward = [cos(yaw) * cos(pitch), sin(yaw) * cos(pitch), -sin(pitch)]
        right = [sin(yaw), -cos(yaw), 0.0]
        down = [-cos(yaw) * sin(pitch), -sin(yaw) * sin(pitch), -cos(pitch)]
        rotation = torch.tensor([right, down, forward], dtype=torch.float64)
        cam_T_ego, pix_T_cam = torch.eye(4), torch.eye(4)
        cam_T_ego[:3, :3] = rotation
        cam_T_ego[:3, 3] = -rotation @ torch.tensor(place, dtype=torch.float64)
        pix_T_cam[0, 0] = pix_T_cam[1, 1] = focal
        pix_T_cam[0, 2], pix_T_cam[1, 2] = centre
        return cls(name, size, pix_T_cam, cam_T_ego, delay)

    @classmethod
    def of(cls, camera: Camera) -> "Mount":
        """The calibration of an exposure, to see the same view again."""
        height, width = camera.image.shape[-2:]
        return cls(camera.name, (height, width), camera.pix_T_cam, camera.cam_T_ego)


@dataclass(frozen=True)
class Rig:
    """Cameras and one spinning LiDAR; a variant is `replace(rig, beams=64)`.

    Args:
        lidar: its place in the ego frame.
        elevation_deg: of the lowest and the highest beam.
        noise: standard deviation of the range in metres.
        dropout: share of returns that are lost.
        sweeps: how many are in a frame; the first is the keyframe's, the others are `period` seconds older each.
        spin: seconds in which a sweep goes once around. 0 is a snapshot, and the keyframe's points have age 0;
            otherwise the sweep ends at its time and comes in `slices`, each with its own time, age and origin.
    """

    cameras: tuple[Mount, ...]
    lidar: tuple[float, float, float] = (0.0, 0.0, 1.8)
    beams: int = 32
    azimuths: int = 360
    elevation_deg: tuple[float, float] = (-30.0, 10.0)
    max_range: float = 50.0
    noise: float = 0.02
    dropout: float = 0.1
    sweeps: int = 1
    period: float = 0.05
    spin: float = 0.0
    slices: int = 12

    def __post_init__(self) -> None:
        if self.beams < 1 or self.azimuths < 1:
            raise ValueError(
                f"a LiDAR needs at least one beam and one azimuth step, got {self.beams} × {self.azimuths}"
            )
        if self.max_range <= 0 or not 0 <= self.dropout < 1 or self.noise < 0:
            raise ValueError(
                "a LiDAR needs a positive range, noise >= 0 and dropout in 0..1, "
                f"got {self.max_range} m, {self.noise} m, {self.dropout}"
            )
        if self.sweeps < 1 or self.period <= 0 or self.spin < 0 or self.slices < 1:
            raise ValueError(
                "a frame needs at least one sweep of one slice and times that are not negative, "
                f"got {self.sweeps} sweeps every {self.period} s, {self.slices} slices in {self.spin} s"
            )


def varied(rig: Rig, sensors: str) -> Rig:
    """The rig with other sensors: `beams=16`, `range=30` in metres, `delay=0.1` seconds of all cameras; + joins."""
    for change in filter(None, sensors.split("+")):
        name, _, text = change.partition("=")
        try:
            match name:
                case "beams":
                    rig = replace(rig, beams=int(text))
                case "range":
                    rig = replace(rig, max_range=float(text))
                case "delay":
                    late = [replace(mount, delay=mount.delay + float(text)) for mount in rig.cameras]
                    rig = replace(rig, cameras=tuple(late))
                case _:
                    raise ValueError("sensors are varied by beams=16, range=30 (metres) and delay=0.1 (seconds)")
        except ValueError as problem:
            raise ValueError(f"{change!r} is no change of a world's sensors: {problem}") from problem
    return rig


@dataclass(frozen=True)
class Preset:
    """A world's sensors, volume, map raster and number of scenes."""

    rig: Rig
    grid: BoxGrid
    map_grid: BoxGrid
    scenes: dict[str, int]


def preset(name: str) -> Preset:
    """The preset called `name`."""
    near = BoxGrid((-25.6, -25.6, -1.6), (0.8, 0.8, 0.8), (64, 64, 8))
    near_map = BoxGrid((-25.6, -25.6, -1.6), (0.4, 0.4, 6.4), (128, 128, 1))
    match name:
        case "tiny":
            rig = Rig(_four(), beams=16)
            return Preset(rig, near, near_map, {"train": 50, "val": 10})
        case "small":
            return Preset(Rig(_four()), near, near_map, {"train": 100, "val": 20})
        case "nuscenes-like":
            place = (0.94, 0.0, 1.84)
            rig = Rig(_six(), place, 32, 1090, (-30.67, 10.67), 80.0, sweeps=10)
            grid = BoxGrid((-54.0, -54.0, -5.0), (0.075, 0.075, 0.2), (1440, 1440, 40), place)
            flat = BoxGrid((-50.0, -50.0, -5.0), (0.5, 0.5, 8.0), (200, 200, 1), place)
            return Preset(rig, grid, flat, {"train": 50, "val": 10})
        case "kitti-like":
            place = (0.0, 0.0, 1.73)
            camera = Mount.looking("image_2", (375, 1242), 721.5, (609.6, 172.9), (0.27, 0.06, 1.65), 0.0)
            rig = Rig((camera,), place, 64, 2048, (-24.9, 2.0), 100.0, period=0.1)
            grid = BoxGrid((0.0, -40.0, -3.0), (0.05, 0.05, 0.1), (1408, 1600, 40), place)
            flat = BoxGrid((0.0, -40.0, -3.0), (0.4, 0.4, 4.0), (176, 200, 1), place)
            return Preset(rig, grid, flat, {"train": 50, "val": 10})
        case _:
            raise ValueError(f"no world is called {name!r}; there is {', '.join(PRESETS)}")


PRESETS = ("tiny", "small", "nuscenes-like", "kitti-like")


def _four() -> tuple[Mount, ...]:
    places = (
        ("front", 0.0, (1.5, 0.0)),
        ("left", 90.0, (0.0, 0.7)),
        ("back", 180.0, (-1.2, 0.0)),
        ("right", 270.0, (0.0, -0.7)),
    )
    return tuple(Mount.looking(name, (64, 160), 75.0, (80.0, 27.0), (x, y, 1.6), yaw) for name, yaw, (x, y) in places)


def _six() -> tuple[Mount, ...]:
    places = (
        ("CAM_FRONT", 0.0, (1.7, 0.0)), ("CAM_FRONT_RIGHT", -55.0, (1.5, -0.5)),
        ("CAM_BACK_RIGHT", -110.0, (1.0, -0.5)),
        ("CAM_BACK", 180.0, (0.0, 0.0)), ("CAM_BACK_LEFT", 110.0, (1.0, 0.5)), ("CAM_FRONT_LEFT", 55.0, (1.5, 0.5)),
    )  # fmt: skip
    return tuple(
        Mount.looking(name, (256, 704), 356.0 if name == "CAM_BACK" else 557.0, (352.0, 92.0), (x, y, 1.55), yaw,
                      delay=-0.008 * (5 - k))
        for k, (name, yaw, (x, y)) in enumerate(places)
    )  # fmt: skip
