"""Frames: DataFrames and Series of pandas or polars as NumPy arrays, without importing either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.errors import InputError


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
        If a value is missing, or a column holds both text and numbers.
    """
    if isinstance(x, np.ndarray) or not callable(getattr(x, "to_numpy", None)):
        return x
    columns = list(getattr(x, "columns", [getattr(x, "name", None)]))
    array = np.asarray(x.to_numpy())
    return np.ascontiguousarray(plain_array(array, what, columns))


def plain_array(
    array: npt.NDArray[Any], what: str, columns: Sequence[object] = ()
) -> npt.NDArray[Any]:
    """Return an array of objects as one of numbers or text; other arrays as they are.

    Parameters
    ----------
    array : array
        Of one or two axes, if it holds objects.
    what : str
        Named in the error.
    columns : sequence, optional
        The names of the columns, for the error.

    Raises
    ------
    InputError
        If a value is missing, or is neither a number nor text, or text and numbers are mixed.
    """
    if array.dtype.kind == "T":  # NumPy's text of any length
        return np.array(array.tolist(), str)
    if array.dtype.kind != "O":
        return array
    for index in np.ndindex(array.shape):
        value = array[index]
        # Missing values are not equal to themselves, or not even comparable.
        missing: Any = value is None
        if missing or not _is_true(value == value):  # noqa: PLR0124
            raise InputError(
                f"{what} have a missing value in {_place(index, columns)}; drop the row or fill in "
                "a value, for example with df.dropna() or df.fillna(…)"
            )
    is_text = [isinstance(value, str) for value in array.flat]
    if all(is_text):
        return array.astype(str)
    try:
        if any(is_text):
            raise ValueError("text")
        numbers = array.astype("float64")
    except (TypeError, ValueError):
        index = next(
            index for index in np.ndindex(array.shape) if not isinstance(array[index], (int, float))
        )
        raise InputError(
            f"{what} must be numbers, got {array[index]!r:.40} in {_place(index, columns)}; encode "
            "text as numbers, for example with pandas.get_dummies(df)"
        ) from None
    if all(isinstance(value, (int, np.integer)) for value in array.flat):
        return array.astype("int64")
    return numbers


def _is_true(x: object) -> bool:
    try:
        return bool(x)
    except TypeError:  # pandas.NA
        return False


def _place(index: tuple[int, ...], columns: Sequence[object]) -> str:
    row = f"row {index[0]}"
    if len(index) < 2:
        return row
    column = columns[index[1]] if index[1] < len(columns) else index[1]
    return f"column {column!r}, {row}"
