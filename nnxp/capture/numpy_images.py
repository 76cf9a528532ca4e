"""NumPy's ops of images: products of windows in blocks that stay in the cache, and shifts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from nnxp.capture.ops import Buffer, Program
from nnxp.layers.augmentation import shift
from nnxp.layers.convolution import convolve, gradient_of_images, gradient_of_weights
from nnxp.layers.windows import Geometry, window_counts

_BLOCK = 1 << 20  # bytes of a block of columns


class _Block(NamedTuple):
    """Some of the windows: where they are in the axes (down, across, batch), and as columns."""

    down: slice
    across: slice
    batch: slice
    columns: slice

    def shape(self) -> tuple[int, ...]:
        """Return the numbers of windows along each axis."""
        return tuple(x.stop - x.start for x in self[:3])


def _blocks(shape: tuple[int, int, int], limit: int) -> Iterator[_Block]:
    """Yield blocks of at most `limit` windows, each a run of columns."""
    down, across, batch = shape
    images = max(1, min(batch, limit))
    wide = max(1, min(across, limit // batch))
    high = max(1, min(down, limit // (across * batch)))
    for i, j, n in itertools.product(
        range(0, down, high), range(0, across, wide), range(0, batch, images)
    ):
        rows, places = slice(i, min(i + high, down)), slice(j, min(j + wide, across))
        part = slice(n, min(n + images, batch))
        start = (i * across + j) * batch + n
        size = math.prod(x.stop - x.start for x in (rows, places, part))
        yield _Block(rows, places, part, slice(start, start + size))


class _Windows:
    """The windows of images in blocks, for each of which there is a matrix of columns.

    Parameters
    ----------
    shape : tuple of int
        That of the images: (channels, height, width, batch).
    dtype : dtype
    geometry : Geometry
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], geometry: Geometry) -> None:
        self.kernel, self.stride, self.padding = geometry
        channels, height, width, batch = shape
        self.counts = window_counts(shape[1:3], *geometry)
        self.numbers = channels * math.prod(self.kernel)  # of a window
        top, left = self.padding
        self._padded = (channels, height + 2 * top, width + 2 * left, batch)
        self._dtype = dtype
        limit = max(1, _BLOCK // (self.numbers * dtype.itemsize))
        self.blocks = list(_blocks((*self.counts, batch), limit))
        largest = max(math.prod(block.shape()) for block in self.blocks)
        self._memory = np.empty(self.numbers * largest, dtype)

    def padded(self) -> Buffer:
        """Return zeros for padded images."""
        return np.zeros(self._padded, self._dtype)

    def inner(self, padded: Buffer) -> Buffer:
        """Return padded images without the padding."""
        (top, left), (_, height, width, _) = self.padding, self._padded
        return padded[:, top : height - top, left : width - left]

    def columns(self, block: _Block) -> Buffer:
        """Return the memory of a block's columns, as (numbers of a window, windows)."""
        size = math.prod(block.shape())
        return self._memory[: self.numbers * size].reshape(self.numbers, size)

    def parts(self, block: _Block) -> Buffer:
        """Return a block's columns as (channels, kernel height, kernel width, *windows)."""
        shape = (self._padded[0], *self.kernel, *block.shape())
        return self.columns(block).reshape(shape)

    def copies(self, images: Buffer) -> tuple[Program, list[Callable[[], object]]]:
        """Return the calls that prepare images, and each block's call that makes its columns."""
        before: Program = []
        if any(self.padding):
            padded = self.padded()
            before.append(partial(self.inner(padded).__setitem__, ..., images))
            images = padded
        windows = np.lib.stride_tricks.sliding_window_view(images, self.kernel, (1, 2))
        windows = windows[:, :: self.stride[0], :: self.stride[1]].transpose(0, 4, 5, 1, 2, 3)
        return before, [
            partial(self.parts(block).__setitem__, ..., windows[:, :, :, *block[:3]])
            for block in self.blocks
        ]


def _convolve(
    images: Buffer,
    W: Buffer,  # noqa: N803 - the parameter's name
    b: Buffer,
    geometry: Geometry,
    out: Buffer,
) -> Program:
    """Return the calls that compute ``out[...] = W @ columns + b[:, None]``."""
    windows = _Windows(images.shape, images.dtype, geometry)
    program, copies = windows.copies(images)
    for block, copy in zip(windows.blocks, copies, strict=True):
        y = out[:, block.columns]
        program += [
            copy,
            partial(np.matmul, W, windows.columns(block), y),
            partial(np.add, y, b[:, None], y),
        ]
    return program


def _gradient_of_weights(dy: Buffer, images: Buffer, geometry: Geometry, out: Buffer) -> Program:
    """Return the calls that compute ``out[...] = dy @ columns.T``."""
    windows = _Windows(images.shape, images.dtype, geometry)
    program, copies = windows.copies(images)
    product = np.empty_like(out)
    for block, copy in zip(windows.blocks, copies, strict=True):
        first = block is windows.blocks[0]
        columns = windows.columns(block)
        program += [
            copy,
            partial(np.matmul, dy[:, block.columns], columns.T, out if first else product),
        ]
        if not first:
            program.append(partial(np.add, out, product, out))
    return program


def _gradient_of_images(
    dy: Buffer,
    W: Buffer,  # noqa: N803
    shape: tuple[int, ...],
    geometry: Geometry,
    out: Buffer,
) -> Program:
    """Return the calls that add the columns of ``W.T @ dy`` to the images `out`."""
    windows = _Windows(shape, dy.dtype, geometry)
    images = windows.padded() if any(windows.padding) else out
    program: Program = [partial(images.fill, 0)]
    memory = np.empty(images.size, dy.dtype)
    for block in windows.blocks:
        columns, parts = windows.columns(block), windows.parts(block)
        program.append(partial(np.matmul, W.T, dy[:, block.columns], columns))
        # As in col2im, the numbers of a row are added first, and then the rows.
        across = slice(0, block.across.stop - block.across.start)
        wide = (across.stop - 1) * windows.stride[1] + windows.kernel[1]
        high, _, batch = block.shape()
        row = memory[: shape[0] * high * wide * batch].reshape(shape[0], high, wide, batch)
        first = block.across.start * windows.stride[1]
        places = slice(first, first + wide)
        for i in range(windows.kernel[0]):
            program.append(partial(row.fill, 0))
            for j in range(windows.kernel[1]):
                place = row[:, :, _places(j, across, windows.stride[1])]
                program.append(partial(np.add, place, parts[:, i, j], place))
            place = images[:, _places(i, block.down, windows.stride[0]), places, block.batch]
            program.append(partial(np.add, place, row, place))
    if images is not out:
        program.append(partial(out.__setitem__, ..., windows.inner(images)))
    return program


def _shift(x: Buffer, moves: Buffer, limit: int, out: Buffer) -> Program:
    """Return the calls that copy the window of each padded image that is `moves` away."""
    size = x.shape[2:]
    padded = np.zeros((*x.shape[:2], *(n + 2 * limit for n in size)), x.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, (2, 3))
    images = np.arange(len(x))

    def gather() -> None:
        down, right = moves.T + limit
        out[...] = windows[images, :, down, right]

    inner = padded[:, :, limit : limit + size[0], limit : limit + size[1]]
    return [partial(inner.__setitem__, ..., x), gather]


def _places(first: int, windows: slice, stride: int) -> slice:
    """Return where the number `first` of each of these windows is."""
    start = first + windows.start * stride
    return slice(start, start + (windows.stop - windows.start - 1) * stride + 1, stride)


IMAGE_OPS: dict[Callable[..., Any], Callable[..., Program]] = {
    convolve: _convolve,
    gradient_of_weights: _gradient_of_weights,
    gradient_of_images: _gradient_of_images,
    shift: _shift,
}
"""What returns the calls of each op of images."""
