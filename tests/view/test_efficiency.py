from pathlib import Path

import pytest

from cofield import cli
from cofield.train.results import read_results, write_results
from cofield.view.efficiency import lines, report_results


def cell(folder: Path, init: str, fraction: float, seed: int, value: float, trunk: str | None = None) -> None:
    common = {"task": "map", "source": "world:small", "fraction": fraction, "seed": seed, "init": init, "steps": 9}
    rows = [common | {"trunk": trunk, "metric": name, "value": value} for name in ("vehicle", "miou")]
    write_results(folder / f"{init}-{trunk}-{fraction}-{seed}.json", rows, 1.0, "cofield sweep label-efficiency")


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    folder = tmp_path / "label-efficiency"
    for seed, value in enumerate((0.2, 0.3, 0.1)):
        cell(folder, "scratch", 0.01, seed, value)
        cell(folder, "pretrained", 0.01, seed, value + 0.1, "a")
        cell(folder, "pretrained", 0.01, seed, value + 0.2, "b")
    cell(folder, "scratch", 0.1, 0, 0.5)
    cell(folder, "scratch-converged", 0.1, 7, 0.6)
    return folder


def test_two_trunks_of_one_seed_are_one_value_and_differences_are_paired(cells: Path) -> None:
    scratch, pretrained, *_ = lines(read_results(cells), "miou")
    assert (scratch.init, scratch.seeds, scratch.gain) == ("scratch", 3, None)
    assert scratch.value.mean == pytest.approx(0.2)
    assert (pretrained.init, pretrained.seeds) == ("pretrained", 3)
    assert pretrained.value.mean == pytest.approx(0.35)
    assert pretrained.gain is not None
    assert pretrained.gain.mean == pytest.approx(0.15)
    # Every seed gains the same, so the paired interval is a point though the values spread widely.
    assert pretrained.gain.high - pretrained.gain.low == pytest.approx(0, abs=1e-9)
    assert pretrained.value.high - pretrained.value.low > 0.2
    assert pretrained.cells()[-1] == "+0.150 [+0.150, +0.150]"


def test_a_start_that_shares_no_seed_with_scratch_has_no_difference(cells: Path) -> None:
    *_, converged = lines(read_results(cells), "miou")
    assert (converged.fraction, converged.init, converged.gain) == (0.1, "scratch-converged", None)


def test_the_page_of_a_sweep_shows_every_start_every_class_and_the_command(cells: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(cells), "--out", str(tmp_path / "page.html")])
    assert ended.value.code == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 1
    for text in ("scratch-converged", "+0.150 [+0.150, +0.150]", "vehicle", "cofield sweep label-efficiency"):
        assert text in page
    assert "http-equiv" not in page
    assert "<script" not in page


def test_a_folder_without_cells_is_refused(tmp_path: Path) -> None:
    write_results(tmp_path / "speed.json", [{"op": "step", "value": 1.0}], 1.0, "x")
    with pytest.raises(ValueError, match="no cells of a sweep"):
        report_results(tmp_path)
