"""Trial: users' parts and replaced methods, captured where that equals plain steps."""

from __future__ import annotations

import copy
import gc
import json
import pickle
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from array_api_compat import array_namespace
from builders import Stopping, numbers
from pairs import Swish, assert_equal, devices, fit, trainer
from remedies import installs
from tables import device_or_skip

import nnxp
from nnxp.parts import Place, build_part, describe_part


class Counting(Swish):
    count = 0

    def forward(self, x, training=False):
        self.count += training
        return super().forward(x, training)


class Drawing(Swish):
    def __init__(self):
        self.rng = np.random.default_rng(0)

    def forward(self, x, training=False):
        scale = float(self.rng.uniform(0.5, 1)) if training else 1.0
        return super().forward(x * scale, training)


class Looking(Swish):
    def forward(self, x, training=False):
        if float(array_namespace(x).max(x)) > 1e9:
            raise ValueError
        return super().forward(x, training)


class HalfLoss(nnxp.Loss):
    """Half the squared error to one-hot rows, with only forward and backward."""

    def forward(self, scores, labels, training=True):
        xp = array_namespace(scores)
        classes = xp.arange(scores.shape[1], dtype=labels.dtype)
        hot = xp.astype(labels[:, None] == classes[None, :], scores.dtype)
        self.difference = scores - hot
        return xp.mean(self.difference * self.difference) / 2

    def backward(self):
        difference, self.difference = self.difference, None
        return difference / (difference.shape[0] * difference.shape[1])


class Clipping(nnxp.Momentum):
    def update(self, params, grads):
        xp = array_namespace(next(iter(grads.values())))
        norm = xp.sqrt(sum(xp.sum(g * g) for g in grads.values()))
        scale = 0.1 / xp.maximum(norm, 0.1)
        super().update(params, {name: g * scale for name, g in grads.items()})


class NamedDecay(nnxp.SGD):
    """Decays weights, and spares biases by their names."""

    def _update_one(self, params, name, gradient, *factors):
        (rate,) = factors
        decay = 0.1 if "W" in name else 0.0
        params[name] -= rate * (gradient + decay * params[name])


class FixedRate(nnxp.SGD):
    """Reads the learning rate from the optimizer, not from the factors."""

    def _update_one(self, params, name, gradient, *factors):
        params[name] -= self.learning_rate * gradient


@devices
@pytest.mark.parametrize(
    "parts",
    [
        {"layer": Swish}, {"loss": HalfLoss}, {"optimizer": lambda: Clipping(0.1)},
        {"optimizer": lambda: NamedDecay(0.1)}, {"layer": Swish, "optimizer": nnxp.Adam},
    ],
    ids=["layer", "loss", "update", "rule by name", "layer with Adam"],
)  # fmt: skip
def test_part_that_declares_what_it_does_is_captured(spec, parts):
    one, other = (
        trainer(spec, **{k: make() for k, make in parts.items()}, capture=capture)
        for capture in ("auto", False)
    )
    fit(one)
    assert one.captured == "captured"
    fit(other)
    assert other.captured == "plain: capture is False"
    assert_equal(one, other)


@devices
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"layer": Counting}, r"Counting\(\): a step changes count of Counting\(\)"),
        ({"layer": Drawing}, r"Drawing\(\): a step changes rng of Drawing\(\)"),
        ({"layer": Looking}, r"Looking\(\): it cannot be captured"),
        (
            {"optimizer": FixedRate},
            r"FixedRate\(.*the optimizer's rule reads self\.learning_rate.* from factors\(\)",
        ),
    ],
)
def test_part_that_cannot_be_captured_trains_plainly_with_one_warning(spec, parts, message):
    one, other = (
        trainer(spec, **{k: make() for k, make in parts.items()}, capture=capture)
        for capture in ("auto", False)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(one)
    assert len(caught) == 1  # not again each epoch
    with pytest.warns(UserWarning, match=message):
        warnings.warn_explicit(caught[0].message, UserWarning, "a", 1)
    assert one.captured.startswith("plain: ")
    fit(other)
    numbers_equal = [
        np.array_equal(*(t.network.device.to_host(t.network.parameters()[name]) for t in pair))
        for pair in [(one, other)]
        for name in one.network.parameters()
    ]
    assert all(numbers_equal)  # to the bit: the trial has changed nothing
    if "layer" in parts and parts["layer"] is Counting:
        assert one.network[1].count == other.network[1].count == 8
    if "layer" in parts and parts["layer"] is Drawing:
        states = [t.network[1].rng.bit_generator.state for t in (one, other)]
        assert states[0] == states[1]


def replace_update(trainer):
    update = trainer.optimizer.update
    trainer.optimizer.update = lambda p, g: update(p, {name: x * 0.1 for name, x in g.items()})


def replace_layer_forward(trainer):
    layer = trainer.network[1]
    forward = layer.forward
    layer.forward = lambda x, training=False: forward(x * 0.5, training)


def replace_layer_backward(trainer):
    layer = trainer.network[1]
    backward = layer.backward
    layer.backward = lambda dy: backward(dy) * 0.5


def replace_loss_backward(trainer):
    backward = trainer.loss.backward
    trainer.loss.backward = lambda: backward() * 0.5


def replace_network_forward(trainer):
    forward = trainer.network.forward
    trainer.network.forward = lambda x, training=False: forward(x, training) * 0.5


@pytest.mark.filterwarnings("ignore:no step is captured")
@devices
@pytest.mark.parametrize(
    "replace",
    [
        replace_update, replace_layer_forward, replace_layer_backward, replace_loss_backward,
        replace_network_forward,
    ],
)  # fmt: skip
def test_methods_replaced_on_an_object_are_used(spec, replace):
    one, other, unchanged = (trainer(spec, capture=c) for c in ("auto", False, False))
    for each in (one, other):
        replace(each)
    for each in (one, other, unchanged):
        fit(each)
    assert_equal(one, other)
    with pytest.raises(AssertionError):
        assert_equal(one, unchanged)


@pytest.mark.filterwarnings("ignore:no step is captured")
@devices
@pytest.mark.parametrize("owner", [nnxp.Optimizer, nnxp.Trainer])
def test_methods_replaced_on_a_class_are_used(monkeypatch, spec, owner):
    name = {nnxp.Optimizer: "update", nnxp.Trainer: "step"}[owner]
    original = getattr(owner, name)

    def half(self, params, grads):
        return original(self, params, {name: x * 0.5 for name, x in grads.items()})

    def half_step(self, inputs, labels):
        return original(self, inputs * 0.5, labels)

    one, other, unchanged = (trainer(spec, capture=capture) for capture in ("auto", False, False))
    fit(unchanged)
    monkeypatch.setattr(owner, name, half if owner is nnxp.Optimizer else half_step)
    fit(one)
    fit(other)
    assert_equal(one, other)
    with pytest.raises(AssertionError):
        assert_equal(one, unchanged)


@devices
@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (nnxp.Momentum, "momentum", 0.5), (nnxp.Nesterov, "learning_rate", 0.5),
        (nnxp.RMSprop, "decay", 0.5), (nnxp.RMSprop, "epsilon", 0.5),
        (nnxp.AdaGrad, "epsilon", 0.5),
        (nnxp.Adam, "beta1", 0.5), (nnxp.Adam, "beta2", 0.5), (nnxp.AdamW, "weight_decay", 5.0),
    ],
)  # fmt: skip
def test_numbers_changed_within_an_epoch_take_effect(spec, make, name, value):
    def trained(capture, change):
        one = trainer(spec, optimizer=make(), capture=capture)

        def stop():
            if change and one.optimizer.steps == 2:
                setattr(one.optimizer, name, value)
            return False

        fit(one, callbacks=[Stopping(stop)])
        return one

    one = trained("auto", True)
    assert one.captured == "captured"
    assert_equal(one, trained(False, True))
    with pytest.raises(AssertionError):
        assert_equal(one, trained(False, False))


def test_settings_are_checked_when_they_are_assigned():
    optimizer = nnxp.Momentum()
    with pytest.raises(nnxp.InputError, match="momentum must be a number of at least 0 and below"):
        optimizer.momentum = 1.5
    number = np.array(0.5)
    optimizer.momentum = number
    number[...] = 0.7
    assert optimizer.momentum == 0.5  # a copy
    one = nnxp.Trainer(
        nnxp.mlp([64, 9, 10], rng=np.random.default_rng(0)),
        nnxp.SoftmaxWithLoss(),
        nnxp.Adam(epsilon=1e-50),
    )
    with pytest.raises(
        nnxp.InputError, match="epsilon of Adam.* is too small for float32; use epsilon=2e-31"
    ):
        fit(one)


@devices
def test_frozen_layer_is_not_changed_and_trains_again_when_unfrozen(spec, tmp_path):
    one, other = (trainer(spec, optimizer=nnxp.AdamW(), capture=c) for c in ("auto", False))
    to_host = one.network.device.to_host
    before = to_host(one.network.parameters()["W1"]).copy()
    for each in (one, other):
        each.network[0].trainable = False
        fit(each)
        np.testing.assert_array_equal(to_host(each.network.parameters()["W1"]), before)
        assert "W1" not in each.optimizer.state["mean"]
    assert one.captured == "captured"
    assert_equal(one, other)
    pytest.importorskip("safetensors")
    one.save(tmp_path / "a.safetensors")
    assert not nnxp.Trainer.resume(tmp_path / "a.safetensors").network[0].trainable
    for each in (one, other):
        each.network[0].trainable = True
        fit(each)
        assert abs(to_host(each.network.parameters()["W1"]) - before).max() > 0
    assert_equal(one, other)


@devices
def test_layer_replaced_in_the_network_is_trained(spec):
    one = trainer(spec, optimizer=nnxp.SGD(0.1))
    fit(one)
    to_host = one.network.device.to_host
    layers = list(one.network)
    layers[0] = nnxp.Affine(64, 9, rng=np.random.default_rng(5), dtype="float64", device=spec)
    before = to_host(layers[0].params["W"]).copy()
    one.network.layers = layers
    fit(one)
    assert abs(to_host(layers[0].params["W"]) - before).max() > 0
    with pytest.raises(nnxp.InputError, match="the same .* object is at positions 1 and 2"):
        one.network.layers = [layers[0], layers[0]]


@devices
def test_optimizer_of_one_network_is_refused_for_another_of_the_same_widths(spec):
    one, other = trainer(spec), trainer(spec)
    fit(one)
    other.optimizer = one.optimizer
    with pytest.raises(nnxp.InputError, match="has already trained another network; make a new"):
        fit(other)
    one.network = other.network
    with pytest.raises(nnxp.InputError, match="has already trained another network; make a new"):
        fit(one)


def test_read_only_parameters_train_and_stay_out_of_internal_memory():
    one, other = trainer(), trainer()
    for name, x in one.network.parameters().items():
        x.flags.writeable = False
        one.network.parameters().place(name, x)
    fit(one)
    fit(other)
    assert_equal(one, other)
    for x in one.network.parameters().values():
        assert x.flags.owndata
        assert x.flags.writeable


def test_underflow_does_not_raise_and_divergence_warns_of_nothing_else():
    with np.errstate(all="raise"):
        fit(trainer(optimizer=nnxp.Adam(1e-300)))
    with pytest.raises(nnxp.DivergenceError):
        fit(
            trainer(layer=nnxp.ReLU(), optimizer=nnxp.SGD(1e300))
        )  # a NumPy warning would be an error here


def test_softmax_before_its_loss_warns():
    network = nnxp.Sequential([nnxp.Affine(4, 3, rng=np.random.default_rng(0)), nnxp.Softmax()])
    with pytest.warns(UserWarning, match="the network ends with Softmax"):
        nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD())


def test_bias_gradient_of_a_very_large_batch_is_accurate():
    rows = 1_000_000
    layer = nnxp.Affine(1, 3, rng=np.random.default_rng(0))
    dy = np.random.default_rng(0).random((rows, 3), np.float32)
    layer.forward(np.ones((rows, 1), np.float32), training=True)
    layer.backward(dy)
    exact = dy.sum(axis=0, dtype="float64")
    # Blocks of 1024 rows, their sums again in blocks: fewer than 2 * 1024 + 1 roundings.
    assert (abs(layer.grads["b"] - exact) <= 2049 * 2.0**-24 * exact).all()


def test_last_batch_of_one_is_refused_with_a_batch_size_that_works():
    train, _ = nnxp.data.load_digits()  # 1,438 examples
    network = nnxp.Sequential(
        [nnxp.BatchNorm(64), nnxp.Affine(64, 10, rng=np.random.default_rng(0))]
    )
    one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD())
    rng = np.random.default_rng(0)
    with pytest.raises(nnxp.InputError, match="has 1; use batch_size=480$"):
        one.fit(train, epochs=1, batch_size=479, rng=rng)
    assert one.optimizer.steps == 0
    one.fit(train, epochs=1, batch_size=480, rng=rng)


class Settings(Swish):
    def __init__(self, rate, flag=False, name="a", shape=(1, 1), inner=None, more=None):
        self.rate, self.flag, self.name, self.shape = rate, flag, name, shape
        self.inner, self.more = inner, more


class Hidden(Swish):
    def __init__(self, rate):
        self._rate = rate


def test_settings_of_all_types_survive_json():
    place = Place(nnxp.device("cpu"), "float32", 100)
    nnxp.register(Settings)
    inner = nnxp.Residual([nnxp.Tanh(), nnxp.BatchNorm(4, momentum=0.25)])
    layer = Settings(0.3, True, "b", (2, (3, None)), inner, {"a": [1, 2.5, (3,)]})
    text = json.dumps(describe_part(layer))
    built = build_part(json.loads(text), place)
    assert repr(built) == repr(layer)
    assert (built.flag, built.shape, built.more) == (True, (2, (3, None)), {"a": [1, 2.5, (3,)]})
    assert json.dumps(describe_part(built)) == text
    assert "0.3, flag=True, name='b', shape=(2, (3, None))" in repr(layer)
    with pytest.raises(nnxp.InputError, match="its setting 'rate' is not an attribute"):
        describe_part(Hidden(1))
    with pytest.raises(nnxp.InputError, match=r"Settings\.rate cannot be saved"):
        describe_part(Settings(object()))
    with pytest.raises(nnxp.InputError, match="register expects a subclass of Layer"):
        nnxp.register(int)


def test_unregistered_layer_saves_and_loads_once_registered(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    one = trainer(layer=Swish())
    fit(one)
    one.save(path)
    with pytest.raises(nnxp.CheckpointError, match=r"call nnxp\.register\(Swish\)"):
        nnxp.load_network(path)
    monkeypatch.setattr("nnxp.parts._registered", dict(nnxp.parts._registered))
    nnxp.register(Swish)
    loaded = nnxp.load_network(path)
    assert type(loaded[1]) is Swish
    np.testing.assert_equal(dict(loaded.parameters()), dict(one.network.parameters()))
    np.testing.assert_equal(numbers(nnxp.Trainer.resume(path)), numbers(one))
    other = type("Swish", (nnxp.Layer,), {"__module__": "elsewhere"})
    with pytest.raises(nnxp.InputError, match="is registered for the class of module pairs"):
        nnxp.register(other)


@pytest.mark.interop
def test_masks_are_equal_on_every_library_and_offset_rows_belong_to_one_mask():
    def mask(spec, rows=slice(None)):
        device = nnxp.device(spec)
        layer = nnxp.Dropout(0.4, rng=np.random.default_rng(3), device=device)
        layer.row_offset = rows.start or 0
        x = device.asarray(np.ones((50, 40), "float32")[rows])
        return [device.to_host(layer.forward(x, training=True)) > 0 for _ in range(3)]

    expected = mask("cpu")
    for spec in ("strict:device1", "torch:cpu", "jax:cpu"):
        np.testing.assert_array_equal(mask(spec), expected)
    part = [x[20:] for x in expected]
    np.testing.assert_array_equal(mask("cpu", slice(20, None)), part)


def test_masks_look_independent():
    def masks(seed, steps, size=20_000):
        layer = nnxp.Dropout(0.5, rng=np.random.default_rng(seed))
        x = np.ones((1, size), "float32")
        return np.array([np.sign(layer.forward(x, training=True)[0]) * 2 - 1 for _ in range(steps)])

    one, other = masks(0, 50), masks(1, 50)
    # Means of independent signs have a standard deviation of 1 / sqrt(n); 4.5 of them leave less
    # than 1e-5 to chance for each figure.
    for products in (
        one, one[:, 1:] * one[:, :-1], one[1:] * one[:-1], one * other, one[:, 40:] * one[:, :-40],
    ):  # fmt: skip
        assert abs(products.mean()) < 4.5 / np.sqrt(products.size)
    assert not (one[1] == other[0]).all()


def test_copies_of_a_trainer_have_their_own_state():
    one = trainer()
    fit(one)
    other = copy.deepcopy(one)
    before = one.network.states()["counter1"].copy()
    fit(other)
    np.testing.assert_array_equal(one.network.states()["counter1"], before)
    assert other.network.states()["counter1"][0] == before[0] + 8


@pytest.mark.interop
def test_arrays_of_pytorch_that_require_a_gradient_keep_no_graph():
    one = trainer("torch:cpu")
    device = one.network.device
    for name, x in one.network.parameters().items():
        one.network.parameters().place(name, x.requires_grad_(True))
    inputs = device.asarray(np.ones((5, 64))).requires_grad_(True)
    fit(one)
    one.step(inputs, device.asarray(np.arange(5, dtype="int32")))
    for x in (*one.network.parameters().values(), *one.network.gradients().values()):
        assert not x.requires_grad
        assert x.grad_fn is None


def test_memory_of_captured_steps_is_freed_without_the_cycle_collector(monkeypatch):
    monkeypatch.setattr(
        "nnxp.training.stepping._MAX_KEPT", 32 << 20
    )  # a network of 8 MiB exceeds it
    train, _ = nnxp.data.load_digits()
    rng = np.random.default_rng(0)
    network = nnxp.mlp([64, 2000, 1000, 10], rng=rng)
    held = sum(x.nbytes for x in network.parameters().values())  # 8 MiB
    gc.collect()
    gc.disable()
    try:
        tracemalloc.start()
        one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam())
        one.fit(train, epochs=1, batch_size=100, rng=rng)
        after, peak = tracemalloc.get_traced_memory()
        assert peak > 5 * held  # vectors of parameters, gradients and state; a batch's outputs
        assert after < 2.5 * held  # Adam's state alone
        del one
        assert tracemalloc.get_traced_memory()[0] < held / 4
    finally:
        tracemalloc.stop()
        gc.enable()


def test_preparing_a_captured_step_is_linear_in_depth():
    def calls(depth):
        network = nnxp.mlp([4] * (depth + 1), rng=np.random.default_rng(0))
        data = nnxp.data.Dataset(np.ones((4, 4)), np.arange(4))
        one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(1e-3))
        count = 0

        def profile(frame, event, _):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(profile)
        try:
            one.fit(data, epochs=1, batch_size=4, rng=np.random.default_rng(0))
        finally:
            sys.setprofile(None)
        return count

    assert calls(160) < 2.2 * calls(80)


@devices
def test_trainer_whose_network_begins_without_parameters_is_copied_after_plain_steps(spec):
    device = device_or_skip(spec)
    layers = [nnxp.ReLU(), nnxp.Affine(4, 3, rng=np.random.default_rng(0), device=device)]
    one = nnxp.Trainer(nnxp.Sequential(layers), nnxp.SoftmaxWithLoss(), nnxp.SGD())
    inputs = device.asarray(np.ones((2, 4), "float32"))
    one.step(inputs, device.asarray(np.array([0, 1], "int32")))
    assert layers[0]._saved is None
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert other.optimizer.steps == 1
    one.network.forward(inputs, training=True)  # also with values that are saved for a backward
    copy.deepcopy(one)


class Constant(nnxp.SGD):
    def update(self, params, grads):
        for name, gradient in grads.items():
            params[name] -= 0.1 * gradient


@devices
@pytest.mark.parametrize("capture", ["auto", False])
def test_steps_are_counted_for_an_optimizer_that_does_not(spec, capture):
    one = trainer(spec, optimizer=Constant(), capture=capture)
    fit(one)
    assert one.optimizer.steps == 8
    assert (one.captured == "captured") == (capture == "auto")


def test_denormal_numbers_do_not_stay_in_the_optimizer_state():
    one = trainer(optimizer=nnxp.Momentum(0.1))
    fit(one)
    velocity = one.optimizer.state["velocity"]["W1"]
    velocity[0] = 1e-310
    one.network[0].trainable = False  # so that nothing else changes it
    fit(one)
    assert (one.optimizer.state["velocity"]["W1"][0] == 1e-310).all()
    one.optimizer.steps = 497  # 2 epochs of 4 steps reach step 500 before the second one
    fit(one)
    assert (one.optimizer.state["velocity"]["W1"][0] == 0).all()


def test_check_layer_names_the_extra_that_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "array_api_strict", None)
    with pytest.raises(nnxp.MissingExtraError, match=installs("testing")):
        nnxp.testing.check_layer(Swish(), (5, 4))


class Unsaveable(nnxp.SGD):
    def __init__(self, rate):
        super().__init__(rate)


def test_optimizer_that_cannot_be_saved_trains():
    one = trainer(optimizer=Unsaveable(0.1))
    fit(one)
    assert one.optimizer.steps == 8


def test_divergence_restores_the_state_of_layers():
    rng = np.random.default_rng(0)
    layers = [nnxp.BatchNorm(64), nnxp.Dropout(0.2, rng=rng), nnxp.Affine(64, 9, rng=rng)]
    layers += [nnxp.ReLU(), nnxp.Affine(9, 10, rng=rng)]
    one = nnxp.Trainer(nnxp.Sequential(layers), nnxp.SoftmaxWithLoss(), nnxp.SGD(1e30))
    with pytest.raises(nnxp.DivergenceError):
        fit(one)
    states = one.network.states()
    assert states["counter1"][0] == one.optimizer.steps
    assert np.isfinite(states["running_var1"]).all()


def test_unfrozen_layer_is_saved_before_its_first_step(tmp_path):
    pytest.importorskip("safetensors")
    one = trainer(optimizer=nnxp.Adam())
    one.network[0].trainable = False
    fit(one)
    one.network[0].trainable = True
    fit(one, checkpoint=tmp_path / "a.safetensors")
    np.testing.assert_equal(numbers(nnxp.Trainer.resume(tmp_path / "a.safetensors")), numbers(one))


def test_update_replaced_on_the_class_is_called_with_all_parameters(monkeypatch):
    update = nnxp.Optimizer.update

    def clipped(self, params, grads):
        norm = np.add.reduce([0.0])  # a constant: only the names count here
        assert "W1" in grads
        update(self, params, {name: x * (0.5 + norm) for name, x in grads.items()})

    monkeypatch.setattr(nnxp.Optimizer, "update", clipped)
    one, other = trainer(), trainer(capture=False)
    fit(one)
    fit(other)
    assert_equal(one, other)


class Scaled(nnxp.Sequential):
    """Five times the outputs of the layers."""

    def forward(self, x, training=False):
        return super().forward(x, training) * 5.0

    def backward(self, dy):
        return super().backward(dy * 5.0)


class WithoutGradient(nnxp.Affine):
    def backward(self, dy):
        dx = super().backward(dy)
        self.grads["W"] = self.grads["W"] * 0.0
        return dx


@pytest.mark.filterwarnings("ignore:no step is captured")
@pytest.mark.parametrize("capture", ["auto", False])
def test_overridden_backward_of_the_first_layer_is_used(capture):
    rng = np.random.default_rng(0)
    layer = WithoutGradient(64, 10, rng=rng, dtype="float64")
    before = layer.params["W"].copy()
    network = nnxp.Sequential([layer])
    one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), capture=capture)
    fit(one)
    np.testing.assert_array_equal(layer.params["W"], before)
    assert abs(layer.params["b"]).max() > 0


def test_overridden_backward_gives_the_gradient_of_a_step():
    affine = nnxp.Affine(4, 3, rng=np.random.default_rng(0), dtype="float64")
    inputs, labels = np.random.default_rng(1).normal(size=(5, 4)), np.array([0, 1, 2, 0, 1])
    for network in (Scaled([affine]), nnxp.Sequential([Scaled([affine])])):
        loss = nnxp.SoftmaxWithLoss()
        assert max(nnxp.check_gradients(network, loss, inputs, labels).values()) < 1e-7
        loss.forward(network.forward(inputs, training=True), labels)
        network.backward(loss.backward())
        expected = affine.grads["W"].copy()
        nnxp.Trainer(network, loss, nnxp.SGD(1e-12)).step(inputs, labels)
        np.testing.assert_allclose(affine.grads["W"], expected, rtol=1e-9)
