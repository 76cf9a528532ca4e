"""Divergence: the error names step and array; parameters and checkpoint stay finite."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
from builders import Stopping, fit, new_trainer, numbers, stopped_after

import nnxp
from nnxp.data import Dataset
from nnxp.optimizers import OPTIMIZERS
from nnxp.training.divergence import Snapshot, first_not_finite

pytest.importorskip("safetensors")
pytestmark = pytest.mark.filterwarnings("ignore:no step is captured")


@pytest.mark.parametrize("capture", ["auto", False])
def test_divergence_error_names_the_step_and_keeps_the_checkpoint(tmp_path, data, capture):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer("sgd", capture=capture)
    fit(trainer, data, 1, checkpoint=path)
    good = path.read_bytes()
    trainer.optimizer.learning_rate = 3e38
    with np.errstate(all="ignore"), pytest.raises(nnxp.DivergenceError) as caught:
        fit(trainer, data, 2, checkpoint=path, checkpoint_every=4)
    assert "training diverged at step " in str(caught.value)
    assert " of epoch 2: " in str(caught.value)
    assert str(caught.value).endswith(
        "start from new weights with a lower learning rate, now 3e+38"
    )
    assert path.read_bytes() == good
    assert trainer._progress is None
    for x in trainer.network.parameters().values():
        assert np.isfinite(x).all()


class Overflowing(nnxp.Tanh):
    """From the given batch on, infinite."""

    def __init__(self, batch):
        super().__init__()
        self.batch, self.count = batch, 0

    def forward(self, x, training=False):
        self.count += training
        y = super().forward(x, training)
        return y * np.float32(np.inf) if self.count >= self.batch else y


def test_divergence_is_found_at_the_step_where_it_happens(data):
    rng = np.random.default_rng(0)
    layer = Overflowing(6)
    network = nnxp.Sequential([nnxp.Affine(6, 4, rng=rng), layer, nnxp.Affine(4, 3, rng=rng)])
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Momentum(0.1))
    other = nnxp.Trainer(network.to("cpu"), nnxp.SoftmaxWithLoss(), nnxp.Momentum(0.1))
    trainer.rng, other.rng = np.random.default_rng(1), np.random.default_rng(1)

    def rewound():
        # Once it has diverged, the epoch is trained again from its start.
        if layer.count == 8:
            layer.count = 4
        return False

    with (
        np.errstate(all="ignore"),
        pytest.raises(
            nnxp.DivergenceError,
            match=r"at step 2 of epoch 2: the output of layer 2, Overflowing\(6\),",
        ),
    ):
        fit(trainer, data, 2, callbacks=[Stopping(rewound)])
    fit(other, data, 2, callbacks=[Stopping(stopped_after(5, other))])
    assert trainer.optimizer.steps == 5
    np.testing.assert_equal(dict(trainer.network.parameters()), dict(other.network.parameters()))


@pytest.mark.parametrize(
    ("poison", "place"),
    [
        ("W1", r"the output of layer 1, Affine\(6, 5\),"),
        ("b3", r"the output of layer 5, Affine\(4, 3\),"),
    ],
)
def test_first_non_finite_activation_is_found(data, poison, place):
    trainer = new_trainer()
    trainer.network.parameters()[poison][...] = np.inf
    inputs, labels = data.inputs.astype("float32"), data.labels
    with np.errstate(all="ignore"):
        found = first_not_finite(trainer.network, trainer.loss, inputs, labels)
    assert re.fullmatch(place, found)


class Steep(nnxp.Tanh):
    def backward(self, dy):
        return super().backward(dy) * np.float32(np.inf)


class SteepLoss(nnxp.MeanSquaredError):
    def forward(self, scores, labels, training=True):
        return super().forward(scores, labels, training) * np.float32(np.inf)


def test_non_finite_gradient_or_loss_is_found(data):
    rng = np.random.default_rng(0)
    inputs, labels = data.inputs.astype("float32"), data.labels
    find = nnxp.training.divergence.first_not_finite
    layers = [nnxp.Affine(6, 4, rng=rng), nnxp.Tanh(), nnxp.Affine(4, 3, rng=rng)]
    network = nnxp.Sequential([*layers[:1], Steep(), *layers[2:]])
    with np.errstate(all="ignore"):
        found = find(network, nnxp.SoftmaxWithLoss(), inputs, labels)
        assert found == "the gradient at the inputs of layer 2, Steep(),"
        targets = np.zeros((40, 3), "float32")
        assert find(nnxp.Sequential(layers), SteepLoss(), inputs, targets) == "the loss"
        layers[0].grads.clear()
        fine = find(nnxp.Sequential(layers), nnxp.SoftmaxWithLoss(), inputs, labels)
    assert fine is None


@pytest.mark.parametrize("capture", ["auto", False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_overflowing_loss_is_found_at_its_step(data, optimizer, capture):
    trainer = new_trainer(optimizer, capture=capture)
    trainer.loss = nnxp.MeanSquaredError()
    targets = np.zeros((40, 3))
    targets[np.random.default_rng(1).permutation(40)[20], 0] = 3e25  # its square is beyond float32
    order = np.random.default_rng(0)
    order.bit_generator.state = trainer.rng.bit_generator.state
    step = 1 + list(order.permutation(40)).index(int(targets[:, 0].argmax())) // 12
    before = numbers(trainer)["parameters"]
    with (
        np.errstate(all="ignore"),
        pytest.raises(
            nnxp.DivergenceError,
            match=f"diverged at step {step} of epoch 1: the loss is not finite",
        ),
    ):
        fit(trainer, Dataset(data.inputs, targets), 1)
    assert trainer.optimizer.steps == step - 1
    assert step > 1 or numbers(trainer)["parameters"] == before
    assert trainer.history == []


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "rmsprop"])
def test_overflowing_optimizer_state_is_found(tmp_path, data, optimizer, checkpoint):
    """Its steps are 0 from then on, and all else stays finite."""
    rng = np.random.default_rng(0)
    network = nnxp.mlp([6, 3], rng=rng)
    trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), OPTIMIZERS[optimizer]())
    # The loss is about 1e36, a gradient 1e20, and its square beyond float32.
    examples = Dataset(np.full((40, 6), 1e3), np.full((40, 3), 1e18), scale=1)
    options = {"checkpoint": tmp_path / "a"} if checkpoint else {}
    with (
        np.errstate(all="ignore"),
        pytest.raises(nnxp.DivergenceError, match="1: .* of W1 after the optimizer's") as caught,
    ):
        trainer.fit(examples, epochs=1, batch_size=12, rng=rng, **options)
    assert trainer.optimizer.steps == 0
    assert "at step 1 of" in str(caught.value)
    assert trainer.history == []
    assert not (tmp_path / "a").exists()


class Exploding(nnxp.Sequential):
    def forward(self, x, training=False):
        return super().forward(x, training) * np.float32(np.inf)


class FirstSteep(nnxp.Affine):
    def backward(self, dy):
        return super().backward(dy) * np.float32(np.inf)


def test_only_arrays_that_a_step_computes_are_blamed(data):
    rng = np.random.default_rng(0)
    inputs = data.inputs.astype("float32")
    layers = [FirstSteep(6, 4, rng=rng), nnxp.Tanh(), nnxp.Affine(4, 3, rng=rng)]
    with np.errstate(all="ignore"):
        find = nnxp.training.divergence.first_not_finite
        network, loss = nnxp.Sequential(layers), nnxp.SoftmaxWithLoss()
        assert find(network, loss, inputs, data.labels) is None  # it has no gradient at its inputs
        trainer = nnxp.Trainer(Exploding(layers), nnxp.MeanSquaredError(), nnxp.SGD(1e-9))
        trainer.rng = rng
        targets = Dataset(data.inputs, np.zeros((40, 3)))
        with pytest.raises(nnxp.DivergenceError, match=r"at step 1 of epoch 1: \w+ after the opt"):
            fit(trainer, targets, 1)


@pytest.mark.parametrize("before", [0, 3])
def test_divergence_seen_only_after_the_epoch_undoes_the_epoch(before):
    # Squares of 1e36 are fine by batches of 10, and beyond float32 a thousand at once.
    rng = np.random.default_rng(0)
    network = nnxp.mlp([3, 1], rng=rng)
    trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), nnxp.SGD(1e-20))
    trainer.rng = rng
    examples = Dataset(rng.random((1000, 3)), np.full((1000, 1), 1e18))
    options = {"epochs": 1, "batch_size": 10, "rng": rng}
    if before:
        trainer.fit(examples, **options, callbacks=[Stopping(stopped_after(before, trainer))])
    held = numbers(trainer)["parameters"] | {}
    held = {name: x.copy() for name, x in held.items()}
    with (
        np.errstate(all="ignore"),
        pytest.raises(nnxp.DivergenceError, match="the loss is inf after epoch 1"),
    ):
        trainer.fit(examples, **options)
    np.testing.assert_equal(numbers(trainer)["parameters"], held)
    assert trainer.optimizer.steps == before
    assert (trainer._progress.batch if before else trainer._progress) == (before or None)


def test_undone_first_epoch_leaves_arrays_and_state_as_they_were():
    rng = np.random.default_rng(0)
    network = nnxp.mlp([3, 1], rng=rng)
    trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), nnxp.Momentum(1e-20))
    examples = Dataset(rng.random((1000, 3)), np.full((1000, 1), 1e18))
    held = dict(network.parameters())
    with np.errstate(all="ignore"), pytest.raises(nnxp.DivergenceError, match="the loss is inf"):
        trainer.fit(examples, epochs=1, batch_size=10, rng=rng)
    assert all(held[name] is x for name, x in network.parameters().items())
    assert (trainer.optimizer.steps, trainer.optimizer.state) == (0, {"velocity": {}})


class Signs(nnxp.SGD):
    """Steps of one length, by a rule that makes nan of 0."""

    elementwise = True

    def _update_one(self, params, name, gradient, *factors):
        params[name] -= factors[0] * (gradient / abs(gradient))


def test_gaps_between_parameters_in_a_flat_vector_do_not_count_as_divergence(data):
    rng = np.random.default_rng(0)
    network = nnxp.mlp([6, 3], rng=rng)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), Signs(0.001))
    trainer.rng = rng
    fit(trainer, data, 2)
    assert trainer.captured == "captured"
    assert trainer.epochs == 2


def test_divergence_restores_the_last_good_parameters(data, backend):
    trainer, other = (
        new_trainer("momentum", device=backend.device, capture=False) for _ in range(2)
    )
    for each in (trainer, other):
        fit(each, data, 1)
        each.optimizer.learning_rate = 3e38  # makes weights of 1e37, and the next loss infinite
    with np.errstate(all="ignore"), pytest.raises(nnxp.DivergenceError, match="step 2 of epoch 2"):
        fit(trainer, data, 1)
    fit(other, data, 1, callbacks=[Stopping(stopped_after(5, other))])
    for what in ("parameters", "state", "steps", "history"):
        np.testing.assert_equal(numbers(trainer)[what], numbers(other)[what])


def test_non_finite_parameter_hidden_by_tanh_is_found(data):
    trainer = new_trainer("sgd")
    trainer.network.parameters()["b1"][...] = -np.inf  # of which tanh makes -1
    with pytest.raises(nnxp.DivergenceError, match="at step 1 of epoch 1: the output of layer 1"):
        fit(trainer, data, 1)


def test_divergence_counts_steps_from_the_start_of_the_epoch(data):
    trainer = new_trainer("sgd")
    trainer.loss = nnxp.MeanSquaredError()
    order = np.random.default_rng(0)
    order.bit_generator.state = trainer.rng.bit_generator.state
    targets = np.zeros((40, 3))
    targets[order.permutation(40)[38]] = 3e25  # its square is beyond float32
    examples = Dataset(data.inputs, targets)
    fit(trainer, examples, 1, callbacks=[Stopping(stopped_after(2, trainer))])
    with np.errstate(all="ignore"), pytest.raises(nnxp.DivergenceError, match="at step 4 of epoch"):
        fit(trainer, examples, 1)


def test_divergence_keeps_the_parameter_arrays(data):
    trainer = new_trainer("sgd")
    held = dict(trainer.network.parameters())
    trainer.optimizer.learning_rate = 3e38
    with np.errstate(all="ignore"), pytest.raises(nnxp.DivergenceError):
        fit(trainer, data, 2)
    assert all(held[name] is x for name, x in trainer.network.parameters().items())


def test_non_finite_weight_gradient_is_found():
    rng = np.random.default_rng(0)
    network = nnxp.Sequential([nnxp.Affine(6, 3, rng=rng, initializer=nnxp.initializers.zeros)])
    inputs, targets = np.full((40, 6), 3e38, "f4"), np.full((40, 3), 1e6, "f4")
    with np.errstate(all="ignore"):
        place = first_not_finite(network, nnxp.MeanSquaredError(), inputs, targets)
    assert place == "the gradient of W1 in layer 1, Affine(6, 3),"


@pytest.mark.parametrize("name", ["inputs", "labels"])
@pytest.mark.parametrize("capture", ["auto", False])
def test_numbers_that_were_written_into_a_data_set_later_are_named(name, capture):
    rng = np.random.default_rng(0)
    dataset = Dataset(rng.normal(size=(40, 4)), rng.normal(size=40))
    trainer = nnxp.Trainer(
        nnxp.mlp([4, 1], rng=0), nnxp.MeanSquaredError(), nnxp.SGD(0.1), capture=capture
    )
    trainer.fit(dataset, epochs=1, batch_size=10, rng=0)
    getattr(dataset, name)[3] = np.nan
    with pytest.raises(nnxp.DivergenceError, match=rf"step \d of epoch 2: the {name} of its batch"):
        trainer.fit(dataset, epochs=1, batch_size=10)
    assert all(np.isfinite(x).all() for x in trainer.network.parameters().values())


def test_snapshot_restores_again_after_a_change_of_what_it_restored(backend):
    trainer = new_trainer("momentum", device=backend.device)
    inputs = backend.array(np.ones((4, 6)), "float32")
    labels = backend.array([0, 1, 2, 0])
    trainer.step(inputs, labels)
    wanted = copy.deepcopy(numbers(trainer))
    snapshot = Snapshot(trainer.network, trainer.optimizer, backend.device)
    for _ in range(2):
        trainer.step(inputs, labels)
        snapshot.restore()
        np.testing.assert_equal(numbers(trainer), wanted)
        for kept in trainer.optimizer.state.values():
            for x in kept.values():
                if isinstance(x, np.ndarray):
                    x[...] = np.nan  # in place, as an optimizer updates its state
        for x in trainer.network.parameters().values():
            if isinstance(x, np.ndarray):
                x[...] = np.nan
        snapshot.restore()
        np.testing.assert_equal(numbers(trainer), wanted)


@pytest.mark.parametrize("capture", ["auto", False])
def test_steps_that_a_callback_has_changed_are_not_repeated(capture):
    class Finder(nnxp.callbacks.Callback):
        every_step = True

        def step(self, trainer):
            trainer.optimizer.learning_rate *= 10

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(100, 3))
    network = nnxp.mlp([3, 4, 1], rng=0)
    trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), nnxp.SGD(1e-4), capture=capture)
    before = {name: x.copy() for name, x in network.parameters().items()}
    dataset = Dataset(inputs, inputs.sum(axis=1))
    with pytest.raises(nnxp.DivergenceError, match="after epoch 1; start from"):
        trainer.fit(dataset, epochs=1, batch_size=5, rng=0, callbacks=[Finder()])
    assert trainer.optimizer.steps == 0
    for name, x in network.parameters().items():
        np.testing.assert_array_equal(x, before[name])
    trainer.optimizer.learning_rate = 0.01
    trainer.fit(dataset, epochs=1, batch_size=5)


def test_callbacks_stay_finite(tmp_path):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(100, 3))
    targets = inputs.sum(axis=1)
    average = nnxp.callbacks.WeightAverage(0.9)
    trainer = nnxp.Trainer(nnxp.mlp([3, 4, 1], rng=0), nnxp.MeanSquaredError(), nnxp.SGD(1e6))
    options = {"epochs": 1, "batch_size": 10, "rng": 0}
    with pytest.raises(nnxp.DivergenceError):
        trainer.fit(Dataset(inputs, targets), **options, callbacks=[average])
    assert np.isfinite(average.network(trainer.network).predict(inputs)).all()
    trainer = nnxp.Trainer(nnxp.mlp([3, 4, 1], rng=0), nnxp.MeanSquaredError(), nnxp.SGD(0.01))
    far = targets.copy()
    far[3] = 1e25  # its squared error is infinite in float32
    stopping = nnxp.callbacks.EarlyStopping(2)
    trainer.fit(
        Dataset(inputs, targets), validation=Dataset(inputs, far), **options | {"epochs": 5},
        callbacks=[nnxp.callbacks.WeightAverage(0.9), stopping],
    )  # fmt: skip
    assert trainer.epochs == 2  # an infinite loss never improves
    assert stopping.state["best"] is None
    pytest.importorskip("safetensors")
    trainer.save(tmp_path / "a.safetensors")
