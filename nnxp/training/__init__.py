"""Training: the trainer, and what it does before, within and after an epoch.

`trainer` is the way of the data; `callbacks` are called meanwhile, of which `watching` measures the
layers and `writing` writes the history into `history_files`; `preparation` checks what is trained;
`stepping` does the steps, captured or plain; `evaluation` measures; `divergence` finds the first
number that is not finite; `rates` tries learning rates on a copy.
"""

from nnxp.training import callbacks
from nnxp.training.evaluation import Evaluation
from nnxp.training.rates import LearningRateRange, learning_rate_range
from nnxp.training.trainer import Trainer

__all__ = ["Evaluation", "LearningRateRange", "Trainer", "callbacks", "learning_rate_range"]
