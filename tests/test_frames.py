"""Frames: what data may be given as, cell by cell, column by column, and what is refused."""

from __future__ import annotations

import datetime
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import nnxp
from nnxp.data import Dataset

LABELS = np.array([0, 1, 1])
ONES = np.ones((3, 2))
TIMES = np.array(["2020-01-01", "2020-01-03", "2020-01-02"], "M8[D]")


def cells(*values):
    """Return an array of objects, also of lists and arrays."""
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


class Sparse:
    """A sparse matrix as far as its name goes."""

    def toarray(self):
        return ONES


# Arrays of objects


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([True, False, True], "bool", [1, 0, 1]),
        (list(np.array([True, False, True])), "bool", [1, 0, 1]),
        ([np.True_, 2, 3], "int64", [1, 2, 3]),
        ([True, 2.5, 3], "float64", [1, 2.5, 3]),
        ([1, np.int8(2), 3], "int64", [1, 2, 3]),
        ([2**63, 1, 2], "uint64", [2**63, 1, 2]),
        ([2**64 - 1, 1, 2], "uint64", [2**64 - 1, 1, 2]),
        ([-(2**63), 1, 2], "int64", [-(2**63), 1, 2]),
        ([10**30, 1.5, 2], "float64", [1e30, 1.5, 2]),
        ([Decimal("1.5"), 2, 3], "float64", [1.5, 2, 3]),
        ([Fraction(1, 2), np.float32(2), 3], "float64", [0.5, 2, 3]),
    ],
)
def test_objects_become_numbers(values, dtype, expected):
    dataset = Dataset(cells(*values)[:, None], LABELS)
    assert dataset.inputs.dtype == dtype
    assert dataset.inputs[:, 0].tolist() == expected


def test_objects_of_booleans_are_labels():
    labels = Dataset(ONES, cells(np.True_, np.False_, np.True_)).labels
    assert (labels.dtype, labels.tolist()) == (bool, [True, False, True])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], r"numbers, got \[1, 2\] in row 1, column 0; .* numpy.stack\(list\(x\)\)"),
        ([], r"numbers, got \[\] in row 1, column 0; give lists as columns"),
        ((1, 2), r"numbers, got \(1, 2\) in row 1"),
        (np.ones(2), r"numbers, got array\(\[1., 1.\]\) in row 1"),
        (np.ones(1), r"numbers, got array\(\[1.\]\) in row 1"),
        (np.array([np.nan, 1]), r"numbers, got array\(\[nan,  1.\]\) in row 1"),
        ({"a": 1}, r"numbers, got \{'a': 1\} in row 1"),
        (object, "numbers, got <class 'object'> in row 1, column 0; convert it to a number"),
        (b"1", "numbers, got b'1' in row 1, column 0; decode bytes"),
        ("a", "numbers, got 'a' in row 1, column 0; encode text"),
        (1j, "numbers, got 1j in row 1, column 0; give real and imaginary parts"),
        (TIMES[0], r"numbers, got np.datetime64\('2020-01-01'\) in row 1, column 0; give times"),
        (datetime.date(2020, 1, 1), r"numbers, got datetime.date\(2020, 1, 1\) in row 1"),
        (datetime.timedelta(1), r"numbers, got datetime.timedelta\(days=1\) in row 1"),
        (10**30, "at most 64 bits, got one of 100 bits in row 1"),
        (-(10**30), "at most 64 bits, got one of 100 bits in row 1"),
        pytest.param(10**5000, "at most 64 bits, got one of 16610 bits in row 1", id="huge"),
        (None, "a missing value in row 1, column 0; drop the row or fill in a value$"),
        (np.nan, "a missing value in row 1"),
        (np.datetime64("NaT"), "a missing value in row 1"),
        (Decimal("NaN"), "a missing value in row 1"),
        (Decimal("sNaN"), "a missing value in row 1"),
    ],
)
def test_other_cells_are_refused(value, message):
    column = cells(1, value, 2)[:, None]
    for inputs in (column, column.reshape(3, 1, 1)):
        pattern = message if inputs.ndim == 2 else message.replace("column 0", r"position \(0, 0\)")
        with pytest.raises(nnxp.InputError, match=pattern):
            Dataset(inputs, LABELS)
    pattern = message.replace(", column 0", "")
    for give in (lambda x: Dataset(ONES, x), lambda x: Dataset(ONES, LABELS, weights=x)):
        with pytest.raises(nnxp.InputError, match=pattern):
            give(column[:, 0])


@pytest.mark.parametrize(
    ("wrong", "given"),
    [
        (TIMES, TIMES),
        (cells(*TIMES.tolist()), cells(*TIMES.tolist())),
        (TIMES - TIMES[0], TIMES - TIMES[0]),
        (np.array([1 + 1j, 2, 3]), np.array([1 + 1j, 2, 3])),
        (np.array([b"a", b"b", b"c"]), np.array([b"a", b"b", b"c"])),
        (cells(b"a", b"b", b"c"), cells(b"a", b"b", b"c")),
        (cells([1, 2], [3, 4], [5, 6]), cells([1, 2], [3, 4], [5, 6])),
        (np.array([(1, 2.5)] * 3, [("a", int), ("b", float)]), None),
        (cells(10**30, 1, 2), cells(10**30, 1, 2)),
    ],
    ids=[
        "times", "dates", "durations", "complex", "bytes", "byte cells", "lists", "fields", "wide",
    ],
)  # fmt: skip
def test_remedies_for_labels_of_other_dtypes_work(wrong, given):
    with pytest.raises(nnxp.InputError, match="for example") as caught:
        Dataset(ONES, wrong)
    remedy = str(caught.value).rpartition("for example ")[2].removeprefix("with ")
    labels = eval(remedy.partition(", or text")[0], {"numpy": np, "x": wrong})
    assert len(Dataset(ONES, labels)) == 3
    with pytest.raises(nnxp.InputError):
        Dataset(wrong[:, None], LABELS)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ([[1.0, 2.0]] * 3, "numpy.asarray"),
        (np.ma.array(ONES), "x.filled(value)"),
        (Sparse(), "x.toarray()"),
        (Dataset(ONES, LABELS), "x.inputs"),
    ],
)
def test_remedies_for_other_containers_work(given, remedy):
    with pytest.raises(nnxp.InputError, match="or a DataFrame, got .*; convert with") as caught:
        Dataset(given, LABELS)
    assert str(caught.value).endswith(f"convert with {remedy}")
    x = np.asarray(given) if remedy == "numpy.asarray" else eval(remedy, {"x": given, "value": 0})
    assert Dataset(x, LABELS).inputs.shape == (3, 2)


def test_array_of_one_object_is_refused():
    with pytest.raises(nnxp.InputError, match=r"\(examples, features\), got \(\)"):
        Dataset(np.asarray(Sparse()), LABELS)


@pytest.mark.skipif(np.finfo(np.longdouble).bits == 64, reason="long double is float64")
def test_numbers_beyond_float64_are_refused():
    with pytest.raises(nnxp.InputError, match="not finite, first in example 1, column 0"):
        Dataset(np.array([[1], [np.longdouble("1e4000")]]), LABELS[:2])


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy has no StringDType")
@pytest.mark.parametrize("missing", [None, np.nan])
def test_missing_text_is_refused(missing):
    labels = np.array(["a", missing, "b"], np.dtypes.StringDType(na_object=missing))
    with pytest.raises(nnxp.InputError, match="labels have a missing value in row 1"):
        Dataset(ONES, labels)


# Real DataFrames and Series

PANDAS = {
    # name: (makes a column of three, its numbers, or the error)
    "Int64": (lambda pd: pd.array([1, 2, 3], "Int64"), [1, 2, 3]),
    "Int64, missing": (
        lambda pd: pd.array([1, None, 3], "Int64"),
        "missing value in column 'a', r",
    ),
    "Float32": (lambda pd: pd.array([1, 2, 3], "Float32"), [1, 2, 3]),
    "Float64, missing": (
        lambda pd: pd.array([1, None, 3], "Float64"),
        "missing value in .*, row 1",
    ),
    "boolean": (lambda pd: pd.array([True, False, True], "boolean"), [1, 0, 1]),
    "boolean, missing": (lambda pd: pd.array([True, None, True], "boolean"), "missing .*, row 1"),
    "float": (lambda pd: [1.5, 2, 3], [1.5, 2, 3]),
    "float, missing": (lambda pd: [1, np.nan, 3], r"missing .* column 'a', row 1; .*df.dropna\(\)"),
    "float, inf": (lambda pd: [1, np.inf, 3], "not finite in column 'a', row 1; drop or repair"),
    "sparse": (lambda pd: pd.arrays.SparseArray([0, 0, 1.5]), [0, 0, 1.5]),
    "category": (lambda pd: pd.Categorical([5, 7, 5]), [5, 7, 5]),
    "category, missing": (lambda pd: pd.Categorical([5, None, 5]), "missing .* column 'a', row 1"),
    "category, text": (
        lambda pd: pd.Categorical(["x", "y", "x"]),
        "as numbers|be numbers, got 'x'",
    ),
    "string": (lambda pd: pd.array(["x", "y", "x"], "string"), "as numbers|be numbers, got 'x'"),
    "times": (lambda pd: pd.to_datetime(TIMES), "numbers, got .*; give times as numbers"),
    "times, missing": (lambda pd: pd.to_datetime([None, *TIMES[:2]]), "missing|got datetime64"),
    "time zone": (lambda pd: pd.to_datetime(TIMES, utc=True), r"got Timestamp.* column 'a', row 0"),
    "durations": (lambda pd: pd.to_timedelta([1, 2, 3]), "numbers, got .*; give times as numbers"),
    "periods": (lambda pd: pd.period_range("2020", periods=3), "numbers, got Period"),
    "complex": (lambda pd: [1j, 2, 3], "numbers, got .*; give real and imaginary parts"),
    "arrays": (lambda pd: [np.ones(2)] * 3, r"numbers, got array\(.* in column 'a', row 0"),
    "lists": (lambda pd: [[1, 2], [3], []], r"numbers, got \[1, 2\] in column 'a', row 0"),
    "decimals": (lambda pd: [Decimal("1.5"), Decimal(2), 3], [1.5, 2, 3]),
}
POLARS = {
    "integers": (lambda pl: pl.Series([1, 2, 3]), [1, 2, 3]),
    "integers, missing": (
        lambda pl: pl.Series([1, None, 3]),
        r"missing value in column 'a', row 1; .*df.drop_nulls\(\).drop_nans\(\)",
    ),
    "floats, missing": (lambda pl: pl.Series([1.0, np.nan, 3.0]), "missing .* column 'a', row 1"),
    "boolean": (lambda pl: pl.Series([True, False, True]), [1, 0, 1]),
    "boolean, missing": (lambda pl: pl.Series([True, None, True]), "missing .* column 'a', row 1"),
    "decimals": (lambda pl: pl.Series([Decimal("1.5"), Decimal(2), Decimal(3)]), [1.5, 2, 3]),
    "decimals, missing": (
        lambda pl: pl.Series([Decimal("1.5"), None, Decimal(3)]),
        "missing .* column 'a', row 1",
    ),
    "dates": (lambda pl: pl.Series(TIMES), r"got Date in column 'a'; .*\.dt\.total_seconds\(\)"),
    "times of day": (lambda pl: pl.Series([datetime.time(1)] * 3), "got Time in column 'a'"),
    "durations": (
        lambda pl: pl.Series([datetime.timedelta(1)] * 3),
        "got Duration.* in column 'a'",
    ),
    "text": (lambda pl: pl.Series(["x", "y", "x"]), "as numbers|be numbers, got 'x'"),
    "enum": (lambda pl: pl.Series(["x", "y", "x"], dtype=pl.Enum(["x", "y"])), "numbers"),
    "category": (lambda pl: pl.Series(["x", "y", "x"], dtype=pl.Categorical), "numbers"),
    "lists": (lambda pl: pl.Series([[1, 2], [3], [4]]), "numbers, got array.* column 'a', row 0"),
    "bytes": (lambda pl: pl.Series([b"a", b"b", b"c"]), "numbers, got b'a' in column 'a', row 0"),
    "nothing": (lambda pl: pl.Series([None] * 3), "missing value in column 'a', row 0"),
}


@pytest.mark.interop
@pytest.mark.parametrize(
    ("library", "make", "expected"),
    [("pandas", *x) for x in PANDAS.values()] + [("polars", *x) for x in POLARS.values()],
    ids=[*PANDAS, *(f"polars, {name}" for name in POLARS)],
)
@pytest.mark.parametrize("beside", [False, True])
def test_columns_are_numbers_or_named(library, make, expected, beside):
    frames = pytest.importorskip(library)
    columns = {"a": make(frames)} | ({"b": [1.5, 2.5, 3.5]} if beside else {})
    frame = frames.DataFrame(columns)
    if isinstance(expected, str):
        with pytest.raises(nnxp.InputError, match=expected):
            Dataset(frame, LABELS)
        return
    assert Dataset(frame, LABELS).inputs[:, 0].tolist() == expected
    if not beside:
        for x in (frame, frame["a"]):
            assert Dataset(ONES, LABELS, weights=x).weights.tolist() == expected
            labels = Dataset(ONES, x, classes=None).labels
            shown = labels if Dataset(ONES, x).classes is None else np.unique(expected)[labels]
            assert shown.reshape(-1).tolist() == expected


@pytest.mark.interop
@pytest.mark.parametrize(
    ("library", "dtype", "message"),
    [
        ("pandas", object, "at most 64 bits, .* column 'a', row 0"),
        ("polars", "Int128", "that NumPy has, got a DataFrame of others .*of float64"),
    ],
)
def test_integers_of_more_than_64_bits_are_refused(library, dtype, message):
    frames = pytest.importorskip(library)
    column = frames.Series([10**30, 2, 3], dtype=getattr(frames, str(dtype), dtype))
    with pytest.raises(nnxp.InputError, match=message):
        Dataset(frames.DataFrame({"a": column}), LABELS)
    # Beside floating-point numbers they are such, too.
    frame = frames.DataFrame({"a": column, "b": [1.5, 2.5, 3.5]})
    assert Dataset(frame, LABELS).inputs[0].tolist() == [1e30, 1.5]


@pytest.mark.interop
@pytest.mark.parametrize("kind", ["pandas", "pandas.one", "polars", "polars.one", "Categorical"])
def test_categories_of_real_frames_are_classes_in_their_order(kind):
    frames = pytest.importorskip(kind.partition(".")[0].replace("Categorical", "pandas"))
    values, order = ["x", "y", "x"], ["z", "y", "x"]
    if kind.startswith("polars"):
        labels = frames.Series("animal", values, dtype=frames.Enum(order))
    else:
        labels = frames.Categorical(values, categories=order)
        labels = labels if kind == "Categorical" else frames.Series(labels)
    if kind.endswith("one"):
        labels = frames.DataFrame({"animal": labels})
    dataset = Dataset(ONES, labels)
    assert dataset.classes == ("z", "y", "x")
    assert dataset.labels.tolist() == [2, 1, 2]


@pytest.mark.interop
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda pd: pd.Categorical([5, None, 5]), "labels have a missing value in row 1"),
        (lambda pd: pd.Categorical(["x", None, "x"]), "labels have a missing value in row 1"),
        (lambda pd: pd.array(["x", None, "x"], "string"), "labels have a missing value in row 1"),
        (lambda pd: ["x", None, "x"], "labels have a missing value in row 1"),
        (lambda pd: pd.array([1, None, 1], "Int64"), "labels have a missing value in row 1"),
        (lambda pd: pd.cut([1, 2, 3], 2), r"got Interval.* row 0; .*to text with x.astype\(str\)"),
    ],
)
def test_wrong_series_of_labels_are_refused(make, message):
    pd = pytest.importorskip("pandas")
    labels = pd.Series(make(pd))
    with pytest.raises(nnxp.InputError, match=message):
        Dataset(ONES, labels)
    if "astype" in message:
        assert len(Dataset(ONES, labels.astype(str)).classes) == 2


@pytest.mark.interop
@pytest.mark.parametrize("name", ["columns", "cat", "dtypes", "dtype", "shape", "name", "to_numpy"])
def test_names_of_rows_and_columns_do_not_matter(name):
    pd = pytest.importorskip("pandas")
    series = pd.Series([0, 1, 1], index=[name, "b", "c"])
    dataset = Dataset(pd.DataFrame({name: [1.5, 2, 3]}), series, weights=series + 1)
    assert dataset.inputs[:, 0].tolist() == [1.5, 2, 3]
    assert dataset.labels.tolist() == [0, 1, 1]
    with pytest.raises(nnxp.InputError, match="labels have a missing value in row 2"):
        Dataset(ONES, pd.Series([0, 1, None], index=[name, "b", "c"]))
    with pytest.raises(nnxp.InputError, match=f"missing value in column '{name}', row 2"):
        Dataset(pd.DataFrame({name: [1.5, 2, None]}), LABELS)


@pytest.mark.interop
def test_column_names_that_occur_twice_are_numbered():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame([[1, 2.0], [3, np.nan]], columns=["a", "a"])
    with pytest.raises(nnxp.InputError, match=r"in column 'a' \(number 1\), row 1"):
        Dataset(frame, LABELS[:2])
    assert Dataset(frame.fillna(0), LABELS[:2]).inputs.shape == (2, 2)
    frame.columns = pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])
    with pytest.raises(nnxp.InputError, match=r"in column \('a', 2\), row 1"):
        Dataset(frame, LABELS[:2])


@pytest.mark.interop
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_empty_frames_are_refused(library):
    frames = pytest.importorskip(library)
    for frame in (frames.DataFrame(), frames.DataFrame({"a": []}), frames.DataFrame([[], [], []])):
        with pytest.raises(nnxp.InputError, match="expects examples, got inputs of .*one column"):
            Dataset(frame, LABELS)


@pytest.mark.interop
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_remedies_for_missing_values_and_times_work(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({"a": [1.0, None, 3.0], "b": [1.0, 2.0, float("nan")]})
    network = nnxp.mlp([2, 2], rng=0)
    for call in (lambda df: Dataset(df, np.zeros(len(df), int)).inputs, network.predict):
        with pytest.raises(nnxp.InputError, match="missing value .*for example with df") as caught:
            call(frame)
        remedy = str(caught.value).rpartition("with ")[2].partition(" or ")[0]
        assert len(call(eval(remedy, {"df": frame}))) == 1
    times = frames.Series(TIMES)
    with pytest.raises(nnxp.InputError, match="give times as numbers, for example") as caught:
        Dataset(ONES, times)
    remedy = str(caught.value).rpartition("for example ")[2]
    labels = Dataset(ONES, eval(remedy, {"x": times, "numpy": np})).labels
    np.testing.assert_allclose(labels / labels.max(), [0, 1, 0.5])


@pytest.mark.interop
def test_lazy_frames_are_told_the_remedy():
    pl = pytest.importorskip("polars")
    frame = pl.LazyFrame({"a": [1, 2, 3]})
    with pytest.raises(nnxp.InputError, match=r"got LazyFrame; convert with x.collect\(\)"):
        Dataset(frame, LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Dataset(frame.collect(), LABELS)) == 3


def test_integers_of_any_kind_are_kept_or_refused():
    cells = [np.int64(-1), np.uint64(2**63)]
    for column in (cells, cells[::-1], [-1, 2**63], [np.int8(-1), 2**64 - 1]):
        with pytest.raises(nnxp.InputError, match="numbers of at most 64 bits, got one of 64 bits"):
            Dataset(np.array(column, object)[:, None], np.zeros(2))
    kept = Dataset(np.array([[np.uint64(2**63)], [3]], object), np.zeros(2)).inputs
    assert kept.tolist() == [[2**63], [3]]
    for infinite in (float("inf"), Decimal("Infinity")):
        with pytest.raises(nnxp.InputError, match="at most 64 bits, got one of 1329 bits in row 1"):
            Dataset(np.array([[infinite], [10**400]], object), np.zeros(2))
