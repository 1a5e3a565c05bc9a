"""Named runs. A recipe is a function (`worlds`, `roads`); a variant is `replace` of another."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from cofield.train import roads, worlds
from cofield.train.config import BoxHead, BoxTuning, Config, MapTuning, Pretraining, flat

Kind = TypeVar("Kind", bound=Config)
Recipe = Callable[[], Config]


def alone(sensor: str, make: Callable[[], Pretraining | BoxTuning | MapTuning]) -> Recipe:
    """The recipe with one sensor's encoder; the other still supervises pre-training. Boxes are then CenterPoint's."""

    def one() -> Config:
        both = make()
        config = replace(both, model=replace(both.model, **{"lidar" if sensor == "camera" else "camera": "none"}))
        if isinstance(config, BoxTuning) and config.head.kind == "transfusion":
            head = config.head
            kept = BoxHead("centerpoint", 64, head.bev_width, head.bev_depth, head.bev_out, 1, classes=head.classes)
            return replace(config, head=kept)
        return config

    one.__doc__ = f"Of the {sensor} alone. {make.__doc__}"
    return one


def with_each_alone(name: str, make: Callable[[], Pretraining | BoxTuning | MapTuning]) -> dict[str, Recipe]:
    """The recipe and its two single-sensor variants, by name."""
    return {name: make} | {f"{name}-{sensor}": alone(sensor, make) for sensor in ("camera", "lidar")}


RECIPES: dict[str, Recipe] = {
    "world:tiny": worlds.world_tiny,
    **with_each_alone("world:small", worlds.world_small),
    "world:small-frustum": worlds.world_small_frustum,
    **with_each_alone("world:nuscenes-like", roads.world_nuscenes_like),
    **with_each_alone("world:kitti-like", roads.world_kitti_like),
    **with_each_alone("nuscenes", roads.nuscenes),
    **with_each_alone("nuscenes-small", roads.nuscenes_small),
    **with_each_alone("kitti", roads.kitti),
    "nuscenes-laptop": roads.nuscenes_laptop,
    "kitti-laptop": roads.kitti_laptop,
    "cylinder:world:small": worlds.cylinder_world_small,
    "cylinder:nuscenes": roads.cylinder_nuscenes,
    "cylinder:semantickitti": roads.cylinder_semantickitti,
    "map:world:tiny": worlds.map_world_tiny,
    **with_each_alone("map:world:small", worlds.map_world_small),
    **with_each_alone("map:world:nuscenes-like", roads.map_world_nuscenes_like),
    **with_each_alone("map:nuscenes", roads.map_nuscenes),
    **with_each_alone("map:nuscenes-small", roads.map_nuscenes_small),
    "map:nuscenes-released": roads.map_nuscenes_released,
    "boxes:world:tiny": worlds.boxes_world_tiny,
    **with_each_alone("boxes:world:small", worlds.boxes_world_small),
    **with_each_alone("boxes:world:nuscenes-like", roads.boxes_world_nuscenes_like),
    **with_each_alone("boxes:world:kitti-like", roads.boxes_world_kitti_like),
    **with_each_alone("boxes:nuscenes", roads.boxes_nuscenes),
    **with_each_alone("boxes:nuscenes-small", roads.boxes_nuscenes_small),
    "boxes:nuscenes-released": roads.boxes_nuscenes_released,
    **with_each_alone("boxes:kitti", roads.boxes_kitti),
    "points:world:small": worlds.points_world_small,
    "lidarseg:world:small": worlds.lidarseg_world_small,
    "lidarseg:world:small-cylinder": worlds.lidarseg_world_small_cylinder,
    "lidarseg:nuscenes": roads.lidarseg_nuscenes,
    "lidarseg:nuscenes-full": roads.lidarseg_nuscenes_full,
    "lidarseg:semantickitti": roads.lidarseg_semantickitti,
    "lidarseg:semantickitti-full": roads.lidarseg_semantickitti_full,
    "lidarseg:scribblekitti": roads.lidarseg_scribblekitti,
}


def recipe(name: str) -> Config:
    """The recipe of that name."""
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()


def repeat(config: Pretraining) -> str:
    """The command that trains this configuration: the closest recipe, and a flag for every field that differs."""
    known = {name: make() for name, make in RECIPES.items()}
    mine = flat(config)
    changes = {
        name: {field: value for field, value in mine.items() if flat(other)[field] != value}
        for name, other in known.items()
        if isinstance(other, Pretraining) and type(other.grid) is type(config.grid)
    }
    name = min(changes, key=lambda each: len(changes[each]))
    return " ".join(["cofield pretrain", name, *(_flag(field, value) for field, value in changes[name].items())])


def _flag(field: str, value: object) -> str:
    group, _, name = field.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return f"--{group}.{'' if value else 'no-'}{name}"
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join([f"--{group}.{name}", *map(str, values)])


def recipe_for(name: str, kind: type[Kind]) -> Kind:
    """The recipe of that name, which must be of the kind asked for."""
    chosen = recipe(name)
    if not isinstance(chosen, kind):
        verb = "pretrain" if isinstance(chosen, Pretraining) else "finetune"
        raise ValueError(f"{name} is a recipe for cofield {verb}; here fit {', '.join(fitting(kind))}")
    return chosen


def fitting(kind: type) -> list[str]:
    """The names of the recipes of a kind."""
    return [name for name, make in RECIPES.items() if isinstance(make(), kind)]
