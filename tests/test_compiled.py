"""Compiled steps: machine code gives NumPy's bits, or stays within a derived bound."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from builders import Stopping, assert_same, stopped_after
from hypothesis import given, settings
from hypothesis import strategies as st
from remedies import installs

import nnxp
from nnxp.capture.ops import subtract_product
from nnxp.capture.program import compile_program
from nnxp.capture.tape import Tape
from nnxp.data import Dataset

llvm = pytest.importorskip("nnxp.capture.llvm", exc_type=ImportError)
from nnxp.capture import llvm_kernels  # noqa: E402 - needs llvmlite
from nnxp.capture.compiled import CompiledOps, join  # noqa: E402

REAL = ["float32", "float64"]
# In units in the last place, of the result of the exact function.
ULPS = 4


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    """Keep machine code in the folder of this run, and not in the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "compiled"
    monkeypatch.setattr(llvm, "_cache_folder", lambda: folder)


def run(function, *arrays, out=None):
    """Return what a recorded function computes as machine code, and the number of calls."""
    tape = Tape(CompiledOps.whole)
    recorded = function(tape.namespace, *map(tape.read, arrays))
    out = np.empty_like(recorded.sample) if out is None else out
    library = CompiledOps()
    program = join(compile_program(tape, [(recorded, out)], library).program)
    for call in program:
        call()
    return out, program


def assert_compiled(function, *arrays):
    """Compare machine code with NumPy, bit by bit; zeros may differ in sign."""
    with np.errstate(all="ignore"):
        expected = function(np, *arrays)
    out, program = run(function, *arrays)
    assert [type(x) for x in program] == [llvm.Function]
    assert out.dtype == expected.dtype
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("name", ["exp", "log", "tanh", "log1p"])
def test_functions_are_within_four_units_in_the_last_place(name, dtype):
    function, info = getattr(np, name), np.finfo(dtype)
    rng = np.random.default_rng(0)
    size = 20_000
    x = np.concatenate([
        rng.normal(size=size), rng.normal(size=size) * 50, np.exp(rng.uniform(-80, 80, size)),
        1 + rng.normal(size=size) * 1e-3, np.linspace(-110, 95, size),
        [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, info.tiny, info.tiny / 8, info.max],
    ]).astype(dtype)  # fmt: skip
    out, program = run(lambda xp, x: getattr(xp, name)(x), x)
    assert [type(each) for each in program] == [llvm.Function]
    with np.errstate(all="ignore"):
        exact = function(x.astype("longdouble"))
        rounded = exact.astype(dtype)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(out[~finite], rounded[~finite])
    unit = np.spacing(np.maximum(abs(rounded[finite]), info.tiny)).astype("longdouble")
    assert (abs(out[finite] - exact[finite]) / unit).max() <= ULPS


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("shape", [(), (1,), (7, 1), (5, 33), (3, 4, 5)])
def test_arithmetic_has_numpys_bits(dtype, shape):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=shape).astype(dtype) for _ in range(2))
    for special in (np.inf, np.nan, 0):
        x[rng.random(shape) < 0.2] = special
    assert_compiled(lambda xp, x, y: (x + y) * (x - 2.5) / y, x, y)
    assert_compiled(lambda xp, x, y: xp.maximum(x, y) + xp.minimum(x, 0.5) - abs(-y), x, y)
    assert_compiled(lambda xp, x, y: xp.sqrt(x * x) + xp.floor(y * 8) - xp.ceil(x), x, y)
    assert_compiled(lambda xp, x, y: xp.sign(x) - 2 * xp.sign(y), x, y)
    assert_compiled(lambda xp, x, y: xp.where((x < y) & ~(x != y), x, -np.inf), x, y)
    assert_compiled(lambda xp, x, y: xp.astype(x >= y, dtype) * y + xp.astype(x == 0, dtype), x, y)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "uint32"])
def test_integers_have_numpys_bits(dtype):
    info = np.iinfo(dtype)
    rng = np.random.default_rng(0)
    x, y = (rng.integers(info.min, info.max, 50, dtype, endpoint=True) for _ in range(2))
    assert_compiled(lambda xp, x, y: ((x >> 3) & 7) ^ (y << 2) | ~x, x, y)
    assert_compiled(lambda xp, x, y: x * 77 - y + xp.maximum(x, y), x, y)
    assert_compiled(lambda xp, x, y: x > y, x, y)
    assert_compiled(lambda xp, x: xp.astype(x, "float32") * 0.5, x)
    assert_compiled(lambda xp, x: xp.astype(xp.astype(x, "int64"), "uint8"), x)


def test_what_has_no_machine_code_is_left_to_numpy():
    def check(function, *arrays):
        out, program = run(function, *arrays)
        assert llvm.Function not in [type(x) for x in program[:1]]
        np.testing.assert_array_equal(out, function(np, *arrays))

    x = np.arange(1.0, 9.0)
    records = np.zeros(8, [("flag", "u1"), ("x", "f8")])  # of 9 bytes
    records["x"] = x
    check(lambda xp, x: x + 1, x.astype(">f8"))
    check(lambda xp, x: x + 1, records["x"])
    check(lambda xp, x: x + 1, x.astype("float16"))
    check(lambda xp, x, y: x < y, x.astype("int64") - 5, x.astype("uint64"))
    check(lambda xp, x: xp.astype(x, "int32"), x)
    check(lambda xp, x, y: x << y, x.astype("int64"), x.astype("int64"))
    check(lambda xp, x: xp.sin(x), x)
    check(lambda xp, x: xp.sum(x, axis=0), x.astype(">f8").reshape(2, 4))
    check(lambda xp, x: xp.sum(x), x.astype("int64"))
    check(lambda xp, x: x @ x, x)


@pytest.mark.parametrize("dtype", [">f4", "<f8", "u1", "i2", "f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_examples_of_any_dtype_and_layout(dtype, order, monkeypatch):
    rng = np.random.default_rng(0)
    inputs = np.asarray(rng.integers(0, 9, (40, 6)), dtype, order=order)
    labels, weights = rng.integers(0, 3, 40), rng.random(40)
    networks = []
    for compiled in (True, False):
        network = nnxp.mlp([6, 5, 3], rng=0, dtype="float64")
        trainer = nnxp.Trainer(
            network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.01), capture=compiled, compiled=compiled
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the copy of other layouts
            trainer.fit(Dataset(inputs, labels, weights=weights), epochs=2, batch_size=16, rng=0)
        assert trainer.captured.startswith("compiled" if compiled else "plain")
        networks.append(network.parameters())
    for name, x in networks[0].items():
        np.testing.assert_allclose(x, networks[1][name], rtol=0, atol=1e-13)


def layouts(dtype):
    """Return arrays of shape (6, 10), or that spread to it, in many layouts."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 30)).astype(dtype)
    return [
        x[:6, :10], x[::2, ::3][:6], x.T[:6, :10], x[::-1, ::-1][:6, :10], x[:1, :10], x[:6, :1],
        x[0, :10], np.asfortranarray(x[:6, :10]), np.array(1.5, dtype),
    ]  # fmt: skip


@pytest.mark.parametrize("i", range(9))
def test_every_layout_of_arguments(i):
    for j in range(9):
        x, y = layouts("float32")[i], layouts("float32")[j]
        assert_compiled(lambda xp, x, y: x * y - x, x, y)


@pytest.mark.parametrize("count", [8, pytest.param(300, marks=pytest.mark.long)])
def test_random_programs_have_numpys_bits(count):
    """Chains whose results are read again, viewed and written over their own arguments."""

    @settings(max_examples=count, deadline=None)
    @given(st.data())
    def check(data):
        shapes = [(6, 5), (6, 1), (1, 5), (5,), ()]
        arrays = [np.arange(1.0, 1 + math.prod(shape)).reshape(shape) / 7 for shape in shapes]
        length = data.draw(st.integers(2, 25))
        plan = data.draw(
            st.lists(
                st.tuples(st.sampled_from("+-*mwtr"), st.integers(0, 60), st.integers(0, 60)),
                min_size=length, max_size=length,
            )
        )  # fmt: skip

        def chain(xp, *values):
            values = list(values)
            for kind, i, j in plan:
                x, y = values[i % len(values)], values[j % len(values)]
                if kind == "t" and x.ndim == 2:
                    values.append(x.T)
                elif kind == "r":
                    values.append(xp.reshape(x, (-1,)))
                elif not {x.shape, y.shape} <= {(6, 5), (6, 1), (1, 5), (5,), ()}:
                    values.append(x * 0.5)
                elif kind == "+":
                    values.append(x + y)
                elif kind == "-":
                    values.append(x - y)
                elif kind == "m":
                    values.append(xp.maximum(x, y))
                elif kind == "w":
                    values.append(xp.where(x > y, x * 0.25, y))
                else:
                    values.append(x * y * 0.01)
            return values

        tape = Tape()
        read = [tape.read(x) for x in arrays]
        recorded = chain(tape.namespace, *read)
        expected = [np.array(x) for x in chain(np, *[x.copy() for x in arrays])]
        outputs = [recorded[-1], *recorded[len(arrays) : -1 : 3]]
        targets = [(x, np.zeros(x.shape)) for x in outputs]
        if (last := recorded[-1]).shape == (6, 5):  # over what the tape reads
            targets[0] = last, arrays[0]
        library = CompiledOps()
        for call in join(compile_program(tape, targets, library).program):
            call()
        for x, target in targets:
            i = next(i for i, y in enumerate(recorded) if y is x)
            np.testing.assert_array_equal(target, expected[i])

    check()


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 2), -1])
@pytest.mark.parametrize("function", [np.sum, np.mean, np.max])
def test_reductions_are_within_their_rounding_bound(function, axis, dtype):
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(9, 11, 13)).astype(dtype)
    for x in (whole, whole.transpose(2, 0, 1), whole[::2, :, ::-1]):
        for keepdims in (False, True):

            def reduce(xp, x, keepdims=keepdims):
                return getattr(xp, function.__name__)(x, axis=axis, keepdims=keepdims)

            out, program = run(reduce, x)
            assert [type(each) for each in program] == [llvm.Function]
            exact = function(x.astype("longdouble"), axis=axis, keepdims=keepdims)
            assert out.shape == exact.shape
            # Higham 2002, eq. 3.5; the division rounds once more.
            size = x.size // max(exact.size, 1)
            unit = np.finfo(dtype).eps / 2
            total = np.sum(abs(x.astype("longdouble")), axis=axis, keepdims=keepdims)
            share = {np.sum: 1, np.mean: 1 / size, np.max: 0}[function]
            assert (abs(out - exact) <= (size + 1) * unit * total * share).all()
    whole[3, 4, 5] = np.nan
    out, _ = run(lambda xp, x: getattr(xp, function.__name__)(x, axis=0), whole)
    np.testing.assert_array_equal(np.isnan(out), np.isnan(np.sum(whole, axis=0)))


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 2)])
def test_all_is_numpys(axis):
    whole = np.random.default_rng(0).random((5, 4, 3)) < 0.9
    for x in (whole, whole.transpose(2, 0, 1), whole[::2, :, ::-1]):
        assert_compiled(lambda xp, x: xp.all(x, axis=axis), x)


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_argmax_is_numpys_also_with_ties_and_nan(axis, dtype):
    rng = np.random.default_rng(0)
    whole = rng.integers(4, size=(9, 11, 13)).astype(dtype)
    whole[rng.random(whole.shape) < 0.05] = np.nan
    whole[rng.random(whole.shape) < 0.05] = -np.inf
    whole[2] = -np.inf
    for x in (whole, whole.transpose(2, 0, 1), whole[::2, :, ::-1], whole[:, :, 0]):
        assert_compiled(lambda xp, x: xp.argmax(x, axis=axis), x)


@pytest.mark.parametrize("dtype", REAL)
def test_products_are_within_their_rounding_bound(dtype):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40, 60)).astype(dtype), rng.normal(size=(60, 50)).astype(dtype)
    for x in (a[:, ::2], a.T[::2].T, a[:, :30]):
        for y in (b[:30], b[:30].T.copy().T, b[30:, ::-1]):
            out, _ = run(lambda xp, x, y: x @ y, x, y)
            bound = 31 * np.finfo(dtype).eps * (abs(x) @ abs(y))
            assert (abs(out - x.astype("longdouble") @ y.astype("longdouble")) <= bound).all()
    w, rate = rng.normal(size=(40, 50)).astype(dtype), np.array(0.25, dtype)
    expected = subtract_product(w, rate, a, b)
    out, program = run(lambda xp, w, rate, a, b: w - rate * (a @ b), w, rate, a, b, out=w)
    assert [type(each) for each in program] == [llvm.Function]
    bound = 64 * np.finfo(dtype).eps * (abs(expected) + abs(a) @ abs(b))
    assert (abs(out - expected) <= bound).all()


def digits(compiled, dtype="float64", **settings):
    train, _ = nnxp.data.load_digits()
    network = nnxp.mlp([64, 16, 10], rng=0, dtype=dtype)
    trainer = nnxp.Trainer(
        network, nnxp.SoftmaxWithLoss(), nnxp.Adam(), compiled=compiled, **settings
    )
    return trainer, Dataset(train.inputs[:300], train.labels[:300])


def test_a_run_may_change_the_way_and_resumes_to_the_bit(tmp_path):
    one, data = digits(True)
    one.fit(data, epochs=4, batch_size=32, rng=0)
    assert one.captured == "compiled"
    path = tmp_path / "training.safetensors"
    other, _ = digits(True)
    other.fit(data, epochs=2, batch_size=32, rng=0, checkpoint=path)
    resumed = nnxp.Trainer.resume(path, compiled=True)
    resumed.fit(data, epochs=2, batch_size=32, rng=resumed.rng)
    assert_same(one, resumed)
    changed = nnxp.Trainer.resume(path, compiled=False)
    changed.fit(data, epochs=1, batch_size=32, rng=changed.rng)
    assert changed.captured == "captured"
    changed.compiled = True
    changed.fit(data, epochs=1, batch_size=32)
    assert changed.captured == "compiled"
    for name, x in one.network.parameters().items():
        # As in test_random_networks.
        assert abs(changed.network.parameters()[name] - x).max() <= 1e-7


def test_auto_compiles_from_the_epoch_whose_steps_repay_it(monkeypatch, tmp_path):
    monkeypatch.setattr("nnxp.training.stepping._COMPILING", 25 * 4.4e-5)  # 25 steps of this size
    trainer, data = digits("auto")
    ways = []
    for epochs in (2, 1, 1):
        trainer.fit(data, epochs=epochs, batch_size=32, rng=0)  # 10 steps an epoch
        ways.append(trainer.captured)
    assert ways == ["captured", "compiled", "compiled"]
    # However many epochs were planned, and wherever it was stopped.
    other, _ = digits("auto")
    stop = Stopping(stopped_after(26, other))
    other.fit(data, epochs=2, batch_size=32, rng=0)
    other.fit(data, epochs=1000, batch_size=32, rng=0, callbacks=[stop])
    path = tmp_path / "training.safetensors"
    other.save(path)
    resumed = nnxp.Trainer.resume(path)
    resumed.fit(data, epochs=1, batch_size=32, rng=resumed.rng)
    assert resumed.captured == "compiled"
    resumed.fit(data, epochs=1, batch_size=32, rng=0)
    assert_same(trainer, resumed)
    trainer.compiled = False
    trainer.fit(data, epochs=1, batch_size=32)
    assert trainer.captured == "captured"


def test_wrong_settings_and_a_missing_package(monkeypatch):
    with pytest.raises(nnxp.InputError, match='compiled must be True, False or "auto", got 1'):
        digits(1)
    network = nnxp.mlp([3, 2], rng=0, device="strict")
    with pytest.raises(nnxp.InputError, match="is for NumPy, and the network is on strict"):
        nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(), compiled=True)
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    with pytest.raises(nnxp.MissingExtraError, match=f"llvmlite {installs('fast')}"):
        digits(True)


CODE = """
import sys
import nnxp, llvmlite.binding as llvm
parse, parsed = llvm.parse_assembly, []
llvm.parse_assembly = lambda text: parsed.append(text) or parse(text)
train, _ = nnxp.data.load_digits()
network = nnxp.mlp([64, 16, 10], rng=0, batch_norm=True, dropout=0.2)
trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.AdamW(), compiled=True)
trainer.fit(train, epochs=1, batch_size=50, rng=0)
print(len(parsed), trainer.captured, trainer.history[-1].train_loss)
"""


def test_the_next_process_takes_the_code_from_the_cache(tmp_path):
    def train_in_a_process():
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONHASHSEED": "random"}
        result = subprocess.run(
            [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        return result.stdout.split()

    first, *figures = train_in_a_process()
    assert int(first) > 0
    assert train_in_a_process() == ["0", *figures]
    damaged = max((tmp_path / "nnxp" / "compiled").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert train_in_a_process() == ["1", *figures]


def test_stopped_within_an_epoch(tmp_path):
    one, data = digits(True)
    one.fit(data, epochs=2, batch_size=32, rng=0)
    other, _ = digits(True)
    other.fit(data, epochs=2, batch_size=32, rng=0, callbacks=[Stopping(stopped_after(13, other))])
    path = tmp_path / "training.safetensors"
    other.save(path)
    resumed = nnxp.Trainer.resume(path, compiled=True)
    resumed.fit(data, epochs=1, batch_size=32, rng=resumed.rng)
    np.testing.assert_equal(dict(one.network.parameters()), dict(resumed.network.parameters()))


def test_other_data_and_streams_are_read_anew():
    rng = np.random.default_rng(0)
    sets = [Dataset(rng.random((40, 6)), rng.integers(0, 3, 40)) for _ in range(3)]
    networks = []
    for compiled in (True, False):
        network = nnxp.mlp([6, 5, 3], rng=0, dtype="float64")
        trainer = nnxp.Trainer(
            network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), capture=compiled, compiled=compiled
        )
        for data in sets:
            trainer.fit(data, epochs=1, batch_size=15, rng=0)
        trainer.fit([(x.inputs[:15], x.labels[:15]) for x in sets], epochs=2)
        assert trainer.captured.startswith("compiled" if compiled else "plain")
        networks.append(network.parameters())
    for name, x in networks[0].items():
        np.testing.assert_allclose(x, networks[1][name], rtol=0, atol=1e-13)


@pytest.mark.parametrize("limit", [1, 7, 64])
def test_several_steps_of_one_call_are_the_steps(monkeypatch, limit):
    """Rows, numbers, random masks, sums and a short last batch, in calls of different lengths."""
    from nnxp.capture import compiled

    calls = []
    original = llvm.Function.__call__
    monkeypatch.setattr(
        llvm.Function, "__call__", lambda self, n=1: (calls.append(n), original(self, n))
    )
    rng = np.random.default_rng(0)
    data = Dataset(rng.normal(size=(293, 5)), rng.integers(3, size=293))

    def trained(capture):
        layers = [nnxp.Affine(5, 8, rng=0), nnxp.ReLU(), nnxp.Dropout(0.3, rng=1)]
        network = nnxp.Sequential([*layers, nnxp.Affine(8, 3, rng=2)]).to("cpu", dtype="float64")
        schedule = nnxp.schedules.Cosine(0.01, 100)
        optimizer = nnxp.Adam(schedule, weight_decay=0.1)
        options = {"capture": capture, "compiled": capture}
        trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), optimizer, **options)
        history = trainer.fit(data, epochs=3, batch_size=10, rng=0, train_metrics="running")
        return network.parameters(), [x.train_loss for x in history], optimizer.steps

    monkeypatch.setattr(compiled, "_MAX_STEPS", limit)
    parameters, losses, steps = trained(True)
    assert max(calls) == min(limit, 29)
    assert sum(calls) == steps == 90
    expected, expected_losses, _ = trained(False)
    for name, x in parameters.items():
        np.testing.assert_allclose(x, expected[name], rtol=0, atol=1e-12)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-12)


def test_kernels_of_one_form_share_code_and_others_do_not():
    x = np.arange(6.0).reshape(2, 3)
    targets = [np.ones((2, 3)) for _ in range(4)]
    kernels = [llvm_kernels.CopyKernel(out, x, added=i % 2 == 1) for i, out in enumerate(targets)]
    text = llvm._module([(1, kernels)], [a for kernel in kernels for a in kernel.addresses])
    assert text.count("define internal") == 2
    llvm.compile_kernels((1, kernels))()
    for i, out in enumerate(targets):
        np.testing.assert_array_equal(out, x + i % 2)
