"""LLVM's instructions for elementwise ops, and for loops over the elements of arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from llvmlite import ir

from nnxp.capture.llvm_math import Arithmetic
from nnxp.capture.ops import Buffer
from nnxp.capture.recorded import Recorded
from nnxp.capture.tape import Op

POINTER = ir.PointerType()
SIZE = ir.IntType(64)
_BIT = ir.IntType(1)
INT64 = np.dtype("int64")
KINDS: dict[str, ir.Type] = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
KINDS |= {f"{sign}int{bits}": ir.IntType(bits) for bits in (8, 16, 32, 64) for sign in ("", "u")}
KINDS["bool"] = ir.IntType(8)  # in memory; as a value, a bit

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
    known = x.dtype.name in KINDS and x.dtype.isnative
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


def emit_loops(
    builder: ir.IRBuilder, lengths: Sequence[int], body: Callable[[list[ir.Value]], None]
) -> None:
    """Emit nested loops; the body receives the indices."""

    def emit(depth: int, indices: list[ir.Value]) -> None:
        if depth == len(lengths):
            body(indices)
        else:
            emit_loop(builder, lengths[depth], lambda i, _: emit(depth + 1, [*indices, i]))

    if 0 not in lengths:
        emit(0, [])


def emit_loop(
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
    index = builder.phi(SIZE)
    index.add_incoming(SIZE(0), before)
    value = None if start is None else builder.phi(start.type)
    result = body(index, value)
    following = builder.add(index, SIZE(1), flags=("nsw", "nuw"))
    index.add_incoming(following, builder.block)
    if value is not None:
        value.add_incoming(start, before)
        value.add_incoming(result, builder.block)
    after = builder.function.append_basic_block("end")
    end = SIZE(length) if isinstance(length, int) else length
    builder.cbranch(builder.icmp_unsigned("<", following, end), inside, after)
    builder.position_at_end(after)
    return result


def element(
    builder: ir.IRBuilder,
    pointer: ir.Value,
    dtype: np.dtype[Any],
    indices: Sequence[ir.Value],
    strides: Sequence[int],
) -> ir.Value:
    """Return the pointer to an element."""
    offset: ir.Value = SIZE(0)
    for index, stride in zip(indices, strides, strict=True):
        if stride:
            step = index if stride == 1 else builder.mul(index, SIZE(stride), flags=("nsw",))
            offset = builder.add(offset, step, flags=("nsw",))
    return builder.gep(pointer, [offset], inbounds=True, source_etype=KINDS[dtype.name])


def load(builder: ir.IRBuilder, place: ir.Value, dtype: np.dtype[Any]) -> ir.Value:
    """Return the number at a place in memory; a bool becomes a bit."""
    value = builder.load(place, typ=KINDS[dtype.name])
    return builder.icmp_unsigned("!=", value, value.type(0)) if dtype == np.bool_ else value


def store(builder: ir.IRBuilder, value: ir.Value, place: ir.Value, dtype: np.dtype[Any]) -> None:
    """Store a number at a place in memory."""
    builder.store(builder.zext(value, KINDS["bool"]) if dtype == np.bool_ else value, place)


def emit_op(
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
            args.append(ir.Constant(_BIT if dtype == np.bool_ else KINDS[dtype.name], number))
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
        return maximum(builder, sign, args[0], args[1], kind)
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


def maximum(builder: ir.IRBuilder, sign: str, x: ir.Value, y: ir.Value, kind: str) -> ir.Value:
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
    kind = KINDS[target.name]
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
