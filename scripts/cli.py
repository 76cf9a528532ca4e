"""Command line: options, errors on one line, signals, worker processes and printed results."""

from __future__ import annotations

import interrupts

import argparse
import contextlib
import io
import json
import logging
import os
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tqdm

import nnxp
from nnxp.checks import unknown_name
from nnxp.files import expand_home
from nnxp.ranks import ONE_RANK, Ranks


class _UsageError(SystemExit):
    """The end of a script with wrong arguments, with the message for other ranks."""

    def __init__(self, message: str) -> None:
        super().__init__(2)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Parser(argparse.ArgumentParser):
    """An argument parser that prints an error on one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise _UsageError(message)


class OutputError(Exception):
    """Standard output cannot be written, for example because the disk is full.

    It is not an OSError: those are errors of other files, and `nnxp.callbacks.Progress` ignores
    them.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written: {error.strerror}")
        # If a reader such as `head` closes the pipe, the status is that of SIGPIPE.
        self.status = 141 if isinstance(error, BrokenPipeError) else 1


class Stream(io.TextIOWrapper):
    """Standard output or error, which accepts any text and prints each line immediately.

    Characters that the encoding lacks are escaped. If standard output cannot be written, an
    `OutputError` is raised; for standard error the failure is ignored. Later output is lost.
    """

    def __init__(self, stream: io.TextIOWrapper, *, required: bool) -> None:
        encoding, write_through = stream.encoding, stream.write_through
        super().__init__(
            stream.detach(),
            encoding,
            "backslashreplace",
            line_buffering=True,
            write_through=write_through,
        )
        self.required = required

    def write(self, text: str) -> int:
        with self._errors():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._errors():
            super().flush()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # The null device also receives the rest of the buffers.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self.required:
                raise OutputError(error) from error


def open_streams() -> None:
    """Replace standard output and error by a `Stream`; a closed one by the null device."""
    for name, required in (("stdout", True), ("stderr", False)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        if type(stream) is io.TextIOWrapper:  # a notebook has another type
            setattr(sys, name, Stream(stream, required=required))


def program_ranks() -> Ranks:
    """Return the processes of a script that was started with ``python -m mpi4py``; else one."""
    if "mpi4py" in sys.modules:
        try:
            return nnxp.distributed.mpi()
        except nnxp.MissingExtraError as error:
            Parser().error(str(error))
    for kind in ("PMI", "OMPI_COMM_WORLD"):  # of MPICH's mpiexec, and of Open MPI's
        rank, size = (os.environ.get(f"{kind}_{name}", "") for name in ("RANK", "SIZE"))
        if size not in ("", "1"):
            if rank == "0":
                Parser().error(
                    f"{size} processes of mpiexec would each do the whole work; start them with "
                    f"mpiexec -n {size} python -m mpi4py {sys.argv[0]}"
                )
            sys.exit()  # with a status, mpiexec might end rank 0 before it has printed
    return ONE_RANK


def run(main: Callable[[], int | None], ranks: Ranks = ONE_RANK) -> NoReturn:
    """Run `main` and exit; an expected error (status 1) and a signal each print one line.

    With several ranks, only rank 0 prints, except for an error that only another rank has; mpi4py
    then ends all ranks.
    """
    stderr, kept = sys.stderr, io.StringIO()
    if ranks.rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        sys.stderr = kept
    try:
        _run(main, ranks)
    except SystemExit as error:
        if ranks.is_alone:
            print(kept.getvalue(), end="", file=stderr)
        codes = None
        if error.code and not ranks.is_alone:
            codes = ranks.gather(str(error.code), _LAST_WORDS)
        if codes is not None:  # rank 0 has printed, and MPI need not abort
            ranks.close()
            error.code = max(map(int, codes))
        raise
    finally:
        sys.stderr = stderr if ranks.rank else sys.stderr


_LAST_WORDS = 60.0  # seconds


def _run(main: Callable[[], int | None], ranks: Ranks) -> NoReturn:
    program = Path(sys.argv[0]).name
    open_streams()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("nnxp").setLevel(logging.INFO)

    def print_warning(message: object) -> None:
        print(f"{program}: {message}", file=sys.stderr)

    warnings.showwarning = lambda message, *_: ranks.warn(str(message), print_warning)
    # An overflow of the loss raises a DivergenceError; NumPy's warnings would only repeat it.
    np.seterr(over="ignore", invalid="ignore")
    try:
        with _failing_together(ranks), interrupts.handler:
            status = main()
            sys.stdout.flush()
        sys.exit(status)
    except OutputError as error:
        if error.status == 1:
            print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt as error:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(interrupts.status_of(error))
    except (nnxp.NnxpError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except MemoryError as error:
        print(f"{program}: error: not enough memory: {error}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def _failing_together(ranks: Ranks) -> Iterator[None]:
    """Raise an error of one rank on all ranks, if they wait for it or reach the end."""
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - fail raises it
        ranks.fail(error)
    if not (ranks.has_failed or ranks.is_alone):  # then the error was already handled
        ranks.exchange()


def name_of(kind: str, known: Iterable[str]) -> Callable[[str], str]:
    """Return an argparse type that accepts the `known` names; its error suggests a similar one."""
    names = list(known)

    def check(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(str(unknown_name(kind, name, names)))
        return name

    return check


def whole_number(text: str, least: int = 1) -> int:
    """Return `text` as a whole number of at least `least`; an argparse type."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}, got {text!r}"
        )
    return int(text)


def file_path(text: str) -> Path:
    """Return `text` as a path without ``~``; an argparse type."""
    try:
        return expand_home(text)
    except nnxp.InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run_worker(command: list[Any], environment: Mapping[str, str], failure: str) -> Any:
    """Run `command` in its own process; return the last line that it prints, parsed as JSON.

    Raises
    ------
    NnxpError
        If the command fails; the message starts with `failure`.
    """
    # The worker has its own process group, since a terminal sends its signals to the whole group:
    # only this process reports them, and ends the worker.
    result = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=False, process_group=0
    )
    if result.returncode:
        raise nnxp.NnxpError(f"{failure}, see above")
    return json.loads(result.stdout.splitlines()[-1])


@contextlib.contextmanager
def optional_output(name: str = "picture") -> Iterator[None]:
    """Print why an output is missing, if a package for it is not installed."""
    try:
        yield
    except nnxp.MissingExtraError as error:
        print(f"no {name}: {error}", file=sys.stderr)


def announce(text: str) -> None:
    """Print a text about slow work to standard error."""
    print(text, file=sys.stderr, flush=True)


def progress(count: int, unit: str) -> Iterable[int]:
    """Return the numbers below `count`, with a progress bar on a terminal."""
    bar: Iterable[int] = tqdm.tqdm(range(count), unit=unit, leave=False, disable=None)
    return bar


def print_failures(failures: list[str]) -> int:
    """Print a line for each failure, and return the exit status."""
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def spread(values: list[float]) -> str:
    """Return the median of values as text, with the quartiles if there are several values."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
