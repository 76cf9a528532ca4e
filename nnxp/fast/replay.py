"""Replay: the trainer's step on NumPy, recorded from its parts and replayed over flat memory."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from nnxp.data.batches import carry
from nnxp.data.dataset import Dataset
from nnxp.fast.recording import Memory, Program, Tape
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import SGD, Optimizer

_LARGE = 1 << 12  # numbers of a matrix that is worth a call of its own
_SIZES = 2  # of batches whose recordings are kept: an epoch's, and its last one's
_CHUNK = 1 << 15  # numbers that an optimizer works through at a time, to stay in the cache


def is_replayable(network: Sequential, loss: Loss, optimizer: Optimizer) -> bool:
    """Tell whether a step of these parts is the same each time.

    It is for nnxp's own. What others do may depend on more than arrays, as a random draw does, or
    on whose parameter it is. Weights that two layers share cannot lie in two places, and in other
    than C order they would be multiplied in another order.
    """
    parts = [network, *network.layers, loss, optimizer]
    if any(type(part).__module__.partition(".")[0] != "nnxp" for part in parts):
        return False
    arrays = list(network.parameters().values())
    return all(x.flags.c_contiguous for x in arrays) and not any(
        np.may_share_memory(x, y) for x, y in itertools.combinations(arrays, 2)
    )


class Replay:
    """Steps of training, recorded once for each size of batch.

    While it runs, parameters and the optimizer's state lie in flat vectors, so that a few calls
    update them all; afterwards the network and the optimizer have them back.

    Parameters
    ----------
    network : Sequential
    loss : Loss
    optimizer : Optimizer
    dataset : Dataset
        Its dtypes and the shape of an example count; it is not kept.
    """

    def __init__(
        self, network: Sequential, loss: Loss, optimizer: Optimizer, dataset: Dataset
    ) -> None:
        parameters = dict(network.parameters())
        self._network, self._loss, self._optimizer = network, loss, optimizer
        self._recorded_for = _settings(network, loss, optimizer, dataset)
        # What plain gradient descent does to a large matrix is part of a product (see recording).
        self._alone = {
            name: np.empty_like(x)
            for name, x in parameters.items()
            if type(optimizer) is SGD and x.ndim == 2 and x.size >= _LARGE
        }
        together = {name: x for name, x in parameters.items() if name not in self._alone}
        self._parameters, self._gradients = _Flat(together), _Flat(together)
        self._state = {slot: _Flat(together) for slot in optimizer.state}
        ahead = copy.copy(optimizer)
        ahead.steps += 1
        self._factors = [np.empty((), network.dtype) for _ in ahead.factors()]
        self._update = self._record_update()
        self._programs: dict[int, tuple[Memory, Memory, Program]] = {}

    def serves(
        self, network: Sequential, loss: Loss, optimizer: Optimizer, dataset: Dataset
    ) -> bool:
        """Tell whether what was recorded holds for these."""
        return self._recorded_for == _settings(network, loss, optimizer, dataset)

    @contextlib.contextmanager
    def over(self, dataset: Dataset) -> Iterator[Callable[[Memory], None]]:
        """Provide what does one update for the examples of the given numbers."""
        parameters, state = self._network.parameters(), self._optimizer.state
        steps = self._optimizer.steps
        self._optimizer.require(parameters, parameters)
        for name, x in (self._parameters.views | self._alone).items():
            x[...] = parameters[name]
        for slot, flat in self._state.items():
            for name, x in flat.views.items():
                x[...] = state[slot].get(name, 0)
        try:
            yield partial(self._step, dataset.inputs, dataset.labels)
        finally:
            for name, x in (self._parameters.views | self._alone).items():
                parameters[name][...] = x
            if self._optimizer.steps > steps:
                for slot, flat in self._state.items():
                    state[slot].update({name: x.copy() for name, x in flat.views.items()})
            for layer in self._network.layers:
                layer.grads.clear()

    def _step(self, inputs: Memory, labels: Memory, rows: Memory) -> None:
        if len(rows) not in self._programs:
            if len(self._programs) == _SIZES:
                self._programs.pop(next(iter(self._programs)))
            self._programs[len(rows)] = self._record(inputs, labels, len(rows))
        batch, batch_labels, program = self._programs[len(rows)]
        inputs.take(rows, 0, batch, "clip")  # "raise" would make a copy on the way
        labels.take(rows, 0, batch_labels, "clip")
        self._optimizer.steps += 1
        for memory, factor in zip(self._factors, self._optimizer.factors(), strict=True):
            memory[...] = factor
        for call in program:
            call()

    def _record(self, inputs: Memory, labels: Memory, count: int) -> tuple[Memory, Memory, Program]:
        """Return memory for a batch of examples like the given, and the calls of a step with it."""
        inputs = np.zeros((count, *inputs.shape[1:]), inputs.dtype)
        labels = np.zeros((count, *labels.shape[1:]), labels.dtype)
        tape = Tape()
        network, loss = self._network.to(tape.device), copy.copy(self._loss)
        parameters = network.parameters()
        for name, x in (self._parameters.views | self._alone).items():
            parameters[name] = tape.read(x)
        assert self._network.dtype is not None
        x, y = carry(tape.read(inputs), tape.read(labels), tape.device, self._network.dtype)
        loss.forward(network.forward(x, training=True), y)
        network.parameter_gradients(loss.backward())
        gradients = network.gradients()
        targets = [(gradients[name], x) for name, x in self._gradients.views.items()]
        for name, x in self._alone.items():
            factors = map(tape.read, self._factors)
            self._optimizer._update_one(parameters, name, gradients[name], *factors)
            targets.append((parameters[name], x))
        return inputs, labels, tape.compile(targets) + self._update

    def _record_update(self) -> Program:
        """Return what updates the flat vectors, one chunk after the other."""
        program: Program = []
        for start in range(0, self._parameters.memory.size, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            tape, optimizer = Tape(), copy.copy(self._optimizer)
            state = {slot: flat.memory[chunk] for slot, flat in self._state.items()}
            optimizer.state = {slot: {"all": tape.read(x)} for slot, x in state.items()}
            parameters = {"all": tape.read(self._parameters.memory[chunk])}
            gradient = tape.read(self._gradients.memory[chunk])
            optimizer._update_one(parameters, "all", gradient, *map(tape.read, self._factors))
            program += tape.compile(
                [(parameters["all"], self._parameters.memory[chunk])]
                + [(optimizer.state[slot]["all"], x) for slot, x in state.items()]
            )
        return program


def _settings(
    network: Sequential, loss: Loss, optimizer: Optimizer, dataset: Dataset
) -> list[tuple[Any, Any]]:
    """Return what a recording holds fast: the parts, their numbers, shapes and dtypes."""
    arrays = [*network.parameters().values(), dataset.inputs[:0], dataset.labels[:0]]
    changing = {"steps": None, "_learning_rate": None}  # read anew at each step
    own = [(part, vars(part)) for part in (network, *network.layers, loss)]
    return [(x.shape, x.dtype) for x in arrays] + [
        (id(part), {k: v for k, v in kept.items() if isinstance(v, (int, float, str, np.generic))})
        for part, kept in [*own, (optimizer, vars(optimizer) | changing)]
    ]


class _Flat:
    """Memory for arrays like the given ones in one vector, and a view for each name."""

    def __init__(self, arrays: Mapping[str, Memory]) -> None:
        self.memory = np.concatenate([x.ravel() for x in arrays.values()])
        ends = list(itertools.accumulate(x.size for x in arrays.values()))
        parts = np.split(self.memory, ends[:-1])
        self.views = {
            name: part.reshape(x.shape)
            for (name, x), part in zip(arrays.items(), parts, strict=True)
        }
