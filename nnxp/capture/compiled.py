"""Compiled steps: a program as machine code; NumPy computes only ops without a kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from itertools import groupby, islice
from typing import Any, NamedTuple, cast

import numpy as np

from nnxp.arrays import Array
from nnxp.capture.blas import product_address
from nnxp.capture.llvm import (
    ArgmaxKernel,
    CopyKernel,
    Function,
    GatherKernel,
    Kernel,
    LoopKernel,
    ProductKernel,
    ReductionKernel,
    compile_kernels,
    leading_dimension,
)
from nnxp.capture.llvm_ops import is_plain, suits
from nnxp.capture.loops import Loop
from nnxp.capture.numpy_images import Block, Windows
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.capture.ops import Buffer, Program, add_product, address, subtract_product
from nnxp.capture.recorded import Recorded
from nnxp.capture.replay import BatchProgram, Replay
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


class _Fetch(NamedTuple):
    """A compiled function that copies its batches from the examples.

    Attributes
    ----------
    gather : GatherKernel
    function : Function
        Its first kernel is `gather`.
    steps : int
        How many steps one call of the function can do: 1 if a step needs other calls too.
    """

    gather: GatherKernel
    function: Function
    steps: int


class CompiledReplay(Replay):
    """Captured steps as machine code, which does several steps of a small network in one call."""

    def __init__(self, step: Step, batches: Batches) -> None:
        super().__init__(step, batches, CompiledOps())
        self._fetches: dict[int, _Fetch] = {}  # by the identity of a batch's buffers
        self._examples: dict[int, tuple[Buffer, ...]] = {}  # the examples that its function reads

    def _join(self, program: Program, batch: tuple[Buffer, ...], nbytes: int) -> Program:
        steps = max(1, min(_MAX_STEPS, _CALL_BYTES // max(nbytes, 1)))
        gather = GatherKernel(batch, self._number_vector, steps)
        joined = join([gather, *program])
        function = cast(Function, joined[0])
        kept = {id(x.batch) for x in self._programs.values()}
        self._fetches = {key: x for key, x in self._fetches.items() if key in kept}
        self._examples = {key: x for key, x in self._examples.items() if key in kept}
        self._fetches[id(batch)] = _Fetch(gather, function, steps if len(joined) == 1 else 1)
        return joined

    def _do_steps(self, batches: Batches, rows: Iterable[Array]) -> None:
        examples = cast("tuple[Buffer, ...]", batches.arrays)
        is_contiguous = all(x.flags.c_contiguous for x in examples)
        if isinstance(batches, BatchStream) or not is_contiguous:
            super()._do_steps(batches, rows)
            return
        for size, same in groupby(cast("Iterable[Buffer]", rows), len):
            program = self._program(examples, size)
            fetch = self._fetches[id(program.batch)]
            if fetch.steps == 1:
                super()._do_steps(batches, cast("Iterable[Array]", same))
                continue
            self._place(program, examples)
            while indices := list(islice(same, fetch.steps)):
                self._call(fetch, indices)

    def _call(self, fetch: _Fetch, indices: list[Buffer]) -> None:
        """Do a step for each of a few batches in one call."""
        gather, optimizer, steps = fetch.gather, self._optimizer, len(indices)
        first = optimizer.steps
        try:
            for i in range(steps):
                gather.numbers[i] = optimizer.numbers()
                optimizer.steps += 1
        finally:
            optimizer.steps = first  # none is done so far
        np.concatenate(indices, out=gather.indices[:steps].reshape(-1))
        gather.step[0] = 0
        self._stepped = True
        optimizer.steps = first + steps
        fetch.function(steps)

    def _fetch(self, program: BatchProgram, examples: tuple[Buffer, ...], rows: Buffer) -> None:
        """Set the rows of the examples that are the batch; the program copies them."""
        if not all(x.flags.c_contiguous for x in examples):
            examples, rows = tuple(x[rows] for x in examples), np.arange(len(rows))
        self._place(program, examples)
        gather = self._fetches[id(program.batch)].gather
        gather.indices[0], gather.numbers[0], gather.step[0] = rows, self._number_vector, 0

    def _place(self, program: BatchProgram, examples: tuple[Buffer, ...]) -> None:
        """Set the addresses of the examples."""
        key = id(program.batch)
        if self._examples.get(key) is not examples:
            self._fetches[key].function.place([address(x) for x in examples])
            self._examples[key] = examples  # kept alive


def join(program: Program) -> Program:
    """Return a program with adjacent kernels joined into one function."""
    joined: Program = []
    for is_kernel, calls in groupby(program, lambda call: isinstance(call, Kernel)):
        kernels = list(calls)
        joined += [compile_kernels(cast(list[Kernel], kernels))] if is_kernel else kernels
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
