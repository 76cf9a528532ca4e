"""Ranks that are threads of one process, for tests without MPI."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from nnxp.ranks import Ranks


class ThreadRanks(Ranks):
    """One of several threads; the sums are in the order of the ranks."""

    def __init__(self, rank, shared, batch_norm):
        self.rank, self.size, self.batch_norm = rank, shared.size, batch_norm
        self._shared = shared
        self.vectors = 0  # the exchanges of this rank
        self.shares_machine = True

    def all_reduce(self, vector):
        self.require_others()
        self.vectors += 1
        shared = self._shared
        shared.vectors[self.rank] = vector.copy()
        shared.on_vectors.wait()
        total = sum(shared.vectors[1:], shared.vectors[0])
        shared.on_vectors.wait()
        vector[...] = total

    def gather(self, text, patience=None):
        shared = self._shared
        shared.texts[self.rank] = text
        try:
            shared.on_texts.wait(patience)
            texts = list(shared.texts)
            shared.on_texts.wait()
        except threading.BrokenBarrierError:
            return None
        return texts


class _Shared:
    def __init__(self, size):
        self.size = size
        self.vectors, self.texts = [None] * size, [None] * size
        self.on_vectors, self.on_texts = threading.Barrier(size), threading.Barrier(size)


def run_ranks(size, function, batch_norm="all"):
    """Call ``function(ranks)`` in a thread for each rank, and return the results or the errors."""
    shared = _Shared(size)

    def call(rank):
        ranks = ThreadRanks(rank, shared, batch_norm)
        try:
            return function(ranks)
        except BaseException as error:  # noqa: BLE001 - returned
            if ranks.is_alone:  # as mpi4py ends a program of which one rank has failed
                shared.on_vectors.abort()
                shared.on_texts.abort()
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(call, range(size)))
