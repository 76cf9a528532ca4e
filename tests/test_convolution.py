"""Convolution and pooling: against their definition and PyTorch, captured steps, memory, errors."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from script_runner import ENVIRONMENT, PATHS
from tables import device_or_skip, devices

import nnxp
from nnxp.capture import numpy_images, numpy_ops
from nnxp.data import Dataset
from nnxp.layers.windows import pair
from nnxp.training.evaluation import evaluation_batch_size

pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def geometries(draw):
    """Draw a kernel, a stride, a padding of at most half the kernel, and images they fit on."""
    kernel, stride = draw(pairs), draw(pairs)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    least = [max(1, k - 2 * p) for k, p in zip(kernel, padding, strict=True)]
    size = [draw(st.integers(n, n + 6)) for n in least]
    return (draw(st.integers(1, 3)), draw(st.integers(1, 3)), *size), kernel, stride, padding


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def windows(x, kernel, stride, padding, border):
    """Yield the place of each window in the outputs, and its numbers."""
    (high, wide), (down, across) = kernel, stride
    edges = [(0, 0), (0, 0), *((p, p) for p in padding)]
    x = np.pad(x, edges, constant_values=border)
    for i, j in itertools.product(
        range((x.shape[2] - high) // down + 1), range((x.shape[3] - wide) // across + 1)
    ):
        rows, columns = i * down, j * across
        yield (i, j), x[:, :, rows : rows + high, columns : columns + wide]


def convolution(channels, kernel, stride=1, padding=0, dtype="float64"):
    layer = nnxp.Conv2D(
        *channels, kernel, stride=stride, padding=padding, rng=0, dtype=dtype, initializer="xavier"
    )
    layer.params["b"][...] = normal(channels[1], 5)
    return layer


@given(geometries(), st.integers(1, 3))
def test_convolution_is_a_weighted_sum_of_each_window(geometry, outputs):
    shape, *sizes = geometry
    x, layer = normal(shape), convolution((shape[1], outputs), *sizes)
    y = layer.forward(x)
    assert layer.output_shape(shape[1:]) == y.shape[1:]
    count = 0
    for (i, j), window in windows(x, *sizes, 0.0):
        expected = np.einsum("nchw,ochw->no", window, layer.params["W"]) + layer.params["b"]
        # Sums of at most 48 products of numbers below 10, in another order: 48**2 u * 10 = 3e-12.
        assert abs(y[:, :, i, j] - expected).max() < 3e-12
        count += 1
    assert count == np.prod(y.shape[2:])


@given(geometries())
def test_pools_are_the_maximum_and_the_mean_of_each_window(geometry):
    shape, kernel, stride, padding = geometry
    x = normal(shape)
    for kind, border, reduce in (
        (nnxp.MaxPool2D, -np.inf, np.max),
        (nnxp.AveragePool2D, 0.0, np.mean),
    ):
        layer = kind(kernel, stride=stride, padding=padding)
        y = layer.forward(x)
        assert layer.output_shape(shape[1:]) == y.shape[1:]
        for (i, j), window in windows(x, kernel, stride, padding, border):
            error = abs(y[:, :, i, j] - reduce(window, axis=(2, 3))).max()
            assert error <= (0 if kind is nnxp.MaxPool2D else 1e-14)  # 16 u of numbers below 5


@given(geometries())
def test_maximum_of_equal_numbers_has_its_gradient_at_the_first(geometry):
    shape, kernel, stride, padding = geometry
    x = np.random.default_rng(0).integers(0, 2, shape).astype("float64")  # ties everywhere
    layer = nnxp.MaxPool2D(kernel, stride=stride, padding=padding)
    dy = normal(layer.forward(x, training=True).shape, 1)
    top, left = padding
    dx = np.pad(np.zeros(shape), [(0, 0), (0, 0), (top, top), (left, left)])
    for (i, j), window in windows(x, kernel, stride, padding, -np.inf):
        first = window.reshape(*window.shape[:2], -1).argmax(axis=2)
        rows, columns = np.divmod(first, kernel[1])
        images, channels = np.indices(first.shape)
        places = (images, channels, i * stride[0] + rows, j * stride[1] + columns)
        np.add.at(dx, places, dy[:, :, i, j])
    dx = dx[:, :, top : top + shape[2], left : left + shape[3]]
    assert abs(layer.backward(dy) - dx).max() < 1e-13  # sums of 16 numbers, in another order


def test_padding_is_never_the_largest_and_windows_do_not_overlap_by_default():
    x = np.full((1, 1, 4, 9), -1e30)
    assert (nnxp.MaxPool2D(2, padding=1).forward(x) == -1e30).all()
    for kind in (nnxp.MaxPool2D, nnxp.AveragePool2D):
        assert kind((2, 3)).forward(x).shape == (1, 1, 2, 3)
        assert kind((2, 3)).output_shape((1, 4, 9)) == (1, 2, 3)


@devices
def test_every_library_takes_a_stride_beyond_its_integers(spec):
    device = device_or_skip(spec)
    x = device.asarray(normal((2, 1, 5, 6)), dtype="float32")
    for layer in (
        nnxp.Conv2D(1, 2, 3, stride=10**30, rng=0, device=device),
        nnxp.MaxPool2D(2, stride=10**30),
        nnxp.AveragePool2D(2, stride=10**30),
    ):
        y = layer.forward(x, training=True)
        assert tuple(y.shape[2:]) == (1, 1)
        assert layer.backward(y).shape == x.shape


def test_frozen_convolution_has_no_gradients_and_the_same_gradient_of_images():
    layer, x = convolution((2, 3), (3, 2), 1, (0, 2)), normal((4, 2, 6, 5))
    dx = []
    for trainable in (True, False):
        layer.trainable = trainable
        layer.grads.clear()
        y = layer.forward(x, training=True)
        dx.append(layer.backward(y))
        assert bool(layer.grads) is trainable
    np.testing.assert_array_equal(*dx)
    # <forward(x), dy> = <x, backward(dy)>, up to the bias: sums of 720 products.
    bias = (y.sum(axis=(0, 2, 3)) * layer.params["b"]).sum()
    assert (y * y).sum() - bias == pytest.approx((x * dx[0]).sum(), rel=1e-11)


@given(st.tuples(*[st.integers(1, 7)] * 3), st.integers(1, 60))
def test_blocks_are_runs_of_columns_within_the_limit(shape, limit):
    places = np.arange(np.prod(shape)).reshape(shape)
    found = []
    for block in numpy_images._blocks(shape, limit):
        own = places[block[:3]].ravel()
        assert own.size <= limit
        np.testing.assert_array_equal(own, places.ravel()[block.columns])
        found += own.tolist()
    assert sorted(found) == places.ravel().tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_of_columns_have_one_mebibyte_at_most(dtype):
    geometry = ((5, 5), (1, 1), (0, 0))
    size = numpy_ops.NumpyOps.block_bytes
    windows = numpy_images.Windows((3, 40, 40, 16), np.dtype(dtype), geometry, size)
    assert 2**19 < windows._memory.nbytes <= 2**20


@pytest.mark.interop
@given(geometries(), st.integers(1, 3))
def test_gradients_agree_with_pytorch(geometry, outputs):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    shape, kernel, stride, padding = geometry
    conv = convolution((shape[1], outputs), kernel, stride, padding)
    weights = {name: torch.tensor(w, requires_grad=True) for name, w in conv.params.items()}
    settings = {"stride": stride, "padding": padding}
    for layer, function, x in (
        (conv, lambda x: F.conv2d(x, weights["W"], weights["b"], **settings), normal(shape)),
        (
            nnxp.MaxPool2D(kernel, **settings),
            lambda x: F.max_pool2d(x, kernel, **settings),
            normal(shape).round(),  # with ties
        ),
        (
            nnxp.AveragePool2D(kernel, **settings),
            lambda x: F.avg_pool2d(x, kernel, **settings),
            normal(shape),
        ),
    ):
        leaf = torch.tensor(x, requires_grad=True)
        theirs = function(leaf)
        y = layer.forward(x, training=True)
        dy = normal(y.shape, 1)
        theirs.backward(torch.tensor(dy))
        results = [(y, theirs.detach()), (layer.backward(dy), leaf.grad)]
        results += [(layer.grads[name], weights[name].grad) for name in layer.grads]
        for ours, other in results:
            # As above: sums of at most 3 * 9 * 9 products of numbers below 10.
            assert abs(ours - other.numpy()).max() < 243**2 * 1.1e-16 * 10


@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 5, 6), (1, 3, 1, 2)])
def test_batch_normalization_is_over_all_numbers_of_a_feature(shape):
    layer = nnxp.BatchNorm(3, momentum=0.25, epsilon=1e-3, dtype="float64")
    layer.params["gamma"][...], layer.params["beta"][...] = normal(3, 1), normal(3, 2)
    x = 2 + 3 * normal(shape)
    axes = (0, *range(2, len(shape)))

    def normalized(mean, var):
        mean, var, gamma, beta = (
            np.reshape(y, (3, *[1] * (len(shape) - 2))) for y in (mean, var, *layer.params.values())
        )
        return (x - mean) / np.sqrt(var + 1e-3) * gamma + beta

    # Means of at most 120 numbers below 20, as below.
    close = {"rtol": 1e-12, "atol": 1e-12}
    y = layer.forward(x, training=True)
    np.testing.assert_allclose(y, normalized(x.mean(axis=axes), x.var(axis=axes)), **close)
    mean, var = 0.25 * x.mean(axis=axes), 0.75 + 0.25 * x.var(axis=axes, ddof=1)
    np.testing.assert_allclose(layer.state["running_mean"], mean, **close)
    np.testing.assert_allclose(layer.state["running_var"], var, **close)
    np.testing.assert_allclose(layer.forward(x), normalized(mean, var), **close)
    assert layer.output_shape(shape[1:]) == shape[1:]
    for wrong in ((3, 5), (4, *shape[2:]), (3, 5, 6, 7)):
        with pytest.raises(nnxp.InputError, match="expects 3 features, got"):
            layer.output_shape(wrong)


@pytest.mark.interop
def test_batch_normalization_of_images_agrees_with_pytorch():
    torch = pytest.importorskip("torch")
    layer, theirs = nnxp.BatchNorm(3, dtype="float64"), torch.nn.BatchNorm2d(3).double()
    for step in range(3):
        x = 2 + 3 * normal((4, 3, 5, 6), step)
        leaf = torch.tensor(x, requires_grad=True)
        y, dy = theirs(leaf), normal(x.shape, 9)
        y.backward(torch.tensor(dy))
        results = [(layer.forward(x, training=True), y.detach()), (layer.backward(dy), leaf.grad)]
        for ours, other in results:  # means of 120 numbers below 20: 120 u * 20 = 3e-13
            assert abs(ours - other.numpy()).max() < 1e-12
    assert abs(layer.state["running_var"] - theirs.running_var.numpy()).max() < 1e-12
    theirs.eval()
    assert abs(layer.forward(x) - theirs(torch.tensor(x)).detach().numpy()).max() < 1e-12


def image_network(dtype, stride, padding, seed=0):
    rng = np.random.default_rng(seed)
    settings = {"rng": rng, "dtype": dtype}
    layers = [
        nnxp.Conv2D(
            2, 2, 1, **settings
        ),  # so that the next one computes the gradient of its inputs
        nnxp.Conv2D(2, 4, 3, stride=stride, padding=padding, **settings),
        nnxp.ReLU(),
        nnxp.MaxPool2D(2, stride=1),
        nnxp.Conv2D(4, 5, (2, 3), padding=1, **settings),
        nnxp.Tanh(),
        nnxp.AveragePool2D(2, stride=1),
        nnxp.Residual(
            [nnxp.Conv2D(5, 5, 3, padding=1, **settings), nnxp.BatchNorm(5, dtype=dtype)]
        ),
        nnxp.GlobalAveragePool2D(),
        nnxp.Affine(5, 3, **settings),
    ]
    return nnxp.Sequential(layers)


def block_cases():
    """Yield all cases; all but some that have each number of columns, stride and dtype are long."""
    windows, dtypes = [(1, 0), (2, 1), ((1, 2), (2, 0))], ["float32", "float64"]
    for i, columns in enumerate([None, 100, 7, 3, 1]):  # None: a block has all windows
        for j, (stride, padding) in enumerate(windows):
            for k, dtype in enumerate(dtypes):
                marks = [] if (j, k) == (i % 3, i % 2) else [pytest.mark.long]
                yield pytest.param(columns, stride, padding, dtype, marks=marks)


@pytest.mark.parametrize(("columns", "stride", "padding", "dtype"), [*block_cases()])
def test_captured_convolutions_in_blocks_equal_plain_steps(
    monkeypatch, columns, stride, padding, dtype
):
    compiled = pytest.importorskip("nnxp.capture.compiled", exc_type=ImportError)
    if columns is not None:  # of the second layer; those after it have fewer to a block
        size = np.dtype(dtype).itemsize
        monkeypatch.setattr(numpy_ops.NumpyOps, "block_bytes", columns * 2 * 9 * size)
        monkeypatch.setattr(compiled.CompiledOps, "block_bytes", columns * 2 * 9 * size)
    data = Dataset(normal((37, 2, 9, 8)).astype(dtype), np.arange(37) % 3)
    results = []
    for way in ("plain", "captured", "compiled"):
        network = image_network(dtype, stride, padding)
        options = {"capture": way != "plain", "compiled": way == "compiled"}
        loss = nnxp.SoftmaxWithLoss()
        trainer = nnxp.Trainer(network, loss, nnxp.Momentum(0.05), **options)
        trainer.fit(data, epochs=2, batch_size=8, rng=1)
        assert trainer.captured.startswith(way)
        results.append({**network.parameters(), **network.states()})
    # Sums of n <= 8 * 11 * 10 = 880 terms have an error of n u of their terms, which are below 10;
    # ten steps through nine layers leave a factor of 100 to this.
    tolerance = 880 * np.finfo(dtype).eps * 100
    for name, x in results[0].items():
        for other in results[1:]:
            assert abs(x - other[name]).max() < tolerance, name


def test_wrong_block_is_seen(monkeypatch):
    """The test above fails if one block of many is wrong."""
    right = numpy_images._places

    def wrong(first, windows, stride):
        return right(first, slice(0, windows.stop - windows.start), stride)

    monkeypatch.setattr(numpy_images, "_places", wrong)
    with pytest.raises(AssertionError):
        test_captured_convolutions_in_blocks_equal_plain_steps(monkeypatch, 7, 1, 0, "float64")


def lenet(dtype="float32"):
    settings = {"rng": np.random.default_rng(0), "dtype": dtype}
    return nnxp.Sequential(
        [
            nnxp.Conv2D(1, 20, 5, **settings),
            nnxp.ReLU(),
            nnxp.MaxPool2D(2),
            nnxp.Conv2D(20, 50, 5, **settings),
            nnxp.ReLU(),
            nnxp.MaxPool2D(2),
            nnxp.Flatten(),
            nnxp.Affine(800, 10, **settings),
        ]
    )


def peak(function):
    """Return the most bytes that were allocated at a time by a function beside those before."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


STEP = """
import sys
import numpy as np
import nnxp
from test_convolution import lenet
data = nnxp.data.Dataset(np.ones((256, 1, 28, 28), "float32"), np.arange(256) % 10)
trainer = nnxp.Trainer(lenet(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.01), capture=sys.argv[1] == "1")
batches = nnxp.data.Batches(data, 256, device="cpu", dtype="float32", rng=0)
def peak():  # of this program: a resource's would be that of the process that started it, too
    with open("/proc/self/status") as file:
        return int(file.read().partition("VmHWM:")[2].split()[0])
before = peak()
trainer.train_epoch(batches)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other ways")
def test_captured_step_takes_little_more_memory_than_a_plain_one():
    """Memory that is written, of two processes: recorded samples are allocated, and not written."""
    environment = ENVIRONMENT | {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{PATHS}"}
    peaks = [
        int(subprocess.check_output([sys.executable, "-c", STEP, capture], env=environment))
        for capture in ("1", "0")
    ]
    assert peaks[0] <= 1.5 * peaks[1]


def test_evaluation_and_prediction_take_bounded_memory():
    """1,000 images at once would make columns of 122 MiB, and their slices as much again."""
    network = lenet()
    data = Dataset(normal((1000, 1, 28, 28)).astype("float32"), np.arange(1000) % 10)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.01))
    assert network.work((1, 28, 28)) == (32_000, 1_600_000)  # 64 windows, 500 numbers, 50 outputs
    size = evaluation_batch_size(network, data)
    assert size == 2**23 // 32_000
    # The columns of `size` images; and as much for what else there is at a time.
    bound = 2 * 4 * 32_000 * size
    assert peak(lambda: trainer.evaluate(data)) < bound
    assert peak(lambda: network.predict(data.inputs)) < bound
    scores = network.forward(data.inputs[:600])
    # A product of other shapes adds its 800 terms, below 1, in another order.
    assert abs(network.predict(data.inputs)[:600] - scores).max() < 800 * 1.2e-7 * 10
    rows = Dataset(np.zeros((3, 784)), np.arange(3))
    assert evaluation_batch_size(nnxp.mlp([784, 50, 10], rng=0), rows) == 1000


def test_work_counts_the_positions_of_a_convolution():
    conv = nnxp.Conv2D(3, 8, 3, padding=1, rng=0)
    assert conv.work((3, 10, 20)) == (27 * 200, 27 * 200 * 8)
    network = nnxp.Sequential([conv, nnxp.Residual([nnxp.Conv2D(8, 8, 3, padding=1, rng=0)])])
    assert network.work((3, 10, 20)) == (72 * 200, 72 * 200 * 8)
    assert nnxp.Sequential([nnxp.Affine(4, 30, rng=0)]).work((4,)) == (30, 120)
    assert conv.work(None) == (1, 216)
    # The outputs or the inputs may have more numbers than the columns.
    assert nnxp.Conv2D(1, 64, 3, padding=1, rng=0).work((1, 9, 9))[0] == 64 * 81
    assert nnxp.Conv2D(2, 1, 1, stride=4, rng=0).work((2, 9, 9))[0] == 2 * 81


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nnxp.Conv2D(0, 2, 3, rng=0), "in_channels must be a whole number of at least 1"),
        (lambda: nnxp.Conv2D(1, 2.5, 3, rng=0), "out_channels must be a whole number"),
        (lambda: nnxp.Conv2D(1, 2, 0, rng=0), "kernel_size must be a whole number of at least 1"),
        (lambda: nnxp.Conv2D(1, 2, (3, 2.5), rng=0), "each number of kernel_size must be a whole"),
        (lambda: nnxp.Conv2D(1, 2, (3, 3, 3), rng=0), "kernel_size must be one number or a pair"),
        (lambda: nnxp.Conv2D(1, 2, 3, stride=0, rng=0), "stride must be a whole number of at leas"),
        (lambda: nnxp.Conv2D(1, 2, 3, stride=(1, True), rng=0), "each number of stride must be"),
        (
            lambda: nnxp.Conv2D(1, 2, 3, padding=-1, rng=0),
            "padding must be a whole number of at le",
        ),
        (lambda: nnxp.Conv2D(1, 2, 3, padding="equal", rng=0), "padding must be .*'equal'$"),
        # PyTorch pads one side more.
        (lambda: nnxp.Conv2D(1, 2, (3, 2), padding="same", rng=0), "padding must be .*'same'$"),
        (lambda: nnxp.MaxPool2D(0), "size must be a whole number of at least 1, got 0"),
        (lambda: nnxp.MaxPool2D(2, stride=0), "stride must be a whole number of at least 1"),
        (lambda: nnxp.AveragePool2D(3, padding=2), "padding must be at most half of the size 3"),
        (
            lambda: nnxp.Conv2D(1, 2, 3, rng=0, initializer=lambda rng, shape: np.ones((3, 3))),
            r"the initializer must return shape \(2, 1, 3, 3\), got \(3, 3\)",
        ),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(nnxp.InputError, match=message):
        make()


@pytest.mark.parametrize("kernel", [1, 5, (3, 7)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_words_for_padding_are_told_the_numbers(kernel, padding):
    with pytest.raises(nnxp.InputError, match=r"padding must be numbers .*; use padding=") as told:
        nnxp.Conv2D(1, 2, kernel, padding=padding, rng=0)
    margins = eval(str(told.value).rpartition("padding=")[2])
    layer = nnxp.Conv2D(1, 2, kernel, padding=margins, rng=0)
    high, wide = pair(kernel)
    wanted = (9, 8) if padding == "same" else (10 - high, 9 - wide)
    assert layer.output_shape((1, 9, 8)) == (2, *wanted)


@pytest.mark.parametrize(
    "layer", [nnxp.MaxPool2D(2), nnxp.AveragePool2D(2), nnxp.GlobalAveragePool2D()]
)
@pytest.mark.parametrize("shape", [(3, 0, 4, 4), (0, 2, 4, 4), (0, 0, 4, 4)])
def test_no_images_and_no_channels_give_none(layer, shape):
    x = np.zeros(shape, "float32")
    y = layer.forward(x, training=True)
    assert y.shape == (shape[0], *layer.output_shape(shape[1:]))
    assert layer.backward(y).shape == shape


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nnxp.Conv2D(1, 2, 3, rng=0), (5, 28, 28), "got (5, 28, 28); give x[:, None]"),
        (nnxp.Conv2D(3, 2, 3, rng=0), (5, 9, 9, 3), "got (5, 9, 9, 3); give numpy.moveaxis(x, "),
        (nnxp.Conv2D(1, 2, 3, rng=0), (5, 784), "give x.reshape(-1, 1, 28, 28), or put"),
        (nnxp.Conv2D(3, 2, 3, rng=0), (5, 2, 9, 9), "(batch, 3, height, width), got (5, 2, 9, 9)"),
        (nnxp.Conv2D(1, 2, 5, rng=0), (5, 1, 4, 9), "5 x 5 is larger than images of 4 x 9"),
        (nnxp.Conv2D(1, 2, 5, rng=0, padding=1), (5, 1, 2, 9), "with padding 1 and 1; use"),
        (nnxp.MaxPool2D(3), (5, 1, 2, 9), "window of 3 x 3 is larger than images of 2 x 9"),
        (nnxp.MaxPool2D(2), (5, 784), "expects images of shape (batch, channels, height, width)"),
        (nnxp.AveragePool2D(2), (5, 8, 8), "give x[:, None]"),
        (nnxp.GlobalAveragePool2D(), (5, 8), "expects images of shape (batch, channels, height"),
        (nnxp.GlobalAveragePool2D(), (5, 8, 0, 3), "expects images with pixels"),
        (nnxp.BatchNorm(3), (5, 2, 4, 4), "(batch, 3), or (batch, 3, height, width), got"),
    ],
)  # fmt: skip
def test_wrong_images_are_refused(layer, shape, message):
    with pytest.raises(nnxp.InputError, match=re.escape(message)):
        layer.forward(np.zeros(shape, "float32"), training=True)


def test_shape_of_other_channels_is_refused():
    layer = nnxp.Conv2D(3, 2, 3, rng=0)
    for shape in ((2, 9, 9), (9, 9, 3), (3, 9)):
        with pytest.raises(nnxp.InputError, match=r"images of shape \(3, height, width\), got"):
            layer.output_shape(shape)


@pytest.mark.parametrize(("size", "most"), [(2, 100), (150, 150)])
@pytest.mark.parametrize(
    "make",
    [
        lambda padding: nnxp.Conv2D(1, 2, 3, padding=padding, rng=0),
        lambda padding: nnxp.MaxPool2D((1, 2 * padding), padding=(0, padding)),
        lambda padding: nnxp.AveragePool2D((2 * padding, 1), padding=(padding, 0)),
    ],
)
def test_padding_of_no_use_is_refused(make, size, most):
    x = np.zeros((1, 1, size, size), "float32")
    make(most).forward(x)
    for padding in (most + 1, 10**9, 10**30):
        message = f"padding of {padding} is more than images .* can use; use at most {most}$"
        for call in (make(padding).forward, lambda x: make(padding).output_shape(x.shape[1:])):  # noqa: B023
            with pytest.raises(nnxp.InputError, match=message):
                call(x)


@pytest.mark.parametrize("stride", [7, 200_000, 10**30])
@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda stride: nnxp.Conv2D(1, 2, 3, stride=stride, rng=0, dtype="float64"),
        lambda stride: nnxp.MaxPool2D(3, stride=stride),
        lambda stride: nnxp.AveragePool2D(3, stride=stride),
    ],
)
def test_a_stride_beyond_the_images_gives_one_window(make, stride, capture):
    x = normal((6, 1, 7, 8))

    def trained(stride):
        layer = make(stride)
        channels = layer.output_shape((1, 7, 8))[0]
        network = nnxp.Sequential(
            [nnxp.Conv2D(1, 1, 1, rng=0, dtype="float64"), layer, nnxp.Flatten(),
             nnxp.Affine(channels, 2, rng=0, dtype="float64")]
        )  # fmt: skip
        trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), capture=capture)
        trainer.fit(Dataset(x, np.arange(6) % 2), epochs=2, batch_size=3, rng=0)
        return network.parameters()

    expected = trained(6)  # the largest stride that any image has room for, and one window
    for name, parameter in trained(stride).items():
        np.testing.assert_array_equal(parameter, expected[name])


def test_wrong_images_are_refused_before_any_step():
    network = nnxp.Sequential(
        [nnxp.Conv2D(1, 2, 3, rng=0), nnxp.Flatten(), nnxp.Affine(8, 2, rng=0)]
    )
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    before = {name: x.copy() for name, x in network.parameters().items()}
    for shape in ((6, 4, 4), (6, 4, 4, 1), (6, 16), (6, 1, 5, 5)):
        with pytest.raises(nnxp.InputError):
            trainer.fit(Dataset(np.ones(shape), np.arange(6) % 2), epochs=1, batch_size=3, rng=0)
    assert all((before[name] == x).all() for name, x in network.parameters().items())
    assert trainer.optimizer.steps == 0


def test_other_dtype_is_refused_with_the_conversion():
    with pytest.raises(nnxp.InputError, match=re.escape('convert with x.astype("float32")')):
        nnxp.Conv2D(1, 2, 3, rng=0).forward(np.zeros((1, 1, 3, 3)))


def test_settings_are_kept_as_given(tmp_path):
    layer = nnxp.Conv2D(1, 2, (3, 2), stride=2, padding=(1, 0), rng=0)
    assert repr(layer) == "Conv2D(1, 2, (3, 2), stride=2, padding=(1, 0))"
    assert repr(nnxp.MaxPool2D(2)) == "MaxPool2D(2, stride=2, padding=0)"
    network = nnxp.Sequential([layer, nnxp.MaxPool2D(2, padding=1), nnxp.Flatten()])
    nnxp.Sequential([*network.layers, nnxp.Affine(8, 2, rng=0)]).save(tmp_path / "a.safetensors")
    loaded = nnxp.load_network(tmp_path / "a.safetensors")
    x = normal((3, 1, 5, 6)).astype("float32")
    assert (loaded.layers[0].forward(x) == layer.forward(x)).all()
    assert repr(loaded.layers[1]) == repr(network.layers[1])
    assert pair(loaded.layers[0].padding) == (1, 0)
