"""Recorded arrays: an immutable array library whose calls go on a tape."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn, Protocol

import numpy as np

from nnxp.arrays import Namespace
from nnxp.capture.ops import Buffer
from nnxp.errors import InputError


class Recorder(Protocol):
    """What a recorded array needs of the tape that it is on."""

    namespace: Namespace

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Op a function and write the call down."""


class Recorded:
    """An array whose calls are written on a tape.

    Attributes
    ----------
    sample : numpy.ndarray
        What the array may hold: its shape and dtype count, its numbers do not.
    owner : Recorded
        Whose memory this one is a view of; itself for most.
    """

    __array_ufunc__ = None  # NumPy arrays leave operators with a Recorded to it

    def __init__(self, tape: Recorder, sample: Buffer) -> None:
        self.tape = tape
        self.sample = sample
        self.owner = self

    dtype = property(lambda self: self.sample.dtype)
    shape = property(lambda self: self.sample.shape)
    ndim = property(lambda self: self.sample.ndim)
    size = property(lambda self: self.sample.size)
    device = "cpu"

    def __array_namespace__(self, api_version: str | None = None) -> Namespace:
        return self.tape.namespace

    @property
    def T(self) -> Any:  # noqa: N802 - the standard's name
        """The transpose of a matrix."""
        return self.tape.call(np.transpose, self)

    def __getitem__(self, key: Any) -> Any:
        return self.tape.call(operator.getitem, self, key)

    def __neg__(self) -> Any:
        return self.tape.call(np.negative, self)

    def _has_no_value(self, *_: object, **__: object) -> NoReturn:
        raise InputError(
            "a step that is recorded cannot look at its numbers, as float(x), bool(x) or x[...] = "
            "would"
        )

    __bool__ = __float__ = __int__ = __index__ = __iter__ = __setitem__ = _has_no_value
    __array__ = __dlpack__ = _has_no_value


def _operator(ufunc: np.ufunc) -> Callable[[Recorded, Any], Recorded]:
    return lambda self, other: self.tape.call(ufunc, self, other)


def _reflected(ufunc: np.ufunc) -> Callable[[Recorded, Any], Recorded]:
    return lambda self, other: self.tape.call(ufunc, other, self)


for _name, _ufunc in {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.divide,
    "matmul": np.matmul,
}.items():  # fmt: skip
    setattr(Recorded, f"__{_name}__", _operator(_ufunc))
    setattr(Recorded, f"__r{_name}__", _reflected(_ufunc))
for _name, _ufunc in {"eq": np.equal, "gt": np.greater, "ge": np.greater_equal}.items():
    setattr(Recorded, f"__{_name}__", _operator(_ufunc))


class RecordedNamespace:
    """The standard's functions, as a tape writes them down."""

    def __init__(self, tape: Recorder) -> None:
        self._tape = tape

    def asarray(self, x: Recorded, *, copy: bool | None = None) -> Recorded:
        """Return `x`."""
        return x  # a copy of what cannot change is the same

    def __getattr__(self, name: str) -> Any:
        member = getattr(np, name)
        if isinstance(member, type) or not callable(member):
            return member  # a dtype or a number
        return partial(self._tape.call, member)
