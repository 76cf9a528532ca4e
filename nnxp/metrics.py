"""Metrics: figures of the scores: how many examples are correct, and how far targets are missed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from nnxp.arrays import Array, device_of, floating_namespace, scores_namespace
from nnxp.checks import require_count
from nnxp.errors import InputError
from nnxp.parts import Part


def correct(scores: Array, labels: Array) -> Array:
    """Return for each row whether its largest score is at the label.

    Parameters
    ----------
    scores : (batch, classes) array
    labels : (batch,) or (batch, classes) array
        Class numbers, or one-hot rows.

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
    xp = scores_namespace(scores, labels, "accuracy")
    shape = tuple(labels.shape)
    if scores.ndim != 2 or shape not in (tuple(scores.shape[:1]), tuple(scores.shape)):
        raise InputError(
            "accuracy expects scores of shape (batch, classes) and labels of shape (batch,) or "
            f"(batch, classes), got {tuple(scores.shape)} and {shape}"
        )
    classes = xp.argmax(labels, axis=1) if labels.ndim == 2 else labels
    result: Array = xp.argmax(scores, axis=1) == classes
    return result


def binary_correct(scores: Array, labels: Array) -> Array:
    """Return for each row whether exactly the logits with label 1 are positive.

    Parameters
    ----------
    scores : (batch, outputs) array
        Logits.
    labels : array
        0 or 1 for each logit, in the shape of `scores`, or (batch,) if there is one output.

    Returns
    -------
    (batch,) boolean array
    """
    xp = scores_namespace(scores, labels, "binary_correct")
    matches = (scores > 0) == (xp.reshape(xp.astype(labels, scores.dtype), scores.shape) > 0)
    return xp.all(matches, axis=1)


def accuracy(scores: Array, labels: Array) -> Array:
    """Return the share of rows whose largest score is at the label, as a 0-d array.

    ``float()`` of it waits for the device. Parameters and errors are those of `correct`.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp import accuracy
    >>> print(accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])))
    0.5
    """
    xp = floating_namespace(scores, "accuracy")
    return xp.mean(xp.astype(correct(scores, labels), scores.dtype))


class Metric(Part):
    """Base class of all metrics: a sum over a batch's rows, and the figure of the whole sum.

    The sums are added on the device; `value` is called once an epoch, on the host.

    Attributes
    ----------
    name : str
        Of the figure; records have it as ``train_…`` and ``validation_…``.
    size : int
        The number of sums.
    """

    name: str
    size: ClassVar[int] = 1

    def measure(self, scores: Array, labels: Array) -> Array:
        """Return the sums over a batch: a 0-d array, or one of shape (size,).

        Parameters
        ----------
        scores : (batch, outputs) array
        labels : array
            As the loss takes them.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define measure")

    def value(self, sums: Sequence[float], count: int) -> float:
        """Return the figure of the sums over all `count` examples; by default their mean."""
        return sums[0] / count


class Accuracy(Metric):
    """The share of rows whose largest score is at the label; see `correct`."""

    name = "accuracy"

    def measure(self, scores: Array, labels: Array) -> Array:
        """Return the number of correct rows."""
        xp = floating_namespace(scores, self)
        return xp.sum(xp.astype(correct(scores, labels), scores.dtype))


class TopAccuracy(Metric):
    """The share of rows whose label is among the k largest scores.

    Parameters
    ----------
    k : int, optional
        At least 1. The figure is named ``top5_accuracy`` for 5.
    """

    def __init__(self, k: int = 5) -> None:
        self.k = require_count("k", k)
        self.name = f"top{k}_accuracy"

    def measure(self, scores: Array, labels: Array) -> Array:
        """Return the number of rows with fewer than k scores above that of the label."""
        xp = scores_namespace(scores, labels, self)
        numbers = xp.arange(scores.shape[1], dtype=labels.dtype, device=device_of(scores))
        hot = labels > 0 if labels.ndim == 2 else labels[:, None] == numbers[None, :]
        own = xp.sum(xp.where(hot, scores, 0.0), axis=1, keepdims=True)
        above = xp.sum(xp.astype(scores > own, scores.dtype), axis=1)
        return xp.sum(xp.astype(above < self.k, scores.dtype))


class MeanAbsoluteError(Metric):
    """The mean of ``|score - target|`` over rows and outputs."""

    name = "mean_absolute_error"

    def measure(self, scores: Array, labels: Array) -> Array:
        """Return the sum over the rows of their mean errors."""
        xp = scores_namespace(scores, labels, self)
        targets = xp.reshape(xp.astype(labels, scores.dtype), scores.shape)
        return xp.sum(xp.abs(scores - targets)) / (scores.shape[1])


class R2(Metric):
    """The coefficient of determination: ``1 - sum((y - score)²) / sum((y - mean(y))²)``.

    Over all rows and outputs together; nan, and so not in the record, if all targets are equal.
    """

    name = "r2"
    size: ClassVar[int] = 4

    def measure(self, scores: Array, labels: Array) -> Array:
        """Return the sums of squared errors, of targets, of squared targets, and their number."""
        xp = scores_namespace(scores, labels, self)
        y = xp.reshape(xp.astype(labels, scores.dtype), scores.shape)
        error = scores - y
        ones = xp.sum(y * 0.0 + 1.0)
        return xp.stack([xp.sum(error * error), xp.sum(y), xp.sum(y * y), ones])

    def value(self, sums: Sequence[float], count: int) -> float:
        """Return the coefficient of these sums."""
        errors, total, squares, number = sums
        variation = squares - total * total / number
        return 1 - errors / variation if variation > 0 else math.nan


METRICS: dict[str, type[Metric]] = {
    "accuracy": Accuracy,
    "top": TopAccuracy,
    "mean_absolute_error": MeanAbsoluteError,
    "r2": R2,
}
"""The metrics by name."""
