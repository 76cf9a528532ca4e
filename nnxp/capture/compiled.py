"""Compiled steps: a program as machine code; NumPy computes only ops without a kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby, islice
from typing import Any, cast

import numpy as np

from nnxp.arrays import Array
from nnxp.capture.batch_program import BatchPart, BatchProgram, ThreadProgram
from nnxp.capture.blas import product_address
from nnxp.capture.llvm import Function, Section, compile_kernels
from nnxp.capture.llvm_kernels import (
    ArgmaxKernel,
    CopyKernel,
    GatherKernel,
    Kernel,
    LoopKernel,
    ProductKernel,
    ReductionKernel,
    leading_dimension,
)
from nnxp.capture.llvm_ops import is_plain, suits
from nnxp.capture.loops import Loop
from nnxp.capture.numpy_images import Block, Windows
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.capture.ops import Buffer, Program, add_product, subtract_product
from nnxp.capture.recorded import Recorded
from nnxp.capture.replay import Replay
from nnxp.capture.tape import Op
from nnxp.data.batches import Batches
from nnxp.data.stream import BatchStream
from nnxp.step import Step

_MAX_STEPS = 64  # of one call
# The bytes of buffers of all steps of a call. A call cannot be interrupted, and takes some ms.
_CALL_BYTES = 1 << 24


class CompiledOps(NumpyOps):
    """Computes ops by compiled loops and by BLAS, and others with NumPy."""

    chunk = sys.maxsize  # one pass
    block_bytes = 1 << 18  # short calls cost less here, and more stays in the cache

    fuses_loops = True

    def suits_loop(self, op: Op) -> bool:
        """Return whether an op can be part of a loop."""
        return suits(op)

    def lower_loop(self, loop: Loop, arrays: dict[Recorded, Buffer]) -> Program:
        """Return the kernel of a loop."""
        return [LoopKernel(loop, arrays)]

    def copy(self, out: Buffer, x: Any) -> Program:
        """Return the kernel that computes ``out[...] = x``."""
        x = np.asarray(x)
        if x.dtype != out.dtype or not (is_plain(x) and is_plain(out)):
            return super().copy(out, x)
        return [CopyKernel(out, np.broadcast_to(x, out.shape))]

    def add_columns(self, windows: Windows, block: Block, images: Buffer) -> Program:
        """Return the kernel that adds a block's columns to the windows of padded images."""
        if not is_plain(images):
            return super().add_columns(windows, block, images)
        places = windows.windows(images)[:, :, :, *block[:3]]
        return [CopyKernel(places, windows.parts(block), added=True)]

    def lower(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], out: Buffer
    ) -> Program:
        """Return the kernels, or the calls, that compute an op."""
        kernel: Kernel | None = None
        if function in (np.sum, np.max, np.mean, np.all) and len(args) == 1:
            if kwargs.keys() <= {"axis", "keepdims"} and args[0].dtype == out.dtype:
                kernel = _reduction(function, args[0], kwargs.get("axis"), out)
        elif function is np.argmax and len(args) == 1 and isinstance(kwargs.get("axis"), int):
            x, axis = args[0], kwargs["axis"]
            if x.dtype in (np.float32, np.float64) and x.shape[axis]:
                kernel = ArgmaxKernel(x, axis, out)
        elif function is np.matmul:
            kernel = _product(out, *args, kept=False)
        elif function is add_product:
            row, *factors = args
            kernel = _product(out, *factors, kept=True)
            if kernel is not None:
                return [*([] if row is out else self.copy(out, row)), kernel]
        elif function is subtract_product and args[0] is out:
            kernel = _product(out, *args[2:], kept=True, subtracted=args[1])
        if kernel is None:
            return super().lower(function, args, kwargs, out)
        return [kernel]


class _CompiledPart(BatchPart):
    """A part whose first kernel copies its rows from the examples.

    Attributes
    ----------
    gather : GatherKernel
    """

    def __init__(self, part: BatchPart, numbers: Buffer, steps: int) -> None:
        super().__init__(part.batch, part.calls, part.count, part.nbytes)
        self.gather = GatherKernel(part.batch, numbers, steps * part.count)
        self.calls = [self.gather, *part.calls]
        self._numbers = numbers

    def fetch(self, examples: tuple[Buffer, ...], rows: Buffer) -> None:
        """Set the rows of the examples that the calls copy."""
        examples, rows = _as_read(examples, rows)
        cast(Function, self.calls[0]).place(examples)
        gather = self.gather
        gather.indices[0], gather.numbers[0], gather.done[0] = rows, self._numbers, 0


class _CompiledThread(ThreadProgram):
    """The calls of one thread, as one function if that is possible.

    Attributes
    ----------
    function : Function or None
        Does all calls; None if there are others than kernels, or if it is not made yet.
    """

    parts: Sequence[_CompiledPart]

    def __init__(self, thread: ThreadProgram, numbers: Buffer, steps: int) -> None:
        parts = [_CompiledPart(part, numbers, steps) for part in thread.parts]
        super().__init__(thread.before, parts)
        self.nbytes = thread.nbytes
        self.function: Function | None = None
        self._numbers = numbers

    def compile(self, update: Program) -> Program:
        """Join the calls and an update after them; return the calls that remain of the update."""
        sections = [(1, self.before), *((x.count, x.calls) for x in self.parts), (1, update)]
        if all(isinstance(call, Kernel) for _, calls in sections for call in calls):
            self.function = compile_kernels(*cast(list[Section], sections))
            return []
        if not self.before and len(self.parts) == 1:  # it is done once
            (part,) = self.parts
            part.calls = join([*part.calls, *update])
            return []
        self.before = join(self.before)
        for part in self.parts:
            part.calls = join(part.calls)
        return join(update)

    def run(self, examples: tuple[Buffer, ...], rows: Buffer) -> None:
        """Call all, for these rows of the examples."""
        if self.function is None:
            super().run(examples, rows)
            return
        examples, rows = _as_read(examples, rows)
        self.call(examples, [rows], [self._numbers])

    def call(self, examples: tuple[Buffer, ...], rows: list[Buffer], numbers: list[Any]) -> None:
        """Do a step for each of a few batches, given their rows and the optimizer's numbers."""
        assert self.function is not None
        start = 0
        for part in self.parts:
            gather, count = part.gather, part.count
            end = start + count * len(gather.indices[0])
            own = rows if len(self.parts) == 1 else [x[start:end] for x in rows]
            np.concatenate(own, out=gather.indices[: len(rows) * count].reshape(-1))
            for i, each in enumerate(numbers):
                gather.numbers[i * count : (i + 1) * count] = each
            gather.done[0] = 0
            start = end
        self.function.place(examples)
        self.function(len(rows))


class _CompiledProgram(BatchProgram):
    """A step for one batch size, as one function if that is possible.

    Attributes
    ----------
    steps : int
        The largest number of steps in one call of a function.
    """

    threads: Sequence[_CompiledThread]

    def __init__(self, program: BatchProgram, numbers: Buffer) -> None:
        parts = [part for thread in program.threads for part in thread.parts]
        work = max(1, sum(part.count * part.nbytes for part in parts))
        several = len(program.threads) > 1
        self.steps = 1 if several else max(1, min(_MAX_STEPS, _CALL_BYTES // work))
        # All threads write the optimizer's numbers, and the same ones, in the first kernel.
        threads = [_CompiledThread(each, numbers, self.steps) for each in program.threads]
        if several:
            for thread in threads:
                thread.compile([])
            update = join(program.update)
        else:
            update = threads[0].compile(program.update)
        super().__init__(threads, update)

    @property
    def does_steps(self) -> bool:
        """Whether the function of the only thread does whole steps."""
        return len(self.threads) == 1 and self.threads[0].function is not None


def _are_contiguous(examples: tuple[Buffer, ...]) -> bool:
    return all(x.flags.c_contiguous for x in examples)


def _as_read(examples: tuple[Buffer, ...], rows: Buffer) -> tuple[tuple[Buffer, ...], Buffer]:
    """Return examples in C order, as kernels read them, and the indices of these rows in them."""
    if _are_contiguous(examples):
        return examples, rows
    return tuple(np.ascontiguousarray(x[rows]) for x in examples), np.arange(len(rows))


class CompiledReplay(Replay):
    """Captured steps as machine code, which does several steps of a small network in one call."""

    def __init__(self, step: Step, batches: Batches) -> None:
        super().__init__(step, batches, CompiledOps())

    def _assemble(self, program: BatchProgram) -> BatchProgram:
        return _CompiledProgram(program, self._memory.number_vector)

    def _do_steps(self, batches: Batches, rows: Iterable[Array]) -> None:
        examples = cast("tuple[Buffer, ...]", batches.arrays)
        if isinstance(batches, BatchStream) or not _are_contiguous(examples):
            super()._do_steps(batches, rows)
            return
        for size, same in groupby(cast("Iterable[Buffer]", rows), len):
            program = cast(_CompiledProgram, self._program(examples, size))
            if not program.does_steps:
                super()._do_steps(batches, cast("Iterable[Array]", same))
                continue
            while several := list(islice(same, program.steps)):
                self._call(program, examples, several)

    def _step(self, examples: tuple[Buffer, ...], rows: Buffer) -> None:
        program = cast(_CompiledProgram, self._program(examples, len(rows)))
        if not program.does_steps:
            super()._step(examples, rows)
            return
        examples, rows = _as_read(examples, rows)
        self._call(program, examples, [rows])

    def _call(
        self, program: _CompiledProgram, examples: tuple[Buffer, ...], rows: list[Buffer]
    ) -> None:
        """Do a step for each of a few batches in one call."""
        optimizer = self._optimizer
        first, numbers = optimizer.steps, []
        try:
            for _ in rows:
                numbers.append(optimizer.numbers())
                optimizer.steps += 1
        finally:
            optimizer.steps = first  # none is done so far
        self._stepped = True
        optimizer.steps = first + len(rows)
        program.threads[0].call(examples, rows, numbers)


def join(program: Program) -> Program:
    """Return a program with adjacent kernels joined into one function."""
    joined: Program = []
    for is_kernel, calls in groupby(program, lambda call: isinstance(call, Kernel)):
        kernels = list(calls)
        joined += [compile_kernels((1, cast(list[Kernel], kernels)))] if is_kernel else kernels
    return joined


def _reduction(
    function: Callable[..., Any], x: Buffer, axis: int | tuple[int, ...] | None, out: Buffer
) -> Kernel | None:
    dtypes = (np.bool_,) if function is np.all else (np.float32, np.float64)
    if x.dtype not in dtypes or x.size == 0:  # also in another byte order
        return None
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    reduced = sorted(i % x.ndim for i in axes)
    if out.ndim < x.ndim:
        out = np.expand_dims(out, reduced)
    return ReductionKernel(function, x, out)


def _product(
    out: Buffer, a: Buffer, b: Buffer, *, kept: bool, subtracted: Buffer | None = None
) -> Kernel | None:
    function = product_address(out.dtype)
    matrices = all(x.ndim == 2 and x.dtype == out.dtype for x in (a, b, out))
    if function is None or not matrices or not out.size or not a.shape[1]:
        return None
    if (of_out := leading_dimension(out)) is None or of_out[0]:
        return None
    if leading_dimension(a) is None or leading_dimension(b) is None:
        return None
    return ProductKernel(function, out, a, b, kept, subtracted)
