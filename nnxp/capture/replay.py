"""Replay: a training step as a program that is run for each batch."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from nnxp.arrays import Array
from nnxp.capture.base import CapturedSteps
from nnxp.capture.batch_compiler import Arrays, BatchCompiler
from nnxp.capture.batch_program import BatchProgram, ThreadProgram
from nnxp.capture.memory import StepMemory
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.capture.ops import Buffer, Ops
from nnxp.data.batches import Batches
from nnxp.devices.threads import limit_blas_threads
from nnxp.errors import DivergenceError
from nnxp.step import DoSteps, Step

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_MAX_PROGRAMS = 2  # programs to keep: for full batches, and for the last batch of an epoch


class Replay(CapturedSteps):
    """Captured steps as programs, one for each batch size.

    While bound, the network's parameters, its layers' state and the optimizer's state are buffers
    of the program; afterwards they are the original arrays.

    Parameters
    ----------
    step, batches
        As in `CapturedSteps`.
    ops : Ops, optional
        Computes the ops; NumPy by default.
    """

    def __init__(self, step: Step, batches: Batches, ops: Ops | None = None) -> None:
        super().__init__(step, batches)
        self._ops = ops or NumpyOps()
        self._ranks = step.ranks if step.ranks.size > 1 else None
        self._memory = memory = StepMemory(step, self._dtype, self._ops)
        self._compiler = BatchCompiler(
            step, batches, self._ops, memory, divides=not self._contents.foreign
        )
        self._programs: dict[int, BatchProgram] = {}
        self._thread_count = 1  # the most threads of a step
        self._pool: ThreadPoolExecutor | None = None  # their other threads, while bound
        self._pool_process = 0
        self._stepped = False  # since `bind`
        self._buffers = [memory.parameters, memory.states]
        self._placed = self._network.arrays()  # hold the buffers while bound
        self._originals = [dict(arrays) for arrays in self._placed]  # the arrays while not bound
        self._left_state: dict[str, dict[str, Array]] | None = None  # at the end of the last call

    @property
    def nbytes(self) -> int:
        """The bytes of parameters, gradients, states and the programs' buffers."""
        return self._memory.nbytes + sum(x.nbytes for x in self._programs.values())

    @contextlib.contextmanager
    def bind(self, batches: Batches, sums: dict[str, Array]) -> Iterator[DoSteps]:
        """Provide the function that does steps; see `CapturedSteps`."""
        if self._thread_count != self._ops.thread_count():
            self._thread_count = self._ops.thread_count()
            self._programs.clear()
        try:
            with self._hold_buffers(sums):
                yield partial(self._do_steps, batches)
        finally:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    @contextlib.contextmanager
    def _hold_buffers(self, sums: dict[str, Array]) -> Iterator[None]:
        """Let network and optimizer hold the buffers, then their own arrays again."""
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
        for slot, buffers in self._memory.optimizer.items():
            for name, buffer in buffers.items():
                buffer[...] = original_state[slot].get(name, 0)
        try:
            self._start_sums(sums)
            for arrays, buffers in zip(self._placed, self._buffers, strict=True):
                arrays.place_all(cast(Arrays, buffers))
            for slot, buffers in self._memory.optimizer.items():
                optimizer.state[slot].update(cast(Arrays, buffers))
            yield
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
            self._sums.update({n: cast(Array, x.copy()) for n, x in self._memory.sums.items()})
            for slot, buffers in self._memory.optimizer.items():
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
                slot: dict(optimizer.state.get(slot, {})) for slot in self._memory.optimizer
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
            for slot, buffers in self._memory.optimizer.items()
        }
        self._before = self._optimizer.steps, state
        self._start_sums(sums)

    def _start_sums(self, sums: dict[str, Array]) -> None:
        for name, buffer in self._memory.sums.items():
            buffer[...] = sums[name]
        sums.update(cast(Arrays, self._memory.sums))
        self._sums = sums

    def vectors(self) -> list[Array]:
        """Return the flat vectors and the buffers of single arrays; see `CapturedSteps`."""
        return cast("list[Array]", self._memory.vectors)

    def _has_same_arrays(self, step: Step) -> bool:
        # They must be the same objects: others may overlap, or have another order in memory.
        return all(x.hold(y) for x, y in zip(self._placed, self._originals, strict=True))

    def _holds_arrays(self) -> bool:
        state = cast("Mapping[str, Arrays]", self._memory.optimizer)
        return self._hold(self._placed, cast("list[Arrays]", self._buffers), state)

    def _do_steps(self, batches: Batches, rows: Iterable[Array]) -> None:
        for each in rows:  # a stream has other arrays in each step
            self._stepped = True
            self._step(cast("tuple[Buffer, ...]", batches.arrays), cast(Buffer, each))

    def _step(self, examples: tuple[Buffer, ...], rows: Buffer) -> None:
        program = self._program(examples, len(rows))
        self._memory.number_vector[:] = self._optimizer.numbers()
        if self._ranks is not None:
            rows = rows[self._ranks.share(len(rows)).rows]
        if len(program.threads) == 1:
            program.threads[0].run(examples, rows)
        else:
            self._run_threads(program.threads, examples, rows)
        self._optimizer.steps += 1
        for call in program.update:
            call()

    def _run_threads(
        self, threads: Sequence[ThreadProgram], examples: tuple[Buffer, ...], rows: Buffer
    ) -> None:
        """Run the programs at once, each in its own thread with one BLAS thread."""
        from concurrent.futures import Future, ThreadPoolExecutor, wait

        if self._pool is None or self._pool_process != os.getpid():  # a child lacks the threads
            self._pool, self._pool_process = ThreadPoolExecutor(self._thread_count), os.getpid()
        ends = itertools.accumulate((thread.rows for thread in threads), initial=0)
        shares = (rows[start:end] for start, end in itertools.pairwise(ends))
        first, *others = (
            partial(thread.run, examples, share)
            for thread, share in zip(threads, shares, strict=True)
        )
        here, started = [first], list[Future[None]]()
        with limit_blas_threads(0):
            try:
                for each in others:
                    try:  # in this context, which has NumPy's settings for errors
                        started.append(self._pool.submit(contextvars.copy_context().run, each))
                    except RuntimeError as error:
                        if "shutdown" not in str(error):
                            raise
                        here.append(each)  # Python is ending, and a pool starts nothing more
                for each in here:
                    each()
            finally:
                wait(started)  # they write to the buffers
        for future in started:
            future.result()  # raises its error

    def _program(self, examples: tuple[Buffer, ...], batch_size: int) -> BatchProgram:
        """Return the program of a batch size."""
        if batch_size not in self._programs:
            if len(self._programs) == _MAX_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            program = self._compiler.compile(examples, batch_size, self._thread_count)
            self._programs[batch_size] = self._assemble(program)
        return self._programs[batch_size]

    def _assemble(self, program: BatchProgram) -> BatchProgram:
        """Return the program in the form that is run."""
        return program
