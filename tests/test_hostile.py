"""Damaged and malicious files: each loads unchanged or raises a named error."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from file_samples import KINDS, checkpoint_bytes, contents, csv_bytes, signed
from hypothesis import given, settings
from hypothesis import strategies as st
from script_runner import ENVIRONMENT

import nnxp
from nnxp.data import Dataset, load_csv, read_idx
from nnxp.files import max_unpacked_bytes

safetensors = pytest.importorskip("safetensors.numpy")

CPU_SECONDS, BYTES = 5.0, 100 << 20  # of one file of some kilobytes


# What a format has no way of telling from the file as it was: other pixels, other numbers.
UNCHECKED = {"idx", "csv"}


def mutated(data, chance):
    """Return the file with something done to it."""
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        if not data:
            break
        place = chance.randrange(len(data))
        if chance.random() < 0.5:  # headers are where it hurts
            place = chance.randrange(min(len(data), 64))
        length = chance.choice([1, 1, 2, 4, 8, 30])
        match chance.randrange(8):
            case 0:
                data[place] ^= 1 << chance.randrange(8)
            case 1:
                data[place] = chance.choice([0, 1, 127, 128, 255, 34, 44, 91, 123])
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = chance.randbytes(length)
            case 4:
                del data[place:]
            case 5:
                data[place : place + length] = data[-length:]
            case 6:
                data += chance.randbytes(length)
            case 7:
                number = chance.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 10**12, 2**63])
                data[place : place + 8] = struct.pack(chance.choice("<>") + "Q", number)
    return bytes(data)


def load(kind, path):
    """Return what a file holds, or None if it is refused; in bounded CPU time and memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        return KINDS[kind][1](path)
    except (nnxp.DataError, nnxp.CheckpointError) as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return None
    except nnxp.InputError as error:  # a CSV file may hold what no data set is
        assert kind.startswith(("csv", "idx")), error
        return None
    finally:
        seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seconds < CPU_SECONDS
        assert peak < BYTES


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [250, pytest.param(2500, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_load_unchanged_or_are_refused(tmp_path, kind, count):
    path = tmp_path / f"a.{kind}"
    whole = KINDS[kind][0](path)
    path.write_bytes(whole)
    wanted = load(kind, path)
    assert wanted is not None
    chance = random.Random(2)
    refused = 0
    for _ in range(count):
        path.write_bytes(mutated(whole, chance))
        got = load(kind, path)
        refused += got is None
        assert got is None or got == wanted or kind in UNCHECKED
    assert refused > count / 3
    assert refused < count or count < 1000  # few of the changes leave a checksum right
    assert [x.name for x in tmp_path.iterdir() if not x.name.endswith(".lock")] == [path.name]


@settings(max_examples=300)
@given(st.sampled_from(list(KINDS)), st.binary(max_size=300))
def test_arbitrary_bytes_load_or_are_refused(tmp_path_factory, kind, content):
    path = tmp_path_factory.mktemp("any") / f"a.{kind}"
    path.write_bytes(content)
    load(kind, path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["Affine", "PCG64", "nnxp.layers.affine", "../a", "/etc/passwd", "float32"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)  # fmt: skip


RELU = {"type": "nnxp.ReLU", "config": {}}


def network(layers):
    """Return the metadata of a network of described layers."""
    return {
        "type": "nnxp.Sequential",
        "config": {"layers": {"tuple": [{"part": layer} for layer in layers]}},
    }


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """What a checkpoint says, and its arrays."""
    path = tmp_path_factory.mktemp("described") / "a.safetensors"
    checkpoint_bytes(path)
    text, arrays = contents(path)
    return json.loads(text), arrays


def places(value, here=()):
    """Yield the way to each part of a JSON value."""
    if here:
        yield here
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*here, key))


@pytest.mark.parametrize("count", [20, pytest.param(1500, marks=pytest.mark.long)])
def test_mutated_checkpoint_metadata_are_used_or_refused(tmp_path_factory, described, count):
    """The SHA-256 is computed again, as a forger would."""

    @settings(max_examples=count)
    @given(st.data())
    def check(data):
        about, arrays = json.loads(json.dumps(described[0])), dict(described[1])
        *way, last = data.draw(st.sampled_from(list(places(about))))
        inner = about
        for key in way:
            inner = inner[key]
        if data.draw(st.booleans()):
            inner[last] = data.draw(json_values)
        else:
            del inner[last]
        if data.draw(st.integers(0, 3)) == 0:
            name = data.draw(st.sampled_from(list(arrays)))
            x = arrays.pop(name)
            match data.draw(st.integers(0, 3)):
                case 0:
                    arrays[data.draw(st.text(max_size=9)) or "a"] = x
                case 1:
                    arrays[name] = x.astype(
                        data.draw(st.sampled_from(["b1", "u1", "i8", "f4", "f8"]))
                    )
                case 2:
                    arrays[name] = np.resize(
                        x, data.draw(st.sampled_from([(), (0,), (3,), (1, 1)]))
                    )
        path = signed(tmp_path_factory.mktemp("said") / "a.safetensors", about, arrays)
        if load("safetensors", path):
            use(nnxp.Trainer.resume(path))

    check()


def use(trainer):
    """Predict and train with the loaded network; data that do not fit raise a named error."""
    place = trainer._progress
    examples, batch_size = (place.examples, place.batch_size) if place else (40, 12)
    if examples > 1000 or trainer.rng is None:
        return
    try:
        trainer.network.predict(np.zeros((2, 6), trainer.network.dtype))
        data = Dataset(np.zeros((examples, 6), np.uint8), np.zeros(examples, int))
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # What a file says of scales and sizes may differ from this data: that is said.
            warnings.simplefilter("ignore", UserWarning)
            trainer.fit(data, epochs=1, batch_size=batch_size, rng=trainer.rng)
    except nnxp.NnxpError:
        return


def test_oversized_header_is_refused_before_allocation(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"\0\0\x08\x03" + struct.pack(">III", 10_000, 10_000, 10_000))
    assert load("idx", path) is None
    zipped = tmp_path / "a.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes() + bytes(1000)))
    assert load("idx.gz", zipped) is None
    about = {"a": {"dtype": "F64", "shape": [10**12], "data_offsets": [0, 8 * 10**12]}}
    header = json.dumps(about).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert load("safetensors", path) is None
    path.write_bytes(struct.pack("<Q", 10**12) + header)
    assert load("safetensors", path) is None


DATA = {
    "shape": [6], "images": True, "scale": 255.0, "largest": 1.0, "classes": None,
    "probabilities": "softmax", "size": None, "columns": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 10**5}, "it was saved after batch 100000 of an epoch of 4"),
        ({"batch": 0}, "it was saved after batch 0"),
        ({"batch_size": 0}, "its batch size is 0"),
        ({"batch": 2**63}, "its batch must be from 0 to .*, got 922337"),
        ({"examples": -1}, "its examples must be from 0 to .*, got -1"),
        ({"seconds": None}, "its epoch has lasted None seconds"),
        ({"seconds": 10**400}, "its epoch has lasted 1000"),
        ({"data": DATA | {"scale": 10**400}}, "its inputs are divided by 1000"),
        ({"data": DATA | {"largest": 10**400}}, "its data format is damaged"),
        ({"seconds": float("inf")}, "its metadata have Infinity, which is not JSON; use null or"),
        ({"steps": 10**400}, "its steps must be from 0 to"),
        ({"rng": None}, "another type of generator than its rng"),
        (
            {"network": network([{"type": "nnxp.ReLU", "config": {}}])},
            "its network has no parameters",
        ),
    ],
)
def test_impossible_metadata_are_refused(tmp_path, described, change, message):
    about = json.loads(json.dumps(described[0]))
    for name, x in change.items():
        (about["position"] if name in about["position"] else about)[name] = x
    with pytest.raises(nnxp.CheckpointError, match=message):
        nnxp.Trainer.resume(signed(tmp_path / "a.safetensors", about, described[1]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"epoch": np.array([1.0, 2.0])}, "its history has epoch in float64"),
        ({"train_loss": np.array([1, 0])}, "its history has train_loss in int64"),
        ({"hits": np.array([1.0, 2.0])}, "its history must have the figures epoch, train_loss, se"),
        ({"seconds": np.array([1.0])}, "its history's columns are not of one length"),
        ({"epoch": np.array([0, 1])}, "epochs are not rising positive numbers"),
        ({"epoch": np.array([2, 2])}, "epochs are not rising positive numbers"),
        ({"epoch": np.array([3, 2])}, "epochs are not rising positive numbers"),
        ({"epoch": np.array([1, 2**63 - 1])}, "epochs are not rising positive numbers"),
    ],
)
def test_impossible_history_is_refused(tmp_path, described, columns, message):
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds")
    whole = {"epoch": np.array([1, 3])} | {name: np.array([0.5, 0.25]) for name in names}
    whole["validation_loss"][1] = whole["validation_accuracy"][1] = np.nan
    metadata = described[0] | {"figures": list(whole)}

    def path(columns):
        columns = {f"history/{name}": x for name, x in columns.items()}
        return signed(tmp_path / "a.safetensors", metadata, described[1] | columns)

    one, other = nnxp.Trainer.resume(path(whole)).history
    assert (one.epoch, one.validation_loss) == (1, 0.5)
    assert list(other) == ["epoch", "train_loss", "train_accuracy", "seconds"]
    with pytest.raises(nnxp.CheckpointError, match=message):
        nnxp.Trainer.resume(path(whole | columns))
    flat = {name: np.array(1, x.dtype) for name, x in whole.items()}
    with pytest.raises(nnxp.CheckpointError, match="columns are not of one length"):
        nnxp.Trainer.resume(path(flat))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_optimizer_state_of_another_shape_or_dtype_is_refused(tmp_path, described, dtype):
    shape = (6, 5) if dtype == "float64" else (5, 6)
    arrays = described[1] | {"state/mean/W1": np.zeros(shape, dtype)}
    with pytest.raises(nnxp.CheckpointError, match="its state of W1 has another shape or dtype"):
        nnxp.Trainer.resume(signed(tmp_path / "a.safetensors", described[0], arrays))


@pytest.mark.parametrize("classes", [[], ["a", "b"], ["a", "b", "c", "d"]])
def test_classes_that_are_not_those_of_the_outputs_are_named(tmp_path, described, classes):
    about = described[0] | {"data": DATA | {"classes": classes}}
    path = signed(tmp_path / "a.safetensors", about, described[1])
    wanted = f"outputs for 3 classes, and there are {len(classes)} labels: .*; give the network"
    with pytest.raises(nnxp.InputError, match=wanted):
        nnxp.load_network(path).predict_classes(np.eye(6))


def test_file_larger_than_its_header_states_is_refused_unread(tmp_path, described):
    path = signed(tmp_path / "a.safetensors", *described)
    size = path.stat().st_size
    for other in (1 << 40, size - 1):
        os.truncate(path, other)  # of a sparse file, which takes no space
        wanted = rf"damaged \(it has {other:,} bytes, and its header states {size:,}"
        with pytest.raises(nnxp.CheckpointError, match=wanted):
            nnxp.load_network(path)


def test_file_that_is_replaced_while_it_is_read_is_the_one_that_was_opened(
    tmp_path, described, monkeypatch
):
    path = signed(tmp_path / "a.safetensors", *described)
    longer = signed(tmp_path / "b", described[0] | {"config": {"a": "x" * 99}}, described[1])
    read = json.loads

    def replace(*arguments, **options):
        if longer.exists():  # at the header, before the arrays are read
            longer.replace(path)
        return read(*arguments, **options)

    monkeypatch.setattr(json, "loads", replace)
    assert nnxp.Trainer.resume(path).config == {}
    assert nnxp.Trainer.resume(path).config == {"a": "x" * 99}


@pytest.mark.skipif(sys.platform == "win32", reason="resource: POSIX limits the address space")
def test_file_that_does_not_fit_into_memory_is_named(tmp_path):
    size = 1 << 36
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    heads = {
        "a.idx": b"\0\0\x08\x03" + struct.pack(">III", 1 << 16, 1 << 10, 1 << 10),
        "a.safetensors": struct.pack("<Q", len(header)) + header,
    }
    for name, head in heads.items():
        (tmp_path / name).write_bytes(head)
        os.truncate(tmp_path / name, len(head) + size)
    code = """
import resource, sys
import nnxp, safetensors.numpy
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
for name, read in (("a.idx", nnxp.data.read_idx), ("a.safetensors", nnxp.load_network)):
    try:
        read(f"{sys.argv[1]}/{name}")
    except (nnxp.DataError, nnxp.CheckpointError) as error:
        print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env=ENVIRONMENT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        f"{tmp_path}/a.idx cannot be read (MemoryError: )",
        f"{tmp_path}/a.safetensors cannot be read (not enough memory)",
    ]


def test_pipe_is_refused_as_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(nnxp.CheckpointError, match="pipe is not a file"):
        nnxp.load_network(tmp_path / "pipe")


def test_layer_larger_than_its_arrays_is_refused(tmp_path, described):
    about = json.loads(json.dumps(described[0]))
    first = about["network"]["config"]["layers"]["tuple"][0]["part"]
    first["config"]["inputs"] = 10**12
    with pytest.raises(
        nnxp.CheckpointError, match="Affine would have 5,0.* numbers, and 74 are left"
    ):
        nnxp.Trainer.resume(signed(tmp_path / "a.safetensors", about, described[1]))


@pytest.mark.long
def test_oversized_checkpoint_metadata_take_bounded_time_and_memory(tmp_path, described):
    """Long metadata take little time and memory, and give a short error."""
    about, arrays = described
    path = tmp_path / "a.safetensors"
    for change in (
        {"config": [[]] * 200_000},
        {"config": {"a": [[]] * 10**6}},
        {"format": "x" * 10**7},
        {"network": network([RELU] * 20_000)},
        {"format": "x" * 10**6},
        {"network": network([{"type": "nnxp.ReLU", "config": {"a\n\x1b[2J": 1}}])},
        {"optimizer": {"type": "x" * 10**5, "config": {}}},
    ):
        assert load("safetensors", signed(path, about | change, arrays)) is None
        with pytest.raises(nnxp.CheckpointError) as caught:
            nnxp.Trainer.resume(path)
        assert len(str(caught.value)) < 500 + len(str(path))
        assert str(caught.value).isprintable()
    many = {f"state/more/{i}": np.zeros(1) for i in range(8_000)}
    assert load("safetensors", signed(path, about, arrays | many)) is None
    spoiled = {"parameters/b1": np.full(5, np.nan, "float32")}
    with pytest.raises(nnxp.CheckpointError, match="its parameters/b1 holds a number that is not"):
        nnxp.Trainer.resume(signed(path, about, arrays | spoiled))
    long = {name: np.resize(x, 10_001) for name, x in arrays.items() if name[:8] == "history/"}
    long["history/epoch"] = np.arange(1, 10_002)
    with pytest.raises(nnxp.CheckpointError, match="its history has more than 10,000 records"):
        nnxp.Trainer.resume(signed(path, about, arrays | long))


@pytest.mark.parametrize("read", [read_idx, load_csv])
def test_what_is_no_regular_file_is_refused_unopened(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)  # the path of a socket is 107 bytes long at most
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path in (tmp_path / "pipe", tmp_path / "link", tmp_path / "socket", "/dev/zero"):
            with pytest.raises(nnxp.DataError, match=f"{path} is a pipe, a socket or a device; wr"):
                read(path)
    with pytest.raises(nnxp.DataError, match=f"{tmp_path} is a folder; give a file in it"):
        read(tmp_path)


@pytest.mark.parametrize("read", [read_idx, load_csv])
@pytest.mark.parametrize("path", [None, 3, b"a.csv", 1.5, ["a.csv"]])
def test_what_is_no_path_is_refused(read, path):
    with pytest.raises(nnxp.InputError, match="a path must be a string or a pathlib.Path, got"):
        read(path)


@pytest.mark.parametrize("read", [read_idx, load_csv, nnxp.data.load_mnist])
@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 5000, "~no\x1b[31mbody\n/a", "a/\udc80"])
def test_impossible_paths_are_named_without_control_characters(read, path):
    with pytest.raises((nnxp.DataError, nnxp.InputError)) as caught:
        read(path)
    assert str(caught.value).isprintable()
    shown = path.encode("unicode_escape").decode() if not path.isprintable() else path
    assert shown.removesuffix("/a") in str(caught.value)


def test_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for kind in ("csv", "idx"):
        (tmp_path / f"a.{kind}").write_bytes(KINDS[kind][0](None))
        for path in (f"~/a.{kind}", Path(f"~/a.{kind}")):
            assert KINDS[kind][1](path) == KINDS[kind][1](tmp_path / f"a.{kind}")
    (tmp_path / "~nobody.csv").write_bytes(csv_bytes())  # is no user's home folder
    assert len(load_csv("~nobody.csv")) == 9


def test_terminal_escapes_in_files_are_not_printed(tmp_path):
    path = tmp_path / "\x1b[31ma\n.csv"
    red = "\x1b[31mred"
    for text, options in [
        (f"a,{red},{red}\n1,2,3\n", {}),
        (f"label,a\n1,{red}\n", {}),
        (f"label,a\n1,2,{red}\n", {}),
        (f"label,{red}\n1,\n", {}),
        (f"label,{red}\n1,2\n", {"target": red + "der"}),
        (f'label,a\n"{red}"{red},3\n', {}),
    ]:
        path.write_text(text)
        with pytest.raises((nnxp.DataError, nnxp.InputError)) as caught:
            load_csv(path, **options)
        assert str(caught.value).isprintable()
        assert r"\x1b[31m" in str(caught.value)


@pytest.mark.usefixtures("decompressor")
@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (gzip.compress(csv_bytes()) + bytes(9), 9),  # a tape's padding
        (b"".join(gzip.compress(x + b"\n") for x in csv_bytes().split(b"\n")), 9),
        (gzip.compress(b"") * 20_000 + gzip.compress(csv_bytes()), 9),
        (gzip.compress(csv_bytes()) + b"garbage" * 9, "BadGzipFile"),
        (gzip.compress(csv_bytes()) + b"short", "BadGzipFile|EOFError"),  # isal's, if below 10
        (gzip.compress(csv_bytes())[:-9], "EOFError"),
        (gzip.compress(gzip.compress(csv_bytes())), "cannot be read as UTF-8"),
        (b"\xef\xbb\xbf" + csv_bytes(), 9),
        (csv_bytes().replace(b"\n", b"\r", 4).replace(b"\n", b"\r\n", 2), 9),
        (b"label,a\n1,\xed\xa0\x80\n", "cannot be read as UTF-8"),
    ],
    ids=[
        "padding", "members", "empty members", "garbage", "short garbage", "truncated", "twice",
        "byte order mark", "mixed line ends", "half a surrogate pair",
    ],
)  # fmt: skip
def test_unusual_csv_files_are_read_or_refused(tmp_path, data, wanted):
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    if isinstance(wanted, int):
        assert len(load_csv(path)) == wanted
        assert load("csv", path)
    else:
        with pytest.raises(nnxp.DataError, match=wanted):
            load_csv(path)


@pytest.mark.usefixtures("decompressor")
@pytest.mark.parametrize("kind", ["idx.gz", "csv.gz"])
def test_gzip_bombs_are_bounded(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("nnxp.files._ALWAYS_ALLOWED", 1 << 20)
    path = tmp_path / f"a.{kind}"
    large = 10 << 20
    if kind == "idx.gz":
        content = b"\0\0\x08\x03" + struct.pack(">III", large >> 10, 32, 32) + bytes(large)
    else:
        content = b"label,a\n" + b"0,0\n" * (large // 4)
    path.write_bytes(gzip.compress(content))
    assert max_unpacked_bytes(path) < large / 5
    tracemalloc.start()
    with pytest.raises(nnxp.DataError):
        KINDS[kind][1](path)
    assert tracemalloc.get_traced_memory()[1] < large
    tracemalloc.stop()
    # And one line without an end.
    if kind == "csv.gz":
        path.write_bytes(gzip.compress(b"label," + b"a" * large))
        with pytest.raises(nnxp.DataError, match="is it a gzip bomb"):
            load_csv(path)


def test_real_images_stay_below_the_gzip_ratio(tmp_path):
    train, _ = nnxp.data.load_digits()
    lines = io.StringIO()
    np.savetxt(lines, np.column_stack([train.labels, train.inputs]), fmt="%d", delimiter=",")
    packed = gzip.compress(lines.getvalue().encode())
    assert len(lines.getvalue()) < 15 * len(packed)
