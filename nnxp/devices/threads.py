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
_limited: list[tuple[Any, int]] = []  # each library, and its number of threads before the limit
_open = 0  # how many contexts are open


def suits_one_thread(multiplications: int) -> bool:
    """Return whether one thread is as fast as several, given the size of the largest product."""
    return multiplications < _MIN_MULTIPLICATIONS


@contextlib.contextmanager
def limit_blas_threads(multiplications: int) -> Iterator[None]:
    """Limit BLAS to one thread if the largest product has few multiplications.

    If several threads of a program train at the same time, the last one that ends removes the
    limit.
    """
    if not suits_one_thread(multiplications):
        yield
        return
    _watch_forks()
    _change_limit(1)
    try:
        yield
    finally:
        _change_limit(-1)


def blas_thread_count() -> int:
    """Return how many threads BLAS uses without this module's limit; 1 if it is not known.

    So it does not depend on other trainings in the same process.
    """
    with _lock:
        before = {id(library): number for library, number in _limited}
        now = [(library.num_threads or 1, before.get(id(library)) or 1) for library in _blas()]
    return max((own if own > 1 else number for own, number in now), default=1)


def _change_limit(change: int) -> None:
    """Count one more or one less open context; set or remove the limit."""
    global _open  # noqa: PLW0603 - the limit is the process's
    with _lock:
        _open = max(0, _open + change)  # a forked child starts at 0, and may leave contexts
        if _open and not _limited:
            for library in _blas():
                _limited.append((library, library.num_threads))
                _set_threads(library, 1)
        elif not _open:
            for library, number in _limited:
                if library.num_threads == 1:  # else the user has set another number meanwhile
                    _set_threads(library, number)
            _limited.clear()


def _set_threads(library: Any, number: int) -> None:
    # threadpoolctl lets only one Python thread set OpenBLAS's number, until it gives up control;
    # this limit is shared by all.
    give_up = getattr(type(library), "clear_controlling_thread", lambda **_: None)
    give_up(force=True)
    library.set_num_threads(number)
    give_up(force=True)


def _remove_in_child() -> None:
    """Remove the limit in a forked process, in which the contexts of other threads never end."""
    global _lock  # noqa: PLW0603 - another thread may have held it
    _lock = threading.Lock()
    if _open:
        _change_limit(-_open)


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_remove_in_child)


def _blas() -> list[Any]:
    return [x for x in blas_libraries().lib_controllers if x.user_api == "blas"]


@functools.cache
def blas_libraries() -> Any:
    """Return threadpoolctl's controller of the loaded BLAS libraries."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
