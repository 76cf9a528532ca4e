"""Fast: the one seam behind which training is quicker than its parts.

What is here changes no result beyond rounding. `choice` says for which parts and devices there is a
faster way, and `steps` what all of them have in common. On NumPy and CuPy `recording` writes the
calls of a step down and `replay` makes a trainer's step of them; `calls` says how NumPy does them
in place, `gpu` how CuPy does, captured as one CUDA graph. On JAX `jit` compiles the step. `blas`
reaches what NumPy keeps to itself.
"""

from nnxp.fast.blas import one_thread_if_small
from nnxp.fast.choice import faster
from nnxp.fast.steps import Steps

__all__ = ["Steps", "faster", "one_thread_if_small"]
