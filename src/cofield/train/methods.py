"""The ways to learn LiDAR segmentation from few labels that are compared, by name."""

from dataclasses import replace
from typing import Any, Literal, cast

from cofield.train.config import Finetuning, SegmentTuning

Method = Literal[
    "supervised",
    "nerf-exact",
    "nerf-felzenszwalb",
    "nerf-pixels",
    "nerf-exact-cautious",
    "projection",
    "projection-consistent",
    "teacher-mixing",
    "nerf-exact-mixing",
]
# What each changes in the groups `semi` and `pseudo`.
METHODS: dict[Method, tuple[dict[str, Any], dict[str, Any]]] = {
    "supervised": ({"method": "supervised"}, {}),
    "nerf-exact": ({"method": "nerf"}, {"segmenter": "exact"}),
    "nerf-felzenszwalb": ({"method": "nerf"}, {"segmenter": "felzenszwalb"}),
    "nerf-pixels": ({"method": "nerf"}, {"segmenter": "pixels"}),
    "nerf-exact-cautious": ({"method": "nerf"}, {"segmenter": "exact", "caution": 0.5}),
    "projection": ({"method": "projection"}, {"segmenter": "exact"}),
    "projection-consistent": ({"method": "projection-consistent"}, {"segmenter": "exact"}),
    "teacher-mixing": ({"method": "supervised", "mixing": 0.5}, {}),
    "nerf-exact-mixing": ({"method": "nerf", "mixing": 0.5}, {"segmenter": "exact"}),
}


def with_method(base: Finetuning, name: str) -> SegmentTuning:
    """The run with the method of that name and, of everything else, what it had."""
    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}; there is {', '.join(METHODS)}")
    if not isinstance(base, SegmentTuning):
        raise ValueError(
            f"{name} learns segmentation from few labels, not the task {base.task}; take a lidarseg recipe"
        )
    semi, pseudo = METHODS[cast(Method, name)]
    return replace(base, semi=replace(base.semi, **semi), pseudo=replace(base.pseudo, **pseudo))
