import builtins
import logging
from pathlib import Path

import pytest
import torch

from cofield.draw import generator
from cofield.frame import collate
from cofield.models.backbones import Neck, PaperCamera, ResNet, Swin
from cofield.models.blocks import Frozen, Norm, compute_in, normalised
from cofield.models.camera import MaskToken
from cofield.models.fuse import ConvFuse
from cofield.models.lift import DepthBins, DepthLSS
from cofield.models.trunk import CameraBranch, Trunk
from cofield.train.build import seeded
from streets import GRID, frame

pytest.importorskip("transformers")


def swin(**options: object) -> Swin:
    with seeded("swin"):
        return Swin(8, (2, 2, 2, 2), (1, 2, 2, 4), **options)


def resnet(**options: object) -> ResNet:
    with seeded("resnet"):
        return ResNet(8, (8, 16, 16, 32), (1, 2, 1, 1), **options)


def camera(kind: str, **options: object) -> PaperCamera:
    with seeded("camera"):
        return PaperCamera(swin(**options) if kind == "swin" else resnet(**options), 16)


def images(count: int = 2, height: int = 32, width: int = 80) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=generator("images"))


def draws(*names: str) -> list[torch.Generator]:
    return [generator("drop", name) for name in names]


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_features_are_an_eighth_of_the_image_and_every_weight_has_a_gradient(kind: str) -> None:
    model = camera(kind)
    out = model(images())
    assert out.shape == (2, 16, 4, 10)
    out.square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    with pytest.raises(ValueError, match="30×80 are no whole number of features"):
        model(images(height=30))


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_the_scales_are_those_of_the_librarys_own_backbone(kind: str) -> None:
    model = camera(kind).eval().backbone
    with torch.no_grad():
        ours, theirs = model(images()), model.body(images()).feature_maps
    assert [tuple(each.shape[2:]) for each in ours] == [(4, 10), (2, 5), (1, 3)]
    assert tuple(each.shape[1] for each in ours) == model.widths
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_images_do_not_see_each_other(kind: str) -> None:
    model = camera(kind)
    together = model(images())
    alone = torch.cat([model(each[None]) for each in images()])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_a_small_image_first_does_not_change_a_large_one_later() -> None:
    fresh, used = camera("swin"), camera("swin")
    used(images(height=8, width=8))
    assert torch.equal(fresh(images()), used(images()))


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_computing_twice_changes_neither_value_nor_gradient(kind: str) -> None:
    plain, twice = camera(kind), camera(kind, recompute=True)
    for model in (plain, twice):
        model(images(), draws("a", "b")).square().sum().backward()
    for one, two in zip(plain.parameters(), twice.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        torch.testing.assert_close(one.grad, two.grad)


def test_stochastic_depth_depends_on_an_images_own_generator_and_on_nothing_else() -> None:
    model = swin(drop_path=0.9).train()
    both, alone = model(images(), draws("a", "b")), model(images()[1:], draws("b"))
    for one, two in zip(both, alone, strict=True):
        torch.testing.assert_close(one[1:], two, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both[2], model(images(), draws("c", "d"))[2])
    for still in (model(images()), model.eval()(images(), draws("a", "b"))):
        assert all(torch.equal(a, b) for a, b in zip(still, swin(drop_path=0.0)(images()), strict=True))
    with pytest.raises(ValueError, match="2 images need as many generators, got 1"):
        model.train()(images(), draws("a"))


def test_what_a_trunk_drops_depends_on_seed_frame_and_camera_alone() -> None:
    with seeded("trunk"):
        encoder = PaperCamera(swin(drop_path=0.9), 16)
        lift = DepthLSS(16, 8, GRID, 8, DepthBins(1.0, 1.0, 12))
        trunk = Trunk(CameraBranch(MaskToken(8), encoder, lift), None, ConvFuse((8,), 8), GRID).train()
    both, alone = collate([frame("a"), frame("b")]), collate([frame("b")])
    one, two = trunk(both, seed=0).features, trunk(alone, seed=0).features
    torch.testing.assert_close(one[1:], two, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(two, trunk(alone, seed=1).features, atol=1e-3)
    assert torch.equal(trunk(alone).features, trunk(alone).features)


def test_the_share_of_dropped_layers_rises_to_the_rate_and_keeps_the_mean() -> None:
    model = swin(drop_path=0.5).train()
    assert model.drop == [0.5 * layer / 7 for layer in range(8)]
    keep = list(model._keep(400, [generator("keep", i) for i in range(400)], torch.device("cpu")))
    assert keep[0] is None
    for rate, each in zip(model.drop[1:], keep[1:], strict=True):
        assert each is not None
        assert abs((each == 0).float().mean() - rate) < 0.08
        torch.testing.assert_close(each[each > 0], torch.full_like(each[each > 0], 1 / (1 - rate)))


def test_weights_come_from_a_folder_and_what_does_not_fit_is_named(tmp_path: Path) -> None:
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity(logging.CRITICAL)
    small = transformers.SwinConfig(embed_dim=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4])
    with seeded("there"):
        there = transformers.SwinForImageClassification(small)
        there.save_pretrained(tmp_path / "swin")
        model = swin(weights=tmp_path / "swin")
        loaded = model.body.swin.encoder.layers[1].blocks[0].mlp.fc1.weight
        assert torch.equal(loaded, there.swin.encoder.layers[1].blocks[0].mlp.fc1.weight)
        with pytest.raises(ValueError, match=r"is no ResNetBackbone of this size: .* weights missing"):
            resnet(weights=tmp_path / "swin", norm="frozen")
        with pytest.raises(ValueError, match="no SwinBackbone of this size"):
            Swin(16, (2, 2, 2, 2), (1, 2, 2, 4), weights=tmp_path / "swin")
        with pytest.raises(ValueError, match=r"no weights at .*nowhere"):
            swin(weights=tmp_path / "nowhere")
        shape = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 2, 1, 1])
        other = transformers.ResNetForImageClassification(shape)
        other.resnet.embedder.embedder.normalization.running_mean.fill_(0.25)
        other.save_pretrained(tmp_path / "resnet")
        model = resnet(weights=tmp_path / "resnet", norm="frozen")
    stem = model.body.embedder.embedder.normalization
    assert isinstance(stem, Frozen)
    assert (stem.running_mean == 0.25).all()
    other.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.train()(images())[2], other.resnet(images()).last_hidden_state)
    assert (stem.running_mean == 0.25).all()
    with pytest.raises(ValueError, match="norm=frozen"):
        resnet(weights=tmp_path / "resnet")


@pytest.mark.parametrize("kind", ["group", "batch", "frozen"])
def test_a_frozen_norm_is_batch_norm_at_rest(kind: Norm) -> None:
    layer = normalised(8, kind)
    x = images(3)[:, :1].expand(-1, 8, -1, -1)
    if kind == "frozen":
        reference = torch.nn.BatchNorm2d(8).eval()
        reference.running_mean = torch.arange(8.0)
        reference.running_var = torch.arange(8.0) + 1
        layer.load_state_dict(reference.state_dict())
        torch.testing.assert_close(layer.train()(x), reference(x))
    else:
        assert layer(x).mean().abs() < 1e-5


def test_computing_twice_with_batch_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="count each batch's statistics twice"):
        resnet(norm="batch", recompute=True)


def test_the_neck_carries_the_coarsest_scale_to_the_finest() -> None:
    with seeded("neck"):
        neck = Neck((4, 6, 8), 16)
    scales = [torch.zeros(1, 4, 4, 10), torch.zeros(1, 6, 2, 5), torch.zeros(1, 8, 1, 3)]
    still = neck(scales)
    changed = neck([scales[0], scales[1], torch.randn(1, 8, 1, 3, generator=generator("coarse"))])
    assert still.shape == (1, 16, 4, 10)
    assert not torch.allclose(still, changed)


def test_half_precision_layers_stay_close() -> None:
    model = camera("swin").eval()
    exact = model(images())
    compute_in(model, torch.bfloat16)
    rough = model(images())
    assert rough.dtype == torch.bfloat16
    assert (exact - rough.float()).abs().max() < 0.1 * exact.abs().max()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: object, **named: object) -> object:
        if name == "transformers":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"install cofield\[paper\]"):
        Swin()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "millions"), [(Swin, 27.5), (ResNet, 23.5)])
def test_the_papers_encoders_take_one_image_of_the_papers_size(kind: type[Swin | ResNet], millions: float) -> None:
    with seeded("real"):
        model = PaperCamera(kind())
    assert abs(sum(weight.numel() for weight in model.backbone.parameters()) / 1e6 - millions) < 0.5
    with torch.no_grad():
        assert model(images(1, 256, 704)).shape == (1, 256, 32, 88)
