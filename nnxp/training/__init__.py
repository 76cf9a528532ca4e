"""Training: what trains a network, evaluates it, and finds where it diverges."""

from nnxp.training.trainer import Evaluation, Trainer

__all__ = ["Evaluation", "Trainer"]
