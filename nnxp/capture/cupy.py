"""GPU: a step of CuPy's calls in memory laid out for good, replayed as one CUDA graph.

A small network's step is some forty kernels that take less time than their launches; a graph
launches them all at once. CuPy captures every call into a graph but those of cuBLAS (CuPy issue
6290), so the matrix products reach cuBLAS by themselves, with a handle and a workspace of ours.
"""

from __future__ import annotations

import ctypes
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from nnxp.capture.ops import Buffer, Ops, Program, add_product
from nnxp.capture.replay import Replay
from nnxp.data.dataset import Dataset
from nnxp.errors import DeviceError
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer

_WORKSPACE = 32 << 20  # bytes, what NVIDIA recommends for Hopper, and more than for older GPUs
_AS_IT_IS, _TRANSPOSED = 0, 1  # cublasOperation_t
_PRODUCTS: dict[str, tuple[str, Any]] = {
    "float32": ("cublasSgemm_v2", ctypes.c_float),
    "float64": ("cublasDgemm_v2", ctypes.c_double),
}

Product = Callable[[Any, Any, Any], Callable[[], object] | None]


class CupyOps(Ops):
    """CuPy does the calls.

    Parameters
    ----------
    module : module
        CuPy.
    product : callable
        ``product(out, a, b)`` returns a call that does ``out[...] = a @ b``, or None where that
        takes CuPy's own.
    """

    def __init__(self, module: Any, product: Product) -> None:
        self.module = module
        self._product = product

    def lower(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], out: Any
    ) -> Program:
        """Return the calls that do ``out[...] = function(*args, **kwargs)``."""
        cp = self.module
        match function:
            case np.matmul:
                call = self._product(out, *args)
                return [call or partial(cp.matmul, *args, out=out)]
            case _ if function is add_product:
                row, a, b = args
                return [*self.lower(np.matmul, [a, b], {}, out), partial(cp.add, out, row, out)]
            case np.ufunc() if not kwargs:
                return [partial(self.named(function), *args, out=out)]
            case np.astype:
                return [partial(cp.copyto, out, args[0], "unsafe")]
            case np.where:
                return [
                    partial(cp.copyto, out, args[2]),
                    partial(cp.copyto, out, args[1], where=args[0]),
                ]
            case np.sum | np.max if len(args) == 1 and kwargs.keys() <= {"axis", "keepdims"}:
                return [partial(self.named(function), *args, **kwargs, out=out)]
            case _:
                named = self.named(function)
                return [lambda: cp.copyto(out, named(*args, **kwargs))]


def gemm_arguments(out: Any, a: Any, b: Any) -> list[Any] | None:
    """Return what a BLAS in Fortran's order is told to do ``out[...] = a @ b``.

    In that order a matrix by rows is its transpose, and ``out.T = b.T @ a.T``.

    Parameters
    ----------
    out : (rows, columns) array
    a : (rows, inner) array
    b : (inner, columns) array

    Returns
    -------
    list or None
        Whether the first and the second factor are to be transposed, columns, rows, inner, the
        first factor and the length of its rows in memory, the second and its, and that of `out`;
        None where an array lies otherwise than by rows or by columns.
    """
    if out.ndim != 2 or a.ndim != 2 or b.ndim != 2 or not out.flags.c_contiguous:
        return None
    if {a.dtype, b.dtype} != {out.dtype}:
        return None
    transposed, factors = [], []
    for x in (b, a):
        if not (x.flags.c_contiguous or x.flags.f_contiguous):
            return None
        transposed.append(not x.flags.c_contiguous)
        factors += [x, x.shape[1] if x.flags.c_contiguous else x.shape[0]]
    return [*transposed, *out.shape[::-1], a.shape[1], *factors, out.shape[1]]


class Cublas:
    """cuBLAS's matrix product, on the current stream, in a workspace of its own.

    Parameters
    ----------
    cp : module
        CuPy.

    Raises
    ------
    Exception
        Whatever keeps the library from being found or opened.
    """

    def __init__(self, cp: Any) -> None:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        self._handle = ctypes.c_void_p()
        self._cp = cp
        self._ops = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
        self._workspace = cp.empty(_WORKSPACE, np.uint8)
        self._stream: int | None = None
        self._call("cublasCreate_v2", ctypes.byref(self._handle))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._ops.cublasDestroy_v2(self._handle)

    def product(self, out: Any, a: Any, b: Any) -> Callable[[], object] | None:
        """Return a call that does ``out[...] = a @ b``; None where this cannot."""
        name, real = _PRODUCTS.get(out.dtype.name, ("", ctypes.c_double))
        given = gemm_arguments(out, a, b)
        if given is None or not name:
            return None
        first, second, columns, rows, inner, x, row_of_x, y, row_of_y, row_of_out = given
        one, zero = real(1), real(0)
        pointers = [ctypes.c_void_p(array.data.ptr) for array in (x, y, out)]
        arguments = [
            *(ctypes.c_int(_TRANSPOSED if each else _AS_IT_IS) for each in (first, second)),
            *map(ctypes.c_int, (columns, rows, inner)),
            ctypes.byref(one), pointers[0], ctypes.c_int(row_of_x),
            pointers[1], ctypes.c_int(row_of_y),
            ctypes.byref(zero), pointers[2], ctypes.c_int(row_of_out),
        ]  # fmt: skip
        # As long as the call is there, so must the arrays' memory be.
        return partial(self._multiply, name, arguments, (a, b, out))

    def _multiply(self, name: str, arguments: list[Any], _kept: object) -> None:
        self._follow_stream()
        self._call(name, self._handle, *arguments)

    def _follow_stream(self) -> None:
        stream = self._cp.cuda.get_current_stream().ptr
        if stream != self._stream:
            self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
            # A change of stream takes the workspace away, and one of cuBLAS's own cannot be
            # made while a stream is captured.
            pointer = ctypes.c_void_p(self._workspace.data.ptr)
            size = ctypes.c_size_t(_WORKSPACE)
            self._call("cublasSetWorkspace_v2", self._handle, pointer, size)
            self._stream = stream

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._ops, name)(*arguments)
        if status:
            raise DeviceError(f"{name} failed with status {status}; train with capture=False")


class GraphReplay(Replay):
    """Captured steps on CuPy's GPU: a CUDA graph for each batch size.

    Where the capture fails, all are replayed, and a warning says so.
    """

    def __init__(
        self, network: Sequential, loss: Loss, optimizer: Optimizer, dataset: Dataset
    ) -> None:
        import cupy

        product: Product = _no_product
        try:
            product = Cublas(cupy).product
        except Exception as error:  # noqa: BLE001 - whatever it is, CuPy's own product remains
            _warn(f"cuBLAS is not to be reached ({error})")
        super().__init__(network, loss, optimizer, dataset, CupyOps(cupy, product))
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._can_capture = True
        self._sent: list[float | None] = [None] * len(self._factors)
        # For each batch size, the numbers of the examples and what does a step with them; and of
        # which data set, which is not kept, since it may have to leave the GPU.
        self._graphs: dict[int, tuple[weakref.ref[Any], Buffer, _Graph]] = {}

    def _step(self, inputs: Buffer, labels: Buffer, rows: Buffer) -> None:
        # First, since it takes memory, and a step that has none of it is not done.
        batch, batch_labels, calls = self._program(inputs, labels, len(rows))
        self._optimizer.steps += 1
        for place, factor in enumerate(self._optimizer.factors()):
            if factor != self._sent[place]:
                self._factors[place].fill(factor)
                self._sent[place] = factor
        if len(rows) in self._graphs:
            known, numbers, graph = self._graphs[len(rows)]
            if known() is inputs:
                numbers[...] = rows
                graph.launch()
                return
        numbers = rows.copy()
        self._graphs = {n: kept for n, kept in self._graphs.items() if n in self._programs}
        take = self._ops.module.take
        program: Program = [
            partial(take, inputs, numbers, 0, batch),
            partial(take, labels, numbers, 0, batch_labels),
            *calls,
        ]
        if not self._can_capture:
            for call in program:
                call()
        elif captured := self._run_and_capture(program):
            self._graphs[len(rows)] = weakref.ref(inputs), numbers, captured

    def _run_and_capture(self, program: Program) -> _Graph | None:
        """Do the calls once, and return what does them again."""
        cuda = self._ops.module.cuda
        pool = cuda.MemoryPool()
        cuda.get_current_stream().synchronize()
        with cuda.using_allocator(pool.malloc), self._stream:
            for call in program:
                call()
            self._stream.synchronize()
            try:
                self._stream.begin_capture()
                try:
                    for call in program:
                        call()
                finally:
                    graph = self._stream.end_capture()
            except Exception as error:  # noqa: BLE001 - each call has its own reasons
                _warn(f"the step cannot be captured ({error})")
                self._can_capture = False
                return None
        return _Graph(graph, pool)


class _Graph:
    """A captured step, with the memory that its reductions take in between."""

    def __init__(self, graph: Any, pool: Any) -> None:
        self.launch: Callable[[], object] = graph.launch
        self._pool = pool


def _no_product(*_: Any) -> None:
    return None


def _warn(reason: str) -> None:
    warnings.warn(f"{reason}; training goes on call by call, which is slower", stacklevel=2)
