"""NumPy's ops of images: products of windows in blocks that stay in the cache, and shifts."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from nnxp.capture.ops import Buffer, Program, add_product
from nnxp.layers.augmentation import shift
from nnxp.layers.convolution import convolve, gradient_of_images, gradient_of_weights
from nnxp.layers.windows import Geometry, window_counts

if TYPE_CHECKING:
    from nnxp.capture.numpy_ops import NumpyOps


class Block(NamedTuple):
    """Some of the windows: their slices of the axes (down, across, batch), and of the columns."""

    down: slice
    across: slice
    batch: slice
    columns: slice

    def shape(self) -> tuple[int, ...]:
        """Return the numbers of windows along each axis."""
        return tuple(x.stop - x.start for x in self[:3])


def _blocks(shape: tuple[int, int, int], limit: int) -> Iterator[Block]:
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
        yield Block(rows, places, part, slice(start, start + size))


class Windows:
    """The windows of images in blocks, for each of which there is a matrix of columns.

    Parameters
    ----------
    shape : tuple of int
        The shape of the images: (channels, height, width, batch).
    dtype : dtype
    geometry : Geometry
    block_bytes : int
        The largest size of a block's columns.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], geometry: Geometry, block_bytes: int
    ) -> None:
        self.kernel, self.stride, self.padding = geometry
        channels, height, width, batch = shape
        self.counts = window_counts(shape[1:3], *geometry)
        self.numbers = channels * math.prod(self.kernel)  # of a window
        top, left = self.padding
        self._padded = (channels, height + 2 * top, width + 2 * left, batch)
        self._dtype = dtype
        limit = max(1, block_bytes // (self.numbers * dtype.itemsize))
        self.blocks = list(_blocks((*self.counts, batch), limit))
        largest = max(math.prod(block.shape()) for block in self.blocks)
        self._memory = np.empty(self.numbers * largest, dtype)

    @functools.cached_property
    def row_memory(self) -> Buffer:
        """Memory for the rows of `add_columns`."""
        return np.empty(math.prod(self._padded), self._dtype)

    def padded(self) -> Buffer:
        """Return zeros for padded images."""
        return np.zeros(self._padded, self._dtype)

    def inner(self, padded: Buffer) -> Buffer:
        """Return padded images without the padding."""
        (top, left), (_, height, width, _) = self.padding, self._padded
        return padded[:, top : height - top, left : width - left]

    def columns(self, block: Block) -> Buffer:
        """Return the memory of a block's columns, as (numbers of a window, windows)."""
        size = math.prod(block.shape())
        return self._memory[: self.numbers * size].reshape(self.numbers, size)

    def parts(self, block: Block) -> Buffer:
        """Return a block's columns as (channels, kernel height, kernel width, *windows)."""
        shape = (self._padded[0], *self.kernel, *block.shape())
        return self.columns(block).reshape(shape)

    def copies(self, ops: NumpyOps, images: Buffer) -> tuple[Program, list[Program]]:
        """Return the calls that prepare images, and each block's calls that make its columns."""
        before: Program = []
        if any(self.padding):
            padded = self.padded()
            before += ops.copy(self.inner(padded), images)
            images = padded
        windows = self.windows(images)
        return before, [
            ops.copy(self.parts(block), windows[:, :, :, *block[:3]]) for block in self.blocks
        ]

    def windows(self, images: Buffer) -> Buffer:
        """Return a view of padded images as (channels, kernel height, kernel width, *windows)."""
        view = sliding_window_view(images, self.kernel, (1, 2), writeable=True)
        windows: Buffer = view[:, :: self.stride[0], :: self.stride[1]].transpose(0, 4, 5, 1, 2, 3)
        return windows


def _convolve(
    ops: NumpyOps,
    images: Buffer,
    W: Buffer,  # noqa: N803 - the parameter's name
    b: Buffer,
    geometry: Geometry,
    out: Buffer,
) -> Program:
    """Return the calls that compute ``out[...] = W @ columns + b[:, None]``."""
    windows = Windows(images.shape, images.dtype, geometry, ops.block_bytes)
    program, copies = windows.copies(ops, images)
    for block, copy in zip(windows.blocks, copies, strict=True):
        y = out[:, block.columns]
        program += [*copy, *ops.lower(add_product, [b[:, None], W, windows.columns(block)], {}, y)]
    return program


def _gradient_of_weights(
    ops: NumpyOps, dy: Buffer, images: Buffer, geometry: Geometry, out: Buffer
) -> Program:
    """Return the calls that compute ``out[...] = (columns @ dy.T).T``.

    BLAS is faster with the larger of the two first.
    """
    windows = Windows(images.shape, images.dtype, geometry, ops.block_bytes)
    program, copies = windows.copies(ops, images)
    product = np.empty(out.shape[::-1], out.dtype)
    for block, copy in zip(windows.blocks, copies, strict=True):
        factors = [windows.columns(block), dy[:, block.columns].T]
        if block is windows.blocks[0]:
            program += [*copy, *ops.lower(np.matmul, factors, {}, product)]
        else:
            program += [*copy, *ops.lower(add_product, [product, *factors], {}, product)]
    return program + ops.copy(out, product.T)


def _gradient_of_images(
    ops: NumpyOps,
    dy: Buffer,
    W: Buffer,  # noqa: N803
    shape: tuple[int, ...],
    geometry: Geometry,
    out: Buffer,
) -> Program:
    """Return the calls that add the columns of ``W.T @ dy`` to the images `out`."""
    windows = Windows(shape, dy.dtype, geometry, ops.block_bytes)
    images = windows.padded() if any(windows.padding) else out
    program = ops.copy(images, np.zeros((), images.dtype))
    for block in windows.blocks:
        columns = windows.columns(block)
        program += ops.lower(np.matmul, [W.T, dy[:, block.columns]], {}, columns)
        program += ops.add_columns(windows, block, images)
    return program if images is out else program + ops.copy(out, windows.inner(images))


def add_columns(windows: Windows, block: Block, images: Buffer) -> Program:
    """Return NumPy's calls that add a block's columns to padded images.

    As in col2im, the numbers of a row are added first, and then the rows.
    """
    parts = windows.parts(block)
    across = slice(0, block.across.stop - block.across.start)
    wide = (across.stop - 1) * windows.stride[1] + windows.kernel[1]
    high, _, batch = block.shape()
    shape = len(images), high, wide, batch
    row = windows.row_memory[: math.prod(shape)].reshape(shape)
    first = block.across.start * windows.stride[1]
    places = slice(first, first + wide)
    program: Program = []
    for i in range(windows.kernel[0]):
        program.append(partial(row.fill, 0))
        for j in range(windows.kernel[1]):
            place = row[:, :, _places(j, across, windows.stride[1])]
            program.append(partial(np.add, place, parts[:, i, j], place))
        place = images[:, _places(i, block.down, windows.stride[0]), places, block.batch]
        program.append(partial(np.add, place, row, place))
    return program


def _shift(ops: NumpyOps, x: Buffer, moves: Buffer, limit: int, out: Buffer) -> Program:
    """Return the calls that copy the window of each padded image that is `moves` away."""
    size = x.shape[2:]
    padded = np.zeros((*x.shape[:2], *(n + 2 * limit for n in size)), x.dtype)
    windows = sliding_window_view(padded, size, (2, 3))
    images = np.arange(len(x))

    def gather() -> None:
        down, right = moves.T + limit
        out[...] = windows[images, :, down, right]

    inner = padded[:, :, limit : limit + size[0], limit : limit + size[1]]
    return [*ops.copy(inner, x), gather]


def _places(first: int, windows: slice, stride: int) -> slice:
    """Return the places of the number `first` of each of these windows."""
    start = first + windows.start * stride
    return slice(start, start + (windows.stop - windows.start - 1) * stride + 1, stride)


IMAGE_OPS: dict[Callable[..., Any], Callable[..., Program]] = {
    convolve: _convolve,
    gradient_of_weights: _gradient_of_weights,
    gradient_of_images: _gradient_of_images,
    shift: _shift,
}
"""The functions that return the calls of each op of images."""
