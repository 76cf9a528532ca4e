"""Programs: a compiled tape computes what the recorded calls do, within rounding."""

from __future__ import annotations

import operator
import types

import array_api_compat.numpy as xp
import numpy as np
import pytest
from builders import bound
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nnxp
from nnxp.capture import blas, numpy_ops
from nnxp.capture.numpy_ops import NumpyOps
from nnxp.capture.program import compile_program
from nnxp.capture.recorded import Recorded
from nnxp.capture.tape import Tape
from nnxp.data import Dataset


def compiled(tape, targets):
    return compile_program(tape, targets, NumpyOps()).program


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposed", [(), (0,), (1,), (0, 1)])
def test_accumulating_product_is_within_its_rounding_bound(dtype, transposed):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 30)).astype(dtype)
    factors = [rng.normal(size=shape).astype(dtype) for shape in [(40, 20), (20, 30)]]
    a, b = (np.asarray(y.T, order="C").T if i in transposed else y for i, y in enumerate(factors))
    out, rate = x.copy(), np.array(0.1, dtype)
    call = blas.accumulating_product(out, a, b, rate)
    if call is None:
        pytest.skip("NumPy's BLAS is not the OpenBLAS of its wheels")
    for value in (0.1, 0.3):  # it reads the factor again
        out[...], rate[...] = x, value
        call()
        exact = x.astype("float64") - float(rate) * (a.astype("float64") @ b.astype("float64"))
        assert (abs(out - exact) <= bound(x, value, a, b)).all()


@pytest.mark.parametrize(
    "arrays",
    [
        [np.ones((4, 6))[:, ::2], np.ones((4, 2)), np.ones((2, 3))],
        [np.ones((4, 3)), np.ones((4, 4))[:, ::2], np.ones((2, 3))],
        [np.ones((4, 3)), np.ones((4, 2)), np.ones((2, 6))[:, ::2]],
        [np.ones((4, 3)), np.ones((4, 2), "float32"), np.ones((2, 3))],
        [np.ones((4, 3), int), np.ones((4, 2), int), np.ones((2, 3), int)],
    ],
)
def test_accumulating_product_refuses_layouts_and_dtypes_that_blas_lacks(arrays):
    out, a, b = arrays
    assert blas.accumulating_product(out, a, b, np.array(0.1)) is None


def test_accumulating_sum_refuses_layouts_dtypes_and_memory_that_blas_lacks():
    numbers, factor = np.ones((900, 6)), np.array(0.1)
    for out, y in [
        (numbers[:, ::2], np.ones((900, 3))),
        (np.ones((900, 3)), numbers[:, ::2]),
        (numbers, np.ones((900, 6), "float32")),
        (numbers.astype(int), np.ones((900, 6), int)),
        (numbers[1:], numbers[:-1]),
    ]:
        assert blas.accumulating_sum(out, factor, factor, y, 1) is None


@pytest.mark.parametrize("optimizer", [nnxp.SGD, nnxp.Momentum, nnxp.Adam])
@pytest.mark.parametrize("batch_size", [10, 64])
@pytest.mark.parametrize(
    "libraries",
    [
        [],  # a BLAS that threadpoolctl does not know, such as Accelerate
        [types.SimpleNamespace(dynlib=object())],  # MKL or BLIS, with other names
        # The interface with 32-bit integers has another name: it is not called.
        [types.SimpleNamespace(dynlib=types.SimpleNamespace(cblas_dgemm=None, cblas_sgemm=None))],
    ],
)
def test_another_blas_trains_with_the_same_results(monkeypatch, optimizer, batch_size, libraries):
    rng = np.random.default_rng(0)
    dataset = Dataset(rng.normal(size=(128, 20)), np.arange(128) % 3)

    def trained():
        network = nnxp.mlp([20, 30, 3], rng=0, dtype="float64")
        trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), optimizer(0.01))
        trainer.fit(dataset, epochs=3, batch_size=batch_size, rng=0)
        assert trainer.captured == "captured"
        return network.parameters()

    calls = []
    product = blas.accumulating_product
    monkeypatch.setattr(
        numpy_ops, "accumulating_product", lambda *args: calls.append(product(*args)) or calls[-1]
    )
    expected = trained()
    with_openblas = [*calls]
    calls.clear()
    controller = types.SimpleNamespace(lib_controllers=libraries)
    monkeypatch.setattr(blas, "blas_libraries", lambda: controller)
    actual = trained()
    assert calls
    assert not any(calls)
    assert len(with_openblas) == len(calls)
    for name, x in expected.items():
        np.testing.assert_allclose(actual[name], x, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("openblas", [True, False])
@pytest.mark.parametrize("inner", [5, 2000])
def test_affine_forward_compiles_to_two_calls_within_the_bound(monkeypatch, openblas, inner):
    if not openblas:
        monkeypatch.setattr(blas, "_NAMES", {})
    rng = np.random.default_rng(0)
    x, W, b = (rng.normal(size=n).astype("float32") for n in [(30, inner), (inner, 20), 20])
    tape, out = Tape(), np.empty((30, 20), "float32")
    y = tape.read(x) @ tape.read(W) + tape.read(b)
    program = compiled(tape, [(y, out)])
    for _ in range(2):
        for call in program:
            call()
        # The bias first or last, and each product's terms in any order.
        assert (abs(out - (x @ W + b)) <= bound(b, 1, x, W)).all()
    assert len(program) == 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_sum_is_within_its_rounding_bound(dtype):
    x = np.random.default_rng(0).normal(size=(200, 50)).astype(dtype)
    tape, out = Tape(), np.empty(50, dtype)
    for call in compiled(tape, [(tape.namespace.sum(tape.read(x), axis=0), out)]):
        call()
    ones, zeros = np.ones((1, 200), dtype), np.zeros(50, dtype)
    assert (abs(out - x.sum(axis=0)) <= bound(zeros, 1, ones, x)[0]).all()
    assert abs(out).max() > 1


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("name", ["sum", "mean"])
@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).normal(size=(9, 9, 11)),  # its first axes are as long
        np.random.default_rng(0).normal(size=(12, 9, 11)),
        np.random.default_rng(0).normal(size=(60, 11)),
        np.random.default_rng(0).integers(2**30, 2**31 - 1, (9, 9, 11), dtype=np.int32),
        np.random.default_rng(0).integers(2**30, 2**31 - 1, (60, 1, 11), dtype=np.int32)[:, 0],
    ],
    ids=["square", "oblong", "matrix", "integers", "matrix of integers"],
)
def test_large_sums_are_along_the_axis_and_do_not_wrap_around(x, name, keepdims):
    for axis in range(-1, x.ndim):
        expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
        tape, out = Tape(), np.empty_like(expected)
        y = getattr(tape.namespace, name)(tape.read(x), axis=axis, keepdims=keepdims)
        for call in compiled(tape, [(y, out)]):
            call()
        # At most 60 terms, in any order: 60 u times their sum, which is below 60 times the largest.
        np.testing.assert_allclose(out, expected, rtol=0, atol=60 * 60 * 2.0**-53 * abs(x).max())


OPERATIONS = [
    lambda xp, x, y: x + y,
    lambda xp, x, y: 1 - x,
    lambda xp, x, y: x / (2.0 + y * y),
    lambda xp, x, y: x @ (y.T @ x),
    lambda xp, x, y: -x * x,
    lambda xp, x, y: x - 0.5 * (x @ (y.T @ x)),
    lambda xp, x, y: x - xp.max(x) * y,
    lambda xp, x, y: xp.min(y) * x + y * xp.max(x),
    lambda xp, x, y: xp.maximum(x, 0.0),
    lambda xp, x, y: xp.where(x > y, x, 0.0),
    lambda xp, x, y: xp.where(y >= x, x, y),
    lambda xp, x, y: x - xp.max(y, axis=1, keepdims=True),
    lambda xp, x, y: x * xp.sum(y, axis=0),
    lambda xp, x, y: x - xp.sum(y, axis=1)[:, None],
    lambda xp, x, y: x + xp.mean(y),
    lambda xp, x, y: x - xp.max(y) + xp.min(x, axis=0),
    lambda xp, x, y: xp.reshape(xp.reshape(x, (2, 6)), (4, 3)) + y,
    lambda xp, x, y: xp.reshape(x.T, (4, 3)) * y,
    lambda xp, x, y: x + xp.reshape(xp.reshape(xp.astype(y.T, xp.float32).T, (6, 2)), (4, 3)),
    lambda xp, x, y: xp.astype(xp.astype(x, xp.float32), xp.float64) + xp.astype(y > 0, xp.float64),
    lambda xp, x, y: x * xp.astype(xp.arange(3) == 1, xp.float64),
    lambda xp, x, y: xp.concat([x, y])[2:6, :],
    lambda xp, x, y: x * x[xp.arange(4), xp.argmax(y, axis=1)][:, None],
    lambda xp, x, y: xp.sqrt(xp.abs(x)),
    lambda xp, x, y: x,
    lambda xp, x, y: y.T.T,
]


VIEWS = range(len(OPERATIONS) - 2, len(OPERATIONS))


@st.composite
def programs(draw):
    count = draw(st.integers(1, 8))
    steps = []
    for made in range(2, 2 + count):
        reads = draw(st.tuples(*[st.integers(0, made - 1)] * 2))
        steps.append((draw(st.integers(0, len(OPERATIONS) - 1)), *reads))
    return steps, draw(st.tuples(*[st.integers(0, 2 * count + 1)] * 3))


def performed(steps, xp, x, y):
    """Return x, y, what each step makes of two of those before it, and that unscaled."""
    made, raw = [x, y], []
    for operation, first, second in steps:
        raw.append(OPERATIONS[operation](xp, made[first], made[second]))
        z = raw[-1]  # kept small, by what rounds alike wherever it lies in memory
        made.append(z if operation in VIEWS else z / (1 + xp.abs(z)))
    return made + raw


@example(([(8, 0, 1)], (3, 3, 3)), 0)  # where(0 >= x, x, y), unscaled, goes where x and y are
@settings(max_examples=300)
@given(programs(), st.integers(0, 2**32 - 1))
def test_program_equals_the_recorded_calls(program, seed):
    """Whatever is read and overwritten: two arrays that are read are targets, with a third."""
    steps, results = program
    rng = np.random.default_rng(seed)
    x, y, z = (rng.normal(size=(4, 3)) for _ in range(3))
    tape = Tape()
    made = performed(steps, tape.namespace, tape.read(x), tape.read(y))
    calls = compiled(tape, [(made[i], out) for i, out in zip(results, (x, y, z), strict=True)])
    for _ in range(3):
        made = performed(steps, xp, x.copy(), y.copy())
        expected = [made[i].copy() for i in results]
        for call in calls:
            call()
        for out, wanted in zip((x, y, z), expected, strict=True):
            np.testing.assert_array_equal(out, wanted)


@pytest.mark.parametrize(
    "also", ["nothing", "the old matrix", "the product", "a multiple of it", "the step"]
)
def test_update_is_fused_unless_its_parts_are_used_elsewhere(also):
    rng = np.random.default_rng(0)
    W, a, b = rng.normal(size=(4, 3)), rng.normal(size=(4, 5)), rng.normal(size=(5, 3))
    rate, other = np.array(0.1), np.empty((4, 3))
    tape = Tape()
    old, (x, y) = tape.read(W), (tape.read(a), tape.read(b))
    product = x @ y
    step = tape.read(rate) * product
    new = old - step
    results = {"the product": product, "a multiple of it": 2 * product, "the step": step}
    result = (results | {"the old matrix": old + 1}).get(also)
    targets = [(new, W)] if result is None else [(new, W), (result, other)]
    calls = compiled(tape, targets)
    for _ in range(2):
        before, gradient = W.copy(), a @ b
        for call in calls:
            call()
        assert (abs(W - (before - 0.1 * gradient)) <= bound(before, 0.1, a, b)).all()
        if result is not None:
            wanted = {"the product": gradient, "a multiple of it": 2 * gradient}
            wanted |= {"the step": 0.1 * gradient, "the old matrix": before + 1}
            np.testing.assert_allclose(other, wanted[also], rtol=1e-15)
    if blas.accumulating_product(W, a, b, rate):
        assert len(calls) == {"nothing": 1, "the old matrix": 2, "a multiple of it": 4}.get(also, 3)


def test_expression_that_resembles_an_update_is_not_fused():
    rng = np.random.default_rng(0)
    x, a, b = rng.normal(size=(4, 3)), rng.normal(size=(4, 5)), rng.normal(size=(5, 3))
    tape, out, rate = Tape(), np.empty((4, 3)), np.array(0.1)
    y = tape.read(x) - tape.read(rate) * (tape.read(a) @ tape.read(b))
    for call in compiled(tape, [(y * 2, out)]):
        call()
    np.testing.assert_array_equal(out, (x - rate * (a @ b)) * 2)
    assert len(compiled(tape, [(y * 2, out)])) == 4


def test_sums_within_a_layer_are_not_fused():
    x, y, factor = np.ones((400, 3)), np.ones((400, 3)), np.array(0.1)
    tape, out = Tape(), np.empty((400, 3))
    z = tape.read(x) - tape.read(factor) * tape.read(y)
    assert len(compiled(tape, [(z * 2, out)])) == 3
    assert len(compiled(tape, [(z, x)])) == (
        1 if blas.accumulating_sum(x, None, factor, y, 1) else 2
    )


def test_fused_update_may_write_to_another_array():
    rng = np.random.default_rng(0)
    W, a, b = rng.normal(size=(4, 3)), rng.normal(size=(4, 5)), rng.normal(size=(5, 3))
    tape, out, before = Tape(), np.empty((4, 3)), W.copy()
    new = tape.read(W) - tape.read(np.array(0.1)) * (tape.read(a) @ tape.read(b))
    for call in compiled(tape, [(new, out)]):
        call()
    np.testing.assert_array_equal(W, before)
    assert (abs(out - (W - 0.1 * (a @ b))) <= bound(W, 0.1, a, b)).all()


@pytest.mark.parametrize(
    "look",
    [bool, float, int, list, np.asarray, np.zeros(3).__getitem__, lambda x: x.__setitem__(0, 1)],
)
def test_recorded_arrays_refuse_access_to_values(look):
    with pytest.raises(nnxp.InputError, match="cannot read or assign numbers"):
        look(Tape().read(np.array(1)))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "matmul"])
def test_recorded_operators_take_numpy_arrays_on_either_side(name):
    function = getattr(operator, name)
    x, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 0.5], [1.0, 2.0]])
    for left in (True, False):
        expected = function(x, y)
        tape, out = Tape(), np.empty_like(expected)
        result = function(tape.read(x), y) if left else function(x, tape.read(y))
        assert isinstance(result, Recorded)
        for call in compiled(tape, [(result, out)]):
            call()
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("which", ["a", "b"])
def test_fused_product_does_not_overwrite_its_factors(which):
    rng = np.random.default_rng(0)
    tape = Tape()
    x, a, b = (rng.normal(size=(6, 6)) for _ in range(3))
    factor = np.array(0.5)
    read = [tape.read(y) for y in (x, factor, a, b)]
    expected = x - factor * (a @ b)
    target = {"a": a, "b": b}[which]
    result = read[0] - read[1] * (read[2] @ read[3])
    for call in compiled(tape, [(result, target)]):
        call()
    # One product of 6 terms: some ten units of rounding of numbers below 20.
    np.testing.assert_allclose(target, expected, atol=20 * 10 * 2.0**-53)


SUMS = {
    "moving average": lambda x, a, b, y: x * a + b * y,
    "momentum": lambda x, a, b, y: a * x + y,
    "step": lambda x, a, b, y: x - b * y,
    "negative step": lambda x, a, b, y: x + y * b,
    "step with decay": lambda x, a, b, y: x * a - b * y,
    "velocity": lambda x, a, b, y: x * a - y,
}


@pytest.mark.parametrize("openblas", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("formula", SUMS.values(), ids=SUMS)
def test_sum_compiles_to_one_call_within_the_bound(monkeypatch, openblas, dtype, formula):
    if not openblas:
        monkeypatch.setattr(blas, "_NAMES", {})
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1043)).astype(dtype)
    a, b = np.array(0.9, dtype), np.array(0.1, dtype)
    tape = Tape()
    program = compiled(tape, [(formula(*map(tape.read, (x, a, b, y))), x)])
    assert len(program) == 1 if openblas else len(program) > 1
    for numbers in [(0.9, 0.1), (0.5, -3.0), (0.0, 1.0)]:  # they are read at each call
        a[...], b[...] = numbers
        plain = formula(x, a, b, y)
        sizes = abs(x) * max(1, abs(a)) + abs(y) * max(1, abs(b))
        for call in program:
            call()
        # Each product and the sum round once, or not, in both ways.
        assert (abs(x - plain) <= 4 * np.finfo(dtype).eps / 2 * sizes).all()
        if not openblas:
            np.testing.assert_array_equal(x, plain)


@pytest.mark.parametrize("case", ["another target", "itself", "strided", "a column", "factors"])
def test_sums_that_blas_does_not_take_are_numpys(case):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 400, 6))
    if case == "strided":
        x, y = x[:, ::2], y[:, ::2]
    a, b = np.array(0.9), np.array(0.1)
    if case == "factors":
        a = np.linspace(0, 1, 6)
    if case == "a column":
        y = y[:, :1].copy()
    target = np.empty_like(x) if case == "another target" else x
    expected = x * a + b * (x if case == "itself" else y)
    tape = Tape()
    mean, one, other, gradient = map(tape.read, (x, a, b, x if case == "itself" else y))
    for call in compiled(tape, [(mean * one + other * gradient, target)]):
        call()
    np.testing.assert_allclose(target, expected, rtol=0, atol=1e-15)
