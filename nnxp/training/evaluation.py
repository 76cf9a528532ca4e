"""Evaluation: mean loss and accuracy of a network on data sets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from nnxp.arrays import Array
from nnxp.data.batches import Batches
from nnxp.step import Step

EVALUATION_BATCH_SIZE = 1000
"""How many examples are evaluated at a time."""


class Evaluation(NamedTuple):
    """Mean loss and accuracy on a data set; the accuracy is nan if there are no classes."""

    loss: float
    accuracy: float


def evaluate(
    step: Step, data: list[Batches], arrays: Iterable[Array] = ()
) -> tuple[list[Evaluation], bool]:
    """Evaluate a network on data sets and check arrays, with one wait for the device.

    Parameters
    ----------
    step : Step
        Its network, loss and penalty are used.
    data : list of Batches
        One for each data set, on the network's device.
    arrays : iterable of array, optional
        On the same device.

    Returns
    -------
    evaluations : list of Evaluation
        One for each data set.
    finite : bool
        Whether all numbers of all `arrays` are finite.
    """
    network, loss, penalty = step.network, step.loss, step.penalty
    device = data[0].device
    xp = device.xp
    sums: list[Array] = []  # of each data set the losses, then the correct examples, by batch
    counts = []  # how many losses and how many counts of correct examples
    for batches in data:
        losses, corrects = [], []
        for inputs, labels in batches:
            scores = network.predict(inputs)
            value = loss.forward(scores, labels, training=False)
            losses.append(value * inputs.shape[0])
            correct = loss.correct(scores, labels)
            if correct is not None:
                corrects.append(xp.sum(xp.astype(correct, value.dtype)))
        sums += losses + corrects
        counts += [len(losses), len(corrects)]
    penalized = 0.0 if penalty is None else penalty.value(network.parameters().trainable)
    if not isinstance(penalized, float):
        sums.append(penalized)
    sums += [xp.astype(xp.all(xp.isfinite(x)), sums[0].dtype) for x in arrays]
    measured = iter(device.to_host(xp.stack(sums)).tolist())
    totals = [sum(itertools.islice(measured, n)) if n else math.nan for n in counts]
    added = penalized if isinstance(penalized, float) else next(measured)
    evaluations = [
        Evaluation(added + losses / len(batches.dataset), corrects / len(batches.dataset))
        for batches, losses, corrects in zip(data, totals[::2], totals[1::2], strict=True)
    ]
    return evaluations, all(measured)
