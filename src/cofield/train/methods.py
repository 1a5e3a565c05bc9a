"""The ways to learn LiDAR segmentation from few labels that are compared, by name, and changes of a configuration."""

from dataclasses import replace
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from cofield.train.config import Finetuning, SegmentTuning, flat

EVERYTHING = {"threshold": None, "voters": 1, "smallest": 1}  # of `pseudo`: the confidence sampler is off
RENDERED = {"method": "nerf", "together": False}  # of `semi`: rays vote and are taught, points are not
# What each changes in the groups `semi` and `pseudo`.
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "supervised": ({"method": "supervised"}, {}),
    "nerf-exact": (RENDERED, {"segmenter": "exact"}),
    "nerf-exact-unsifted": (RENDERED, {"segmenter": "exact"} | EVERYTHING),
    "nerf-exact-cautious": (RENDERED, {"segmenter": "exact", "caution": 0.5}),
    "nerf-felzenszwalb": (RENDERED, {"segmenter": "felzenszwalb"}),
    "nerf-felzenszwalb-fine": (RENDERED, {"segmenter": "felzenszwalb-fine"}),
    "nerf-felzenszwalb-coarse": (RENDERED, {"segmenter": "felzenszwalb-coarse"}),
    "nerf-pixels": (RENDERED, {"segmenter": "pixels"}),
    "nerf-pixels-unsifted": (RENDERED, {"segmenter": "pixels"} | EVERYTHING),
    "projection": ({"method": "projection"}, {"segmenter": "exact"}),
    "projection-unsifted": ({"method": "projection"}, {"segmenter": "exact"} | EVERYTHING),
    "projection-pixels": ({"method": "projection"}, {"segmenter": "pixels"}),
    "projection-pixels-unsifted": ({"method": "projection"}, {"segmenter": "pixels"} | EVERYTHING),
    "projection-consistent": ({"method": "projection-consistent"}, {"segmenter": "exact"}),
    "nerf-projection": ({"method": "nerf", "together": True}, {"segmenter": "exact"}),
    "teacher-mixing": ({"method": "supervised", "mixing": 0.5}, {}),
    "nerf-exact-mixing": (RENDERED | {"mixing": 0.5}, {"segmenter": "exact"}),
    "combined": ({"method": "nerf", "together": True, "mixing": 0.5}, {"segmenter": "exact"}),
}


def with_method(base: Finetuning, name: str) -> SegmentTuning:
    """The run with the method of that name and, of everything else, what it had."""
    if name not in METHODS:
        raise ValueError(f"no method is called {name!r}; there is {', '.join(METHODS)}")
    if not isinstance(base, SegmentTuning):
        raise ValueError(
            f"{name} learns segmentation from few labels, not the task {base.task}; take a lidarseg recipe"
        )
    semi, pseudo = METHODS[name]
    return replace(base, semi=replace(base.semi, **semi), pseudo=replace(base.pseudo, **pseudo))


def with_changes(base: Finetuning, changes: str) -> Finetuning:
    """The run with other fields: `pseudo.threshold=0.1`; + joins several, `none` is None, lists are as in YAML."""
    for change in filter(None, changes.split("+")):
        name, _, text = change.partition("=")
        group, _, member = name.partition(".")
        if not text:
            raise ValueError(f"{change!r} is no change; write FIELD=VALUE, as pseudo.threshold=0.1")
        if name not in flat(base):
            raise ValueError(f"{change!r}: a {base.task} run has no field {name}; cofield recipes NAME prints them")
        try:
            value = None if text == "none" else yaml.safe_load(text)
        except yaml.YAMLError as problem:
            raise ValueError(f"{change!r}: {text} is no value; lists are written [0.1, 0.5]") from problem
        kind = TypeAdapter(type(base))
        plain = kind.dump_python(base, mode="json")
        if member:
            plain[group][member] = value
        else:
            plain[group] = value
        try:
            base = kind.validate_python(plain, extra="forbid")
        except ValidationError as problem:
            raise ValueError(f"{change!r}: {problem.errors()[0]['msg']}") from problem
    return base
