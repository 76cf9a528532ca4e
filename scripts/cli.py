"""Command lines: options by name, errors as one line, signals, and spreads as text."""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn, Self

import numpy as np

import nnxp
from nnxp.checks import unknown_name


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a script: an expected error becomes one line and status 1, Ctrl-C status 130."""
    program = Path(sys.argv[0]).name
    warnings.showwarning = lambda message, *_: print(f"{program}: {message}", file=sys.stderr)
    # A loss that overflows ends in one error of its own; NumPy's warnings would come before it.
    np.seterr(over="ignore", invalid="ignore")
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
    except (nnxp.NnxpError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except MemoryError as error:
        print(f"{program}: error: not enough memory: {error}", file=sys.stderr)
        sys.exit(1)


class Stopping:
    """Whether SIGINT (Ctrl-C) or SIGTERM has asked to stop; a second Ctrl-C stops at once.

    Attributes
    ----------
    signal : int
        The number of the signal that asked; 0 for none.
    """

    signal = 0

    def __enter__(self) -> Self:
        self._before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return bool(self.signal)

    def _ask(self, number: int, _: object) -> None:
        self.signal = number
        if self._before[signal.SIGINT] is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def name_of(kind: str, known: Iterable[str]) -> Callable[[str], str]:
    """Return an argparse type for one of the `known` names; an error names the nearest."""
    names = list(known)

    def check(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(str(unknown_name(kind, name, names)))
        return name

    return check


def whole_number(text: str) -> int:
    """Return `text` as a whole number of at least 1; an argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def spread(values: list[float]) -> str:
    """Return the median and, in brackets, the quartiles of two or more values."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
