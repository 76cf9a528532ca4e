"""Tables of data: CSV files of many kinds, and messages about their faults."""

from __future__ import annotations

import csv
import gzip
import io
import re
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnxp
from nnxp.data import load_csv, load_csv_inputs
from nnxp.data.csv import read_table


@pytest.fixture(params=[1, 220, 4 << 20], ids=["line by line", "some lines", "at once"])
def block(request, monkeypatch):
    """The reader's blocks: results and messages don't depend on their size."""
    monkeypatch.setattr("nnxp.data.csv._BLOCK", request.param)


@pytest.fixture
def table(tmp_path, block):
    """Return a function that writes a text and returns its path."""

    def write(text, encoding="utf-8"):
        path = tmp_path / "table.csv"
        path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
        return path

    return write


# Kaggle's layout, and what is taken for an image


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz"])
def test_kaggles_layout_is_read(tmp_path, name, packed):
    text = b"label,pixel0,pixel1\n3,0,255\n1,7,9\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if packed else text)
    dataset = load_csv(tmp_path / name)
    assert dataset.labels.tolist() == [3, 1]
    assert dataset.labels.dtype == np.int64
    assert dataset.inputs.tolist() == [[0, 255], [7, 9]]
    assert dataset.inputs.dtype == np.uint8


@pytest.mark.parametrize(
    ("names", "values", "dtype"),
    [
        (["pixel0", "pixel1"], [0, 255], "uint8"),
        (["1x1", "1x2"], [0, 255], "uint8"),
        (["Pixel_1", "pixel 2"], [0, "255.0"], "uint8"),
        (["pixel0", "pixel1"], [0, 256], "float64"),
        (["pixel0", "pixel1"], [-1, 255], "float64"),
        (["pixel0", "pixel1"], [0.5, 255], "float64"),
        (["pixel0", "age"], [0, 255], "float64"),
        (["a", "b"], [0, 1], "float64"),
        ([f"x{i}" for i in range(64)], range(64), "uint8"),
        ([f"x{i}" for i in range(63)], range(63), "float64"),
        (None, range(64), "uint8"),
        (None, range(63), "float64"),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_images_are_bytes_and_other_features_numbers(table, names, values, dtype, labelled):
    lines = [["label", *names]] if names else []
    lines += [[1, *([0] * len(values))], [0, *values], [1, *([0] * len(values))]]
    lines = [line if labelled else line[1:] for line in lines]
    path = table("\n".join(",".join(map(str, line)) for line in lines))
    inputs = load_csv(path, target=0).inputs if labelled else load_csv_inputs(path)
    assert inputs.dtype == dtype
    assert inputs[:, -1].tolist() == [0, float(values[-1]), 0]
    assert inputs.shape == (3, len(values))


# The column of labels

COLUMNS = "age,Label,height\n20,3,1.5\n30,4,1.25\n"


@pytest.mark.parametrize("target", ["Label", "label", " LABEL ", 1, -2, np.int64(1)])
def test_target_is_a_name_or_a_number(table, target):
    dataset = load_csv(table(COLUMNS), target=target)
    assert dataset.labels.tolist() == [3, 4]
    assert dataset.inputs.tolist() == [[20, 1.5], [30, 1.25]]
    dataset = load_csv(table(COLUMNS), target="height")
    assert dataset.labels.tolist() == [1.5, 1.25]
    assert dataset.labels.dtype == np.float64


@pytest.mark.parametrize("name", ["label", "Target", "CLASS", " class "])
@pytest.mark.parametrize("place", [0, 2])
def test_label_target_and_class_are_taken_if_first_or_last(table, name, place):
    names = ["a", "b", "c"]
    names[place] = name
    dataset = load_csv(table(f"{','.join(names)}\n1,2,3\n4,5,6\n"))
    assert dataset.labels.tolist() == [[1, 2, 3][place], [4, 5, 6][place]]
    assert dataset.inputs[0].tolist() == [x for i, x in enumerate([1, 2, 3]) if i != place]


def test_unclear_labels_are_asked_for_and_the_remedy_works(table):
    for text in (COLUMNS, "class,a,target\n1,2,3\n", "a,b,species\n1,2,3\n"):
        path = table(text)
        with pytest.raises(nnxp.DataError, match="has the columns 'a|has the columns 'c") as caught:
            load_csv(path)
        for name in text.split("\n")[0].split(","):
            assert repr(name) in str(caught.value)
        remedy = re.search(r"target=('\w+'), or .* nnxp.data.(load_csv_inputs)$", str(caught.value))
        assert len(load_csv(path, target=remedy[1].strip("'"))) == text.count("\n") - 1
        assert load_csv_inputs(path).shape[1] == 3
    many = ",".join(f"column{i}" for i in range(1000)) + "\n" + ",".join("1" * 1000) + "\n"
    with pytest.raises(nnxp.DataError, match="'column9', …, 'column999'; say") as caught:
        load_csv(table(many))
    assert len(str(caught.value)) < 600
    with pytest.raises(
        nnxp.DataError, match="no header line; .*target=0 or target=-1, or"
    ) as caught:
        load_csv(table("5,1\n6,2\n"))
    assert load_csv(table("5,1\n6,2\n"), target=0).labels.tolist() == [5, 6]
    assert load_csv(table("5,1\n6,2\n"), target=-1).labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        (COLUMNS, "weight", "no column 'weight'; its columns are 'age', 'Label', 'height'"),
        (COLUMNS, 3, "number from -3 to 2, got 3"),
        (COLUMNS, -4, "number from -3 to 2, got -4"),
        (COLUMNS, True, "got True"),
        (COLUMNS, 1.0, "got 1.0"),
        ("1,2\n3,4\n", "a", "no header line, so target must be the number .* 0 to 1, got 'a'"),
        ("a,b,A,a\n1,2,3,4\n", "a", "2 columns of the name 'a'; .* target=0 or target=3"),
    ],
)
def test_wrong_targets_are_refused(table, text, target, message):
    with pytest.raises(nnxp.InputError, match=message):
        load_csv(table(text), target=target)
    if text.startswith("a,b"):
        assert load_csv(table(text), target="A").labels.tolist() == [3]


def test_files_without_labels_are_read(table):
    path = table("pixel0,pixel1\n0,255\n7,9\n")
    assert load_csv_inputs(path).tolist() == [[0, 255], [7, 9]]
    assert load_csv_inputs(table("a\n1\n2.5\n")).tolist() == [[1], [2.5]]
    with pytest.raises(nnxp.DataError, match="one column, wanted labels and features; .*_inputs$"):
        load_csv(table("label\n1\n"))
    inputs, labels = read_table(table(COLUMNS), labelled=False)
    assert (inputs.shape, labels.size) == ((2, 3), 0)


# The header


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("a,b\n1,2\n", True),
        ("1,2\n3,4\n", False),
        ("label,0,1,2\n5,7,8,9\n", True),
        ("A,0,0,5\n7,0,0,5\n", False),  # a label that is text, then one that is a number
        ("A,5.5,6.5\n7,0,0\n", False),
        (",a,b\n0,1,2\n", True),  # an index without a name
        ("1,?,3\n4,5,6\n", False),  # a missing value is no name
        ("1,2,cat\n3,4,dog\n", False),
        ("sepal,petal,species\n1,2,cat\n", True),
        ("red,round,cat\nblue,square,dog\n", False),
        ("colour,shape,class\nblue,square,dog\n", True),
        ("colour,class,class\nblue,square,dog\n", False),
        ("inf,1\n2,3\n", False),
        ("cat,5\n?,6\n", False),
        ("label,pixel0\n", True),
        ("1,2\n", False),
    ],
)
def test_header_is_recognized(table, text, header):
    path = table(text)
    width, rows = text.split("\n")[0].count(",") + 1, text.count("\n")
    given = {}
    for known in (None, header):
        try:
            inputs, labels = read_table(path, target=-1, header=known)
            given[known] = inputs.shape, labels.tolist()
            assert inputs.shape == (rows - header, width - 1)
        except nnxp.DataError as error:
            given[known] = str(error)
    assert given[None] == given[header]
    if rows > 1:
        other = None
        try:
            other = read_table(path, target=-1, header=not header)[0].shape
        except nnxp.DataError as error:
            other = str(error)
        assert other != given[None][0]


def test_header_can_be_given(table):
    assert len(load_csv_inputs(table("1,2\n3,4\n"), header=True)) == 1
    with pytest.raises(nnxp.DataError, match="line 1 .*column 0 .* got 'a'.*header=True if the"):
        load_csv_inputs(table("a,b\n3,4\n"), header=False)
    assert load_csv(table("2019,2020\n3,4\n"), header=True, target="2019").labels.tolist() == [3]


# How a file is written


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_separators_line_ends_and_byte_order_marks(table, separator, ending, encoding):
    lines = ["label,größe,b", "", "3,1.5,-2", "  ", "4, 2e1 ,1", "", ""]
    text = ending.join(line.replace(",", separator) for line in lines)
    dataset = load_csv(table(text, encoding))
    assert dataset.labels.tolist() == [3, 4]
    assert dataset.inputs.tolist() == [[1.5, -2], [20, 1]]
    last = text.rstrip("\r\n ").encode(encoding)  # without a line end
    np.testing.assert_array_equal(load_csv(table(last)).inputs, dataset.inputs)


fields = st.one_of(
    st.integers(-(10**6), 10**6).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(0, 255).map(float),
)
classes = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=12
).map(lambda text: f"x{text}z")


@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(
            st.tuples(classes, st.lists(fields, min_size=n, max_size=n)), min_size=1, max_size=12
        )
    ),
    st.integers(0, 4),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.integers(1, 800),
)
def test_what_python_writes_is_read_back(tmp_path_factory, examples, place, quoting, size):
    width = len(examples[0][1])
    place = min(place, width)
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=quoting, lineterminator="\n")
    names = [f"f{i}" for i in range(width)]
    writer.writerow([*names[:place], "a, b\n", *names[place:]])
    for label, numbers in examples:
        writer.writerow([*numbers[:place], label, *numbers[place:]])
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnxp.data.csv._BLOCK", size)
        inputs, labels = read_table(path, target=place, header=True)
    np.testing.assert_array_equal(inputs, [numbers for _, numbers in examples])
    # Blank lines within a label are the one thing that is lost.
    wanted = [re.sub(r"\n( *\n)+", "\n", label) for label, _ in examples]
    assert labels.tolist() == wanted
    assert labels.dtype.kind == "U"


def test_whole_numbers_are_not_cut_from_others(table):
    """Some versions of NumPy read 1.7 as the integer 1, with a DeprecationWarning alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = load_csv(table("label,a,b\n1.0,1.7,2\n2,3,1e2\n2.0,1.0,+4\n"))
        assert dataset.inputs.tolist() == [[1.7, 2], [3, 100], [1, 4]]
        assert dataset.labels.dtype == np.int64
        assert dataset.labels.tolist() == [1, 2, 2]
        images = load_csv(table("label,pixel0\n1,1.7\n2,3\n"))
        assert images.inputs.tolist() == [[1.7], [3]]
        assert load_csv(table("label,pixel0\n1,1e2\n2,3.0\n")).inputs.tolist() == [[100], [3]]


def test_large_whole_numbers_are_read_as_such(table):
    text = "label,a\n1,99999999999999999999\n2,-9223372036854775808\n"
    assert load_csv(table(text)).inputs.tolist() == [[1e20], [-(2.0**63)]]
    assert read_table(table("label,a\n1e19,1\n2,2\n"))[1].tolist() == [1e19, 2]


# Labels


@pytest.mark.parametrize(
    ("column", "labels", "dtype"),
    [
        ("3 1 2", [3, 1, 2], "int64"),
        ("3.0 1 -2", [3, 1, -2], "int64"),
        ("3 1e2 0", [3, 100, 0], "int64"),
        ("3 1.5 0", [3, 1.5, 0], "float64"),
        ("cat dog mouse", ["cat", "dog", "mouse"], "<U5"),
        ("1 2 b", ["1", "2", "b"], "<U1"),
        ("1.0 2 b", ["1.0", "2", "b"], "<U3"),
        ("1_0 2 3", ["1_0", "2", "3"], "<U3"),
        ("NaNcy null_ inf", ["NaNcy", "null_", "inf"], "<U5"),
        ("#1 2 3", ["#1", "2", "3"], "<U2"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("quote", ["", '"'])
def test_labels_are_integers_numbers_or_text(table, column, labels, dtype, place, quote):
    lines = ["a,b,c", *(f"{quote} {each} {quote}" for each in column.split())]
    for i, label in enumerate(lines[1:], 1):
        values = ["7", "8.5"]
        values.insert(place, label)
        lines[i] = ",".join(values)
    path = table("\n".join(lines))
    for target in (place, place - 3):
        inputs, got = read_table(path, target=target, header=True)
        assert got.tolist() == labels
        assert got.dtype == dtype
        assert inputs.tolist() == [[7, 8.5]] * 3


# What is wrong with a file

MISSING = ["", " ", "NA", "NaN", "nan", "null", "NULL", "?", " NA ", "N/A", '""', '" nan "', "-nan"]


@pytest.mark.parametrize("value", MISSING)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_missing_values_are_named_by_line_and_column(table, value, separator, ending):
    lines = ["", "label,age,height", "cat,1,2", "", "dog,3,4", f"cat,5,{value}", f"dog,{value},1"]
    text = ending.join(lines).replace(",", separator)
    message = r"line 6 of .*table.csv, column 'height': 2 values are missing in all; .*dropna\(\)"
    with pytest.raises(nnxp.DataError, match=message):
        read_table(table(text))
    text = ending.join(lines[2:-1]).replace(",", separator)
    with pytest.raises(nnxp.DataError, match=r"line 4 .*, column 2 .*: a value is missing; drop"):
        read_table(table(text), target=0)


@pytest.mark.parametrize("value", MISSING)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_missing_labels_are_named_by_line(table, value, place):
    lines = [["a", "b", "c"], ["1", "2", "3"], ["4", "5", "6"], ["7", "8", "9"]]
    lines[3][place] = value
    text = "\n\n".join(map(",".join, lines))
    message = f"line 7 of .*, column '{'abc'[place]}': the label is missing"
    with pytest.raises(nnxp.DataError, match=message):
        load_csv(table(text), target=place)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no examples: it is empty"),
        ("\n\n \n", "holds no examples: it is empty"),
        ("label,pixel0\n", "holds no examples, only a header line"),
        (
            "label,a\n1,2\n3,red\n4,blue\n",
            "line 3 .* column 'a': wanted a number, got 'red'; .*get_d",
        ),
        ("label,a\n1,2\n3,1_000\n", "line 3 .* got '1_000'"),
        ("label,a\n1,2\n3,१\n", "line 3 .* got '१'"),
        ("label,a\n1,2\n3,0x10\n", "line 3 .* got '0x10'"),
        ('label,a\n1,2\n\n3,"1,5"\n', "line 4 .* got '1,5'"),
        ("label,a\n1,2\n3,inf\n", "line 3 .* column 'a': wanted a finite number, got 'inf'"),
        ("label,a\n1,2\n3,-Infinity\n", "line 3 .* finite number, got '-Infinity'"),
        ("label,a\n1,2\n3,1e999\n", "line 3 .* finite number, got '1e999'"),
        ("label,a\n1,2\ninf,1\n", "line 3 .* column 'label': wanted a finite number, got 'inf'"),
        ("label,a\n1,2\n\n3,4,5\n", "line 4 .* has 3 fields, wanted 2 as in line 1"),
        ("label,a\n1,2,3\n", "line 2 .* has 3 fields, wanted 2"),
        ('label,a,b\n1,2,3\n"4,5",6\n', "line 3 .* has 2 fields, wanted 3"),
        ("label,a,b\n1,2,3\n4,5\n", "line 3 .* has 2 fields, wanted 3"),
        ("label,a,b\n1,2,3\n4\n", "line 3 .* has 1 fields?, wanted 3"),
        ('label,a\n1,2\n\n"3,4\n5,6\n', "line 4 .* cannot be read as CSV .*quotation mark"),
        ('label,a\n1,2\n"3"4,4\n', "line 3 .* cannot be read as CSV"),
        ('a,label\n1,"x\ny"\n2,"u\n\nv"\nred,w\n', "line 7 .* got 'red'"),
        ('a,label\n1,"x\ny"\n2,"u\n\nv"\n,w\n', "line 7 .* a value is missing"),
        ("label,a\n1,\x1b[31mred\n", r"line 2 .* got '\\x1b\[31mred'"),
        (f"label,a\n1,{'x' * 5000}\n", "line 2 .* got 'xxx.*x'…;"),
        (f"label,a\n1,{'9' * 5000}\n", "line 2 .* finite number, got '9999.*9'…;"),
        (f"label,\x1b[31m{'y' * 5000}\n1,z\n", r"column '\\x1b\[31my.*y'…"),
        (f'label,a\n"{"x" * 200_000}",1\n', "line 2 .* cannot be read as CSV .*field larger"),
        ("label,a\n1,2\n3,\x00\n", r"line 3 .* got '\\x00'"),
        ("a,label\n1,x\n2,x\x00\n", "line 3 .* column 'label': the label holds a NUL; is it a"),
    ],
)
def test_wrong_tables_are_refused(table, text, message):
    path = table(text)
    header = True if "label" in text else None
    with pytest.raises(nnxp.DataError, match=message) as caught:
        read_table(path, target="label" if "label" in text else None, header=header)
    assert "table.csv" in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500 + 2 * len(str(path))


def test_other_encodings_and_missing_files_are_refused(table, tmp_path):
    for data in ("label,größe\n1,2\n".encode("latin-1"), "label,a\n1,2\n".encode("utf-16")):
        with pytest.raises(nnxp.DataError, match="table.csv cannot be read as UTF-8 .*; save it"):
            load_csv(table(data))
    with pytest.raises(nnxp.DataError, match=r"none.csv cannot be read \(FileNotFoundError"):
        load_csv(tmp_path / "none.csv")
    assert len(load_csv(table("label,größe\n1,2\n".encode("latin-1").decode("latin-1")))) == 1


# Bounds


@pytest.mark.long
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"," * 30_000_000, "more than 1,000,000 fields"),
        (b"," * 80_000_000, "line 1 .* more than 33,554,432 characters"),
        (b"label,a\n1," + "😀".encode() + b"x" * 60_000_000, "line 2 .* more than 33,554,432"),
        (b"label,a\n1,2\n" + b"," * 30_000_000, "line 3 .* more than 1,000,000 fields"),
        (b"label,a\n" + b'"\n",,,,,,,,,,' * 101_000, "line 2 .* more than 1,000,000 fields"),
        (
            b"a,label\n" + b"1,ab\n" * 200_000 + b"1," + b"c" * 130_000,
            "column 'label': .* 130,000",
        ),
    ],
    ids=[
        "one line", "bomb", "four bytes a character", "after others", "quoted line breaks",
        "one long label",
    ],
)  # fmt: skip
def test_small_files_take_little_memory(tmp_path, content, message):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(content))
    del content
    tracemalloc.start()
    try:
        with pytest.raises(nnxp.DataError, match=message):
            load_csv(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 << 20


def test_long_lines_are_bounded_in_plain_files(tmp_path, monkeypatch):
    monkeypatch.setattr("nnxp.data.csv._MAX_LINE", 1000)
    (tmp_path / "a.csv").write_text("label,a\n1," + " " * 1000 + "2\n")
    with pytest.raises(nnxp.DataError, match="line 2 .* more than 1,000 characters"):
        load_csv(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "content",
    [
        b"label,a\n" + b"0,0\n" * 20_000,
        b"label,a\n" + b"0,\n" * 20_000,
        b"label,a\n" + b"text,0\n" * 20_000,
        b"label,a\n" + b'"0""",0\n' * 20_000,
        b"label,a\n1,2\n" + b"\r" * 20_000,
        b"\n" * 20_000,
        b"label,a\n1,2\n" + b" \r\n" * 20_000,
        (b"1," * 3_332 + b"1\n") * 60,
    ],
    ids=["short", "missing", "text", "quotes", "empty", "only empty", "blank", "wide"],
)
@pytest.mark.usefixtures("decompressor")
def test_small_files_of_many_lines_take_little_memory_and_time(tmp_path, content, monkeypatch):
    monkeypatch.setattr("nnxp.files._ALWAYS_ALLOWED", 1 << 18)
    monkeypatch.setattr("nnxp.data.csv._BLOCK", 1 << 16)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(content))
    tracemalloc.start()
    try:
        with pytest.raises(nnxp.DataError, match="is it a gzip bomb|more than its size; unpack"):
            read_table(path, target=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (1 << 20) + (1 << 19)  # isal reads 512 KiB ahead


def test_many_short_lines_are_read_if_the_file_is_not_small(tmp_path, monkeypatch):
    monkeypatch.setattr("nnxp.files._ALWAYS_ALLOWED", 1 << 20)
    (tmp_path / "a.csv").write_text("label,a\n" + "0,0\n" * 60_000)
    assert len(read_table(tmp_path / "a.csv")[1]) == 60_000
    digits = np.random.default_rng(0).integers(0, 10, (60_000, 2))
    text = "label,a\n" + "\n".join(f"{a},{b}" for a, b in digits.tolist())
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert (read_table(tmp_path / "a.csv.gz")[0][:, 0] == digits[:, 1]).all()


def test_text_labels_of_usual_lengths_are_not_bounded(tmp_path):
    names = ["cat", "dog", "hippopotamus", "yellow-bellied sea snake, " * 3]
    rows = 300_000  # 94 MB of text labels
    (tmp_path / "a.csv").write_text("a;label\n" + "".join(f"1;{n}\n" for n in names) * (rows // 4))
    labels = read_table(tmp_path / "a.csv")[1]
    assert labels.nbytes > 64 << 20
    assert set(labels[:4]) == {name.strip() for name in names}


@pytest.mark.long
def test_many_short_lines_are_read_and_far_too_many_are_refused(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"label,a\n" + b"0,1\n1,2\n" * 600_000))
    assert len(nnxp.data.load_csv(path)) == 1_200_000
    path.write_bytes(gzip.compress(b"label,a\n" + b"0,1\n" * 2_400_000))
    with pytest.raises(nnxp.DataError, match="has more than 2,236,962 lines, far more than its"):
        nnxp.data.load_csv(path)
