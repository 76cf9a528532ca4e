"""NumPy's ops: each op as the fastest NumPy or BLAS calls that write into a buffer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from nnxp.capture.blas import accumulating_product, accumulating_sum
from nnxp.capture.numpy_images import IMAGE_OPS, Block, Windows, add_columns
from nnxp.capture.ops import (
    Buffer,
    Ops,
    Program,
    add_product,
    places_of_parts,
    subtract_product,
    weighted_sum,
)
from nnxp.devices.threads import blas_thread_count

_ALIGNMENT = 64  # bytes of a cache line
_SHORT_ROW = 32
_SMALL = 1 << 16  # numbers of an array that stays in the cache
_LARGE_SUM = 1 << 9  # numbers from which BLAS sums faster than NumPy


class NumpyOps(Ops):
    """Computes ops with NumPy."""

    module = np
    accumulates = True
    chunk = 1 << 15  # float32 vectors of this length stay in the cache
    whole = IMAGE_OPS.keys()
    cache_bytes = 1 << 19
    block_bytes = 1 << 20  # of a convolution's columns that are made at a time

    def allocate(self, size: int) -> Buffer:
        """Return `size` bytes of memory, aligned to a cache line."""
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        return memory[start : start + size]

    def thread_count(self) -> int:
        """Return the number of BLAS threads, which the user may have limited."""
        return blas_thread_count()

    def copy(self, out: Buffer, x: Any) -> Program:
        """Return the calls that compute ``out[...] = x``."""
        return [partial(out.__setitem__, ..., x)]  # `np.copyto` takes longer to call

    def add_columns(self, windows: Windows, block: Block, images: Buffer) -> Program:
        """Return the calls that add a block's columns to the windows of padded images."""
        return add_columns(windows, block, images)

    def lower(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], out: Buffer
    ) -> Program:
        """Return the calls that compute ``out[...] = function(*args, **kwargs)``."""
        match function:
            case np.ufunc() if not kwargs:
                # NumPy would convert a Python number to the arrays' dtype at each call.
                shape: tuple[int, ...] = ()
                if function in (np.maximum, np.minimum) and out.size <= _SMALL:
                    shape = out.shape  # they are faster with two arrays than with a number
                dtype = np.result_type(*args)
                numbers = [
                    x if isinstance(x, np.ndarray) else np.full(shape, x, dtype) for x in args
                ]
                if function in (np.maximum, np.minimum):  # they take `out` by keyword only
                    return [partial(function, *numbers, out=out)]
                return [partial(function, *numbers, out)]
            case np.astype:
                return self.copy(out, args[0])
            case np.reshape if len(args) == 2 and not kwargs and out.flags.c_contiguous:
                return self.copy(out.reshape(args[0].shape), args[0])
            case np.stack | np.concat if len(args) == 1 and kwargs.keys() <= {"axis"}:
                places = places_of_parts(function, args[0], kwargs.get("axis", 0), out)
                parts = zip(places, args[0], strict=True)
                return [call for each in parts for call in self.copy(*each)]
            case _ if function in IMAGE_OPS:
                return IMAGE_OPS[function](self, *args, out)
            case np.where:
                return [
                    *self.copy(out, args[2]),
                    partial(np.copyto, out, args[1], where=args[0]),
                ]
            case np.sum | np.max if len(args) == 1 and kwargs.keys() <= {"axis", "keepdims"}:
                axis, keepdims = kwargs.get("axis"), kwargs.get("keepdims", False)
                return _lower_reduction(function, args[0], axis, keepdims, out)
            case np.argmax if len(args) == 1 and kwargs.keys() <= {"axis"}:
                return [partial(np.argmax, args[0], kwargs.get("axis"), out)]
            case np.all if len(args) == 1 and kwargs.keys() <= {"axis"}:
                return [partial(np.logical_and.reduce, args[0], kwargs.get("axis"), None, out)]
            case np.mean if len(args) == 1 and kwargs.keys() <= {"axis", "keepdims"}:
                axis, keepdims = kwargs.get("axis"), kwargs.get("keepdims", False)
                count = np.asarray(args[0].size // max(out.size, 1), out.dtype)
                total = _lower_reduction(np.sum, args[0], axis, keepdims, out)
                return [*total, partial(np.divide, out, count, out)]
            case _ if function is add_product:
                row, a, b = args
                if call := accumulating_product(out, a, b):
                    return [call] if row is out else [*self.copy(out, row), call]
                product = np.empty_like(out) if row is out else out
                return [partial(np.matmul, a, b, product), partial(np.add, product, row, out)]
            case _ if function is subtract_product:
                x, factor, a, b = args
                return _lower_subtraction(x, factor, a, b, out)
            case _ if function is weighted_sum:
                x, a, b, y, add = args
                return _lower_sum(x, a, b, y, add, out)
            case _:
                return [lambda: np.copyto(out, function(*args, **kwargs))]


def _lower_reduction(
    function: Callable[..., Any], x: Buffer, axis: int | None, keepdims: bool, out: Buffer
) -> Program:
    # With more axes, a product sums another one; in another dtype, it may wrap around.
    suits_product = x.size >= _LARGE_SUM and x.ndim <= 2 and x.dtype == out.dtype
    if function is np.sum and axis == 0 and not keepdims and suits_product:
        return [partial(np.matmul, np.ones(x.shape[0], x.dtype), x, out)]
    if function is np.sum:
        return [partial(np.add.reduce, x, axis, out.dtype, out, keepdims)]
    if x.ndim != 2 or axis not in (1, -1) or x.shape[1] > _SHORT_ROW:
        return [partial(np.maximum.reduce, x, axis, None, out, keepdims)]
    # NumPy reduces short rows slowly, and the same numbers as columns fast.
    columns = np.empty(x.shape[::-1], x.dtype)
    return [
        partial(columns.__setitem__, ..., x.T),
        partial(np.maximum.reduce, columns, 0, None, out.reshape(-1)),
    ]


def _lower_sum(
    x: Buffer, a: Buffer | None, b: Buffer | None, y: Buffer, add: np.ufunc, out: Buffer
) -> Program:
    """Return the calls that compute ``out[...] = add(x * a, b * y)``; see `weighted_sum`."""
    if call := accumulating_sum(out, a, b, y, sign=1 if add is np.add else -1):
        return [call] if x is out else [partial(out.__setitem__, ..., x), call]
    program: Program = []
    if b is not None:
        scaled = np.empty_like(out)
        program.append(partial(np.multiply, b, y, scaled))
        y = scaled
    if a is not None:
        program.append(partial(np.multiply, x, a, out))
        x = out
    return [*program, partial(add, x, y, out)]


def _lower_subtraction(x: Buffer, factor: Buffer, a: Buffer, b: Buffer, out: Buffer) -> Program:
    """Return the calls that compute ``out[...] = x - factor * (a @ b)``."""
    program: Program = [] if x is out else [partial(out.__setitem__, ..., x)]
    if call := accumulating_product(out, a, b, factor):
        return [*program, call]
    product = np.empty_like(out)
    return [
        *program,
        partial(np.matmul, a, b, product),
        partial(np.multiply, factor, product, product),
        partial(np.subtract, out, product, out),
    ]
