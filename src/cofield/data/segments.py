"""Mask proposals: images to segments.

A segment is a region that is likely to be one thing, or a part of one; what it is a segmenter does not say. A label
image holds the number of each pixel's segment, UNKNOWN where it has none.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cofield.classes import UNKNOWN
from cofield.draw import generator
from cofield.frame import Camera

TOGETHER = 32  # points in one call of SAM's decoder: what it holds in memory, not what it finds


@runtime_checkable
class Segmenter(Protocol):
    """A frozen data class; its fields are its settings, and a cache of others is not taken for it."""

    def __call__(self, camera: Camera, token: str) -> Int[Tensor, "h w"]:
        """The label image of one exposure of the frame called `token`, which seeds what is drawn."""
        ...


@dataclass(frozen=True)
class Felzenszwalb:
    """Superpixels of like colour: needs no weights and covers every pixel.

    Args:
        scale: what a border must stand out by, for an image of 10,000 pixels; it grows with their number, so that an
            image has about as many segments at every size.
        blur: standard deviation in pixels; more than a little turns borders into segments of their own.
        smallest: pixels of a segment, or a 2,500th of the image if that is more.
    """

    scale: float = 160.0
    blur: float = 0.3
    smallest: int = 16

    def __call__(self, camera: Camera, token: str) -> Int[Tensor, "h w"]:
        from skimage.segmentation import felzenszwalb

        image = camera.image.permute(1, 2, 0).double().numpy()
        pixels = image.shape[0] * image.shape[1]
        smallest = max(self.smallest, round(pixels / 2500))
        found = felzenszwalb(image, scale=self.scale * pixels / 1e4, sigma=self.blur, min_size=smallest)
        return _of_image(found, camera)


@dataclass(frozen=True)
class Exact:
    """The synthetic world's own truth: connected regions of one class and one thing. What has no class has no segment.

    A thing that something else cuts in two in the image is two segments.
    """

    def __call__(self, camera: Camera, token: str) -> Int[Tensor, "h w"]:
        from skimage.measure import label

        if camera.semantics is None or camera.instances is None:
            raise ValueError(
                f"camera {camera.name!r} of frame {token} has no per-pixel truth, which exact segments are made of; "
                "take a synthetic world that is not read from a store, or another segmenter"
            )
        things = int(camera.instances.max()) + 2
        key = camera.semantics.long() * things + camera.instances + 1
        key = torch.where(camera.semantics == UNKNOWN, UNKNOWN, key)
        found: Any = label(key.numpy(), background=UNKNOWN, connectivity=1)
        return _of_image(found - 1, camera)


@dataclass(frozen=True)
class ExactSplit:
    """Exact segments cut into up to `parts` pieces each, a stand-in for masks that are too fine.

    A piece is what is nearest to one of as many random pixels of the segment.

    Args:
        smallest: the mean size of the pieces in pixels is at least that.
    """

    parts: int = 6
    smallest: int = 24
    seed: int = 0

    def __call__(self, camera: Camera, token: str) -> Int[Tensor, "h w"]:
        whole = Exact()(camera, token)
        draw = generator(self.seed, token, camera.name, "split")
        fine, count = whole.clone(), 0
        for segment in range(int(whole.max()) + 1):
            place = (whole == segment).nonzero()
            parts = min(self.parts, max(1, len(place) // self.smallest))
            centre = place[torch.randperm(len(place), generator=draw)[:parts]]
            nearest = torch.cdist(place.float(), centre.float()).argmin(1)
            fine[place[:, 0], place[:, 1]] = nearest + count
            count += parts
        return _of_image(fine, camera)


@dataclass(frozen=True)
class ExactMerged:
    """Exact segments, of which a share is joined to a random neighbour, a stand-in for masks that are too coarse."""

    share: float = 0.3
    seed: int = 0

    def __call__(self, camera: Camera, token: str) -> Int[Tensor, "h w"]:
        whole = Exact()(camera, token)
        draw = generator(self.seed, token, camera.name, "merged")
        beside = torch.cat([_pairs(whole[:, 1:], whole[:, :-1]), _pairs(whole[1:], whole[:-1])])
        beside = torch.cat([beside, beside.flip(1)]).unique(dim=0)
        name = torch.arange(int(whole.max()) + 1)
        for segment in range(len(name)):
            joins, choice = torch.rand(2, generator=draw).tolist()
            neighbours = beside[beside[:, 0] == segment, 1]
            if joins < self.share and len(neighbours):
                other = neighbours[int(choice * len(neighbours))]
                name[name == name[segment]] = name[other]
        return _of_image(torch.where(whole == UNKNOWN, UNKNOWN, name[whole]), camera)


@dataclass(frozen=True)
class Sam:
    """Segment Anything, asked at a grid of points, its masks flattened by `flattened`.

    Args:
        weights: the folder of a model that `transformers` has saved, or its name on the hub.
        side: points along each side of the image.
        iou: the least overlap with the truth that the model expects of a mask.
        stability: the least overlap of a mask with itself when its threshold is moved by one either way.
        overlap: of two masks whose boxes overlap more than that, the model's favourite stays.
    """

    weights: str = "facebook/sam-vit-base"
    side: int = 32
    iou: float = 0.88
    stability: float = 0.95
    overlap: float = 0.7

    def __call__(self, camera: Camera, token: str) -> Int[Tensor, "h w"]:
        masks, scores = self.propose(camera.image)
        chosen = favourites(boxes_of(masks), scores, self.overlap)
        return _of_image(flattened(masks[chosen]), camera)

    @torch.no_grad()
    def propose(self, image: Float[Tensor, "3 h w"]) -> tuple[Bool[Tensor, "n h w"], Float[Tensor, "n"]]:
        """Every mask that is good enough, and how good the model thinks it is; the same thing many times."""
        model, processor = _sam(self.weights)
        device = next(model.parameters()).device
        as_bytes = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        inputs = processor(images=as_bytes, return_tensors="pt")
        embedding = model.get_image_embeddings(inputs["pixel_values"].to(device))
        height, width = (int(n) for n in inputs["reshaped_input_sizes"][0])
        unit = (torch.arange(self.side, device=device) + 0.5) / self.side
        points = torch.stack([unit.repeat(self.side) * width, unit.repeat_interleave(self.side) * height], -1)
        masks, scores = [image.new_zeros(0, *image.shape[-2:], dtype=torch.bool)], [image.new_zeros(0)]
        for some in points.split(TOGETHER):
            out = model(
                image_embeddings=embedding,
                input_points=some[None, :, None],
                input_labels=torch.ones(1, len(some), 1, dtype=torch.long, device=device),
                multimask_output=True,
            )
            score, logits = out.iou_scores[0].flatten(), out.pred_masks[0].flatten(0, 1)
            good = score >= self.iou
            if good.any():
                (fit,) = processor.post_process_masks(
                    [logits[good, None]], inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
                )
                stays = (stability(fit[:, 0]) >= self.stability) & (fit[:, 0] > 0).flatten(1).any(1)
                masks.append((fit[stays, 0] > 0).cpu())
                scores.append(score[good][stays].float().cpu())
        return torch.cat(masks), torch.cat(scores)


SEGMENTERS: dict[str, Segmenter] = {
    "felzenszwalb": Felzenszwalb(),
    "felzenszwalb-fine": Felzenszwalb(scale=20.0),
    "felzenszwalb-coarse": Felzenszwalb(scale=1280.0),
    "exact": Exact(),
    "exact-split": ExactSplit(),
    "exact-merged": ExactMerged(),
    "sam": Sam(),
}


def segmenter_called(name: str, weights: str | None = None) -> Segmenter:
    """The segmenter of a name; `weights` are another model for SAM."""
    if name not in SEGMENTERS:
        raise ValueError(f"no segmenter is called {name!r}; there is {', '.join(SEGMENTERS)}")
    if weights is None:
        return SEGMENTERS[name]
    if name != "sam":
        raise ValueError(f"{name} has no weights, but {weights} was given; leave it out, or use sam")
    return Sam(weights)


def described(segmenter: Segmenter) -> dict[str, Any]:
    """A segmenter's kind and settings as plain values. Of weights only the name counts, not the folder they are in."""
    settings: dict[str, Any] = asdict(segmenter)  # pyright: ignore[reportArgumentType]
    if isinstance(segmenter, Sam):
        settings["weights"] = Path(segmenter.weights).name
    return {"kind": type(segmenter).__name__} | settings


def flattened(masks: Bool[Tensor, "n h w"]) -> Int[Tensor, "h w"]:
    """Masks that overlap as one label image: of several at a pixel the smallest wins, of equally large the first."""
    label = torch.full(masks.shape[1:], UNKNOWN)
    area = masks.flatten(1).sum(1)
    # The largest is painted first, and of equals the last, so that what should win comes on top.
    for k in (len(masks) - 1 - area.flip(0).argsort(descending=True, stable=True)).tolist():
        label[masks[k]] = k
    return renumbered(label)


def renumbered(label: Int[Tensor, "h w"]) -> Int[Tensor, "h w"]:
    """The same segments, numbered 0, 1, 2, ... without gaps."""
    numbers, place = label.unique(return_inverse=True)
    return place - (numbers < 0).sum()


def stability(logits: Float[Tensor, "n h w"], offset: float = 1.0) -> Float[Tensor, "n"]:
    """The overlap of the masks at thresholds +offset and -offset: the first lies within the second."""
    inner, outer = ((logits > threshold).flatten(1).sum(1) for threshold in (offset, -offset))
    return inner / outer.clamp(min=1)


def boxes_of(masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 4"]:
    """Left, top, right, bottom of masks that are not empty."""
    sides = []
    for seen in (masks.any(1), masks.any(2)):
        size = seen.shape[1]
        first = seen.int().argmax(1)
        sides.append((first, size - seen.flip(1).int().argmax(1)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], -1).float()


def favourites(boxes: Float[Tensor, "n 4"], scores: Float[Tensor, "n"], overlap: float) -> Int[Tensor, "m"]:
    """The boxes, best first, that overlap none better by more than `overlap` (intersection over union)."""
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order]
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    rivals = shared > overlap * (area[:, None] + area[None] - shared)
    stays = torch.ones(len(boxes), dtype=torch.bool)
    for k in range(len(boxes)):
        if stays[k]:
            stays[k + 1 :] &= ~rivals[k, k + 1 :]
    return order[stays]


@lru_cache(maxsize=1)
def _sam(weights: str) -> tuple[Any, Any]:
    try:
        from transformers import SamImageProcessorPil, SamModel
    except ImportError as problem:
        raise ValueError("SAM needs transformers: pip install -c constraints.txt 'cofield[sam]'") from problem
    try:
        model: Any = SamModel.from_pretrained(weights)
        processor = SamImageProcessorPil.from_pretrained(weights)
    except (OSError, ValueError) as problem:
        raise ValueError(
            f"no SAM weights at {weights}; give a folder that transformers has saved, or a hub name that can be reached"
        ) from problem
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), processor


def _of_image(label: np.ndarray | Tensor, camera: Camera) -> Int[Tensor, "h w"]:
    """Labels as a tensor, without gaps, none where the image is no image."""
    found = torch.as_tensor(label).long()
    if camera.valid is not None:
        found = torch.where(camera.valid, found, UNKNOWN)
    return renumbered(found)


def _pairs(one: Int[Tensor, "h w"], other: Int[Tensor, "h w"]) -> Int[Tensor, "n 2"]:
    """The segments that touch, of two label images of neighbouring pixels."""
    differ = (one != other) & (one != UNKNOWN) & (other != UNKNOWN)
    return torch.stack([one[differ], other[differ]], -1)
