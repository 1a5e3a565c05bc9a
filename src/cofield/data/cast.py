"""Where rays meet a street: the ground in closed form, what stands and what moves by two Embree scenes.

What stands is committed once per scene. All bodies are committed once per process, side by side; the few rays that
pass near a mover are brought to its body, from where they enter its sphere: no instant needs a new hierarchy.
"""

from dataclasses import dataclass
from functools import cache
from math import sqrt
from typing import no_type_check

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Int
from numba import njit

from cofield.data.bodies import KINDS, body
from cofield.data.crowd import LIDARSEG_OF
from cofield.data.ground import SURFACE_LABELS
from cofield.data.shapes import Mesh, joined
from cofield.data.street import Street

Array = np.ndarray

FAR = np.float32(1e30)
_APART = 14.0  # metres between the bodies in their common scene
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
    """Where the movers are at one time.

    Args:
        spheres: around each mover: centre and radius.
        frames: each mover's x, y, z, cosine and sine of its heading, size factor, and where its body lies, x and y.
        turns: cosine and sine of each agent's heading; 1 and 0 for those that stand, and for agent -1.
    """

    spheres: Float[Array, "m 4"]
    frames: Float[Array, "m 8"]
    turns: Float[Array, "a1 2"]


@dataclass(frozen=True)
class Bodies:
    """All bodies in one table and one Embree scene: where each begins there, lies there, and its sphere's z, radius."""

    mesh: Mesh
    scene: EmbreeScene
    row: dict[str, int]
    start: Int[Array, "k"]
    place: Float[Array, "k 2"]
    sphere: Float[Array, "k 2"]


@cache
def _bodies() -> Bodies:
    kinds = [kind for group in KINDS.values() for kind in group]
    meshes = [body(kind) for kind in kinds]
    index = np.arange(len(kinds))
    place = _APART * np.stack([index % 6 - 2.5, index // 6 - 2.0], -1)
    middle = np.array([mesh.corners[..., 2].max() / 2 for mesh in meshes])
    radius = [
        np.linalg.norm(mesh.corners - [0, 0, z], axis=-1).max() + 0.01 for mesh, z in zip(meshes, middle, strict=True)
    ]
    assert 2 * max(radius) < _APART, "bodies must not touch each other's spheres"
    apart = [mesh.corners + np.array([x, y, 0.0]) for mesh, (x, y) in zip(meshes, place.tolist(), strict=True)]
    starts = np.cumsum([0] + [len(mesh) for mesh in meshes])[:-1]
    row = {kind: k for k, kind in enumerate(kinds)}
    return Bodies(joined(meshes), _committed(np.concatenate(apart)), row, starts, place, np.stack([middle, radius], -1))


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
        bodies = _bodies().mesh
        self.mesh = joined([street.still, bodies])
        self.label = np.concatenate([street.still_label, np.full(len(bodies), -1)])
        self.track = np.concatenate([street.still_track, np.full(len(bodies), -1)])
        agents = street.agents
        # Of each agent: its size, its class, and its attribute when it stands and when it moves.
        self.described = (
            np.array([agent.size for agent in agents]).reshape(-1, 3),
            np.array([agent.label for agent in agents], np.int64),
            np.array([[agent.attribute(moving) for agent in agents] for moving in (False, True)], np.int64),
        )
        self.agent_label = LIDARSEG_OF[self.described[1]]
        self.tints = np.array([agent.colours for agent in agents], np.float32).reshape(-1, 3, 3)

    def instant(self, time: float) -> Instant:
        """The movers at a time."""
        street = self.street
        xy, yaw, _ = street.moving.at_times(np.array([time]))
        place = np.concatenate([xy[:, 0], street.ground.heights(xy[:, 0])[:, None]], -1)
        agents = [street.agents[i] for i in street.movers]
        bodies = _bodies()
        kind = [bodies.row[agent.step(time)] for agent in agents]
        scale = np.array([agent.scale for agent in agents])[:, None]
        turn = np.concatenate([np.cos(yaw), np.sin(yaw)], -1)
        turns = np.tile(np.array([1.0, 0.0], np.float32), (len(street.agents) + 1, 1))
        turns[street.movers] = turn
        sphere = bodies.sphere[kind] * scale
        return Instant(
            np.concatenate([place[:, :2], place[:, 2:] + sphere[:, :1], sphere[:, 1:]], -1),
            np.concatenate([place, turn, scale, bodies.place[kind]], -1),
            turns,
        )

    def cast(self, origin: Float[Array, "r 3"], direction: Float[Array, "r 3"], now: Instant) -> Hits:
        """The first surface along each unit ray of the town."""
        # Nothing lies below the road, so no ray need be followed further; the ground itself is asked last.
        below = _below(origin, direction)
        met = self.still.run(origin, direction, below, query="INTERSECT", output=True)
        distance = _reached(met["geomID"], met["tfar"], below)
        pairs = _pairs(origin, direction, distance, now.spheres)
        place, way, ahead, limit = _brought(pairs, origin, direction, distance, now.spheres, now.frames)
        triangle, mover = np.where(met["geomID"] >= 0, met["primID"], -1), np.full(len(origin), -1, np.int32)
        u, v = met["u"], met["v"]
        if len(pairs):
            near = _bodies().scene.run(place, way, limit, query="INTERSECT", output=True)
            found = (near["geomID"], near["primID"], near["tfar"], near["u"], near["v"])
            own = (len(self.street.still), self.street.movers)
            _merge(pairs, ahead, found, own, distance, triangle, mover, u, v)
        thing = np.where(triangle >= 0, distance, FAR)
        ground, code = self.street.ground.meet(origin, direction, thing)
        is_ground = ground < thing
        triangle[is_ground] = mover[is_ground] = -1
        return Hits(np.minimum(ground, thing), code, triangle, mover, u, v)

    def shadowed(self, origin: Float[Array, "r 3"], direction: Float[Array, "r 3"], now: Instant) -> Bool[Array, "r"]:
        """Whether something stands between a point and the sun."""
        blocked = self.still.run(origin, direction, query="OCCLUDED") >= 0
        distance = np.where(blocked, np.float32(0), FAR)
        pairs = _pairs(origin, direction, distance, now.spheres)
        if len(pairs):
            place, way, _, limit = _brought(pairs, origin, direction, distance, now.spheres, now.frames)
            blocked[pairs[_bodies().scene.run(place, way, limit, query="OCCLUDED") >= 0, 1]] = True
        return blocked

    def labels(self, hits: Hits) -> tuple[Int[Array, "r"], Int[Array, "r"]]:
        """The LIDARSEG label and the track of what each ray met; -1 for the sky and for what has no track."""
        return _labels(
            hits.distance,
            hits.code,
            hits.triangle,
            hits.mover,
            self.label,
            self.track,
            self.agent_label,
            SURFACE_LABELS,
        )


@njit(cache=True)
@no_type_check
def _below(origin, direction):
    """How far along each ray the road's level is, and a little further; FAR for rays that rise."""
    out = np.full(len(origin), np.float32(FAR))
    for i in range(len(origin)):
        if direction[i, 2] < -1e-5:
            out[i] = -1.001 * origin[i, 2] / direction[i, 2]
    return out


@njit(cache=True)
@no_type_check
def _reached(met, distance, otherwise):
    out = np.empty_like(distance)
    for i in range(len(out)):
        out[i] = distance[i] if met[i] >= 0 else otherwise[i]
    return out


@njit(cache=True)
@no_type_check
def _brought(pairs, origin, direction, distance, spheres, frames):
    """The rays of pairs in the frame of the mover's body, from `ahead` metres on, where they enter its sphere."""
    count = len(pairs)
    place, way = np.empty((count, 3), np.float32), np.empty((count, 3), np.float32)
    ahead, limit = np.empty(count, np.float32), np.empty(count, np.float32)
    for k in range(count):
        m, i = pairs[k, 0], pairs[k, 1]
        dx, dy, dz = direction[i, 0], direction[i, 1], direction[i, 2]
        ox, oy, oz = np.float64(origin[i, 0]), np.float64(origin[i, 1]), np.float64(origin[i, 2])
        along = (spheres[m, 0] - ox) * dx + (spheres[m, 1] - oy) * dy + (spheres[m, 2] - oz) * dz
        ahead[k] = max(0.0, along - spheres[m, 3])
        limit[k] = min(np.float64(distance[i]), along + spheres[m, 3]) - ahead[k]
        x, y, z = (
            ox + ahead[k] * dx - frames[m, 0],
            oy + ahead[k] * dy - frames[m, 1],
            oz + ahead[k] * dz - frames[m, 2],
        )
        c, s, scale = frames[m, 3], frames[m, 4], 1.0 / frames[m, 5]
        place[k, 0] = (c * x + s * y) * scale + frames[m, 6]
        place[k, 1] = (c * y - s * x) * scale + frames[m, 7]
        place[k, 2] = z * scale
        way[k, 0], way[k, 1], way[k, 2] = (c * dx + s * dy) * scale, (c * dy - s * dx) * scale, dz * scale
    return place, way, ahead, limit


@njit(cache=True)
@no_type_check
def _merge(pairs, ahead, found, own, distance, triangle, mover, u, v):
    """Write down what rays met of movers where that is nearer."""
    (met, body_triangle, far, body_u, body_v), (start, movers) = found, own
    for k in range(len(pairs)):
        i = pairs[k, 1]
        if met[k] >= 0 and ahead[k] + far[k] < distance[i]:
            distance[i], triangle[i], mover[i] = ahead[k] + far[k], body_triangle[k] + start, movers[pairs[k, 0]]
            u[i], v[i] = body_u[k], body_v[k]


@njit(cache=True)
@no_type_check
def _labels(distance, code, triangle, mover, label, track, agent_label, surface_label):
    labels, tracks = np.full(len(distance), -1, np.int64), np.full(len(distance), -1, np.int64)
    for i in range(len(distance)):
        if mover[i] >= 0:
            labels[i], tracks[i] = agent_label[mover[i]], mover[i]
        elif triangle[i] >= 0:
            labels[i], tracks[i] = label[triangle[i]], track[triangle[i]]
        elif distance[i] < 1e29:
            labels[i] = surface_label[code[i] & 7]
    return labels, tracks


@njit(cache=True)
@no_type_check
def _bundle(origin, direction, distance, first, last):
    """The sphere around some rays' origins, their mean direction, the cosine of the widest angle to it, their reach."""
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
    return centre, axis, max(-1.0, cosine - 1e-4), sqrt(spread) + 1e-3, reach


@njit(cache=True)
@no_type_check
def _candidates(spheres, centre, axis, cosine, spread, reach, found):
    """Which spheres a bundle of rays can touch at all; their number, and they themselves in `found`."""
    count = 0
    sine = sqrt(max(0.0, 1 - cosine * cosine))
    for m in range(len(spheres)):
        x, y, z = spheres[m, 0] - centre[0], spheres[m, 1] - centre[1], spheres[m, 2] - centre[2]
        radius, square = spheres[m, 3] + spread, x * x + y * y + z * z
        if square > (reach + radius) ** 2:
            continue
        if square > radius * radius:
            # The sphere's centre must lie within the rays' angle plus the sphere's own.
            own = sqrt(square - radius * radius)
            past_behind = cosine * own < -sine * radius  # the two angles together exceed a half turn
            if not past_behind and x * axis[0] + y * axis[1] + z * axis[2] < cosine * own - sine * radius:
                continue
        found[count] = m
        count += 1
    return count


@njit(cache=True)
@no_type_check
def _pairs(origin, direction, distance, spheres):
    """Which rays pass through which sphere before `distance`: numbers of the sphere and the ray."""
    pairs = np.empty((1024, 2), np.int32)
    found = np.empty(len(spheres), np.int64)
    used = 0
    for first in range(0, len(origin), _BUNDLE):
        last = min(first + _BUNDLE, len(origin))
        centre, axis, cosine, spread, reach = _bundle(origin, direction, distance, first, last)
        for f in range(_candidates(spheres, centre, axis, cosine, spread, reach, found)):
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
    return pairs[:used]
