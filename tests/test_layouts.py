"""Layouts: arrays of any order in memory train to the same bits, without copies at each step."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import nnxp
from nnxp.capture import batch_compiler
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.data import Batches, Dataset, one_hot

LABELS = np.arange(600) % 10


def values(dtype):
    images = np.random.default_rng(0).integers(0, 256, (600, 400))
    return (images if dtype == "uint8" else images / 255).astype(dtype)


def slice_of_columns(x, _):
    wide = np.zeros((len(x), 500), x.dtype)
    wide[:, 50:450] = x
    return wide[:, 50:450]


def every_second(x, _):
    wide = np.zeros((2 * len(x), 800), x.dtype)
    wide[::2, ::2] = x
    return wide[::2, ::2]


def reversed_axes(x, _):
    return np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]


def read_only(x, _):
    x = x.copy()
    x.flags.writeable = False
    return x


def other_byte_order(x, _):
    return x.astype(x.dtype.newbyteorder())


def memory_map(x, path):
    x.tofile(path)
    return np.memmap(path, x.dtype, "r", shape=x.shape)


def view_of_a_memory_map(x, path):
    return memory_map(x, path)[:, :]


def exchanged_pixels(x, _):
    images = x.reshape(-1, 20, 20)
    return np.ascontiguousarray(images.transpose(0, 2, 1)).transpose(0, 2, 1)


def fortran(x, _):
    return np.asfortranarray(x)


def reversed_fortran(x, _):
    return np.asfortranarray(x[::-1])[::-1]


def images_by_row(x, _):
    images = x.reshape(-1, 20, 20)
    return np.ascontiguousarray(images.transpose(1, 0, 2)).transpose(1, 0, 2)


def unaligned(x, _):
    memory = np.zeros(x.nbytes + 1, np.uint8)[1:]
    shifted = memory.view(x.dtype).reshape(x.shape)
    shifted[...] = x
    return shifted


READ_IN_BATCHES = [
    slice_of_columns, every_second, reversed_axes, read_only, other_byte_order, memory_map,
    view_of_a_memory_map, exchanged_pixels,
]  # fmt: skip
COPIED = [fortran, reversed_fortran, images_by_row, unaligned]


def trained(x, labels=LABELS, capture="auto", compiled=False):
    network = nnxp.mlp([400, 6, 10], rng=0)
    if x.ndim == 3:
        network = nnxp.Sequential([nnxp.Flatten(), *network])
    loss = nnxp.SoftmaxWithLoss()
    trainer = nnxp.Trainer(network, loss, nnxp.SGD(0.1), capture=capture, compiled=compiled)
    trainer.fit(Dataset(x, labels), epochs=2, batch_size=64, rng=0)
    assert (trainer.captured == "captured") == (capture == "auto" and not compiled)
    assert (trainer.captured == "compiled") == compiled
    return network.parameters()


def assert_same_bits(one, other):
    for name, x in one.items():
        np.testing.assert_array_equal(x, other[name])


@pytest.mark.parametrize(
    ("way", "threads"),
    [("plain", 1), ("captured", 1), ("captured", 3), ("compiled", 1), ("compiled", 3)],
)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("layout", READ_IN_BATCHES)
def test_layouts_that_are_read_in_batches_train_to_the_same_bits(
    layout, dtype, way, threads, tmp_path, tmp_path_factory, monkeypatch
):
    if way == "compiled":
        llvm = pytest.importorskip("nnxp.capture.llvm", exc_type=ImportError)
        folder = tmp_path_factory.getbasetemp() / "compiled"
        monkeypatch.setattr(llvm, "_cache_folder", lambda: folder)
    monkeypatch.setattr(NumpyOps, "thread_count", lambda _: threads)
    monkeypatch.setattr(batch_compiler, "suits_one_thread", lambda _: False)
    monkeypatch.setattr(batch_compiler, "_THREAD_BYTES", 1)
    monkeypatch.setattr(batch_compiler, "_THREAD_PER_PARAMETERS", 0)
    x = values(dtype)
    options = {"capture": False if way == "plain" else "auto", "compiled": way == "compiled"}
    assert_same_bits(trained(layout(x, tmp_path / "x"), **options), trained(x, **options))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", COPIED)
def test_layouts_that_are_copied_say_so_once_and_train_to_the_same_bits(layout, dtype, tmp_path):
    x = values(dtype)
    with pytest.warns(UserWarning, match=r"are copied once to C order") as said:
        one = trained(layout(x, tmp_path / "x"))
    assert len(said) == 1
    assert_same_bits(one, trained(x))


def test_labels_of_any_layout_train_to_the_same_bits():
    hot = one_hot(LABELS, 10)
    expected = trained(values("float32"), hot)
    assert_same_bits(trained(values("float32"), np.repeat(hot, 2, axis=1)[:, ::2]), expected)
    with pytest.warns(UserWarning, match="labels are in Fortran order"):
        assert_same_bits(trained(values("float32"), np.asfortranarray(hot)), expected)
    classes = trained(values("float32"))
    assert_same_bits(trained(values("float32"), np.repeat(LABELS, 3)[::3]), classes)


def peak_of_an_epoch(x):
    network = nnxp.Sequential(
        [*([nnxp.Flatten()] if x.ndim == 3 else []), *nnxp.mlp([400, 10], rng=0)]
    )
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    rng = np.random.default_rng(0)
    batches = Batches(Dataset(x, LABELS), 20, device="cpu", dtype="float32", rng=rng)
    trainer.train_epoch(batches)  # takes memory that stays
    tracemalloc.start()
    trainer.train_epoch(batches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("layout", READ_IN_BATCHES)
def test_a_step_does_not_copy_the_data_set(layout, tmp_path):
    x = layout(values("float32"), tmp_path / "x")
    assert peak_of_an_epoch(x) < x.nbytes / 4


def test_memory_map_in_fortran_order_is_not_copied(tmp_path):
    x = values("float32")
    x.T.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", "float32", "r", shape=(400, 600)).T
    with pytest.warns(UserWarning, match="a memory map in Fortran order, which is read slowly"):
        assert peak_of_an_epoch(mapped) < x.nbytes / 4
    with pytest.warns(UserWarning, match="save them in C order"):
        assert_same_bits(trained(mapped), trained(x))


@pytest.mark.parametrize("bad", [False, True])
def test_data_set_is_checked_in_little_memory(bad):
    x = np.zeros((40, 1 << 18), "float32")
    if bad:
        x[31, 5] = np.nan
    tracemalloc.start()
    if bad:
        with pytest.raises(nnxp.InputError, match="inputs hold a number .*, first in example 31"):
            Dataset(x, np.zeros(40))
    else:
        Dataset(x, np.zeros(40))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 16


def test_one_hot_takes_the_memory_of_its_result():
    tracemalloc.start()
    rows = one_hot(np.array([3, 19_999]), 20_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * rows.nbytes + 10_000
    assert (rows.sum(), rows[0, 3], rows[1, 19_999]) == (2, 1, 1)
