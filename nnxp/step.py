"""Step: one training step: forward, loss, backward, penalty, transforms, update."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from nnxp.arrays import Array, device_of, namespace_of
from nnxp.errors import InputError
from nnxp.losses import Loss
from nnxp.metrics import Metric
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.penalties import Penalty
from nnxp.ranks import ONE_RANK, Ranks, Share, Totals, total_of
from nnxp.transforms import Transform, transform_gradients

# A function that does a step for each batch, given the row indices of each batch.
DoSteps: TypeAlias = Callable[[Iterable[Array]], object]


class Step:
    """The training step of a network, a loss and an optimizer.

    `Trainer.step`, captured steps and the search for a divergence all use this class.

    Parameters
    ----------
    network : Sequential
    loss : Loss
    optimizer : Optimizer
    penalty : Penalty, optional
    transforms : tuple of Transform, optional
        Applied one after the other to the gradients, which include those of the penalty.
    metrics : tuple of Metric, optional
        Measured in addition to the loss.
    sums : dict of str to array, optional
        The sums of an epoch's loss and metrics so far. Each step adds the sums of its batch; see
        `measured_sums`. By default nothing is measured.
    micro_batch_size : int, optional
        Compute the gradients of a batch in parts of this many rows, which needs less memory. By
        default the batch is not divided.
    ranks : Ranks, optional
        The processes that divide each batch; by default only this one. Their gradients are summed
        once, between `backpropagate` and `gradients`.
    """

    def __init__(
        self,
        network: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        penalty: Penalty | None = None,
        transforms: tuple[Transform, ...] = (),
        metrics: tuple[Metric, ...] = (),
        *,
        sums: dict[str, Array] | None = None,
        micro_batch_size: int | None = None,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        self.network, self.loss, self.optimizer = network, loss, optimizer
        self.penalty, self.transforms, self.metrics = penalty, transforms, metrics
        self.sums: dict[str, Array] = {} if sums is None else sums
        self.micro_batch_size = micro_batch_size
        self.ranks = ranks
        self._gradients: Mapping[str, Array] | None = None  # sums over micro-batches or ranks
        self._before: dict[str, Array] = {}  # state before the step that may differ between ranks
        self._weight: Array | float = 0.0  # the weight of this rank's rows
        self.sums_are_means = False  # the sums over all ranks, if no example has a weight

    @property
    def parts(self) -> tuple[object, ...]:
        """All parts, and the transforms that are functions."""
        penalties = () if self.penalty is None else (self.penalty,)
        metrics = self.metrics if self.sums else ()
        return self.network, self.loss, self.optimizer, *penalties, *self.transforms, *metrics

    def with_copies(self, network: Sequential, optimizer: Optimizer) -> Step:
        """Return the same step for a copy of the network and of the optimizer."""
        return Step(
            network,
            copy.copy(self.loss),
            optimizer,
            self.penalty,
            self.transforms,
            self.metrics,
            sums=dict(self.sums),
            micro_batch_size=self.micro_batch_size,
            ranks=self.ranks,
        )

    def __call__(
        self,
        inputs: Array,
        labels: Array,
        weights: Array | None = None,
        *,
        share: Share | None = None,
    ) -> Array:
        """Do one update, and return the loss before it, including the penalty, as a 0-d array.

        The parameters are those of `backpropagate`.
        """
        value = self.backpropagate(inputs, labels, weights, share=share)
        if share is not None:
            value = self._exchange(value)
        if self.penalty is not None:
            value = value + self.penalty.value(self.network.parameters().trainable)
        self.update(self.gradients())
        return value

    def backpropagate(
        self,
        inputs: Array,
        labels: Array,
        weights: Array | None = None,
        *,
        share: Share | None = None,
    ) -> Array:
        """Compute the layers' gradients of the loss, and return the loss as a 0-d array.

        Parameters
        ----------
        inputs : (batch, …) array
        labels : array
        weights : (batch,) array, optional
            Inputs, labels and weights as `nnxp.data.Batches` yields them.
        share : Share, optional
            The position of these rows in the global batch. The gradients are then multiplied by the
            weight of the rows, for `summands`.
        """
        self._gradients = None
        if share is None:
            return self._backpropagate_parts(inputs, labels, weights)
        # A share of the batch, so that sums over all ranks are means, unless examples are weighted.
        self._weight = 0.0 if share.is_empty else inputs.shape[0] / share.total
        counts = _example_weights(self.loss, labels, inputs, weights)
        self.sums_are_means = counts is None
        if counts is not None and not share.is_empty:
            self._weight = namespace_of(counts, "weights").sum(counts)
        with self._placed(share):
            return self._backpropagate_parts(inputs, labels, weights, self._weight)

    @contextlib.contextmanager
    def _placed(self, share: Share) -> Iterator[None]:
        """Set the layers' position in the global batch; measure nothing if the share is empty."""
        drawing = [layer for layer in self.network.leaves() if hasattr(layer, "row_offset")]
        counting = self._counting()
        self.remember_states()
        sums = self.sums
        try:
            for layer in drawing:
                layer.row_offset = share.rows.start
            for layer in counting:
                layer.over_ranks = Totals(self.ranks, share, self.network.device)
            if share.is_empty:
                self.sums = {}
            yield
        finally:
            self.sums = sums
            for layer in drawing:
                layer.row_offset = 0
            for layer in counting:
                del layer.over_ranks

    def _counting(self) -> list[Any]:
        """Return the layers with statistics of the global batch."""
        if self.ranks.batch_norm != "all" or self.micro_batch_size is not None:
            return []
        return [layer for layer in self.network.leaves() if hasattr(layer, "over_ranks")]

    def exchanges_within(self) -> bool:
        """Return whether ranks exchange anything within `backpropagate`."""
        return self.ranks.size > 1 and bool(self._counting())

    def remember_states(self) -> None:
        """Keep copies of the state that may differ between ranks after `backpropagate`."""
        states, counting = self.network.states(), self._counting()
        self._before = {}
        for name, x in states.items():
            xp = namespace_of(x, name)
            if states.layer(name) not in counting and xp.isdtype(x.dtype, "real floating"):
                self._before[name] = xp.asarray(x, copy=True)  # a layer may change it in place

    def summands(self) -> dict[str, Array]:
        """Return the arrays to sum over all ranks, by name: gradients, changes of state, weight.

        Gradients and changes are those of `backpropagate`, multiplied by the weight of this rank's
        rows.
        """
        grads: Mapping[str, Array] = self._gradients or self.network.gradients()
        arrays = {f"gradient of {name}": x for name, x in grads.items()}
        states = self.network.states()
        for name, before in self._before.items():
            if states[name] is not before:
                arrays[f"change of {name}"] = (states[name] - before) * self._weight
        like = next(iter(grads.values()))
        xp = namespace_of(like, "summands")
        weight = xp.asarray(self._weight, dtype=like.dtype, device=device_of(like))
        return arrays | {"weight": xp.reshape(weight, (1,))}

    def receive(self, means: Mapping[str, Array]) -> None:
        """Replace this rank's gradients and state by the means over all ranks; see `summands`."""
        params, states = self.network.arrays()
        self._gradients = {name: means[f"gradient of {name}"] for name in params.trainable}
        for name, before in self._before.items():
            if f"change of {name}" in means:
                states.place(name, before + means[f"change of {name}"])

    def _exchange(self, value: Array) -> Array:
        """Sum over all ranks, and return the loss of the global batch."""
        xp = namespace_of(value, "exchange")
        arrays = {"loss": value * self._weight, **self.summands()}
        total = total_of(
            self.ranks,
            xp.concat([xp.reshape(x, (-1,)) for x in arrays.values()]),
            self.network.device,
        )
        weight = total[-1]
        total = total / xp.where(weight > 0, weight, 1.0)
        means, end = {}, 0
        for name, x in arrays.items():
            start, end = end, end + math.prod(x.shape)
            means[name] = xp.reshape(total[start:end], x.shape)
        self.receive(means)
        return means["loss"]

    def _backpropagate_parts(
        self,
        inputs: Array,
        labels: Array,
        weights: Array | None,
        factor: Array | float | None = None,
    ) -> Array:
        """Backpropagate micro-batches one after the other, or the whole batch.

        The gradients are multiplied by `factor`.
        """
        rows, size = inputs.shape[0], self.micro_batch_size
        if size is None or rows <= size:
            return self._backpropagate(inputs, labels, weights, factor)
        # All parts use the random numbers of the same batch.
        drawing = [layer for layer in self.network.leaves() if hasattr(layer, "row_offset")]
        kept = [(layer, layer.row_offset, layer.state["counter"]) for layer in drawing]
        counts = _example_weights(self.loss, labels, inputs, weights)
        values: list[Array] = []
        gradients: dict[str, Array] = {}
        for start in range(0, rows, size):
            for layer, offset, counter in kept:
                layer.row_offset, layer.state["counter"] = offset + start, counter
            part = slice(start, min(start + size, rows))
            own = None if weights is None else weights[part, ...]
            share: Any = (part.stop - start) / rows
            if counts is not None:
                share = _share(counts[part, ...], counts)
            value = self._backpropagate(inputs[part, ...], labels[part, ...], own)
            values.append(share * value)
            scale = share if factor is None else share * factor
            for name, x in self.network.gradients().items():
                gradients[name] = gradients[name] + scale * x if name in gradients else scale * x
        for layer, offset, _ in kept:
            layer.row_offset = offset
        self._gradients = gradients
        return sum(values[1:], values[0])

    def _backpropagate(
        self,
        inputs: Array,
        labels: Array,
        weights: Array | None,
        factor: Array | float | None = None,
    ) -> Array:
        scores = self.network.forward(inputs, training=True)
        value = self.loss.forward(scores, labels, **_weighted(weights))
        if self.sums:
            measured = measured_sums(self.loss, self.metrics, scores, labels, value, weights)
            for name, x in measured.items():
                self.sums[name] = self.sums[name] + x
        skips = self.network.skips_inputs()
        backward = self.network.backward_parameters if skips else self.network.backward
        dy = self.loss.backward()
        backward(dy if factor is None else dy * factor)
        return value

    def gradients(self) -> Mapping[str, Array]:
        """Return the gradients of layers and penalty, after all transforms."""
        grads: Mapping[str, Array] = self._gradients or self.network.gradients()
        params = self.network.parameters()
        if self.penalty is not None:
            grads = self.penalty.add_gradients(params, grads)
        return transform_gradients(self.transforms, params, grads) if self.transforms else grads

    def update(self, gradients: Mapping[str, Array]) -> None:
        """Update the parameters by these gradients, and count the step."""
        steps = self.optimizer.steps
        self.optimizer.update(self.network.parameters(), gradients)
        if self.optimizer.steps is steps:  # a user's optimizer that does not count
            self.optimizer.steps += 1


def _weighted(weights: Array | None) -> dict[str, Any]:
    """Return weights as a keyword argument; nothing for None, since a part may not accept it."""
    return {} if weights is None else {"weights": weights}


def _example_weights(loss: Loss, labels: Array, like: Array, weights: Array | None) -> Array | None:
    """Return the weight of each example in the mean loss; None if all count equally."""
    own = loss.example_weights(labels, like)
    if own is None or weights is None:
        return weights if own is None else own
    return own * weights


def _share(own: Array, weights: Array) -> Array:
    """Return the sum of a part's weights as a share of that of the batch."""
    xp = namespace_of(own, "weights")
    total = xp.sum(weights)
    return xp.sum(own) / xp.where(total > 0, total, 1.0)


def evaluated_sums(
    step: Step, scores: Array, labels: Array, weights: Array | None = None
) -> dict[str, Array]:
    """Return the sums over a batch in an evaluation; see `measured_sums`."""
    value = step.loss.forward(scores, labels, training=False, **_weighted(weights))
    return measured_sums(step.loss, step.metrics, scores, labels, value, weights)


def measured_sums(
    loss: Loss,
    metrics: tuple[Metric, ...],
    scores: Array,
    labels: Array,
    value: Array,
    weights: Array | None = None,
) -> dict[str, Array]:
    """Return the sums over a batch of the loss, of correct rows and of all metrics, by name.

    Parameters
    ----------
    loss : Loss
    metrics : tuple of Metric
    scores, labels : array
        The scores and labels of the batch.
    value : 0-d array
        The mean loss of the batch.
    weights : (batch,) array, optional
        The weights of the examples, with which the sums are computed.

    Returns
    -------
    dict of str to array
        1-D arrays in the dtype of the scores. ``"loss"`` has the sum of the losses, followed by the
        sum of the examples' weights if the loss itself weights examples. ``"accuracy"`` is missing
        if the loss is not for classes.
    """
    xp = namespace_of(scores, loss)
    counts = _example_weights(loss, labels, scores, weights)
    if counts is None:
        sums = {"loss": value * scores.shape[0]}
    elif counts is weights:
        sums = {"loss": value * xp.sum(counts)}
    else:
        total = xp.sum(counts)
        sums = {"loss": xp.stack([value * total, total])}
    correct = loss.correct(scores, labels)
    if correct is not None:
        correct = xp.astype(correct, value.dtype)
        sums["accuracy"] = xp.sum(correct if weights is None else correct * weights)
    for metric in metrics:
        x = metric.measure(scores, labels, **_weighted(weights))
        if tuple(x.shape) not in ({(), (1,)} if metric.size == 1 else {(metric.size,)}):
            raise InputError(
                f"{metric!r}.measure must return its size, {metric.size}, of sums over the rows, "
                f"got an array of shape {tuple(x.shape)}"
            )
        sums[metric.name] = xp.astype(x, value.dtype)
    return {name: xp.reshape(x, (-1,)) for name, x in sums.items()}
