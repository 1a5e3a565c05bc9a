from dataclasses import replace

import torch

from cofield.classes import DETECTION, KITTI, LIDARSEG
from cofield.frame import Boxes, collate
from cofield.train.build import build_finetuning
from cofield.train.config import Head, MapTuning
from cofield.train.tasks import MapSegment
from cofield.view.paint import SEMANTIC_PALETTE, with_boxes
from cofield.view.predictions import SAID, TRUE, as_detections, box_pictures, magnified, map_pictures, point_pictures
from streets import GRID, camera, config, frame
from train.test_sweep import Mapped

CAR = Boxes(
    centre=torch.tensor([[8.0, 0.0, 1.0]]),
    size=torch.tensor([[4.0, 2.0, 1.5]]),
    yaw=torch.zeros(1),
    velocity=torch.full((1, 2), torch.nan),
    label=torch.tensor([0]),
    score=torch.tensor([0.9]),
)


def has(image, colour: tuple[int, int, int]) -> bool:
    return bool((image == torch.tensor(colour).numpy()).all(-1).any())


def test_true_boxes_are_green_and_found_ones_orange_in_the_camera() -> None:
    truth = replace(CAR, centre=CAR.centre + torch.tensor([0.0, 2.0, 0.0]), score=None)
    view = replace(frame(cameras=1, height=64, width=160), boxes=truth)
    shown = dict(box_pictures(view, CAR, GRID, DETECTION, DETECTION))
    (image,) = (each for name, each in shown.items() if name.startswith("a-0"))
    assert has(image, TRUE)
    assert has(image, SAID)
    unsure = dict(box_pictures(view, replace(CAR, score=torch.tensor([0.1])), GRID, DETECTION, DETECTION))
    (image,) = (each for name, each in unsure.items() if name.startswith("a-0"))
    assert has(image, TRUE)
    assert not has(image, SAID)
    assert len(box_pictures(replace(view, boxes=None), CAR, GRID, None, DETECTION)) == 2, "truth is not needed"


def test_boxes_behind_a_camera_are_not_drawn() -> None:
    front = camera(height=64, width=160)
    dark = (front.image * 0).byte().permute(1, 2, 0).numpy()
    behind = replace(CAR, centre=-CAR.centre)
    assert not with_boxes(dark, behind, front).any()
    assert with_boxes(dark, CAR, front).any()


def test_boxes_of_other_classes_are_drawn_in_the_colours_of_their_counterparts() -> None:
    sitting = replace(CAR, label=torch.tensor([KITTI.index("Person_sitting")]))
    assert as_detections(sitting, KITTI).label.tolist() == [DETECTION.index("pedestrian")]


def test_a_layer_that_is_certain_looks_like_its_truth() -> None:
    task = build_finetuning(MapTuning(grid=GRID, model=config().model, head=Head(width=8)))
    assert isinstance(task, MapSegment)
    head, one = task.head, Mapped(1)[0]
    probability = head.encode(collate([one]))[0].float()
    shown = dict(map_pictures(one, probability, head))
    for name in head.names:
        assert (shown[f"{name}: true"] == shown[f"{name}: probability"]).all()
    assert len(map_pictures(replace(one, maps=None), probability, head)) == len(head.names)


def test_points_have_the_colour_of_what_was_said() -> None:
    one = frame()
    label = LIDARSEG.index("car")
    shown = dict(point_pictures(one, torch.full((50,), label), GRID, LIDARSEG, LIDARSEG))
    tone = tuple((SEMANTIC_PALETTE[label] // 2 + 60).tolist())
    assert has(shown["found"], tone)
    assert set(shown) == {"true", "found"}
    assert magnified(GRID) == 60
