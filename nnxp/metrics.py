"""Metrics: which examples are classified correctly, and how many."""

from __future__ import annotations

from nnxp.arrays import Array, floating_namespace, scores_namespace
from nnxp.errors import InputError


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
