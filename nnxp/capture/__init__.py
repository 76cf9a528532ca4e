"""Fast: the one seam behind which training is quicker than its parts.

What is here changes no result beyond rounding. `choose` says for which parts and devices there is a
faster way, and `base` what all of them have in common. On NumPy and CuPy a step on `recorded`
arrays writes its calls on a `tape`, `program` compiles them, and `replay` makes a trainer's step of
them; `ops` says what a library must do, `numpy_ops` how NumPy does it in place, `cupy` how CuPy
does, captured as one CUDA graph. `blas` reaches what NumPy keeps to itself. On JAX, `jax` compiles
the step.
"""

from nnxp.capture.base import CapturedSteps
from nnxp.capture.choose import choose

__all__ = ["CapturedSteps", "choose"]
