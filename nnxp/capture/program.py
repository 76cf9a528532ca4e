"""Program: compiles a tape to calls with fixed buffers, which allocate almost no memory.

A program has the same rounding as the plain calls, except for fused products and sums, which round
once less, and large sums, which BLAS adds in another order.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from nnxp.capture.loops import Loop, fuse_loops
from nnxp.capture.ops import (
    Buffer,
    Ops,
    Program,
    add_product,
    arranged,
    memory_span,
    subtract_product,
    weighted_sum,
)
from nnxp.capture.recorded import Recorded
from nnxp.capture.tape import Op, Tape


class Compiled(NamedTuple):
    """A program, and the bytes of the buffers for its results."""

    program: Program
    nbytes: int


def compile_program(
    tape: Tape, targets: Iterable[tuple[Recorded | Buffer, Buffer]], library: Ops
) -> Compiled:
    """Return a program that computes recorded arrays into target buffers.

    Parameters
    ----------
    tape : Tape
    targets : iterable of (Recorded, array)
        Each recorded array with its target buffer. The tape may read this buffer: it is written
        after the last read.
    library : Ops
        Computes the ops.
    """
    # A gradient may be a constant, an array that depends on nothing recorded.
    recorded = [(x if isinstance(x, Recorded) else tape.read(x), buffer) for x, buffer in targets]
    # An array that is already in its target, such as a frozen parameter, needs no copy.
    recorded = [(x, buffer) for x, buffer in recorded if tape.buffers.get(x) is not buffer]
    outputs = {x for x, _ in recorded}
    ops = _live(tape.ops, outputs)
    if not library.fuses_loops:
        ops = _fuse_bias(ops, outputs)
    if library.accumulates:
        ops = _fuse_descent(ops, outputs)
    if library.accumulates and not library.fuses_loops:
        ops = _fuse_sums(ops, outputs)
    if library.fuses_loops:
        ops = fuse_loops(ops, outputs, library.suits_loop)
    return _assign_buffers(ops, tape.buffers, recorded, library)


def _live(ops: list[Op], outputs: set[Recorded]) -> list[Op]:
    """Return the ops on which the outputs depend."""
    wanted = set(outputs)
    live = []
    for op in reversed(ops):
        if op.result in wanted:
            live.append(op)
            wanted.update(op.reads)
    return live[::-1]


class _Producers:
    """Finds the op of a value with only one reader, so that the two can be fused."""

    def __init__(self, ops: list[Op], outputs: set[Recorded]) -> None:
        self.by_result = {op.result: op for op in ops}
        self.readers = Counter(x.owner for op in ops for x in op.reads)
        self._outputs = outputs

    def find(self, x: object, function: np.ufunc) -> Op | None:
        """Return the op that computes `x` with `function`, if `x` has one reader and no target."""
        op = self.by_result.get(x) if isinstance(x, Recorded) else None
        if op is None or op.function is not function:
            return None
        return None if self.readers[op.result] > 1 or op.result in self._outputs else op


def _fuse_bias(ops: list[Op], outputs: set[Recorded]) -> list[Op]:
    """Fuse each ``a @ b + row`` or ``a @ b + column``, an affine layer, to one op."""
    producers = _Producers(ops, outputs)
    fused: dict[int, Op | None] = {}  # in place of the op with this id
    for op in [op for op in ops if op.function is np.add]:
        product, row = producers.find(op.args[0], np.matmul), op.args[1]
        if product is None or not isinstance(row, Recorded):
            continue
        shape = product.result.shape
        if row.shape in (shape[1:], (shape[0], 1)) and row.dtype == product.result.dtype:
            fused[id(op)] = Op(add_product, (row, *product.args), {}, op.result)
            fused[id(product)] = None
    return [x for x in (fused.get(id(op), op) for op in ops) if x is not None]


def _fuse_sums(ops: list[Op], outputs: set[Recorded]) -> list[Op]:
    """Fuse each output ``x * a + b * y``, also with ``-`` or only one number, to one op.

    These are the moving averages and the steps of optimizers.
    """
    producers = _Producers(ops, outputs)
    fused: dict[int, Op | None] = {}  # in place of the op with this id

    def scaled(term: Recorded) -> tuple[Op | None, Recorded | None, Recorded]:
        """Return the product that a term is, its number and its array."""
        product = producers.find(term, np.multiply)
        if product is not None and all(isinstance(x, Recorded) for x in product.args):
            number, x = sorted(product.args, key=lambda x: x.ndim)
            if number.ndim == 0:
                return product, number, x
        return None, None, term

    for op in [op for op in ops if op.function in (np.add, np.subtract)]:
        if op.result not in outputs or not all(isinstance(x, Recorded) for x in op.args):
            continue
        (one, a, x), (other, b, y) = map(scaled, op.args)
        alike = all((z.shape, z.dtype) == (x.shape, x.dtype) for z in (y, op.result))
        if not alike or not (one or other):
            continue
        fused[id(op)] = Op(weighted_sum, (x, a, b, y, op.function), {}, op.result)
        fused |= {id(each): None for each in (one, other) if each is not None}
    return [x for x in (fused.get(id(op), op) for op in ops) if x is not None]


def _fuse_descent(ops: list[Op], outputs: set[Recorded]) -> list[Op]:
    """Fuse each output ``x - factor * (a @ b)``, SGD's step of a weight matrix, to one op.

    The gradient then needs no buffer and no pass of its own. The fused op comes as early as `x` may
    be overwritten.
    """
    producers = _Producers(ops, outputs)
    position = {id(op): float(i) for i, op in enumerate(ops)}
    readers: dict[Recorded, list[Op]] = defaultdict(list)
    for op in ops:
        for read in op.reads:
            readers[read.owner].append(op)
    fused_ops = []
    for op in [op for op in ops if op.function is np.subtract]:
        x, step = op.args
        scaling = producers.find(step, np.multiply)
        product = scaling and producers.find(scaling.args[1], np.matmul)
        if not scaling or not product:
            continue
        factor, (a, b) = scaling.args[0], product.args
        if not all(isinstance(y, Recorded) for y in (x, factor, a, b)):
            continue
        same = all((y.shape, y.dtype) == (x.shape, x.dtype) for y in (product.result, op.result))
        if not same or factor.ndim or x.ndim != 2:
            continue
        # A subtraction whose result is read again is part of a layer.
        if op.result not in outputs or producers.readers[op.result]:
            continue
        if any(y.owner is x.owner for y in (a, b)):
            continue
        fused = Op(subtract_product, (x, factor, a, b), {}, op.result)
        before = [product, *(y for y in readers[x.owner] if y is not op)]
        before += [producers.by_result[y] for y in (x, factor) if y in producers.by_result]
        position[id(fused)] = max(position[id(y)] for y in before if id(y) in position) + 0.5
        for y in (a, b):
            readers[y.owner].append(fused)
        for y in (op, scaling, product):
            del position[id(y)]
        fused_ops.append(fused)
    remaining = [op for op in [*ops, *fused_ops] if id(op) in position]
    return sorted(remaining, key=lambda op: position[id(op)])


def _assign_buffers(
    ops: list[Op],
    buffers: Mapping[Recorded, Buffer],
    targets: list[tuple[Recorded, Buffer]],
    library: Ops,
) -> Compiled:
    """Give each result a buffer, its target or one that is free again, and lower the ops."""
    last_read = {x.owner: i for i, op in enumerate(ops) for x in op.reads}
    direct, copied = _split_targets(ops, buffers, targets, last_read, library)
    read = {x for op in ops for x in op.reads} | {x for x, _ in targets}
    arrays = {x: library.array(buffers[x]) for x in read & buffers.keys()}
    program, nbytes = _lower(ops, arrays, direct, last_read, library)
    # Through other memory, since the target of one result may be the source of another.
    sources = [library.module.empty_like(target) for _, target in copied]
    for source, (recorded, _) in zip(sources, copied, strict=True):
        program += library.copy(source, arrays[recorded])
    for source, (_, target) in zip(sources, copied, strict=True):
        program += library.copy(target, source)
    return Compiled(program, nbytes + sum(x.nbytes for x in sources))


def _split_targets(
    ops: list[Op],
    buffers: Mapping[Recorded, Buffer],
    targets: list[tuple[Recorded, Buffer]],
    last_read: dict[Recorded, int],
    library: Ops,
) -> tuple[dict[Recorded, Buffer], list[tuple[Recorded, Buffer]]]:
    """Return the results to compute in their targets, and those to copy there at the end.

    `last_read` is updated: results to copy are read at the end.
    """
    computed = {x: i for i, op in enumerate(ops) for x in op.results}
    # Views, and arrays that are only read, are copied.
    copied = [(x, target) for x, target in targets if x not in computed or x.owner is not x]
    last_read.update({x.owner: len(ops) for x, _ in copied})
    direct: dict[Recorded, Buffer] = {}
    overlaps = _overlaps(buffers)
    for recorded, target in targets:
        if recorded not in computed or recorded.owner is not recorded:
            continue
        position = computed[recorded]
        overwritten = overlaps(target)
        # An op that may write where it reads may itself be the last reader.
        first = position + _may_overwrite(ops[position], overwritten, buffers, target)
        if recorded not in direct and all(last_read.get(x, -1) < first for x in overwritten):
            direct[recorded] = target
        else:
            copied.append((recorded, target))
            last_read[recorded] = len(ops)
    return direct, copied


def _lower(
    ops: list[Op],
    arrays: dict[Recorded, Buffer],
    direct: Mapping[Recorded, Buffer],
    last_read: Mapping[Recorded, int],
    library: Ops,
) -> Compiled:
    """Return the calls of all ops; `arrays` receives the buffer of each result."""
    program: Program = []
    nbytes = 0
    blocks: dict[Recorded, Buffer] = {}
    free = _FreeBlocks()
    for position, op in enumerate(ops):
        # In the order of the arguments, so that each process gives the same buffers.
        owners = dict.fromkeys(x.owner for x in op.reads)
        unused = [x for x in owners if last_read[x] == position and x in blocks]
        if _is_elementwise(op):
            # A result may overwrite an argument; with another dtype, NumPy would copy the
            # argument first.
            reads = {*op.reads}
            for x in unused:
                if x in reads and all(_are_alike(x.sample, y.sample) for y in op.results):
                    free.add(blocks.pop(x))
        if (result := op.result).owner is not result:
            args, kwargs = op.bind(arrays.__getitem__)
            view = library.function(op.function)(*args, **kwargs)
            if library.share_memory(view, arrays[result.owner]):
                arrays[result] = view
                continue
            # What is a view of the sample needs a copy with the buffer's strides.
        for result in op.results:
            if result in direct:
                arrays[result] = direct[result]
            else:
                size = result.sample.nbytes
                block = free.take(size)
                nbytes += size if block is None else 0
                blocks[result] = library.allocate(size) if block is None else block
                arrays[result] = arranged(blocks[result][:size].view(result.dtype), result.sample)
        program += op.lower(library, arrays)
        for x in unused:
            if x in blocks:
                free.add(blocks.pop(x))
    return Compiled(program, nbytes)


def _overlaps(
    buffers: Mapping[Recorded, Buffer],
) -> Callable[[Buffer], list[Recorded]]:
    """Return a function that finds the recorded arrays whose buffers overlap an array."""
    recorded = list(buffers)
    spans = np.array([memory_span(x) for x in buffers.values()], np.int64).reshape(-1, 2)

    def overlapping(x: Buffer) -> list[Recorded]:
        start, end = memory_span(x)
        found = np.flatnonzero((spans[:, 0] < end) & (spans[:, 1] > start))
        return [recorded[i] for i in found]

    return overlapping


class _FreeBlocks:
    """Blocks of memory that are free again."""

    def __init__(self) -> None:
        self._by_size: dict[int, list[Buffer]] = defaultdict(list)
        self._sizes: list[int] = []  # sorted

    def add(self, block: Buffer) -> None:
        """Add a block."""
        if not self._by_size[block.nbytes]:
            bisect.insort(self._sizes, block.nbytes)
        self._by_size[block.nbytes].append(block)

    def take(self, size: int) -> Buffer | None:
        """Remove and return the smallest block of at least `size` bytes, the last one of these."""
        i = bisect.bisect_left(self._sizes, size)
        if i == len(self._sizes):
            return None
        block = self._by_size[self._sizes[i]].pop()
        if not self._by_size[self._sizes[i]]:
            self._sizes.pop(i)
        return block


def _is_elementwise(op: Op) -> bool:
    is_ufunc = isinstance(op.function, np.ufunc) and op.function.signature is None
    return is_ufunc or isinstance(op, Loop)


def _are_alike(x: Buffer, y: Buffer) -> bool:
    """Return whether elements of the same index are at the same place of equal memory."""
    return (x.shape, x.strides, x.dtype) == (y.shape, y.strides, y.dtype)


def _may_overwrite(
    op: Op, read: list[Recorded], buffers: Mapping[Recorded, Buffer], target: Buffer
) -> bool:
    """Return whether an op may write to a target where these arrays are, which it may read."""
    if op.function in (subtract_product, weighted_sum):  # the others are read after a copy of `x`
        factors = {id(x.owner) for x in op.reads[1:]}
        return not any(id(x) in factors for x in read)
    if isinstance(op, Loop):  # each element of a result comes after the loads of this element
        overlapping = [x for x in op.reads if any(x.owner is y for y in read)]
        return all(
            x in buffers
            and _are_alike(buffers[x], target)
            and memory_span(buffers[x]) == memory_span(target)
            for x in overlapping
        )
    return _is_elementwise(op)
