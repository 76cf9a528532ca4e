"""JAX: a training step compiled by `jax.jit`, as a function of parameters and state."""

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
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer

Values: TypeAlias = tuple[dict[str, Array], dict[str, dict[str, Array]]]
"""Parameters, and the optimizer's state."""


class JaxSteps(CapturedSteps):
    """Captured steps on JAX, compiled once for each batch size and data set size."""

    def __init__(
        self, network: Sequential, loss: Loss, optimizer: Optimizer, batches: Batches
    ) -> None:
        super().__init__(network, loss, optimizer, batches)
        self._traced = network.to(self._device)  # a copy, since tracing replaces its parameters
        self._values: Values | None = None  # while bound
        self._compiled: Callable[..., Values] = importlib.import_module("jax").jit(self._update)

    @contextlib.contextmanager
    def bind(self, batches: Batches) -> Iterator[Callable[[Array], None]]:
        """Provide the function that does one step; see `CapturedSteps`."""
        parameters, optimizer = self._network.parameters(), self._optimizer
        optimizer.require(parameters, parameters)
        zeros_like = self._device.xp.zeros_like
        state = {
            slot: {n: kept[n] if n in kept else zeros_like(x) for n, x in parameters.items()}
            for slot, kept in optimizer.state.items()
        }
        self._values = dict(parameters), state
        try:
            yield partial(self._step, batches.arrays)
        finally:
            self._write_back()  # whole, even if the last step was interrupted
            self._values = None
            for layer in self._network.layers:
                layer.grads.clear()

    def _step(self, examples: tuple[Array, Array], rows: Array) -> None:
        next_step = copy.copy(self._optimizer)
        next_step.steps += 1
        factors = [np.asarray(x, self._dtype) for x in next_step.factors()]
        self._values = self._compiled(self._values, factors, examples, rows)
        self._optimizer.steps = next_step.steps  # after the step, whose compilation may fail
        self._write_back()

    def _write_back(self) -> None:
        """Give network and optimizer the values of the last step, if there was one."""
        if self._values is not None and self._optimizer.steps:
            own, (parameters, state) = self._network.parameters(), self._values
            for name, x in parameters.items():
                own.place(name, x)
            for slot, kept in state.items():
                self._optimizer.state[slot].update(kept)

    def _update(
        self, values: Values, factors: list[Array], examples: tuple[Array, Array], rows: Array
    ) -> Values:
        """Return parameters and state after a step."""
        parameters, optimizer = self._traced.parameters(), copy.copy(self._optimizer)
        before = [dict(layer.params) for layer in self._traced.layers]
        optimizer.state = {slot: dict(kept) for slot, kept in values[1].items()}
        inputs, labels = (self._device.xp.take(x, rows, axis=0) for x in examples)
        x = scale_images(inputs, self._device, self._dtype)
        loss = copy.copy(self._loss)
        try:
            parameters.update(values[0])
            loss.forward(self._traced.forward(x, training=True), labels)
            self._traced.backward_parameters(loss.backward())
            for name, gradient in self._traced.gradients().items():
                optimizer._update_one(parameters, name, gradient, *factors)
            return dict(parameters), optimizer.state
        finally:  # JAX forbids traced arrays to outlive the trace
            for layer, own in zip(self._traced.layers, before, strict=True):
                layer.params.update(own)
                layer.grads.clear()
