"""Capture: faster ways to train, which prepare a step once and repeat it.

The results are the same as with plain steps, up to rounding. `choose` returns the captured steps of
a device, and `base` has their interface. On NumPy and CuPy, a step's calls on recorded arrays
(`recorded`) are recorded on a `tape`, and `program` compiles them. `batch_compiler` makes a
`batch_program` of the step for a batch size in this way, on the `memory` of parameters and state,
some of it flat `vectors`, and `replay` runs it for each batch. `ops` is the interface of the
library that computes, `numpy_ops` computes with NumPy and `blas`, and `cupy` with CuPy, as a CUDA
graph. `compiled` compiles a program to machine code: `loops` joins ops that one pass can compute,
`llvm_kernels`, `llvm_ops` and `llvm_math` write their instructions, and `llvm` compiles them;
`predicting` does the same with a forward pass. `jax` compiles the step with JAX. `trial` compares
captured with plain steps, for parts that are not nnxp's own, and `contents` finds what a step
changes.
"""

from nnxp.capture.base import CapturedSteps, contents_of
from nnxp.capture.choose import choose
from nnxp.capture.contents import Contents
from nnxp.capture.trial import disagreement

__all__ = ["CapturedSteps", "Contents", "choose", "contents_of", "disagreement"]
