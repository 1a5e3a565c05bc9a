"""Which frames are labelled, when only a share of them is."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch

from cofield.data import Source, Wrapped
from cofield.draw import generator
from cofield.frame import Frame

Split = Literal["frames", "scenes"]


@dataclass(frozen=True)
class Subset(Wrapped):
    """Some frames of a source, as a source."""

    source: Source
    indices: list[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Frame:
        return self.source[self.indices[index]]

    def scenes(self) -> list[str]:
        scenes = self.source.scenes()
        return [scenes[index] for index in self.indices]


def labelled(source: Source, fraction: float, split: Split, seed: int) -> list[int]:
    """The indices of the labelled frames, ascending; the same for the same seed, whatever is done with them.

    `frames`: every k-th frame of the time-sorted list, k = 1 / fraction (of 0.4 every second and third by turns), from
    an offset that the seed gives; this is the papers' way, and shows nearly every scene. `scenes`: a share of the
    scenes, with all their frames, which is how labels are bought.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"a label fraction is above 0 and at most 1, got {fraction}")
    draw = generator("labels", split, seed)
    if split == "frames":
        share = Fraction(repr(float(fraction)))
        offset = int(torch.randint(round(1 / share), (), generator=draw))
        places = (offset + index * share.denominator // share.numerator for index in range(len(source)))
        chosen = [place for place in places if place < len(source)]
    else:
        scenes = source.scenes()
        names = list(dict.fromkeys(scenes))
        order = torch.randperm(len(names), generator=draw).tolist()
        kept = {names[i] for i in order[: round(fraction * len(names))]}
        chosen = [i for i, scene in enumerate(scenes) if scene in kept]
    if not chosen:
        count = len(set(source.scenes())) if split == "scenes" else len(source)
        raise ValueError(f"{fraction:g} of {count} {split} leaves none; the smallest useful share is {1 / count:g}")
    return chosen
