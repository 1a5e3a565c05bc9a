"""Frames repeated by how rare the classes in them are: class-balanced grouping and sampling (CBGS)."""

from collections.abc import Sequence

import torch

from cofield.classes import UNKNOWN
from cofield.data import Source, Wrapped
from cofield.data.fractions import Subset
from cofield.data.nuscenes import NuScenes
from cofield.data.nuscenes_truth import official_truth
from cofield.data.stored import Stored
from cofield.draw import generator


def balanced(present: Sequence[frozenset[int]], seed: int) -> list[int]:
    """Indices of frames, ascending and with repeats, so that every class has the same number of frames drawn for it.

    A class that is in n_c of the frames gets Σ n_c / K draws from those, K being the number of classes that occur: all
    of its frames equally often, and for what then is left some of them, which the seed decides. Frames without any
    class are never drawn.

    Args:
        present: the classes in each frame.
    """
    of_class = {
        label: [index for index, labels in enumerate(present) if label in labels]
        for label in sorted(set().union(*present))
    }
    if not of_class:
        raise ValueError(f"none of {len(present)} frames has a box, so there are no classes to balance")
    each = round(sum(map(len, of_class.values())) / len(of_class))
    chosen = []
    for label, frames in of_class.items():
        times, rest = divmod(each, len(frames))
        order = torch.randperm(len(frames), generator=generator("balance", seed, label)).tolist()
        chosen += frames * times + [frames[place] for place in order[:rest]]
    return sorted(chosen)


def classes_present(source: Source) -> list[frozenset[int]]:
    """The labels of each frame's boxes: of nuScenes from its tables, else from the frames, which are all read."""
    match source:
        case Subset(source=inner, indices=indices) if _is_nuscenes(inner):
            found = classes_present(inner)
            return [found[index] for index in indices]
        case Stored(source=inner) if _is_nuscenes(inner):
            return classes_present(inner)
        case NuScenes():
            return [_labels(truth.boxes.label) for truth in official_truth(source)]
    present = []
    for index in range(len(source)):
        frame = source[index]
        if frame.boxes is None:
            raise ValueError(f"{frame.token} of {source.name} has no boxes; classes cannot be balanced")
        present.append(_labels(frame.boxes.label))
    return present


def _is_nuscenes(source: Source) -> bool:
    return isinstance(source, NuScenes) or (isinstance(source, Wrapped) and _is_nuscenes(source.source))


def _labels(label: torch.Tensor) -> frozenset[int]:
    return frozenset(label.tolist()) - {UNKNOWN}
