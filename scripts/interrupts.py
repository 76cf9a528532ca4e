"""Interrupts: while modules are imported, Ctrl-C ends a script with one line and status 130.

`cli` imports this module first, and each script imports `cli` first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys


def end_at_once(number: int, _: object) -> None:
    """Print a line, and end the process."""
    with contextlib.suppress(OSError):  # of a standard error that is closed or full
        os.write(2, f"{os.path.basename(sys.argv[0])}: interrupted\n".encode())  # noqa: PTH119
    os._exit(128 + number)


def raise_keyboard_interrupt() -> None:
    """Restore Python's own handling of Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _folder(path: str) -> str:
    return os.path.dirname(os.path.realpath(path))  # noqa: PTH120


# Not in a process that only imports a script, such as a test; and an ignored Ctrl-C stays ignored.
if (
    _folder(sys.argv[0]) == _folder(__file__)
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, end_at_once)
