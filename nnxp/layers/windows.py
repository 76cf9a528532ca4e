"""Windows: the slices of images that convolution and pooling read, and their transposes.

Within these layers, images have the shape (channels, height, width, batch). So the numbers of a
window position are contiguous within a row, and one matrix product handles all images of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from nnxp.arrays import Array, Namespace, device_of
from nnxp.checks import require_count
from nnxp.errors import InputError

Pair: TypeAlias = tuple[int, int]
"""A number for the height and one for the width."""

Geometry: TypeAlias = tuple[Pair, Pair, Pair]
"""A window's size, the distance between windows, and the padding of images."""


_MOST_PADDING = 100  # the largest padding of images that are smaller than it


def require_pair(name: str, value: object, least: int) -> int | Pair:
    """Return `value`: a whole number of at least `least`, or a pair (height, width) of such."""
    if not isinstance(value, (tuple, list)):
        return require_count(name, value, least)
    if len(value) != 2:
        raise InputError(f"{name} must be one number or a pair (height, width), got {value!r}")
    height, width = (require_count(f"each number of {name}", x, least) for x in value)
    return height, width


def pair(value: int | Pair) -> Pair:
    """Return a pair (height, width), given one number for both or a pair."""
    return (value, value) if isinstance(value, int) else value


def window_counts(size: Sequence[int], kernel: Pair, stride: Pair, padding: Pair) -> Pair:
    """Return the numbers of windows of an image of `size` (height, width); below 1 if none fits."""
    height, width = (
        (n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)
    )
    return height, width


def require_windows(
    layer: object, shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair
) -> Pair:
    """Return the numbers of windows down and across; raise an `InputError` if there is none.

    The error is also raised if the padding is so large that it would multiply the memory.
    """
    for n, p in zip(shape[1:], padding, strict=True):
        if p > max(n, _MOST_PADDING):
            raise InputError(
                f"{layer!r}: padding of {p} is more than images of {shape[1]} x {shape[2]} can "
                f"use; use at most {max(n, _MOST_PADDING)}"
            )
    counts = window_counts(shape[1:], kernel, stride, padding)
    if min(counts) < 1:
        raise InputError(
            f"{layer!r}: a window of {kernel[0]} x {kernel[1]} is larger than images of "
            f"{shape[1]} x {shape[2]} with padding {padding[0]} and {padding[1]}; use a smaller "
            "window or more padding"
        )
    return counts


def batch_last(xp: Namespace, x: Array) -> Array:
    """Return (batch, channels, height, width) as (channels, height, width, batch), contiguous.

    The result of `batch_first` is not copied; other arrays are.
    """
    batch, *image = x.shape
    x = xp.permute_dims(x, (1, 2, 3, 0))
    rows = xp.reshape(x, (image[0], math.prod(image[1:]) * batch))
    return xp.reshape(rows, (*image, batch))


def batch_first(xp: Namespace, x: Array) -> Array:
    """Return (channels, height, width, batch) as (batch, channels, height, width), a view."""
    return xp.permute_dims(x, (3, 0, 1, 2))


def pad(xp: Namespace, x: Array, axis: int, before: int, after: int, value: float = 0.0) -> Array:
    """Return `x` with `before` and `after` slices of `value` added along an axis."""
    parts = [x]
    if before:
        parts.insert(0, _filled(xp, x, axis, before, value))
    if after:
        parts.append(_filled(xp, x, axis, after, value))
    return xp.concat(parts, axis=axis) if len(parts) > 1 else x


def _filled(xp: Namespace, like: Array, axis: int, length: int, value: float) -> Array:
    shape = (*like.shape[:axis], length, *like.shape[axis + 1 :])
    return xp.full(shape, value, dtype=like.dtype, device=device_of(like))


def slices(size: int, stride: int, count: int) -> list[slice]:
    """Return for each position in a window of `size` the slice of an axis with its numbers."""
    stride = stride if count > 1 else 1  # some libraries reject a stride beyond the axis
    return [slice(i, i + stride * (count - 1) + 1, stride) for i in range(size)]


def fold(xp: Namespace, parts: Sequence[Array], axis: int, length: int, stride: int) -> Array:
    """Return the sum of `parts`, each at its position: the transpose of taking `slices`.

    Parameters
    ----------
    xp : namespace
    parts : sequence of array
        Part i has number i of each window, along `axis` in the order of the windows.
    axis, length : int
        The axis, and its length in the result.
    stride : int
    """
    # Parts whose positions are equal modulo the stride overlap and are added; others do not
    # overlap.
    stride = min(stride, length)  # a larger stride means one window, where it has no effect
    shape = parts[0].shape
    count, longest = shape[axis], -(-length // stride)
    phases = []
    for phase in range(min(stride, len(parts))):
        own = [
            pad(xp, part, axis, shift, longest - count - shift)
            for shift, part in enumerate(parts[phase::stride])
        ]
        phases.append(sum(own[1:], own[0]))
    if stride == 1:
        return phases[0]
    x = pad(xp, xp.stack(phases, axis=axis + 1), axis + 1, 0, stride - len(phases))
    x = xp.reshape(x, (*shape[:axis], longest * stride, *shape[axis + 1 :]))
    return x if longest * stride == length else x[(slice(None),) * axis + (slice(length), ...)]


def im2col(xp: Namespace, x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    """Return the windows of images as the columns of a matrix.

    Parameters
    ----------
    xp : namespace
    x : (channels, height, width, batch) array
    kernel, stride, padding : pair of int

    Returns
    -------
    (channels * kernel height * kernel width, windows down * windows across * batch) array
    """
    down, across = window_counts(x.shape[1:3], kernel, stride, padding)
    for axis, n in zip((1, 2), padding, strict=True):
        x = pad(xp, x, axis, n, n)
    windows = xp.stack(
        [
            x[:, rows, columns, :]
            for rows in slices(kernel[0], stride[0], down)
            for columns in slices(kernel[1], stride[1], across)
        ],
        axis=1,
    )
    return xp.reshape(windows, (x.shape[0] * math.prod(kernel), down * across * x.shape[3]))


def col2im(
    xp: Namespace,
    columns: Array,
    shape: tuple[int, ...],
    kernel: Pair,
    stride: Pair,
    padding: Pair,
) -> Array:
    """Return images of `shape` that sum the columns' numbers: the transpose of `im2col`."""
    channels, height, width, batch = shape
    down, across = window_counts((height, width), kernel, stride, padding)
    x = xp.reshape(columns, (channels, *kernel, down, across, batch))
    rows = [
        fold(
            xp,
            [x[:, i, j, ...] for j in range(kernel[1])],
            2,
            width + 2 * padding[1],
            stride[1],
        )
        for i in range(kernel[0])
    ]
    x = fold(xp, rows, 1, height + 2 * padding[0], stride[0])
    return x[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width, :]
