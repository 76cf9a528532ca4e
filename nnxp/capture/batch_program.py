"""Batch programs: the calls of a step for one batch size, by thread and by part of the batch."""

from __future__ import annotations

from collections.abc import Sequence

from nnxp.capture.ops import Buffer, Program


class BatchPart:
    """The calls for some rows of a batch.

    Attributes
    ----------
    batch : tuple of array
        The buffers of these rows.
    calls : list of callable
    count : int
        How often to do this in a step, each time with other rows.
    nbytes : int
        The bytes of all buffers, `batch` included.
    """

    def __init__(
        self, batch: tuple[Buffer, ...], calls: Program, count: int = 1, nbytes: int = 0
    ) -> None:
        self.batch, self.calls, self.count, self.nbytes = batch, calls, count, nbytes

    def fetch(self, examples: tuple[Buffer, ...], rows: Buffer) -> None:
        """Copy rows of the examples to the buffers."""
        for x, buffer in zip(examples, self.batch, strict=True):
            if x.flags.c_contiguous:
                x.take(rows, 0, buffer, "clip")  # "raise" would make a copy first
            else:  # of which `take` would copy all examples first
                buffer[...] = x[rows]


class ThreadProgram:
    """The calls of one thread in a step, for consecutive rows of the batch.

    Attributes
    ----------
    before : list of callable
        The calls before the first part.
    parts : list of BatchPart
        All rows, or parts of them, each of which stays in the cache.
    nbytes : int
        The bytes of the buffers of all parts, and of the thread's gradients and sums.
    """

    parts: Sequence[BatchPart]

    def __init__(self, before: Program, parts: Sequence[BatchPart], own: int = 0) -> None:
        self.before, self.parts = before, parts
        self.nbytes = own + sum(part.nbytes for part in parts)

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(part.count * len(part.batch[0]) for part in self.parts)

    def run(self, examples: tuple[Buffer, ...], rows: Buffer) -> None:
        """Call all, for these rows of the examples."""
        for call in self.before:
            call()
        start = 0
        for part in self.parts:
            for _ in range(part.count):
                end = start + len(part.batch[0])
                part.fetch(examples, rows[start:end])
                for call in part.calls:
                    call()
                start = end


class BatchProgram:
    """A step for one batch size.

    Attributes
    ----------
    threads : list of ThreadProgram
        The calls of each thread.
    update : list of callable
        The calls after all threads have ended.
    """

    threads: Sequence[ThreadProgram]

    def __init__(self, threads: Sequence[ThreadProgram], update: Program) -> None:
        self.threads, self.update = threads, update

    @property
    def nbytes(self) -> int:
        """The bytes of the buffers."""
        return sum(thread.nbytes for thread in self.threads)
