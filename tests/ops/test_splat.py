import torch
from torch.library import opcheck

from cofield.draw import generator
from cofield.ops.splat import splat


def case(pixels: int = 12, bins: int = 5, channels: int = 3, cells: int = 10) -> tuple[torch.Tensor, ...]:
    draw = generator("splat")
    share = torch.rand(pixels, bins, generator=draw).softmax(-1)
    features = torch.randn(pixels, channels, generator=draw)
    cell = torch.randint(-1, cells, (pixels, bins), generator=draw)
    return share, features, cell


def by_frustum(share: torch.Tensor, features: torch.Tensor, cell: torch.Tensor, cells: int) -> torch.Tensor:
    """The same by building every product first."""
    frustum = share[..., None] * features[:, None]
    inside = cell >= 0
    return torch.zeros(cells, features.shape[1]).index_add(0, cell[inside], frustum[inside])


def test_values_and_gradients_equal_those_of_the_frustum() -> None:
    share, features, cell = case()
    inputs = [(share.clone().requires_grad_(), features.clone().requires_grad_()) for _ in range(2)]
    results = [splat(*inputs[0], cell, 10), by_frustum(*inputs[1], cell, 10)]
    torch.testing.assert_close(*results)
    weight = torch.randn(10, 3, generator=generator("weight"))
    for result in results:
        (result * weight).sum().backward()
    torch.testing.assert_close(inputs[0][0].grad, inputs[1][0].grad)
    torch.testing.assert_close(inputs[0][1].grad, inputs[1][1].grad)


def test_everything_that_lands_inside_arrives_once() -> None:
    share, features, cell = case()
    inside = (share * (cell >= 0)).sum(-1)
    torch.testing.assert_close(splat(share, features, cell, 10).sum(0), (inside[:, None] * features).sum(0))


def test_the_operator_is_registered_as_torch_expects() -> None:
    share, features, cell = case()
    opcheck(torch.ops.cofield.splat.default, (share.requires_grad_(), features.requires_grad_(), cell, 10))


def test_under_autocast_sums_stay_in_full_precision() -> None:
    share, features, cell = case()
    with torch.autocast("cpu", torch.bfloat16):
        result = splat(share.bfloat16(), features, cell, 10)
    assert result.dtype == torch.float32
