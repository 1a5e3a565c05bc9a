import math
from dataclasses import replace

import pytest
import torch

from cofield.classes import DETECTION, MAP_LAYERS
from cofield.data.augment import Augment
from cofield.draw import generator
from cofield.frame import Boxes, Maps, collate
from cofield.grid import BoxGrid, CylinderGrid, Volume
from cofield.models.mapseg import LAYERS, MapHead, Onto, footprint
from cofield.train.build import seeded
from cofield.train.config import Head, MapTuning
from streets import GRID, frame


def head(finer: int = 2, gamma: float = 2.0, balance: float = 1.0) -> MapHead:
    with seeded("head"):
        return MapHead(8, GRID, width=16, finer=finer, gamma=gamma, balance=balance)


def box(x: float, y: float, yaw: float, label: str) -> Boxes:
    return Boxes(
        centre=torch.tensor([[x, y, 5.0]]),
        size=torch.tensor([[4.0, 2.0, 1.5]]),
        yaw=torch.tensor([yaw]),
        velocity=torch.zeros(1, 2),
        label=torch.tensor([DETECTION.index(label)]),
    )


def test_the_head_sees_the_volume_on_a_finer_raster() -> None:
    volume = Volume(torch.randn(2, 8, *GRID.shape, generator=generator("v")), GRID)
    model = head()
    assert model(volume).shape == (2, len(LAYERS), 32, 48)
    assert model.grid.upper[:2] == GRID.upper[:2]
    probability = model.decode(model(volume))
    assert ((probability > 0) & (probability < 1)).all()


def test_a_footprint_covers_the_area_of_its_box_wherever_it_floats() -> None:
    grid = head(finer=8).grid
    for yaw in (0.0, 0.5, math.pi / 2):
        vehicle, pedestrian = footprint(box(1.0, 2.0, yaw, "bus"), grid)
        cell = grid.cell[0] * grid.cell[1]
        assert float(vehicle.sum()) * cell == pytest.approx(8.0, rel=0.03)
        assert not pedestrian.any()
    vehicle, pedestrian = footprint(box(1.0, 2.0, 0.0, "pedestrian"), grid)
    assert pedestrian.any()
    assert not vehicle.any()
    # A cone is neither, and no boxes cover nothing.
    assert not footprint(box(0.0, 0.0, 0.0, "traffic_cone"), grid).any()
    assert not footprint(Boxes.empty(), grid).any()


def test_targets_are_the_maps_and_the_footprints() -> None:
    model = head()
    layers = torch.rand(6, 32, 48, generator=generator("maps")) < 0.5
    some = replace(frame("a"), maps=Maps(layers, model.grid), boxes=box(3.0, -2.0, 0.2, "car"))
    truth = model.encode(collate([some, some]))
    assert truth.shape == (2, 8, 32, 48)
    assert torch.equal(truth[1, :6], layers)
    assert truth[0, LAYERS.index("vehicle")].any()


def test_frames_without_maps_or_on_another_raster_are_refused() -> None:
    model = head()
    with pytest.raises(ValueError, match="needs frames with maps and boxes"):
        model.encode(collate([frame("a")]))
    coarse = replace(frame("a"), maps=Maps(torch.zeros(6, 4, 4, dtype=torch.bool), GRID))
    with pytest.raises(ValueError, match=r"maps are \[4, 4\] cells, the raster \[32, 48\]"):
        model.encode(collate([coarse]))
    with pytest.raises(ValueError, match="a cylindrical trunk has none"):
        MapHead(8, CylinderGrid((0.0, -math.pi, 0.0), (1.0, math.pi / 4, 1.0), (4, 8, 2)))


def test_of_a_wider_map_the_head_learns_the_middle_and_no_corner_is_empty_after_a_turn() -> None:
    wish = Head(width=8, cells=20, cell=0.5, occupied=False)
    run = MapTuning(GRID, head=wish, augment=Augment(turn=math.pi / 4, scale=(0.9, 1.1)))
    wide, raster = run.map_grid, wish.raster(GRID)
    assert wide is not None
    assert raster is not None
    assert wide.count[0] > raster.count[0]
    assert wide.origin_ego == raster.origin_ego
    everywhere = replace(frame("a"), maps=Maps(torch.ones(6, *wide.shape[1:], dtype=torch.bool), wide))
    with seeded("head"):
        model = MapHead(8, GRID, width=8, raster=raster, occupied=False)
    for epoch in range(8):
        assert model.encode(collate([run.augment(everywhere, epoch)])).all()
    x = raster.centres()[0, :, :, 0]
    marked = torch.zeros(6, *wide.shape[1:], dtype=torch.bool)
    marked[:, :, wide.count[0] // 2 :] = True
    truth = model.encode(collate([replace(frame("a"), maps=Maps(marked, wide))]))
    assert torch.equal(truth[0, 0], x > raster.origin_ego[0])


def test_the_focal_loss_is_the_cross_entropy_at_gamma_zero_and_less_otherwise() -> None:
    logits = torch.randn(2, 8, 4, 6, generator=generator("l"))
    truth = torch.rand(2, 8, 4, 6, generator=generator("t")) < 0.5
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth.float())
    torch.testing.assert_close(head(gamma=0.0).loss(logits, truth), plain * 8)
    assert head().loss(logits, truth) < plain * 8
    right = torch.where(truth, 20.0, -20.0)
    assert head().loss(right, truth) < 1e-6


def test_every_weight_of_the_head_has_a_gradient() -> None:
    model = head()
    volume = Volume(torch.randn(2, 8, *GRID.shape, generator=generator("v")), GRID)
    truth = torch.rand(2, 8, 32, 48, generator=generator("t")) < 0.5
    model.loss(model(volume), truth).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_cells_of_a_rare_layer_weigh_as_much_as_its_others_up_to_the_limit() -> None:
    truth = torch.zeros(1, 8, 10, 10, dtype=torch.bool)
    truth[:, 0, 0] = True  # one cell in ten
    truth[:, 1, 0, 0] = True  # one in a hundred
    truth[:, 2] = True
    logits = torch.zeros(1, 8, 10, 10)
    plain = math.log(2.0)
    each = [float(head(gamma=0.0, balance=balance).loss(logits, truth)) for balance in (1.0, 20.0)]
    assert each[0] == pytest.approx(8 * plain, rel=1e-5)
    # 0.9 + 9 × 0.1 in the first layer, 0.99 + 20 × 0.01 in the second, nothing new where all or none is true.
    assert each[1] == pytest.approx((1.8 + 1.19 + 6) * plain, rel=1e-5)


def test_a_raster_of_the_finer_cells_is_the_same_as_finer_cells() -> None:
    fine = head()
    with seeded("head"):
        given = MapHead(8, GRID, width=16, raster=fine.grid)
    assert given.state_dict().keys() == fine.state_dict().keys()
    volume = Volume(torch.randn(2, 8, *GRID.shape, generator=generator("v")), GRID)
    torch.testing.assert_close(given(volume), fine(volume), atol=1e-5, rtol=1e-5)


def test_features_on_another_raster_are_those_at_its_cells_and_zero_beyond_the_volume() -> None:
    raster = BoxGrid(lower=(-11.0, -9.5, 0.0), cell=(0.7, 0.9, 2.0), count=(40, 20, 1), origin_ego=(0.5, -0.25, 0.0))
    # A feature that is linear in x and y is read exactly, between the outermost centres.
    plan, wanted = GRID.centres()[0], raster.centres()[0]
    seen = Onto(GRID, raster)((2 * plan[..., 0] - 3 * plan[..., 1])[None, None])[0, 0]
    x, y = wanted[..., 0], wanted[..., 1]
    within = (x.abs() < 11.5) & (y.abs() < 7.5)
    torch.testing.assert_close(seen[within], (2 * x - 3 * y)[within], atol=1e-4, rtol=1e-5)
    outside = (x.abs() > 12.0) | (y.abs() > 8.0)
    assert within.any()
    assert outside.any()
    assert not seen[outside].any()


def test_the_papers_raster_and_layers_need_no_boxes() -> None:
    raster = BoxGrid(lower=(-50.0, -50.0, -5.0), cell=(0.5, 0.5, 8.0), count=(200, 200, 1))
    with seeded("head"):
        model = MapHead(8, GRID, width=16, raster=raster, occupied=False)
    assert model.names == MAP_LAYERS.names
    volume = Volume(torch.randn(1, 8, *GRID.shape, generator=generator("v")), GRID)
    logits = model(volume)
    assert logits.shape == (1, 6, 200, 200)
    layers = torch.rand(6, 200, 200, generator=generator("maps")) < 0.5
    bare = replace(frame("a"), maps=Maps(layers, raster), boxes=None)
    truth = model.encode(collate([bare]))
    assert torch.equal(truth[0], layers)
    model.loss(logits, truth).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())
