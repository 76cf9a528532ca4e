"""BLAS: OpenBLAS's accumulating matrix product, which NumPy does not expose.

NumPy's wheels contain OpenBLAS, whose product can add to its output in the pass that computes it.
With another BLAS there is no such call, and NumPy's product is used.
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
_PRODUCTS = {
    "float32": ("scipy_cblas_sgemm64_", ctypes.c_float),
    "float64": ("scipy_cblas_dgemm64_", ctypes.c_double),
}
_ROW_MAJOR, _NOT_TRANSPOSED, _TRANSPOSED = 101, 111, 112  # cblas.h


def _product(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """Return OpenBLAS's product of a dtype, or None, and the type of its numbers."""
    name, real = _PRODUCTS.get(dtype.name, ("", ctypes.c_double))
    libraries = [x.dynlib for x in blas_libraries().lib_controllers]
    return next((getattr(x, name) for x in libraries if hasattr(x, name)), None), real


def product_address(dtype: np.dtype[Any]) -> int | None:
    """Return the address of OpenBLAS's product of a dtype; None if there is none."""
    product, _ = _product(dtype)
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
    product, real = _product(out.dtype)
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
