"""Shape layers: they change only the shape of the examples."""

from __future__ import annotations

import math

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
