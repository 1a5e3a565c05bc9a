import math
from dataclasses import dataclass, replace

import pytest
import torch
from shapely import Polygon

from cofield.classes import KITTI, UNKNOWN
from cofield.draw import generator
from cofield.frame import Boxes
from cofield.metrics.kitti import LEAST_IOU, VIEWS, KittiAP, KittiScore

CAR, VAN, PEDESTRIAN = (KITTI.index(name) for name in ("Car", "Van", "Pedestrian"))
SITTING = KITTI.index("Person_sitting")


def row_of(count: int, label: int = CAR, height: float = 50.0, **columns: torch.Tensor) -> Boxes:
    """Boxes of one class, far from each other in space and in the image."""
    place = torch.arange(count) * 20.0
    boxes = Boxes(
        centre=torch.stack([place, torch.zeros(count), torch.ones(count)], -1),
        size=torch.tensor([[4.0, 2.0, 1.5]]).repeat(count, 1),
        yaw=torch.zeros(count),
        velocity=torch.full((count, 2), torch.nan),
        label=torch.full((count,), label),
        box2d=torch.stack([place, torch.zeros(count), place + 10, torch.full((count,), height)], -1),
        truncation=torch.zeros(count),
        occlusion=torch.zeros(count).long(),
    )
    return replace(boxes, **columns)


def sure(boxes: Boxes, low: float = 0.5, high: float = 0.9) -> Boxes:
    return replace(boxes, score=torch.linspace(high, low, len(boxes)), truncation=None, occlusion=None)


def joined(*parts: Boxes) -> Boxes:
    names = ("centre", "size", "yaw", "velocity", "label", "box2d", "truncation", "occlusion", "score")
    columns = {name: [getattr(part, name) for part in parts] for name in names}
    return Boxes(**{name: torch.cat(values) for name, values in columns.items() if values[0] is not None})


def score(predicted: Boxes, truth: Boxes) -> dict[str, float]:
    metric = KittiAP()
    metric.add("000001", predicted, truth)
    return metric.compute().summary()


def test_truth_as_prediction_scores_one_in_every_view() -> None:
    metric = KittiAP()
    for i, name in enumerate(LEAST_IOU):
        boxes = row_of(100, KITTI.index(name))
        metric.add(f"{i}", sure(boxes), boxes)
    found = metric.compute()
    assert found.r40.shape == (3, 3, 3)
    torch.testing.assert_close(found.r40, torch.ones(3, 3, 3).double())
    torch.testing.assert_close(found.r11, torch.ones(3, 3, 3).double())


def test_half_of_the_boxes_found_reach_half_of_the_recalls() -> None:
    truth = row_of(80)
    values = score(sure(truth.select(torch.arange(40))), truth)
    assert values["space.Car.easy.r40"] == pytest.approx(20 / 40)
    assert values["space.Car.easy.r11"] == pytest.approx(6 / 11)


def test_false_alarms_cost_precision_only_where_they_score_higher() -> None:
    truth = row_of(100)
    alarms = row_of(100)
    alarms = replace(alarms, centre=alarms.centre + 10, box2d=alarms.box2d + 10.5)
    before = joined(sure(truth, 0.2, 0.4), sure(alarms, 0.5, 0.9))
    after = joined(sure(truth, 0.5, 0.9), sure(alarms, 0.2, 0.4))
    for view in VIEWS:
        assert score(before, truth)[f"{view}.Car.easy.r40"] == pytest.approx(0.5)
        assert score(after, truth)[f"{view}.Car.easy.r40"] == pytest.approx(1)


def test_a_match_needs_more_than_the_least_overlap_in_its_own_view() -> None:
    truth = row_of(100)
    for shift, above, space in (((0.7, 0, 0), 1, 1), ((0.71, 0, 0), 0, 0), ((0, 0, 0.3), 1, 0), ((0, 0, 0.25), 1, 1)):
        moved = replace(truth, centre=truth.centre + torch.tensor(shift))
        values = score(sure(moved), truth)
        assert values["above.Car.easy.r40"] == pytest.approx(above)
        assert values["space.Car.easy.r40"] == pytest.approx(space)
        assert values["image.Car.easy.r40"] == pytest.approx(1)


def test_neighbours_small_hidden_and_cut_labels_are_neither_to_be_found_nor_wrong_to_find() -> None:
    truth = row_of(100)
    odd = row_of(4, box2d=torch.rand(4, 4, generator=generator("odd")) + torch.tensor([-900.0, 0, -900, 60]))
    odd = replace(odd, centre=odd.centre - 900, label=torch.tensor([VAN, CAR, CAR, CAR]))
    odd = replace(odd, truncation=torch.tensor([0, 0.16, 0, 0]), occlusion=torch.tensor([0, 0, 1, 0]))
    small = odd.box2d + torch.tensor([0.0, 0, 0, -25]) * torch.tensor([0, 0, 0, 1])[:, None]
    odd = replace(odd, box2d=small)
    high = joined(sure(truth, 0.1, 0.4), sure(replace(odd, label=torch.full((4,), CAR)), 0.8, 0.9))
    # Neither the missing odd ones nor the found ones change anything at the easy level.
    for predicted in (sure(truth), high):
        assert score(predicted, joined(truth, odd))["space.Car.easy.r40"] == pytest.approx(1)
    # At the moderate level three of them are to be found, and were found.
    assert score(high, joined(truth, odd))["space.Car.moderate.r40"] == pytest.approx(1)
    assert score(high, truth)["space.Car.easy.r40"] < 1
    # A sitting person is a neighbour of pedestrians, and not of cars.
    sitting = row_of(100, SITTING)
    people = joined(sure(row_of(100, PEDESTRIAN)))
    assert score(people, sitting)["space.Pedestrian.easy.r40"] == 0
    standing = replace(row_of(100, PEDESTRIAN), centre=row_of(100).centre + torch.tensor([0, 50.0, 0]))
    both = joined(sure(standing, 0.1, 0.4), people)
    assert score(both, joined(standing, sitting))["space.Pedestrian.easy.r40"] == pytest.approx(1)
    cars = joined(sure(replace(standing, label=torch.full((100,), CAR)), 0.1, 0.4), sure(row_of(100)))
    only = replace(standing, label=torch.full((100,), CAR))
    assert score(cars, joined(only, sitting))["space.Car.easy.r40"] == pytest.approx(0.5)


def test_dont_care_regions_excuse_false_alarms_in_the_image_alone() -> None:
    truth, alarms = row_of(100), row_of(10)
    alarms = replace(alarms, centre=alarms.centre - 500, box2d=alarms.box2d - torch.tensor([500.0, 0, 500, 0]))
    region = row_of(1, UNKNOWN, box2d=torch.tensor([[-600.0, 0, -100, 50]]), centre=torch.full((1, 3), torch.nan))
    predicted = joined(sure(truth, 0.1, 0.4), sure(alarms, 0.8, 0.9))
    values = score(predicted, joined(truth, region))
    assert values["image.Car.easy.r40"] == pytest.approx(1)
    assert values["space.Car.easy.r40"] == pytest.approx(100 / 110)
    assert score(predicted, truth)["image.Car.easy.r40"] == pytest.approx(100 / 110)


def test_without_image_boxes_the_image_has_no_score_and_nothing_is_too_small() -> None:
    truth = replace(row_of(100, height=10.0), box2d=None, occlusion=None, truncation=None)
    values = score(sure(truth), truth)
    assert math.isnan(values["image.Car.easy.r40"])
    assert values["above.Car.easy.r40"] == pytest.approx(1)
    assert values["space.Car.hard.r11"] == pytest.approx(1)
    assert set(KittiAP().compute().summary().values()) == {0.0}


def test_bad_predictions_are_refused_with_their_frame() -> None:
    good = sure(row_of(2))
    broken = replace(good, centre=good.centre * torch.nan)
    for boxes, reason in (
        (replace(good, score=None), "scores"),
        (replace(good, label=good.label - 9), "classes"),
        (broken, "finite"),
    ):
        with pytest.raises(ValueError, match=f"frame 000007.*{reason}"):
            KittiAP().add("000007", boxes, row_of(1))
    metric = KittiAP()
    metric.add("000007", good, row_of(1))
    with pytest.raises(ValueError, match="000007 was added twice"):
        metric.add("000007", good, row_of(1))
    with pytest.raises(ValueError, match="kitti has no class 'Bus'"):
        KittiAP({"Bus": 0.5})


def crowd(seed: int) -> tuple[Boxes, Boxes]:
    """Truth of several classes with every flaw, and predictions near it and elsewhere."""
    draw = generator("kitti", seed)
    labels = torch.tensor(
        [CAR, CAR, CAR, VAN, PEDESTRIAN, PEDESTRIAN, SITTING, KITTI.index("Cyclist"), KITTI.index("Truck")]
    )
    count = 30
    centre = torch.rand(count, 3, generator=draw) * torch.tensor([30.0, 20.0, 0.3])
    corner = torch.rand(count, 2, generator=draw) * torch.tensor([1000.0, 100.0])
    truth = Boxes(
        centre=centre,
        size=torch.tensor([[4.0, 1.8, 1.6]]) * (0.8 + 0.4 * torch.rand(count, 3, generator=draw)),
        yaw=torch.randn(count, generator=draw),
        velocity=torch.zeros(count, 2),
        label=labels[torch.randint(len(labels), (count,), generator=draw)],
        box2d=torch.cat([corner, corner + 15 + 40 * torch.rand(count, 2, generator=draw)], -1),
        truncation=torch.rand(count, generator=draw) * 0.4,
        occlusion=torch.randint(4, (count,), generator=draw),
    )
    twice = torch.arange(count).repeat(2)
    near = truth.select(twice)
    noise = torch.randn(len(twice), 7, generator=draw) * 0.1
    away = torch.rand(len(twice), generator=draw) < 0.25
    predicted = replace(
        near,
        centre=near.centre + noise[:, :3] * torch.tensor([3.0, 1, 1]) + 40 * away[:, None],
        yaw=near.yaw + noise[:, 3],
        box2d=near.box2d + noise[:, 3:] * 20 + away[:, None] * 30,
        label=torch.where(torch.rand(len(twice), generator=draw) < 0.1, CAR, near.label),
        score=(torch.rand(len(twice), generator=draw) * 50).round() / 50,
        truncation=None,
        occlusion=None,
    )
    regions = row_of(2, UNKNOWN, box2d=torch.tensor([[0.0, 0, 300, 80], [500, 20, 800, 200]]), centre=torch.zeros(2, 3))
    columns = {name: torch.cat([getattr(truth, name), getattr(regions, name)]) for name in
               ("centre", "size", "yaw", "velocity", "label", "box2d", "truncation", "occlusion")}  # fmt: skip
    return predicted, Boxes(**columns)


def test_a_second_implementation_finds_the_same_values() -> None:
    frames = [crowd(seed) for seed in range(6)]
    metric = KittiAP()
    for i, (predicted, truth) in enumerate(frames):
        metric.add(str(i), predicted, truth)
    ours = metric.compute()
    assert ours.names == tuple(LEAST_IOU)
    theirs = second_opinion(frames)
    torch.testing.assert_close(ours.r40, theirs.r40, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.r11, theirs.r11, rtol=0, atol=1e-9)
    assert len(ours.r40.unique()) > 15
    assert ours.r40.mean() > 0.05


def intersections(a: Boxes, b: Boxes) -> dict[tuple[int, int], tuple[float, float, float]]:
    """IoU in the image, from above and in space, of each pair."""
    sides = []
    for boxes in (a, b):
        outlines = [Polygon(corners) for corners in boxes.corners().double()[:, [0, 4, 6, 2], :2].tolist()]
        low, tall = (boxes.centre[:, 2] - boxes.size[:, 2] / 2).tolist(), boxes.size[:, 2].tolist()
        sides.append(list(zip(outlines, low, tall, boxes.box2d.tolist(), strict=True)))
    return {(i, j): _iou(one, other) for i, one in enumerate(sides[0]) for j, other in enumerate(sides[1])}


def _iou(one: tuple, other: tuple) -> tuple[float, float, float]:
    (shape, low, tall, (x0, y0, x1, y1)), (outline, base, high, (u0, v0, u1, v1)) = one, other
    shared = max(0.0, min(x1, u1) - max(x0, u0)) * max(0.0, min(y1, v1) - max(y0, v0))
    image = shared / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared)
    area = shape.intersection(outline).area
    volume = area * max(0.0, min(low + tall, base + high) - max(low, base))
    union = shape.area * tall + outline.area * high - volume
    return image, area / (shape.area + outline.area - area), volume / union


@dataclass(frozen=True)
class Rows:
    """Columns of boxes as plain lists."""

    label: list[int]
    box2d: list[list[float]]
    score: list[float]
    truncation: list[float]
    occlusion: list[int]


def listed(boxes: Boxes) -> Rows:
    columns = (boxes.label, boxes.box2d, boxes.score, boxes.truncation, boxes.occlusion)
    return Rows(*([] if column is None else column.tolist() for column in columns))


def second_opinion(frames: list[tuple[Boxes, Boxes]]) -> KittiScore:
    """The published rules as plain loops, one threshold at a time."""
    shared = [intersections(found, true) for found, true in frames]
    plain = [(listed(found), listed(true)) for found, true in frames]
    r40, r11 = torch.zeros(2, 3, 3, 3).double()
    for v, view in enumerate(VIEWS):
        for k, (name, least) in enumerate(LEAST_IOU.items()):
            for d in range(3):
                roles = [(roles_of_found(f, name, d), roles_of_truth(t, name, d)) for f, t in plain]
                positives = sum(role == "count" for _, wanted in roles for role in wanted.values())
                scores: list[float] = []
                for frame, role, overlaps in zip(plain, roles, shared, strict=True):
                    scores += matched(frame[0], *role, overlaps, v, least, -1.0, False)[0]
                precision = [0.0] * 41
                for place, threshold in enumerate(thresholds(scores, positives)):
                    right = wrong = 0
                    for (found, true), role, overlaps in zip(plain, roles, shared, strict=True):
                        hits, alarms = matched(found, *role, overlaps, v, least, threshold, True)
                        right += len(hits)
                        wrong += sum(not (view == "image" and excused(found, i, true, least)) for i in alarms)
                    precision[place] = right / (right + wrong)
                best = [max(precision[place:]) for place in range(41)]
                r40[v, k, d], r11[v, k, d] = sum(best[1:]) / 40, sum(best[0::4]) / 11
    return KittiScore(tuple(LEAST_IOU), r40, r11)


def roles_of_truth(true: Rows, name: str, level: int) -> dict[int, str]:
    limits = [(40, 0, 0.15), (25, 1, 0.3), (25, 2, 0.5)][level]
    roles = {}
    for j in range(len(true.label)):
        own = "" if true.label[j] == UNKNOWN else KITTI.names[true.label[j]]
        tall = true.box2d[j][3] - true.box2d[j][1]
        easy = tall > limits[0] and true.occlusion[j] <= limits[1] and true.truncation[j] <= limits[2]
        if own == name:
            roles[j] = "count" if easy else "may"
        elif (name, own) in (("Car", "Van"), ("Pedestrian", "Person_sitting")):
            roles[j] = "may"
    return roles


def roles_of_found(found: Rows, name: str, level: int) -> dict[int, str]:
    roles = {}
    for i in range(len(found.label)):
        if found.box2d[i][3] - found.box2d[i][1] < (40, 25, 25)[level]:
            roles[i] = "may"
        elif KITTI.names[found.label[i]] == name:
            roles[i] = "count"
    return roles


def matched(
    found: Rows, roles: dict, wanted: dict, overlaps: dict, view: int, least: float, threshold: float, by_iou: bool
) -> tuple[list[float], list[int]]:
    """The scores of what is right, and which are wrong."""
    free = [i for i in roles if found.score[i] >= threshold]
    hits = []
    for j, role in wanted.items():
        rivals = [i for i in free if overlaps[i, j][view] > least]
        if by_iou:
            counting = [i for i in rivals if roles[i] == "count"]
            best = max(counting, key=lambda i: (overlaps[i, j][view], -i)) if counting else min(rivals, default=None)
        else:
            best = max(rivals, key=lambda i: (found.score[i], -i), default=None)
        if best is not None:
            free.remove(best)
            if role == roles[best] == "count":
                hits.append(found.score[best])
    return hits, [i for i in free if roles[i] == "count"]


def excused(found: Rows, i: int, true: Rows, least: float) -> bool:
    """Whether enough of a false alarm lies in a DontCare region."""
    x0, y0, x1, y1 = found.box2d[i]
    shares = []
    for u0, v0, u1, v1 in (box for box, label in zip(true.box2d, true.label, strict=True) if label == UNKNOWN):
        shared = max(0.0, min(x1, u1) - max(x0, u0)) * max(0.0, min(y1, v1) - max(y0, v0))
        shares.append(shared / ((x1 - x0) * (y1 - y0)))
    return max(shares, default=0.0) > least


def thresholds(scores: list[float], positives: int) -> list[float]:
    """Of the scores, best first, those whose recall is nearest to 0, 1/40, 2/40 ..."""
    ranked, chosen, goal = sorted(scores, reverse=True), [], 0.0
    for i, value in enumerate(ranked):
        if i + 1 == len(ranked) or (i + 2) / positives - goal >= goal - (i + 1) / positives:
            chosen.append(value)
            goal += 1 / 40
    return chosen
