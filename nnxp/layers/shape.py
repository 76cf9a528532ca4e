"""Shape layers: Flatten and Reshape, which change only the shape of the examples."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable

from nnxp.arrays import Array, floating_namespace
from nnxp.errors import InputError
from nnxp.layers.base import Layer


class Flatten(Layer):
    """Reshape each example to one axis: (batch, …) becomes (batch, features)."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return `x` in shape (batch, features)."""
        xp = floating_namespace(x, self)
        if x.ndim == 0:
            raise InputError("Flatten expects inputs of shape (batch, …), got a single number")
        y = xp.reshape(x, (x.shape[0], math.prod(x.shape[1:])))
        if training:
            self.save_for_backward(y, x.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """Return `dy` in the shape of the inputs."""
        shape = self.saved(dy)
        return floating_namespace(dy, self).reshape(dy, shape)

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return ``(features,)``; None if `shape` is unknown."""
        return None if shape is None else (math.prod(shape),)


class Reshape(Layer):
    """Reshape each example: ``(batch, …)`` becomes ``(batch, *shape)``; the inverse of `Flatten`.

    Parameters
    ----------
    shape : tuple of int
        The shape of one example, such as ``(1, 28, 28)``. One length may be -1, which is computed
        from the others.

    Examples
    --------
    >>> import numpy as np
    >>> import nnxp
    >>> nnxp.Reshape((1, 28, -1)).forward(np.zeros((100, 784))).shape
    (100, 1, 28, 28)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = _require_shape(shape)

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return `x` in shape ``(batch, *shape)``.

        Raises
        ------
        InputError
            If the number of elements of an example does not fit.
        """
        xp = floating_namespace(x, self)
        if x.ndim == 0:
            raise InputError(f"{self!r} expects inputs of shape (batch, …), got a single number")
        y = xp.reshape(x, (x.shape[0], *self._fitted(tuple(x.shape[1:]))))
        if training:
            self.save_for_backward(y, x.shape)
        return y

    def backward(self, dy: Array) -> Array:
        """Return `dy` in the shape of the inputs."""
        shape = self.saved(dy)
        return floating_namespace(dy, self).reshape(dy, shape)

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return ``shape``; None if it has a -1 and the shape of the inputs is unknown."""
        if shape is None:
            return None if -1 in self.shape else self.shape
        return self._fitted(shape)

    def _fitted(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the output for an example of this shape."""
        size, known = math.prod(shape), math.prod(x for x in self.shape if x != -1)
        if size != known if -1 not in self.shape else size % known or not size:
            wanted = (
                f"{known} numbers" if -1 not in self.shape else f"a multiple of {known} numbers"
            )
            raise InputError(f"{self!r} expects examples of {wanted}, got {size}, of shape {shape}")
        return tuple(size // known if x == -1 else x for x in self.shape)


def _require_shape(shape: object) -> tuple[int, ...]:
    """Return `shape` as a tuple; raise unless its lengths are at least 1, except for one -1."""
    if isinstance(shape, Iterable) and not isinstance(shape, str):
        try:
            lengths = [0 if isinstance(x, bool) else operator.index(x) for x in shape]
        except TypeError:  # also of an array without axes
            lengths = []
        if lengths and all(x > 0 or x == -1 for x in lengths) and lengths.count(-1) < 2:
            return tuple(lengths)
    remedy = f"; give ({shape},)" if isinstance(shape, int) and shape > 0 else ""
    raise InputError(
        "shape must be a tuple of whole numbers of at least 1, or -1 for one of them, such as "
        f"(1, 28, 28), got {shape!r}{remedy}"
    )
