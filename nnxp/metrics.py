"""Metrics: figures computed from scores and labels, such as accuracy and mean absolute error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from nnxp.arrays import (
    Array,
    Namespace,
    device_of,
    floating_namespace,
    require_weights,
    scores_namespace,
)
from nnxp.checks import explained, require_count
from nnxp.errors import InputError
from nnxp.parts import Part

__all__ = [
    "F1",
    "R2",
    "Accuracy",
    "MeanAbsoluteError",
    "Metric",
    "Precision",
    "Recall",
    "TopAccuracy",
    "accuracy",
    "confusion_matrix",
    "correct",
]


def correct(scores: Array, labels: Array) -> Array:
    """Return for each row whether its largest score is at the label.

    A single column of scores is treated as logits: a row is correct if ``score > 0`` equals its
    label.

    Parameters
    ----------
    scores : (batch, classes) array
    labels : (batch,), (batch, 1) or (batch, classes) array
        Class numbers; or one-hot rows or rows of probabilities, whose largest number is the label.
        For one column of scores, 0 or 1 for each row, or a probability, which counts as 1 above
        0.5.

    Returns
    -------
    (batch,) boolean array

    Raises
    ------
    InputError
        If shapes are wrong, or scores are not floating-point numbers.
    DeviceError
        If scores and labels are on different devices.
    """
    xp = _classes_namespace(scores, labels, "accuracy")
    if scores.shape[1] == 1:
        return binary_correct(scores, labels)
    result: Array = xp.argmax(scores, axis=1) == _class_numbers(xp, labels)
    return result


def binary_correct(scores: Array, labels: Array) -> Array:
    """Return for each row whether exactly the logits with label 1 are positive.

    Parameters
    ----------
    scores : (batch, outputs) array
        Logits.
    labels : array
        0 or 1 for each logit, or a probability, which counts as 1 above 0.5; in the shape of
        `scores`, or (batch,) if there is one output.

    Returns
    -------
    (batch,) boolean array
    """
    xp = scores_namespace(scores, labels, "binary_correct")
    matches = (scores > 0) == (xp.reshape(xp.astype(labels, scores.dtype), scores.shape) > 0.5)
    return xp.all(matches, axis=1)


@explained("nnxp.accuracy(scores, labels)")
def accuracy(scores: Array, labels: Array) -> Array:
    """Return the share of rows whose largest score is at the label, as a 0-d array.

    ``float()`` of the result waits for the device. Parameters and errors are those of `correct`.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp import accuracy
    >>> print(accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])))
    0.5
    """
    xp = floating_namespace(scores, "accuracy")
    return xp.mean(xp.astype(correct(scores, labels), scores.dtype))


@explained("nnxp.metrics.confusion_matrix(scores, labels)")
def confusion_matrix(scores: Array, labels: Array) -> Array:
    """Return the confusion matrix: how many examples of each class are predicted as each class.

    Parameters
    ----------
    scores : (batch, classes) array
        The predicted class has the largest score. A single column is treated as logits, for the
        classes 0 and 1.
    labels : (batch,), (batch, 1) or (batch, classes) array
        As in `correct`.

    Returns
    -------
    (classes, classes) int32 array
        Rows are labels and columns are predictions, as in scikit-learn. The array is on the device
        of the scores.

    Raises
    ------
    InputError, DeviceError
        As in `correct`.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp.metrics import confusion_matrix
    >>> print(confusion_matrix(np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]), np.array([1, 1, 0])))
    [[0 1]
     [1 1]]
    """
    xp = _classes_namespace(scores, labels, "confusion_matrix")
    rows = scores.shape[0]
    blocks = [slice(i, min(i + _EXACT, rows)) for i in range(0, max(rows, 1), _EXACT)]
    parts = [_count_pairs(xp, scores[block, ...], labels[block, ...]) for block in blocks]
    return sum(parts[1:], parts[0])


_EXACT = 1 << 24  # float32 represents all integers up to this one


def _count_pairs(xp: Namespace, scores: Array, labels: Array) -> Array:
    predicted, actual = _class_rows(xp, scores, labels, max(scores.shape[1], 2))
    return xp.astype(actual.T @ predicted, xp.int32)


def _classes_namespace(scores: Array, labels: Array, owner: object) -> Namespace:
    """Return the namespace of scores and class labels; raise if their shapes do not fit."""
    xp = scores_namespace(scores, labels, owner)
    shape = tuple(labels.shape)
    rows = scores.shape[0] if scores.ndim else 0
    if scores.ndim != 2 or shape not in ((rows,), (rows, 1), tuple(scores.shape)):
        raise InputError(
            f"{owner} expects scores of shape (batch, classes) and labels of shape (batch,) or "
            f"(batch, classes), got {tuple(scores.shape)} and {shape}"
        )
    return xp


def _class_numbers(xp: Namespace, labels: Array) -> Array:
    """Return labels of several classes as class numbers of shape (batch,)."""
    if labels.dtype == xp.bool:  # in the standard, argmax and == with integers need numbers
        labels = xp.astype(labels, xp.int32)
    if labels.ndim == 2:
        return xp.reshape(labels, (-1,)) if labels.shape[1] == 1 else xp.argmax(labels, axis=1)
    return labels


def _class_rows(xp: Namespace, scores: Array, labels: Array, classes: int) -> tuple[Array, Array]:
    """Return predictions and labels as one-hot rows in the dtype of the scores."""
    if scores.shape[1] == 1:
        predicted = xp.astype(xp.reshape(scores, (-1,)) > 0, xp.int32)
        probable = xp.reshape(xp.astype(labels, scores.dtype), (-1,)) > 0.5
        actual = xp.astype(probable, xp.int32)
    else:
        predicted, actual = xp.argmax(scores, axis=1), _class_numbers(xp, labels)
    numbers = xp.arange(classes, dtype=xp.int32, device=device_of(scores))[None, :]
    return (
        xp.astype(predicted[:, None] == numbers, scores.dtype),
        xp.astype(actual[:, None] == numbers, scores.dtype),
    )


class Metric(Part):
    """Base class of all metrics: sums over the rows of a batch, and a function of the total sums.

    `measure` returns the sums of a batch, which are added on the device. `value` is called once per
    epoch, on the host.

    Attributes
    ----------
    name : str
        The name of the figure; records have ``train_NAME`` and ``validation_NAME``.
    size : int
        The number of sums; 1 by default.
    """

    name: str
    size: int = 1

    def measure(self, scores: Array, labels: Array, weights: Array | None = None) -> Array:
        """Return the sums over a batch.

        Parameters
        ----------
        scores : (batch, outputs) array
        labels : array
            As the loss takes them.
        weights : (batch,) array, optional
            The weight of each example, in the dtype of the scores, by which its terms are
            multiplied.

        Returns
        -------
        0-d array, or array of shape (size,)
        """
        raise NotImplementedError(f"{type(self).__name__} does not define measure")

    def value(self, sums: Sequence[float], count: float) -> float:
        """Return the figure of the sums over all examples; by default their mean.

        Parameters
        ----------
        sums : sequence of float
            The sums of `measure` over all batches.
        count : float
            The number of examples, or the sum of their weights. If it is 0, the mean is nan.
        """
        return sums[0] / count if count else math.nan

    def _sum(self, xp: Namespace, rows: Array, scores: Array, weights: Array | None) -> Array:
        """Return the weighted sum of the `rows`, one number for each example."""
        if weights is None:
            return xp.sum(rows)
        require_weights(weights, scores, self)
        return xp.sum(rows * weights)


class Accuracy(Metric):
    """The share of rows whose largest score is at the label; see `correct`."""

    name = "accuracy"

    def measure(self, scores: Array, labels: Array, weights: Array | None = None) -> Array:
        """Return the number of correct rows."""
        xp = floating_namespace(scores, self)
        return self._sum(xp, xp.astype(correct(scores, labels), scores.dtype), scores, weights)


class TopAccuracy(Metric):
    """The share of rows whose label is among the k largest scores.

    Parameters
    ----------
    k : int, optional
        At least 1; 5 by default. The name of the figure has this number, such as ``top5_accuracy``.
    """

    def __init__(self, k: int = 5) -> None:
        self.k = require_count("k", k)
        self.name = f"top{k}_accuracy"

    def measure(self, scores: Array, labels: Array, weights: Array | None = None) -> Array:
        """Return the number of rows in which fewer than k scores are above that of the label."""
        xp = _classes_namespace(scores, labels, self)
        if scores.shape[1] == 1:
            raise InputError(
                f"{self!r} expects a score for each class, got one column of scores; use "
                "nnxp.accuracy(scores, labels)"
            )
        own_class = _class_numbers(xp, labels)
        numbers = xp.arange(scores.shape[1], dtype=own_class.dtype, device=device_of(scores))
        hot = own_class[:, None] == numbers[None, :]
        own = xp.sum(xp.where(hot, scores, 0.0), axis=1, keepdims=True)
        above = xp.sum(xp.astype(scores > own, scores.dtype), axis=1)
        return self._sum(xp, xp.astype(above < self.k, scores.dtype), scores, weights)


class _ClassCounts(Metric):
    """Base class of metrics that count predictions, labels and true positives of each class.

    Parameters
    ----------
    classes : int, optional
        The number of classes; by default two. Scores of two classes are a single column of logits,
        or two columns.
    average : str, optional
        ``"binary"``, the figure of class 1 of two, is the default without `classes`. ``"macro"``,
        the mean of the figures of all classes, is the default with `classes`. ``"micro"`` is the
        figure of the counts of all classes together.

    Raises
    ------
    InputError
        If `classes` is not a whole number of at least 2, `average` is none of these, or it is
        ``"binary"`` with more than two classes.
    """

    _name: ClassVar[str]

    def __init__(self, classes: int | None = None, average: str | None = None) -> None:
        self.classes = 2 if classes is None else require_count("classes", classes)
        if self.classes < 2:
            raise InputError("classes must be a whole number of at least 2, got 1")
        if average is None:
            average = "binary" if classes is None else "macro"
        self.average = average
        if self.average not in ("macro", "micro", "binary"):
            raise InputError(f'average must be "macro", "micro" or "binary", got {average!r}')
        if self.average == "binary" and self.classes > 2:
            raise InputError(
                f'average="binary" is the figure of class 1 of two, got {self.classes} classes; '
                'use average="macro"'
            )
        self.size = 3 * self.classes
        self.name = f"micro_{self._name}" if self.average == "micro" else self._name

    def measure(self, scores: Array, labels: Array, weights: Array | None = None) -> Array:
        """Return counts for all classes: true positives, then predictions, then labels."""
        xp = _classes_namespace(scores, labels, self)
        columns = scores.shape[1]
        if columns != self.classes and (columns, self.classes) != (1, 2):
            raise InputError(
                f"{self!r} expects scores of shape (batch, {self.classes}), got "
                f"{tuple(scores.shape)}; use {type(self).__name__}(classes={max(columns, 2)})"
            )
        predicted, actual = _class_rows(xp, scores, labels, self.classes)
        counts = xp.stack(
            [
                xp.sum(x, axis=0)
                for x in self._weighted(scores, weights, predicted * actual, predicted, actual)
            ]
        )
        return xp.reshape(counts, (-1,))

    def _weighted(self, scores: Array, weights: Array | None, *rows: Array) -> tuple[Array, ...]:
        if weights is None:
            return rows
        require_weights(weights, scores, self)
        return tuple(x * weights[:, None] for x in rows)

    def value(self, sums: Sequence[float], count: float) -> float:
        """Return the figure of these counts, averaged over the classes."""
        k = self.classes
        counts = list(zip(sums[:k], sums[k : 2 * k], sums[2 * k :], strict=True))
        if self.average == "binary":
            counts = counts[1:]
        elif self.average == "micro":
            right, predicted, actual = zip(*counts, strict=True)
            counts = [(sum(right), sum(predicted), sum(actual))]
        figures = [self._figure(*x) for x in counts]
        return sum(figures) / len(figures)

    def _figure(self, right: float, predicted: float, actual: float) -> float:
        """Return the figure of one class."""
        raise NotImplementedError


class Precision(_ClassCounts):
    """The share of a class's predictions that are right, averaged over the classes.

    It is 0 for a class that is never predicted. This equals scikit-learn's ``precision_score`` with
    ``labels=range(classes)`` and ``zero_division=0``.

    Parameters
    ----------
    classes : int, optional
        The number of classes; by default two. Scores of two classes are a single column of logits,
        or two columns.
    average : str, optional
        ``"binary"``, the figure of class 1 of two, is the default without `classes`. ``"macro"``,
        the mean of the figures of all classes, is the default with `classes`. ``"micro"`` is the
        figure of the counts of all classes together, named ``micro_precision``.

    Raises
    ------
    InputError
        If `classes` is not a whole number of at least 2, `average` is none of these, or it is
        ``"binary"`` with more than two classes.
    """

    _name = "precision"

    def _figure(self, right: float, predicted: float, actual: float) -> float:
        return _ratio(right, predicted)


class Recall(_ClassCounts):
    """The share of a class's examples that are predicted correctly, averaged over the classes.

    It is 0 for a class without examples. This equals scikit-learn's ``recall_score`` with
    ``labels=range(classes)`` and ``zero_division=0``.

    Parameters
    ----------
    classes : int, optional
        As in `Precision`.
    average : str, optional
        As in `Precision`.
    """

    _name = "recall"

    def _figure(self, right: float, predicted: float, actual: float) -> float:
        return _ratio(right, actual)


class F1(_ClassCounts):
    """The harmonic mean of a class's precision and recall, averaged over the classes.

    It is 0 for a class that has no examples and is never predicted (van Rijsbergen 1979, ch. 7,
    with beta = 1). This equals scikit-learn's ``f1_score`` with ``labels=range(classes)`` and
    ``zero_division=0``.

    Parameters
    ----------
    classes : int, optional
        As in `Precision`.
    average : str, optional
        As in `Precision`.
    """

    _name = "f1"

    def _figure(self, right: float, predicted: float, actual: float) -> float:
        return _ratio(2 * right, predicted + actual)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


class MeanAbsoluteError(Metric):
    """The mean of ``|score - target|`` over rows and outputs."""

    name = "mean_absolute_error"

    def measure(self, scores: Array, labels: Array, weights: Array | None = None) -> Array:
        """Return the sum over the rows of their mean errors."""
        xp, targets = _targets(scores, labels, self)
        errors = xp.abs(scores - targets)
        outputs = math.prod(scores.shape[1:])
        if weights is None:
            return xp.sum(errors) / outputs
        rows = xp.sum(xp.reshape(errors, (-1, outputs)), axis=1)
        return self._sum(xp, rows, scores, weights) / outputs


class R2(Metric):
    """The coefficient of determination: ``1 - sum((y - score)²) / sum((y - mean(y))²)``.

    The sums are over all rows and outputs together. If all targets are equal, the figure is nan and
    is left out of the record.
    """

    name = "r2"
    size = 4

    def measure(self, scores: Array, labels: Array, weights: Array | None = None) -> Array:
        """Return the sums of squared errors, of targets, of squared targets, and their number."""
        xp, y = _targets(scores, labels, self)
        error = scores - y
        terms = [error * error, y, y * y, y * 0.0 + 1.0]
        if weights is not None:
            require_weights(weights, scores, self)
            column = xp.reshape(weights, (-1, *(1 for _ in y.shape[1:])))
            terms = [x * column for x in terms]
        return xp.stack([xp.sum(x) for x in terms])

    def value(self, sums: Sequence[float], count: float) -> float:
        """Return the coefficient of these sums."""
        errors, total, squares, number = sums
        variation = squares - total * total / number if number else 0.0
        return 1 - errors / variation if variation > 0 else math.nan


def _targets(scores: Array, labels: Array, owner: object) -> tuple[Namespace, Array]:
    """Return the namespace of the scores, and targets in the scores' shape and dtype."""
    xp = scores_namespace(scores, labels, owner)
    shape, wanted = tuple(labels.shape), tuple(scores.shape)
    if shape != wanted and not (shape == wanted[:1] and math.prod(wanted[1:]) == 1):
        raise InputError(
            f"{owner} expects a target for each score, of shape {wanted}, got {shape}; convert "
            "class numbers with nnxp.data.one_hot(labels, classes)"
        )
    return xp, xp.reshape(xp.astype(labels, scores.dtype), scores.shape)


METRICS: dict[str, type[Metric]] = {
    "accuracy": Accuracy,
    "top": TopAccuracy,
    "precision": Precision,
    "recall": Recall,
    "f1": F1,
    "mean_absolute_error": MeanAbsoluteError,
    "r2": R2,
}
"""The metrics by name."""


def __dir__() -> list[str]:
    return __all__
