import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cofield.draw import generator
from cofield.frame import Batch, collate
from cofield.geometry import yaw_rotation
from cofield.grid import CylinderGrid
from cofield.models.blocks import compute_in
from cofield.models.cylinder import Cylinder3D, CylinderHead
from cofield.models.mask import hide
from cofield.train.build import seeded
from streets import config, frame


def around(cells: int = 32) -> CylinderGrid:
    return CylinderGrid((0.0, -math.pi, -3.0), (1.0, 2 * math.pi / cells, 1.0), (12, cells, 6), (0.9, 0.0, 1.8))


def build(cells: int = 32, width: int = 8, **options) -> Cylinder3D:
    with seeded("cylinder"):
        return Cylinder3D(around(cells), width, **{"norm": "group", "point_width": 16} | options)


def head(classes: int = 5, width: int = 8) -> CylinderHead:
    with seeded("head"):
        return CylinderHead(classes, width, point_width=16)


def scan(cells: int = 32, count: int = 200) -> torch.Tensor:
    """Points well within the cells that they are in."""
    unit = torch.rand(count, 3, generator=generator("scan"))
    count_of = torch.tensor(around(cells).count)
    return around(cells).from_unit(((unit * count_of).floor() + 0.3 + 0.4 * unit) / count_of)


def cloud(xyz: torch.Tensor) -> Batch:
    base = frame("a", cameras=0, count=len(xyz))
    return collate([replace(base, points=replace(base.points, xyz_ego=xyz))])


def turned(xyz: torch.Tensor, cells: int, by: int) -> torch.Tensor:
    """The points, turned about the sensor by so many cells."""
    zero = xyz.new_tensor(around(cells).origin_ego)
    return (xyz - zero) @ yaw_rotation(torch.tensor(2 * math.pi * by / cells)).mT + zero


def blind_to_azimuth(model: Cylinder3D) -> Cylinder3D:
    """The encoder, deaf to the azimuth, x and y that points tell of themselves."""
    with torch.no_grad():
        model.point[0].weight[:, [4, 6, 7]] = 0
    return model


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_it_gives_a_volume_and_a_class_per_point_and_gradients_reach_every_weight(norm: str) -> None:
    model, classes = build(norm=norm), head()
    batch = collate([frame("a", count=150), frame("b", count=80)])
    encoded = model.encode(batch)
    volume = model.volume(encoded)
    assert volume.grid == around()
    assert volume.features.shape == (2, 8, 6, 32, 12)
    voxels, points = classes(encoded)
    assert voxels.shape == (len(encoded.voxels.sites), 5)
    assert points.shape == (230, 5)
    loss = sum((each * torch.randn(each.shape, generator=generator("loss"))).sum() for each in (
        volume.features, voxels, points))  # fmt: skip
    loss.backward()
    weights = [*model.named_parameters(), *classes.named_parameters()]
    assert not [name for name, weight in weights if weight.grad is None or not weight.grad.any()]


def test_a_cell_without_points_holds_the_learned_vector() -> None:
    model = build()
    with torch.no_grad():
        model.empty.copy_(torch.arange(8.0))
    batch = cloud(scan(count=30))
    volume, sites = model(batch).features[0], model.encode(batch).voxels.sites
    blank = (volume == torch.arange(8.0)[:, None, None, None]).all(0)
    assert blank.sum() == 6 * 32 * 12 - len(sites)
    assert torch.equal(blank.flatten().logical_not().nonzero()[:, 0], sites.flat)


@pytest.mark.parametrize(("cells", "by"), [(32, 16), (48, 16), (48, -32)])
def test_turning_the_world_by_whole_cells_turns_the_volume_over_the_seam(cells: int, by: int) -> None:
    model, points = blind_to_azimuth(build(cells)), scan(cells)
    one, two = (model(cloud(each)).features for each in (points, turned(points, cells, by)))
    torch.testing.assert_close(one.roll(by, 3), two, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(one, two, atol=1e-2)


def test_without_the_seams_neighbours_a_turn_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CylinderGrid, "wraps", (False, False, False))
    model, points = blind_to_azimuth(build()), scan()
    one, two = (model(cloud(each)).features for each in (points, turned(points, 32, 16)))
    assert not torch.allclose(one.roll(16, 3), two, atol=1e-2)


@pytest.mark.parametrize("cells", [20, 45])
def test_any_number_of_cells_around_will_do(cells: int) -> None:
    volume = build(cells)(cloud(scan(cells)))
    assert volume.features.shape == (1, 8, 6, cells, 12)
    assert volume.features.isfinite().all()


def test_a_point_beyond_the_border_counts_to_the_nearest_cell() -> None:
    model = build()
    direction = torch.tensor([math.cos(1.0), math.sin(1.0)])
    zero = torch.tensor([0.9, 0.0, 1.8])
    far = torch.cat([direction * 80, torch.tensor([7.0])]) + zero
    edge = torch.cat([direction * 11.9, torch.tensor([2.9])]) + zero
    encoded = model.encode(cloud(torch.stack([far, edge, zero, zero - torch.tensor([0.0, 0.0, 50.0])])))
    assert encoded.slot[0] == encoded.slot[1]
    assert len(encoded.slot) == 4
    assert torch.equal(encoded.voxels.sites.flat[encoded.slot[1:2]], model.grid.cell_of(edge[None])[0])
    # It still knows where it is.
    assert not torch.allclose(encoded.points[0], encoded.points[1], atol=1e-3)


def test_the_order_of_the_points_is_the_order_of_their_logits() -> None:
    model, classes, points = build(), head(), scan()
    order = torch.randperm(len(points), generator=generator("order"))
    base = cloud(points)
    other = replace(base, points=base.points.select(order))
    one, two = (classes(model.encode(each))[1] for each in (base, other))
    torch.testing.assert_close(one[order], two, atol=1e-5, rtol=1e-4)


def test_frames_do_not_see_each_other() -> None:
    model = build()
    one = model(collate([frame("a"), frame("b", count=70)])).features
    two = model(collate([frame("b", count=70), frame("a")])).features
    torch.testing.assert_close(one, two.flip(0), atol=1e-5, rtol=1e-4)


def test_points_that_are_hidden_do_not_move_the_volume() -> None:
    model, batch = build(), collate([frame("a", count=300)])
    hidden = hide(batch, config().mask, 0)
    moved = torch.where(hidden.points[:, None], torch.rand(300, 3, generator=generator("wild")), batch.points.xyz_ego)
    other = replace(batch, points=replace(batch.points, xyz_ego=moved))
    assert torch.equal(model(batch, hidden).features, model(other, hidden).features)
    assert not torch.equal(model(batch).features, model(other).features)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_scans_with_one_point_or_none_are_fine(norm: str) -> None:
    model, classes = build(norm=norm), head()
    for count in (0, 1):
        encoded = model.encode(cloud(scan(count=count)))
        assert classes(encoded)[1].shape == (count, 5)
        assert model.volume(encoded).features.isfinite().all()


def test_half_precision_stays_close_and_ends_in_full() -> None:
    model, classes, batch = build(), head(), cloud(scan())
    exact = classes(model.encode(batch))[1]
    for part in (model, classes):
        compute_in(part, torch.bfloat16)
    rough = classes(model.encode(batch))[1]
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.2 * exact.abs().max()


def test_it_learns_a_tiny_scan_by_heart() -> None:
    model, classes, batch = build(norm="batch"), head(), cloud(scan(count=60))
    labels = torch.randint(5, (60,), generator=generator("labels"))
    optimiser = torch.optim.Adam([*model.parameters(), *classes.parameters()], 1e-2)
    for _ in range(25):
        _, points = classes(model.encode(batch))
        loss = F.cross_entropy(points, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (points.argmax(1) == labels).float().mean() > 0.95
