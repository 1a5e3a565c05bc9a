from pathlib import Path
from typing import Any

import pytest

from cofield.train import run
from cofield.train.config import BoxHead, BoxTuning, Data, Finetuning, Optim, PointTuning
from cofield.train.results import read_results
from cofield.train.run import pretrain
from cofield.train.sweep import Sweep, run_sweep
from cofield.view.efficiency import lines, report_results
from streets import GRID, Hand, config

GROUPS: dict[str, Any] = {
    "data": Data(source="hand", batch=2, workers=0, validation=2),
    "model": config().model,
    "optim": Optim(steps=2, precision="32", save_every=2, validate_every=2),
}
BASES: dict[str, Finetuning] = {
    "map": BoxTuning(grid=GRID, head=BoxHead(width=8, bev_width=8, bev_depth=1, bev_out=8), **GROUPS),
    "miou": PointTuning(grid=GRID, **GROUPS),
}


@pytest.mark.parametrize("main", BASES)
def test_boxes_and_points_are_swept_and_reported_like_maps(
    main: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = tmp_path / "trunk"
    pretrain(config(optim=Optim(steps=1, precision="32", save_every=1, validate_every=1)), trunk, Hand(), Hand(2))
    monkeypatch.setattr(run, "open_split", lambda data, split, *_: Hand(6 if split == "train" else 2))
    plan = Sweep((0.5,), seeds=(3,), inits=("scratch", "pretrained"), trunks=(str(trunk),))
    assert run_sweep(BASES[main], plan, tmp_path / "results", tmp_path / "runs") == []
    rows = read_results(tmp_path / "results")
    assert {row["cell"] for row in rows} == {"scratch-0.5-frames-seed3", "pretrained-from-trunk-0.5-frames-seed3"}
    scratch, pretrained = lines(rows, main)
    assert (scratch.init, scratch.seeds, pretrained.init) == ("scratch", 1, "pretrained")
    assert pretrained.gain is not None
    assert f"{main} on held-out frames" in "".join(report_results(tmp_path / "results"))
