"""Files of points, labels and images; what cannot be read says which file and what to do about it."""

import zipfile
from pathlib import Path
from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Shaped
from numba import njit
from PIL import Image
from torch import Tensor

_SHARE = np.float32(1 / 255)


def read_points(path: Path, columns: int) -> Float32[np.ndarray, "p c"]:
    """The rows of a headerless file of 32-bit floats: x, y, z, intensity and so on."""
    flat = _read_array(path, np.dtype("<f4"))
    if flat.size % columns:
        raise ValueError(
            f"{path} holds {flat.nbytes} bytes, no multiple of the {4 * columns} of one point: "
            "it is cut off or of another format; fetch it again"
        )
    if not flat.size:
        raise ValueError(f"{path} holds no points; fetch it again, or leave this frame out")
    rows = flat.reshape(-1, columns)
    # One sum tells that all are finite; only if it is not, look which.
    if not np.isfinite(flat.sum()) and (broken := int((~np.isfinite(rows)).any(1).sum())):
        raise ValueError(f"{path}: {broken} of {len(rows)} points are not finite; fetch it again, or remove them")
    return rows


def read_labels(path: Path, dtype: str, points: int) -> Int[np.ndarray, "p"]:
    """One label per point of a scan of so many points, as 64-bit integers."""
    labels = _read_array(path, np.dtype(dtype))
    _check_count(path, len(labels), points)
    return labels.astype(np.int64)


def read_panoptic(path: Path, points: int) -> Int[np.ndarray, "p"]:
    """The panoptic labels of a nuScenes .npz file: 1000 times the category, plus the instance."""
    _check_present(path)
    try:
        with path.open("rb") as file, np.load(file) as archive:
            labels = archive["data"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
        raise ValueError(f"{path} is no panoptic label file ({problem}); fetch it again") from problem
    _check_count(path, labels.size, points)
    return labels.astype(np.int64).ravel()


def read_image(path: Path, scale: float = 1.0) -> Float[Tensor, "3 h w"]:
    """An image as colours 0..1, at `scale` times its size.

    A JPEG is decoded at the next larger 1/2, 1/4 or 1/8 of its size, which costs half the time or less.
    """
    _check_present(path)
    try:
        with Image.open(path) as image:
            picture = _reduced(image, scale) if scale != 1.0 else _rgb(image)
            pixels = np.asarray(picture)
    # Pillow reports a broken PNG as a SyntaxError.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise OSError(f"{path} cannot be decoded ({problem}); fetch it again") from problem
    colours = np.empty((3, *pixels.shape[:2]), np.float32)
    _fill_colours(pixels, colours)
    return torch.from_numpy(colours)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image, from its header."""
    _check_present(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise OSError(f"{path} cannot be decoded ({problem}); fetch it again") from problem
    return height, width


def scaled(
    pix_T_cam: Float[Tensor, "4 4"], size: tuple[int, int], image: Float[Tensor, "3 h w"]
) -> Float[Tensor, "4 4"]:
    """The calibration of an image that was resized from `size` (height, width) to its own."""
    vertical, horizontal = image.shape[-2] / size[0], image.shape[-1] / size[1]
    return torch.diag(pix_T_cam.new_tensor([horizontal, vertical, 1.0, 1.0])) @ pix_T_cam


def _reduced(image: Image.Image, scale: float) -> Image.Image:
    width, height = image.size
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image.draft("RGB", size)
    # The decoder rounds odd sizes up; the box is the part of its picture that the image covers.
    shrink = min((1, 2, 4, 8), key=lambda factor: abs(image.width - width / factor))
    box = (0.0, 0.0, min(width / shrink, image.width), min(height / shrink, image.height))
    if image.size == size and box[2:] == size:
        return _rgb(image)
    return _rgb(image).resize(size, Image.Resampling.BILINEAR, box=box)


@njit(cache=True)
@no_type_check
def _fill_colours(pixels, out):
    """Bytes [h w 3] as shares of 255 [3 h w], in one pass."""
    for row in range(pixels.shape[0]):
        for channel in range(3):
            for column in range(pixels.shape[1]):
                out[channel, row, column] = np.float32(pixels[row, column, channel]) * _SHARE


def _rgb(image: Image.Image) -> Image.Image:
    """In three channels; `convert` would copy even what has them."""
    return image if image.mode == "RGB" else image.convert("RGB")


def _read_array(path: Path, dtype: np.dtype) -> Shaped[np.ndarray, "n"]:
    _check_present(path)
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise ValueError(f"{path} holds {size} bytes, no multiple of {dtype.itemsize}: it is cut off; fetch it again")
    return np.fromfile(path, dtype)


def _check_present(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; fetch that part of the data set, or leave this frame out")


def _check_count(path: Path, labels: int, points: int) -> None:
    if labels != points:
        raise ValueError(
            f"{path} holds {labels} labels for a scan of {points} points; labels and scan must be of the same release"
        )
