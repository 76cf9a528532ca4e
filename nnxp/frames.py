"""Frames: data as users give them, as NumPy arrays: also DataFrames and Series of pandas or polars.

Neither library is imported.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import is_numpy_subclass
from nnxp.errors import InputError

_CHECKED = 1 << 20  # numbers that are checked at a time, to take little memory
# The sum of weights at most: the root of what float32 holds, so that as much is left for losses
# that are multiplied with them. Likewise the inverse of the largest weight.
_WEIGHT = 1e19
_NUMBERS = (Real, Decimal, np.bool_)
_TIMES = (datetime.date, datetime.timedelta, np.datetime64, np.timedelta64)
_TIME_REMEDY = "give times as numbers, for example (x - x.min()) / numpy.timedelta64(1, 'D')"
# What to do with a dtype, by its kind.
_REMEDIES = {
    "U": "encode text as numbers, for example with pandas.get_dummies(df)",
    "S": "decode bytes as text, for example with numpy.asarray(x, 'S').astype('U')",
    "M": _TIME_REMEDY,
    "m": _TIME_REMEDY,
    "c": "give real and imaginary parts as columns, for example "
    "numpy.column_stack([numpy.real(x), numpy.imag(x)])",
    "V": "give fields as columns, for example numpy.column_stack([x[n] for n in x.dtype.names])",
    "L": "give lists as columns, for example numpy.stack(list(x))",
    "O": "convert it to a number or, if it is a label, to text with x.astype(str)",
}
# How other containers become arrays, by an attribute that they have.
_CONVERSIONS = {
    "filled": "x.filled(value)",
    "toarray": "x.toarray()",
    "collect": "x.collect()",
    "to_pandas": "x.to_pandas()",
    "inputs": "x.inputs",
}


def host_array(x: Any, what: str, owner: str) -> npt.NDArray[Any]:
    """Return an array, a DataFrame or a Series as a NumPy array without objects.

    Parameters
    ----------
    x : object
    what, owner : str
        Named in the error: what `x` is, such as "inputs", and who takes it.

    Raises
    ------
    InputError
        If `x` is another container, or of those of `from_frame`.
    """
    x = from_frame(x, what)
    if not isinstance(x, np.ndarray) or is_numpy_subclass(x):
        found = [code for name, code in _CONVERSIONS.items() if hasattr(x, name)]
        raise InputError(
            f"{owner} expects {what} as a plain NumPy array or a DataFrame, got "
            f"{type(x).__name__}; convert with {[*found, 'numpy.asarray'][0]}"
        )
    return _plain_array(x, what, None)


def from_frame(x: Any, what: str) -> Any:
    """Return a DataFrame or a Series as a NumPy array in C order; `x` itself if it is neither.

    Parameters
    ----------
    x : object
    what : str
        Named in the error, such as "inputs".

    Raises
    ------
    InputError
        If a value is missing or not finite, or is neither a number nor text, or text and numbers
        are mixed.
    """
    if isinstance(x, np.ndarray) or not callable(getattr(x, "to_numpy", None)):
        return x
    for column, dtype in enumerate(_dtypes(x)):
        # polars makes a number of a time where another column holds numbers.
        if hasattr(dtype, "is_temporal") and dtype.is_temporal():
            where = f" in column {x.columns[column]!r}" if hasattr(x, "columns") else ""
            raise InputError(
                f"{what} must be numbers, got {dtype}{where}; give times as numbers, for example "
                "(x - x.min()).dt.total_seconds()"
            )
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


def categories_of(x: Any) -> Any:
    """Return the categories of a categorical Series, in their order; None if it is none.

    Those of polars' Categorical, which have no order of their own, are None.
    """
    dtypes = _dtypes(x)
    found = getattr(dtypes[0], "categories", None) if len(dtypes) == 1 else None
    return found if hasattr(found, "to_numpy") else None


def require_numbers(x: npt.NDArray[Any], what: str, owner: str, text: bool = False) -> None:
    """Raise an `InputError` unless an array holds numbers, or text if that is taken as well."""
    if x.dtype.kind not in ("biufU" if text else "biuf"):
        raise InputError(
            f"{owner} expects {what} as numbers{' or text' if text else ''}, got {x.dtype}; "
            f"{_REMEDIES.get(x.dtype.kind, _REMEDIES['O'])}"
        )


def require_finite(
    values: npt.NDArray[Any], what: str, *, first: int = 0, frame: Any = None
) -> float:
    """Return the largest magnitude; raise an `InputError` if a number is not finite.

    Parameters
    ----------
    values : (examples, …) array
        Numbers, at least one.
    what : str
        Named in the error, such as "inputs".
    first : int, optional
        The number of the first example, for the error.
    frame : DataFrame or Series, optional
        Where `values` are from, for the error.
    """
    size = max(1, _CHECKED // math.prod(values.shape[1:]))
    largest = 0.0
    for start in range(0, len(values), size):
        part = values[start : start + size]
        # Both are nan if a number is.
        own = max(float(part.max()), -float(part.min()))
        if not math.isfinite(own):
            wide = part.itemsize > 8  # numbers of more than float64 may be finite
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
    return largest


def host_weights(x: Any, owner: str) -> npt.NDArray[np.float64]:
    """Return weights of examples, of shape (examples,), as float64; their number is not checked.

    Parameters
    ----------
    x : (examples,) or (examples, 1) array, Series or DataFrame
    owner : str
        Named in the error.

    Raises
    ------
    InputError
        If `x` has another shape or dtype, a weight is negative or not finite, or all are 0 or, in
        float32, as good as 0 or infinite.
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
    """Return the dtypes of a DataFrame's columns, or that of a Series or an array."""
    if hasattr(x, "dtypes") and len(x.shape) == 2:
        return list(x.dtypes)
    return [getattr(x, "dtype", None)]


def _plain_array(array: npt.NDArray[Any], what: str, frame: Any) -> npt.NDArray[Any]:
    """Return an array of objects as one of numbers or text; other arrays as they are.

    `frame` is the DataFrame or Series that it is from, or None.
    """
    if array.dtype.kind == "T":  # NumPy's text of any length
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
            f"{_REMEDIES[_kind(value)]}"
        )
    if all(issubclass(kind, (bool, np.bool_)) for kind in kinds):
        return array.astype(bool)
    try:
        if not all(issubclass(kind, (Integral, np.bool_)) for kind in kinds):
            return array.astype("float64")
        # As Python's numbers: NumPy's would wrap around in silence.
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
    """Return whether a cell is None, or not equal to itself, as NaN, NaT and pandas.NA are."""
    if hasattr(value, "__len__"):  # text, a list, an array
        return False
    try:
        return value is None or not bool(value == value)  # noqa: PLR0124
    except (TypeError, ArithmeticError):  # pandas.NA, a signalling NaN
        return True


def _kind(value: object) -> str:
    """Return the kind of dtype of a cell that is no number."""
    kinds = ((str, "U"), (bytes, "S"), (_TIMES, "M"), (complex, "c"))
    known = (kind for type_, kind in kinds if isinstance(value, type_))
    return next(known, "L" if hasattr(value, "__len__") else "O")


def _missing(what: str, index: tuple[int, ...], frame: Any) -> InputError:
    remedy = "df.dropna() or df.fillna(…)"
    if hasattr(frame, "drop_nulls"):  # polars
        remedy = "df.drop_nulls().drop_nans()"
    example = "" if frame is None else f", for example with {remedy}"
    return InputError(
        f"{what} have a missing value in {_place(index, frame)}; drop the row or fill in a value"
        + example
    )


def _place(index: tuple[int, ...], frame: Any) -> str:
    """Return the place of a cell, with the name of its column in a DataFrame."""
    row = f"row {index[0]}"
    names = list(frame.columns) if frame is not None and len(index) == 2 else []
    if not names:
        return row + _within(index[1:])
    name = names[index[1]]
    number = f" (number {index[1]})" if names.count(name) > 1 else ""
    return f"column {name!r}{number}, {row}"


def _within(index: Sequence[int]) -> str:
    """Return the place of a number within its example, as the end of a text."""
    if len(index) > 1:
        return f", position {tuple(index)}"
    return f", column {index[0]}" if index else ""
