"""Sparse 3-D convolution: features only where something is, and work only between neighbours that are there.

A convolution is Σ over kernel cells of (gather rows, multiply, add to rows). Which rows is a matter of the occupied
sites alone, so it is found once per level (`Links`) and shared by every layer on it. Submanifold, strided and inverse
convolution differ in their links and in nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cofield.ops.numba.sparse import add_bfloat_rows, add_rows, link, reach

Triple = tuple[int, int, int]
SLAB = 4096  # pairs at a time on a CPU: what is gathered stays in the cache until it is added


@dataclass(frozen=True)
class Links:
    """Which rows of one table reach which rows of another, through which cell of a kernel.

    Args:
        source, target: a row of either table per pair, grouped by kernel cell in z y x order.
        starts: the pairs of kernel cell k are starts[k] to starts[k + 1].
    """

    source: Int[Tensor, "p"]
    target: Int[Tensor, "p"]
    starts: tuple[int, ...]

    def reversed(self) -> "Links":
        """The same pairs, the other way round."""
        return Links(self.target, self.source, self.starts)


@dataclass(frozen=True, eq=False)
class Sites:
    """The occupied cells of a batch of volumes, in any order, each once.

    Args:
        coordinates: sample, z, y, x.
        shape: cells along z, y, x.
        wraps: axes (z, y, x) whose last cell is a neighbour of the first.
    """

    coordinates: Int[Tensor, "v 4"]
    shape: Triple
    batch: int
    wraps: tuple[bool, bool, bool] = (False, False, False)
    _known: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        size = self.coordinates.new_tensor([self.batch, *self.shape])
        if ((self.coordinates < 0) | (self.coordinates >= size)).any():
            raise ValueError(
                f"sites need sample, z, y, x below {size.tolist()} and none negative, got"
                f" {self.coordinates.amin(0).tolist()} to {self.coordinates.amax(0).tolist()}"
            )

    def __len__(self) -> int:
        return len(self.coordinates)

    @cached_property
    def flat(self) -> Int[Tensor, "v"]:
        """The flat index (((sample · Z) + z) · Y + y) · X + x of each site."""
        sample, z, y, x = self.coordinates.unbind(1)
        return ((sample * self.shape[0] + z) * self.shape[1] + y) * self.shape[2] + x

    @cached_property
    def ascending(self) -> tuple[Int[Tensor, "v"], Int[Tensor, "v"]]:
        """The flat indices in ascending order, and the row that each is from."""
        keys, order = self.flat.sort(stable=True)
        if (keys[1:] == keys[:-1]).any():
            raise ValueError(f"sites need to be different cells, got {len(self)} with repeats; voxelize merges them")
        return keys, order

    def neighbours(self, kernel: Triple) -> Links:
        """The links of a submanifold convolution: from sites to sites, the kernel's middle on the target."""
        if any(size % 2 == 0 for size in kernel):
            raise ValueError(f"a submanifold kernel needs a middle, so odd sizes, got {kernel}")
        if kernel not in self._known:
            padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
            self._known[kernel] = _links(self, self, kernel, (1, 1, 1), padding)
        return self._known[kernel]

    def coarser(self, kernel: Triple, stride: Triple, padding: Triple) -> tuple["Sites", Links]:
        """What a strided kernel reaches of a coarser volume, ascending, and the links to it.

        An axis that wraps ends where it began: it has ⌈n / stride⌉ cells, and padding only shifts the kernel.
        """
        key = (kernel, stride, padding)
        if key not in self._known:
            coarse = replace(self, coordinates=self.coordinates[:0], shape=self._coarser_shape(*key))
            flat = _reached(self, coarse.shape, *key)
            coarse = replace(coarse, coordinates=unravel(flat, coarse.shape))
            self._known[key] = coarse, _links(self, coarse, *key)
        return self._known[key]

    def _coarser_shape(self, kernel: Triple, stride: Triple, padding: Triple) -> Triple:
        def cells(axis: int) -> int:
            n, k, s, p = self.shape[axis], kernel[axis], stride[axis], padding[axis]
            count = -(-n // s) if self.wraps[axis] else (n + 2 * p - k) // s + 1
            # A wrapping kernel may look over the seam, but not once round.
            if count < 1 or (self.wraps[axis] and not (0 <= p <= n and k <= n + p + 1)):
                raise ValueError(f"a kernel of {kernel} with padding {padding} does not fit a volume of {self.shape}")
            return count

        return cells(0), cells(1), cells(2)


@dataclass(frozen=True)
class Sparse:
    """Features at the occupied cells of a volume."""

    features: Float[Tensor, "v c"]
    sites: Sites

    def dense(self, empty: Float[Tensor, "c"] | None = None) -> Float[Tensor, "b c z y x"]:
        """The whole volume, `empty` (or zero) where nothing is."""
        depth, height, width = self.sites.shape
        cells = self.sites.batch * depth * height * width
        blank = self.features.new_zeros(self.features.shape[1]) if empty is None else empty.to(self.features.dtype)
        flat = blank.expand(cells, -1).index_copy(0, self.sites.flat, self.features)
        return flat.view(self.sites.batch, depth, height, width, -1).permute(0, 4, 1, 2, 3)


def submanifold(volume: Sparse, weight: Float[Tensor, "kz ky kx c d"]) -> Sparse:
    """A convolution, as `conv3d` over zeros, whose result is kept at the sites that there are."""
    features = convolve(volume.features, weight, volume.sites.neighbours(_kernel(weight)), len(volume.sites))
    return Sparse(features, volume.sites)


def strided(volume: Sparse, weight: Float[Tensor, "kz ky kx c d"], stride: Triple, padding: Triple) -> Sparse:
    """A convolution, as `conv3d` over zeros, wherever it sees some site."""
    sites, links = volume.sites.coarser(_kernel(weight), stride, padding)
    return Sparse(convolve(volume.features, weight, links, len(sites)), sites)


def inverse(
    volume: Sparse, weight: Float[Tensor, "kz ky kx c d"], onto: Sites, stride: Triple, padding: Triple
) -> Sparse:
    """The transpose of the strided convolution that led from the sites `onto` to these: back to them."""
    sites, links = onto.coarser(_kernel(weight), stride, padding)
    if sites is not volume.sites:
        raise ValueError(
            f"an inverse convolution undoes a strided one of the same kernel, stride and padding: from {onto.shape}"
            f" kernel {_kernel(weight)}, stride {stride}, padding {padding} does not lead to these {len(volume.sites)}"
            f" sites of {volume.sites.shape}"
        )
    return Sparse(convolve(volume.features, weight, links.reversed(), len(onto)), onto)


def convolve(
    features: Float[Tensor, "v c"], weight: Float[Tensor, "kz ky kx c d"], links: Links, rows: int
) -> Float[Tensor, "w d"]:
    """out[t] = Σ over links (s, t) through kernel cell k of features[s] @ weight[k].

    Sums are kept in fp32 at least; under autocast features and weights are cast as for a dense convolution.
    """
    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        features, weight = features.to(dtype), weight.to(dtype)
    return _convolve(features, weight.flatten(0, 2), links.source, links.target, list(links.starts), rows)


@torch.library.custom_op("cofield::convolve", mutates_args=())
def _convolve(features: Tensor, weight: Tensor, source: Tensor, target: Tensor, starts: list[int], rows: int) -> Tensor:
    out = features.new_zeros(rows, weight.shape[2], dtype=_sum_type(features.dtype))
    for cell, pairs in _slabs(starts, features.device):
        _add_rows(features.index_select(0, source[pairs]) @ weight[cell], target[pairs], out)
    return out.to(features.dtype)


@_convolve.register_fake
def _(features: Tensor, weight: Tensor, source: Tensor, target: Tensor, starts: list[int], rows: int) -> Tensor:
    return features.new_empty(rows, weight.shape[2])


@torch.library.custom_op("cofield::convolve_weight", mutates_args=())
def _convolve_weight(grad: Tensor, features: Tensor, source: Tensor, target: Tensor, starts: list[int]) -> Tensor:
    shape = (len(starts) - 1, features.shape[1], grad.shape[1])
    out = features.new_zeros(shape, dtype=_sum_type(features.dtype))
    for cell, pairs in _slabs(starts, features.device):
        out[cell] += features.index_select(0, source[pairs]).mT @ grad.index_select(0, target[pairs])
    return out.to(features.dtype)


@_convolve_weight.register_fake
def _(grad: Tensor, features: Tensor, source: Tensor, target: Tensor, starts: list[int]) -> Tensor:
    return features.new_empty(len(starts) - 1, features.shape[1], grad.shape[1])


def _keep(ctx, inputs, output) -> None:
    features, weight, source, target, ctx.starts, _ = inputs
    ctx.save_for_backward(features, weight, source, target)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
    features, weight, source, target = ctx.saved_tensors
    grad = grad.contiguous()
    wanted_features, wanted_weight = ctx.needs_input_grad[:2]
    return (
        _convolve(grad, weight.mT.contiguous(), target, source, ctx.starts, len(features)) if wanted_features else None,
        _convolve_weight(grad, features, source, target, ctx.starts) if wanted_weight else None,
        None,
        None,
        None,
        None,
    )


_convolve.register_autograd(_backward, setup_context=_keep)


def unravel(flat: Int[Tensor, "v"], shape: Triple) -> Int[Tensor, "v 4"]:
    """Sample, z, y, x of flat indices into volumes of this shape."""
    depth, height, width = shape
    row = flat // width
    plane = row // height
    return torch.stack([plane // depth, plane % depth, row % height, flat % width], 1)


def _kernel(weight: Tensor) -> Triple:
    kz, ky, kx = weight.shape[:3]
    return kz, ky, kx


def _sum_type(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _add_rows(rows: Tensor, target: Tensor, out: Tensor) -> None:
    if out.device.type != "cpu":
        out.index_add_(0, target, rows.to(out.dtype))
    elif rows.dtype == torch.bfloat16:
        add_bfloat_rows(rows.view(torch.uint16).numpy(), target.numpy(), out.numpy())
    else:
        add_rows(rows.to(out.dtype).numpy(), target.numpy(), out.numpy())


def _slabs(starts: list[int], device: torch.device) -> Iterator[tuple[int, slice]]:
    """The pairs of each kernel cell, a slab at a time."""
    slab = SLAB if device.type == "cpu" else max(starts[-1], 1)
    for cell in range(len(starts) - 1):
        for low in range(starts[cell], starts[cell + 1], slab):
            yield cell, slice(low, min(low + slab, starts[cell + 1]))


def _links(sites: Sites, coarse: Sites, kernel: Triple, stride: Triple, padding: Triple) -> Links:
    if sites.coordinates.device.type != "cpu":
        return links_reference(sites, coarse, kernel, stride, padding)
    keys, order = (each.numpy() for each in sites.ascending)
    cells = kernel[0] * kernel[1] * kernel[2]
    source, target = (np.empty(len(coarse) * cells, np.int32) for _ in range(2))
    starts = np.zeros(cells + 1, np.int64)
    coordinates, coarse_order = coarse.coordinates.contiguous().numpy(), coarse.ascending[1].numpy()
    link(
        keys, order, coordinates, coarse_order, sites.shape, kernel, stride, padding, sites.wraps,
        source, target, starts,
    )  # fmt: skip
    pairs = starts[-1]
    source, target = (torch.from_numpy(each[:pairs].copy()) for each in (source, target))
    return Links(source, target, tuple(starts.tolist()))


def links_reference(sites: Sites, coarse: Sites, kernel: Triple, stride: Triple, padding: Triple) -> Links:
    """The links from sites to what a kernel reaches, by sorting and bisection; also the way on a GPU."""
    device = sites.coordinates.device
    offsets = torch.cartesian_prod(*(torch.arange(size, device=device) for size in kernel)).view(-1, 1, 3)
    at = coarse.coordinates[:, 1:] * offsets.new_tensor(stride) - offsets.new_tensor(padding) + offsets  # K W 3
    size = offsets.new_tensor(sites.shape)
    at = torch.where(offsets.new_tensor(sites.wraps).bool(), at % size, at)
    inside = ((at >= 0) & (at < size)).all(-1)
    plane = (coarse.coordinates[:, 0] * size[0] + at[..., 0]) * size[1] + at[..., 1]
    wanted = plane * size[2] + at[..., 2]
    keys, order = sites.ascending
    place = torch.searchsorted(keys, wanted)
    # One key more than any cell has, for what is wanted beyond the last.
    hit = inside & (torch.cat([keys, keys.new_full((1,), -1)])[place] == wanted)
    cell, target = hit.nonzero(as_tuple=True)
    starts = torch.bincount(cell, minlength=len(offsets)).cumsum(0).tolist()
    return Links(order[place[cell, target]].int(), target.int(), (0, *starts))


def _reached(sites: Sites, coarse: Triple, kernel: Triple, stride: Triple, padding: Triple) -> Tensor:
    if sites.coordinates.device.type != "cpu":
        return reached_reference(sites, coarse, kernel, stride, padding)
    # A wrapping axis of odd length can lead a site to one cell from either side of the seam.
    room = 2 ** sum(sites.wraps) * kernel[0] * kernel[1] * kernel[2]
    keys = np.empty(len(sites) * room, np.int64)
    count = reach(sites.coordinates.contiguous().numpy(), sites.shape, coarse, kernel, stride, padding,
                  sites.wraps, keys)  # fmt: skip
    return torch.from_numpy(np.unique(keys[:count]))


def reached_reference(
    sites: Sites, coarse: Triple, kernel: Triple, stride: Triple, padding: Triple
) -> Int[Tensor, "w"]:
    """The flat cells of the coarser volume that some site is linked to, ascending; also the way on a GPU."""
    device = sites.coordinates.device
    offsets = torch.cartesian_prod(*(torch.arange(size, device=device) for size in kernel)).view(-1, 1, 3)
    turns = torch.cartesian_prod(*(torch.arange(-int(w), int(w) + 1, device=device) for w in sites.wraps))
    shift = offsets.new_tensor(padding) - offsets + turns.view(1, -1, 3) * offsets.new_tensor(sites.shape)
    at = sites.coordinates[:, 1:] + shift.view(-1, 1, 3)
    step, size = offsets.new_tensor(stride), offsets.new_tensor(coarse)
    hit = ((at >= 0) & (at % step == 0) & (at // step < size)).all(-1)
    cell = at // step
    flat = ((sites.coordinates[:, 0] * size[0] + cell[..., 0]) * size[1] + cell[..., 1]) * size[2] + cell[..., 2]
    return flat[hit].unique()
