"""Networks: parameters, forward and backward, loading, moving, the summary, errors."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from builders import three_layers
from tables import device_or_skip

import nnxp
from nnxp.devices.libraries import LIBRARIES


def test_parameters_are_ordered_and_weights_are_inputs_by_outputs():
    parameters = three_layers().parameters()
    assert {name: x.shape for name, x in parameters.items()} == {
        "W1": (6, 5), "b1": (5,), "W2": (5, 4), "b2": (4,), "W3": (4, 3), "b3": (3,),
    }  # fmt: skip
    assert list(parameters) == ["W1", "b1", "W2", "b2", "W3", "b3"]
    assert repr(parameters).splitlines()[0] == "W1: (6, 5) float32"


def test_parameters_write_through_to_the_layers():
    network = three_layers()
    replaced = np.zeros((5, 4), "float32")
    network.parameters()["W2"] = replaced
    np.testing.assert_array_equal(network.layers[2].params["W"], replaced)
    network.parameters()["W2"] -= 1  # what was handed in stays the caller's
    assert (network.layers[2].params["W"] == -1).all()
    assert (replaced == 0).all()
    for wrong, message in [
        (np.zeros((5, 5), "float32"), r"W2 expects \(5, 4\) float32, got \(5, 5\) float32$"),
        (np.zeros((5, 4)), "got .* float64; convert it with astype"),
    ]:
        with pytest.raises(nnxp.InputError, match=message):
            network.parameters()["W2"] = wrong
    with pytest.raises(nnxp.DeviceError, match="parameter W2 is on cpu, got a list"):
        network.parameters()["W2"] = [1.0]
    with pytest.raises(nnxp.InputError, match="unknown parameter 'W9'"):
        network.parameters()["W9"] = replaced
    with pytest.raises(nnxp.InputError, match="W2 cannot be deleted"):
        del network.parameters()["W2"]


def test_layers_apply_in_order_and_backward_reverses(backend):
    rng = np.random.default_rng(0)
    network = nnxp.mlp([6, 5, 3], rng=rng, dtype="float64", device=backend.device)
    host = {name: backend.host(x) for name, x in network.parameters().items()}
    x = np.random.default_rng(1).normal(size=(7, 6))
    dy = np.random.default_rng(2).normal(size=(7, 3))
    hidden = np.maximum(x @ host["W1"] + host["b1"], 0)
    y = network.forward(backend.array(x), training=True)
    # Sums of at most seven products of numbers near 1.
    exact = {"rtol": 1e-13, "atol": 1e-14}
    np.testing.assert_allclose(backend.host(y), hidden @ host["W2"] + host["b2"], **exact)
    dx = network.backward(backend.array(dy))
    d_hidden = (dy @ host["W2"].T) * (hidden > 0)
    np.testing.assert_allclose(backend.host(dx), d_hidden @ host["W1"].T, **exact)
    gradients = {name: backend.host(g) for name, g in network.gradients().items()}
    assert list(gradients) == list(host)
    np.testing.assert_allclose(gradients["W1"], x.T @ d_hidden, **exact)
    np.testing.assert_allclose(gradients["b2"], dy.sum(axis=0), **exact)


def test_training_skips_the_input_gradient_alone(monkeypatch):
    network = nnxp.Sequential([nnxp.Flatten(), *three_layers().layers])
    x, dy = np.ones((2, 3, 2), "float32"), np.ones((2, 3), "float32")
    network.forward(x, training=True)
    assert network.backward(dy).shape == x.shape
    whole = dict(network.gradients())
    network.forward(x, training=True)
    backward, called = nnxp.Affine.backward, []

    def spied(self, dy):
        called.append(self)
        return backward(self, dy)

    only_parameters = nnxp.Affine.backward_parameters

    def spied_parameters(self, dy):
        only_parameters(self, dy)

    monkeypatch.setattr(nnxp.Flatten, "backward", None)
    monkeypatch.setattr(nnxp.Affine, "backward", spied)
    # A replaced `backward` alone would be used on the first layer too.
    monkeypatch.setattr(nnxp.Affine, "backward_parameters", spied_parameters)
    network.backward_parameters(dy)
    assert called == [network[5], network[3]]  # not the first Affine
    for name, gradient in network.gradients().items():
        np.testing.assert_array_equal(gradient, whole[name])


def test_gradients_before_backward_are_refused():
    with pytest.raises(nnxp.CallOrderError, match=r"call forward\(x, training=True\), then"):
        three_layers().gradients()


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one layer"),
        ([nnxp.ReLU(), "relu"], "expects layers, got 'relu' at position 2"),
    ],
)
def test_sequential_refuses_what_is_no_layer(layers, message):
    with pytest.raises(nnxp.InputError, match=message):
        nnxp.Sequential(layers)


def test_the_same_object_twice_is_refused():
    relu = nnxp.ReLU()
    with pytest.raises(nnxp.InputError, match=r"same ReLU\(\) object is at positions 1 and 3"):
        nnxp.Sequential([relu, nnxp.Identity(), relu])


def test_layers_of_other_shape_device_or_dtype_are_refused():
    rng = np.random.default_rng(0)
    first = nnxp.Affine(6, 5, rng=rng)
    with pytest.raises(nnxp.InputError, match=r"Affine\(4, 3\) expects 4 features.*\(5,\)"):
        nnxp.Sequential([first, nnxp.ReLU(), nnxp.Affine(4, 3, rng=rng)])
    for options, error in [
        ({"device": "strict:device1"}, nnxp.DeviceError),
        ({"dtype": "float64"}, nnxp.InputError),
    ]:
        with pytest.raises(error, match=r"one device in one dtype.*move one with layer.to\("):
            nnxp.Sequential([first, nnxp.Affine(5, 3, rng=rng, **options)])


def test_a_layer_whose_parameters_have_no_device_is_refused():
    class Scale(nnxp.Layer):
        def __init__(self):
            super().__init__()
            self.params["s"] = np.ones(1)

    with pytest.raises(nnxp.InputError, match=r"Scale\(\) has parameters or state, but no dev"):
        nnxp.Sequential([Scale()])


def test_a_device_is_opened_once_for_all_layers(monkeypatch):
    opened = []

    def count(place):
        opened.append(place)
        return open_strict(place)

    open_strict = LIBRARIES["strict"]
    monkeypatch.setitem(LIBRARIES, "strict", count)
    three_layers().to("strict")
    three_layers(device="strict")
    assert len(opened) == 2


def test_mlp_with_batch_norm_and_dropout():
    network = nnxp.mlp([6, 5, 4, 3], rng=0, activation="gelu", batch_norm=True, dropout=0.25)
    assert repr(network) == (
        "Sequential(Affine(6, 5), BatchNorm(5, momentum=0.1, epsilon=1e-05), "
        "GELU(approximate='none'), Dropout(0.25), Affine(5, 4), "
        "BatchNorm(4, momentum=0.1, epsilon=1e-05), GELU(approximate='none'), Dropout(0.25), "
        "Affine(4, 3))"
    )
    assert (network[3].state["seed"] != network[7].state["seed"]).all()
    plain = nnxp.mlp([6, 5, 4, 3], rng=0, activation="gelu")
    for name, x in plain.parameters().items():
        np.testing.assert_array_equal(x, network.parameters()[name])
    only = nnxp.mlp([6, 5, 3], rng=0, dropout=0.25, dtype="float64", device="strict:device1")
    assert [type(layer).__name__ for layer in only.layers] == [
        "Affine",
        "ReLU",
        "Dropout",
        "Affine",
    ]
    assert only[2].dtype == "float64"
    assert str(only[2].device) == str(only.device)
    for wrong in (-0.1, 1.0, "much"):
        with pytest.raises(nnxp.InputError, match="dropout must be a number of at least 0 and b"):
            nnxp.mlp([6, 5, 3], rng=0, dropout=wrong)
    for wrong in ("no", 1, None):
        for make in (functools.partial(nnxp.mlp, [6, 5, 3]), nnxp.lenet):
            with pytest.raises(nnxp.InputError, match="batch_norm must be True or False, got "):
                make(batch_norm=wrong, rng=0)


def test_names_of_activations_and_widths_are_checked():
    rng = np.random.default_rng(0)
    with pytest.raises(nnxp.InputError, match="unknown activation 'rellu'; did you mean 'relu'"):
        nnxp.mlp([6, 3], rng=rng, activation="rellu")
    with pytest.raises(nnxp.InputError, match=r"unknown activation \['relu'\]; did you mean"):
        nnxp.mlp([6, 3], rng=rng, activation=["relu"])
    for wrong in ([6], 6, {6, 3}, np.array(6), np.float32):
        with pytest.raises(nnxp.InputError, match="a list of at least two widths"):
            nnxp.mlp(wrong, rng=rng)
    with pytest.raises(nnxp.InputError, match=r"layers of a network must be a list, got ReLU"):
        nnxp.Sequential(nnxp.ReLU()).layers = nnxp.ReLU()
    with pytest.raises(nnxp.InputError, match="layers of a network must be a list, got 3"):
        nnxp.Sequential(3)


def test_the_same_seed_gives_the_same_weights_on_every_device(backend):
    expected = three_layers().parameters()
    for name, x in three_layers(device=backend.device).parameters().items():
        assert backend.device.holds(x)
        np.testing.assert_array_equal(backend.host(x), expected[name])


def test_load_parameters_copies(backend):
    network = three_layers(device=backend.device)
    source = {name: x.copy() for name, x in three_layers(1).parameters().items()}
    network.load_parameters(source)
    for name, x in source.items():
        np.testing.assert_array_equal(backend.host(network.parameters()[name]), x)
    own = dict(three_layers(2, device=backend.device).parameters())  # arrays of the device do too
    network.load_parameters(own)
    parameters = network.parameters()
    for name in parameters:
        parameters[name] -= 1.0
        np.testing.assert_array_equal(backend.host(own[name]), three_layers(2).parameters()[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"W9": np.zeros(1)}, "unknown parameter 'W9'; did you mean 'W[123]'"),
        ({"W2": None}, "parameter W2 is missing; give all of W1, b1, W2, b2, W3, b3"),
        ({"b3": np.zeros(4, "float32")}, r"b3 expects \(3,\) float32, got \(4,\) float32"),
        ({"b3": np.zeros(3)}, r"b3 expects \(3,\) float32, got \(3,\) float64"),
    ],
)
def test_load_parameters_changes_all_or_nothing(change, message):
    network = three_layers()
    before = {name: x.copy() for name, x in network.parameters().items()}
    new = {name: x + 1 for name, x in before.items()} | change
    with pytest.raises(nnxp.InputError, match=message):
        network.load_parameters({name: x for name, x in new.items() if x is not None})
    for name, x in network.parameters().items():
        np.testing.assert_array_equal(x, before[name])


def test_summary_counts_parameters():
    lines = nnxp.ThreeLayerNet(784, 50, 30, 10, rng=np.random.default_rng(0)).summary().splitlines()
    assert lines[0].split() == ["layer", "output", "parameters", "count"]
    assert lines[1].split("  ")[0] == "Affine(784, 50)"
    assert "W1 (784, 50), b1 (50,)" in lines[1]
    assert lines[1].endswith("39,250")
    assert lines[-1].startswith("41,090 parameters of float32 on cpu (NumPy")


def test_lenet_has_the_layers_that_its_settings_name():
    network = nnxp.lenet(3, image=(2, 8, 9), padding=2, rng=0, batch_norm=True, dropout=0.5)
    names = [type(layer).__name__ for layer in network.layers]
    block = ["MaxPool2D", "BatchNorm", "ReLU"]
    ends = ["Flatten", "Affine", "BatchNorm", "ReLU", "Dropout", "Affine"]
    assert names == ["Conv2D", *block, "Conv2D", *block, *ends]
    x = np.random.default_rng(0).normal(size=(4, 2, 8, 9)).astype("float32")
    assert network.forward(x, training=True).shape == (4, 3)
    plain = nnxp.lenet(3, image=(2, 8, 9), padding=2, rng=0)
    assert (network.layers[0].params["W"] == plain.layers[0].params["W"]).all()
    # He: N(0, 2 / 50) of 1,000 weights; the deviation's own deviation is 1 / sqrt(2000) of it.
    deviation = plain.layers[0].params["W"].std() / (2 / 50) ** 0.5
    assert abs(deviation - 1) < 5 / 2000**0.5
    small = nnxp.lenet(rng=0, activation="tanh", dtype="float64", device="strict:device1")
    assert (small.dtype, small.device.spec) == ("float64", "strict:device1")
    with pytest.raises(nnxp.InputError, match="a window of 5 x 5 is larger than images of 2 x 2"):
        nnxp.lenet(rng=0, image=(1, 8, 8))
    for last in ((28, 20, 1), [32, 32, 3]):
        with pytest.raises(
            nnxp.InputError, match="image must be .*, whose last axis is .*; use image="
        ) as told:
            nnxp.lenet(rng=0, image=last)
        image = eval(str(told.value).rpartition("image=")[2])
        assert image == (last[2], *last[:2])
        nnxp.lenet(rng=0, image=image)
    for wrong in ((28, 28), 28, None, "abc", np.ones(3)):
        with pytest.raises(
            nnxp.InputError, match=r"image must be \(channels, height, width\), such as \(1, 28"
        ):
            nnxp.lenet(rng=0, image=wrong)
    with pytest.raises(nnxp.InputError, match="padding must be a whole number of at least 0, got "):
        nnxp.lenet(rng=0, padding=np.array([2, 2]))
    for wrong in (0, -5, 28.0, "a", None):
        with pytest.raises(nnxp.InputError, match="each number of image must be a whole number"):
            nnxp.lenet(rng=0, image=(1, wrong, 28))


def test_summary_of_images_shows_their_shapes():
    network = nnxp.lenet(rng=0)
    assert "(batch, 50, 4, 4)" not in network.summary()
    lines = network.summary((1, 28, 28)).splitlines()
    assert "(batch, 50, 4, 4)" in lines[5]
    assert lines[-1] == "431,080 parameters of float32 on cpu (NumPy " + np.__version__ + ")"
    with pytest.raises(nnxp.InputError, match="expects images of shape"):
        network.summary((784,))
    data = nnxp.data.Dataset(np.ones((4, 1, 28, 28)), np.arange(4))
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.01))
    trainer.fit(data, epochs=1, batch_size=4, rng=0)
    assert network.summary().splitlines() == lines


def test_summary_of_unknown_shapes():
    network = nnxp.Sequential([nnxp.Flatten(), nnxp.ReLU()])
    assert "(batch, …)" in network.summary()
    assert network.summary().endswith("0 parameters")
    assert (network.device, network.dtype) == (None, None)


def test_moved_network_predicts_the_same(backend):
    train, test = nnxp.data.load_digits()
    rng = np.random.default_rng(0)
    network = nnxp.ThreeLayerNet(64, 50, 30, 10, rng=rng, dtype="float64")
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    trainer.fit(train, epochs=2, batch_size=50, rng=rng)
    before = {name: x.copy() for name, x in network.parameters().items()}
    moved = network.to(backend.device)
    assert type(moved) is nnxp.ThreeLayerNet
    assert moved.device == backend.device
    scores = moved.predict(backend.array(test.inputs / 255))
    # Sums of 64 products of numbers near 1, three layers deep.
    expected = network.predict(test.inputs / 255)
    np.testing.assert_allclose(backend.host(scores), expected, rtol=1e-11, atol=1e-12)
    back = moved.to("cpu")
    parameters = moved.parameters()
    for name in parameters:
        parameters[name] -= 1.0
        np.testing.assert_array_equal(back.parameters()[name], before[name])
        np.testing.assert_array_equal(network.parameters()[name], before[name])
    single = network.to(backend.device, dtype="float32")
    assert single.dtype == "float32"
    assert single.parameters()["W1"].dtype == backend.device.xp.float32
    with pytest.raises(nnxp.InputError, match="unknown dtype 'float16'; did you mean"):
        network.to(backend.device, dtype="float16")


def test_moved_network_keeps_no_backward():
    network = three_layers()
    network.forward(np.ones((2, 6), "float32"), training=True)
    with pytest.raises(nnxp.CallOrderError):
        network.to("cpu").backward(np.ones((2, 3), "float32"))
    assert network.backward(np.ones((2, 3), "float32")).shape == (2, 6)


def test_arrays_of_other_libraries_are_refused(backend):
    network = three_layers(device=backend.device)
    for spec in ("cpu", "strict:device2"):
        other = nnxp.device(spec)
        if other != backend.device:
            here = backend.device.spec
            message = rf'on {here}, got an array of .*nnxp.device\("{here}"\)'
            with pytest.raises(nnxp.DeviceError, match=message):
                network.forward(other.asarray(np.ones((2, 6)), dtype="float32"))


@pytest.mark.interop
@pytest.mark.parametrize("other", ["cpu", "torch:cpu", "jax:cpu", "strict:device2"])
def test_each_library_refuses_arrays_of_each_other(backend, other):
    other = device_or_skip(other)
    if other == backend.device:
        pytest.skip("the same device")
    x = other.asarray(np.ones((2, 6)), dtype="float32")
    library = type(x).__module__.partition(".")[0]
    with pytest.raises(nnxp.DeviceError) as caught:
        three_layers(device=backend.device).forward(x)
    message = str(caught.value)
    assert f"on {backend.device.spec}, got an array of {library} on" in message
    assert f'nnxp.device("{backend.device.spec}").asarray' in message
    # The call that it names converts.
    carried = backend.device.asarray(other.to_host(x))
    assert three_layers(device=backend.device).predict(carried).shape == (2, 3)
