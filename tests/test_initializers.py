"""Initializers: the published deviations, and the default for each activation."""

from __future__ import annotations

import math

import numpy as np
import pytest

import nnxp
from nnxp.initializers import (
    INITIALIZERS,
    draw_weights,
    fans,
    he_normal,
    normal,
    xavier_uniform,
    zeros,
)

SHAPE = (300, 200)
KERNELS = (50, 20, 12, 5)

# The standard deviation of n normal numbers is known to 1 / sqrt(2 n) = 0.3 % of it (n = 60,000),
# that of uniform ones to less; the test allows five times that.
CLOSE = 5 / math.sqrt(2 * 300 * 200)


@pytest.mark.parametrize(
    ("initializer", "shape", "std"),
    [
        (he_normal, SHAPE, math.sqrt(2 / 300)),
        (he_normal, KERNELS, math.sqrt(2 / (20 * 12 * 5))),
        (xavier_uniform, SHAPE, math.sqrt(2 / 500)),
        (xavier_uniform, KERNELS, math.sqrt(2 / ((20 + 50) * 12 * 5))),
        (normal(0.3), SHAPE, 0.3),
        (INITIALIZERS["normal"], SHAPE, 0.01),
        (INITIALIZERS["he"], SHAPE, math.sqrt(2 / 300)),
        (INITIALIZERS["xavier"], SHAPE, math.sqrt(2 / 500)),
    ],
)
def test_weights_have_mean_zero_and_the_published_deviation(initializer, shape, std):
    weights = initializer(np.random.default_rng(0), shape)
    assert weights.shape == shape
    assert weights.dtype == np.float64
    assert weights.std() == pytest.approx(std, rel=CLOSE)
    assert abs(weights.mean()) < 5 * std / math.sqrt(weights.size)


def test_xavier_is_uniform_and_zeros_are_zero():
    rng = np.random.default_rng(0)
    bound = math.sqrt(6 / 500)
    weights = xavier_uniform(rng, SHAPE)
    assert np.abs(weights).max() == pytest.approx(bound, rel=1e-3)
    assert np.abs(weights).max() <= bound
    assert (zeros(rng, SHAPE) == 0).all()


@pytest.mark.interop
@pytest.mark.parametrize("shape", [SHAPE, KERNELS], ids=["matrix", "convolution"])
def test_deviations_are_those_of_torch(shape):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    # The matrices of torch.nn.Linear are (outputs, inputs).
    weights = torch.empty(shape[::-1] if len(shape) == 2 else shape)
    init = torch.nn.init
    for own, theirs in (
        (he_normal, lambda w: init.kaiming_normal_(w, nonlinearity="relu", generator=generator)),
        (xavier_uniform, lambda w: init.xavier_uniform_(w, generator=generator)),
    ):
        expected = float(theirs(weights).std())
        got = own(np.random.default_rng(0), shape).std()
        assert got == pytest.approx(expected, rel=math.sqrt(2) * CLOSE)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((784, 50), (784, 50)),
        ((16, 3, 5, 7), (3 * 5 * 7, 16 * 5 * 7)),
        ((16, 3, 5), (3 * 5, 16 * 5)),
        ((2, 1, 1, 1), (1, 2)),
    ],
)
def test_fans_are_exact(shape, expected):
    assert fans(shape) == expected


@pytest.mark.parametrize("shape", [(), (5,)])
@pytest.mark.parametrize(
    "function", [fans, lambda shape: he_normal(np.random.default_rng(0), shape)]
)
def test_fans_need_two_axes(function, shape):
    with pytest.raises(nnxp.InputError, match=r"needs the shape of a matrix, .*, got \("):
        function(shape)


@pytest.mark.parametrize("shape", [3, "ab", None, np.ones((4, 3))])
def test_fans_need_a_shape(shape):
    with pytest.raises(nnxp.InputError, match=r"^fans needs the shape of a matrix, .*, got "):
        fans(shape)


def test_draw_weights_serves_a_layer_of_ones_own():
    shared = np.ones(KERNELS)
    drawn = draw_weights(lambda rng, shape: shared, np.random.default_rng(0), KERNELS)
    drawn[...] = 2.0
    assert (shared == 1).all()
    with pytest.raises(nnxp.InputError, match=r"must return shape \(50, 20, 12, 5\), got \(3,\)"):
        draw_weights(lambda rng, shape: np.ones(3), np.random.default_rng(0), KERNELS)
    named = draw_weights("he", np.random.default_rng(0), KERNELS)
    np.testing.assert_array_equal(named, he_normal(np.random.default_rng(0), KERNELS))


@pytest.mark.parametrize("std", [0, -1.0, math.nan, "wide"])
def test_deviation_must_be_a_positive_number(std):
    with pytest.raises(nnxp.InputError, match="std must be a positive number, got"):
        normal(std)


@pytest.mark.parametrize(
    ("activation", "initializer"),
    [
        *[(name, he_normal) for name in ("relu", "leaky_relu", "elu", "gelu", "silu", "softplus")],
        *[(name, xavier_uniform) for name in ("sigmoid", "tanh", "identity")],
    ],
)
def test_default_initializer_depends_on_the_activation(activation, initializer):
    def first_weights(**options):
        network = nnxp.mlp(
            [6, 5, 3], rng=np.random.default_rng(0), activation=activation, **options
        )
        return network.parameters()["W1"]

    np.testing.assert_array_equal(first_weights(), first_weights(initializer=initializer))
    assert not first_weights(initializer=zeros).any()
