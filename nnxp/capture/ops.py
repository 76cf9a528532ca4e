"""Ops: what an array library must do so that a tape can be replayed by it."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array

Buffer: TypeAlias = npt.NDArray[Any]
Program: TypeAlias = list[Callable[[], object]]


def subtract_product(x: Array, factor: Array, a: Array, b: Array) -> Array:
    """Return ``x - factor * (a @ b)``; on the tape it stands for one call of BLAS."""
    return x - factor * (a @ b)


def add_product(x: Array, a: Array, b: Array) -> Array:
    """Return ``x + a @ b``; on the tape it stands for one call of BLAS."""
    return x + a @ b


class Ops(ABC):
    """How an array library does the calls of a tape.

    Attributes
    ----------
    module : module
        Has the functions of NumPy, under their names.
    accumulates : bool
        Whether a product may be subtracted from a matrix in the pass that computes it.
    chunk : int
        How many numbers an optimizer works through at a time.
    """

    module: Any
    accumulates: ClassVar = False
    chunk: ClassVar = sys.maxsize

    def named(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return this library's function for NumPy's."""
        named: Callable[..., Any] = getattr(self.module, function.__name__, function)
        return named

    def array(self, x: Any) -> Any:
        """Return an array of this library for one that the tape reads."""
        return self.module.asarray(x)

    def share_memory(self, x: Any, y: Any) -> bool:
        """Tell whether two arrays may lie in the same memory."""
        return bool(self.module.may_share_memory(x, y))

    def block(self, size: int) -> Any:
        """Return `size` bytes of memory."""
        return self.module.empty(size, np.uint8)

    def place(self, shape: tuple[int, ...], dtype: np.dtype[Any], block: Any) -> Any:
        """Return an array in a block."""
        return block.view(dtype).reshape(shape)

    @abstractmethod
    def lower(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], out: Any
    ) -> Program:
        """Return the calls that do ``out[...] = function(*args, **kwargs)``."""
