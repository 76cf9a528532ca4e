"""Epochs of one `fit`: captured steps stay bound between them if no callback is there."""

from __future__ import annotations

import numpy as np
import pytest
from builders import assert_same, every_layer_trainer, trainer_with
from tables import device_or_skip

import nnxp
from nnxp.capture import replay
from nnxp.data import Dataset
from nnxp.optimizers import OPTIMIZERS


class Nothing(nnxp.callbacks.Callback):
    """Does nothing; but it might see the arrays, so that they are the network's own."""


class Line(Nothing, nnxp.callbacks.Progress):
    """A user's class, although nnxp's own method is all that it has."""


class Orders(np.random.Generator):
    """Draws orders, and calls a function before one of them."""

    def __init__(self, number, function):
        super().__init__(np.random.PCG64(0))
        self.number, self.function, self.drawn = number, function, 0

    def permutation(self, *args):
        self.drawn += 1
        if self.drawn == self.number:
            self.function()
        return super().permutation(*args)


def count_bindings(monkeypatch):
    """Return a list that grows by each binding of captured steps."""
    found, bind = [], replay.Replay.bind
    monkeypatch.setattr(replay.Replay, "bind", lambda *args: found.append(1) or bind(*args))
    return found


@pytest.mark.parametrize(
    "optimizer",
    [pytest.param(x, marks=() if x == "adam" else pytest.mark.long) for x in OPTIMIZERS],
)
def test_epochs_with_bound_steps_are_those_with_callbacks(monkeypatch, optimizer):
    bindings, trainers = count_bindings(monkeypatch), []
    data = Dataset(np.random.default_rng(1).normal(size=(50, 3, 4)), np.arange(50) % 3)
    for callbacks, number in (([], 1), ([Nothing()], 4)):
        trainer = every_layer_trainer(optimizer=optimizer)
        trainer.penalty = nnxp.L2(1e-3)
        options = {"batch_size": 16, "validation": data, "callbacks": callbacks}
        trainer.fit(data, epochs=4, **options, rng=trainer.rng)
        assert len(bindings) == number
        bindings.clear()
        trainer.fit(data, epochs=1, **options)
        bindings.clear()
        trainers.append(trainer)
    assert_same(*trainers)
    states = [dict(trainer.network.states()) for trainer in trainers]
    np.testing.assert_equal(*states)


@pytest.mark.parametrize(
    ("callback", "number"),
    [(nnxp.callbacks.Progress, 1), (nnxp.callbacks.EarlyStopping, 3), (Line, 3)],
)
def test_steps_stay_bound_only_with_callbacks_that_hold_no_arrays(
    monkeypatch, small, callback, number
):
    bindings = count_bindings(monkeypatch)
    options = {"validation": small, "callbacks": [callback()]}
    trainer_with().fit(small, epochs=3, batch_size=16, rng=0, **options)
    assert len(bindings) == number


@pytest.mark.interop
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_epochs_on_jax_are_those_with_callbacks(optimizer):
    trainers = []
    data = Dataset(np.random.default_rng(1).normal(size=(50, 12)), np.arange(50) % 3)
    for callbacks in ([], [Nothing()]):
        network = nnxp.mlp([12, 9, 3], rng=0, device=device_or_skip("jax:cpu"))
        trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), OPTIMIZERS[optimizer]())
        trainer.fit(data, epochs=3, batch_size=16, rng=0, callbacks=callbacks)
        assert trainer.captured == "captured"
        trainers.append(trainer)
    assert_same(*trainers)


def test_arrays_are_the_own_ones_after_bound_epochs(small):
    trainer = trainer_with()
    trainer.fit(small, epochs=1, batch_size=16, rng=0)
    parameters = dict(trainer.network.parameters())
    velocity = dict(trainer.optimizer.state["velocity"])
    before = {name: x.copy() for name, x in velocity.items()}
    trainer.fit(small, epochs=3, batch_size=16)
    assert all(parameters[name] is x for name, x in trainer.network.parameters().items())
    np.testing.assert_equal(velocity, before)  # those that were handed out do not change
    assert not np.array_equal(velocity["W1"], trainer.optimizer.state["velocity"]["W1"])


def raise_interrupt():
    raise KeyboardInterrupt


def test_an_interrupt_after_bound_epochs_keeps_what_was_trained(small):
    one, other = trainer_with(), trainer_with()
    parameters = dict(one.network.parameters())
    with pytest.raises(KeyboardInterrupt):
        one.fit(small, epochs=5, batch_size=16, rng=Orders(3, raise_interrupt))
    other.fit(small, epochs=2, batch_size=16, rng=np.random.default_rng(0))
    assert_same(one, other)
    assert all(parameters[name] is x for name, x in one.network.parameters().items())


@pytest.mark.parametrize("change", ["array", "layer's setting", "optimizer"])
def test_a_change_between_bound_epochs_takes_effect(small, change):
    trainers = []
    for callbacks in ([], [Nothing()]):
        trainer = trainer_with()

        def apply(trainer=trainer):
            if change == "array":
                trainer.network.parameters()["b1"] = np.ones(5, "float32")
            elif change == "optimizer":
                trainer.optimizer = nnxp.SGD(0.2)
            else:
                trainer.network.leaves()[0].trainable = False

        trainer.fit(small, epochs=4, batch_size=16, rng=Orders(2, apply), callbacks=callbacks)
        trainers.append(trainer)
    assert_same(*trainers)


@pytest.mark.parametrize(
    ("spec", "capture"),
    [("cpu", "auto"), ("cpu", False), pytest.param("jax:cpu", True, marks=pytest.mark.interop)],
)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_divergence_seen_after_a_later_epoch_undoes_this_epoch(spec, capture, optimizer):
    # Only the bias moves: its error e grows by 0.2 % a step, and 100 steps are an epoch. So the sum
    # over 1000 examples of e²/2 passes float32's largest number in the third epoch, and no single
    # number of a step does.
    device = device_or_skip(spec)
    examples = Dataset(np.zeros((1000, 1)), np.full((1000, 1), 6e17))

    def new_trainer():
        network = nnxp.mlp([1, 1], rng=0, device=device)
        rule = {"sgd": nnxp.SGD(2.002), "momentum": nnxp.Momentum(2.002, momentum=0.0)}[optimizer]
        return nnxp.Trainer(network, nnxp.MeanSquaredError(), rule, capture=capture)

    expected = new_trainer()
    expected.fit(examples, epochs=2, batch_size=10, rng=0)
    for callbacks in ([], [Nothing()]):
        trainer = new_trainer()
        with pytest.raises(nnxp.DivergenceError, match="the loss is inf after epoch 3"):
            trainer.fit(examples, epochs=9, batch_size=10, rng=0, callbacks=callbacks)
        assert_same(trainer, expected)


def _replace_loss(trainer, _):
    trainer.loss = nnxp.MeanSquaredError()


def _replace_layer(trainer, _):
    trainer.network.layers = [*trainer.network.layers[:-1], nnxp.Affine(4, 2, rng=0)]


def _replace_weights(trainer, _):
    trainer.network.layers[0].params["W"] = np.ones((6, 4), "float64")


def _other_dtype(trainer, _):
    trainer.network.layers[0].dtype = "float64"


def _batch_norm(trainer, _):  # whose last batch has one example
    trainer.network.layers = [*trainer.network.layers, nnxp.BatchNorm(3)]


def _transform(trainer, _):
    trainer.transforms = (nnxp.ClipNorm,)


def _state(trainer, _):
    trainer.optimizer.state["velocity"]["W1"] = 3.0


def _number(trainer, _):
    trainer.optimizer.learning_rate = 1e-45


def _labels(_, dataset):
    dataset.labels[3] = 5


@pytest.mark.parametrize(
    "break_",
    [
        _replace_loss,
        _replace_layer,
        _replace_weights,
        _other_dtype,
        _batch_norm,
        _transform,
        _state,
        _number,
        _labels,
    ],
)  # fmt: skip
def test_what_breaks_between_two_calls_of_train_epoch_is_refused(break_):
    """The second of two same calls skips checks, and one after a change does not."""
    rng = np.random.default_rng(0)
    dataset = Dataset(rng.normal(size=(21, 6)), rng.integers(3, size=21))
    network = nnxp.mlp([6, 4, 4, 3], rng=0)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Momentum(0.1))
    batches = nnxp.data.Batches(dataset, 5, device="cpu", dtype="float32", rng=rng)
    trainer.train_epoch(batches)
    trainer.train_epoch(batches)
    assert trainer._repeats(batches)
    break_(trainer, dataset)
    with pytest.raises(nnxp.NnxpError):
        trainer.train_epoch(batches)
    assert trainer.optimizer.steps == 10


@pytest.mark.filterwarnings("ignore:the network was trained on inputs:UserWarning")
def test_what_changes_between_two_calls_of_train_epoch_takes_effect():
    rng = np.random.default_rng(0)
    dataset = Dataset(rng.normal(size=(20, 6)), rng.integers(3, size=20))
    other = Dataset(rng.normal(size=(20, 6)), rng.integers(3, size=20), scale=2.0)
    results = []
    for capture in (True, False):
        network = nnxp.mlp([6, 4, 4, 3], rng=0)
        loss, optimizer = nnxp.SoftmaxWithLoss(), nnxp.Momentum(0.1)
        trainer = nnxp.Trainer(network, loss, optimizer, capture=capture)
        batches, others = (
            nnxp.data.Batches(each, 5, device="cpu", dtype="float32", rng=np.random.default_rng(1))
            for each in (dataset, other)
        )
        for given in (batches, batches, others, others, batches, batches):
            trainer.train_epoch(given)
            optimizer.learning_rate *= 0.5
        network.layers[0].trainable = False
        trainer.train_epoch(batches)
        network.data_format = None
        trainer.train_epoch(batches)
        assert network.data_format.scale is None
        results.append(trainer)
    for name, x in results[0].network.parameters().items():
        np.testing.assert_allclose(x, results[1].network.parameters()[name], rtol=1e-5, atol=1e-6)
