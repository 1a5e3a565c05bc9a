import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

from cofield.draw import generator
from cofield.ops.sparse import (
    Links,
    Sites,
    Sparse,
    Triple,
    convolve,
    inverse,
    links_reference,
    reached_reference,
    strided,
    submanifold,
    unravel,
)

SHAPE, BATCH = (5, 7, 9), 2
KERNELS = [(3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1), (3, 1, 1), (1, 1, 5)]
STEPS = [((3, 3, 3), (2, 2, 2), (1, 1, 1)), ((3, 3, 3), (1, 2, 2), (0, 1, 1)), ((3, 1, 1), (2, 1, 1), (0, 0, 0)),
         ((2, 2, 2), (2, 2, 2), (0, 0, 0))]  # fmt: skip


def scattered(count: int = 150, shape: Triple = SHAPE, wraps: tuple[bool, bool, bool] = (False,) * 3) -> Sites:
    """Different cells, their order mixed, corners among them."""
    cells = BATCH * shape[0] * shape[1] * shape[2]
    flat = torch.randperm(cells - 2, generator=generator("sites"))[: min(count, cells) - 2] + 1
    flat = torch.cat([flat, torch.tensor([cells - 1, 0])])
    return Sites(unravel(flat, shape), shape, BATCH, wraps)


def random(*shape: int, key: str = "features", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(key), dtype=dtype)


def volume(sites: Sites, channels: int = 4, dtype: torch.dtype = torch.float32) -> Sparse:
    return Sparse(random(len(sites), channels, dtype=dtype).requires_grad_(), sites)


def kernel(size: Triple, channels: int = 4, out: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return random(*size, channels, out, key="kernel", dtype=dtype).requires_grad_()


def dense_kernel(weight: torch.Tensor) -> torch.Tensor:
    return weight.permute(4, 3, 0, 1, 2)


def rolled(dense: torch.Tensor, size: Triple, padding: Triple, wraps: tuple[bool, bool, bool]) -> torch.Tensor:
    """Padded with what lies over the seam, or with zeros."""
    for axis in range(3):
        n, p = dense.shape[axis + 2], padding[axis]
        reach = torch.arange(-p, n + size[axis] - 1 - p if wraps[axis] else n + p)
        piece = dense.index_select(axis + 2, reach % n)
        keep = (reach >= 0) & (reach < n) | torch.tensor(wraps[axis])
        dense = piece * keep.view([-1 if d == axis + 2 else 1 for d in range(5)])
    return dense


def at(dense: torch.Tensor, sites: Sites) -> torch.Tensor:
    b, z, y, x = sites.coordinates.unbind(1)
    return dense[b, :, z, y, x]


def assert_same_with_gradients(one: torch.Tensor, two: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    weight = random(*one.shape, key="out", dtype=one.dtype)
    for a, b in zip(
        torch.autograd.grad((one * weight).sum(), inputs),
        torch.autograd.grad((two * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_lonely_voxel_meets_the_middle_of_the_kernel_only() -> None:
    one = Sparse(torch.tensor([[2.0, 3.0]]), Sites(torch.tensor([[1, 2, 3, 4]]), SHAPE, BATCH))
    weight = kernel((3, 3, 3), 2)
    torch.testing.assert_close(submanifold(one, weight).features, one.features @ weight[1, 1, 1])


def test_a_neighbour_is_seen_through_the_cell_of_the_kernel_that_lies_on_it() -> None:
    sites = Sites(torch.tensor([[0, 2, 3, 4], [0, 2, 4, 4], [1, 2, 3, 5]]), SHAPE, BATCH)
    pair = Sparse(torch.tensor([[1.0], [10.0], [100.0]]), sites)
    weight = torch.zeros(3, 3, 3, 1, 1)
    weight[1, 2, 1] = 1.0  # what is one cell further in y
    assert submanifold(pair, weight).features[:, 0].tolist() == [10.0, 0.0, 0.0]


@pytest.mark.parametrize("size", KERNELS)
@pytest.mark.parametrize("wraps", [(False, False, False), (False, True, False)])
def test_a_submanifold_convolution_is_the_dense_one_at_its_sites(size: Triple, wraps: tuple[bool, bool, bool]) -> None:
    sites = scattered(wraps=wraps)
    given, weight = volume(sites), kernel(size)
    padding = tuple(k // 2 for k in size)
    dense = F.conv3d(rolled(given.dense(), size, padding, wraps), dense_kernel(weight))
    assert_same_with_gradients(submanifold(given, weight).features, at(dense, sites), [given.features, weight])


@pytest.mark.parametrize(("size", "stride", "padding"), STEPS)
@pytest.mark.parametrize("wraps", [(False, False, False), (False, True, False), (True, False, True)])
def test_a_strided_convolution_is_the_dense_one_wherever_it_sees_a_site(
    size: Triple, stride: Triple, padding: Triple, wraps: tuple[bool, bool, bool]
) -> None:
    sites = scattered(60, wraps=wraps)
    given, weight = volume(sites), kernel(size)
    coarse = strided(given, weight, stride, padding)
    dense = F.conv3d(rolled(given.dense(), size, padding, wraps), dense_kernel(weight), stride=stride)
    assert coarse.sites.shape == dense.shape[2:]
    assert_same_with_gradients(coarse.dense(), dense, [given.features, weight])
    seen = F.conv3d(rolled(given.dense().detach().abs().sum(1, keepdim=True), size, padding, wraps),
                    torch.ones(1, 1, *size), stride=stride)  # fmt: skip
    assert torch.equal(coarse.sites.flat, seen.flatten().nonzero()[:, 0])


@pytest.mark.parametrize(("size", "stride", "padding"), STEPS)
def test_an_inverse_convolution_is_the_transposed_dense_one_at_the_earlier_sites(
    size: Triple, stride: Triple, padding: Triple
) -> None:
    fine = scattered(60)
    coarse, _ = fine.coarser(size, stride, padding)
    given, weight = volume(coarse), kernel(size)
    back = inverse(given, weight, fine, stride, padding)
    assert back.sites is fine
    spread = F.conv_transpose3d(given.dense(), dense_kernel(weight).transpose(0, 1), stride=stride)
    # Where the strided kernel did not reach the far border, neither does its transpose.
    far = [max(0, p + n - m) for p, n, m in zip(padding, SHAPE, spread.shape[2:], strict=True)]
    spread = F.pad(spread, (0, far[2], 0, far[1], 0, far[0]))[..., padding[0] :, padding[1] :, padding[2] :]
    assert_same_with_gradients(back.features, at(spread, fine), [given.features, weight])


def test_strided_and_inverse_are_transposes_of_each_other_also_over_the_seam() -> None:
    fine = scattered(60, wraps=(False, True, False))
    step = ((2, 2, 2), (1, 1, 1))
    given, weight = volume(fine, dtype=torch.float64), kernel((3, 3, 3), dtype=torch.float64)
    down = strided(given, weight, *step)
    other = random(len(down.sites), 3, key="other", dtype=torch.float64)
    back = inverse(Sparse(other, down.sites), weight.mT, fine, *step)
    torch.testing.assert_close((down.features * other).sum(), (given.features * back.features).sum())


def test_gradients_are_those_of_finite_differences() -> None:
    sites = scattered(20)
    _, links = sites.coarser((3, 3, 3), (2, 2, 2), (1, 1, 1))
    rows = int(links.target.max()) + 1
    features = random(20, 2, dtype=torch.float64).requires_grad_()
    weight = kernel((3, 3, 3), 2, 2, torch.float64)
    torch.autograd.gradcheck(lambda f, w: convolve(f, w, links, rows), (features, weight))


def test_the_operator_is_registered_as_torch_expects() -> None:
    links = scattered(20).neighbours((1, 3, 3))
    inputs = (random(20, 4).requires_grad_(), random(9, 4, 3).requires_grad_())
    opcheck(torch.ops.cofield.convolve.default, (*inputs, links.source, links.target, list(links.starts), 20))
    inputs = (random(20, 3), random(20, 4))
    opcheck(torch.ops.cofield.convolve_weight.default, (*inputs, links.source, links.target, list(links.starts)))


@pytest.mark.parametrize("wraps", list(itertools.product((False, True), repeat=3)))
@pytest.mark.parametrize("shape", [SHAPE, (4, 6, 8), (1, 2, 3)])
def test_the_kernel_maps_of_pointers_and_of_bisection_are_the_same(
    shape: Triple, wraps: tuple[bool, bool, bool]
) -> None:
    def pairs(links: Links) -> list[set[tuple[int, int]]]:
        found = torch.stack([links.source, links.target], 1).tolist()
        return [{(s, t) for s, t in found[low:high]} for low, high in itertools.pairwise(links.starts)]

    sites = scattered(100, shape, wraps)
    for size in KERNELS[:4]:
        padding = tuple(k // 2 for k in size)
        ours = sites.neighbours(size)
        assert pairs(ours) == pairs(links_reference(sites, sites, size, (1, 1, 1), padding))
        assert ours.starts[-1] == len(ours.source) >= len(sites)
    step = ((3, 3, 3), (2, 2, 2), (1, 1, 1))
    coarse, links = sites.coarser(*step)
    assert torch.equal(coarse.flat, reached_reference(sites, coarse.shape, *step))
    assert pairs(links) == pairs(links_reference(sites, coarse, *step))


def test_a_level_looks_for_its_neighbours_once() -> None:
    sites = scattered()
    assert sites.neighbours((3, 3, 3)) is sites.neighbours((3, 3, 3))
    step = ((3, 3, 3), (2, 2, 2), (1, 1, 1))
    assert sites.coarser(*step)[0] is sites.coarser(*step)[0]


def test_voxels_in_another_order_give_the_same_results_in_that_order() -> None:
    sites = scattered()
    order = torch.randperm(len(sites), generator=generator("order"))
    given, weight = volume(sites), kernel((3, 3, 3))
    other = Sparse(given.features[order], Sites(sites.coordinates[order], SHAPE, BATCH))
    torch.testing.assert_close(submanifold(given, weight).features[order], submanifold(other, weight).features)
    one, two = (strided(each, weight, (2, 2, 2), (1, 1, 1)) for each in (given, other))
    assert torch.equal(one.sites.coordinates, two.sites.coordinates)
    torch.testing.assert_close(one.features, two.features)


def test_nothing_in_gives_nothing_out_and_gradients_of_zero() -> None:
    given = volume(Sites(torch.zeros(0, 4, dtype=torch.long), SHAPE, BATCH))
    weight = kernel((3, 3, 3))
    down = strided(submanifold(given, weight @ weight.mT), weight, (2, 2, 2), (1, 1, 1))
    up = inverse(down, weight.mT, given.sites, (2, 2, 2), (1, 1, 1))
    assert (len(down.features), len(up.features)) == (0, 0)
    up.features.sum().backward()
    assert not weight.grad.any()
    assert not down.dense().any()


def test_empty_cells_hold_what_they_are_given() -> None:
    given = Sparse(torch.ones(1, 2), Sites(torch.tensor([[1, 0, 2, 3]]), SHAPE, BATCH))
    empty = torch.tensor([5.0, 7.0], requires_grad=True)
    dense = given.dense(empty)
    assert dense.shape == (BATCH, 2, *SHAPE)
    assert dense[1, :, 0, 2, 3].tolist() == [1.0, 1.0]
    assert dense[0, :, 0, 2, 3].tolist() == [5.0, 7.0]
    dense.sum().backward()
    assert empty.grad.tolist() == [BATCH * 5 * 7 * 9 - 1] * 2


def test_half_precision_rounds_once_and_not_at_every_neighbour() -> None:
    sites = scattered(600)
    given, weight = volume(sites, 32), kernel((3, 3, 3), 32, 8)
    exact = submanifold(Sparse(given.features.bfloat16().float(), sites), weight.bfloat16().float()).features
    with torch.autocast("cpu", torch.bfloat16):
        rough = submanifold(given, weight).features
    assert rough.dtype == torch.bfloat16
    # 27 products are rounded to 2⁻⁹ of themselves and their sum once more; summed in bf16 it is several times that.
    assert (rough.float() - exact).abs().mean() < 1.5 * 2**-9 * exact.abs().mean()
    rough.sum().backward()
    assert weight.grad.dtype == given.features.grad.dtype == torch.float32


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="below \\[2, 5, 7, 9\\] and none negative"):
        Sites(torch.tensor([[0, 5, 0, 0]]), SHAPE, BATCH)
    twice = Sites(torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1]]), SHAPE, BATCH)
    with pytest.raises(ValueError, match="different cells"):
        twice.neighbours((3, 3, 3))
    with pytest.raises(ValueError, match="odd sizes"):
        scattered().neighbours((2, 3, 3))
    with pytest.raises(ValueError, match="does not fit"):
        scattered().coarser((7, 1, 1), (1, 1, 1), (0, 0, 0))
    down = strided(volume(scattered()), kernel((3, 3, 3)), (2, 2, 2), (1, 1, 1))
    with pytest.raises(ValueError, match="undoes a strided one"):
        inverse(down, kernel((3, 3, 3), 3), scattered(), (2, 2, 2), (1, 1, 1))
