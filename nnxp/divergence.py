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

    def bring_back(self) -> None:
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


def numbers(network: Sequential, optimizer: Optimizer) -> list[Array]:
    """Return all arrays that a training goes on from, and that must stay finite."""
    state = optimizer.state.values()
    return [*network.parameters().values(), *(x for kept in state for x in kept.values())]


def first_not_finite(network: Sequential, loss: Loss, inputs: Array, labels: Array) -> str:
    """Name the first thing in a training step that holds a number which is not finite.

    Parameters
    ----------
    network : Sequential
        Its parameters are left alone.
    loss : Loss
    inputs, labels : array
        One batch, on the network's device.

    Returns
    -------
    str
        The output of a layer, the loss, the gradient of a parameter or at a layer's inputs; or,
        where all of these are finite, the step itself.
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
        if not is_finite(dy):
            return f"the gradient at the inputs of {place}"
    return "what the optimizer made of finite gradients"


def is_finite(x: Array) -> bool:
    """Tell whether all numbers of an array are finite; it waits for the device."""
    xp = array_library(x, "is_finite")
    return bool(xp.all(xp.isfinite(x)))
