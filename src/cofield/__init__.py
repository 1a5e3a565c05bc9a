"""Cofield: 3-D perception from raw driving logs.

Public names are imported when first used, so that `import cofield` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "open_source": "cofield.data",
    "Source": "cofield.data",
    "Frame": "cofield.frame",
    "Batch": "cofield.frame",
    "Boxes": "cofield.frame",
    "Camera": "cofield.frame",
    "Points": "cofield.frame",
    "collate": "cofield.frame",
    "BoxGrid": "cofield.grid",
    "CylinderGrid": "cofield.grid",
    "Rays": "cofield.rays",
    "recipe": "cofield.train.recipes",
    "pretrain": "cofield.train.run",
    "finetune": "cofield.train.run",
    "load": "cofield.train.predict",
    "export_model": "cofield.train.program",
}
__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"cofield has no {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
