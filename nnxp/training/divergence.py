"""Divergence: what to go back to, and where the first number stands that is not finite."""

from __future__ import annotations

import functools

from nnxp.arrays import Array, array_library
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer


class Snapshot:
    """Copies of parameters and of an optimizer's state, to go back to.

    Parameters
    ----------
    network : Sequential
    optimizer : Optimizer
    """

    def __init__(self, network: Sequential, optimizer: Optimizer) -> None:
        assert network.device is not None
        self._copied = functools.partial(network.device.xp.asarray, copy=True)
        self._network, self._optimizer = network, optimizer
        self._parameters = {name: self._copied(x) for name, x in network.parameters().items()}
        self._state, self._steps = self._copies(optimizer.state), optimizer.steps

    def restore(self) -> None:
        """Bring them back, into the arrays that are there where their library lets it."""
        present = self._network.parameters()
        for name, x in self._parameters.items():
            try:
                present[name][...] = x
            except TypeError:  # it cannot be changed
                present[name] = x
        self._optimizer.state, self._optimizer.steps = self._copies(self._state), self._steps

    def _copies(self, state: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
        return {
            slot: {name: self._copied(x) for name, x in kept.items()}
            for slot, kept in state.items()
        }


def parameters_and_state(network: Sequential, optimizer: Optimizer) -> dict[str, Array]:
    """Return all arrays that must stay finite, by names such as ``W1`` and ``velocity of W1``."""
    state = {
        f"{slot} of {name}": x for slot, kept in optimizer.state.items() for name, x in kept.items()
    }
    return dict(network.parameters()) | state


def first_not_finite(network: Sequential, loss: Loss, inputs: Array, labels: Array) -> str | None:
    """Name the first thing in a forward and a backward that holds a number which is not finite.

    Parameters
    ----------
    network : Sequential
        Its parameters are left alone.
    loss : Loss
    inputs, labels : array
        One batch, on the network's device.

    Returns
    -------
    str or None
        The output of a layer, the loss, the gradient of a parameter or at a layer's inputs; None
        where all of these are finite.
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
        # A step does not compute the first layer's.
        if layer is not network.layers[0] and not is_finite(dy):
            return f"the gradient at the inputs of {place}"
    return None


def is_finite(x: Array) -> bool:
    """Tell whether all numbers of an array are finite; it waits for the device."""
    xp = array_library(x, "is_finite")
    return bool(xp.all(xp.isfinite(x)))
