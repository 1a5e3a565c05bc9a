"""Where rays meet a street: the ground in closed form, what stands by Embree, what moves by a mesh per body.

Meshes of things that stand are committed once per scene. A mover's mesh is committed once per process in
its own frame, and the few rays that pass near it are brought there: no instant needs a new hierarchy.
"""

from dataclasses import dataclass
from functools import cache
from math import acos, asin, sqrt
from typing import no_type_check

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Int
from numba import njit

from cofield.data.bodies import KINDS, body
from cofield.data.crowd import LIDARSEG_OF
from cofield.data.ground import SURFACE_LABELS, surface_of
from cofield.data.shapes import Mesh, joined
from cofield.data.street import Street

Array = np.ndarray

FAR = np.float32(1e30)
_BUNDLE = 32  # neighbouring rays that are compared with a mover together


@dataclass(frozen=True)
class Hits:
    """What rays met. `triangle` counts the stage's `mesh`, -1 where it is ground or sky; `mover` is an agent or -1."""

    distance: Float[Array, "r"]
    code: Int[Array, "r"]
    triangle: Int[Array, "r"]
    mover: Int[Array, "r"]
    u: Float[Array, "r"]
    v: Float[Array, "r"]

    @property
    def is_sky(self) -> Bool[Array, "r"]:
        return self.distance >= 1e29


@dataclass(frozen=True)
class Instant:
    """Where the movers are at one time: position and height [m 3], heading, size factor, and which body."""

    place: Float[Array, "m 3"]
    yaw: Float[Array, "m"]
    scale: Float[Array, "m"]
    kinds: tuple[str, ...]
    spheres: Float[Array, "m 4"]


@cache
def _bodies() -> tuple[Mesh, dict[str, int]]:
    """All bodies in one table, and where each begins."""
    kinds = [kind for group in KINDS.values() for kind in group]
    meshes = [body(kind) for kind in kinds]
    starts = np.cumsum([0] + [len(mesh) for mesh in meshes])
    return joined(meshes), dict(zip(kinds, starts.tolist(), strict=False))


@cache
def _embree(kind: str) -> EmbreeScene:
    return _committed(body(kind).corners)


@cache
def _reach(kind: str) -> tuple[float, float]:
    """A body's sphere: the height of its centre and its radius."""
    corners = body(kind).corners.reshape(-1, 3)
    middle = float(corners[:, 2].max()) / 2
    return middle, float(np.linalg.norm(corners - [0, 0, middle], axis=-1).max()) + 0.01


def _committed(corners: Float[Array, "t 3 3"]) -> EmbreeScene:
    # Robust: no ray slips through the seam of two triangles.
    scene = EmbreeScene(robust=True)
    TriangleMesh(scene, np.ascontiguousarray(corners, np.float32))
    return scene


class Stage:
    """A street ready for rays."""

    def __init__(self, street: Street) -> None:
        self.street = street
        self.still = _committed(street.still.corners)
        bodies, starts = _bodies()
        self.starts = {kind: start + len(street.still) for kind, start in starts.items()}
        self.mesh = joined([street.still, bodies])
        self.label = np.concatenate([street.still_label, np.full(len(bodies), -1)])
        self.track = np.concatenate([street.still_track, np.full(len(bodies), -1)])
        self.agent_label = (
            LIDARSEG_OF[[agent.label for agent in street.agents]] if street.agents else np.zeros(0, np.int64)
        )
        self.tints = np.array([agent.colours for agent in street.agents], np.float32).reshape(-1, 3, 3)

    def instant(self, time: float) -> Instant:
        """The movers at a time."""
        street = self.street
        xy, yaw, _ = street.moving.at_times(np.array([time]))
        place = np.concatenate([xy[:, 0], street.ground.heights(xy[:, 0])[:, None]], -1)
        agents = [street.agents[i] for i in street.movers]
        kinds, scale = tuple(agent.step(time) for agent in agents), np.array([agent.scale for agent in agents])
        reach = np.array([_reach(kind) for kind in kinds]).reshape(-1, 2)
        spheres = np.concatenate([place, (reach[:, 1] * scale)[:, None]], -1)
        spheres[:, 2] += reach[:, 0] * scale
        return Instant(place, yaw[:, 0], scale, kinds, spheres)

    def cast(self, origin: Float[Array, "r 3"], direction: Float[Array, "r 3"], now: Instant) -> Hits:
        """The first surface along each unit ray of the town."""
        # Nothing lies below the road, so no ray need be followed further; the ground itself is asked last.
        with np.errstate(divide="ignore"):
            below = np.where(direction[:, 2] < -1e-5, -1.001 * origin[:, 2] / direction[:, 2], FAR)
        found = self.still.run(origin, direction, below.astype(np.float32), query="INTERSECT", output=True)
        hit = found["geomID"] >= 0
        hits = Hits(
            np.where(hit, found["tfar"], below.astype(np.float32)),
            np.zeros(len(origin), np.int64),
            np.where(hit, found["primID"], -1),
            np.full(len(origin), -1, np.int32),
            found["u"],
            found["v"],
        )
        rays, starts = _near(origin, direction, hits.distance, now.spheres)
        for m in np.flatnonzero(np.diff(starts)).tolist():
            near = rays[starts[m] : starts[m + 1]]
            place = self._local(origin[near], now, m, True)
            local = _embree(now.kinds[m]).run(
                place, self._local(direction[near], now, m, False), hits.distance[near], query="INTERSECT", output=True
            )
            closer = local["geomID"] >= 0
            which = near[closer]
            hits.distance[which] = local["tfar"][closer]
            hits.triangle[which] = local["primID"][closer] + self.starts[now.kinds[m]]
            hits.mover[which] = self.street.movers[m]
            hits.u[which], hits.v[which] = local["u"][closer], local["v"][closer]
        thing = np.where(hits.triangle >= 0, hits.distance, FAR)
        ground, code = self.street.ground.meet(origin, direction, thing)
        is_ground = ground < thing
        return Hits(
            np.where(is_ground, ground, thing),
            code,
            np.where(is_ground, -1, hits.triangle),
            np.where(is_ground, -1, hits.mover),
            hits.u,
            hits.v,
        )

    def shadowed(self, origin: Float[Array, "r 3"], direction: Float[Array, "r 3"], now: Instant) -> Bool[Array, "r"]:
        """Whether something stands between a point and the sun."""
        blocked = self.still.run(origin, direction, query="OCCLUDED") >= 0
        distance = np.where(blocked, np.float32(0), FAR)
        rays, starts = _near(origin, direction, distance, now.spheres)
        for m in np.flatnonzero(np.diff(starts)).tolist():
            near = rays[starts[m] : starts[m + 1]]
            near = near[~blocked[near]]
            if len(near):
                place, way = self._local(origin[near], now, m, True), self._local(direction[near], now, m, False)
                blocked[near] |= _embree(now.kinds[m]).run(place, way, query="OCCLUDED") >= 0
        return blocked

    def labels(self, hits: Hits) -> tuple[Int[Array, "r"], Int[Array, "r"]]:
        """The LIDARSEG label and the track of what each ray met; -1 for the sky and for what has no track."""
        ground = np.where(hits.is_sky, -1, SURFACE_LABELS[surface_of(hits.code)])
        thing = hits.triangle >= 0
        label = np.where(thing, self.label[hits.triangle], ground)
        track = np.where(thing, self.track[hits.triangle], -1)
        moves = hits.mover >= 0
        if moves.any():
            label = np.where(moves, self.agent_label[hits.mover], label)
        return label, np.where(moves, hits.mover, track)

    def _local(self, vector: Float[Array, "r 3"], now: Instant, m: int, is_place: bool) -> Float[Array, "r 3"]:
        """Vectors of the town in the frame of mover m, which is as large as its body."""
        cos, sin = np.cos(now.yaw[m]), np.sin(now.yaw[m])
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) / now.scale[m]
        moved = vector - now.place[m].astype(np.float32) if is_place else vector
        return np.ascontiguousarray(moved @ turn.astype(np.float32))


@njit(cache=True)
@no_type_check
def _bundle(origin, direction, distance, first, last):
    """The sphere around some rays' origins, their mean direction, its widest angle to one of them, and their reach."""
    centre, axis, reach = np.zeros(3), np.zeros(3), 0.0
    for i in range(first, last):
        reach = max(reach, distance[i])
        for k in range(3):
            centre[k] += origin[i, k]
            axis[k] += direction[i, k]
    centre /= last - first
    axis /= max(1e-9, sqrt(axis[0] ** 2 + axis[1] ** 2 + axis[2] ** 2))
    cosine, spread = 1.0, 0.0
    for i in range(first, last):
        cosine = min(cosine, axis[0] * direction[i, 0] + axis[1] * direction[i, 1] + axis[2] * direction[i, 2])
        x, y, z = origin[i, 0] - centre[0], origin[i, 1] - centre[1], origin[i, 2] - centre[2]
        spread = max(spread, x * x + y * y + z * z)
    return centre, axis, acos(min(1.0, max(-1.0, cosine))) + 1e-3, sqrt(spread) + 1e-3, reach


@njit(cache=True)
@no_type_check
def _candidates(spheres, centre, axis, angle, spread, reach, found):
    """Which spheres a bundle of rays can touch at all; their number, and they themselves in `found`."""
    count = 0
    for m in range(len(spheres)):
        x, y, z = spheres[m, 0] - centre[0], spheres[m, 1] - centre[1], spheres[m, 2] - centre[2]
        radius, away = spheres[m, 3] + spread, sqrt(x * x + y * y + z * z)
        if away - radius > reach:
            continue
        if away > radius:
            off = acos(min(1.0, max(-1.0, (x * axis[0] + y * axis[1] + z * axis[2]) / away)))
            if off > angle + asin(radius / away):
                continue
        found[count] = m
        count += 1
    return count


@njit(cache=True)
@no_type_check
def _near(origin, direction, distance, spheres):
    """For each sphere the rays that pass through it before `distance`: their numbers, and where each sphere's begin."""
    count = np.zeros(len(spheres) + 1, np.int64)
    pairs = np.empty((1024, 2), np.int32)
    found = np.empty(len(spheres), np.int64)
    used = 0
    for first in range(0, len(origin), _BUNDLE):
        last = min(first + _BUNDLE, len(origin))
        centre, axis, angle, spread, reach = _bundle(origin, direction, distance, first, last)
        for f in range(_candidates(spheres, centre, axis, angle, spread, reach, found)):
            m = found[f]
            radius = spheres[m, 3]
            for i in range(first, last):
                x, y, z = spheres[m, 0] - origin[i, 0], spheres[m, 1] - origin[i, 1], spheres[m, 2] - origin[i, 2]
                along = x * direction[i, 0] + y * direction[i, 1] + z * direction[i, 2]
                if along < -radius or along - radius > distance[i]:
                    continue
                if x * x + y * y + z * z - along * along > radius * radius or distance[i] <= 0:
                    continue
                if used == len(pairs):
                    grown = np.empty((2 * used, 2), np.int32)
                    grown[:used] = pairs
                    pairs = grown
                pairs[used, 0], pairs[used, 1] = m, i
                used += 1
                count[m + 1] += 1
    starts = np.cumsum(count)
    rays = np.empty(used, np.int64)
    fill = starts.copy()
    for k in range(used):
        m = pairs[k, 0]
        rays[fill[m]] = pairs[k, 1]
        fill[m] += 1
    return rays, starts
