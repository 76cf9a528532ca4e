"""Files: reading with or without gzip, and atomic writing."""

from __future__ import annotations

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
from typing import BinaryIO, cast

from nnxp.errors import DataError, InputError

READ_ERRORS = (OSError, EOFError, zlib.error)
"""The errors that reading a file can raise, with or without gzip."""

_ALWAYS_ALLOWED = 64 << 20  # bytes, which every machine can spare
_MAX_GZIP_RATIO = 100  # real images unpack to at most ten times the file's size


def max_unpacked_bytes(path: Path) -> int:
    """Return how many bytes a file may unpack to; more is treated as a gzip bomb."""
    return max(_ALWAYS_ALLOWED, _MAX_GZIP_RATIO * path.stat().st_size)


def path_to_read(path: object) -> Path:
    """Return a path as a `Path`, a ``~`` at its beginning as the user's home folder.

    Raises
    ------
    InputError
        If it is neither a string nor a `Path`.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise InputError(f"a path must be a string or a pathlib.Path, got {path!r:.80}")
    return Path(os.path.expanduser(path))  # noqa: PTH111 (Path.expanduser raises if ~a is no user)


@contextmanager
def open_binary(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """Open a file for reading; yield its stream, decompressed if it is gzip, and whether it is.

    Raises
    ------
    DataError
        If `path` is no regular file but a folder, a pipe, a socket or a device, or cannot be a
        path at all; or if the file is a ZIP archive.
    OSError
        If the file cannot be opened.
    """
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a NUL, or half of a pair of surrogates
        raise DataError(f"{path} cannot be the name of a file ({error})") from error
    if stat.S_ISDIR(mode):
        raise DataError(f"{path} is a folder; give a file in it")
    if not stat.S_ISREG(mode):  # to open a pipe would wait for a writer; a device may never end
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
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield cast(BinaryIO, unpacked), True


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file, then rename it to `path`, which is never incomplete.

    Raises
    ------
    OSError
        If `path` cannot be written; a file that was there is unchanged.
    """
    temporary = _temporary_path(path)
    try:
        if path.exists() and not path.is_file():
            raise FileExistsError(errno.EEXIST, "Not a regular file")
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if path.exists():
                temporary.chmod(path.stat().st_mode)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def require_writable(path: Path) -> None:
    """Raise an `OSError` unless `write_atomically` can write `path`."""
    temporary = _temporary_path(path)
    temporary.touch()
    temporary.unlink()


def remove_temporary(path: Path) -> None:
    """Remove temporary files of processes that were killed while they wrote `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+\.\d+")
    for file in path.parent.iterdir():
        if pattern.fullmatch(file.name) and file.is_file():
            file.unlink(missing_ok=True)


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
