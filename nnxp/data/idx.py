"""IDX: the file format of MNIST, gzipped or not.

Two zero bytes, a type byte (8: unsigned byte), the number of axes, each axis' length as a
big-endian 32-bit number, then the values in C order.
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
        A file whose name ends in ``.gz`` is gunzipped.
    axes : int
        The number of axes it must have: 3 for images, 1 for labels.

    Raises
    ------
    DataError
        If the file cannot be read, is no such file, is truncated or holds more than it says.
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
        raise DataError(f"{path} is no IDX file: it begins with {head!r}, not with two zero bytes")
    if head[2] != _UNSIGNED_BYTE:
        raise DataError(f"{path} holds IDX type {head[2]}; only 8, unsigned bytes, is read")
    if head[3] != axes:
        kinds = {1: "labels (1 axis)", 3: "images (3 axes)"}
        wanted, got = (kinds.get(n, f"{n} axes") for n in (axes, head[3]))
        raise DataError(f"{path} holds {got}, wanted {wanted}; are two files swapped?")
    lengths = stream.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DataError(f"{path} is truncated: its header ends after {4 + len(lengths)} bytes")
    shape = struct.unpack(f">{axes}I", lengths)
    size = math.prod(shape)
    if size == 0:
        raise DataError(f"{path} holds no values: its shape is {shape}")
    # Refused before any memory is taken for it.
    if path.suffix == ".gz":
        if size > max_unpacked_bytes(path):
            raise DataError(
                f"{path} says that it unpacks to {size} bytes, far more than its size; is it a "
                "gzip bomb? If not, unpack it first"
            )
    elif size > path.stat().st_size:
        raise DataError(f"{path} is truncated: its header says {size} values, it cannot hold them")
    data = stream.read(size)
    if len(data) < size:
        raise DataError(f"{path} is truncated: its header says {size} values, it holds {len(data)}")
    if stream.read(1):
        raise DataError(f"{path} holds more than the {size} values that its header says")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
