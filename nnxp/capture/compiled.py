"""Compiled steps: a program as machine code, in which NumPy computes only what has no kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import groupby
from typing import Any, cast

import numpy as np

from nnxp.capture.blas import product_address
from nnxp.capture.llvm import (
    Function,
    GatherKernel,
    Kernel,
    LoopKernel,
    ProductKernel,
    ReductionKernel,
    compile_kernels,
    leading_dimension,
    suits,
)
from nnxp.capture.loops import Loop
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.capture.ops import Buffer, Program, address, subtract_product
from nnxp.capture.recorded import Recorded
from nnxp.capture.replay import BatchProgram, Replay
from nnxp.capture.tape import Op
from nnxp.data.batches import Batches
from nnxp.step import Step


class CompiledOps(NumpyOps):
    """Computes ops by compiled loops and by BLAS, and others with NumPy."""

    chunk = sys.maxsize  # one pass

    fuses_loops = True

    def suits_loop(self, op: Op) -> bool:
        """Return whether an op can be part of a loop."""
        return suits(op)

    def lower_loop(self, loop: Loop, arrays: dict[Recorded, Buffer]) -> Program:
        """Return the kernel of a loop."""
        return [LoopKernel(loop, arrays)]

    def lower(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], out: Buffer
    ) -> Program:
        """Return the kernels, or the calls, that compute an op."""
        kernel: Kernel | None = None
        if function in (np.sum, np.max, np.mean) and len(args) == 1:
            if kwargs.keys() <= {"axis", "keepdims"} and args[0].dtype == out.dtype:
                kernel = _reduction(function, args[0], kwargs.get("axis"), out)
        elif function is np.matmul:
            kernel = _product(out, *args, kept=False)
        elif function is subtract_product and args[0] is out:
            kernel = _product(out, *args[2:], kept=True, subtracted=args[1])
        if kernel is None:
            return super().lower(function, args, kwargs, out)
        return [kernel]


class CompiledReplay(Replay):
    """Captured steps as machine code."""

    def __init__(self, step: Step, batches: Batches) -> None:
        super().__init__(step, batches, CompiledOps())
        # By batch size: what copies the rows, the function, and the examples that it reads.
        self._gathers: dict[int, tuple[GatherKernel, Function, tuple[Buffer, ...] | None]] = {}

    def _join(self, program: Program, batch: tuple[Buffer, ...]) -> Program:
        gather = GatherKernel(batch)
        joined = join([gather, *program])
        self._gathers[len(batch[0])] = gather, cast(Function, joined[0]), None
        return joined

    def _fetch(self, program: BatchProgram, examples: tuple[Buffer, ...], rows: Buffer) -> None:
        """Tell the program which rows of the examples are the batch; it copies them itself."""
        size = len(rows)
        gather, function, known = self._gathers[size]
        if not all(x.flags.c_contiguous for x in examples if known is not examples):
            examples, rows = tuple(x[rows] for x in examples), np.arange(size)
        gather.indices[:] = rows
        if known is not examples:
            function.place([address(x) for x in examples])
            self._gathers[size] = gather, function, examples


def join(program: Program) -> Program:
    """Return a program in which kernels that follow each other are one function."""
    joined: Program = []
    for is_kernel, calls in groupby(program, lambda call: isinstance(call, Kernel)):
        kernels = list(calls)
        joined += [compile_kernels(cast(list[Kernel], kernels))] if is_kernel else kernels
    return joined


def _reduction(
    function: Callable[..., Any], x: Buffer, axis: int | tuple[int, ...] | None, out: Buffer
) -> Kernel | None:
    if x.dtype not in (np.float32, np.float64) or x.size == 0:  # also in another byte order
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
    if function is None or not matrices or not out.flags.c_contiguous or not out.size:
        return None
    if not a.shape[1] or leading_dimension(a) is None or leading_dimension(b) is None:
        return None
    return ProductKernel(function, out, a, b, kept, subtracted)
