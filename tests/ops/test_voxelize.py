import pytest
import torch

from cofield.draw import generator
from cofield.grid import BoxGrid, CylinderGrid
from cofield.ops.voxelize import is_nearest, nearest, to_dense, voxelize

GRID = BoxGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 3, 2))


def test_voxels_hold_the_mean_the_maximum_and_the_count_of_their_points() -> None:
    xyz = torch.tensor([[0.5, 0.5, 0.5], [0.6, 0.1, 0.9], [3.5, 2.5, 1.5], [9.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    sample = torch.tensor([0, 0, 0, 0, 1])
    values = torch.tensor([[1.0, 5.0], [3.0, -1.0], [7.0, 7.0], [100.0, 100.0], [2.0, 2.0]])
    voxels = voxelize(xyz, sample, GRID)
    assert voxels.cell.tolist() == [0, 23, 24]
    assert voxels.points.tolist() == [0, 1, 2, 4]
    assert voxels.count().tolist() == [2, 1, 1]
    inside = values[voxels.points]
    assert voxels.mean(inside).tolist() == [[2.0, 2.0], [7.0, 7.0], [2.0, 2.0]]
    assert voxels.highest(inside).tolist() == [[3.0, 5.0], [7.0, 7.0], [2.0, 2.0]]
    dense = to_dense(voxels.mean(inside), voxels, GRID, batch=2)
    assert dense.shape == (2, 2, 2, 3, 4)
    assert dense[0, :, 1, 2, 3].tolist() == [7.0, 7.0]
    assert dense[1, :, 0, 0, 0].tolist() == [2.0, 2.0]
    assert dense.sum() == 2 * (2 + 7 + 2)


def test_no_points_make_an_empty_volume() -> None:
    voxels = voxelize(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), GRID)
    assert len(voxels) == 0
    assert not to_dense(torch.zeros(0, 5), voxels, GRID, batch=2).any()


def test_the_order_of_the_points_does_not_matter() -> None:
    draw = generator("points")
    xyz = torch.rand(200, 3, generator=draw) * 4
    sample = torch.randint(2, (200,), generator=draw)
    order = torch.randperm(200, generator=draw)
    one, two = voxelize(xyz, sample, GRID), voxelize(xyz[order], sample[order], GRID)
    assert torch.equal(one.cell, two.cell)
    torch.testing.assert_close(one.mean(xyz[one.points]), two.mean(xyz[order][two.points]))


def test_a_full_cell_keeps_the_first_points_of_the_table() -> None:
    xyz = torch.tensor([[0.5, 0.5, 0.5]] * 3 + [[3.5, 2.5, 1.5]] + [[0.5, 0.5, 0.5]] * 2)
    values = torch.tensor([[1.0], [2.0], [6.0], [7.0], [100.0], [100.0]])
    voxels = voxelize(xyz, torch.zeros(6, dtype=torch.long), GRID).at_most(3)
    assert voxels.points.tolist() == [0, 1, 2, 3]
    assert voxels.count().tolist() == [3, 1]
    assert voxels.mean(values[voxels.points]).tolist() == [[3.0], [7.0]]
    with pytest.raises(ValueError, match="room for at least one point, got 0"):
        voxels.at_most(0)


def test_up_to_its_limit_a_hard_voxel_is_a_dynamic_one() -> None:
    draw = generator("limit")
    xyz = torch.rand(200, 3, generator=draw) * 4
    dynamic = voxelize(xyz, torch.randint(2, (200,), generator=draw), GRID)
    count = dynamic.count()
    for limit in (1, 3, int(count.max())):
        hard = dynamic.at_most(limit)
        assert torch.equal(hard.cell, dynamic.cell)
        assert torch.equal(hard.count(), count.clamp(max=limit))
    assert torch.equal(hard.mean(xyz[hard.points]), dynamic.mean(xyz[dynamic.points]))


def test_occupied_cells_become_sites_in_ascending_order() -> None:
    xyz = torch.tensor([[3.5, 2.5, 1.5], [0.5, 1.5, 0.5], [0.5, 1.5, 0.6]])
    voxels = voxelize(xyz, torch.tensor([0, 1, 1]), GRID)
    sites = voxels.sites(GRID, batch=2)
    assert sites.coordinates.tolist() == [[0, 1, 2, 3], [1, 0, 1, 0]]
    assert torch.equal(sites.flat, voxels.cell)
    assert (sites.shape, sites.batch, sites.wraps) == ((2, 3, 4), 2, (False, False, False))
    cylinder = CylinderGrid((0.0, -torch.pi, 0.0), (1.0, torch.pi / 4, 1.0), (4, 8, 2))
    assert voxelize(xyz, torch.tensor([0, 1, 1]), cylinder).sites(cylinder, 2).wraps == (False, True, False)


def test_a_z_buffer_keeps_the_nearest() -> None:
    place, depth = torch.tensor([0, 2, 2, 2]), torch.tensor([5.0, 3.0, 2.0, 2.4])
    assert nearest(place, depth, 4).tolist() == [5.0, torch.inf, 2.0, torch.inf]
    assert is_nearest(place, depth, 4).tolist() == [True, False, True, False]
    assert is_nearest(place, depth, 4, tolerance=0.5).tolist() == [True, False, True, True]
