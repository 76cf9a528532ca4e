"""Optimizers: every rule against its formula, PyTorch and each backend; errors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

import nnxp
from nnxp.devices import DTYPES
from nnxp.optimizers import OPTIMIZERS

RNG = np.random.default_rng(0)
START = {"W": RNG.normal(size=(3, 2)), "b": RNG.normal(size=4)}
GRADIENTS = [{name: RNG.normal(size=x.shape) for name, x in START.items()} for _ in range(10)]
RATES = [0.05] * 5 + [0.02] * 5
RTOL = {"float32": 1e-5, "float64": 1e-12}

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def descend(optimizer, params, gradients, rates):
    """Update `params` once for each of `gradients`, at each of `rates`."""
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.learning_rate = rate
        optimizer.update(params, gradient)
    return params


def copies(arrays, make=np.array):
    return {name: make(x) for name, x in arrays.items()}


def expect(got, wanted, rtol):
    assert got.keys() == wanted.keys()
    for name, x in got.items():
        assert_allclose(x, wanted[name], rtol=rtol, err_msg=name)


# Each rule once more, from its paper and without a recursion where there is none in the formula:
# the parameter w after steps of constant RATE with the gradients g, whose first axis is time.

RATE = 0.05


def discounts(decay, steps):
    """Return the weight decay**(t - s) of gradient s <= t in what is remembered at time t."""
    age = np.subtract.outer(np.arange(steps), np.arange(steps))
    return np.where(age >= 0, float(decay) ** np.abs(age), 0.0)


def corrected(decay, values):
    """Return the discounted means: correcting Adam's bias makes the weights' sum 1."""
    weights = discounts(decay, len(values))
    return np.tensordot(weights / weights.sum(axis=1, keepdims=True), values, 1)


def sgd(w, g):
    return w - RATE * g.sum(axis=0)


def momentum(w, g):
    return w - RATE * np.tensordot(discounts(0.9, len(g)), g, 1).sum(axis=0)


def nesterov(w, g):
    """Sutskever et al. 2013, eq. 3 and 4; nnxp's parameters are the point looked ahead to."""
    v = np.zeros_like(w)
    for gradient_ahead in g:
        v = 0.9 * v - RATE * gradient_ahead
        w = w + v
    return w + 0.9 * v


def adagrad(w, g):
    return w - RATE * (g / (np.cumsum(g**2, axis=0) ** 0.5 + 1e-10)).sum(axis=0)


def rmsprop(w, g):
    mean = np.tensordot(0.01 * discounts(0.99, len(g)), g**2, 1)
    return w - RATE * (g / (mean**0.5 + 1e-8)).sum(axis=0)


def adam(w, g):
    return w - RATE * (corrected(0.9, g) / (corrected(0.999, g**2) ** 0.5 + 1e-8)).sum(axis=0)


def adamw(w, g):
    """Loshchilov and Hutter 2019, algorithm 2, line 12, the decay scaled by the rate."""
    for step in corrected(0.9, g) / (corrected(0.999, g**2) ** 0.5 + 1e-8):
        w = w - RATE * (step + 0.01 * w)
    return w


FORMULAS = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": nesterov,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adam": adam,
    "adamw": adamw,
}

TORCH = {
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9}),
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True}),
    "adagrad": ("Adagrad", {"eps": 1e-10}),
    "rmsprop": ("RMSprop", {"alpha": 0.99, "eps": 1e-8}),
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {"weight_decay": 0.01}),
}


def test_the_tables_hold_every_optimizer():
    assert set(OPTIMIZERS) == set(FORMULAS) == set(TORCH)
    assert all(getattr(nnxp, make.__name__) is make for make in OPTIMIZERS.values())


@every_optimizer
def test_three_steps_by_formula(name):
    got = descend(OPTIMIZERS[name](), copies(START), GRADIENTS[:3], [RATE] * 3)
    wanted = {
        key: FORMULAS[name](w, np.stack([gradients[key] for gradients in GRADIENTS[:3]]))
        for key, w in START.items()
    }
    expect(got, wanted, RTOL["float64"])


@pytest.mark.interop
@every_optimizer
def test_ten_steps_equal_those_of_torch(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    wanted = copies(START, torch.tensor)
    kind, options = TORCH[name]
    theirs = getattr(torch.optim, kind)(wanted.values(), lr=RATES[0], **options)
    for gradients, rate in zip(GRADIENTS, RATES, strict=True):
        theirs.param_groups[0]["lr"] = rate
        for key, w in wanted.items():
            w.grad = torch.tensor(gradients[key])
        theirs.step()
    got = descend(OPTIMIZERS[name](), copies(START), GRADIENTS, RATES)
    expect(got, copies(wanted, torch.Tensor.numpy), RTOL["float64"])


@every_dtype
@every_optimizer
def test_every_backend_keeps_dtype_and_device_and_agrees(backend, name, dtype):
    optimizer = OPTIMIZERS[name](learning_rate=np.float64(RATE))
    params = copies(START, lambda x: backend.device.asarray(x.astype(dtype)))
    gradients = [copies(g, lambda x: backend.array(x, dtype)) for g in GRADIENTS]
    descend(optimizer, params, gradients, RATES)
    assert optimizer.steps == len(GRADIENTS)
    for arrays in (params, *optimizer.state.values()):
        assert arrays.keys() == START.keys()
        for key, x in arrays.items():
            assert backend.device.holds(x)
            assert x.dtype == getattr(backend.device.xp, dtype)
            assert tuple(x.shape) == START[key].shape
    on_numpy = descend(OPTIMIZERS[name](), copies(START), GRADIENTS, RATES)
    expect(copies(params, backend.host), on_numpy, RTOL[dtype])


@every_dtype
@every_optimizer
def test_update_does_not_change_the_gradients(name, dtype):
    gradients = copies(GRADIENTS[0], lambda x: x.astype(dtype))
    for g in gradients.values():
        g.flags.writeable = False
    params = copies(START, lambda x: x.astype(dtype))
    descend(OPTIMIZERS[name](), params, [gradients] * 3, RATES[:3])


@every_optimizer
def test_mutable_parameters_are_updated_in_place(name):
    params = copies(START)
    before = dict(params)
    descend(OPTIMIZERS[name](), params, GRADIENTS[:2], RATES[:2])
    for key, x in params.items():
        assert x is before[key]
        assert (x != START[key]).all()


@pytest.mark.interop
@every_optimizer
def test_immutable_parameters_are_replaced(name):
    jax = pytest.importorskip("jax", reason="jax is not installed")
    params = copies(START, lambda x: jax.numpy.asarray(x, dtype="float32"))
    gradients = [copies(g, lambda x: jax.numpy.asarray(x, dtype="float32")) for g in GRADIENTS]
    before = dict(params)
    optimizer = OPTIMIZERS[name]()
    descend(optimizer, params, gradients, RATES)
    expect(copies(before), copies(START), RTOL["float32"])
    for arrays in (params, *optimizer.state.values()):
        for x in arrays.values():
            assert isinstance(x, jax.Array)
            assert x.dtype == "float32"
    on_numpy = descend(OPTIMIZERS[name](), copies(START), GRADIENTS, RATES)
    expect(copies(params), on_numpy, RTOL["float32"])


@pytest.mark.parametrize("names", ["W", "Wbx", "Wx", ""])
@every_optimizer
def test_gradients_with_other_names_are_refused(name, names):
    params, optimizer = copies(START), OPTIMIZERS[name]()
    with pytest.raises(nnxp.InputError) as caught:
        optimizer.update(params, {key: np.ones(1) for key in names})
    assert "a gradient for each parameter" in str(caught.value)
    assert f"parameters W, b and gradients {', '.join(names)}" in str(caught.value)
    assert optimizer.steps == 0
    expect(params, START, rtol=0)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0, r"learning_rate must be a positive number, got 0"),
        (-0.1, r"learning_rate must be .*got -0\.1"),
        (np.nan, r"learning_rate must be .*got nan"),
        (np.inf, r"learning_rate must be .*got inf"),
        ("fast", r"learning_rate must be a positive number, got 'fast'"),
        (None, r"learning_rate must be a positive number, got None"),
    ],
)
@every_optimizer
def test_invalid_learning_rates_are_refused(name, rate, words):
    with pytest.raises(nnxp.InputError, match=words):
        OPTIMIZERS[name](learning_rate=rate)


@pytest.mark.parametrize(
    ("name", "option", "value", "words"),
    [
        ("momentum", "momentum", 1.0, "a number of at least 0 and below 1, got 1.0"),
        ("nesterov", "momentum", -0.5, "a number of at least 0 and below 1, got -0.5"),
        ("adagrad", "epsilon", -1, "a positive number, got -1"),
        ("rmsprop", "decay", 1.0, "a number of at least 0 and below 1, got 1.0"),
        ("rmsprop", "epsilon", "small", "a positive number, got 'small'"),
        ("adam", "beta1", 1.0, "a number of at least 0 and below 1, got 1.0"),
        ("adam", "beta2", 1.0, "a number of at least 0 and below 1, got 1.0"),
        ("adamw", "weight_decay", np.inf, "a number of at least 0, got inf"),
    ],
)
def test_options_out_of_range_are_refused(name, option, value, words):
    with pytest.raises(nnxp.InputError) as caught:
        OPTIMIZERS[name](**{option: value})
    assert str(caught.value) == f"{option} must be {words}"


def test_a_changed_learning_rate_is_checked_and_stays_a_plain_float():
    optimizer = nnxp.SGD()
    optimizer.learning_rate = np.float64(0.05)
    assert type(optimizer.learning_rate) is float
    with pytest.raises(nnxp.InputError, match="learning_rate must be a positive number, got nan"):
        optimizer.learning_rate = np.nan
    assert repr(nnxp.AdamW(weight_decay=0.1)) == (
        "AdamW(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08, weight_decay=0.1, "
        "decayed='all')"
    )


@every_optimizer
@pytest.mark.parametrize("wrong", [np.ones(2), np.ones((1, 2)), np.ones((3, 2), "float32")])
def test_gradient_of_another_shape_changes_nothing(name, wrong):
    params = {"V": np.ones(2), "W": np.ones((3, 2))}
    optimizer = OPTIMIZERS[name]()
    with pytest.raises(
        nnxp.InputError,
        match=r"one shape, dtype and device, got .* on cpu, \(3, 2\) float64; and an array",
    ):
        optimizer.update(params, {"V": np.ones(2), "W": wrong})
    assert (params["V"] == 1).all()
    assert optimizer.steps == 0


@pytest.mark.parametrize("name", [n for n, kind in OPTIMIZERS.items() if kind.slots])
def test_an_optimizer_of_another_network_is_refused(name):
    optimizer = OPTIMIZERS[name]()
    optimizer.update({"W": np.ones(2)}, {"W": np.ones(2)})
    params = {"W": np.ones(3)}
    with pytest.raises(nnxp.InputError, match="already trained another W.*make a new optimizer"):
        optimizer.update(params, {"W": np.ones(3)})
    assert (params["W"] == 1).all()
    assert optimizer.steps == 1


def test_gradients_that_are_no_arrays_or_on_another_device_are_refused():
    with pytest.raises(nnxp.InputError, match="update expects arrays, got list"):
        nnxp.SGD().update({"W": [1.0]}, {"W": [1.0]})
    elsewhere = nnxp.device("strict:device1").asarray([1.0])
    with pytest.raises(
        nnxp.InputError, match=r"numpy on cpu, .* and an array of array_api_strict.*asarray"
    ):
        nnxp.SGD().update({"W": np.ones(1)}, {"W": elsewhere})
