"""Drawings: image files of one digit, and its ink centred as in the images of MNIST."""

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

_SIDE = 1000  # pixels, to about which larger images are reduced
_BLANK = 32  # of 255: pixels that differ less from the ground are no ink
_EDGE = 3 / 16  # of the darkest ink: JPEG's noise around a digit is fainter
# What Pillow raises for damaged files, besides the decompression bombs.
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError, KeyError, OverflowError,
    MemoryError, struct.error, zlib.error,
)  # fmt: skip


@explained('nnxp.data.read_drawing("seven.png")')
def read_drawing(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read the ink of a drawing or a photo, which may be of any size and colour.

    The ground's colour is the median of the image's edge, and the ink of a pixel its difference
    from that, so that dark digits on a light ground and light ones on a dark ground give the same.
    What most of the edge differs by, such as shadows and noise, is no ink. A transparent ground is
    taken as white under a dark digit, and as black under a light one.

    Parameters
    ----------
    path : str or Path
        A PNG or JPEG file, which is turned as its EXIF data say.

    Returns
    -------
    (height, width) uint8 array
        0 for the ground, 255 for the strongest ink. Sides above 1,000 pixels are reduced to at
        most that.

    Raises
    ------
    DataError
        If the file cannot be read, is no PNG or JPEG image, is damaged, has more pixels than
        Pillow's limit (``PIL.Image.MAX_IMAGE_PIXELS``), or shows nothing but its ground.
    InputError
        If `path` is no path.
    MissingExtraError
        If Pillow is not installed.

    See Also
    --------
    center_drawing : makes an input for a network of the ink.
    """
    pillow = optional_import("PIL.Image", "images")
    path = expand_home(path)
    bombs = (pillow.DecompressionBombWarning, pillow.DecompressionBombError)
    try:
        with open_binary(path) as (stream, packed), warnings.catch_warnings():
            if packed:
                raise DataError(f"{path} is gzipped; unpack it")
            warnings.simplefilter("ignore")  # such as of damaged EXIF data
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            with pillow.open(stream, formats=("PNG", "JPEG")) as image:
                image.draft("RGB", (_SIDE, _SIDE))  # a JPEG is decoded smaller
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
    """Return an image of Pillow's as a (height, width, 3) array of numbers from 0 to 255."""
    pillow = optional_import("PIL.Image", "images")
    image = optional_import("PIL.ImageOps", "images").exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        image = pillow.fromarray((np.asarray(image) / 257).astype(np.uint8))
    factor = math.ceil(max(image.size) / _SIDE)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB").reduce(factor), dtype=np.float32)
    # Colours are weighted by their alpha in "RGBa".
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
    """Cut out a digit, scale it to a box, and centre it by its mass, as in the images of MNIST.

    The digit keeps its aspect ratio. Its centre of mass comes to the pixel ``size // 2``, as far as
    the digit stays within the field. An image of MNIST is returned as it is, up to one grey level.

    Parameters
    ----------
    ink : (height, width) array
        0 for the ground, as from `read_drawing`.
    size : int, optional
        Height and width of the field.
    box : int, optional
        Height or width of the digit, the larger one; by default that of MNIST's digits, 20 of 28
        pixels. The digits of `load_digits` fill their field: ``size=8, box=8``.

    Returns
    -------
    (size, size) uint8 array
        The largest number is 255, so that thin lines do not become faint.

    Raises
    ------
    InputError
        If `ink` is no image, has numbers that are negative or not finite, or is blank; or if the
        box is larger than the field.

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
        raise InputError("ink must be finite numbers of at least 0, 0 for the ground")
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
    """Return the rows from the first to the last with clear ink, and faint ones next to them."""
    rows = image.max(axis=1)
    clear = np.flatnonzero(rows > _EDGE * rows.max())
    first, end = int(clear[0]), int(clear[-1]) + 1
    first -= first > 0 and rows[first - 1] > 0
    end += end < len(rows) and rows[end] > 0
    return image[first:end]


def _resampling(old: int, new: int) -> npt.NDArray[np.float64]:
    """Return the (new, old) matrix that resamples a line of pixels by a triangular filter.

    That is Pillow's BILINEAR: means when pixels become fewer, linear interpolation when more.
    """
    centres = (np.arange(new) + 0.5)[:, None] * (old / new)
    weights = np.maximum(0, 1 - np.abs(np.arange(old) + 0.5 - centres) / max(1, old / new))
    matrix: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return matrix


def _start(line: npt.NDArray[np.float64], size: int) -> int:
    """Return where a line of masses starts in the field, so that its centre is in the middle."""
    centre = float(line @ (np.arange(len(line)) + 0.5) / line.sum())
    # In MNIST, each centre is at least size / 2 and below size / 2 + 1, pixels being centred at .5.
    return min(max(0, size // 2 - math.floor(centre)), size - len(line))
