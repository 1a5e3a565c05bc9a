import math
from dataclasses import replace

import pytest
import torch

from cofield.draw import generator
from cofield.frame import Batch, collate
from cofield.geometry import inverse, pose, transform, yaw_rotation
from cofield.grid import BoxGrid
from cofield.models.lift import PAPER, DepthBins, DepthHead, DepthLSS, places
from cofield.models.mask import hide
from cofield.train.build import seeded
from streets import GRID, camera, config, frame

BINS = DepthBins(1.0, 0.83, 12)


def lift(grid: BoxGrid = GRID, **options: object) -> DepthLSS:
    with seeded("lift"):
        return DepthLSS(16, 8, grid, width=8, bins=BINS, **options)


def features(cameras: int = 2) -> torch.Tensor:
    return torch.randn(1, cameras, 16, 2, 5, generator=generator("features"))


def batch(count: int = 300) -> Batch:
    return collate([frame("a", count=count)])


def test_the_papers_bins_are_half_a_metre_from_one_to_sixty() -> None:
    assert (PAPER.lower, PAPER.upper, PAPER.count) == (1.0, 60.0, 118)
    torch.testing.assert_close(PAPER.centres()[[0, -1]], torch.tensor([1.25, 59.75]))


@pytest.mark.parametrize("options", [{}, {"depth_input": False}, {"mean": True}, {"norm": "batch"}, {"finer": 1}])
@pytest.mark.parametrize("grid", [GRID, GRID.flat()])
def test_a_lift_fills_its_grid_and_every_weight_has_a_gradient(grid: BoxGrid, options: dict) -> None:
    model = lift(grid, **options)
    volume = model(features(), batch(), batch().valid)
    assert volume.grid == grid
    assert volume.features.shape == (1, 8, *grid.shape)
    volume.features.square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_without_depth_input_points_do_not_matter_and_with_it_they_do() -> None:
    some, none = batch(), batch(0)
    for wanted in (True, False):
        model = lift(depth_input=wanted)
        one, two = (model(features(), each, each.valid).features for each in (some, none))
        assert torch.equal(one, two) == (not wanted)
    assert not any(name.startswith("frustum.stem") for name in lift(depth_input=False).state_dict())


def test_hidden_points_do_not_reach_the_lift() -> None:
    some = batch()
    hidden = hide(some, config().mask, 0)
    shift = torch.where(hidden.points[:, None], 3.0, 0.0)
    other = replace(some, points=replace(some.points, xyz_ego=some.points.xyz_ego + shift))
    one, two = (lift()(features(), each.visible(hidden), each.valid).features for each in (some, other))
    assert torch.equal(one, two)
    assert not torch.equal(*(lift()(features(), each, each.valid).features for each in (some, other)))


def test_what_a_pixel_shows_is_spread_whole_over_its_depths() -> None:
    with seeded("head"):
        head = DepthHead(16, 8, 8, BINS)
    frusta = head(features(), batch())
    assert frusta.share.shape == (1, 2, 12, 2, 5)
    assert frusta.content.shape == (1, 2, 8, 2, 5)
    torch.testing.assert_close(frusta.share.sum(2), torch.ones(1, 2, 2, 5))
    with pytest.raises(ValueError, match="a stride of 6"):
        DepthHead(16, 6, 8, BINS)


class Plain(torch.nn.Module):
    """In place of the convolutions: cells of finer grids summed to the grid's."""

    def forward(self, fine: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(fine, 2, divisor_override=1)


def summed(model: DepthLSS) -> DepthLSS:
    model.down = Plain()
    return model


def test_a_flat_grid_holds_the_sum_of_all_heights() -> None:
    tall, flat = (summed(lift(grid))(features(), batch(), batch().valid) for grid in (GRID, GRID.flat()))
    torch.testing.assert_close(tall.features.sum(2), flat.features[:, :, 0], atol=1e-5, rtol=1e-4)
    assert (tall.features.abs().sum((0, 1, 3, 4)) > 0).sum() >= 3


def test_nothing_is_lost_but_what_falls_outside() -> None:
    model, some = summed(lift()), batch()
    frusta = model.frustum(features(), some)
    inside = (places(some, model.fine, BINS, 8) >= 0).view(1, 2, 2, 5, 12).permute(0, 1, 4, 2, 3)
    expected = torch.einsum("bndhw,bnchw->c", frusta.share * inside, frusta.content)
    torch.testing.assert_close(model(features(), some, some.valid).features.sum((0, 2, 3, 4)), expected)


def test_a_mean_of_equal_features_is_that_feature_wherever_much_fell() -> None:
    model = lift(GRID.flat(), mean=True)
    model.down = torch.nn.Identity()
    last = model.frustum.head[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias[BINS.count :] = 2.0
    volume = model(features(), batch(), batch().valid).features
    assert 1.0 < volume.max() < 2.0
    assert volume.min() == 0.0


def test_turning_the_world_and_the_cameras_turns_what_is_lifted() -> None:
    square = BoxGrid((-10.0, -10.0, -1.0), (1.0, 1.0, 1.0), (20, 20, 5))
    model = summed(lift(square, depth_input=False))
    cameras = tuple(camera(name, yaw_deg=yaw) for name, yaw in (("left", 17.0), ("right", -71.0)))
    still = collate([replace(frame("a"), cameras=cameras)])
    a_T_b = pose(yaw_rotation(torch.tensor(math.pi / 2)), torch.zeros(3))
    turned = replace(
        still,
        cam_T_ego=still.cam_T_ego @ inverse(a_T_b),
        points=replace(still.points, xyz_ego=transform(a_T_b, still.points.xyz_ego)),
    )
    one, two = (model(features(), each, each.valid).features for each in (still, turned))
    torch.testing.assert_close(two, torch.rot90(one, 1, (-1, -2)), atol=1e-4, rtol=0)
    assert not torch.allclose(one, two, atol=1e-3)


@pytest.mark.slow
def test_six_cameras_of_the_papers_size_are_lifted_to_the_papers_grid() -> None:
    paper = BoxGrid((-54.0, -54.0, -5.0), (0.6, 0.6, 8.0), (180, 180, 1), (0.94, 0.0, 1.84))
    with seeded("paper"):
        model = DepthLSS(256, 8, paper)
    big = collate([frame("a", cameras=6, height=256, width=704)])
    seen = torch.randn(1, 6, 256, 32, 88, generator=generator("big"))
    out = model(seen, big, big.valid).features
    assert out.shape == (1, 80, 1, 180, 180)
    out.sum().backward()
