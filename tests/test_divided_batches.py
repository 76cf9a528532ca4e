"""Captured steps that divide a batch into threads, and these into parts that stay in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial

import numpy as np
import pytest
import threadpoolctl
from array_api_compat import array_namespace
from builders import train_layer
from divided import CASES, TOLERANCE, new_network, numbers_of, train
from pairs import assert_equal
from tables import LAYERS, LOSSES

import nnxp
from nnxp.capture import batch_compiler, batch_program, blas
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.data import Dataset
from nnxp.devices.threads import limit_blas_threads
from nnxp.optimizers import OPTIMIZERS
from nnxp.ranks import ONE_RANK

THREAD_COUNT = NumpyOps.thread_count  # which the fixture `cache` replaces
WAYS = pytest.mark.parametrize("compiled", [False, True], ids=["captured", "compiled"])


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """Keep machine code in the folder of this run, and not in the user's cache."""
    llvm = pytest.importorskip("nnxp.capture.llvm", exc_type=ImportError)
    folder = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setattr(llvm, "_cache_folder", lambda: folder)
    monkeypatch.setattr(NumpyOps, "thread_count", lambda _: 1)  # whatever the machine


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request, monkeypatch):
    """Divide batches of any size among so many threads."""
    monkeypatch.setattr(NumpyOps, "thread_count", lambda _: request.param)
    monkeypatch.setattr(batch_compiler, "suits_one_thread", lambda _: False)
    monkeypatch.setattr(batch_compiler, "_THREAD_BYTES", 1)
    monkeypatch.setattr(batch_compiler, "_THREAD_PER_PARAMETERS", 0)
    return request.param


@pytest.fixture
def divided(threads, monkeypatch):
    """Divide the rows of a thread into about three parts; return a function that looks at them.

    It returns the sizes of the parts of a trainer's last two programs, which the tests expect.
    """
    original = batch_compiler.BatchCompiler._part_sizes
    monkeypatch.setattr(NumpyOps, "cache_bytes", 100)
    monkeypatch.setattr(batch_compiler, "_PART_PER_PARAMETERS", 0)
    monkeypatch.setattr(batch_compiler, "_CONVOLUTIONS", 1)
    monkeypatch.setattr(
        batch_compiler.BatchCompiler,
        "_part_sizes",
        lambda self, batch_size, _: original(self, batch_size, 300),
    )

    def assert_divided(trainer, *batch_sizes):
        programs = trainer._stepper.captured._programs
        assert list(programs) == list(batch_sizes)
        for batch_size, program in programs.items():
            rows = [thread.rows for thread in program.threads]
            assert sum(rows) == batch_size
            assert len(rows) == min(threads, batch_size)
            assert max(rows) - min(rows) <= 1
            for thread in program.threads:
                assert thread.rows == 1 or sum(part.count for part in thread.parts) > 1

    return assert_divided


@WAYS
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_without_state_gives_the_whole_step(name, compiled, divided):
    layer = LAYERS[name]
    trainer, _ = train_layer(*layer, compiled=compiled)
    plain, _ = train_layer(*layer, capture=False)
    assert trainer.captured == ("compiled" if compiled else "captured")
    assert_equal(trainer, plain)
    if not plain.network.states():
        divided(trainer, 8, 6)


@WAYS
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_loss_gives_the_whole_step(name, weighted, compiled, divided):
    make, scores, labels = LOSSES[name]
    rng = np.random.default_rng(0)
    weights = rng.random(43) * (np.arange(43) % 3 > 0) if weighted else None
    data = Dataset(rng.normal(size=(43, 6)), labels[np.arange(43) % 5], weights=weights)

    def case():
        layers = [nnxp.Affine(6, 8, rng=1), nnxp.Tanh(), nnxp.Affine(8, scores.shape[1], rng=2)]
        network = nnxp.Sequential(layers).to("cpu", dtype="float64")
        return {"data": data, "loss": make(), "network": network, "fit": {"validation": data}}

    divided(assert_as_plain(case, compiled), 10, 3)


def assert_as_plain(case, compiled):
    """Compare divided steps with plain ones, and return the trainer."""
    trainer = train(ONE_RANK, **case() | {"capture": True, "compiled": compiled})
    plain = train(ONE_RANK, **case() | {"capture": False, "compiled": False})
    expected = numbers_of(plain)
    for key, x in numbers_of(trainer).items():
        np.testing.assert_allclose(x, expected[key], rtol=TOLERANCE, atol=TOLERANCE, err_msg=key)
    return trainer


@WAYS
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_gives_the_whole_step(name, compiled, divided):
    rate = 0.01 if name in ("adam", "adamw", "rmsprop") else 0.1
    divided(assert_as_plain(lambda: {"optimizer": OPTIMIZERS[name](rate)}, compiled), 10, 3)


@WAYS
@pytest.mark.parametrize("name", [x for x in CASES if "plain" not in x and "compiled" not in x])
def test_other_settings_give_the_whole_step(name, compiled, divided):
    """Weights, penalties, clipping, metrics, frozen layers, micro-batches and other rules."""
    trainer = assert_as_plain(CASES[name], compiled)
    states, own = trainer.network.states(), "by parameter" in name
    if not (states or own or "accumulate" in name):
        divided(trainer, 10, 3)
    else:
        for program in trainer._stepper.captured._programs.values():
            assert [part.count for thread in program.threads for part in thread.parts] == [1]


@WAYS
@pytest.mark.parametrize("rows", [10_000, 10_007])
def test_a_large_batch_is_divided_by_the_bytes_of_its_buffers(rows, compiled):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(rows, 4))
    data = Dataset(inputs, np.tanh(inputs @ rng.normal(size=(4, 4))))

    def trained(**options):
        network = nnxp.mlp([4, 32, 16, 4], rng=np.random.default_rng(1), activation="tanh",
                           dtype="float64")  # fmt: skip
        trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), nnxp.Momentum(0.01), **options)
        trainer.fit(data, epochs=3, batch_size=rows, rng=2)
        return trainer

    divided = trained(compiled=compiled)
    (program,) = divided._stepper.captured._programs.values()
    (thread,) = program.threads
    counts = [part.count for part in thread.parts]
    sizes = [len(part.batch[0]) for part in thread.parts]
    assert sum(n * size for n, size in zip(counts, sizes, strict=True)) == rows
    assert len(counts) == (1 if rows == 10_000 else 2)
    assert all(part.nbytes < 1.5 * NumpyOps.cache_bytes for part in thread.parts)
    plain = trained(capture=False)
    for name, x in divided.network.parameters().items():
        y = plain.network.parameters()[name]
        # A mean over n rows in any order is off by n u of its terms at most (Higham 2002, eq. 3.5),
        # and is far below 1 here; so are the changes of three steps.
        np.testing.assert_allclose(x, y, rtol=0, atol=rows * np.finfo("float64").eps, err_msg=name)


@WAYS
def test_parts_are_kept_where_the_parameters_are_small_and_nothing_depends_on_all_rows(compiled):
    class Centered(nnxp.Layer):
        """Subtracts the mean of all rows."""

        def forward(self, x, training=False):
            return x - array_namespace(x).mean(x, axis=0)

        def backward(self, dy):
            return dy - array_namespace(dy).mean(dy, axis=0)

    def parts(*layers, rows=4000, width=64):
        network = nnxp.Sequential([nnxp.Affine(4, width, rng=0), *layers,
                                   nnxp.Affine(width, 2, rng=1)])  # fmt: skip
        numbers = np.random.default_rng(0).normal(size=(rows, 6)).astype("float32")
        data = Dataset(numbers[:, :4], numbers[:, 4:])
        trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), nnxp.SGD(0.01), compiled=compiled)
        trainer.fit(data, epochs=1, batch_size=rows, rng=0)
        assert trainer.captured == ("compiled" if compiled else "captured")
        (program,) = trainer._stepper.captured._programs.values()
        return sum(part.count for thread in program.threads for part in thread.parts)

    assert parts(nnxp.Tanh()) > 1
    assert parts(nnxp.Tanh(), rows=400) == 1
    assert parts(nnxp.Tanh(), nnxp.Dropout(0.1, rng=0)) == 1
    assert parts(nnxp.Tanh(), nnxp.BatchNorm(64)) == 1
    assert parts(Centered()) == 1
    # 4 MB of buffers, but 1 MB of parameters
    assert parts(nnxp.Affine(500, 500, rng=2), width=500, rows=500) == 1


@WAYS
def test_parts_with_convolutions_are_larger(compiled):
    def parts(*layers):
        network = nnxp.Sequential([*layers, nnxp.GlobalAveragePool2D(),
                                   nnxp.Affine(8, 2, rng=1)])  # fmt: skip
        numbers = np.random.default_rng(0).normal(size=(64, 8, 28, 28)).astype("float32")
        data = Dataset(numbers, np.zeros((64, 2), "float32"))
        trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), nnxp.SGD(0.01), compiled=compiled)
        trainer.fit(data, epochs=1, batch_size=64, rng=0)
        (program,) = trainer._stepper.captured._programs.values()
        (part,) = program.threads[0].parts
        return part.count, program.nbytes

    dense, nbytes = parts(nnxp.ReLU())
    assert dense > 1
    assert nbytes < 2 * NumpyOps.cache_bytes
    count, nbytes = parts(nnxp.Conv2D(8, 8, 3, padding=1, rng=0), nnxp.ReLU())
    assert 1 <= count < dense
    assert nbytes > 2 * NumpyOps.cache_bytes


def test_parts_are_at_least_two_and_cover_the_batch():
    trainer = nnxp.Trainer(nnxp.mlp([6, 4, 3], rng=0), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    trainer.fit(Dataset(np.zeros((9, 6)), np.arange(9) % 3), epochs=1, batch_size=9, rng=0)
    captured = trainer._stepper.captured
    for batch_size in (*range(1, 120), 1999, 2000, 2003):
        for kib in (1, 500, 1000, 1100, 1600, 2600, 5000, 100_000):
            sizes = captured._compiler._part_sizes(batch_size, kib << 10)
            assert sum(sizes.values()) > 1 or batch_size == 1 or kib <= 1000
            assert sum(rows * count for rows, count in sizes.items()) == batch_size


def test_a_thread_has_enough_work_for_its_gradients():
    def counts(*sizes):
        network = nnxp.mlp([*sizes, 3], rng=0)
        trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
        data = Dataset(np.zeros((9, sizes[0])), np.arange(9) % 3)
        trainer.fit(data, epochs=1, batch_size=9, rng=0)
        compiler = trainer._stepper.captured._compiler
        return [compiler._thread_count(100, mib << 20, 8) for mib in (0, 1, 3, 5, 100)]

    assert counts(6, 4) == [1, 1, 3, 5, 8]
    assert counts(2000, 250) == [1, 1, 1, 1, 8]  # 2 MB of parameters, so 4 of each thread


@WAYS
@pytest.mark.parametrize("openblas", [True, False])
def test_all_kernels_of_parts_are_joined(compiled, openblas, divided, monkeypatch):
    from nnxp.capture.llvm_kernels import Kernel

    if not openblas:  # the products are then NumPy's, and no kernels
        monkeypatch.setattr(blas, "_NAMES", {})
    trainer = train(ONE_RANK, capture=True, compiled=compiled)
    divided(trainer, 10, 3)
    for program in trainer._stepper.captured._programs.values():
        lists = [program.update]
        for thread in program.threads:
            if not compiled or thread.function is None:
                lists += [thread.before, *(part.calls for part in thread.parts)]
        assert not any(isinstance(call, Kernel) for calls in lists for call in calls)
    monkeypatch.undo()
    plain = train(ONE_RANK, capture=False)
    for name, x in plain.network.parameters().items():
        np.testing.assert_allclose(trainer.network.parameters()[name], x, rtol=0, atol=TOLERANCE)


@WAYS
def test_a_frozen_network_goes_through_a_large_batch(compiled):
    numbers = np.random.default_rng(0).normal(size=(10_000, 6)).astype("float32")
    network = nnxp.mlp([4, 64, 2], rng=0)
    network.trainable = False
    before = {name: x.copy() for name, x in network.parameters().items()}
    trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), nnxp.SGD(0.1), compiled=compiled)
    data = Dataset(numbers[:, :4], numbers[:, 4:])
    trainer.fit(data, epochs=1, batch_size=10_000, rng=0)
    assert trainer.captured == ("compiled" if compiled else "captured")
    for name, x in network.parameters().items():
        np.testing.assert_array_equal(x, before[name])


def test_the_bytes_of_a_part_are_counted_once():
    from nnxp.capture.compiled import _CompiledPart

    part = batch_program.BatchPart((np.zeros((2, 3)),), [], 2, 100)
    assert _CompiledPart(part, np.zeros(1), 3).nbytes == part.nbytes == 100


def large_images(rows=24):
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (rows, 1, 28, 28), np.uint8), rng.integers(0, 10, rows))


def train_images(data, *, batch_size=24, epochs=1, **options):
    rng, options_of = np.random.default_rng(1), {"padding": 1, "dtype": "float64"}
    network = nnxp.Sequential([
        nnxp.Conv2D(1, 8, 3, rng=rng, **options_of), nnxp.ReLU(),
        nnxp.Conv2D(8, 16, 3, rng=rng, **options_of), nnxp.ReLU(), nnxp.MaxPool2D(2),
        nnxp.Flatten(), nnxp.Affine(16 * 14 * 14, 10, rng=rng, dtype="float64"),
    ])  # fmt: skip
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Momentum(0.01), **options)
    trainer.fit(data, epochs=epochs, batch_size=batch_size, rng=0)
    return trainer


@pytest.fixture
def blas_threads(monkeypatch):
    """Give BLAS three threads, as on a machine with three cores."""
    if threads_of_blas() is None:
        pytest.skip("threadpoolctl does not know NumPy's BLAS")
    monkeypatch.setattr(NumpyOps, "thread_count", THREAD_COUNT)
    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        yield


def threads_of_blas():
    pools = [x for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas"]
    return pools[0]["num_threads"] if pools else None


@WAYS
@pytest.mark.usefixtures("blas_threads")
def test_threads_of_a_convolutional_network_give_the_whole_step(compiled):
    data, running = large_images(48), threading.active_count()
    trainer = train_images(data, compiled=compiled)
    (program,) = trainer._stepper.captured._programs.values()
    assert [thread.rows for thread in program.threads] == [8, 8, 8]
    assert threads_of_blas() == 3  # as before
    assert threading.active_count() == running
    plain, again = train_images(data, capture=False), train_images(data, compiled=compiled)
    for name, x in trainer.network.parameters().items():
        np.testing.assert_array_equal(again.network.parameters()[name], x)
        # The longest sums are over 24 images of 28 x 28 places, in any order, of terms below 1.
        y = plain.network.parameters()[name]
        np.testing.assert_allclose(x, y, rtol=0, atol=24 * 28 * 28 * 2.0**-53)


@pytest.mark.usefixtures("blas_threads")
def test_small_batches_and_a_limit_of_the_user_leave_one_thread():
    def count(data=None, batch_size=24):
        trainer = train_images(data or large_images(), batch_size=batch_size)
        (program,) = trainer._stepper.captured._programs.values()
        return len(program.threads)

    assert count() == 3
    assert count(large_images(2), 2) == 1  # small products
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert count() == 2
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        assert count() == 1


@WAYS
@pytest.mark.usefixtures("blas_threads")
def test_the_threads_of_a_later_fit_are_those_of_blas_then(compiled):
    trainer, data = train_images(large_images(), compiled=compiled), large_images()
    for number in (3, 1, 2):
        with threadpoolctl.threadpool_limits(number, user_api="blas"):
            trainer.fit(data, epochs=1, batch_size=24, rng=0)
            (program,) = trainer._stepper.captured._programs.values()
            assert len(program.threads) == number


@WAYS
def test_a_later_batch_may_have_more_threads(compiled, threads):
    inputs = np.random.default_rng(0).normal(size=(41, 6))
    stream = [(inputs[:1], np.zeros(1, int)), (inputs[1:], np.arange(40) % 3)]
    trainer = nnxp.Trainer(new_network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), compiled=compiled)
    trainer.fit(stream, epochs=1)
    programs = trainer._stepper.captured._programs
    assert {n: len(x.threads) for n, x in programs.items()} == {1: 1, 40: threads}
    if threads == 1:
        return
    used = set()
    for thread in programs[40].threads:

        def run(*args, original=thread.run):
            used.add(threading.get_ident())
            time.sleep(0.05)
            original(*args)

        thread.run = run
    trainer.fit(stream, epochs=1)
    assert len(used) == threads


@pytest.mark.usefixtures("blas_threads")
def test_the_number_of_threads_does_not_depend_on_another_training():
    with limit_blas_threads(1):  # of a small network
        (program,) = train_images(large_images())._stepper.captured._programs.values()
    assert len(program.threads) == 3


@pytest.mark.parametrize("thread", ["main", "another"])
@pytest.mark.usefixtures("blas_threads")
def test_any_thread_of_a_program_may_train(thread):
    trainer = train_images(large_images())  # in the main thread, which set the number before
    seen = []
    for program in trainer._stepper.captured._programs.values():
        for each in program.threads:
            run = each.run
            each.run = lambda *args, run=run: seen.append(threads_of_blas()) or run(*args)
    fit = partial(trainer.fit, large_images(), epochs=1, batch_size=24, rng=0)
    if thread == "main":
        fit()
    else:
        other = threading.Thread(target=fit)
        other.start()
        other.join()
    assert seen == [1] * 3
    assert threads_of_blas() == 3


def test_the_bytes_of_all_threads_are_counted():
    def nbytes(threads):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(NumpyOps, "thread_count", lambda _: threads)
            trainer = train_images(large_images(), compiled=False)
        return trainer._stepper.captured.nbytes, trainer.network

    (one, network), (three, _) = nbytes(1), nbytes(3)
    parameters = sum(x.nbytes for x in network.parameters().values())
    assert three - one > 2.5 * parameters


LONG_TRAINING = """
    import os, sys, threading, time
    import numpy as np
    import nnxp
    from nnxp.capture import batch_compiler
    from nnxp.capture.numpy_ops import NumpyOps

    NumpyOps.thread_count = lambda _: 3
    batch_compiler.suits_one_thread = lambda _: False
    batch_compiler._THREAD_BYTES = 1
    batch_compiler._THREAD_PER_PARAMETERS = 0
    data = nnxp.data.Dataset(np.random.default_rng(0).normal(size=(4000, 6)), np.arange(4000) % 3)
    trainer = nnxp.Trainer(nnxp.mlp([6, 4, 3], rng=0), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
"""


def run_program(code):
    code = textwrap.dedent(LONG_TRAINING) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_a_training_goes_on_while_python_ends():
    printed = run_program("""
    begun = threading.Event()

    class Begun(nnxp.callbacks.Callback):
        every_step = True

        def step(self, *_):
            begun.set()

    def train():
        trainer.fit(data, epochs=20, batch_size=100, rng=0, callbacks=[Begun()])
        print(trainer.optimizer.steps, len(trainer._stepper.captured._programs[100].threads))

    threading.Thread(target=train).start()
    begun.wait()
    """)
    assert printed == "800 3\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork: not on this system")
def test_a_child_forked_in_an_epoch_goes_on():
    printed = run_program("""
    class Fork(nnxp.callbacks.Callback):
        every_step, child = True, None

        def step(self, *_):
            if self.child is None:
                self.child = os.fork()

    fork = Fork()
    trainer.fit(data, epochs=1, batch_size=100, rng=0, callbacks=[fork])
    if fork.child:
        assert os.waitpid(fork.child, 0)[1] == 0
    print(trainer.optimizer.steps)
    """)
    assert printed == "40\n40\n"


@WAYS
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.usefixtures("blas_threads")
def test_an_error_of_a_thread_waits_for_the_others(monkeypatch, compiled, place, error):
    trainer, ended, failing = train_images(large_images(), compiled=compiled), [], []
    settings = []
    programs = trainer._stepper.captured._programs.values()
    for i, thread in enumerate(next(iter(programs)).threads):

        def run(*args, i=i, original=thread.run):
            if failing and i == place:
                raise error("on purpose")
            settings.append((threads_of_blas(), np.geterr()["over"]))
            time.sleep(0.05)
            original(*args)
            ended.append((i, threads_of_blas()))

        monkeypatch.setattr(thread, "run", run)
    data, before = large_images(), threading.active_count()
    trainer.fit(data, epochs=1, batch_size=24, rng=0)
    assert sorted(ended) == [(i, 1) for i in range(3)]
    assert settings == [(1, "ignore")] * 3  # no warnings of overflow, as in the main thread
    ended.clear()
    failing.append(True)
    with pytest.raises(error):
        trainer.fit(data, epochs=1, batch_size=24, rng=0)
    assert sorted(ended) == [(i, 1) for i in range(3) if i != place]
    assert threading.active_count() == before
    assert threads_of_blas() == 3
