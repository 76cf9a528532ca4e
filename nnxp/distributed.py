"""Distributed: the processes of an MPI program as ranks, on CPUs and, by NCCL, on GPUs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from nnxp.checks import optional_import, unknown_name
from nnxp.errors import MissingExtraError
from nnxp.extras import pip
from nnxp.ranks import Ranks

__all__ = ["MPIRanks", "NCCLRanks", "Ranks", "mpi", "nccl"]

_STATISTICS = ("all", "own")
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1e-5, 1e-2  # seconds


class MPIRanks(Ranks):
    """The processes of ``mpiexec``, which exchange arrays by MPI; `mpi` makes them.

    Parameters
    ----------
    batch_norm : {"all", "own"}, optional
        See `mpi`.
    """

    def __init__(self, batch_norm: str = "all") -> None:
        if batch_norm not in _STATISTICS:
            raise unknown_name("batch_norm", batch_norm, _STATISTICS)
        optional_import("mpi4py", "mpi")
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # mpi4py has no MPI of its own
            reason = str(error).partition("\n")[0]
            raise MissingExtraError(
                f"mpi4py finds no MPI ({reason}); {pip('install', 'mpich')}"
            ) from error

        self.batch_norm = batch_norm
        self._mpi = MPI
        # Its own messages, and others for texts: a rank that fails sends a text while the other
        # ranks wait for its gradients.
        self._vectors, self._texts = MPI.COMM_WORLD.Dup(), MPI.COMM_WORLD.Dup()
        self.rank, self.size = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
        machine = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank = machine.Get_rank()
        self.shares_machine = machine.Get_size() > 1
        machine.Free()

    def __reduce__(self) -> tuple[Callable[..., Ranks], tuple[str]]:
        return mpi, (self.batch_norm,)

    def close(self) -> None:
        """End MPI, so that an error of all ranks does not abort it."""
        self._mpi.Finalize()

    def leave(self) -> None:
        """Make the end of this process end all others, which wait for it."""
        super().leave()
        from mpi4py.run import set_abort_status

        set_abort_status(1)

    def takes(self, vector: Any) -> bool:
        """Return whether a vector is CuPy's."""
        return hasattr(vector, "__cuda_array_interface__") and hasattr(vector, "get")

    def all_reduce(self, vector: Any) -> None:
        """Sum a vector; a vector on a GPU is copied to the host and back."""
        self.require_others()
        if isinstance(vector, np.ndarray):
            self._vectors.Allreduce(self._mpi.IN_PLACE, vector)
            return
        host = vector.get()
        self._vectors.Allreduce(self._mpi.IN_PLACE, host)
        vector.set(host)

    def gather(self, text: str, patience: float | None = None) -> list[str] | None:
        """Return the texts of all ranks; see `Ranks.gather`."""
        own = np.frombuffer(text.encode(), np.uint8)
        sizes = np.zeros(self.size, np.int64)
        sizes[self.rank] = own.size
        request = self._texts.Iallreduce(self._mpi.IN_PLACE, sizes)
        end = None if patience is None else time.monotonic() + patience
        pause = _SHORTEST_PAUSE  # not a whole core for a rank that waits for a long time
        while not request.Test():
            if end is not None and time.monotonic() > end:
                return None
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        all_texts = np.empty(int(sizes.sum()), np.uint8)
        self._texts.Allgatherv(own, (all_texts, sizes))
        ends = np.cumsum(sizes)
        parts = zip(ends - sizes, ends, strict=True)
        return [all_texts[start:stop].tobytes().decode() for start, stop in parts]


class NCCLRanks(MPIRanks):
    """The processes of ``mpiexec``, each with a GPU, which exchange CuPy's arrays by NCCL.

    Texts and NumPy arrays go by MPI. `nccl` makes them.
    """

    def __init__(self, batch_norm: str = "all") -> None:
        super().__init__(batch_norm)
        optional_import("cupy", "cuda13")
        import cupy
        from cupyx.distributed import init_process_group

        self.device = f"cuda:{self.local_rank % cupy.cuda.runtime.getDeviceCount()}"
        with cupy.cuda.Device(int(self.device.partition(":")[2])):
            self._nccl = init_process_group(self.size, self.rank, use_mpi=True)

    def __reduce__(self) -> tuple[Callable[..., Ranks], tuple[str]]:
        return nccl, (self.batch_norm,)

    def all_reduce(self, vector: Any) -> None:
        """Sum a vector: on a GPU in the order of its current stream."""
        if isinstance(vector, np.ndarray):
            super().all_reduce(vector)
        else:
            self._nccl.all_reduce(vector, vector, "sum")


_made: dict[tuple[type[MPIRanks], str], MPIRanks] = {}


def _once(kind: type[MPIRanks], batch_norm: str) -> Any:
    """Return the same object each time, since MPI limits the number of communicators."""
    key = kind, batch_norm
    if key not in _made:
        _made[key] = kind(batch_norm)
    return _made[key]


def mpi(batch_norm: str = "all") -> MPIRanks:
    """Return the processes that ``mpiexec`` has started, as `ranks` of a `Trainer`.

    All of them call this, and run the same program: ``mpiexec -n 4 python -m mpi4py program.py``.
    With ``-m mpi4py``, an error of one process ends all of them. Needs the extra ``mpi``.

    Parameters
    ----------
    batch_norm : {"all", "own"}, optional
        The statistics with which `BatchNorm` normalizes: those of the global batch, as in one
        process, which takes three short exchanges for each layer and step; or those of each
        rank's rows, whose running averages are then averaged over the ranks.

    Returns
    -------
    MPIRanks
        With ``rank``, the number of this process, and ``size``, that of all.

    Raises
    ------
    MissingExtraError
        If mpi4py is not installed.
    """
    ranks: MPIRanks = _once(MPIRanks, batch_norm)
    return ranks


def nccl(batch_norm: str = "all") -> NCCLRanks:
    """Return the processes that ``mpiexec`` has started, each with a GPU of its own.

    Their gradients are summed by NCCL, and stay on the GPUs. ``nnxp.device(ranks.device)`` is the
    GPU of this process: build the network there. Needs the extras ``mpi`` and ``cuda13``.

    Parameters
    ----------
    batch_norm : {"all", "own"}, optional
        As in `mpi`.

    Raises
    ------
    MissingExtraError
        If mpi4py or CuPy is not installed.
    """
    ranks: NCCLRanks = _once(NCCLRanks, batch_norm)
    return ranks
