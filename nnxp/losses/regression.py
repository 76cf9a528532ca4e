"""Regression: losses for labels that are numbers; they depend only on the errors."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from nnxp.arrays import Array, Namespace, is_numpy, namespace_of
from nnxp.checks import POSITIVE
from nnxp.errors import InputError
from nnxp.losses.base import Loss, is_one_hot
from nnxp.metrics import correct
from nnxp.parts import Setting


class RegressionLoss(Loss):
    """Base class of losses that average a function of the errors, ``output - target``.

    A subclass defines `losses_of` and `slopes_of`.
    """

    _factor: ClassVar[float] = 1.0

    def losses_of(self, xp: Namespace, error: Array) -> Array:
        """Return the loss of each error, ``output - target``."""
        raise NotImplementedError(f"{type(self).__name__} does not define losses_of")

    def slopes_of(self, xp: Namespace, error: Array) -> Array:
        """Return the derivative of each loss."""
        raise NotImplementedError(f"{type(self).__name__} does not define slopes_of")

    def forward(
        self, scores: Array, labels: Array, training: bool = True, weights: Array | None = None
    ) -> Array:
        """Return the mean loss.

        Parameters
        ----------
        scores : (batch, …) array
            The network's outputs.
        labels : array of the outputs' shape, or (batch,) if there is one output
            The targets, in the outputs' dtype, or integers or booleans.
        training : bool, optional
            Save values for `backward`; True by default.
        weights : (batch,) array, optional
            The weight of each example; see `Loss.forward`.

        Returns
        -------
        0-d array

        Raises
        ------
        InputError
            If targets or weights have a wrong shape, dtype or value.
        DeviceError
            If the arrays are on different devices.
        """
        xp = self._namespace(scores, labels, weights)
        if xp.isdtype(labels.dtype, "real floating") and labels.dtype != scores.dtype:
            raise InputError(
                f"{self!r} expects targets of the outputs' dtype {scores.dtype}, got {labels.dtype}"
            )
        if labels.ndim != scores.ndim:
            labels = xp.reshape(labels, scores.shape)
        error = scores - xp.astype(labels, scores.dtype, copy=False)
        mean, shares = self._mean(xp, self.losses_of(xp, error), weights)
        if training:
            self._saved = error, shares
        return mean * self._factor

    def backward(self) -> Array:
        """Return the derivative of each output's loss, divided by the number of outputs."""
        error, shares = self._take_saved()
        xp = namespace_of(error, self)
        return self._scale(xp, self.slopes_of(xp, error), shares, math.prod(error.shape))

    def check_labels(self, labels: Array, outputs: tuple[int, ...]) -> None:
        """Require a target for each output."""
        xp = namespace_of(labels, self)
        if not xp.isdtype(labels.dtype, ("integral", "real floating", "bool")):
            raise InputError(f"{self!r} expects targets of real numbers, got {labels.dtype}")
        if labels.shape[1:] != outputs and not (labels.ndim == 1 and math.prod(outputs) == 1):
            raise InputError(
                f"{self!r} expects a target for each output, of shape (batch, "
                f"{', '.join(map(str, outputs))}), got {tuple(labels.shape)}; convert "
                "class numbers with nnxp.data.one_hot(labels, classes)"
            )

    def correct(self, scores: Array, labels: Array) -> Array | None:
        """Return None: targets are numbers, not classes, even if they are integers."""
        return None


class _Flag:
    """Descriptor of a setting that is True or False."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, part: object, owner: type) -> Any:
        return self if part is None else vars(part).get(self._name, False)

    def __set__(self, part: object, value: object) -> None:
        if not isinstance(value, bool):
            raise InputError(f"{self._name} must be True or False, got {value!r}")
        vars(part)[self._name] = value


class MeanSquaredError(RegressionLoss):
    """Half the mean squared error, ``mean((outputs - targets)**2) / 2``, over all outputs.

    Parameters
    ----------
    classes : bool, optional
        Whether targets are one-hot rows of classes, as from `nnxp.data.one_hot`. If True, records
        have an accuracy: a row is correct if its largest output is at the 1. If False (default),
        targets are numbers, even if they are integers, and there is no accuracy.
    """

    classes = _Flag()
    _factor = 0.5

    def __init__(self, classes: bool = False) -> None:
        self.classes = classes

    def losses_of(self, xp: Namespace, error: Array) -> Array:
        """Return ``error**2``; `forward` halves the mean."""
        return error * error

    def slopes_of(self, xp: Namespace, error: Array) -> Array:
        """Return `error`."""
        return error

    def check_labels(self, labels: Array, outputs: tuple[int, ...]) -> None:
        """Require a target for each output; rows of classes must be one-hot."""
        super().check_labels(labels, outputs)
        if not self.classes:
            return
        has_rows = len(outputs) == 1 and outputs[0] > 1
        if not has_rows or (is_numpy(labels) and not is_one_hot(labels)):
            raise InputError(
                f"{self!r} expects one-hot rows of two or more classes, a single 1 and otherwise "
                "0; use MeanSquaredError() for other targets"
            )

    def correct(self, scores: Array, labels: Array) -> Array | None:
        """Return for each row whether its largest output is at the 1; None without `classes`."""
        return correct(scores, labels) if self.classes else None


class Huber(RegressionLoss):
    """Huber loss: quadratic for small errors, linear for large ones (Huber 1964, eq. 2.1).

    For an error d it is ``d**2 / 2`` if ``|d| <= delta``, and ``delta * (|d| - delta / 2)``
    otherwise, averaged over all outputs. This equals PyTorch's ``HuberLoss``.

    Parameters
    ----------
    delta : float, optional
        A positive number, in the unit of the targets: the limit between small and large errors.
    """

    delta = Setting(POSITIVE)

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = delta

    def losses_of(self, xp: Namespace, error: Array) -> Array:
        """Return ``c * (error - c / 2)``, where c is the error clipped to ±delta."""
        c = self.slopes_of(xp, error)
        return c * (error - c / 2)

    def slopes_of(self, xp: Namespace, error: Array) -> Array:
        """Return `error` clipped to ±delta."""
        return xp.maximum(xp.minimum(error, self.delta), -self.delta)


class AbsoluteError(RegressionLoss):
    """The mean absolute error, ``mean(|outputs - targets|)``, over all outputs.

    The gradient of an error of 0 is 0. This equals PyTorch's ``L1Loss``.
    """

    def losses_of(self, xp: Namespace, error: Array) -> Array:
        """Return ``|error|``."""
        return xp.abs(error)

    def slopes_of(self, xp: Namespace, error: Array) -> Array:
        """Return the sign of the error, 0 for 0."""
        return xp.sign(error)
