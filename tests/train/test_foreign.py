import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cofield.draw import generator
from cofield.frame import collate
from cofield.grid import BoxGrid
from cofield.models.backbones import PaperCamera, Swin
from cofield.models.blocks import Norm
from cofield.models.camera import MaskToken
from cofield.models.fuse import ConvFuse
from cofield.models.lift import DepthBins, DepthLSS
from cofield.models.trunk import CameraBranch, Trunk
from cofield.models.voxelnet import VoxelNet
from cofield.train.build import build_trunk, seeded
from cofield.train.config import BoxTuning, Start
from cofield.train.foreign import (
    Layout,
    _changes,
    layout_of,
    load_foreign,
    read_foreign,
    shared_parts,
    translated,
    turned,
)
from cofield.train.recipes import recipe_for
from cofield.train.run import start_trunk
from streets import frame

pytest.importorskip("transformers")
GRID = BoxGrid((-4.0, -4.0, -5.0), (0.8, 0.8, 8.0), (10, 10, 1), (0.94, 0.0, 1.84))
BINS = DepthBins(0.75, 0.5, 6)
WIDTHS = (4, 4, 8, 8)


def trunk(norm: Norm = "frozen", metres: bool = True) -> Trunk:
    with seeded("trunk"):
        encoder = PaperCamera(Swin(8, (2, 2, 2, 2), (1, 2, 2, 4)), 16, norm)
        camera = CameraBranch(MaskToken(8), encoder, DepthLSS(16, 8, GRID, 8, BINS, norm=norm))
        lidar = VoxelNet(GRID, 16, (0.1, 0.1, 0.2), WIDTHS, norm=norm, metres=metres)
        return Trunk(camera, lidar, ConvFuse((8, 16), 16, norm=norm), GRID).eval()


def released(layout: Layout = "xyzio") -> dict[str, Tensor]:
    """A file's weights by the released names and shapes, at random."""
    draw = generator("released")
    state: dict[str, Tensor] = {}

    def put(name: str, *shape: int, bias: int | None = None) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=draw) * 0.1
        if bias is not None:
            state[f"{name}.bias"] = torch.randn(bias, generator=draw) * 0.1

    def norm(name: str, width: int) -> None:
        put(name, width, bias=width)
        state[f"{name}.running_mean"] = torch.randn(width, generator=draw) * 0.1
        state[f"{name}.running_var"] = torch.rand(width, generator=draw) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def sparse(name: str, kernel: tuple[int, int, int], before: int, after: int) -> None:
        x, y, z = kernel
        shape = {"xyzio": (x, y, z, before, after), "zyxio": (z, y, x, before, after)}
        shape |= {"oxyzi": (after, x, y, z, before), "ozyxi": (after, z, y, x, before)}
        put(name, *shape[layout])

    body = "encoders.camera.backbone."
    put(f"{body}patch_embed.projection", 8, 3, 4, 4, bias=8)
    put(f"{body}patch_embed.norm", 8, bias=8)
    for stage, heads in enumerate((1, 2, 2, 4)):
        width = 8 * 2**stage
        for block in (0, 1):
            layer = f"{body}stages.{stage}.blocks.{block}."
            for name in ("norm1", "norm2"):
                put(layer + name, width, bias=width)
            state[f"{layer}attn.w_msa.relative_position_bias_table"] = torch.randn(169, heads, generator=draw)
            state[f"{layer}attn.w_msa.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
            put(f"{layer}attn.w_msa.qkv", 3 * width, width, bias=3 * width)
            put(f"{layer}attn.w_msa.proj", width, width, bias=width)
            put(f"{layer}ffn.layers.0.0", 4 * width, width, bias=4 * width)
            put(f"{layer}ffn.layers.1", width, 4 * width, bias=width)
        if stage < 3:
            put(f"{body}stages.{stage}.downsample.norm", 4 * width, bias=4 * width)
            put(f"{body}stages.{stage}.downsample.reduction", 2 * width, 4 * width)
        if stage > 0:
            put(f"{body}norm{stage}", width, bias=width)
    for level, before in enumerate((16 + 16, 32 + 64)):
        put(f"encoders.camera.neck.lateral_convs.{level}.conv", 16, before, 1, 1)
        put(f"encoders.camera.neck.fpn_convs.{level}.conv", 16, 16, 3, 3)
        for kind in ("lateral", "fpn"):
            norm(f"encoders.camera.neck.{kind}_convs.{level}.bn", 16)
    lss = "encoders.camera.vtransform."
    for index, shape in ((0, (8, 1, 1, 1)), (3, (32, 8, 5, 5)), (6, (64, 32, 5, 5))):
        put(f"{lss}dtransform.{index}", *shape, bias=shape[0])
        norm(f"{lss}dtransform.{index + 1}", shape[0])
    for index, shape in ((0, (16, 80, 3, 3)), (3, (16, 16, 3, 3)), (6, (14, 16, 1, 1))):
        put(f"{lss}depthnet.{index}", *shape, bias=shape[0])
        if index < 6:
            norm(f"{lss}depthnet.{index + 1}", 16)
    for index in (0, 3, 6):
        put(f"{lss}downsample.{index}", 8, 8, 3, 3)
        norm(f"{lss}downsample.{index + 1}", 8)
    state[f"{lss}dx"] = torch.zeros(3)
    points = "encoders.lidar.backbone."
    sparse(f"{points}conv_input.0", (3, 3, 3), 5, 4)
    norm(f"{points}conv_input.1", 4)
    for stage, (width, after) in enumerate(zip(WIDTHS, (*WIDTHS[1:], None), strict=True), start=1):
        layer = f"{points}encoder_layers.encoder_layer{stage}."
        for block in (0, 1):
            for half in (1, 2):
                sparse(f"{layer}{block}.conv{half}", (3, 3, 3), width, width)
                norm(f"{layer}{block}.bn{half}", width)
        if after is not None:
            sparse(f"{layer}2.0", (3, 3, 3), width, after)
            norm(f"{layer}2.1", after)
    sparse(f"{points}conv_out.0", (1, 1, 3), 8, 8)
    norm(f"{points}conv_out.1", 8)
    put("fuser.0", 16, 24, 3, 3)
    norm("fuser.1", 16)
    put("heads.object.shared_conv", 4, 4, 3, 3)
    return state


def written(folder: Path, state: dict[str, Tensor]) -> Path:
    path = folder / "released.pth"
    torch.save({"meta": {"epoch": 20}, "state_dict": state}, path)
    return path


@pytest.mark.parametrize("layout", ["xyzio", "zyxio", "oxyzi", "ozyxi"])
def test_a_released_file_fills_every_part_and_the_report_says_so(tmp_path: Path, layout: Layout) -> None:
    model = trunk()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_foreign(model, written(tmp_path, released(layout)))
    assert report.missing == ("camera.token.patch",)
    assert report.mismatched == report.skipped == ()
    assert len(report.loaded) == len(before) - 1
    assert set(report.unexpected) == {
        name for name in released() if name.startswith("heads.") or name.endswith(("position_index", "vtransform.dx"))
    }
    assert "tensors loaded, 1 missing" in str(report)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(report.loaded)
    volume = model(collate([frame("a", cameras=2, height=32, width=80, count=400)]))
    assert volume.features.isfinite().all()
    assert volume.features.std() > 0


def test_layouts_of_the_same_kernels_are_one_and_the_same_trunk() -> None:
    state = released()
    ours, _ = translated(state, trunk())
    for layout, order in (("zyxio", (2, 1, 0, 3, 4)), ("oxyzi", (4, 0, 1, 2, 3)), ("ozyxi", (4, 2, 1, 0, 3))):
        other = {name: v.permute(order) if v.dim() == 5 else v for name, v in state.items()}
        assert layout_of(other) == layout
        again, _ = translated(other, trunk())
        assert all(torch.equal(ours[name], again[name]) for name in ours)


def in_ego(volume: Tensor) -> Tensor:
    """[... x y z] in LiDAR axes as [... z y x] in ego axes: forward is their y, left is against their x."""
    return volume.flip(-3).movedim(-1, -3)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_turned_kernel_does_to_the_turned_world_what_it_did(stride: int) -> None:
    draw = generator("kernels")
    world, kernel = torch.randn(1, 4, 9, 9, 7, generator=draw), torch.randn(3, 3, 3, 4, 6, generator=draw)
    theirs = F.conv3d(world, kernel.permute(4, 3, 0, 1, 2), stride=stride, padding=1)
    weight = turned(kernel, "xyzio").permute(4, 3, 0, 1, 2)
    torch.testing.assert_close(F.conv3d(in_ego(world), weight, stride=stride, padding=1), in_ego(theirs))
    assert not torch.allclose(
        F.conv3d(in_ego(world), kernel.permute(4, 3, 2, 1, 0), stride=stride, padding=1), in_ego(theirs)
    )


def test_the_first_layer_is_told_of_x_and_y_in_its_own_axes() -> None:
    draw = generator("first")
    features, kernel = torch.randn(1, 5, 5, 5, 5, generator=draw), torch.randn(3, 3, 3, 5, 6, generator=draw)
    theirs = F.conv3d(features, kernel.permute(4, 3, 0, 1, 2), padding=1)
    x, y, z, brightness, age = features.unbind(1)
    told = torch.stack([y, -x, z, brightness / 255, age], 1)
    ours = _changes(trunk(), "xyzio")["first voxels"](kernel).permute(4, 3, 0, 1, 2)
    torch.testing.assert_close(F.conv3d(in_ego(told), ours, padding=1), in_ego(theirs), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="metres=True"):
        translated(released(), trunk(metres=False))


def test_places_in_metres_are_told_from_the_lidar() -> None:
    batch = collate([frame("a", count=300)])
    lidar = trunk().lidar
    assert isinstance(lidar, VoxelNet)
    other = trunk(metres=False).lidar
    assert isinstance(other, VoxelNet)
    metres, share = lidar.describe(batch).features, other.describe(batch).features
    expected = (share[:, :3] + 1) / 2 * torch.tensor([8.0, 8.0, 8.0]) + torch.tensor(GRID.lower)
    torch.testing.assert_close(metres[:, :3], expected, atol=1e-4, rtol=0)
    assert torch.equal(metres[:, 3:], share[:, 3:])


def test_kernels_over_the_ground_turn_with_their_maps() -> None:
    draw = generator("ground")
    world, kernel = torch.randn(1, 4, 9, 7, generator=draw), torch.randn(6, 4, 3, 3, generator=draw)  # maps are [x y]
    theirs = F.conv2d(world, kernel, padding=1).flip(-2)
    torch.testing.assert_close(F.conv2d(world.flip(-2), _changes(trunk(), None)["ground"](kernel), padding=1), theirs)


def test_merged_patches_are_what_unfolding_gives() -> None:
    """The released network unfolds 2×2 pixels, the library's stacks them: the same reduction of another order."""
    draw = generator("patches")
    image, weight = torch.randn(1, 8, 6, 10, generator=draw), torch.randn(16, 32, generator=draw)
    theirs = F.unfold(image, 2, stride=2).mT @ weight.mT
    merge = trunk().camera.encoder.backbone.body.swin.encoder.layers[0].downsample
    merge.norm = torch.nn.Identity()
    with torch.no_grad():
        merge.reduction.weight.copy_(_changes(trunk(), None)["patches"](weight))
        ours = merge(image.flatten(2).mT, (6, 10))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_depths_in_metres_are_what_the_released_stem_sees() -> None:
    depth = torch.rand(1, 1, 4, 4, generator=generator("depth")) * 3
    weight = torch.randn(8, 1, 1, 1, generator=generator("stem"))
    both = torch.cat([depth / BINS.upper, torch.ones_like(depth)], 1)
    ours = F.conv2d(both, _changes(trunk(), None)["depth image"](weight))
    torch.testing.assert_close(ours, F.conv2d(depth, weight))
    torch.testing.assert_close(BINS.centres(), torch.arange(1, 4, 0.5))


def test_three_projections_come_from_one() -> None:
    state = released()
    ours, _ = translated(state, trunk())
    name = "encoders.camera.backbone.stages.1.blocks.0.attn.w_msa.qkv.weight"
    layer = "camera.encoder.backbone.body.swin.encoder.layers.1.blocks.0.attention."
    assert torch.equal(torch.cat([ours[f"{layer}{part}_proj.weight"] for part in "qkv"]), state[name])


def test_parts_that_the_file_has_not_are_refused_unless_they_are_not_asked_for(tmp_path: Path) -> None:
    camera = {name: value for name, value in released().items() if name.startswith("encoders.camera.")}
    path = written(tmp_path, {f"module.{name}": value for name, value in camera.items()})
    with pytest.raises(ValueError, match="does not hold what this trunk expects"):
        load_foreign(trunk(), path)
    model = trunk()
    still = model.lidar.state_dict()["encoder.0.0.weight"].clone()
    report = load_foreign(model, path, parts=("camera",))
    assert all(name.startswith("camera.") for name in report.loaded)
    assert any(name.startswith("lidar.") for name in report.skipped)
    assert torch.equal(model.lidar.state_dict()["encoder.0.0.weight"], still)
    with pytest.raises(ValueError, match="no part 'radar'"):
        load_foreign(model, path, parts=("radar",))


def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path) -> None:
    state = released() | {"fuser.0.weight": torch.zeros(16, 25, 3, 3)}
    model = trunk()
    before = model.state_dict()["fuse.layers.1.weight"].clone()
    with pytest.raises(
        ValueError, match=r"mismatched: fuse.layers.0.weight \[16, 25, 1, 3, 3\] for \[16, 24, 1, 3, 3\]"
    ):
        load_foreign(model, written(tmp_path, state))
    assert torch.equal(model.state_dict()["fuse.layers.1.weight"], before)
    with pytest.raises(ValueError, match="build the trunk with norm frozen or batch"):
        load_foreign(trunk(norm="group"), written(tmp_path, released()))
    wrong = released() | {"encoders.lidar.backbone.conv_out.0.weight": torch.zeros(5, 5, 5, 8, 8)}
    with pytest.raises(ValueError, match="in no layout known here"):
        load_foreign(trunk(), written(tmp_path, wrong))


class Surprise:
    def __reduce__(self) -> tuple:
        return math.sqrt, (4.0,)


def test_a_file_is_read_as_data_and_never_as_code(tmp_path: Path) -> None:
    torch.save({"state_dict": released(), "extra": Surprise()}, tmp_path / "code.pth")
    with pytest.raises(ValueError, match="cannot be read as plain weights"):
        read_foreign(tmp_path / "code.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no weights by name"):
        read_foreign(tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="cannot be read"):
        read_foreign(tmp_path / "absent.pth")


def test_a_run_starts_from_a_released_file_like_from_one_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "released.pth"
    torch.save({"state_dict": released()}, path)
    config = recipe_for("boxes:nuscenes-released", BoxTuning)
    config = replace(config, start=Start(trunk=str(path)))
    model, direct = trunk(), trunk()
    report = start_trunk(model, config)
    assert str(report) == str(load_foreign(direct, path))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), direct.state_dict().values(), strict=True)
    )
    with seeded("trunk"):
        built = build_trunk(config.model, config.grid, config.patch)
    assert isinstance(built.lidar, VoxelNet)
    assert built.camera is not None
    assert built.lidar.metres
    assert float(built.camera.lift.bins.centres()[0]) == 1.0
    with seeded("trunk"):
        alone = Trunk(None, model.lidar, ConvFuse((16,), 16), GRID)
    assert shared_parts(alone) == ("lidar",)
