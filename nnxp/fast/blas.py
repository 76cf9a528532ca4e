"""BLAS: what NumPy's matrix product can do and NumPy passes on to nobody.

NumPy's wheels carry OpenBLAS, whose product may add to what is there, in the pass that computes
it, and whose number of threads may be set. With another BLAS the first is not to be had.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

# NumPy's own OpenBLAS has this prefix, and this suffix since its integers have 64 bits.
_PRODUCTS = {
    "float32": ("scipy_cblas_sgemm64_", ctypes.c_float),
    "float64": ("scipy_cblas_dgemm64_", ctypes.c_double),
}
_ROW_MAJOR, _AS_IT_IS, _TRANSPOSED = 101, 111, 112  # as in cblas.h

# Multiplications in a step's largest product from which threads gain more than they cost. Below,
# they wait for each other; all the more where other programs keep the cores busy.
_WORTH_THREADS = 1 << 24
_lock = threading.Lock()
_limits: list[Any] = []  # the one in force, once for each that wants it


@contextlib.contextmanager
def one_thread_if_small(multiplications: int) -> Iterator[None]:
    """Let BLAS use one thread, if its largest product has too few multiplications for more.

    Where several threads of a program train at once, the last one gives the others back.
    """
    if multiplications >= _WORTH_THREADS:
        yield
        return
    with _lock:
        if not _limits:
            _limits.append(_libraries().limit(limits=1, user_api="blas"))
        else:
            _limits.append(_limits[0])
    try:
        yield
    finally:
        with _lock:
            limit = _limits.pop()
            if not _limits:
                limit.restore_original_limits()


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
    libraries = [x.dynlib for x in _libraries().lib_controllers]
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


@functools.cache
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
