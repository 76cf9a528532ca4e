"""Compiled predictions: `Sequential.compiled` gives a function that predicts as the network did."""

from __future__ import annotations

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from builders import train_layer
from remedies import installs
from tables import LAYERS

import nnxp
from nnxp.data import Dataset

llvm = pytest.importorskip("nnxp.capture.llvm", exc_type=ImportError)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """Keep machine code in the folder of this run, and not in the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setattr(llvm, "_cache_folder", lambda: folder)


def trained(inputs, dtype="float32"):
    network = nnxp.Sequential([nnxp.Affine(6, 5, rng=0), nnxp.Tanh(), nnxp.Affine(5, 3, rng=1)])
    trainer = nnxp.Trainer(network.to("cpu", dtype=dtype), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    trainer.fit(Dataset(inputs, np.arange(len(inputs)) % 3), epochs=1, batch_size=10, rng=0)
    return trainer.network


def normal(rows=40):
    return np.random.default_rng(0).normal(size=(rows, 6)).astype("float32")


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_predicts_as_the_network(name, rows):
    trainer, dataset = train_layer(*LAYERS[name])
    x = dataset.inputs[:rows]
    predict = trainer.network.compiled(np.zeros_like(x))
    expected = trainer.network.predict(x)
    # Sums of fewer than 100 terms in another order, and functions within 4 units in the last place.
    np.testing.assert_allclose(predict(x), expected, rtol=0, atol=1e-13 * abs(expected).max())


@pytest.mark.filterwarnings("ignore:.*scale both|.*are divided by 255")
@pytest.mark.parametrize("dtype", ["float32", "float64", ">f8", "uint8", "int64"])
def test_inputs_of_each_dtype_are_scaled_as_in_predict(dtype):
    for trained_on in (normal(), (abs(normal()) * 50).astype("uint8")):
        network = trained(trained_on)
        x = (abs(normal(4)) * (60 if np.dtype(dtype).kind in "iu" else 1)).astype(dtype)
        predict = network.compiled(x)
        np.testing.assert_allclose(predict(x), network.predict(x), rtol=0, atol=1e-5)


def test_the_function_keeps_the_weights_and_gives_new_arrays():
    network, x = trained(normal()), normal(1)
    predict = network.compiled(x)
    first = predict(x)
    expected = first.copy()
    network.parameters()["W1"][...] = 0
    network.layers = network.layers[::-1][:1]
    other = predict(-x)
    assert not np.array_equal(other, expected)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(predict(x), expected)


def test_threads_get_their_own_results():
    network, x = trained(normal()), normal(64)
    predict = network.compiled(x[:1])
    expected = [predict(row[None]) for row in x]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            found = list(pool.map(lambda row: predict(row[None]), x))
            np.testing.assert_array_equal(found, expected)


def test_wrong_inputs_are_refused_as_in_predict():
    network, x = trained(normal()), normal(2)
    predict = network.compiled(x)
    for wrong in (x[:1], x[0], x[:, :5], x.astype("int64"), x.astype("float64")):
        with pytest.raises(nnxp.InputError, match="compiled for|one of shape"):
            predict(wrong)
    for number in (np.nan, np.inf, -np.inf):
        broken = x.copy()
        broken[1, 2] = number
        for function in (predict, network.predict):
            with pytest.raises(nnxp.InputError, match="not finite, first in example 1, column 2"):
                function(broken)
    with pytest.raises(nnxp.InputError, match="expects"):
        network.compiled(x[:, :5])
    with pytest.raises(nnxp.ArgumentError, match=r"network.compiled\(x\)"):
        network.compiled()
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(x, columns=list("abcdef"))
    network = trained(pandas.DataFrame(normal(), columns=list("abcdef")))
    predict = network.compiled(frame)
    np.testing.assert_allclose(predict(frame), network.predict(frame), atol=1e-6)
    with pytest.raises(nnxp.InputError, match="columns"):
        predict(frame[list("fedcba")])


def test_inputs_of_another_scale_warn_as_in_predict():
    network = trained(normal())
    for x in (normal(2) * 255, (abs(normal(2)) * 9).astype("uint8"), normal(60) / 255):
        predict = network.compiled(x)
        with pytest.warns(UserWarning, match="scale both|are divided by 255") as expected:
            network.predict(x)
        with pytest.warns(UserWarning, match="scale both|are divided by 255") as found:
            predict(x)
        assert [str(w.message) for w in found] == [str(w.message) for w in expected]


def test_networks_that_cannot_be_compiled_are_refused(monkeypatch):
    class Own(nnxp.Layer):
        def forward(self, x, training=False):
            return x

        def backward(self, dy):
            return dy

    x = normal(1)
    affine = nnxp.Affine(6, 3, rng=0)
    with pytest.raises(nnxp.InputError, match="own layers, got Own"):
        nnxp.Sequential([affine, Own()]).compiled(x)
    with pytest.raises(nnxp.InputError, match="has no parameters"):
        nnxp.Sequential([nnxp.ReLU()]).compiled(x)
    with pytest.raises(nnxp.InputError, match="is on strict"):
        nnxp.Sequential([affine]).to("strict").compiled(x)
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    with pytest.raises(nnxp.MissingExtraError, match=f"llvmlite {installs('fast')}"):
        nnxp.Sequential([affine]).compiled(x)


def test_numbers_beyond_the_networks_dtype_are_refused_as_in_predict():
    x = np.array([[0.5, 1e39, 0.5, 0.5, 0.5, 0.5]])
    for network in (
        trained(normal()),
        nnxp.Sequential([nnxp.Affine(6, 5, rng=0), nnxp.Tanh()]),
    ):
        predict = network.compiled(np.zeros_like(x))
        for function in (predict, network.predict):
            with pytest.raises(nnxp.InputError, match="1e\\+39 of float64, which float32 cannot"):
                function(x)


def test_arrays_of_other_libraries_are_refused_as_in_predict():
    network, x = trained(normal()), normal(1)
    predict = network.compiled(x)
    other = nnxp.device("strict").asarray(x)
    for function in (predict, network.compiled, network.predict):
        with pytest.raises(nnxp.DeviceError, match="the network is on cpu, got an array of"):
            function(other)


def test_the_function_cannot_be_copied():
    predict = trained(normal()).compiled(normal(1))
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(nnxp.InputError, match="compile the copy"):
            copied(predict)
