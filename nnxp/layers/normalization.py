"""Batch normalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from nnxp.arrays import Array, floating_namespace, sum_rows
from nnxp.checks import POSITIVE, Range, require_count
from nnxp.devices import Device, open_device, require_dtype
from nnxp.errors import InputError
from nnxp.layers.base import Layer
from nnxp.parts import Setting

_SHARE: Range = (lambda x: 0 < x <= 1, "a number above 0 and at most 1")


class BatchNorm(Layer):
    """Batch normalization: ``y = gamma * (x - mean) / sqrt(variance + epsilon) + beta``.

    Ioffe and Szegedy 2015, algorithm 1. In training, mean and (biased) variance are those of the
    batch; otherwise they are running averages over the training batches. As in PyTorch, the running
    variance averages the batches' unbiased variances, and `momentum` is the weight of the new
    batch: ``running_mean = (1 - momentum) * running_mean + momentum * mean``.

    Parameters
    ----------
    features : int
        Number of features; inputs are (batch, features).
    momentum : float, optional
        Above 0 and at most 1.
    epsilon : float, optional
        Added to the variance.
    dtype : str, optional
        ``"float32"`` or ``"float64"``.
    device : Device or str, optional
        Where parameters and state are.

    Attributes
    ----------
    params : dict of str to array
        ``gamma``, 1 at first, and ``beta``, 0 at first, each of shape (features,).
    state : dict of str to array
        ``running_mean``, 0 at first, and ``running_var``, 1 at first, each of shape (features,).
    """

    min_batch_size: ClassVar[int] = 2  # a single example has no variance

    momentum = Setting(_SHARE)
    epsilon = Setting(POSITIVE)

    def __init__(
        self,
        features: int,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        *,
        dtype: str = "float32",
        device: Device | str = "cpu",
    ) -> None:
        self.features = require_count("features", features)
        self.momentum = momentum
        self.epsilon = epsilon
        opened = open_device(device)
        self.device, self.dtype = opened, require_dtype(dtype)
        ones, zeros = np.ones(features), np.zeros(features)
        for arrays, name, host in (
            (self.params, "gamma", ones),
            (self.params, "beta", zeros),
            (self.state, "running_mean", zeros),
            (self.state, "running_var", ones),
        ):
            arrays[name] = opened.asarray(host.copy(), dtype=dtype)

    @classmethod
    def array_size(cls, config: Mapping[str, Any]) -> int:
        """Return the number of elements of parameters and state."""
        return 4 * int(config["features"])

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the normalized inputs.

        Parameters
        ----------
        x : (batch, features) array
            In training a batch of at least 2.
        training : bool, optional
            Use the batch's mean and variance, and update the running ones.

        Raises
        ------
        InputError
            If `x` has another shape, or a training batch has one example.
        """
        xp = floating_namespace(x, self)
        if x.ndim != 2 or x.shape[1] != self.features:
            raise InputError(
                f"{self!r} expects inputs of shape (batch, {self.features}), got {tuple(x.shape)}"
            )
        gamma, beta = self.params["gamma"], self.params["beta"]
        if not training:
            scale = gamma / xp.sqrt(self.state["running_var"] + self.epsilon)
            return x * scale + (beta - self.state["running_mean"] * scale)
        count = x.shape[0]
        if count < self.min_batch_size:
            raise InputError(f"{self!r} needs at least 2 examples in a training batch, got {count}")
        mean = sum_rows(xp, x) / count
        centred = x - mean
        variance = sum_rows(xp, centred * centred) / count
        inverse = 1.0 / xp.sqrt(variance + self.epsilon)
        normalized = centred * inverse
        y = normalized * gamma + beta
        new, old = self.momentum, 1.0 - self.momentum
        unbiased = variance * (count / (count - 1))
        self.state["running_mean"] = old * self.state["running_mean"] + new * mean
        self.state["running_var"] = old * self.state["running_var"] + new * unbiased
        self.save_for_backward(y, (normalized, inverse))
        return y

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the inputs, after those of ``gamma`` and ``beta``.

        ``inverse * (g - mean(g) - normalized * mean(g * normalized))`` with ``g = dy * gamma``.
        """
        normalized: Array
        inverse: Array
        normalized, inverse = self.saved(dy)
        xp = floating_namespace(dy, self)
        sum_dy, sum_product = sum_rows(xp, dy), sum_rows(xp, dy * normalized)
        if self.trainable:
            self.grads["beta"], self.grads["gamma"] = sum_dy, sum_product
        count = dy.shape[0]
        scale: Array = self.params["gamma"] * inverse
        return scale * (dy - sum_dy / count - normalized * (sum_product / count))

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return ``(features,)``; a known input shape must be the same."""
        if shape not in (None, (self.features,)):
            raise InputError(f"{self!r} expects {self.features} features, got {shape}")
        return (self.features,)
