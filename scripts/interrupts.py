"""Interrupts: Ctrl-C, SIGTERM and SIGHUP end a script with one line and the signal's status.

`cli` imports this module first, and each script imports `cli` first: while the others are imported,
and after a first signal, a signal ends the process at once. This module imports only what Python
has loaded anyway, so that it handles signals as early as possible.
"""

from __future__ import annotations

import os
import signal
import sys

# How Python has a signal that nothing else has handled or ignored; SIGHUP is not on Windows.
_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL} | (
    {signal.SIGHUP: signal.SIG_DFL} if hasattr(signal, "SIGHUP") else {}
)


class _Handler:
    """A signal handler that ends the process.

    As a context, it raises a KeyboardInterrupt with the number of the first signal instead, and has
    signals ignored afterwards: the process then only says how it ended and removes what it leaves.
    """

    _raises = False

    def __call__(self, number: int, _: object) -> None:
        if self._raises:
            self._raises = False
            raise KeyboardInterrupt(number)
        try:
            os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode())  # noqa: PTH119
        finally:  # also if standard error is closed or full
            os._exit(128 + number)

    def __enter__(self) -> None:
        self._raises = True

    def __exit__(self, *_: object) -> None:
        for number in _USUAL:
            if signal.getsignal(number) is self:
                signal.signal(number, signal.SIG_IGN)


handler = _Handler()


def status_of(error: KeyboardInterrupt) -> int:
    """Return the exit status of a process that a signal has ended."""
    return 128 + (error.args[0] if error.args else signal.SIGINT)


def _folder(path: str) -> str:
    return os.path.dirname(os.path.realpath(path))  # noqa: PTH120


# Not in a process that only imports a script, such as a test or a worker of multiprocessing's.
_is_worker = "--multiprocessing-fork" in sys.orig_argv
if _folder(sys.argv[0]) == _folder(__file__) and not _is_worker:
    for _number, _usual in _USUAL.items():
        if signal.getsignal(_number) is _usual:  # what is ignored, as by nohup, stays ignored
            signal.signal(_number, handler)
