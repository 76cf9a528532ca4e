"""Threads: the limit of the number of BLAS threads of a training step."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

# With at least this many multiplications in a step's largest product, several threads are faster
# than one. With fewer, they mostly wait for each other, especially if other programs use the cores.
_MIN_MULTIPLICATIONS = 1 << 24
_lock = threading.Lock()
_limits: list[Any] = []  # the same limit once for each open context


@contextlib.contextmanager
def limit_blas_threads(multiplications: int) -> Iterator[None]:
    """Limit BLAS to one thread if the largest product has few multiplications.

    If several threads of a program train at the same time, the last one that ends removes the
    limit.
    """
    if multiplications >= _MIN_MULTIPLICATIONS:
        yield
        return
    _watch_forks()
    with _lock:
        if not _limits:
            _limits.append(blas_libraries().limit(limits=1, user_api="blas"))
        else:
            _limits.append(_limits[0])
    try:
        yield
    finally:
        with _lock:
            limit = _limits.pop() if _limits else None
            if limit is not None and not _limits:
                _remove(limit)


def blas_thread_count() -> int:
    """Return how many threads BLAS uses at present; 1 if it is not known."""
    pools = blas_libraries().lib_controllers
    return max((pool.num_threads for pool in pools if pool.user_api == "blas"), default=1)


def _remove(limit: Any) -> None:
    """Remove a limit, unless the user has set another one in the meantime."""
    pools = blas_libraries().lib_controllers  # OpenMP among them
    current = {pool.num_threads for pool in pools if pool.user_api == "blas"}
    if current <= {1}:
        limit.restore_original_limits()


def _remove_in_child() -> None:
    """Remove the limit in a forked process, in which the context never ends."""
    if _limits:
        limit = _limits[0]
        _limits.clear()
        _remove(limit)


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_remove_in_child)


@functools.cache
def blas_libraries() -> Any:
    """Return threadpoolctl's controller of the loaded BLAS libraries."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
