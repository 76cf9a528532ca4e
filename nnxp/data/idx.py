"""IDX: the file format of MNIST, gzipped or not.

A file has two zero bytes, a type byte (8: unsigned byte), a byte with the number of axes, the
length of each axis as a big-endian 32-bit number, and the values in C order.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from nnxp.errors import DataError
from nnxp.files import READ_ERRORS, max_unpacked_bytes, open_binary

_UNSIGNED_BYTE = 8


def read_idx(path: str | Path, *, axes: int) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes.

    Parameters
    ----------
    path : str or Path
        A file whose name ends in ``.gz`` is decompressed.
    axes : int
        The number of axes that the file must have: 3 for images, 1 for labels.

    Returns
    -------
    uint8 array
        Its shape is that of the file's header.

    Raises
    ------
    DataError
        If the file cannot be read, is not an IDX file of unsigned bytes with this number of axes,
        or is shorter or longer than its header states.
    """
    path = Path(path)
    try:
        with open_binary(path) as stream:
            return _read(stream, path, axes)
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def _read(stream: BinaryIO, path: Path, axes: int) -> npt.NDArray[np.uint8]:
    head = stream.read(4)
    if len(head) < 4:
        raise DataError(f"{path} is truncated: it has {len(head)} bytes")
    if head[:2] != b"\0\0":
        raise DataError(
            f"{path} is not an IDX file: it begins with {head!r}, not with two zero bytes"
        )
    if head[2] != _UNSIGNED_BYTE:
        raise DataError(f"{path} holds IDX type {head[2]}; only 8 (unsigned bytes) is read")
    if head[3] != axes:
        kinds = {1: "labels (1 axis)", 3: "images (3 axes)"}
        expected, actual = (kinds.get(n, f"{n} axes") for n in (axes, head[3]))
        raise DataError(f"{path} holds {actual}, wanted {expected}; are two files swapped?")
    lengths = stream.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DataError(f"{path} is truncated: its header ends after {4 + len(lengths)} bytes")
    shape = struct.unpack(f">{axes}I", lengths)
    size = math.prod(shape)
    if size == 0:
        raise DataError(f"{path} holds no values: its shape is {shape}")
    # Checked before memory is allocated.
    if path.suffix == ".gz":
        if size > max_unpacked_bytes(path):
            raise DataError(
                f"{path} has a header for {size} bytes, far more than its size; is it a gzip bomb? "
                "If not, unpack it first"
            )
    elif size > path.stat().st_size:
        raise DataError(f"{path} is truncated: its header states {size} values, more than its size")
    data = stream.read(size)
    if len(data) < size:
        raise DataError(
            f"{path} is truncated: its header states {size} values, it holds {len(data)}"
        )
    if stream.read(1):
        raise DataError(f"{path} holds more than the {size} values that its header states")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
