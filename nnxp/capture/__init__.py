"""Capture: faster ways to train, which prepare a step once and repeat it.

The results are those of plain steps, up to rounding. `choose` returns the captured steps of a
device, `base` has their interface. On NumPy and CuPy the calls of a step on recorded arrays
(`recorded`) are recorded on a `tape`, `program` compiles them, and `replay` runs the program;
`ops` is the interface of the library that computes, `numpy_ops` computes with NumPy and `blas`, and
`cupy` with CuPy, as a CUDA graph. `compiled` makes machine code of a program: `loops` joins ops
that one pass can compute, and `llvm` and `llvm_math` write their instructions. `jax` compiles the
step with JAX. `trial` compares captured with plain steps, for parts that are not nnxp's own;
`contents` sees what a step changes.
"""

from nnxp.capture.base import CapturedSteps, contents_of
from nnxp.capture.choose import choose
from nnxp.capture.contents import Contents
from nnxp.capture.trial import disagreement

__all__ = ["CapturedSteps", "Contents", "choose", "contents_of", "disagreement"]
