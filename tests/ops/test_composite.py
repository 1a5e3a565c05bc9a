import math

import torch

from cofield.draw import generator
from cofield.ops.composite import composite, ray_weights


def test_a_uniform_medium_lets_through_what_beer_and_lambert_say() -> None:
    density = torch.full((2, 3, 5), 0.4)
    step = torch.full((2, 3, 5), 0.7)
    weight = ray_weights(density, step)
    torch.testing.assert_close(weight.sum(-1), torch.full((2, 3), 1 - math.exp(-0.4 * 0.7 * 5)))
    before = torch.exp(-0.28 * torch.arange(5))
    torch.testing.assert_close(weight[0, 0], before * (1 - math.exp(-0.28)))


def test_an_opaque_wall_hides_everything_behind_it_and_shows_itself_whole() -> None:
    density = torch.tensor([[0.0, 1e6, 1e6, 5.0]])
    weight = ray_weights(density, torch.ones(1, 4))
    assert weight.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_a_wall_of_any_hardness_behind_thin_air_keeps_its_share() -> None:
    """An inclusive sum minus the sample's own share loses the thin air in front to rounding; at 1e6 a whole percent."""
    for hardness in (1e2, 1e4, 1e6, 1e8):
        weight = ray_weights(torch.tensor([[0.01, 0.01, hardness]]), torch.ones(1, 3))
        torch.testing.assert_close(weight[0, 2], torch.tensor(math.exp(-0.02)))


def test_splitting_an_interval_changes_nothing() -> None:
    density = torch.rand(4, 6, generator=generator("density"))
    step = torch.rand(4, 6, generator=generator("step"))
    value = torch.rand(4, 6, 2, generator=generator("value"))
    whole = composite(ray_weights(density, step), value)
    halved = ray_weights(density.repeat_interleave(2, -1), step.repeat_interleave(2, -1) / 2)
    torch.testing.assert_close(composite(halved, value.repeat_interleave(2, -2)), whole)


def test_an_empty_ray_sees_nothing_and_still_has_a_gradient() -> None:
    density = torch.full((1, 8), 1e-4, requires_grad=True)
    opacity = ray_weights(density, torch.full((1, 8), 5.0)).sum()
    assert opacity < 0.005
    opacity.backward()
    assert density.grad is not None
    assert (density.grad > 1).all()


def test_weights_are_the_derivative_of_the_integral() -> None:
    density = torch.rand(2, 5, dtype=torch.float64, generator=generator("d"))
    value = torch.rand(2, 5, 3, generator=generator("v"), requires_grad=True)
    weight = ray_weights(density, torch.ones(2, 5, dtype=torch.float64))
    composite(weight, value).sum().backward()
    torch.testing.assert_close(value.grad, weight.float()[..., None].expand(2, 5, 3))
