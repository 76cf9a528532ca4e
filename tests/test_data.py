"""Data: data sets, batches, readers of IDX and MNIST files."""

from __future__ import annotations

import gzip
import re
import struct
import zipfile
from fractions import Fraction

import numpy as np
import pytest
from file_samples import IDX_TYPES, idx_bytes
from hypothesis import given
from hypothesis import strategies as st

import nnxp
from nnxp.data import Batches, Dataset, mnist, one_hot, read_idx

# Dataset


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        ([[1.0]], np.zeros(1, int), "inputs as a plain NumPy array or a DataFrame, got list"),
        (np.ones(3), np.zeros(3, int), r"inputs of shape \(examples, features\), got \(3,\)"),
        (np.ones((3, 2)), np.zeros((3, 1, 1)), r"labels of shape .* got \(3, 1, 1\)"),
        (np.ones((3, 2)), np.zeros(4, int), "got 3 inputs and 4 labels"),
        (np.ones((0, 2)), np.zeros(0, int), r"expects examples, got inputs of shape \(0, 2\)"),
        (np.ones((3, 0)), np.zeros(3, int), r"expects examples, got inputs of shape \(3, 0\)"),
        (np.ones((3, 2), complex), np.zeros(3, int), "inputs as numbers, got complex128"),
        (np.array([["a"], ["b"]]), np.zeros(2, int), "inputs as numbers, got <U1; encode text"),
        (np.ones((3, 2)), np.ones(3, complex), "labels as numbers or text, got complex128"),
        (np.array([[1.0], [np.nan], [2.0]]), np.zeros(3, int), "not finite, first in example 1"),
        (np.array([[1.0], [2.0], [np.inf]]), np.zeros(3, int), "not finite, first in example 2"),
        (np.array([[1.0, np.nan]]), np.zeros(1, int), "first in example 0, column 1; drop"),
        (np.full((1, 2, 2), np.inf), np.zeros(1, int), r"first in example 0, position \(0, 0\); d"),
        (np.ones((2, 2)), np.array([0.5, np.nan]), "labels hold .* example 1"),
        (np.ones((2, 2)), np.array([0, 2**31]), "labels of at most 32 bits"),
        (np.ma.array(np.ones((2, 2))), np.zeros(2, int), "or a DataFrame, got MaskedArray"),
    ],
)
def test_wrong_data_sets_are_refused(inputs, labels, message):
    with pytest.raises(nnxp.InputError, match=message):
        Dataset(inputs, labels)


CLASSES = np.arange(100) % 5


@pytest.mark.parametrize(
    "labels",
    [
        CLASSES,
        CLASSES[:, None],
        one_hot(CLASSES, 5),
        one_hot(CLASSES, 5).astype("float32"),
        np.array(list("abcde"))[CLASSES],
        CLASSES.astype(np.uint8),
    ],
    ids=["numbers", "column", "one-hot", "one-hot floats", "text", "bytes"],
)
@pytest.mark.parametrize("share", [0.2, 20, np.float64(0.2), np.int64(20)])
def test_split_gives_each_class_the_same_share(labels, share):
    dataset = Dataset(np.arange(100.0)[:, None], labels)
    train, test = dataset.split(share, rng=0)
    assert (len(train), len(test)) == (80, 20)
    for part, count in ((train, 16), (test, 4)):
        rows = part.inputs[:, 0].astype(int)
        assert np.bincount(CLASSES[rows]).tolist() == [count] * 5
        np.testing.assert_array_equal(part.labels, dataset.labels[rows])
        assert (part.scale, part.classes) == (dataset.scale, dataset.classes)
    assert sorted([*train.inputs[:, 0], *test.inputs[:, 0]]) == list(range(100))
    other = dataset.split(share, rng=1)[1]
    assert not (other.inputs == test.inputs).all()
    np.testing.assert_array_equal(
        dataset.split(share, rng=np.random.default_rng(0))[1].inputs, test.inputs
    )


@pytest.mark.parametrize("labels", [np.linspace(0, 1, 100), np.ones((100, 2)), np.ones((100, 3))])
def test_split_of_targets_draws_from_all_examples(labels):
    test = Dataset(np.arange(100.0)[:, None], labels).split(0.3, rng=0)[1]
    assert len(test) == 30
    assert 20 < test.inputs.mean() < 80


@pytest.mark.parametrize(
    "share",
    [
        0, 1.0, 0.0, 100, 101, -1, True, None, "a", np.nan, 0.001, 1.5, "0.2", [0.2], (20,), {},
        np.array(0.2), np.array([20]), np.True_, 0.2 + 0j, -0.2, np.inf, 10**400, np.float32("nan"),
        Fraction(1, 5), b"20", float,
    ],
)  # fmt: skip
def test_split_that_leaves_nothing_is_refused(share):
    with pytest.raises(nnxp.InputError, match="a share between 0 and 1, or a number of examples"):
        Dataset(np.ones((100, 1)), CLASSES).split(share, rng=0)


def test_one_hot_names_wrong_labels():
    for wrong in ([0, 3], [-1, 0]):
        with pytest.raises(nnxp.InputError, match="labels from 0 to 2, got"):
            one_hot(np.array(wrong), 3)
    with pytest.raises(nnxp.InputError, match=r"got float64 of shape \(1,\)"):
        one_hot(np.array([0.5]), 3)


# Batches


@given(st.integers(1, 50), st.integers(1, 60), st.booleans(), st.integers(0, 9))
def test_each_epoch_holds_every_example_once(examples, batch_size, shuffled, seed):
    inputs = np.arange(examples * 2.0).reshape(examples, 2)
    batches = Batches(
        Dataset(inputs, np.arange(examples)),
        batch_size,
        device=nnxp.device("cpu"),
        dtype="float64",
        rng=np.random.default_rng(seed) if shuffled else None,
    )
    for _ in range(2):
        epoch = list(batches)
        sizes = [len(labels) for _, labels in epoch]
        assert len(epoch) == len(batches)
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
        assert 1 <= sizes[-1] <= batch_size
        order = np.concatenate([labels for _, labels in epoch])
        assert sorted(order) == list(range(examples))
        np.testing.assert_array_equal(np.concatenate([x for x, _ in epoch]), inputs[order])
        if not shuffled:
            assert order.tolist() == list(range(examples))


def test_order_changes_each_epoch_and_depends_on_the_seed():
    dataset = Dataset(np.ones((100, 1)), np.arange(100))

    def orders(seed):
        batches = Batches(
            dataset, 7, device=nnxp.device("cpu"), dtype="float32", rng=np.random.default_rng(seed)
        )
        return [[int(i) for _, labels in batches for i in labels] for _ in range(2)]

    first, second = orders(0)
    assert first != second
    assert orders(0) == [first, second]
    assert orders(1)[0] != first


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_images_are_scaled_on_the_device_and_stay_bytes_in_memory(backend, dtype):
    images = np.array([[0, 51, 255]], dtype=np.uint8)
    images.flags.writeable = False
    batches = Batches(Dataset(images, np.array([7])), 1, device=backend.device, dtype=dtype)
    ((x, labels),) = batches
    assert backend.device.holds(x)
    assert backend.device.holds(labels)
    expected = np.array([[0.0, 0.2, 1.0]], dtype)
    np.testing.assert_allclose(backend.host(x), expected, rtol=np.finfo(dtype).eps)
    assert x.dtype == getattr(backend.device.xp, dtype)
    assert labels.dtype == backend.device.xp.int32


def test_each_array_is_transferred_once(monkeypatch, small):
    crossed = []
    asarray = nnxp.Device.asarray
    monkeypatch.setattr(
        nnxp.Device, "asarray", lambda *a, **k: crossed.append(len(a[1])) or asarray(*a, **k)
    )
    list(Batches(small, 16, device=nnxp.device("cpu"), dtype="float32"))
    assert crossed == [16, 16, 16, 16, 8, 8]


def test_images_are_transferred_as_bytes(monkeypatch):
    crossed = []
    asarray = nnxp.Device.asarray
    monkeypatch.setattr(
        nnxp.Device, "asarray", lambda *a, **k: crossed.append(a[1].dtype) or asarray(*a, **k)
    )
    dataset = Dataset(np.zeros((3, 2), np.uint8), np.zeros(3, int))
    list(Batches(dataset, 3, device="cpu", dtype="float32"))
    assert crossed[0] == np.uint8


@pytest.mark.parametrize("size", [0, -1, 2.5, "10", True])
def test_batch_size_is_checked(small, size):
    with pytest.raises(nnxp.InputError, match="batch_size must be a whole number of at least 1"):
        Batches(small, size, device=nnxp.device("cpu"), dtype="float32")


def test_batches_check_their_arguments(small):
    for options, message in [
        ({"rng": -1}, "rng must be a seed such as 0, or a numpy.random.Generator, got -1"),
        ({"dtype": "f32"}, "unknown dtype 'f32'; did you mean 'float32'"),
        ({"device": "cup"}, "unknown device 'cup'"),
    ]:
        with pytest.raises(nnxp.InputError, match=message):
            Batches(small, 4, **({"device": "cpu", "dtype": "float32"} | options))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "float32"])
def test_the_largest_magnitude_is_of_all_examples(dtype):
    most = 255 if dtype == "float32" else np.iinfo(dtype).max
    inputs = np.zeros((9, 1 << 18), dtype)  # checked in parts
    for row, number in [(2, most // 3), (8, most // 2), (5, most)]:
        inputs[row, 7] = number
        assert Dataset(inputs, np.zeros(9)).largest == number


# IDX


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.sampled_from(list(IDX_TYPES)))
def test_idx_files_are_read_back(tmp_path_factory, shape, dtype):
    values = np.random.default_rng(0).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    values = np.nan_to_num(values.view(dtype)[..., 0])  # every bit pattern
    folder = tmp_path_factory.mktemp("idx")
    plain, packed = idx_bytes(values), gzip.compress(idx_bytes(values))
    for name, data in [("a", plain), ("b.gz", plain), ("c", packed), ("d.gz", packed)]:
        (folder / name).write_bytes(data)
        for axes in (len(shape), None):
            got = read_idx(folder / name, axes)
            np.testing.assert_array_equal(got, values)
            assert got.dtype == dtype
            assert got.dtype.isnative


GOOD = idx_bytes(np.ones((2, 3, 3), np.uint8))
WRONG_IDX = {
    "empty": (b"", "truncated: it has 0 bytes"),
    "text": (b"<html>not found</html>", "not an IDX file: it begins with b'<htm'"),
    "type": (b"\0\0\x0a\3" + GOOD[4:], r"IDX type 0x0A, .* known: 0x08 \(uint8\), 0x09"),
    "swapped": (
        idx_bytes(np.ones(4, np.uint8)),
        r"holds labels \(1 axis\), wanted images \(3 axes\)",
    ),
    "axes": (idx_bytes(np.ones((2, 2), np.uint8)), "holds 2 axes, wanted images"),
    "header": (GOOD[:9], "truncated: its header ends after 9 bytes"),
    "truncated": (GOOD[:-1], "its header states 18 values"),
    "truncated numbers": (idx_bytes(np.ones((2, 3, 3), "f8"))[:-1], "header states 18 values"),
    "longer": (GOOD + b"\0", "more than the 18 values"),
    "no values": (idx_bytes(np.ones((0, 3, 3), np.uint8)), r"no values: its shape is \(0, 3, 3\)"),
    "far too many": (
        struct.pack(">BBBB3I", 0, 0, 8, 3, *[2**32 - 1] * 3),
        "header states|has a header for",
    ),
}


@pytest.mark.usefixtures("decompressor")
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(("data", "message"), list(WRONG_IDX.values()), ids=list(WRONG_IDX))
def test_wrong_idx_files_are_refused(tmp_path, data, message, packed):
    path = tmp_path / ("images.gz" if packed else "images")
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(nnxp.DataError, match=f"images.*{message}"):
        read_idx(path, axes=3)


def test_zip_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("images", GOOD)
    for read in (read_idx, nnxp.data.load_csv):
        with pytest.raises(nnxp.DataError, match="a.zip is a ZIP archive; unpack it"):
            read(tmp_path / "a.zip")


def test_idx_files_of_too_many_axes_are_refused(tmp_path):
    for axes in (64, 65, 255):
        (tmp_path / "a").write_bytes(struct.pack(f">4B{axes}I", 0, 0, 8, axes, *[1] * axes) + b"\7")
        if axes == 64:
            assert read_idx(tmp_path / "a").shape == (1,) * 64
        else:
            with pytest.raises(nnxp.DataError, match=f"for {axes} axes, at most 64"):
                read_idx(tmp_path / "a")


@pytest.mark.usefixtures("decompressor")
@pytest.mark.parametrize(
    "data",
    [gzip.compress(GOOD, mtime=0)[:-9], b"\x1f\x8b\x08" + b"\xff" * 40],
    ids=["truncated", "damaged"],
)
def test_corrupt_gzip_is_refused(tmp_path, data):
    (tmp_path / "images.gz").write_bytes(data)
    with pytest.raises(nnxp.DataError, match=r"images.gz cannot be read \("):
        read_idx(tmp_path / "images.gz", axes=3)


@pytest.mark.usefixtures("decompressor")
def test_damaged_gzip_is_refused_or_harmless(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "images.gz"
    images = rng.integers(0, 256, (20, 3, 3), np.uint8)
    images[5:] = 0  # so that there is something to compress
    good = np.frombuffer(gzip.compress(idx_bytes(images), mtime=0), np.uint8)
    refused = 0
    for place in range(2, len(good)):  # the first two bytes say that it is gzip
        for value in rng.integers(1, 256, 3):
            damaged = good.copy()
            damaged[place] ^= value
            path.write_bytes(damaged.tobytes())
            try:
                np.testing.assert_array_equal(read_idx(path, axes=3), images)
            except nnxp.DataError:
                refused += 1
    # Only the time, the flags and the system in the header, 8 bytes, can differ.
    assert refused >= 3 * (len(good) - 10)


# MNIST's layout


QMNIST = {
    "train-images-idx3-ubyte": "qmnist-train-images-idx3-ubyte",
    "train-labels-idx1-ubyte": "qmnist-train-labels-idx2-int",
    "t10k-images-idx3-ubyte": "qmnist-test-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte": "qmnist-test-labels-idx2-int",
}
LAYOUTS = {
    "torchvision's root": lambda name: f"MNIST/raw/{name}",
    "torchvision's folder": lambda name: f"raw/{name}",
    "a dot": lambda name: name.replace("-idx", ".idx"),
    "a folder a file": lambda name: f"{name}/{name}",
    "a folder a file, dots": lambda name: "{0}/{0}".format(name.replace("-idx", ".idx")),
    "a folder with a dot": lambda name: f"{name.replace('-idx', '.idx')}/{name}",
    "QMNIST": QMNIST.get,
    "EMNIST": lambda name: "emnist-letters-" + name.replace("t10k", "test"),
    "EMNIST of torchvision": lambda name: "raw/emnist-digits-" + name.replace("t10k", "test"),
}


def lay_out(folder, source, layout, ending=""):
    """Write the files of `source` in another layout, with what is particular to its data set."""
    for path in source.iterdir():
        values = read_idx(path)
        if "EMNIST" in layout and values.ndim == 3:
            values = values.transpose(0, 2, 1)
        if layout == "QMNIST" and values.ndim == 1:
            others = np.arange(7 * len(values), dtype=np.int32).reshape(-1, 7)
            values = np.column_stack([values.astype(np.int32), others])
        new = folder / (LAYOUTS[layout](path.name) + ending)
        new.parent.mkdir(parents=True, exist_ok=True)
        data = idx_bytes(values)
        new.write_bytes(gzip.compress(data, 1) if ending else data)
    return folder


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mnist_is_found_in_every_layout(idx_folder, tmp_path, layout, ending):
    folder = lay_out(tmp_path / "other", idx_folder, layout, ending)
    assert nnxp.data.find_mnist(folder).keys() == mnist.FILES.keys()
    for got, wanted in zip(
        nnxp.data.load_mnist(folder), nnxp.data.load_mnist(idx_folder), strict=True
    ):
        np.testing.assert_array_equal(got.inputs, wanted.inputs)
        np.testing.assert_array_equal(got.labels, wanted.labels)
        assert got.inputs.dtype == np.uint8
    # A file that is missing is named as it would be there.
    for path in folder.rglob("*t*-labels*"):
        if path.is_file() and "train" not in path.name:
            path.unlink()
            with pytest.raises(
                nnxp.DataUnavailableError,
                match=f"holds neither .*-labels.* nor .*{path.name[:3]}.*copy it there",
            ):
                nnxp.data.find_mnist(folder)


def test_one_split_of_emnist_is_asked_for(idx_folder, tmp_path):
    folder = lay_out(tmp_path / "emnist", idx_folder, "EMNIST")
    for path in list(folder.iterdir()):
        path.with_name(path.name.replace("letters", "balanced")).write_bytes(path.read_bytes())
    with pytest.raises(
        nnxp.DataError, match="2 splits of EMNIST: balanced, letters; move .* a folder of its own"
    ):
        nnxp.data.load_mnist(folder)
    (folder / "own").mkdir()
    for path in folder.glob("*letters*"):
        path.rename(folder / "own" / path.name)
    assert len(nnxp.data.load_mnist(folder / "own")[0]) == 1438
    assert len(nnxp.data.load_mnist(folder)[0]) == 1438  # the other is now the only one
    # The files of MNIST come first.
    for path in idx_folder.iterdir():
        path.rename(folder / path.name)
    (folder / "own").rename(folder / "raw")
    assert nnxp.data.find_mnist(folder) == {name: folder / name for name in mnist.FILES}


@pytest.mark.parametrize("layout", ["MNIST", *LAYOUTS])
def test_empty_files_are_passed_over_or_named(idx_folder, tmp_path, layout):
    folder = idx_folder
    if layout != "MNIST":
        folder = lay_out(tmp_path / "other", idx_folder, layout)
    good = nnxp.data.find_mnist(folder)["t10k-images-idx3-ubyte"]
    packed = good.with_name(good.name + ".gz")
    packed.touch()
    assert nnxp.data.find_mnist(folder)["t10k-images-idx3-ubyte"] == good
    packed.write_bytes(gzip.compress(good.read_bytes(), 1))
    good.write_bytes(b"")
    assert nnxp.data.find_mnist(folder)["t10k-images-idx3-ubyte"] == packed
    assert len(nnxp.data.load_mnist(folder)[1]) == 359
    packed.unlink()
    with pytest.raises(nnxp.DataError, match=f"{good.name} is empty .0 bytes.; copy it") as caught:
        nnxp.data.load_mnist(folder)
    assert not isinstance(caught.value, nnxp.DataUnavailableError)


def test_files_of_other_types_are_refused_in_mnists_place(idx_folder):
    for name, wanted in [("images-idx3", "uint8"), ("labels-idx1", "integers")]:
        path = idx_folder / f"train-{name}-ubyte"
        whole = path.read_bytes()
        path.write_bytes(idx_bytes(read_idx(path).astype(np.float32)))
        with pytest.raises(nnxp.DataError, match=f"{name}.* holds float32, wanted {wanted}; read"):
            nnxp.data.load_mnist(idx_folder)
        path.write_bytes(whole)
    path.write_bytes(idx_bytes(read_idx(path).astype(np.int16)))
    assert nnxp.data.load_mnist(idx_folder)[0].labels.dtype == np.int16


def test_mnist_folder_is_read_plain_or_gzipped(idx_folder, monkeypatch):
    train, test = nnxp.data.load_mnist(idx_folder)
    expected = nnxp.data.load_digits()
    np.testing.assert_array_equal(train.inputs, expected[0].inputs)
    np.testing.assert_array_equal(test.labels, expected[1].labels)
    assert train.inputs.dtype == np.uint8
    for path in list(idx_folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    monkeypatch.setenv("NNXP_DATA_DIR", str(idx_folder))
    np.testing.assert_array_equal(nnxp.data.load_mnist()[0].inputs, train.inputs)
    monkeypatch.setenv("NNXP_DATA_DIR", str(idx_folder / "nowhere"))  # a folder given comes first
    np.testing.assert_array_equal(nnxp.data.load_mnist(idx_folder)[0].inputs, train.inputs)
    assert nnxp.data.find_mnist(idx_folder).keys() == mnist.FILES.keys()


def test_missing_mnist_files_are_named(idx_folder):
    with pytest.raises(nnxp.DataUnavailableError, match="there is no folder .*nowhere"):
        nnxp.data.load_mnist(idx_folder / "nowhere")
    (idx_folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(nnxp.DataUnavailableError, match="holds neither t10k-images-idx3-ubyte nor"):
        nnxp.data.load_mnist(idx_folder)


def test_swapped_and_unequal_mnist_files_are_refused(idx_folder):
    names = [idx_folder / f"train-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    contents = [path.read_bytes() for path in names]
    for path, content in zip(names, reversed(contents), strict=True):
        path.write_bytes(content)
    with pytest.raises(nnxp.DataError, match="are two files swapped"):
        nnxp.data.load_mnist(idx_folder)
    names[0].write_bytes(contents[0])
    names[1].write_bytes((idx_folder / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(nnxp.DataError, match="1438 images, .* 359 labels; are they of one set"):
        nnxp.data.load_mnist(idx_folder)
    names[1].write_bytes(contents[1])
    (idx_folder / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.ones((359, 9, 9), np.uint8)))
    with pytest.raises(
        nnxp.DataError, match=r"training images are of \(8, 8\) pixels and test images of \(9, 9\)"
    ):
        nnxp.data.load_mnist(idx_folder)


def test_corrupt_cache_error_says_what_to_delete(idx_folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "nnxp"
    cache.mkdir(parents=True)
    (idx_folder / "train-labels-idx1-ubyte").write_bytes(b"\0\0")
    idx_folder.rename(cache / "mnist")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NNXP_DATA_DIR", raising=False)
    with pytest.raises(nnxp.DataError, match="truncated: it has 2 bytes; delete .*cache/nnxp"):
        nnxp.data.load_mnist()
    (cache / "mnist" / "train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(nnxp.DataError, match=r"is empty \(0 bytes\).*; delete .*cache/nnxp"):
        nnxp.data.load_mnist()


def test_real_mnist(mnist):
    train, test = mnist
    assert (train.inputs.shape, test.inputs.shape) == ((60000, 784), (10000, 784))
    assert np.bincount(train.labels)[:2].tolist() == [5923, 6742]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]


# The embedded digits


def test_embedded_digits_equal_the_published_ones():
    train, test = nnxp.data.load_digits()
    assert (len(train), len(test)) == (1438, 359)
    assert train.inputs.max() == 255
    # Every class gives a fifth of its own.
    assert np.bincount(test.labels).tolist() == [35, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    # Of each class, as the publishers count them.
    counts = np.bincount(train.labels) + np.bincount(test.labels)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.interop
def test_embedded_digits_equal_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    original = datasets.load_digits()
    inputs, labels = np.rint(original.data * (255 / 16)).astype(np.uint8), original.target
    test = np.zeros(len(labels), bool)
    test[np.argsort(labels, kind="stable")[4::5]] = True  # every fifth, class by class
    for got, rows in zip(nnxp.data.load_digits(), (~test, test), strict=True):
        np.testing.assert_array_equal(got.inputs, inputs[rows])
        np.testing.assert_array_equal(got.labels, labels[rows])


@pytest.mark.parametrize("field", ["1#5", "#", "1 # a note", "1.5#"])
def test_hash_in_a_csv_file_begins_no_comment(tmp_path, field):
    path = tmp_path / "a.csv"
    path.write_text(f"label,a\n0,1\n1,{field}\n")
    with pytest.raises(nnxp.DataError, match=re.escape(field)):
        nnxp.data.load_csv(path)
    path.write_text(f"label,a\n{field},1\n2#x,3\n")
    assert list(nnxp.data.load_csv(path).classes) == sorted([field, "2#x"])


def test_hash_in_the_labels_of_a_csv_file_of_numbers_begins_no_comment(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("label,a\n1,1\n1#b,3\n")
    assert list(nnxp.data.load_csv(path).classes) == ["1", "1#b"]
