import pytest
import torch

from cofield.draw import generator
from cofield.grid import BoxGrid, Volume
from cofield.models.bev import Bev, enlarge
from cofield.train.build import seeded

ODD = BoxGrid(lower=(-4.0, -3.0, -1.0), cell=(1.0, 1.0, 1.0), count=(9, 7, 2), origin_ego=(0.5, 0.0, 1.8))


def bev(grid: BoxGrid = ODD, **sizes) -> Bev:
    with seeded("bev"):
        return Bev(3, grid, **({"width": 8, "depth": 1, "out": 12} | sizes))


def volume(grid: BoxGrid = ODD) -> Volume:
    return Volume(torch.randn(2, 3, *grid.shape, generator=generator("volume")), grid)


@pytest.mark.parametrize("finer", [1, 2])
def test_the_map_covers_the_volume_on_finer_cells_also_of_odd_numbers(finer: int) -> None:
    model = bev(finer=finer)
    seen = model(volume())
    assert seen.features.shape == (2, 12, 1, 7 * finer, 9 * finer)
    assert seen.features.dtype == torch.float32
    assert seen.grid == model.grid
    assert seen.grid.lower == ODD.lower
    assert seen.grid.upper == ODD.upper
    assert seen.grid.origin_ego == ODD.origin_ego


def test_a_cell_is_enlarged_in_its_place() -> None:
    with seeded("enlarge"):
        layer = enlarge(1, 8, 3, "batch")[0]
    spot = torch.zeros(1, 1, 4, 5)
    spot[0, 0, 2, 1] = 1.0
    filled = (layer(spot) != 0).any(1)[0].nonzero()
    assert filled.amin(0).tolist() == [6, 3]
    assert filled.amax(0).tolist() == [8, 5]


def test_both_scales_see_a_change_where_it_is() -> None:
    grid = BoxGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (40, 40, 1))
    with seeded("bev"):
        model = Bev(3, grid, width=8, depth=1, out=12, norm="batch").eval()
    spot = torch.zeros(1, 3, *grid.shape)
    spot[..., 20, 12] = 5.0
    moved = (model(Volume(spot, grid)).features - model(Volume(spot * 0, grid)).features)[0, :, 0].abs()
    for half in (moved[:6], moved[6:]):
        rows, columns = (half.amax(0) > 0).nonzero().unbind(-1)
        assert rows.float().mean() == pytest.approx(20, abs=1)
        assert columns.float().mean() == pytest.approx(12, abs=1)
        assert rows.amax() - rows.amin() < 12


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_every_weight_has_a_gradient_and_frames_are_independent_in_group_norm(norm: str) -> None:
    model = bev(norm=norm)
    seen = model(volume()).features
    (seen * torch.randn(seen.shape, generator=generator("weight"))).sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())
    alone = model(Volume(volume().features[:1], ODD)).features
    assert torch.allclose(seen[:1], alone, atol=1e-5) == (norm == "group")


def test_the_papers_size_is_what_the_paper_says() -> None:
    with torch.device("meta"):
        model = Bev(256, BoxGrid((-54.0, -54.0, -5.0), (0.6, 0.6, 8.0), (180, 180, 1)), 128, 5, 512, norm="batch")
    assert sum(weight.numel() for weight in model.parameters()) == sum(
        (
            256 * 128 * 9 + 5 * 128 * 128 * 9,  # the first stage
            128 * 256 * 9 + 5 * 256 * 256 * 9,  # the second, at half the cells
            128 * 256 + 256 * 256 * 4,  # both to one scale
            2 * (6 * 128 + 6 * 256 + 2 * 256),  # norms
        )
    )
