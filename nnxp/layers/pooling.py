"""Pooling: the maximum or the mean of each window of an image."""

from __future__ import annotations

import functools
import math

from nnxp.arrays import Array, Namespace, floating_namespace
from nnxp.errors import InputError
from nnxp.layers.base import Layer
from nnxp.layers.images import require_image_shape, require_images
from nnxp.layers.windows import (
    Geometry,
    Pair,
    batch_first,
    batch_last,
    fold,
    pad,
    pair,
    require_pair,
    require_windows,
    slices,
)


class _Pool2D(Layer, base=True):
    """Base class of `MaxPool2D` and `AveragePool2D`: windows in each channel."""

    _border = 0.0  # the value of padding

    def __init__(
        self,
        size: int | Pair,
        *,
        stride: int | Pair | None = None,
        padding: int | Pair = 0,
    ) -> None:
        self.size = require_pair("size", size, 1)
        self.stride = self.size if stride is None else require_pair("stride", stride, 1)
        self.padding = require_pair("padding", padding, 0)
        if any(2 * p > n for p, n in zip(pair(self.padding), pair(self.size), strict=True)):
            raise InputError(
                f"padding must be at most half of the size {size}, since each window needs a pixel "
                f"of the image, got {padding}"
            )

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return ``(channels, windows down, windows across)``; None if `shape` is unknown.

        Raises
        ------
        InputError
            If `shape` is not ``(channels, height, width)``, or no window fits into it.
        """
        if shape is None:
            return None
        require_image_shape(shape, self)
        return (shape[0], *require_windows(self, shape, *self._geometry()))

    def _geometry(self) -> Geometry:
        return pair(self.size), pair(self.stride), pair(self.padding)

    def _padded(self, xp: Namespace, x: Array) -> Array:
        """Return images as (channels, height, width, batch), with padding."""
        require_images(x, self)
        require_windows(self, tuple(x.shape[1:]), *self._geometry())
        x = batch_last(xp, x)
        for axis, n in zip((1, 2), pair(self.padding), strict=True):
            x = pad(xp, x, axis, n, n, self._border)
        return x

    def _taps(self, x: Array, axis: int) -> list[Array]:
        """Return for each position in a window along an axis its numbers in all windows."""
        size, stride = pair(self.size)[axis - 1], pair(self.stride)[axis - 1]
        count = (x.shape[axis] - size) // stride + 1
        before = (slice(None),) * axis
        return [x[(*before, part, ...)] for part in slices(size, stride, count)]

    def _fold(self, xp: Namespace, parts: list[Array], axis: int, length: int) -> Array:
        return fold(xp, parts, axis, length, pair(self.stride)[axis - 1])

    def _cropped(self, xp: Namespace, x: Array) -> Array:
        """Return images without padding as (batch, channels, height, width)."""
        top, left = pair(self.padding)
        if top or left:
            x = x[:, top : x.shape[1] - top, left : x.shape[2] - left, :]
        return batch_first(xp, x)


class MaxPool2D(_Pool2D):
    """Maximum of each window, channel by channel.

    The gradient goes to the largest number of a window. If several are equal, it goes to the first
    of them, row by row, as in PyTorch.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of a window in pixels.
    stride : int or (int, int), optional
        Distance between two windows in pixels; `size` by default. Rows and columns at the end that
        do not fill a window are not used.
    padding : int or (int, int), optional
        Rows above and below and columns left and right, of minus infinity; at most half of `size`,
        0 by default.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp import MaxPool2D
    >>> MaxPool2D(2).forward(np.array([[[[1.0, 2.0], [4.0, 3.0]]]]))
    array([[[[4.]]]])
    """

    _border = -math.inf

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the largest number of each window.

        Parameters
        ----------
        x : (batch, channels, height, width) array
        training : bool, optional
            Save the values for `backward`.

        Returns
        -------
        (batch, channels, windows down, windows across) array

        Raises
        ------
        InputError
            If `x` has another number of axes, or no window fits into it.
        """
        xp = floating_namespace(x, self)
        images = self._padded(xp, x)
        rows = functools.reduce(xp.maximum, self._taps(images, 2))  # of each row of a window
        y = functools.reduce(xp.maximum, self._taps(rows, 1))
        out = batch_first(xp, y)
        if training:
            self.save_for_backward(out, (images, rows, y))
        return out

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the images: `dy` at the largest number of each window."""
        images, rows, y = self.saved(dy)
        xp = floating_namespace(dy, self)
        own = _shares(xp, self._taps(rows, 1), y, batch_last(xp, dy))
        d_rows = self._fold(xp, own, 1, rows.shape[1])
        own = _shares(xp, self._taps(images, 2), rows, d_rows)
        return self._cropped(xp, self._fold(xp, own, 2, images.shape[2]))


def _shares(xp: Namespace, taps: list[Array], largest: Array, dy: Array) -> list[Array]:
    """Return `dy` for the first tap that equals `largest`, and 0 for the others."""
    shares = []
    for x in taps[:-1]:
        share = dy * xp.astype(x == largest, dy.dtype)  # faster than where, once captured
        dy = dy - share
        shares.append(share)
    return [*shares, dy]


class AveragePool2D(_Pool2D):
    """Mean of each window, channel by channel; padding counts as zeros, as in PyTorch.

    Parameters
    ----------
    size : int or (int, int)
        Height and width of a window in pixels.
    stride : int or (int, int), optional
        Distance between two windows in pixels; `size` by default.
    padding : int or (int, int), optional
        Rows of zeros above and below and columns of zeros left and right; at most half of `size`,
        0 by default.
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the mean of each window: (batch, channels, windows down, windows across).

        Parameters
        ----------
        x : (batch, channels, height, width) array
        training : bool, optional
            Save the shape for `backward`.

        Raises
        ------
        InputError
            If `x` has another number of axes, or no window fits into it.
        """
        xp = floating_namespace(x, self)
        images = self._padded(xp, x)
        rows = _total(self._taps(images, 2))
        y = batch_first(xp, _total(self._taps(rows, 1)) * self._share)
        if training:
            self.save_for_backward(y, images.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the images: an equal share of `dy` for each number."""
        shape: tuple[int, ...] = self.saved(dy)
        xp = floating_namespace(dy, self)
        height, width = pair(self.size)
        share = batch_last(xp, dy) * self._share
        rows = self._fold(xp, [share] * height, 1, shape[1])
        return self._cropped(xp, self._fold(xp, [rows] * width, 2, shape[2]))

    @property
    def _share(self) -> float:
        return 1.0 / math.prod(pair(self.size))


def _total(parts: list[Array]) -> Array:
    return sum(parts[1:], parts[0])


class GlobalAveragePool2D(Layer):
    """Mean of each channel: (batch, channels, height, width) becomes (batch, channels)."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the mean of each channel.

        Raises
        ------
        InputError
            If `x` has another number of axes, or images are empty.
        """
        xp = floating_namespace(x, self)
        require_images(x, self)
        images = batch_last(xp, x)
        size = x.shape[2] * x.shape[3]
        if not size:
            raise InputError(f"{self!r} expects images with pixels, got {tuple(x.shape)}")
        y = xp.sum(xp.reshape(images, (x.shape[1], size, x.shape[0])), axis=1).T * (1.0 / size)
        if training:
            self.save_for_backward(y, images.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``dy / (height * width)`` for each number of a channel."""
        shape: tuple[int, ...] = self.saved(dy)
        xp = floating_namespace(dy, self)
        share = dy.T * (1.0 / (shape[1] * shape[2]))
        return batch_first(xp, xp.broadcast_to(share[:, None, None, :], shape))

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return ``(channels,)``; None if `shape` is unknown."""
        if shape is None:
            return None
        require_image_shape(shape, self)
        return (shape[0],)
