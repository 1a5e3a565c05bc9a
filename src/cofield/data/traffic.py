"""Who moves through a town: closed-form routes, and which of the planned ones never touch anything.

A route is a chain of lines and arcs in the plan, driven with one constant acceleration between two
times; its position, heading and velocity at any time are formulas, so frames need no history.
"""

from dataclasses import dataclass, field
from math import cos, pi, sin
from typing import no_type_check

import numpy as np
from jaxtyping import Float
from numba import njit

from cofield.classes import ATTRIBUTES, DETECTION, VEHICLES
from cofield.data.bodies import KINDS
from cofield.data.ground import Ground
from cofield.data.shapes import Colour

Array = np.ndarray

# When agents are kept apart: all frames of a scene, their sweeps and late exposures, and a little more.
WATCHED = np.arange(-1.5, 4.6, 0.1)
SLACK = 0.03  # metres that a box leaves free around its body, as people draw them: noisy returns stay inside
_HEADWAY = 1.2  # metres that the drive, the first of all agents, keeps free before and behind itself
SLOW = 0.2  # m/s up to which somebody counts as standing
_GROUP = {kind: name for name, kinds in KINDS.items() for kind in kinds}
_STEPS = ("left", "passing", "right", "passing")


@dataclass(frozen=True)
class Agent:
    """Somebody or something with a box: what it is and how it moves.

    Args:
        kind: the body; of a walking pedestrian "adult" or "child", its step follows from the time.
        turns: legs of the route after the start: (length, curvature), in the plan.
        speed, change, since, until: the speed at first, and its change between two times (m/s, m/s², s, s).
        scale: of the body, for people of different heights.
        choice: of agents with the same choice only the first that fits comes to be; 0 is none.
        after: agents are placed in pairs (a trailer with its truck): the choice that must have been placed.
    """

    kind: str
    start: tuple[float, float]
    heading: float = 0.0
    speed: float = 0.0
    turns: tuple[tuple[float, float], ...] = ()
    change: float = 0.0
    since: float = 0.0
    until: float = 0.0
    colours: tuple[Colour, Colour, Colour] = ((0.5, 0.5, 0.5), (0.3, 0.3, 0.3), (0.5, 0.35, 0.25))
    scale: float = 1.0
    choice: int = 0
    after: int = 0
    waits: bool = False

    @property
    def moves(self) -> bool:
        return self.speed != 0.0 or self.change != 0.0

    @property
    def walks(self) -> bool:
        return self.kind in ("adult", "child")

    @property
    def group(self) -> str:
        """The name of its detection class."""
        return "pedestrian" if self.walks else _GROUP[self.kind]

    @property
    def label(self) -> int:
        return DETECTION.index(self.group)

    @property
    def size(self) -> tuple[float, float, float]:
        """Of its box."""
        length, width, height = KINDS[self.group][f"{self.kind}_left" if self.walks else self.kind]
        return length * self.scale + 2 * SLACK, width * self.scale + 2 * SLACK, height * self.scale + SLACK

    def step(self, time: float) -> str:
        """The body at a time: a walker's legs swing with the distance covered."""
        if not self.walks:
            return self.kind
        if not self.moves:
            return f"{self.kind}_standing"
        cycle = time * max(self.speed, 0.3) / (0.8 * self.scale) + self.start[0] * 0.37
        return f"{self.kind}_{_STEPS[int(cycle * 2) % 4]}"

    def attribute(self, moving: bool) -> int:
        """Its nuScenes attribute; UNKNOWN for barriers and cones."""
        group = self.group
        if group == "pedestrian":
            return ATTRIBUTES.index("pedestrian.moving" if moving else "pedestrian.standing")
        if group in ("bicycle", "motorcycle"):
            return ATTRIBUTES.index("cycle.with_rider" if "rider" in self.kind else "cycle.without_rider")
        if group in VEHICLES:
            still = "vehicle.stopped" if self.waits or self.moves else "vehicle.parked"
            return ATTRIBUTES.index("vehicle.moving" if moving else still)
        return -1


@dataclass(frozen=True)
class Routes:
    """Many routes side by side: leg k of route a starts at[a, k] metres along, at pose[a, k], with bends[a, k]."""

    ground: Ground = field(repr=False)
    at: Float[Array, "a k"]
    pose: Float[Array, "a k 3"]
    bends: Float[Array, "a k"]
    motion: Float[Array, "a 4"]

    @classmethod
    def of(cls, agents: list[Agent], ground: Ground) -> "Routes":
        """The routes of the agents."""
        legs = max((len(agent.turns) for agent in agents), default=0) + 1
        at = np.full((len(agents), legs), np.inf)
        pose, bends = np.zeros((len(agents), legs, 3)), np.zeros((len(agents), legs))
        for row, agent in enumerate(agents):
            here, along = (*agent.start, agent.heading), 0.0
            for k, (length, bend) in enumerate((*agent.turns, (0.0, 0.0))):
                at[row, k], pose[row, k], bends[row, k] = along, here, bend
                here, along = _ahead(here, length, bend), along + length
        motion = np.array([[a.speed, a.change, a.since, a.until] for a in agents]).reshape(-1, 4)
        return cls(ground, at, pose, bends, motion)

    def at_times(self, times: Float[Array, "t"]) -> tuple[Array, Array, Array]:
        """Position [a t 2], heading [a t] and velocity [a t 2] in the town."""
        speed, change, since, until = (column[:, None] for column in self.motion.T)
        driven = np.clip(times, since, until) - since
        rest = np.maximum(times - until, 0.0)
        along = speed * times + change * (driven**2 / 2 + driven * rest)
        pace = speed + change * driven
        rows = np.arange(len(self.at))[:, None]
        leg = np.maximum((self.at[:, None] <= along[..., None]).sum(-1) - 1, 0)
        x, y, heading = np.moveaxis(self.pose[rows, leg], -1, 0)
        bend, past = self.bends[rows, leg], along - self.at[rows, leg]
        turned = heading + bend * past
        # The chord of an arc points along its middle heading.
        chord, middle = past * np.sinc(bend * past / (2 * pi)), heading + bend * past / 2
        plan = np.stack([x + chord * np.cos(middle), y + chord * np.sin(middle)], -1)
        tangent = (self.ground.slopes(plan) @ np.stack([np.cos(turned), np.sin(turned)], -1)[..., None])[..., 0]
        return self.ground.to_town(plan), np.arctan2(tangent[..., 1], tangent[..., 0]), tangent * pace[..., None]


def _ahead(pose: tuple[float, float, float], length: float, bend: float) -> tuple[float, float, float]:
    x, y, heading = pose
    chord, middle = length * float(np.sinc(bend * length / (2 * pi))), heading + bend * length / 2
    return x + chord * cos(middle), y + chord * sin(middle), heading + bend * length


def compatible(agents: list[Agent], ground: Ground, standing: Float[Array, "o 5"], margin: float = 0.15) -> list[int]:
    """Which agents come to be: in order of the list, each that touches nobody placed before it, at any watched time.

    Args:
        standing: buildings, trunks and posts: x, y, half length, half width, heading in the town.
    """
    xy, yaw, _ = Routes.of(agents, ground).at_times(WATCHED)
    half = np.array([agent.size[:2] for agent in agents]) / 2 + margin
    half[0, 0] += _HEADWAY
    moves = np.array([agent.moves for agent in agents])
    choice = np.array([agent.choice for agent in agents])
    after = np.array([agent.after for agent in agents])
    placed = _place(xy, yaw, half, moves, choice, after, standing)
    return np.flatnonzero(placed).tolist()


@njit(cache=True)
@no_type_check
def _apart(ax, ay, al, aw, ayaw, bx, by, bl, bw, byaw):
    """Whether two rectangles have a gap, by the four directions of their sides."""
    dx, dy = bx - ax, by - ay
    reach = (al * al + aw * aw) ** 0.5 + (bl * bl + bw * bw) ** 0.5
    if dx * dx + dy * dy > reach * reach:
        return True
    ca, sa, cb, sb = np.cos(ayaw), np.sin(ayaw), np.cos(byaw), np.sin(byaw)
    cr, sr = abs(ca * cb + sa * sb), abs(sa * cb - ca * sb)
    return (
        abs(dx * ca + dy * sa) > al + bl * cr + bw * sr
        or abs(dy * ca - dx * sa) > aw + bl * sr + bw * cr
        or abs(dx * cb + dy * sb) > bl + al * cr + aw * sr
        or abs(dy * cb - dx * sb) > bw + al * sr + aw * cr
    )


@njit(cache=True)
@no_type_check
def _place(xy, yaw, half, moves, choice, after, standing):
    agents, times = yaw.shape
    placed = np.zeros(agents, np.bool_)
    chosen = np.zeros(choice.max() + 1, np.bool_)
    for a in range(agents):
        if (choice[a] > 0 and chosen[choice[a]]) or (after[a] > 0 and not chosen[after[a]]):
            continue
        free = True
        for o in range(len(standing)):
            for t in range(times if moves[a] else 1):
                if not _apart(
                    xy[a, t, 0], xy[a, t, 1], half[a, 0], half[a, 1], yaw[a, t],
                    standing[o, 0], standing[o, 1], standing[o, 2], standing[o, 3], standing[o, 4],
                ):  # fmt: skip
                    free = False
                    break
            if not free:
                break
        for b in range(a):
            if not free:
                break
            if not placed[b]:
                continue
            for t in range(times if moves[a] or moves[b] else 1):
                if not _apart(
                    xy[a, t, 0], xy[a, t, 1], half[a, 0], half[a, 1], yaw[a, t],
                    xy[b, t, 0], xy[b, t, 1], half[b, 0], half[b, 1], yaw[b, t],
                ):  # fmt: skip
                    free = False
                    break
        placed[a] = free
        if free:
            chosen[choice[a]] = True
    return placed


@njit(cache=True)
@no_type_check
def inside(xyz, boxes):
    """How many points lie in each box (centre, size, yaw)."""
    count = np.zeros(len(boxes), np.int64)
    for b in range(len(boxes)):
        c, s = np.cos(boxes[b, 6]), np.sin(boxes[b, 6])
        length, width, height = boxes[b, 3] / 2, boxes[b, 4] / 2, boxes[b, 5] / 2
        reach = length + width
        for i in range(len(xyz)):
            x, y = xyz[i, 0] - boxes[b, 0], xyz[i, 1] - boxes[b, 1]
            if abs(x) > reach or abs(y) > reach or abs(xyz[i, 2] - boxes[b, 2]) > height:
                continue
            count[b] += abs(x * c + y * s) <= length and abs(y * c - x * s) <= width
    return count
