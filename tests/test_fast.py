from __future__ import annotations

import copy
import itertools
import operator
import pickle
from dataclasses import astuple, replace

import array_api_compat.numpy as xp
import numpy as np
import pytest
import threadpoolctl
from conftest import train_epoch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nnxp
from nnxp.capture import blas, choose, replay
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.capture.program import compile_program
from nnxp.capture.recorded import Recorded
from nnxp.capture.tape import Tape
from nnxp.data import Batches, Dataset, one_hot
from nnxp.devices import threads
from nnxp.optimizers import OPTIMIZERS

LOSSES = {
    nnxp.SoftmaxWithLoss: np.arange(50) % 3,
    nnxp.SigmoidWithLoss: one_hot(np.arange(50) % 3, 3),
    nnxp.MeanSquaredError: np.linspace(-1, 1, 150).reshape(50, 3),
}


def nnxps(kind):
    """Return all of nnxp's own subclasses."""
    return {x for x in kind.__subclasses__() if x.__module__.startswith("nnxp.")}


def compiled(tape, targets):
    return compile_program(tape, targets, NumpyOps())


class PlainTrainer(nnxp.Trainer):
    """Trains by `step`: a subclass may have changed it."""


def trained(kind, monkeypatch, *, loss, optimizer, inputs, labels=None, dtype="float32", epochs=2):
    rng = np.random.default_rng(0)
    widths = [nnxp.Affine(i, o, rng=rng, dtype=dtype) for i, o in [(12, 9), (9, 8), (8, 7), (7, 3)]]
    first, second, third, last = widths
    layers = [nnxp.Flatten(), first, nnxp.ReLU(), second, nnxp.Sigmoid(), nnxp.Identity(), third]
    layers += [nnxp.Tanh(), nnxp.Softmax(), last]
    assert {type(layer) for layer in layers} == nnxps(nnxp.Layer)
    trainer = kind(nnxp.Sequential(layers), loss(), OPTIMIZERS[optimizer]())
    dataset = Dataset(inputs, LOSSES[loss] if labels is None else labels)
    with monkeypatch.context() as patch:
        if kind is nnxp.Trainer:
            patch.setattr(nnxp.Trainer, "step", None)  # it must do without
        trainer.fit(dataset, epochs=epochs, batch_size=16, rng=rng)  # and a short batch of 2
    return trainer


def assert_same(one, other):
    mine, others = ([astuple(replace(r, seconds=0)) for r in x.history] for x in (one, other))
    np.testing.assert_equal(mine, others)
    assert one.optimizer.steps == other.optimizer.steps
    np.testing.assert_equal(dict(one.network.parameters()), dict(other.network.parameters()))
    np.testing.assert_equal(one.optimizer.state, other.optimizer.state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_fit_does_the_very_steps(monkeypatch, loss, optimizer, dtype):
    images = np.random.default_rng(1).integers(0, 256, (50, 3, 4), dtype=np.uint8)
    settings = {"loss": loss, "optimizer": optimizer, "inputs": images, "dtype": dtype}
    one = trained(nnxp.Trainer, monkeypatch, **settings)
    assert_same(one, trained(PlainTrainer, monkeypatch, **settings))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_vectors_are_updated_in_chunks(monkeypatch, optimizer):
    monkeypatch.setattr(NumpyOps, "chunk", 100)  # of 273 parameters
    inputs = np.random.default_rng(1).normal(size=(50, 3, 4))
    settings = {"loss": nnxp.SoftmaxWithLoss, "optimizer": optimizer, "inputs": inputs}
    one = trained(nnxp.Trainer, monkeypatch, **settings)
    assert_same(one, trained(PlainTrainer, monkeypatch, **settings))


@pytest.mark.parametrize("inputs_dtype", ["float16", "float32", "float64", ">f4"])
def test_inputs_of_any_real_dtype(monkeypatch, inputs_dtype):
    inputs = np.random.default_rng(1).normal(size=(50, 3, 4)).astype(inputs_dtype)
    settings = {"loss": nnxp.SoftmaxWithLoss, "optimizer": "momentum", "inputs": inputs}
    labels = one_hot(np.arange(50) % 3, 3)
    one = trained(nnxp.Trainer, monkeypatch, **settings, labels=labels)
    assert_same(one, trained(PlainTrainer, monkeypatch, **settings, labels=labels))


def bound(x, rate, a, b):
    """Return how far two ways of rounding ``x - rate * (a @ b)`` may be apart.

    A sum of n products in any order is off by n * unit * (|a| @ |b|) at most (Higham 2002,
    eq. 3.5); the factor and the difference round once more each, or not, in both ways.
    """
    unit = np.finfo(x.dtype).eps / 2
    x, a, b = (np.abs(y.astype("float64")) for y in (x, a, b))
    return 2 * unit * ((a.shape[1] + 2) * rate * (a @ b) + x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposed", [(), (0,), (1,), (0, 1)])
def test_a_subtracting_product_is_within_its_bound(dtype, transposed):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 30)).astype(dtype)
    factors = [rng.normal(size=shape).astype(dtype) for shape in [(40, 20), (20, 30)]]
    a, b = (np.asarray(y.T, order="C").T if i in transposed else y for i, y in enumerate(factors))
    out, rate = x.copy(), np.array(0.1, dtype)
    call = blas.accumulating_product(out, a, b, rate)
    if call is None:
        pytest.skip("NumPy's BLAS is not the OpenBLAS of its wheels")
    for value in (0.1, 0.3):  # it reads the factor anew
        out[...], rate[...] = x, value
        call()
        exact = x.astype("float64") - float(rate) * (a.astype("float64") @ b.astype("float64"))
        assert (abs(out - exact) <= bound(x, value, a, b)).all()


@pytest.mark.parametrize(
    "arrays",
    [
        [np.ones((4, 6))[:, ::2], np.ones((4, 2)), np.ones((2, 3))],
        [np.ones((4, 3)), np.ones((4, 4))[:, ::2], np.ones((2, 3))],
        [np.ones((4, 3)), np.ones((4, 2)), np.ones((2, 6))[:, ::2]],
        [np.ones((4, 3)), np.ones((4, 2), "float32"), np.ones((2, 3))],
        [np.ones((4, 3), int), np.ones((4, 2), int), np.ones((2, 3), int)],
    ],
)
def test_a_subtracting_product_leaves_to_numpy_what_blas_does_not_do(arrays):
    out, a, b = arrays
    assert blas.accumulating_product(out, a, b, np.array(0.1)) is None


@pytest.mark.parametrize("openblas", [True, False])
@pytest.mark.parametrize("inner", [5, 2000])
def test_an_affine_layer_is_one_product_within_its_bound(monkeypatch, openblas, inner):
    if not openblas:
        monkeypatch.setattr(blas, "_PRODUCTS", {})
    rng = np.random.default_rng(0)
    x, W, b = (rng.normal(size=n).astype("float32") for n in [(30, inner), (inner, 20), 20])
    tape, out = Tape(), np.empty((30, 20), "float32")
    y = tape.read(x) @ tape.read(W) + tape.read(b)
    program = compiled(tape, [(y, out)])
    for _ in range(2):
        for call in program:
            call()
        # The bias first or last, and each product's terms in any order.
        assert (abs(out - (x @ W + b)) <= bound(b, 1, x, W)).all()
    assert len(program) == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_large_sum_is_within_its_bound(dtype):
    x = np.random.default_rng(0).normal(size=(200, 50)).astype(dtype)
    tape, out = Tape(), np.empty(50, dtype)
    for call in compiled(tape, [(tape.namespace.sum(tape.read(x), axis=0), out)]):
        call()
    ones, zeros = np.ones((1, 200), dtype), np.zeros(50, dtype)
    assert (abs(out - x.sum(axis=0)) <= bound(zeros, 1, ones, x)[0]).all()
    assert abs(out).max() > 1


@pytest.mark.parametrize("openblas", [True, False])
def test_a_large_matrix_descends_within_rounding(monkeypatch, openblas):
    if not openblas:
        monkeypatch.setattr(blas, "_PRODUCTS", {})
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(30, 100)).astype("float32"), np.arange(30) % 4
    kinds = (nnxp.Trainer, PlainTrainer)
    one, other = (
        kind(
            nnxp.mlp([100, 60, 4], rng=np.random.default_rng(0)),
            nnxp.SoftmaxWithLoss(),
            nnxp.SGD(0.5),
        )
        for kind in kinds
    )
    W = other.network.parameters()["W1"].copy()
    for trainer in (one, other):
        before = dict(trainer.network.parameters())
        train_epoch(trainer, Dataset(inputs, labels), 30, np.random.default_rng(0))
        assert all(before[name] is x for name, x in trainer.network.parameters().items())
    mine, plain = one.network.parameters(), other.network.parameters()
    assert abs(plain["W1"] - W).max() > 0.01
    hidden = np.ones((30, 60), "float32")  # no gradient of a score is beyond 1 / 30, so of one
    # of 60 hidden outputs not beyond 4 / 30 of the largest of W2
    dy = hidden * 4 / 30 * abs(other.network.parameters()["W2"]).max() * 2
    assert (abs(mine["W1"] - plain["W1"]) <= bound(W, 0.5, inputs.T, dy)).all()
    ones = np.ones((1, 30), "float32")
    assert (abs(mine["b1"] - plain["b1"]) <= bound(plain["b1"], 0.5, ones, dy)[0]).all()
    np.testing.assert_equal(mine["W2"], plain["W2"])  # it is small, and so is its layer's sum
    np.testing.assert_equal(mine["b2"], plain["b2"])
    if not openblas:
        np.testing.assert_equal(mine["W1"], plain["W1"])


OPERATIONS = [
    lambda xp, x, y: x + y,
    lambda xp, x, y: 1 - x,
    lambda xp, x, y: x / (2.0 + y * y),
    lambda xp, x, y: x @ (y.T @ x),
    lambda xp, x, y: -x * x,
    lambda xp, x, y: x - 0.5 * (x @ (y.T @ x)),
    lambda xp, x, y: xp.maximum(x, 0.0),
    lambda xp, x, y: xp.where(x > y, x, 0.0),
    lambda xp, x, y: xp.where(y >= x, x, y),
    lambda xp, x, y: x - xp.max(y, axis=1, keepdims=True),
    lambda xp, x, y: x * xp.sum(y, axis=0),
    lambda xp, x, y: x - xp.sum(y, axis=1)[:, None],
    lambda xp, x, y: x + xp.mean(y),
    lambda xp, x, y: x - xp.max(y) + xp.min(x, axis=0),
    lambda xp, x, y: xp.reshape(xp.reshape(x, (2, 6)), (4, 3)) + y,
    lambda xp, x, y: xp.reshape(x.T, (4, 3)) * y,
    lambda xp, x, y: x + xp.reshape(xp.reshape(xp.astype(y.T, xp.float32).T, (6, 2)), (4, 3)),
    lambda xp, x, y: xp.astype(xp.astype(x, xp.float32), xp.float64) + xp.astype(y > 0, xp.float64),
    lambda xp, x, y: x * xp.astype(xp.arange(3) == 1, xp.float64),
    lambda xp, x, y: xp.concat([x, y])[2:6, :],
    lambda xp, x, y: x * x[xp.arange(4), xp.argmax(y, axis=1)][:, None],
    lambda xp, x, y: xp.sqrt(xp.abs(x)),
    lambda xp, x, y: x,
    lambda xp, x, y: y.T.T,
]
VIEWS = range(len(OPERATIONS) - 2, len(OPERATIONS))


@st.composite
def programs(draw):
    count = draw(st.integers(1, 8))
    steps = []
    for made in range(2, 2 + count):
        reads = draw(st.tuples(*[st.integers(0, made - 1)] * 2))
        steps.append((draw(st.integers(0, len(OPERATIONS) - 1)), *reads))
    return steps, draw(st.tuples(*[st.integers(0, 2 * count + 1)] * 3))


def performed(steps, xp, x, y):
    """Return x, y, what each step makes of two of those before it, and that unscaled."""
    made, raw = [x, y], []
    for operation, first, second in steps:
        raw.append(OPERATIONS[operation](xp, made[first], made[second]))
        z = raw[-1]  # kept small, by what rounds alike wherever it lies in memory
        made.append(z if operation in VIEWS else z / (1 + xp.abs(z)))
    return made + raw


@example(([(8, 0, 1)], (3, 3, 3)), 0)  # where(0 >= x, x, y), unscaled, goes where x and y are
@settings(max_examples=300, deadline=None)
@given(programs(), st.integers(0, 2**32 - 1))
def test_a_program_does_what_the_calls_do(program, seed):
    """Whatever is read and overwritten: two arrays that are read are targets, with a third."""
    steps, results = program
    rng = np.random.default_rng(seed)
    x, y, z = (rng.normal(size=(4, 3)) for _ in range(3))
    tape = Tape()
    made = performed(steps, tape.namespace, tape.read(x), tape.read(y))
    calls = compiled(tape, [(made[i], out) for i, out in zip(results, (x, y, z), strict=True)])
    for _ in range(3):
        made = performed(steps, xp, x.copy(), y.copy())
        expected = [made[i].copy() for i in results]
        for call in calls:
            call()
        for out, wanted in zip((x, y, z), expected, strict=True):
            np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize(
    "also", ["nothing", "the old matrix", "the product", "a multiple of it", "the step"]
)
def test_a_descent_is_joined_where_nothing_else_needs_its_parts(also):
    rng = np.random.default_rng(0)
    W, a, b = rng.normal(size=(4, 3)), rng.normal(size=(4, 5)), rng.normal(size=(5, 3))
    rate, other = np.array(0.1), np.empty((4, 3))
    tape = Tape()
    old, (x, y) = tape.read(W), (tape.read(a), tape.read(b))
    product = x @ y
    step = tape.read(rate) * product
    new = old - step
    results = {"the product": product, "a multiple of it": 2 * product, "the step": step}
    result = (results | {"the old matrix": old + 1}).get(also)
    targets = [(new, W)] if result is None else [(new, W), (result, other)]
    calls = compiled(tape, targets)
    for _ in range(2):
        before, gradient = W.copy(), a @ b
        for call in calls:
            call()
        assert (abs(W - (before - 0.1 * gradient)) <= bound(before, 0.1, a, b)).all()
        if result is not None:
            wanted = {"the product": gradient, "a multiple of it": 2 * gradient}
            wanted |= {"the step": 0.1 * gradient, "the old matrix": before + 1}
            np.testing.assert_allclose(other, wanted[also], rtol=1e-15)
    if blas.accumulating_product(W, a, b, rate):
        assert len(calls) == {"nothing": 1, "the old matrix": 2, "a multiple of it": 4}.get(also, 3)


def test_what_only_looks_like_a_descent_is_computed_as_it_stands():
    rng = np.random.default_rng(0)
    x, a, b = rng.normal(size=(4, 3)), rng.normal(size=(4, 5)), rng.normal(size=(5, 3))
    tape, out, rate = Tape(), np.empty((4, 3)), np.array(0.1)
    y = tape.read(x) - tape.read(rate) * (tape.read(a) @ tape.read(b))
    for call in compiled(tape, [(y * 2, out)]):
        call()
    np.testing.assert_array_equal(out, (x - rate * (a @ b)) * 2)
    assert len(compiled(tape, [(y * 2, out)])) == 4


def test_a_descent_may_end_elsewhere():
    rng = np.random.default_rng(0)
    W, a, b = rng.normal(size=(4, 3)), rng.normal(size=(4, 5)), rng.normal(size=(5, 3))
    tape, out, before = Tape(), np.empty((4, 3)), W.copy()
    new = tape.read(W) - tape.read(np.array(0.1)) * (tape.read(a) @ tape.read(b))
    for call in compiled(tape, [(new, out)]):
        call()
    np.testing.assert_array_equal(W, before)
    assert (abs(out - (W - 0.1 * (a @ b))) <= bound(W, 0.1, a, b)).all()


def trainer_with(kind=nnxp.Trainer, *, layer=None, loss=None, optimizer=None, widths=(6, 5, 3)):
    rng = np.random.default_rng(0)
    first, last = (nnxp.Affine(i, o, rng=rng) for i, o in itertools.pairwise(widths))
    network = nnxp.Sequential([first, layer or nnxp.Tanh(), last])
    return kind(network, loss or nnxp.SoftmaxWithLoss(), optimizer or nnxp.Momentum(0.1))


@pytest.fixture
def small():
    rng = np.random.default_rng(0)
    return Dataset(rng.normal(size=(40, 6)), np.arange(40) % 3)


class MyTanh(nnxp.Tanh):
    calls = 0

    def forward(self, x, training=False):
        self.calls += training
        return super().forward(x, training)


class MyLoss(nnxp.SoftmaxWithLoss):
    calls = 0

    def backward(self):
        self.calls += 1
        return super().backward()


class MyMomentum(nnxp.Momentum):
    calls = 0

    def update(self, params, grads):
        self.calls += 1
        super().update(params, grads)


class MyTrainer(nnxp.Trainer):
    calls = 0

    def step(self, inputs, labels):
        self.calls += 1
        return super().step(inputs, labels)


@pytest.mark.parametrize("own", ["layer", "loss", "optimizer", "trainer", "step"])
def test_what_a_part_of_ones_own_does_is_done(small, own):
    parts = {"layer": MyTanh(), "loss": MyLoss(), "optimizer": MyMomentum(0.1)}
    kind = MyTrainer if own == "trainer" else nnxp.Trainer
    trainer = trainer_with(kind, **{own: parts[own]} if own in parts else {})
    if own == "step":
        counted = MyTrainer(trainer.network, trainer.loss, trainer.optimizer)
        trainer.step = counted.step
    trainer.fit(small, epochs=2, batch_size=8, rng=np.random.default_rng(0))
    assert parts.get(own, counted if own == "step" else trainer).calls == 10
    plain = trainer_with(PlainTrainer)
    plain.fit(small, epochs=2, batch_size=8, rng=np.random.default_rng(0))
    assert_same(trainer, plain)


def share_weights(network):
    network.layers[2].params["W"] = network.layers[0].params["W"]


def order_by_columns(network):
    network.layers[0].params["W"] = np.asfortranarray(network.layers[0].params["W"])


@pytest.mark.parametrize("arrange", [share_weights, order_by_columns])
@pytest.mark.parametrize("late", [False, True])
def test_arrays_that_cannot_move_are_trained_where_they_are(small, arrange, late):
    trainers = [trainer_with(kind, widths=(6, 6, 6)) for kind in (nnxp.Trainer, PlainTrainer)]
    for trainer in trainers:
        rng = np.random.default_rng(0)
        if late:
            train_epoch(trainer, small, 16, rng)
        arrange(trainer.network)
        batches = Batches(small, 16, device="cpu", dtype="float32")
        way, why = choose(True, trainer.network, trainer.loss, trainer.optimizer, batches)
        assert way is None
        assert "share parameters" in why or "overlap in memory" in why
        train_epoch(trainer, small, 16, rng)
    assert_same(*trainers)


@pytest.mark.parametrize(
    "look",
    [bool, float, int, list, np.asarray, np.zeros(3).__getitem__, lambda x: x.__setitem__(0, 1)],
)
def test_recorded_arrays_have_no_numbers(look):
    with pytest.raises(nnxp.InputError, match="cannot read or assign numbers"):
        look(Tape().read(np.array(1)))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "matmul"])
def test_operators_with_numpy_arrays_on_either_side(name):
    function = getattr(operator, name)
    x, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 0.5], [1.0, 2.0]])
    for left in (True, False):
        expected = function(x, y)
        tape, out = Tape(), np.empty_like(expected)
        result = function(tape.read(x), y) if left else function(x, tape.read(y))
        assert isinstance(result, Recorded)
        for call in compiled(tape, [(result, out)]):
            call()
        np.testing.assert_array_equal(out, expected)


def test_an_interruption_brings_back_what_was_trained(small):
    one, other = trainer_with(), trainer_with()
    before = dict(one.network.parameters())
    calls = []

    def factors():
        calls.append(1)
        if len(calls) == 5:  # one call looks how many factors there are
            raise KeyboardInterrupt
        return (0.1,)

    one.optimizer.factors = factors
    with pytest.raises(KeyboardInterrupt):
        train_epoch(one, small, 8, np.random.default_rng(0))
    assert all(before[name] is x for name, x in one.network.parameters().items())
    order = np.random.default_rng(0).permutation(40)
    for rows in order.reshape(5, 8)[:3]:
        other.step(small.inputs[rows].astype("float32"), small.labels[rows])
    np.testing.assert_equal(dict(one.network.parameters()), dict(other.network.parameters()))
    np.testing.assert_equal(one.optimizer.state, other.optimizer.state)


def test_an_optimizer_that_made_no_step_remembers_nothing(small):
    trainer = trainer_with()
    batches = Batches(small, 8, device="cpu", dtype="float32")
    with replay.Replay(trainer.network, trainer.loss, trainer.optimizer, batches).bind(batches):
        pass
    assert trainer.optimizer.state == {"velocity": {}}


def change_settings(trainer, _):
    trainer.optimizer.learning_rate = 0.05
    trainer.optimizer.momentum = np.float32(0.5)


def change_parameters(trainer, _):
    trainer.network.parameters()["b1"] = np.ones(5, "float32")
    trainer.network.load_parameters(trainer.network.parameters())


def change_optimizer(trainer, _):
    trainer.optimizer = nnxp.SGD(0.2)


def change_inputs(_, dataset):
    return Dataset(dataset.inputs[:33].astype("float32"), dataset.labels[:33])


def change_labels(_, dataset):
    return Dataset(dataset.inputs[::-1], one_hot(dataset.labels, 3))


def change_nothing(trainer, dataset):
    dataset.inputs[...] *= 2.0


@pytest.mark.parametrize(
    "change",
    [
        change_settings,
        change_parameters,
        change_optimizer,
        change_inputs,
        change_labels,
        change_nothing,
    ],
)
def test_changes_between_epochs_act(small, change):
    trainers = trainer_with(), trainer_with(PlainTrainer)
    for trainer in trainers:
        dataset, rng = Dataset(small.inputs.copy(), small.labels), np.random.default_rng(0)
        trainer.optimizer.momentum = np.float32(0.9)
        train_epoch(trainer, dataset, 16, rng)
        changed = change(trainer, dataset) or dataset
        train_epoch(trainer, changed, 7, rng)
    assert_same(*trainers)


def test_a_step_is_recorded_once(small, monkeypatch):
    trainer = trainer_with()
    trainer.fit(small, epochs=2, batch_size=16, rng=np.random.default_rng(0))
    monkeypatch.setattr(replay, "Tape", None)
    train_epoch(trainer, small, 16, np.random.default_rng(0))


def test_few_recordings_are_kept(small):
    trainer = trainer_with()
    for batch_size in (7, 8, 9, 11):
        train_epoch(trainer, small, batch_size, np.random.default_rng(0))
    assert sorted(trainer._stepper.captured._programs) == [7, 11]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_trainer_trains_alone(small, copied):
    one = trainer_with()
    train_epoch(one, small, 16, np.random.default_rng(0))
    other = copied(one)
    before = {name: x.copy() for name, x in one.network.parameters().items()}
    train_epoch(other, small, 16, np.random.default_rng(1))
    np.testing.assert_equal(dict(one.network.parameters()), before)
    train_epoch(one, small, 16, np.random.default_rng(1))
    assert_same(one, other)


def test_an_optimizer_of_another_network_is_refused(small):
    optimizer = nnxp.Momentum(0.1)
    rng = np.random.default_rng(0)
    train_epoch(trainer_with(optimizer=optimizer), small, 16, rng)
    with pytest.raises(nnxp.InputError, match="has already trained another W1"):
        train_epoch(trainer_with(optimizer=optimizer, widths=(6, 4, 3)), small, 16, rng)


def test_no_gradient_is_left_behind(small):
    trainer = trainer_with()
    trainer.step(small.inputs.astype("float32"), small.labels)
    train_epoch(trainer, small, 16, np.random.default_rng(0))
    with pytest.raises(nnxp.CallOrderError, match="no gradients yet"):
        trainer.network.gradients()


# Of 6 inputs and 40 or 20 examples: 2^24 multiplications are 69,906 and 139,811 wide.
@pytest.mark.parametrize(
    ("width", "batch_size", "threads"),
    [(5, 40, 1), (69_900, 40, 1), (69_910, 40, 2), (69_910, 20, 1)],
)
def test_small_networks_train_on_one_thread_and_give_the_others_back(
    small, width, batch_size, threads, monkeypatch
):
    seen = []

    def spied(function):
        def spy(*args, **kwargs):
            libraries = threadpoolctl.threadpool_info()  # other packages' BLAS among them
            numpys = [x for x in libraries if "numpy" in x["filepath"]] or libraries
            seen.append({x["num_threads"] for x in numpys if x["user_api"] == "blas"})
            return function(*args, **kwargs)

        return spy

    trainer = trainer_with(optimizer=nnxp.SGD(0.1), widths=(6, width, 3))
    trainer.optimizer.factors = spied(trainer.optimizer.factors)
    monkeypatch.setattr(trainer.loss, "correct", spied(trainer.loss.correct))
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        rng = np.random.default_rng(0)
        train_epoch(trainer, small, batch_size, rng)
        trainer.fit(small, epochs=1, batch_size=batch_size, validation=small, rng=rng)
        trainer.evaluate(small, batch_size=batch_size)
        assert len(seen) > 4
        assert all(numbers == {threads} for numbers in seen)
        spied(int)()
        assert seen[-1] == {2}


def test_threads_of_a_program_may_train_at_once():
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        first, second = (threads.limit_blas_threads(1) for _ in range(2))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        numbers = {x["num_threads"] for x in threadpoolctl.threadpool_info()}
        assert 1 in numbers
        second.__exit__(None, None, None)
        libraries = threadpoolctl.threadpool_info()
        assert {x["num_threads"] for x in libraries if x["user_api"] == "blas"} == {2}
