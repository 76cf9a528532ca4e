"""Frames: conversion of users' arrays, DataFrames and Series to NumPy arrays.

DataFrames and Series may be those of pandas or polars; neither library is imported.
"""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from decimal import Decimal
from numbers import Integral, Real
from os import PathLike
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from nnxp.arrays import code_for_numpy, is_numpy_subclass
from nnxp.errors import InputError

Columns: TypeAlias = tuple[str | int, ...]
"""The names of the columns of a DataFrame."""

_CHECKED = 1 << 20  # numbers that are checked at a time, to limit the memory
# The largest sum of weights, and the inverse of the smallest largest weight. It is the square root
# of the largest float32, so that products with losses up to the same size do not overflow.
_WEIGHT = 1e19
_MAX_NAMES = 1 << 18
_NUMBERS = (Real, Decimal, np.bool_)
_TIMES = (datetime.date, datetime.timedelta, np.datetime64, np.timedelta64)


class _Remedy(NamedTuple):
    """The remedy for values of a kind that cannot be used.

    Attributes
    ----------
    said : str
        The remedy in words.
    array : str
        Code for an array or a Series `x`.
    pandas, polars : str
        Code for the column NAME of a DataFrame `x`; if empty, use the code for arrays.
    """

    said: str
    array: str = ""
    pandas: str = ""
    polars: str = ""

    def __str__(self) -> str:
        return f"{self.said}, for example {self.array}" if self.array else self.said


# Keys are the kinds of NumPy dtypes, and D for dictionaries, L for lists, P for periods, t for
# times.
_REMEDIES = {
    "U": _Remedy(
        "encode text as numbers",
        "numpy.column_stack([c[:, None] == numpy.unique(c) for c in numpy.asarray(x).T])",
        "pandas.get_dummies(x)",
        "x.to_dummies(NAME)",
    ),
    "S": _Remedy(
        "decode bytes as text",
        "numpy.asarray(x, 'S').astype('U')",
        "x.assign(**{NAME: x[NAME].str.decode('utf-8')})",
        "x.with_columns(x[NAME].cast(str))",
    ),
    "M": _Remedy(
        "give times as numbers",
        "(x - x.min()).astype('m8[us]') / numpy.timedelta64(1, 'D')",  # x of objects, too
        "x.assign(**{NAME: (x[NAME] - x[NAME].min()) / numpy.timedelta64(1, 'D')})",
    ),
    "P": _Remedy(
        "give times as numbers",
        "x.astype('int64')",
        "x.assign(**{NAME: x[NAME].astype('int64')})",
    ),
    "t": _Remedy(
        "give times as numbers",
        "numpy.array([3600 * t.hour + 60 * t.minute + t.second for t in x])",
        "x.assign(**{NAME: [3600 * t.hour + 60 * t.minute + t.second for t in x[NAME]]})",
    ),
    "c": _Remedy(
        "give real and imaginary parts as columns",
        "numpy.column_stack([numpy.real(x), numpy.imag(x)])",
    ),
    "V": _Remedy(
        "give fields as columns", "numpy.column_stack([x[n] for n in x.dtype.names])"
    ),
    "L": _Remedy(
        "give lists as columns",
        "numpy.stack(list(x))",
        "numpy.column_stack([numpy.stack(x[c].to_numpy()) for c in x.columns])",
        "numpy.column_stack([numpy.stack(x[c].to_numpy()) for c in x.columns])",
    ),
    "D": _Remedy(
        "give the values of dictionaries as columns",
        "numpy.array([list(row.values()) for row in numpy.ravel(x)])",
        "x.drop(columns=NAME).join(pandas.json_normalize(x[NAME]))",
    ),
    "O": _Remedy("convert it to a number or, if it is a label, to text with x.astype(str)"),
}  # fmt: skip


def host_array(x: Any, what: str, owner: str) -> npt.NDArray[Any]:
    """Return an array, a DataFrame or a Series as a NumPy array without objects.

    Parameters
    ----------
    x : object
    what, owner : str
        Names in the error: of `x`, such as "inputs", and of the function that takes it.

    Raises
    ------
    InputError
        If `x` is another container, or `from_frame` raises.
    """
    x = from_frame(x, what)
    if not isinstance(x, np.ndarray) or is_numpy_subclass(x):
        raise InputError(
            f"{owner} expects {what} as a plain NumPy array or a DataFrame, got "
            f"{'None' if x is None else type(x).__name__}{_conversion(x, what, owner)}"
        )
    return _plain_array(x, what, None)


def _conversion(x: object, what: str, owner: str) -> str:
    """Return the end of an error: how to convert a container to an array."""
    if isinstance(x, (str, PathLike)) and what == "inputs":
        reader = "load_csv_inputs" if owner == "predict" else "load_csv"
        return f"; read a CSV file with nnxp.data.{reader}(x)"
    if isinstance(x, Mapping):
        code = "numpy.array(list(x.values())).T"
        return f"; convert its columns with {code}" if code_for_numpy([*x.values()]) else ""
    if isinstance(x, Set):
        return ", which has no order; give an array in the order of the examples"
    if hasattr(x, "read"):
        return "; read a CSV file with nnxp.data.load_csv(x.name)"
    if isinstance(x, zip):
        return ", which has parts of several things; give an array of each"
    if isinstance(x, Iterator):
        return "; convert with numpy.array(list(x))"
    own = {"collect": "x.collect()", "inputs": f"x.{what}", "to_pandas": "x.to_pandas()"}
    code = next((code for name, code in own.items() if hasattr(x, name)), "") or code_for_numpy(x)
    if not code and isinstance(x, (list, tuple)):
        code = _code_for_rows(x)
        if not code:
            return " of different lengths or kinds; give each row the same numbers of columns"
    return f"; convert with {code}" if code else ""


def _code_for_rows(rows: Sequence[Any]) -> str:
    """Return code that converts a list `x` of rows to an array; "" if there is none."""
    if rows and all(isinstance(row, Mapping) for row in rows):
        rows = [list(row.values()) for row in rows]
        return "numpy.array([list(row.values()) for row in x])" if code_for_numpy(rows) else ""
    if rows and all(hasattr(row, "tolist") for row in rows):
        made = [row.tolist() for row in rows]
        return "numpy.array([row.tolist() for row in x])" if code_for_numpy(made) else ""
    with contextlib.suppress(ValueError):
        return "numpy.asarray(x)" if np.asarray(rows).size else ""  # of objects, such as dates
    return ""


def from_frame(x: Any, what: str) -> Any:
    """Return a DataFrame or a Series as a NumPy array in C order; `x` itself if it is neither.

    Parameters
    ----------
    x : object
    what : str
        The name of `x` in the error, such as "inputs".

    Raises
    ------
    InputError
        If a value is missing or not finite, is neither a number nor text, or text and numbers are
        mixed.
    """
    if isinstance(x, np.ndarray) or not callable(getattr(x, "to_numpy", None)):
        return x
    _require_no_times(x, what)
    try:
        array = np.asarray(x.to_numpy())
    except Exception as error:
        raise InputError(
            f"{what} must be numbers or text that NumPy has, got a {type(x).__name__} of others "
            f"({error}); give an array, for example of float64"
        ) from error
    array = np.ascontiguousarray(_plain_array(array, what, x))
    if array.dtype.kind == "f" and array.size:
        require_finite(array, what, frame=x)
    return array


def _require_no_times(x: Any, what: str) -> None:
    """Raise an `InputError` for times and structs of polars.

    ``to_numpy`` of polars would convert times to numbers if another column holds numbers, and
    structs to arrays.
    """
    for column, dtype in enumerate(_dtypes(x)):
        times = hasattr(dtype, "is_temporal") and dtype.is_temporal()
        if not times and not hasattr(dtype, "to_schema"):
            continue
        name = repr(x.columns[column]) if hasattr(x, "columns") else ""
        own = f"x[{name}]" if name else "x"
        if times:
            said, code = "times as numbers", f"({own} - {own}.min()).dt.total_seconds()"
            code = f"{own}.to_physical()" if str(dtype) == "Time" else code
            code = f"x.with_columns({code})" if name else code
        else:
            said, code = "fields as columns", f"x.unnest({name})" if name else "x.struct.unnest()"
        where = f" in column {name}" if name else ""
        raise InputError(
            f"{what} must be numbers, got {dtype!s:.40}{where}; give {said}, for example {code}"
        )


def columns_of(x: Any) -> Columns | None:
    """Return the names of a DataFrame's columns; None if they do not identify the columns.

    They do not if a name occurs twice, or is neither a string nor a whole number. The result is
    also None if the names have more than `_MAX_NAMES` characters, which would not fit into a
    checkpoint.
    """
    if isinstance(x, np.ndarray) or not callable(getattr(x, "to_numpy", None)):
        return None
    given = list(getattr(x, "columns", ()))
    if not given or not all(isinstance(n, (str, Integral)) for n in given):
        return None
    names = tuple(str(n) if isinstance(n, str) else int(n) for n in given)
    known = len(set(names)) == len(names) and sum(len(str(n)) + 4 for n in names) <= _MAX_NAMES
    return names if known else None


def categories_of(x: Any) -> Any:
    """Return the categories of a categorical Series, in order; None if `x` is not categorical.

    The result is also None for polars' Categorical, whose categories have no order.
    """
    dtypes = _dtypes(x)
    found = getattr(dtypes[0], "categories", None) if len(dtypes) == 1 else None
    return found if hasattr(found, "to_numpy") else None


def require_numbers(x: npt.NDArray[Any], what: str, owner: str, text: bool = False) -> None:
    """Raise an `InputError` unless an array holds numbers; or text, if `text` is True."""
    if x.dtype.kind not in ("biufU" if text else "biuf"):
        remedy = str(_REMEDIES.get("M" if x.dtype.kind == "m" else x.dtype.kind, _REMEDIES["O"]))
        if x.dtype.kind == "V" and not x.dtype.names:  # bfloat16 and others of ml_dtypes
            remedy = 'convert with x.astype("float32")'
        with contextlib.suppress(ValueError):
            if x.dtype.kind == "U" and x.astype("float64").size:
                remedy = "make numbers of them with numpy.asarray(x, float)"
        raise InputError(
            f"{owner} expects {what} as numbers{' or text' if text else ''}, got {x.dtype}; "
            f"{remedy}"
        )


def require_finite(
    values: npt.NDArray[Any], what: str, *, first: int = 0, frame: Any = None
) -> float:
    """Return the largest magnitude; raise an `InputError` if a number is not finite.

    Parameters
    ----------
    values : (examples, …) array
        At least one number.
    what : str
        The name of the values in the error, such as "inputs".
    first : int, optional
        The index of the first example, for the error.
    frame : DataFrame or Series, optional
        The source of `values`, for the error.
    """
    size = max(1, len(values))
    if values.size > _CHECKED:
        size = max(1, _CHECKED // math.prod(values.shape[1:]))
    largest = 0.0
    for start in range(0, len(values), size):
        part = values[start : start + size]
        # Maximum and minimum are nan if a number is.
        own = float(np.maximum.reduce(part, None))
        if part.dtype.kind not in ("b", "u"):
            own = max(own, -float(np.minimum.reduce(part, None)))
        if not math.isfinite(own):
            wide = part.itemsize > 8  # long doubles beyond float64's range are finite, but rejected
            finite = np.abs(part) <= np.finfo("float64").max if wide else np.isfinite(part)
            index, *place = np.argwhere(~finite)[0].tolist()
            if frame is not None:
                if np.isnan(part[index, *place]):
                    raise _missing(what, (start + index, *place), frame)
                raise InputError(
                    f"{what} hold a number that is not finite in "
                    f"{_place((start + index, *place), frame)}; drop or repair such rows"
                )
            raise InputError(
                f"{what} hold a number that is not finite, first in example "
                f"{first + start + index}{_within(place)}; drop or repair such examples"
            )
        largest = max(largest, own)
        if part.dtype.kind == "u" and largest == np.iinfo(part.dtype).max:
            break  # no number can be larger, as in images
    return largest


def host_weights(x: Any, owner: str) -> npt.NDArray[np.float64]:
    """Return example weights as a float64 array of shape (examples,); their number is not checked.

    Parameters
    ----------
    x : (examples,) or (examples, 1) array, Series or DataFrame
    owner : str
        The name of the function that takes the weights, for the error.

    Raises
    ------
    InputError
        If `x` has another shape or dtype, a weight is negative or not finite, all weights are 0, or
        their sum would overflow or underflow in float32.
    """
    given = host_array(x, "weights", owner)
    weights = given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given
    if weights.ndim != 1 or weights.size == 0 or weights.dtype.kind not in "biuf":
        raise InputError(
            f"{owner} expects a weight for each example, as numbers of shape (examples,), got "
            f"{given.dtype} of shape {given.shape}"
        )
    values: npt.NDArray[np.float64] = weights.astype("float64")
    wrong = np.flatnonzero(~((values >= 0) & (values < np.inf)))
    if wrong.size:
        raise InputError(
            f"{owner} expects weights that are finite and at least 0, got {values[wrong[0]]:g}, "
            f"first for example {wrong[0]}"
        )
    largest = float(values.max())
    if largest == 0:
        raise InputError(f"{owner} expects weights that are not all 0")
    if not 1 / _WEIGHT <= largest <= _WEIGHT / len(values):
        raise InputError(
            f"{owner} expects weights around 1, got {values.min():g} to {largest:g}, with which "
            "float32 cannot calculate; give weights / weights.max()"
        )
    return values


def _dtypes(x: Any) -> list[Any]:
    """Return the dtypes of a DataFrame's columns, or the dtype of a Series or an array."""
    if hasattr(x, "dtypes") and len(x.shape) == 2:
        return list(x.dtypes)
    return [getattr(x, "dtype", None)]


def _plain_array(array: npt.NDArray[Any], what: str, frame: Any) -> npt.NDArray[Any]:
    """Return an array of objects as an array of numbers or text; return other arrays unchanged.

    `frame` is the DataFrame or Series that the array is from, or None.
    """
    if array.dtype.kind == "T":  # NumPy's StringDType
        array = array.astype(object)
    if array.dtype.kind != "O" or array.ndim == 0:
        return array
    for index, value in np.ndenumerate(array):
        if _is_missing(value):
            raise _missing(what, index, frame)
    kinds = {type(value) for value in array.flat}
    if all(issubclass(kind, str) for kind in kinds):
        return array.astype(str)
    if not all(issubclass(kind, _NUMBERS) for kind in kinds):
        index, value = next(x for x in np.ndenumerate(array) if not isinstance(x[1], _NUMBERS))
        raise InputError(
            f"{what} must be numbers, got {value!r:.40} in {_place(index, frame)}; "
            f"{_cell_remedy(array, index, frame)}"
        )
    if all(issubclass(kind, (bool, np.bool_)) for kind in kinds):
        return array.astype(bool)
    try:
        if not all(issubclass(kind, (Integral, np.bool_)) for kind in kinds):
            return array.astype("float64")
        # Use Python integers: NumPy integers would overflow silently.
        whole = [int(value) for value in array.flat]
        dtype = "int64" if max(whole) < 2**63 else "uint64"
        return np.array(whole, dtype).reshape(array.shape)
    except OverflowError:
        cells = ((i, x) for i, x in np.ndenumerate(array) if isinstance(x, (Integral, np.bool_)))
        index, value = max(cells, key=lambda x: abs(int(x[1])))
        raise InputError(
            f"{what} must be numbers of at most 64 bits, got one of {int(value).bit_length()} bits "
            f"in {_place(index, frame)}; give floating-point numbers, for example x.astype(float), "
            "or text, x.astype(str), if they are classes"
        ) from None


def _is_missing(value: Any) -> bool:
    """Return whether a cell is None, NaN, NaT or pandas.NA; the latter do not equal themselves."""
    if hasattr(value, "__len__"):  # text, a list, an array
        return False
    try:
        return value is None or not bool(value == value)  # noqa: PLR0124
    except (TypeError, ArithmeticError):  # pandas.NA, a signalling NaN
        return True


def _kind(value: object) -> str:
    """Return the kind of a cell that is not a number; see `_REMEDIES`."""
    kinds = (
        (str, "U"), (bytes, "S"), (_TIMES, "M"), (datetime.time, "t"), (complex, "c"),
        (Mapping, "D"), ((Sequence, np.ndarray), "L"),
    )  # fmt: skip
    known = (kind for type_, kind in kinds if isinstance(value, type_))
    return next(known, "P" if hasattr(value, "to_timestamp") else "O")


def _cell_remedy(array: npt.NDArray[Any], index: tuple[int, ...], frame: Any) -> str:
    """Return the remedy for a cell that is not a number, with code."""
    value = array[index]
    kind = _kind(value)
    said, code, pandas, polars = _REMEDIES[kind]
    if kind == "L":
        rows: Any = array  # not narrowed by NumPy's overloads
        cells = list(rows[:, *index[1:]])
        try:
            np.stack(cells)
        except ValueError:
            return f"{said}, all of one length"
    if getattr(frame, "columns", None) is not None:
        code = (polars if hasattr(frame, "drop_nulls") else pandas) or code
        code = code.replace("NAME", repr(frame.columns[index[1]]))
    elif kind == "U" and array.ndim == 1:
        return "make all of it numbers with x.astype(float), or text with x.astype(str)"
    elif kind == "U" and array.ndim == 2:
        i = index[1]
        own = f"x[:, {i}:{i + 1}] == numpy.unique(x[:, {i}])"
        code = f"numpy.column_stack([x[:, :{i}], {own}, x[:, {i + 1}:]])"
    elif kind == "L" and array.ndim == 2:
        code = "numpy.column_stack([numpy.stack(list(c)) for c in x.T])"
    return f"{said}, for example {code}" if code else said


def _missing(what: str, index: tuple[int, ...], frame: Any) -> InputError:
    remedy = "df.dropna() or df.fillna(0)"
    if hasattr(frame, "drop_nulls"):  # polars
        remedy = "df.drop_nulls().drop_nans()"
    example = "" if frame is None else f", for example with {remedy}"
    return InputError(
        f"{what} have a missing value in {_place(index, frame)}; drop the row or fill in a value"
        + example
    )


def _place(index: tuple[int, ...], frame: Any) -> str:
    """Return the position of a cell as text, with the name of its column in a DataFrame."""
    row = f"row {index[0]}"
    names = list(getattr(frame, "columns", ())) if len(index) == 2 else []
    if not names:
        return row + _within(index[1:])
    name = names[index[1]]
    number = f" (number {index[1]})" if names.count(name) > 1 else ""
    return f"column {name!r}{number}, {row}"


def _within(index: Sequence[int]) -> str:
    """Return the position of a number in its example, as the end of a text."""
    if len(index) > 1:
        return f", position {tuple(index)}"
    return f", column {index[0]}" if index else ""
