import pytest
import torch

from cofield.draw import generator
from cofield.metrics.iou import MapIoU, PointIoU


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


def test_point_iou_is_pooled_over_frames_and_ignores_what_has_no_label() -> None:
    score = PointIoU(["car", "road", "never"])
    score.add(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, -1]))  # car 1 of 2, road 1 of 2
    score.add(torch.tensor([0, 0]), torch.tensor([0, 0]))  # car 2 of 2
    assert score.compute() == pytest.approx({"car": 3 / 4, "road": 1 / 2, "miou": 5 / 8, "miou.0-10m": 5 / 8})
    assert score.table()[0, 2].isnan()
    assert PointIoU(["car"]).compute() == {}


def test_point_iou_by_distance_equals_counting_by_hand() -> None:
    draw = generator("points")
    xyz = torch.rand(2000, 3, generator=draw) * torch.tensor([60.0, 30.0, 3.0]) - torch.tensor([30.0, 15.0, 0.0])
    truth, predicted = (torch.randint(-1, 4, (2000,), generator=draw) for _ in range(2))
    predicted = torch.where(torch.rand(2000, generator=draw) < 0.5, truth, predicted).clamp(min=0)
    score = PointIoU(["a", "b", "c", "d"], bands=(0.0, 8.0, 20.0, 99.0))
    for part in torch.arange(2000).split(700):
        score.add(predicted[part], truth[part], xyz[part])
    distance = xyz[:, :2].norm(dim=-1)
    values = score.compute()
    for band, (low, high) in enumerate(((0, 8), (8, 20), (20, 99))):
        inside = (distance >= low) & (distance < high) & (truth >= 0)
        for label in range(4):
            one, other = predicted[inside] == label, truth[inside] == label
            torch.testing.assert_close(score.table()[band, label], (one & other).sum() / (one | other).sum())
        assert values[f"miou.{low}-{high}m"] == pytest.approx(float(score.table()[band].mean()))
    assert score.table()[3].isnan().all()
    assert "miou.99+m" not in values
    one, other = predicted[truth >= 0] == 2, truth[truth >= 0] == 2
    assert values["c"] == pytest.approx(float((one & other).sum() / (one | other).sum()))


def test_point_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"predicted labels are .*2.* classes from 0"):
        PointIoU(["a", "b"]).add(torch.tensor([2]), torch.tensor([0]))
    with pytest.raises(ValueError, match="true labels are"):
        PointIoU(["a", "b"], ignore=255).add(torch.tensor([1]), torch.tensor([-1]))
