"""Normalization: of batches, and of inputs by statistics of the training data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array, DType, floating_namespace, sum_rows
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
    dtype : str or dtype, optional
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
        dtype: DType = "float32",
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


class Standardize(Layer):
    """Standardization: ``y = (x - mean) / std``, feature by feature.

    `Trainer.fit` sets mean and standard deviation from the training data before the first step, so
    that predictions use the same ones. A feature that is constant is divided by 1.

    Parameters
    ----------
    features : int, optional
        Number of features; inputs are (batch, features). By default that of the training data.
    dtype : str or dtype, optional
        ``"float32"`` or ``"float64"``.
    device : Device or str, optional
        Where the state is.

    Attributes
    ----------
    state : dict of str to array
        ``mean`` and ``std``, each of shape (features,), and ``count``, of shape (1,): the number of
        examples they are from. Empty before `adapt`, if `features` is not given.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp import Standardize
    >>> layer = Standardize()
    >>> layer.adapt(np.array([[0.0, 5.0], [2.0, 5.0]]))
    >>> layer.forward(np.array([[3.0, 5.0]], dtype="float32"))
    array([[2., 0.]], dtype=float32)
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        dtype: DType = "float32",
        device: Device | str = "cpu",
    ) -> None:
        self.features = None if features is None else require_count("features", features)
        self.device, self.dtype = open_device(device), require_dtype(dtype)
        if features is not None:
            self._set(np.zeros(features), np.ones(features), 0)

    @classmethod
    def array_size(cls, config: Mapping[str, Any]) -> int:
        """Return the number of elements of the state."""
        return 0 if config["features"] is None else 2 * int(config["features"]) + 1

    def is_fitted(self) -> bool:
        """Return whether `adapt` has set the state; waits for the device."""
        if "count" not in self.state or self.device is None:
            return False
        return bool(self.device.to_host(self.state["count"])[0] > 0)

    def adapt(self, inputs: npt.NDArray[Any] | Iterable[npt.NDArray[Any]]) -> None:
        """Set mean and standard deviation to those of inputs.

        Parameters
        ----------
        inputs : (examples, features) NumPy array, or iterable of such arrays
            An iterable gives all inputs in parts.

        Raises
        ------
        InputError
            If an array has another shape, or there are no examples.
        """
        count, mean, squares = 0, np.zeros(1), np.zeros(1)
        for x in [inputs] if isinstance(inputs, np.ndarray) else inputs:
            features = self.features if self.features is not None else x.shape[-1]
            if x.ndim != 2 or x.shape[1] != features or len(x) == 0:
                shape = "features" if self.features is None else self.features
                raise InputError(
                    f"Standardize expects inputs of shape (examples, {shape}), got {x.shape}"
                    + ("; put nnxp.Flatten() before it" if x.ndim > 2 else "")
                )
            # Chan, Golub and LeVeque 1983, eq. 2.1: the moments of two parts together.
            own = x.mean(axis=0, dtype="float64")
            shift, total = own - mean, count + len(x)
            squares = squares + np.square(x - own).sum(axis=0) + shift**2 * count * len(x) / total
            mean, count = mean + shift * len(x) / total, total
        if count == 0:
            raise InputError("Standardize expects inputs, got none")
        std = np.sqrt(squares / count)
        # What is left of a constant feature is rounding.
        constant = std <= abs(mean) * np.finfo("float64").eps * count
        self.features = len(mean)
        self._set(mean, np.where(constant, 1.0, std), count)

    def _set(self, mean: npt.NDArray[Any], std: npt.NDArray[Any], count: int) -> None:
        for name, host in (("mean", mean), ("std", std), ("count", np.array([count]))):
            assert self.device is not None
            self.state[name] = self.device.asarray(host, dtype=self.dtype)

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the standardized inputs.

        Parameters
        ----------
        x : (batch, features) array
        training : bool, optional
            Save nothing but the call, since `backward` needs the state alone.

        Raises
        ------
        InputError
            If `x` has another shape, or there are no statistics yet.
        """
        floating_namespace(x, self)
        if "mean" not in self.state:
            raise InputError(
                f"{self!r} has no statistics yet: Trainer.fit sets them where it is a layer of the "
                "network itself; or call its adapt(inputs) with the training data"
            )
        if x.ndim != 2 or x.shape[1] != self.features:
            raise InputError(
                f"{self!r} expects inputs of shape (batch, {self.features}), got {tuple(x.shape)}"
            )
        y = (x - self.state["mean"]) / self.state["std"]
        if training:
            self.save_for_backward(y)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``dy / std``."""
        self.saved(dy)
        return dy / self.state["std"]

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return ``(features,)``; a known input shape must be the same."""
        if shape is not None and (len(shape) != 1 or self.features not in (None, shape[0])):
            raise InputError(
                f"{self!r} expects {self.features or 'a row of'} features, got {shape}"
            )
        return shape if self.features is None else (self.features,)
