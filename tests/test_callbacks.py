"""Callbacks and the options of `fit`: stopping, checkpoints, averages, metrics, shares, seeds."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

import numpy as np
import pytest
from builders import Stopping, numbers
from pairs import assert_equal, devices, trainer
from tables import BACKENDS, device_or_skip

import nnxp
from nnxp import callbacks, metrics
from nnxp.capture.contents import Contents

TRAIN, TEST = nnxp.data.load_digits()
PART = nnxp.data.Dataset(TRAIN.inputs[:400], TRAIN.labels[:400])


def fit(one, epochs=3, **options):
    options = {"batch_size": 100, "rng": 1, "validation": TEST} | options
    return one.fit(PART, epochs=epochs, **options)


class Recorder(callbacks.Callback):
    """Writes down its calls, and stops where it is told to."""

    every_step = True

    def __init__(self, stop_at=None):
        self.calls, self.stop_at = [], stop_at

    def start(self, trainer):
        self.calls.append("start")

    def step(self, trainer):
        self.calls.append(("step", *trainer.epoch_steps))
        return trainer.optimizer.steps == self.stop_at

    def epoch(self, trainer, record):
        assert trainer.history[-1] is record
        self.calls.append(("epoch", record.epoch))

    def finish(self, trainer, error):
        self.calls.append(("finish", type(error).__name__))


def test_callbacks_are_called_in_order():
    recorder, quiet = Recorder(), Recorder()
    quiet.every_step = False
    one = trainer()
    fit(one, 2, callbacks=[recorder, quiet])
    steps = [("step", i, 4) for i in range(1, 5)]
    finish = ("finish", "NoneType")
    assert recorder.calls == ["start", *steps, ("epoch", 1), *steps, ("epoch", 2), finish]
    assert quiet.calls == ["start", ("epoch", 1), ("epoch", 2), finish]
    stopped = Recorder(stop_at=10)
    fit(one, 2, callbacks=[stopped])
    assert stopped.calls[-2:] == [("step", 2, 4), finish]
    assert not one.epoch_is_finished
    fit(one, 1, rng=None)
    assert one.epochs == 3
    assert one.epoch_is_finished


def test_finish_is_called_with_the_error_of_another_callback():
    recorder = Recorder()

    def fail():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(trainer(), callbacks=[recorder, Stopping(fail)])
    assert recorder.calls[-1] == ("finish", "KeyboardInterrupt")
    with pytest.raises(nnxp.InputError, match="EarlyStopping monitors x, which is not measured"):
        fit(trainer(), callbacks=[recorder, callbacks.EarlyStopping(monitor="x")])
    assert recorder.calls[-1] == ("finish", "InputError")


class StopAtOnce(callbacks.Callback):
    def start(self, trainer):
        return True


def test_start_may_stop():
    one = trainer()
    assert fit(one, callbacks=[StopAtOnce()]) == []


def test_early_stopping_restores_the_best_epoch():
    one = trainer(optimizer=nnxp.SGD(30.0))  # so large that the loss soon grows
    stopping = callbacks.EarlyStopping(patience=2, restore_best=True)
    history = fit(one, 50, callbacks=[stopping])
    losses = [record.validation_loss for record in history]
    best = int(np.argmin(losses))
    assert len(history) == best + 3
    assert one.evaluate(TEST).loss == pytest.approx(losses[best], rel=1e-12)
    assert stopping.state["best_epoch"] == best + 1
    other = trainer(optimizer=nnxp.SGD(30.0))
    fit(other, 50, callbacks=[callbacks.EarlyStopping(2, monitor="validation_accuracy")])
    accuracies = [record.validation_accuracy for record in other.history]
    assert len(accuracies) == np.argmax(accuracies) + 3


def test_learning_rate_is_reduced_on_a_plateau():
    one = trainer(optimizer=nnxp.SGD(1e-12))  # so small that nothing improves by 1e-3
    reduce = callbacks.ReduceOnPlateau(0.5, patience=2, min_delta=1e-3, minimum=2e-13)
    rates = []

    def look():
        rates.append(one.optimizer.learning_rate)

    fit(one, 8, callbacks=[reduce, AfterEpoch(look)])
    assert rates == pytest.approx([1e-12] * 2 + [5e-13] * 2 + [2.5e-13] * 2 + [2e-13] * 2)
    one.optimizer.learning_rate = nnxp.schedules.Cosine(0.1, 5)
    with pytest.raises(nnxp.InputError, match="ReduceOnPlateau needs a learning rate that is a nu"):
        fit(one, callbacks=[reduce])


class AfterEpoch(callbacks.Callback):
    def __init__(self, function):
        self.function = function

    def epoch(self, trainer, record):
        self.function()


@devices
def test_weight_average(spec):
    one = trainer(spec)
    average, seen = callbacks.WeightAverage(0.8), []

    def look():
        to_host = one.network.device.to_host
        seen.append({n: to_host(x).copy() for n, x in one.network.parameters().items()})

    look()
    fit(one, 2, callbacks=[average, Stopping(look)])
    expected = seen[0]
    for parameters in seen[1:5] + seen[6:10]:  # without the looks after each epoch
        expected = {n: 0.8 * x + (1 - 0.8) * parameters[n] for n, x in expected.items()}
    averaged = average.network(one.network)
    for name, x in expected.items():
        got = one.network.device.to_host(averaged.parameters()[name])
        np.testing.assert_allclose(got, x, rtol=1e-12, atol=1e-15)


def new_callbacks():
    return [
        callbacks.WeightAverage(0.9),
        callbacks.EarlyStopping(2, restore_best=True),
        callbacks.ReduceOnPlateau(0.5, patience=1),
    ]


@pytest.mark.parametrize("stop_at", [1, 4, 6, 9, 11])
def test_callbacks_are_resumed_to_the_bit(tmp_path, stop_at):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"

    def new():
        return trainer(optimizer=nnxp.SGD(8.0), metrics=[metrics.TopAccuracy(3)])

    whole, stopped = new(), new()
    kept = new_callbacks()
    fit(whole, 6, callbacks=kept)
    stopping = Stopping(lambda: stopped.optimizer.steps == stop_at)
    fit(stopped, 6, callbacks=[*new_callbacks(), stopping], checkpoint=path)
    resumed = nnxp.Trainer.resume(path)
    assert repr(resumed.metrics) == repr(whole.metrics)
    again = new_callbacks()
    fit(resumed, 6 - resumed.epochs, rng=None, callbacks=again)
    np.testing.assert_equal(numbers(resumed), numbers(whole))
    for one, other in zip(kept, again, strict=True):
        np.testing.assert_equal(one.saved_state(whole), other.saved_state(resumed))


def test_changed_callbacks_warn_once_after_resume(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    fit(trainer(), 1, callbacks=[callbacks.EarlyStopping(9)], checkpoint=path)
    resumed = nnxp.Trainer.resume(path)
    with pytest.warns(UserWarning, match="has the state of EarlyStopping, which is not among"):
        fit(resumed, 1, rng=None)
    fit(resumed, 1, rng=None)


def test_best_checkpoint(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "best.safetensors"
    one = trainer(optimizer=nnxp.SGD(30.0))
    history = fit(one, 8, callbacks=[callbacks.Checkpoint(path, best="validation_loss")])
    best = min(history, key=lambda record: record.validation_loss)
    network = nnxp.load_network(path)
    saved = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD())
    assert saved.evaluate(TEST).loss == pytest.approx(best.validation_loss, rel=1e-12)


def test_progress_prints_each_line_after_its_checkpoint_is_written(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    printed = []
    monkeypatch.setattr(
        "builtins.print",
        lambda x, **_: printed.append((str(x), nnxp.Trainer.resume(path).epochs)),
    )
    one = trainer()
    fit(one, 2, verbose=True, checkpoint=path)
    assert printed == [(str(record), i) for i, record in enumerate(one.history, start=1)]


def test_signal_stops_after_the_step():
    if sys.platform == "win32":
        pytest.skip("signals of POSIX")
    one = trainer()
    before = signal.getsignal(signal.SIGTERM)

    def send():
        if one.optimizer.steps == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    stop = callbacks.StopOnSignal(signal.SIGTERM)
    fit(one, callbacks=[Stopping(send), stop])
    assert stop.received == signal.SIGTERM
    assert one.optimizer.steps == 6
    assert signal.getsignal(signal.SIGTERM) is before


# Metrics


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, marks=mark)
        for name, (spec, mark) in BACKENDS.items()
        if name in ("numpy", "strict", "torch", "jax", "cupy")
    ],
)
def test_metrics_equal_those_of_numpy(spec):
    device = device_or_skip(spec)
    rng = np.random.default_rng(0)
    scores, classes = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    ranks = (scores > scores[np.arange(50), classes][:, None]).sum(axis=1)
    targets = rng.normal(size=(50, 4))
    ss = ((targets - targets.mean()) ** 2).sum()
    answers = scores.argmax(axis=1)
    right, predicted, actual = (np.bincount(x) for x in (classes[ranks == 0], answers, classes))
    cases = [
        (metrics.Accuracy(), classes, np.mean(ranks == 0)),
        (metrics.TopAccuracy(2), classes, np.mean(ranks < 2)),
        (metrics.TopAccuracy(2), nnxp.data.one_hot(classes, 4), np.mean(ranks < 2)),
        (metrics.MeanAbsoluteError(), targets, np.mean(abs(scores - targets))),
        (metrics.R2(), targets, 1 - ((scores - targets) ** 2).sum() / ss),
        (metrics.Precision(4), classes, np.mean(right / predicted)),
        (metrics.Recall(4), classes, np.mean(right / actual)),
        (metrics.F1(4), classes, np.mean(2 * right / (predicted + actual))),
    ]
    assert {type(x) for x, *_ in cases} == set(metrics.METRICS.values())
    for metric, labels, expected in cases:
        sums = 0.0
        for part in (slice(0, 30), slice(30, 50)):
            labels_there = device.asarray(labels[part].astype(
                "float64" if labels.dtype.kind == "f" else "int32"))  # fmt: skip
            measured = metric.measure(device.asarray(scores[part]), labels_there)
            sums = sums + np.atleast_1d(device.to_host(measured))
        assert metric.value(sums.tolist(), 50) == pytest.approx(expected, rel=1e-12)


@devices
def test_running_figures_are_means_over_the_steps(spec):
    kinds = [metrics.TopAccuracy(3)]
    one, other = (trainer(spec, metrics=kinds, capture=c) for c in ("auto", False))
    for each in (one, other):
        fit(each, 2)
    assert one.captured == "captured"
    assert_equal(one, other)
    names = ("loss", "accuracy", "top3_accuracy")
    expected = [f"{part}_{name}" for part in ("train", "validation") for name in names]
    for mine, plain in zip(one.history, other.history, strict=True):
        assert list(mine) == ["epoch", *expected, "seconds"] == list(one.measured)
        for name in expected:
            assert mine[name] == pytest.approx(plain[name], rel=1e-9)
    by_hand = trainer(spec, capture=False)
    device = by_hand.network.device
    order = np.random.default_rng(1).permutation(400)
    losses = [
        float(by_hand.step(
            device.asarray(PART.inputs[rows] / 255, dtype="float64"),
            device.asarray(PART.labels[rows], dtype="int32"),
        ))
        for rows in order.reshape(4, 100)
    ]  # fmt: skip
    assert one.history[0].train_loss == pytest.approx(np.mean(losses), rel=1e-9)


def test_penalty_is_in_the_record():
    one = trainer(penalty=nnxp.L2(0.1))
    record = fit(one, 1)[0]
    assert record.penalty == pytest.approx(float(nnxp.L2(0.1).value(one.network.parameters())))
    without = trainer()
    without.network.load_parameters(one.network.parameters())
    assert record.validation_loss - record.penalty == pytest.approx(without.evaluate(TEST).loss)


class Wrong(metrics.Metric):
    name = "wrong"

    def measure(self, scores, labels):
        return scores[:, 0]


class Constant(metrics.Metric):
    name = "constant"

    def measure(self, scores, labels):
        return scores[0, 0] * 0.0

    def value(self, sums, count):
        return float("nan")


def test_metric_that_is_nan_is_not_recorded():
    assert "train_constant" not in fit(trainer(metrics=[Constant()]), 1)[0]


def test_records_are_json():
    record = fit(trainer(), 1)[0]
    assert nnxp.Record(**json.loads(json.dumps(dict(record)))) == record


# Options of fit


@devices
@pytest.mark.parametrize("size", [25, 30, 100])
def test_accumulated_steps_equal_those_of_the_large_batch(spec, size):
    one, other, whole = (trainer(spec, capture=c) for c in ("auto", False, False))
    for each in (one, other):
        fit(each, 2, batch_size=size, accumulate=100 // size)
    fit(whole, 2, batch_size=size * (100 // size))
    assert one.captured == "captured"
    assert_equal(one, other)
    assert_equal(one, whole)
    assert one.history[-1].train_loss == pytest.approx(whole.history[-1].train_loss, rel=1e-9)


def test_share_of_validation_is_stratified_and_kept(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    train, test = TRAIN.split(0.2, rng=3)
    assert len(train) + len(test) == len(TRAIN)
    for label in range(10):
        share = (test.labels == label).sum() / (TRAIN.labels == label).sum()
        assert abs(share - 0.2) < 0.01
    assert not (TRAIN.split(0.2, rng=4)[1].inputs[:50] == test.inputs[:50]).all()

    whole, stopped = trainer(), trainer()
    fit(whole, 3, validation=0.25)
    fit(
        stopped, 3, validation=0.25, checkpoint=path,
        callbacks=[Stopping(lambda: stopped.optimizer.steps == 4)],
    )  # fmt: skip
    resumed = nnxp.Trainer.resume(path)
    fit(resumed, 3 - resumed.epochs, validation=0.25, rng=None)
    np.testing.assert_equal(numbers(resumed), numbers(whole))
    assert "validation_loss" in whole.history[0]


def test_seeds_are_generators():
    one, other = trainer(), trainer()
    fit(one, 1, rng=7)
    fit(other, 1, rng=np.random.default_rng(7))
    np.testing.assert_equal(numbers(one), numbers(other))
    layers = [nnxp.Affine(3, 2, rng=rng) for rng in (5, np.random.default_rng(5))]
    np.testing.assert_array_equal(layers[0].params["W"], layers[1].params["W"])
    widths = nnxp.mlp([4, 4, 4], rng=0)
    assert (widths[0].params["W"] != widths[2].params["W"]).all()
    with pytest.raises(nnxp.InputError, match="fit needs a seed or a generator: give rng=0"):
        fit(trainer(), rng=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"callbacks": [callbacks.EarlyStopping]},
            r"make an object: EarlyStopping\(…\)",
        ),
        (
            {"callbacks": callbacks.Progress()},
            "callbacks must be a list, got .*; give it in a list",
        ),
        ({"callbacks": [print]}, "a callback must be an object of nnxp.callbacks.Callback"),
        ({"callbacks": [AfterEpoch(print)] * 2}, "the same callback is given twice"),
        (
            {"validation": 1.0},
            r"between 0 and 1, got 1.0; dataset.split\(.*number of examples",
        ),
        ({"validation": 0}, "a share between 0 and 1"),
        ({"validation": 1e-9}, "a share between 0 and 1"),
        ({"train_metrics": "before"}, 'train_metrics must be "running" or "after", got \'before\''),
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1, got 0"),
        ({"rng": "0"}, "rng must be a seed such as 0, or a numpy.random.Generator, got '0'"),
        ({"rng": True}, "rng must be a seed"),
    ],
)
def test_wrong_options_are_refused_before_training(options, message):
    one = trainer()
    with pytest.raises(nnxp.InputError, match=message):
        fit(one, **options)
    assert one.optimizer.steps == 0


@pytest.mark.filterwarnings("ignore:no step is captured")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: callbacks.EarlyStopping(0), "patience must be a whole number of at least 1"),
        (lambda: callbacks.EarlyStopping(min_delta=-1), "min_delta must be a number of at least 0"),
        (lambda: callbacks.ReduceOnPlateau(1.5), "factor must be a number between 0 and 1"),
        (lambda: callbacks.WeightAverage(1), "decay must be a number between 0 and 1, got 1"),
        (lambda: callbacks.Checkpoint("a", every=0), "every must be a whole number of at least 1"),
        (lambda: callbacks.Checkpoint("a", every=1, best="x"), "takes every or best, not both"),
        (lambda: metrics.TopAccuracy(0), "k must be a whole number of at least 1, got 0"),
        (
            lambda: trainer(metrics=[metrics.R2]),
            "a metric must be an object of nnxp",
        ),
        (lambda: trainer(metrics=metrics.R2()), r"metrics must be a list.*use \[R2\(\)\]"),
        (lambda: trainer(metrics=[metrics.Accuracy()]), "each metric needs a name of its own"),
        (
            lambda: fit(trainer(metrics=[Wrong()])),
            r"measure must return its size, 1, of sums",
        ),
    ],
)
def test_wrong_callbacks_and_metrics_are_refused(make, message):
    with pytest.raises(nnxp.InputError, match=message):
        make()


def test_tables_of_callbacks_and_metrics_are_complete():
    def kinds(base):
        found = {x for x in base.__subclasses__() if x.__module__.startswith("nnxp.")}
        return found.union(*(kinds(x) for x in found))

    # Those of nnxp.sklearn are its own.
    public = {x for x in kinds(callbacks.Callback) if x.__module__.startswith("nnxp.training.")}
    named = {x for x in public if not x.__name__.startswith("_")}
    assert named == set(callbacks.CALLBACKS.values())
    own = {x for x in kinds(metrics.Metric) if not x.__name__.startswith("_")}
    assert own == set(metrics.METRICS.values())


def test_state_of_a_callback_must_be_json_or_arrays(tmp_path):
    pytest.importorskip("safetensors")
    one, callback = trainer(), AfterEpoch(lambda: None)
    callback.state = {"x": object()}
    with pytest.raises(nnxp.InputError, match="the state of a callback must be JSON or arrays"):
        fit(one, callbacks=[callback], checkpoint=tmp_path / "a.safetensors")
    assert one.optimizer.steps == 0


# Networks


def test_activations_are_the_outputs_of_all_layers():
    rng = np.random.default_rng(0)
    inner = nnxp.Residual([nnxp.Affine(4, 4, rng=rng), nnxp.Tanh()])
    network = nnxp.Sequential([nnxp.Affine(3, 4, rng=rng), nnxp.ReLU(), inner, nnxp.ReLU()])
    x = rng.normal(size=(5, 3)).astype("float32")
    found = network.activations(x)
    names = ["affine1", "relu1", "residual1.affine1", "residual1.tanh1", "residual1", "relu2"]
    assert list(found) == names
    np.testing.assert_array_equal(found["relu2"], network.predict(x))
    np.testing.assert_array_equal(found["residual1"], found["relu1"] + found["residual1.tanh1"])


@pytest.mark.parametrize("spec", ["cpu", "strict"])
def test_predict_in_batches(spec):
    device = device_or_skip(spec)
    network = nnxp.mlp([3, 4, 2], rng=0, device=device)
    x = device.asarray(np.random.default_rng(0).normal(size=(10, 3)), dtype="float32")
    whole = device.to_host(network.predict(x))
    for size in (1, 3, 10, 11):
        got = device.to_host(network.predict(x, batch_size=size))
        np.testing.assert_allclose(got, whole, rtol=1e-6)
    with pytest.raises(nnxp.InputError, match="batch_size must be a whole number of at least 1"):
        network.predict(x, batch_size=0)


@pytest.fixture
def frequent_switches():
    """Let threads take turns each 0.1 ms: they meet more often, and wait less for each other."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("frequent_switches")
def test_threads_predict_while_another_trains():
    one = trainer()
    x = PART.inputs[:50] / 255.0
    errors, stop = [], threading.Event()

    def predict():
        while not stop.is_set():
            try:
                assert np.isfinite(one.network.predict(x, batch_size=20)).all()
            except Exception as error:  # noqa: BLE001 - for the main thread
                errors.append(error)

    threads = [threading.Thread(target=predict) for _ in range(3)]
    for thread in threads:
        thread.start()
    fit(one, 10)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    alone = trainer()
    fit(alone, 10)
    np.testing.assert_equal(numbers(one)["parameters"], numbers(alone)["parameters"])


def test_contents_of_callbacks_are_not_part_of_a_step():
    one = trainer()
    assert not Contents(one._whole_step().parts, lambda part: part.changing).foreign


def test_signals_are_refused_in_other_threads():
    errors = []

    def train():
        try:
            fit(trainer(), callbacks=[callbacks.StopOnSignal()])
        except nnxp.InputError as error:
            errors.append(str(error))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert "only in the main thread" in errors[0]


def test_single_steps_after_fit_are_not_divided():
    one, other = trainer(capture=False), trainer(capture=False)
    for each, size in ((one, 50), (other, 100)):
        each.network.layers = [x for x in each.network if not isinstance(x, nnxp.Dropout)]
        fit(each, 1, batch_size=size, accumulate=100 // size)
    calls = []
    forward = one.network.forward
    one.network.forward = lambda x, training=False: calls.append(len(x)) or forward(x, training)
    one.step(PART.inputs[:80] / 255, PART.labels[:80])
    assert calls == [80]


# Iterables of batches


class Shards:
    """Batches as they are read from files, in the same order in each epoch."""

    def __init__(self, sizes=(100, 100, 60, 140)):
        self.sizes, self.passes = sizes, 0

    def __iter__(self):
        self.passes += 1
        start = 0
        for size in self.sizes:
            yield PART.inputs[start : start + size], PART.labels[start : start + size]
            start += size


@devices
def test_iterable_of_batches_is_trained_on(spec):
    one, other = (
        trainer(spec, capture=c, metrics=[metrics.TopAccuracy(2)]) for c in ("auto", False)
    )
    for each in (one, other):
        each.fit(Shards(), epochs=2, validation=TEST)
    assert one.captured == "captured"
    assert_equal(one, other)
    by_hand = trainer(spec, capture=False)
    device = by_hand.network.device
    total = 0.0
    for inputs, labels in Shards():
        x = device.asarray(inputs / 255, dtype="float64")
        total += float(by_hand.step(x, device.asarray(labels, dtype="int32"))) * len(inputs)
    assert one.history[0].train_loss == pytest.approx(total / 400, rel=1e-9)
    assert "validation_top2_accuracy" in one.history[1]


@pytest.mark.parametrize("capture", ["auto", False])
@pytest.mark.parametrize("stop_at", [1, 3, 4, 6])
def test_iterable_is_resumed_to_the_bit(tmp_path, stop_at, capture):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    whole, stopped = trainer(capture=capture), trainer(capture=capture)
    for each in (whole, stopped):
        each.rng = np.random.default_rng(0)  # not used, and part of what is compared
    whole.fit(Shards(), epochs=2)
    stopping = Stopping(lambda: stopped.optimizer.steps == stop_at)
    stopped.fit(Shards(), epochs=2, callbacks=[stopping], checkpoint=path)
    resumed = nnxp.Trainer.resume(path, capture=capture)
    resumed.fit(Shards(), epochs=2 - resumed.epochs)
    np.testing.assert_equal(numbers(resumed), numbers(whole))


def batch(inputs=4, labels=4, dtype="uint8", wrong=0):
    return np.zeros((inputs, 64), dtype), np.zeros(labels, int) + wrong


@pytest.mark.parametrize(
    ("items", "options", "message"),
    [
        (iter([batch()]), {}, "that restarts in each epoch, such as a list, got list_iterator"),
        (3, {}, "expected a Dataset, or an iterable of batches.*got int"),
        ([], {}, "got an empty iterable"),
        ([np.zeros((4, 64))], {}, "a batch must be a pair of NumPy arrays"),
        (
            batch(),
            {"batch_size": 4},
            r"a pair .* got ndarray; .*Dataset\(inputs, labels\)",
        ),
        ("mnist", {"batch_size": 4}, "expected a Dataset, or an iterable of batches.*got str"),
        ([batch(labels=3)], {}, "a label for each example, got 4 inputs and 3 labels"),
        ([batch(), batch(dtype="float32")], {}, "batch 2 has .* float32"),
        ([batch(), batch(wrong=11)], {}, "11"),
        ([batch()], {"batch_size": 4}, "fit takes no batch_size with an iterable of batches"),
        ([batch()], {"rng": 0}, "fit takes no rng with an iterable of batches"),
        ([batch()], {"accumulate": 2}, "need a Dataset"),
        ([batch()], {"validation": 0.5}, "need a Dataset"),
        ([batch()], {"train_metrics": "after"}, "need a Dataset"),
    ],
)
def test_wrong_iterables_are_refused(items, options, message):
    with pytest.raises(nnxp.InputError, match=message):
        trainer().fit(items, epochs=1, **options)
