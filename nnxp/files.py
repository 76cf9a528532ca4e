"""Files: read gzipped or not, written whole or not at all."""

from __future__ import annotations

import errno
import gzip
import os
import re
import time
import zlib
from pathlib import Path
from typing import BinaryIO, cast

READ_ERRORS = (OSError, EOFError, zlib.error)
"""What reading a file can raise, gzipped or not."""


_ALWAYS_ALLOWED = 64 << 20  # bytes, that any machine has to spare
_MAX_GZIP_RATIO = 100  # times its size; a set of real images unpacks to ten times it, or less


def max_unpacked_bytes(path: Path) -> int:
    """Return how many bytes a file may unpack to: what is beyond is taken for a gzip bomb."""
    return max(_ALWAYS_ALLOWED, _MAX_GZIP_RATIO * path.stat().st_size)


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading; one whose name ends in ``.gz`` is gunzipped."""
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to a temporary file beside `path` and rename it: never half a file.

    Raises
    ------
    OSError
        Naming `path`; what stood there is untouched.
    """
    temporary = _temporary(path)
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
    """Raise an `OSError` unless `write_atomically` can write there."""
    temporary = _temporary(path)
    temporary.touch()
    temporary.unlink()


def remove_temporary(path: Path) -> None:
    """Remove what processes left that were killed while they wrote there."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+\.\d+")
    for left in path.parent.iterdir():
        if pattern.fullmatch(left.name) and left.is_file():
            left.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
