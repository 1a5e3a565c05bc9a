"""The blocks between the roads: buildings, car parks, gardens, trees and street furniture."""

from dataclasses import dataclass, field
from math import hypot, pi

import numpy as np
from jaxtyping import Float

from cofield.classes import LIDARSEG
from cofield.data import structures
from cofield.data.ground import CENTRE, HALF, KERB, ROUNDING, VERGE, WALK, Ground
from cofield.data.shapes import Colour, Mesh

Array = np.ndarray

_MANMADE, _VEGETATION = LIDARSEG.index("manmade"), LIDARSEG.index("vegetation")
_SEEN = 130.0  # metres around the drive within which blocks are furnished


@dataclass
class Furniture:
    """What has been put up so far; everything is placed by plan coordinates and stands on the kerb's level."""

    ground: Ground
    meshes: list[Mesh] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    houses: list[tuple[float, ...]] = field(default_factory=list)
    posts: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def buildings(self) -> Float[Array, "b 6"]:
        """x, y, half length, half width, heading and height of each building."""
        return np.array(self.houses).reshape(-1, 6)

    def put(
        self,
        mesh: Mesh,
        label: int,
        px: float,
        py: float,
        facing: float,
        scale: float = 1.0,
        post: tuple[float, float] = (0.25, 0.25),
    ) -> tuple[float, float, float]:
        """Stand a mesh up, its x axis along the plan direction `facing`; agents keep off `post`, a half size."""
        x, y, yaw = self.ground.placed(px, py, facing)
        self.meshes.append(mesh.placed((x, y, KERB), yaw, scale))
        self.labels.append(label)
        if post[0] > 0:
            self.posts.append((x, y, *post, yaw))
        return x, y, yaw

    def build(self, rng: np.random.Generator, width: float, depth: float, floors: int, suburban: bool,
              px: float, py: float, facing: float) -> None:  # fmt: skip
        """Put up a building."""
        near = hypot(max(px - 30, -px, 0), py) < 60
        mesh = structures.building(width, depth, floors, suburban, near, rng)
        x, y, yaw = self.put(mesh, _MANMADE, px, py, facing, post=(0.0, 0.0))
        self.houses.append((x, y, width / 2, depth / 2, yaw, float(mesh.corners[..., 2].max()) + KERB))


@dataclass(frozen=True)
class Front:
    """One side of a road between two junctions: `along` from start to stop, `out` away from the kerb."""

    vertical: bool
    edge: float
    side: int
    start: float
    stop: float
    kerb: float

    def at(self, along: float, out: float) -> tuple[float, float]:
        """Plan coordinates of a place `along` the road and `out` from the sidewalk's far edge."""
        across = self.edge + self.side * out
        return (across, along) if self.vertical else (along, across)

    @property
    def facing(self) -> float:
        """The plan heading at which a building's front (-y) looks at the road."""
        return (-self.side * pi / 2) if self.vertical else (0.0 if self.side > 0 else pi)


def furnish(
    rng: np.random.Generator, ground: Ground, suburban: bool, grass: Float[Array, "3"]
) -> tuple[Float[Array, "l 5"], Float[Array, "o 5"], Furniture]:
    """Car parks and driveways, the rectangles that agents keep off, and everything that stands there."""
    put, lots = Furniture(ground), []
    leaves = _leaves(rng, grass)
    for front in fronts(ground, 21.0 if suburban else 17.0):
        near = _distance(front)
        if near > _SEEN or (not front.vertical and abs(front.edge) > 60 and front.side * front.edge > 0 and near > 85):
            continue
        lots += _line(rng, put, front, suburban, leaves, near < 40)
        if near < 70:
            _street_side(rng, put, front, suburban, leaves, lots)
    _junctions(rng, put, ground)
    _backyards(rng, put, ground, leaves)
    return np.array(lots).reshape(-1, 5), np.array(put.posts).reshape(-1, 5), put


def fronts(ground: Ground, corner: float) -> list[Front]:
    """All sides of all roads between junctions; crossing roads leave `corner` metres to the main road's buildings."""
    found = []
    for vertical, roads, others in ((False, ground.mains, ground.crosses), (True, ground.crosses, ground.mains)):
        reach = others[:, HALF] + others[:, VERGE] + others[:, WALK] + (corner if vertical else 1.0)
        for road in roads:
            kerb = road[HALF] + road[VERGE] + road[WALK]
            for j in range(len(others) - 1):
                start, stop = others[j, CENTRE] + reach[j], others[j + 1, CENTRE] - reach[j + 1]
                found += [
                    Front(vertical, road[CENTRE] + s * kerb, s, start, stop, road[VERGE] + road[WALK]) for s in (-1, 1)
                ]
    return found


def _distance(front: Front) -> float:
    """From the drive (0..30, 0) to the nearest place of a front."""
    along = np.clip(15.0 if not front.vertical else 0.0, front.start, front.stop)
    px, py = front.at(float(along), 0.0)
    return hypot(max(px - 30, -px, 0), py)


def _leaves(rng: np.random.Generator, grass: Float[Array, "3"]) -> list[Colour]:
    """The colours of this season's trees."""
    if grass[0] > 0.95 * grass[1]:
        warm = [(0.3, 0.12, 0.02), (0.36, 0.2, 0.03), (0.2, 0.14, 0.04), (0.1, 0.13, 0.03), (0.26, 0.07, 0.02)]
        return [warm[i] for i in rng.permutation(5)[:3]]
    tones = [(0.045, 0.1, 0.02), (0.07, 0.13, 0.025), (0.035, 0.085, 0.03), (0.09, 0.14, 0.02), (0.055, 0.11, 0.035)]
    return [tones[i] for i in rng.permutation(5)[:3]]


def _tone(rng: np.random.Generator, leaves: list[Colour]) -> Colour:
    red, green, blue = np.array(leaves[rng.integers(len(leaves))]) * rng.uniform(0.8, 1.2)
    return float(red), float(green), float(blue)


def _plant(rng: np.random.Generator, put: Furniture, leaves: list[Colour], px: float, py: float, tall: float) -> None:
    away = hypot(max(px - 30, -px, 0), py)
    kind, scale = int(rng.integers(8)), tall / 7 * rng.uniform(0.8, 1.2)
    mesh = structures.tree(kind, 2 if away < 28 else 1 if away < 50 else 0).tinted(_tone(rng, leaves))
    put.put(mesh, _VEGETATION, px, py, rng.uniform(0, 6.3), float(scale))


def _line(
    rng: np.random.Generator, put: Furniture, front: Front, suburban: bool, leaves: list[Colour], near: bool
) -> list:
    """Buildings, gardens and car parks, one after the other along a front; the car parks as lots."""
    along, lots = front.start + 0.5, []
    while along < front.stop - 8:
        width = float(rng.uniform(9, 14) if suburban else rng.uniform(11, 24))
        width = min(width, front.stop - along - 0.5)
        draw = rng.random()
        if not front.vertical and near and draw < 0.16 and front.stop - along > 27:
            width = 27.0
            lots += _car_park(rng, put, front, along, width, leaves)
        elif draw < (0.22 if suburban else 0.12):
            for _ in range(3 if near else 1):
                _plant(rng, put, leaves, *front.at(along + rng.uniform(1, width - 1), rng.uniform(1.5, 11)), tall=7.5)
        elif width > 7:
            depth = float(rng.uniform(8, 10) if suburban else rng.uniform(10, 14))
            back = float(rng.uniform(4.5, 7) if suburban else rng.uniform(0.9, 2.2))
            floors = int(
                rng.integers(1, 4) if suburban else rng.choice([2, 3, 4, 5, 6, 9], p=[0.15, 0.25, 0.25, 0.2, 0.1, 0.05])
            )
            middle = front.at(along + width / 2, back + depth / 2)
            put.build(rng, width - (2.5 if suburban else 0.4), depth, floors, suburban, *middle, front.facing)
            if suburban and near:
                _front_garden(rng, put, front, along, width, back, leaves)
        along += width + (rng.uniform(0.5, 3) if suburban else (0.0 if rng.random() < 0.7 else rng.uniform(1, 4)))
    return lots


def _car_park(
    rng: np.random.Generator, put: Furniture, front: Front, along: float, width: float, leaves: list[Colour]
) -> list:
    edges = sorted((front.at(0.0, 1.2)[1], front.at(0.0, 18.2)[1]))
    gate = along + width / 2
    drive = sorted((front.at(0.0, -front.kerb - 0.5)[1], front.at(0.0, 1.3)[1]))
    for place in np.arange(along + 2, along + width, 8.0):
        _plant(rng, put, leaves, *front.at(float(place), 20.0), tall=6.0)
    return [[gate - 3, gate + 3, *drive, 0.0], [along + 0.4, along + 0.4 + 2.7 * 9 + 0.1, *edges, 1.0]]


def _front_garden(
    rng: np.random.Generator,
    put: Furniture,
    front: Front,
    along: float,
    width: float,
    back: float,
    leaves: list[Colour],
) -> None:
    for _ in range(int(rng.integers(1, 4))):
        place = front.at(along + rng.uniform(1, width - 1), rng.uniform(0.8, back - 1.2))
        put.put(
            structures.bush().tinted(_tone(rng, leaves)),
            _VEGETATION,
            *place,
            rng.uniform(0, 6),
            float(rng.uniform(0.7, 1.3)),
        )
    if rng.random() < 0.6:
        hedge = rng.random() < 0.6
        colour = _tone(rng, leaves) if hedge else (0.4, 0.25, 0.18)
        mesh = structures.fence(width * 0.42, 1.0 if hedge else 0.7, hedge, colour)
        start = front.at(along + (0.3 if front.facing in (0.0, pi / 2) else width * 0.42), 0.6)
        put.put(mesh, _VEGETATION if hedge else _MANMADE, *start, front.facing, post=(0.0, 0.0))


def _street_side(
    rng: np.random.Generator, put: Furniture, front: Front, suburban: bool, leaves: list[Colour], lots: list
) -> None:
    """Along the kerb: trees on the verge, lamps, signs, benches, bins, a bus shelter."""
    green = suburban or rng.random() < 0.7
    inset = 0.7  # from the kerb
    for index, along in enumerate(np.arange(front.start + ROUNDING + 2, front.stop - 2, 8.5)):
        px, py = front.at(float(along + rng.uniform(-0.8, 0.8)), inset - front.kerb)
        if any(lot[0] - 1 < px < lot[1] + 1 and lot[2] - 1 < py < lot[3] + 1 for lot in lots):
            continue
        if index % 3 == 1:
            # The lamp's arm (+y of its mesh) reaches over the road.
            put.put(structures.lamp_post(), _MANMADE, px, py, front.facing + pi, post=(0.15, 0.15))
        elif green and rng.random() < 0.75:
            _plant(rng, put, leaves, px, py, tall=5.5)
        elif rng.random() < 0.35:
            travels = 1 if (front.side < 0) != front.vertical else -1
            heading = (pi / 2 if front.vertical else 0.0) + (pi if travels > 0 else 0.0)
            put.put(structures.sign(int(rng.integers(4))), _MANMADE, px, py, heading, post=(0.1, 0.1))
    if not suburban and front.kerb > 3.2:
        for _ in range(int(rng.integers(0, 3))):
            place = front.at(float(rng.uniform(front.start, front.stop)), -0.45)
            wide = rng.random() < 0.5
            mesh = structures.bench() if wide else structures.litter_bin()
            put.put(mesh, _MANMADE, *place, front.facing, post=(0.9, 0.3) if wide else (0.25, 0.25))
        if not front.vertical and rng.random() < 0.35:
            place = front.at(float(rng.uniform(front.start + 8, front.stop - 4)), -0.9)
            put.put(structures.shelter(), _MANMADE, *place, front.facing, post=(2.1, 0.8))


def _junctions(rng: np.random.Generator, put: Furniture, ground: Ground) -> None:
    """Signals at the corners of the middle main road's junctions."""
    main = ground.mains[1]
    for cross in ground.crosses:
        if not -40 < cross[CENTRE] < 110:
            continue
        x, y = cross[HALF] + 0.7, main[HALF] + 0.7
        for side_x, side_y in ((-1, -1), (1, 1)):
            px = cross[CENTRE] + side_x * (x + ROUNDING + 3.0)
            put.put(structures.traffic_light(), _MANMADE, px, side_y * y, 0.0 if side_x > 0 else pi, post=(0.15, 0.15))
        for side_x, side_y in ((1, -1), (-1, 1)):
            py = side_y * (y + ROUNDING + 3.0)
            put.put(
                structures.traffic_light(), _MANMADE, cross[CENTRE] + side_x * x, py, side_y * pi / 2, post=(0.15, 0.15)
            )
        if rng.random() < 0.5:
            put.put(structures.sign(3), _MANMADE, cross[CENTRE] - x - 1.2, -y - 1.0, pi, post=(0.1, 0.1))


def _backyards(rng: np.random.Generator, put: Furniture, ground: Ground, leaves: list[Colour]) -> None:
    """Trees in the middle of the blocks, seen through gaps between buildings."""
    for _ in range(24):
        px, py = float(rng.uniform(-70, 110)), float(rng.choice([-1, 1]) * rng.uniform(34, 62))
        clear = np.abs(px - ground.crosses[:, CENTRE]) - ground.crosses[:, HALF] > 26
        if clear.all():
            _plant(rng, put, leaves, px, py, tall=9.0)
