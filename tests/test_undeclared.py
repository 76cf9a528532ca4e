"""Undeclared changes: a part that changes more than it declares trains by plain steps."""

from __future__ import annotations

import functools
import random
import warnings
from collections import deque

import numpy as np
import pytest
from array_api_compat import array_namespace
from builders import numbers
from pairs import Swish, assert_equal, devices, fit, trainer

import nnxp
from nnxp.parts import Setting

CALLS: list[int] = []
COUNT = 0


class Box:
    """An object of a user's class."""

    def __init__(self):
        self.n = 0


class Undeclared(Swish):
    """A Swish whose training forward also calls `change`, and that has what this changes."""

    n = 0

    def __init__(self, change):
        self.change = change
        self.queue, self.names, self.arrays = deque([0]), set(), (np.zeros(2),)
        self.generator, self.old = random.Random(0), np.random.RandomState(0)
        self.box, self.steps, self.nested, self.nothing = Box(), 0, {"a": [0]}, float("nan")
        self.read_only = np.ones(3)
        self.read_only.flags.writeable = False

    def forward(self, x, training=False):
        if training:
            self.change(self)
        return super().forward(x, training)


class UsesGlobals(Swish):
    def forward(self, x, training=False):
        global COUNT  # noqa: PLW0603
        if training:
            CALLS.append(1)
            COUNT += 1
        return super().forward(x, training)


class UsesClass(Swish):
    n = 0

    def forward(self, x, training=False):
        type(self).n += training
        return super().forward(x, training)


def counting_class():
    """Return a class whose forward changes a variable of this function."""
    count = 0

    class UsesClosure(Swish):
        def forward(self, x, training=False):
            nonlocal count
            count += training
            return super().forward(x, training)

    return UsesClosure()


def add_to(attribute):
    def change(self):
        self.steps += attribute == "steps"
        self.n += attribute == "n"

    return change


UNDECLARED = {
    "queue": lambda self: self.queue.append(1),
    "names": lambda self: self.names.add(len(self.names)),
    "arrays": lambda self: self.arrays[0].__iadd__(1),
    "generator": lambda self: self.generator.random(),
    "old": lambda self: self.old.rand(),
    "box": lambda self: setattr(self.box, "n", self.box.n + 1),
    "steps": add_to("steps"),
    "n": add_to("n"),
    "nested": lambda self: self.nested["a"].append(1),
}


@pytest.mark.parametrize("name", UNDECLARED)
def test_change_of_an_attribute_means_plain_steps(name):
    check_plain(
        lambda: Undeclared(UNDECLARED[name]), rf"changes {name} of Undeclared.*store in self\.state"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (UsesGlobals, "a variable of forward of the class UsesGlobals"),
        (UsesClass, "changes n of the class UsesClass"),
        (counting_class, "a variable of forward of the class UsesClosure"),
        (lambda: Undeclared(lambda _: np.random.rand()), "NumPy of the global generators"),  # noqa: NPY002
        (lambda: Undeclared(lambda _: random.random()), "Python of the global generators"),
    ],
)  # fmt: skip
def test_change_outside_of_the_object_means_plain_steps(make, message):
    check_plain(make, message)


def check_plain(make, message):
    """Train with "auto" and by plain steps, and compare numbers and global generators."""
    results = []
    for capture in ("auto", False):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        CALLS.clear()
        UsesClass.n = 0
        one = trainer(layer=make(), capture=capture)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(one)
        if capture:
            (warning,) = caught
            with pytest.warns(UserWarning, match=message):
                warnings.warn_explicit(warning.message, UserWarning, "a", 1)
            assert warning.filename.endswith("pairs.py")  # the line that called fit
        state = random.getstate(), str(np.random.get_state())  # noqa: NPY002
        results.append((numbers(one), state, len(CALLS), UsesClass.n))
    np.testing.assert_equal(*results)


@devices
def test_what_does_not_change_is_captured(spec):
    one, other = (
        trainer(spec, layer=Undeclared(lambda _: None), capture=capture)
        for capture in ("auto", False)
    )
    fit(one)
    fit(other)
    assert one.captured == "captured"
    assert_equal(one, other)


class Root(nnxp.Layer):
    """x times the square root of a constant array, by the standard's functions."""

    def __init__(self):
        self.k = np.array(4.0)

    def forward(self, x, training=False):
        xp = array_namespace(x)
        root = xp.sqrt(xp.asarray(self.k))
        if training:
            self.save_for_backward(x, root)
        return x * root

    def backward(self, dy):
        return dy * self.saved(dy)


def test_function_of_constants_alone_is_computed_when_recording():
    one, other = (trainer(layer=Root(), capture=capture) for capture in ("auto", False))
    fit(one)
    fit(other)
    assert one.captured == "captured"
    assert_equal(one, other)


class Stateful(Swish):
    """Makes its state in the first training forward."""

    def __init__(self):
        self.device, self.dtype = "cpu", "float64"

    def forward(self, x, training=False):
        if training:
            self.state["seen"] = self.state.get("seen", np.zeros(1)) + 1
        return super().forward(x, training)


class Lazy(Swish):
    """Reads a number of small batches, which an epoch ends with."""

    def forward(self, x, training=False):
        if x.shape[0] < 300:
            float(x[0, 0])
        return super().forward(x, training)


@pytest.mark.parametrize(
    ("layer", "message"),
    [(Stateful, "a forward made the state seen1; make state in __init__"), (Lazy, "cannot read")],
)
def test_what_cannot_be_captured_is_seen_before_training(layer, message):
    one, other = (trainer(layer=layer(), capture=capture) for capture in ("auto", False))
    with pytest.warns(UserWarning, match=message):
        fit(one)
    fit(other)
    assert_equal(one, other)


class OwnRange(nnxp.SGD):
    """A number that a trial cannot halve."""

    power = Setting((lambda x: x >= 1, "a number of at least 1"))

    def __init__(self):
        super().__init__(0.1)
        self.power = 1.0

    def factors(self):
        return self.learning_rate, self.power

    def _update_one(self, params, name, gradient, *factors):
        rate, power = factors
        params[name] -= rate * power * gradient


class ReadsSteps(nnxp.SGD):
    def _update_one(self, params, name, gradient, *factors):
        if self.steps == 1:
            return
        super()._update_one(params, name, gradient, *factors)


@devices
def test_number_that_a_trial_cannot_change_is_captured(spec):
    one, other = (trainer(spec, optimizer=OwnRange(), capture=c) for c in ("auto", False))
    fit(one)
    fit(other)
    assert one.captured == "captured"
    assert_equal(one, other)


@devices
def test_rule_that_reads_the_number_of_steps_trains_by_plain_steps(spec):
    one, other = (trainer(spec, optimizer=ReadsSteps(0.1), capture=c) for c in ("auto", False))
    with pytest.warns(UserWarning, match=r"reads self\.steps, whose number changes; return it"):
        fit(one)
    fit(other)
    assert_equal(one, other)
    one.optimizer.state["velocity"] = 3  # of no parameter
    with pytest.raises(nnxp.InputError, match=r"state\['velocity'\] of .* got 3"):
        fit(one)


class Anneal:
    """Changes a layer's setting at the third step."""

    def __init__(self, trainer, change):
        self.trainer, self.change, self.steps = trainer, change, 0

    def __call__(self):
        self.steps += 1
        if self.steps == 3:
            self.change(self.trainer)
        return False


def freeze(trainer):
    trainer.network[1].trainable = False


def change_rate(trainer):
    trainer.network[3].rate = 0.6


def change_momentum(trainer):
    trainer.network[0].momentum = 0.7


def replace_method(trainer):
    update = trainer.optimizer.update
    trainer.optimizer.update = lambda p, g: update(p, {name: x * 0.1 for name, x in g.items()})


@pytest.mark.filterwarnings("ignore:no step is captured")
@devices
@pytest.mark.parametrize("change", [freeze, change_rate, change_momentum, replace_method])
def test_settings_of_layers_changed_within_an_epoch_take_effect(spec, change):
    def trained(capture, change):
        one = trainer(spec, capture=capture)
        norm = nnxp.BatchNorm(64, dtype="float64", device=spec)
        one.network.layers = [norm, *one.network]
        fit(one, stop=Anneal(one, change))
        return one

    one, other = trained("auto", change), trained(False, change)
    # A replaced method that calls the object's own one cannot be recorded.
    assert (one.captured == "captured") == (change is not replace_method)
    assert_equal(one, other)
    unchanged = trained(False, lambda _: None)
    with pytest.raises(AssertionError):
        assert_equal(one, unchanged)
    for name in ("rate", "momentum"):
        part = one.network[3 if name == "rate" else 0]
        with pytest.raises(nnxp.InputError, match=f"{name} must be a number"):
            setattr(part, name, 2.0)


def test_one_warning_names_the_part_at_fault_alone():
    one = trainer(layer=Undeclared(UNDECLARED["box"]), loss=nnxp.SoftmaxWithLoss(), capture=True)
    one.loss.correct = one.loss.correct  # replaced, and harmless
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(one)
        fit(one)
    (warning,) = caught
    assert "Undeclared" in str(warning.message)
    assert "SoftmaxWithLoss" not in str(warning.message)


def test_functools_wraps_does_not_hide_a_replaced_method(monkeypatch):
    original = nnxp.Momentum._update_one

    @functools.wraps(original)
    def half(self, params, name, gradient, *factors):
        original(self, params, name, gradient * 0.5, *factors)

    unchanged = trainer(capture=False)
    fit(unchanged)
    monkeypatch.setattr(nnxp.Momentum, "_update_one", half)
    one, other = trainer(), trainer(capture=False)
    fit(one)
    fit(other)
    assert_equal(one, other)
    with pytest.raises(AssertionError):
        assert_equal(one, unchanged)


@pytest.mark.parametrize("method", ["gradients", "parameters", "backward_parameters"])
def test_methods_of_the_network_replaced_on_an_object_are_called(method):
    one, other = trainer(), trainer(capture=False)
    for each in (one, other):
        original = getattr(each.network, method)
        setattr(each.network, method, lambda *args, f=original: f(*args))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(one)
    fit(other)
    assert_equal(one, other)
