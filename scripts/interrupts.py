"""Interrupts: Ctrl-C, SIGTERM and SIGHUP end a script with one line and the signal's status.

`cli` imports this module first, and each script imports `cli` first: while the others are imported,
and after a first signal, a signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

# How Python has a signal that nothing else has handled or ignored; SIGHUP is not on Windows.
_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL} | (
    {signal.SIGHUP: signal.SIG_DFL} if hasattr(signal, "SIGHUP") else {}
)


class _Handler:
    """A signal handler that ends the process; if it `raises`, the first signal is raised."""

    raises = False

    def __call__(self, number: int, _: object) -> None:
        """Raise a KeyboardInterrupt with the number, or print a line and end the process."""
        if self.raises:
            self.raises = False
            raise KeyboardInterrupt(number)
        with contextlib.suppress(OSError):  # of a standard error that is closed or full
            os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode())  # noqa: PTH119
        os._exit(128 + number)


_handler = _Handler()


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Raise a KeyboardInterrupt at the first signal; ignore signals after the context.

    A process that only has to say how it ended, and to remove what it leaves, ends soon.
    """
    _handler.raises = True
    try:
        yield
    finally:
        for number in _USUAL:
            if signal.getsignal(number) is _handler:
                signal.signal(number, signal.SIG_IGN)


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
            signal.signal(_number, _handler)
