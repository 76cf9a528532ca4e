"""Losses: those of several outputs, added in place of averaged, as scikit-learn's estimators do."""

from __future__ import annotations

from nnxp.arrays import Array
from nnxp.losses import MeanSquaredError, SigmoidWithLoss


class SigmoidLosses(SigmoidWithLoss):
    """The binary cross-entropies of an example's labels, added, and averaged over the batch."""

    def forward(
        self, scores: Array, labels: Array, training: bool = True, weights: Array | None = None
    ) -> Array:
        """Return the mean over the examples; see `SigmoidWithLoss.forward`."""
        return super().forward(scores, labels, training, weights) * scores.shape[1]

    def backward(self) -> Array:
        """Return ``(sigmoid(scores) - labels) / batch``."""
        gradient = super().backward()
        return gradient * gradient.shape[1]


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
