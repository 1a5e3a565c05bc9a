from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cofield.classes import UNKNOWN
from cofield.view.segments import Bar, segment_picture, segments


def test_the_verb_writes_segments_and_a_picture_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = segments("world:tiny", tmp_path, segmenter="exact", split="val", frames=2, pictures=1)
    assert (first.frames, first.made, first.images) == (2, 2, 8)
    assert "2/2 frames" in capsys.readouterr().err
    assert len(list(tmp_path.glob("*.npz"))) == 2
    # Two rows of two cameras, each beside its segments.
    with Image.open(tmp_path / "val.png") as sheet:
        assert sheet.size[0] == 4 * 320
    again = segments("world:tiny", tmp_path, segmenter="exact", split="val", frames=2, pictures=0)
    assert (again.frames, again.made, again.coverage) == (2, 0, first.coverage)
    with pytest.raises(ValueError, match="wanted is"):
        segments("world:tiny", tmp_path, segmenter="exact-split", split="val", frames=2)
    with pytest.raises(ValueError, match="at least 1"):
        segments("world:tiny", tmp_path, frames=0)


def test_a_segment_has_one_tint_and_none_is_grey() -> None:
    label = torch.tensor([[0, 0, 1, UNKNOWN]])
    shown = segment_picture(torch.full((3, 1, 4), 0.5), label)[0].astype(int)
    assert shown[0].tolist() == shown[1].tolist()
    assert np.abs(shown[1] - shown[2]).sum() > 60
    assert np.ptp(shown[3]) == 0
    assert np.ptp(shown[0]) > 0


def test_large_pictures_have_borders_between_segments() -> None:
    label = torch.zeros(200, 300).long()
    label[:, 150:] = 1
    shown = segment_picture(torch.zeros(3, 200, 300), label)
    white = (shown == 255).all(-1)
    assert white[:, 150].all()
    assert white.sum() == 200


def test_progress_is_a_line_at_the_end_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    for done in range(1, 4):
        bar(done, 3)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"[{'=' * 30}] 3/3 frames, 0:00 left"]
