"""Frames kept on disk, for sources that are slower to compute than to read."""

import hashlib
import json
import os
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from cofield.data import Source, Wrapped
from cofield.frame import Boxes, Camera, Frame, Maps, Points
from cofield.grid import grid_from_plain


class Stored(Wrapped):
    """A source whose frames are written to a folder when first read, and read from there afterwards.

    Several processes may share the folder, which is named after the source, its settings as its `repr` tells them, its
    split and the code that computes it: what has changed is computed anew. The per-pixel truth of the cameras is not
    kept.
    """

    def __init__(self, source: Source, split: str, folder: Path | None = None) -> None:
        self.source = source
        name = f"{source.name}-{split}".replace(":", "-").replace("@", "-")
        self.folder = (folder or cache_folder() / "frames") / f"{name}-{settings(source)}-{code_edition()}"

    def __len__(self) -> int:
        return len(self.source)

    def scenes(self) -> list[str]:
        return self.source.scenes()

    def __getitem__(self, index: int) -> Frame:
        path = self.folder / f"{index}.safetensors"
        if not path.exists():
            frame = self.source[index]
            self.folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{index}.{os.getpid()}.part")
            part.write_bytes(pack(frame))
            part.replace(path)
        return unpack(path)


def settings(source: Source) -> str:
    """A name for what a source was told: its root, its sweeps, its sensors. Of one that does not say, for its class."""
    while isinstance(source, Wrapped):
        source = source.source
    kind = type(source)
    told = kind.__qualname__ if kind.__repr__ is object.__repr__ else repr(source)
    return hashlib.blake2b(told.encode(), digest_size=3).hexdigest()


@lru_cache
def code_edition() -> str:
    """A name for the code beside this file: another when any of it changes."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where computed data is kept: COFIELD_CACHE, or the user's cache folder."""
    named = os.environ.get("COFIELD_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "cofield"


def pack(frame: Frame) -> bytes:
    """A frame, without per-pixel truth, as safetensors. Images that came from bytes take bytes."""
    tensors = {"world_T_ego": frame.world_T_ego, "origins_ego": frame.origins_ego}
    facts: dict[str, object] = {"token": frame.token, "scene": frame.scene, "time": frame.time}
    facts["cameras"] = [[camera.name, camera.time] for camera in frame.cameras]
    for i, camera in enumerate(frame.cameras):
        tensors |= {f"camera.{i}.{k}": getattr(camera, k) for k in ("pix_T_cam", "cam_T_ego")}
        tensors[f"camera.{i}.image"] = _as_bytes(camera.image)
        if camera.valid is not None:
            tensors[f"camera.{i}.valid"] = camera.valid
    for name, table in (("points", frame.points), ("boxes", frame.boxes)):
        if table is not None:
            columns = {field.name: getattr(table, field.name) for field in fields(table)}
            tensors |= {f"{name}.{k}": column for k, column in columns.items() if column is not None}
    facts["boxes"] = frame.boxes is not None
    if frame.maps is not None:
        tensors["maps"] = frame.maps.layers
        facts["maps"] = frame.maps.grid.to_plain()
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save(whole, metadata={"facts": json.dumps(facts)})


def unpack(path: Path) -> Frame:
    """The frame that `pack` wrote."""
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    cameras = tuple(
        Camera(
            name,
            _as_colours(tensors[f"camera.{i}.image"]),
            tensors[f"camera.{i}.pix_T_cam"],
            tensors[f"camera.{i}.cam_T_ego"],
            time,
            valid=tensors.get(f"camera.{i}.valid"),
        )
        for i, (name, time) in enumerate(facts["cameras"])
    )
    return Frame(
        token=facts["token"],
        scene=facts["scene"],
        time=facts["time"],
        world_T_ego=tensors["world_T_ego"],
        cameras=cameras,
        points=Points(**_columns(tensors, "points")),
        origins_ego=tensors["origins_ego"],
        boxes=Boxes(**_columns(tensors, "boxes")) if facts["boxes"] else None,
        maps=Maps(tensors["maps"], grid_from_plain(facts["maps"])) if "maps" in facts else None,
    )


def bare(frame: Frame) -> Frame:
    """The frame without per-pixel truth: what a store gives back."""
    cameras = tuple(replace(camera, depth=None, semantics=None, instances=None) for camera in frame.cameras)
    return replace(frame, cameras=cameras)


def _columns(tensors: dict[str, Tensor], table: str) -> dict[str, Tensor]:
    return {name.split(".", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith(f"{table}.")}


def _as_bytes(image: Tensor) -> Tensor:
    small = (image * 255).round().to(torch.uint8)
    return small if torch.equal(_as_colours(small), image) else image


def _as_colours(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image
