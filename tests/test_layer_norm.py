"""LayerNorm: values against PyTorch's, large offsets, shapes and errors."""

from __future__ import annotations

import numpy as np
import pytest
from tables import varied

import nnxp


@pytest.mark.interop
@pytest.mark.parametrize(
    ("features", "shape"),
    [
        (4, (5, 4)),
        (4, (5, 3, 4)),
        ((4,), (5, 4)),
        ((2, 3, 4), (5, 2, 3, 4)),
        ((3, 4), (5, 2, 3, 4)),
    ],
)
def test_values_and_gradients_are_those_of_torch(features, shape):
    import torch

    layer = varied(nnxp.LayerNorm(features, epsilon=1e-3, dtype="float64"))
    theirs = torch.nn.LayerNorm(features, eps=1e-3, dtype=torch.float64)
    names = {"weight": "gamma", "bias": "beta"}
    theirs.load_state_dict({name: torch.tensor(layer.params[own]) for name, own in names.items()})
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=shape), rng.normal(size=shape)
    leaf = torch.tensor(x, requires_grad=True)
    expected = theirs(leaf)
    expected.backward(torch.tensor(dy))
    close = {"rtol": 1e-12, "atol": 1e-14}
    np.testing.assert_allclose(layer.forward(x, training=True), expected.detach(), **close)
    np.testing.assert_allclose(layer.backward(dy), leaf.grad, **close)
    for name, own in names.items():
        np.testing.assert_allclose(layer.grads[own], getattr(theirs, name).grad, **close)


@pytest.mark.parametrize("features", [7, 1000])
def test_large_offsets_in_float32(backend, features):
    rng = np.random.default_rng(0)
    offsets = np.array([[1e6], [-3e5], [1e7], [12345.6]])
    x = (rng.normal(size=(4, features)) * [[1], [1], [10], [0.1]] + offsets).astype("float32")
    y = backend.host(
        nnxp.LayerNorm(features, device=backend.device).forward(backend.array(x, "float32"))
    )
    exact = x.astype("float64")
    exact = exact - exact.mean(axis=1, keepdims=True)
    exact = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5)
    # Differences from the first, rounded mean are exact, since the numbers are within a factor of
    # 2. What follows rounds numbers near 1 some ten times, and sums of 1,000 by 1e-6 at most.
    np.testing.assert_allclose(y, exact, atol=5e-6)


@pytest.mark.parametrize("value", [0.1, 123456.7, -3e7, 1e30])
def test_constant_rows_are_normalized_to_0(backend, value):
    layer = nnxp.LayerNorm(7, device=backend.device)
    y = backend.host(layer.forward(backend.array(np.full((2, 7), value), "float32")))
    # What the rounded means leave is a unit of rounding of a unit of rounding of the value, which
    # epsilon then scales by 300 at most.
    assert abs(y).max() <= min(300 * abs(value) * 2.0**-46, 1.0)


def test_features_are_kept_in_files_and_frozen_layers_have_no_gradients(tmp_path):
    layer = nnxp.LayerNorm((2, 3), epsilon=0.5)
    assert repr(layer) == "LayerNorm((2, 3), epsilon=0.5)"
    assert layer.config() == {"features": {"tuple": [2, 3]}, "epsilon": 0.5}
    assert repr(nnxp.LayerNorm([2, 3])) == repr(nnxp.LayerNorm((2, 3)))
    x = np.ones((5, 2, 3), "float32")
    layer.trainable = False
    layer.forward(x, training=True)
    layer.backward(x)
    assert not layer.grads


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nnxp.LayerNorm(0), "features must be a whole number of at least 1, got 0"),
        (lambda: nnxp.LayerNorm(()), r"features must be a whole number of at least 1, got \(\)"),
        (lambda: nnxp.LayerNorm((2, 0)), "each of features must be a whole number .*, got 0"),
        (lambda: nnxp.LayerNorm([10**9, 10**9]), "LayerNorm does not fit into memory"),
        (lambda: nnxp.LayerNorm(4, epsilon=0), "epsilon must be a positive number, got 0"),
        (lambda: nnxp.LayerNorm(normalized_shape=4), "nnxp calls it 'features'"),
        (
            lambda: nnxp.LayerNorm(4).forward(np.ones((2, 5), "float32")),
            r"inputs of shape \(batch, …, 4\), got \(2, 5\)$",
        ),
        (
            lambda: nnxp.LayerNorm((2, 3)).forward(np.ones((2, 3), "float32")),
            r"inputs of shape \(batch, …, 2, 3\), got \(2, 3\); give x\[None\] for one example",
        ),
        (
            lambda: nnxp.LayerNorm(4).forward(np.float32(1.0)[()]),
            r"inputs of shape \(batch, …, 4\), got \(\)$",
        ),
        (
            lambda: nnxp.Sequential([nnxp.Affine(5, 3, rng=0), nnxp.LayerNorm(4)]),
            r"LayerNorm\(4, .*\) expects 4 features, got \(3,\)",
        ),
    ],
)
def test_wrong_shapes_and_settings_are_refused(call, message):
    with pytest.raises((nnxp.InputError, nnxp.OutOfMemoryError), match=message):
        call()


def test_inputs_on_another_device_are_refused():
    x = nnxp.device("strict").asarray(np.ones((2, 4), "float32"))
    with pytest.raises(nnxp.DeviceError, match=r"LayerNorm\(4.*on cpu, got an array of array_api"):
        nnxp.LayerNorm(4).forward(x)
