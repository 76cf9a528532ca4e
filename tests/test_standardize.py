"""Standardize: statistics of whatever inputs come, with weights, in parts, and of any size."""

from __future__ import annotations

import re
import tracemalloc
import warnings

import numpy as np
import pytest
from tables import device_or_skip, devices

import nnxp
from nnxp.data import Dataset
from nnxp.layers import normalization

RNG = np.random.default_rng(0)
TABLE = RNG.normal([5.0, -100.0, 0.0], [1.0, 20.0, 1e-3], (60, 3))
COUNTS = RNG.integers(0, 4, 60)
COUNTS[20:30] = 0  # a whole part of some sizes below
LABELS = np.arange(60) % 2
SECONDS = 1.6e9 + 10 * np.arange(10.0)  # all equal in float32, whose step is 128 here


class Frame:
    """A DataFrame or Series as far as nnxp uses it."""

    def __init__(self, values, columns=()):
        self.values, self.columns = values, list(columns)

    def to_numpy(self):
        return self.values


def adapted(inputs, weights=None, **options):
    layer = nnxp.Standardize(**({"dtype": "float64"} | options))
    layer.adapt(inputs, weights)
    return layer.state["mean"], layer.state["std"], layer.state["count"][0]


def rounding(inputs):
    """Return how far mean and deviation may be apart in two ways of computing them in float64.

    A sum of n numbers is off by n units of the sum of their magnitudes at most (Higham 2002, eq.
    4.4), and so is a mean by n units of the largest number, or of twice that where numbers are
    taken from the first one on. The deviation has the error of the mean, and that of a sum of n
    squares. A few more roundings, of differences and products, count as 8.
    """
    unit, n = 2.0**-53, len(inputs) + 8
    of_mean = 4 * n * unit * abs(inputs).max(axis=0)
    return of_mean, 2 * (of_mean + n * unit * inputs.std(axis=0))


def assert_moments(state, inputs):
    mean, std, count = state
    inputs = inputs.astype("float64")
    of_mean, of_std = rounding(inputs)
    assert (abs(mean - inputs.mean(axis=0)) <= of_mean).all()
    assert (abs(std - inputs.std(axis=0)) <= of_std).all()
    assert count == len(inputs)


@pytest.fixture(params=[7, 30, 1 << 20])
def block(request, monkeypatch):
    """The numbers that are computed with at a time; statistics do not depend on them."""
    monkeypatch.setattr(normalization, "_BLOCK", request.param)


# What adapt takes


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.astype("float32"),
        np.asfortranarray,
        lambda x: x.astype(x.dtype.newbyteorder()),
        lambda x: x.astype(object),
        lambda x: Frame(x, "abc"),
        lambda x: Frame(x.astype(object), "abc"),
        lambda x: [x],
        lambda x: [x[:7], x[7:]],
        lambda x: (row[None] for row in x),
        lambda x: [Frame(x[:7], "abc"), x[7:]],
    ],
)
def test_adapt_takes_what_a_data_set_takes(make, block):
    inputs = np.round(TABLE * 2**16) / 2**16  # the same in float32
    assert_moments(adapted(make(inputs)), inputs)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint64", "bool"])
def test_adapt_takes_integers(dtype, block):
    inputs = RNG.integers(0, 200, (60, 3)).astype(dtype)
    inputs[0] = 0  # so that a column of booleans is not constant
    assert_moments(adapted(inputs), inputs)


@pytest.mark.interop
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_adapt_takes_real_frames(library):
    frames = pytest.importorskip(library)
    frame = frames.DataFrame({"a": TABLE[:, 0], "b": np.arange(60)})
    inputs = np.column_stack([TABLE[:, 0], np.arange(60)])
    assert_moments(adapted(frame), inputs)
    expected = np.repeat(inputs, COUNTS, axis=0)
    for weights in (frames.Series(COUNTS), frames.DataFrame({"w": COUNTS})):
        assert_moments(adapted(frame, weights), expected)
    with pytest.raises(nnxp.InputError, match="inputs have a missing value in column 'a', row 1"):
        adapted(frames.DataFrame({"a": [1.0, None]}))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            [[1.0, 2.0], [3.0, 4.0]],
            r"as a plain NumPy array or a DataFrame, got list; .*\(x\)$",
        ),
        ([1.0, 2.0], "a DataFrame, got float$"),
        ([(TABLE, LABELS)], "got tuple"),
        ("abc", "got str"),
        (None, "a DataFrame, got None$"),
        (3.0, "got float"),
        ({"a": [1]}, "got str"),
        (Dataset(TABLE, LABELS), "got Dataset; convert with x.inputs"),
        (np.ma.array(TABLE), r"got MaskedArray; convert with x.filled\(0\)"),
        (np.array([["a"]]), "inputs as numbers, got <U1; encode text as numbers"),
        (Frame(np.array([[1.0, "x"]], object), "ab"), "got 'x' in column 'b', row 0; encode text"),
        (np.zeros((2, 1), "M8[s]"), r"got datetime64\[s\]; give times as numbers"),
        (TABLE + 0j, "got complex128; give real and imaginary parts"),
        (np.array([[1, 2], [np.nan, 3]]), "not finite, first in example 1, column 0; drop"),
        (np.array([[1, 2], [3, np.inf]]), "not finite, first in example 1, column 1"),
        ([TABLE, np.full((1, 3), -np.inf)], "not finite, first in example 60, column 0"),
        (Frame(np.array([[1, np.nan]]), "ab"), "missing value in column 'b', row 0"),
        (Frame(np.array([[1, np.inf]]), "ab"), "not finite in column 'b', row 0; drop"),
        (TABLE[0], r"shape \(examples, features\), got \(3,\); give x\[:, None\]"),
        (TABLE[None], r"shape \(examples, features\), got \(1, 60, 3\); put nnxp.Flatten\(\)"),
        (TABLE[:0], r"shape \(examples, features\), got \(0, 3\)"),
        (np.array(1.0), r"shape \(examples, features\), got \(\)"),
        ([TABLE, TABLE[:, :2]], r"shape \(examples, 3\), got \(60, 2\)"),
        ([], "expects inputs, got none"),
        (TABLE * 1e200, "the numbers of column 0 are too large .* in float64; scale them"),
        (np.full((2, 1), 1.7e308) * [[1], [-1]], "the numbers of column 0 are too large"),
    ],
)
def test_other_inputs_are_refused(inputs, message, block):
    layer = nnxp.Standardize(dtype="float64")
    with pytest.raises(nnxp.InputError, match=message):
        layer.adapt(inputs)
    assert (layer.state, layer.features) == ({}, None)


def test_remedies_for_lists_and_large_numbers_work():
    rows = [[1.0, 2.0], [3.0, 5.0]]
    assert_moments(adapted(np.asarray(rows)), np.array(rows))
    inputs = TABLE * 1e200
    for dtype in ("float32", "float64"):
        with pytest.raises(nnxp.InputError, match=f"too large .* in {dtype}") as caught:
            adapted(inputs, dtype=dtype)
        remedy = str(caught.value).rpartition("for example ")[2]
        scaled = eval(remedy, {"inputs": inputs})
        assert_moments(adapted(scaled), scaled)


# Weights


@pytest.mark.parametrize("parts", [None, 1, 7, 10, 60])
@pytest.mark.parametrize("factor", [1, 0.25, 1e-6])
def test_a_weight_of_two_is_the_example_twice(parts, factor, block):
    split = TABLE if parts is None else (TABLE[i : i + parts] for i in range(0, 60, parts))
    mean, std, count = adapted(split, COUNTS * factor)
    assert_moments((mean, std, round(count / factor)), np.repeat(TABLE, COUNTS, axis=0))
    assert count == pytest.approx(COUNTS.sum() * factor, rel=2 * 60 * 2.0**-53)  # sums of 60


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("constant", [1.6e9, 7.1, 0.0])
def test_examples_of_weight_0_do_not_count(column, constant, block):
    inputs = TABLE.copy()
    inputs[COUNTS > 0, 1] = constant  # constant where the weight is not 0
    weights = COUNTS[:, None] if column else COUNTS
    mean, std, _ = adapted(inputs, weights)
    assert (mean[1], std[1]) == (constant, 1)
    assert_moments(adapted(TABLE, np.ones(60)), TABLE)


@pytest.mark.parametrize(
    ("inputs", "weights", "message"),
    [
        (TABLE, np.ones(59), "a weight for each example, got 59 weights for 60 examples"),
        (TABLE, np.ones(61), "a weight for each example, got 61 weights for 60 examples"),
        ([TABLE, TABLE], np.ones(60), "got 60 weights for 120 examples"),
        ([TABLE, TABLE], np.ones(130), "got 130 weights for 120 examples"),
        (TABLE, np.ones((60, 2)), r"of shape \(examples,\), got float64 of shape \(60, 2\)"),
        (TABLE, np.zeros(60), "Standardize expects weights that are not all 0"),
        (TABLE, np.arange(60.0) - 1, "at least 0, got -1, first for example 0"),
        (TABLE, [1.0] * 60, "weights as a plain NumPy array or a DataFrame, got list"),
        (TABLE, np.full(60, 1e-50), r"weights around 1.* give weights / weights.max\(\)"),
    ],
)
def test_other_weights_are_refused(inputs, weights, message, block):
    layer = nnxp.Standardize()
    with pytest.raises(nnxp.InputError, match=message):
        layer.adapt(inputs, weights)
    assert not layer.state


# What fit takes


BEFORE = {
    "first": [],
    "flattened": [nnxp.Flatten],
    "on the device": [nnxp.Identity],
}


def fitted(dataset, before=(), spec="cpu", dtype="float64"):
    """Return the statistics of a Standardize after these layers."""
    device_or_skip(spec)
    place = {"dtype": dtype, "device": spec}
    layer = nnxp.Standardize(**place)
    last = nnxp.Affine(dataset.inputs[0].size, 2, rng=0, **place)
    network = nnxp.Sequential([*(kind() for kind in before), layer, last])
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    trainer.fit(dataset, epochs=1, batch_size=20, rng=0)
    return [layer.device.to_host(layer.state[name]) for name in ("mean", "std", "count")]


@devices
@pytest.mark.parametrize("before", BEFORE)
def test_fit_uses_the_weights_of_the_data_set(spec, before):
    mean, std, count = fitted(Dataset(TABLE, LABELS, weights=COUNTS), BEFORE[before], spec)
    assert_moments((mean, std, count[0]), np.repeat(TABLE, COUNTS, axis=0))


@pytest.mark.parametrize("before", ["first", "flattened"])
@pytest.mark.parametrize("kind", ["uint8", "int64", "float32", "float64", "memory map"])
def test_fit_takes_the_data_set_in_its_own_dtype(before, kind, tmp_path):
    inputs = RNG.integers(0, 255, (60, 3)) + (2**24 + 1 if kind != "uint8" else 0)
    inputs = inputs.astype("float64" if kind == "memory map" else kind)
    if kind == "memory map":
        np.save(tmp_path / "x.npy", inputs)
        inputs = np.load(tmp_path / "x.npy", mmap_mode="r")
    shaped = inputs[:, None] if before == "flattened" else inputs
    for scale in (None, 255.0):
        dataset = Dataset(shaped, LABELS, scale=scale)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mean, std, _ = fitted(dataset, BEFORE[before], dtype="float32")
        expected = inputs.astype("float64") / (scale or 1)
        np.testing.assert_array_equal(mean, expected.mean(axis=0).astype("float32"))
        # Rounded to float32 by half a unit; in float64, by 1e-8 of the deviation at most.
        of_std = rounding(expected)[1] + 2.0**-24 * expected.std(axis=0)
        assert (abs(std - expected.std(axis=0)) <= of_std).all()


@pytest.mark.parametrize("by", ["adapt", "fit"])
def test_statistics_of_a_memory_map_take_little_memory(by, tmp_path, monkeypatch):
    monkeypatch.setattr(normalization, "_BLOCK", 1 << 16)
    inputs = RNG.normal(size=(20_000, 100)).astype("float32")
    np.save(tmp_path / "x.npy", inputs)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    dataset = Dataset(mapped, np.arange(20_000) % 2)
    layer = nnxp.Standardize()
    network = nnxp.Sequential([layer, nnxp.Affine(100, 2, rng=0)])
    batches = nnxp.data.Batches(dataset, 20, device="cpu", dtype="float32")
    tracemalloc.start()
    try:
        if by == "adapt":
            layer.adapt(mapped)
        else:
            nnxp.training.preparation.fit_statistics(network, batches)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < inputs.nbytes / 2
    expected = inputs.astype("float64")
    of_std = rounding(expected)[1] + 2.0**-24 * expected.std(axis=0)  # rounded to float32
    assert (abs(layer.state["std"] - expected.std(axis=0)) <= of_std).all()


# Numbers that a dtype cannot tell apart


@pytest.mark.parametrize("by", ["adapt", "parts", "fit"])
def test_numbers_closer_than_float32_are_said_once_and_the_remedies_work(by):
    table = np.column_stack([np.arange(10.0), SECONDS, np.full(10, 7.1), SECONDS + 1e6])
    labels = np.arange(10) % 2

    def given(inputs, dtype="float32"):
        layer = nnxp.Standardize(dtype=dtype)
        network = nnxp.Sequential([layer, nnxp.Affine(4, 2, rng=0, dtype=dtype)])
        if by == "fit":
            trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
            trainer.fit(Dataset(inputs, labels), epochs=1, batch_size=5, rng=0)
        else:
            layer.adapt(inputs if by == "adapt" else [inputs[:3], inputs[3:]])
        return layer

    with pytest.warns(UserWarning, match="few digits for column 1, 3: around 1.6e") as w:
        given(table)
    assert len(w) == 1
    assert w[0].filename == __file__
    message = str(w[0].message)
    assert "distance of 1.3e+02, and the column has a standard deviation of 29" in message
    origin = re.search(r"subtract (.*) in float64", str(w[0].message))[1]
    options = re.search(r'with (dtype="float64")$', str(w[0].message))[1]
    expected = (table - table.mean(axis=0)) / np.where(np.arange(4) == 2, 1, table.std(axis=0))
    shifted = table - eval(origin, {"inputs": table})
    y = given(shifted).forward(shifted.astype("float32"))  # warnings are errors
    # Inputs, mean, deviation, difference and quotient are rounded, of numbers below 2.
    np.testing.assert_allclose(y, expected, rtol=0, atol=5 * 2.0**-24 * 2)
    y = given(table, **eval(f"dict({options})")).forward(table)
    of_mean, of_std = rounding(table)
    std = np.where(np.arange(4) == 2, 1, table.std(axis=0))
    assert (abs(y - expected) <= (of_mean + 2 * of_std) / std + 3 * 2.0**-53 * 2).all()


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (SECONDS, True),
        (SECONDS[:2], True),
        (-SECONDS, True),
        (1.6e9 + 200 * np.arange(10.0), False),  # a deviation of 574, more than four steps
        (1.6e9 + np.arange(0, 86400.0, 600), False),
        (1 + 1e-7 * np.arange(5), True),
        (1 + 1e-5 * np.arange(5), False),
        (np.arange(1950.0, 2025), False),
        (np.r_[np.zeros(999), 1e9], False),
        (np.r_[np.full(999, 1.0), 1.001], False),
        (RNG.normal(size=50), False),
        (RNG.normal(1e6, 1e3, 50), False),
        (np.full(50, 1.6e9), False),
        (np.full(50, 7.1), False),
        (np.zeros(50), False),
        (np.array([0.1 + 0.2, 0.3] * 25), False),  # the same up to the rounding of float64
        (np.array([1e-50, 2e-50]), False),  # 0 in float32
        (np.array([1e-30, 2e-30]), False),
    ],
)
def test_only_columns_that_float32_cannot_hold_are_said(column, said):
    layer = nnxp.Standardize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer.adapt(column[:, None])
    assert len(caught) == said
    assert np.isfinite(layer.forward(column[:, None].astype("float32"))).all()


@pytest.mark.parametrize("count", [2, 1000, 5000])
@pytest.mark.parametrize("constant", [1.6e9, 7.1, -1 / 3, 1e-300, 0.0])
def test_constant_columns_are_divided_by_1(count, constant, block):
    mean, std, _ = adapted(np.full((count, 1), constant))
    assert (mean[0], std[0]) == (constant, 1)
    varied = np.full((count, 1), 1.6e9)
    varied[0] += 0.5  # one example differs, by far more than rounding
    # From the first number on, all numbers are exact; a sum of so many squares is not.
    expected = 0.5 * np.sqrt(count - 1) / count
    assert adapted(varied)[1][0] == pytest.approx(expected, rel=(count + 8) * 2.0**-53)
