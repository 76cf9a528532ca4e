"""Activations: values against exact ones and PyTorch's, limits, gradients at 0, and settings."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest

import nnxp
from nnxp.devices import DTYPES
from nnxp.layers.activations import ACTIVATIONS
from nnxp.parts import Part, Place, build_part

dtypes = pytest.mark.parametrize("dtype", DTYPES)

# name: (makes the layer, limits of output and gradient at -∞, gradient at 0)
KINDS = {
    "LeakyReLU": (lambda: nnxp.LeakyReLU(0.25), -np.inf, 0.25, 0.25),
    "ELU": (lambda: nnxp.ELU(0.5), -0.5, 0, 0.5),
    "GELU": (nnxp.GELU, 0, 0, 0.5),
    "GELU, tanh": (lambda: nnxp.GELU("tanh"), 0, 0, 0.5),
    "SiLU": (nnxp.SiLU, 0, 0, 0.5),
    "Softplus": (nnxp.Softplus, 0, 0, 0.5),
}
kinds = pytest.mark.parametrize("make", [make for make, *_ in KINDS.values()], ids=list(KINDS))


def both_passes(backend, layer, x, dtype):
    """Return outputs and gradients for inputs of a dtype, on the host."""
    y = layer.forward(backend.array(x, dtype), training=True)
    dx = layer.backward(backend.array(np.ones(np.shape(x)), dtype))
    return backend.host(y), backend.host(dx)


@dtypes
@pytest.mark.parametrize(
    ("make", "at_minus_infinity", "slope", "slope_at_0"), list(KINDS.values()), ids=list(KINDS)
)
def test_limits_and_gradients_at_0(backend, make, at_minus_infinity, slope, slope_at_0, dtype):
    large = float(np.finfo(dtype).max)
    ahead = np.array([1e4, large, np.inf])
    y, dx = both_passes(backend, make(), [*-ahead, -0.0, 0.0, *ahead], dtype)
    behind = -ahead * 0.25 if at_minus_infinity == -np.inf else np.full(3, at_minus_infinity)
    np.testing.assert_array_equal(y[:3], behind.astype(dtype))
    np.testing.assert_array_equal(y[5:], ahead.astype(dtype))
    np.testing.assert_array_equal(dx, [slope] * 3 + [slope_at_0] * 2 + [1] * 3)
    assert np.isnan(both_passes(backend, make(), [np.nan], dtype)[0])


@dtypes
@kinds
def test_every_finite_input_has_finite_results(backend, make, dtype):
    finfo = np.finfo(dtype)
    sizes = 2.0 ** np.arange(finfo.minexp, finfo.maxexp)
    sizes = np.concatenate([sizes, np.linspace(0, 800, 5000)])
    for results in both_passes(backend, make(), np.concatenate([-sizes, sizes]), dtype):
        assert np.isfinite(results).all()


# sqrt(2 π)
ROOT = Decimal("2.50662827463100050241576528481104525300698674060993831662992357634229")


def exact_gelu(x: float) -> float:
    """Return ``x * Φ(x)``: the series about 0, or the continued fraction of Mills' ratio."""
    with localcontext(prec=60):
        z = Decimal(abs(x))
        density = (-z * z / 2).exp() / ROOT
        if z < 3:
            total = term = z
            for k in range(1, 150):
                term = term * z * z / (2 * k + 1)
                total += term
            tail = Decimal("0.5") - density * total
        else:
            fraction = z
            for k in range(400, 0, -1):
                fraction = z + k / fraction
            tail = density / fraction
        return float(-z * tail if x < 0 else z * (1 - tail))


@pytest.mark.parametrize(("dtype", "lowest"), [("float64", -37.4), ("float32", -12.8)])
def test_gelu_is_exact_to_a_few_roundings(backend, dtype, lowest):
    x = np.concatenate(
        [
            np.linspace(lowest, -5, 150),
            np.linspace(-5, 5, 301),
            [9.0, 20.0],
            -(10.0 ** -np.arange(9)),
        ]
    ).astype(dtype)
    y = backend.host(nnxp.GELU().forward(backend.array(x, dtype)))
    expected = np.array([exact_gelu(float(each)) for each in x])
    # The largest error of 200,000 numbers was 5.3 eps. Φ(-37.4) and, in float32, Φ(-12.8) are
    # nearly subnormal.
    np.testing.assert_allclose(y, expected, rtol=8 * np.finfo(dtype).eps, atol=0)


@dtypes
@pytest.mark.parametrize(
    ("make", "exact"),
    [
        (nnxp.ELU, lambda x: x if x > 0 else math.expm1(x)),
        (nnxp.SiLU, lambda x: x / (1 + math.exp(-x))),
        (nnxp.Softplus, lambda x: math.log1p(math.exp(x))),
    ],
)
def test_small_results_are_exact_to_a_few_roundings(backend, make, exact, dtype):
    x = np.concatenate([np.linspace(-80, 80, 501), *np.outer([1, -1], 10.0 ** -np.arange(1, 30))])
    x = x.astype(dtype)
    y = backend.host(make().forward(backend.array(x, dtype)))
    expected = [exact(float(each)) for each in x]
    # A function and at most four operations, each within a unit or two of the last place.
    np.testing.assert_allclose(y, expected, rtol=8 * np.finfo(dtype).eps, atol=0)


def test_gelu_at_known_values():
    x = np.array([-10.0, -1.0, 1.0, 3.0])
    known = [-7.619853024160526e-23, -0.15865525393145705, 0.8413447460685429, 2.99595030590511]
    np.testing.assert_allclose(nnxp.GELU().forward(x), known, rtol=1e-14)
    assert exact_gelu(1.0) == pytest.approx(known[2], rel=1e-15)


@pytest.mark.interop
@kinds
def test_values_and_gradients_are_those_of_torch(make):
    import torch

    settings = make().config().values()
    theirs = getattr(torch.nn, type(make()).__name__)
    theirs = theirs(approximate=make().approximate) if "GELU" in repr(make()) else theirs(*settings)
    x = np.linspace(-6, 6, 1201)
    assert x[600] == 0
    leaf = torch.tensor(x, requires_grad=True)
    expected = theirs(leaf)
    expected.sum().backward()
    layer = make()
    # Torch computes 1 + erf(x) and 1 + tanh(x), which are wrong by an eps of 1, times x.
    close = {"rtol": 1e-14, "atol": 6 * np.finfo("float64").eps}
    np.testing.assert_allclose(layer.forward(x, training=True), expected.detach(), **close)
    np.testing.assert_allclose(layer.backward(np.ones_like(x)), leaf.grad, **close)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_takes_every_activation_by_name(name):
    network = nnxp.mlp([6, 5, 4, 3], rng=0, activation=name)
    assert [type(network[i]) for i in (1, 3)] == [ACTIVATIONS[name]] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nnxp.LeakyReLU(0), "slope must be a number above 0 and below 1, got 0"),
        (lambda: nnxp.LeakyReLU(1.5), "slope must be a number above 0 and below 1, got 1.5"),
        (lambda: setattr(nnxp.LeakyReLU(), "slope", -1), "slope must be .*, got -1"),
        (lambda: nnxp.LeakyReLU(negative_slope=0.1), "nnxp calls it 'slope'"),
        (lambda: nnxp.ELU(0.0), "alpha must be a positive number, got 0.0"),
        (lambda: nnxp.GELU("tan"), "unknown approximate 'tan'; did you mean 'tanh'"),
        (lambda: nnxp.GELU(None), "unknown approximate None; .*known: none, tanh"),
        (lambda: nnxp.GELU(np.array(["a", "b"])), "unknown approximate array.*known: none, tanh"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(nnxp.InputError, match=message):
        make()


@pytest.mark.parametrize("capture", ["auto", False])
def test_a_setting_that_changes_takes_effect_at_once(capture):
    layers = [
        nnxp.Affine(2, 3, rng=0, dtype="float64"), nnxp.LeakyReLU(0.1),
        nnxp.Affine(3, 2, rng=1, dtype="float64"),
    ]  # fmt: skip
    dataset = nnxp.data.Dataset(np.random.default_rng(2).normal(size=(8, 2)), np.arange(8) % 2)
    trainer = nnxp.Trainer(
        nnxp.Sequential(layers), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), capture=capture
    )
    losses = []
    for slope in (0.1, 0.9):
        layers[1].slope = slope
        expected = float(
            trainer.loss.forward(trainer.network.predict(dataset.inputs), dataset.labels)
        )
        trainer.fit(dataset, epochs=1, batch_size=8, rng=0)
        losses.append(trainer.history[-1].train_loss)
        assert losses[-1] == pytest.approx(expected, rel=1e-12)
    assert losses[0] != losses[1]


def test_the_base_class_cannot_be_made_from_a_file():
    base = nnxp.GELU.__base__
    assert base not in (nnxp.Layer, Part)
    with pytest.raises(nnxp.InputError, match=f"'nnxp.{base.__name__}' is not registered"):
        build_part(
            {"type": f"nnxp.{base.__name__}", "config": {}},
            Place(nnxp.device("cpu"), "float32", 100),
        )
