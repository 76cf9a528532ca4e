"""Captured steps that divide a batch: parts whose buffers stay in the cache give the whole step."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace
from builders import train_layer
from divided import CASES, TOLERANCE, numbers_of, train
from pairs import assert_equal
from tables import LAYERS, LOSSES

import nnxp
from nnxp.capture import batch_program, blas
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.data import Dataset
from nnxp.optimizers import OPTIMIZERS
from nnxp.ranks import ONE_RANK

WAYS = pytest.mark.parametrize("compiled", [False, True], ids=["captured", "compiled"])


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """Keep machine code in the folder of this run, and not in the user's cache."""
    llvm = pytest.importorskip("nnxp.capture.llvm", exc_type=ImportError)
    folder = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setattr(llvm, "_cache_folder", lambda: folder)


@pytest.fixture
def sizes(monkeypatch):
    """Divide batches of any size into about three parts, and return the sizes that were used."""
    found = []
    original = batch_program.BatchCompiler._part_sizes
    monkeypatch.setattr(NumpyOps, "cache_bytes", 100)
    monkeypatch.setattr(batch_program, "_PART_PER_PARAMETERS", 0)
    monkeypatch.setattr(batch_program, "_CONVOLUTIONS", 1)

    def part_sizes(self, batch_size, nbytes):
        found.append(original(self, batch_size, 300))
        return found[-1]

    monkeypatch.setattr(batch_program.BatchCompiler, "_part_sizes", part_sizes)
    return found


@WAYS
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_without_state_gives_the_whole_step(name, compiled, sizes):
    layer = LAYERS[name]
    divided, _ = train_layer(*layer, compiled=compiled)
    plain, _ = train_layer(*layer, capture=False)
    assert divided.captured == ("compiled" if compiled else "captured")
    assert_equal(divided, plain)
    # batches of 8 and of 6 rows
    expected = [{}, {}] if plain.network.states() else [{2: 4}, {2: 3}]
    assert sizes == expected


@WAYS
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_loss_gives_the_whole_step(name, weighted, compiled, sizes):
    make, scores, labels = LOSSES[name]
    rng = np.random.default_rng(0)
    weights = rng.random(43) * (np.arange(43) % 3 > 0) if weighted else None
    data = Dataset(rng.normal(size=(43, 6)), labels[np.arange(43) % 5], weights=weights)

    def case():
        layers = [nnxp.Affine(6, 8, rng=1), nnxp.Tanh(), nnxp.Affine(8, scores.shape[1], rng=2)]
        network = nnxp.Sequential(layers).to("cpu", dtype="float64")
        return {"data": data, "loss": make(), "network": network, "fit": {"validation": data}}

    assert_as_plain(case, compiled)
    assert sizes == [{5: 2}, {1: 3}]


def assert_as_plain(case, compiled):
    """Compare divided steps with plain ones, and return the trainer."""
    divided = train(ONE_RANK, **case() | {"capture": True, "compiled": compiled})
    plain = train(ONE_RANK, **case() | {"capture": False, "compiled": False})
    expected = numbers_of(plain)
    for key, x in numbers_of(divided).items():
        np.testing.assert_allclose(x, expected[key], rtol=TOLERANCE, atol=TOLERANCE, err_msg=key)
    return divided


@WAYS
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_gives_the_whole_step(name, compiled, sizes):
    rate = 0.01 if name in ("adam", "adamw", "rmsprop") else 0.1
    assert_as_plain(lambda: {"optimizer": OPTIMIZERS[name](rate)}, compiled)
    assert sizes == [{5: 2}, {1: 3}]


@WAYS
@pytest.mark.parametrize("name", [x for x in CASES if "plain" not in x and "compiled" not in x])
def test_other_settings_give_the_whole_step(name, compiled, sizes):
    """Weights, penalties, clipping, metrics, frozen layers, micro-batches and other rules."""
    divided = assert_as_plain(CASES[name], compiled)
    states, own = divided.network.states(), "by parameter" in name
    assert any(sizes) == (not (states or own or "accumulate" in name))


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
    counts = [part.count for part in program.parts]
    sizes = [len(part.batch[0]) for part in program.parts]
    assert sum(n * size for n, size in zip(counts, sizes, strict=True)) == rows
    assert len(counts) == (1 if rows == 10_000 else 2)
    assert all(part.nbytes < 1.5 * NumpyOps.cache_bytes for part in program.parts)
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
        return sum(part.count for part in program.parts)

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
        assert len(program.parts) == 1
        return program.parts[0].count, program.nbytes

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
            if not sizes:
                assert batch_size == 1 or kib <= 1000
                continue
            assert sum(sizes.values()) > 1
            assert sum(rows * count for rows, count in sizes.items()) == batch_size


@WAYS
@pytest.mark.parametrize("openblas", [True, False])
def test_all_kernels_of_parts_are_joined(compiled, openblas, sizes, monkeypatch):
    from nnxp.capture.llvm_kernels import Kernel

    if not openblas:  # the products are then NumPy's, and no kernels
        monkeypatch.setattr(blas, "_NAMES", {})
    trainer = train(ONE_RANK, capture=True, compiled=compiled)
    programs = trainer._stepper.captured._programs.values()
    assert sizes == [{5: 2}, {1: 3}]
    for program in programs:
        if compiled and program.function is not None:
            continue
        lists = [program.before, program.update, *(part.calls for part in program.parts)]
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
