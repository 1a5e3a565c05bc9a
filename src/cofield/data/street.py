"""A procedural town around one drive: its ground plan, what stands in it, and who moves through it.

Everything follows from one generator: roads, then the ego drive, blocks with buildings and greenery,
then a wish list of agents of which those are kept that collide with nothing (`traffic.compatible`).
The drive goes along the middle main road; plan coordinates (px, py) have it at py = 0, starting at px = 0.
"""

from dataclasses import dataclass, replace
from math import pi

import numpy as np
from jaxtyping import Float, Int

from cofield.data import blocks, crowd
from cofield.data.bodies import body
from cofield.data.ground import CENTRE, HALF, LANE, LANES, MEDIAN, ROUNDING, Ground
from cofield.data.shapes import Colour, Mesh, joined
from cofield.data.traffic import Agent, Routes, compatible

Array = np.ndarray

_COARSE = 35.0  # metres from the drive beyond which what stands needs no wheels


@dataclass(frozen=True)
class Light:
    """Sun, sky and the camera's response to them."""

    sun: Float[Array, "3"]
    sunlight: Float[Array, "3"]
    zenith: Float[Array, "3"]
    horizon: Float[Array, "3"]
    softness: float
    clouds: float
    haze: float
    exposure: float
    grass: Float[Array, "3"]
    seed: int

    @property
    def packed(self) -> Float[Array, "15"]:
        """What the kernels read: sun, sunlight, zenith, horizon, clouds, seed, haze."""
        rest = [self.clouds, float(self.seed), self.haze]
        return np.concatenate([self.sun, self.sunlight, self.zenith, self.horizon, rest])


@dataclass(frozen=True)
class Street:
    """One scene: the town, its agents and the drive through it.

    Args:
        still: all triangles that never move, with their label (LIDARSEG) and track per triangle.
        buildings: x, y, half length, half width, heading, height.
        agents: everybody with a box; a track is a place in this list. `movers` are those that are not in `still`.
    """

    ground: Ground
    light: Light
    still: Mesh
    still_label: Int[Array, "t"]
    still_track: Int[Array, "t"]
    buildings: Float[Array, "b 6"]
    agents: tuple[Agent, ...]
    routes: Routes
    movers: Int[Array, "m"]
    moving: Routes
    drive: Routes


def build(rng: np.random.Generator, theme: int) -> Street:
    """The scene that the generator and the theme (which rare classes must appear) give."""
    suburban = bool(rng.random() < 0.35)
    ground, plan = _ground(rng, theme, suburban)
    light = _light(rng)
    wanted = _drive(rng, ground, plan)
    lots, standing, placed = blocks.furnish(rng, ground, suburban, light.grass)
    ground = Ground(ground.bend, ground.mains, ground.crosses, lots, ground.yards)
    solid = np.concatenate([placed.buildings[:, :5], standing])
    # A turn may be too tight for the corner at hand; straight ahead is always free.
    straight = replace(wanted, turns=())
    drive = wanted if compatible([wanted], ground, solid) else straight
    keep = compatible([drive, *(wishes := crowd.wishes(rng, ground, drive, plan.flows, theme))], ground, solid)
    assert keep[0] == 0, "the road itself is blocked"
    agents = tuple(wishes[i - 1] for i in keep[1:])
    # People and cycles have many triangles and few rays: like what moves, they stay in meshes of their own.
    fine = ("pedestrian", "bicycle", "motorcycle")
    movers = [i for i, agent in enumerate(agents) if agent.moves or agent.group in fine]
    routes = Routes.of(list(agents), ground)
    way = Routes.of([drive], ground)
    still, label, track = _still(ground, placed, agents, routes, way, set(movers))
    return Street(
        ground, light, still, label, track, placed.buildings, agents, routes, np.array(movers, np.int64),
        Routes.of([agents[i] for i in movers], ground), way,
    )  # fmt: skip


def _still(
    ground: Ground, placed: blocks.Furniture, agents: tuple[Agent, ...], routes: Routes, drive: Routes, movers: set[int]
) -> tuple[Mesh, Int[Array, "t"], Int[Array, "t"]]:
    """The triangles of everything but the movers, with the label and the track of each."""
    parts, labels, tracks = list(placed.meshes), list(placed.labels), [-1] * len(placed.meshes)
    xy, yaw, _ = routes.at_times(np.zeros(1))
    heights = ground.heights(xy[:, 0])
    passed = drive.at_times(np.linspace(0, 3, 7))[0][0]
    away = np.linalg.norm(xy[:, :1] - passed, axis=-1).min(1)
    for i, agent in enumerate(agents):
        if i not in movers:
            place = (*xy[i, 0].tolist(), float(heights[i]))
            mesh = body(agent.kind, coarse=bool(away[i] > _COARSE))
            parts.append(mesh.tinted(*agent.colours).placed(place, float(yaw[i, 0]), agent.scale))
            labels.append(int(crowd.LIDARSEG_OF[agent.label]))
            tracks.append(i)
    count = [len(part) for part in parts]
    return joined(parts), np.repeat(labels, count), np.repeat(tracks, count)


@dataclass(frozen=True)
class Plan:
    """What the drive does at the junction ahead: its place, and whether the main road has green."""

    junction: int
    flows: bool
    lane: int


def _road(rng: np.random.Generator, centre: float, lanes: int, suburban: bool, wide: bool) -> list[float | int]:
    lane = float(rng.uniform(3.1, 3.6))
    median = float(rng.choice([0.0, 0.0, 1.1, 1.6])) if lanes > 1 else 0.0
    parking = 2.4 if wide or rng.random() < 0.6 else 0.35
    verge = float(rng.choice([1.6, 2.4] if suburban else [0.0, 1.7]))
    walk = float(rng.uniform(2.0, 2.6) if suburban else rng.uniform(2.6, 4.2))
    return [centre, median + lanes * lane + parking, median, lanes, lane, verge, walk, 1.0]


def _ground(rng: np.random.Generator, theme: int, suburban: bool) -> tuple[Ground, Plan]:
    lanes = 2 if theme == 0 or rng.random() < 0.5 else 1
    mains = [
        _road(rng, -rng.uniform(75, 100), 1, suburban, False),
        _road(rng, 0.0, lanes, suburban, True),
        _road(rng, rng.uniform(75, 100), 1, suburban, False),
    ]
    first = rng.uniform(24, 75)
    places = [first - rng.uniform(75, 105), first, first + rng.uniform(70, 105)]
    places = [places[0] - rng.uniform(75, 105), *places, places[2] + rng.uniform(70, 100)]
    crosses = [_road(rng, place, int(rng.random() < 0.25) + 1, suburban, False) for place in places]
    bend = np.array([rng.uniform(2, 7), 2 * pi / rng.uniform(260, 420), rng.uniform(0, 6.3),
                     rng.uniform(1, 4), 2 * pi / rng.uniform(240, 400), rng.uniform(0, 6.3)])  # fmt: skip
    yards = rng.random((len(mains) + 1, len(crosses) + 1)) < (0.0 if suburban else 0.5)
    ground = Ground(bend, np.array(mains), np.array(crosses), np.zeros((0, 5)), yards)
    flows = bool(rng.random() < 0.8)
    lane = 0 if theme == 0 or lanes == 1 else int(rng.integers(lanes))
    return ground, Plan(2, flows, lane)


def _drive(rng: np.random.Generator, ground: Ground, plan: Plan) -> Agent:
    road, cross = ground.mains[1], ground.crosses[plan.junction]
    y = -(road[MEDIAN] + (plan.lane + 0.5) * road[LANE])
    stop = cross[CENTRE] - cross[HALF] - ROUNDING - 3.9 - 2.6
    grey: Colour = (0.2, 0.2, 0.2)
    colours = (grey, grey, grey)
    if not plan.flows:
        if stop > 20 or rng.random() < 0.3:
            # Brakes to a halt at the line, wherever that is reached.
            speed = float(rng.uniform(5, 8))
            until = 1.0 + float(rng.uniform(1.2, 2.0))
            x = stop - speed * 1.0 - speed * (until - 1.0) / 2
            return Agent("sedan", (float(x), y), 0.0, speed, (), -speed / (until - 1.0), 1.0, until, colours)
        return Agent("sedan", (float(stop), y), colours=colours, waits=True)
    speed = float(rng.uniform(4.5, 10.5))
    if stop < 16 and plan.lane == 0 and rng.random() < 0.6:
        return _turn(rng, road, cross, float(y), colours)
    return Agent("sedan", (0.0, float(y)), 0.0, speed, colours=colours)


def _turn(
    rng: np.random.Generator, road: Array, cross: Array, y: float, colours: tuple[Colour, Colour, Colour]
) -> Agent:
    """Into the crossing road, left or (from the only lane) right."""
    left = road[LANES] > 1 or rng.random() < 0.5
    lane = cross[MEDIAN] + 0.5 * cross[LANE]
    target = cross[CENTRE] + (lane if left else -(cross[MEDIAN] + (cross[LANES] - 0.5) * cross[LANE]))
    radius = 9.0 if left else ROUNDING + 3.2
    radius = min(radius, target - 1.0)
    turn = (1 if left else -1) / radius
    straight = target - radius
    legs = ((float(straight), 0.0), (float(radius * pi / 2), float(turn)))
    return Agent("sedan", (0.0, y), 0.0, float(rng.uniform(4.0, 6.0)), legs, colours=colours)


def _light(rng: np.random.Generator) -> Light:
    """Clear, hazy, low-sun and overcast days of four seasons."""
    overcast, low = rng.random() < 0.25, rng.random() < 0.3
    height = np.radians(rng.uniform(9, 20) if low else rng.uniform(28, 62))
    around = rng.uniform(0, 2 * pi)
    sun = np.array([np.cos(around) * np.cos(height), np.sin(around) * np.cos(height), np.sin(height)])
    warmth = float(np.clip(1.2 - np.degrees(height) / 40, 0, 1))
    colour = np.array([1.0, 0.93 - 0.28 * warmth, 0.84 - 0.5 * warmth])
    power = 0.22 if overcast else 2.6 - 0.7 * warmth
    grey = rng.uniform(0.55, 0.8)
    zenith = np.array([grey, grey, 1.04 * grey]) if overcast else np.array([0.16, 0.34, 0.72]) * rng.uniform(0.8, 1.1)
    horizon = (
        np.array([0.85, 0.87, 0.9]) * (grey + 0.15)
        if overcast
        else np.array([0.72, 0.8 - 0.1 * warmth, 0.9 - 0.3 * warmth])
    )
    season = rng.integers(4)
    grass = np.array([[0.1, 0.21, 0.035], [0.075, 0.15, 0.03], [0.16, 0.15, 0.05], [0.17, 0.16, 0.09]])[season]
    return Light(
        sun, colour * power, zenith, horizon, 0.25 if overcast else 0.004,
        1.0 if overcast else float(rng.uniform(0, 1)),
        float(rng.uniform(350, 900)) if rng.random() < 0.8 else float(rng.uniform(110, 200)),
        float(rng.uniform(0.85, 1.2)) * (1.25 if overcast else 0.8), grass * rng.uniform(0.85, 1.15),
        int(rng.integers(1 << 30)),
    )  # fmt: skip
