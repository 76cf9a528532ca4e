"""CuPy: graphs of captured steps and cuBLAS calls, with NumPy in place of CuPy."""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import sys
import types
import weakref
from functools import partial

import numpy as np
import pytest
from builders import (
    PlainTrainer,
    Stopping,
    assert_same,
    bound,
    every_layer_trainer,
    train_epoch,
    train_layer,
)
from pairs import assert_equal
from tables import TARGETS, layers, losses_and_optimizers

import nnxp
from nnxp.capture import cupy as gpu
from nnxp.capture.batch_compiler import BatchCompiler
from nnxp.capture.program import compile_program
from nnxp.capture.replay import Replay
from nnxp.capture.tape import Tape
from nnxp.data import Batches, Dataset
from nnxp.devices.threads import blas_libraries
from nnxp.optimizers import OPTIMIZERS
from nnxp.ranks import Ranks, Share


class Module:
    """CuPy's functions, done by NumPy; between begin_capture and end_capture only written down."""

    def __init__(self):
        self.graph = None
        self.launches = self.captures = 0
        self.events = []
        self.captures_fail = False
        self.lib = np.lib
        self.cuda = types.SimpleNamespace(
            MemoryPool=lambda: types.SimpleNamespace(malloc="private"),
            Stream=partial(Stream, self, "own"),
            using_allocator=partial(Stream, self),
            get_current_stream=partial(Stream, self, "default"),
        )

    def __getattr__(self, name):
        function = getattr(np, name)
        if isinstance(function, type):
            return function

        @functools.wraps(function)
        def called(*args, **kwargs):
            if self.graph is None:
                return function(*args, **kwargs)
            if function in (np.stack, np.concat):  # CuPy sends the addresses of the parts
                raise RuntimeError("the current stream is capturing, so H2D transfers are disal")
            if writes(function, args, kwargs):
                return self.graph.append(partial(function, *args, **kwargs))
            # In memory of the pool; a capture computes nothing, so that the numbers do not matter.
            result = function(*zeros(args), **kwargs)
            self.graph.append(partial(write_to(result), function, *args, **kwargs))
            return result

        return called


def writes(function, args, kwargs):
    """Return whether a call writes to one of its arguments."""
    if function is np.copyto or "out" in kwargs:
        return True
    inputs = function.nin if isinstance(function, np.ufunc) else {np.take: 3}.get(function)
    return inputs is not None and len(args) > inputs


def zeros(x):
    """Return arrays of zeros in place of arrays, also within lists."""
    if isinstance(x, list | tuple):
        return type(x)(map(zeros, x))
    return np.zeros_like(x) if isinstance(x, np.ndarray) else x


def write_to(result):
    """Return a call of a function that writes what it returns to the memory of its first result."""

    def call(function, *args, **kwargs):
        result[...] = function(*args, **kwargs)

    return call


class Stream:
    """A stream, or an allocator that is entered as one."""

    def __init__(self, module, name, *, non_blocking=False):
        self.module, self.name, self.non_blocking = module, name, non_blocking

    def __enter__(self):
        self.module.events.append(f"enter {self.name}")
        return self

    def __exit__(self, *_):
        self.module.events.append(f"leave {self.name}")

    def synchronize(self):
        assert self.module.graph is None
        self.module.events.append(f"wait for {self.name}")

    def begin_capture(self):
        assert self.non_blocking  # CUDA refuses to capture its default stream
        self.module.events.append(f"capture {self.name}")
        if self.module.captures_fail:
            raise NotImplementedError("calling cuBLAS API during stream capture is unsupported")
        self.module.graph = []
        self.module.captures += 1

    def end_capture(self):
        calls, self.module.graph = self.module.graph, None
        return types.SimpleNamespace(launch=partial(self.launch, list(map(weakly, calls))))

    def launch(self, calls):
        self.module.launches += 1
        for call in calls:
            call()


def weakly(call):
    """Return a call that keeps its large arrays no more alive than a CUDA graph does."""
    kept = [
        weakref.ref(x) if isinstance(x, np.ndarray) and x.base is None else x for x in call.args
    ]

    def again():
        args = [x() if isinstance(x, weakref.ref) else x for x in kept]
        assert not any(x is None and y is not None for x, y in zip(args, kept, strict=True))
        call.func(*args, **call.keywords)

    return again


@pytest.fixture
def cupy(monkeypatch):
    """A module in place of CuPy; the CPU in place of its GPU."""
    module = Module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(gpu, "Cublas", lambda cp: types.SimpleNamespace(product=product))
    monkeypatch.setattr("nnxp.capture.choose", lambda *_, **__: (gpu.GraphReplay, ""))
    return module


def product(out, a, b):
    return partial(sys.modules["cupy"].matmul, a, b, out)


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (50, 3, 4), dtype=np.uint8)


@losses_and_optimizers
def test_graph_replay_equals_plain_steps(cupy, images, loss, optimizer):
    one, other = (
        every_layer_trainer(kind, loss=loss, optimizer=optimizer)
        for kind in (nnxp.Trainer, PlainTrainer)
    )
    for trainer in (one, other):
        rng = np.random.default_rng(0)
        trainer.fit(Dataset(images, TARGETS[loss]), epochs=2, batch_size=16, rng=rng)
        trainer.optimizer.learning_rate /= 3
        trainer.fit(Dataset(images, TARGETS[loss]), epochs=1, batch_size=16, rng=rng)
    assert_same(one, other)
    # The data set stays where it is here, so each size of batch is captured once in all.
    assert cupy.captures == 2
    assert cupy.launches == 3 * 4 - 2


class Twins(Ranks):
    """A rank whose only other one would compute the same rows, of a batch of twice as many."""

    size, batch_norm = 2, "own"

    def share(self, count):
        return Share(0, count, 2 * count)

    def all_reduce(self, vector):
        vector *= 2

    def gather(self, text, patience=None):
        return [text, text]


def test_an_exchange_is_between_two_graphs(cupy, images):
    one, other = (every_layer_trainer(kind) for kind in (nnxp.Trainer, PlainTrainer))
    one.ranks = Twins()
    data = Dataset(images, TARGETS[nnxp.SoftmaxWithLoss])
    for trainer in (one, other):
        trainer.fit(data, epochs=3, batch_size=20, rng=np.random.default_rng(0))
    # Gradients are multiplied by 20 rows and divided by 40, which rounds each by some 6e-8; nine
    # steps of a rate of 0.01 add far less than 100 such errors of gradients below 10.
    for name, x in one.network.parameters().items():
        np.testing.assert_allclose(x, other.network.parameters()[name], atol=9 * 0.01 * 6e-5)
    assert cupy.captures == 2 * 2
    assert cupy.launches == 2 * (3 * 3 - 2)


@layers
def test_every_layer_is_captured(cupy, make, inputs, outputs):
    captured, _ = train_layer(make, inputs, outputs)
    plain, _ = train_layer(make, inputs, outputs, capture=False)
    assert cupy.captures == 2
    assert cupy.launches == 4
    assert_equal(captured, plain)


def test_new_data_set_is_captured_again(cupy, images):
    one, other = every_layer_trainer(), every_layer_trainer(PlainTrainer)
    labels = TARGETS[nnxp.SoftmaxWithLoss]
    for trainer in (one, other):
        rng = np.random.default_rng(0)
        for part in (slice(0, 32), slice(18, 50), slice(0, 40)):
            train_epoch(trainer, Dataset(images[part], labels[part]), 16, rng)
    assert_same(one, other)
    assert cupy.captures == 4


def test_failed_capture_warns_and_trains_uncaptured(cupy, images, monkeypatch):
    cupy.captures_fail = True
    one, other = every_layer_trainer(), every_layer_trainer(PlainTrainer)
    data = Dataset(images.copy(), TARGETS[nnxp.SoftmaxWithLoss])
    with pytest.warns(UserWarning, match=r"cannot be captured \(calling cuBLAS .* call by call"):
        one.fit(data, epochs=2, batch_size=25, rng=np.random.default_rng(0))
    other.fit(data, epochs=2, batch_size=25, rng=np.random.default_rng(0))
    assert_same(one, other)
    assert cupy.events.count("capture own") == 1  # it is not tried again and again
    inputs = weakref.ref(data.inputs)
    del data
    gc.collect()
    assert inputs() is None


def test_out_of_memory_in_the_first_step_keeps_the_position_in_the_epoch(cupy, images, monkeypatch):
    trainer, data = every_layer_trainer(), Dataset(images, np.arange(50) % 3)
    options = {"epochs": 1, "batch_size": 16, "rng": np.random.default_rng(0)}
    trainer.fit(data, **options, callbacks=[Stopping(lambda: trainer.optimizer.steps == 2)])
    trainer._stepper.captured = None

    def refuse(*_):
        raise MemoryError("none is left")

    with monkeypatch.context() as patch:
        patch.setattr(BatchCompiler, "compile", refuse)
        with pytest.raises(MemoryError):
            trainer.fit(data, **options)
    assert (trainer.optimizer.steps, trainer._progress.batch) == (2, 2)
    trainer.fit(data, **options)
    assert trainer.optimizer.steps == 4


def test_step_is_captured_on_its_own_stream_and_memory_pool(cupy, images):
    trainer = every_layer_trainer()
    data = Dataset(images, TARGETS[nnxp.SoftmaxWithLoss])
    trainer.fit(data, epochs=1, batch_size=25, rng=np.random.default_rng(0))
    assert cupy.events == [
        "wait for default",  # where parameters and batch were written
        "enter private",  # for what reductions take in between
        "enter own",
        "wait for own",  # until the first step is done
        "capture own",
        "leave own",
        "leave private",
    ]
    ((_, _, (launch,)),) = trainer._stepper.captured._graphs.values()
    assert launch.__self__._pool.malloc == "private"  # as long as the graph


def test_graphs_are_dropped_with_their_programs(cupy, images):
    trainer = every_layer_trainer()
    batches = [
        Batches(Dataset(images, TARGETS[nnxp.SoftmaxWithLoss]), n, device="cpu", dtype="float32",
                rng=np.random.default_rng(0))
        for n in (25, 10, 5, 2)
    ]  # fmt: skip
    for each in batches:
        trainer.train_epoch(each)
        captured = trainer._stepper.captured
        assert captured._graphs.keys() == captured._programs.keys()
    assert len(trainer._stepper.captured._graphs) == 2


def test_cublas_gets_the_arguments_of_the_product(monkeypatch):
    """cuBLAS by the product of NumPy's OpenBLAS in Fortran's order, which takes the same."""
    fortran = openblas()
    calls = []

    def gemm(handle, left, right, m, n, k, one, x, row_of_x, y, row_of_y, zero, out, row_of_out):
        assert (handle.value, one._obj.value, zero._obj.value) == (7, 1, 0)
        assert [type(z) for z in (one._obj, zero._obj)] == [ctypes.c_float] * 2
        letters = [ctypes.byref(ctypes.c_char(b"NT"[z.value : z.value + 1])) for z in (left, right)]
        sizes = [ctypes.byref(ctypes.c_int64(z.value)) for z in (m, n, k)]
        rows = [ctypes.byref(ctypes.c_int64(z.value)) for z in (row_of_x, row_of_y, row_of_out)]
        fortran(*letters, *sizes, one, x, rows[0], y, rows[1], zero, out, rows[2])
        return 0

    def create(handle):
        handle._obj.value = 7
        return 0

    library = types.SimpleNamespace(
        cublasCreate_v2=create,
        cublasDestroy_v2=lambda handle: calls.append(("destroy", handle.value)),
        cublasSetStream_v2=lambda handle, stream: calls.append(("stream", stream.value)) or 0,
        cublasSetWorkspace_v2=lambda handle, place, size: calls.append(("space", size.value)) or 0,
        cublasSgemm_v2=gemm,
    )
    monkeypatch.setitem(
        sys.modules, "cuda.pathfinder",
        types.SimpleNamespace(load_nvidia_dynamic_lib=lambda _: types.SimpleNamespace(abs_path="")),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setattr(gpu.ctypes, "CDLL", lambda _: library)

    class Array(np.ndarray):
        @property
        def data(self):
            return types.SimpleNamespace(ptr=self.ctypes.data)

    stream = types.SimpleNamespace(ptr=11)
    cp = types.SimpleNamespace(
        empty=lambda *args: np.empty(*args).view(Array),
        cuda=types.SimpleNamespace(get_current_stream=lambda: stream),
    )
    cublas = gpu.Cublas(cp)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 7)).astype("f4"), rng.normal(size=(3, 7)).astype("f4").T
    out = np.full((5, 3), np.nan, "f4")
    call = cublas.product(*(x.view(Array) for x in (out, a, b)))
    for pointer in (11, 11, 12):
        stream.ptr = pointer
        out[...] = np.nan
        call()
        assert (abs(out - a @ b) <= bound(np.zeros_like(out), 1, a, b)).all()
    # A change of stream takes the workspace away.
    space = ("space", 32 << 20)
    assert calls == [("stream", 11), space, ("stream", 12), space]
    half = [x.astype("f2").view(Array) for x in (out, a, b)]
    assert cublas.product(*half) is None
    library.cublasSgemm_v2 = lambda *_: 13
    with pytest.raises(nnxp.DeviceError, match="Sgemm_v2 failed with status 13; train with capt"):
        call()
    del cublas, call
    gc.collect()
    assert calls[-1] == ("destroy", 7)


def test_missing_cublas_warns_and_uses_cupys_product(cupy, images, monkeypatch):
    def missing(_):
        raise OSError("libcublas.so.13 is nowhere")

    monkeypatch.setattr(gpu, "Cublas", missing)
    one, other = every_layer_trainer(), every_layer_trainer(PlainTrainer)
    data = Dataset(images, TARGETS[nnxp.SoftmaxWithLoss])
    with pytest.warns(UserWarning, match=r"cuBLAS cannot be loaded \(libcublas.so.13 is now"):
        one.fit(data, epochs=1, batch_size=25, rng=np.random.default_rng(0))
    other.fit(data, epochs=1, batch_size=25, rng=np.random.default_rng(0))
    assert_same(one, other)


def openblas():
    """Return the product of NumPy's OpenBLAS in Fortran's order, which is cuBLAS's."""
    for each in blas_libraries().lib_controllers:
        if hasattr(each.dynlib, "scipy_sgemm_64_"):
            return each.dynlib.scipy_sgemm_64_
    pytest.skip("NumPy's BLAS is not the OpenBLAS of its wheels")


def fortran_product(out, a, b):
    """Do the product as cuBLAS would."""
    product = openblas()
    first, second, columns, rows, inner, x, row_of_x, y, row_of_y, row_of_out = gpu.gemm_arguments(
        out, a, b
    )
    letters = [ctypes.c_char(b"T" if each else b"N") for each in (first, second)]
    sizes = [ctypes.c_int64(n) for n in (columns, rows, inner, row_of_x, row_of_y, row_of_out)]
    m, n, k, lda, ldb, ldc = map(ctypes.byref, sizes)
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    px, py, pout = (ctypes.c_void_p(array.ctypes.data) for array in (x, y, out))
    product(
        *map(ctypes.byref, letters), m, n, k, ctypes.byref(one), px, lda, py, ldb,
        ctypes.byref(zero), pout, ldc,
    )  # fmt: skip


@pytest.mark.parametrize("left", ["C", "F"])
@pytest.mark.parametrize("right", ["C", "F"])
def test_gemm_arguments_for_every_memory_layout(left, right):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 7)), rng.normal(size=(7, 3))
    a, b = np.asarray(a, "f4", order=left), np.asarray(b, "f4", order=right)
    out = np.full((5, 3), np.nan, "f4")
    fortran_product(out, a, b)
    assert (abs(out - a @ b) <= bound(np.zeros_like(out), 1, a, b)).all()


@pytest.mark.parametrize(
    "arrays",
    [
        [np.ones((4, 6))[:, ::2], np.ones((4, 2)), np.ones((2, 3))],
        [np.ones((4, 3)), np.ones((4, 4))[:, ::2], np.ones((2, 3))],
        [np.ones((4, 3)), np.ones((4, 2), "f4"), np.ones((2, 3))],
        [np.ones(3), np.ones(4), np.ones((4, 3))],
        [np.ones((4, 3), order="F"), np.ones((4, 2)), np.ones((2, 3))],
    ],
)
def test_gemm_arguments_refuses_unsupported_arrays(arrays):
    assert gpu.gemm_arguments(*arrays) is None


def test_cupy_has_every_function_that_a_step_calls(images):
    """The real CuPy, which imports without a GPU; the calls are those of a recorded step."""
    cupy = pytest.importorskip("cupy")
    called = set()

    class Ops(gpu.CupyOps):
        def function(self, function):
            called.add(function.__name__)
            return super().function(function)

    for loss, optimizer in itertools.product(TARGETS, OPTIMIZERS):
        trainer = every_layer_trainer(loss=loss, optimizer=optimizer)
        data = Dataset(images, TARGETS[loss])
        for layer in trainer.network.layers:
            if isinstance(layer, nnxp.Standardize):
                layer.adapt(images.reshape(50, -1) / 255)
        batches = Batches(data, 16, device="cpu", dtype="float32")
        recorded = Replay(trainer._whole_step(), batches, Ops(np, lambda *_: None))
        with recorded.bind(batches, {}) as do_steps:
            do_steps([np.arange(16)])
    assert {"exp", "maximum", "transpose", "sum", "max", "sqrt"} <= called
    for name in called - {"getitem"}:
        assert callable(getattr(cupy, name))
    for name in ("take", "copyto", "matmul", "concatenate", "may_share_memory", "empty_like"):
        assert callable(getattr(cupy, name))


def test_tape_constants_are_arrays_of_the_library():
    class Ops(gpu.CupyOps):
        def array(self, x):
            return np.asarray(x) + 0

    tape = Tape()
    x, out = np.ones(3), np.zeros(3)
    y = tape.read(x) * tape.namespace.arange(3)
    for call in compile_program(tape, [(y, out)], Ops(np, lambda *_: None)).program:
        call()
    np.testing.assert_array_equal(out, np.arange(3))
