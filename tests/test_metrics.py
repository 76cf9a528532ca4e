"""Metrics: values by hand and scikit-learn's, weights, columns, and sums within captured steps."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from tables import device_or_skip

import nnxp
from nnxp import metrics
from nnxp.data import Dataset, one_hot

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(60, 4))
CLASSES = RNG.integers(0, 3, 60)  # class 3 has no examples
SCORES[:, 2] -= 9.0  # and class 2 is never predicted
TARGETS = RNG.normal(size=(60, 4))
WEIGHTS = RNG.integers(0, 4, 60).astype(float)
COLUMN, BINARY = RNG.normal(size=(60, 1)), RNG.integers(0, 2, 60)

# name: (metric, scores, labels)
CASES = {
    "accuracy": (metrics.Accuracy(), SCORES, CLASSES),
    "accuracy, column": (metrics.Accuracy(), COLUMN, BINARY),
    "top": (metrics.TopAccuracy(2), SCORES, CLASSES),
    "mean absolute error": (metrics.MeanAbsoluteError(), SCORES, TARGETS),
    "mean absolute error, column": (metrics.MeanAbsoluteError(), COLUMN, BINARY),
    "r2": (metrics.R2(), SCORES, TARGETS),
    "r2, column": (metrics.R2(), COLUMN, BINARY),
}
for kind in (metrics.Precision, metrics.Recall, metrics.F1):
    name = kind.__name__
    CASES[name] = (kind(4), SCORES, CLASSES)
    CASES[f"{name}, micro"] = (kind(4, "micro"), SCORES, CLASSES)
    CASES[f"{name}, binary"] = (kind(), COLUMN, BINARY)
    CASES[f"{name}, binary of two"] = (kind(2, "binary"), SCORES[:, :2], BINARY)
    CASES[f"{name}, macro of a column"] = (kind(2), COLUMN, BINARY)


def those(wanted):
    """Return the parametrization by all cases whose scores and labels are wanted."""
    chosen = {name: case for name, case in CASES.items() if wanted(*case[1:])}
    return pytest.mark.parametrize(
        ("metric", "scores", "labels"), list(chosen.values()), ids=list(chosen)
    )


cases = those(lambda scores, labels: True)


def figure(backend, metric, scores, labels, weights=None):
    """Return the figure of the sums of two batches."""
    sums = np.zeros(metric.size)
    for part in (slice(0, 25), slice(25, None)):
        given = None if weights is None else backend.array(weights[part])
        arrays = backend.array(scores[part]), backend.array(labels[part])
        measured = metric.measure(*arrays, weights=given)
        assert measured.dtype == arrays[0].dtype
        assert backend.device.holds(measured)
        sums += np.atleast_1d(backend.host(measured))
    return metric.value(sums.tolist(), len(scores) if weights is None else weights.sum())


def test_every_metric_is_tried():
    assert {type(metric) for metric, *_ in CASES.values()} == set(metrics.METRICS.values())


@cases
def test_a_weight_counts_as_so_many_examples(backend, metric, scores, labels):
    rows = np.repeat(np.arange(60), WEIGHTS.astype(int))
    expected = figure(backend, metric, scores[rows], labels[rows])
    got = figure(backend, metric, scores, labels, WEIGHTS)
    assert got == pytest.approx(expected, rel=1e-12)
    assert got != pytest.approx(figure(backend, metric, scores, labels), rel=1e-6)


@those(lambda scores, labels: labels.ndim == 1)
def test_labels_of_one_column_are_as_those_without(backend, metric, scores, labels):
    expected = figure(backend, metric, scores, labels)
    assert figure(backend, metric, scores, labels[:, None]) == expected


@those(lambda scores, labels: labels.ndim == 1 and scores.shape[1] > 1)
def test_one_hot_rows_are_as_class_numbers(backend, metric, scores, labels):
    rows = one_hot(labels, scores.shape[1])
    expected = figure(backend, metric, scores, labels)
    for dtype in ("int32", "float64", "bool"):
        assert figure(backend, metric, scores, rows.astype(dtype)) == expected


@cases
def test_weights_are_checked(metric, scores, labels):
    with pytest.raises(nnxp.InputError, match=r"a weight for each example, of shape \(60,\)"):
        metric.measure(scores, labels, np.ones(59))
    with pytest.raises(nnxp.InputError, match="of at least 0, got -1.0 in row 0"):
        metric.measure(scores, labels, -np.ones(60))


@cases
def test_settings_come_back(metric, scores, labels):
    again = type(metric)(**{k: getattr(metric, k) for k in metric.config()})
    assert (vars(again), repr(again)) == (vars(metric), repr(metric))


def test_class_metrics_by_hand(backend):
    # Labels 0 0 1 1 1 2, predictions 0 1 1 1 2 1: right 1, 2, 0; predicted 1, 4, 1; there 2, 3, 1.
    labels, predicted = np.array([0, 0, 1, 1, 1, 2]), [0, 1, 1, 1, 2, 1]
    scores = np.eye(3)[predicted]
    for metric, expected in [
        (metrics.Precision(3), (1 + 1 / 2 + 0) / 3),
        (metrics.Recall(3), (1 / 2 + 2 / 3 + 0) / 3),
        (metrics.F1(3), (2 / 3 + 4 / 7 + 0) / 3),
        (metrics.Precision(3, "micro"), 3 / 6),
    ]:
        assert figure(backend, metric, scores, labels) == pytest.approx(expected, rel=1e-15)
    matrix = metrics.confusion_matrix(backend.array(scores), backend.array(labels))
    assert backend.host(matrix).tolist() == [[1, 1, 0], [0, 2, 1], [0, 1, 0]]
    assert matrix.dtype == backend.device.xp.int32


def test_binary_metrics_by_hand(backend):
    # Labels 1 1 0 1, predictions 1 0 1 0 (a logit of 0 is no 1).
    scores, labels = np.array([[2.0], [-1.0], [0.5], [0.0]]), np.array([1, 1, 0, 1])
    for metric, expected in [
        (metrics.Precision(), 1 / 2), (metrics.Recall(), 1 / 3), (metrics.F1(), 2 / 5),
    ]:  # fmt: skip
        assert figure(backend, metric, scores, labels) == pytest.approx(expected, rel=1e-15)
    matrix = metrics.confusion_matrix(backend.array(scores), backend.array(labels))
    assert backend.host(matrix).tolist() == [[0, 1], [2, 1]]


def test_class_that_is_neither_predicted_nor_there_has_the_figure_0():
    for kind in (metrics.Precision, metrics.Recall, metrics.F1):
        assert kind(2).value([5.0, 0.0, 5.0, 0.0, 5.0, 0.0], 5) == 0.5
        assert kind().value([0.0] * 6, 0) == 0.0


def test_figures_of_no_examples_are_nan():
    for metric in (metrics.Accuracy(), metrics.MeanAbsoluteError(), metrics.R2()):
        assert np.isnan(metric.value([0.0] * metric.size, 0))


def test_confusion_matrix_is_exact_beyond_one_block(monkeypatch):
    whole = metrics.confusion_matrix(SCORES, CLASSES)
    assert whole.sum() == 60
    monkeypatch.setattr(metrics, "_EXACT", 7)
    np.testing.assert_array_equal(metrics.confusion_matrix(SCORES, CLASSES), whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.Precision(1), "classes must be a whole number of at least 2, got 1"),
        (lambda: metrics.F1("3"), "classes must be a whole number .* got '3'"),
        (lambda: metrics.Recall(3, "weighted"), 'must be "macro", "micro" or "binary", got \'wei'),
        (lambda: metrics.Recall(3, "binary"), 'got 3 classes; use average="macro"'),
        (
            lambda: metrics.Recall(3).measure(SCORES, CLASSES),
            r"scores of shape \(batch, 3\), got \(60, 4\); use Recall\(classes=4\)",
        ),
        (
            lambda: metrics.Recall().measure(SCORES, CLASSES[:5]),
            r"Recall\(.* expects scores of shape \(batch, classes\) and labels",
        ),
        (
            lambda: metrics.TopAccuracy(2).measure(COLUMN, BINARY),
            "got one column of scores; use nnxp.accuracy",
        ),
        (
            lambda: metrics.R2().measure(SCORES, CLASSES),
            r"a target for each score, of shape \(60, 4\), got \(60,\); convert .*one_hot",
        ),
        (lambda: metrics.MeanAbsoluteError().measure(SCORES, CLASSES), "a target for each score"),
        (lambda: metrics.confusion_matrix(SCORES, CLASSES[:3]), "confusion_matrix expects scores"),
    ],
)
def test_wrong_use_is_refused(make, message):
    with pytest.raises(nnxp.InputError, match=message):
        make()


CAPTURED = [metrics.TopAccuracy(2)]
CAPTURED += [kind(4) for kind in (metrics.Precision, metrics.Recall, metrics.F1)]
CAPTURED += [kind(4, "micro") for kind in (metrics.Precision, metrics.Recall, metrics.F1)]
NUMBERS = [metrics.R2(), metrics.MeanAbsoluteError()]
TWO = [metrics.Precision(), metrics.Recall(), metrics.F1()]


@pytest.mark.parametrize("spec", ["cpu", pytest.param("jax:cpu", marks=pytest.mark.interop)])
@pytest.mark.parametrize(
    ("loss", "labels", "kinds"),
    [
        (nnxp.SoftmaxWithLoss(), CLASSES, CAPTURED),
        (nnxp.SoftmaxWithLoss(), one_hot(CLASSES, 4), CAPTURED),
        (nnxp.MeanSquaredError(), TARGETS, NUMBERS),
        (nnxp.SigmoidWithLoss(), BINARY, TWO),
        (nnxp.Huber(), BINARY[:, None], NUMBERS),
    ],
)
def test_metrics_are_measured_within_captured_steps(spec, loss, labels, kinds):
    device = device_or_skip(spec)
    outputs = 1 if labels is BINARY or labels.shape[1:] == (1,) else 4
    inputs = np.random.default_rng(1).normal(size=(60, 5))
    histories = []
    for capture in ("auto", False):
        place = {"rng": np.random.default_rng(2), "dtype": "float64", "device": device}
        network = nnxp.mlp([5, 6, outputs], **place)
        trainer = nnxp.Trainer(network, loss, nnxp.SGD(0.1), metrics=kinds, capture=capture)
        trainer.fit(Dataset(inputs, labels), epochs=2, batch_size=16, rng=3)
        assert (trainer.captured == "captured") == (capture == "auto"), trainer.captured
        histories.append(trainer.history)
    for mine, plain in zip(*histories, strict=True):
        for metric in kinds:
            name = f"train_{metric.name}"
            assert mine[name] == pytest.approx(plain[name], rel=1e-9)


@pytest.mark.interop
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@cases
def test_figures_equal_those_of_scikit_learn(backend, metric, scores, labels, weights):
    sklearn = pytest.importorskip("sklearn.metrics")
    predicted = (scores[:, 0] > 0).astype(int) if scores.shape[1] == 1 else scores.argmax(axis=1)
    options = {"sample_weight": weights}
    match metric:
        case metrics.Accuracy():
            expected = sklearn.accuracy_score(labels, predicted, **options)
        case metrics.TopAccuracy():
            with warnings.catch_warnings(action="ignore"):
                expected = sklearn.top_k_accuracy_score(
                    labels, scores, k=2, labels=range(4), **options
                )
        case metrics.MeanAbsoluteError():
            expected = sklearn.mean_absolute_error(labels, scores, **options)
        case metrics.R2():
            each = None if weights is None else np.repeat(weights, scores.shape[1])
            expected = sklearn.r2_score(labels.ravel(), scores.ravel(), sample_weight=each)
        case _:
            score = getattr(sklearn, f"{type(metric).__name__.lower()}_score")
            options |= {"average": metric.average, "zero_division": 0}
            if metric.average != "binary":
                options["labels"] = range(metric.classes)
            expected = score(labels, predicted, **options)
    assert figure(backend, metric, scores, labels, weights) == pytest.approx(expected, rel=1e-12)


@pytest.mark.interop
def test_confusion_matrix_equals_that_of_scikit_learn(backend):
    sklearn = pytest.importorskip("sklearn.metrics")
    expected = sklearn.confusion_matrix(CLASSES, SCORES.argmax(axis=1), labels=range(4))
    got = metrics.confusion_matrix(backend.array(SCORES), backend.array(CLASSES))
    assert backend.host(got).tolist() == expected.tolist()
