from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cofield.data.nuscenes import NuScenes
from cofield.draw import generator
from cofield.frame import Batch, collate
from cofield.grid import BoxGrid, Volume
from cofield.models.blocks import compute_in
from cofield.models.mask import hide
from cofield.models.voxelnet import SparseGroupNorm, SparseResidual, VoxelNet, resampled
from cofield.ops.sparse import Sites, Sparse, unravel
from cofield.train.build import seeded
from streets import GRID, config, frame

SQUARE = BoxGrid((-8.0, -8.0, -1.0), (2.0, 2.0, 1.0), (8, 8, 3), (0.5, 0.0, 1.0))
VOXEL = (0.5, 0.5, 0.25)  # four to a cell of the square in the plane


def encoder(grid: BoxGrid = SQUARE, **options) -> VoxelNet:
    with seeded("voxelnet"):
        return VoxelNet(grid, **{"width": 6, "voxel": VOXEL, "widths": (8, 16, 16), "norm": "group"} | options)


def cloud(xyz: torch.Tensor, token: str = "a") -> Batch:
    """A batch of one frame with these points."""
    base = frame(token, cameras=0, count=len(xyz))
    return collate([replace(base, points=replace(base.points, xyz_ego=xyz))])


def scan(count: int = 300, grid: BoxGrid = SQUARE, key: str = "scan") -> torch.Tensor:
    """Points well within the voxels that they are in."""
    unit = torch.rand(count, 3, generator=generator(key))
    count_of = torch.tensor(grid.count) * 4
    return grid.from_unit(((unit * count_of).floor() + 0.3 + 0.4 * unit) / count_of)


def blind_to_place(model: VoxelNet) -> VoxelNet:
    """The encoder, deaf to the coordinates that its voxels tell of themselves."""
    with torch.no_grad():
        model.encoder[0][0].weight[..., :3, :] = 0
    return model


@pytest.mark.parametrize("height", ["collapsed", "kept"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_two_frames_give_a_volume_on_the_grid_and_gradients_reach_every_weight(height: str, norm: str) -> None:
    model = encoder(height=height, norm=norm)
    volume = model(collate([frame("a", count=200), frame("b", count=100)]))
    assert volume.grid == SQUARE
    assert volume.features.shape == (2, 6, 3, 8, 8)
    (volume.features * torch.randn(volume.features.shape, generator=generator("weight"))).sum().backward()
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still


def test_the_output_has_the_papers_sizes() -> None:
    grid = BoxGrid((-54.0, -54.0, -5.0), (0.6, 0.6, 8.0), (180, 180, 1), (0.94, 0.0, 1.84))
    with seeded("sizes"):
        model = VoxelNet(grid, width=256)
    assert model.voxels.count == (1449, 1449, 41)
    assert model.lattice.count == (180, 180, 2)
    torch.testing.assert_close(torch.tensor(model.lattice.lower[:2]), torch.tensor([-54.0, -54.0]))
    assert model.head[0].weight.shape == (256, 2 * 128, 1, 1, 1)
    volume = model(cloud(torch.rand(500, 3, generator=generator("sizes")) * 20 - 5))
    assert volume.features.shape == (1, 256, 1, 180, 180)


@pytest.mark.parametrize("height", ["collapsed", "kept"])
def test_a_point_at_the_centre_of_an_output_cell_reaches_that_cell_alone(height: str) -> None:
    model = encoder(height=height, widths=(8, 8, 8), voxel=(0.5, 0.5, 0.125))
    centres = model.lattice.centres()
    levels, rows, columns = centres.shape[:3]
    assert (rows, columns) == (8, 8)
    assert levels > 1
    found = model.encode(cloud(centres.reshape(-1, 3))).sites
    # A cell further in, as the output is a cell wider on each side.
    expected = torch.cartesian_prod(torch.tensor([0]), torch.arange(levels), torch.arange(8) + 1, torch.arange(8) + 1)
    assert torch.equal(found.coordinates, expected)
    aside = model.encode(cloud(centres.reshape(-1, 3) + torch.tensor([0.5, 0.0, 0.0]))).sites
    assert len(aside) > len(found)


def symmetric(model: VoxelNet) -> VoxelNet:
    """The encoder with kernels that a quarter turn about z does not change."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 5 and "head" not in name:
                weight.copy_(sum(weight.rot90(turn, (1, 2)) for turn in range(4)) / 4)
    return blind_to_place(model)


@pytest.mark.parametrize("height", ["collapsed", "kept"])
def test_rotating_the_world_by_a_quarter_turn_rotates_the_volume(height: str) -> None:
    model = symmetric(encoder(height=height))
    points = scan()
    x, y, z = (points - points.new_tensor(SQUARE.origin_ego)).unbind(-1)
    turned = torch.stack([-y, x, z], -1) + points.new_tensor(SQUARE.origin_ego)
    one, two = model(cloud(points)).features, model(cloud(turned)).features
    # x becomes y: rows become columns, and columns run backwards.
    torch.testing.assert_close(one.mT.flip(-1), two, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one, two, atol=1e-3)


def test_moving_the_world_by_a_cell_moves_the_volume() -> None:
    model = blind_to_place(encoder())
    points = scan()
    points = points[(points[:, :2] - 0.5).abs().amax(-1) < 5.5]
    one, two = (model(cloud(points + shift)).features for shift in (torch.zeros(3), torch.tensor([2.0, 0.0, 0.0])))
    torch.testing.assert_close(one[..., :-1], two[..., 1:], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one, two, atol=1e-3)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_residual_block_on_a_full_volume_is_the_dense_one(norm: str) -> None:
    shape = (3, 4, 5)
    with seeded("block"):
        block = SparseResidual(8, norm)
    full = Sites(unravel(torch.arange(2 * 60), shape), shape, 2)
    given = Sparse(torch.randn(120, 8, generator=generator("full")), full)
    first, second = (block.path[index].weight.permute(4, 3, 0, 1, 2) for index in (0, 3))
    dense = given.dense()

    def normalised(x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, 1) if norm == "group" else F.batch_norm(x, None, None, training=True)

    inner = normalised(F.conv3d(dense, first, padding=1)).relu()
    expected = (dense + normalised(F.conv3d(inner, second, padding=1))).relu()
    torch.testing.assert_close(block(given).dense(), expected, atol=1e-4, rtol=1e-4)


def test_group_norm_counts_occupied_voxels_only_and_each_frame_for_itself() -> None:
    sites = Sites(torch.tensor([[0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 2], [1, 1, 0, 2]]), (2, 2, 3), 3)
    features = torch.randn(4, 16, generator=generator("norm")) * 3 + 5
    out = SparseGroupNorm(16)(Sparse(features, sites)).features
    for sample in (0, 1):
        rows = sites.coordinates[:, 0] == sample
        torch.testing.assert_close(out[rows].mT[None], F.group_norm(features[rows].mT[None], 2))


def test_points_that_are_hidden_do_not_move_the_output() -> None:
    model = encoder(GRID)
    batch = collate([frame("a", count=300), frame("b", count=200)])
    hidden = hide(batch, config().mask, 0)
    moved = torch.where(hidden.points[:, None], torch.rand(500, 3, generator=generator("wild")), batch.points.xyz_ego)
    other = replace(batch, points=replace(batch.points, xyz_ego=moved))
    assert torch.equal(model(batch.visible(hidden)).features, model(other.visible(hidden)).features)
    assert not torch.equal(model(batch).features, model(other).features)


def test_hard_voxels_see_the_first_points_and_dynamic_ones_all() -> None:
    alone, thrice = cloud(scan(40)), cloud(scan(40).repeat(3, 1))
    brighter = torch.cat([alone.points.intensity, torch.ones(80)])
    thrice = replace(thrice, points=replace(thrice.points, intensity=brighter, age=alone.points.age.repeat(3)))
    hard, dynamic = encoder(limit=1), encoder(limit=None)
    assert torch.equal(hard(alone).features, hard(thrice).features)
    assert not torch.allclose(dynamic(alone).features, dynamic(thrice).features, atol=1e-3)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_frames_with_one_point_or_none_are_fine(norm: str) -> None:
    model = encoder(norm=norm)
    for count in (0, 1):
        features = model(cloud(scan(count))).features
        assert features.isfinite().all()
        assert features.shape == (1, 6, 3, 8, 8)


def test_frames_do_not_see_each_other() -> None:
    model = encoder()
    one = model(collate([frame("a"), frame("b", count=70)])).features
    two = model(collate([frame("b", count=70), frame("a")])).features
    torch.testing.assert_close(one, two.flip(0), atol=1e-5, rtol=1e-4)


def test_half_precision_stays_close() -> None:
    model, batch = encoder(), cloud(scan())
    exact = model(batch).features
    compute_in(model, torch.bfloat16)
    rough = model(batch).features
    assert 0 < (exact - rough).abs().max() < 0.1 * exact.abs().max()


def test_between_grids_a_linear_field_stays_what_it_is() -> None:
    fine = BoxGrid((-4.0, -4.0, -1.0), (0.5, 1.0, 0.5), (16, 8, 6))
    coarse = BoxGrid((-3.0, -2.0, -0.5), (1.0, 0.7, 0.6), (6, 5, 3), (0.1, 0.2, 0.0))
    field = torch.stack([fine.centres().permute(3, 0, 1, 2)] * 2)
    moved = resampled(Volume(field, fine), coarse)
    torch.testing.assert_close(moved.features[1].permute(1, 2, 3, 0), coarse.centres())
    assert resampled(Volume(field, fine), fine).features is field


def test_too_few_levels_for_the_strides_upwards_are_refused() -> None:
    with pytest.raises(ValueError, match="too few for the strides upwards"):
        encoder(voxel=(0.5, 0.5, 2.0))
    with pytest.raises(ValueError, match="at least two stages"):
        encoder(widths=(8,))


def test_the_grid_holds_the_share_of_a_real_keyframe_that_the_sensors_own_frame_says(realdata) -> None:
    grid = BoxGrid((-54.0, -54.0, -5.0), (0.6, 0.6, 8.0), (180, 180, 1), (0.94, 0.0, 1.84))
    source = NuScenes(realdata / "nuscenes", split="all", version="v1.0-mini")
    with seeded("real"):
        model = VoxelNet(grid, width=8, widths=(4, 4, 4, 8))
    for index in range(min(2, len(source))):
        points = source[index].points
        xyz_lidar = points.xyz_ego - torch.tensor(grid.origin_ego)
        inside = grid.contains(points.xyz_ego)
        plain = (xyz_lidar[:, :2].abs() < 54).all(-1) & (xyz_lidar[:, 2] > -5) & (xyz_lidar[:, 2] < 3)
        assert (inside == plain).float().mean() > 0.9999
        assert 0.9 < inside.float().mean() < 1.0
        # The road is where the ego frame has its zero, 1.84 m below the sensor.
        near = points.xyz_ego[(points.xyz_ego[:, :2].norm(dim=-1) > 3) & (points.xyz_ego[:, :2].norm(dim=-1) < 12)]
        assert abs(near[:, 2].quantile(0.3)) < 0.3
        found = model.describe(collate([replace(source[index], cameras=())]))
        assert 0.2 * len(points) < len(found.sites) < len(points)
