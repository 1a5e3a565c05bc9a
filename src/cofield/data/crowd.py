"""Who would like to be in a scene: traffic, parked cars, people, and each theme's rare guests, most wanted first."""

from dataclasses import dataclass, replace
from math import pi

import numpy as np
from jaxtyping import Float

from cofield.classes import DETECTION, LIDARSEG
from cofield.data.bodies import KINDS
from cofield.data.ground import CENTRE, HALF, LANE, LANES, MEDIAN, ROUNDING, VERGE, WALK, Ground
from cofield.data.shapes import Colour
from cofield.data.traffic import Agent

Array = np.ndarray

LIDARSEG_OF = np.array([LIDARSEG.index(name) for name in DETECTION.names])
STOP_GAP = ROUNDING + 3.9  # from a junction's edge to the bumper of the first waiting car

_CAR_PAINT: list[Colour] = [
    (0.72, 0.72, 0.72), (0.72, 0.72, 0.72), (0.05, 0.05, 0.055), (0.05, 0.05, 0.055), (0.2, 0.21, 0.22),
    (0.36, 0.37, 0.38),
    (0.36, 0.37, 0.38), (0.4, 0.02, 0.02), (0.03, 0.07, 0.25), (0.06, 0.16, 0.36), (0.03, 0.12, 0.07), (0.5, 0.38, 0.2),
    (0.55, 0.12, 0.02), (0.6, 0.48, 0.04),
]  # fmt: skip
_CLOTHES: list[Colour] = [
    (0.05, 0.05, 0.06), (0.1, 0.13, 0.25), (0.45, 0.05, 0.05), (0.5, 0.48, 0.42), (0.12, 0.25, 0.14),
    (0.55, 0.35, 0.06),
    (0.3, 0.3, 0.32), (0.08, 0.25, 0.4), (0.4, 0.15, 0.3), (0.65, 0.65, 0.62), (0.15, 0.09, 0.06),
]  # fmt: skip
_SKIN: list[Colour] = [(0.55, 0.35, 0.25), (0.4, 0.23, 0.14), (0.2, 0.11, 0.07), (0.6, 0.42, 0.32)]
_CARGO: list[Colour] = [(0.7, 0.7, 0.68), (0.65, 0.6, 0.5), (0.1, 0.25, 0.45), (0.5, 0.08, 0.05), (0.15, 0.35, 0.18)]
_BUS: list[Colour] = [(0.6, 0.06, 0.05), (0.65, 0.45, 0.04), (0.08, 0.25, 0.5), (0.12, 0.35, 0.16), (0.6, 0.6, 0.58)]


@dataclass
class Casting:
    """Draws agents; every choice group gets a number of its own."""

    rng: np.random.Generator
    groups: int = 0

    def pick(self, options: list) -> Colour:
        """One of the options."""
        return options[self.rng.integers(len(options))]

    def group(self) -> int:
        """A new choice."""
        self.groups += 1
        return self.groups

    def vehicle(self, kind: str) -> tuple[Colour, Colour, Colour]:
        """Colours of a vehicle or rider."""
        if kind == "city_bus":
            first = self.pick(_BUS)
            return first, (0.6, 0.6, 0.58) if self.rng.random() < 0.6 else first, first
        if kind in ("box_trailer", "flat_trailer"):
            return self.pick(_CARGO), self.pick(_CARGO), (0.2, 0.2, 0.2)
        if "bicycle" in kind:
            return self.pick(_CLOTHES), self.pick(_CLOTHES), self.pick(_CAR_PAINT)
        return self.pick(_CAR_PAINT), self.pick(_CARGO) if "truck" in kind else self.pick(_CLOTHES), self.pick(_SKIN)

    def person(self, start: tuple[float, float], heading: float, speed: float = 0.0) -> Agent:
        """A pedestrian."""
        kind = "child" if self.rng.random() < 0.12 else "adult"
        colours = (self.pick(_CLOTHES), self.pick(_CLOTHES), self.pick(_SKIN))
        return Agent(kind, start, heading, speed, colours=colours, scale=float(self.rng.uniform(0.92, 1.06)))

    def car(self) -> str:
        """A kind of car."""
        return str(self.rng.choice(["sedan", "hatchback", "suv", "van"], p=[0.36, 0.28, 0.24, 0.12]))


@dataclass(frozen=True)
class Lane:
    """One lane of a road; `sign` +1 runs with the road's axis, `offset` is left of it."""

    vertical: bool
    centre: float
    offset: float
    sign: int

    def at(self, along: float) -> tuple[float, float]:
        """Plan coordinates."""
        return (self.centre - self.offset, along) if self.vertical else (along, self.centre + self.offset)

    @property
    def heading(self) -> float:
        return (pi / 2 if self.vertical else 0.0) + (0.0 if self.sign > 0 else pi)


def lanes_of(road: Float[Array, "8"], vertical: bool, shift: float = 0.0) -> list[Lane]:
    """The road's lanes, inner ones first."""
    return [
        Lane(vertical, road[CENTRE], -sign * (road[MEDIAN] + (i + 0.5) * road[LANE] + shift), sign)
        for i in range(int(road[LANES]))
        for sign in (1, -1)
    ]


def wishes(rng: np.random.Generator, ground: Ground, drive: Agent, flows: bool, theme: int) -> list[Agent]:
    """Everybody who would like to come, the scene's rare guests first."""
    cast = Casting(rng)
    wanted = _guests(cast, ground, drive, theme)
    wanted += _traffic(cast, ground, drive, flows)
    wanted += _cyclists(cast, ground)
    wanted += _crossers(cast, ground, 24 if not flows else 8)
    wanted += _parked(cast, ground)
    wanted += _people(cast, ground)
    return wanted


def _guests(cast: Casting, ground: Ground, drive: Agent, theme: int) -> list[Agent]:
    """The rare classes of a theme, somewhere near the drive."""
    rng, main = cast.rng, ground.mains[1]
    middle = drive.start[0] + 1.5 * drive.speed
    found: list[Agent] = []
    if theme == 0 or (main[LANES] > 1 and drive.start[1] > -main[MEDIAN] - main[LANE] and rng.random() < 0.12):
        found += _work_zone(cast, ground, middle)
    if theme == 1 or rng.random() < 0.25:
        found += _meeting(cast, main, "city_bus", middle, drive.speed)
    if theme == 2 or rng.random() < 0.12:
        found += _parked_trailer(cast, main, middle)
    if theme == 2 or rng.random() < 0.25:
        found += _meeting(cast, main, "motorcycle_rider", middle, drive.speed)
    if theme == 3 or rng.random() < 0.12:
        found += _meeting(cast, main, "tractor", middle, drive.speed, trailer=True)
    if theme == 3 or rng.random() < 0.3:
        found += _meeting(cast, main, str(rng.choice(["box_truck", "pickup"])), middle, drive.speed)
    if theme in (1, 4) or rng.random() < 0.3:
        group = cast.group()
        for place in rng.uniform(-12, 26, 8):
            found.append(_cyclist(cast, main, False, middle + place, group))
    if theme == 4 or rng.random() < 0.3:
        found += _roadside(cast, main, "motorcycle_parked", middle)
    return found


def _meeting(cast: Casting, road: Array, kind: str, middle: float, speed: float, trailer: bool = False) -> list[Agent]:
    """A vehicle near the drive in its middle: oncoming, ahead, or behind; the first that fits."""
    rng, group, found = cast.rng, cast.group(), []
    follow = cast.group()
    for attempt in range(14):
        lane = lanes_of(road, False)[attempt % int(2 * road[LANES])]
        pace = float(rng.uniform(5, 9)) if lane.sign < 0 else speed
        place = middle + float(rng.uniform(-4, 20) if lane.sign < 0 else rng.choice([-1, 1]) * rng.uniform(13, 22))
        along = place - lane.sign * pace * 1.5
        colours = cast.vehicle(kind)
        vehicle = Agent(kind, lane.at(along), lane.heading, pace, colours=colours, choice=group, waits=True)
        found.append(vehicle)
        if trailer:
            gap = vehicle.size[0] / 2 + 0.6 + KINDS["trailer"]["box_trailer"][0] / 2
            behind = lane.at(along - lane.sign * gap)
            found.append(Agent("box_trailer", behind, lane.heading, pace, colours=cast.vehicle("box_trailer"),
                               choice=follow, after=group))  # fmt: skip
    # A trailer must follow its own truck: only the first pair is offered both.
    return found if not trailer else _pairs(found, cast)


def _pairs(found: list[Agent], cast: Casting) -> list[Agent]:
    """Truck and trailer by turns, each trailer tied to its truck."""
    tied = []
    for truck, trailer in zip(found[::2], found[1::2], strict=True):
        own = cast.group()
        tied += [replace(truck, choice=own), replace(trailer, choice=0, after=own)]
    # Few pairs: more than one convoy in sight would be a parade.
    return tied[:8]


def _work_zone(cast: Casting, ground: Ground, middle: float) -> list[Agent]:
    """A closed outer lane: cones as a taper, barriers, a machine, two workers."""
    rng, road = cast.rng, ground.mains[1]
    inner, outer = road[MEDIAN] + road[LANE], road[HALF]
    yellow: Colour = (0.75, 0.42, 0.03)
    start = middle + float(rng.uniform(2, 12))
    length = 17.0
    found = []
    grey: Colour = (0.5, 0.5, 0.5)
    plain = (grey, grey, grey)
    machine = str(rng.choice(["excavator", "loader"]))
    y = -(inner + outer) / 2 - 0.2
    turned = float(rng.choice([0.0, pi]) + rng.uniform(-0.06, 0.06))
    found.append(Agent(machine, (start + 9, y), turned, colours=(yellow, yellow, yellow)))
    for step in range(6):
        share = step / 5
        found.append(
            Agent("cone", (start - 9 + 8 * share, -(outer - 0.4) + share * (outer - inner - 0.8)), colours=plain)
        )
    along = np.arange(0.6, length, 3.2).tolist()
    found += [Agent("board", (start + shift, -inner - 0.35), pi / 2, colours=plain) for shift in along]
    across = np.arange(inner + 1.9, outer - 1.1, 2.5).tolist()
    found += [Agent("board", (start - 0.3, -y), pi, colours=plain) for y in across]
    for _ in range(2):
        vest = ((0.85, 0.3, 0.02), (0.12, 0.12, 0.2), cast.pick(_SKIN))
        place = (start + float(rng.uniform(2, length - 1)), -float(rng.uniform(inner + 1, outer - 0.5)))
        found.append(Agent("adult", place, float(rng.uniform(0, 6)), colours=vest))
    return found


def _parked_trailer(cast: Casting, road: Array, middle: float) -> list[Agent]:
    return _roadside(cast, road, "box_trailer", middle) + _roadside(cast, road, "flat_trailer", middle)


def _roadside(cast: Casting, road: Array, kind: str, middle: float) -> list[Agent]:
    """Something parked at the kerb near the drive; the first place that fits."""
    rng, group, found = cast.rng, cast.group(), []
    width = next(kinds[kind][1] for kinds in KINDS.values() if kind in kinds)
    for place in rng.uniform(-14, 22, 10):
        side = int(rng.choice([-1, 1]))
        across = road[CENTRE] + side * (road[HALF] - width / 2 - 0.15)
        found.append(
            Agent(
                kind, (middle + float(place), across), 0.0 if side < 0 else pi, colours=cast.vehicle(kind), choice=group
            )
        )
    return found


def _traffic(cast: Casting, ground: Ground, drive: Agent, flows: bool) -> list[Agent]:
    """Flowing lanes where there is green, queues at the lines where there is red."""
    rng, found = cast.rng, []
    for vertical, roads, others in ((False, ground.mains, ground.crosses), (True, ground.crosses, ground.mains)):
        for road in roads:
            main = not vertical and road[CENTRE] == 0.0
            if not -60 < road[CENTRE] < 110 or (not vertical and not main):
                continue
            green = flows != vertical
            for lane in lanes_of(road, vertical):
                if green:
                    same = main and lane.sign > 0
                    found += _flowing(
                        cast, lane, drive.speed if same and drive.speed > 3 else float(rng.uniform(6, 11))
                    )
                else:
                    found += _queues(cast, lane, others)
    rng.shuffle(found)  # type: ignore[arg-type]
    return found


def _kind(cast: Casting) -> str:
    draw = cast.rng.random()
    for kind, share in (("box_truck", 0.07), ("pickup", 0.04), ("city_bus", 0.05), ("motorcycle_rider", 0.07)):
        if draw < share:
            return kind
        draw -= share
    return cast.car()


def _flowing(cast: Casting, lane: Lane, pace: float) -> list[Agent]:
    rng, found = cast.rng, []
    along = float(rng.uniform(-70, -50))
    while along < (60 if lane.vertical else 110):
        kind = _kind(cast)
        found.append(Agent(kind, lane.at(along), lane.heading, pace, colours=cast.vehicle(kind), waits=True))
        along += 9 + float(rng.exponential(17))
    return found


def _queues(cast: Casting, lane: Lane, others: Float[Array, "c 8"]) -> list[Agent]:
    """Cars that wait before each junction."""
    rng, found = cast.rng, []
    for other in others:
        if abs(other[CENTRE]) > 110:
            continue
        line = other[CENTRE] - lane.sign * (other[HALF] + STOP_GAP + 0.3)
        for _ in range(int(rng.integers(0, 4))):
            kind = _kind(cast)
            length = Agent(kind, (0.0, 0.0)).size[0]
            line -= lane.sign * length / 2
            found.append(Agent(kind, lane.at(float(line)), lane.heading, colours=cast.vehicle(kind), waits=True))
            line -= lane.sign * (length / 2 + float(rng.uniform(1.2, 2.5)))
    return found


def _cyclist(cast: Casting, road: Array, vertical: bool, along: float, group: int = 0) -> Agent:
    """A rider along the right edge of the outer lane."""
    sign = int(cast.rng.choice([-1, 1]))
    edge = road[MEDIAN] + road[LANES] * road[LANE] - 0.75
    lane = Lane(vertical, road[CENTRE], -sign * edge, sign)
    pace = float(cast.rng.uniform(3, 5.5))
    kind = "bicycle_rider"
    start = lane.at(float(along) - sign * pace * 1.5)
    return Agent(kind, start, lane.heading, pace, colours=cast.vehicle(kind), choice=group)


def _cyclists(cast: Casting, ground: Ground) -> list[Agent]:
    found = [_cyclist(cast, ground.mains[1], False, float(place)) for place in cast.rng.uniform(-20, 70, 4)]
    roads = [road for road in ground.crosses if -30 < road[CENTRE] < 90 and cast.rng.random() < 0.5]
    return found + [_cyclist(cast, road, True, float(cast.rng.uniform(-30, 30))) for road in roads]


def _parked(cast: Casting, ground: Ground) -> list[Agent]:
    """Cars at the kerb and in the car parks, bicycles by the walls."""
    rng, found = cast.rng, []
    for vertical, roads, others in ((False, ground.mains[1:2], ground.crosses), (True, ground.crosses, ground.mains)):
        for road in roads:
            if road[HALF] - road[MEDIAN] - road[LANES] * road[LANE] < 1.5 or not -50 < road[CENTRE] < 90:
                continue
            for side in (-1, 1):
                found += _kerbside(cast, road, side, vertical, others)
    for lot in ground.lots[ground.lots[:, 4] == 1]:
        for stall in range(9):
            for row in (0, 1):
                if rng.random() < 0.6:
                    kind = cast.car() if rng.random() < 0.9 else "pickup"
                    py = lot[2] + 2.6 if row == 0 else lot[3] - 2.6
                    heading = float(rng.choice([pi / 2, -pi / 2]))
                    found.append(Agent(kind, (lot[0] + 1.41 + 2.7 * stall, py), heading, colours=cast.vehicle(kind)))
    return found


def _kerbside(cast: Casting, road: Array, side: int, vertical: bool, others: Float[Array, "c 8"]) -> list[Agent]:
    rng, found = cast.rng, []
    share, along = rng.uniform(0.3, 0.85), -45.0 + float(rng.uniform(0, 6))
    while along < (50 if vertical else 80):
        gap = (np.abs(along - others[:, CENTRE]) - others[:, HALF]).min()
        if gap > ROUNDING + 7 and rng.random() < share:
            kind = "motorcycle_parked" if rng.random() < 0.06 else cast.car()
            across = side * (road[HALF] - 1.12) * (-1 if vertical else 1)
            lane = Lane(vertical, road[CENTRE], across, -side if not vertical else side)
            found.append(Agent(kind, lane.at(along), lane.heading, colours=cast.vehicle(kind)))
        along += float(rng.uniform(5.6, 7.2))
    return found


def _crossers(cast: Casting, ground: Ground, count: int) -> list[Agent]:
    """Pedestrians on the crossings of the nearest junctions."""
    rng, found = cast.rng, []
    near = [road for road in ground.crosses if -40 < road[CENTRE] < 100]
    main = ground.mains[1]
    for _ in range(count):
        cross = near[rng.integers(len(near))]
        over_main = rng.random() < 0.5
        one, other = (main, cross) if over_main else (cross, main)
        place = other[CENTRE] + float(rng.choice([-1, 1])) * (
            other[HALF] + ROUNDING + 0.7 + float(rng.uniform(-1.2, 1.2))
        )
        sign, pace = int(rng.choice([-1, 1])), float(rng.uniform(1.1, 1.7))
        start = one[CENTRE] - sign * float(rng.uniform(-0.3, 1.0)) * (one[HALF] + 1.0)
        lane = Lane(over_main, place, 0.0, sign)
        found.append(cast.person(lane.at(float(start)), lane.heading, pace))
    return found


def _people(cast: Casting, ground: Ground) -> list[Agent]:
    """Walkers and standing groups on the sidewalks, bicycles parked beside them."""
    rng, found = cast.rng, []
    roads = [(False, ground.mains[1])] * 3 + [(True, road) for road in ground.crosses if -30 < road[CENTRE] < 90]
    for _ in range(int(rng.integers(22, 44))):
        vertical, road = roads[rng.integers(len(roads))]
        side, sign = int(rng.choice([-1, 1])), int(rng.choice([-1, 1]))
        out = road[HALF] + road[VERGE] + float(rng.uniform(0.7, road[WALK] - 0.6))
        along = float(rng.uniform(-30, 62) if not vertical else rng.uniform(-45, 45))
        lane = Lane(vertical, road[CENTRE], side * out, sign)
        if rng.random() < 0.68:
            pace = float(rng.uniform(0.8, 1.7))
            found.append(cast.person(lane.at(along), lane.heading, pace))
        else:
            for _ in range(int(rng.integers(1, 4))):
                x, y = lane.at(along)
                place = (x + float(rng.uniform(-0.8, 0.8)), y + float(rng.uniform(-0.8, 0.8)))
                found.append(cast.person(place, float(rng.uniform(0, 2 * pi))))
    for _ in range(int(rng.integers(2, 6))):
        side = int(rng.choice([-1, 1]))
        road = ground.mains[1]
        across = side * (road[HALF] + road[VERGE] + road[WALK] - 0.45)
        kind = "bicycle_parked"
        heading = float(rng.choice([0, pi]) + rng.uniform(-0.2, 0.2))
        found.append(Agent(kind, (float(rng.uniform(-20, 60)), across), heading,
                           colours=cast.vehicle(kind)))  # fmt: skip
    return found
