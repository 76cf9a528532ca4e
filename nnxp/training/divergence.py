"""Divergence: the search for the first number of a training step that is not finite."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from nnxp.arrays import Array, namespace_of
from nnxp.data.batches import Batches
from nnxp.data.epoch import EpochProgress
from nnxp.devices import Device
from nnxp.errors import DivergenceError
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.step import Step


class Snapshot:
    """A copy of parameters and optimizer state that can be restored.

    Parameters
    ----------
    network : Sequential
    optimizer : Optimizer
    device : Device
        The network's device.
    """

    def __init__(self, network: Sequential, optimizer: Optimizer, device: Device) -> None:
        self._copy = functools.partial(device.xp.asarray, copy=True)
        self._network, self._optimizer = network, optimizer
        self._arrays = [
            {name: self._copy(x) for name, x in arrays.items()} for arrays in network.arrays()
        ]
        self._state, self._steps = self._copies(optimizer.state), optimizer.steps

    def restore(self) -> None:
        """Restore the copies, in place if the arrays are mutable."""
        for current, copies in zip(self._network.arrays(), self._arrays, strict=True):
            for name, x in copies.items():
                try:
                    current[name][...] = x
                except TypeError:  # an immutable array
                    current[name] = x
        self._optimizer.state, self._optimizer.steps = self._copies(self._state), self._steps

    def _copies(self, state: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
        return {
            slot: {name: self._copy(x) for name, x in kept.items()} for slot, kept in state.items()
        }


def parameters_and_state(network: Sequential, optimizer: Optimizer) -> dict[str, Array]:
    """Return all arrays that must stay finite, by names such as ``W1`` and ``velocity of W1``."""
    parameters, states = network.arrays()
    state = {
        f"{slot} of {name}": x for slot, kept in optimizer.state.items() for name, x in kept.items()
    }
    floating = {
        name: x
        for name, x in states.items()
        if namespace_of(x, name).isdtype(x.dtype, "real floating")
    }
    return dict(parameters) | floating | state


def raise_at_divergence(
    plain_step: Callable[[Array], Array],
    step: Step,
    batches: Batches,
    progress: EpochProgress,
    epoch: int,
) -> None:
    """Repeat an epoch step by step, and raise at the first number that is not finite.

    So training need not check each step, which would wait for the device. Nothing is raised if all
    steps are finite, for example because plain steps round differently from captured steps.

    Parameters
    ----------
    plain_step : callable
        A function that takes the row indices of a batch, does one plain step, and returns its loss.
    step : Step
        The step with its parts in their state before the first repeated step.
    batches : Batches
    progress : EpochProgress
        The progress in the epoch before the first repeated step.
    epoch : int
        The epoch's number, for the error.

    Raises
    ------
    DivergenceError
        If a step diverges. Parameters and state are those before that step.
    """
    network, optimizer = step.network, step.optimizer
    with np.errstate(all="ignore"):
        for number, rows in enumerate(progress.remaining_rows(batches), progress.batch + 1):
            before = Snapshot(network, optimizer, batches.device)
            value = plain_step(rows)
            after = parameters_and_state(network, optimizer)
            not_finite = [name for name, x in after.items() if not is_finite(x)]
            if not not_finite and is_finite(value):
                continue
            before.restore()
            inputs, labels = batches.take(rows)[:2]
            for name, x in (("inputs", inputs), ("labels", labels)):
                if not is_finite(x):
                    raise DivergenceError(
                        f"training diverged at step {number} of epoch {epoch}: the {name} of its "
                        "batch hold a number that is not finite, which was written into the data "
                        "set after it was made; repair the array and make a new Dataset"
                    )
            place = first_not_finite(network, step.loss, inputs, labels)
            before.restore()  # the search has changed the layers' state
            if place is None:
                place = f"{not_finite[0]} after the optimizer's step" if not_finite else "the loss"
            raise DivergenceError(
                f"training diverged at step {number} of epoch {epoch}: {place} is not finite. "
                "Parameters are those before that step; start from new weights with a lower "
                f"learning rate, now {optimizer.learning_rate:g}"
            ) from None


def first_not_finite(network: Sequential, loss: Loss, inputs: Array, labels: Array) -> str | None:
    """Return a description of the first array of a step that has a number that is not finite.

    Parameters
    ----------
    network : Sequential
        The network. Its parameters are not changed.
    loss : Loss
    inputs, labels : array
        One batch, on the network's device.

    Returns
    -------
    str or None
        It names the output of a layer, the loss, or the gradient of a parameter or of a layer's
        inputs; None if all of these are finite.
    """
    names = {id(x): name for name, x in network.parameters().items()}
    layers = [(f"layer {i}, {layer!r},", layer) for i, layer in enumerate(network.layers, start=1)]
    x = inputs
    for place, layer in layers:
        x = layer.forward(x, training=True)
        if not is_finite(x):
            return f"the output of {place}"
    if not is_finite(loss.forward(x, labels)):
        return "the loss"
    dy = loss.backward()
    for place, layer in reversed(layers):
        dy = layer.backward(dy)
        for key, gradient in layer.grads.items():
            if not is_finite(gradient):
                return f"the gradient of {names[id(layer.params[key])]} in {place}"
        # The gradient of the first layer's inputs is not computed in a step.
        if layer is not network.layers[0] and not is_finite(dy):
            return f"the gradient at the inputs of {place}"
    return None


def is_finite(x: Array) -> bool:
    """Return whether all numbers of an array are finite; waits for the device."""
    xp = namespace_of(x, "is_finite")
    return bool(xp.all(xp.isfinite(x)))
