import pytest
import torch
from torch import nn

from cofield.draw import generator
from cofield.grid import Volume
from cofield.models.fuse import AddFuse, AttentionFuse, ConvFuse
from cofield.train.build import seeded
from streets import GRID

KINDS = [ConvFuse, AddFuse, AttentionFuse]


def fuse(kind: type[nn.Module], *widths: int) -> nn.Module:
    with seeded("fuse"):
        return kind(widths, 16)


def volumes(*widths: int) -> list[Volume]:
    draw = generator("volumes")
    return [Volume(torch.randn(2, width, *GRID.shape, generator=draw), GRID) for width in widths]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [(6,), (6, 10), (6, 10, 4)])
def test_volumes_become_one_and_every_weight_has_a_gradient(kind: type[nn.Module], widths: tuple[int, ...]) -> None:
    model = fuse(kind, *widths)
    out = model(volumes(*widths))
    assert out.features.shape == (2, 16, *GRID.shape)
    assert out.grid == GRID
    (out.features * torch.randn(out.features.shape, generator=generator("weights"))).sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_fusing_one_sensor_is_a_convolution_of_single_cells(kind: type[nn.Module]) -> None:
    model = fuse(kind, 6)
    assert sum(weight.numel() for weight in model.parameters()) == 6 * 16 + 16
    (one,) = volumes(6)
    changed = one.features.clone()
    changed[:, :, 2, 3, 4] += 1
    moved = model([Volume(changed, GRID)]).features != model([one]).features
    assert moved.any(1).nonzero().tolist() == [[0, 2, 3, 4], [1, 2, 3, 4]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_sensor_matters(kind: type[nn.Module]) -> None:
    model, (one, two) = fuse(kind, 6, 10), volumes(6, 10)
    still = model([one, two]).features
    silent = Volume(torch.zeros_like(two.features), GRID)
    assert not torch.allclose(still, model([one, silent]).features)
    assert not torch.allclose(still, model([Volume(torch.zeros_like(one.features), GRID), two]).features)


@pytest.mark.parametrize("kind", KINDS)
def test_no_sensor_at_all_is_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="a camera encoder, a LiDAR encoder, or both"):
        fuse(kind)


def test_a_flat_concat_convolution_is_the_released_two_dimensional_one() -> None:
    with seeded("fuse"):
        model = ConvFuse((6, 10), 16, norm="frozen")
    flat = [Volume(each.features[:, :, :1], GRID.flat()) for each in volumes(6, 10)]
    weight = model.layers[0].weight
    assert weight.shape == (16, 16, 1, 3, 3)
    both = torch.cat([each.features[:, :, 0] for each in flat], 1)
    expected = nn.functional.conv2d(both, weight[:, :, 0], padding=1).relu()
    torch.testing.assert_close(model(flat).features[:, :, 0], expected, atol=1e-4, rtol=1e-4)


def test_adding_does_not_care_which_sensor_a_feature_came_from_if_their_weights_agree() -> None:
    model, (one, two) = fuse(AddFuse, 6, 6), volumes(6, 6)
    model.own[1].load_state_dict(model.own[0].state_dict())
    torch.testing.assert_close(model([one, two]).features, model([two, one]).features)


def test_the_shares_of_attention_add_up_to_one_and_pick_the_sensor_with_the_higher_score() -> None:
    model, (one, two) = fuse(AttentionFuse, 16, 16), volumes(16, 16)
    share = model.shares([one.features, two.features])
    assert share.shape == (2, 2, 2, 1, *GRID.shape)
    torch.testing.assert_close(share.sum(0), torch.ones(2, 2, 1, *GRID.shape))
    model.smooth = nn.Identity()
    with torch.no_grad():
        model.score[0].weight.zero_()
        model.score[0].bias.copy_(torch.tensor([50.0, 50.0, -50.0, -50.0]))
    torch.testing.assert_close(model([one, two]).features, model.own[0](one.features))
