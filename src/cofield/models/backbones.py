"""Images to features at the paper's size: an encoder with three scales, and the neck that joins them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cofield.models.blocks import Computing, Layers, Norm, normalised
from cofield.ops.precision import precise

INSTALL = "these encoders need the package `transformers`; install cofield[paper] with constraints.txt"


class Swin(Computing, nn.Module):
    """A Swin transformer: features at an eighth, a sixteenth and a thirty-second of the image's size.

    Stochastic depth drops a whole layer for an image, with a probability that rises linearly to `drop_path` (p) at the
    last layer. The library's own drops half of a layer and draws from the global generator; ours takes a generator
    per image, and without one drops nothing.

    Args:
        width: channels of the first stage; each later stage doubles them.
        weights: a folder that `save_pretrained` wrote, or a name on the hub; None starts at random.
        recompute: keep only what enters each layer, and compute the rest again on the way back.
    """

    def __init__(
        self,
        width: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (3, 6, 12, 24),
        window: int = 7,
        drop_path: float = 0.2,
        weights: str | Path | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        library = _library()
        config = library.SwinConfig(
            embed_dim=width,
            depths=list(depths),
            num_heads=list(heads),
            window_size=window,
            drop_path_rate=0.0,
            out_features=["stage2", "stage3", "stage4"],
        )
        # The norms of the three outputs are new to an image classifier's weights, and its last norm has no use here.
        self.body = _filled(library.SwinBackbone, config, weights, ("hidden_states_norms.", "swin.layernorm."))
        self.body.swin.layernorm = nn.Identity()
        self.widths = tuple(width * 2**stage for stage in (1, 2, 3))
        self.drop = [drop_path * layer / max(sum(depths) - 1, 1) for layer in range(sum(depths))]
        self.recompute = recompute

    def forward(
        self, input: Float[Tensor, "n 3 h w"], draws: list[torch.Generator] | None = None
    ) -> list[Float[Tensor, "n _ _ _"]]:
        """The three scales, the finest first.

        Args:
            draws: a generator per image for the layers that it skips.
        """
        swin, norms = self.body.swin, self.body.hidden_states_norms
        keep = self._keep(len(input), draws if self.training else None, input.device)
        with self.casting(input):
            x, size = swin.embeddings(input)
            scales = []
            for index, stage in enumerate(swin.encoder.layers, start=1):
                for layer in stage.blocks:
                    # Without `always_partition` a layer remembers the smallest image it ever met.
                    after = _run(layer, self.recompute, x, size, always_partition=True)[0]
                    share = next(keep)
                    x = after if share is None else x + share[:, None, None] * (after - x)
                if f"stage{index}" in norms:
                    scales.append(norms[f"stage{index}"](x).transpose(1, 2).unflatten(2, size))
                if stage.downsample is not None:
                    x = stage.downsample(x, size)
                    size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
        return scales

    def _keep(self, images: int, draws: list[torch.Generator] | None, device: torch.device) -> Iterator[Tensor | None]:
        """For each layer what every image's change counts: 0 where it is dropped, else so that the mean is 1."""
        if draws is not None and len(draws) != images:
            raise ValueError(f"{images} images need as many generators, got {len(draws)}")
        for rate in self.drop:
            if draws is None or rate == 0:
                yield None
            else:
                kept = torch.stack([torch.rand((), generator=draw) >= rate for draw in draws])
                yield (kept / (1 - rate)).to(device)


class ResNet(Computing, nn.Module):
    """A residual network with bottlenecks: features at an eighth, a sixteenth and a thirty-second of the image's size.

    Args:
        widths: channels of the four stages.
        norm: group norm for weights that start at random; released weights are for batch norm, here frozen (ours): a
            step's few images are a poor sample, and what a frame becomes must not depend on them.
        weights, recompute: as for `Swin`.
    """

    def __init__(
        self,
        stem: int = 64,
        widths: tuple[int, int, int, int] = (256, 512, 1024, 2048),
        depths: tuple[int, int, int, int] = (3, 4, 6, 3),
        norm: Norm = "group",
        weights: str | Path | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if weights is not None and norm == "group":
            raise ValueError("released residual networks have batch norm, which group norm cannot take; norm=frozen")
        if recompute and norm == "batch":
            raise ValueError("computing twice would count each batch's statistics twice; norm=frozen or group")
        library = _library()
        config = library.ResNetConfig(
            embedding_size=stem,
            hidden_sizes=list(widths),
            depths=list(depths),
            out_features=["stage2", "stage3", "stage4"],
        )
        self.body = _filled(library.ResNetBackbone, config, weights, ())
        _renorm(self.body, norm)
        self.widths = widths[1:]
        self.recompute = recompute

    def forward(
        self, input: Float[Tensor, "n 3 h w"], draws: list[torch.Generator] | None = None
    ) -> list[Float[Tensor, "n _ _ _"]]:
        """The three scales, the finest first; it draws nothing."""
        with self.casting(input):
            x = self.body.embedder(input)
            scales = []
            for stage in self.body.encoder.stages:
                for layer in stage.layers:
                    x = _run(layer, self.recompute, x)
                scales.append(x)
        return scales[1:]


class Neck(nn.Module):
    """LSS-FPN: the coarser scales, enlarged, beside the finer ones and mixed, from the coarsest to the finest.

    At each scale a 1×1 and a 3×3 convolution, normalised and rectified (r).
    """

    def __init__(self, widths: tuple[int, ...], width: int = 256, norm: Norm = "group") -> None:
        super().__init__()
        above = [width] * (len(widths) - 2) + [widths[-1]]
        self.mix = nn.ModuleList(
            _convolution(own + coarse, width, 1, norm) for own, coarse in zip(widths[:-1], above, strict=True)
        )
        self.smooth = nn.ModuleList(_convolution(width, width, 3, norm) for _ in widths[:-1])

    def forward(self, scales: list[Float[Tensor, "n _ _ _"]]) -> Float[Tensor, "n c h w"]:
        x = scales[-1]
        for finer, mix, smooth in list(zip(scales, self.mix, self.smooth, strict=False))[::-1]:
            x = F.interpolate(precise(x), size=finer.shape[-2:], mode="bilinear").to(finer.dtype)
            x = smooth(mix(torch.cat([finer, x], 1)))
        return x


class PaperCamera(nn.Module):
    """A released encoder and LSS-FPN: features of `width` channels at an eighth of the image's size."""

    stride = 8

    def __init__(self, backbone: Swin | ResNet, width: int = 256, norm: Norm = "group") -> None:
        super().__init__()
        self.width = width
        self.backbone, self.neck = backbone, Neck(backbone.widths, width, norm)

    def forward(
        self, images: Float[Tensor, "n 3 h w"], draws: list[torch.Generator] | None = None
    ) -> Float[Tensor, "n c h8 w8"]:
        """The features of normalised images.

        Args:
            draws: a generator per image for stochastic depth, which without them is off.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"images of {height}×{width} are no whole number of features of {self.stride} pixels")
        return self.neck(self.backbone(images, draws))


def _convolution(before: int, after: int, size: int, kind: Norm) -> Layers:
    return Layers(
        nn.Conv2d(before, after, size, padding=size // 2, bias=False), normalised(after, kind), nn.ReLU(inplace=True)
    )


def _run(layer: nn.Module, recompute: bool, *inputs: Any, **options: Any) -> Any:
    """The layer's output; recomputed on the way back if that is wished."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
    return layer(*inputs, **options)


def _renorm(module: nn.Module, kind: Norm) -> None:
    """Replace every batch norm by the kind, which takes over its weights and statistics where it has them."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            other = normalised(child.num_features, kind)
            if isinstance(other, nn.BatchNorm2d):
                other.load_state_dict(child.state_dict())
            setattr(module, name, other)
        else:
            _renorm(child, kind)


def _filled(kind: Any, config: Any, weights: str | Path | None, fresh: tuple[str, ...]) -> Any:
    """A backbone at random, or from a folder or the hub; a weight that is not there, and not `fresh`, is an error."""
    if weights is None:
        return kind(config)
    try:
        body, report = kind.from_pretrained(
            weights, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, RuntimeError) as problem:
        raise ValueError(
            f"no weights at {str(weights)!r} for a {kind.__name__} ({problem}); give a folder with config.json and "
            "model.safetensors, or a name on the hub and a connection to it"
        ) from problem
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(fresh))
    if missing or report["mismatched_keys"]:
        raise ValueError(
            f"{str(weights)!r} is no {kind.__name__} of this size: {len(missing)} weights missing "
            f"({', '.join(missing[:4])}), {len(report['mismatched_keys'])} of another shape"
        )
    return body


def _library() -> Any:
    try:
        import transformers
    except ImportError as problem:
        raise ValueError(INSTALL) from problem
    return transformers
