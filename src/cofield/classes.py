"""Class names of each label space, the groups they form, and translation between them.

A label is an index into a `Classes.names`; `UNKNOWN` (-1) is a point, pixel or box without one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

UNKNOWN = -1


@dataclass(frozen=True)
class Classes:
    """A label space: the names that labels 0, 1, 2, ... stand for."""

    space: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """The label of a name."""
        if name not in self.names:
            raise ValueError(f"{self.space} has no class {name!r}; it has {', '.join(self.names)}")
        return self.names.index(name)


DETECTION = Classes(
    "nuscenes-detection",
    (
        "car",
        "truck",
        "construction_vehicle",
        "bus",
        "trailer",
        "barrier",
        "motorcycle",
        "bicycle",
        "pedestrian",
        "traffic_cone",
    ),
)
VEHICLES = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle")

ATTRIBUTES = Classes(
    "nuscenes-attributes",
    (
        "cycle.with_rider",
        "cycle.without_rider",
        "pedestrian.moving",
        "pedestrian.standing",
        "pedestrian.sitting_lying_down",
        "vehicle.moving",
        "vehicle.parked",
        "vehicle.stopped",
    ),
)
_WHEN_MOVING = dict.fromkeys(VEHICLES, "vehicle.moving") | {
    "motorcycle": "cycle.with_rider",
    "bicycle": "cycle.with_rider",
    "pedestrian": "pedestrian.moving",
}
_WHEN_STILL = dict.fromkeys(VEHICLES, "vehicle.parked") | {
    "bus": "vehicle.stopped",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider",
    "pedestrian": "pedestrian.standing",
}

MAP_LAYERS = Classes("map-layers", ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider"))

LIDARSEG = Classes(
    "nuscenes-lidarseg",
    (
        "barrier",
        "bicycle",
        "bus",
        "car",
        "construction_vehicle",
        "motorcycle",
        "pedestrian",
        "traffic_cone",
        "trailer",
        "truck",
        "driveable_surface",
        "other_flat",
        "sidewalk",
        "terrain",
        "manmade",
        "vegetation",
    ),
)

SEMANTICKITTI = Classes(
    "semantickitti",
    (
        "car",
        "bicycle",
        "motorcycle",
        "truck",
        "other-vehicle",
        "person",
        "bicyclist",
        "motorcyclist",
        "road",
        "parking",
        "sidewalk",
        "other-ground",
        "building",
        "fence",
        "vegetation",
        "trunk",
        "terrain",
        "pole",
        "traffic-sign",
    ),
)

KITTI = Classes("kitti", ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc"))

COMMON = Classes(
    "common",
    ("car", "truck", "bus", "two_wheeler", "pedestrian", "road", "sidewalk", "terrain", "manmade", "vegetation"),
)

# What each data set's class is called in the common space. A class without an entry (a traffic cone
# seen from SemanticKITTI, a parking area seen from nuScenes) has no counterpart and becomes UNKNOWN.
_COMMON_NAMES: dict[str, dict[str, str]] = {
    DETECTION.space: {
        "car": "car",
        "truck": "truck",
        "bus": "bus",
        "motorcycle": "two_wheeler",
        "bicycle": "two_wheeler",
        "pedestrian": "pedestrian",
    },
    LIDARSEG.space: {
        "bicycle": "two_wheeler",
        "bus": "bus",
        "car": "car",
        "motorcycle": "two_wheeler",
        "pedestrian": "pedestrian",
        "truck": "truck",
        "driveable_surface": "road",
        "sidewalk": "sidewalk",
        "terrain": "terrain",
        "manmade": "manmade",
        "vegetation": "vegetation",
    },
    SEMANTICKITTI.space: {
        "car": "car",
        "bicycle": "two_wheeler",
        "motorcycle": "two_wheeler",
        "bicyclist": "two_wheeler",
        "motorcyclist": "two_wheeler",
        "truck": "truck",
        "person": "pedestrian",
        "road": "road",
        "sidewalk": "sidewalk",
        "terrain": "terrain",
        "building": "manmade",
        "fence": "manmade",
        "pole": "manmade",
        "traffic-sign": "manmade",
        "vegetation": "vegetation",
        "trunk": "vegetation",
    },
    KITTI.space: {
        "Car": "car",
        "Van": "car",
        "Truck": "truck",
        "Pedestrian": "pedestrian",
        "Person_sitting": "pedestrian",
        "Cyclist": "two_wheeler",
    },
    COMMON.space: {name: name for name in COMMON.names},
}


# What one data set calls the classes of another, where names and groups do not tell: used by `translation` and so
# by every exporter. A class without an entry (cones and barriers, which neither KITTI labels) is UNKNOWN there.
COUNTERPARTS: dict[tuple[str, str], dict[str, str]] = {
    (DETECTION.space, KITTI.space): {
        "car": "Car",
        "truck": "Truck",
        "construction_vehicle": "Misc",
        "bus": "Misc",
        "trailer": "Misc",
        "motorcycle": "Misc",
        "bicycle": "Cyclist",
        "pedestrian": "Pedestrian",
    },
    # What nuScenes calls a bicycle has its rider in its box, and so has KITTI's Cyclist.
    (KITTI.space, DETECTION.space): {
        "Car": "car",
        "Van": "car",
        "Truck": "truck",
        "Pedestrian": "pedestrian",
        "Person_sitting": "pedestrian",
        "Cyclist": "bicycle",
    },
    (LIDARSEG.space, SEMANTICKITTI.space): {
        "bicycle": "bicycle",
        "bus": "other-vehicle",
        "car": "car",
        "construction_vehicle": "other-vehicle",
        "motorcycle": "motorcycle",
        "pedestrian": "person",
        "trailer": "other-vehicle",
        "truck": "truck",
        "driveable_surface": "road",
        "other_flat": "other-ground",
        "sidewalk": "sidewalk",
        "terrain": "terrain",
        "manmade": "building",
        "vegetation": "vegetation",
    },
}


def translation(source: Classes, target: Classes) -> Int[Tensor, "k"]:
    """For each source label its target label, or UNKNOWN where the target has no such class.

    Within one space that is the identity; two spaces of `COUNTERPARTS` follow their table. Into `COMMON` each class
    goes to its group; between two other spaces a name goes to the same name, else to the one class of the target
    that shares its group.
    """
    for classes in (source, target):
        if classes.space not in _COMMON_NAMES:
            raise ValueError(f"no translation for {classes.space}; there is one for {', '.join(_COMMON_NAMES)}")
    if source.space == target.space:
        return torch.arange(len(source))
    groups, table = _COMMON_NAMES[source.space], COUNTERPARTS.get((source.space, target.space))
    if table is not None:
        found = [table.get(name) for name in source.names]
    else:
        found = [_counterpart(name, groups.get(name), target) for name in source.names]
    return torch.tensor([UNKNOWN if name is None else target.index(name) for name in found])


def translate(labels: Int[Tensor, "*n"], source: Classes, target: Classes) -> Int[Tensor, "*n"]:
    """Labels of the source space in the target space; UNKNOWN stays UNKNOWN."""
    table = torch.cat([translation(source, target), torch.tensor([UNKNOWN])]).to(labels.device)
    return table[labels.long()]


def likely_attributes(label: Int[Tensor, "n"], velocity: Float[Tensor, "n 2"], still: float = 0.2) -> Int[Tensor, "n"]:
    """The attribute that each box of `DETECTION` most likely has, by its class and whether it moves.

    The rule of the released detectors. Barriers and cones have none: UNKNOWN. An unknown velocity is no movement.

    Args:
        still: the speed from which on a box moves, in m/s.
    """
    names = [[when.get(name) for when in (_WHEN_STILL, _WHEN_MOVING)] for name in DETECTION.names]
    table = [[UNKNOWN if name is None else ATTRIBUTES.index(name) for name in pair] for pair in names]
    moves = (velocity.norm(dim=-1) > still).long()
    return torch.tensor(table, device=label.device)[label, moves]


def _counterpart(name: str, group: str | None, target: Classes) -> str | None:
    if name in target.names:
        return name
    members = [other for other, its in _COMMON_NAMES[target.space].items() if group is not None and its == group]
    return members[0] if len(members) == 1 else None
