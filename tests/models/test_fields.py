import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cofield.draw import generator
from cofield.frame import collate
from cofield.grid import BoxGrid, Volume
from cofield.models.field import Field
from cofield.models.fields import DistanceField, FrustumField, at_depth, optical_depth, within
from cofield.models.lift import DepthBins, DepthHead, Frusta
from cofield.models.render import look, render
from cofield.models.sampler import even, guided, intervals, refined
from cofield.rays import Rays, choose
from cofield.train.build import seeded
from streets import GRID, frame

TALL = BoxGrid((-60.0, -60.0, -3.0), (1.0, 1.0, 1.0), (120, 120, 8))
EMPTY = Volume(torch.zeros(1, 1, 1, 1, 1), TALL)
BINS = DepthBins(1.0, 0.5, 24)


class First(nn.Module):
    def forward(self, body: torch.Tensor) -> torch.Tensor:
        return body[..., :1]


class Plane(DistanceField):
    """The distance to a plane across x, times a factor."""

    def __init__(self, wall: float, sharpness: float, factor: float = 1.0, channels: dict[str, int] | None = None):
        with seeded("plane"):
            super().__init__(1, channels or {}, width=8, sharpness=sharpness)
        self.wall, self.factor, self.distance = wall, factor, First()

    def _body(self, volume, xyz, sample_of):
        return ((self.wall - xyz[..., :1]) * self.factor).expand(*xyz.shape[:2], 8)


def ahead(count: int = 1, tilt: float = 0.0) -> Rays:
    direction = torch.tensor([[math.cos(tilt), math.sin(tilt), 0.0]]).expand(count, 3)
    origin = torch.zeros(count, 3)
    near, far = TALL.span(origin, direction)
    zero = torch.zeros(count, dtype=torch.long)
    return Rays(origin, direction, near, far, torch.full((count,), math.cos(tilt)), zero, zero)


@pytest.mark.parametrize("wall", [1.0, 5.0, 20.0, 40.0, 59.0])
@pytest.mark.parametrize("sampler", ["even", "guided", "refined"])
def test_a_sharp_plane_renders_its_distance_for_every_sampler(wall: float, sampler: str) -> None:
    for tilt in (0.0, 0.7):
        rays, field, half = ahead(tilt=tilt), Plane(wall, 300.0), torch.full((1, 96), 0.5)
        steps = even(rays, half)
        if sampler == "guided":
            steps = guided(rays, half, wall / rays.cosine)
        elif sampler == "refined":
            steps = refined(intervals(rays, 96), render(field, EMPTY, rays, half).weight, half)
        seen = look(field, EMPTY, rays, steps)
        assert abs(seen.range - wall / math.cos(tilt)) <= (steps.end - steps.start).max()
        torch.testing.assert_close(seen.opacity, torch.ones(1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("sharpness", [0.5, 3.0, 20.0])
def test_the_density_of_a_plane_integrates_to_what_the_formula_says(sharpness: float) -> None:
    """Head on, k (1 - Φ(d)) summed finely is log Φ(d_start) - log Φ(d_end), which the stretches hold exactly."""
    field, rays = Plane(7.0, sharpness), ahead()
    fine = torch.linspace(0, 9, 90_001)
    xyz = torch.stack([fine, 0 * fine, 0 * fine], -1)[None]
    density, _ = field(EMPTY, xyz, rays.direction, rays.sample)
    k = torch.tensor(sharpness)
    whole = optical_depth(torch.tensor(7.0), torch.tensor(-2.0), k)
    torch.testing.assert_close(torch.trapezoid(density[0], fine), whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.exp(-whole), torch.sigmoid(-2 * k) / torch.sigmoid(7 * k), rtol=1e-4, atol=1e-7)
    coarse, steps = field.along(EMPTY, rays, even(rays, torch.full((1, 7), 0.5)))[0], even(rays, torch.zeros(1, 7))
    through = torch.exp(-(coarse * steps.length).sum())
    torch.testing.assert_close(through, torch.sigmoid(-53 * k) / torch.sigmoid(7 * k), rtol=1e-3, atol=1e-7)


def test_dividing_a_stretch_changes_nothing_and_leaving_a_surface_stops_nothing() -> None:
    k = torch.tensor(3.0)
    parts = torch.tensor([2.0, 0.7, 0.1, -0.4])
    torch.testing.assert_close(optical_depth(parts[:-1], parts[1:], k).sum(), optical_depth(parts[0], parts[-1], k))
    assert optical_depth(torch.tensor(-1.0), torch.tensor(2.0), k) == 0


def test_the_weight_of_a_plane_is_largest_where_its_distance_is_zero() -> None:
    rays = ahead()
    seen = render(Plane(21.3, 4.0), EMPTY, rays, torch.full((1, 600), 0.5))
    assert abs(seen.distance[0, seen.weight[0].argmax()] - 21.3) < 0.2
    # The mean of a logistic distribution is its middle.
    torch.testing.assert_close(seen.range, torch.tensor([21.3]), atol=0.05, rtol=0)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (0.5, 0.0), (3.0, 4.0)])
def test_a_distance_may_not_change_faster_than_one_moves(factor: float, expected: float) -> None:
    rays = ahead(2)
    excess = Plane(20.0, 1.0, factor).eikonal(EMPTY, rays, even(rays, torch.full((2, 16), 0.5)))
    torch.testing.assert_close(excess, torch.full((2, 16), expected), atol=1e-3, rtol=1e-3)


def distance_field() -> DistanceField:
    with seeded("distance"):
        return DistanceField(6, {"colour": 3}, width=16)


def test_a_fresh_distance_field_is_thin_and_every_weight_and_ray_has_a_gradient() -> None:
    volume = Volume(torch.randn(1, 6, *GRID.shape, generator=generator("volume")).requires_grad_(), GRID)
    field, rays = distance_field(), Rays.from_above(torch.arange(24 * 16), GRID)
    seen = render(field, volume, rays, torch.full((len(rays), 10), 0.5))
    assert 0.02 < seen.opacity.mean() < 0.7
    (seen.range.sum() + seen.channels["colour"].square().sum()).backward()
    for name, weight in field.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    assert volume.features.grad is not None
    # Every ray learns; of its stretches those do along which the distance falls.
    assert (volume.features.grad.abs().sum((0, 1, 2)) > 0).all()
    assert (volume.features.grad.abs().sum((0, 1)) > 0).float().mean() > 0.9


def test_colour_depends_on_the_direction_of_view_and_distance_does_not() -> None:
    volume = Volume(torch.randn(1, 6, *GRID.shape, generator=generator("volume")), GRID)
    xyz, zero = torch.randn(5, 4, 3, generator=generator("xyz")), torch.zeros(5, dtype=torch.long)
    (density_a, a), (density_b, b) = (distance_field()(volume, xyz, torch.eye(3)[[axis] * 5], zero) for axis in (0, 1))
    assert torch.equal(density_a, density_b)
    assert not torch.allclose(a["colour"], b["colour"])


def test_a_distance_field_may_have_no_channels() -> None:
    volume = Volume(torch.ones(1, 1, *GRID.shape), GRID)
    with seeded("bare"):
        field = DistanceField(1, {}, width=8)
    rays = Rays.from_above(torch.arange(9), GRID)
    assert render(field, volume, rays, torch.full((9, 4), 0.5)).channels == {}


def frustum_field(features: int = 6) -> FrustumField:
    with seeded("frustum"):
        return FrustumField(features, {"colour": 3}, width=16)


def opaque_where_there_is_anything() -> FrustumField:
    field = frustum_field(1)
    with torch.no_grad():
        for weight in field.parameters():
            weight.zero_()
        field.body[0].weight[0, 0] = field.body[2].weight[0, 0] = 1.0
        field.density[0].weight[0, 0] = 100.0
        field.density[0].bias[0] = -20.0
    return field


def camera_rays(count: int = 30) -> Rays:
    batch = collate([frame("a")])
    return within(Rays.from_cameras(batch, choose(batch.valid.flatten(), count, generator("r")), GRID), BINS)


@pytest.mark.parametrize("bin", [0, 5, 11, 23])
def test_an_opaque_bin_renders_its_depth(bin: int) -> None:
    """The released code's reshape renders 0 for it."""
    share = torch.zeros(1, 2, 24, 2, 5)
    share[:, :, bin] = 1.0
    rays = camera_rays()
    seen = render(
        opaque_where_there_is_anything(),
        Frusta(share, torch.ones(1, 2, 1, 2, 5), BINS, 8),
        rays,
        torch.full((30, 200), 0.5),
    )
    torch.testing.assert_close(seen.opacity, torch.ones(30))
    expected = BINS.centres()[bin]
    assert ((seen.range * rays.cosine - expected).abs() <= BINS.step).all()


def test_camera_rays_of_a_frustum_lie_over_its_bins_and_no_further() -> None:
    rays = camera_rays()
    torch.testing.assert_close(rays.near * rays.cosine, torch.ones(30))
    torch.testing.assert_close(rays.far * rays.cosine, torch.full((30,), 13.0))


def test_shares_are_interpolated_between_centres_and_nothing_outside() -> None:
    share = torch.tensor([[0.0, 1.0, 3.0]])
    depth = torch.tensor([[0.9, 1.0, 1.75, 2.0, 2.25, 2.49, 2.5]])
    expected = torch.tensor([[0.0, 0.0, 1.0, 2.0, 3.0, 3.0, 0.0]])
    torch.testing.assert_close(at_depth(share, depth, DepthBins(1.0, 0.5, 3)), expected)


def test_a_frustum_field_knows_its_own_pixel_only_and_every_weight_has_a_gradient() -> None:
    with seeded("head"):
        head = DepthHead(16, 8, 6, BINS)
    batch = collate([frame("a", count=200)])
    features = torch.randn(1, 2, 16, 2, 5, generator=generator("f"))
    frusta, rays, field = head(features, batch), camera_rays(60), frustum_field()
    half = torch.full((60, 16), 0.5)
    seen = render(field, frusta, rays, half)
    (seen.range.sum() + seen.channels["colour"].square().sum()).backward()
    for name, weight in [*field.named_parameters(), *head.named_parameters()]:
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    content = frusta.content.detach().clone()
    content[:, 1] += 1
    other = render(field, Frusta(frusta.share, content, BINS, 8), rays, half)
    second = rays.source // (16 * 40) == 1
    assert torch.equal(other.range[~second], seen.range[~second])
    assert not torch.equal(other.range[second], seen.range[second])


def test_fields_are_rendered_from_what_they_are_made_for() -> None:
    with pytest.raises(ValueError, match="a FrustumField cannot be rendered from Volume"):
        render(frustum_field(1), EMPTY, ahead(), torch.full((1, 4), 0.5))


def test_a_flat_volume_with_encoded_height_can_hold_a_step_in_height() -> None:
    """One layer of features, and ground at 0.5 m on the left, at 2.5 m on the right: heights come from the encoding."""
    flat = GRID.flat()
    side = (flat.centres()[..., 1] > 0).float()[None, None]
    volume = Volume(side, flat)
    with seeded("flat"):
        field = Field(1, {}, width=32, octaves=4)
    rays = Rays.from_above(torch.arange(0, 24 * 16, 5), GRID)
    true = torch.where(rays.origin[:, 1] > 0, 2.5, 0.5)
    assert torch.equal(rays.far, Rays.from_above(rays.source, flat).far)
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-2)
    for _ in range(120):
        seen = render(field, volume, rays, torch.full((len(rays), 24), 0.5))
        loss = F.l1_loss(rays.origin[:, 2] - seen.range, true)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
