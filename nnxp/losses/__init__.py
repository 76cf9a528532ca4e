"""Losses: scalar functions of scores and labels, and their gradients."""

from nnxp.losses.base import Loss
from nnxp.losses.classification import SigmoidWithLoss, SoftmaxWithLoss
from nnxp.losses.regression import AbsoluteError, Huber, MeanSquaredError, RegressionLoss

__all__ = [
    "AbsoluteError",
    "Huber",
    "Loss",
    "MeanSquaredError",
    "RegressionLoss",
    "SigmoidWithLoss",
    "SoftmaxWithLoss",
]
