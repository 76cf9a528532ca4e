"""Ranks: the processes that train one network together, and the share of each of them."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, NoReturn, Self

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array, is_numpy, namespace_of
from nnxp.checks import issue_warning
from nnxp.errors import NnxpError, RanksError

_PATIENCE = 2.0  # seconds


class Share(NamedTuple):
    """The rows of a global batch that one rank computes.

    A rank without rows computes the last one, which counts 0: it then does what the others do,
    counts its steps and joins each exchange.

    Attributes
    ----------
    start, stop : int
        Row indices; they are equal for a rank without rows.
    total : int
        The number of rows of the global batch, at least 1.
    """

    start: int
    stop: int
    total: int

    @property
    def is_empty(self) -> bool:
        """Whether this rank has no rows."""
        return self.start == self.stop

    @property
    def rows(self) -> slice:
        """The rows to compute."""
        return slice(self.total - 1, self.total) if self.is_empty else slice(self.start, self.stop)


class Ranks(ABC):
    """Base class: the processes that train together. A subclass defines `all_reduce` and `gather`.

    All ranks call the same methods in the same order.

    Attributes
    ----------
    rank : int
        The number of this process, from 0.
    size : int
        The number of processes.
    batch_norm : str
        The statistics of `BatchNorm`: ``"all"`` for those of the global batch, or ``"own"`` for
        those of each rank's rows.
    shares_machine : bool
        Whether other ranks compute on this machine, so that each has one thread.
    is_alone : bool
        Whether this rank has failed where the others have not: they wait for it, and it must end.
    has_failed : bool
        Whether an error has been raised on all ranks.
    """

    rank: int = 0
    size: int = 1
    batch_norm: str = "all"
    shares_machine: bool = False
    is_alone: bool = False
    has_failed: bool = False
    _kept: tuple[str, ...] = ()  # warnings for rank 0
    _issued: frozenset[str] = frozenset()  # warnings

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: rank {self.rank} of {self.size}>"

    def __deepcopy__(self, memo: object) -> Self:
        return self  # a copy of a trainer has the same processes

    @abstractmethod
    def all_reduce(self, vector: Any) -> None:
        """Replace a contiguous vector by its sum over all ranks, in place.

        The sum has the same bits on all ranks. A vector on a GPU may be summed after the call, in
        the order of the GPU's work.
        """

    @abstractmethod
    def gather(self, text: str, patience: float | None = None) -> list[str] | None:
        """Return the texts of all ranks, in their order.

        Parameters
        ----------
        text : str
        patience : float, optional
            Wait for so many seconds at most, and return None if not all ranks have called this
            method by then: they do something else. This rank must end then.
        """

    def takes(self, vector: Any) -> bool:
        """Return whether `all_reduce` takes arrays of this library, beside NumPy's; none here."""
        return False

    def share(self, count: int) -> Share:
        """Return this rank's rows of a batch of `count` rows; two shares differ by at most one."""
        return Share(self.rank * count // self.size, (self.rank + 1) * count // self.size, count)

    def any(self, flag: object) -> bool:
        """Return whether a flag is true on any rank."""
        if self.size == 1:
            return bool(flag)
        total = np.array([1.0 if flag else 0.0])
        self.all_reduce(total)
        return bool(total[0])

    def total(self, numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the sum of a NumPy vector over all ranks."""
        if self.size > 1:
            numbers = numbers.copy()
            self.all_reduce(numbers)
        return numbers

    def numbers(self, number: float) -> list[float]:
        """Return the numbers of all ranks, in their order."""
        numbers = np.zeros(self.size)
        numbers[self.rank] = number
        return [float(x) for x in self.total(numbers)]

    def exchange(
        self,
        text: str = "",
        error: BaseException | None = None,
        patience: float | None = None,
        *,
        call: str = "",
    ) -> list[str]:
        """Return the texts of all ranks; if a rank has an error, raise it on all ranks.

        Rank 0 then issues the warnings that other ranks have, and it has not.

        Parameters
        ----------
        text : str, optional
        error : exception, optional
            That of this rank, which is raised there; other ranks raise one like the first.
        patience : float, optional
            As in `gather`, for a rank that fails where others may do something else. If they do,
            `leave` is called.
        call : str, optional
            What the ranks do, for the error if others do something else.

        Raises
        ------
        RanksError
            If this rank is alone, or another one exchanges something else.
        """
        if error is not None and (self.size == 1 or self.is_alone or is_common(error)):
            raise error
        self.require_others()
        if self.size == 1:
            return [text]
        said = None if error is None else [type(error).__name__, str(error)]
        gathered = self.gather(json.dumps([text, said, self._kept, call]), patience)
        if gathered is None:
            assert error is not None
            self.leave()
            raise error
        texts, errors, warnings, calls = zip(*map(json.loads, gathered), strict=True)
        self._kept = ()
        if self.rank == 0:
            self._issue(warnings)
        failed = [rank for rank, x in enumerate(errors) if x is not None]
        if failed:
            raise self.common(error or _error_of(failed[0], *errors[failed[0]]))
        for rank, other in enumerate(calls):
            if other != calls[0]:
                raise self.common(
                    RanksError(
                        f"rank {rank} is in {other or 'another exchange'}, and rank 0 in "
                        f"{calls[0] or 'another exchange'}; all ranks must make the same calls, "
                        "in the same order"
                    )
                )
        return list(texts)

    def common(self, error: BaseException) -> BaseException:
        """Mark an error that all ranks raise, so that it is not exchanged again, and return it."""
        self.has_failed = True
        error.is_common = True  # type: ignore[attr-defined]
        return error

    def warn(self, message: str, issue: Callable[[str], object] = issue_warning) -> None:
        """Issue a warning on rank 0, which gets those of other ranks by the next `exchange`.

        Parameters
        ----------
        message : str
        issue : callable, optional
            Issues a message on rank 0.
        """
        if self.rank and not self.is_alone:
            self._kept = (*self._kept, message)
            return
        if self.size > 1:
            self._issued |= {message}
        issue(message)

    def _issue(self, warnings: tuple[list[str], ...]) -> None:
        """Issue the warnings of other ranks that no rank has had before."""
        for rank, messages in enumerate(warnings):
            for message in messages:
                if message not in self._issued:
                    self._issued |= {message}
                    issue_warning(f"rank {rank}: {message}")

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """End the exchange. All ranks call this, and exchange nothing afterwards."""

    def leave(self) -> None:
        """Mark that this rank fails alone; the end of this process must end the others."""
        self.is_alone = True
        kept, self._kept = self._kept, ()
        for message in kept:
            issue_warning(message)

    def require_others(self) -> None:
        """Raise a `RanksError` if this rank has failed alone, and the others wait for it."""
        if self.is_alone:
            raise RanksError(
                "this rank has failed, and the others do not know; end the program with "
                "python -m mpi4py, which ends all ranks"
            )

    def fail(self, error: BaseException) -> NoReturn:
        """Raise this rank's error; first give the other ranks time to report theirs."""
        self.exchange(error=error, patience=_PATIENCE)
        raise error

    def require_same(
        self,
        values: dict[str, Any],
        call: str = "",
        remedy: str = "give all ranks the same data, settings and seeds",
    ) -> None:
        """Raise a `RanksError` on all ranks unless all have the same values, by name.

        Parameters
        ----------
        values : dict of str to object
            NumPy arrays, or what has a `repr`.
        call : str, optional
            As in `exchange`.
        remedy : str, optional
            What to do, for the error.
        """
        if self.size == 1:
            return
        own = json.dumps({name: _digest(x) for name, x in values.items()})
        first, *others = map(json.loads, self.exchange(own, call=call))
        for rank, other in enumerate(others, 1):
            for name in [*first, *sorted(other.keys() - first.keys())]:
                if first.get(name) != other.get(name):
                    raise self.common(
                        RanksError(f"rank {rank} has another {name} than rank 0; {remedy}")
                    )


def _digest(value: Any) -> str:
    import hashlib  # slow: it loads OpenSSL

    if isinstance(value, np.ndarray):
        return hashlib.sha256(value.tobytes()).hexdigest()
    said = re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # the address of a function
    return hashlib.sha256(said.encode()).hexdigest()


def _error_of(rank: int, kind: str, message: str) -> BaseException:
    """Return another rank's error: of the same class if it is one of nnxp's."""
    pending: list[type[NnxpError]] = [NnxpError]
    for known in pending:
        if known.__name__ == kind:
            return known(message)
        pending += known.__subclasses__()
    if kind == "KeyboardInterrupt":
        return KeyboardInterrupt()
    return RanksError(f"rank {rank} ended with {kind}: {message}")


def is_common(error: BaseException | None) -> bool:
    """Return whether all ranks raise this error, or an error in its context."""
    while error is not None:
        if hasattr(error, "is_common"):
            return True
        error = error.__context__
    return False


class OneRank(Ranks):
    """One process alone, which exchanges nothing."""

    def all_reduce(self, vector: Any) -> None:
        """Do nothing."""

    def gather(self, text: str, patience: float | None = None) -> list[str] | None:
        """Return the text."""
        return [text]


ONE_RANK = OneRank()


class Totals:
    """Sums arrays of a layer over all ranks, for statistics of a global batch.

    Captured steps record the call as one op.

    Parameters
    ----------
    ranks : Ranks
    share : Share
        The rows of this rank; without any, its arrays count 0.
    device : Device
        The network's.
    """

    __name__: ClassVar[str] = "totals"

    def __init__(self, ranks: Ranks, share: Share, device: Any) -> None:
        self._ranks, self._device = ranks, device
        self.count, self.is_empty = share.total, share.is_empty

    def sample(self, x: Array) -> Array:
        """Return an array like the result, without an exchange."""
        return x * 1

    def __call__(self, x: Array) -> Array:
        """Return the sum over all ranks of a vector, in its dtype and on its device."""
        call_whole = getattr(x, "call_whole", None)
        if call_whole is not None:
            result: Array = call_whole(self, x)
            return result
        return total_of(self._ranks, x * 0 if self.is_empty else x, self._device)


def total_of(ranks: Ranks, vector: Array, device: Any) -> Array:
    """Return the sum over all ranks of a vector of any library, in a new array."""
    if is_numpy(vector) or ranks.takes(vector):
        copied = namespace_of(vector, "total_of").asarray(vector, copy=True)
        ranks.all_reduce(copied)
        return copied
    host = np.array(device.to_host(vector))
    ranks.all_reduce(host)
    result: Array = device.asarray(host)
    return result
