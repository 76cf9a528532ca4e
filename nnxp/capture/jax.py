"""JAX: a training step compiled by `jax.jit`, as a function of parameters and state."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np

from nnxp.arrays import Array
from nnxp.capture.base import CapturedSteps, require_states, with_numbers
from nnxp.data.batches import Batches, prepare_batch
from nnxp.errors import DivergenceError
from nnxp.step import DoSteps, Step

Values: TypeAlias = tuple[
    dict[str, Array], dict[str, Array], dict[str, dict[str, Array]], dict[str, Array]
]
"""Parameters, the layers' state, the optimizer's state, and the sums of the metrics."""


class JaxSteps(CapturedSteps):
    """Captured steps on JAX, compiled once for each batch size and data set size."""

    def __init__(self, step: Step, batches: Batches) -> None:
        super().__init__(step, batches)
        self._traced = step.network.to(self._device)  # a copy: tracing replaces its arrays
        self._values: Values | None = None  # None while not bound
        self._stepped = False  # whether a step was done since `bind`
        self._written = True  # whether network and optimizer have the values
        self._compiled: Callable[..., Values] = importlib.import_module("jax").jit(self._update)

    @contextlib.contextmanager
    def bind(self, batches: Batches, sums: dict[str, Array]) -> Iterator[DoSteps]:
        """Provide the function that does steps; see `CapturedSteps`."""
        self._placed = self._network.arrays()  # of the layers that there are now
        (parameters, states), optimizer = self._placed, self._optimizer
        self._keep_before()
        trainable = parameters.trainable
        optimizer.require(parameters, trainable)
        zeros_like = self._device.xp.zeros_like
        state = {
            slot: {n: kept[n] if n in kept else zeros_like(x) for n, x in trainable.items()}
            for slot, kept in optimizer.state.items()
        }
        self._values = dict(parameters), dict(states), state, dict(sums)
        self._sums, self._stepped, self._written = sums, False, True
        try:
            yield partial(self._do_steps, batches)
        except DivergenceError:
            originals, optimizer.steps, optimizer.state = self._before
            for arrays, original in zip(self._placed, originals, strict=True):
                arrays.place_all(original)
            raise
        finally:
            if not self._written:  # the last step was interrupted
                self._write_back()
            self._values = None
            for layer in self._network.leaves():
                layer.grads.clear()

    def restart(self, sums: dict[str, Array]) -> None:
        """Start another epoch while bound; see `CapturedSteps`."""
        assert self._values is not None
        self._keep_before()
        self._values = *self._values[:3], dict(sums)
        self._sums = sums

    def _keep_before(self) -> None:
        """Keep the arrays that a `DivergenceError` restores; JAX's arrays never change."""
        state = {slot: dict(kept) for slot, kept in self._optimizer.state.items()}
        self._before = [dict(x) for x in self._placed], self._optimizer.steps, state

    def _holds_arrays(self) -> bool:
        if self._values is None or not self._stepped:
            return True
        parameters, states, state, _ = self._values
        return self._hold(self._placed, (parameters, states), state)

    def _do_steps(self, batches: Batches, rows: Iterable[Array]) -> None:
        for each in rows:
            self._step(batches.arrays, each)  # a stream has other arrays in each step

    def _step(self, examples: tuple[Array, ...], rows: Array) -> None:
        numbers = [np.asarray(x, self._dtype) for x in self._optimizer.numbers()]
        values = self._compiled(self._values, numbers, examples, rows)
        self._written = False
        self._values = values
        self._optimizer.steps += 1  # after the step, whose compilation may fail
        self._stepped = True
        self._write_back()

    def _write_back(self) -> None:
        """Give network and optimizer the values of the last step."""
        assert self._values is not None
        parameters, states, state, sums = self._values
        self._sums.update(sums)
        for arrays, values in zip(self._placed, (parameters, states), strict=True):
            arrays.place_all(values)
        for slot, kept in state.items():
            self._optimizer.state[slot].update(kept)
        self._written = True

    def _update(
        self, values: Values, numbers: list[Array], examples: tuple[Array, ...], rows: Array
    ) -> Values:
        """Return parameters and state after a step."""
        optimizer = with_numbers(self._optimizer, numbers)
        optimizer.state = {slot: dict(kept) for slot, kept in values[2].items()}
        step = self._whole_step.with_copies(self._traced, optimizer)
        step.sums = dict(values[3])
        own = self._traced.arrays()
        before = [dict(arrays) for arrays in own]
        try:
            for arrays, traced in zip(own, values[:2], strict=True):
                arrays.place_all(traced)
            batch = [self._device.xp.take(x, rows, axis=0) for x in examples]
            step.backpropagate(*prepare_batch(batch, self._scale, self._device, self._dtype))
            step.update(step.gradients())
            require_states(self._traced, own[1])
            return dict(own[0]), dict(own[1]), optimizer.state, step.sums
        finally:  # JAX forbids traced arrays to outlive the trace
            for arrays, kept in zip(own, before, strict=True):
                arrays.place_all(kept)
            for layer in self._traced.leaves():
                layer.grads.clear()
                layer.discard_saved()
