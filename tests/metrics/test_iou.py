import pytest
import torch

from cofield.draw import generator
from cofield.metrics.iou import MapIoU


def test_iou_is_pooled_over_frames_and_not_a_mean_of_theirs() -> None:
    score = MapIoU(["road"], thresholds=[0.5])
    sure = torch.tensor([0.9, 0.9, 0.1, 0.1])[None, None, None]
    score.add(sure, torch.tensor([True, True, False, False])[None, None, None])  # 2 of 2
    score.add(sure, torch.tensor([True, False, True, False])[None, None, None])  # 1 of 3
    assert score.compute()["road"] == pytest.approx(3 / 5)


def test_every_threshold_equals_counting_by_hand() -> None:
    draw = generator("iou")
    probability = torch.rand(3, 2, 5, 7, generator=draw)
    truth = torch.rand(3, 2, 5, 7, generator=draw) < 0.3
    score = MapIoU(["a", "b"])
    for b in range(3):
        score.add(probability[b : b + 1], truth[b : b + 1])
    for layer in range(2):
        for place, threshold in enumerate(score.thresholds):
            positive, real = probability[:, layer] > threshold, truth[:, layer]
            expected = (positive & real).sum() / (positive | real).sum()
            torch.testing.assert_close(score.table()[layer, place], expected)
    values = score.compute()
    assert values["a"] == pytest.approx(float(score.table()[0].nan_to_num(-1).max()))
    assert values["miou"] == pytest.approx((values["a"] + values["b"]) / 2)


def test_a_perfect_prediction_scores_one_and_a_layer_that_never_occurs_is_left_out() -> None:
    truth = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    truth[0, 0, :2] = True
    score = MapIoU(["there", "nowhere"])
    score.add(truth.float(), truth)
    assert score.compute() == {"there": 1.0, "miou": 1.0}
    assert MapIoU(["nothing"]).compute() == {}
