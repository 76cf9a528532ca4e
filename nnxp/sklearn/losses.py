"""Losses: scikit-learn's losses, without the accuracy of each batch."""

from __future__ import annotations

from typing import Any

from nnxp.arrays import Array
from nnxp.losses import Loss, MeanSquaredError, SigmoidWithLoss, SoftmaxWithLoss


class SoftmaxLoss(SoftmaxWithLoss):
    """`SoftmaxWithLoss` without an accuracy, since no estimator shows it."""

    def correct(self, scores: Array, labels: Array) -> Any:
        """Return None, so that nothing is computed."""


class _SumOfOutputs(Loss, base=True):
    """Multiplies a mean over outputs by their number: a sum over outputs, a mean over examples."""

    def forward(
        self, scores: Array, labels: Array, training: bool = True, weights: Array | None = None
    ) -> Array:
        """Return the mean over the examples; see `Loss.forward`."""
        return super().forward(scores, labels, training, weights) * scores.shape[1]

    def backward(self) -> Array:
        """Return the gradient of that mean."""
        gradient = super().backward()
        return gradient * gradient.shape[1]


class SigmoidLosses(_SumOfOutputs, SigmoidWithLoss):
    """The sum of the binary cross-entropies of an example's labels, averaged over the batch.

    There is no accuracy.
    """

    def correct(self, scores: Array, labels: Array) -> Any:
        """Return None, so that nothing is computed."""


class SquaredErrors(_SumOfOutputs, MeanSquaredError):  # noqa: N818 - these errors are no exceptions
    """Half the sum of the squared errors of an example's outputs, averaged over the batch."""
