"""LLVM: machine code for the ops of a program, made by llvmlite (the extra ``fast``)."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from nnxp.capture.llvm_math import Arithmetic
from nnxp.capture.loops import Loop
from nnxp.capture.ops import Buffer, address
from nnxp.capture.recorded import Recorded
from nnxp.capture.tape import Op
from nnxp.files import write_atomically

_POINTER = ir.PointerType()
_SIZE = ir.IntType(64)
_BIT = ir.IntType(1)
_INT64 = np.dtype("int64")
_KINDS: dict[str, ir.Type] = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
_KINDS |= {f"{sign}int{bits}": ir.IntType(bits) for bits in (8, 16, 32, 64) for sign in ("", "u")}
_KINDS["bool"] = ir.IntType(8)  # in memory; as a value, a bit

_Names: TypeAlias = dict[Callable[..., Any], str]
_COMPARISONS: _Names = {
    np.less: "<", np.less_equal: "<=", np.greater: ">", np.greater_equal: ">=", np.equal: "==",
    np.not_equal: "!=",
}  # fmt: skip
_BITS: _Names = {np.bitwise_and: "and_", np.bitwise_or: "or_", np.bitwise_xor: "xor"}
_LOGICAL: _Names = {np.logical_and: "and_", np.logical_or: "or_"}
_SHIFTS = (np.left_shift, np.right_shift)
_NUMERIC: _Names = {np.add: "add", np.subtract: "sub", np.multiply: "mul"}
_INTRINSICS: _Names = {np.sqrt: "sqrt", np.floor: "floor", np.ceil: "ceil", np.absolute: "fabs"}
_FUNCTIONS: dict[Callable[..., Any], Callable[..., ir.Value]] = {
    np.exp: Arithmetic.exp, np.log: Arithmetic.log, np.tanh: Arithmetic.tanh,
    np.log1p: Arithmetic.log1p,
}  # fmt: skip


def is_plain(x: Buffer) -> bool:
    """Return whether the elements are numbers in the processor's own format and places."""
    known = x.dtype.name in _KINDS and x.dtype.isnative
    return known and x.flags.aligned and not any(step % x.itemsize for step in x.strides)


def suits(op: Op) -> bool:
    """Return whether an op can be part of a compiled loop."""
    if not all(is_plain(x.sample) for x in (*op.reads, op.result)):
        return False
    kinds = [x.dtype.name for x in (*op.reads, op.result)]
    if op.function is np.astype:
        return "float" in kinds[-1] or "float" not in kinds[0]
    if op.kwargs or any(
        not isinstance(x, (Recorded, bool, int, float, np.generic)) for x in op.args
    ):
        return False
    if op.function is np.where:
        return len(op.args) == 3 and kinds[0] == "bool" and isinstance(op.args[0], Recorded)
    if not isinstance(op.function, np.ufunc):
        return False
    *wanted, _ = _loop_dtypes(op)
    if len({*wanted}) > 1:  # NumPy has a special comparison of signed with unsigned numbers
        return False
    dtype = wanted[0].name
    function, real = op.function, dtype.startswith("float")
    if function in _COMPARISONS or function in _NUMERIC:
        return dtype != "bool" or function in _COMPARISONS
    if function in (np.maximum, np.minimum):
        return dtype != "bool"
    if function in _SHIFTS:  # others shift by more than the width of a number
        return isinstance(op.args[1], int) and 0 <= op.args[1] < np.dtype(dtype).itemsize * 8
    if function in _BITS or function is np.invert:
        return True
    if function in _LOGICAL or function is np.logical_not:
        return dtype == "bool"
    if function is np.negative:
        return dtype != "bool"
    known = function in (np.divide, np.sign)
    return real and (known or function in _INTRINSICS or function in _FUNCTIONS)


def _loop_dtypes(op: Op) -> tuple[np.dtype[Any], ...]:
    """Return the dtypes in which NumPy would compute an op: of its arguments, and of its result."""
    if op.function is np.where:
        return np.dtype("bool"), op.result.dtype, op.result.dtype, op.result.dtype
    if op.function is np.astype:
        return op.reads[0].dtype, op.result.dtype
    given = [x.dtype if hasattr(x, "dtype") else type(x) for x in op.args]
    try:
        return cast(np.ufunc, op.function).resolve_dtypes((*given, None))
    except TypeError:  # no such loop
        return np.dtype("O"), np.dtype("O")


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
        """Compile this kernel alone and run it."""
        compile_kernels([self])()

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
                x: _element(builder, pointers[address(y)], y.dtype, indices, each)
                for (x, y), each in zip(spread.items(), strides[1:], strict=True)
            }
            values: dict[Recorded, tuple[ir.Value, np.dtype[Any]]] = {
                x: (_load(builder, places[x], x.dtype), x.dtype) for x in self._loop.args
            }
            for op in self._loop.ops:
                values[op.result] = _emit_op(builder, op, values), op.result.dtype
            for x in self._loop.results:
                _store(builder, values[x][0], places[x], x.dtype)

        _emit_loops(builder, lengths, body)


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
            place = _element(builder, pointers[address(out)], out.dtype, indices, to)
            given = _element(builder, pointers[address(x)], x.dtype, indices, from_)
            value = builder.load(given, typ=_KINDS[x.dtype.name])
            if self._added:
                value = builder.fadd(builder.load(place, typ=_KINDS[x.dtype.name]), value)
            builder.store(value, place)

        _emit_loops(builder, lengths, body)


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
        number, function = _KINDS[x.dtype.name], self._function
        first = {np.all: 1, np.max: -math.inf}.get(function, 0)
        source, target = pointers[address(x)], pointers[address(out)]
        lengths, (places,) = _merged_axes(out.shape, [out])

        def fill(indices: list[ir.Value]) -> None:
            start = ir.Constant(number, first)
            builder.store(start, _element(builder, target, out.dtype, indices, places))

        _emit_loops(builder, lengths, fill)
        spread = np.broadcast_to(out, x.shape)
        lengths, (from_, to) = _merged_axes(x.shape, [x, spread])

        def combine(total: ir.Value, indices: list[ir.Value]) -> ir.Value:
            value = builder.load(_element(builder, source, x.dtype, indices, from_), typ=number)
            if function is np.all:
                return builder.and_(total, value)
            if function is np.max:
                return _maximum(builder, ">", total, value, "f")
            # LLVM may add in another order, which makes vectors of terms possible.
            return builder.fadd(total, value, flags=("reassoc",))

        def body(indices: list[ir.Value]) -> None:
            place = _element(builder, target, out.dtype, indices, to)
            builder.store(combine(builder.load(place, typ=number), indices), place)

        if lengths and to[-1] == 0:  # the last axis is summed in a register

            def outer(indices: list[ir.Value]) -> None:
                place = _element(builder, target, out.dtype, [*indices, _SIZE(0)], to)
                total = _emit_loop(
                    builder, lengths[-1], lambda i, sum_: combine(sum_, [*indices, i]),
                    builder.load(place, typ=number),
                )  # fmt: skip
                builder.store(total, place)

            _emit_loops(builder, lengths[:-1], outer)
        else:
            _emit_loops(builder, lengths, body)
        if self._function is np.mean:
            lengths, (places,) = _merged_axes(out.shape, [out])

            arithmetic = Arithmetic(builder, number)

            def divide(indices: list[ir.Value]) -> None:
                place = _element(builder, target, out.dtype, indices, places)
                mean = arithmetic.div(builder.load(place, typ=number), float(x.size // out.size))
                builder.store(mean, place)

            _emit_loops(builder, lengths, divide)


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
            def load(i: ir.Value) -> ir.Value:
                return _load(
                    builder, _element(builder, source, x.dtype, [*indices, i], places), x.dtype
                )

            def larger(i: ir.Value, best: ir.Value) -> ir.Value:
                value, most = load(i), load(best)
                is_first_nan = builder.and_(
                    builder.fcmp_unordered("uno", value, value),
                    builder.fcmp_ordered("ord", most, most),
                )
                is_larger = builder.fcmp_ordered(">", value, most)
                return builder.select(builder.or_(is_larger, is_first_nan), i, best)

            best = _emit_loop(builder, x.shape[-1], larger, _SIZE(0))
            _store(builder, best, _element(builder, target, out.dtype, indices, steps), out.dtype)

        _emit_loops(builder, out.shape, body)


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
        real, word = _KINDS[self._out.dtype.name], ir.IntType(32)
        factor: ir.Value = ir.Constant(real, 1.0)
        if self._subtracted is not None:
            factor = builder.fneg(builder.load(pointers[address(self._subtracted)], typ=real))
        rows, columns = self._out.shape
        operands: list[ir.Value] = []
        transposed: list[ir.Value] = []
        for x in (self._a, self._b):
            is_transposed, length = cast(tuple[bool, int], leading_dimension(x))
            transposed.append(word(112 if is_transposed else 111))  # as cblas.h has it
            operands += [pointers[address(x)], _SIZE(length)]
        kept = ir.Constant(real, float(self._kept))
        sizes = [_SIZE(rows), _SIZE(columns), _SIZE(self._a.shape[1])]
        _, step = cast(tuple[bool, int], leading_dimension(self._out))
        out = [pointers[address(self._out)], _SIZE(step)]
        arguments = [word(101), *transposed, *sizes, factor, *operands, kept, *out]
        kind = ir.FunctionType(ir.VoidType(), [x.type for x in arguments])
        function = builder.module.globals.get(self._name)
        if function is None:
            function = ir.Function(builder.module, kind, self._name)
        builder.call(function, arguments)


class GatherKernel(Kernel):
    """Copies the data of the next step: rows of the examples, and the optimizer's numbers.

    `Function.place` sets the addresses of the examples.

    Parameters
    ----------
    batch : sequence of array
        C-contiguous.
    numbers : (numbers,) array
        C-contiguous.
    steps : int
        The largest number of steps in one call.

    Attributes
    ----------
    indices : (steps, batch) array
        The indices of the rows. Set this and the other two arrays before each call.
    numbers : (steps, numbers) array
    step : (1,) array
        The number of steps so far in this call; set it to 0.
    """

    def __init__(self, batch: Sequence[Buffer], numbers: Buffer, steps: int) -> None:
        self.indices: Buffer = np.zeros((steps, len(batch[0])), np.int64)
        self.numbers: Buffer = np.zeros((steps, len(numbers)), numbers.dtype)
        self.step: Buffer = np.zeros(1, np.int64)
        super().__init__([*batch, self.indices, self.numbers, numbers, self.step])
        self._batch, self._current = batch, numbers
        self._examples = [-1 - i for i in range(len(batch))]  # no addresses yet
        self.addresses = [*self._examples, *self.addresses]

    def emit(self, builder: ir.IRBuilder, pointers: dict[int, ir.Value]) -> None:
        """Emit a loop over the rows and one over the numbers, and count the step."""
        counter = pointers[address(self.step)]
        step = builder.load(counter, typ=_SIZE)

        def of_step(x: Buffer) -> ir.Value:
            return _element(builder, pointers[address(x)], x.dtype, [step], [x.shape[1]])

        indices = of_step(self.indices)
        for source, target in zip(self._examples, self._batch, strict=True):
            _emit_rows(builder, indices, pointers[source], pointers[address(target)], target)
        numbers, dtype = of_step(self.numbers), self.numbers.dtype
        current = pointers[address(self._current)]

        def copy(places: list[ir.Value]) -> None:
            value = _load(builder, _element(builder, numbers, dtype, places, [1]), dtype)
            _store(builder, value, _element(builder, current, dtype, places, [1]), dtype)

        _emit_loops(builder, [len(self._current)], copy)
        builder.store(builder.add(step, _SIZE(1)), counter)


def _emit_rows(
    builder: ir.IRBuilder, indices: ir.Value, source: ir.Value, place: ir.Value, target: Buffer
) -> None:
    """Emit a loop that copies rows of an array, given by indices, to a C-contiguous one."""
    dtype = np.dtype(f"u{min(target.itemsize, 8)}")
    units = target.nbytes // len(target) // dtype.itemsize

    def copy(places: list[ir.Value]) -> None:
        row, i = places
        index = builder.load(_element(builder, indices, _INT64, [row], [1]), typ=_SIZE)
        value = _element(builder, source, dtype, [index, i], [units, 1])
        copied = _element(builder, place, dtype, [row, i], [units, 1])
        builder.store(builder.load(value, typ=_KINDS[dtype.name]), copied)

    _emit_loops(builder, [len(target), units], copy)


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


def _emit_loops(
    builder: ir.IRBuilder, lengths: Sequence[int], body: Callable[[list[ir.Value]], None]
) -> None:
    """Emit nested loops; the body receives the indices."""

    def emit(depth: int, indices: list[ir.Value]) -> None:
        if depth == len(lengths):
            body(indices)
        else:
            _emit_loop(builder, lengths[depth], lambda i, _: emit(depth + 1, [*indices, i]))

    if 0 not in lengths:
        emit(0, [])


def _emit_loop(
    builder: ir.IRBuilder,
    length: int | ir.Value,
    body: Callable[[ir.Value, Any], Any],
    start: ir.Value | None = None,
) -> Any:
    """Emit a loop of at least one pass, and return the body's last value.

    The body receives the value of the previous pass.
    """
    before = builder.block
    inside = builder.append_basic_block("loop")
    builder.branch(inside)
    builder.position_at_end(inside)
    index = builder.phi(_SIZE)
    index.add_incoming(_SIZE(0), before)
    value = None if start is None else builder.phi(start.type)
    result = body(index, value)
    following = builder.add(index, _SIZE(1), flags=("nsw", "nuw"))
    index.add_incoming(following, builder.block)
    if value is not None:
        value.add_incoming(start, before)
        value.add_incoming(result, builder.block)
    after = builder.function.append_basic_block("end")
    end = _SIZE(length) if isinstance(length, int) else length
    builder.cbranch(builder.icmp_unsigned("<", following, end), inside, after)
    builder.position_at_end(after)
    return result


def _element(
    builder: ir.IRBuilder,
    pointer: ir.Value,
    dtype: np.dtype[Any],
    indices: Sequence[ir.Value],
    strides: Sequence[int],
) -> ir.Value:
    """Return the pointer to an element."""
    offset: ir.Value = _SIZE(0)
    for index, stride in zip(indices, strides, strict=True):
        if stride:
            step = index if stride == 1 else builder.mul(index, _SIZE(stride), flags=("nsw",))
            offset = builder.add(offset, step, flags=("nsw",))
    return builder.gep(pointer, [offset], inbounds=True, source_etype=_KINDS[dtype.name])


def _load(builder: ir.IRBuilder, place: ir.Value, dtype: np.dtype[Any]) -> ir.Value:
    value = builder.load(place, typ=_KINDS[dtype.name])
    return builder.icmp_unsigned("!=", value, value.type(0)) if dtype == np.bool_ else value


def _store(builder: ir.IRBuilder, value: ir.Value, place: ir.Value, dtype: np.dtype[Any]) -> None:
    builder.store(builder.zext(value, _KINDS["bool"]) if dtype == np.bool_ else value, place)


def _emit_op(
    builder: ir.IRBuilder, op: Op, values: dict[Recorded, tuple[ir.Value, np.dtype[Any]]]
) -> ir.Value:
    """Return the value of an op, given the values of the recorded arrays."""
    *wanted, computed = _loop_dtypes(op)
    args: list[ir.Value] = []
    operands = op.reads if op.function is np.astype else op.args
    for x, dtype in zip(operands, wanted, strict=True):
        if isinstance(x, Recorded):
            args.append(_convert(builder, *values[x], dtype))
        else:
            with np.errstate(over="ignore"):  # a number that is too large becomes infinite
                number = np.asarray(x).astype(dtype).item()
            args.append(ir.Constant(_BIT if dtype == np.bool_ else _KINDS[dtype.name], number))
    value = args[0] if op.function is np.astype else _emit_function(builder, op, args, wanted[0])
    if op.function is np.astype:
        return _convert(builder, value, wanted[0], op.result.dtype)
    return _convert(builder, value, computed, op.result.dtype)


def _emit_function(
    builder: ir.IRBuilder, op: Op, args: list[ir.Value], dtype: np.dtype[Any]
) -> ir.Value:
    function, kind = op.function, dtype.kind
    if function is np.where:
        return builder.select(*args)
    if function in _COMPARISONS:
        sign = _COMPARISONS[function]
        if kind == "f":  # only "not equal" is true of NaN
            compare = builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered
        else:
            compare = builder.icmp_signed if kind == "i" else builder.icmp_unsigned
        return compare(sign, *args)
    if function in _BITS or function in _LOGICAL:
        return getattr(builder, (_BITS | _LOGICAL)[function])(*args)
    if function in (np.invert, np.logical_not):
        return builder.not_(*args)
    if function in _SHIFTS:
        left, arithmetic = function is np.left_shift, kind == "i"
        shift = builder.shl if left else builder.ashr if arithmetic else builder.lshr
        return shift(*args)
    if function in (np.maximum, np.minimum):
        sign = ">" if function is np.maximum else "<"
        return _maximum(builder, sign, args[0], args[1], kind)
    if kind != "f":
        return builder.neg(*args) if function is np.negative else getattr(
            builder, _NUMERIC[function]
        )(*args)  # fmt: skip
    if function in _FUNCTIONS:
        return _FUNCTIONS[function](Arithmetic(builder, args[0].type), *args)
    if function in _INTRINSICS:
        intrinsic = builder.module.declare_intrinsic(
            f"llvm.{_INTRINSICS[function]}", [args[0].type]
        )
        return builder.call(intrinsic, args)
    if function is np.divide:
        return builder.fdiv(*args)
    if function is np.sign:
        (x,) = args
        zero, one, minus_one = (ir.Constant(x.type, n) for n in (0, 1, -1))
        sign = builder.select(builder.fcmp_ordered("==", x, zero), zero, x)  # NaN stays
        sign = builder.select(builder.fcmp_ordered("<", x, zero), minus_one, sign)
        return builder.select(builder.fcmp_ordered(">", x, zero), one, sign)
    if function is np.negative:
        return builder.fneg(*args)
    return getattr(builder, "f" + _NUMERIC[function])(*args)


def _maximum(builder: ir.IRBuilder, sign: str, x: ir.Value, y: ir.Value, kind: str) -> ir.Value:
    """Return the larger (">") or smaller ("<") of two numbers; NaN if one of them is."""
    if kind != "f":
        compare = builder.icmp_signed if kind == "i" else builder.icmp_unsigned
        return builder.select(compare(sign, x, y), x, y)
    larger = builder.select(builder.fcmp_ordered(sign, x, y), x, y)  # y if one is NaN
    return builder.select(builder.fcmp_unordered("uno", x, x), x, larger)


def _convert(
    builder: ir.IRBuilder, value: ir.Value, source: np.dtype[Any], target: np.dtype[Any]
) -> ir.Value:
    """Return a value in another dtype."""
    if source == target:
        return value
    kind = _KINDS[target.name]
    if target == np.bool_:
        zero = ir.Constant(value.type, 0)
        if source.kind == "f":
            return builder.fcmp_unordered("!=", value, zero)
        return builder.icmp_unsigned("!=", value, zero)
    if target.kind == "f":
        if source.kind == "f":
            wider = target.itemsize > source.itemsize
            return builder.fpext(value, kind) if wider else builder.fptrunc(value, kind)
        return builder.sitofp(value, kind) if source.kind == "i" else builder.uitofp(value, kind)
    if target.itemsize < source.itemsize and source != np.bool_:
        return builder.trunc(value, kind)
    if target.itemsize == source.itemsize and source != np.bool_:
        return value
    return builder.sext(value, kind) if source.kind == "i" else builder.zext(value, kind)


class Function:
    """A compiled function of kernels.

    Parameters
    ----------
    kernels : list of Kernel
    code : bytes
        The object file.
    addresses : list of int
        The table that the function reads its pointers from.
    """

    def __init__(self, kernels: list[Kernel], code: bytes, addresses: list[int]) -> None:
        self._arrays = [x for kernel in kernels for x in kernel.arrays]
        self._table = np.array([max(x, 0) for x in addresses], np.uintp)
        name = next(_names)
        library = llvm.JITLibraryBuilder().add_object_img(code).export_symbol("run")
        for kernel in kernels:
            for function, place in kernel.functions.items():
                library.import_symbol(function, place)
        self._tracker = library.link(_compiler()[0], f"nnxp{name}")
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
        self._run = kind(self._tracker["run"])
        self._place = ctypes.c_void_p(self._table.ctypes.data)

    def place(self, addresses: Sequence[int]) -> None:
        """Set the addresses of the examples of a `GatherKernel`, which is the first kernel."""
        self._table[: len(addresses)] = addresses

    def __call__(self, times: int = 1) -> None:
        """Run the kernels `times` times."""
        self._run(self._place, times)


_names = itertools.count()


def compile_kernels(kernels: list[Kernel]) -> Callable[[], None]:
    """Return a function that runs the kernels in order."""
    addresses = list(dict.fromkeys(x for kernel in kernels for x in kernel.addresses))
    return Function(kernels, _object_code(_module(kernels, addresses)), addresses)


def _module(kernels: list[Kernel], addresses: list[int]) -> str:
    """Return the intermediate representation of a function that runs the kernels."""
    module = ir.Module()
    nothing = ir.VoidType()
    run = ir.Function(module, ir.FunctionType(nothing, [_POINTER, _SIZE]), "run")
    builder = ir.IRBuilder(run.append_basic_block())
    pointers = {}
    for i, each in enumerate(addresses):
        place = builder.gep(run.args[0], [_SIZE(i)], source_etype=_POINTER)
        pointers[each] = builder.load(place, typ=_POINTER)
    functions = []
    known: dict[tuple[object, ...], ir.Function] = {}
    for i, kernel in enumerate(kernels):
        form = kernel.form() or (i,)
        if form not in known:
            known[form] = _add_function(module, f"kernel{i}", kernel)
        functions.append(known[form])

    def call_all(_: ir.Value, __: None) -> None:
        for function, kernel in zip(functions, kernels, strict=True):
            builder.call(function, [pointers[x] for x in kernel.addresses])

    _emit_loop(builder, run.args[1], call_all)
    builder.ret_void()
    return str(module)


def _add_function(module: ir.Module, name: str, kernel: Kernel) -> ir.Function:
    """Add a function that runs a kernel, given a pointer for each of its addresses."""
    kind = ir.FunctionType(ir.VoidType(), [_POINTER] * len(kernel.addresses))
    function = ir.Function(module, kind, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    for argument in function.args:
        # No two overlap unless both are only read.
        argument.add_attribute("noalias")
    builder = ir.IRBuilder(function.append_basic_block())
    kernel.emit(builder, dict(zip(kernel.addresses, function.args, strict=True)))
    builder.ret_void()
    return function


_MAX_CACHED = 500  # files, of 10 to 100 kB


@functools.cache
def _compiler() -> tuple[Any, Any]:
    """Return the linker and the target machine of this processor."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True, reloc="pic"
    )
    return llvm.create_lljit_compiler(machine), machine


def _object_code(text: str) -> bytes:
    """Return the machine code, from the user's cache if it was compiled before."""
    machine = _compiler()[1]
    processor = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    key = repr((text, llvm.llvm_version_info, processor))
    path = _cache_folder()
    if path is not None:
        path /= hashlib.sha256(key.encode()).hexdigest() + ".o"
        code = _read(path)
        if code is not None:
            return code
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = tuning.loop_interleaving = True
    tuning.loop_unrolling = False  # it takes ten times as long to compile, and gains nothing
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    code = cast(bytes, machine.emit_object(module))
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            oldest = sorted(path.parent.glob("*.o"), key=lambda x: x.stat().st_mtime)
            for each in oldest[: -_MAX_CACHED + 1]:
                each.unlink(missing_ok=True)
            write_atomically(path, hashlib.sha256(code).digest() + code)
        except OSError:  # a full or read-only disk; it is compiled again next time
            pass
    return code


def _read(path: Path) -> bytes | None:
    """Return cached code; None if there is none, or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    code = data[32:]
    return code if hashlib.sha256(code).digest() == data[:32] else None


def _cache_folder() -> Path | None:
    from platformdirs import user_cache_path

    try:
        folder = user_cache_path("nnxp", appauthor=False) / "compiled"
    except RuntimeError:
        return None
    return folder if folder.is_absolute() else None
