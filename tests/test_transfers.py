"""Transfers between host and device, synchronization, and memory limits."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import weakref
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from builders import mnist_like, new_trainer, small_trainer
from tables import device_or_skip

import nnxp
from nnxp.data import Batches, Dataset


def counting(device):
    """Return the device with a count of what crosses its border."""
    crossed = Counter()

    def counted(name, function):
        def count(x):
            crossed[name] += 1
            return function(x)

        return count

    return crossed, replace(
        device,
        _from_host=counted("to the device", device._from_host),
        _to_host=counted("to the host", device._to_host),
    )


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (40, 6), np.uint8), rng.integers(0, 3, 40))


@pytest.mark.parametrize("batch_size", [4, 7, 40])
@pytest.mark.parametrize(
    "spec",
    [
        "strict:device1",
        pytest.param("torch:cpu", marks=pytest.mark.interop),
        pytest.param("jax:cpu", marks=pytest.mark.interop),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)
def test_epoch_transfers_once_and_synchronizes_once(monkeypatch, images, spec, batch_size):
    crossed, device = counting(device_or_skip(spec))
    trainer = small_trainer(device=device)
    if spec in ("strict:device1", "cuda"):  # whose arrays show each look at their numbers

        def wait(*_):
            raise AssertionError("this would wait for the device")

        kind = type(device.xp.empty(0))
        for name in ("__bool__", "__float__", "__int__", "__index__", "__complex__"):
            monkeypatch.setattr(kind, name, wait, raising=False)
    seen = []

    class Watched(list):
        def append(self, record):
            seen.append(dict(crossed))
            super().append(record)

    trainer.history = Watched()
    crossed.clear()
    rng = np.random.default_rng(0)
    trainer.fit(images, epochs=3, batch_size=batch_size, validation=images, rng=rng)
    first, second, third = seen
    # For each batch size, a graph is captured with copies of six parameters and states.
    copies = 6 * len({batch_size, 40 % batch_size or batch_size}) if spec == "cuda" else 0
    # A first example of either set is tried; then both go over, inputs and labels, and the order.
    assert first == {"to the device": 2 * 2 + 2 * 2 + 1, "to the host": 1 + copies}
    for before, after in ((first, second), (second, third)):
        assert after["to the device"] - before["to the device"] == 1
        assert after["to the host"] - before["to the host"] == 1


def test_data_set_that_does_not_fit_stays_on_the_host_and_trains_the_same(images):
    device = nnxp.device("strict:device1")
    kinds = {"resident": device, "on the host": replace(device, _free_memory=lambda: 799)}
    trained = {}
    for kind, place in kinds.items():
        trainer = small_trainer(device=place)
        batches = Batches(images, 16, device=place, dtype="float32", rng=np.random.default_rng(0))
        if kind == "resident":
            trainer.train_epoch(batches)
            assert batches.resident is not None
        else:
            # 40 x 6 bytes of images, and 40 int32.
            with pytest.warns(UserWarning, match="data set takes 0 MiB and strict:device1 has 0"):
                trainer.train_epoch(batches)
            assert batches.resident is None
        trained[kind] = {n: device.to_host(x) for n, x in trainer.network.parameters().items()}
    np.testing.assert_equal(trained["on the host"], trained["resident"])


def test_data_set_takes_at_most_half_of_the_free_memory(images):
    device = nnxp.device("strict:device1")
    needed = 40 * 6 + 40 * 4
    for free, fits in ((2 * needed, True), (2 * needed - 1, False)):
        place = replace(device, _free_memory=lambda free=free: free)
        batches = Batches(images, 16, device=place, dtype="float32")
        if fits:
            assert [x.dtype for x in batches.resident] == [device.xp.uint8, device.xp.int32]
        else:
            with pytest.warns(UserWarning, match="transferred batch by batch"):
                assert batches.resident is None


def test_counted_bytes_are_the_transferred_bytes(images):
    rng = np.random.default_rng(0)
    counted = []
    device = replace(nnxp.device("strict:device1"), _free_memory=lambda: counted.append(1) or 10**9)
    for inputs, labels, dtype, wanted in (
        (images.inputs, np.eye(3, dtype="uint8")[images.labels], "float32", 240 + 120 * 4),
        (rng.normal(size=(40, 6)), rng.normal(size=(40, 2)), "float32", 240 * 4 + 80 * 4),
        (rng.normal(size=(40, 6)).astype("f4"), images.labels, "float64", 240 * 8 + 40 * 4),
    ):
        data = Dataset(inputs, labels)
        for free, fits in ((2 * wanted, True), (2 * wanted - 1, False)):
            place = replace(device, _free_memory=lambda free=free: free)
            batches = Batches(data, 16, device=place, dtype=dtype)
            with contextlib.nullcontext() if fits else pytest.warns(match="stays on"):
                assert (batches.resident is not None) == fits
            if fits:
                sizes = {"uint8": 1, "int32": 4, "float32": 4, "float64": 8}
                gone = sum(
                    x.size * sizes[str(x.dtype).rpartition(".")[2]] for x in batches.resident
                )
                assert gone == wanted


def test_memory_error_on_transfer_keeps_the_data_set_on_the_host(images):
    device = nnxp.device("strict:device1")

    whole = []

    def from_host(x):
        if x.shape == (40, 6) and not whole:
            whole.append(x.dtype)
            raise MemoryError
        return device._from_host(x)

    place = replace(device, _from_host=from_host, _free_memory=lambda: None)
    trainer = small_trainer(device=place)
    with pytest.warns(UserWarning, match="the data set takes 0 MiB: it stays on the host"):
        trainer.fit(images, epochs=1, batch_size=8, rng=np.random.default_rng(0))
    assert whole == ["uint8"]


@pytest.mark.interop
def test_jax_takes_plain_steps_with_what_does_not_fit(images):
    trainers = []
    for free in (10**9, 0):
        device = replace(device_or_skip("jax:cpu"), _free_memory=lambda free=free: free)
        trainers.append(small_trainer(device=device, dtype="float64"))
        trainers[-1].capture = True
        options = {"epochs": 2, "batch_size": 16, "rng": np.random.default_rng(0)}
        if free:
            trainers[-1].fit(images, **options)
        else:
            with (
                pytest.warns(match="no step is captured: the data set is not on the device"),
                pytest.warns(match="it stays on the host"),
            ):
                trainers[-1].fit(images, **options)
    one, other = (t.network.parameters() for t in trainers)
    for name, x in one.items():
        np.testing.assert_allclose(x, other[name], rtol=1e-12, atol=1e-12)


def test_fit_frees_the_data_set_on_the_device(images):
    device = nnxp.device("strict:device1")
    alive, released = [], []

    def release():
        gc.collect()
        released.append(sum(ref() is not None for ref in alive))

    def from_host(x):
        made = device._from_host(x)
        if made.shape == (40, 6):
            alive.append(weakref.ref(made))
        return made

    trainer = small_trainer(device=replace(device, _from_host=from_host, _release=release))
    trainer.fit(images, epochs=2, batch_size=16, validation=images, rng=np.random.default_rng(0))
    trainer.evaluate(images)
    assert len(alive) == 3
    assert released == [0, 0]  # memory is given back when nothing is in it any more


def test_too_large_an_array_raises_out_of_memory_error(backend):
    device = backend.device
    x = device.xp.ones((1, 1), dtype=device.xp.float32)

    def add():
        with device.session(lambda: "the sum"):
            backend.host(device.xp.broadcast_to(x, (2**30, 2**20)) + x)

    with pytest.raises(nnxp.OutOfMemoryError, match=r"^the sum does not fit .* smaller batch_siz"):
        add()


def test_out_of_memory_frees_the_arrays_of_the_failed_work_before_the_cache_is_released():
    alive, seen = [], []

    class Large:
        """Stands for an array that the failed work refers to."""

    def work():
        x = Large()
        alive.append(weakref.ref(x))
        raise MemoryError

    device = replace(nnxp.device("cpu"), _release=lambda: seen.append(alive[0]()))
    with pytest.raises(nnxp.OutOfMemoryError), device.session(lambda: "the work"):
        work()
    assert seen == [None, None]


def test_out_of_memory_drops_the_captured_steps(images, monkeypatch):
    trainer = small_trainer()
    rng = np.random.default_rng(0)
    trainer.fit(images, epochs=1, batch_size=8, rng=rng)
    assert trainer._stepper.captured is not None
    monkeypatch.setattr("nnxp.training.epochs.evaluate", lambda *_: np.zeros(2**50))
    with pytest.raises(nnxp.OutOfMemoryError):
        trainer.fit(images, epochs=1, batch_size=8, rng=rng)
    assert trainer._stepper.captured is None


def test_captured_steps_of_much_memory_are_kept_if_much_is_free(monkeypatch):
    monkeypatch.setattr("nnxp.training.stepping._MAX_KEPT", 1000)
    free = [1 << 40]
    trainer = small_trainer(device=replace(nnxp.device("cpu"), _free_memory=lambda: free[0]))
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(80, 6)).astype("float32"), np.arange(80) % 3)
    trainer.fit(data, epochs=1, batch_size=40, rng=rng)
    nbytes = trainer._stepper.captured.nbytes
    assert nbytes > 1000
    for free[0], kept in ((8 * nbytes, True), (8 * nbytes - 1, False), (None, False)):
        trainer.fit(data, epochs=1, batch_size=40)
        assert (trainer.captured, trainer._stepper.captured is not None) == ("captured", kept)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_out_of_memory_error_names_the_batch_and_a_smaller_one_trains():
    code = """
import resource
from pathlib import Path
import numpy as np
import nnxp
rng = np.random.default_rng(0)
train = nnxp.data.Dataset(rng.random((20_000, 1)), rng.integers(0, 2, 20_000))
network = nnxp.mlp([1, 20_000, 2], rng=rng)
trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(), capture=CAPTURE)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))  # and 1.6 GB for an activation
try:
    trainer.fit(train, epochs=1, batch_size=20_000, rng=rng)
except nnxp.OutOfMemoryError as error:
    print(error)
batches = nnxp.data.Batches(train, 100, device="cpu", dtype="float32", rng=rng)
trainer.train_epoch(batches)
print(trainer.optimizer.steps)
"""
    for capture in ("True", "False"):
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", code.replace("CAPTURE", capture)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        error, steps = result.stdout.splitlines()
        assert error == (
            "Sequential(Affine(1, 20000), ReLU(), Affine(20000, 2)) with 80,002 parameters and "
            "batches of 20,000 (evaluated 419 at a time) does not fit into the memory of cpu; "
            "use a smaller batch_size"
        )
        assert steps == "200"


@pytest.fixture
def gpu():
    return device_or_skip("cuda")


def trainer_on(device, capture, widths=(784, 50, 30, 10)):
    return new_trainer("adam", widths, activation="relu", device=device, capture=capture)


@pytest.mark.gpu
@pytest.mark.parametrize("capture", [True, False])
def test_gpu_memory_does_not_grow_and_is_freed(gpu, capture):
    import cupy

    pool = cupy.get_default_memory_pool()
    gpu._release()
    before = pool.used_bytes()
    trainer, data, rng = trainer_on(gpu, capture), mnist_like(), np.random.default_rng(0)
    used = []
    for _ in range(10_000 // 20):
        trainer.fit(data, epochs=1, batch_size=100, rng=rng)
        used.append((pool.used_bytes(), pool.total_bytes()))
    assert len({in_use for in_use, _ in used[2:]}) == 1
    # `fit` returns unused chunks of the pool; parts of the others are free for the next epoch.
    assert all(total <= 2 * in_use for in_use, total in used[2:])
    trainer._stepper.captured = None  # with its own memory, and cuBLAS's
    gc.collect()
    # Parameters, Adam's state and gradients are left, each array in blocks of 512 bytes.
    assert pool.used_bytes() - before <= 4 * (41_090 * 4 + 6 * 512)
    gpu._release()
    assert pool.total_bytes() - before <= 4 * (41_090 * 4 + 6 * 512) + (2 << 20)


@pytest.mark.gpu
@pytest.mark.parametrize("capture", [True, False])
def test_gpu_out_of_memory_raises_and_a_smaller_batch_trains(gpu, capture):
    import cupy

    data, rng = mnist_like(100_000), np.random.default_rng(0)
    trainer = trainer_on(gpu, capture, widths=(784, 8192, 10))
    pool = cupy.get_default_memory_pool()
    pool.set_limit(size=1 << 30)
    try:
        with pytest.raises(nnxp.OutOfMemoryError, match=r"batches of 100,000 \(.*\) does not fit"):
            trainer.fit(data, epochs=1, batch_size=100_000, rng=rng)
        trainer.fit(data, epochs=1, batch_size=1_000, rng=rng)
    finally:
        pool.set_limit(size=0)
    assert len(trainer.history) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("capture", [True, False])
def test_gpu_training_is_deterministic(gpu, capture):
    histories = []
    for _ in range(2):
        trainer = trainer_on(gpu, capture)
        trainer.fit(mnist_like(), epochs=3, batch_size=64, rng=np.random.default_rng(0))
        histories.append([record.train_loss for record in trainer.history])
    assert histories[0] == histories[1]


@pytest.mark.gpu
@pytest.mark.parametrize("capture", [True, False])
def test_every_array_is_on_the_second_gpu(gpu, capture):
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("cuda:1: this machine has one GPU")
    second = nnxp.device("cuda:1")
    nnxp.device("cuda:0")  # makes the first one current
    with cupy.cuda.Device(0):
        before = cupy.get_default_memory_pool().used_bytes()
        trainer = trainer_on(second, capture)
        trainer.fit(mnist_like(), epochs=1, batch_size=100, rng=np.random.default_rng(0))
        assert cupy.get_default_memory_pool().used_bytes() == before
    assert all(x.device.id == 1 for x in trainer.network.parameters().values())


@pytest.mark.gpu
def test_a_captured_step_is_one_launch(gpu):
    """CuPy's own cuBLAS calls refuse to be captured, and a warning would say so."""
    trainer = trainer_on(gpu, True)
    trainer.fit(mnist_like(), epochs=1, batch_size=100, rng=np.random.default_rng(0))
    assert trainer._stepper.captured._graphs.keys() == {100}
