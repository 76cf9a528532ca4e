"""Batch compiler: compiles a step for a batch size to calls that read and write a step's memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

import numpy as np

from nnxp.arrays import Array
from nnxp.capture.base import require_states, with_numbers
from nnxp.capture.batch_program import BatchPart, BatchProgram, ThreadProgram
from nnxp.capture.memory import StepMemory
from nnxp.capture.ops import Buffer, Ops, Program
from nnxp.capture.program import compile_program
from nnxp.capture.recorded import Recorded
from nnxp.capture.tape import Tape
from nnxp.capture.vectors import Group, Summed
from nnxp.data.batches import Batches, prepare_batch
from nnxp.devices.threads import suits_one_thread
from nnxp.layers import Conv2D
from nnxp.ranks import Share
from nnxp.step import Step

Arrays: TypeAlias = Mapping[str, Array]
Targets: TypeAlias = list[tuple[Array, Buffer]]

_PART_PER_PARAMETERS = 8  # the least bytes of a part's buffers, in bytes of the parameters
_THREAD_BYTES = 1 << 20  # the least bytes of a thread's buffers: a millisecond of work
_THREAD_PER_PARAMETERS = 2  # likewise, in bytes of the parameters
_CONVOLUTIONS = 12  # times the bytes: they make many calls, on blocks that stay in the cache anyway


class BatchCompiler:
    """Compiles a step for each batch size.

    Parameters
    ----------
    step : Step
    batches : Batches
        Gives the dtype and the scale.
    ops : Ops
        Computes the ops.
    memory : StepMemory
    divides : bool
        Whether a batch may be computed in parts.
    """

    def __init__(
        self, step: Step, batches: Batches, ops: Ops, memory: StepMemory, *, divides: bool
    ) -> None:
        self._step, self._ops, self._memory, self._divides = step, ops, memory, divides
        self._dtype, self._scale = batches.dtype, batches.dataset.scale
        self._parameter_bytes = sum(x.nbytes for x in memory.parameters.values())
        self._update = [call for group in memory.groups for call in self._compile_update(group)]

    def compile(
        self, examples: tuple[Buffer, ...], batch_size: int, max_threads: int
    ) -> BatchProgram:
        """Return the program of a step with a batch of the examples."""
        memory = self._memory
        if memory.exchanged:
            share = self._step.ranks.share(batch_size)
            part, names, are_means = self._compile_summands(
                examples, share, memory.exchanged, memory.sums
            )
            update: Program = [self.exchange]
            update += self._compile_mean_update(memory.exchanged, names, are_means)
            return BatchProgram([ThreadProgram([], [part])], update)
        whole = self._compile_whole(examples, batch_size)
        largest = self._step.network.work(tuple(examples[0].shape[1:])).multiplications
        most = 1 if suits_one_thread(batch_size * largest) else max_threads
        count = self._thread_count(batch_size, whole.nbytes, most)
        rows_of = [batch_size // count + (i < batch_size % count) for i in range(count)]
        sizes = [self._part_sizes(n, whole.nbytes * n // batch_size) for n in rows_of]
        if sizes == [{batch_size: 1}]:
            return BatchProgram([ThreadProgram([], [whole])], self._update)
        module = self._ops.module
        summed = [Summed(self._step.network, [], module) for _ in range(count)]
        sums = [{name: module.zeros_like(x) for name, x in memory.sums.items()} for _ in summed]
        threads = []
        for each in zip(sizes, summed, sums, strict=True):
            thread, names, are_means = self._compile_thread(examples, batch_size, *each)
            threads.append(thread)
        update = []
        self._add_sum(update, [x.vector for x in summed], summed[0].vector)
        for name, x in memory.sums.items():
            self._add_sum(update, [x, *(own[name] for own in sums)], x)
        update += self._compile_mean_update(summed[0], names, are_means)
        return BatchProgram(threads, update)

    def _compile_thread(
        self,
        examples: tuple[Buffer, ...],
        batch_size: int,
        sizes: dict[int, int],
        summed: Summed,
        sums: dict[str, Buffer],
    ) -> tuple[ThreadProgram, list[str], bool]:
        """Return the backpropagation of the rows of one thread, in parts of these sizes.

        The other results are as in `_compile_summands`.
        """
        several = list(sizes.values()) != [1]
        summands = Summed(self._step.network, [], self._ops.module) if several else summed
        before: Program = []
        for x in (*sums.values(), *([summed.vector] if several else [])):
            before += self._ops.copy(x, np.zeros((), x.dtype))
        parts = []
        for rows, count in sizes.items():
            share = Share(0, rows, batch_size)
            part, names, are_means = self._compile_summands(examples, share, summands, sums)
            if several:
                self._add_sum(part.calls, [summed.vector, summands.vector], summed.vector)
            part.count = count
            parts.append(part)
        own = [summed.vector, *sums.values(), *([summands.vector] if several else [])]
        program = ThreadProgram(before, parts, sum(x.nbytes for x in own))
        return program, names, are_means

    def _thread_count(self, batch_size: int, nbytes: int, most: int) -> int:
        """Return how many threads divide a batch.

        Each of them computes gradients of the parameters' size, which are added up.
        """
        if not self._is_divisible():
            return 1
        least = max(_THREAD_BYTES, _THREAD_PER_PARAMETERS * self._parameter_bytes)
        return max(1, min(most, batch_size, nbytes // least))

    def _is_divisible(self) -> bool:
        """Return whether the gradients of a batch may be computed in parts.

        Dropout and batch normalization keep state; layers of the user may depend on all rows in
        another way.
        """
        if self._step.micro_batch_size or self._memory.states or not self._divides:
            return False
        return bool(self._step.network.parameters().trainable)

    def _part_sizes(self, batch_size: int, nbytes: int) -> dict[int, int]:
        """Return into how many parts of how many rows to divide the rows of a thread.

        The buffers of a part stay in the cache. Each part reads all parameters and adds gradients
        of their size, so its buffers should be much larger than these.
        """
        least = self._ops.cache_bytes
        if any(isinstance(layer, Conv2D) for layer in self._step.network.leaves()):
            least *= _CONVOLUTIONS
        count = min(nbytes // max(least, _PART_PER_PARAMETERS * self._parameter_bytes), batch_size)
        if count < 2 or not self._is_divisible():
            return {batch_size: 1}
        # Parts of one size need one program.
        nearby = range(max(2, 2 * count // 3), 3 * count // 2 + 1)
        equal = [n for n in nearby if batch_size % n == 0]
        count = min(equal, key=lambda n: max(n / count, count / n), default=count)
        rows = -(-batch_size // count)
        sizes = {rows: batch_size // rows, batch_size % rows: 1}
        return {rows: count for rows, count in sizes.items() if rows}

    def _compile_whole(self, examples: tuple[Buffer, ...], batch_size: int) -> BatchPart:
        """Return a step for all rows of a batch, except the update of the flat vectors."""
        sums = self._memory.sums
        tape, batch, step, states = self._backpropagated(examples, batch_size, None, sums)
        targets: Targets = [(step.sums[name], x) for name, x in sums.items()]
        targets += [(states[name], x) for name, x in self._memory.states.items()]
        targets += self._update_targets(step, tape)
        return self._part(batch, tape, targets)

    def _compile_summands(
        self,
        examples: tuple[Buffer, ...],
        share: Share,
        summed: Summed,
        sums: dict[str, Buffer],
    ) -> tuple[BatchPart, list[str], bool]:
        """Return the backpropagation of some rows of a batch into the views of a vector.

        It adds the loss and the metrics to `sums`. Also return the names of the views, and whether
        the sums over all rows are means.
        """
        rows = share.rows.stop - share.rows.start
        tape, batch, step, states = self._backpropagated(examples, rows, share, sums)
        targets: Targets = [(step.sums[name], x) for name, x in sums.items()]
        summands = step.summands()
        targets += [(x, summed.views[name]) for name, x in summands.items()]
        targets += [
            (states[name], x)
            for name, x in self._memory.states.items()
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
        targets: Targets = [(states[name], x) for name, x in self._memory.states.items()]
        self._add_program(program, tape, targets + self._update_targets(step, tape))
        return program + self._update

    def _backpropagated(
        self,
        examples: tuple[Buffer, ...],
        rows: int,
        share: Share | None,
        sums: dict[str, Buffer],
    ) -> tuple[Tape, tuple[Buffer, ...], Step, Arrays]:
        """Record the backpropagation; return tape, buffers of the rows, step and states."""
        batch = tuple(self._ops.module.zeros((rows, *x.shape[1:]), x.dtype) for x in examples)
        tape = Tape(self._ops.whole)
        step = self._recorded(tape)
        states = step.network.states()
        step.sums = {name: tape.read(x) for name, x in sums.items()}
        inputs, labels, *weights = prepare_batch(
            [tape.read(x) for x in batch], self._scale, tape.device, self._dtype
        )
        step.backpropagate(inputs, labels, *weights, share=share)
        require_states(step.network, states)
        return tape, batch, step, states

    def exchange(self) -> None:
        """Sum the results of the first half of a step over all ranks."""
        assert self._memory.exchanged is not None
        self._step.ranks.all_reduce(self._memory.exchanged.vector)

    def _recorded(self, tape: Tape) -> Step:
        """Return the step with a recorded network; the tape reads its numbers."""
        memory = self._memory
        optimizer = with_numbers(self._step.optimizer, map(tape.read, memory.numbers))
        step = self._step.with_copies(self._step.network.to(tape.device), optimizer)
        buffers_of_all = (memory.parameters, memory.states)
        for arrays, buffers in zip(step.network.arrays(), buffers_of_all, strict=True):
            for name, buffer in buffers.items():
                arrays.place(name, tape.read(buffer))
        return step

    def _add_program(self, program: Program, tape: Tape, targets: Targets) -> int:
        """Add the program of a tape, clear it, and return the bytes of its buffers."""
        compiled = compile_program(tape, cast(list[tuple[Recorded, Buffer]], targets), self._ops)
        program += compiled.program
        tape.clear()
        return compiled.nbytes

    def _add_sum(self, program: Program, terms: list[Buffer], out: Buffer) -> None:
        """Add the program that computes the sum of arrays."""
        tape = Tape(self._ops.whole)
        total: Any = tape.read(terms[0])
        for x in terms[1:]:
            total = total + tape.read(x)
        self._add_program(program, tape, [(total, out)])

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
        if self._memory.is_flat:
            for group in self._memory.groups:
                targets += [(gradients[name], x) for name, x in group.gradients.views.items()]
            for name in self._memory.fused:
                decays = optimizer.decays(name, parameters[name])
                numbers = optimizer.numbers()
                optimizer.update_one(parameters, name, gradients[name], numbers, decays)
                targets.append((parameters[name], self._memory.parameters[name]))
            return targets
        optimizer.state = {
            slot: {name: tape.read(x) for name, x in buffers.items()}
            for slot, buffers in self._memory.optimizer.items()
        }
        step.update(gradients)
        targets += [(parameters[name], x) for name, x in self._memory.parameters.items()]
        targets += [
            (optimizer.state[slot][name], x)
            for slot, buffers in self._memory.optimizer.items()
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
            optimizer = with_numbers(self._step.optimizer, map(tape.read, self._memory.numbers))
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
