import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

from cofield import cli
from cofield.train.methods import METHODS
from cofield.train.results import read_results, write_results
from cofield.view.efficiency import lines, ordered, report_results


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


def test_the_page_of_a_sweep_of_boxes_has_the_score_of_its_data_set_and_leaves_out_what_was_not_scored(
    tmp_path: Path,
) -> None:
    scores = {"space.Car.moderate.r40": 0.5, "space.Cyclist.moderate.r40": math.nan, "ground.Car.easy.r11": 0.625}
    for init in ("scratch", "pretrained"):
        common = {"task": "detect", "source": "kitti", "fraction": 0.1, "seed": 0, "init": init, "steps": 9}
        rows = [common | {"trunk": None, "metric": name, "value": value} for name, value in scores.items()]
        write_results(tmp_path / f"{init}.json", rows, 1.0, "cofield sweep boxes --recipe boxes:kitti")
    page = "".join(report_results(tmp_path))
    assert "space.Car.moderate.r40 on held-out frames" in page
    assert "0.625" in page
    assert "Cyclist" not in page


def test_a_folder_without_cells_is_refused(tmp_path: Path) -> None:
    write_results(tmp_path / "speed.json", [{"op": "step", "value": 1.0}], 1.0, "x")
    with pytest.raises(ValueError, match="no cells of a sweep"):
        report_results(tmp_path)


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    folder = tmp_path / "lidar-segmentation"
    for source in ("world:small@report", "world:small@report+delay=0.1"):
        for seed in range(3):
            for k, init in enumerate(("teacher-mixing", "nerf-exact+pseudo.samples=16", "nerf-exact", "supervised")):
                common = {"task": "segment", "source": source, "fraction": 0.01, "seed": seed, "init": init, "steps": 9}
                values = {"car": 0.5, "miou": 0.1 * seed + 0.01 * k + 0.1 * ("+" in source), "miou.0-10m": 0.25}
                rows = [common | {"trunk": None, "metric": name, "value": value} for name, value in values.items()]
                sensors = source.partition("+")[2]
                write_results(folder / f"{init}-{seed}-{sensors}.json", rows, 1.0, f"cofield sweep {source}")
    return folder


def test_methods_are_compared_with_supervised_in_their_own_world(methods: Path) -> None:
    found = lines(read_results(methods), "miou")
    assert [line.init for line in found[:4]] == [
        "supervised",
        "nerf-exact",
        "nerf-exact+pseudo.samples=16",
        "teacher-mixing",
    ]
    assert {line.source for line in found[:4]} == {"world:small@report"}
    assert found[0].gain is None
    assert [line.gain.mean for line in found if line.gain] == pytest.approx([-0.01, -0.02, -0.03] * 2)
    assert found[4].value.mean - found[0].value.mean == pytest.approx(0.1)


def test_variants_are_in_the_order_of_their_numbers() -> None:
    names = ["nerf-exact+pseudo.samples=128", "nerf-exact", "nerf-exact+pseudo.samples=16", "supervised"]
    assert ordered(names) == [names[3], names[1], names[2], names[0]]
    rows = [{"source": f"world:small+range={far}", "fraction": 0.01, "init": "supervised", "seed": 0, "steps": 1}
            for far in ("100", "25", "7.5")]  # fmt: skip
    found = lines([row | {"metric": "miou", "value": 0.5} for row in rows], "miou")
    assert [line.source.partition("=")[2] for line in found] == ["7.5", "25", "100"]


def test_the_page_of_methods_has_a_plot_a_table_and_the_classes_of_each_world(methods: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(methods), "--out", str(tmp_path / "page.html")])
    assert ended.value.code == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == page.count("Each class, 1% of the labels") == 2
    for text in ("over supervised, paired", "-0.020 [-0.020, -0.020]", "world:small@report+delay=0.1", "miou.0-10m"):
        assert text in page


def test_means_of_classes_are_beside_each_other_where_they_are_over_the_same_seeds(methods: Path) -> None:
    (methods / "nerf-exact+pseudo.samples=16-2-.json").unlink()
    here, late = "".join(report_results(methods)).split("delay=0.1</h1>")
    assert "<td>nerf-exact+pseudo.samples=16</td>" in here
    assert "<th>nerf-exact+pseudo.samples=16</th>" not in here
    assert "<th>nerf-exact</th>" in here
    assert "<th>nerf-exact+pseudo.samples=16</th>" in late


@pytest.fixture
def fill_tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_tables", Path(__file__).parents[2] / "docs" / "fill_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_methods_tell_methods_variants_and_worlds_apart(
    methods: Path, fill_tables: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill_tables, "RESULTS", methods.parent)
    plain = fill_tables.lidar_segmentation()
    assert "| 1% | nerf-exact | 9 | 3 | 0.120 [-0.128, 0.368] | -0.010 [-0.010, -0.010] |" in plain
    assert "samples" not in plain
    assert "| car | 0.500 | 0.500 | 0.500 |" in fill_tables.lidar_segmentation_classes()
    assert "| nerf-exact | +0.010 [+0.010, +0.010] |" not in plain
    (variant,) = fill_tables.lidar_segmentation_ablations().splitlines()[2:]
    assert variant.startswith("| 1% | nerf-exact+pseudo.samples=16 | 3 |")
    assert variant.endswith("| nerf-exact | -0.010 [-0.010, -0.010] |")
    sensors = fill_tables.lidar_segmentation_sensors().splitlines()[2:]
    assert [line.split(" | ")[0] for line in sensors] == ["| as it is"] * 3 + ["| delay=0.1"] * 3
    assert set(METHODS) == {*fill_tables.PLAIN, *fill_tables.WHOLE}
