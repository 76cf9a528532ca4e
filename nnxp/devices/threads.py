"""Threads: how many of BLAS's threads a step is worth."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

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
