"""CSV: tables of numbers, with a column of labels or without labels."""

from __future__ import annotations

import csv
import io
import itertools
import math
import operator
import re
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from nnxp.checks import explained
from nnxp.data.dataset import Dataset
from nnxp.errors import DataError, InputError
from nnxp.files import READ_ERRORS, expand_home, max_unpacked_bytes, open_binary

_LABELS = ("label", "target", "class")
_MISSING = ("", "na", "n/a", "nan", "-nan", "null", "?")
_PIXEL = re.compile(r"pixel[ _-]?\d+|\d+x\d+", re.IGNORECASE)
_IMAGE_COLUMNS = 64  # with at least this many columns of bytes, a row is treated as an image
_MAX_COLUMNS = 1_000_000
_MAX_LINE = 32 << 20  # characters
_BLOCK = 4 << 20  # bytes of lines that are converted at a time
_LINE_OVERHEAD = 100  # bytes of a Python string and its line number
_KEPT = 60  # bytes of memory for the shortest line until the whole file is read
_MAX_TEXT = 64 << 20  # bytes of text labels, each as wide as the longest one
_MAX_TEXT_RATIO = 40  # bytes per character; more is an error if `_MAX_TEXT` is exceeded, too


@explained('nnxp.data.load_csv("table.csv", target=-1)')
def load_csv(
    path: str | Path,
    *,
    target: str | int | None = None,
    header: bool | None = None,
    scale: float | str | None = "auto",
) -> Dataset:
    """Load labelled examples from a CSV file, one per line.

    Parameters
    ----------
    path : str or Path
        A regular file in UTF-8. A gzipped file of any name is decompressed. Fields are separated by
        commas, or, if the first line has none, by semicolons or tabs, and may be quoted. Blank
        lines are skipped.
    target : str or int, optional
        The column of the labels: its name, or its number counted from 0, or from -1 backwards. By
        default the first or the last column, if its name is ``label``, ``target`` or ``class`` in
        upper or lower case. All other columns are features, and must hold numbers.
    header : bool, optional
        Whether the first line has the names of the columns. By default it is a header in two cases:
        it has text in a column in which the second line has a number, and those of its fields that
        are numbers are whole and increase, such as ``label,0,1,2``; or its fields are all text and
        different, and one of them is ``label``, ``target`` or ``class``.
    scale : float, None or "auto", optional
        The divisor of the inputs, as in `Dataset`.

    Returns
    -------
    Dataset
        Inputs are an (examples, features) array. Its dtype is uint8, for images, if all features
        are whole numbers from 0 to 255, and there are at least 64 of them or all have names such as
        ``pixel0`` or ``1x1``; otherwise it is float64. Labels are an (examples,) array: int64 if
        all are whole numbers, float64 if all are numbers; text becomes class numbers, see
        `Dataset.classes`.

    Raises
    ------
    DataError
        If the file cannot be read or holds no examples; if a value in a column of features is
        missing, infinite or text; if a line has another number of fields than the first; if it is
        not clear which column holds the labels; or if a gzipped file decompresses to more than
        64 MiB and more than 100 times its size, where each line counts 60 additional bytes.
    InputError
        If `path` is not a path, there is no column `target`, or labels are integers of more than 32
        bits.

    See Also
    --------
    load_csv_inputs : Load a file without labels.
    """
    return Dataset(*read_table(path, target=target, header=header), scale=scale)


@explained('nnxp.data.load_csv_inputs("table.csv")')
def load_csv_inputs(path: str | Path, *, header: bool | None = None) -> npt.NDArray[Any]:
    """Load examples without labels from a CSV file, to predict their labels.

    Parameters
    ----------
    path : str or Path
        As in `load_csv`. Every column is a feature.
    header : bool, optional
        As in `load_csv`.

    Returns
    -------
    (examples, features) float64 or uint8 array
        As the inputs of `load_csv`.

    Raises
    ------
    DataError, InputError
        As in `load_csv`.
    """
    return read_table(path, labelled=False, header=header)[0]


def read_table(
    path: str | Path,
    *,
    labelled: bool = True,
    target: str | int | None = None,
    header: bool | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the inputs and labels of a CSV file; the labels are empty if not `labelled`."""
    path = expand_home(path)
    try:
        with (
            open_binary(path) as (file, packed),
            io.TextIOWrapper(file, encoding="utf-8-sig") as stream,
        ):
            lines = _lines(stream, path, max_unpacked_bytes(path) if packed else sys.maxsize - 1)
            return _read(lines, path, labelled, target, header)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as UTF-8 ({error}); save it as UTF-8") from error
    except READ_ERRORS as error:
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def _lines(stream: TextIO, path: Path, allowed: int) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line that is not blank.

    The file may have `allowed` characters. The number of lines is limited as well, so that the
    memory for short lines is at most twice as many bytes.
    """
    max_lines = 2 * allowed // _KEPT
    for number in itertools.count(1):
        line = stream.readline(min(allowed, _MAX_LINE) + 1)
        if not line:
            return
        if number > max_lines:
            raise DataError(
                f"{path} has more than {max_lines:,} lines, far more than its size; unpack it first"
            )
        allowed -= len(line)
        if allowed < 0:
            raise DataError(
                f"{path} unpacks to far more than its size; is it a gzip bomb? If not, unpack it "
                "first"
            )
        if len(line) > _MAX_LINE:
            raise DataError(
                f"line {number} of {path} has more than {_MAX_LINE:,} characters; is it a CSV file?"
            )
        if line.strip(" \n"):  # a line of tabs has missing values
            yield number, line


def _read(
    lines: Iterator[tuple[int, str]],
    path: Path,
    labelled: bool,
    target: str | int | None,
    header: bool | None,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    taken: list[tuple[int, str]] = []

    def noted() -> Iterator[tuple[int, str]]:
        for line in lines:
            taken.append(line)
            yield line

    # The first two records, and the number of the lines up to the end of each.
    separator = ","
    heads: list[list[str]] = []
    ends: list[int] = []
    for begin in itertools.islice(noted(), 2):
        if not heads:
            separator = _separator(begin[1])
        heads += [fields for _, fields in _records([begin], noted(), path, separator)]
        ends.append(len(taken))
    if not heads:
        raise DataError(f"{path} holds no examples: it is empty")
    if header is None:
        header = _is_header(*heads)
    table = _Table(path, separator, taken[0][0], heads[0], header, labelled, target)
    lines = itertools.chain(taken[ends[0] :] if header else taken, lines)
    block, size = [], 0
    for line in lines:
        block.append(line)
        size += len(line[1]) + _LINE_OVERHEAD
        if size >= _BLOCK:
            table.add(block, lines)
            block, size = [], 0
    if block:
        table.add(block, lines)
    return table.inputs(), table.labels()


def _separator(line: str) -> str:
    unquoted = re.sub('"[^"]*"', "", line)
    counts = {each: unquoted.count(each) for each in ",;\t"}
    return "," if counts[","] else max(",;\t", key=counts.__getitem__)


def _records(
    block: list[tuple[int, str]], lines: Iterator[tuple[int, str]], path: Path, separator: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield each record's line and fields; an open quote continues the last one in `lines`."""
    begin = separators = 0

    def rest() -> Iterator[tuple[int, str]]:
        while begin and (line := next(lines, None)):
            yield line

    def texts() -> Iterator[str]:
        nonlocal begin, separators
        for number, line in itertools.chain(block, rest()):
            begin = begin or number
            separators += line.count(separator)
            if separators >= _MAX_COLUMNS:
                raise DataError(
                    f"line {begin} of {path} has more than {_MAX_COLUMNS:,} fields; is it a table "
                    "of examples?"
                )
            yield line

    try:
        for fields in csv.reader(texts(), delimiter=separator, strict=True):
            yield begin, fields
            begin = separators = 0
    except csv.Error as error:
        raise DataError(
            f"line {begin} of {path} cannot be read as CSV ({error}); is a quotation mark missing?"
        ) from error


def _is_header(first: list[str], second: list[str] | tuple[()] = ()) -> bool:
    numbers = [_number(field) for field in first]
    if any(
        number is None and below is not None and not math.isnan(below)
        for number, below in zip(numbers, map(_number, second), strict=False)
    ):
        counted = [x for x in numbers if x is not None and not math.isnan(x)]
        return all(x.is_integer() for x in counted) and all(
            x < y for x, y in itertools.pairwise(counted)
        )
    names = [field.strip().lower() for field in first]
    return (
        all(number is None for number in numbers)
        and len(set(names)) == len(names)
        and not set(names).isdisjoint(_LABELS)
    )


def _number(field: str) -> float | None:
    """Return a field's number, NaN if it is missing, None if it is text."""
    try:
        number = float(field)
    except ValueError:
        return math.nan if field.strip().lower() in _MISSING else None
    # Reject 1_000 and non-ASCII digits, which `float` accepts.
    return number if field.strip().isascii() and "_" not in field else None


def _shown(field: str) -> str:
    return f"{field[:40]!r}…" if len(field) > 40 else repr(field)


class _Table:
    """The examples of a CSV file; lines are added block by block."""

    def __init__(
        self,
        path: Path,
        separator: str,
        line: int,
        head: list[str],
        header: bool,
        labelled: bool,
        target: str | int | None,
    ) -> None:
        self._path = path
        self._separator = separator
        field = f'(?:"[^"{separator}]*"|[^"{separator}]*)'  # no separator or quote in quotes
        self._plainly_quoted = re.compile(f"{field}(?:{separator}{field})*")
        self._head_line = line
        self._width = len(head)
        self._names = [name.strip() for name in head] if header else None
        self._target = self._target_column(target) if labelled else None
        if self._width == 1 and labelled:
            raise DataError(
                f"{path} has one column, wanted labels and features; read a file without labels "
                "with nnxp.data.load_csv_inputs"
            )
        features = [name for i, name in enumerate(self._names or []) if i != self._target]
        self._images = len(head) - labelled >= _IMAGE_COLUMNS or (
            header and all(_PIXEL.fullmatch(name) for name in features)
        )
        self._inputs: deque[npt.NDArray[Any]] = deque()
        self._labels: list[npt.NDArray[Any]] = []
        self._lines: list[npt.NDArray[np.uint32]] = []
        self._missing = 0
        self._first_missing = ""

    def _target_column(self, target: str | int | None) -> int:
        names, last = self._names, self._width - 1
        if isinstance(target, str) and names is not None:
            found = [i for i, name in enumerate(names) if name == target.strip()]
            found = found or [
                i for i, name in enumerate(names) if name.lower() == target.strip().lower()
            ]
            if len(found) == 1:
                return found[0]
            if found:
                raise InputError(
                    f"{self._path} has {len(found)} columns of the name {_shown(target)}; give "
                    f"target as a number, {' or '.join(f'target={i}' for i in found)}"
                )
            raise InputError(
                f"{self._path} has no column {_shown(target)}; its columns are {self._columns()}"
            )
        if isinstance(target, str):
            raise InputError(
                f"{self._path} has no header line, so target must be the number of a column, from "
                f"0 to {last}, got {_shown(target)}; or give header=True if its line "
                f"{self._head_line} holds the columns' names"
            )
        if target is not None:
            try:
                number = operator.index(target)
            except TypeError:
                number = -last - 2
            if isinstance(target, bool) or not -last - 1 <= number <= last:
                raise InputError(
                    f"target must be the name of a column of {self._path}, or its number from "
                    f"{-last - 1} to {last}, got {target!r}"
                )
            return number % self._width
        if names is None:
            raise DataError(
                f"{self._path} has no header line; say which column holds the labels, such as "
                f"target=0 or target=-1, or give header=True if its line {self._head_line} holds "
                "the columns' names; read a file without labels with nnxp.data.load_csv_inputs"
            )
        likely = [i for i in sorted({0, last}) if names[i].lower() in _LABELS]
        if len(likely) != 1:
            raise DataError(
                f"{self._path} has the columns {self._columns()}; say which holds the labels, such "
                f"as target={names[likely[0] if likely else last][:40]!r}, or read a file without "
                "labels with nnxp.data.load_csv_inputs"
            )
        return likely[0]

    def _columns(self) -> str:
        assert self._names is not None
        shown = [_shown(name) for name in self._names]
        return ", ".join(shown if len(shown) <= 12 else [*shown[:10], "…", shown[-1]])

    def _place(self, line: int, column: int) -> str:
        name = self._names[column] if self._names else ""
        what = f"column {_shown(name)}" if name else f"column {column} (counted from 0)"
        return f"line {line} of {self._path}, {what}"

    def add(self, block: list[tuple[int, str]], lines: Iterator[tuple[int, str]]) -> None:
        """Add a block of lines; if it ends in a quoted field, the field continues in `lines`."""
        numbers, labels, values = self._fast(block) or self._exact(block, lines)
        if self._missing:
            return
        if "\0" in "".join(labels):  # NumPy strips NULs at the end of strings
            assert self._target is not None
            line = next(n for n, label in zip(numbers, labels, strict=True) if "\0" in label)
            raise DataError(
                f"{self._place(line, self._target)}: the label holds a NUL; is it a CSV file?"
            )
        smallest, largest = values.min(), values.max()
        if smallest >= 0 and largest <= 255:
            small = values.astype(np.uint8)
            if (small == values).all():
                values = small
        self._inputs.append(values)
        self._lines.append(np.array(numbers, np.uint32))
        self._labels.append(np.array(labels, dtype=np.dtypes.StringDType()))

    def _fast(
        self, block: list[tuple[int, str]]
    ) -> tuple[list[int], list[str], npt.NDArray[Any]] | None:
        """Return line numbers, labels and features of a block; None if it needs `_exact`."""
        texts = [line.rstrip("\n") for _, line in block]
        for i, text in enumerate(texts):
            if '"' in text:
                if not self._plainly_quoted.fullmatch(text):
                    return None
                texts[i] = text.replace('"', "")
        separator, target = self._separator, self._target
        labels = []
        if target is not None:
            for i, text in enumerate(texts):
                fields = text.split(separator, target + 1)
                if len(fields) <= target:
                    return None
                labels.append(fields.pop(target).strip())
                texts[i] = separator.join(fields)
            if not all(label.lower() not in _MISSING for label in labels):
                return None
        if not all(text.strip(" ") for text in texts):  # loadtxt would skip such lines
            return None
        # Reading as integers is faster. The characters are checked first, since some versions of
        # NumPy read 1.7 as the integer 1.
        others = "".join(texts).encode().translate(None, b"0123456789- " + separator.encode())
        for dtype in [np.float64] if others else [np.int64, np.float64]:
            try:
                values = np.loadtxt(texts, dtype, delimiter=separator, ndmin=2, comments=None)
            except ValueError:
                continue
            shape = len(texts), self._width - (target is not None)
            if values.shape == shape and np.isfinite([values.min(), values.max()]).all():
                return [number for number, _ in block], labels, values
        return None

    def _exact(
        self, block: list[tuple[int, str]], lines: Iterator[tuple[int, str]]
    ) -> tuple[list[int], list[str], npt.NDArray[Any]]:
        """Return line numbers, labels and features of a block; raise an error for a wrong line."""
        numbers, labels, rows = [], [], []
        for line, fields in _records(block, lines, self._path, self._separator):
            if len(fields) != self._width:
                raise DataError(
                    f"line {line} of {self._path} has {len(fields)} fields, wanted {self._width} "
                    f"as in line {self._head_line}; quote fields that hold the separator "
                    f"{self._separator!r}, and repair or drop other such lines"
                )
            row = []
            for column, field in enumerate(fields):
                number = math.nan
                if column != self._target:
                    number = self._feature(line, column, field)
                    row.append(number)
                elif field.strip().lower() in _MISSING:
                    raise DataError(
                        f"{self._place(line, column)}: the label is missing; drop such lines"
                    )
                else:
                    labels.append(field.strip())
            numbers.append(line)
            rows.append(np.array(row))
        return numbers, labels, np.stack(rows)

    def _feature(self, line: int, column: int, field: str) -> float:
        number = _number(field)
        if number is None:
            name = self._names[column] if self._names else column
            hint = ""
            if self._names is None and line == self._head_line:
                hint = "; or give header=True if the line holds the columns' names"
            raise DataError(
                f"{self._place(line, column)}: wanted a number, got {_shown(field)}; encode text "
                "as numbers first, with pandas for example: "
                f"pandas.get_dummies(table, columns=[{str(name)[:40]!r}]){hint}"
            )
        if math.isinf(number):
            raise DataError(
                f"{self._place(line, column)}: wanted a finite number, got {_shown(field)}; drop "
                "or repair such lines"
            )
        if math.isnan(number):
            self._missing += 1
            self._first_missing = self._first_missing or self._place(line, column)
        return number

    def inputs(self) -> npt.NDArray[Any]:
        """Return the features, and free the blocks."""
        if self._missing:
            count = f"{self._missing:,} values are" if self._missing > 1 else "a value is"
            raise DataError(
                f"{self._first_missing}: {count} missing{' in all' * (self._missing > 1)}; drop "
                "such lines or fill them in first, with pandas for example: table.dropna() or "
                "table.fillna(0)"
            )
        if not self._inputs:
            raise DataError(f"{self._path} holds no examples, only a header line")
        images = self._images and all(block.dtype == np.uint8 for block in self._inputs)
        shape = sum(map(len, self._inputs)), self._inputs[0].shape[1]
        whole = np.empty(shape, np.uint8 if images else np.float64)
        done = 0
        while self._inputs:  # free each block once it is copied
            block = self._inputs.popleft()
            whole[done : done + len(block)] = block
            done += len(block)
        return whole

    def labels(self) -> npt.NDArray[Any]:
        """Return the labels: int64, float64 or strings; empty if there are none."""
        texts = np.concatenate(self._labels)
        if self._target is None:
            return texts.astype("U1")
        try:
            numbers = np.loadtxt(iter(texts), np.float64, comments=None, ndmin=1)
        except ValueError:
            numbers = np.empty(0)
        if numbers.shape != texts.shape:
            lengths = np.strings.str_len(texts)
            longest = int(lengths.max())
            size = 4 * longest * len(texts)
            if size > _MAX_TEXT and size > _MAX_TEXT_RATIO * int(lengths.sum()):
                line = int(np.concatenate(self._lines)[lengths.argmax()])
                raise DataError(
                    f"{self._place(line, self._target)}: the label has {longest:,} characters, far "
                    "more than others; is another column the target?"
                )
            return texts.astype(f"U{longest}")
        if not np.isfinite(numbers).all():
            first = int(np.argmin(np.isfinite(numbers)))
            line = int(np.concatenate(self._lines)[first])
            raise DataError(
                f"{self._place(line, self._target)}: wanted a finite number, got "
                f"{_shown(str(texts[first]))}; drop or repair such lines"
            )
        whole = (numbers == np.rint(numbers)).all() and np.abs(numbers).max() < 2**53
        return numbers.astype(np.int64) if whole else numbers
