"""Frames: the accepted types of cells and columns, and the refused ones."""

from __future__ import annotations

import datetime
import json
import pickle
import re
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
        ([1, 2], r"numbers, got \[1, 2\] in row 1, column 0; .*as columns, all of one length"),
        ([], r"numbers, got \[\] in row 1, column 0; give lists as columns"),
        ((1, 2), r"numbers, got \(1, 2\) in row 1"),
        (np.ones(2), r"numbers, got array\(\[1., 1.\]\) in row 1"),
        (np.ones(1), r"numbers, got array\(\[1.\]\) in row 1"),
        (np.array([np.nan, 1]), r"numbers, got array\(\[nan,  1.\]\) in row 1"),
        ({"a": 1}, r"numbers, got \{'a': 1\} in row 1"),
        (object, "numbers, got <class 'object'> in row 1, column 0; convert it to a number"),
        (b"1", "numbers, got b'1' in row 1, column 0; decode bytes"),
        ("a", "numbers, got 'a' in row 1, column 0; (encode|make all)"),
        (1j, "numbers, got 1j in row 1, column 0; give real and imaginary parts"),
        (TIMES[0], r"numbers, got np.datetime64\('2020-01-01'\) in row 1, column 0; give times"),
        (datetime.date(2020, 1, 1), r"numbers, got datetime.date\(2020, 1, 1\) in row 1"),
        (datetime.timedelta(1), r"numbers, got datetime.timedelta\(days=1\) in row 1"),
        (10**30, "at most 64 bits, got one of 100 bits in row 1"),
        (-(10**30), "at most 64 bits, got one of 100 bits in row 1"),
        pytest.param(10**5000, "at most 64 bits, got one of 16610 bits in row 1", id="huge"),
        (None, "a missing value in row 1, column 0; drop the row or fill in a value$"),
        (np.nan, "a missing value in row 1"),
        (np.datetime64("NaT", "s"), "a missing value in row 1"),
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


def follow(call, x, *, times=3, **names):
    """Do what the errors of a call print until it succeeds; return its result."""
    for _ in range(times):
        try:
            return call(x)
        except nnxp.NnxpError as error:
            found = re.search(r"for example (?:with )?(.*)$", str(error))
            found = found or re.search(r"(?:with|give|feature is) (.*)$", str(error))
            code = found[1].partition(" or df")[0]
            x = eval(code, {"x": x, "df": x, "numpy": np, "nnxp": nnxp, **names})
    return call(x)


def inputs_of(x):
    return Dataset(x, LABELS).inputs


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ([[1.0, 2.0]] * 3, "numpy.asarray(x)"),
        (((1.0, 2.0),) * 3, "numpy.asarray(x)"),
        (memoryview(ONES), "numpy.asarray(x)"),
        (np.ma.array(ONES), "x.filled(0)"),
        (np.ma.masked_greater(ONES, 0), "x.filled(0)"),
        (Sparse(), "x.toarray()"),
        (Dataset(ONES, LABELS), "x.inputs"),
        ((row for row in ONES), "numpy.array(list(x))"),
        (map(list, ONES), "numpy.array(list(x))"),
        (iter(ONES.tolist()), "numpy.array(list(x))"),
    ],
)
def test_remedies_for_other_containers_work(given, remedy):
    with pytest.raises(nnxp.InputError, match="or a DataFrame, got .*; convert with") as caught:
        Dataset(given, LABELS)
    assert str(caught.value).endswith(f"convert with {remedy}")
    assert inputs_of(eval(remedy, {"x": given, "numpy": np})).shape == (3, 2)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_remedies_for_labels_tables_and_files_work(tmp_path):
    def labels_of(x):
        return Dataset(ONES, x).labels.tolist()

    for labels in ([0, 1, 1], (0, 1, 1), range(3), iter([0, 1, 1]), {"a": 0, "b": 1, "c": 1}):
        assert len(follow(labels_of, labels)) == 3
    assert follow(labels_of, Dataset(ONES, LABELS)) == [0, 1, 1]
    np.testing.assert_array_equal(
        follow(inputs_of, {"a": [1, 2, 3], "b": [4, 5, 6]})[:, 1], [4, 5, 6]
    )
    assert follow(inputs_of, np.matrix(ONES)).shape == (3, 2)
    assert follow(inputs_of, [{"a": 1, "b": 2}] * 3).tolist() == [[1, 2]] * 3
    assert len(follow(labels_of, TIMES.tolist())) == 3
    assert follow(nnxp.mlp([2, 2], rng=0).predict, {"a": [1, 3], "b": [2, 4]}).shape == (2, 2)
    table = tmp_path / "a.csv"
    table.write_text("a,b,label\n1,2,x\n3,4,y\n")
    for given in (table, str(table), table.open()):
        with pytest.raises(nnxp.InputError, match="read a CSV file with ") as caught:
            Dataset(given, LABELS)
        code = str(caught.value).rpartition("with ")[2]
        assert len(eval(code, {"nnxp": nnxp, "x": given})) == 2
    given.close()
    table.write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(nnxp.InputError, match="read a CSV file with ") as caught:
        nnxp.mlp([2, 2], rng=0).predict(table)
    code = str(caught.value).rpartition("with ")[2]
    assert eval(code, {"nnxp": nnxp, "x": table}).shape == (2, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "got None$"),
        (1.5, "got float$"),
        (object(), "got object$"),
        ({1, 2, 3}, "got set, which has no order; give an array in the order of the examples$"),
        (frozenset([1]), "got frozenset, which has no order"),
        ([[1, 2], [3]], "got list of different lengths or kinds; give each row the same numbers"),
        ((ONES, LABELS), "got tuple of different lengths or kinds"),
        ({"a": [1, 2], "b": [3]}, "got dict$"),
        (
            zip(ONES, LABELS, strict=True),
            "got zip, which has parts of several things; give an arra",
        ),
        ([{"a": 1}, {"a": 1, "b": 2}], "got list of different lengths"),
    ],
)
def test_what_is_no_table_is_named_without_a_remedy_that_fails(given, message):
    for call in (lambda x: Dataset(x, LABELS), nnxp.mlp([2, 2], rng=0).predict):
        with pytest.raises(nnxp.InputError, match=message):
            call(given)


def test_text_as_weights_is_named():
    with pytest.raises(nnxp.InputError, match="weights as .*, got str$"):
        Dataset(ONES, LABELS, weights="balanced")


@pytest.mark.parametrize(
    "given",
    [
        cells([1, 2], [3, 4], [5, 6]).reshape(3, 1),
        np.column_stack([cells([1, 2], [3, 4], [5, 6]), cells(1, 2, 3)]),
        np.column_stack([cells("x", "y", "x"), cells(1, 2, 3)]),
        np.column_stack([cells(1, 2, 3), cells("x", "y", "x"), cells(1, 2, 3)]),
        cells({"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 5, "b": 6}).reshape(3, 1),
        np.array([["x", "y"], ["x", "z"], ["y", "z"]]),
        np.array([["1", "2.5"], ["3", "4"], ["5", "6"]]),
        np.array([[b"1", b"2.5"], [b"3", b"4"], [b"5", b"6"]]),
        np.array([[b"x"], [b"y"], [b"x"]]),
        TIMES[:, None],
        (TIMES - TIMES[0])[:, None],
        np.array([[1j], [2], [3]]),
        np.array([1.0, 2.0, 3.0]),
    ],
)
def test_remedies_for_arrays_of_other_kinds_work(given):
    inputs = follow(inputs_of, given)
    assert len(inputs) == 3
    assert inputs.dtype.kind in "biuf"


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


# What each library has for values that are no numbers: makes a column of three rows.
NO_NUMBERS = {
    "pandas": {
        "lists": lambda pd: [[1, 2], [3, 4], [5, 6]],
        "arrays": lambda pd: [np.ones(2)] * 3,
        "dictionaries": lambda pd: [{"u": 1, "v": 2}] * 3,
        "text": lambda pd: ["x", "y", "x"],
        "categories": lambda pd: pd.Categorical(["x", "y", "x"]),
        "numerals": lambda pd: ["1", "2", "3"],
        "bytes": lambda pd: [b"x", b"y", b"x"],
        "times": lambda pd: pd.to_datetime(TIMES),
        "zones": lambda pd: pd.to_datetime(TIMES, utc=True),
        "durations": lambda pd: pd.to_timedelta([1, 2, 3]),
        "dates": lambda pd: TIMES.tolist(),
        "hours": lambda pd: [datetime.time(1), datetime.time(2), datetime.time(3)],
        "periods": lambda pd: pd.period_range("2020", periods=3),
        "complex": lambda pd: [1j, 2, 3],
        "missing": lambda pd: pd.array([1, None, 3], "Int64"),
    },
    "polars": {
        "lists": lambda pl: [[1, 2], [3, 4], [5, 6]],
        "arrays": lambda pl: pl.Series([[1, 2]] * 3, dtype=pl.Array(pl.Int64, 2)),
        "structs": lambda pl: [{"u": 1, "v": 2}] * 3,
        "text": lambda pl: ["x", "y", "x"],
        "categories": lambda pl: pl.Series(["x", "y", "x"], dtype=pl.Categorical),
        "enum": lambda pl: pl.Series(["x", "y", "x"], dtype=pl.Enum(["x", "y"])),
        "numerals": lambda pl: ["1", "2", "3"],
        "bytes": lambda pl: [b"x", b"y", b"x"],
        "times": lambda pl: [datetime.datetime(2020, 1, day) for day in (1, 2, 3)],
        "dates": lambda pl: TIMES.tolist(),
        "hours": lambda pl: [datetime.time(1), datetime.time(2), datetime.time(3)],
        "durations": lambda pl: [datetime.timedelta(day) for day in (1, 2, 3)],
        "missing": lambda pl: [1, None, 3],
    },
}


@pytest.mark.interop
@pytest.mark.parametrize(
    ("library", "kind"), [(library, kind) for library, own in NO_NUMBERS.items() for kind in own]
)
@pytest.mark.parametrize("beside", [False, True])
def test_remedies_for_columns_of_other_kinds_work(library, kind, beside):
    frames = pytest.importorskip(library)
    columns = {"a": NO_NUMBERS[library][kind](frames)} | ({"b": [1.5, 2, 3]} if beside else {})

    def inputs_of(x):
        return Dataset(x, np.zeros(len(x))).inputs

    frame = frames.DataFrame(columns)
    with pytest.raises(nnxp.InputError):
        inputs_of(frame)
    inputs = follow(inputs_of, frame, pandas=frames)
    assert len(inputs) == (2 if kind == "missing" else 3)
    assert inputs.dtype.kind in "biuf"


@pytest.mark.interop
def test_remedies_for_arrays_of_other_libraries_work():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    sparse = pytest.importorskip("scipy.sparse")
    predict = nnxp.mlp([2, 2], rng=0).predict
    for given in (
        torch.ones(3, 2),
        torch.ones(3, 2, requires_grad=True),
        torch.ones(3, 2, dtype=torch.bfloat16),
        torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True),
        torch.ones(3, 2).to_sparse(),
        jax.numpy.ones((3, 2)),
        jax.numpy.ones((3, 2), "bfloat16"),
        sparse.csr_matrix(ONES),
        sparse.csr_array(ONES),
        sparse.coo_array(ONES),
        [torch.ones(2, requires_grad=True)] * 3,
    ):
        np.testing.assert_array_equal(follow(inputs_of, given), ONES)
        assert follow(predict, given).shape == (3, 2)
        if not isinstance(given, list):
            assert follow(nnxp.device("cpu").asarray, given).shape == (3, 2)
    # These have no numbers.
    for given in (torch.ones(3, 2, device="meta"),):
        with pytest.raises(nnxp.InputError, match="got Tensor$"):
            Dataset(given, LABELS)
    with pytest.raises(nnxp.InputError, match="a DataFrame, got DynamicJaxprTracer"):
        jax.jit(lambda x: Dataset(x, LABELS).inputs)(jax.numpy.ones((3, 2)))


@pytest.mark.interop
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_remedies_for_a_row_and_for_a_column_work(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]})
    trainer = nnxp.Trainer(nnxp.mlp([2, 2], rng=0), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    trainer.fit(Dataset(frame, LABELS), epochs=1, batch_size=3, rng=0)
    network = trainer.network
    expected = network.predict(frame)
    rows = [frame.row(0), frames.Series(frame.row(0))] if library == "polars" else [frame.iloc[0]]
    for row in rows:
        np.testing.assert_allclose(follow(network.predict, row), expected[:1])
    column = frame["a"]
    assert follow(inputs_of, column).shape == (3, 1)
    trainer = nnxp.Trainer(nnxp.mlp([1, 2], rng=0), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    trainer.fit(Dataset(frame[["a"]], LABELS), epochs=1, batch_size=3, rng=0)
    for given in (column, column.to_numpy()):
        assert follow(trainer.network.predict, given).shape == (3, 2)


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


# The names of columns


class Table:
    """A DataFrame as far as nnxp and its remedies use it."""

    def __init__(self, columns):
        self.columns, self.values = list(columns), np.column_stack([*columns.values()])

    def to_numpy(self):
        return self.values

    def __getitem__(self, names):
        assert isinstance(names, list)
        return type(self)({n: self.values[:, self.columns.index(n)] for n in names})


def tables(library, count=4, rows=60):
    """Return a table of columns of different sizes, and its class."""
    make = Table if library == "own" else pytest.importorskip(library).DataFrame
    values = np.random.default_rng(0).normal(size=(rows, count)) * np.linspace(1, 4, count)
    names = [f"x{i}" for i in range(count)] if count > 4 else list("abcd")
    return make({name: values[:, i] for i, name in enumerate(names)}), names


LIBRARIES = ["own", *(pytest.param(x, marks=pytest.mark.interop) for x in ("pandas", "polars"))]


def column_trainer(count):
    return nnxp.Trainer(nnxp.mlp([count, 3], rng=0), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))


def rounding(table, network):
    """Return how much scores, probabilities and losses of a table may differ by its memory layout.

    BLAS may add the n products of a score in another order: each sum is off by n eps of the sum of
    their sizes. A loss changes by at most twice as much as a score, and is rounded itself.
    """
    W, eps = network.parameters()["W1"], np.finfo("float32").eps
    sizes = np.abs(table.to_numpy()) @ np.abs(W)
    return 2 * 2 * (W.shape[0] + 10) * eps * float(sizes.max())


def remedy_of(error, **names):
    return eval(re.search(r"give (X\[.*\])$", str(error.value))[1], names)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("count", [4, 40])
@pytest.mark.parametrize("by", ["fit", "train_epoch", "stream"])
def test_columns_in_another_order_are_refused_and_the_remedy_works(library, count, by, tmp_path):
    table, names = tables(library, count)
    labels = np.arange(60) % 3
    train, swapped = Dataset(table, labels), table[names[::-1]]
    trainer = column_trainer(count)
    network = trainer.network

    def fit(inputs):
        if by == "fit":
            trainer.fit(Dataset(inputs, labels), epochs=1, batch_size=20, rng=0)
        elif by == "stream":
            trainer.fit([(inputs, labels)] * 2, epochs=1)
        else:
            place = {"device": "cpu", "dtype": "float32"}
            trainer.train_epoch(
                nnxp.data.Batches(Dataset(inputs, labels), 20, rng=trainer.rng or 0, **place)
            )

    fit(table)
    assert train.columns == network.data_format.columns == tuple(names)
    predict, evaluate = network.predict, trainer.evaluate
    known = {"network": network, "trainer": trainer, "train": train}
    for call, prepare in (
        (predict, lambda x: x),
        (network.predict_proba, lambda x: x),
        (network.predict_classes, lambda x: x),
        (evaluate, lambda x: Dataset(x, labels)),
        (fit, lambda x: x),
    ):
        expected = None if call == fit else call(prepare(table))
        with pytest.raises(nnxp.InputError, match="columns of the training in another ord") as e:
            call(prepare(swapped))
        assert len(str(e.value)) < 250
        mended = prepare(remedy_of(e, X=swapped, **known))
        if call == fit:
            fit(mended)
            continue
        got = call(mended)
        if call == evaluate:
            assert got.accuracy == expected.accuracy
            got, expected = got.loss, expected.loss
        np.testing.assert_allclose(got, expected, rtol=0, atol=rounding(table, network))
    atol = rounding(table, network)
    np.testing.assert_allclose(predict(table), predict(table.to_numpy()), rtol=0, atol=atol)
    pytest.importorskip("safetensors")
    trainer.save(tmp_path / "a.safetensors")
    network.save(tmp_path / "b.safetensors")
    resumed = nnxp.Trainer.resume(tmp_path / "a.safetensors")
    loaded = nnxp.load_network(tmp_path / "b.safetensors")
    for own in (resumed.network, loaded, pickle.loads(pickle.dumps(network)), network.to("cpu")):
        assert own.data_format == network.data_format
        with pytest.raises(nnxp.InputError, match="in another order"):
            own.predict(swapped)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("count", [4, 40])
def test_columns_of_validation_and_of_later_batches_are_compared(library, count):
    table, names = tables(library, count)
    labels = np.arange(60) % 3
    train, swapped = Dataset(table, labels), table[names[::-1]]
    trainer = column_trainer(count)
    options = {"epochs": 1, "batch_size": 20, "rng": 0}
    with pytest.raises(nnxp.InputError, match="the validation data have the columns") as e:
        trainer.fit(train, validation=Dataset(swapped, labels), **options)
    assert trainer.optimizer.steps == 0
    mended = Dataset(remedy_of(e, X=swapped, train=train), labels)
    trainer.fit(train, validation=mended, **options)
    trainer.fit(train, validation=0.5, **options)
    own = column_trainer(count)
    with pytest.raises(nnxp.InputError, match="the inputs of batch 2 have the columns") as e:
        own.fit([(table, labels), (swapped, labels)], epochs=1)
    mended = remedy_of(e, X=swapped, trainer=own)
    own.fit([(table, labels), (mended, labels)], epochs=1)


@pytest.mark.parametrize("library", LIBRARIES)
def test_other_columns_are_named(library):
    table, _ = tables(library)
    labels = np.arange(60) % 3
    trainer = column_trainer(4)
    trainer.fit(Dataset(table, labels), epochs=1, batch_size=20, rng=0)
    values = {name: np.ones(60) for name in "abcdefghij"}
    make = type(table)
    for columns, message in (
        ("abc", "must have the columns of the training: missing 'd'$"),
        ("abce", "missing 'd', unknown 'e'$"),
        ("efghij", "missing 'a', 'b', 'c', 'd', unknown 'e', 'f', 'g', 'h', 'i' and 1 more$"),
    ):
        other = make({name: values[name] for name in columns})
        with pytest.raises(nnxp.InputError, match=message):
            trainer.network.predict(other)
        with pytest.raises(nnxp.InputError, match=f"the given data .*{message}"):
            trainer.evaluate(Dataset(other, labels))
    other = make({name: values[name] for name in "eabcd"})
    with pytest.raises(nnxp.InputError, match="unknown 'e'; give X") as e:
        trainer.network.predict(other)
    assert trainer.network.predict(remedy_of(e, X=other)).shape == (60, 3)


def test_data_sets_keep_the_columns():
    table, _ = tables("own")
    dataset = Dataset(table, np.array(["u", "v", "w"])[np.arange(60) % 3], weights=np.ones(60))
    parts = dataset.split(0.5, rng=0)
    for own in (dataset, *parts, dataset.with_classes(("w", "v", "u"))):
        assert own.columns == pickle.loads(pickle.dumps(own)).columns == tuple("abcd")
    assert Dataset(table.to_numpy(), LABELS.repeat(20)).columns is None


def test_arrays_and_tables_without_names_are_taken_as_they_come():
    table, names = tables("own")
    labels = np.arange(60) % 3
    array = table.to_numpy()
    trainer = column_trainer(4)
    trainer.fit(Dataset(array, labels), epochs=1, batch_size=20, rng=0)
    assert trainer.network.data_format.columns is None
    trainer.network.predict(table[names[::-1]])
    trainer.fit(Dataset(table, labels), epochs=1, batch_size=20)
    assert trainer.network.data_format.columns == tuple(names)
    trainer.fit(Dataset(array, labels), epochs=1, batch_size=20)  # in the order of the columns
    assert trainer.network.data_format.columns == tuple(names)
    with pytest.raises(nnxp.InputError, match="in another order"):
        trainer.network.predict(table[names[::-1]])
    trainer.network.predict(array)
    # A table without a header.
    numbered = Table(dict(enumerate(array.T)))
    trainer = column_trainer(4)
    trainer.fit(Dataset(numbered, labels), epochs=1, batch_size=20, rng=0)
    with pytest.raises(nnxp.InputError, match=r"another order; give X\[\[0, 1, 2, 3\]\]"):
        trainer.network.predict(numbered[[3, 2, 1, 0]])
    for other in (Table({i + 1: x for i, x in enumerate(array.T)}), table, array):
        trainer.network.predict(other)


@pytest.mark.parametrize(
    "names",
    [["a", "a"], [("a", 1), ("a", 2)], ["a", None], ["a", 1.5], ["a" * (1 << 18), "b"], []],
)
def test_names_that_tell_no_columns_apart_are_not_kept(names):
    table = Table({"a": np.ones(3), "b": np.ones(3)})
    table.columns = names
    assert Dataset(table, LABELS).columns is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("columns", "ab", "columns are not a list of names"),
        ("columns", ["a", 1.5], "columns are not a list of names"),
        ("columns", ["a", True], "columns are not a list of names"),
        ("columns", ["a", "a"], "columns are not different names"),
        ("size", [1.0], "cannot be used"),
        ("size", [1.0, "2"], "data format is damaged"),
        ("size", [1e4, 1.0], "data format is damaged"),
        ("size", [1.0, -1.0], "data format is damaged"),
        ("size", 3, "cannot be used"),
    ],
)
def test_damaged_columns_and_sizes_are_refused(key, value, message, tmp_path):
    pytest.importorskip("safetensors")
    from file_samples import signed
    from safetensors import safe_open

    table, _ = tables("own")
    trainer = column_trainer(4)
    trainer.fit(Dataset(table, np.arange(60) % 3), epochs=1, batch_size=20, rng=0)
    path = tmp_path / "a.safetensors"
    trainer.network.save(path)
    with safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["nnxp"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about["data"][key] = value
    with pytest.raises(nnxp.CheckpointError, match=message):
        nnxp.load_network(signed(path, about, arrays))
