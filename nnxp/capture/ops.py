"""Ops: the interface of an array library that computes the ops of a tape into buffers."""

from __future__ import annotations

import functools
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from types import ModuleType
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array

Buffer: TypeAlias = npt.NDArray[Any]
"""An array that a program reads or writes: NumPy's in memory, or CuPy's on a GPU."""

Program: TypeAlias = list[Callable[[], object]]
"""Calls without arguments; calling them in order runs the program once."""


def subtract_product(x: Array, factor: Array, a: Array, b: Array) -> Array:
    """Return ``x - factor * (a @ b)``; as an op it is one call of BLAS."""
    return x - factor * (a @ b)


def add_product(x: Array, a: Array, b: Array) -> Array:
    """Return ``x + a @ b``; as an op it is one call of BLAS."""
    return x + a @ b


def weighted_sum(
    x: Array, a: Array | None, b: Array | None, y: Array, add: Callable[..., Any]
) -> Array:
    """Return ``add(x * a, b * y)``, for `add` or `subtract`; as an op it is one call of BLAS.

    The weights `a` and `b` are numbers, or None for 1.
    """
    total: Array = add(x if a is None else x * a, y if b is None else b * y)
    return total


def places_of_parts(
    function: Callable[..., Any], parts: Sequence[Buffer], axis: int, out: Buffer
) -> list[Buffer]:
    """Return the views of `out` to which `np.stack` or `np.concat` copies each part."""
    before: tuple[Any, ...] = (slice(None),) * (axis % out.ndim)
    if function is np.stack:
        return [out[(*before, i, ...)] for i in range(len(parts))]
    ends = list(itertools.accumulate(part.shape[axis] for part in parts))
    return [out[(*before, slice(*each))] for each in itertools.pairwise([0, *ends])]


def address(x: Any) -> int:
    """Return the address of an array's first number."""
    interface = getattr(x, "__cuda_array_interface__", None) or x.__array_interface__
    return int(interface["data"][0])


def memory_span(x: Any) -> tuple[int, int]:
    """Return the first address of an array's memory, and the one after its last."""
    start = end = address(x)
    if x.size == 0:
        return start, start
    for length, stride in zip(x.shape, x.strides, strict=True):
        if stride < 0:
            start += (length - 1) * stride
        else:
            end += (length - 1) * stride
    return start, end + x.dtype.itemsize


def arranged(numbers: Buffer, sample: Buffer) -> Buffer:
    """Return a vector in the shape of a sample, with its axes in the same order in memory."""
    order = sorted(range(sample.ndim), key=lambda axis: -sample.strides[axis])
    x = numbers.reshape([sample.shape[axis] for axis in order])
    return x.transpose([order.index(axis) for axis in range(sample.ndim)])


class Ops(ABC):
    """Base class: computes ops with one array library.

    Attributes
    ----------
    module : module
        NumPy, or a library that has NumPy's functions under the same names.
    accumulates : bool
        Whether one call can subtract a matrix product from a matrix, and add a weighted array.
    chunk : int
        How many numbers of a flattened vector the optimizer updates at a time.
    cache_bytes : int
        The bytes of buffers that stay in a core's cache; a step with larger ones does parts of its
        batch after each other.
    whole : collection of callable
        The functions of `nnxp.arrays.one_op` that are computed as one op.
    fuses_loops : bool
        Whether elementwise ops are computed together, as `nnxp.capture.loops.Loop`.
    """

    module: ModuleType
    fuses_loops: ClassVar = False
    accumulates: ClassVar = False
    chunk: ClassVar = sys.maxsize
    cache_bytes: ClassVar = sys.maxsize
    whole: ClassVar[Collection[Callable[..., Any]]] = ()

    def function(self, numpy_function: Callable[..., Any]) -> Callable[..., Any]:
        """Return this library's counterpart of a NumPy function; other functions unchanged."""
        name = numpy_function.__name__
        if getattr(np, name, None) is not numpy_function:  # such as nnxp's own `convolve`
            return numpy_function
        counterpart: Callable[..., Any] = getattr(self.module, name, numpy_function)
        return counterpart

    def array(self, x: Any) -> Buffer:
        """Convert an array that a tape reads to an array of this library."""
        array: Buffer = self.module.asarray(x)
        return array

    def share_memory(self, x: Buffer, y: Buffer) -> bool:
        """Return whether two arrays may overlap in memory."""
        return bool(self.module.may_share_memory(x, y))

    def allocate(self, size: int) -> Buffer:
        """Return `size` bytes of memory, as uint8."""
        block: Buffer = self.module.empty(size, np.uint8)
        return block

    def copy(self, out: Buffer, x: Any) -> Program:
        """Return the calls that compute ``out[...] = x``."""
        return [functools.partial(self.module.copyto, out, x)]

    def thread_count(self) -> int:
        """Return how many threads may compute at once."""
        return 1

    @abstractmethod
    def lower(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], out: Buffer
    ) -> Program:
        """Return the calls that compute ``out[...] = function(*args, **kwargs)``."""

    def suits_loop(self, op: Any) -> bool:
        """Return whether an op can be part of a loop."""
        return False

    def lower_loop(self, loop: Any, arrays: Any) -> Program:
        """Return the calls that compute a loop."""
        raise NotImplementedError
