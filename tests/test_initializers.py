"""Initializers: the published deviations, and the default for each activation."""

from __future__ import annotations

import math

import numpy as np
import pytest

import nnxp
from nnxp.initializers import INITIALIZERS, he_normal, normal, xavier_uniform, zeros

SHAPE = (300, 200)

# The standard deviation of n normal numbers is known to 1 / sqrt(2 n) = 0.3 % of it (n = 60,000);
# five times that is asked for.
CLOSE = 5 / math.sqrt(2 * 300 * 200)


@pytest.mark.parametrize(
    ("initializer", "std"),
    [
        (he_normal, math.sqrt(2 / 300)),
        (xavier_uniform, math.sqrt(2 / 500)),
        (normal(0.3), 0.3),
        (INITIALIZERS["normal"], 0.01),
        (INITIALIZERS["he"], math.sqrt(2 / 300)),
        (INITIALIZERS["xavier"], math.sqrt(2 / 500)),
    ],
)
def test_weights_have_mean_zero_and_the_published_deviation(initializer, std):
    weights = initializer(np.random.default_rng(0), SHAPE)
    assert weights.shape == SHAPE
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


@pytest.mark.parametrize("std", [0, -1.0, math.nan, "wide"])
def test_deviation_must_be_a_positive_number(std):
    with pytest.raises(nnxp.InputError, match="std must be a positive number, got"):
        normal(std)


@pytest.mark.parametrize(
    ("activation", "initializer"),
    [("relu", he_normal), ("sigmoid", xavier_uniform), ("tanh", xavier_uniform)],
)
def test_default_initializer_depends_on_the_activation(activation, initializer):
    def first_weights(**options):
        network = nnxp.mlp(
            [6, 5, 3], rng=np.random.default_rng(0), activation=activation, **options
        )
        return network.parameters()["W1"]

    np.testing.assert_array_equal(first_weights(), first_weights(initializer=initializer))
    assert not first_weights(initializer=zeros).any()
