"""CuPy: a step as CuPy calls with fixed buffers, launched as one CUDA graph.

A small network's step has about forty kernels, each shorter than its launch; a graph launches all
of them at once. CuPy cannot capture its calls of cuBLAS (CuPy issue 6290), so matrix products call
cuBLAS directly, with their own handle and workspace.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from nnxp.capture.ops import Buffer, Ops, Program, add_product, address, places_of_parts
from nnxp.capture.replay import Replay
from nnxp.checks import warn
from nnxp.data.batches import Batches
from nnxp.errors import DeviceError
from nnxp.step import Step

_WORKSPACE = 32 << 20  # bytes; NVIDIA recommends this for Hopper, and less for older GPUs
_NOT_TRANSPOSED, _TRANSPOSED = 0, 1  # cublasOperation_t
_PRODUCTS: dict[str, tuple[str, Any]] = {
    "float32": ("cublasSgemm_v2", ctypes.c_float),
    "float64": ("cublasDgemm_v2", ctypes.c_double),
}

Product: TypeAlias = Callable[[Buffer, Buffer, Buffer], Callable[[], object] | None]


class CupyOps(Ops):
    """Computes ops with CuPy.

    Parameters
    ----------
    module : module
        CuPy.
    product : callable
        ``product(out, a, b)`` returns a call that computes ``out[...] = a @ b``, or None to use
        CuPy's product.
    """

    def __init__(self, module: ModuleType, product: Product) -> None:
        self.module = module
        self._product = product

    def lower(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], out: Buffer
    ) -> Program:
        """Return the calls that compute ``out[...] = function(*args, **kwargs)``."""
        cp = self.module
        match function:
            case np.matmul:
                a, b = args
                return [self._product(out, a, b) or partial(cp.matmul, a, b, out=out)]
            case _ if function is add_product:
                row, a, b = args
                return [*self.lower(np.matmul, [a, b], {}, out), partial(cp.add, out, row, out)]
            case np.ufunc() if not kwargs:
                return [partial(self.function(function), *args, out=out)]
            case np.astype:
                return [partial(cp.copyto, out, args[0], "unsafe")]
            case np.stack | np.concat if len(args) == 1 and kwargs.keys() <= {"axis"}:
                # CuPy's stack and concat copy the parts' addresses to the GPU, which cannot be
                # captured.
                (parts,) = args
                places = places_of_parts(function, parts, kwargs.get("axis", 0), out)
                columns = _first_row(parts)
                source, target = (self._as_one_view(x, columns) for x in (parts, places))
                if source is None or target is None:
                    return [partial(cp.copyto, *each) for each in zip(places, parts, strict=True)]
                # The call keeps the parts alive: the view has only the address of the first one.
                return [partial(self._copy, target, source, parts)]
            case np.where:
                return [
                    partial(cp.copyto, out, args[2]),
                    partial(cp.copyto, out, args[1], where=args[0]),
                ]
            case np.sum | np.max | np.mean | np.argmax | np.all if len(
                args
            ) == 1 and kwargs.keys() <= {
                "axis",
                "keepdims",
            }:
                return [partial(self.function(function), *args, **kwargs, out=out)]
            case _:
                counterpart = self.function(function)
                return [lambda: cp.copyto(out, counterpart(*args, **kwargs))]

    def _as_one_view(self, parts: Sequence[Buffer], columns: int) -> Buffer | None:
        """Return one view of all parts, (rows, columns, ...); None if no strides give it.

        A convolution stacks the slices of its windows. Their addresses form a grid, so that one
        kernel can copy them all.
        """
        if len({(x.shape, x.strides, x.dtype) for x in parts}) > 1:
            return None
        if len({id(x if x.base is None else x.base) for x in parts}) > 1:
            return None  # of several arrays, whose distance is by chance and may be huge
        starts = np.asarray([address(x) for x in parts])
        across = starts[1] - starts[0] if columns > 1 else 0
        down = starts[columns] - starts[0] if len(parts) > columns else 0
        i = np.arange(len(parts))
        if (starts != starts[0] + i // columns * down + i % columns * across).any():
            return None
        shape = (-(-len(parts) // columns), columns, *parts[0].shape)
        if math.prod(shape[:2]) != len(parts):
            return None
        view: Buffer = self.module.lib.stride_tricks.as_strided(
            parts[0], shape, (int(down), int(across), *parts[0].strides)
        )
        return view

    def _copy(self, target: Buffer, source: Buffer, _parts: object) -> None:
        self.module.copyto(target, source)


def _first_row(parts: Sequence[Buffer]) -> int:
    """Return how many parts follow each other at the same distance in memory."""
    distances = [address(b) - address(a) for a, b in itertools.pairwise(parts)]
    return next((i for i, x in enumerate(distances, 1) if x != distances[0]), len(parts))


def gemm_arguments(out: Buffer, a: Buffer, b: Buffer) -> list[Any] | None:
    """Return the arguments with which a column-major BLAS computes ``out[...] = a @ b``.

    A row-major matrix is its transpose in column-major order, and ``out.T = b.T @ a.T``.

    Parameters
    ----------
    out : (rows, columns) array
    a : (rows, inner) array
    b : (inner, columns) array

    Returns
    -------
    list or None
        Whether to transpose the first and the second factor, columns, rows, inner, the first
        factor and its leading dimension, the second factor and its, and the leading dimension of
        `out`; None if an array is neither row-major nor column-major.
    """
    if out.ndim != 2 or a.ndim != 2 or b.ndim != 2 or not out.flags.c_contiguous:
        return None
    if {a.dtype, b.dtype} != {out.dtype}:
        return None
    transposed: list[bool] = []
    factors: list[Any] = []
    for x in (b, a):
        if not (x.flags.c_contiguous or x.flags.f_contiguous):
            return None
        transposed.append(not x.flags.c_contiguous)
        factors += [x, x.shape[1] if x.flags.c_contiguous else x.shape[0]]
    return [*transposed, *out.shape[::-1], a.shape[1], *factors, out.shape[1]]


class Cublas:
    """cuBLAS's matrix product, on the current stream, with a workspace of its own.

    Parameters
    ----------
    cp : module
        CuPy.

    Raises
    ------
    Exception
        If the library cannot be found or opened.
    """

    def __init__(self, cp: Any) -> None:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        self._handle = ctypes.c_void_p()
        self._cp = cp
        self._library = ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
        self._workspace = cp.empty(_WORKSPACE, np.uint8)
        self._stream: int | None = None
        self._call("cublasCreate_v2", ctypes.byref(self._handle))

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.cublasDestroy_v2(self._handle)

    def product(self, out: Any, a: Any, b: Any) -> Callable[[], object] | None:
        """Return a call that computes ``out[...] = a @ b``; None for other dtypes and layouts."""
        name, real = _PRODUCTS.get(out.dtype.name, ("", ctypes.c_double))
        arguments = gemm_arguments(out, a, b)
        if arguments is None or not name:
            return None
        first, second, columns, rows, inner, x, row_of_x, y, row_of_y, row_of_out = arguments
        one, zero = real(1), real(0)
        pointers = [ctypes.c_void_p(array.data.ptr) for array in (x, y, out)]
        c_arguments = [
            *(ctypes.c_int(_TRANSPOSED if each else _NOT_TRANSPOSED) for each in (first, second)),
            *map(ctypes.c_int, (columns, rows, inner)),
            ctypes.byref(one), pointers[0], ctypes.c_int(row_of_x),
            pointers[1], ctypes.c_int(row_of_y),
            ctypes.byref(zero), pointers[2], ctypes.c_int(row_of_out),
        ]  # fmt: skip
        # The call keeps the arrays alive: it has pointers to their memory.
        return partial(self._multiply, name, c_arguments, (a, b, out))

    def _multiply(self, name: str, arguments: list[Any], _arrays: object) -> None:
        self._follow_stream()
        self._call(name, self._handle, *arguments)

    def _follow_stream(self) -> None:
        stream = self._cp.cuda.get_current_stream().ptr
        if stream != self._stream:
            self._call("cublasSetStream_v2", self._handle, ctypes.c_void_p(stream))
            # cublasSetStream resets the workspace to cuBLAS's own, which cannot be allocated while
            # a stream is captured.
            pointer = ctypes.c_void_p(self._workspace.data.ptr)
            size = ctypes.c_size_t(_WORKSPACE)
            self._call("cublasSetWorkspace_v2", self._handle, pointer, size)
            self._stream = stream

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise DeviceError(f"{name} failed with status {status}; train with capture=False")


class GraphReplay(Replay):
    """Captured steps on CuPy's GPU: a CUDA graph for each batch size.

    The first step of a batch size runs call by call and is captured; later steps launch the graph.
    If several ranks exchange gradients, there is a graph before the exchange and one after it. If
    the capture fails, all steps run call by call, with a warning.
    """

    def __init__(self, step: Step, batches: Batches) -> None:
        import cupy

        product: Product = _no_product
        try:
            product = Cublas(cupy).product
        except Exception as error:  # noqa: BLE001 - any failure: CuPy's own product is used
            _warn(f"cuBLAS cannot be loaded ({error})")
        super().__init__(step, batches, CupyOps(cupy, product))
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._can_capture = True
        self._sent: list[float | None] = [None] * len(self._memory.numbers)
        # For each batch size: the inputs it was captured with, the row indices that it reads, and
        # the graph. The reference is weak, so that the data set can leave the GPU.
        self._graphs: dict[int, tuple[weakref.ref[Any], Buffer, list[Callable[[], object]]]] = {}

    def _step(self, examples: tuple[Buffer, ...], rows: Buffer) -> None:
        # Compile first: a step that fails here, for want of memory, is not counted.
        size = len(rows)  # of the global batch
        program = self._program(examples, size)
        (thread,) = program.threads
        (part,) = thread.parts
        if self._ranks is not None:
            rows = rows[self._ranks.share(size).rows]
        for i, number in enumerate(self._optimizer.numbers()):
            if number != self._sent[i]:
                self._memory.numbers[i].fill(number)
                self._sent[i] = number
        self._optimizer.steps += 1
        if size in self._graphs:
            captured_inputs, indices, launches = self._graphs[size]
            if captured_inputs() is examples[0]:
                indices[...] = rows
                for launch in launches:
                    launch()
                return
        indices = rows.copy()
        self._graphs = {n: kept for n, kept in self._graphs.items() if n in self._programs}
        take = self._ops.module.take
        calls: Program = [
            *(partial(take, x, indices, 0, y) for x, y in zip(examples, part.batch, strict=True)),
            *part.calls,
            *program.update,
        ]
        if not self._can_capture:
            for call in calls:
                call()
        elif captured := self._run_and_capture(calls):
            self._graphs[size] = weakref.ref(examples[0]), indices, captured

    def _run_and_capture(self, program: Program) -> list[Callable[[], object]] | None:
        """Run the program once and return calls that repeat it; None if it cannot be captured."""
        # Bound methods are equal, but not the same object.
        exchanges = [i for i, call in enumerate(program) if call == self._compiler.exchange]
        ends = [*exchanges, len(program)]
        launches: list[Callable[[], object]] = []
        cuda = self._ops.module.cuda
        pool = cuda.MemoryPool()
        cuda.get_current_stream().synchronize()
        with cuda.using_allocator(pool.malloc), self._stream:
            for call in program:
                call()
            self._stream.synchronize()
            start = 0
            try:
                for end in ends:
                    self._stream.begin_capture()
                    try:
                        for call in program[start:end]:
                            call()
                    finally:
                        graph = self._stream.end_capture()
                    launches += [_Graph(graph, pool).launch, *program[end : end + 1]]
                    start = end + 1
            except Exception as error:  # noqa: BLE001 - each call has its own errors
                _warn(f"the step cannot be captured ({error})")
                self._can_capture = False
                return None
        return launches


class _Graph:
    """A captured step, with the memory pool of its temporary arrays."""

    def __init__(self, graph: Any, pool: Any) -> None:
        self._graph = graph
        self._pool = pool

    def launch(self) -> None:
        """Launch the graph."""
        self._graph.launch()


def _no_product(*_: Buffer) -> None:
    return None


def _warn(reason: str) -> None:
    warn(f"{reason}; steps run call by call, which is slower")
