"""Recorded arrays: an immutable array library whose calls are recorded on a tape."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, Protocol

import numpy as np

from nnxp.arrays import DType, Namespace
from nnxp.capture.ops import Buffer
from nnxp.errors import InputError


class Recorder(Protocol):
    """The interface of a tape for recorded arrays."""

    namespace: Namespace

    def record(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Record the call of a NumPy function and return its result, a recorded array."""

    def call_whole(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of `one_op`, and return its result, a recorded array."""


def _operator(function: Callable[..., Any]) -> Callable[..., Recorded]:
    """Return the method that records a function of the array, and of an optional second one."""
    return lambda self, *others: self._record(function, self, *others)


def _operators(
    function: Callable[..., Any],
) -> tuple[Callable[..., Recorded], Callable[..., Recorded]]:
    """Return the methods of a binary operator and its reflected operator."""
    return _operator(function), lambda self, other: self._record(function, other, self)


class Recorded:
    """An array whose operations are recorded on a tape.

    Attributes
    ----------
    sample : numpy.ndarray
        Has the array's shape and dtype; its numbers do not matter.
    """

    __array_ufunc__ = None  # so that NumPy arrays leave operators to this class

    def __init__(self, tape: Recorder, sample: Buffer) -> None:
        self.tape = tape
        self.sample = sample
        self.device = "cpu"
        self._owner: Recorded | None = None  # not self, which would be a reference cycle

    @property
    def owner(self) -> Recorded:
        """The array whose memory this one is a view of; most arrays own theirs."""
        return self if self._owner is None else self._owner

    @owner.setter
    def owner(self, owner: Recorded) -> None:
        self._owner = owner

    @property
    def dtype(self) -> DType:
        """The dtype, NumPy's."""
        return self.sample.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        return self.sample.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.sample.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.sample.size

    @property
    def T(self) -> Recorded:  # noqa: N802 - the standard's name
        """The transpose of a matrix."""
        return self._record(np.transpose, self)

    def __array_namespace__(self, api_version: str | None = None) -> Namespace:
        return self.tape.namespace

    def call_whole(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of this array, as one op if possible; see `nnxp.arrays.one_op`."""
        return self.tape.call_whole(function, *args)

    def _record(self, function: Callable[..., Any], *args: Any) -> Recorded:
        result: Recorded = self.tape.record(function, *args)
        return result

    __neg__, __pos__, __abs__ = map(_operator, (np.negative, np.positive, np.abs))
    __invert__ = _operator(np.invert)
    __add__, __radd__ = _operators(np.add)
    __sub__, __rsub__ = _operators(np.subtract)
    __mul__, __rmul__ = _operators(np.multiply)
    __truediv__, __rtruediv__ = _operators(np.divide)
    __floordiv__, __rfloordiv__ = _operators(np.floor_divide)
    __mod__, __rmod__ = _operators(np.remainder)
    __pow__, __rpow__ = _operators(np.power)
    __matmul__, __rmatmul__ = _operators(np.matmul)
    __and__, __rand__ = _operators(np.bitwise_and)
    __or__, __ror__ = _operators(np.bitwise_or)
    __xor__, __rxor__ = _operators(np.bitwise_xor)
    __lshift__, __rlshift__ = _operators(np.left_shift)
    __rshift__, __rrshift__ = _operators(np.right_shift)
    __lt__, __le__ = _operator(np.less), _operator(np.less_equal)
    __gt__, __ge__ = _operator(np.greater), _operator(np.greater_equal)
    __ne__: Callable[..., Any] = _operator(np.not_equal)

    def __eq__(self, other: object) -> Any:
        return self._record(np.equal, self, other)

    __hash__ = object.__hash__  # by identity, although == compares elements

    def __getitem__(self, key: Any) -> Recorded:
        keys = key if isinstance(key, tuple) else (key,)
        if any(isinstance(x, Recorded) and x.dtype == np.bool_ for x in keys):
            self.refuse()  # the number of rows that a mask selects depends on the numbers
        return self._record(operator.getitem, self, key)

    def refuse(self, *_: object, **__: object) -> NoReturn:
        """Raise an error, since numbers do not exist while a step is recorded."""
        raise InputError(
            "a recorded step cannot read or assign numbers, such as by float(x), bool(x), x[x > 0] "
            "or x[...] = y"
        )

    __bool__ = __float__ = __int__ = __index__ = __iter__ = __setitem__ = refuse
    __array__ = __dlpack__ = refuse


class RecordedNamespace:
    """The functions of the standard for recorded arrays: NumPy's, recorded."""

    def __init__(self, tape: Recorder) -> None:
        self._tape = tape

    def asarray(
        self, x: Any, *, dtype: DType = None, device: object = None, copy: bool | None = None
    ) -> Any:
        """Return `x`, since a copy of an immutable array is the array; numbers as a constant."""
        if not isinstance(x, Recorded):
            return self._tape.record(np.asarray, x, dtype=dtype)
        return x if dtype in (None, x.dtype) else self._tape.record(np.astype, x, dtype)

    def __getattr__(self, name: str) -> Any:
        member = getattr(np, name)
        if isinstance(member, type) or not callable(member):
            return member  # a dtype or a constant
        return partial(self._tape.record, member)
