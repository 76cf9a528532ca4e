"""Replay: a training step as a program that reads and writes flat vectors of parameters."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np

from nnxp.arrays import Array
from nnxp.capture.base import CapturedSteps, is_elementwise, require_states, with_numbers
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.capture.ops import Buffer, Ops, Program
from nnxp.capture.program import compile_program
from nnxp.capture.recorded import Recorded
from nnxp.capture.tape import Tape
from nnxp.capture.vectors import Group, Summed
from nnxp.data.batches import Batches, prepare_batch
from nnxp.errors import DivergenceError
from nnxp.layers import Conv2D
from nnxp.optimizers import SGD
from nnxp.ranks import Share
from nnxp.step import DoSteps, Step

Arrays: TypeAlias = Mapping[str, Array]
Targets: TypeAlias = list[tuple[Array, Buffer]]

_LARGE = 1 << 12  # numbers of a matrix that gets its own call
_PART_PER_PARAMETERS = 8  # the least bytes of a part's buffers, in bytes of the parameters
_CONVOLUTIONS = 12  # times the bytes: they make many calls, on blocks that stay in the cache anyway
_MAX_PROGRAMS = 2  # programs to keep: for full batches, and for the last batch of an epoch


class Replay(CapturedSteps):
    """Captured steps as programs, one for each batch size.

    While bound, the network's parameters, its layers' state and the optimizer's state are buffers
    of the program; afterwards they are the original arrays. If the optimizer is elementwise,
    parameters and its state are views of flat vectors, so that a few calls update all.

    Parameters
    ----------
    step, batches
        As in `CapturedSteps`.
    ops : Ops, optional
        Computes the ops; NumPy by default.
    """

    def __init__(self, step: Step, batches: Batches, ops: Ops | None = None) -> None:
        super().__init__(step, batches)
        network, optimizer = step.network, step.optimizer
        self._ops = ops or NumpyOps()
        module = self._ops.module
        parameters = cast(dict[str, Buffer], dict(network.parameters()))
        trainable = network.parameters().trainable
        self._flat = is_elementwise(optimizer)
        # SGD's step of a large matrix is fused with the product that computes the gradient.
        self._ranks = step.ranks if step.ranks.size > 1 else None
        fuses = self._ops.accumulates and self._flat and type(optimizer) is SGD
        fuses = fuses and self._ranks is None  # the gradient is exchanged before the update
        separate = {
            name: module.empty_like(x)
            for name, x in parameters.items()
            if not self._flat
            or name not in trainable
            or (fuses and x.ndim == 2 and x.size >= _LARGE)
        }
        self._fused = [name for name in separate if self._flat and name in trainable]
        # One group of vectors for the parameters that decay, and one for the others.
        groups: dict[bool, dict[str, Buffer]] = defaultdict(dict)
        for name, x in parameters.items():
            if name not in separate:
                groups[optimizer.decays(name, cast(Array, x))][name] = x
        self._exchanged = Summed(network, list(groups.values()), module) if self._ranks else None
        gradients = self._exchanged.groups if self._exchanged else [None] * len(groups)
        self._groups = [
            Group(arrays, optimizer, decays, module, memory)
            for (decays, arrays), memory in zip(groups.items(), gradients, strict=True)
        ]
        if self._exchanged:  # the same views, so that no gradient is copied onto itself
            self._exchanged.views |= {
                f"gradient of {name}": x
                for group in self._groups
                for name, x in group.gradients.views.items()
            }
        self._parameter_buffers: dict[str, Buffer] = dict(separate)
        self._optimizer_buffers: dict[str, dict[str, Buffer]] = {
            slot: {}
            if self._flat
            else {name: module.zeros_like(parameters[name]) for name in trainable}
            for slot in optimizer.state
        }
        for group in self._groups:
            self._parameter_buffers |= group.parameters.views
            for slot, flat in group.state.items():
                self._optimizer_buffers[slot] |= flat.views
        self._state_buffers: dict[str, Buffer] = {
            name: module.empty_like(x) for name, x in network.states().items()
        }
        self._vectors = [
            *separate.values(),
            *(x for x in self._state_buffers.values() if x.dtype.kind == "f"),
            *(group.vector for group in self._groups),
        ]
        if not self._flat:
            self._vectors += [x for kept in self._optimizer_buffers.values() for x in kept.values()]
        self._sum_buffers: dict[str, Buffer] = {
            name: module.empty_like(x) for name, x in step.sums.items()
        }
        self._number_vector: Buffer = module.empty(len(optimizer.numbers()), self._dtype)
        self._numbers = [x.reshape(()) for x in self._number_vector.reshape(-1, 1)]
        self._update = [call for group in self._groups for call in self._compile_update(group)]
        self._programs: dict[int, BatchProgram] = {}
        self._stepped = False  # since `bind`
        self._buffers = [self._parameter_buffers, self._state_buffers]
        self._placed = network.arrays()  # hold the buffers while bound
        self._originals = [dict(arrays) for arrays in self._placed]  # the arrays while not bound
        self._left_state: dict[str, dict[str, Array]] | None = None  # at the end of the last call

    @property
    def nbytes(self) -> int:
        """The bytes of parameters, gradients, states and the programs' buffers."""
        held = [self._parameter_buffers, self._state_buffers, *self._optimizer_buffers.values()]
        held += [group.gradients.views for group in self._groups]
        buffers = sum(x.nbytes for each in held for x in each.values())
        return buffers + sum(x.nbytes for x in self._programs.values())

    @contextlib.contextmanager
    def bind(self, batches: Batches, sums: dict[str, Array]) -> Iterator[DoSteps]:
        """Provide the function that does steps; see `CapturedSteps`."""
        optimizer = self._optimizer
        self._stepped = False
        left = self._left_state
        if left is None or not self._hold(self._placed, self._originals, left):
            self._placed = self._network.arrays()
            self._originals = [dict(arrays) for arrays in self._placed]
            optimizer.require(self._placed[0], self._placed[0].trainable)
        originals = self._originals
        original_state = {slot: dict(kept) for slot, kept in optimizer.state.items()}
        self._before = optimizer.steps, original_state
        for buffers, original in zip(self._buffers, originals, strict=True):
            for name, buffer in buffers.items():
                buffer[...] = original[name]
        for slot, buffers in self._optimizer_buffers.items():
            for name, buffer in buffers.items():
                buffer[...] = original_state[slot].get(name, 0)
        try:
            self._start_sums(sums)
            for arrays, buffers in zip(self._placed, self._buffers, strict=True):
                arrays.place_all(cast(Arrays, buffers))
            for slot, buffers in self._optimizer_buffers.items():
                optimizer.state[slot].update(cast(Arrays, buffers))
            yield partial(self._do_steps, batches)
        except DivergenceError:  # the originals still hold the old numbers
            for arrays, original in zip(self._placed, originals, strict=True):
                arrays.place_all(original)
            optimizer.steps, optimizer.state = self._before
            raise
        finally:
            for arrays, buffers, original in zip(
                self._placed, self._buffers, originals, strict=True
            ):
                for name, buffer in buffers.items():
                    if arrays.get(name) is buffer:  # and not an array that other code assigned
                        original[name][...] = buffer
                        arrays.place(name, original[name])
            self._sums.update({n: cast(Array, x.copy()) for n, x in self._sum_buffers.items()})
            for slot, buffers in self._optimizer_buffers.items():
                kept, before = optimizer.state.get(slot, {}), original_state[slot]
                for name, buffer in buffers.items():
                    if kept.get(name) is not buffer:
                        continue
                    if self._stepped:
                        kept[name] = cast(Array, buffer.copy())
                    elif name in before:
                        kept[name] = before[name]
                    else:
                        del kept[name]
            self._left_state = {
                slot: dict(optimizer.state.get(slot, {})) for slot in self._optimizer_buffers
            }
            for layer in self._network.leaves():
                layer.grads.clear()

    def restart(self, sums: dict[str, Array]) -> None:
        """Start another epoch while bound; see `CapturedSteps`."""
        for buffers, original in zip(self._buffers, self._originals, strict=True):
            for name, buffer in buffers.items():
                original[name][...] = buffer
        state = {
            slot: {name: cast(Array, x.copy()) for name, x in buffers.items()}
            for slot, buffers in self._optimizer_buffers.items()
        }
        self._before = self._optimizer.steps, state
        self._start_sums(sums)

    def _start_sums(self, sums: dict[str, Array]) -> None:
        for name, buffer in self._sum_buffers.items():
            buffer[...] = sums[name]
        sums.update(cast(Arrays, self._sum_buffers))
        self._sums = sums

    def vectors(self) -> list[Array]:
        """Return the flat vectors and the buffers of single arrays; see `CapturedSteps`."""
        return cast("list[Array]", self._vectors)

    def _has_same_arrays(self, step: Step) -> bool:
        # They must be the same objects: others may overlap, or have another order in memory.
        return all(x.hold(y) for x, y in zip(self._placed, self._originals, strict=True))

    def _holds_arrays(self) -> bool:
        state = cast("Mapping[str, Arrays]", self._optimizer_buffers)
        return self._hold(self._placed, cast("list[Arrays]", self._buffers), state)

    def _do_steps(self, batches: Batches, rows: Iterable[Array]) -> None:
        for each in rows:  # a stream has other arrays in each step
            self._stepped = True
            self._step(cast("tuple[Buffer, ...]", batches.arrays), cast(Buffer, each))

    def _step(self, examples: tuple[Buffer, ...], rows: Buffer) -> None:
        program = self._program(examples, len(rows))
        self._number_vector[:] = self._optimizer.numbers()
        if self._ranks is not None:
            rows = rows[self._ranks.share(len(rows)).rows]
        for call in program.before:
            call()
        start = 0
        for part in program.parts:
            for _ in range(part.count):
                end = start + len(part.batch[0])
                part.fetch(examples, rows[start:end])
                for call in part.calls:
                    call()
                start = end
        self._optimizer.steps += 1
        for call in program.update:
            call()

    def _program(self, examples: tuple[Buffer, ...], batch_size: int) -> BatchProgram:
        """Return the program of a batch size; see `_compile`."""
        if batch_size not in self._programs:
            if len(self._programs) == _MAX_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[batch_size] = self._compile(examples, batch_size)
        return self._programs[batch_size]

    def _compile(self, examples: tuple[Buffer, ...], batch_size: int) -> BatchProgram:
        """Return the program of a step with a batch of the examples."""
        if self._ranks is not None and self._exchanged is not None:
            share, summed = self._ranks.share(batch_size), self._exchanged
            part, names, are_means = self._compile_summands(examples, share, summed)
            update = [self._exchange, *self._compile_mean_update(summed, names, are_means)]
            return self._assemble(BatchProgram([], [part], update))
        part = self._compile_whole(examples, batch_size)
        sizes = self._part_sizes(batch_size, part.nbytes)
        if not sizes:
            return self._assemble(BatchProgram([], [part], self._update))
        summands, summed = (Summed(self._network, [], self._ops.module) for _ in range(2))
        parts = []
        for rows, count in sizes.items():
            share = Share(0, rows, batch_size)
            part, names, are_means = self._compile_summands(examples, share, summands)
            tape = Tape(self._ops.whole)
            total: Any = tape.read(summed.vector)
            total = total + tape.read(summands.vector)
            self._add_program(part.calls, tape, [(total, summed.vector)])
            part.count = count
            parts.append(part)
        before = self._ops.copy(summed.vector, np.zeros((), summed.vector.dtype))
        update = self._compile_mean_update(summed, names, are_means)
        return self._assemble(BatchProgram(before, parts, update))

    def _assemble(self, program: BatchProgram) -> BatchProgram:
        """Return the program in the form that is run."""
        return program

    def _part_sizes(self, batch_size: int, nbytes: int) -> dict[int, int]:
        """Return into how many parts of how many rows to divide a batch; empty if it is not.

        The buffers of a part stay in the cache. Each part reads all parameters and adds gradients
        of their size, so its buffers should be much larger than these. Dropout and batch
        normalization keep state; layers of the user may depend on all rows in another way.
        """
        parameters = sum(x.nbytes for x in self._parameter_buffers.values())
        least = self._ops.cache_bytes
        if any(isinstance(layer, Conv2D) for layer in self._network.leaves()):
            least *= _CONVOLUTIONS
        count = min(nbytes // max(least, _PART_PER_PARAMETERS * parameters), batch_size)
        step, trainable = self._whole_step, self._network.parameters().trainable
        if step.micro_batch_size or self._state_buffers or self._contents.foreign:
            return {}
        if count < 2 or not trainable:
            return {}
        # Parts of one size need one program.
        nearby = range(max(2, 2 * count // 3), 3 * count // 2 + 1)
        equal = [n for n in nearby if batch_size % n == 0]
        count = min(equal, key=lambda n: max(n / count, count / n), default=count)
        rows = -(-batch_size // count)
        sizes = {rows: batch_size // rows, batch_size % rows: 1}
        return {rows: count for rows, count in sizes.items() if rows}

    def _compile_whole(self, examples: tuple[Buffer, ...], batch_size: int) -> BatchPart:
        """Return a step for all rows of a batch, except the update of the flat vectors."""
        tape, batch, step, states = self._backpropagated(examples, batch_size, None)
        targets: Targets = [(step.sums[name], x) for name, x in self._sum_buffers.items()]
        targets += [(states[name], x) for name, x in self._state_buffers.items()]
        targets += self._update_targets(step, tape)
        return self._part(batch, tape, targets)

    def _compile_summands(
        self, examples: tuple[Buffer, ...], share: Share, summed: Summed
    ) -> tuple[BatchPart, list[str], bool]:
        """Return the backpropagation of some rows of a batch into the views of a vector.

        Also return the names of the views, and whether the sums over all rows are means.
        """
        rows = share.rows.stop - share.rows.start
        tape, batch, step, states = self._backpropagated(examples, rows, share)
        targets: Targets = [(step.sums[name], x) for name, x in self._sum_buffers.items()]
        summands = step.summands()
        targets += [(x, summed.views[name]) for name, x in summands.items()]
        targets += [
            (states[name], x)
            for name, x in self._state_buffers.items()
            if f"change of {name}" not in summands
        ]
        return self._part(batch, tape, targets), list(summands), step.sums_are_means

    def _part(self, batch: tuple[Buffer, ...], tape: Tape, targets: Targets) -> BatchPart:
        program: Program = []
        nbytes = sum(x.nbytes for x in batch) + self._add_program(program, tape, targets)
        return BatchPart(batch, program, nbytes=nbytes)

    def _compile_mean_update(
        self, summed: Summed, names: Iterable[str], are_means: bool
    ) -> Program:
        """Return the program that divides sums by the weight if needed, and updates."""
        program: Program = []
        if not are_means:
            self._add_division(program, summed)
        tape = Tape(self._ops.whole)
        step = self._recorded(tape)
        states = step.network.states()
        step.remember_states()
        step.receive({name: tape.read(summed.views[name]) for name in names})
        targets: Targets = [(states[name], x) for name, x in self._state_buffers.items()]
        self._add_program(program, tape, targets + self._update_targets(step, tape))
        return program + self._update

    def _backpropagated(
        self, examples: tuple[Buffer, ...], rows: int, share: Share | None
    ) -> tuple[Tape, tuple[Buffer, ...], Step, Arrays]:
        """Record the backpropagation; return tape, buffers of the rows, step and states."""
        batch = tuple(self._ops.module.zeros((rows, *x.shape[1:]), x.dtype) for x in examples)
        tape = Tape(self._ops.whole)
        step = self._recorded(tape)
        states = step.network.states()
        step.sums = {name: tape.read(x) for name, x in self._sum_buffers.items()}
        inputs, labels, *weights = prepare_batch(
            [tape.read(x) for x in batch], self._scale, tape.device, self._dtype
        )
        step.backpropagate(inputs, labels, *weights, share=share)
        require_states(step.network, states)
        return tape, batch, step, states

    def _exchange(self) -> None:
        """Sum the results of the first half of a step over all ranks."""
        assert self._ranks is not None
        assert self._exchanged is not None
        self._ranks.all_reduce(self._exchanged.vector)

    def _recorded(self, tape: Tape) -> Step:
        """Return the step with a recorded network; the tape reads its numbers."""
        optimizer = with_numbers(self._optimizer, map(tape.read, self._numbers))
        step = self._whole_step.with_copies(self._network.to(tape.device), optimizer)
        for arrays, buffers in zip(step.network.arrays(), self._buffers, strict=True):
            for name, buffer in buffers.items():
                arrays.place(name, tape.read(buffer))
        return step

    def _add_program(self, program: Program, tape: Tape, targets: Targets) -> int:
        """Add the program of a tape, clear it, and return the bytes of its buffers."""
        compiled = compile_program(tape, cast(list[tuple[Recorded, Buffer]], targets), self._ops)
        program += compiled.program
        tape.clear()
        return compiled.nbytes

    def _add_division(self, program: Program, exchanged: Summed) -> None:
        """Add the program that divides sums by the weight to get means."""
        tape = Tape(self._ops.whole)
        xp, weight = tape.namespace, tape.read(exchanged.views["weight"])
        safe: Any = xp.where(weight > 0, weight, 1.0)
        summed: Any = tape.read(exchanged.summed)
        self._add_program(program, tape, [(summed / safe, exchanged.summed)])

    def _update_targets(self, step: Step, tape: Tape) -> Targets:
        """Return the targets of a step: gradients for the flat vectors, or all new numbers."""
        gradients, optimizer = step.gradients(), step.optimizer
        parameters = step.network.parameters()
        targets: Targets = []
        if self._flat:
            for group in self._groups:
                targets += [(gradients[name], x) for name, x in group.gradients.views.items()]
            for name in self._fused:
                decays = optimizer.decays(name, parameters[name])
                numbers = optimizer.numbers()
                optimizer.update_one(parameters, name, gradients[name], numbers, decays)
                targets.append((parameters[name], self._parameter_buffers[name]))
            return targets
        optimizer.state = {
            slot: {name: tape.read(x) for name, x in buffers.items()}
            for slot, buffers in self._optimizer_buffers.items()
        }
        step.update(gradients)
        targets += [(parameters[name], x) for name, x in self._parameter_buffers.items()]
        targets += [
            (optimizer.state[slot][name], x)
            for slot, buffers in self._optimizer_buffers.items()
            for name, x in buffers.items()
        ]
        return targets

    def _compile_update(self, group: Group) -> Program:
        """Return the program that updates a group's flat vectors, chunk by chunk."""
        program: Program = []
        size = self._ops.chunk
        for start in range(0, group.parameters.vector.size, size):
            chunk = slice(start, start + size)
            tape = Tape(self._ops.whole)
            optimizer = with_numbers(self._optimizer, map(tape.read, self._numbers))
            vector = group.parameters.vector[chunk]
            state = {slot: flat.vector[chunk] for slot, flat in group.state.items()}
            optimizer.state = {slot: {"vector": tape.read(x)} for slot, x in state.items()}
            parameters: dict[str, Array] = {"vector": tape.read(vector)}
            gradient = tape.read(group.gradients.vector[chunk])
            optimizer.update_one(parameters, "vector", gradient, optimizer.numbers(), group.decays)
            targets = [(parameters["vector"], vector)]
            targets += [(optimizer.state[slot]["vector"], x) for slot, x in state.items()]
            recorded = cast(list[tuple[Recorded, Buffer]], targets)
            program += compile_program(tape, recorded, self._ops).program
            tape.clear()
        return program


class BatchPart:
    """The calls for some rows of a batch.

    Attributes
    ----------
    batch : tuple of array
        The buffers of these rows.
    calls : list of callable
    count : int
        How often to do this in a step, each time with other rows.
    nbytes : int
        The bytes of all buffers, `batch` included.
    """

    def __init__(
        self, batch: tuple[Buffer, ...], calls: Program, count: int = 1, nbytes: int = 0
    ) -> None:
        self.batch, self.calls, self.count, self.nbytes = batch, calls, count, nbytes

    def fetch(self, examples: tuple[Buffer, ...], rows: Buffer) -> None:
        """Copy rows of the examples to the buffers."""
        for x, buffer in zip(examples, self.batch, strict=True):
            if x.flags.c_contiguous:
                x.take(rows, 0, buffer, "clip")  # "raise" would make a copy first
            else:  # of which `take` would copy all examples first
                buffer[...] = x[rows]


class BatchProgram:
    """A step for one batch size.

    Attributes
    ----------
    before : list of callable
        The calls before the first part.
    parts : list of BatchPart
        The whole batch, or parts of it, each of which stays in the cache.
    update : list of callable
        The calls after the last part.
    """

    parts: Sequence[BatchPart]

    def __init__(self, before: Program, parts: Sequence[BatchPart], update: Program) -> None:
        self.before, self.parts, self.update = before, parts, update

    @property
    def nbytes(self) -> int:
        """The bytes of the buffers."""
        return sum(part.nbytes for part in self.parts)
