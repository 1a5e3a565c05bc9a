import math

import pytest
import torch

from cofield.draw import generator
from cofield.grid import BoxGrid, CylinderGrid, Volume
from cofield.models.field import Field
from cofield.models.render import look, look_twice, render, thick
from cofield.models.sampler import Steps, by_mass, even, guided, intervals, neighbours, occupancy, refined, skipping
from cofield.ops.composite import ray_weights
from cofield.rays import Rays
from cofield.train.build import seeded

TALL = BoxGrid((-60.0, -60.0, -3.0), (1.0, 1.0, 1.0), (120, 120, 8))
EMPTY = Volume(torch.zeros(1, 1, 1, 1, 1), TALL)


class Matter(Field):
    """Matter beyond x = `wall`, or a cloud around it."""

    def __init__(self, wall: float, hardness: float = 1e6, cloud: float | None = None) -> None:
        with seeded("matter"):
            super().__init__(1, {"colour": 3}, width=8)
        self.wall, self.hardness, self.cloud = wall, hardness, cloud

    def forward(self, volume, xyz, direction, sample_of):
        x = xyz[..., 0]
        density = torch.where(x >= self.wall, self.hardness, 0.0)
        if self.cloud is not None:
            density = self.hardness * torch.exp(-(((x - self.wall) / self.cloud) ** 2))
        return density, {"colour": torch.sigmoid(xyz / 20)}


def ahead(count: int = 1, tilt: float = 0.0) -> Rays:
    direction = torch.tensor([[math.cos(tilt), math.sin(tilt), 0.0]]).expand(count, 3)
    origin = torch.zeros(count, 3)
    near, far = TALL.span(origin, direction)
    zero = torch.zeros(count, dtype=torch.long)
    return Rays(origin, direction, near, far, torch.full((count,), math.cos(tilt)), zero, zero)


def full_beyond(x: float) -> torch.Tensor:
    return (TALL.centres()[..., 0] > x - 1)[None]


def chosen(kind: str, field: Field, rays: Rays, count: int, wall: float) -> Steps:
    jitter = torch.full((len(rays), count), 0.5)
    match kind:
        case "even":
            return even(rays, jitter)
        case "guided":
            return guided(rays, jitter, wall / rays.cosine)
        case "guided by nothing":
            return guided(rays, jitter, torch.full_like(rays.near, torch.inf))
        case "refined":
            first = render(field, EMPTY, rays, jitter)
            return refined(intervals(rays, count), first.weight, jitter)
        case "skipping":
            return skipping(rays, jitter, full_beyond(wall), TALL)
        case _:
            return skipping(rays, jitter, full_beyond(wall), TALL, floor=0.2)


KINDS = ["even", "guided", "guided by nothing", "refined", "skipping", "less in the empty"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wall", [1.0, 20.0, 40.0, 59.0])
def test_an_opaque_wall_renders_its_distance_for_every_sampler(kind: str, wall: float) -> None:
    for tilt in (0.0, 0.6):
        rays, field = ahead(tilt=tilt), Matter(wall)
        steps = chosen(kind, field, rays, 300, wall)
        seen = look(field, EMPTY, rays, steps)
        assert abs(seen.range - wall / math.cos(tilt)) <= (steps.end - steps.start).max()
        torch.testing.assert_close(seen.opacity, torch.ones(1))


@pytest.mark.parametrize("kind", KINDS)
def test_samplers_agree_on_a_dense_scene(kind: str) -> None:
    rays, field = ahead(2, tilt=0.3), Matter(30.0, hardness=0.3, cloud=4.0)
    truth = render(field, EMPTY, rays, torch.full((2, 4000), 0.5))
    seen = look(field, EMPTY, rays, chosen(kind, field, rays, 400, 20.0))
    torch.testing.assert_close(seen.range, truth.range, atol=0.02, rtol=0)
    torch.testing.assert_close(seen.opacity, truth.opacity, atol=2e-3, rtol=0)
    torch.testing.assert_close(seen.channels["colour"], truth.channels["colour"], atol=2e-3, rtol=0)


def test_the_even_sampler_renders_bit_for_bit_what_the_formula_says() -> None:
    rays, field = ahead(3, tilt=0.2), Matter(30.0, hardness=0.3, cloud=4.0)
    jitter = torch.rand(3, 32, generator=generator("jitter"))
    edge = intervals(rays, 32)
    step = edge[:, 1:] - edge[:, :-1]
    distance = edge[:, :-1] + jitter * step
    density, _ = field(EMPTY, rays.origin[:, None] + rays.direction[:, None] * distance[..., None], None, None)
    seen = render(field, EMPTY, rays, jitter)
    assert torch.equal(seen.distance, distance)
    assert torch.equal(seen.weight, ray_weights(density, step))


@pytest.mark.parametrize("kind", KINDS)
def test_stretches_are_in_order_hold_their_sample_and_cover_what_is_not_skipped(kind: str) -> None:
    rays = ahead(4, tilt=0.1)
    field = Matter(30.0, hardness=0.3, cloud=4.0)
    steps = chosen(kind, field, rays, 50, 30.0)
    assert (steps.end >= steps.start).all()
    assert (steps.distance >= steps.start).all()
    assert (steps.distance <= steps.end).all()
    assert (steps.start[:, 1:] >= steps.end[:, :-1] - 1e-3).all()
    covered = steps.length.sum(1)
    if kind == "skipping":
        assert (covered < 35).all()
        assert (covered > (rays.far - 30 / rays.cosine)).all()
    else:
        torch.testing.assert_close(covered, rays.far - rays.near)
        torch.testing.assert_close(steps.start[:, 0], rays.near)
        torch.testing.assert_close(steps.end[:, -1], rays.far)


def test_mass_decides_and_what_has_none_is_skipped() -> None:
    border, mass = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    two = by_mass(border, mass, torch.full((1, 2), 0.5))
    assert two.start.tolist() == [[0.0, 3.0]]
    assert two.end.tolist() == [[1.0, 4.0]]
    assert two.length.tolist() == [[1.0, 1.0]]
    assert two.distance.tolist() == [[0.5, 3.5]]
    one = by_mass(border, mass, torch.full((1, 1), 0.25))
    assert (one.start.item(), one.end.item(), one.length.item(), one.distance.item()) == (0.0, 4.0, 2.0, 0.5)
    uneven = by_mass(border, torch.tensor([[1.0, 3.0, 0.0, 4.0]]), torch.zeros(1, 8))
    torch.testing.assert_close(uneven.start[0, 1:4], torch.tensor([1.0, 4 / 3, 5 / 3]))


def test_a_ray_through_nothing_but_emptiness_sees_nothing() -> None:
    rays = ahead(2)
    steps = skipping(rays, torch.full((2, 8), 0.5), torch.zeros(1, 8, 120, 120, dtype=torch.bool), TALL)
    seen = look(Matter(10.0), EMPTY, rays, steps)
    assert not seen.opacity.any()
    assert torch.equal(seen.range, rays.far)


def test_half_of_the_guided_samples_are_near_what_is_known_and_others_are_even() -> None:
    rays = ahead(3)
    known = torch.tensor([20.0, torch.inf, 70.0])
    jitter = torch.full((3, 40), 0.5)
    steps = guided(rays, jitter, known, width=1.0)
    near = (steps.distance - 20.0).abs() < 1.0
    assert near[0].sum() >= 20
    torch.testing.assert_close(steps.distance[1:], even(rays, jitter).distance[1:], atol=1e-2, rtol=0)


def test_a_second_look_goes_where_the_first_found_weight() -> None:
    rays, field = ahead(), Matter(33.3)
    jitter = torch.full((1, 32), 0.5)
    once, twice = render(field, EMPTY, rays, jitter), look_twice(field, EMPTY, rays, jitter, first=32)
    assert abs(twice.range - 33.3) < 0.5 * abs(once.range - 33.3)
    assert ((twice.distance - 33.3).abs() < 3).sum() > 16


def test_occupied_cells_are_those_with_points_and_their_neighbours() -> None:
    xyz = torch.tensor([[0.5, 0.5, 0.5], [-59.5, 0.5, 0.5], [200.0, 0.0, 0.0]])
    full = occupancy(xyz, torch.tensor([0, 1, 1]), TALL, 2)
    assert full.flatten(1).sum(1).tolist() == [27, 18]
    assert full[0, 3, 60, 60]
    assert not full[0, 3, 60, 62]


def test_neighbours_wrap_where_the_grid_does() -> None:
    ring = CylinderGrid((0.0, -math.pi, -1.0), (1.0, 2 * math.pi / 6, 1.0), (3, 6, 2))
    full = torch.zeros(1, *ring.shape, dtype=torch.bool)
    full[0, 0, 0, 1] = True
    around = neighbours(full, ring.wraps)[0, 0, :, 1]
    assert around.tolist() == [True, True, False, False, False, True]
    assert neighbours(full, (False, False, False))[0, 0, :, 1].tolist() == [True, True, False, False, False, False]


def test_cells_where_a_field_is_thick_are_looked_at() -> None:
    full = thick(Matter(10.0), EMPTY, threshold=1.0)
    assert full.shape == (1, *TALL.shape)
    assert full[0, 0, 0].tolist() == (TALL.centres()[0, 0, :, 0] > 9.0).tolist()


def test_where_one_looks_has_no_gradient() -> None:
    rays = ahead()
    weight = torch.rand(1, 16, generator=generator("w")).requires_grad_()
    assert not refined(intervals(rays, 16), weight, torch.full((1, 8), 0.5)).distance.requires_grad
