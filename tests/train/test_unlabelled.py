"""Pre-training on data sets as they are on disk, with and without anything labelled."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cofield.data import open_source
from cofield.data.export import export
from cofield.data.simulate import World
from cofield.train.build import build_pretraining
from cofield.train.checkpoint import read_trunk
from cofield.train.config import Data, Optim
from cofield.train.run import pretrain
from streets import config

LABELS = {"nuscenes": ("lidarseg", "panoptic", "maps"), "kitti": ("training/label_2",)}
TABLES = ("sample_annotation", "instance", "category", "attribute", "visibility")


@pytest.fixture(scope="module")
def world() -> World:
    return World("tiny", rig=replace(World("tiny").rig, beams=8, azimuths=90, sweeps=2))


def delete_labels(format: str, root: Path) -> None:
    """Leave nothing labelled; the tables that nuScenes cannot do without are emptied."""
    for folder in LABELS[format]:
        shutil.rmtree(root / folder)
    if format == "nuscenes":
        for table in ("lidarseg", "panoptic", "map"):
            (root / "v1.0-mini" / f"{table}.json").unlink()
        for table in TABLES:
            (root / "v1.0-mini" / f"{table}.json").write_text("[]")


@pytest.mark.parametrize("format", ["nuscenes", "kitti"])
def test_a_data_set_whose_labels_were_deleted_pretrains_to_the_same_weights(
    format: str, world: World, tmp_path: Path
) -> None:
    root, trunks = tmp_path / "data", []
    export(world, format, root, 3)
    optim = Optim(steps=2, precision="32", save_every=2, validate_every=2)
    chosen = config(data=Data(format, root=str(root), batch=2, workers=0, validation=1), optim=optim)
    for labelled in (True, False):
        if not labelled:
            delete_labels(format, root)
        frame = open_source(format, root)[0]
        assert (frame.boxes is not None) == labelled
        assert (frame.points.labels is not None) == (labelled and format == "nuscenes")
        assert pretrain(chosen, tmp_path / f"run {labelled}")
        trunks.append(read_trunk(tmp_path / f"run {labelled}" / "trunk.safetensors")[0])
    with_labels, without = trunks
    assert all(torch.equal(weight, without[name]) for name, weight in with_labels.items())
    fresh = build_pretraining(chosen).trunk.state_dict()
    assert not any(torch.equal(weight, without[name]) for name, weight in fresh.items())
