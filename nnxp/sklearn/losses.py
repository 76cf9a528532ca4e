"""Losses: as scikit-learn's estimators have them, and without the accuracy of each batch."""

from __future__ import annotations

from typing import Any

from nnxp.arrays import Array
from nnxp.losses import MeanSquaredError, SigmoidWithLoss, SoftmaxWithLoss


class SoftmaxLoss(SoftmaxWithLoss):
    """`SoftmaxWithLoss` without an accuracy, which no estimator shows."""

    def correct(self, scores: Array, labels: Array) -> Any:
        """Return None, so that nothing is computed."""


class SigmoidLosses(SigmoidWithLoss):
    """The binary cross-entropies of an example's labels, added, and averaged over the batch.

    There is no accuracy.
    """

    def forward(
        self, scores: Array, labels: Array, training: bool = True, weights: Array | None = None
    ) -> Array:
        """Return the mean over the examples; see `SigmoidWithLoss.forward`."""
        return super().forward(scores, labels, training, weights) * scores.shape[1]

    def backward(self) -> Array:
        """Return ``(sigmoid(scores) - labels) / batch``."""
        gradient = super().backward()
        return gradient * gradient.shape[1]

    def correct(self, scores: Array, labels: Array) -> Any:
        """Return None, so that nothing is computed."""


class SquaredErrors(MeanSquaredError):  # noqa: N818 - these errors are no exceptions
    """Half the squared errors of an example's outputs, added, and averaged over the batch."""

    def forward(
        self, scores: Array, labels: Array, training: bool = True, weights: Array | None = None
    ) -> Array:
        """Return the mean over the examples; see `MeanSquaredError.forward`."""
        return super().forward(scores, labels, training, weights) * scores.shape[1]

    def backward(self) -> Array:
        """Return ``(outputs - targets) / batch``."""
        gradient = super().backward()
        return gradient * gradient.shape[1]
