"""Normalization: BatchNorm, LayerNorm, and Standardize for inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array, DType, Namespace, floating_namespace, sum_rows
from nnxp.checks import POSITIVE, Range, require_count, warn
from nnxp.devices import Device, open_device, require_dtype
from nnxp.errors import InputError
from nnxp.frames import host_array, host_weights, require_finite, require_numbers
from nnxp.layers.base import Layer
from nnxp.layers.windows import batch_first, batch_last
from nnxp.parts import Setting
from nnxp.ranks import Totals

_BLOCK = 1 << 20  # numbers that are processed at a time, to limit the memory
_SHARE: Range = (lambda x: 0 < x <= 1, "a number above 0 and at most 1")


class BatchNorm(Layer):
    """Batch normalization: ``y = gamma * (x - mean) / sqrt(variance + epsilon) + beta``.

    Ioffe and Szegedy 2015, algorithm 1. Training uses the mean and the (biased) variance of the
    batch; inference uses running averages over the training batches. As in PyTorch, the running
    variance averages the batches' unbiased variances, and `momentum` is the weight of the new
    batch: ``running_mean = (1 - momentum) * running_mean + momentum * mean``.

    Parameters
    ----------
    features : int
        Number of features. Inputs are (batch, features), or images (batch, features, height, width)
        with a feature for each channel; the statistics are then over all pixels of a batch.
    momentum : float, optional
        Above 0 and at most 1.
    epsilon : float, optional
        A positive number, which is added to the variance.
    dtype : str or dtype, optional
        ``"float32"`` (default) or ``"float64"``.
    device : Device or str, optional
        The device of parameters and state, as in `nnxp.device`; the CPU by default.

    Attributes
    ----------
    params : dict of str to array
        ``gamma``, initially 1, and ``beta``, initially 0, each of shape (features,).
    state : dict of str to array
        ``running_mean``, initially 0, and ``running_var``, initially 1, each of shape (features,).
    over_ranks : Totals or None
        Adds sums over all processes that divide a batch; None if statistics are of one process.
    """

    over_ranks: ClassVar[Totals | None] = None
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
        x : (batch, features) or (batch, features, height, width) array
            In training, with at least 2 numbers of each feature.
        training : bool, optional
            Use the batch's mean and variance, and update the running averages.

        Returns
        -------
        array of the shape of `x`

        Raises
        ------
        InputError
            If the shape or dtype of `x` is wrong, or a training batch has fewer than 2 numbers of
            each feature.
        DeviceError
            If `x` is on another device.
        """
        xp = floating_namespace(x, self)
        self._require_here(x)
        if x.ndim not in (2, 4) or x.shape[1] != self.features:
            raise InputError(
                f"{self!r} expects inputs of shape (batch, {self.features}), or (batch, "
                f"{self.features}, height, width), got {tuple(x.shape)}"
            )
        gamma, beta = self.params["gamma"], self.params["beta"]
        self._require_dtype(x, gamma)
        rows = self._rows(xp, x)
        if not training:
            scale = gamma / xp.sqrt(self.state["running_var"] + self.epsilon)
            y = rows * scale + (beta - self.state["running_mean"] * scale)
            return self._in_shape(xp, y, x.shape)
        count, total = rows.shape[0], self._total
        if self.over_ranks is not None:
            count = count // x.shape[0] * self.over_ranks.count
        if count < self.min_batch_size:
            raise InputError(f"{self!r} needs at least 2 examples in a training batch, got {count}")
        mean = total(sum_rows(xp, rows)) / count
        centred = rows - mean
        variance = total(sum_rows(xp, centred * centred)) / count
        inverse = 1.0 / xp.sqrt(variance + self.epsilon)
        normalized = centred * inverse
        y = self._in_shape(xp, normalized * gamma + beta, x.shape)
        new, old = self.momentum, 1.0 - self.momentum
        unbiased = variance * (count / (count - 1))
        self.state["running_mean"] = old * self.state["running_mean"] + new * mean
        self.state["running_var"] = old * self.state["running_var"] + new * unbiased
        self.save_for_backward(y, (normalized, inverse, count))
        return y

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the inputs, and store those of ``gamma`` and ``beta``.

        ``inverse * (g - mean(g) - normalized * mean(g * normalized))`` with ``g = dy * gamma``.
        """
        normalized: Array
        inverse: Array
        count: int
        normalized, inverse, count = self.saved(dy)
        xp = floating_namespace(dy, self)
        rows = self._rows(xp, dy)
        sum_dy, sum_product = sum_rows(xp, rows), sum_rows(xp, rows * normalized)
        if self.trainable:
            self.grads["beta"], self.grads["gamma"] = sum_dy, sum_product
        if self.over_ranks is not None:
            both = self.over_ranks(xp.concat([sum_dy, sum_product]))
            sum_dy, sum_product = both[: self.features], both[self.features :]
        scale: Array = self.params["gamma"] * inverse
        dx = scale * (rows - sum_dy / count - normalized * (sum_product / count))
        if self.over_ranks is not None and self.over_ranks.is_empty:
            dx = dx * 0  # this rank has no rows of the batch, only a placeholder
        return self._in_shape(xp, dx, dy.shape)

    def _total(self, sums: Array) -> Array:
        """Return sums over the rows of all processes that divide the batch."""
        return sums if self.over_ranks is None else self.over_ranks(sums)

    def _rows(self, xp: Namespace, x: Array) -> Array:
        """Return a row of features for each example, or for each pixel of images."""
        return x if x.ndim == 2 else xp.reshape(batch_last(xp, x), (self.features, -1)).T

    def _in_shape(self, xp: Namespace, rows: Array, shape: tuple[int, ...]) -> Array:
        """Return rows of features in the shape of the inputs: the inverse of `_rows`."""
        if len(shape) == 2:
            return rows
        batch, *image = shape
        return batch_first(xp, xp.reshape(rows.T, (*image, batch)))

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the shape of the inputs, ``(features,)`` or ``(features, height, width)``."""
        if shape is not None and (len(shape) not in (1, 3) or shape[0] != self.features):
            raise InputError(f"{self!r} expects {self.features} features, got {shape}")
        return shape


class LayerNorm(Layer):
    """Layer normalization: ``y = gamma * (x - mean) / sqrt(variance + epsilon) + beta``.

    Ba, Kiros and Hinton 2016, sec. 3. Mean and (biased) variance are computed over the features of
    each example, as in PyTorch, in training and in inference.

    Parameters
    ----------
    features : int or tuple of int
        The lengths of the last axes, over which to normalize: 8 for inputs (batch, …, 8); or
        (channels, height, width) for images.
    epsilon : float, optional
        A positive number, which is added to the variance.
    dtype : str or dtype, optional
        ``"float32"`` (default) or ``"float64"``.
    device : Device or str, optional
        The device of the parameters, as in `nnxp.device`; the CPU by default.

    Attributes
    ----------
    params : dict of str to array
        ``gamma``, initially 1, and ``beta``, initially 0, each of the shape `features`.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp import LayerNorm
    >>> LayerNorm(3).forward(np.array([[1, 2, 3], [20, 20, 20]], dtype="float32")).round(3)
    array([[-1.225,  0.   ,  1.225],
           [ 0.   ,  0.   ,  0.   ]], dtype=float32)
    """

    epsilon = Setting(POSITIVE)

    def __init__(
        self,
        features: int | tuple[int, ...],
        *,
        epsilon: float = 1e-5,
        dtype: DType = "float32",
        device: Device | str = "cpu",
    ) -> None:
        if isinstance(features, (tuple, list)) and features:
            self.features: int | tuple[int, ...] = tuple(
                require_count("each of features", n) for n in features
            )
        else:
            self.features = require_count("features", features)
        self.epsilon = epsilon
        opened = open_device(device)
        self.device, self.dtype = opened, require_dtype(dtype)
        self.params["gamma"] = opened.asarray(np.ones(self.features), dtype=dtype)
        self.params["beta"] = opened.asarray(np.zeros(self.features), dtype=dtype)

    @classmethod
    def array_size(cls, config: Mapping[str, Any]) -> int:
        """Return the number of elements of the parameters."""
        features = config["features"]
        return 2 * math.prod(features if isinstance(features, (tuple, list)) else (features,))

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the normalized inputs.

        Parameters
        ----------
        x : array of shape (batch, …) + features
        training : bool, optional
            Save the values for `backward`.

        Returns
        -------
        array of the shape of `x`

        Raises
        ------
        InputError
            If the last axes of `x` are not `features`, there is no axis before them, or the dtype
            of `x` is wrong.
        DeviceError
            If `x` is on another device.
        """
        xp = floating_namespace(x, self)
        self._require_here(x)
        shape = self.params["gamma"].shape
        first = x.ndim - len(shape)
        if first < 1 or tuple(x.shape[first:]) != tuple(shape):
            remedy = "; give x[None] for one example" if x.shape == shape else ""
            raise InputError(
                f"{self!r} expects inputs of shape (batch, …, {', '.join(map(str, shape))}), got "
                f"{tuple(x.shape)}{remedy}"
            )
        self._require_dtype(x, self.params["gamma"])
        size = math.prod(shape)
        rows = xp.reshape(x, (math.prod(x.shape[:first]), size))
        centred = rows - xp.sum(rows, axis=1, keepdims=True) / size
        # Subtract the mean twice: the first mean has a rounding error if the numbers are large.
        centred = centred - xp.sum(centred, axis=1, keepdims=True) / size
        variance = xp.sum(centred * centred, axis=1, keepdims=True) / size
        inverse = 1.0 / xp.sqrt(variance + self.epsilon)
        normalized = centred * inverse
        gamma, beta = (xp.reshape(self.params[name], (size,)) for name in ("gamma", "beta"))
        y = xp.reshape(normalized * gamma + beta, x.shape)
        if training:
            self.save_for_backward(y, (normalized, inverse))
        return y

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the inputs, and store those of ``gamma`` and ``beta``.

        ``inverse * (g - mean(g) - normalized * mean(g * normalized))`` with ``g = dy * gamma`` and
        means over the features.
        """
        normalized: Array
        inverse: Array
        normalized, inverse = self.saved(dy)
        xp = floating_namespace(dy, self)
        size = normalized.shape[1]
        gamma = self.params["gamma"]
        rows = xp.reshape(dy, normalized.shape)
        if self.trainable:
            self.grads["beta"] = xp.reshape(sum_rows(xp, rows), gamma.shape)
            self.grads["gamma"] = xp.reshape(sum_rows(xp, rows * normalized), gamma.shape)
        g = rows * xp.reshape(gamma, (size,))
        mean = xp.sum(g, axis=1, keepdims=True) / size
        product = xp.sum(g * normalized, axis=1, keepdims=True) / size
        return xp.reshape(inverse * (g - mean - normalized * product), dy.shape)

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return `shape`; a known one must end with `features`."""
        own = tuple(self.params["gamma"].shape)
        if shape is not None and tuple(shape[-len(own) :]) != own:
            raise InputError(f"{self!r} expects {self.features} features, got {shape}")
        return shape


class Standardize(Layer):
    """Standardization: ``y = (x - mean) / std``, feature by feature.

    `Trainer.fit` computes mean and standard deviation from the training data and their weights
    before the first step. Predictions use the same statistics. Constant features are divided by 1.

    Parameters
    ----------
    features : int, optional
        Number of features; inputs are (batch, features). By default that of the training data.
    dtype : str or dtype, optional
        ``"float32"`` (default) or ``"float64"``.
    device : Device or str, optional
        The device of the state, as in `nnxp.device`; the CPU by default.

    Attributes
    ----------
    state : dict of str to array
        ``mean`` and ``std``, each of shape (features,), and ``count``, of shape (1,): the number of
        examples of the statistics, or the sum of their weights. Empty before `adapt` if `features`
        is None.

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
        """Return whether `adapt` has set the statistics; waits for the device."""
        if "count" not in self.state or self.device is None:
            return False
        return bool(self.device.to_host(self.state["count"])[0] > 0)

    def adapt(self, inputs: Any, weights: Any = None) -> None:
        """Set the mean and the standard deviation of each feature of the inputs.

        Parameters
        ----------
        inputs : (examples, features) NumPy array or DataFrame, or iterable of such
            An iterable yields all inputs in parts. Memory maps are read in blocks.
        weights : (examples,) or (examples, 1) array, Series or DataFrame, optional
            The weight of each example of all parts, at least 0. An example of weight 2 counts
            twice.

        Raises
        ------
        InputError
            If a `Dataset` would not take the inputs, their shape is wrong, there are no examples,
            the number of weights is not that of examples, or a number is too large.

        Warns
        -----
        UserWarning
            If the layer's dtype has too few digits for the differences of a column's numbers.
        """
        total = 0.0
        origin = mean = squares = np.zeros(1)
        known = None if weights is None else host_weights(weights, "Standardize")
        for block, w in self._blocks(inputs, known):
            own = len(block) if w is None else w.sum()
            # Subtract the first row, so that a constant feature has no rounding error.
            origin = block[0] if total == 0 else origin
            with np.errstate(over="ignore", invalid="ignore"):  # checked after the loop
                # Combine the moments of two parts: Chan, Golub and LeVeque 1983, eq. 2.1.
                x = block - origin
                shift = np.average(x, axis=0, weights=w) - mean
                x -= mean + shift
                squares = squares + np.average(np.square(x), axis=0, weights=w) * own
                squares = squares + shift**2 * (total * own / (total + own))
                mean = mean + shift * (own / (total + own))
            total += own
        if total == 0:
            raise InputError("Standardize expects inputs, got none")
        mean, std = origin + mean, np.sqrt(squares / total)
        assert self.dtype is not None
        limits = np.finfo(self.dtype)
        large = np.flatnonzero(~((abs(mean) <= limits.max) & (std <= limits.max)))
        if large.size:
            raise InputError(
                f"the numbers of column {large[0]} are too large for their mean and standard "
                f"deviation in {self.dtype}; scale them first, for example "
                "inputs / abs(inputs).max(axis=0)"
            )
        # Features that differ only by the rounding of float64, or by 0 in the layer's dtype.
        constant = (std <= 4 * np.spacing(abs(mean))) | (std < limits.smallest_normal)
        self._warn_of_steps(mean, np.where(constant, np.inf, std))
        self.features = len(mean)
        self._set(mean, np.where(constant, 1.0, std), total)

    def _blocks(
        self, inputs: Any, weights: npt.NDArray[Any] | None
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any] | None]]:
        """Yield blocks of rows as float64 and their weights, without examples of weight 0."""
        count, features = 0, self.features
        whole = hasattr(inputs, "shape") or not isinstance(inputs, Iterable)
        for part in [inputs] if whole else inputs:
            x = host_array(part, "inputs", "Standardize")
            if x.ndim != 2 or x.size == 0 or features not in (None, x.shape[1]):
                remedy = "; put nnxp.Flatten() before it" if x.ndim > 2 else ""
                raise InputError(
                    f"Standardize expects inputs of shape (examples, {features or 'features'}), "
                    f"got {x.shape}" + ("; give x[:, None]" if x.ndim == 1 else remedy)
                )
            require_numbers(x, "inputs", "Standardize")
            require_finite(x, "inputs", first=count)
            features = x.shape[1]
            size = max(1, _BLOCK // features)
            for start in range(0, len(x), size):
                block = x[start : start + size].astype("float64")
                if weights is None:
                    yield block, None
                    continue
                own = weights[count + start : count + start + len(block)]
                if len(own) == len(block) and own.any():
                    yield block[own > 0], own[own > 0]
            count += len(x)
        if weights is not None and len(weights) != count:
            raise InputError(
                f"Standardize expects a weight for each example, got {len(weights)} weights for "
                f"{count} examples"
            )

    def _warn_of_steps(self, mean: npt.NDArray[Any], std: npt.NDArray[Any]) -> None:
        """Warn of columns whose differences are too small for the dtype.

        Near the mean, the dtype's numbers have a distance s, so rounding has an error of standard
        deviation s / sqrt(12). The warning is issued if this is more than a tenth of the column's
        standard deviation: then there are at most 4 * 10 / sqrt(12), about 12, different numbers
        within two standard deviations of the mean. In float32, s is at most 1.2e-7 of the mean, so
        only columns with a standard deviation below 3.5e-7 of their mean are affected.
        """
        steps = np.spacing(abs(mean).astype(self.dtype))
        lost = np.flatnonzero(steps / math.sqrt(12) > std / 10)
        if lost.size:
            first = lost[0]
            warn(
                f"{self.dtype} has too few digits for column {', '.join(map(str, lost[:9]))}: "
                f"around {mean[first]:.6g} its numbers have a distance of {steps[first]:.2g}, and "
                f"the column has a standard deviation of {std[first]:.2g}; subtract "
                "inputs.mean(axis=0) in float64 first, also for predictions, or build all layers "
                'with dtype="float64"'
            )

    def _set(self, mean: npt.NDArray[Any], std: npt.NDArray[Any], count: float) -> None:
        for name, host in (("mean", mean), ("std", std), ("count", np.array([count]))):
            assert self.device is not None
            self.state[name] = self.device.asarray(host, dtype=self.dtype)

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the standardized inputs.

        Parameters
        ----------
        x : (batch, features) array
        training : bool, optional
            Allow a `backward`.

        Returns
        -------
        (batch, features) array

        Raises
        ------
        InputError
            If the shape or dtype of `x` is wrong, or there are no statistics yet.
        DeviceError
            If `x` is on another device.
        """
        floating_namespace(x, self)
        self._require_here(x)
        if "mean" not in self.state:
            raise InputError(
                f"{self!r} has no statistics yet: Trainer.fit sets them for a layer of the "
                "outermost network; for others, call adapt(inputs) with the training data"
            )
        if x.ndim != 2 or x.shape[1] != self.features:
            raise InputError(
                f"{self!r} expects inputs of shape (batch, {self.features}), got {tuple(x.shape)}"
            )
        self._require_dtype(x, self.state["mean"])
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
