"""Sparse convolution against spconv, where its CPU wheel is installed: `pip install spconv`."""

import warnings

import pytest
import torch

from cofield.draw import generator
from cofield.ops.sparse import Sites, Sparse, inverse, strided, submanifold, unravel

SHAPE, BATCH = (11, 20, 30), 2


@pytest.fixture(scope="module")
def spconv():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("spconv.pytorch", reason="spconv is not installed; it is an oracle only")
        import spconv.pytorch.ops as ops
    # Its CPU build asks for a CUDA stream in the backward pass; without this it stops there.
    ops.get_current_stream = lambda: 0
    return module


@pytest.mark.filterwarnings("ignore")
def test_values_and_gradients_are_those_of_spconv(spconv) -> None:
    draw = generator("spconv")
    flat = torch.randperm(BATCH * 11 * 20 * 30, generator=draw)[:1500]
    coordinates = unravel(flat, SHAPE)
    features = torch.randn(1500, 8, generator=draw)
    kernels = [torch.randn(3, 3, 3, *widths, generator=draw) / 9 for widths in ((8, 16), (16, 16), (16, 4))]

    def ours(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        fine = Sparse(x, Sites(coordinates, SHAPE, BATCH))
        down = strided(submanifold(fine, weights[0]), weights[1], (2, 2, 2), (1, 1, 1))
        return inverse(down, weights[2], fine.sites, (2, 2, 2), (1, 1, 1)).features

    def theirs(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            layers = [
                spconv.SubMConv3d(8, 16, 3, bias=False, indice_key="fine"),
                spconv.SparseConv3d(16, 16, 3, stride=2, padding=1, bias=False, indice_key="down"),
                spconv.SparseInverseConv3d(16, 4, 3, bias=False, indice_key="down"),
            ]
        volume = spconv.SparseConvTensor(x, coordinates.int(), list(SHAPE), BATCH)
        for layer, weight in zip(layers, weights, strict=True):
            # Theirs are stored as out, z, y, x, in.
            del layer.weight
            layer.weight = weight.permute(4, 0, 1, 2, 3).contiguous()
            volume = layer(volume)
        return volume.features

    results = []
    for method in (ours, theirs):
        inputs = [each.clone().requires_grad_() for each in (features, *kernels)]
        out = method(*inputs)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
