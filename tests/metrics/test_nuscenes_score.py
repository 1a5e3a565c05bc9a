import math
from dataclasses import replace

import pytest
import torch

from cofield.classes import ATTRIBUTES, DETECTION, UNKNOWN
from cofield.draw import generator
from cofield.frame import Boxes
from cofield.metrics.nuscenes import ERRORS, RANGES, UNDEFINED, DetectionScore, NuScenesScore

CAR, BARRIER = DETECTION.index("car"), DETECTION.index("barrier")
BICYCLE = DETECTION.index("bicycle")


def town(seed: int, each: int = 3) -> Boxes:
    """Some boxes of every class, well apart and within range, with all that a truth has."""
    count, draw = len(DETECTION) * each, generator("town", seed)
    turn = torch.arange(count) * 2 * math.pi / count
    reach = 15 + 10 * torch.rand(count, generator=draw)
    return Boxes(
        centre=torch.stack([reach * turn.cos(), reach * turn.sin(), torch.zeros(count)], -1),
        size=torch.rand(count, 3, generator=draw) + 1,
        yaw=torch.randn(count, generator=draw),
        velocity=torch.randn(count, 2, generator=draw),
        label=torch.arange(count) % len(DETECTION),
        attribute=torch.randint(len(ATTRIBUTES), (count,), generator=draw),
        num_points=torch.full((count,), 5),
    )


def scored(boxes: Boxes, seed: int = 0) -> Boxes:
    score = torch.rand(len(boxes), generator=generator("scores", seed)) * 0.9 + 0.1
    return replace(boxes, score=score, num_points=None)


def cars(*centres: tuple[float, float], **columns: torch.Tensor) -> Boxes:
    count = len(centres)
    boxes = Boxes(
        centre=torch.tensor([[x, y, 1.0] for x, y in centres]).view(-1, 3),
        size=torch.tensor([[4.0, 2.0, 1.5]]).repeat(count, 1),
        yaw=torch.zeros(count),
        velocity=torch.zeros(count, 2),
        label=torch.full((count,), CAR),
    )
    return replace(boxes, **columns)


def score(predicted: Boxes, truth: Boxes, *, ranges: dict[str, float] = RANGES, **where: Boxes) -> DetectionScore:
    metric = NuScenesScore(ranges)
    metric.add("a", predicted, truth, **where)
    return metric.compute()


def test_truth_as_prediction_scores_one_with_no_error_that_is_defined() -> None:
    metric = NuScenesScore()
    for seed in range(4):
        metric.add(f"sample {seed}", scored(town(seed), seed), town(seed))
    found = metric.compute()
    assert found.mean_ap == pytest.approx(1)
    assert found.nds == pytest.approx(1)
    for name, errors in zip(found.names, found.errors, strict=True):
        undefined = torch.tensor([error in UNDEFINED.get(name, ()) for error in ERRORS])
        assert torch.equal(errors.isnan(), undefined)
        assert (errors[~undefined] < 1e-12).all()
    summary = found.summary()
    assert summary["map"] == pytest.approx(1)
    assert summary["ap.barrier"] == pytest.approx(1)
    assert summary["attribute"] < 1e-12


def test_boxes_that_are_sixty_centimetres_off_are_found_from_one_metre_on() -> None:
    shift = torch.tensor([0.6, 0, 0])
    boxes = town(0)
    found = score(scored(replace(boxes, centre=boxes.centre + shift)), boxes)
    torch.testing.assert_close(found.ap, torch.tensor([[0.0, 1, 1, 1]]).double().expand(10, 4))
    assert found.mean_ap == pytest.approx(0.75)
    assert found.mean_errors["translation"] == pytest.approx(0.6, abs=1e-6)
    assert found.nds == pytest.approx((5 * 0.75 + 0.4 + 4) / 10, abs=1e-6)


def test_half_of_the_boxes_found_give_precision_up_to_half_the_recall() -> None:
    truth = cars((5, 0), (15, 0))
    found = score(cars((5, 0), score=torch.tensor([0.9])), truth, ranges={"car": 50.0})
    # Recall 11 % to 50 % of the 90 steps count, each with precision 1.
    assert found.mean_ap == pytest.approx(40 / 90)
    early = cars((30, 0), (5, 0), (15, 0), score=torch.tensor([0.9, 0.8, 0.7]))
    # A false alarm before both: precision rises from 1/2 at recall 1/2 to 2/3 at 1; below, that of the alarm is 0.
    recall = torch.linspace(0, 1, 101).double()
    precision = torch.where(recall < 0.5, recall, 0.5 + (recall - 0.5) / 3)
    expected = (precision[11:] - 0.1).clamp(min=0).mean() / 0.9
    assert score(early, truth, ranges={"car": 50.0}).mean_ap == pytest.approx(float(expected))


def test_each_error_is_what_its_name_says() -> None:
    truth = cars((5, 0), attribute=torch.tensor([2]))
    wrong = cars(
        (5.3, 0.4),
        size=torch.tensor([[4.0, 2.0, 3.0]]),
        yaw=torch.tensor([math.pi]),
        velocity=torch.tensor([[3.0, 4.0]]),
        attribute=torch.tensor([1]),
        score=torch.tensor([0.5]),
    )
    errors = score(wrong, truth, ranges={"car": 50.0}).mean_errors
    expected = {"translation": 0.5, "scale": 0.5, "orientation": math.pi, "velocity": 5.0, "attribute": 1.0}
    assert errors == pytest.approx(expected, abs=1e-6)
    # A barrier looks the same from both sides.
    barriers = [replace(boxes, label=torch.tensor([BARRIER])) for boxes in (wrong, truth)]
    assert score(*barriers, ranges={"barrier": 50.0}).mean_errors["orientation"] == pytest.approx(0, abs=1e-6)


def test_what_the_truth_does_not_say_is_no_error() -> None:
    truth = cars(
        (5, 0), (10, 0), attribute=torch.tensor([UNKNOWN, 2]), velocity=torch.tensor([[torch.nan] * 2, [1, 0]])
    )
    found = cars((5, 0), (10, 0), attribute=torch.tensor([1, 2]), score=torch.tensor([0.9, 0.8]))
    errors = score(found, truth, ranges={"car": 50.0}).mean_errors
    assert errors["attribute"] == 0
    # The running mean is 0 before the first known value, and 1 where the second box is found.
    assert 0 < errors["velocity"] < 1
    nothing = replace(truth, attribute=None, velocity=torch.full((2, 2), torch.nan))
    assert score(found, nothing, ranges={"car": 50.0}).mean_errors["attribute"] == 1
    assert score(found, nothing, ranges={"car": 50.0}).mean_errors["velocity"] == 1


def test_a_truth_is_found_once_by_the_best_box_and_the_nearest_is_taken() -> None:
    truth = cars((5, 0))
    twice = cars((5.4, 0), (5, 0), score=torch.tensor([0.9, 0.8]))
    found = score(twice, truth, ranges={"car": 50.0})
    # The second is a false alarm at recall 1, where precision is then a half.
    assert found.ap[0].tolist() == pytest.approx([(89 + 0.4 / 0.9) / 90] * 4)
    assert found.mean_errors["translation"] == pytest.approx(0.4, abs=1e-6)
    # The nearer of two is found; the other is too far from what is left, but for the widest threshold.
    between = cars((5.9, 0), (8, 0), score=torch.tensor([0.9, 0.8]))
    apart = score(between, cars((5, 0), (6, 0)), ranges={"car": 50.0})
    assert apart.ap[0].tolist() == pytest.approx([(39 + 0.4 / 0.9) / 90] * 3 + [1])


def test_only_what_is_in_range_has_points_and_stands_in_no_rack_counts() -> None:
    near, far = (5.0, 0.0), (50.0, 0.0)
    truth = cars(near, far, (10, 0), (20, 0), num_points=torch.tensor([1, 9, 0, 9]))
    truth = replace(truth, label=torch.tensor([CAR, CAR, CAR, UNKNOWN]))
    sure = cars(near, far, score=torch.tensor([0.5, 0.9]))
    assert score(sure, truth, ranges={"car": 50.0}).mean_ap == pytest.approx(1)
    assert score(sure, truth, ranges={"car": 50.1}).mean_ap == pytest.approx(1)
    metric = NuScenesScore({"car": 10.0})
    metric.add("a", sure, truth, position=torch.tensor([50.0, 0.0]))
    assert metric.compute().mean_ap == pytest.approx(1)
    racks = cars((5, 0))
    bicycles = replace(cars(near, (5, 1.1), num_points=torch.ones(2).long()), label=torch.full((2,), BICYCLE))
    parked = replace(bicycles.select(torch.tensor([0])), score=torch.tensor([0.9]), num_points=None)
    assert score(parked, bicycles, ranges={"bicycle": 40.0}).mean_ap > 0
    assert score(parked, bicycles, ranges={"bicycle": 40.0}, racks=racks).mean_ap == 0
    outside = replace(bicycles, score=torch.tensor([0.9, 0.1]), num_points=None)
    assert score(outside, bicycles, ranges={"bicycle": 40.0}, racks=racks).mean_ap == pytest.approx(1)


def test_nothing_found_or_nothing_there_scores_zero() -> None:
    nothing = replace(Boxes.empty(), score=torch.zeros(0))
    for predicted, truth in ((nothing, cars((5, 0))), (cars((5, 0), score=torch.ones(1)), Boxes.empty())):
        found = score(predicted, truth)
        assert found.mean_ap == 0
        assert found.nds == 0
        assert set(found.mean_errors.values()) == {1.0}
    assert NuScenesScore().compute().nds == 0


def test_frames_may_come_in_any_order() -> None:
    one, other = NuScenesScore(), NuScenesScore()
    for metric, order in ((one, (0, 1, 2)), (other, (2, 0, 1))):
        for seed in order:
            noisy = scored(town(seed), seed)
            metric.add(str(seed), replace(noisy, centre=noisy.centre * 1.04), town(seed))
    torch.testing.assert_close(one.compute().ap, other.compute().ap)
    torch.testing.assert_close(one.compute().errors, other.compute().errors, equal_nan=True)
    assert 0 < one.compute().nds < 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"score": None}, "need scores"),
        ({"score": torch.tensor([torch.nan])}, "score is not finite"),
        ({"score": torch.tensor([-0.1])}, "less than 0"),
        ({"yaw": torch.tensor([torch.inf])}, "yaw is not finite"),
        ({"size": torch.tensor([[1.0, 0.0, 1.0]])}, "sizes are more than 0"),
        ({"label": torch.tensor([10])}, "count 10 classes"),
        ({"label": torch.tensor([UNKNOWN])}, "count 10 classes"),
    ],
)
def test_a_prediction_without_a_score_in_the_devkit_is_refused_with_its_sample(change: dict, reason: str) -> None:
    good = cars((5, 0), score=torch.ones(1))
    with pytest.raises(ValueError, match=f"sample abc.*{reason}"):
        NuScenesScore().add("abc", replace(good, **change), Boxes.empty())


def test_too_many_boxes_and_a_sample_that_comes_twice_are_refused() -> None:
    many = cars(*[(1.0, 0.0)] * 501, score=torch.ones(501))
    with pytest.raises(ValueError, match=r"sample abc has 501 boxes.*500"):
        NuScenesScore().add("abc", many, Boxes.empty())
    metric = NuScenesScore()
    metric.add("abc", many.select(torch.arange(500)), Boxes.empty())
    with pytest.raises(ValueError, match="abc was added twice"):
        metric.add("abc", many.select(torch.arange(500)), Boxes.empty())
