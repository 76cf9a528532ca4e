"""Interrupts: Ctrl-C, SIGTERM and SIGHUP end a script with one line and the signal's status.

Each script imports `cli` first, and `cli` imports this module first. A signal during the other
imports, or after a first signal, ends the process immediately. This module imports only modules
that Python has already loaded, so that it handles signals as early as possible.
"""

from __future__ import annotations

import os
import signal
import sys

# The handlers of signals that no other code has changed; Windows has no SIGHUP.
_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL} | (
    {signal.SIGHUP: signal.SIG_DFL} if hasattr(signal, "SIGHUP") else {}
)


class _Handler:
    """A signal handler that ends the process.

    As a context manager, it raises a KeyboardInterrupt with the number of the first signal instead,
    and ignores signals afterwards, while the process prints a message and cleans up.
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
    """Return the exit status of a process that a signal ends."""
    return 128 + (error.args[0] if error.args else signal.SIGINT)


def _folder(path: str) -> str:
    return os.path.dirname(os.path.realpath(path))  # noqa: PTH120


# Install the handlers only in a process that runs a script, not in a test or a multiprocessing
# worker.
_is_worker = "--multiprocessing-fork" in sys.orig_argv
if _folder(sys.argv[0]) == _folder(__file__) and not _is_worker:
    for _number, _usual in _USUAL.items():
        if signal.getsignal(_number) is _usual:  # keep signals ignored by nohup
            signal.signal(_number, handler)
