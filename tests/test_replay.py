"""Replay: captured steps on NumPy against plain steps, and when steps are not captured."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from builders import (
    PlainTrainer,
    assert_same,
    bound,
    every_layer_trainer,
    train_epoch,
    trainer_with,
)
from tables import TARGETS, losses_and_optimizers

import nnxp
from nnxp.capture import batch_compiler, blas, choose, replay
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.data import Batches, Dataset, one_hot


def trained(kind, *, inputs, labels=None, **parts):
    trainer = every_layer_trainer(kind, **parts)
    dataset = Dataset(inputs, TARGETS[parts["loss"]] if labels is None else labels)
    trainer.fit(dataset, epochs=2, batch_size=16, rng=trainer.rng)  # and a short batch of 2
    assert (trainer.captured == "captured") == (kind is nnxp.Trainer)
    return trainer


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.long)])
@losses_and_optimizers
def test_captured_steps_equal_plain_steps(loss, optimizer, dtype):
    images = np.random.default_rng(1).integers(0, 256, (50, 3, 4), dtype=np.uint8)
    settings = {"loss": loss, "optimizer": optimizer, "inputs": images, "dtype": dtype}
    one = trained(nnxp.Trainer, **settings)
    assert_same(one, trained(PlainTrainer, **settings))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_vectors_are_updated_in_chunks(monkeypatch, optimizer):
    monkeypatch.setattr(NumpyOps, "chunk", 100)  # of 273 parameters
    inputs = np.random.default_rng(1).normal(size=(50, 3, 4))
    settings = {"loss": nnxp.SoftmaxWithLoss, "optimizer": optimizer, "inputs": inputs}
    one = trained(nnxp.Trainer, **settings)
    assert_same(one, trained(PlainTrainer, **settings))


@pytest.mark.parametrize("inputs_dtype", ["float16", "float32", "float64", ">f4"])
def test_captured_steps_take_inputs_of_any_real_dtype(inputs_dtype):
    inputs = np.random.default_rng(1).normal(size=(50, 3, 4)).astype(inputs_dtype)
    settings = {"loss": nnxp.SoftmaxWithLoss, "optimizer": "momentum", "inputs": inputs}
    labels = one_hot(np.arange(50) % 3, 3)
    one = trained(nnxp.Trainer, **settings, labels=labels)
    assert_same(one, trained(PlainTrainer, **settings, labels=labels))


@pytest.mark.parametrize("openblas", [True, False])
def test_update_of_a_large_matrix_is_within_its_rounding_bound(monkeypatch, openblas):
    if not openblas:
        monkeypatch.setattr(blas, "_NAMES", {})
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


@pytest.mark.filterwarnings("ignore:no step is captured")
@pytest.mark.parametrize("own", ["layer", "loss", "optimizer", "trainer", "step"])
def test_custom_parts_are_called_in_training(small, own):
    parts = {"layer": MyTanh(), "loss": MyLoss(), "optimizer": MyMomentum(0.1)}
    kind = MyTrainer if own == "trainer" else nnxp.Trainer
    trainer = trainer_with(kind, **{own: parts[own]} if own in parts else {})
    if own == "step":
        counted = MyTrainer(trainer.network, trainer.loss, trainer.optimizer)
        trainer.step = counted.step
    options = {"epochs": 2, "batch_size": 8, "train_metrics": "after"}
    trainer.fit(small, **options, rng=np.random.default_rng(0))
    assert parts.get(own, counted if own == "step" else trainer).calls == 10
    plain = trainer_with(PlainTrainer)
    plain.fit(small, **options, rng=np.random.default_rng(0))
    assert_same(trainer, plain)


def share_weights(network):
    network.layers[2].params["W"] = network.layers[0].params["W"]


def order_by_columns(network):
    network.layers[0].params["W"] = np.asfortranarray(network.layers[0].params["W"])


@pytest.mark.parametrize("arrange", [share_weights, order_by_columns])
@pytest.mark.parametrize("late", [False, True])
def test_shared_or_strided_parameters_train_uncaptured(small, arrange, late):
    trainers = [trainer_with(kind, widths=(6, 6, 6)) for kind in (nnxp.Trainer, PlainTrainer)]
    for trainer in trainers:
        rng = np.random.default_rng(0)
        if late:
            train_epoch(trainer, small, 16, rng)
        arrange(trainer.network)
        batches = Batches(small, 16, device="cpu", dtype="float32")
        way, why = choose(trainer._whole_step(), batches)
        assert way is None
        assert "share an array" in why or "overlap in memory" in why
        train_epoch(trainer, small, 16, rng)
    assert_same(*trainers)


def test_interrupted_captured_epoch_keeps_its_steps(small, monkeypatch):
    one, other = trainer_with(), trainer_with()
    before = dict(one.network.parameters())
    step = replay.Replay._step

    def interrupted(*args):
        if one.optimizer.steps == 3:
            raise KeyboardInterrupt
        step(*args)

    monkeypatch.setattr(replay.Replay, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_epoch(one, small, 8, np.random.default_rng(0))
    assert all(before[name] is x for name, x in one.network.parameters().items())
    order = np.random.default_rng(0).permutation(40)
    for rows in order.reshape(5, 8)[:3]:
        other.step(small.inputs[rows].astype("float32"), small.labels[rows])
    np.testing.assert_equal(dict(one.network.parameters()), dict(other.network.parameters()))
    np.testing.assert_equal(one.optimizer.state, other.optimizer.state)


def test_binding_without_a_step_leaves_the_optimizer_state_empty(small):
    trainer = trainer_with()
    batches = Batches(small, 8, device="cpu", dtype="float32")
    with replay.Replay(trainer._whole_step(), batches).bind(batches, {}):
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
def test_changes_between_epochs_take_effect(small, change):
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
    monkeypatch.setattr(batch_compiler, "Tape", None)
    trainer.fit(small, epochs=2, batch_size=16, rng=np.random.default_rng(0))


def test_at_most_two_programs_are_kept(small):
    trainer = trainer_with()
    for batch_size in (7, 8, 9, 11):
        train_epoch(trainer, small, batch_size, np.random.default_rng(0))
    assert sorted(trainer._stepper.captured._programs) == [7, 11]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copied_trainer_is_independent(small, copied):
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


def test_captured_epoch_leaves_no_gradients(small):
    trainer = trainer_with()
    trainer.step(small.inputs.astype("float32"), small.labels)
    train_epoch(trainer, small, 16, np.random.default_rng(0))
    with pytest.raises(nnxp.CallOrderError, match="no gradients yet"):
        trainer.network.gradients()
