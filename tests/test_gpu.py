"""A captured step, as far as it can be tried without a GPU: what CuPy does, NumPy does here."""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
import types
from functools import partial

import numpy as np
import pytest
from conftest import train_epoch
from test_fast import LOSSES, PlainTrainer, assert_same, bound

import nnxp
from nnxp.data import Batches, Dataset
from nnxp.fast import blas, gpu
from nnxp.fast.recording import Tape
from nnxp.fast.replay import Replay
from nnxp.optimizers import OPTIMIZERS


class Module:
    """CuPy's functions, done by NumPy; between begin_capture and end_capture only written down."""

    def __init__(self, *, captures=True):
        self.graph = None
        self.launches = self.captures = 0
        self.cuda = types.SimpleNamespace(
            MemoryPool=lambda: types.SimpleNamespace(malloc=None),
            Stream=partial(Stream, self, captures),
            using_allocator=lambda _: Stream(self, captures),
            get_current_stream=lambda: Stream(self, captures),
        )

    def __getattr__(self, name):
        function = getattr(np, name)
        if isinstance(function, type):
            return function

        @functools.wraps(function)
        def called(*args, **kwargs):
            if self.graph is None:
                return function(*args, **kwargs)
            return self.graph.append(partial(function, *args, **kwargs))

        return called


class Stream:
    def __init__(self, module, captures, *, non_blocking=False):
        self.module, self.captures, self.non_blocking = module, captures, non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        assert self.module.graph is None

    def begin_capture(self):
        assert self.non_blocking  # CUDA refuses to capture its default stream
        if not self.captures:
            raise NotImplementedError("calling cuBLAS API during stream capture is unsupported")
        self.module.graph = []
        self.module.captures += 1

    def end_capture(self):
        calls, self.module.graph = self.module.graph, None
        return types.SimpleNamespace(launch=partial(self.launch, calls))

    def launch(self, calls):
        self.module.launches += 1
        for call in calls:
            call()


@pytest.fixture
def cupy(monkeypatch):
    """A module in place of CuPy; the CPU in place of its GPU."""
    module = Module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(gpu, "Cublas", lambda cp: types.SimpleNamespace(product=product))
    monkeypatch.setattr("nnxp.fast.faster", lambda *_: (gpu.GraphReplay, ""))
    return module


def product(out, a, b):
    return partial(sys.modules["cupy"].matmul, a, b, out)


def trainer_with(kind=nnxp.Trainer, *, loss=nnxp.SoftmaxWithLoss, optimizer="momentum"):
    rng = np.random.default_rng(0)
    first, second, last = (nnxp.Affine(i, o, rng=rng) for i, o in [(12, 9), (9, 7), (7, 3)])
    layers = [nnxp.Flatten(), first, nnxp.ReLU(), second, nnxp.Sigmoid(), nnxp.Tanh()]
    network = nnxp.Sequential([*layers, nnxp.Softmax(), last])
    return kind(network, loss(), OPTIMIZERS[optimizer]())


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (50, 3, 4), dtype=np.uint8)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_captured_step_does_the_very_step(cupy, images, loss, optimizer):
    one, other = (
        trainer_with(kind, loss=loss, optimizer=optimizer) for kind in (nnxp.Trainer, PlainTrainer)
    )
    for trainer in (one, other):
        rng = np.random.default_rng(0)
        trainer.fit(Dataset(images, LOSSES[loss]), epochs=2, batch_size=16, rng=rng)
        trainer.optimizer.learning_rate /= 3
        trainer.fit(Dataset(images, LOSSES[loss]), epochs=1, batch_size=16, rng=rng)
    assert_same(one, other)
    # The data set stays where it is here, so each size of batch is captured once in all.
    assert cupy.captures == 2
    assert cupy.launches == 3 * 4 - 2


def test_another_data_set_is_captured_anew(cupy, images):
    one, other = trainer_with(), trainer_with(PlainTrainer)
    labels = LOSSES[nnxp.SoftmaxWithLoss]
    for trainer in (one, other):
        rng = np.random.default_rng(0)
        for part in (slice(0, 32), slice(18, 50), slice(0, 40)):
            train_epoch(trainer, Dataset(images[part], labels[part]), 16, rng)
    assert_same(one, other)
    assert cupy.captures == 4


def test_a_capture_that_fails_says_so_and_training_goes_on(cupy, images, monkeypatch):
    monkeypatch.setattr(cupy.cuda, "Stream", partial(Stream, cupy, False))
    one, other = trainer_with(), trainer_with(PlainTrainer)
    data = Dataset(images, LOSSES[nnxp.SoftmaxWithLoss])
    with pytest.warns(UserWarning, match=r"cannot be captured \(calling cuBLAS .* call by call"):
        one.fit(data, epochs=2, batch_size=25, rng=np.random.default_rng(0))
    other.fit(data, epochs=2, batch_size=25, rng=np.random.default_rng(0))
    assert_same(one, other)


def test_a_missing_cublas_says_so_and_cupys_own_product_serves(cupy, images, monkeypatch):
    def missing(_):
        raise OSError("libcublas.so.13 is nowhere")

    monkeypatch.setattr(gpu, "Cublas", missing)
    one, other = trainer_with(), trainer_with(PlainTrainer)
    data = Dataset(images, LOSSES[nnxp.SoftmaxWithLoss])
    with pytest.warns(UserWarning, match=r"cuBLAS is not to be reached \(libcublas.so.13 is now"):
        one.fit(data, epochs=1, batch_size=25, rng=np.random.default_rng(0))
    other.fit(data, epochs=1, batch_size=25, rng=np.random.default_rng(0))
    assert_same(one, other)


def fortran_product(out, a, b):
    """Do the product as cuBLAS would, with the product of NumPy's OpenBLAS in Fortran's order."""
    library = next(
        (x.dynlib for x in blas._libraries().lib_controllers
         if hasattr(x.dynlib, "scipy_sgemm_64_")), None
    )  # fmt: skip
    if library is None:
        pytest.skip("NumPy's BLAS is not the OpenBLAS of its wheels")
    first, second, columns, rows, inner, x, row_of_x, y, row_of_y, _, row_of_out = (
        gpu.gemm_arguments(out, a, b)
    )
    letters = [ctypes.c_char(b"T" if each else b"N") for each in (first, second)]
    sizes = [ctypes.c_int64(n) for n in (columns, rows, inner, row_of_x, row_of_y, row_of_out)]
    m, n, k, lda, ldb, ldc = map(ctypes.byref, sizes)
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    px, py, pout = (ctypes.c_void_p(array.ctypes.data) for array in (x, y, out))
    library.scipy_sgemm_64_(
        *map(ctypes.byref, letters), m, n, k, ctypes.byref(one), px, lda, py, ldb,
        ctypes.byref(zero), pout, ldc,
    )  # fmt: skip


@pytest.mark.parametrize("left", ["C", "F"])
@pytest.mark.parametrize("right", ["C", "F"])
def test_the_arguments_of_a_product_in_columns(left, right):
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
def test_cupy_keeps_the_products_that_blas_does_not_do(arrays):
    assert gpu.gemm_arguments(*arrays) is None


def test_cupy_has_all_that_a_step_calls(images):
    """The real CuPy, which imports without a GPU; the calls are those of a recorded step."""
    cupy = pytest.importorskip("cupy")
    called = set()

    class Calls(gpu.CupyCalls):
        def named(self, function):
            called.add(function.__name__)
            return super().named(function)

    for loss, optimizer in itertools.product(LOSSES, OPTIMIZERS):
        trainer = trainer_with(loss=loss, optimizer=optimizer)
        data = Dataset(images, LOSSES[loss])
        parts = trainer.network, trainer.loss, trainer.optimizer
        recorded = Replay(*parts, data, Calls(np, lambda *_: None))
        with recorded.over(Batches(data, 16, device="cpu", dtype="float32")) as step:
            step(np.arange(16))
    assert {"exp", "maximum", "transpose", "sum", "max", "sqrt"} <= called
    for name in called - {"getitem"}:
        assert callable(getattr(cupy, name))
    for name in ("take", "copyto", "matmul", "concatenate", "may_share_memory", "empty_like"):
        assert callable(getattr(cupy, name))


def test_a_tape_has_its_librarys_constants():
    class Calls(gpu.CupyCalls):
        def array(self, x):
            return np.asarray(x) + 0

    tape = Tape(Calls(np, lambda *_: None))
    x, out = np.ones(3), np.zeros(3)
    y = tape.read(x) * tape.namespace.arange(3)
    for call in tape.compile([(y, out)]):
        call()
    np.testing.assert_array_equal(out, np.arange(3))
