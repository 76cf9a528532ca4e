"""Threads: how many BLAS threads a training step uses."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

# Multiplications in a step's largest product from which several threads are faster than one. Below
# it, they mostly wait for each other, and more so if other programs keep the cores busy.
_WORTH_THREADS = 1 << 24
_lock = threading.Lock()
_limits: list[Any] = []  # the limit in force, once for each context that is open


@contextlib.contextmanager
def limit_blas_threads(multiplications: int) -> Iterator[None]:
    """Limit BLAS to one thread if the largest product has few multiplications.

    If several threads of a program train at the same time, the last one lifts the limit.
    """
    if multiplications >= _WORTH_THREADS:
        yield
        return
    with _lock:
        if not _limits:
            _limits.append(blas_libraries().limit(limits=1, user_api="blas"))
        else:
            _limits.append(_limits[0])
    try:
        yield
    finally:
        with _lock:
            limit = _limits.pop()
            if not _limits:
                limit.restore_original_limits()


@functools.cache
def blas_libraries() -> Any:
    """Return threadpoolctl's controller of the BLAS libraries that are loaded."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
