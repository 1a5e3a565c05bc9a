import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cofield.train.build import build_pretraining
from cofield.train.measure import Painting, measure, paint_frame
from cofield.train.results import read_results
from cofield.train.run import pretrain
from cofield.view import demo, pictures, report
from streets import GRID, Hand, config, frame


@pytest.fixture(scope="module")
def painting() -> Painting:
    return paint_frame(build_pretraining(config()).eval(), frame("a", count=300))


def test_a_painting_has_a_ray_for_every_pixel_every_beam_and_every_column(painting: Painting) -> None:
    sizes = {name: len(view.rays) for name, (view, _) in painting.views.items()}
    assert sizes == {"camera": 2 * 16 * 40, "beam": 300, "above": 24 * 16}
    again = paint_frame(build_pretraining(config()).eval(), frame("a", count=300))
    for name, (_, seen) in painting.views.items():
        assert torch.equal(seen.range, again.views[name][1].range), "evaluation is deterministic"


def test_every_picture_shows_its_own_values(painting: Painting) -> None:
    shown = dict(pictures.camera_pictures(painting, GRID)[:6])
    image = painting.frame.cameras[0].image
    assert np.abs(shown["a-0: input"].transpose(2, 0, 1) / 255 - image.numpy()).max() <= 0.5 / 255 + 1e-6
    hidden = painting.hidden.pixels(16, 40)[0, 0].numpy()
    assert (shown["visible"][hidden] == 0).all()
    assert (shown["visible"][~hidden] > 0).any()
    _, seen = painting.views["camera"]
    first = seen.channels["colour"][0].clamp(0, 1).mul(255).round().byte().tolist()
    assert shown["rendered"][0, 0].tolist() == first


def test_heat_goes_from_blue_to_red_and_is_grey_where_nothing_is_known() -> None:
    shown = pictures.heat(torch.tensor([[0.0, 1.0, 7.0, torch.nan]]))
    assert shown[0, 0, 2] > shown[0, 0, 0]
    assert shown[0, 1, 0] > shown[0, 1, 2]
    assert shown[0, 1].tolist() == shown[0, 2].tolist()
    assert len(set(shown[0, 3].tolist())) == 1


def test_from_above_forward_is_up_and_left_is_left() -> None:
    raster = np.zeros((3, 5, 3), np.uint8)
    raster[2, 4] = 255  # the leftmost, furthest cell
    shown = pictures._upward(raster)
    assert shown.shape == (5 * 4, 3 * 4, 3)
    assert shown[0, 0].all()
    assert not shown[-1].any()


def test_pictures_and_clouds_are_files_that_open(painting: Painting, tmp_path: Path) -> None:
    written = pictures.write_pictures(painting, GRID, tmp_path, "frame")
    for path in written:
        assert path.stat().st_size > 100
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.size[0] > 100
        else:
            assert path.read_bytes().startswith(b"ply")


def test_a_frame_without_points_can_be_painted(tmp_path: Path) -> None:
    empty = paint_frame(build_pretraining(config()).eval(), frame("a", count=0))
    assert len(pictures.write_pictures(empty, GRID, tmp_path, "empty")) == 4


def test_measuring_counts_only_what_was_hidden() -> None:
    task = build_pretraining(config()).eval()
    values = measure(task, Hand(2), [0, 1])
    assert {"psnr", "psnr_mean_image", "range_error"} <= set(values)
    open_task = build_pretraining(
        replace(config(), mask=replace(config().mask, image_ratio=0.0, lidar_ratio=0.0))
    ).eval()
    assert not {"psnr", "range_error"} & set(measure(open_task, Hand(2), [0, 1]))


def test_a_report_is_one_file_with_everything_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(config(), tmp_path / "run", Hand(), Hand(2))
    monkeypatch.setattr(pictures, "open_split", lambda *_: Hand(2))
    out = tmp_path / "page" / "report.html"
    parts = report.report_run(tmp_path / "run", 1, [("divider", 0.1, 0.3), ("miou", 0.2, 0.15)])
    report.write_page(out, "a run", parts)
    page = out.read_text()
    assert page.count("data:image/png;base64,") == 3
    assert page.count("<svg") >= 7
    assert "+0.200" in page
    assert "-0.050" in page
    assert "rate: 0.002" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page), "nothing is loaded from elsewhere"
    assert "viewport" in page


def test_measuring_a_run_writes_rows_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(config(), tmp_path / "run", Hand(), Hand(2))
    monkeypatch.setattr(pictures, "open_split", lambda *_: Hand(2))
    scores = pictures.measure_run(tmp_path / "run", 2, tmp_path / "rendering" / "hand.json")
    rows = read_results(tmp_path / "rendering")
    assert {row["metric"]: row["value"] for row in rows} == scores
    assert {(row["task"], row["source"], row["seed"], row["frames"]) for row in rows} == {("pretrain", "hand", 0, 2)}


def test_smoothing_keeps_length_and_level() -> None:
    assert np.allclose(report.smooth((2.0,) * 300), 2.0)
    assert len(report.smooth(tuple(float(i) for i in range(300)))) == 300


def test_the_verdict_names_the_difference_whichever_its_sign(tmp_path: Path) -> None:
    rows = demo.compare({"road": 0.5, "miou": 0.4, "here": 1.0}, {"road": 0.4, "miou": 0.6})
    text = demo.verdict(rows, tmp_path, 90.0)
    assert re.search(r"road +0\.500 +0\.400 +-0\.100", text)
    assert re.search(r"miou +0\.400 +0\.600 +\+0\.200", text)
    assert "1.5 minutes" in text


def test_what_was_measured_once_has_no_curve(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = ["step,split,name,value", "1,train,loss,2.0", "2,train,loss,1.0", "1,train,kept,0.1", "2,train,kept,0.2"]
    path.write_text("\n".join([*rows, "2,held_out,loss,1.5", "2,held_out,miou,0.5"]) + "\n")
    assert report.curves(path).count("<svg") == 2
    assert report.curves(path, without={"kept"}).count("<svg") == 1
