"""Replay: a training step as a program, which reads and writes flat vectors of parameters."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import cast

from nnxp.arrays import Array
from nnxp.capture.base import CapturedSteps
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.capture.ops import Buffer, Ops, Program
from nnxp.capture.program import compile_program
from nnxp.capture.recorded import Recorded
from nnxp.capture.tape import Tape
from nnxp.data.batches import Batches, scale_images, to_device
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import SGD, Optimizer

_ALIGNMENT = 32  # numbers; each vector starts at a cache line, also on GPUs
_LARGE = 1 << 12  # numbers from which a matrix is worth a call of its own
_MAX_PROGRAMS = 2  # batch sizes whose programs are kept: an epoch's, and its last batch's


class Replay(CapturedSteps):
    """Captured steps as programs, one for each batch size.

    While bound, the network's parameters and the optimizer's state are views of flat vectors, so
    that a few calls update them all; afterwards they are separate arrays again.

    Parameters
    ----------
    network, loss, optimizer, batches
        As in `CapturedSteps`.
    ops : Ops, optional
        Computes the ops; NumPy by default.
    """

    def __init__(
        self,
        network: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        batches: Batches,
        ops: Ops | None = None,
    ) -> None:
        super().__init__(network, loss, optimizer, batches)
        self._ops = ops or NumpyOps()
        module = self._ops.module
        parameters = cast(dict[str, Buffer], dict(network.parameters()))
        # SGD's step of a large matrix is fused with the product that computes the gradient.
        self._fused: dict[str, Buffer] = {
            name: module.empty_like(x)
            for name, x in parameters.items()
            if self._ops.accumulates and type(optimizer) is SGD and x.ndim == 2 and x.size >= _LARGE
        }
        flattened = {name: x for name, x in parameters.items() if name not in self._fused}
        self._parameters, self._gradients = (_FlatArrays(flattened, module) for _ in range(2))
        self._state = {slot: _FlatArrays(flattened, module) for slot in optimizer.state}
        next_step = copy.copy(optimizer)
        next_step.steps += 1
        self._factors: list[Buffer] = [module.empty((), self._dtype) for _ in next_step.factors()]
        self._update = self._compile_update()
        self._programs: dict[int, tuple[Buffer, Buffer, Program]] = {}

    @contextlib.contextmanager
    def bind(self, batches: Batches) -> Iterator[Callable[[Array], None]]:
        """Provide the function that does one step; see `CapturedSteps`."""
        parameters, state = self._network.parameters(), self._optimizer.state
        self._optimizer.require(parameters, parameters)
        original_parameters, original_state = dict(parameters), dict(state)
        views = self._parameters.views | self._fused
        for name, x in views.items():
            x[...] = original_parameters[name]
        for slot, flat in self._state.items():
            for name, x in flat.views.items():
                x[...] = original_state[slot].get(name, 0)
        try:
            for name, x in views.items():
                parameters.place(name, x)
            state.update({slot: dict(flat.views) for slot, flat in self._state.items()})
            step = partial(self._step, *cast(tuple[Buffer, Buffer], batches.arrays))
            yield cast(Callable[[Array], None], step)
        finally:
            for name, x in views.items():
                original_parameters[name][...] = x
                parameters.place(name, original_parameters[name])
            state.update(original_state)
            if self._optimizer.steps:
                for slot, flat in self._state.items():
                    original_state[slot].update({name: x.copy() for name, x in flat.views.items()})
            for layer in self._network.layers:
                layer.grads.clear()

    def _step(self, inputs: Buffer, labels: Buffer, rows: Buffer) -> None:
        batch, batch_labels, program = self._program(inputs, labels, len(rows))
        inputs.take(rows, 0, batch, "clip")  # "raise" would make a copy first
        labels.take(rows, 0, batch_labels, "clip")
        self._optimizer.steps += 1
        for buffer, factor in zip(self._factors, self._optimizer.factors(), strict=True):
            buffer[...] = factor
        for call in program:
            call()

    def _program(
        self, inputs: Buffer, labels: Buffer, batch_size: int
    ) -> tuple[Buffer, Buffer, Program]:
        """Return the program of a batch size; see `_compile`."""
        if batch_size not in self._programs:
            if len(self._programs) == _MAX_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[batch_size] = self._compile(inputs, labels, batch_size)
        return self._programs[batch_size]

    def _compile(
        self, inputs: Buffer, labels: Buffer, batch_size: int
    ) -> tuple[Buffer, Buffer, Program]:
        """Return buffers for a batch's inputs and labels, and the program of a step with them."""
        zeros = self._ops.module.zeros
        inputs = zeros((batch_size, *inputs.shape[1:]), inputs.dtype)
        labels = zeros((batch_size, *labels.shape[1:]), labels.dtype)
        tape = Tape()
        network, loss = self._network.to(tape.device), copy.copy(self._loss)
        parameters = network.parameters()
        for name, buffer in (self._parameters.views | self._fused).items():
            parameters[name] = tape.read(buffer)
        x, y = to_device(tape.read(inputs), tape.read(labels), tape.device, self._dtype)
        x = scale_images(x, tape.device, self._dtype)
        loss.forward(network.forward(x, training=True), y)
        network.backward_parameters(loss.backward())
        gradients = network.gradients()
        targets = [(gradients[name], buffer) for name, buffer in self._gradients.views.items()]
        for name, buffer in self._fused.items():
            factors = map(tape.read, self._factors)
            self._optimizer._update_one(parameters, name, gradients[name], *factors)
            targets.append((parameters[name], buffer))
        recorded = cast(list[tuple[Recorded, Buffer]], targets)
        return inputs, labels, compile_program(tape, recorded, self._ops) + self._update

    def _compile_update(self) -> Program:
        """Return the program that updates the flat vectors, chunk by chunk."""
        program: Program = []
        size = self._ops.chunk
        for start in range(0, self._parameters.vector.size, size):
            chunk = slice(start, start + size)
            tape, optimizer = Tape(), copy.copy(self._optimizer)
            vector = self._parameters.vector[chunk]
            state = {slot: flat.vector[chunk] for slot, flat in self._state.items()}
            optimizer.state = {slot: {"all": tape.read(x)} for slot, x in state.items()}
            parameters: dict[str, Array] = {"all": tape.read(vector)}
            gradient = tape.read(self._gradients.vector[chunk])
            optimizer._update_one(parameters, "all", gradient, *map(tape.read, self._factors))
            targets = [(parameters["all"], vector)]
            targets += [(optimizer.state[slot]["all"], x) for slot, x in state.items()]
            recorded = cast(list[tuple[Recorded, Buffer]], targets)
            program += compile_program(tape, recorded, self._ops)
        return program


class _FlatArrays:
    """One vector with space for arrays like the given ones, and a view of it for each.

    Parameters
    ----------
    arrays : mapping of str to array
    module : module
        NumPy or CuPy.

    Attributes
    ----------
    vector : array
    views : dict of str to array
    """

    def __init__(self, arrays: Mapping[str, Buffer], module: ModuleType) -> None:
        sizes = [-(-x.size // _ALIGNMENT) * _ALIGNMENT for x in arrays.values()]
        dtype = next(iter(arrays.values())).dtype
        self.vector: Buffer = module.zeros(sum(sizes), dtype)  # the gaps stay 0
        self.views: dict[str, Buffer] = {}
        starts = itertools.accumulate(sizes, initial=0)
        for (name, x), start in zip(arrays.items(), starts, strict=False):
            self.views[name] = self.vector[start : start + x.size].reshape(x.shape)
