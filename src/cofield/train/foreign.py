"""Weights of the released BEVFusion and NS-MAE, as mmdet3d names them, into our trunk.

What is the same under another name is renamed; what is laid out otherwise is laid out as ours. The released models
think in nuScenes' LiDAR axes (x right, y forward) and hold bird's-eye maps as [x y]; ours in ego axes (x forward, y
left), as [y x]. So kernels that lie on the ground are turned, and with them what the first layer is told of x and y.

Two things stay the released models' own. Their depth bins begin where ours have their middle: `DepthBins(0.75, 0.5,
118)` has the same depths. Their strided kernels lie on every second cell from the border on; ours, turned, start at the
opposite border where a number of cells is even (`VoxelNet` chooses it odd, which has no such border).
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cofield.models.lift import DepthLSS
from cofield.models.trunk import Trunk
from cofield.models.voxelnet import VoxelNet
from cofield.train.checkpoint import LoadReport

Layout = Literal["xyzio", "zyxio", "oxyzi", "ozyxi"]
LAYOUTS: dict[str, str] = {
    "xyzio": "BEVFusion's and NS-MAE's own spconv",
    "zyxio": "mmdet3d with spconv 1",
    "oxyzi": "BEVFusion with spconv 2",
    "ozyxi": "mmdet3d with spconv 2",
}


class Rule(NamedTuple):
    """Foreign names that match `pattern` are ours under `names`, each made by `change`.

    Args:
        names: more than one where a foreign tensor holds several of ours, of equal size along its first axis.
        change: the name of the change, a key of `_changes`.
    """

    pattern: str
    names: tuple[str, ...]
    change: str = "same"


ANY = r"(weight|bias)"
NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
SWIN, OURS = r"encoders\.camera\.backbone\.", "camera.encoder.backbone.body."
LAYER, BLOCK = rf"{SWIN}stages\.(\d)\.blocks\.(\d)\.", OURS + r"swin.encoder.layers.\1.blocks.\2."
LSS, FLAT = r"encoders\.camera\.vtransform\.", r"encoders\.lidar\.backbone\."


def _rules() -> tuple[Rule, ...]:
    rules = [
        Rule(rf"{SWIN}patch_embed\.projection\.{ANY}", (OURS + r"swin.embeddings.patch_embeddings.projection.\1",)),
        Rule(rf"{SWIN}patch_embed\.norm\.{ANY}", (OURS + r"swin.embeddings.norm.\1",)),
        Rule(rf"{LAYER}norm1\.{ANY}", (BLOCK + r"layernorm_before.\3",)),
        Rule(rf"{LAYER}norm2\.{ANY}", (BLOCK + r"layernorm_after.\3",)),
        Rule(
            rf"{LAYER}attn\.w_msa\.relative_position_bias_table",
            (BLOCK + "attention.relative_position_bias.relative_position_bias_table",),
        ),
        Rule(rf"{LAYER}attn\.w_msa\.qkv\.{ANY}", tuple(BLOCK + rf"attention.{part}_proj.\3" for part in "qkv")),
        Rule(rf"{LAYER}attn\.w_msa\.proj\.{ANY}", (BLOCK + r"attention.o_proj.\3",)),
        Rule(rf"{LAYER}ffn\.layers\.0\.0\.{ANY}", (BLOCK + r"mlp.fc1.\3",)),
        Rule(rf"{LAYER}ffn\.layers\.1\.{ANY}", (BLOCK + r"mlp.fc2.\3",)),
        Rule(
            rf"{SWIN}stages\.(\d)\.downsample\.(norm|reduction)\.{ANY}",
            (OURS + r"swin.encoder.layers.\1.downsample.\2.\3",),
            "patches",
        ),
    ]
    rules += [
        Rule(rf"{SWIN}norm{stage}\.{ANY}", (OURS + rf"hidden_states_norms.stage{stage + 1}.\1",)) for stage in (1, 2, 3)
    ]
    for theirs, ours in (("lateral_convs", "mix"), ("fpn_convs", "smooth")):
        start = rf"encoders\.camera\.neck\.{theirs}\.(\d)\."
        rules.append(Rule(rf"{start}conv\.{ANY}", (rf"camera.encoder.neck.{ours}.\1.0.\2",)))
        rules.append(Rule(rf"{start}bn\.{NORM}", (rf"camera.encoder.neck.{ours}.\1.1.\2",)))
    rules += [
        Rule(rf"{LSS}dtransform\.0\.weight", ("camera.lift.frustum.stem.0.weight",), "depth image"),
        Rule(rf"{LSS}dtransform\.(\d)\.{NORM}", (r"camera.lift.frustum.stem.\1.\2",)),
        Rule(rf"{LSS}depthnet\.(\d)\.{NORM}", (r"camera.lift.frustum.head.\1.\2",)),
        Rule(rf"{LSS}downsample\.([036])\.weight", (r"camera.lift.down.\1.weight",), "ground"),
        Rule(rf"{LSS}downsample\.([147])\.{NORM}", (r"camera.lift.down.\1.\2",)),
        Rule(r"fuser\.0\.weight", ("fuse.layers.0.weight",), "fuser"),
        Rule(rf"fuser\.1\.{NORM}", (r"fuse.layers.1.\1",)),
        Rule(rf"{FLAT}conv_input\.0\.weight", ("lidar.encoder.0.0.weight",), "first voxels"),
        Rule(rf"{FLAT}conv_input\.1\.{NORM}", (r"lidar.encoder.0.1.\1",)),
    ]
    # Our stages are one list: the first layer, then two residual blocks and a strided convolution each.
    for stage in (1, 2, 3, 4):
        layer = rf"{FLAT}encoder_layers\.encoder_layer{stage}\."
        for block in (0, 1):
            ours = f"lidar.encoder.{3 * stage - 2 + block}.path."
            for half, (conv, norm) in enumerate(((0, 1), (3, 4)), start=1):
                rules.append(Rule(rf"{layer}{block}\.conv{half}\.weight", (f"{ours}{conv}.weight",), "voxels"))
                rules.append(Rule(rf"{layer}{block}\.bn{half}\.{NORM}", (rf"{ours}{norm}.\1",)))
        down = rf"{layer}2\." if stage < 4 else rf"{FLAT}conv_out\."
        rules.append(Rule(rf"{down}0\.weight", (f"lidar.encoder.{3 * stage}.0.weight",), "voxels"))
        rules.append(Rule(rf"{down}1\.{NORM}", (rf"lidar.encoder.{3 * stage}.1.\1",)))
    return tuple(rules)


RULES = _rules()
# Ours alone: the token of hidden patches, and what unfolds voxels to a volume. The released encoder has no such
# layer; where ours keeps the number of channels it becomes the identity, elsewhere it starts fresh.
OWN = ("camera.token.", "lidar.head.")


def shared_parts(trunk: Trunk) -> tuple[str, ...]:
    """The parts of a trunk that released weights of both sensors fill; fused they are only where both are there."""
    sensors = tuple(name for name in ("camera", "lidar") if getattr(trunk, name) is not None)
    return (*sensors, "fuse") if len(sensors) > 1 else sensors


def load_foreign(
    trunk: Trunk, path: Path, parts: tuple[str, ...] = ("camera", "lidar", "fuse"), layout: Layout | None = None
) -> LoadReport:
    """Fill a trunk from a released `.pth`, and report; an expected weight that does not match is an error.

    Args:
        parts: the expected parts, as the beginnings of our names.
        layout: of the file's sparse kernels; None finds it from the last one, which is 3 voxels high and 1 wide.
    """
    own = trunk.state_dict()
    wanted = tuple(f"{part}." for part in parts)
    for part in wanted:
        if not any(name.startswith(part) for name in own):
            raise ValueError(f"this trunk has no part {part[:-1]!r}; name only parts that are built")
    found, unexpected = translated(read_foreign(path), trunk, layout)
    asked = [name for name in own if name.startswith(wanted)]
    common = [name for name in asked if name in found]
    loaded = [name for name in common if found[name].shape == own[name].shape]
    report = LoadReport(
        loaded=tuple(loaded),
        missing=tuple(name for name in asked if name not in found),
        unexpected=(*unexpected, *(name for name in found if name not in own and name.startswith(wanted))),
        mismatched=tuple(
            f"{name} {list(found[name].shape)} for {list(own[name].shape)}" for name in common if name not in loaded
        ),
        skipped=tuple(name for name in own if name not in asked),
    )
    if any(name not in own and name.endswith("running_mean") and name.startswith(wanted) for name in found):
        raise ValueError(f"{path} was trained with batch norm; build the trunk with norm frozen or batch. {report}")
    if report.mismatched or any(not name.startswith(OWN) for name in report.missing):
        raise ValueError(f"{path} does not hold what this trunk expects: {report}\nname only the parts that it has")
    trunk.load_state_dict(own | {name: found[name] for name in loaded})
    return report


def read_foreign(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth`, read as data and never as code; prefixes of parallel training are cut off."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as problem:
        raise ValueError(
            f"{path} cannot be read as plain weights ({problem}); if it holds other objects, save its state_dict alone"
        ) from problem
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no weights by name")
    return tensors


def translated(
    theirs: dict[str, Tensor], trunk: Trunk, layout: Layout | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Foreign weights under our names and in our layout, and the names that are of nothing we have."""
    layout = layout or layout_of(theirs)
    changes = _changes(trunk, layout)
    found: dict[str, Tensor] = {}
    unexpected = []
    for name, value in theirs.items():
        rule, match = next(((r, m) for r in RULES if (m := re.fullmatch(r.pattern, name))), (None, None))
        if rule is None or match is None:
            unexpected.append(name)
            continue
        changed = changes[rule.change](value)
        pieces = changed.chunk(len(rule.names)) if len(rule.names) > 1 else (changed,)
        found |= {match.expand(ours): piece for ours, piece in zip(rule.names, pieces, strict=True)}
    head = trunk.state_dict().get("lidar.head.0.weight")
    if layout is not None and head is not None and head.shape[0] == head.shape[1]:
        found["lidar.head.0.weight"] = torch.eye(len(head)).view_as(head)
        found["lidar.head.0.bias"] = torch.zeros(len(head))
    return found, tuple(unexpected)


def layout_of(theirs: dict[str, Tensor]) -> Layout | None:
    """How sparse kernels are laid out, told by the last one, 3×1×1 along z; None if there is none."""
    last = theirs.get("encoders.lidar.backbone.conv_out.0.weight")
    if last is None:
        return None
    shapes: dict[tuple[int, ...], tuple[Layout, Layout]] = {
        (1, 1, 3): ("xyzio", "oxyzi"),
        (3, 1, 1): ("zyxio", "ozyxi"),
    }
    for sizes, (inner, outer) in shapes.items():
        if tuple(last.shape[:3]) == sizes:
            return inner
        if tuple(last.shape[1:4]) == sizes:
            return outer
    raise ValueError(
        f"the last sparse kernel is {list(last.shape)}, and 3×1×1 along z in no layout known here: {LAYOUTS}"
    )


def turned(kernel: Tensor, layout: Layout) -> Tensor:
    """A sparse kernel in LiDAR axes as ours: [kz ky kx in out] in ego axes."""
    if layout.startswith("o"):
        kernel = kernel.movedim(0, -1)
    if "zyx" in layout:
        kernel = kernel.transpose(0, 2)
    # Now [kx ky kz in out]. Forward is their y, left is against their x.
    return kernel.flip(0).permute(2, 0, 1, 3, 4).contiguous()


def _changes(trunk: Trunk, layout: Layout | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is done to tensors, by name."""

    def patches(value: Tensor) -> Tensor:
        # Theirs counts four pixels within each channel, row by row; ours channels within each pixel, column by column.
        return value.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2)

    def depth_image(value: Tensor) -> Tensor:
        # Theirs is in metres, ours a share of the last bin's end, beside which it says where there is none.
        if trunk.camera is None or not isinstance(trunk.camera.lift, DepthLSS):
            return value
        return torch.cat([value * trunk.camera.lift.frustum.bins.upper, torch.zeros_like(value)], 1)

    def ground(value: Tensor) -> Tensor:
        return value.flip(-2)

    def fuser(value: Tensor) -> Tensor:
        return ground(value)[:, :, None]

    def voxels(value: Tensor) -> Tensor:
        assert layout is not None
        return turned(value, layout)

    def first_voxels(value: Tensor) -> Tensor:
        if isinstance(trunk.lidar, VoxelNet) and not trunk.lidar.metres:
            raise ValueError("the released encoder is told places in metres; build VoxelNet with metres=True")
        x, y, z, brightness, age = voxels(value).unbind(3)
        return torch.stack([y, -x, z, brightness * 255, age], 3)

    return {
        "same": lambda value: value,
        "patches": patches,
        "depth image": depth_image,
        "ground": ground,
        "fuser": fuser,
        "voxels": voxels,
        "first voxels": first_voxels,
    }
