"""Numerical gradients, and check_gradients on right and wrong backwards."""

from __future__ import annotations

import numpy as np
import pytest
from builders import three_layers

import nnxp
from nnxp.layers.activations import ACTIVATIONS


def test_numerical_gradient_of_a_known_function(backend):
    x = np.array([[1.0, 2.0, -3.0], [0.5, 0.0, 4.0]])
    gradient = nnxp.numerical_gradient(lambda x: backend.device.xp.sum(x * x * x), backend.array(x))
    # Truncation: step² f''' / 6 = (7.6e-6)²; rounding: 2e-16 * 92 / 7.6e-6 = 2.4e-9.
    np.testing.assert_allclose(backend.host(gradient), 3 * x * x, atol=5e-9)
    assert backend.device.holds(gradient)


def test_float32_is_refused():
    with pytest.raises(nnxp.InputError, match='needs float64, got float32; .*dtype="float64"'):
        nnxp.numerical_gradient(lambda x: x.sum(), np.ones(2, "float32"))


def network_and_batch(activation="relu"):
    rng = np.random.default_rng(3)
    network = three_layers(rng, activation=activation, dtype="float64")
    return network, rng.normal(size=(8, 6)), rng.integers(0, 3, 8)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_whole_networks_agree_and_parameters_are_unchanged(activation):
    network, inputs, labels = network_and_batch(activation)
    before = {name: x.copy() for name, x in network.parameters().items()}
    errors = nnxp.check_gradients(network, nnxp.SoftmaxWithLoss(), inputs, labels)
    assert set(errors) == {"inputs", *before}
    # Rounding leaves 2e-16 * 2 / 8e-6 = 5e-11 beside gradients of 1e-2.
    assert max(errors.values()) < 1e-7
    for name, x in network.parameters().items():
        np.testing.assert_array_equal(x, before[name])


def test_nan_gradient_is_found():
    network, inputs, labels = network_and_batch()
    errors = nnxp.check_gradients(network, nnxp.SoftmaxWithLoss(), inputs * np.nan, labels)
    assert max(errors.values()) == np.inf


def test_differences_are_scaled_to_large_inputs():
    x = np.array([1e11, -3.0])
    np.testing.assert_allclose(nnxp.numerical_gradient(lambda x: (x * x).sum(), x)[0], 2e11)
    with pytest.raises(nnxp.InputError, match="f must return one number"):
        nnxp.numerical_gradient(lambda x: x, np.ones(2))


@pytest.mark.parametrize("name", ["W2", "b1", "inputs"])
def test_wrong_backward_is_found(monkeypatch, name):
    network, inputs, labels = network_and_batch()
    if name == "inputs":
        right = network.backward
        monkeypatch.setattr(network, "backward", lambda dy: right(dy) * 1.001)
    else:
        layer = network.layers[2 if name == "W2" else 0]
        compute = layer.backward_parameters

        def slightly_wrong(dy):
            compute(dy)
            layer.grads[name[0]] = layer.grads[name[0]] * 1.001

        monkeypatch.setattr(layer, "backward_parameters", slightly_wrong)
    errors = nnxp.check_gradients(network, nnxp.SoftmaxWithLoss(), inputs, labels)
    assert errors.pop(name) == pytest.approx(1e-3, rel=1e-2)
    assert max(errors.values()) < 1e-7


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda g: g + 1e-3 * np.abs(g).max() * (np.arange(4) == 0), 1e-3),  # a single column
        (lambda g: 0 * g, 1),
        (lambda g: 2 * g, 0.5),
    ],
)
def test_the_error_is_the_largest_difference_by_the_largest_entry(monkeypatch, wrong, error):
    network, inputs, labels = network_and_batch()
    layer = network.layers[2]
    compute = layer.backward_parameters

    def compute_wrongly(dy):
        compute(dy)
        layer.grads["W"] = wrong(layer.grads["W"])

    monkeypatch.setattr(layer, "backward_parameters", compute_wrongly)
    errors = nnxp.check_gradients(network, nnxp.SoftmaxWithLoss(), inputs, labels)
    assert errors["W2"] == pytest.approx(error, rel=1e-2)
