"""Program: the ops of a tape, compiled to calls whose arguments and results have fixed buffers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from nnxp.capture.ops import Buffer, Ops, Program, add_product, subtract_product
from nnxp.capture.recorded import Recorded
from nnxp.capture.tape import Op, Tape


def compile_program(tape: Tape, targets: Iterable[tuple[Recorded, Buffer]], ops: Ops) -> Program:
    """Return the calls that bring the numbers of recorded arrays into their memories.

    A memory may be one that the tape reads: it is written after it was read for the last time.
    """
    targets = list(targets)
    kept = {recorded for recorded, _ in targets}
    wanted = set(kept)
    calls = []
    for call in reversed(tape.calls):
        if call.result in wanted:
            calls.append(call)
            wanted.update(call.reads)
    return _assign_buffers(_fuse(calls[::-1], kept), tape.memory, targets, ops)


def _fuse(calls: list[Op], kept: set[Recorded]) -> list[Op]:
    """Join each ``a @ b + row`` to one call, and each ``x - factor * (a @ b)`` that ends in `x`.

    The first is an affine layer. The second is how a weight matrix descends its gradient, which
    then takes no memory and no pass of its own; it is done as early as `x` may be overwritten. What
    is in the middle must serve nothing else.
    """
    made = {call.result: call for call in calls}
    readers = Counter(x.owner for call in calls for x in call.reads)

    def maker(x: Any, function: np.ufunc) -> Op | None:
        call = made.get(x) if isinstance(x, Recorded) else None
        if call is None or call.function is not function or readers[x] > 1 or x in kept:
            return None
        return call

    for call in [call for call in calls if call.function is np.add]:
        product, row = maker(call.args[0], np.matmul), call.args[1]
        like = product and (product.result.shape[1:], product.result.dtype)
        if product and isinstance(row, Recorded) and (row.shape, row.dtype) == like:
            joined = Op(add_product, (row, *product.args), {})
            joined.result = call.result
            calls = [joined if c is call else c for c in calls if c is not product]
    for call in [call for call in calls if call.function is np.subtract]:
        x, step = call.args
        scaling = maker(step, np.multiply)
        product = scaling and maker(scaling.args[1], np.matmul)
        if not scaling or not product:
            continue
        factor, (a, b) = scaling.args[0], product.args
        if not all(isinstance(y, Recorded) for y in (x, factor, a, b)):
            continue
        like = x.shape, x.dtype
        if factor.ndim or any((y.shape, y.dtype) != like for y in (product.result, call.result)):
            continue
        # An inner step of a layer is none of a descent.
        if x.ndim != 2 or call.result not in kept or readers[call.result]:
            continue
        if any(y.owner is x.owner for y in (a, b)):
            continue
        joined = Op(subtract_product, (x, factor, a, b), {})
        joined.result = call.result
        rest = [other for other in calls if other not in (call, scaling)]
        needed = [product, *(c for c in rest if any(r.owner is x.owner for r in c.reads))]
        last = max(map(rest.index, needed))
        calls = [c for c in [*rest[: last + 1], joined, *rest[last + 1 :]] if c is not product]
    return calls


def _assign_buffers(
    calls: list[Op],
    memory: Mapping[Recorded, Buffer],
    targets: list[tuple[Recorded, Buffer]],
    ops: Ops,
) -> Program:
    """Give each result its place, in its target or in memory that is free again."""
    made = {call.result: position for position, call in enumerate(calls)}
    last = {x.owner: position for position, call in enumerate(calls) for x in call.reads}
    # What was only read, or is a view, is copied at the end, and must last until then.
    copied = [(x, target) for x, target in targets if x not in made or x.owner is not x]
    last.update({x.owner: len(calls) for x, _ in copied})
    direct: dict[Recorded, Buffer] = {}
    for recorded, target in targets:
        if recorded not in made or recorded.owner is not recorded:
            continue
        # A call that may write where it reads is not too early itself.
        first = made[recorded] + _may_overwrite(calls[made[recorded]].function)
        overwritten = (x for x, y in memory.items() if ops.share_memory(y, target))
        if recorded not in direct and all(last.get(x, -1) < first for x in overwritten):
            direct[recorded] = target
        else:
            copied.append((recorded, target))
            last[recorded] = len(calls)

    program: Program = []
    read = {x for call in calls for x in call.reads} | {x for x, _ in targets}
    places = {x: ops.array(memory[x]) for x in read & memory.keys()}
    blocks: dict[Recorded, Buffer] = {}
    free: list[Buffer] = []
    for position, call in enumerate(calls):
        result = call.result
        args, kwargs = call.bind(places.__getitem__)
        dying = {x.owner for x in call.reads if last[x.owner] == position} & blocks.keys()
        if isinstance(call.function, np.ufunc) and call.function.signature is None:
            # Element by element, the result may take the place of an argument.
            free += [blocks.pop(x) for x in dying if x.shape == result.shape]
        view = None
        if result.owner is not result:
            view = ops.named(call.function)(*args, **kwargs)
        if view is not None and ops.share_memory(view, places[result.owner]):
            places[result] = view
        else:  # or a view of the sample that takes a copy here, where strides are others
            if result in direct:
                places[result] = direct[result]
            else:
                size = result.sample.nbytes
                block = _freed(free, size)
                blocks[result] = ops.block(size) if block is None else block
                places[result] = ops.place(result.shape, result.dtype, blocks[result])
            program += ops.lower(call.function, args, kwargs, places[result])
        free += [blocks.pop(x) for x in dying & blocks.keys()]
    # By way of other memory, since one's target may be what another one is read from.
    sources = [ops.module.empty_like(target) for _, target in copied]
    for source, (recorded, _) in zip(sources, copied, strict=True):
        program.append(partial(ops.module.copyto, source, places[recorded]))
    for source, (_, target) in zip(sources, copied, strict=True):
        program.append(partial(ops.module.copyto, target, source))
    return program


def _freed(free: list[Any], size: int) -> Any:
    """Take the block of `size` bytes that was freed last, if there is one."""
    for position in reversed(range(len(free))):
        if free[position].nbytes == size:
            return free.pop(position)
    return None


def _may_overwrite(function: Callable[..., Any]) -> bool:
    return isinstance(function, np.ufunc) or function is subtract_product
