"""Activations: functions of each element, and Softmax, a function of each row."""

from __future__ import annotations

from nnxp.arrays import Array, Namespace, floating_namespace
from nnxp.errors import InputError
from nnxp.layers.base import Layer


def sigmoid(xp: Namespace, x: Array) -> Array:
    """Return ``1 / (1 + exp(-x))``, computed from exp(-|x|), which cannot overflow."""
    t = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1.0, t) / (1.0 + t)


class Identity(Layer):
    """Identity: ``y = x``."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return `x`, of any shape."""
        floating_namespace(x, self)
        if training:
            self.save_for_backward(x)
        return x

    def backward(self, dy: Array) -> Array:
        """Return `dy`."""
        self.saved(dy)
        return dy


class ReLU(Layer):
    """Rectified linear unit: ``y = max(x, 0)``; its gradient at 0 is 0."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return ``max(x, 0)``, of the shape of `x`."""
        xp = floating_namespace(x, self)
        y = xp.maximum(x, 0.0)
        if training:
            self.save_for_backward(y, y)
        return y

    def backward(self, dy: Array) -> Array:
        """Return `dy` where ``x > 0`` and 0 elsewhere; `dy` is not changed."""
        y: Array = self.saved(dy)
        xp = floating_namespace(dy, self)
        return dy * xp.astype(y > 0, dy.dtype)  # faster than where, once captured


class Sigmoid(Layer):
    """Logistic function: ``y = 1 / (1 + exp(-x))``."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the logistic function of `x`, of the shape of `x`; it never overflows."""
        xp = floating_namespace(x, self)
        y = sigmoid(xp, x)
        if training:
            self.save_for_backward(y, y)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``dy * y * (1 - y)``."""
        y: Array = self.saved(dy)
        return dy * y * (1.0 - y)


class Tanh(Layer):
    """Hyperbolic tangent: ``y = tanh(x)``."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return ``tanh(x)``, of the shape of `x`."""
        xp = floating_namespace(x, self)
        y = xp.tanh(x)
        if training:
            self.save_for_backward(y, y)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``dy * (1 - y**2)``."""
        y: Array = self.saved(dy)
        return dy * (1.0 - y * y)


class Softmax(Layer):
    """Softmax over the last axis: converts scores to probabilities.

    To train a classifier, use `nnxp.SoftmaxWithLoss` instead, which is numerically stable.
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return ``exp(x) / sum(exp(x))``, of the shape of `x`.

        Raises
        ------
        InputError
            If `x` has no axis, or an empty last axis.
        """
        xp = floating_namespace(x, self)
        if x.ndim == 0 or x.shape[-1] == 0:
            raise InputError(
                f"Softmax expects rows of scores, got inputs of shape {tuple(x.shape)}"
            )
        e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
        y = e / xp.sum(e, axis=-1, keepdims=True)
        if training:
            self.save_for_backward(y, y)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``y * (dy - sum(dy * y))``: the Jacobian is diag(y) - y yᵀ."""
        y: Array = self.saved(dy)
        xp = floating_namespace(dy, self)
        return y * (dy - xp.sum(dy * y, axis=-1, keepdims=True))


ACTIVATIONS: dict[str, type[Layer]] = {
    "relu": ReLU,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "identity": Identity,
}
"""The activations of hidden layers, by name."""
