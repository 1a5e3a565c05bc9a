"""The synthetic world as a source: cameras and a LiDAR driven through procedural streets, with exact truth.

A scene follows from (layout version, preset, town, split, number) and is built once; each of its frames
is evaluated at its own time. `World.view` shows any scene at any time through any cameras.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cofield.classes import DETECTION, LIDARSEG
from cofield.data import shade
from cofield.data.cast import Hits, Instant, Stage
from cofield.data.ground import layers_of
from cofield.data.rig import Mount, Rig, preset, varied
from cofield.data.street import build
from cofield.data.traffic import SLOW, inside
from cofield.draw import counted_seed
from cofield.frame import Boxes, Camera, Frame, Maps, Points
from cofield.geometry import inverse

Array = np.ndarray

LAYOUT = 1  # the version of the town plans: another number, other towns
TOWNS = ("tune", "report", "sealed")
FRAMES, INTERVAL = 7, 0.5
_KEPT = 2  # built scenes in memory


@dataclass(frozen=True)
class Scene:
    """One drive, ready for rays."""

    name: str
    key: tuple[int | str, ...]
    stage: Stage
    world_T_town: Float[Tensor, "4 4"]

    def town_T_ego(self, time: float) -> Float[Tensor, "4 4"]:
        """The car at a time, in double precision."""
        xy, yaw, _ = self.stage.street.drive.at_times(np.array([time]))
        return _upright(xy[0, 0, 0], xy[0, 0, 1], 0.0, yaw[0, 0])


class World:
    """Frames of one preset's scenes, seven each at 2 Hz.

    Args:
        rig: other sensors than the preset's, as `replace(world.rig, beams=64)`.
        sensors: changes of them that its name tells, as `beams=16+delay=0.1`.
    """

    def __init__(
        self, name: str, town: str = "tune", split: str = "train", rig: Rig | None = None, sensors: str = ""
    ) -> None:
        chosen = preset(name)
        if town not in TOWNS:
            raise ValueError(f"no town is called {town!r}; there is {', '.join(TOWNS)}")
        if split not in chosen.scenes:
            raise ValueError(f"no split is called {split!r}; there is {', '.join(chosen.scenes)}")
        self.preset, self.town, self.split = name, town, split
        self.name = f"world:{name}@{town}" + f"+{sensors}" * bool(sensors)
        self.rig = varied(rig or chosen.rig, sensors)
        self.grid, self.map_grid = chosen.grid, chosen.map_grid
        self.box_classes, self.point_classes = DETECTION, LIDARSEG
        self._scene_names = [f"{name}-{town}-{split}-{number:04d}" for number in range(chosen.scenes[split])]
        self._built: OrderedDict[int, Scene] = OrderedDict()

    def __repr__(self) -> str:
        return f"World({self.preset!r}, {self.town!r}, {self.split!r}, {self.rig!r})"

    def __len__(self) -> int:
        return FRAMES * len(self._scene_names)

    def __getitem__(self, index: int) -> Frame:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} {self.split} has frames 0 to {len(self) - 1}, got {index}")
        scene, time = self._scene(index // FRAMES), INTERVAL * (index % FRAMES)
        town_T_ego = scene.town_T_ego(time)
        points, origins = self._scan(scene, time, index % FRAMES)
        return Frame(
            token=f"{scene.name}-{index % FRAMES}",
            scene=scene.name,
            time=time,
            world_T_ego=scene.world_T_town @ town_T_ego,
            cameras=self.view(index // FRAMES, time, self.rig.cameras),
            points=points,
            origins_ego=origins,
            boxes=self._boxes(scene, time, points),
            maps=self._map(scene, town_T_ego),
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_built": OrderedDict()}

    def scenes(self) -> list[str]:
        """The scene of every frame."""
        return [name for name in self._scene_names for _ in range(FRAMES)]

    def view(self, scene: int | str, time: float, cameras: Sequence[Camera | Mount]) -> tuple[Camera, ...]:
        """What cameras see of a scene at a time, with depth, semantics and instances.

        Args:
            scene: its number or its name.
            cameras: calibrations; `cam_T_ego` starts from where the car is at `time`, and a mount's delay rides along.
        """
        place = self._scene(self._number(scene))
        mounts = [Mount.of(camera) if isinstance(camera, Camera) else camera for camera in cameras]
        groups: dict[float, list[int]] = {}
        for k, mount in enumerate(mounts):
            groups.setdefault(mount.delay, []).append(k)
        seen: dict[int, Camera] = {}
        for delay, members in groups.items():
            views = _expose(place, time, delay, [mounts[k] for k in members])
            seen.update(zip(members, views, strict=True))
        return tuple(seen[k] for k in range(len(mounts)))

    def _number(self, scene: int | str) -> int:
        if isinstance(scene, str):
            if scene not in self._scene_names:
                raise ValueError(
                    f"{self.name} {self.split} has no scene {scene!r}; its first is {self._scene_names[0]!r}"
                )
            return self._scene_names.index(scene)
        if not 0 <= scene < len(self._scene_names):
            raise ValueError(f"{self.name} {self.split} has scenes 0 to {len(self._scene_names) - 1}, got {scene}")
        return scene

    def _scene(self, number: int) -> Scene:
        """The scene, built or remembered."""
        if number not in self._built:
            key = ("world", LAYOUT, self.preset, self.town, self.split, number)
            rng = np.random.default_rng(counted_seed(*key))
            stage = Stage(build(rng, theme=number % 5))
            east, north = rng.uniform(500, 2500, 2)
            world_T_town = _upright(east, north, 0.0, rng.uniform(-np.pi, np.pi))
            self._built[number] = Scene(self._scene_names[number], key, stage, world_T_town)
            while len(self._built) > _KEPT:
                self._built.popitem(last=False)
        self._built.move_to_end(number)
        return self._built[number]

    def _scan(self, scene: Scene, time: float, step: int) -> tuple[Points, Float[Tensor, "s 3"]]:
        """All sweeps of a frame, moved to the car's pose at its time, and where each was taken."""
        rig, ego_T_town = self.rig, inverse(scene.town_T_ego(time))
        slices = rig.slices if rig.spin else 1
        parts, origins = [], []
        for sweep in range(rig.sweeps):
            rng = np.random.default_rng(counted_seed(*scene.key, "lidar", step, sweep))
            for part in range(slices):
                age = rig.period * sweep + rig.spin * (slices - 1 - part) / slices
                columns = np.arange(part * rig.azimuths // slices, (part + 1) * rig.azimuths // slices)
                if not len(columns):
                    continue
                town_T_ego = scene.town_T_ego(time - age)
                parts.append(_sweep(scene, rig, columns, town_T_ego, ego_T_town, age, time - age, len(origins), rng))
                origins.append(
                    (ego_T_town @ town_T_ego @ torch.tensor([*rig.lidar, 1.0], dtype=torch.float64))[:3].float()
                )
        columns_of = zip(*parts, strict=True)
        xyz, intensity, age, origin, labels, tracks = (
            torch.from_numpy(np.concatenate(column)) for column in columns_of
        )
        return Points(xyz, intensity, age, origin, labels, tracks), torch.stack(origins)

    def _boxes(self, scene: Scene, time: float, points: Points) -> Boxes:
        """The boxes of all agents that the LiDAR can reach."""
        street = scene.stage.street
        if not street.agents:
            return Boxes.empty()
        xy, yaw, velocity = (column[:, 0] for column in street.routes.at_times(np.array([time])))
        size, label, attribute = scene.stage.described
        height = street.ground.heights(xy) + size[:, 2] / 2
        moving = (np.linalg.norm(velocity, axis=-1) > SLOW).astype(np.int64)
        boxes = Boxes(
            centre=torch.from_numpy(np.concatenate([xy, height[:, None]], -1)),
            size=torch.from_numpy(size),
            yaw=torch.from_numpy(yaw),
            velocity=torch.from_numpy(velocity),
            label=torch.from_numpy(label),
            track=torch.arange(len(size)),
            attribute=torch.from_numpy(attribute[moving, np.arange(len(size))]),
        )
        boxes = boxes.moved(inverse(scene.town_T_ego(time)))
        reach = self.rig.max_range + boxes.size.norm(dim=-1) / 2
        boxes = boxes.select(boxes.centre.norm(dim=-1) <= reach)
        key = points.xyz_ego[points.origin < (self.rig.slices if self.rig.spin else 1)].numpy()
        place = torch.cat([boxes.centre, boxes.size, boxes.yaw[:, None]], -1).numpy()
        return Boxes(
            boxes.centre.float(), boxes.size.float(), boxes.yaw.float(), boxes.velocity.float(), boxes.label,
            track=boxes.track, attribute=boxes.attribute, num_points=torch.from_numpy(inside(key, place)),
        )  # fmt: skip

    def _map(self, scene: Scene, town_T_ego: Float[Tensor, "4 4"]) -> Maps:
        """The map layers around the car."""
        centres = self.map_grid.centres()[0].double()
        xy = centres[..., :2] @ town_T_ego[:2, :2].mT + town_T_ego[:2, 3]
        codes = scene.stage.street.ground.codes(xy.reshape(-1, 2).numpy())
        layers = torch.from_numpy(layers_of(codes).reshape(-1, *centres.shape[:2]))
        return Maps(layers, self.map_grid)


def _upright(x: float, y: float, z: float, yaw: float) -> Float[Tensor, "4 4"]:
    """A pose without tilt, in double precision."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return torch.tensor([[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, z], [0, 0, 0, 1]], dtype=torch.float64)


@lru_cache(maxsize=64)
def _pixel_rays(mount: Mount) -> tuple[Array, Array, float]:
    """Each pixel's unit direction in the camera frame, its cosine to the axis, and the angle of one pixel."""
    height, width = mount.size
    v, u = np.mgrid[0:height, 0:width] + 0.5
    cam_T_pix = np.linalg.inv(mount.pix_T_cam.double().numpy())
    direction = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3) @ cam_T_pix[:3, :3].T
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    angle = float(np.arccos(np.clip(direction[0] @ direction[1], -1, 1))) if width > 1 else 0.01
    return direction, direction[:, 2].astype(np.float32), max(angle, 1e-5)


def _expose(scene: Scene, time: float, delay: float, mounts: list[Mount]) -> list[Camera]:
    """What cameras exposed at the same moment see."""
    town_T_ego = scene.town_T_ego(time + delay)
    now = scene.stage.instant(time + delay)
    origins, directions, angles = [], [], []
    for mount in mounts:
        town_T_cam = (town_T_ego @ inverse(mount.cam_T_ego.double())).numpy()
        _refuse_inside(scene, town_T_cam[:3, 3], mount.name)
        direction, cosine, angle = _pixel_rays(mount)
        directions.append((direction @ town_T_cam[:3, :3].T).astype(np.float32))
        origins.append(np.broadcast_to(town_T_cam[:3, 3].astype(np.float32), direction.shape))
        angles.append(np.full(len(cosine), angle, np.float32))
    origin, direction = np.concatenate(origins), np.concatenate(directions)
    hits = scene.stage.cast(origin, direction, now)
    seed = counted_seed(*scene.key, "exposure", f"{time + delay:.6f}", *[mount.name for mount in mounts]) & 0xFFFFFF
    image = _paint(scene.stage, origin, direction, hits, now, np.concatenate(angles), seed)
    label, track = scene.stage.labels(hits)
    carried = inverse(town_T_ego) @ scene.town_T_ego(time)
    views, start = [], 0
    for mount in mounts:
        height, width = mount.size
        span = slice(start, start + height * width)
        start = span.stop
        distance, cosine = hits.distance[span], _pixel_rays(mount)[1]
        depth = np.where(hits.is_sky[span], np.float32(np.inf), distance * cosine)
        views.append(
            Camera(
                name=mount.name,
                image=torch.from_numpy(image[span].reshape(height, width, 3)).permute(2, 0, 1).contiguous(),
                pix_T_cam=mount.pix_T_cam,
                cam_T_ego=(mount.cam_T_ego.double() @ carried).float() if delay else mount.cam_T_ego,
                time=time + delay,
                depth=torch.from_numpy(depth.reshape(height, width)),
                semantics=torch.from_numpy(label[span].reshape(height, width)),
                instances=torch.from_numpy(track[span].reshape(height, width)),
            )
        )
    return views


def _refuse_inside(scene: Scene, place: Array, name: str) -> None:
    """A camera in a building, or below the ground, would see what nobody can see."""
    buildings = scene.stage.street.buildings
    delta = place[:2] - buildings[:, :2]
    cos, sin = np.cos(buildings[:, 4]), np.sin(buildings[:, 4])
    along, across = delta[:, 0] * cos + delta[:, 1] * sin, delta[:, 1] * cos - delta[:, 0] * sin
    within = (np.abs(along) < buildings[:, 2]) & (np.abs(across) < buildings[:, 3]) & (place[2] < buildings[:, 5])
    if within.any():
        raise ValueError(
            f"camera {name!r} is inside a building of {scene.name}; "
            f"move it, for instance higher than {buildings[within, 5].max():.0f} m"
        )
    if place[2] <= 0.15:
        raise ValueError(
            f"camera {name!r} is {place[2]:.2f} m above the road of {scene.name}; it needs more than 0.15 m"
        )


def _paint(stage: Stage, origin: Array, direction: Array, hits: Hits, now: Instant, angle: Array, seed: int) -> Array:
    """Colours 0..1 of what the rays met."""
    light = stage.street.light
    shading, flat = shade.normals_at(
        direction, hits.triangle, hits.mover, now.turns, hits.u, hits.v, stage.mesh.normals, stage.mesh.corners
    )
    place, asked, start, way = shade.towards_sun(
        origin, direction, hits.distance, flat, light.sun, light.softness, seed
    )
    lit = np.zeros(len(place), np.float32)
    if len(asked):
        lit[asked] = ~stage.shadowed(start, way, now)
    linear = shade.colours(
        direction, place, hits.distance, hits.code, hits.triangle, np.maximum(hits.mover, 0), hits.u, hits.v,
        shading, lit,
        (stage.mesh.uv, stage.mesh.material, stage.mesh.colour), stage.tints, light.packed, light.grass, angle,
    )  # fmt: skip
    return shade.exposed(linear, light.exposure, 0.012, seed)


def _sweep(
    scene: Scene, rig: Rig, columns: Array, town_T_ego: Tensor, ego_T_town: Tensor, age: float, time: float, row: int,
    rng: np.random.Generator,
) -> tuple[Array, ...]:  # fmt: skip
    """The returns of some columns of beams at one moment."""
    azimuth = np.pi - (columns + 0.5) * 2 * np.pi / rig.azimuths
    elevation = np.radians(np.linspace(*rig.elevation_deg, rig.beams))
    flat, rise = np.cos(elevation), np.broadcast_to(np.sin(elevation), (len(azimuth), rig.beams))
    local = np.stack([np.cos(azimuth)[:, None] * flat, np.sin(azimuth)[:, None] * flat, rise], -1).reshape(-1, 3)
    pose = town_T_ego.numpy()
    direction = (local @ pose[:3, :3].T).astype(np.float32)
    start = (pose[:3, :3] @ np.array(rig.lidar) + pose[:3, 3]).astype(np.float32)
    now = scene.stage.instant(time)
    origin = np.broadcast_to(start, direction.shape)
    hits = scene.stage.cast(np.ascontiguousarray(origin), direction, now)
    jitter, lost = rng.normal(size=len(direction)), rng.random(len(direction)) < rig.dropout
    keep = np.flatnonzero((hits.distance <= rig.max_range) & ~lost)
    hits = Hits(*(getattr(hits, name)[keep] for name in ("distance", "code", "triangle", "mover", "u", "v")))
    mesh = scene.stage.mesh
    shading, _ = shade.normals_at(
        direction[keep], hits.triangle, hits.mover, now.turns, hits.u, hits.v, mesh.normals, mesh.corners
    )
    intensity = shade.echoes(
        direction[keep], hits.distance, hits.code, hits.triangle, np.maximum(hits.mover, 0), shading,
        mesh.material, mesh.colour, scene.stage.tints,
    )  # fmt: skip
    distance = np.maximum(hits.distance + rig.noise * jitter[keep], 0.05)
    xyz = start + direction[keep].astype(np.float64) * distance[:, None]
    turn = ego_T_town.numpy()
    label, track = scene.stage.labels(hits)
    return (
        (xyz @ turn[:3, :3].T + turn[:3, 3]).astype(np.float32),
        intensity,
        np.full(len(keep), age, np.float32),
        np.full(len(keep), row, np.int64),
        label,
        track,
    )
