"""The field on a cylinder, and its classes."""

import math

import pytest
import torch
from torch import Tensor

from cofield.draw import generator
from cofield.frame import collate
from cofield.grid import CylinderGrid, Volume
from cofield.models.field import Field, Narrow, found_at, place_waves
from cofield.models.render import intervals, render
from cofield.models.semantics import entropy, seen_classes
from cofield.ops.sample import sample
from cofield.rays import Rays
from cofield.train.build import seeded
from streets import GRID, frame

CLASSES = 5
CYLINDER = CylinderGrid((0.0, -math.pi, -3.0), (0.5, 2 * math.pi / 72, 1.0), (80, 72, 6), origin_ego=(0.5, -0.25, 1.5))
CENTRE = torch.tensor(CYLINDER.origin_ego)


class Reader(Field):
    """A field that is what the volume holds: first density, then the share of every class."""

    def __init__(self) -> None:
        with seeded("reader"):
            super().__init__(1 + CLASSES, {"semantics": CLASSES}, width=8)

    def forward(self, volume, xyz, direction, sample_of):
        unit = volume.grid.to_unit(xyz)
        which = sample_of[:, None].expand(unit.shape[:2]).flatten()
        value = sample(volume.features, unit.flatten(0, 1), which, volume.grid.wraps).unflatten(0, unit.shape[:2])
        return value[..., 0], {"semantics": value[..., 1:]}


def walls(distance: float, number: list[int]) -> Volume:
    """Opaque beyond a distance from the axis; a sixth of the way around each class, from -π on."""
    features = torch.zeros(2, 1 + CLASSES, *CYLINDER.shape)
    rho = CYLINDER.coordinates(CYLINDER.centres())[..., 0]
    features[:, 0] = torch.where(rho > distance, 1e4, 0.0)
    for k, label in enumerate(number):
        features[:, 1 + label, :, k * 12 : (k + 1) * 12] = 1.0
    return Volume(features, CYLINDER)


def outward(azimuth_deg: Tensor, sample_of: int = 1) -> Rays:
    angle = azimuth_deg.deg2rad()
    direction = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], -1)
    origin = CENTRE.expand_as(direction)
    near, far = CYLINDER.span(origin, direction)
    which = torch.full((len(angle),), sample_of)
    return Rays(origin, direction, near, far, torch.ones(len(angle)), which, which)


@pytest.mark.parametrize("distance", [3.0, 12.0, 31.0])
def test_an_opaque_wall_of_a_class_in_a_cylinder_renders_its_distance_and_its_class(distance: float) -> None:
    order = [0, 3, 1, 4, 2, 0]
    rays = outward(torch.arange(-150.0, 180.0, 60.0))
    seen = render(Reader(), walls(distance, order), rays, torch.full((6, 300), 0.5))
    # The wall begins half-way between the last free and the first full cell, whose centres are half a metre apart.
    slack = CYLINDER.cell[0] + intervals(rays, 300).diff(dim=-1).max()
    assert (seen.range - distance).abs().max() <= slack
    found = seen_classes(seen)
    torch.testing.assert_close(found, torch.eye(CLASSES)[order], atol=1e-4, rtol=0)
    assert entropy(found).max() < 0.01


def test_a_wall_goes_on_across_the_back_where_the_azimuth_wraps() -> None:
    rays = outward(torch.tensor([178.0, 179.9, -179.9, -178.0]))
    volume = walls(12.0, [2, 0, 0, 0, 0, 2])
    seen = render(Reader(), volume, rays, torch.full((4, 300), 0.5))
    torch.testing.assert_close(seen_classes(seen), torch.eye(CLASSES)[[2] * 4], atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.range, seen.range[:1].expand(4), atol=1e-3, rtol=0)


def test_at_the_border_of_two_classes_a_ray_sees_half_of_each() -> None:
    seen = render(
        Reader(), walls(12.0, [0, 1, 0, 0, 4, 3]), outward(torch.tensor([-120.0, 180.0])), torch.full((2, 300), 0.5)
    )
    expected = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5, 0.0]])
    torch.testing.assert_close(seen_classes(seen), expected, atol=1e-3, rtol=0)


def test_where_nothing_is_opaque_every_class_is_alike() -> None:
    seen = render(
        Reader(), walls(100.0, [0, 3, 1, 4, 2, 0]), outward(torch.tensor([10.0, 200.0])), torch.full((2, 50), 0.5)
    )
    torch.testing.assert_close(entropy(seen_classes(seen)), torch.ones(2))
    torch.testing.assert_close(seen.range, torch.full((2,), 40.0))


def test_camera_rays_into_a_cylinder_see_its_walls() -> None:
    batch = collate([frame("b"), frame("a")])
    pixels = torch.arange(0, batch.valid.numel(), 7)
    rays = Rays.from_cameras(batch, pixels, CYLINDER)
    seen = render(Reader(), walls(6.0, [1] * 6), rays, torch.full((len(rays), 300), 0.5))
    # Where the ray leaves a cylinder of 6 m around the LiDAR, unless it passes above or below the walls.
    inner = CylinderGrid((0.0, -math.pi, -3.0), (0.5, 2 * math.pi / 72, 1.0), (12, 72, 6), CYLINDER.origin_ego)
    _, expected = inner.span(rays.origin, rays.direction)
    meets = (seen.opacity > 0.99) & (expected < rays.far - 1)
    assert meets.float().mean() > 0.3
    assert (seen.range - expected)[meets].abs().median() < 0.3
    assert (seen_classes(seen)[meets].argmax(-1) == 1).all()


def semantic_field(channels: dict[str, int] | None = None) -> Field:
    with seeded("field"):
        return Field(6, {"semantics": CLASSES} if channels is None else channels, width=16)


def test_a_places_class_is_a_distribution_and_does_not_depend_on_where_it_is_seen_from() -> None:
    volume = Volume(torch.randn(1, 6, *GRID.shape, generator=generator("volume")), GRID)
    xyz = torch.randn(5, 4, 3, generator=generator("xyz")) * 4
    zero = torch.zeros(5, dtype=torch.long)
    model = semantic_field({"colour": 3, "semantics": CLASSES})
    (_, one), (_, other) = (model(volume, xyz, torch.eye(3)[[k] * 5], zero) for k in (0, 1))
    assert torch.equal(one["semantics"], other["semantics"])
    assert not torch.allclose(one["colour"], other["colour"])
    torch.testing.assert_close(one["semantics"].sum(-1), torch.ones(5, 4))
    assert (one["semantics"] > 0).all()


def test_a_field_with_classes_begins_with_the_weights_of_one_without() -> None:
    plain, more = semantic_field({"colour": 3}), semantic_field({"colour": 3, "semantics": CLASSES})
    weights = more.state_dict()
    for name, weight in plain.state_dict().items():
        assert torch.equal(weights[name], weight), name
    assert {name.split(".")[0] for name in weights.keys() - plain.state_dict().keys()} == {"kind"}


def test_every_weight_of_a_semantic_field_has_a_gradient() -> None:
    model, volume = semantic_field(), Volume(torch.randn(2, 6, *CYLINDER.shape, generator=generator("v")), CYLINDER)
    seen = render(model, volume, outward(torch.arange(0.0, 360.0, 30.0)), torch.full((12, 16), 0.5))
    (seen_classes(seen).square().sum() + seen.range.sum()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_a_field_has_no_seam_where_the_azimuth_wraps() -> None:
    volume = Volume(torch.randn(1, 6, *CYLINDER.shape, generator=generator("seam")), CYLINDER)
    model, zero = semantic_field(), torch.zeros(1, dtype=torch.long)
    rho = torch.linspace(1.0, 39.0, 20)
    tiny = 1e-5
    left, right = (CENTRE + torch.stack([-rho, sign * tiny * rho, rho * 0], -1) for sign in (1.0, -1.0))
    (density_l, values_l), (density_r, values_r) = (
        model(volume, xyz[None], torch.eye(3)[:1], zero) for xyz in (left, right)
    )
    torch.testing.assert_close(density_l, density_r, atol=1e-3, rtol=0)
    torch.testing.assert_close(values_l["semantics"], values_r["semantics"], atol=1e-3, rtol=0)


def test_the_two_ends_of_an_axis_that_wraps_are_one_place_and_of_another_are_two() -> None:
    ends = torch.tensor([[0.2, 0.0, 0.7], [0.2, 1.0, 0.7]])
    around, across = (place_waves(ends, (False, wraps, False), octaves=3) for wraps in (True, False))
    torch.testing.assert_close(around[0], around[1], atol=1e-5, rtol=0)
    assert not torch.allclose(across[0], across[1], atol=0.5)


def test_mixing_a_wide_volume_before_looking_up_is_mixing_what_was_looked_up() -> None:
    with seeded("wide"):
        field = Field(features=12, channels={"colour": 3}, width=16, most=4)
    assert isinstance(field.narrow, Narrow)
    wide = torch.rand(2, 12, *GRID.shape, generator=torch.Generator().manual_seed(0))
    xyz = torch.rand(5, 3, 3, generator=torch.Generator().manual_seed(1))
    of = torch.tensor([0, 1, 0, 1, 1])
    before = found_at(field.narrow(Volume(wide, GRID)), xyz, of, octaves=2)[..., :4]
    looked_up = found_at(Volume(wide, GRID), xyz, of, octaves=2)[..., :12]
    mix = field.narrow.mix[0]
    assert isinstance(mix, torch.nn.Conv3d)
    assert mix.bias is not None
    weight, bias = mix.weight[:, :, 0, 0, 0], mix.bias
    torch.testing.assert_close(before, looked_up @ weight.mT + bias)
