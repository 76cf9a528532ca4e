"""Training: the trainer and its callbacks.

`trainer` runs the epochs; `preparation` checks data and parts before the first step; `stepping`
does plain or captured steps; `evaluation` computes figures; `divergence` finds the first number
that is not finite; `callbacks` has the callbacks, of which `watching` measures the layers and
`writing` writes the history to `history_files`; `rates` tries learning rates on a copy.
"""

from nnxp.training import callbacks
from nnxp.training.evaluation import Evaluation
from nnxp.training.rates import LearningRateRange, learning_rate_range
from nnxp.training.trainer import Trainer

__all__ = ["Evaluation", "LearningRateRange", "Trainer", "callbacks", "learning_rate_range"]
