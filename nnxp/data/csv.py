"""CSV: labelled images as Kaggle gives them, a header line and the label first."""

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
    """Load images from a CSV file: a header line, then a label and its pixels in each line.

    Parameters
    ----------
    path : str or Path
        May end in ``.gz``. The header's first name must be ``label``; pixels are whole numbers
        from 0 to 255.

    Returns
    -------
    Dataset
        Inputs (examples, pixels) uint8, and labels (examples,).

    Raises
    ------
    DataError
        If the file cannot be read, has no such header or no example, is ragged, or holds
        anything but such numbers.
    """
    path = Path(path)
    try:
        with open_binary(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig") as stream:
            lines = _lines(stream, path)
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
        what = str(error).splitlines()[0].partition(";")[0]
        raise DataError(
            f"{path} cannot be read as CSV ({what}; rows count from the header's next line)"
        ) from error
    if table.size == 0:
        raise DataError(f"{path} holds no example: only the header line is there")
    if table.shape[1] != len(header):
        raise DataError(
            f"{path} has {len(header)} names in its header and {table.shape[1]} values a line"
        )
    labels, pixels = table[:, 0], table[:, 1:]
    outside = np.argwhere((pixels < 0) | (pixels > 255))
    if len(outside) or labels.min() < 0:
        row = int(outside[0, 0]) if len(outside) else int(labels.argmin())
        raise DataError(
            f"{path} expects labels from 0 and pixels from 0 to 255, but line {row + 2} has others"
        )
    return Dataset(pixels.astype(np.uint8), labels.copy())


def _lines(stream: TextIO, path: Path) -> Iterator[str]:
    """Yield a file's lines, as long as they come to no more than it may hold."""
    left = max_unpacked_bytes(path) if path.suffix == ".gz" else sys.maxsize - 1
    while line := stream.readline(left + 1):
        left -= len(line)
        if left < 0:
            raise DataError(
                f"{path} unpacks to far more than its size; is it a gzip bomb? If not, unpack it "
                "first"
            )
        yield line
