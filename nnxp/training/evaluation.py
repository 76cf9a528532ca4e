"""Evaluation: loss, accuracy and metrics of a network on data sets."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nnxp.arrays import Array
from nnxp.data.batches import Batches
from nnxp.data.dataset import Dataset
from nnxp.devices import Device
from nnxp.history import Figures
from nnxp.metrics import Metric
from nnxp.network import Sequential
from nnxp.ranks import ONE_RANK, Ranks
from nnxp.step import Step, evaluated_sums
from nnxp.training.divergence import is_finite, parameters_and_state

_BATCH_SIZE = 1000


def evaluation_batch_size(network: Sequential, dataset: Dataset) -> int:
    """Return the batch size of an evaluation: 1000, or less if the layers' arrays are large."""
    return min(_BATCH_SIZE, network.examples_at_once(tuple(dataset.inputs.shape[1:])))


class Evaluation(Figures):
    """The figures of a data set: ``loss``, all metrics, and ``accuracy`` for losses of classes."""

    __slots__ = ()


class Measured(NamedTuple):
    """The result of `evaluate`.

    Attributes
    ----------
    evaluations : list of Evaluation
        The figures of each data set.
    running : Evaluation or None
        The figures of the sums of an epoch's steps; None if nothing was summed.
    penalty : float
        The penalty; 0 if there is none.
    finite : bool
        Whether parameters and state are finite.
    """

    evaluations: list[Evaluation]
    running: Evaluation | None
    penalty: float
    finite: bool


def evaluate(
    step: Step,
    data: list[Batches],
    device: Device,
    count: float = 0,
    arrays: Iterable[Array] = (),
    ranks: Ranks = ONE_RANK,
) -> Measured:
    """Compute the figures of data sets and of the sums of an epoch's steps; check for divergence.

    The function waits for the device once.

    Parameters
    ----------
    step : Step
        The step, whose network, loss, penalty, metrics and sums are used.
    data : list of Batches
        The data sets, on the device.
    device : Device
    count : float, optional
        The number of examples in the step's sums, or the sum of their weights.
    arrays : iterable of array, optional
        Arrays on the device that contain all numbers of parameters and state, and possibly others.
    ranks : Ranks, optional
        The processes that divide the batches of the data sets; each has its own sums.

    Returns
    -------
    Measured
    """
    penalty, metrics = step.penalty, step.metrics
    # The sums of each data set's batches, followed by those of the steps.
    forward = step.network.forward
    groups = [
        [
            evaluated_sums(step, forward(inputs), *rest)
            for inputs, *rest in batches.part(ranks.rank, ranks.size)
        ]
        or [_zeros(step, batches)]
        for batches in data
    ]
    groups.append([step.sums] if step.sums else [])
    pending = [x for group in groups for sums in group for x in sums.values()]
    scalars: list[Array] = []
    penalized = 0.0
    if penalty is not None:
        value = penalty.value(step.network.parameters().trainable)
        penalized = value if isinstance(value, float) else math.nan
        scalars += [] if isinstance(value, float) else [value]
    # A sum of squares is finite only if all of its terms are.
    reshape = device.xp.reshape
    flat = [x if x.ndim == 1 else reshape(x, (-1,)) for x in arrays]
    if flat:
        scalars.append(functools.reduce(operator.add, [x @ x for x in flat]))
    numbers = iter(_numbers(pending, scalars, device))
    totals = [_total(group, numbers) for group in groups]
    if ranks.size > 1:
        totals = _over_ranks(totals, ranks)
    if math.isnan(penalized):
        penalized = next(numbers)
    counts = [*(batches.dataset.total_weight for batches in data), count]
    figures = [
        _figures(sums, metrics, n, penalized) for sums, n in zip(totals, counts, strict=True)
    ]
    running = figures.pop()
    finite = all(map(math.isfinite, numbers)) or all(
        map(is_finite, parameters_and_state(step.network, step.optimizer).values())
    )
    return Measured(figures, running if step.sums else None, penalized, finite)


def _zeros(step: Step, batches: Batches) -> dict[str, Array]:
    """Return sums of 0, for a rank without batches."""
    inputs, *rest = batches.take(slice(0, 1))
    sums = evaluated_sums(step, step.network.forward(inputs), *rest)
    return {name: batches.device.xp.zeros_like(x) for name, x in sums.items()}


def _over_ranks(totals: list[dict[str, list[float]]], ranks: Ranks) -> list[dict[str, list[float]]]:
    """Return the totals, summed over all ranks."""
    numbers = [x for group in totals for own in group.values() for x in own]
    summed = iter(ranks.total(np.array(numbers, "float64")).tolist())
    return [
        {name: list(itertools.islice(summed, len(own))) for name, own in group.items()}
        for group in totals
    ]


def _numbers(vectors: list[Array], scalars: list[Array], device: Device) -> list[float]:
    """Return the numbers of vectors and 0-d arrays on a device; wait for the device once."""
    if device.is_host:
        to_host = device.to_host
        return [x for each in vectors for x in to_host(each).tolist()] + [*map(float, scalars)]
    xp, dtype = device.xp, vectors[0].dtype
    flat = [xp.reshape(xp.astype(x, dtype), (1,)) for x in scalars]
    numbers: list[float] = device.to_host(xp.concat([*vectors, *flat])).tolist()
    return numbers


def _total(group: list[dict[str, Array]], numbers: Iterator[float]) -> dict[str, list[float]]:
    """Return the sums over all batches by name; take the numbers from `numbers`, in order."""
    totals: dict[str, list[float]] = {}
    for sums in group:
        for name, x in sums.items():
            own = list(itertools.islice(numbers, x.shape[0]))
            before = totals.get(name)
            totals[name] = own if before is None else list(map(operator.add, before, own))
    return totals


def _figures(
    totals: Mapping[str, Sequence[float]], metrics: Sequence[Metric], count: float, penalty: float
) -> Evaluation:
    """Return the figures of these sums over `count` examples; leave out metrics that are nan."""
    if not totals:
        return Evaluation()
    total, *weight = totals["loss"]  # the loss may weight the examples itself
    figures = {"loss": penalty + total / (weight[0] if weight else count)}
    if "accuracy" in totals:
        figures["accuracy"] = totals["accuracy"][0] / count
    for metric in metrics:
        value = float(metric.value(totals[metric.name], count))
        if math.isfinite(value):
            figures[metric.name] = value
    return Evaluation(**figures)
