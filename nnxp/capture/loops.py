"""Loops: elementwise ops that one pass over the memory can compute together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from nnxp.capture.ops import Buffer, Ops, Program
from nnxp.capture.recorded import Recorded
from nnxp.capture.tape import Op

# How many entries back an op may join a loop. Further back, its result would be written to memory
# and read again much later.
_DISTANCE = 3


class Loop(Op):
    """Elementwise ops over one shape.

    Parameters
    ----------
    ops : list of Op
    results : list of Recorded
        The results that are read outside the loop; others need no memory.

    Attributes
    ----------
    ops : list of Op
    """

    def __init__(self, ops: list[Op], results: list[Recorded]) -> None:
        inside = {op.result for op in ops}
        reads = dict.fromkeys(x for op in ops for x in op.reads if x not in inside)
        super().__init__(Loop, list(reads), {}, results[0])
        self.ops, self.results = ops, results

    def lower(self, library: Ops, arrays: dict[Recorded, Buffer]) -> Program:
        """Return the calls that compute the results, given the buffers."""
        return library.lower_loop(self, arrays)


def fuse_loops(ops: list[Op], outputs: set[Recorded], suits: Callable[[Op], bool]) -> list[Op]:
    """Replace ops by loops where possible, in an order that gives large loops.

    Parameters
    ----------
    ops : list of Op
    outputs : set of Recorded
        The results that are read after the last op.
    suits : callable
        Whether an op can be part of a loop.
    """
    schedule: list[list[Op]] = []  # the ops of a loop, or a single one
    is_loop: list[bool] = []
    views: dict[int, list[Op]] = defaultdict(list)  # those that read the results of this entry
    place: dict[Recorded, int] = {}  # the entry after which a result is there

    def entry_for(op: Op) -> int:
        ready = max((place.get(x, -1) for x in op.reads), default=-1)
        for i in range(len(schedule) - 1, max(len(schedule) - 1 - _DISTANCE, ready - 1, -1), -1):
            members = {x.result for x in schedule[i]}
            known = all(place.get(x, -1) < i or x in members for x in op.reads)
            if is_loop[i] and schedule[i][0].result.shape == op.result.shape and known:
                return i
        return len(schedule)

    for op in ops:
        if op.result.owner is not op.result:
            i = max((place.get(x, -1) for x in op.reads), default=-1)
            views[i].append(op)
        else:
            joins = suits(op)
            i = entry_for(op) if joins else len(schedule)
            if i == len(schedule):
                schedule.append([])
                is_loop.append(joins)
            schedule[i].append(op)
        place[op.result] = i
    entry_of = {op.result: i for i, members in enumerate(schedule) for op in members}
    read_elsewhere = {x for op in ops for x in op.reads if place[op.result] != entry_of.get(x)}
    read_elsewhere |= outputs | {x for each in views.values() for op in each for x in op.reads}
    fused = [*views[-1]]
    for i, members in enumerate(schedule):
        results = [op.result for op in members if op.result in read_elsewhere]
        fused += [Loop(members, results)] if is_loop[i] else members
        fused += views[i]
    return fused
