"""Undeclared changes: a part that changes more than it declares trains by plain steps."""

from __future__ import annotations

import collections
import functools
import itertools
import random
import types
import warnings
from collections import deque

import numpy as np
import pytest
from array_api_compat import array_namespace
from builders import Stopping, numbers
from pairs import Swish, assert_equal, devices, fit, trainer

import nnxp
from nnxp.parts import Setting

CALLS: list[int] = []
COUNT = 0


class Box:
    """An object of a user's class."""

    total = 0

    def __init__(self):
        self.n = 0

    def count(self):
        self.n += 1
        return self.n

    def count_all(self):
        Box.total += 1


class Slots:
    __slots__ = ("n",)

    def __init__(self):
        self.n = 0


CONFIG = types.SimpleNamespace(n=0)


def count_globally():
    global COUNT  # noqa: PLW0603
    COUNT += 1


PLAIN = int, float, str, set, dict, tuple, bytearray, deque


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
        self.slots, self.space, self.numbers = Slots(), types.SimpleNamespace(n=0), bytearray(2)
        self.order = collections.OrderedDict(a=1, b=2)
        self.called = functools.partial(Box.count, Box())

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


class UsesHelper(Swish):
    def forward(self, x, training=False):
        if training:
            count_globally()
        return super().forward(x, training)


class UsesConfig(Swish):
    def forward(self, x, training=False):
        CONFIG.n += training
        return super().forward(x, training)


class UsesStatic(Swish):
    @staticmethod
    def count(training):
        if training:
            count_globally()

    def forward(self, x, training=False):
        self.count(training)
        return super().forward(x, training)


class UsesIterator(Swish):
    def __init__(self):
        self.iterator = itertools.count()

    def forward(self, x, training=False):
        if training:
            next(self.iterator)
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


def grow(self):
    self.numbers[0] += 1


UNDECLARED = {
    "slots": lambda self: setattr(self.slots, "n", self.slots.n + 1),
    "space": lambda self: setattr(self.space, "n", self.space.n + 1),
    "order": lambda self: self.order.move_to_end(next(iter(self.order))),
    "called": lambda self: self.called(),
    "numbers": grow,
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
        lambda: Undeclared(UNDECLARED[name]), rf"changes {name} of Undeclared.*store changing val"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (UsesGlobals, "a variable of forward of the class UsesGlobals"),
        (UsesHelper, "a variable of forward of the class UsesHelper"),
        (UsesConfig, "a variable of forward of the class UsesConfig"),
        (UsesStatic, "a variable of count of the class UsesStatic"),
        (lambda: Undeclared(lambda self: self.box.count_all()), "total of the class Box"),
        (UsesIterator, r"UsesIterator\(\): it refers to an object of type count, whose changes"),
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
    global COUNT  # noqa: PLW0603
    results = []
    for capture in ("auto", False):
        COUNT = CONFIG.n = Box.total = 0
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
        layer = one.network[1]
        cells = [x.cell_contents for x in type(layer).forward.__closure__ or ()]
        # What the layer has, the global variables, and those of functions.
        held = {name: repr(x) for name, x in vars(layer).items() if isinstance(x, PLAIN)}
        for name in ("box", "slots", "space", "generator", "old"):
            x = getattr(layer, name, None)
            held[name] = getattr(x, "n", None) or str(getattr(x, "getstate", lambda: 0)())
        counts = COUNT, CONFIG.n, Box.total, [x for x in cells if isinstance(x, int)]
        results.append((numbers(one), state, len(CALLS), UsesClass.n, held, counts))
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
    [
        (Stateful, "forward created the state seen1; create state in __init__"),
        (Lazy, "cannot read"),
    ],
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
    with pytest.warns(UserWarning, match=r"reads self\.steps, which changes; return it"):
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


def changed_within(spec, capture, change):
    """Return a trainer with a BatchNorm, after a change at the third step."""
    one = trainer(spec, capture=capture)
    norm = nnxp.BatchNorm(64, dtype="float64", device=spec)
    one.network.layers = [norm, *one.network]
    fit(one, callbacks=[Stopping(Anneal(one, change))])
    return one


@pytest.mark.filterwarnings("ignore:no step is captured")
@devices
@pytest.mark.parametrize("change", [freeze, change_rate, change_momentum, replace_method])
def test_settings_of_layers_changed_within_an_epoch_take_effect(spec, change):
    one, other = (changed_within(spec, capture, change) for capture in ("auto", False))
    # A replaced method that calls the object's own one cannot be recorded.
    assert (one.captured == "captured") == (change is not replace_method)
    assert_equal(one, other)
    unchanged = changed_within(spec, False, lambda _: None)
    with pytest.raises(AssertionError):
        assert_equal(one, unchanged)
    for name in ("rate", "momentum"):
        part = one.network[3 if name == "rate" else 0]
        with pytest.raises(nnxp.InputError, match=f"{name} must be a number"):
            setattr(part, name, 2.0)


@devices
@pytest.mark.parametrize("change", [freeze, change_rate, change_momentum])
def test_settings_of_layers_changed_between_two_calls_of_fit_take_effect(spec, change):
    trained = []
    for capture, changed in (("auto", change), (False, change), (False, lambda _: None)):
        one = trainer(spec, capture=capture)
        norm = nnxp.BatchNorm(64, dtype="float64", device=spec)
        one.network.layers = [norm, *one.network]
        fit(one)
        changed(one)
        fit(one)
        trained.append(one)
    one, other, unchanged = trained
    assert one.captured == "captured"
    assert_equal(one, other)
    with pytest.raises(AssertionError):
        assert_equal(one, unchanged)


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


class UsesStepsAsKey(nnxp.SGD):
    def _update_one(self, params, name, gradient, *factors):
        scale = {3: 0.1}.get(self.steps, 1.0)
        super()._update_one(params, name, gradient * scale, *factors)


class BooleanState(Swish):
    """A boolean and an integer beside a float that depends on an attribute that changes late."""

    def __init__(self):
        self.device, self.dtype = "cpu", "float64"
        self.state = {"seen": np.zeros(1, bool), "count": np.zeros(1, "int64")}

    def forward(self, x, training=False):
        if training:
            self.state["seen"] = self.state["seen"] | True
            self.state["count"] = self.state["count"] + 10**9
        return super().forward(x, training)


@pytest.mark.parametrize("part", [{"optimizer": UsesStepsAsKey}, {"layer": BooleanState}])
def test_numbers_as_keys_and_state_of_other_dtypes(part):
    def trained(capture):
        one = trainer(capture=capture, **{name: make(*[0.1][: name == "optimizer"])
                                          for name, make in part.items()})  # fmt: skip
        fit(one)
        return one

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = trained("auto")
    assert (one.captured == "captured") == ("layer" in part)
    assert_equal(one, trained(False))


class Meta(type):
    """A metaclass of a user's."""


class OfMeta(metaclass=Meta):
    n = 0


class Exporting:
    """An array of a library that nnxp does not know."""

    def __dlpack__(self):
        raise TypeError


class Holding(Swish):
    def __init__(self, held):
        self.held = held


def chain(length):
    first = Box()
    for _ in range(length):
        first, first.next = Box(), first
    return first


def cycle():
    held = {}
    held["me"] = held
    return held


@pytest.mark.parametrize(
    ("make", "captured"),
    [
        (lambda: OfMeta, True), (OfMeta, True), (cycle, True),
        (lambda: np.ma.array([1.0, 2.0], mask=[True, False]), True), (lambda: chain(20), True),
        (lambda: chain(3000), False), (Exporting, False), (lambda: iter([1]), False),
        (lambda: nnxp.device("cpu"), True), (lambda: CONFIG, True), (lambda: np.sqrt, True),
    ],
)  # fmt: skip
def test_attributes_of_any_type_train(make, captured):
    one = trainer(layer=Holding(make()))
    before = repr(getattr(one.network[1].held, "mask", None))
    if captured:
        fit(one)
    else:
        with pytest.warns(UserWarning, match=r"it refers to an object of type"):
            fit(one)
    assert (one.captured == "captured") == captured
    assert repr(getattr(one.network[1].held, "mask", None)) == before


def test_method_of_a_class_replaced_within_an_epoch_takes_effect(monkeypatch):
    original = nnxp.Momentum._update_one

    def half(self, params, name, gradient, *factors):
        original(self, params, name, gradient * 0.5, *factors)

    def trained(capture):
        one = trainer(capture=capture)

        def stop():
            if one.optimizer.steps == 6:
                nnxp.Momentum._update_one = half
            return False

        fit(one, callbacks=[Stopping(stop)])
        nnxp.Momentum._update_one = original
        return one

    monkeypatch.setattr(nnxp.Momentum, "_update_one", original)
    assert_equal(trained("auto"), trained(False))


def test_checks_between_steps_are_few(monkeypatch):
    """Nothing changes here, so that the whole contents are not read again at each step."""
    import nnxp.capture.base

    calls = []
    contents_of = nnxp.capture.base.contents_of
    monkeypatch.setattr(
        nnxp.capture.base, "contents_of", lambda step: calls.append(1) or contents_of(step)
    )
    for one in (trainer(), trainer(optimizer=nnxp.Adam())):
        for _ in range(2):
            fit(one, callbacks=[Stopping(lambda: False)])
    assert len(calls) <= 4


# Found by attacks

DIGITS = nnxp.data.load_digits()[0]


class HalvedLoss(nnxp.SoftmaxWithLoss):
    def backward(self):
        return super().backward() * 0.5


def change_layers(trainer):
    device = trainer.network.device
    new = nnxp.Affine(64, 9, rng=9, device=device, dtype="float64")
    trainer.network.layers = [new, *trainer.network[1:]]
    trainer.optimizer = nnxp.SGD(0.1)


def replace_optimizer(trainer):
    trainer.optimizer = nnxp.SGD(0.001)


def replace_loss(trainer):
    trainer.loss = HalvedLoss()


def add_penalty(trainer):
    trainer.penalty = nnxp.L2(0.5)


@devices
@pytest.mark.parametrize("change", [change_layers, replace_optimizer, replace_loss, add_penalty])
def test_parts_replaced_within_an_epoch_are_used_at_once(spec, change):
    def trained(capture, change):
        one = trainer(spec, capture=capture)
        fit(one, callbacks=[Stopping(Anneal(one, change))])
        return one

    one, other = trained("auto", change), trained(False, change)
    assert one.captured == "captured"
    assert_equal(one, other)


class Unit(nnxp.Layer):
    """Rows of length 1; a row of zeros stays."""

    def forward(self, x, training=False):
        xp = array_namespace(x)
        n = xp.sqrt(xp.sum(x * x, axis=1, keepdims=True))
        y = xp.where(n > 0, x / n, 0.0)
        if training:
            self.save_for_backward(y, (n, y))
        return y

    def backward(self, dy):
        n, y = self.saved(dy)
        xp = array_namespace(dy)
        inner = xp.sum(dy * y, axis=1, keepdims=True)
        return xp.where(n > 0, (dy - y * inner) / n, 0.0)


def test_where_hides_what_is_not_finite():
    inputs = DIGITS.inputs.copy()
    inputs[600] = 0  # in no batch of a trial
    data = nnxp.data.Dataset(inputs, DIGITS.labels)
    results = []
    for capture in ("auto", False):
        one = trainer(capture=capture)
        one.network.layers = [Unit(), *one.network]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            one.fit(data, epochs=1, batch_size=400, rng=1)
        results.append(one)
    assert results[0].captured == "captured"
    assert_equal(*results)


class Outliers(Swish):
    """Reads how many numbers are large: none in the batches of a trial."""

    def forward(self, x, training=False):
        xp = array_namespace(x)
        found = xp.nonzero(xp.abs(x) > 1e9)[0] if self.by_index else x[xp.abs(x) > 1e9]
        return super().forward(x / (1 + found.shape[0]), training)


@pytest.mark.parametrize("by_index", [True, False])
def test_shapes_that_depend_on_numbers_are_not_recorded(by_index):
    layer = Outliers()
    layer.by_index = by_index
    with pytest.warns(UserWarning, match="a recorded step cannot read or assign numbers"):
        fit(trainer(layer=layer))


class Scheduled(Swish):
    """Scales by a number that depends on the optimizer's steps."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def forward(self, x, training=False):
        self.scale = 1 / (1 + self.optimizer.steps)
        return super().forward(x * self.scale, training)

    def backward(self, dy):
        return super().backward(dy) * self.scale


class Wrapping(nnxp.Optimizer):
    def __init__(self, inner):
        super().__init__(0.1)
        self.inner = inner

    def update(self, params, grads):
        self.inner.update(params, grads)


@pytest.mark.filterwarnings("ignore:no step is captured")
@devices
def test_numbers_of_another_optimizer_are_not_baked_in(spec):
    def scheduled(capture):
        optimizer = nnxp.SGD(0.1)
        one = trainer(spec, layer=Scheduled(optimizer), optimizer=optimizer, capture=capture)
        fit(one)
        return one

    assert_equal(scheduled("auto"), scheduled(False))

    def slow_down(trainer):
        trainer.optimizer.inner.learning_rate = 0.001

    def wrapped(capture):
        one = trainer(spec, optimizer=Wrapping(nnxp.SGD(0.1)), capture=capture)
        fit(one, callbacks=[Stopping(Anneal(one, slow_down))])
        return one

    assert_equal(wrapped("auto"), wrapped(False))


def test_evaluation_by_a_callback_does_not_end_the_checks(monkeypatch):
    monkeypatch.setattr("nnxp.training.stepping._MAX_KEPT", 0)  # `fit` releases captured steps
    monkeypatch.setattr(nnxp.Device, "free_memory", lambda device: None)
    network = nnxp.mlp([64, 15, 10, 10], rng=0, dtype="float64")
    dropout = nnxp.Dropout(0.1, rng=0, dtype="float64")
    network.layers = [network[0], dropout, *network[1:]]
    results = []
    for capture in ("auto", False):
        one = nnxp.Trainer(
            network.to("cpu"), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.01), capture=capture
        )

        def stop(one=one):
            if one.optimizer.steps == 1:
                one.evaluate(nnxp.data.Dataset(DIGITS.inputs[:9], DIGITS.labels[:9]))
            if one.optimizer.steps == 2:
                one.network[1].rate = 0.9

        fit(one, callbacks=[Stopping(stop)])
        results.append(one)
    assert_equal(*results)


def count_in_default(self, n=[0]):  # noqa: B006
    n[0] += 1


class Defaults(Swish):
    count = count_in_default

    def forward(self, x, training=False):
        if training:
            self.count()
        return super().forward(x, training)


def test_mutable_default_arguments_mean_plain_steps():
    with pytest.warns(UserWarning, match="a variable of count of the class Defaults"):
        fit(trainer(layer=Defaults()))


class Averaging(nnxp.SGD):
    """Makes a slot in the first update."""

    def update(self, params, grads):
        super().update(params, grads)
        kept = self.state.setdefault("average", {})
        for name in grads:
            kept[name] = params[name] * 1.0


class Refusing(nnxp.Momentum):
    def factors(self):
        if self.momentum < 0.5:
            raise ValueError("too small")
        return super().factors()


@pytest.mark.filterwarnings("ignore:no step is captured")
@pytest.mark.parametrize("make", [Averaging, Refusing])
def test_what_a_trial_cannot_compare_trains_by_plain_steps(make):
    one, other = trainer(optimizer=make(0.1)), trainer(optimizer=make(0.1), capture=False)
    fit(one)
    fit(other)
    assert_equal(one, other)


@pytest.mark.filterwarnings("ignore:no step is captured")
def test_state_of_a_wrapped_optimizer_is_not_lost_by_a_checkpoint(tmp_path):
    pytest.importorskip("safetensors")
    one = trainer(optimizer=Wrapping(nnxp.Momentum(0.1)))
    fit(one)
    with pytest.raises(nnxp.InputError, match=r"has the optimizer Momentum\(.* does not hold"):
        one.save(tmp_path / "a.safetensors")


def halved(params, grads):
    return {name: 0.5 * g for name, g in grads.items()}


def test_network_that_diverges_blames_no_part():
    one = trainer(transforms=[halved])
    one.network.parameters()["W1"][0, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(nnxp.DivergenceError):
            fit(one)
    assert one.captured == "plain: the numbers are not finite, so that steps cannot be compared"
    one = trainer(transforms=[lambda params, grads: {n: g * np.inf for n, g in grads.items()}])
    said = pytest.warns(UserWarning, match="plain steps diverge in a trial")
    with said, pytest.raises(nnxp.DivergenceError):
        fit(one)


def scaled(arrays):
    return {name: x * 0.5 for name, x in arrays.items()}


def assign_parameter(trainer):
    parameters = trainer.network.parameters()
    parameters["W1"] = parameters["W1"] * 0.5


def put_parameter(trainer):
    trainer.network[1].params["W"] = trainer.network[1].params["W"] * 0.5


def put_params(trainer):
    trainer.network[1].params = scaled(trainer.network[1].params)


def load_all(trainer):
    trainer.network.load_parameters(scaled(trainer.network.parameters()))


def assign_state(trainer):
    states = trainer.network.states()
    states["running_mean1"] = states["running_mean1"] * 0.5


def put_slot(trainer):
    trainer.optimizer.state["velocity"]["W1"] = trainer.optimizer.state["velocity"]["W1"] * 0.5


def put_slots(trainer):
    trainer.optimizer.state["velocity"] = scaled(trainer.optimizer.state["velocity"])


def clear_slots(trainer):
    trainer.optimizer.state = {"velocity": {}}


ASSIGNMENTS = [
    assign_parameter, put_parameter, put_params, load_all, assign_state, put_slot, put_slots,
    clear_slots,
]  # fmt: skip


@devices
@pytest.mark.parametrize("change", ASSIGNMENTS)
def test_arrays_replaced_within_an_epoch_are_used_at_once(spec, change):
    one, other = (changed_within(spec, capture, change) for capture in ("auto", False))
    assert one.captured == "captured"
    assert_equal(one, other)
    with pytest.raises(AssertionError):
        assert_equal(one, changed_within(spec, False, lambda _: None))
