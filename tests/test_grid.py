import math

import pytest
import torch

from cofield.draw import generator
from cofield.grid import BoxGrid, CylinderGrid, Grid, grid_from_plain

BOX = BoxGrid(lower=(-4.0, -3.0, -1.0), cell=(0.5, 1.0, 2.0), count=(16, 6, 3), origin_ego=(1.0, 0.0, 0.5))
CYLINDER = CylinderGrid((0.0, -math.pi, -2.0), (0.5, math.pi / 8, 1.0), (20, 16, 5), origin_ego=(0.5, -0.25, 1.0))
GRIDS = pytest.mark.parametrize("grid", [BOX, CYLINDER], ids=["box", "cylinder"])


def test_a_box_cell_has_the_centre_its_numbers_say() -> None:
    centres = BOX.centres()
    assert centres.shape == (3, 6, 16, 3)
    torch.testing.assert_close(centres[0, 0, 0], torch.tensor([-4.0 + 0.25 + 1.0, -3.0 + 0.5, -1.0 + 1.0 + 0.5]))
    torch.testing.assert_close(centres[2, 0, 0] - centres[0, 0, 0], torch.tensor([0.0, 0.0, 4.0]))
    torch.testing.assert_close(centres[0, 0, 3] - centres[0, 0, 0], torch.tensor([1.5, 0.0, 0.0]))


@GRIDS
def test_every_centre_lies_in_its_own_cell(grid: Grid) -> None:
    cell, inside = grid.cell_of(grid.centres())
    assert inside.all()
    assert torch.equal(cell.flatten(), torch.arange(math.prod(grid.shape)))


@GRIDS
def test_unit_coordinates_convert_both_ways(grid: Grid) -> None:
    xyz = torch.randn(5, 40, 3, generator=generator("grid"))
    torch.testing.assert_close(grid.from_unit(grid.to_unit(xyz)), xyz, atol=1e-5, rtol=0)
    torch.testing.assert_close(grid.positions(grid.coordinates(xyz)), xyz, atol=1e-5, rtol=0)


@GRIDS
def test_a_grid_survives_being_written_down(grid: Grid) -> None:
    assert grid_from_plain(grid.to_plain()) == grid


def test_points_outside_and_points_that_are_no_numbers_have_no_cell() -> None:
    xyz = torch.tensor([[100.0, 0.0, 0.0], [float("nan"), 0.0, 0.0], [1.0, 0.0, 0.5], [5.0, 0.0, 0.5]])
    cell, inside = BOX.cell_of(xyz)
    assert inside.tolist() == [False, False, True, False]
    assert cell[0] == cell[1] == 0


def test_the_upper_border_belongs_to_no_cell_and_the_largest_number_below_it_to_the_last() -> None:
    grid = BoxGrid((0.0, 0.0, 0.0), (0.1, 1.0, 1.0), (7, 1, 1))
    below = torch.tensor(grid.upper[0]).nextafter(torch.tensor(0.0))
    cell, inside = grid.cell_of(torch.tensor([[grid.upper[0], 0.5, 0.5], [below, 0.5, 0.5]]))
    assert inside.tolist() == [False, True]
    assert cell[1] == 6


def test_the_azimuth_has_no_seam() -> None:
    east = torch.tensor(CYLINDER.origin_ego)
    behind = torch.tensor([[-3.0, 1e-4, 0.0], [-3.0, -1e-4, 0.0], [-3.0, 0.0, 0.0]]) + east
    cell, inside = CYLINDER.cell_of(behind)
    assert inside.all()
    azimuth = cell // CYLINDER.count[0] % CYLINDER.count[1]
    assert azimuth.tolist()[:2] == [15, 0]
    assert azimuth[2] in (0, 15)
    assert CYLINDER.wraps == (False, True, False)


def test_a_ray_spans_the_box_between_its_faces() -> None:
    origin = torch.tensor([[1.0, 0.0, 0.5], [-10.0, 0.0, 0.5], [0.0, 0.0, 100.0], [1.0, 0.0, 0.5]])
    diagonal = [math.sqrt(0.5), math.sqrt(0.5), 0.0]
    direction = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0], diagonal])
    near, far = BOX.span(origin, direction)
    torch.testing.assert_close(near, torch.tensor([0.0, 7.0, 0.0, 0.0]))
    torch.testing.assert_close(far, torch.tensor([4.0, 15.0, 0.0, 3.0 * math.sqrt(2)]))


def test_a_ray_that_points_away_misses() -> None:
    for grid in (BOX, CYLINDER):
        near, far = grid.span(torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
        assert near == far == 0


def test_a_ray_spans_the_cylinder_through_wall_and_lid() -> None:
    east = torch.tensor(CYLINDER.origin_ego)
    origin = torch.stack([east, east, east - torch.tensor([20.0, 6.0, 0.0])])
    direction = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    near, far = CYLINDER.span(origin, direction)
    torch.testing.assert_close(near, torch.tensor([0.0, 0.0, 12.0]))
    torch.testing.assert_close(far, torch.tensor([10.0, 3.0, 28.0]))


@GRIDS
def test_a_rays_ends_lie_on_the_border(grid: Grid) -> None:
    draw = generator("border")
    inner = grid.from_unit(torch.rand(50, 3, generator=draw) * 0.8 + 0.1)
    direction = torch.nn.functional.normalize(torch.randn(50, 3, generator=draw), dim=-1)
    near, far = grid.span(inner, direction)
    assert (near == 0).all()
    assert not grid.contains(inner + direction * (far + 1e-3)[:, None]).any()
    if isinstance(grid, BoxGrid):
        assert grid.contains(inner + direction * (far - 1e-3)[:, None]).all()


def test_flattening_keeps_the_volume() -> None:
    flat = BOX.flat()
    assert flat.shape == (1, 6, 16)
    assert (flat.lower, flat.upper) == (BOX.lower, BOX.upper)


def test_impossible_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="positive cells"):
        BoxGrid((0.0, 0.0, 0.0), (1.0, 0.0, 1.0), (1, 1, 1))
    with pytest.raises(ValueError, match="φ from -π to π"):
        CylinderGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1, 1, 1))
    with pytest.raises(ValueError, match="BoxGrid, CylinderGrid"):
        grid_from_plain({"kind": "Sphere"})
