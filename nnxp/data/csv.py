"""CSV: labelled images in the layout of Kaggle, one per line, each with its label first."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from nnxp.data.dataset import Dataset
from nnxp.errors import DataError
from nnxp.files import READ_ERRORS, max_unpacked_bytes, open_binary


def load_csv(path: str | Path) -> Dataset:
    """Load images from a CSV file: a header line, then in each line a label and its pixels.

    Parameters
    ----------
    path : str or Path
        A file that is gzipped, whatever its name, is decompressed. The header's first name must be
        ``label``; labels are whole numbers from 0, pixels from 0 to 255.

    Returns
    -------
    Dataset
        Inputs are an (examples, pixels) uint8 array, labels an (examples,) int32 array.

    Raises
    ------
    DataError
        If the file cannot be read, has no such header or no examples, has lines of different
        lengths, or has other values.
    """
    path = Path(path)
    try:
        with (
            open_binary(path) as (file, packed),
            io.TextIOWrapper(file, encoding="utf-8-sig") as stream,
        ):
            lines = _lines(stream, path, packed)
            header = next(lines, "").strip().split(",")
            if header[0].strip('"').lower() != "label" or len(header) < 2:
                raise DataError(
                    f'{path} must begin with a header line "label,pixel0,…", got '
                    f'"{",".join(header)[:60]}"'
                )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "loadtxt: input contained no data")
                table = np.loadtxt(lines, delimiter=",", dtype=np.int32, ndmin=2, comments=None)
    except DataError:
        raise
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    except (ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0].partition(";")[0]
        raise DataError(
            f"{path} cannot be read as CSV ({reason}; rows count from the line after the header)"
        ) from error
    if table.size == 0:
        raise DataError(f"{path} holds no examples, only a header line")
    if table.shape[1] != len(header):
        raise DataError(
            f"{path} has {len(header)} names in its header and {table.shape[1]} values per line"
        )
    labels, pixels = table[:, 0], table[:, 1:]
    outside = np.argwhere((pixels < 0) | (pixels > 255))
    if len(outside) or labels.min() < 0:
        row = int(outside[0, 0]) if len(outside) else int(labels.argmin())
        raise DataError(
            f"{path} expects labels from 0 and pixels from 0 to 255, but line {row + 2} has others"
        )
    return Dataset(pixels.astype(np.uint8), labels.copy())


def _lines(stream: TextIO, path: Path, packed: bool) -> Iterator[str]:
    """Yield a file's lines; raise a `DataError` if a gzipped file unpacks to too much."""
    allowed = max_unpacked_bytes(path) if packed else sys.maxsize - 1
    while line := stream.readline(allowed + 1):
        allowed -= len(line)
        if allowed < 0:
            raise DataError(
                f"{path} unpacks to far more than its size; is it a gzip bomb? If not, unpack it "
                "first"
            )
        yield line
