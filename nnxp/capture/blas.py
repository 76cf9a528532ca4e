"""BLAS: OpenBLAS's accumulating matrix product and sum, which NumPy does not expose.

NumPy's wheels contain OpenBLAS, which can add to its output in the pass that computes a product or
a weighted sum. With another BLAS there is no such call, and NumPy's functions are used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from nnxp.capture.ops import Buffer
from nnxp.devices.threads import blas_libraries

# The prefix of NumPy's own OpenBLAS, and the suffix of its interface with 64-bit integers.
_NAMES = {"float32": "scipy_cblas_s{}64_", "float64": "scipy_cblas_d{}64_"}
_LARGE = 1 << 10  # numbers from which a sum is faster than NumPy's two calls
_ROW_MAJOR, _NOT_TRANSPOSED, _TRANSPOSED = 101, 111, 112  # cblas.h


def _function(name: str, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return OpenBLAS's function for a dtype, or None, and the type of its numbers."""
    name = _NAMES.get(dtype.name, "").format(name)
    libraries = [x.dynlib for x in blas_libraries().lib_controllers]
    found = next((getattr(x, name) for x in libraries if name and hasattr(x, name)), None)
    return found, ctypes.c_float if dtype == np.float32 else ctypes.c_double


def product_address(dtype: np.dtype[Any]) -> int | None:
    """Return the address of OpenBLAS's product of a dtype; None if there is none."""
    product, _ = _function("gemm", dtype)
    return None if product is None else ctypes.cast(product, ctypes.c_void_p).value


def accumulating_product(
    out: Buffer, a: Buffer, b: Buffer, factor: Buffer | None = None
) -> Callable[[], object] | None:
    """Return a call that computes ``out += a @ b`` in one pass, or ``out -= factor * (a @ b)``.

    Parameters
    ----------
    out : (rows, columns) array
    a : (rows, inner) array
    b : (inner, columns) array
    factor : 0-d array, optional
        Read at each call.

    Returns
    -------
    callable or None
        None for another BLAS, other dtypes, overlapping arrays, and arrays that are not
        contiguous.
    """
    product, real = _function("gemm", out.dtype)
    if product is None or {a.dtype, b.dtype} != {out.dtype} or not out.flags.behaved:
        return None
    if any(np.may_share_memory(out, x) for x in (a, b)):
        return None
    if not (a.flags.forc and b.flags.forc and out.flags.c_contiguous):
        return None
    size = ctypes.c_int64
    arguments: list[Any] = [ctypes.c_int(_ROW_MAJOR)]
    arguments += [
        ctypes.c_int(_NOT_TRANSPOSED if x.flags.c_contiguous else _TRANSPOSED) for x in (a, b)
    ]
    arguments += [size(n) for n in (*out.shape, a.shape[1])]
    arguments += [real(1)]
    for x in (a, b):
        row = x.shape[1] if x.flags.c_contiguous else x.shape[0]
        arguments += [x.ctypes.data_as(ctypes.c_void_p), size(row)]
    arguments += [real(1), out.ctypes.data_as(ctypes.c_void_p), size(out.shape[1])]

    # data_as keeps each array alive with its pointer.
    if factor is None:
        return partial(product, *arguments)

    def subtract() -> None:
        arguments[6].value = -float(factor)
        product(*arguments)

    return subtract


def accumulating_sum(
    out: Buffer, a: Buffer | None, b: Buffer | None, y: Buffer, sign: int
) -> Callable[[], object] | None:
    """Return a call that computes ``out = a * out + sign * b * y`` in one pass.

    A product with a factor of 0 is 0, also of inf and nan.

    Parameters
    ----------
    out, y : array
        Of the same shape.
    a, b : 0-d array or None
        Read at each call; None for 1.
    sign : 1 or -1

    Returns
    -------
    callable or None
        None as in `accumulating_product`, and for few numbers, where NumPy is as fast.
    """
    function, real = _function("axpby", out.dtype)
    suits = out.flags.c_contiguous and y.flags.c_contiguous and y.dtype == out.dtype
    if function is None or not suits or out.size < _LARGE or np.may_share_memory(out, y):
        return None
    size, one = ctypes.c_int64(out.size), ctypes.c_int64(1)
    of_y, of_out = real(sign), real(1)
    pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in (y, out)]

    def add() -> None:
        if b is not None:
            of_y.value = sign * b.item()
        if a is not None:
            of_out.value = a.item()
        function(size, of_y, pointers[0], one, of_out, pointers[1], one)

    return add
