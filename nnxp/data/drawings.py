"""Drawings: read an image file of one digit, and centre its ink like an image of MNIST."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.checks import explained, optional_import, require_count
from nnxp.errors import DataError, InputError
from nnxp.files import expand_home, open_binary

_SIDE = 1000  # pixels; larger images are reduced to about this side
_BLANK = 32  # of 255; if all pixels differ less from the background, the image is blank
_EDGE = 3 / 16  # of the darkest ink; JPEG noise around a digit is fainter
# Errors that Pillow raises for damaged files, in addition to those for decompression bombs.
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip


@explained('nnxp.data.read_drawing("seven.png")')
def read_drawing(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read the ink of a drawing or a photo of any size and colour.

    The background colour is the median of the pixels at the image's edge. The ink of a pixel is its
    difference from the background, so dark digits on a light background and light digits on a dark
    background give the same result. Differences up to the 95 % quantile of those at the edge, such
    as shadows and noise, are subtracted. A transparent background is treated as white behind a dark
    digit, and as black behind a light digit.

    Parameters
    ----------
    path : str or Path
        A PNG or JPEG file. It is rotated according to its EXIF data.

    Returns
    -------
    (height, width) uint8 array
        0 for the background, 255 for the strongest ink. Sides above 1,000 pixels are reduced to at
        most 1,000.

    Raises
    ------
    DataError
        If the file cannot be read, is not a PNG or JPEG image, is damaged, has more pixels than
        Pillow's limit (``PIL.Image.MAX_IMAGE_PIXELS``), or shows only background.
    InputError
        If `path` is not a path.
    MissingExtraError
        If Pillow is not installed.

    See Also
    --------
    center_drawing : Convert the ink to an input of a network.
    """
    pillow = optional_import("PIL.Image", "images")
    path = expand_home(path)
    bombs = (pillow.DecompressionBombWarning, pillow.DecompressionBombError)
    try:
        with open_binary(path) as (stream, packed), warnings.catch_warnings():
            if packed:
                raise DataError(f"{path} is gzipped; unpack it")
            warnings.simplefilter("ignore")  # for example of damaged EXIF data
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(stream, formats=("PNG", "JPEG")) as image:
                image.draft("RGB", (_SIDE, _SIDE))  # decodes a JPEG at a smaller size
                colours = _colours(image)
    except DataError:
        raise
    except bombs:
        raise DataError(
            f"{path} has more than {pillow.MAX_IMAGE_PIXELS:,} pixels; make the image smaller"
        ) from None
    except pillow.UnidentifiedImageError:
        raise DataError(f"{path} is no PNG or JPEG image") from None
    except _DAMAGED as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({reason})") from error
    edge = np.concatenate([colours[0], colours[-1], colours[:, 0], colours[:, -1]])
    ground = np.median(edge, axis=0)
    difference = np.abs(colours - ground).max(axis=2)
    largest = float(difference.max())
    if largest < _BLANK:
        raise DataError(f"{path} shows no digit: its pixels hardly differ")
    noise = min(float(np.quantile(np.abs(edge - ground).max(axis=1), 0.95)), largest / 2)
    levels = np.clip((difference - noise) * (255 / (largest - noise)), 0, 255)
    ink: npt.NDArray[np.uint8] = np.rint(levels).astype(np.uint8)
    return ink


def _colours(image: Any) -> npt.NDArray[np.float32]:
    """Return a Pillow image as a (height, width, 3) array of numbers from 0 to 255."""
    pillow = optional_import("PIL.Image", "images")
    image = optional_import("PIL.ImageOps", "images").exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        image = pillow.fromarray((np.asarray(image) / 257).astype(np.uint8))
    factor = math.ceil(max(image.size) / _SIDE)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB").reduce(factor), dtype=np.float32)
    # In "RGBa", colours are multiplied by their alpha, so means are weighted by it.
    image = image.convert("RGBA").convert("RGBa").reduce(factor).convert("RGBA")
    light, alpha = (np.asarray(x, np.float32) for x in (image.convert("L"), image.getchannel("A")))
    is_light = float((light * alpha).sum()) > 127 * float(alpha.sum())
    ground = pillow.new("RGBA", image.size, "black" if is_light else "white")
    image = pillow.alpha_composite(ground, image).convert("RGB")
    return np.asarray(image, dtype=np.float32)


@explained("nnxp.data.center_drawing(ink, size=28, box=20)")
def center_drawing(
    ink: npt.ArrayLike, size: int = 28, *, box: int | None = None
) -> npt.NDArray[np.uint8]:
    """Crop a digit, scale it to a box, and place it with its centre of mass in the middle.

    This is the preparation of MNIST's images. The digit keeps its aspect ratio. Its centre of mass
    is at pixel ``size // 2``, unless the digit would then leave the image. An image of MNIST is
    returned unchanged, up to one grey level.

    Parameters
    ----------
    ink : (height, width) array
        The ink of the pixels, 0 for the background, as from `read_drawing`.
    size : int, optional
        Height and width of the result in pixels; 28 by default.
    box : int, optional
        The larger of height and width of the digit in pixels. By default it has MNIST's ratio, 20
        of 28 pixels. The digits of `load_digits` fill their images: ``size=8, box=8``.

    Returns
    -------
    (size, size) uint8 array
        The largest number is 255, so that thin lines do not become faint.

    Raises
    ------
    InputError
        If `ink` is not an image, has numbers that are negative or not finite, or is blank; or if
        `box` is larger than `size`.

    Examples
    --------
    >>> import numpy as np
    >>> import nnxp
    >>> ink = np.zeros((300, 200))
    >>> ink[20:260, 50:70] = 1
    >>> digit = nnxp.data.center_drawing(ink)
    >>> np.argwhere(digit).min(axis=0), np.argwhere(digit).max(axis=0)
    (array([ 4, 13]), array([23, 14]))
    """
    size = require_count("size", size)
    box = max(1, round(size * 20 / 28)) if box is None else require_count("box", box)
    if box > size:
        raise InputError(f"box must be at most size, got {box} of {size}")
    given = np.asarray(ink)
    if given.ndim != 2 or given.dtype.kind not in "buif" or not given.size:
        raise InputError(
            f"ink must be an array of shape (height, width), got {given.dtype} of {given.shape}"
        )
    image = given.astype(np.float64)
    if not np.isfinite(image).all() or image.min() < 0:
        raise InputError("ink must be finite numbers of at least 0, with 0 for the background")
    if not image.max():
        raise InputError("ink must show a digit, got a blank image")
    for axis in (0, 1):
        image = np.swapaxes(_cut(np.swapaxes(image, 0, axis)), 0, axis)
    scale = box / max(image.shape)
    height, width = (max(1, round(length * scale)) for length in image.shape)
    image = _resampling(image.shape[0], height) @ image @ _resampling(image.shape[1], width).T
    top, left = (_start(image.sum(axis=1 - axis), size) for axis in (0, 1))
    field = np.zeros((size, size), np.uint8)
    field[top : top + height, left : left + width] = np.rint(image * (255 / image.max()))
    return field


def _cut(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the rows from the first to the last with clear ink, and adjacent faint rows."""
    rows = image.max(axis=1)
    clear = np.flatnonzero(rows > _EDGE * rows.max())
    first, end = int(clear[0]), int(clear[-1]) + 1
    first -= first > 0 and rows[first - 1] > 0
    end += end < len(rows) and rows[end] > 0
    return image[first:end]


def _resampling(old: int, new: int) -> npt.NDArray[np.float64]:
    """Return the (new, old) matrix that resamples a line of pixels with a triangular filter.

    This equals Pillow's BILINEAR: an average when the line shrinks, linear interpolation when it
    grows.
    """
    centres = (np.arange(new) + 0.5)[:, None] * (old / new)
    weights = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centres) / max(1, old / new))
    matrix: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return matrix


def _start(line: npt.NDArray[np.float64], size: int) -> int:
    """Return the start of a line of masses for which its centre of mass is in the middle."""
    centre = float(line @ (np.arange(len(line)) + 0.5) / line.sum())
    # As in MNIST, the centre is at least size / 2 and below size / 2 + 1; pixel i has centre i +
    # .5.
    return min(max(0, size // 2 - math.floor(centre)), size - len(line))
