"""Layers: gradients, dtypes, devices, shapes and errors of every layer on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import LAYERS, affine

import nnxp
from nnxp.devices import DTYPES

layers = pytest.mark.parametrize(
    ("make", "inputs", "outputs"), list(LAYERS.values()), ids=list(LAYERS)
)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_the_table_holds_every_layer():
    public = [getattr(nnxp, name) for name in nnxp.__all__]
    own = {x for x in public if isinstance(x, type) and issubclass(x, nnxp.Layer)}
    own -= {nnxp.Layer, nnxp.ThreeLayerNet, nnxp.TwoLayerNet}
    assert {name.partition(",")[0] for name in LAYERS} == {kind.__name__ for kind in own}


@layers
def test_gradients_agree_with_differences(make, inputs, outputs):
    # On NumPy: the next but one test compares the gradients of other libraries with NumPy's.
    network = nnxp.Sequential([make(nnxp.device("cpu"), "float64")])
    errors = nnxp.check_gradients(
        network, nnxp.MeanSquaredError(), normal(*inputs), normal(*outputs, seed=1)
    )
    # Rounding leaves eps |f| / step = 2e-16 * 1 / 8e-6 = 3e-11 beside gradients of about 1e-2.
    assert max(errors.values()) < 1e-8
    assert set(errors) == {"inputs", *network.parameters()}


@dtypes
@layers
def test_dtype_device_and_shape_are_kept_and_inputs_untouched(
    backend, make, inputs, outputs, dtype
):
    layer = make(backend.device, dtype)
    x, dy = backend.array(normal(*inputs), dtype), backend.array(normal(*outputs, seed=1), dtype)
    x_before, dy_before = backend.host(x).copy(), backend.host(dy).copy()
    y = layer.forward(x, training=True)
    dx = layer.backward(dy)
    assert tuple(y.shape) == outputs
    assert layer.output_shape(inputs[1:]) == outputs[1:]
    assert tuple(dx.shape) == inputs
    for array in (y, dx, *layer.grads.values()):
        assert backend.device.holds(array)
        assert array.dtype == getattr(backend.device.xp, dtype)
    assert layer.grads.keys() == layer.params.keys()
    np.testing.assert_array_equal(backend.host(x), x_before)
    np.testing.assert_array_equal(backend.host(dy), dy_before)


@layers
def test_values_equal_those_on_numpy(backend, make, inputs, outputs):
    results = []
    for device in (nnxp.device("cpu"), backend.device):
        layer = make(device, "float64")
        y = layer.forward(device.asarray(normal(*inputs)), training=True)
        dx = layer.backward(device.asarray(normal(*outputs, seed=1)))
        results.append([device.to_host(a) for a in (y, dx, *layer.grads.values())])
    for expected, got in zip(*results, strict=True):
        # Sums of at most 5 products, and exp to a few units in the last place.
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)


@layers
def test_each_forward_allows_one_backward(backend, make, inputs, outputs):
    layer = make(backend.device, "float32")
    x, dy = backend.array(normal(*inputs), "float32"), backend.array(normal(*outputs), "float32")
    with pytest.raises(nnxp.CallOrderError, match=r"needs forward\(x, training=True\) first"):
        layer.backward(dy)
    layer.forward(x)
    with pytest.raises(nnxp.CallOrderError, match="needs forward"):
        layer.backward(dy)
    layer.forward(x, training=True)
    layer.forward(x[1:, ...])  # looking at predictions in between changes nothing
    layer.backward(dy)
    with pytest.raises(nnxp.CallOrderError, match="each such forward allows one backward"):
        layer.backward(dy)


@layers
def test_wrong_inputs_are_refused(backend, make, inputs, outputs):
    layer = make(backend.device, "float32")
    name = "|".join({type(leaf).__name__ for leaf in layer.leaves()})
    with pytest.raises(nnxp.InputError, match=rf"({name}).*int64"):
        layer.forward(backend.array(np.ones(inputs, dtype="int64")))
    with pytest.raises(nnxp.NnxpError, match=rf"({name}).*got .*list.*asarray"):
        layer.forward(np.ones(inputs).tolist())
    layer.forward(backend.array(normal(*inputs), "float32"), training=True)
    with pytest.raises(nnxp.InputError, match=rf"({name}).*backward expects.*got .*\(1,"):
        layer.backward(backend.array(np.ones((1, *outputs[1:])), "float32"))
    with pytest.raises(nnxp.InputError, match="float64"):
        layer.backward(backend.array(np.ones(outputs), "float64"))
    layer.backward(backend.array(np.ones(outputs), "float32"))  # a refused one can be repeated


@pytest.mark.parametrize("training", [False, True])
@layers
def test_inputs_of_another_device_or_dtype_are_refused(make, inputs, outputs, training):
    layer = make(nnxp.device("cpu"), "float32")
    draws = "counter" in layer.state  # in training, from bits that do for every dtype
    if layer.device is None or (draws and not training):
        return
    name = "|".join({type(leaf).__name__ for leaf in layer.leaves()})
    before = {key: x.copy() for key, x in layer.state.items()}
    x = normal(*inputs)
    other = nnxp.device("strict:device1").asarray(x, dtype="float32")
    with pytest.raises(nnxp.DeviceError, match=rf"({name}).* on cpu, got an array of array_api"):
        layer.forward(other, training)
    if not draws:
        with pytest.raises(nnxp.InputError, match=r"in float32, .* float64; convert with") as told:
            layer.forward(x, training)
        assert not layer.grads
        x = eval(str(told.value).rpartition("with ")[2], {"x": x})
    np.testing.assert_equal(layer.state, before)
    assert layer.forward(x, training).shape == outputs


def test_affine_refuses_wrong_shape_dtype_and_device():
    layer = affine("cpu", "float32")
    with pytest.raises(nnxp.InputError, match=r"\(batch, 4\), got \(32, 2, 2\); flatten the"):
        layer.forward(np.ones((32, 2, 2), "float32"))
    with pytest.raises(nnxp.InputError, match=r"\(batch, 4\), got \(32, 5\)$"):
        layer.forward(np.ones((32, 5), "float32"))
    with pytest.raises(
        nnxp.InputError, match=r'float32, got inputs of float64.*x.astype\("float32"\)'
    ):
        layer.forward(np.ones((32, 4)))
    x = nnxp.device("strict:device1").asarray(np.ones((32, 4), "float32"))
    with pytest.raises(
        nnxp.DeviceError, match=r"on cpu, got an array of array_api_strict on .*device1"
    ):
        layer.forward(x)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 3), {}, "inputs must be a whole number of at least 1, got 0"),
        ((4, 2.5), {}, "outputs must be a whole number of at least 1, got 2.5"),
        ((4, 3), {"rng": -1}, r"rng must be a seed such as 0, or a numpy.random.Generator, got -1"),
        ((4, 3), {"dtype": "float3"}, "unknown dtype 'float3'; did you mean 'float32'"),
        ((4, 3), {"initializer": 1}, "a name such as .*he_normal, got 1"),
        ((4, 3), {"device": "cup"}, "unknown device 'cup'; did you mean 'cpu'"),
        ((4, 3), {"initializer": lambda rng, shape: np.zeros(3)}, r"return shape \(4, 3\), got"),
    ],
)
def test_affine_refuses_wrong_arguments(arguments, options, message):
    with pytest.raises(nnxp.InputError, match=message):
        nnxp.Affine(*arguments, **{"rng": np.random.default_rng(0)} | options)


def test_training_does_not_change_the_initializers_array():
    weights = np.ones((4, 3))
    layer = nnxp.Affine(
        4, 3, rng=np.random.default_rng(0), initializer=lambda rng, shape: weights, dtype="float64"
    )
    layer.params["W"] -= 1.0
    assert (weights == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_and_softmax_are_stable_at_a_thousand(backend, dtype):
    x = backend.array([[1000.0, -1000.0, 0.0]], dtype)  # warnings are errors
    np.testing.assert_array_equal(backend.host(nnxp.Sigmoid().forward(x)), [[1, 0, 0.5]])
    np.testing.assert_array_equal(backend.host(nnxp.Softmax().forward(x)), [[1, 0, 0]])


def test_backward_parameters_equals_backward(backend):
    x, dy = backend.array(normal(5, 4)), backend.array(normal(5, 3, seed=1))
    whole, half = (affine(backend.device, "float64") for _ in range(2))
    for layer in (whole, half):
        layer.forward(x, training=True)
    whole.backward(dy)
    half.backward_parameters(dy)
    for name in ("W", "b"):
        np.testing.assert_array_equal(
            backend.host(whole.grads[name]), backend.host(half.grads[name])
        )


def test_shapes_without_rows_or_scores_are_refused():
    with pytest.raises(nnxp.InputError, match="Flatten expects .* got a single number"):
        nnxp.Flatten().forward(np.array(1.0))
    for shape in ((), (2, 0)):
        with pytest.raises(nnxp.InputError, match="Softmax expects rows of scores, got"):
            nnxp.Softmax().forward(np.ones(shape))


def test_initial_weight_beyond_the_dtype_is_refused():
    with pytest.raises(nnxp.InputError, match=r"1e\+300 of float64, which float32 cannot hold"):
        nnxp.Affine(
            1, 1, rng=np.random.default_rng(0), initializer=lambda rng, shape: np.full(shape, 1e300)
        )
    wide = nnxp.Affine(1, 1, rng=np.random.default_rng(0), dtype="float64")
    wide.params["W"][...] = 1e300
    with pytest.raises(nnxp.InputError, match="cannot hold"):
        wide.to("cpu", dtype="float32")


@given(st.integers(0, 6), st.integers(1, 6), st.integers(1, 6))
def test_affine_shapes(batch, inputs, outputs):
    layer = nnxp.Affine(inputs, outputs, rng=np.random.default_rng(0))
    assert layer.forward(np.ones((batch, inputs), "float32"), training=True).shape == (
        batch,
        outputs,
    )
    assert layer.backward(np.ones((batch, outputs), "float32")).shape == (batch, inputs)
    assert layer.grads["W"].shape == (inputs, outputs)
    assert layer.grads["b"].shape == (outputs,)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_flatten_and_back_is_the_identity(shape):
    x = np.arange(float(np.prod(shape))).reshape(shape)
    layer = nnxp.Flatten()
    y = layer.forward(x, training=True)
    assert y.shape == (shape[0], np.prod(shape[1:]))
    np.testing.assert_array_equal(layer.backward(y), x)


@pytest.mark.parametrize("node", [nnxp.Add, nnxp.Multiply])
def test_nodes_refuse_wrong_inputs_and_order(node):
    with pytest.raises(nnxp.CallOrderError, match=rf"{node.__name__}.* needs forward first"):
        node().backward(1.0)
    with pytest.raises(nnxp.InputError, match=r"one shape, got \(2,\) and \(3,\)"):
        node().forward(np.ones(2), np.ones(3))
    used = node()
    used.forward(np.ones(2), np.ones(2))
    with pytest.raises(nnxp.InputError, match=r"a gradient of one shape, got \(2,\) and \(\)"):
        used.backward(1.0)
    used.backward(np.ones(2))
    with pytest.raises(nnxp.CallOrderError, match="each forward allows one backward"):
        used.backward(np.ones(2))


def test_nodes_run_on_every_backend(backend):
    x, y, dz = (backend.array([float(i), 2.0]) for i in (1, 3, 5))
    product, total = nnxp.Multiply(), nnxp.Add()
    np.testing.assert_array_equal(backend.host(product.forward(x, y)), [3, 4])
    np.testing.assert_array_equal(backend.host(total.forward(x, y)), [4, 4])
    for got, expected in zip(product.backward(dz), ([15, 4], [5, 4]), strict=True):
        np.testing.assert_array_equal(backend.host(got), expected)
    for got in total.backward(dz):
        np.testing.assert_array_equal(backend.host(got), [5, 2])


def on_first_and_second(host):
    return [nnxp.device(f"strict:device{i}").asarray(host) for i in (1, 2)]


@pytest.mark.parametrize("kind", [nnxp.ReLU, nnxp.Sigmoid, nnxp.Identity])
def test_gradients_on_another_device_and_array_subclasses_are_refused(kind):
    layer = kind()
    first, second = on_first_and_second(np.ones((1, 2)))
    layer.forward(first, training=True)
    with pytest.raises(nnxp.DeviceError, match="gradient on .*device1.*, got .*device2"):
        layer.backward(second)
    for odd in (np.ones((1, 2)).view(np.matrix), np.ma.array([[1.0, 2.0]], mask=[[0, 1]])):
        with pytest.raises(nnxp.InputError, match=f"plain array, got {type(odd).__name__}"):
            kind().forward(odd)
        with pytest.raises(nnxp.InputError, match=f"plain array, got {type(odd).__name__}"):
            layer.backward(odd)
        with pytest.raises(nnxp.InputError, match=f"plain array, got {type(odd).__name__}"):
            nnxp.Multiply().forward(odd, odd)
    with pytest.raises(
        nnxp.DeviceError, match="expects two inputs on one device, got cpu and .*asarray"
    ):
        nnxp.Add().forward(np.ones(2), nnxp.device("strict:device1").asarray([1.0, 1.0]))
