import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.draw import generator
from cofield.models.render import Seen
from cofield.models.semantics import entropy, lovasz_softmax, rendered_loss, seen_classes, segmentation_loss


def random_case(points: int, classes: int, key: int) -> tuple[Tensor, Tensor]:
    draw = generator("case", key)
    logits = torch.randn(points, classes, generator=draw, dtype=torch.float64) * 2
    return logits, torch.randint(classes - 1, (points,), generator=draw)  # the last class never occurs


def jaccard_loss(wrong: set[int], foreground: set[int]) -> float:
    """1 - IoU of a class when the points `wrong` are mistaken, whichever way."""
    predicted = foreground ^ wrong
    return 1 - len(foreground & predicted) / len(foreground | predicted)


def by_thresholds(probability: Tensor, labels: Tensor) -> float:
    """The Lovász extension as an integral: over a threshold t, the loss of the points whose error is above t."""
    losses = []
    for c in labels.unique().tolist():
        foreground = {i for i, y in enumerate(labels.tolist()) if y == c}
        error = [1 - p if i in foreground else p for i, p in enumerate(probability[:, c].tolist())]
        levels = sorted({0.0, *error})
        losses.append(
            sum(
                (high - low) * jaccard_loss({i for i, m in enumerate(error) if m > low}, foreground)
                for low, high in itertools.pairwise(levels)
            )
        )
    return sum(losses) / len(losses)


@pytest.mark.parametrize("key", range(5))
def test_the_lovasz_loss_is_the_integral_of_the_jaccard_loss_over_thresholds(key: int) -> None:
    logits, labels = random_case(23, 5, key)
    probability = logits.softmax(-1)
    expected = by_thresholds(probability, labels)
    assert lovasz_softmax(probability, labels).item() == pytest.approx(expected, abs=1e-12)


def test_points_that_are_equally_wrong_may_come_in_any_order() -> None:
    probability = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.2, 0.8]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    expected = by_thresholds(probability, labels)
    for order in itertools.permutations(range(4)):
        found = lovasz_softmax(probability[list(order)], labels[list(order)])
        assert found.item() == pytest.approx(expected, abs=1e-12)


def test_for_certain_predictions_the_lovasz_loss_is_one_minus_iou() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 1, 1, 1, 1])
    found = lovasz_softmax(F.one_hot(predicted, 4).float(), labels)
    # Class 0: 2 of 3, class 1: 2 of 4, class 2: 0 of 1; class 3 does not occur.
    torch.testing.assert_close(found, torch.tensor(1 - (2 / 3 + 2 / 4 + 0) / 3))


def test_a_single_point_loses_what_it_lacks() -> None:
    torch.testing.assert_close(lovasz_softmax(torch.tensor([[0.3, 0.6, 0.1]]), torch.tensor([1])), torch.tensor(0.4))


def test_perfect_predictions_lose_nothing_and_perfectly_wrong_ones_all() -> None:
    labels = torch.tensor([0, 1, 2, 2])
    assert lovasz_softmax(F.one_hot(labels, 3).float(), labels) == 0
    assert lovasz_softmax(F.one_hot((labels + 1) % 3, 3).float(), labels) == 1


def test_segmentation_loss_is_cross_entropy_plus_lovasz_of_the_known_points() -> None:
    logits, labels = random_case(30, 4, 9)
    labels[::3] = UNKNOWN
    known = labels != UNKNOWN
    chosen = logits[known].float()
    right = chosen.softmax(-1)[torch.arange(len(chosen)), labels[known]]
    expected = -right.log().mean() + by_thresholds(chosen.softmax(-1).double(), labels[known])
    torch.testing.assert_close(segmentation_loss(logits, labels), expected, atol=1e-5, rtol=0, check_dtype=False)
    other = torch.where(known, labels, 7)
    torch.testing.assert_close(segmentation_loss(logits, other, ignore=7), segmentation_loss(logits, labels))


def test_points_without_a_label_get_no_gradient_and_a_scan_without_any_is_no_accident() -> None:
    logits = torch.randn(6, 3, generator=generator("g")).requires_grad_()
    labels = torch.tensor([0, UNKNOWN, 2, UNKNOWN, 1, 1])
    segmentation_loss(logits, labels).backward()
    assert logits.grad is not None
    assert not logits.grad[[1, 3]].any()
    assert logits.grad[[0, 2, 4, 5]].any(1).all()
    logits.grad = None
    loss = segmentation_loss(logits, torch.full((6,), UNKNOWN))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_the_gradient_of_the_lovasz_loss_is_that_of_finite_differences() -> None:
    logits, labels = random_case(12, 4, 3)
    assert torch.autograd.gradcheck(lambda x: lovasz_softmax(x.softmax(-1), labels), logits.requires_grad_())


@pytest.mark.parametrize("classes", [2, 7, 16])
def test_a_uniform_ray_has_entropy_one_and_a_certain_one_none(classes: int) -> None:
    torch.testing.assert_close(entropy(torch.full((3, classes), 1 / classes)), torch.ones(3))
    assert not entropy(torch.eye(classes)).any()


def test_two_of_four_classes_alike_are_half_the_entropy() -> None:
    torch.testing.assert_close(entropy(torch.tensor([[0.5, 0.5, 0.0, 0.0]])), torch.tensor([0.5]))
    p = torch.tensor([[0.7, 0.2, 0.1]])
    expected = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)) / math.log(3)
    torch.testing.assert_close(entropy(p), torch.tensor([expected]))
    torch.testing.assert_close(entropy(p[:, [2, 0, 1]]), entropy(p))
    with pytest.raises(ValueError, match="two classes"):
        entropy(torch.ones(3, 1))


def seen(classes: Tensor, opacity: Tensor) -> Seen:
    none = torch.zeros(len(opacity), 1)
    return Seen(opacity, opacity, {"semantics": classes}, none, none)


def test_an_empty_ray_knows_nothing_and_a_half_empty_one_half() -> None:
    integral = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    found = seen_classes(seen(integral, torch.tensor([0.0, 0.5, 1.0])))
    torch.testing.assert_close(found, torch.tensor([[0.25] * 4, [0.625, 0.125, 0.125, 0.125], [0.0, 1.0, 0.0, 0.0]]))
    torch.testing.assert_close(entropy(found)[[0, 2]], torch.tensor([1.0, 0.0]))


def test_the_rendered_loss_is_the_mean_surprise_at_known_labels() -> None:
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.25, 0.75]], requires_grad=True)
    loss = rendered_loss(p, torch.tensor([0, UNKNOWN, 1]))
    torch.testing.assert_close(loss, torch.tensor((math.log(2) - math.log(0.75)) / 2))
    loss.backward()
    assert p.grad is not None
    torch.testing.assert_close(p.grad, torch.tensor([[-1.0, 0.0], [0.0, 0.0], [0.0, -1 / 1.5]]))
    none = rendered_loss(p, torch.full((3,), UNKNOWN))
    none.backward()
    assert none == 0


def test_an_impossible_class_costs_much_and_not_everything() -> None:
    loss = rendered_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert 10 < loss < 20
