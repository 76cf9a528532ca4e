"""Structure: networks whose layers change, and the settings, identity and state of parts."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from builders import numbers
from pairs import Swish, assert_equal, devices, fit, trainer

import nnxp
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.optimizers import OPTIMIZERS
from nnxp.parts import Part, Place, build_part, describe_part


def affine(inputs=4, outputs=4, seed=0, **options):
    return nnxp.Affine(inputs, outputs, rng=np.random.default_rng(seed), **options)


def round_trip(part):
    place = Place(nnxp.device("cpu"), "float32", 1000)
    return build_part(json.loads(json.dumps(describe_part(part))), place)


@devices
def test_layers_replaced_two_levels_down_are_named_and_trained(spec):
    def trained(capture):
        one = trainer(spec, capture=capture)
        place = {"device": spec, "dtype": "float64"}
        inner = nnxp.Sequential([affine(9, 9, 1, **place), nnxp.Tanh()])
        one.network.layers = [
            one.network[0],
            nnxp.Sequential([nnxp.Residual([inner])]),
            *one.network[2:],
        ]
        one.optimizer = nnxp.SGD(0.1)
        fit(one)
        new = [affine(9, 7, 2, **place), affine(7, 9, 3, **place)]
        inner.layers = new
        name = "sequential1.residual1.sequential1.W2"
        before = one.network.device.to_host(one.network.parameters()[name]).copy()
        assert before.shape == (7, 9)
        fit(one)
        after = one.network.device.to_host(new[1].params["W"])
        assert abs(after - before).max() > 0
        return one

    one = trained("auto")
    assert one.captured == "captured"
    assert_equal(one, trained(False))


def test_network_slices_are_tuples_of_layers():
    network = nnxp.Sequential([affine(), nnxp.ReLU(), affine(seed=1)])
    assert network[1:] == (network[1], network[2])
    assert network[-1] is network[2]


def test_layer_that_two_blocks_share_after_an_assignment_is_refused():
    shared = affine()
    one, other = nnxp.Sequential([affine(seed=1)]), nnxp.Sequential([affine(seed=2)])
    network = nnxp.Sequential([one, other])
    trained = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD())
    one.layers = other.layers = [shared]
    with pytest.raises(nnxp.InputError, match=r"Affine\(4, 4\) is in the network twice; use one"):
        network.parameters()
    data = nnxp.data.Dataset(np.ones((4, 4)), np.arange(4))
    with pytest.raises(nnxp.InputError, match="is in the network twice"):
        trained.fit(data, epochs=1, batch_size=2, rng=np.random.default_rng(0))


def test_network_within_itself_is_refused():
    inner = nnxp.Sequential([affine()])
    outer = nnxp.Sequential([inner])
    for network, layers in ((outer, [outer]), (inner, [affine(), outer]), (inner, [inner])):
        with pytest.raises(nnxp.InputError, match="a Sequential cannot have itself as a layer"):
            network.layers = layers
    assert len(inner) == 1


class Pair(Swish):
    """A layer with layers that are not part of a network."""

    def __init__(self, held):
        self.held = held


class OwnWeights(nnxp.Sequential):
    def __init__(self, layers):
        self.params["scale"] = np.ones(1)
        super().__init__(layers)


class LossWithLayer(nnxp.SoftmaxWithLoss):
    def __init__(self, layer):
        self.layer = layer


@pytest.mark.parametrize("hold", [lambda x: x, lambda x: [1, (x,)], lambda x: {"a": [x]}])
def test_layer_within_a_layer_that_is_no_network_is_refused(hold):
    layer = Pair(None)
    network = nnxp.Sequential([affine(), layer])
    one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD())
    layer.held = hold(affine(seed=1))
    message = (
        r"Pair\(.*\) has the layer Affine\(4, 4\) as an attribute.* into the network: a Sequential"
    )
    with pytest.raises(nnxp.InputError, match=message):
        nnxp.Sequential([affine(), layer])
    data = nnxp.data.Dataset(np.ones((4, 4)), np.arange(4))
    with pytest.raises(nnxp.InputError, match=message):
        one.fit(data, epochs=1, batch_size=2, rng=np.random.default_rng(0))
    with pytest.raises(nnxp.InputError, match=r"LossWithLayer\(.* has the layer Affine"):
        nnxp.Trainer(nnxp.Sequential([affine()]), LossWithLayer(affine()), nnxp.SGD())


def test_network_with_arrays_of_its_own_is_refused():
    block = OwnWeights([affine()])
    with pytest.raises(nnxp.InputError, match=r"OwnWeights\(.* has arrays of its own, scale"):
        nnxp.Sequential([block])
    with pytest.raises(nnxp.InputError, match="has arrays of its own"):
        nnxp.Trainer(block, nnxp.SoftmaxWithLoss(), nnxp.SGD())


def test_network_without_parameters_is_not_trained():
    network = nnxp.Sequential([nnxp.Dropout(0.5, rng=np.random.default_rng(0))])
    with pytest.raises(nnxp.InputError, match="has no parameters to train"):
        nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD())


def test_device_and_dtype_of_a_network_are_not_assigned():
    network = nnxp.Sequential([affine()])
    with pytest.raises(nnxp.InputError, match=r"use network\.to\('strict'\)"):
        network.device = "strict"
    with pytest.raises(
        nnxp.InputError, match=r"use network\.to\(network\.device, dtype='float64'\)"
    ):
        network.dtype = "float64"


class Scaled(nnxp.Sequential):
    """A block with a setting, which its forward uses."""

    def __init__(self, layers, scale, *, mode="a"):
        super().__init__(layers)
        self.scale, self.mode = scale, mode

    def forward(self, x, training=False):
        return super().forward(x, training) * self.scale

    def backward(self, dy):
        return super().backward(dy * self.scale)


class Made(nnxp.Sequential):
    """A network that makes its layers."""

    def __init__(self, width, *, rng, gain=1.0):
        self.width, self.gain = width, gain
        super().__init__([nnxp.Affine(4, width, rng=rng), nnxp.ReLU()])


class Passing(nnxp.Momentum):
    """Passes its arguments on."""

    def __init__(self, *args, extra=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


class Positional(Swish):
    def __init__(self, a, /, b):
        self.a, self.b = a, b


class Weighted(nnxp.SoftmaxWithLoss):
    def __init__(self, weights):
        self.weights = weights


class Unnamed(Swish):
    def __init__(self, *sizes):
        self.sizes = sizes


def test_settings_of_subclasses_of_all_kinds_survive(monkeypatch):
    monkeypatch.setattr("nnxp.parts._registered", dict(nnxp.parts._registered))
    for kind in (Scaled, Made, Passing, Positional, Weighted):
        nnxp.register(kind)
    block = Scaled([affine(), nnxp.Tanh()], 2.5, mode="b")
    parts = [
        (block, ("scale", "mode")),
        (nnxp.Sequential([block]), ()),
        (Made(3, rng=np.random.default_rng(0), gain=2.0), ("width", "gain")),
        (Passing(0.5, momentum=0.25, extra=7), ("learning_rate", "momentum", "extra")),
        (Positional(1, (2, 3)), ("a", "b")),
        (Weighted([1.0, 2.0]), ("weights",)),
    ]
    for part, names in parts:
        built = round_trip(part)
        assert type(built) is type(part)
        assert repr(built) == repr(part)
        for name in names:
            assert getattr(built, name) == getattr(part, name)
            if isinstance(part, (nnxp.Sequential, nnxp.Optimizer)):
                assert f"{name}=" in repr(part)
    assert round_trip(nnxp.Sequential([block]))[0].scale == 2.5
    with pytest.raises(nnxp.InputError, match="Unnamed cannot be saved: its __init__ takes argum"):
        describe_part(Unnamed(1, 2))
    assert repr(Unnamed(1, 2)).startswith("Unnamed(")


class Color(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        Color.RED,
        collections.namedtuple("Point", "x y")(1, 2),
        collections.Counter("a"),
        np.longdouble(1) / 3,
        10**30,
        float("nan"),
        {1: 2},
        {"a", "b"},
        np.zeros(2),
        b"a",
        1j,
    ],
    ids=lambda x: type(x).__name__,
)
def test_setting_that_would_come_back_as_another_is_refused(value):
    for setting in (value, [value], {"a": (value,)}):
        with pytest.raises(nnxp.InputError, match=r"Positional\.b cannot be saved"):
            describe_part(Positional(1, setting))


def test_base_classes_are_not_registered():
    for base in (nnxp.Layer, nnxp.Loss, nnxp.Optimizer):
        with pytest.raises(nnxp.InputError, match="register expects a subclass"):
            nnxp.register(base)
    shared = set(nnxp.ElasticDistortion.__mro__) - {nnxp.ElasticDistortion, Part, object}
    assert len(shared) > 1
    for base in (nnxp.Layer, nnxp.Loss, nnxp.Optimizer, *shared):
        with pytest.raises(nnxp.InputError, match="is not registered"):
            build_part(
                {"type": f"nnxp.{base.__name__}", "config": {}},
                Place(nnxp.device("cpu"), "float32", 9),
            )


def test_class_of_the_name_of_a_registered_one_is_not_saved(monkeypatch):
    monkeypatch.setattr("nnxp.parts._registered", dict(nnxp.parts._registered))
    nnxp.register(Swish)
    other = type("Swish", (nnxp.Tanh,), {"__module__": "elsewhere"})
    with pytest.raises(nnxp.InputError, match="Swish is registered for the class of module"):
        describe_part(nnxp.Sequential([affine(), other()]))


def test_resume_with_the_same_optimizer_and_with_given_networks(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    one = trainer(optimizer=nnxp.Adam())
    one.network[0].trainable = False
    fit(one)
    one.save(path)
    again = nnxp.Trainer.resume(path, optimizer=one.optimizer)
    fit(again)
    given = trainer()  # nothing is frozen here
    other = nnxp.Trainer.resume(path, network=given.network)
    assert not given.network[0].trainable
    fit(other)
    np.testing.assert_equal(numbers(other), numbers(again))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["adagrad", "rmsprop", "adam", "adamw"])
def test_remedy_for_a_tiny_epsilon_works(name, dtype):
    limits = np.finfo(dtype)
    for epsilon in (float(limits.smallest_normal) * 1.001, 5e-324):
        optimizer = OPTIMIZERS[name](epsilon=epsilon)
        network = nnxp.mlp([64, 5, 10], rng=np.random.default_rng(0), dtype=dtype)
        one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), optimizer)
        try:
            fit(one)
        except nnxp.InputError as error:
            assert f"epsilon of {optimizer!r} is too small for {dtype}; use epsilon=" in str(error)
            value = float(str(error).partition("; use epsilon=")[2].split()[0])
            optimizer.epsilon = value
            fit(one)
        else:
            assert epsilon > 5e-324
    assert np.isfinite(network.parameters()["W1"]).all()


def test_row_offset_beyond_the_range_of_int32_wraps_around():
    layer, other = (nnxp.Dropout(0.5, rng=np.random.default_rng(0)) for _ in range(2))
    x = np.ones((4, 4096), "float32")
    layer.row_offset, other.row_offset = 2**20 + 3, 3  # 2**32 numbers further on
    np.testing.assert_array_equal(layer.forward(x, training=True), other.forward(x, training=True))
    layer.row_offset = 2**19 - 2
    masks = layer.forward(x, training=True)
    assert 0.45 < (masks > 0).mean() < 0.55


def test_file_cannot_ask_for_more_numbers_than_it_has(tmp_path):
    place = Place(nnxp.device("cpu"), "float32", 30)
    described = describe_part(nnxp.Sequential([affine(), affine()]))  # 40 numbers
    with pytest.raises(nnxp.InputError, match="Affine would have 20 numbers, and 10 are left"):
        build_part(described, place)


def test_kept_bytes_count_the_buffers_of_programs():
    network = nnxp.mlp([64, 500, 10], rng=np.random.default_rng(0))
    one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam())
    train, _ = nnxp.data.load_digits()
    one.fit(train, epochs=1, batch_size=1000, rng=np.random.default_rng(0))
    # At least the hidden layer's outputs of a batch, beside parameters, gradients and state.
    parameters = sum(x.nbytes for x in network.parameters().values())
    assert one._stepper.captured.nbytes > 4 * parameters + 1000 * 500 * 4


def test_mean_and_variance_of_a_very_large_batch_are_accurate():
    rows = 1_000_000
    x = np.random.default_rng(0).random((rows, 2), np.float32) + np.float32(1)
    layer = nnxp.BatchNorm(2, momentum=1.0)
    layer.forward(x, training=True)
    exact = x.mean(axis=0, dtype="float64")
    # Blocks of 1024 rows, their sums again in blocks: fewer than 2 * 1024 + 1 roundings.
    assert (abs(layer.state["running_mean"] - exact) <= 2049 * 2.0**-24 * exact).all()


@pytest.mark.interop
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_batch_norm_equals_pytorchs(dtype):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(size=(64, 5)).astype(dtype) for _ in range(2))
    layer = nnxp.BatchNorm(5, dtype=dtype)
    theirs = torch.nn.BatchNorm1d(5, dtype=getattr(torch, dtype))
    inputs = torch.tensor(x, requires_grad=True)
    outputs = theirs(inputs)
    outputs.backward(torch.tensor(dy))
    y = layer.forward(x, training=True)
    dx = layer.backward(dy)
    expected = [outputs, inputs.grad, theirs.weight.grad, theirs.bias.grad]
    expected += [theirs.running_mean, theirs.running_var]
    got = [y, dx, layer.grads["gamma"], layer.grads["beta"], *layer.state.values()]
    # Sums of n = 64 terms of about 1: n u each (Higham 2002, eq. 3.5), in a chain of three.
    bound = 3 * 64 * float(np.finfo(dtype).eps)
    for mine, their in zip(got, expected, strict=True):
        np.testing.assert_allclose(mine, their.detach().numpy(), rtol=bound, atol=bound)


class Nothing(nnxp.Loss):
    pass


def test_loss_without_methods_says_which_are_missing():
    with pytest.raises(NotImplementedError, match="Nothing does not define forward"):
        Nothing().forward(np.ones((2, 2)), np.ones(2))
    with pytest.raises(NotImplementedError, match="Nothing does not define backward"):
        Nothing().backward()


def test_single_step_of_read_only_parameters():
    """Arrays in shared memory, as a process pool hands them over, are read-only."""
    one = trainer()
    one.step(np.ones((5, 64)), np.arange(5))
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(one, protocol=5, buffer_callback=buffers.append)
    other = pickle.loads(data, buffers=[bytes(x) for x in buffers])
    other.step(np.ones((5, 64)), np.arange(5))
    assert other.optimizer.steps == 2
    for x in one.network.parameters().values():
        x.flags.writeable = False
    same = nnxp.Trainer(one.network, one.loss, nnxp.SGD(0.1))
    same.step(np.ones((5, 64)), np.arange(5))
    assert same.optimizer.steps == 1


def test_results_share_no_memory_with_arguments_of_another_dtype(monkeypatch):
    """NumPy would copy such an argument first, at each step."""
    lower, checked = NumpyOps.lower, []

    def watched(self, function, args, kwargs, out):
        for x in args:
            if isinstance(x, np.ndarray) and x.dtype != out.dtype:
                checked.append(function)
                assert not np.may_share_memory(x, out)
        return lower(self, function, args, kwargs, out)

    monkeypatch.setattr(NumpyOps, "lower", watched)
    network = nnxp.mlp([64, 64, 64, 10], rng=np.random.default_rng(0))
    one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.01))
    fit(one)
    assert np.greater in checked


@pytest.mark.interop
def test_blas_threads_are_restored_where_openmp_has_more():
    """In a process of its own, since imports cannot be undone."""
    code = """
import sklearn.utils, threadpoolctl, numpy as np, nnxp
assert any(x["user_api"] == "openmp" for x in threadpoolctl.threadpool_info())
rng = np.random.default_rng(0)
one = nnxp.Trainer(nnxp.mlp([64, 5, 10], rng=rng), nnxp.SoftmaxWithLoss(), nnxp.SGD())
train, _ = nnxp.data.load_digits()
with threadpoolctl.threadpool_limits(2, user_api="blas"):
    with threadpoolctl.threadpool_limits(3, user_api="openmp"):
        one.fit(train, epochs=1, batch_size=50, rng=rng)
        pools = threadpoolctl.threadpool_info()
        print({x["num_threads"] for x in pools if x["user_api"] == "blas"})
"""
    pytest.importorskip("sklearn")
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "{2}\n"


class Layered(nnxp.L2):
    """A penalty that refers to a layer, which the network has or has not."""

    def __init__(self, layer):
        super().__init__(0.1)
        self.layer = layer


def test_layer_of_the_network_may_be_an_attribute_of_another_part():
    network = nnxp.Sequential([affine()])
    parts = nnxp.SoftmaxWithLoss(), nnxp.SGD()
    nnxp.Trainer(network, *parts, penalty=Layered(network[0]))
    with pytest.raises(nnxp.InputError, match=r"Layered\(.* has the layer Affine"):
        nnxp.Trainer(network, *parts, penalty=Layered(affine()))
    layer = Pair({1: [{affine()}]})
    with pytest.raises(nnxp.InputError, match="has the layer Affine"):
        nnxp.Sequential([affine(), layer])


class TinyFactor(nnxp.SGD):
    def factors(self):
        return (self.learning_rate * 1e-60,)


class WithoutNumbers(nnxp.Optimizer):
    def __init__(self):
        pass

    def update(self, params, grads):
        for name, gradient in grads.items():
            params[name] -= 0.1 * gradient


@pytest.mark.filterwarnings("ignore:no step is captured")
def test_tiny_factors_are_named_and_unused_numbers_are_not_asked_for():
    network = nnxp.mlp([64, 5, 10], rng=np.random.default_rng(0))
    one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), TinyFactor(0.1))
    with pytest.raises(
        nnxp.InputError, match=r"factors\(\) of TinyFactor.* has 1e-61, which counts"
    ):
        fit(one)
    one.optimizer = WithoutNumbers()
    fit(one)
    assert one.optimizer.steps == 8


@dataclasses.dataclass
class Equal(nnxp.Layer):
    """Equal to each other layer of its class."""

    def __post_init__(self):
        self.device, self.dtype = "cpu", "float32"
        self.params["g"] = np.ones(2, "float32")

    def forward(self, x, training=False):
        return x


def test_summary_tells_equal_layers_apart():
    network = nnxp.Sequential([Equal(), Equal()])
    lines = network.summary().splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["2", "2"]


class Keyed(Swish):
    """Parameters of any names and shapes."""

    def __init__(self, **arrays):
        self.device, self.dtype = "cpu", "float64"
        self.params |= arrays


def test_parameters_of_one_name_are_refused():
    layers = [Keyed(W=np.ones(1), W1=np.ones(1)), *(Keyed(W=np.ones(1)) for _ in range(10))]
    network = nnxp.Sequential(layers)
    with pytest.raises(nnxp.InputError, match="two arrays of the network would be named W11; ren"):
        network.parameters()


class Loose(Swish):
    def __init__(self, size, **options):
        self.size = size


class Head(nnxp.Sequential):
    """Adds a layer of its own."""

    def __init__(self, layers):
        super().__init__([*layers, nnxp.Tanh()])


class Aliased(nnxp.Sequential):
    def __init__(self, layers):
        super().__init__(layers)
        self.first = self.layers[0]


def test_networks_of_users_are_rebuilt_and_moved_as_they_are(monkeypatch):
    monkeypatch.setattr("nnxp.parts._registered", dict(nnxp.parts._registered))
    with pytest.raises(nnxp.InputError, match="Loose cannot be saved: its __init__ takes argume"):
        describe_part(Loose(1))
    nnxp.register(Head)
    assert repr(round_trip(Head([affine()]))) == "Head(Affine(4, 4), Tanh())"
    moved = Aliased([affine(), nnxp.ReLU()]).to("strict")
    assert moved.first is moved[0]


class Single(Swish):
    """A parameter without axes, which is not used."""

    def __init__(self):
        self.device, self.dtype = "cpu", "float64"
        self.params["t"] = np.array(2.0)


def test_array_without_axes_survives_a_checkpoint(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    one, given = trainer(), trainer()
    for each in (one, given):
        each.network.layers = [*each.network, Single()]
    one.save(path)
    given.network[-1].params["t"] = np.array(0.0)
    resumed = nnxp.Trainer.resume(
        path, network=given.network, loss=given.loss, optimizer=given.optimizer
    )
    assert resumed.network.parameters()["t1"] == 2.0
