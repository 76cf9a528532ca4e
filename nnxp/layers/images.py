"""Images: checks of arrays of shape (batch, channels, height, width), and their remedies."""

from __future__ import annotations

import math

from nnxp.arrays import Array
from nnxp.errors import InputError

_USUAL_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def require_images(x: Array, owner: object, channels: int | None = None) -> None:
    """Raise an `InputError` unless `x` is of shape (batch, channels, height, width).

    Parameters
    ----------
    x : array
    owner : object
        The name in the error, such as a layer.
    channels : int, optional
        The number of channels that is wanted; by default any.
    """
    shape = tuple(x.shape)
    if len(shape) != 4 or channels not in (None, shape[1]):
        raise _no_images(shape, owner, channels)


def require_channels_first(x: Array, owner: object) -> None:
    """Raise an `InputError` if `x`, a batch of a data set, seems to have its channels last.

    For a first layer that takes any number of channels. After another layer, an array of shape
    (batch, 8, 8, 3) may have 8 channels and a width of 3.
    """
    shape = tuple(x.shape)
    if len(shape) == 4 and _has_channels_last(shape, _USUAL_CHANNELS):
        raise _no_images(shape, owner, None)


def _no_images(shape: tuple[int, ...], owner: object, channels: int | None) -> InputError:
    return InputError(
        f"{owner} expects images of shape (batch, {channels or 'channels'}, height, width), got "
        f"{shape}{images_remedy(shape, channels)}"
    )


def require_image_shape(
    shape: tuple[int, ...] | None, owner: object, channels: int | None = None
) -> None:
    """Raise an `InputError` unless the shape of one example is None or (channels, height, width).

    For `output_shape` of a layer that calls `require_images`.
    """
    if shape is None or (len(shape) == 3 and channels in (None, shape[0])):
        return
    image = _image_of(math.prod(shape), channels) if len(shape) == 1 else None
    remedy = f"; put nnxp.Reshape({image}) before it" if image else ""
    raise InputError(
        f"{owner} expects images of shape ({channels or 'channels'}, height, width), got {shape}"
        f"{remedy}"
    )


def images_remedy(shape: tuple[int, ...], channels: int | None = None) -> str:
    """Return the end of an error: a call that converts `x` to images; "" if none is known.

    Parameters
    ----------
    shape : tuple of int
        The shape of `x`, which is not (batch, channels, height, width).
    channels : int, optional
        The number of channels that is wanted; by default 1, 3 or 4.

    Examples
    --------
    >>> from nnxp.layers.images import images_remedy
    >>> images_remedy((100, 28, 28))
    '; give x[:, None]'
    >>> images_remedy((100, 32, 32, 3))
    '; give numpy.moveaxis(x, -1, 1)'
    """
    wanted = _USUAL_CHANNELS if channels is None else (channels,)
    if len(shape) == 4 and _has_channels_last(shape, wanted):
        return "; give numpy.moveaxis(x, -1, 1)"
    if len(shape) == 3:
        if _has_channels_last((1, *shape), wanted):
            return "; give numpy.moveaxis(x, -1, 0)[None] for one image"
        if 1 in wanted:
            return "; give x[:, None]"
        if shape[0] == channels:
            return "; give x[None] for one image"
    if len(shape) in (1, 2):
        if image := _image_of(shape[-1], channels):
            return (
                f"; give x.reshape(-1, {', '.join(map(str, image))}), or put nnxp.Reshape({image}) "
                "before it"
            )
        if shape[0] == shape[-1] and len(shape) == 2 and 1 in wanted:
            return "; give x[None, None] for one image"
    return ""


def _has_channels_last(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether a batch seems to be of shape (batch, height, width, channels)."""
    return shape[3] in wanted and min(shape[1:3]) > max(_USUAL_CHANNELS)


def _image_of(pixels: int, channels: int | None) -> tuple[int, int, int] | None:
    """Return the shape of a square image with this many numbers; None if there is none."""
    for each in _USUAL_CHANNELS if channels is None else (channels,):
        side = math.isqrt(pixels // each)
        if side > 1 and each * side**2 == pixels:
            return each, side, side
    return None
