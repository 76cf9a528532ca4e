"""BLAS: what NumPy's matrix product can do and NumPy passes on to nobody.

NumPy's wheels carry OpenBLAS, whose product may add to what is there, in the pass that computes
it. With another BLAS that is not to be had.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.devices.threads import blas_libraries

# NumPy's own OpenBLAS has this prefix, and this suffix since its integers have 64 bits.
_PRODUCTS = {
    "float32": ("scipy_cblas_sgemm64_", ctypes.c_float),
    "float64": ("scipy_cblas_dgemm64_", ctypes.c_double),
}
_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112  # as in cblas.h


def accumulating_product(
    out: npt.NDArray[Any],
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    factor: npt.NDArray[Any] | None = None,
) -> Callable[[], object] | None:
    """Return a call that does ``out += a @ b`` in one pass, or ``out -= factor * (a @ b)``.

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
        None where that takes NumPy.
    """
    name, real = _PRODUCTS.get(out.dtype.name, ("", ctypes.c_double))
    libraries = [x.dynlib for x in blas_libraries().lib_controllers]
    product = next((getattr(x, name) for x in libraries if hasattr(x, name)), None)
    if product is None or {a.dtype, b.dtype} != {out.dtype} or not out.flags.behaved:
        return None
    if any(np.may_share_memory(out, x) for x in (a, b)):
        return None
    if not (a.flags.forc and b.flags.forc and out.flags.c_contiguous):
        return None
    size = ctypes.c_int64
    arguments: list[Any] = [ctypes.c_int(_ROW_MAJOR)]
    arguments += [ctypes.c_int(_AS_IT_IS if x.flags.c_contiguous else _TRANSPOSED) for x in (a, b)]
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
