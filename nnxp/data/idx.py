"""IDX: the file format of MNIST, gzipped or not.

A file has two zero bytes, a byte for the type of the values, a byte with the number of axes, the
length of each axis as a big-endian 32-bit integer, and the big-endian values in C order.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from nnxp.errors import DataError
from nnxp.files import READ_ERRORS, expand_home, max_unpacked_bytes, open_binary

_TYPES = {
    0x08: "uint8",
    0x09: "int8",
    0x0B: "int16",
    0x0C: "int32",
    0x0D: "float32",
    0x0E: "float64",
}
_MAX_AXES = 64  # of a NumPy array


def read_idx(path: str | Path, axes: int | None = None) -> npt.NDArray[Any]:
    """Read one IDX file.

    Parameters
    ----------
    path : str or Path
        A regular file. A gzipped file of any name is decompressed.
    axes : int, optional
        The required number of axes: 3 for images, 1 for labels. By default any.

    Returns
    -------
    array
        Shape and dtype are those in the file's header; the dtype is uint8, int8, int16, int32,
        float32 or float64.

    Raises
    ------
    DataError
        If the file cannot be read, is not an IDX file with this number of axes, or is shorter or
        longer than its header states.
    InputError
        If `path` is not a path.
    """
    path = expand_home(path)
    try:
        with open_binary(path) as (stream, packed):
            return _read(stream, path, axes, packed)
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def _read(stream: BinaryIO, path: Path, axes: int | None, packed: bool) -> npt.NDArray[Any]:
    head = stream.read(4)
    if len(head) < 4:
        raise DataError(f"{path} is truncated: it has {len(head)} bytes")
    if head[:2] != b"\0\0":
        raise DataError(
            f"{path} is not an IDX file: it begins with {head!r}, not with two zero bytes"
        )
    if head[2] not in _TYPES:
        known = ", ".join(f"0x{code:02X} ({name})" for code, name in _TYPES.items())
        raise DataError(
            f"{path} holds IDX type 0x{head[2]:02X}, which the format does not have; known: {known}"
        )
    if axes not in (None, head[3]):
        kinds = {1: "labels (1 axis)", 3: "images (3 axes)"}
        expected, actual = (kinds.get(n, f"{n} axes") for n in (axes, head[3]))
        raise DataError(f"{path} holds {actual}, wanted {expected}; are two files swapped?")
    if head[3] > _MAX_AXES:
        raise DataError(f"{path} has a header for {head[3]} axes, at most {_MAX_AXES} are read")
    lengths = stream.read(4 * head[3])
    if len(lengths) < 4 * head[3]:
        raise DataError(f"{path} is truncated: its header ends after {4 + len(lengths)} bytes")
    shape = struct.unpack(f">{head[3]}I", lengths)
    stored = np.dtype(_TYPES[head[2]]).newbyteorder(">")
    count = math.prod(shape)
    size = count * stored.itemsize
    if size == 0:
        raise DataError(f"{path} holds no values: its shape is {shape}")
    # Check the size before memory is allocated.
    if packed:
        if size > max_unpacked_bytes(path):
            raise DataError(
                f"{path} has a header for {size} bytes, far more than its size; is it a gzip bomb? "
                "If not, unpack it first"
            )
    elif size > path.stat().st_size:
        raise DataError(
            f"{path} is truncated: its header states {count} values, more than its size"
        )
    data = stream.read(size)
    if len(data) < size:
        raise DataError(
            f"{path} is truncated: its header states {count} values, it holds "
            f"{len(data) // stored.itemsize}"
        )
    if stream.read(1):
        raise DataError(f"{path} holds more than the {count} values that its header states")
    values = np.frombuffer(data, dtype=stored).reshape(shape)
    return values.astype(stored.newbyteorder("="), copy=False)
