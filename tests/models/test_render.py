import math
from dataclasses import replace

import pytest
import torch

from cofield.draw import generator
from cofield.frame import Hidden, collate
from cofield.grid import BoxGrid, Volume
from cofield.models.field import Background, Field, light, squares, waves
from cofield.models.render import astray, render
from cofield.models.sampler import intervals
from cofield.rays import Rays, choose
from cofield.train.build import seeded
from streets import GRID, frame

TALL = BoxGrid((-60.0, -60.0, -3.0), (1.0, 1.0, 1.0), (120, 120, 8))
EMPTY = Volume(torch.zeros(1, 1, 1, 1, 1), TALL)


class Wall(Field):
    """A field that is opaque beyond a distance along x, and red there."""

    def __init__(self, distance: float, density: float = 1e6) -> None:
        with seeded("wall"):
            super().__init__(1, {"colour": 3}, width=8)
        self.distance, self.hardness = distance, density

    def forward(self, volume, xyz, direction, sample_of):
        density = torch.where(xyz[..., 0] >= self.distance, self.hardness, 0.0)
        red = torch.tensor([1.0, 0.0, 0.0]).expand(*density.shape, 3)
        return density, {"colour": red}


def ahead(grid: BoxGrid, count: int = 1, tilt: float = 0.0) -> Rays:
    direction = torch.tensor([[math.cos(tilt), math.sin(tilt), 0.0]]).expand(count, 3)
    origin = torch.zeros(count, 3)
    near, far = grid.span(origin, direction)
    zero = torch.zeros(count, dtype=torch.long)
    return Rays(origin, direction, near, far, torch.full((count,), math.cos(tilt)), zero, zero)


@pytest.mark.parametrize("distance", [1.0, 5.0, 20.0, 40.0, 59.0])
@pytest.mark.parametrize("tilt", [0.0, 0.7])
def test_an_opaque_wall_renders_its_distance(distance: float, tilt: float) -> None:
    rays = ahead(TALL, tilt=tilt)
    seen = render(Wall(distance), EMPTY, rays, torch.full((1, 400), 0.5))
    true = distance / math.cos(tilt)
    step = intervals(rays, 400).diff(dim=-1).max()
    assert abs(seen.range - true) <= step
    # The z-depth of a wall across the view is the same wherever in the image it is seen.
    assert abs(seen.range * rays.cosine - distance) <= step
    torch.testing.assert_close(seen.opacity, torch.ones(1))
    torch.testing.assert_close(seen.channels["colour"], torch.tensor([[1.0, 0.0, 0.0]]))


def test_an_empty_ray_ends_where_the_grid_does_and_stays_transparent() -> None:
    rays = ahead(TALL)
    seen = render(Wall(-100.0, density=1e-4), EMPTY, rays, torch.full((1, 64), 0.5))
    assert seen.opacity < 0.01
    torch.testing.assert_close(seen.range, torch.tensor([60.0]), atol=0.3, rtol=0)
    assert rays.far == 60.0


def test_a_uniform_fog_has_the_mean_distance_of_an_exponential() -> None:
    rays = ahead(TALL)
    seen = render(Wall(-100.0, density=0.2), EMPTY, rays, torch.full((1, 2000), 0.5))
    # E[min(t, 60)] of an exponential of rate 0.2.
    torch.testing.assert_close(seen.range, torch.tensor([(1 - math.exp(-12)) / 0.2]), atol=1e-2, rtol=0)


def test_what_fog_shows_is_astray_even_where_its_mean_is_right() -> None:
    rays = ahead(TALL)
    fog = render(Wall(-100.0, density=0.2), EMPTY, rays, torch.full((1, 2000), 0.5))
    # For an exponential of mean 5, of which the end of the grid takes next to nothing, E|t - 5| = 2 · 5 / e.
    torch.testing.assert_close(astray(fog, rays, fog.range), torch.tensor([10 / math.e]), atol=2e-2, rtol=0)
    wall = render(Wall(20.0), EMPTY, rays, torch.full((1, 2000), 0.5))
    torch.testing.assert_close(astray(wall, rays, torch.tensor([17.0])), torch.tensor([3.0]), atol=5e-2, rtol=0)
    nothing = render(Wall(100.0), EMPTY, rays, torch.full((1, 64), 0.5))
    torch.testing.assert_close(astray(nothing, rays, torch.tensor([17.0])), torch.tensor([43.0]))


def test_a_ray_that_misses_the_grid_sees_nothing_and_makes_no_noise() -> None:
    origin, direction = torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    near, far = TALL.span(origin, direction)
    zero = torch.zeros(1, dtype=torch.long)
    rays = Rays(origin, direction, near, far, torch.ones(1), zero, zero)
    seen = render(Wall(0.0), EMPTY, rays, torch.full((1, 16), 0.5))
    assert seen.opacity == 0
    assert seen.range == 0


def test_intervals_fill_the_ray_and_grow_fivefold() -> None:
    rays = ahead(TALL, count=2)
    edge = intervals(rays, 50)
    torch.testing.assert_close(edge[:, 0], rays.near)
    torch.testing.assert_close(edge[:, -1], rays.far)
    step = edge.diff(dim=-1)
    assert (step > 0).all()
    torch.testing.assert_close(step.diff(dim=-1), step.diff(dim=-1)[:, :1].expand(2, 49), atol=1e-4, rtol=0)
    assert 4 < step[0, -1] / step[0, 0] < 5


def test_samples_stay_in_their_intervals() -> None:
    rays = ahead(TALL, count=3)
    seen = render(Wall(10.0), EMPTY, rays, torch.rand(3, 20, generator=generator("jitter")))
    edge = intervals(rays, 20)
    assert (seen.distance >= edge[:, :-1]).all()
    assert (seen.distance <= edge[:, 1:]).all()


def field(channels: dict[str, int] | None = None) -> Field:
    with seeded("field"):
        return Field(6, {"colour": 3} if channels is None else channels, width=16)


def test_a_fresh_field_is_thin_and_every_weight_of_it_has_a_gradient() -> None:
    volume = Volume(torch.randn(1, 6, *GRID.shape, generator=generator("volume")).requires_grad_(), GRID)
    model, rays = field(), Rays.from_above(torch.arange(24 * 16), GRID)
    seen = render(model, volume, rays, torch.full((len(rays), 10), 0.5))
    assert 0.2 < seen.opacity.mean() < 0.7
    (seen.range.sum() + seen.channels["colour"].square().sum()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    assert volume.features.grad is not None
    assert (volume.features.grad.abs().sum((0, 1)) > 0).all()


def test_colour_depends_on_the_direction_of_view_and_density_does_not() -> None:
    volume = Volume(torch.randn(1, 6, *GRID.shape, generator=generator("volume")), GRID)
    xyz = torch.randn(5, 4, 3, generator=generator("xyz"))
    zero = torch.zeros(5, dtype=torch.long)
    directions = torch.eye(3)[[0, 0, 0, 0, 0]], torch.eye(3)[[1, 1, 1, 1, 1]]
    (density_a, value_a), (density_b, value_b) = (field()(volume, xyz, d, zero) for d in directions)
    assert torch.equal(density_a, density_b)
    assert not torch.allclose(value_a["colour"], value_b["colour"])


def test_a_field_depends_on_where_a_point_is_even_in_a_uniform_volume() -> None:
    volume = Volume(torch.ones(1, 6, *GRID.shape), GRID)
    xyz = torch.tensor([[[0.0, 0.0, 0.0], [5.0, 3.0, 2.0]]])
    density, _ = field()(volume, xyz, torch.eye(3)[:1], torch.zeros(1, dtype=torch.long))
    assert density[0, 0] != density[0, 1]


def test_channels_come_by_name_and_a_field_may_have_none() -> None:
    volume = Volume(torch.ones(1, 6, *GRID.shape), GRID)
    where = torch.zeros(2, 3, 3), torch.eye(3)[:2], torch.zeros(2, dtype=torch.long)
    density, values = field({"colour": 3, "semantics": 7})(volume, *where)
    assert density.shape == (2, 3)
    assert {name: value.shape[-1] for name, value in values.items()} == {"colour": 3, "semantics": 7}
    assert field({})(volume, *where)[1] == {}


def test_encodings_tell_places_and_directions_apart() -> None:
    assert waves(torch.rand(4, 3, generator=generator("w")), 4).shape == (4, 24)
    up, down = squares(torch.tensor([0.0, 0.0, 1.0])), squares(torch.tensor([0.0, 0.0, -1.0]))
    assert not torch.equal(up, down)
    torch.testing.assert_close(waves(torch.tensor([0.25, 0.5, 0.0]), 1), torch.tensor([0.5**0.5, 0.5**0.5, 1, 0, 0, 1]))


def test_the_background_knows_the_light_of_what_is_visible() -> None:
    batch = collate([frame("a")])
    corner = torch.zeros_like(batch.images)
    corner[:, :, 0, :5, :10] = 1.0
    glow = light(replace(batch, images=corner), None)
    assert glow.shape == (1, 2, 3 * 12)
    red, green, blue = glow[0, 0].view(3, 3, 4)
    assert red[0, 0] > 0.8
    assert red.sum() == red[0, 0]
    assert not green.any()
    assert not blue.any()
    with seeded("background"):
        sky = Background()
    colours = sky(torch.eye(3), torch.rand(3, 2, generator=generator("place")), glow[0, :1].expand(3, 36))
    assert colours.shape == (3, 3)


def test_where_a_part_of_an_image_is_hidden_its_light_is_that_of_the_rest() -> None:
    batch = collate([frame("a")])
    patches = torch.zeros(1, 2, 2, 5, dtype=torch.bool)
    patches[0, 0, 0] = True
    patches[0, 1] = True
    hidden = Hidden(patches, torch.zeros(len(batch.points), dtype=torch.bool))
    glow = light(batch.visible(hidden), hidden).view(1, 2, 3, 3, 4)
    below = batch.images[0, 0, :, 8:].mean((-2, -1))
    torch.testing.assert_close(glow[0, 0, :, 0], below[:, None].expand(3, 4))
    assert (glow[0, 1] == 0.5).all()


def test_choosing_rays_for_a_real_batch_renders() -> None:
    batch = collate([frame("a")])
    rays = Rays.from_cameras(batch, choose(batch.valid.flatten(), 30, generator("r")), GRID)
    volume = Volume(torch.randn(1, 6, *GRID.shape, generator=generator("v")), GRID)
    seen = render(field(), volume, rays, torch.full((30, 8), 0.5))
    assert seen.range.isfinite().all()
    assert ((seen.opacity >= 0) & (seen.opacity <= 1 + 1e-5)).all()
