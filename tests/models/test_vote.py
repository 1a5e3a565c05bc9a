import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.draw import generator
from cofield.frame import collate
from cofield.models.semantics import entropy
from cofield.models.vote import (
    Confidence,
    as_if_even,
    choose_pixels,
    frequencies,
    ramp,
    segment_pixels,
    told_apart,
    vote,
)
from streets import frame

SURE, UNSURE = 0.97, 0.4


def rays(*rows: tuple[int, float], classes: int = 3) -> Tensor:
    """Distributions that give a class a probability and share the rest among the others."""
    out = torch.zeros(len(rows), classes)
    for i, (label, p) in enumerate(rows):
        out[i] = (1 - p) / (classes - 1)
        out[i, label] = p
    return out


def segments(*counts: int) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def test_the_examples_are_on_either_side_of_the_threshold() -> None:
    sure, unsure = entropy(rays((0, SURE), (0, UNSURE))).tolist()
    assert sure < 0.3 < unsure


def test_confident_rays_teach_the_uncertain_rays_of_their_segment() -> None:
    p = rays(*[(1, SURE)] * 5, (0, UNSURE), (2, UNSURE))
    found = vote(p, segments(7), Confidence())
    assert found.label.tolist() == [1] * 7
    assert found.votes.tolist() == [True] * 5 + [False] * 2
    assert found.voters.tolist() == [5]
    assert found.kept.tolist() == [True]


def test_a_segment_with_fewer_than_five_voting_rays_is_dropped() -> None:
    p = rays(*[(1, SURE)] * 4, *[(1, UNSURE)] * 20, *[(2, SURE)] * 5)
    found = vote(p, segments(24, 5), Confidence())
    assert found.voters.tolist() == [4, 5]
    assert found.kept.tolist() == [False, True]
    assert found.winner.tolist() == [1, 2]
    assert found.label.tolist() == [UNKNOWN] * 24 + [2] * 5
    assert vote(p, segments(24, 5), Confidence(rays=4)).kept.all()


def test_a_segment_whose_confident_rays_disagree_is_dropped() -> None:
    split = rays(*[(0, SURE)] * 5, *[(1, SURE)] * 5)
    found = vote(split, segments(10), Confidence())
    assert found.voters.tolist() == [10]
    assert (found.label == UNKNOWN).all()
    # One in fifty may differ: the mean's entropy is still below the threshold.
    nearly = rays(*[(0, SURE)] * 49, (1, SURE))
    assert (vote(nearly, segments(50), Confidence()).label == 0).all()


def test_without_a_threshold_every_ray_votes_and_only_their_number_counts() -> None:
    p = rays(*[(0, UNSURE)] * 6, *[(1, SURE)] * 4)
    found = vote(p, segments(6, 4), Confidence(threshold=None))
    assert found.votes.all()
    assert found.kept.tolist() == [True, False]
    assert found.label.tolist() == [0] * 6 + [UNKNOWN] * 4


def test_the_class_is_that_of_the_mean_of_the_votes_not_of_their_number() -> None:
    p = torch.tensor([[0.51, 0.49]] * 3 + [[0.05, 0.95]] * 2)
    assert vote(p, segments(5), Confidence(threshold=None)).winner.tolist() == [1]


def test_rays_without_a_segment_get_nothing_and_give_nothing() -> None:
    p = rays(*[(1, SURE)] * 9)
    which = torch.tensor([4, 4, 4, 4, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN])
    found = vote(p, which, Confidence())
    assert found.segment.tolist() == [4]
    assert found.slot.tolist() == [0] * 4 + [UNKNOWN] * 5
    assert not found.votes[4:].any()
    assert (found.label == UNKNOWN).all()
    none = vote(p, torch.full((9,), UNKNOWN), Confidence())
    assert (none.label == UNKNOWN).all()
    assert none.kept.shape == (0,)


def test_a_segment_in_which_nobody_votes_has_no_winner() -> None:
    found = vote(rays(*[(2, UNSURE)] * 6), segments(6), Confidence())
    assert found.winner.tolist() == [UNKNOWN]
    assert found.voters.tolist() == [0]
    assert found.score()["kept"] == 0


def test_the_order_of_rays_and_the_numbers_of_segments_do_not_matter() -> None:
    draw = generator("votes")
    which = torch.randint(-1, 9, (200,), generator=draw)
    certainty = torch.eye(4)[which % 4] * which[:, None] * 0.6
    p = (torch.randn(200, 4, generator=draw) + certainty).softmax(-1)
    found = vote(p, which, Confidence(threshold=0.8))
    assert 0 < found.kept.sum() < len(found.kept)
    order = torch.randperm(200, generator=draw)
    assert torch.equal(vote(p[order], which[order], Confidence(threshold=0.8)).label, found.label[order])
    renamed = torch.where(which < 0, which, 100 - 7 * which)
    assert torch.equal(vote(p, renamed, Confidence(threshold=0.8)).label, found.label)


def test_a_segment_is_judged_alone() -> None:
    draw = generator("alone")
    p = (torch.randn(60, 4, generator=draw) * 3).softmax(-1)
    which = torch.arange(60) % 4
    both = vote(p, which, Confidence(threshold=0.9))
    for segment in range(4):
        mine = which == segment
        assert torch.equal(vote(p[mine], which[mine], Confidence(threshold=0.9)).label, both.label[mine])


def test_a_segment_for_every_ray_labels_confident_rays_by_themselves() -> None:
    p = rays((0, SURE), (1, UNSURE), (2, SURE))
    assert vote(p, torch.arange(3), Confidence(rays=1)).label.tolist() == [0, UNKNOWN, 2]


def test_votes_carry_no_gradient() -> None:
    p = rays(*[(1, SURE)] * 6).requires_grad_()
    assert not vote(p, segments(6), Confidence()).label.requires_grad


def test_the_score_counts_what_is_kept_and_what_is_right() -> None:
    p = rays(*[(1, SURE)] * 6, *[(0, UNSURE)] * 2)
    found = vote(p, segments(6, 2), Confidence())
    truth = torch.tensor([1, 1, 1, 2, UNKNOWN, 1, 0, UNKNOWN])
    score = found.score(truth)
    assert score["kept"] == 0.5
    assert score["voting"] == 6 / 8
    assert score["labelled"] == 6 / 8
    assert score["precision"] == pytest.approx(4 / 5)
    assert score["recall"] == pytest.approx(4 / 6)
    assert score["unfounded"] == pytest.approx(1 / 6)
    assert "precision" not in found.score()
    all_rejected = vote(p[6:], segments(2), Confidence()).score(truth[6:])
    assert all_rejected["kept"] == 0
    assert math.isnan(all_rejected["precision"])
    assert all_rejected["recall"] == 0


def test_thresholds_that_make_no_sense_are_refused() -> None:
    for wrong in (
        {"threshold": 0.0},
        {"threshold": 1.5},
        {"rays": 0},
        {"pixels": 0},
        {"caution": -0.1},
        {"balance": 2.0},
    ):
        with pytest.raises(ValueError, match="got"):
            Confidence(**wrong)


# Class 2 was one label in a hundred, class 0 the other 99.
PRIOR = torch.tensor([0.99, 0.0, 0.01])


def test_as_if_classes_were_even_is_bayes_rule_with_another_prior() -> None:
    p = torch.tensor([[0.9, 0.0, 0.1], [0.99, 0.0, 0.01], [0.5, 0.5, 0.0]])
    even = as_if_even(p, PRIOR, 1.0)
    torch.testing.assert_close(even[0], torch.tensor([9 / 108, 0, 99 / 108]))
    torch.testing.assert_close(even[1], torch.tensor([0.5, 0.0, 0.5]))
    torch.testing.assert_close(even[2], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(as_if_even(p[:1], PRIOR, 0.0), p[:1])
    flat = torch.full((3,), 1 / 3)
    torch.testing.assert_close(as_if_even(p, flat, 1.0), p)


def test_with_caution_what_may_be_a_rare_class_is_not_taught_as_a_common_one() -> None:
    # As a network speaks of a class that it has hardly seen: nine tenths sure of its neighbour.
    doubtful, plain = torch.tensor([[0.95, 0.0, 0.05]] * 6), torch.tensor([[0.9999, 0.0, 0.0001]] * 6)
    p, which = torch.cat([doubtful, plain]), segments(6, 6)
    careless = vote(p, which, Confidence())
    assert careless.label.tolist() == [0] * 12
    careful = vote(p, which, Confidence(caution=1.0), PRIOR)
    assert careful.label.tolist() == [UNKNOWN] * 6 + [0] * 6
    # As for the votes, nothing has changed.
    assert torch.equal(careful.votes, careless.votes)
    assert torch.equal(vote(p, which, Confidence(caution=0.5), torch.full((3,), 1 / 3)).label, careless.label)


def test_with_balance_what_may_be_a_rare_class_is_taught_as_rare() -> None:
    doubtful, plain = torch.tensor([[0.5, 0.0, 0.5]] * 6), torch.tensor([[0.9999, 0.0, 0.0001]] * 6)
    p, which = torch.cat([doubtful, plain]), segments(6, 6)
    assert vote(p, which, Confidence()).label.tolist() == [UNKNOWN] * 6 + [0] * 6
    assert vote(p, which, Confidence(balance=1.0), PRIOR).label.tolist() == [2] * 6 + [0] * 6


def test_who_knows_nothing_does_not_vote_for_the_rarest_class() -> None:
    prior, blind = torch.tensor([0.6, 0.3, 0.0999, 0.0001]), torch.full((6, 4), 0.25)
    even = as_if_even(blind, prior, 1.0)
    torch.testing.assert_close(even, blind)
    assert vote(blind, segments(6), Confidence(balance=1.0), prior).label.tolist() == [UNKNOWN] * 6
    # Half of a ray stops, nine tenths sure of a class: that half is weighed, the rest stays even.
    half = 0.5 * torch.tensor([0.9, 0.1, 0.0, 0.0]) + 0.125
    torch.testing.assert_close(as_if_even(half, prior, 1.0), 0.5 * torch.tensor([9 / 11, 2 / 11, 0, 0]) + 0.125)
    never = as_if_even(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.5, 0.5]), 1.0)
    torch.testing.assert_close(never, torch.full((3,), 1 / 3))


def test_caution_and_balance_need_to_know_how_often_classes_are_labelled() -> None:
    for rare in (Confidence(caution=0.5), Confidence(balance=0.5)):
        with pytest.raises(ValueError, match="need the prior"):
            vote(rays((0, SURE)), segments(1), rare)


def test_frequencies_are_shares_of_the_known_labels() -> None:
    found = frequencies(torch.tensor([0, 2, 2, UNKNOWN, 2]), 4)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.0, 0.75, 0.0]))
    assert not frequencies(torch.full((3,), UNKNOWN), 4).any()


def test_the_ramp_rises_over_its_share_of_the_steps() -> None:
    assert [ramp(step, 100) for step in (0, 10, 20, 50, 100)] == pytest.approx([0, 0.5, 1, 1, 1])
    later = [ramp(step, 400, share=0.2, start=0.2) for step in (0, 80, 100, 120, 160, 400)]
    assert later == pytest.approx([0, 0, 0.25, 0.5, 1, 1])
    assert [ramp(step, 10, share=0.0, start=0.5) for step in (4, 5)] == [0, 1]


def test_segments_of_different_images_are_told_apart_and_small_ones_left_out() -> None:
    images = torch.tensor([[[[0, 0, 1, -1]], [[0, 0, 0, 2]]], [[[1, 1, 0, 0]], [[-1, -1, -1, -1]]]])
    found = told_apart(images)
    known = found[found != UNKNOWN]
    assert torch.equal(found == UNKNOWN, images == UNKNOWN)
    assert len(known.unique()) == 6
    large = told_apart(images, smallest=2)
    assert torch.equal(
        large != UNKNOWN, torch.tensor([[[[1, 1, 0, 0]], [[1, 1, 1, 0]]], [[[1, 1, 1, 1]], [[0] * 4]]]).bool()
    )
    assert torch.equal(large[large != UNKNOWN], found[large != UNKNOWN])
    assert told_apart(images[:, :0]).shape == (2, 0, 1, 4)


def test_pixels_are_those_of_some_segments_and_no_more_of_each_than_asked() -> None:
    image = torch.tensor([5] * 30 + [UNKNOWN] * 40 + [2] * 3 + [9] * 50)[torch.randperm(123, generator=generator("s"))]
    chosen = choose_pixels(image, 2, 8, generator("p"))
    names, counts = image[chosen].unique(return_counts=True)
    assert len(names) == 2
    assert all(count == min(8, int((image == name).sum())) for name, count in zip(names, counts, strict=True))
    assert torch.equal(chosen, chosen.unique())
    everything = choose_pixels(image, 99, 999, generator("p"))
    assert torch.equal(everything, (image != UNKNOWN).nonzero()[:, 0])
    assert torch.equal(choose_pixels(image, 2, 8, generator("p")), chosen)
    assert not torch.equal(choose_pixels(image, 2, 8, generator("q")), chosen)
    assert len(choose_pixels(torch.full((7,), UNKNOWN), 2, 8, generator("p"))) == 0


def test_every_segment_and_every_pixel_of_it_is_as_likely_as_any_other() -> None:
    image = torch.tensor([0] * 4 + [1] * 20)
    hits = torch.zeros(24)
    for trial in range(600):
        hits[choose_pixels(image, 1, 2, generator("even", trial))] += 1
    share = hits / 600
    # Half of the trials for either segment, two pixels each; within four standard deviations.
    assert (share[:4] - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 600)
    assert (share[4:] - 0.05).abs().max() < 4 * math.sqrt(0.05 * 0.95 / 600)


def test_a_frames_pixels_depend_on_neither_its_batch_nor_its_place_in_it() -> None:
    a, b = frame("a"), frame("b")
    labels = torch.arange(640).view(1, 1, 16, 40).expand(1, 2, 16, 40) // 60
    alone = segment_pixels(collate([a]), told_apart(labels), 3, 4, seed=1)
    after = segment_pixels(collate([b, a]), told_apart(labels.expand(2, 2, 16, 40)), 3, 4, seed=1)
    assert len(alone) == 2 * 3 * 4
    mine = after[after >= 1280] - 1280
    assert torch.equal(mine, alone)
    assert not torch.equal(after[after < 1280], alone)
    later = collate([a], [1])
    assert not torch.equal(segment_pixels(later, told_apart(labels), 3, 4, seed=1), alone)


def test_one_camera_of_each_frame_can_be_enough() -> None:
    batch = collate([frame("a"), frame("b"), frame("c"), frame("d")])
    labels = torch.zeros(4, 2, 16, 40).long()
    chosen = segment_pixels(batch, told_apart(labels), 3, 4, seed=0, cameras=1)
    view = chosen // 640
    assert view.div(2, rounding_mode="floor").unique().tolist() == [0, 1, 2, 3]
    assert len(view.unique()) == 4
    assert len({int(v) % 2 for v in view.unique()}) == 2


def test_frames_without_cameras_have_no_pixels_to_choose() -> None:
    blind = collate([replace(frame("a"), cameras=())])
    with pytest.raises(ValueError, match="without cameras"):
        segment_pixels(blind, torch.zeros(1, 0, 0, 0).long(), 3, 4, seed=0)
