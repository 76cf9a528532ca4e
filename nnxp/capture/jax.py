"""Jit: a step that JAX compiles, as one function of parameters and state."""

from __future__ import annotations

import contextlib
import copy
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np

from nnxp.arrays import Array
from nnxp.capture.base import CapturedSteps
from nnxp.data.batches import Batches, scale_images
from nnxp.data.dataset import Dataset
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer

Held: TypeAlias = tuple[dict[str, Array], dict[str, dict[str, Array]]]
"""Parameters, and the optimizer's state."""


class JaxSteps(CapturedSteps):
    """CapturedSteps of a network on JAX, compiled once for each size of batch and of data set."""

    def __init__(
        self, network: Sequential, loss: Loss, optimizer: Optimizer, dataset: Dataset
    ) -> None:
        super().__init__(network, loss, optimizer, dataset)
        assert network.device is not None
        self._device = network.device
        self._twin = network.to(network.device)  # whose parameters are what JAX traces
        self._held: Held | None = None  # while steps are taken
        self._compiled = importlib.import_module("jax").jit(self._update)

    @contextlib.contextmanager
    def bind(self, batches: Batches) -> Iterator[Callable[[Array], None]]:
        """Provide what does one update; see `CapturedSteps`."""
        parameters, optimizer = self._network.parameters(), self._optimizer
        optimizer.require(parameters, parameters)
        assert batches.resident is not None
        zeros_like = self._device.xp.zeros_like
        state = {
            slot: {n: kept[n] if n in kept else zeros_like(x) for n, x in parameters.items()}
            for slot, kept in optimizer.state.items()
        }
        self._held = dict(parameters), state
        try:
            yield partial(self._step, batches.resident)
        finally:
            self._hand_over()  # all of it, wherever the last step was interrupted
            self._held = None
            for layer in self._network.layers:
                layer.grads.clear()

    def _step(self, arrays: tuple[Array, Array], rows: Array) -> None:
        ahead = copy.copy(self._optimizer)
        ahead.steps += 1
        factors = [np.asarray(x, self._network.dtype) for x in ahead.factors()]
        self._held = self._compiled(self._held, factors, arrays, rows)
        self._optimizer.steps = ahead.steps  # once it is done: compiling it may fail
        self._hand_over()

    def _hand_over(self) -> None:
        """Give network and optimizer their parameters and state, once there are any new ones."""
        if self._held is not None and self._optimizer.steps:
            own, (parameters, state) = self._network.parameters(), self._held
            for name, x in parameters.items():
                own.place(name, x)
            for slot, kept in state.items():
                self._optimizer.state[slot].update(kept)

    def _update(
        self, held: Held, factors: list[Array], arrays: tuple[Array, Array], rows: Array
    ) -> Held:
        """Return parameters and state after a step."""
        parameters, optimizer = self._twin.parameters(), copy.copy(self._optimizer)
        before = [dict(layer.params) for layer in self._twin.layers]
        optimizer.state = {slot: dict(kept) for slot, kept in held[1].items()}
        inputs, labels = (self._device.xp.take(x, rows, axis=0) for x in arrays)
        assert self._network.dtype is not None
        x = scale_images(inputs, self._device, self._network.dtype)
        loss = copy.copy(self._loss)
        try:
            parameters.update(held[0])
            loss.forward(self._twin.forward(x, training=True), labels)
            self._twin.backward_parameters(loss.backward())
            for name, gradient in self._twin.gradients().items():
                optimizer._update_one(parameters, name, gradient, *factors)
            return dict(parameters), optimizer.state
        finally:  # what JAX traces must not outlive the trace
            for layer, own in zip(self._twin.layers, before, strict=True):
                layer.params.update(own)
                layer.grads.clear()
