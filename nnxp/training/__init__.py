"""Training: the trainer, and what it does before, within and after an epoch.

`trainer` is the way of the data; `callbacks` are called meanwhile; `preparation` checks what is
trained; `stepping` does the steps, captured or plain; `evaluation` measures; `divergence` finds the
first number that is not finite.
"""

from nnxp.training import callbacks
from nnxp.training.evaluation import Evaluation
from nnxp.training.trainer import Trainer

__all__ = ["Evaluation", "Trainer", "callbacks"]
