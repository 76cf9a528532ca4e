"""Trainer: learning, determinism, evaluation, history, and the checks of its arguments."""

from __future__ import annotations

import copy
import itertools
import pickle
import time

import numpy as np
import pytest
from builders import new_record, new_trainer, small_trainer, train_epoch

import nnxp
from nnxp.data import Batches, Dataset, load_digits, one_hot
from nnxp.history import MAX_RECORDS, History
from nnxp.optimizers import OPTIMIZERS


def digits_trainer(device="cpu", dtype="float32", optimizer=None, seed=0):
    place = {"device": device, "dtype": dtype}
    options = {"activation": "relu", "seed": seed}
    trainer = new_trainer(optimizer or nnxp.SGD(0.1), (64, 50, 30, 10), **options, **place)
    return trainer, trainer.rng


def test_digits_are_learned():
    trainer, rng = digits_trainer()
    train, test = load_digits()
    history = trainer.fit(train, epochs=30, batch_size=50, validation=test, rng=rng)
    assert [record.epoch for record in history] == list(range(1, 31))
    # A linear classifier reaches 0.96 on these digits; ten classes by chance 0.1.
    assert history[-1].validation_accuracy > 0.95
    assert history[-1].train_loss < history[0].train_loss / 5


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_with_its_own_defaults(name):
    trainer, rng = digits_trainer(optimizer=OPTIMIZERS[name]())
    train, test = load_digits()
    history = trainer.fit(train, epochs=20, batch_size=20, validation=test, rng=rng)
    assert history[-1].validation_accuracy > 0.9


def test_mnist_is_learned(mnist):
    train, test = mnist
    rng = np.random.default_rng(0)
    network = nnxp.ThreeLayerNet(784, 50, 30, 10, rng=rng)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    history = trainer.fit(train, epochs=1, batch_size=100, validation=test, rng=rng)
    assert history[-1].validation_accuracy > 0.92  # more than a linear classifier's at its end


def test_same_seed_gives_the_same_bits():
    train, test = load_digits()

    def run(seed):
        trainer, rng = digits_trainer(optimizer=nnxp.Adam(), seed=seed)
        trainer.fit(train, epochs=2, batch_size=32, validation=test, rng=rng)
        return trainer.network.parameters(), [r.train_loss for r in trainer.history]

    (first, first_losses), (second, second_losses), (other, _) = run(0), run(0), run(1)
    assert first_losses == second_losses
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert not np.array_equal(first[name], other[name])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-2)])
def test_every_backend_gives_the_same_losses(backend, dtype, tolerance):
    # Two libraries may add in another order: each step then differs by a few units in the last
    # place, which the 87 steps here amplify; float64's 1e-16 stays far below 1e-9, and float32's
    # 1e-7 below 1e-2 (a ReLU may switch at another step).
    train, _ = load_digits()
    losses = []
    for device in (nnxp.device("cpu"), backend.device):
        trainer, rng = digits_trainer(device, dtype)
        batches = Batches(train, 50, device=device, dtype=dtype, rng=rng)
        losses.append([float(trainer.step(*batch)) for _ in range(3) for batch in batches])
    np.testing.assert_allclose(losses[1], losses[0], rtol=tolerance)


def test_step_is_one_update_and_returns_the_loss_before_it(backend):
    trainer = small_trainer(device=backend.device, dtype="float64")
    x = backend.array(np.random.default_rng(1).normal(size=(8, 6)))
    labels = backend.array(np.arange(8) % 3)
    before = {name: backend.host(p).copy() for name, p in trainer.network.parameters().items()}
    expected = float(trainer.loss.forward(trainer.network.predict(x), labels))
    loss = trainer.step(x, labels)
    assert loss.shape == ()
    assert backend.device.holds(loss)
    assert float(loss) == expected
    gradients = trainer.network.gradients()
    for name, p in trainer.network.parameters().items():
        expected_parameter = before[name] - 0.1 * backend.host(gradients[name])
        np.testing.assert_array_equal(backend.host(p), expected_parameter)


def test_every_epoch_takes_all_examples_in_a_new_order():
    targets = np.arange(40.0)[:, None]
    seen = []

    class Watching(nnxp.Trainer):
        def step(self, inputs, labels):
            seen.extend(labels[:, 0].tolist())
            return super().step(inputs, labels)

    rng = np.random.default_rng(0)
    network = nnxp.mlp([1, 1], rng=rng)
    trainer = Watching(network, nnxp.MeanSquaredError(), nnxp.SGD(1e-6), capture=False)
    trainer.fit(Dataset(targets / 40, targets), epochs=2, batch_size=8, rng=rng)
    train_epoch(trainer, Dataset(targets, targets), 8, rng)
    orders = [seen[:40], seen[40:80], seen[80:]]
    assert all(sorted(order) == targets[:, 0].tolist() for order in orders)
    assert len({*map(tuple, orders), tuple(targets[:, 0])}) == 4  # nor the order given


def test_evaluate_is_the_mean_over_all_examples(small):
    trainer = small_trainer(dtype="float64")
    scores = trainer.network.predict(small.inputs)
    whole = float(nnxp.SoftmaxWithLoss().forward(scores, small.labels))
    for batch_size in (1, 7, 40, 100):
        evaluation = trainer.evaluate(small, batch_size=batch_size)
        assert evaluation.loss == pytest.approx(whole, rel=1e-13)
        assert evaluation.accuracy == np.mean(scores.argmax(axis=1) == small.labels)


def test_evaluate_between_steps_does_not_change_training(small):
    one, other = small_trainer(), small_trainer()
    batch = (small.inputs.astype("float32"), small.labels)
    for trainer in (one, other):
        trainer.step(*batch)
        if trainer is one:
            trainer.evaluate(small)
        trainer.step(*batch)
    for name, x in one.network.parameters().items():
        np.testing.assert_array_equal(x, other.network.parameters()[name])


def test_fit_again_continues_the_history(small):
    trainer = small_trainer()
    rng = np.random.default_rng(0)
    trainer.fit(small, epochs=2, batch_size=16, rng=rng)
    history = trainer.fit(small, epochs=1, batch_size=16, rng=rng)
    assert [record.epoch for record in history] == [1, 2, 3]
    assert history is trainer.history
    assert list(history[0]) == ["epoch", "train_loss", "train_accuracy", "seconds"]
    assert str(history[0]).startswith("epoch   1  train loss ")
    assert "validation" not in str(history[0])
    with pytest.raises(AttributeError, match="validation_loss was not measured; there are epoch"):
        _ = history[0].validation_loss


def test_verbose_prints_a_line_an_epoch_and_no_bar_off_a_terminal(small, capfd):
    trainer = small_trainer()
    rng = np.random.default_rng(0)
    trainer.fit(small, epochs=2, batch_size=16, validation=small, rng=rng, verbose=True)
    out, err = capfd.readouterr()
    assert [line[:12] for line in out.splitlines()] == ["epoch   1  t", "epoch   2  t"]
    assert "validation accuracy 0." in out
    assert err == ""
    trainer.fit(small, epochs=1, batch_size=16, rng=rng)
    assert capfd.readouterr() == ("", "")


def test_mean_squared_error_trains_on_one_hot_rows_full_batch():
    # A network of any depth, sigmoid everywhere, full-batch gradient descent.
    train, test = load_digits()
    rng = np.random.default_rng(0)
    layers = nnxp.mlp([64, 32, 10], rng=rng, activation="sigmoid").layers
    trainer = nnxp.Trainer(
        nnxp.Sequential([*layers, nnxp.Sigmoid()]),
        nnxp.MeanSquaredError(classes=True),
        nnxp.SGD(20.0),
    )
    train, test = (Dataset(d.inputs, one_hot(d.labels, 10)) for d in (train, test))
    history = trainer.fit(train, epochs=400, batch_size=len(train), validation=test, rng=rng)
    assert history[-1].validation_accuracy > 0.9


def test_regression_has_no_accuracy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 2))
    dataset = Dataset(x, x @ np.array([[1.0], [2.0]]))
    trainer = nnxp.Trainer(nnxp.mlp([2, 1], rng=rng), nnxp.MeanSquaredError(), nnxp.SGD(0.1))
    history = trainer.fit(dataset, epochs=200, batch_size=5, rng=rng)
    assert history[-1].train_loss < 1e-6
    assert list(history[-1]) == ["epoch", "train_loss", "seconds"]
    assert list(trainer.evaluate(dataset)) == ["loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1, got 1.5"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"rng": -1}, "rng must be a seed such as 0, or a numpy.random.Generator, got -1"),
        (
            {"train": "digits"},
            r"expected a Dataset, or an iterable.*got str; .*Dataset\(inputs, labels\)",
        ),
        (
            {"validation": 3},
            r"a data set or a share between 0 and 1, got 3; dataset.split\(.* number of examples",
        ),
        ({"validation": "3"}, "validation expects a Dataset, got str"),
        (
            {"train": Dataset(np.ones((4, 7)), np.zeros(4, int))},
            r"training data do not suit: Affine expects inputs of shape \(batch, 6\), got \(1, 7\)",
        ),
        (
            {"train": Dataset(np.ones((4, 6)), np.array([0, 1, 2, 3]))},
            "training data do not suit: .* labels from 0 to 2, got 3",
        ),
        (
            {"train": Dataset(np.ones((4, 6)), np.array([0.0, 1.0, 2.0, 2.0]))},
            "training data do not suit: .* got float64",
        ),
        (
            {"validation": Dataset(np.ones((4, 6)), np.array([0, 1, 2, -1]))},
            "validation data do not suit: .* got -1",
        ),
    ],
)
def test_bad_input_is_refused_before_the_first_step(small, options, message):
    trainer = small_trainer()
    before = {name: x.copy() for name, x in trainer.network.parameters().items()}
    given = {"train": small, "epochs": 1, "batch_size": 8, "rng": np.random.default_rng(0)}
    with pytest.raises(nnxp.InputError, match=message):
        trainer.fit(**(given | options))
    assert trainer.history == []
    for name, x in trainer.network.parameters().items():
        np.testing.assert_array_equal(x, before[name])


def test_a_network_without_parameters_is_refused():
    with pytest.raises(nnxp.InputError, match=r"Sequential\(ReLU\(\)\) has no parameters to train"):
        nnxp.Trainer(nnxp.Sequential([nnxp.ReLU()]), nnxp.SoftmaxWithLoss(), nnxp.SGD())


def test_long_history_is_thinned_evenly():
    history = History()
    for epoch in range(1, 35_002):
        history.append(new_record(epoch, 1 / epoch, 0.5, None, None, 1.0))
        assert len(history) <= MAX_RECORDS
        assert (history[0].epoch, history[-1].epoch) == (1, epoch)
        if epoch == MAX_RECORDS:
            assert [record.epoch for record in history] == list(range(1, MAX_RECORDS + 1))
    epochs = [record.epoch for record in history]
    # It was halved at 10,001 and each 5,000 after: six times for the oldest, once for the last.
    gaps = np.diff(epochs)
    assert (gaps[0], gaps[-1], len(gaps)) == (64, 2, MAX_RECORDS // 2)
    assert np.all(gaps[1:] <= gaps[:-1])
    assert all(record.train_loss == 1 / record.epoch for record in history)
    assert [record.seconds for record in history] == [1, *gaps]
    for more in (1, 2):  # as an older file, or a user, may have it
        longer = History(
            new_record(i + 1, 1.0, 0.5, None, None, 1.0) for i in range(MAX_RECORDS + more)
        )
        longer.append(nnxp.Record(**dict(longer[-1]) | {"epoch": 20_000}))
        assert (longer[0].epoch, longer[-1].epoch) == (1, 20_000)
        assert sum(record.seconds for record in longer) == MAX_RECORDS + more + 1


def test_a_history_prints_as_a_table_of_its_ends():
    history = History()
    assert repr(history) == "no finished epochs"
    for epoch in range(1, 1001):
        accuracy = 0.5 if epoch > 3 else None
        history.append(new_record(epoch, 1 / epoch, accuracy, None, None, 0.25))
    lines = repr(history).splitlines()
    assert lines[0].split() == ["epoch", "train", "loss", "train", "accuracy", "seconds"]
    assert [line.split()[0] for line in lines[1:]] == [
        *map(str, range(1, 6)), "…", *map(str, range(996, 1001))
    ]  # fmt: skip
    assert lines[1].split() == ["1", "1.0000", "0.2500"]
    assert lines[-1].split() == ["1000", "0.0010", "0.5000", "0.2500"]
    html = history._repr_html_()
    assert html.count("<tr>") == 12
    assert "<th>train loss</th>" in html
    assert repr(History(history[:10])).count("\n") == 10  # all of a short one
    assert "…" not in repr(History(history[:10]))


def test_a_trainer_and_a_summary_print_in_a_readable_way():
    trainer = small_trainer()
    assert repr(trainer) == (
        f"Trainer({trainer.network!r}, SoftmaxWithLoss(), {trainer.optimizer!r}) after 0 epochs"
    )
    trainer.penalty = nnxp.L2(0.1)
    assert f"penalty={trainer.penalty!r}) after" in repr(trainer)
    summary = trainer.network.summary()
    assert repr(summary) == str(summary)
    assert "\n" in repr(summary)
    assert "<th>layer</th>" in summary._repr_html_()
    assert summary.splitlines()[-1] in summary._repr_html_()
    for copied in (copy.deepcopy(summary), pickle.loads(pickle.dumps(summary))):
        assert copied == summary


def test_classes_in_place_of_objects_are_refused():
    network = nnxp.mlp([2, 2], rng=np.random.default_rng(0))
    for wrong in [
        (network, nnxp.SoftmaxWithLoss, nnxp.SGD()),
        (network, nnxp.MeanSquaredError(), "sgd"),
    ]:
        with pytest.raises(
            nnxp.InputError, match=r"Trainer expects .*: an object of (Loss|Optimizer) such as"
        ):
            nnxp.Trainer(*wrong)


def test_numbers_beyond_the_networks_dtype_are_refused():
    trainer = small_trainer()
    dataset = Dataset(np.full((4, 6), 1e300), np.zeros(4, int))
    with pytest.raises(nnxp.InputError, match=r"number 1e\+300, which float32 cannot hold"):
        trainer.fit(dataset, epochs=1, batch_size=2, rng=np.random.default_rng(0))


def test_evaluate_checks_labels_on_every_backend(backend, small):
    trainer = small_trainer(device=backend.device)
    with pytest.raises(nnxp.InputError, match="given data do not suit: .* from 0 to 2, got 9"):
        trainer.evaluate(Dataset(small.inputs, np.full(40, 9)))


def test_divergence_error_names_the_step():
    inputs = np.random.default_rng(0).normal(size=(20, 6))
    rng = np.random.default_rng(0)
    network = nnxp.mlp([6, 1], rng=rng, dtype="float64")
    trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), nnxp.SGD(1e6))
    with (
        np.errstate(all="ignore"),
        pytest.raises(nnxp.DivergenceError, match=r"at step \d of epoch \d: the loss is .*now 1e"),
    ):
        trainer.fit(Dataset(inputs, inputs[:, :1]), epochs=99, batch_size=2, rng=rng)


def test_interrupted_fit_keeps_the_finished_epochs(small, monkeypatch):
    trainer = small_trainer()
    shuffled_rows = Batches.shuffled_rows

    def interrupted_rows(batches, rng):
        for x in shuffled_rows(batches, rng):
            if trainer.optimizer.steps == 7:  # in the third epoch
                raise KeyboardInterrupt
            yield x

    monkeypatch.setattr(Batches, "shuffled_rows", interrupted_rows)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(small, epochs=9, batch_size=16, rng=np.random.default_rng(0))
    assert [record.epoch for record in trainer.history] == [1, 2]


def test_record_equals_evaluate_after_the_epoch(monkeypatch):
    train, test = load_digits()
    trainer, rng = digits_trainer()
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))  # each call a second
    options = {"validation": test, "train_metrics": "after", "rng": rng}
    (record,) = trainer.fit(train, epochs=1, batch_size=50, **options)
    for name, dataset in (("train", train), ("validation", test)):
        figures = trainer.evaluate(dataset)
        assert {f"{name}_{key}": x for key, x in figures.items()}.items() <= record.items()
    assert record.train_loss != record.validation_loss
    assert 0 < record.seconds < next(ticks)


def test_a_record_prints_its_own_figures():
    record = new_record(3, 0.1, 0.2, 0.3, 0.4, 5.0)
    assert str(record) == (
        "epoch   3  train loss 0.1000  train accuracy 0.2000  validation loss 0.3000  "
        "validation accuracy 0.4000  5.00 s"
    )


def test_step_skips_the_gradient_at_the_inputs(monkeypatch, small):
    trainer = small_trainer()
    called = []

    class Spied(nnxp.Affine):
        def backward(self, dy):
            called.append(self)
            return super().backward(dy)

        def backward_parameters(self, dy):  # both, or `backward` is used on the first layer too
            super().backward_parameters(dy)

    trainer.network = nnxp.Sequential(
        [
            Spied(x.inputs, x.outputs, rng=np.random.default_rng(0))
            if isinstance(x, nnxp.Affine)
            else x
            for x in trainer.network
        ]
    )
    trainer.step(small.inputs.astype("float32"), small.labels)
    assert called == [trainer.network[4], trainer.network[2]]


def test_evaluate_keeps_no_backward(small):
    trainer = small_trainer()
    trainer.evaluate(small)
    with pytest.raises(nnxp.CallOrderError):
        trainer.network.backward(np.ones((40, 3), "float32"))
    with pytest.raises(nnxp.CallOrderError):
        trainer.loss.backward()
