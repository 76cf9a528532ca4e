"""Replay: the trainer's step, recorded from its parts and replayed over flat memory."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from nnxp.capture.base import CapturedSteps
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.capture.ops import Buffer, Ops, Program
from nnxp.capture.program import compile_program
from nnxp.capture.tape import Tape
from nnxp.data.batches import Batches, scale_images, to_device
from nnxp.data.dataset import Dataset
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import SGD, Optimizer

_ALIGNED = 32  # numbers between the starts of two vectors: whole cache lines, as GPUs like it
_LARGE = 1 << 12  # numbers of a matrix that is worth a call of its own
_SIZES = 2  # of batches whose recordings are kept: an epoch's, and its last one's


class Replay(CapturedSteps):
    """CapturedSteps of training, recorded once for each size of batch.

    While it runs, the network's parameters and the optimizer's state are views of flat vectors, so
    that a few calls update them all; afterwards they are arrays of their own again.

    Parameters
    ----------
    network, loss, optimizer, dataset
        As in `CapturedSteps`.
    ops : Ops, optional
        Does the calls; NumPy by default.
    """

    def __init__(
        self,
        network: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        dataset: Dataset,
        ops: Ops | None = None,
    ) -> None:
        super().__init__(network, loss, optimizer, dataset)
        self._ops = ops or NumpyOps()
        module = self._ops.module
        parameters = dict(network.parameters())
        # What plain gradient descent does to a large matrix is part of a product (see recording).
        self._fused = {
            name: module.empty_like(x)
            for name, x in parameters.items()
            if self._ops.accumulates and type(optimizer) is SGD and x.ndim == 2 and x.size >= _LARGE
        }
        flattened = {name: x for name, x in parameters.items() if name not in self._fused}
        self._parameters, self._gradients = (_Flat(flattened, module) for _ in range(2))
        self._state = {slot: _Flat(flattened, module) for slot in optimizer.state}
        ahead = copy.copy(optimizer)
        ahead.steps += 1
        self._factors = [module.empty((), network.dtype) for _ in ahead.factors()]
        self._update = self._record_update()
        self._programs: dict[int, tuple[Buffer, Buffer, Program]] = {}

    @contextlib.contextmanager
    def bind(self, batches: Batches) -> Iterator[Callable[[Buffer], None]]:
        """Provide what does one update; see `CapturedSteps`."""
        arrays = batches.resident or (batches.dataset.inputs, batches.dataset.labels)
        parameters, state = self._network.parameters(), self._optimizer.state
        self._optimizer.require(parameters, parameters)
        views, original_parameters, kept = (
            self._parameters.views | self._fused,
            dict(parameters),
            dict(state),
        )
        for name, x in views.items():
            x[...] = original_parameters[name]
        for slot, flat in self._state.items():
            for name, x in flat.views.items():
                x[...] = kept[slot].get(name, 0)
        try:
            for name, x in views.items():
                parameters.place(name, x)
            state.update({slot: dict(flat.views) for slot, flat in self._state.items()})
            yield partial(self._step, *arrays)
        finally:
            for name, x in views.items():
                original_parameters[name][...] = x
                parameters.place(name, original_parameters[name])
            state.update(kept)
            if self._optimizer.steps:
                for slot, flat in self._state.items():
                    kept[slot].update({name: x.copy() for name, x in flat.views.items()})
            for layer in self._network.layers:
                layer.grads.clear()

    def _step(self, inputs: Buffer, labels: Buffer, rows: Buffer) -> None:
        batch, batch_labels, program = self._program(inputs, labels, len(rows))
        inputs.take(rows, 0, batch, "clip")  # "raise" would make a copy on the way
        labels.take(rows, 0, batch_labels, "clip")
        self._optimizer.steps += 1
        for memory, factor in zip(self._factors, self._optimizer.factors(), strict=True):
            memory[...] = factor
        for call in program:
            call()

    def _program(
        self, inputs: Buffer, labels: Buffer, count: int
    ) -> tuple[Buffer, Buffer, Program]:
        """Return what `_record` does, from the last time if it is kept."""
        if count not in self._programs:
            if len(self._programs) == _SIZES:
                self._programs.pop(next(iter(self._programs)))
            self._programs[count] = self._record(inputs, labels, count)
        return self._programs[count]

    def _record(self, inputs: Buffer, labels: Buffer, count: int) -> tuple[Buffer, Buffer, Program]:
        """Return memory for a batch of examples like the given, and the calls of a step with it."""
        zeros = self._ops.module.zeros
        inputs = zeros((count, *inputs.shape[1:]), inputs.dtype)
        labels = zeros((count, *labels.shape[1:]), labels.dtype)
        tape = Tape()
        network, loss = self._network.to(tape.device), copy.copy(self._loss)
        parameters = network.parameters()
        for name, x in (self._parameters.views | self._fused).items():
            parameters[name] = tape.read(x)
        assert self._network.dtype is not None
        x, y = to_device(tape.read(inputs), tape.read(labels), tape.device, self._network.dtype)
        x = scale_images(x, tape.device, self._network.dtype)
        loss.forward(network.forward(x, training=True), y)
        network.backward_parameters(loss.backward())
        gradients = network.gradients()
        targets = [(gradients[name], x) for name, x in self._gradients.views.items()]
        for name, x in self._fused.items():
            factors = map(tape.read, self._factors)
            self._optimizer._update_one(parameters, name, gradients[name], *factors)
            targets.append((parameters[name], x))
        return inputs, labels, compile_program(tape, targets, self._ops) + self._update

    def _record_update(self) -> Program:
        """Return what updates the flat vectors, one chunk after the other."""
        program: Program = []
        size = self._ops.chunk
        for start in range(0, self._parameters.memory.size, size):
            chunk = slice(start, start + size)
            tape, optimizer = Tape(), copy.copy(self._optimizer)
            state = {slot: flat.memory[chunk] for slot, flat in self._state.items()}
            optimizer.state = {slot: {"all": tape.read(x)} for slot, x in state.items()}
            parameters = {"all": tape.read(self._parameters.memory[chunk])}
            gradient = tape.read(self._gradients.memory[chunk])
            optimizer._update_one(parameters, "all", gradient, *map(tape.read, self._factors))
            targets = [(parameters["all"], self._parameters.memory[chunk])]
            targets += [(optimizer.state[slot]["all"], x) for slot, x in state.items()]
            program += compile_program(tape, targets, self._ops)
        return program


class _Flat:
    """Buffer for arrays like the given ones in one vector, and a view for each name."""

    def __init__(self, arrays: Mapping[str, Buffer], module: Any) -> None:
        sizes = [-(-x.size // _ALIGNED) * _ALIGNED for x in arrays.values()]
        dtype = next(iter(arrays.values())).dtype
        self.memory = module.zeros(sum(sizes), dtype)  # what lies between stays 0
        self.views = {}
        for (name, x), end in zip(arrays.items(), itertools.accumulate(sizes), strict=True):
            start = end - -(-x.size // _ALIGNED) * _ALIGNED
            self.views[name] = self.memory[start : start + x.size].reshape(x.shape)
