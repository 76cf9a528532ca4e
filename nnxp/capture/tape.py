"""Tape: the ops between recorded arrays, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nnxp.capture.ops import Buffer
from nnxp.capture.recorded import Recorded, RecordedNamespace
from nnxp.devices.base import Device


class Op:
    """A call on the tape; `reads` are the recorded arrays among its arguments."""

    result: Recorded

    def __init__(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.reads: list[Recorded] = []
        _each([args, *kwargs.values()], self.reads.append)

    def bind(self, values: Callable[[Recorded], Buffer]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments with plain arrays in place of recorded ones."""
        named = {name: _each(x, values) for name, x in self.kwargs.items()}
        return _each(list(self.args), values), named


def _each(x: Any, function: Callable[[Recorded], Any]) -> Any:
    """Return `x` with the function's values for recorded arrays, also those in lists."""
    if isinstance(x, Recorded):
        return function(x)
    if isinstance(x, (list, tuple)):
        return type(x)([_each(y, function) for y in x])
    return x


class Tape:
    """The calls between recorded arrays, in their order.

    Attributes
    ----------
    device : Device
        Where recorded arrays live: ``network.to(tape.device)`` is a network whose parameters
        stand for those of `network`.
    """

    def __init__(self) -> None:
        self.calls: list[Op] = []
        self.memory: dict[Recorded, Buffer] = {}
        self.namespace = RecordedNamespace(self)
        self.device = Device(
            spec="recording",
            description="NumPy, recorded",
            xp=self.namespace,
            _array_type=Recorded,
            _handle="cpu",
            _from_host=self.read,
            _to_host=Recorded._has_no_value,
        )

    def read(self, memory: Buffer) -> Recorded:
        """Return a recorded array that stands for what `memory` holds at each replay."""
        own = isinstance(memory, np.ndarray)
        recorded = Recorded(self, memory if own else np.zeros(memory.shape, memory.dtype))
        self.memory[recorded] = memory
        return recorded

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Try a function on samples, and write it down if it makes an array of arrays."""
        call = Op(function, args, kwargs)
        sampled, named = call.bind(lambda x: x.sample)
        result = _sample(function, sampled, named)
        if not isinstance(result, (np.ndarray, np.generic)):
            return result
        recorded = call.result = Recorded(self, np.asarray(result))
        if not call.reads:
            return self.read(recorded.sample)
        for arg in call.reads:
            if result is arg.sample:
                return arg
            if np.may_share_memory(recorded.sample, arg.sample):
                recorded.owner = arg.owner
        self.calls.append(call)
        return recorded


def _sample(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Return what the function returns for samples; zeros like it where no work is needed."""
    with np.errstate(all="ignore"):
        if not isinstance(function, np.ufunc) or kwargs:
            return function(*args, **kwargs)
        shapes = [np.shape(x) for x in args]
        dtype = function(*[x[(slice(1),) * x.ndim] if np.ndim(x) else x for x in args]).dtype
        if function.signature is None:
            return np.zeros(np.broadcast_shapes(*shapes), dtype)
        if [len(shape) for shape in shapes] == [2, 2] and shapes[0][1] == shapes[1][0]:
            return np.zeros((shapes[0][0], shapes[1][1]), dtype)  # a matrix product
        return function(*args)
