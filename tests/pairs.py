"""Pairs: train the same parts with captured and with plain steps, and compare the results."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace
from tables import device_or_skip

import nnxp

devices = pytest.mark.parametrize(
    "spec",
    [
        "cpu",
        pytest.param("jax:cpu", marks=pytest.mark.interop),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)


class Swish(nnxp.Layer):
    """y = x * sigmoid(x)."""

    def forward(self, x, training=False):
        xp = array_namespace(x)
        s = (1 + xp.tanh(x / 2)) / 2
        y = x * s
        if training:
            self.save_for_backward(y, (s, y))
        return y

    def backward(self, dy):
        s, y = self.saved(dy)
        return dy * (s + y * (1 - s))


def trainer(spec="cpu", layer=None, optimizer=None, loss=None, **options):
    device_or_skip(spec)
    rng = np.random.default_rng(0)
    place = {"device": spec, "dtype": "float64"}
    first, last = nnxp.Affine(64, 9, rng=rng, **place), nnxp.Affine(9, 10, rng=rng, **place)
    drop = nnxp.Dropout(0.2, rng=rng, **place)
    network = nnxp.Sequential([first, layer or nnxp.Tanh(), drop, last])
    parts = loss or nnxp.SoftmaxWithLoss(), optimizer or nnxp.Momentum(0.1)
    return nnxp.Trainer(network, *parts, **options)


def fit(trainer, **options):
    train, _ = nnxp.data.load_digits()
    rng = np.random.default_rng(1)
    return trainer.fit(train, epochs=2, batch_size=400, rng=rng, **options)


def assert_equal(one, other):
    """Compare parameters, layers' state and optimizer state up to rounding.

    A sum of n = 400 terms has an error of at most n u = 4e-14 of its terms (Higham 2002, eq. 3.5);
    8 steps through 3 layers leave a factor of 1e4 to the bound.
    """
    device = one.network.device
    pairs = [(one.network.parameters(), other.network.parameters())]
    pairs += [(one.network.states(), other.network.states())]
    pairs += [(x, other.optimizer.state[slot]) for slot, x in one.optimizer.state.items()]
    for mine, plain in pairs:
        assert mine.keys() == plain.keys()
        for name, x in mine.items():
            a, b = device.to_host(x), device.to_host(plain[name])
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * abs(b).max(), err_msg=name)
    assert one.optimizer.steps == other.optimizer.steps
