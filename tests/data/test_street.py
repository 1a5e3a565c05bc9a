from dataclasses import replace
from functools import cache
from math import cos, pi, sin

import numpy as np
import pytest

from cofield.classes import DETECTION, MAP_LAYERS
from cofield.data import ground as g
from cofield.data.bodies import KINDS, body
from cofield.data.ground import KERB, Ground, layers_of, surface_of
from cofield.data.shapes import block, icosphere, loft, tube
from cofield.data.street import Street, build
from cofield.data.traffic import Agent, Routes, compatible

ROAD = [0.0, 6.0, 0.0, 1.0, 3.5, 1.5, 2.5, 1.0]  # centre, half, median, lanes, lane, verge, walk, signal


def plan(bend: tuple[float, ...] = (0.0,) * 6) -> Ground:
    """One road along x, one along y at x = 40, in a straight or a bent town."""
    cross = [40.0, 4.0, *ROAD[2:]]
    return Ground(np.array(bend), np.array([ROAD]), np.array([cross]), np.zeros((0, 5)), np.zeros((2, 2), bool))


@cache
def street(seed: int) -> Street:
    return build(np.random.default_rng(seed), seed % 5)


def layer(codes: np.ndarray, name: str) -> np.ndarray:
    return layers_of(codes)[MAP_LAYERS.index(name)]


def volume(corners: np.ndarray) -> float:
    """Of a closed mesh whose triangles turn outward."""
    return float((corners[:, 0] * np.cross(corners[:, 1], corners[:, 2])).sum() / 6)


def test_a_cut_across_the_road_shows_asphalt_verge_sidewalk_and_lawn():
    codes = plan().codes(np.array([[0.0, 3.0], [0.0, -6.5], [0.0, 8.0], [0.0, 20.0]]))
    assert surface_of(codes).tolist() == [g.ASPHALT, g.GRASS, g.SIDEWALK, g.FIELD]
    assert layer(codes, "drivable_area").tolist() == [True, False, False, False]
    assert layer(codes, "walkway").tolist() == [False, False, True, False]


def test_everything_but_the_road_is_one_kerb_higher():
    xy = np.stack(np.meshgrid(np.linspace(-30, 70, 60), np.linspace(-20, 25, 50)), -1).reshape(-1, 2)
    town = plan((3.0, 0.02, 0.4, 2.0, 0.03, 1.0))
    expected = np.where(layer(town.codes(xy), "drivable_area"), 0.0, KERB)
    np.testing.assert_array_equal(town.heights(xy), expected)
    assert 0.1 < (expected == 0).mean() < 0.9


def test_the_stop_line_is_only_on_the_incoming_lanes():
    edge = 40.0 - 4.0
    before = edge - g.ROUNDING - 3.4
    codes = plan().codes(np.array([[before, -2.0], [before, 2.0], [80.0 - before, -2.0], [80.0 - before, 2.0]]))
    assert layer(codes, "stop_line").tolist() == [True, False, False, True]


def test_a_crossing_spans_the_whole_carriageway():
    x = 40.0 - 4.0 - g.ROUNDING - 0.5
    across = np.linspace(-5.9, 5.9, 30)
    codes = plan().codes(np.stack([np.full(30, x), across], -1))
    assert layer(codes, "ped_crossing").all()
    assert 0.3 < ((codes >> g.PAINT_SHIFT) & 3 == g.WHITE).mean() < 0.7


def test_a_bent_town_has_the_same_ground_at_the_bent_places():
    generator = np.random.default_rng(0)
    places = generator.uniform([-60, -40], [90, 40], (500, 2))
    straight, bent = plan(), plan((4.0, 0.02, 0.4, 3.0, 0.025, 1.0))
    np.testing.assert_array_equal(bent.codes(bent.to_town(places)), straight.codes(places))


def test_slopes_are_the_derivative_of_the_bending():
    bent, place, step = plan((4.0, 0.02, 0.4, 3.0, 0.025, 1.0)), np.array([12.0, -7.0]), 1e-5
    numeric = np.stack([(bent.to_town(place + d) - bent.to_town(place - d)) / (2 * step) for d in np.eye(2) * step], -1)
    np.testing.assert_allclose(bent.slopes(place), numeric, atol=1e-8)


def test_rays_meet_the_ground_at_its_height():
    generator = np.random.default_rng(1)
    direction = generator.normal(size=(4000, 3)) * [1, 1, 0.4]
    direction = (direction / np.linalg.norm(direction, axis=-1, keepdims=True)).astype(np.float32)
    origin = np.tile(np.array([[3.0, -2.0, 1.6]], np.float32), (4000, 1))
    town = plan()
    distance, code = town.meet(origin, direction, np.full(4000, 1e30))
    up = direction[:, 2] >= 0
    assert (distance[up] > 1e29).all()
    near = ~up & (distance < 60)
    hit = origin[near].astype(np.float64) + direction[near] * distance[near, None].astype(np.float64)
    side = surface_of(code[near]) == g.KERBSTONE
    np.testing.assert_allclose(hit[~side, 2], town.heights(hit[~side, :2]), atol=2e-5)
    assert ((hit[side, 2] > -1e-5) & (hit[side, 2] < KERB + 1e-5)).all()
    assert side.sum() > 5


def test_the_side_of_a_kerb_stands_where_the_road_ends():
    down = np.array([[0.0, cos(0.1), -sin(0.1)]], np.float32)
    height = 6.0 * np.tan(0.1) + 0.06  # so that the ray is 6 cm high at the kerb, 6 m to the left
    origin = np.array([[0.0, 0.0, height]], np.float32)
    distance, code = plan().meet(origin, down, np.array([1e30]))
    assert surface_of(code).item() == g.KERBSTONE
    assert distance.item() * cos(0.1) == pytest.approx(6.0, abs=2e-3)
    distance, _ = plan().meet(origin, down, np.array([5.0]))
    assert distance.item() > 1e29


@pytest.mark.parametrize("kind", [kind for kinds in KINDS.values() for kind in kinds])
def test_every_body_fits_its_box(kind: str):
    size = next(kinds[kind] for kinds in KINDS.values() if kind in kinds)
    corners = body(kind).corners.reshape(-1, 3)
    assert (np.abs(corners[:, :2]) <= np.array(size[:2]) / 2 + 1e-5).all()
    assert corners[:, 2].min() == pytest.approx(0, abs=1e-5)
    assert corners[:, 2].max() == pytest.approx(size[2], abs=0.02)


def test_closed_shapes_turn_their_faces_outward():
    assert volume(block((0, 2), (0, 3), (0, 4), 0, (1, 1, 1)).corners) == pytest.approx(24)
    many = tube((0, 0, 1), (0, 0, 3), (1.5, 1.5), 64, 0, (1, 1, 1)).corners
    assert volume(many) == pytest.approx(2 * pi * 1.5**2, rel=5e-3)
    cuboid = [(-1.0, 0.0, 0.5), (1.0, 0.0, 0.5), (1.0, 2.0, 0.5), (-1.0, 2.0, 0.5)]
    assert volume(loft(cuboid, 0, (1, 1, 1)).corners) == pytest.approx(2 * 2 * 1)
    assert volume(icosphere(3)) == pytest.approx(4 * pi / 3, rel=2e-2)


def test_a_route_follows_its_lines_and_arcs():
    agent = Agent("sedan", (0.0, 0.0), 0.0, 2.0, ((10.0, 0.0), (5 * pi, 0.1)))
    xy, yaw, velocity = Routes.of([agent], plan()).at_times(np.array([2.5, 5.0, 5.0 + 2.5 * pi, 6.0 + 2.5 * pi]))
    np.testing.assert_allclose(xy[0], [[5, 0], [10, 0], [20, 10], [20, 12]], atol=1e-9)
    np.testing.assert_allclose(yaw[0], [0, 0, pi / 2, pi / 2], atol=1e-9)
    np.testing.assert_allclose(velocity[0, -1], [0, 2], atol=1e-9)


def test_braking_ends_at_a_standstill():
    agent = Agent("sedan", (0.0, 0.0), 0.0, 6.0, (), -3.0, 1.0, 3.0)
    xy, _, velocity = Routes.of([agent], plan()).at_times(np.array([1.0, 3.0, 9.0]))
    np.testing.assert_allclose(xy[0, :, 0], [6, 12, 12])
    np.testing.assert_allclose(velocity[0, :, 0], [6, 0, 0], atol=1e-12)


def test_velocity_is_the_difference_of_positions():
    scene, step = street(3), 1e-4
    times = np.arange(0.05, 3, 0.4)
    for routes in (scene.routes, scene.drive):
        before, after = routes.at_times(times - step)[0], routes.at_times(times + step)[0]
        np.testing.assert_allclose(routes.at_times(times)[2], (after - before) / (2 * step), atol=2e-3)


def test_of_two_agents_on_one_place_the_first_stays():
    car = Agent("sedan", (0.0, -2.0))
    hits_it = Agent("hatchback", (-20.0, -2.0), 0.0, 8.0)
    passes = replace(hits_it, start=(-20.0, 2.0))
    post = np.array([[0.0, 2.0, 0.1, 0.1, 0.0]])
    assert compatible([car, hits_it, passes], plan(), np.zeros((0, 5))) == [0, 2]
    assert compatible([car, passes], plan(), post) == [0]


def outline(xy: np.ndarray, yaw: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Points along the edges of upright boxes [a n 2]."""
    side = np.linspace(-0.5, 0.5, 9)
    end = np.full(9, 0.5)
    square = np.concatenate([np.stack(pair, -1) for pair in ((side, end), (side, -end), (end, side), (-end, side))])
    local = square[None] * size[:, None, :2]
    c, s = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    turned = np.stack([local[..., 0] * c - local[..., 1] * s, local[..., 0] * s + local[..., 1] * c], -1)
    return turned + xy[:, None]


def inside(points: np.ndarray, xy: np.ndarray, yaw: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Which of the points [a n 2] lie in which rectangle [b]: [a n b]."""
    delta = points[:, :, None] - xy
    c, s = np.cos(yaw), np.sin(yaw)
    along, across = delta[..., 0] * c + delta[..., 1] * s, delta[..., 1] * c - delta[..., 0] * s
    return (np.abs(along) < half[:, 0]) & (np.abs(across) < half[:, 1])


@pytest.mark.parametrize("seed", range(5))
def test_agents_touch_neither_each_other_nor_a_building(seed: int):
    scene = street(seed)
    size = np.array([agent.size for agent in scene.agents])
    xy, yaw, _ = scene.routes.at_times(np.arange(-0.5, 3.2, 0.26))
    houses = scene.buildings
    for t in range(xy.shape[1]):
        edges = outline(xy[:, t], yaw[:, t], size)
        among = inside(edges, xy[:, t], yaw[:, t], size[:, :2] / 2).any(1)
        np.fill_diagonal(among, False)
        assert not among.any()
        assert not inside(edges, houses[:, :2], houses[:, 4], houses[:, 2:4]).any()


def test_vehicles_drive_on_the_road_and_people_stand_on_the_ground():
    scene = street(1)
    xy, _, _ = scene.routes.at_times(np.array([1.5]))
    road = layer(scene.ground.codes(xy[:, 0]), "drivable_area")
    moving = np.array([agent.moves and not agent.walks for agent in scene.agents])
    assert road[moving].all()
    drive, _, _ = scene.drive.at_times(np.arange(-0.5, 3.1, 0.25))
    assert layer(scene.ground.codes(drive[0]), "drivable_area").all()


@pytest.mark.parametrize(
    ("theme", "guests"), [(0, {"construction_vehicle", "barrier", "traffic_cone"}), (2, {"trailer"})]
)
def test_a_theme_brings_its_guests(theme: int, guests: set[str]):
    for seed in (11, 12):
        scene = build(np.random.default_rng(seed), theme)
        assert guests <= {DETECTION.names[agent.label] for agent in scene.agents}
