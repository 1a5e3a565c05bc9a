from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cofield.classes import KITTI
from cofield.data import open_source
from cofield.data.export import export
from cofield.data.export_kitti import in_image
from cofield.data.kitti import Kitti
from cofield.data.rig import Mount
from cofield.data.simulate import World
from cofield.data.submission import read_kitti
from cofield.frame import Batch, Boxes, collate
from cofield.grid import BoxGrid
from cofield.metrics.kitti import KittiAP
from cofield.train.build import build_finetuning
from cofield.train.config import BoxHead, BoxTuning, Data, Model, Optim
from cofield.train.predict import score, write_predictions
from cofield.train.run import finetune
from cofield.train.score_files import score_file
from cofield.train.tasks import KittiDetect, first_camera, in_view
from streets import Hand

GRID = BoxGrid(lower=(0.0, -40.0, -2.0), cell=(1.0, 1.0, 5.0), count=(64, 80, 1))
HEAD = BoxHead(width=8, bev_width=8, bev_depth=1, bev_out=8, classes="kitti")
SMALL = Model(width=8, camera_width=16, lidar_width=16, bins=12, camera="none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kitti")
    world = World("tiny")
    wide = Mount.looking("front", (256, 640), 320.0, (320.0, 110.0), (1.5, 0.0, 1.6), 0.0)
    export(World("tiny", rig=replace(world.rig, cameras=(wide,))), "kitti", root, 3)
    return root


def tuning(root: Path) -> BoxTuning:
    data = Data("kitti", str(root), batch=1, workers=0, validation=2)
    optim = Optim(steps=2, precision="32", save_every=2, validate_every=2)
    return BoxTuning(grid=GRID, data=data, model=SMALL, head=HEAD, optim=optim)


class Through(torch.nn.Module):
    """A trunk that hands on what it was given."""

    def forward(self, batch: Batch) -> Batch:
        return batch


def test_who_knows_scores_what_truth_does_in_training_and_as_result_files(folder: Path, tmp_path: Path) -> None:
    source = open_source("kitti", folder, "trainval")
    assert isinstance(source, Kitti)
    assert source.box_classes == KITTI
    task = build_finetuning(tuning(folder))
    assert isinstance(task, KittiDetect)
    head = task.head
    task.trunk = Through()  # pyright: ignore[reportAttributeAccessIssue]
    head.forward = lambda batch: head.certain(head.encode(batch))  # pyright: ignore
    indices = list(range(len(source)))
    known = score(task, source, indices)
    perfect = KittiAP()
    for token, boxes in read_kitti(folder / "training" / "label_2", source.tokens, scored=False).items():
        perfect.add(token, replace(boxes, score=torch.ones(len(boxes))), boxes)
    # Of few boxes not even that is 1: recalls between two of them count as not reached.
    assert known == pytest.approx(perfect.compute().summary(), abs=1e-6, nan_ok=True)
    assert known["space.Car.moderate.r40"] > 0.1
    written = write_predictions(task, source, indices, "trainval", tmp_path)
    assert written == tmp_path / "data"
    # From the files, in the camera's own axes, all is as it was in the car's.
    assert score_file(written, "kitti", folder, "trainval") == pytest.approx(known, abs=1e-6, nan_ok=True)
    found = read_kitti(written, [f"{i:06d}" for i in indices])
    assert sum(map(len, found.values())) > 0


def test_a_run_on_kitti_learns_is_scored_and_says_no_velocity(folder: Path, tmp_path: Path) -> None:
    source = open_source("kitti", folder, "trainval")
    scores = finetune(tuning(folder), tmp_path / "run", source, source)
    assert scores is not None
    assert {"above.Pedestrian.easy.r11", "space.Cyclist.hard.r40"} <= set(scores)
    task = build_finetuning(tuning(folder))
    assert isinstance(task, KittiDetect)
    with torch.no_grad():
        boxes = task(collate([source[0]]))[0]
    assert boxes.velocity.isnan().all()


def test_only_what_a_camera_sees_is_encoded_and_scored(folder: Path) -> None:
    frame = Kitti(folder, "trainval")[0]
    batch = in_view(collate([frame]))
    assert 0 < len(batch.points) < len(frame.points)
    assert batch.points.xyz_ego[:, 0].min() > 0
    camera = first_camera(collate([frame]), 0)
    torch.testing.assert_close(camera.image, frame.cameras[0].image)
    sides = Boxes(
        centre=torch.tensor([[10.0, 0.0, 1.0], [-10.0, 0.0, 1.0]]),
        size=torch.ones(2, 3),
        yaw=torch.zeros(2),
        velocity=torch.zeros(2, 2),
        label=torch.tensor([0, 1]),
    )
    assert in_image(sides, camera).label.tolist() == [0]


def test_a_head_of_other_classes_is_refused(folder: Path, tmp_path: Path) -> None:
    wrong = replace(tuning(folder), head=replace(HEAD, classes="nuscenes-detection"))
    with pytest.raises(ValueError, match="kitti has labels of kitti, the head knows nuscenes-detection"):
        finetune(wrong, tmp_path / "run", open_source("kitti", folder, "trainval"), Hand())
    task = build_finetuning(tuning(folder))
    with pytest.raises(ValueError, match="written for KITTI's frames alone"):
        write_predictions(task, Hand(1), [0], "val", tmp_path)
    with pytest.raises(ValueError, match="has no camera"):
        first_camera(collate([replace(Hand()[0], cameras=())]), 0)
