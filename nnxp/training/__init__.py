"""Training: the trainer, and what it needs: evaluation, captured or plain steps, divergence."""

from nnxp.training.evaluation import Evaluation
from nnxp.training.trainer import Trainer

__all__ = ["Evaluation", "Trainer"]
