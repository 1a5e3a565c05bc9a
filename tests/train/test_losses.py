import math
from dataclasses import replace

import pytest
import torch

from cofield.draw import generator
from cofield.models.render import Seen
from cofield.rays import Rays
from cofield.train.losses import Balance, Term, Weights, bounded, compare, eikonal_term, total
from cofield.train.views import Target, View


def seen(range_: list[float], colour: float = 0.5) -> Seen:
    count = len(range_)
    none = torch.zeros(count, 4)
    return Seen(
        torch.tensor(range_), torch.full((count,), 0.75), {"colour": torch.full((count, 3), colour)}, none, none
    )


def view(name: str, value: torch.Tensor) -> View:
    count = len(value)
    one, zero = torch.ones(count), torch.zeros(count, dtype=torch.long)
    up = torch.tensor([[0.0, 0.0, 9.0]]).expand(count, 3)
    rays = Rays(up, -up / 9, one * 0, one * 50, one * 0.5, zero, zero)
    yes = torch.ones(count, dtype=torch.bool)
    return View(rays, {name: Target(value, yes, yes)}, torch.zeros(count, 4))


PLAIN = Weights(relative=False)


@pytest.mark.parametrize(
    ("name", "value", "difference"),
    [("range", 10.0, 2.0), ("depth", 10.0, -4.0), ("height", 1.0, -4.0), ("free", 0.0, 0.75)],
)
def test_every_term_is_absolute_or_squared_as_one_wishes(name: str, value: float, difference: float) -> None:
    one = view(name, torch.tensor([value]))
    for squared, expected in (((), abs(difference)), ((name,), difference**2)):
        term = compare(one, seen([12.0]), replace(PLAIN, squared=squared))[name]
        assert (term.total.item(), term.count.item()) == (expected, 1.0)


def test_colours_are_squared_unless_one_wishes_otherwise() -> None:
    one = view("colour", torch.tensor([[0.5, 0.7, 0.9]]))
    torch.testing.assert_close(compare(one, seen([1.0]), PLAIN)["colour"].total, torch.tensor((0.04 + 0.16) / 3))
    absolute = compare(one, seen([1.0]), replace(PLAIN, squared=()))["colour"].total
    torch.testing.assert_close(absolute, torch.tensor(0.2))


def test_relative_errors_are_shares_of_the_true_distance_of_at_least_five_metres() -> None:
    terms = compare(view("range", torch.tensor([10.0, 2.0])), seen([12.0, 3.0]), Weights())
    torch.testing.assert_close(terms["range"].total, torch.tensor(0.2 + 0.2))


def test_small_errors_count_as_they_are_and_none_beyond_the_outlier() -> None:
    error = torch.tensor([1e-4, 0.5, 1e9])
    torch.testing.assert_close(bounded(error, 0.5), torch.tensor([1e-4, 0.25, 0.5]), rtol=1e-3, atol=0)
    steep = torch.linspace(0, 50, 500)
    assert (bounded(steep, 0.5).diff() > 0).all()
    # Geman and McClure: c² d² / (c² + d²).
    d, c = torch.linspace(-3, 3, 7), 0.7
    torch.testing.assert_close(bounded(d.square(), c * c), c * c * d.square() / (c * c + d.square()))


def test_each_modality_has_its_own_outliers() -> None:
    weights = replace(PLAIN, outliers={"depth": 1.0, "range": 4.0})
    far = seen([1000.0])
    for name, expected in (("depth", 1.0), ("range", 4.0), ("height", 992.0)):
        total_ = compare(view(name, torch.tensor([1.0])), far, weights)[name].total
        torch.testing.assert_close(total_, torch.tensor(expected), rtol=0.01, atol=0)


def test_an_outlier_hardly_moves_what_the_many_agree_on() -> None:
    """Nineteen returns at 10 m and one at 40 m: squared errors settle between, bounded ones at 10 m."""
    value = torch.full((20,), 10.0)
    value[0] = 40.0
    settled = {}
    for outliers in ({}, {"range": 0.5}):
        weights = replace(PLAIN, squared=("range",), outliers=outliers)
        at = torch.linspace(9, 15, 61)
        losses = [compare(view("range", value), seen([float(each)] * 20), weights)["range"].total for each in at]
        settled[bool(outliers)] = at[torch.stack(losses).argmin()].item()
    assert settled[False] == pytest.approx(11.5, abs=0.06)
    assert settled[True] == pytest.approx(10.0, abs=0.06)


def test_options_name_terms_that_exist() -> None:
    for option, wrong in (("squared", ("smell",)), ("outliers", {"smell": 1.0}), ("masked_only", ("smell",))):
        with pytest.raises(ValueError, match=f"{option} names smell; the terms are colour, depth"):
            Weights(**{option: wrong})
    with pytest.raises(ValueError, match="an outlier's scale is above 0"):
        Weights(outliers={"depth": 0.0})


def terms(**means: float) -> dict[str, Term]:
    return {name: Term(torch.tensor(mean * 7), torch.tensor(7.0)) for name, mean in means.items()}


def test_learned_balance_starts_at_the_fixed_weights() -> None:
    weights = Weights(height=0.0)
    some = terms(colour=0.04, depth=0.7, range=0.3, free=0.1, above_colour=0.02)
    balance = Balance(weights)
    torch.testing.assert_close(balance(some), total(some, weights))
    assert set(balance.log_scale) == {"colour", "depth", "range", "free", "above_colour"}
    balance(some).backward()
    assert all(weight.grad is not None and weight.grad != 0 for weight in balance.parameters())


def test_the_best_uncertainty_makes_every_term_worth_the_same() -> None:
    """d/ds (w e^-s L + c s) = 0 at s = log(w L / c): the term is then worth c, whatever its error."""
    balance, some = Balance(Weights()), terms(colour=0.04, range=0.3)
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        balance(some).backward()
        optimizer.step()
    assert balance.log_scale["colour"].item() == pytest.approx(math.log(30 * 0.04 / 0.5), abs=1e-3)
    assert balance.log_scale["range"].item() == pytest.approx(math.log(0.3), abs=1e-3)


def test_a_term_without_anything_valid_does_not_become_certain() -> None:
    balance = Balance(Weights())
    balance({"depth": Term(torch.tensor(0.0), torch.tensor(0.0))}).backward()
    assert balance.log_scale["depth"].grad == 0


def test_the_eikonal_term_is_a_mean_over_stretches() -> None:
    excess = torch.rand(5, 7, generator=generator("excess"))
    torch.testing.assert_close(eikonal_term(excess).mean, excess.mean())
