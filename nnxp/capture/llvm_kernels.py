"""Kernels: the parts of a compiled function, and the instructions of each."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from llvmlite import ir

from nnxp.capture.llvm_math import Arithmetic
from nnxp.capture.llvm_ops import (
    INT64,
    KINDS,
    SIZE,
    element,
    emit_loop,
    emit_loops,
    emit_op,
    load,
    store,
)
from nnxp.capture.loops import Loop
from nnxp.capture.ops import Buffer, address
from nnxp.capture.recorded import Recorded


class Kernel(ABC):
    """A part of a compiled function.

    Attributes
    ----------
    arrays : sequence of array
    addresses : list of int
        The different addresses of the arrays.
    functions : dict of str to int
        The addresses of the functions that it calls, by name.
    """

    def __init__(
        self, arrays: Sequence[Buffer], functions: Mapping[str, int] | None = None
    ) -> None:
        self.arrays = arrays
        self.addresses = list(dict.fromkeys(map(address, arrays)))
        self.functions = dict(functions or {})

    def __call__(self) -> None:
        """Raise an error: `join` replaces the kernels of a program by functions."""
        raise TypeError(f"{type(self).__name__} is not compiled")

    def form(self) -> tuple[object, ...] | None:
        """Return what determines the instructions; None if no other kernel has the same.

        Kernels of the same form share their code.
        """
        return None

    @abstractmethod
    def emit(self, builder: ir.IRBuilder, pointers: dict[int, ir.Value]) -> None:
        """Emit the instructions, given a pointer for each address."""

    def _layouts(self) -> tuple[object, ...]:
        """Return the layout of each array, and which of them begin at one address."""
        layouts = ((x.shape, x.strides, x.dtype) for x in self.arrays)
        return *layouts, *(self.addresses.index(address(x)) for x in self.arrays)


class LoopKernel(Kernel):
    """A loop over all elements.

    Parameters
    ----------
    loop : Loop
    arrays : dict of Recorded to array
        Of what the loop reads, and of its results.
    """

    def __init__(self, loop: Loop, arrays: dict[Recorded, Buffer]) -> None:
        self._loop = loop
        self._arrays = {x: arrays[x] for x in (*loop.args, *loop.results)}
        super().__init__(list(self._arrays.values()))

    def emit(self, builder: ir.IRBuilder, pointers: dict[int, ir.Value]) -> None:
        """Emit loops over the axes."""
        shape = self._loop.result.shape
        spread = {x: np.broadcast_to(y, shape) for x, y in self._arrays.items()}
        first = spread[self._loop.result]
        lengths, strides = _merged_axes(shape, [first, *spread.values()])

        def body(indices: list[ir.Value]) -> None:
            places = {
                x: element(builder, pointers[address(y)], y.dtype, indices, each)
                for (x, y), each in zip(spread.items(), strides[1:], strict=True)
            }
            values: dict[Recorded, tuple[ir.Value, np.dtype[Any]]] = {
                x: (load(builder, places[x], x.dtype), x.dtype) for x in self._loop.args
            }
            for op in self._loop.ops:
                values[op.result] = emit_op(builder, op, values), op.result.dtype
            for x in self._loop.results:
                store(builder, values[x][0], places[x], x.dtype)

        emit_loops(builder, lengths, body)


class CopyKernel(Kernel):
    """Copies numbers, or adds them: ``out = x``, or ``out += x``.

    Parameters
    ----------
    out : array
        To add to, it may be a view with several elements at one place in memory.
    x : array
        Of the same shape and dtype.
    added : bool, optional
        Whether to add.
    """

    def __init__(self, out: Buffer, x: Buffer, *, added: bool = False) -> None:
        super().__init__([out, x])
        self._out, self._x, self._added = out, x, added

    def form(self) -> tuple[object, ...]:
        """Return the layouts, and whether to add."""
        return CopyKernel, self._added, *self._layouts()

    def emit(self, builder: ir.IRBuilder, pointers: dict[int, ir.Value]) -> None:
        """Emit loops over the axes."""
        out, x = self._out, self._x
        lengths, (to, from_) = _merged_axes(out.shape, [out, x])

        def body(indices: list[ir.Value]) -> None:
            place = element(builder, pointers[address(out)], out.dtype, indices, to)
            given = element(builder, pointers[address(x)], x.dtype, indices, from_)
            value = builder.load(given, typ=KINDS[x.dtype.name])
            if self._added:
                value = builder.fadd(builder.load(place, typ=KINDS[x.dtype.name]), value)
            builder.store(value, place)

        emit_loops(builder, lengths, body)


class ReductionKernel(Kernel):
    """A sum or a maximum over some axes, a mean, or whether all numbers are true.

    Parameters
    ----------
    function : callable
        `np.sum`, `np.max`, `np.mean`, or `np.all` of bool.
    x : array
    out : array
        With axes of length 1 in place of those to reduce.
    """

    def __init__(self, function: Callable[..., Any], x: Buffer, out: Buffer) -> None:
        super().__init__([x, out])
        self._function, self._x, self._out = function, x, out

    def emit(self, builder: ir.IRBuilder, pointers: dict[int, ir.Value]) -> None:
        """Emit a loop that fills the result, and one that adds to it."""
        x, out = self._x, self._out
        number, function = KINDS[x.dtype.name], self._function
        first = {np.all: 1, np.max: -math.inf}.get(function, 0)
        source, target = pointers[address(x)], pointers[address(out)]
        lengths, (places,) = _merged_axes(out.shape, [out])

        def fill(indices: list[ir.Value]) -> None:
            start = ir.Constant(number, first)
            builder.store(start, element(builder, target, out.dtype, indices, places))

        emit_loops(builder, lengths, fill)
        spread = np.broadcast_to(out, x.shape)
        lengths, (from_, to) = _merged_axes(x.shape, [x, spread])

        def combine(total: ir.Value, indices: list[ir.Value]) -> ir.Value:
            value = builder.load(element(builder, source, x.dtype, indices, from_), typ=number)
            if function is np.all:
                return builder.and_(total, value)
            if function is np.max:
                kind = ir.FunctionType(number, [number, number])
                # NaN if one of them is. LLVM makes a reduction of vectors of it, which it does not
                # of `maximum`'s selects; these are 5 % faster in the loops of a step.
                larger = builder.module.declare_intrinsic("llvm.maximum", [number], kind)
                return builder.call(larger, [total, value])
            # LLVM may add in another order, which makes vectors of terms possible.
            return builder.fadd(total, value, flags=("reassoc",))

        def body(indices: list[ir.Value]) -> None:
            place = element(builder, target, out.dtype, indices, to)
            builder.store(combine(builder.load(place, typ=number), indices), place)

        if lengths and to[-1] == 0:  # the last axis is summed in a register

            def outer(indices: list[ir.Value]) -> None:
                place = element(builder, target, out.dtype, [*indices, SIZE(0)], to)
                total = emit_loop(
                    builder, lengths[-1], lambda i, sum_: combine(sum_, [*indices, i]),
                    builder.load(place, typ=number),
                )  # fmt: skip
                builder.store(total, place)

            emit_loops(builder, lengths[:-1], outer)
        else:
            emit_loops(builder, lengths, body)
        if self._function is np.mean:
            lengths, (places,) = _merged_axes(out.shape, [out])

            arithmetic = Arithmetic(builder, number)

            def divide(indices: list[ir.Value]) -> None:
                place = element(builder, target, out.dtype, indices, places)
                mean = arithmetic.div(builder.load(place, typ=number), float(x.size // out.size))
                builder.store(mean, place)

            emit_loops(builder, lengths, divide)


class ArgmaxKernel(Kernel):
    """The index of the first of the largest numbers along an axis; that of the first NaN.

    Parameters
    ----------
    x : array
    axis : int
    out : array
        Without this axis; int64.
    """

    def __init__(self, x: Buffer, axis: int, out: Buffer) -> None:
        super().__init__([x, out])
        self._x, self._out = np.moveaxis(x, axis, -1), out

    def emit(self, builder: ir.IRBuilder, pointers: dict[int, ir.Value]) -> None:
        """Emit a loop along the axis within loops over the others."""
        x, out = self._x, self._out
        source, target = pointers[address(x)], pointers[address(out)]
        places, steps = ([n // y.itemsize for n in y.strides] for y in (x, out))

        def body(indices: list[ir.Value]) -> None:
            def number(i: ir.Value) -> ir.Value:
                return load(
                    builder, element(builder, source, x.dtype, [*indices, i], places), x.dtype
                )

            def larger(i: ir.Value, best: ir.Value) -> ir.Value:
                value, most = number(i), number(best)
                is_first_nan = builder.and_(
                    builder.fcmp_unordered("uno", value, value),
                    builder.fcmp_ordered("ord", most, most),
                )
                is_larger = builder.fcmp_ordered(">", value, most)
                return builder.select(builder.or_(is_larger, is_first_nan), i, best)

            best = emit_loop(builder, x.shape[-1], larger, SIZE(0))
            store(builder, best, element(builder, target, out.dtype, indices, steps), out.dtype)

        emit_loops(builder, out.shape, body)


class ProductKernel(Kernel):
    """A matrix product with BLAS: ``out = factor * (a @ b) + kept * out``.

    Parameters
    ----------
    function : int
        The address of BLAS's function.
    out, a, b : (rows, columns) array
        In a layout that `leading_dimension` accepts; `out` is not transposed.
    kept : bool
        Whether to add to `out`.
    subtracted : 0-d array, optional
        The factor is minus this number; by default, it is 1.
    """

    def __init__(
        self, function: int, out: Buffer, a: Buffer, b: Buffer, kept: bool,
        subtracted: Buffer | None = None,
    ) -> None:  # fmt: skip
        arrays = [out, a, b] if subtracted is None else [out, a, b, subtracted]
        self._name = f"product_{out.dtype.name}"
        super().__init__(arrays, {self._name: function})
        self._kept, self._subtracted = kept, subtracted
        self._out, self._a, self._b = out, a, b

    def form(self) -> tuple[object, ...]:
        """Return the layouts, and whether to add."""
        return ProductKernel, self._kept, self._subtracted is None, *self._layouts()

    def emit(self, builder: ir.IRBuilder, pointers: dict[int, ir.Value]) -> None:
        """Emit the call."""
        real, word = KINDS[self._out.dtype.name], ir.IntType(32)
        factor: ir.Value = ir.Constant(real, 1.0)
        if self._subtracted is not None:
            factor = builder.fneg(builder.load(pointers[address(self._subtracted)], typ=real))
        rows, columns = self._out.shape
        operands: list[ir.Value] = []
        transposed: list[ir.Value] = []
        for x in (self._a, self._b):
            is_transposed, length = cast(tuple[bool, int], leading_dimension(x))
            transposed.append(word(112 if is_transposed else 111))  # as cblas.h has it
            operands += [pointers[address(x)], SIZE(length)]
        kept = ir.Constant(real, float(self._kept))
        sizes = [SIZE(rows), SIZE(columns), SIZE(self._a.shape[1])]
        _, step = cast(tuple[bool, int], leading_dimension(self._out))
        out = [pointers[address(self._out)], SIZE(step)]
        arguments = [word(101), *transposed, *sizes, factor, *operands, kept, *out]
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in arguments])
        function = builder.module.globals.get(self._name)
        if function is None:
            function = ir.Function(builder.module, kind, self._name)
        builder.call(function, arguments)


class GatherKernel(Kernel):
    """Copies the data of the next batch: rows of the examples, and the optimizer's numbers.

    If a step divides its batch, a batch here is a part of it. `Function.place` sets the addresses
    of the examples.

    Parameters
    ----------
    batch : sequence of array
        C-contiguous.
    numbers : (numbers,) array
        C-contiguous.
    batches : int
        The largest number of batches in one call.

    Attributes
    ----------
    indices : (batches, batch) array
        The indices of the rows. Set this and the other two arrays before each call.
    numbers : (batches, numbers) array
    done : (1,) array
        The number of batches so far in this call; set it to 0.
    """

    def __init__(self, batch: Sequence[Buffer], numbers: Buffer, batches: int) -> None:
        self.indices: Buffer = np.zeros((batches, len(batch[0])), np.int64)
        self.numbers: Buffer = np.zeros((batches, len(numbers)), numbers.dtype)
        self.done: Buffer = np.zeros(1, np.int64)
        super().__init__([*batch, self.indices, self.numbers, numbers, self.done])
        self._batch, self._current = batch, numbers
        self._examples = [-1 - i for i in range(len(batch))]  # `Function.place` sets the addresses
        self.addresses = [*self._examples, *self.addresses]

    def emit(self, builder: ir.IRBuilder, pointers: dict[int, ir.Value]) -> None:
        """Emit a loop over the rows and one over the numbers, and count the batch."""
        counter = pointers[address(self.done)]
        done = builder.load(counter, typ=SIZE)

        def of_batch(x: Buffer) -> ir.Value:
            return element(builder, pointers[address(x)], x.dtype, [done], [x.shape[1]])

        indices = of_batch(self.indices)
        for source, target in zip(self._examples, self._batch, strict=True):
            _emit_rows(builder, indices, pointers[source], pointers[address(target)], target)
        numbers, dtype = of_batch(self.numbers), self.numbers.dtype
        current = pointers[address(self._current)]

        def copy(places: list[ir.Value]) -> None:
            value = load(builder, element(builder, numbers, dtype, places, [1]), dtype)
            store(builder, value, element(builder, current, dtype, places, [1]), dtype)

        emit_loops(builder, [len(self._current)], copy)
        builder.store(builder.add(done, SIZE(1)), counter)


def _emit_rows(
    builder: ir.IRBuilder, indices: ir.Value, source: ir.Value, place: ir.Value, target: Buffer
) -> None:
    """Emit a loop that copies rows of an array, given by indices, to a C-contiguous one."""
    dtype = np.dtype(f"u{min(target.itemsize, 8)}")
    units = target.nbytes // len(target) // dtype.itemsize

    def copy(places: list[ir.Value]) -> None:
        row, i = places
        index = builder.load(element(builder, indices, INT64, [row], [1]), typ=SIZE)
        value = element(builder, source, dtype, [index, i], [units, 1])
        copied = element(builder, place, dtype, [row, i], [units, 1])
        builder.store(builder.load(value, typ=KINDS[dtype.name]), copied)

    emit_loops(builder, [len(target), units], copy)


def leading_dimension(x: Buffer) -> tuple[bool, int] | None:
    """Return whether a matrix is transposed for BLAS, and its leading dimension.

    Return None if BLAS does not support the layout.
    """
    for transposed, y in ((False, x), (True, x.T)):
        step, rest = divmod(y.strides[0], x.itemsize)
        if not rest and (y.strides[1] == x.itemsize or y.shape[1] == 1) and step >= y.shape[1]:
            return transposed, step
    return None


def _merged_axes(
    shape: Sequence[int], arrays: Sequence[Buffer]
) -> tuple[list[int], list[list[int]]]:
    """Return the lengths and strides of the fewest axes, ordered by the first array's strides.

    Axes that are contiguous in all arrays are merged. Strides are in elements.
    """
    axes = [i for i, n in enumerate(shape) if n != 1]
    axes.sort(key=lambda i: -abs(arrays[0].strides[i]))
    lengths: list[int] = []
    strides: list[list[int]] = [[] for _ in arrays]
    for axis in axes:
        n = shape[axis]
        steps = [x.strides[axis] // x.itemsize for x in arrays]
        merges = lengths and all(
            own[-1] == step * n for own, step in zip(strides, steps, strict=True)
        )
        if merges:
            lengths[-1] *= n
        else:
            lengths.append(n)
        for own, step in zip(strides, steps, strict=True):
            own[len(lengths) - 1 :] = [step]
    return lengths, strides
