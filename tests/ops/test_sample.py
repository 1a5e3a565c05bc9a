import torch
import torch.nn.functional as F
from torch.library import opcheck

from cofield.draw import generator
from cofield.ops.sample import corners, sample

COUNT = (7, 5, 3)  # x y z


def volume(channels: int = 2, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, *COUNT[::-1], generator=generator("volume"))


def places(count: int, low: float = 0.0, high: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = generator("places")
    return torch.rand(count, 3, generator=draw) * (high - low) + low, torch.randint(2, (count,), generator=draw)


def test_at_a_cells_centre_its_own_value_is_found() -> None:
    features = volume()
    x, y, z = 4, 2, 1
    unit = (torch.tensor([[x, y, z]]) + 0.5) / torch.tensor(COUNT)
    torch.testing.assert_close(sample(features, unit, torch.tensor([1])), features[1:, :, z, y, x])


def test_a_linear_field_is_reproduced_between_the_outer_centres() -> None:
    x, y, z = (torch.arange(n) + 0.5 for n in COUNT)
    features = (2 * x[None, None, :] - 3 * y[None, :, None] + z[:, None, None]).expand(2, 1, 3, 5, 7).float()
    margin = 0.5 / torch.tensor(COUNT)
    unit, which = places(100)
    unit = margin + unit * (1 - 2 * margin)
    expected = (unit * torch.tensor(COUNT) * torch.tensor([2.0, -3.0, 1.0])).sum(-1, keepdim=True)
    torch.testing.assert_close(sample(features, unit, which), expected)


def test_values_and_gradients_equal_those_of_the_grid_sampler() -> None:
    features = volume(channels=4)
    unit, which = places(200, low=-0.2, high=1.2)
    ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
    one = sample(ours, unit, which)
    flow = (unit * 2 - 1)[None, None, None].expand(2, 1, 1, -1, 3)
    both = F.grid_sample(theirs, flow, align_corners=False, padding_mode="border")[:, :, 0, 0]
    two = both[which, :, torch.arange(200)]
    torch.testing.assert_close(one, two)
    weight = torch.randn(200, 4, generator=generator("weight"))
    (one * weight).sum().backward()
    (two * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_operator_is_registered_as_torch_expects() -> None:
    table = torch.randn(9, 3, generator=generator("table"), requires_grad=True)
    index = torch.randint(9, (6, 8), generator=generator("index"))
    weight = torch.rand(6, 8, generator=generator("weights"))
    opcheck(torch.ops.cofield.rows.default, (table, index, weight))


def test_the_kernels_gradient_is_that_of_the_bag_it_replaces() -> None:
    draw = generator("bag")
    table = torch.randn(50, 4, generator=draw, dtype=torch.float64)
    index = torch.randint(50, (300, 8), generator=draw)
    weight = torch.rand(300, 8, generator=draw, dtype=torch.float64)
    ours, bag = table.clone().requires_grad_(), table.clone().requires_grad_()
    out = torch.randn(300, 4, generator=draw, dtype=torch.float64)
    (torch.ops.cofield.rows(ours, index, weight) * out).sum().backward()
    (F.embedding_bag(index, bag, mode="sum", per_sample_weights=weight) * out).sum().backward()
    torch.testing.assert_close(ours.grad, bag.grad)


def test_an_axis_that_wraps_has_no_seam() -> None:
    features = volume()
    at = torch.tensor([[0.5, 0.0, 0.5], [0.5, 1.0, 0.5], [0.5, 1e-6, 0.5], [0.5, 1 - 1e-6, 0.5]])
    values = sample(features, at, torch.zeros(4, dtype=torch.long), wraps=(False, True, False))
    middle = (features[0, :, 1, 0, 3] + features[0, :, 1, 4, 3]) / 2
    torch.testing.assert_close(values, middle.expand(4, 2), atol=1e-4, rtol=0)


def test_the_eight_weights_sum_to_one_and_every_index_exists() -> None:
    unit, _ = places(300, low=-1.0, high=2.0)
    for wraps in ((False, False, False), (True, False, False), (False, True, True)):
        index, weight = corners(unit, COUNT, wraps)
        assert index.min() >= 0
        assert index.max() < 7 * 5 * 3
        torch.testing.assert_close(weight.sum(-1), torch.ones(300))
        assert (weight >= 0).all()
