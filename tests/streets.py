"""Frames made by hand: small, with unequal axes, and with answers one can work out."""

from dataclasses import dataclass
from typing import Any

import torch

from cofield.classes import Classes
from cofield.draw import generator
from cofield.frame import Boxes, Camera, Frame, Points
from cofield.geometry import inverse, pose
from cofield.grid import BoxGrid
from cofield.models.mask import Masking
from cofield.train.config import Data, Model, Optim, Pretraining
from cofield.train.losses import Weights
from cofield.train.views import Sampling

FORWARD = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])  # cam_R_ego of a camera looking ahead


def camera(name: str = "front", height: int = 16, width: int = 40, yaw_deg: float = 0.0) -> Camera:
    """A camera 1.5 m above the road, turned left by `yaw_deg`."""
    pix_T_cam = torch.eye(4)
    pix_T_cam[0, 0] = pix_T_cam[1, 1] = width / 2
    pix_T_cam[0, 2], pix_T_cam[1, 2] = width / 2, height / 2
    yaw = torch.deg2rad(torch.tensor(yaw_deg))
    turn = torch.tensor([[yaw.cos(), -yaw.sin(), 0], [yaw.sin(), yaw.cos(), 0], [0, 0, 1]])
    ego_T_cam = pose(turn @ FORWARD.mT.to(turn), torch.tensor([0.5, 0.0, 1.5]))
    image = torch.rand(3, height, width, generator=generator("image", name))
    return Camera(name, image, pix_T_cam, inverse(ego_T_cam), time=0.0)


def points(count: int = 50, sweeps: int = 2, key: str = "points") -> Points:
    draw = generator(key)
    xyz = torch.randn(count, 3, generator=draw) * torch.tensor([8.0, 6.0, 0.8]) + torch.tensor([0.0, 0.0, 1.0])
    origin = torch.randint(sweeps, (count,), generator=draw)
    return Points(
        xyz_ego=xyz,
        intensity=torch.rand(count, generator=draw),
        age=origin * 0.1,
        origin=origin,
        labels=torch.randint(16, (count,), generator=draw),
        instances=torch.full((count,), -1),
    )


def boxes(count: int = 3) -> Boxes:
    draw = generator("boxes")
    return Boxes(
        centre=torch.randn(count, 3, generator=draw) * 5,
        size=torch.rand(count, 3, generator=draw) * 3 + 1,
        yaw=torch.randn(count, generator=draw),
        velocity=torch.randn(count, 2, generator=draw),
        label=torch.arange(count),
    )


def frame(token: str = "a", cameras: int = 2, count: int = 50, **size: int) -> Frame:
    return Frame(
        token=token,
        scene="scene",
        time=0.0,
        world_T_ego=torch.eye(4, dtype=torch.float64),
        cameras=tuple(camera(f"{token}-{i}", yaw_deg=90.0 * i, **size) for i in range(cameras)),
        points=points(count, key=token),
        origins_ego=torch.tensor([[0.9, 0.0, 1.8], [0.4, 0.0, 1.8]]),
        boxes=boxes(),
    )


GRID = BoxGrid(lower=(-12.0, -8.0, -1.0), cell=(1.0, 1.0, 1.0), count=(24, 16, 5))


def config(**groups: Any) -> Pretraining:
    """A run small enough for a test."""
    parts = {
        "data": Data(source="hand", batch=2, workers=0, validation=2),
        "model": Model(width=8, camera_width=16, lidar_width=16, bins=12, field_width=16),
        "mask": Masking(patch=8, lidar_cell=2.0),
        "views": Sampling(pixels=24, beams=16, above=16, samples=12),
        "loss": Weights(),
        "optim": Optim(steps=6, precision="32", save_every=2, validate_every=3),
    }
    return Pretraining(grid=GRID, **parts | groups)


@dataclass(frozen=True)
class Hand:
    """A source of frames made by hand."""

    frames: int = 5
    name: str = "hand"
    box_classes: Classes | None = None
    point_classes: Classes | None = None

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, index: int) -> Frame:
        return frame(f"frame {index}")

    def scenes(self) -> list[str]:
        return ["scene"] * self.frames
