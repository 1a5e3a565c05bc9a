"""Files of points, labels and images; what cannot be read says which file and what to do about it."""

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import no_type_check

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Shaped, UInt8
from numba import njit
from PIL import Image
from torch import Tensor

# What is said of archives with hurt bytes: besides the obvious, that they are encrypted, huge or a strange program.
_BROKEN_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    RuntimeError,
    MemoryError,
)
_SHARE = np.float32(1 / 255)
_HALVED_BELOW = 1 / 3  # a JPEG's decoder halves images that are to be smaller than this share


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
    except (OSError, ValueError, KeyError, EOFError, *_BROKEN_ARCHIVE) as problem:
        raise ValueError(f"{path} is no panoptic label file ({problem}); fetch it again") from problem
    _check_count(path, labels.size, points)
    return labels.astype(np.int64).ravel()


def read_image(path: Path, scale: float = 1.0) -> tuple[Float[Tensor, "3 h w"], tuple[int, int]]:
    """An image as colours 0..1 at `scale` times its size, and the height and width that it has in the file.

    Smaller images are what Pillow's default filter makes of them, to 2/255 in 98 of 100 values.
    """
    pixels, size = _pixels(path, scale)
    wanted = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
    if pixels.shape[:2] != wanted:
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        pixels = F.interpolate(planes, wanted, mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    colours = np.empty((3, *wanted), np.float32)
    _fill_colours(np.ascontiguousarray(pixels).reshape(wanted[0], -1), colours)
    return torch.from_numpy(colours), size


def scaled(
    pix_T_cam: Float[Tensor, "4 4"], size: tuple[int, int], image: Float[Tensor, "3 h w"]
) -> Float[Tensor, "4 4"]:
    """The calibration of an image that was resized from `size` (height, width) to its own."""
    vertical, horizontal = image.shape[-2] / size[0], image.shape[-1] / size[1]
    return torch.diag(pix_T_cam.new_tensor([horizontal, vertical, 1.0, 1.0])) @ pix_T_cam


def _pixels(path: Path, scale: float) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """An image's bytes, perhaps at half its size; and its height and width."""
    _check_present(path)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        try:
            return _jpeg_pixels(path.read_bytes(), scale)
        except ValueError:
            # Pillow forgives what viewers forgive, such as stray bytes between two markers: its word is the last.
            pass
    try:
        with Image.open(path) as image:
            pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    # Pillow reports a broken PNG as a SyntaxError.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as problem:
        raise OSError(f"{path} cannot be decoded ({problem}); fetch it again") from problem
    return pixels, pixels.shape[:2]


def _jpeg_pixels(data: bytes, scale: float) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[int, int]]:
    """A JPEG's bytes, and its height and width.

    Its decoder halves it on the way where a half is wanted, or so much less that another filter hides the
    difference: in between both filters' losses would add up, and at a quarter its own is too large.
    """
    height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
    if (scale <= _HALVED_BELOW or scale == 0.5) and height % 2 == width % 2 == 0:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height // 2, min_width=width // 2, min_factor=2)
    else:
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    return pixels, (height, width)


@njit(cache=True)
@no_type_check
def _fill_colours(pixels, out):
    """Rows of bytes [h 3w] as planes of shares of 255 [3 h w], in one pass."""
    for row in range(out.shape[1]):
        line, red, green, blue = pixels[row], out[0, row], out[1, row], out[2, row]
        for i in range(out.shape[2]):
            red[i] = np.float32(line[3 * i]) * _SHARE
            green[i] = np.float32(line[3 * i + 1]) * _SHARE
            blue[i] = np.float32(line[3 * i + 2]) * _SHARE


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
