"""Files: reading with or without gzip, and atomic writing."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import re
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, cast

from nnxp.errors import DataError, InputError

READ_ERRORS = (OSError, EOFError, zlib.error, MemoryError)
"""The errors that reading a file can raise, with or without gzip."""

_WINDOWS = os.name == "nt"
_ALWAYS_ALLOWED = 64 << 20  # bytes; every machine has this much memory
_MAX_GZIP_RATIO = 100  # real images decompress to at most ten times the file's size


def max_unpacked_bytes(path: Path) -> int:
    """Return the number of bytes a file may decompress to; more is treated as a gzip bomb."""
    return max(_ALWAYS_ALLOWED, _MAX_GZIP_RATIO * path.stat().st_size)


@contextmanager
def open_binary(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """Open a file for reading; yield its stream, decompressed if it is gzip, and whether it is.

    Raises
    ------
    DataError
        If `path` is a folder, a pipe, a socket or a device, or is not a valid path; or if the file
        is a ZIP archive.
    OSError
        If the file cannot be opened.
    """
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a NUL character, or a lone surrogate
        raise DataError(f"{path} cannot be the name of a file ({error})") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path} is a folder; give a file in it")
    if not stat.S_ISREG(mode):  # opening a pipe waits for a writer, and a device may be endless
        raise DataError(
            f"{path} is a pipe, a socket or a device; write its contents to a file and give that"
        )
    with path.open("rb") as file:
        head = file.peek(4)
        if head.startswith(b"PK\x03\x04"):
            raise DataError(f"{path} is a ZIP archive; unpack it and give a file that it holds")
        if not head.startswith(b"\x1f\x8b"):
            yield file, False
            return
        with _unpacked(file) as unpacked:
            yield unpacked, True


@contextmanager
def _unpacked(file: BinaryIO) -> Iterator[BinaryIO]:
    """Yield the contents of a gzipped file, which isal decompresses faster than zlib."""
    try:
        from isal import igzip, igzip_lib
    except ImportError:  # without the extra fast
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast(BinaryIO, unpacked)
        return
    with igzip.IGzipFile(fileobj=file) as unpacked:
        try:
            yield cast(BinaryIO, unpacked)
        except igzip_lib.IsalError as error:
            raise zlib.error(*error.args) from error


def expand_home(path: object) -> Path:
    """Return a path as a `Path`, with ``~`` or ``~user`` at its start replaced by the home folder.

    Raises
    ------
    InputError
        If it is neither a string nor a `Path`, or the home folder is not known.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise InputError(f"a path must be a string or a pathlib.Path, got {path!r:.80}")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        if (here := Path(path)).exists():  # a file whose name begins with ~
            return here
        raise InputError(
            f"the home folder {here.parts[0]} is not known; set HOME, or give the whole path"
        ) from None


def resolve_file(path: str | os.PathLike[str]) -> Path:
    """Return a path as an absolute path without ``~`` or links, which ``chdir`` does not affect.

    Raises
    ------
    InputError
        If the path is not the name of a file.
    """
    try:
        file = expand_home(path).resolve()
        # For a loop of links, Python 3.13 returns a link; older versions raise an error.
        names_file = file.name and not file.is_symlink() and (file.is_file() or not file.exists())
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{path!r} cannot be written ({error}); choose another") from error
    if not names_file:
        raise InputError(f"{str(path)!r} is not the name of a file; give the path of a file")
    return file


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file, then rename it to `path`, which is never incomplete.

    The temporary file has the permissions of the file that it replaces.

    Raises
    ------
    OSError
        If `path` cannot be written; an existing file is unchanged.
    """
    try:
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "Not a regular file")
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
        first_mode = 0o666 if mode is None else mode & 0o777 | 0o600
        with _temporary_file(path, first_mode) as (temporary, stream):
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            if mode is not None:
                temporary.chmod(mode)  # independent of the umask
            if _WINDOWS:
                stream.close()  # Windows cannot rename an open file
            temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def require_writable(path: Path) -> None:
    """Raise an `OSError` unless `write_atomically` can write `path`."""
    with _temporary_file(path, 0o600):
        pass


def remove_temporary(path: Path) -> None:
    """Remove temporary files of processes that were killed while they wrote `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+\.\d+")
    for file in path.parent.iterdir():
        if pattern.fullmatch(file.name) and file.is_file():
            # If the process still runs, its file is locked, open, or already removed.
            with contextlib.suppress(OSError), file.open("rb+") as stream:
                lock_stream(stream, wait=False)
                if _WINDOWS:
                    stream.close()
                file.unlink()


@contextmanager
def _temporary_file(path: Path, mode: int) -> Iterator[tuple[Path, BinaryIO]]:
    """Create a locked file in the folder of `path`; remove it at the end if it was not renamed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        descriptor = os.open(temporary, flags, mode)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                # If the file system has no locks, `remove_temporary` removes nothing.
                with contextlib.suppress(OSError):
                    lock_stream(stream, wait=True)
                if temporary.exists():  # otherwise it was removed before it was locked: try again
                    yield temporary, stream
                    return
        finally:
            temporary.unlink(missing_ok=True)


def lock_stream(stream: IO[bytes], *, wait: bool) -> None:
    """Lock a file until it is closed, or raise an `OSError` if another process has the lock."""
    if not _WINDOWS:  # Windows does not remove an open file, so it needs no lock
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
