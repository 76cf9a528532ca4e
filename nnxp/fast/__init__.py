"""Fast: the one seam behind which training on NumPy is quicker than its parts.

What is here changes no result beyond rounding. `recording` writes the calls of a step down,
`replay` makes a trainer's step of them, and `blas` reaches what NumPy keeps to itself.
"""

from nnxp.fast.blas import one_thread_if_small
from nnxp.fast.replay import Replay, is_replayable

__all__ = ["Replay", "is_replayable", "one_thread_if_small"]
