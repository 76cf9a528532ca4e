"""Metrics: which examples the scores get right."""

from __future__ import annotations

from nnxp.arrays import Array, floating_namespace


def hits(scores: Array, labels: Array) -> Array:
    """Tell for each row whether its largest score is at the label.

    Parameters
    ----------
    scores : (batch, classes) array
    labels : (batch,) or (batch, classes) array
        Class numbers, or one-hot rows.

    Returns
    -------
    (batch,) boolean array
    """
    xp = floating_namespace(scores, "hits")
    if labels.ndim == 2:
        labels = xp.argmax(labels, axis=1)
    return xp.argmax(scores, axis=1) == labels


def binary_hits(scores: Array, labels: Array) -> Array:
    """Tell for each row whether all its logits are on the right side of 0.

    Parameters
    ----------
    scores : (batch, outputs) array
        Logits.
    labels : array
        0 or 1 for each logit; (batch,) will do for one output.

    Returns
    -------
    (batch,) boolean array
    """
    xp = floating_namespace(scores, "binary_hits")
    right = (scores > 0) == (xp.reshape(labels, scores.shape) == 1)
    return xp.all(right, axis=1)


def accuracy(scores: Array, labels: Array) -> Array:
    """Return the share of rows whose largest score is at the label, as a 0-d array.

    ``float()`` of it waits for the device. Parameters are those of `hits`.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp import accuracy
    >>> print(accuracy(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1])))
    0.5
    """
    xp = floating_namespace(scores, "accuracy")
    return xp.mean(xp.astype(hits(scores, labels), scores.dtype))
