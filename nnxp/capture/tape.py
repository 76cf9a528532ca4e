"""Tape: the ops of a step on recorded arrays, in order."""

from __future__ import annotations

import inspect
import mmap
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import numpy as np

from nnxp.arrays import DType, Namespace
from nnxp.capture.ops import Buffer, Ops, Program, arranged
from nnxp.capture.recorded import Recorded, RecordedNamespace
from nnxp.devices.base import Device


class Op:
    """A recorded call: ``result = function(*args, **kwargs)``.

    Parameters
    ----------
    function : callable
        A function of NumPy or of `nnxp.capture.ops`.
    args, kwargs
        Its arguments; recorded arrays may be nested in lists and tuples.
    result : Recorded

    Attributes
    ----------
    reads : list of Recorded
        The recorded arrays among the arguments.
    results : list of Recorded
        All results; most ops have one.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        result: Recorded,
    ) -> None:
        self.function, self.args, self.kwargs, self.result = function, args, kwargs, result
        self.reads: list[Recorded] = []
        self.results = [result]
        _replace([args, *kwargs.values()], self.reads.append)

    def bind(self, buffer_of: Callable[[Recorded], Buffer]) -> tuple[list[Any], dict[str, Any]]:
        """Return `args` and `kwargs` with buffers instead of recorded arrays."""
        return _bind(self.args, self.kwargs, buffer_of)

    def lower(self, library: Ops, arrays: dict[Recorded, Buffer]) -> Program:
        """Return the calls that compute the results, given the buffers."""
        args, kwargs = self.bind(arrays.__getitem__)
        return library.lower(self.function, args, kwargs, arrays[self.result])


class Tape:
    """The ops on recorded arrays, in order.

    Parameters
    ----------
    whole : collection of callable, optional
        The functions of `nnxp.arrays.one_op` to record as one op.

    Attributes
    ----------
    ops : list of Op
    buffers : dict of Recorded to array
        The arrays that are read at each run of the program.
    device : Device
        The device of recorded arrays: ``network.to(tape.device)`` returns a network whose
        parameters are recorded arrays.
    """

    def __init__(self, whole: Collection[Callable[..., Any]] = ()) -> None:
        self._whole = whole
        self.ops: list[Op] = []
        self.buffers: dict[Recorded, Buffer] = {}
        self.namespace = cast(Namespace, RecordedNamespace(self))
        self.device = Device(
            spec="recording",
            description="NumPy, recorded",
            xp=self.namespace,
            _array_type=Recorded,
            _handle="cpu",
            _from_host=self.read,
            _to_host=lambda x: cast(Recorded, x).refuse(),
            is_host=True,
        )

    def clear(self) -> None:
        """Remove all ops and buffers, so that their memory is freed at once."""
        self.ops.clear()
        self.buffers.clear()

    def read(self, buffer: Buffer) -> Recorded:
        """Return a recorded array that stands for the numbers in `buffer` at each run."""
        on_host = isinstance(buffer, np.ndarray)
        sample = buffer if on_host else np.zeros(buffer.shape, buffer.dtype)
        recorded = Recorded(self, sample)
        self.buffers[recorded] = buffer
        return recorded

    def record(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function with samples; record the call if its result is an array."""
        reads: list[Recorded] = []
        _replace([args, *kwargs.values()], reads.append)
        if not reads:  # a constant
            result = function(*args, **kwargs)
            is_array = isinstance(result, (np.ndarray, np.generic))
            return self.read(np.asarray(result)) if is_array else result
        result = _sample(function, *_bind(args, kwargs, lambda x: x.sample))
        if not isinstance(result, (np.ndarray, np.generic)):
            if isinstance(result, (list, tuple)) and any(hasattr(x, "dtype") for x in result):
                reads[0].refuse()  # several arrays, whose shapes may depend on the numbers
            return result
        recorded = Recorded(self, np.asarray(result))
        op = Op(function, args, kwargs, recorded)
        for arg in op.reads:
            if result is arg.sample:
                return arg
            if np.may_share_memory(recorded.sample, arg.sample):
                recorded.owner = arg.owner
        if recorded.owner is recorded:
            recorded.sample = _unused(recorded.sample, recorded.dtype)
        self.ops.append(op)
        return recorded

    def call_whole(self, function: Callable[..., Any], *args: Any) -> Any:
        """Record the call of a function of `one_op`, or the calls of which it consists.

        A function with a ``sample`` is always one op; its ``sample`` is called instead.
        """
        if function in self._whole or hasattr(function, "sample"):
            return self.record(function, *args)
        return inspect.unwrap(function)(*args)


def _unused(like: Buffer, dtype: DType) -> Buffer:
    """Return zeros in the shape and order of an array, which take no memory before a write.

    `np.zeros` writes the zeros if it reuses memory.
    """
    nbytes = like.size * np.dtype(dtype).itemsize
    if nbytes < mmap.PAGESIZE:
        return arranged(np.zeros(like.size, dtype), like)
    try:
        memory = mmap.mmap(-1, nbytes)
    except OSError as error:
        raise MemoryError(f"{nbytes:,} bytes for a recorded array: {error}") from None
    return arranged(np.frombuffer(memory, dtype), like)


def _sample(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Return a function's result for samples, or zeros of its shape if that saves work."""
    function = getattr(function, "sample", function)
    with np.errstate(all="ignore"):
        if not isinstance(function, np.ufunc) or kwargs:
            return function(*args, **kwargs)
        shapes = [np.shape(x) for x in args]
        dtype = function(*[x[(slice(1),) * x.ndim] if np.ndim(x) else x for x in args]).dtype
        if function.signature is None:  # element by element
            allocated: Any = [["readonly"]] * len(args) + [["writeonly", "allocate"]]
            # The iterator gives the result's axes NumPy's order in memory.
            iterator = np.nditer(
                [*args, None], ["zerosize_ok"], allocated, [None] * len(args) + [dtype]
            )
            return iterator.operands[-1]
        if [len(shape) for shape in shapes] == [2, 2] and shapes[0][1] == shapes[1][0]:
            return np.zeros((shapes[0][0], shapes[1][1]), dtype)  # a matrix product
        return function(*args)


def _bind(
    args: Sequence[Any], kwargs: dict[str, Any], function: Callable[[Recorded], Any]
) -> tuple[list[Any], dict[str, Any]]:
    bound = {name: _replace(x, function) for name, x in kwargs.items()}
    return _replace(list(args), function), bound


def _replace(x: Any, function: Callable[[Recorded], Any]) -> Any:
    """Return `x` with ``function(recorded)`` for each recorded array, also within lists."""
    if isinstance(x, Recorded):
        return function(x)
    if isinstance(x, (list, tuple)):
        return type(x)([_replace(y, function) for y in x])
    return x
