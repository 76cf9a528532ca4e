"""Images: their shape is checked, the remedies work as printed, and layers make them of rows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from file_samples import idx_bytes

import nnxp
from nnxp.data import Dataset, read_idx
from nnxp.layers.images import (
    images_remedy,
    require_channels_first,
    require_image_shape,
    require_images,
)


class ChannelMeans(nnxp.Layer):
    """A user's layer of images: (batch, channels, height, width) becomes (batch, channels)."""

    def __init__(self, channels=None):
        self.channels = channels

    def forward(self, x, training=False):
        require_images(x, self, self.channels)
        y = x.mean(axis=(2, 3))
        if training:
            self.save_for_backward(y, x.shape)
        return y

    def backward(self, dy):
        shape = self.saved(dy)
        pixels = shape[2] * shape[3]
        return np.broadcast_to(dy[:, :, None, None] / pixels, shape).astype(dy.dtype)

    def output_shape(self, shape):
        require_image_shape(shape, self, self.channels)
        return shape and shape[:1]


def of_channels(channels):
    """Return a network of images of so many channels."""
    return nnxp.Sequential([ChannelMeans(channels), nnxp.Affine(channels, 2, rng=0)])


# shape, channels: the call, and the shape that it gives
REMEDIES = {
    "grey": ((9, 28, 28), 1, "x[:, None]", (9, 1, 28, 28)),
    "grey, any": ((9, 28, 20), None, "x[:, None]", (9, 1, 28, 20)),
    "grey, last": ((9, 28, 28, 1), 1, "numpy.moveaxis(x, -1, 1)", (9, 1, 28, 28)),
    "RGB, last": ((9, 32, 20, 3), 3, "numpy.moveaxis(x, -1, 1)", (9, 3, 32, 20)),
    "RGBA, last": ((9, 8, 9, 4), 4, "numpy.moveaxis(x, -1, 1)", (9, 4, 8, 9)),
    "one, grey, last": ((8, 9, 1), 1, "numpy.moveaxis(x, -1, 0)[None]", (1, 1, 8, 9)),
    "one, RGB, last": ((8, 9, 3), 3, "numpy.moveaxis(x, -1, 0)[None]", (1, 3, 8, 9)),
    "one, RGB": ((3, 8, 9), 3, "x[None]", (1, 3, 8, 9)),
    "one, two channels": ((2, 8, 9), 2, "x[None]", (1, 2, 8, 9)),
    "one, grey": ((30, 30), 1, "x[None, None]", (1, 1, 30, 30)),
    "rows": ((9, 784), 1, "x.reshape(-1, 1, 28, 28)", (9, 1, 28, 28)),
    "rows, any": ((9, 784), None, "x.reshape(-1, 1, 28, 28)", (9, 1, 28, 28)),
    "rows, RGB": ((9, 3072), 3, "x.reshape(-1, 3, 32, 32)", (9, 3, 32, 32)),
    "rows, RGB, any": ((9, 3072), None, "x.reshape(-1, 3, 32, 32)", (9, 3, 32, 32)),
    "one row": ((784,), 1, "x.reshape(-1, 1, 28, 28)", (1, 1, 28, 28)),
}


@pytest.mark.parametrize(
    ("shape", "channels", "call", "wanted"), list(REMEDIES.values()), ids=list(REMEDIES)
)
def test_arrays_that_are_no_images_are_told_a_call_that_works(shape, channels, call, wanted):
    x = np.arange(np.prod(shape, dtype=float)).reshape(shape)
    with pytest.raises(nnxp.InputError, match=r"expects images of shape \(batch, .*got ") as raised:
        require_images(x, ChannelMeans(channels), channels)
    assert f"; give {call}" in str(raised.value)
    made = eval(call, {"x": x, "numpy": np})
    assert made.shape == wanted
    require_images(made, "a layer", channels)
    # Pixels are neighbours still: those of a row of the image, in steps of the channels if last.
    last = shape[-1] if len(shape) > 2 and shape[-1] < 5 else 1
    assert made[0, 0, 0, 1] - made[0, 0, 0, 0] == last


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((9, 3, 28, 28), 1),  # other channels
        ((9, 28, 28), 3),
        ((9, 10), 1),  # no square
        ((9, 785), None),
        ((9, 1), 1),  # a single pixel
        ((9, 3), None),
        ((3, 8, 9), 2),
        ((9, 4, 9, 3), 3),  # the channels may come first
        ((9, 9, 4, 3), 3),
        ((9, 8, 8, 5), None),  # five channels are not usual
        ((9, 2, 2, 2, 2), 1),
        ((), 1),
    ],
)
def test_no_call_is_guessed(shape, channels):
    assert images_remedy(shape, channels) == ""
    if shape[3:] != (5,):
        with pytest.raises(nnxp.InputError, match=r"height, width\), got \([0-9, ]*\)$"):
            require_images(np.zeros(shape), "a layer", channels)


@pytest.mark.parametrize("shape", [(9, 4, 9, 3), (9, 9, 4, 3), (9, 1, 9, 4), (9, 9, 9, 5)])
def test_narrow_images_are_taken_to_have_their_channels_first(shape):
    require_channels_first(np.zeros(shape), "a layer")
    with pytest.raises(nnxp.InputError, match=r"; give numpy.moveaxis\(x, -1, 1\)$"):
        require_channels_first(np.zeros((9, 5, 9, 3)), "a layer")


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((2, 1, 5, 5), 1), ((2, 8, 7, 3), 8), ((2, 3, 9, 3), None), ((2, 8, 7, 3), None)],
)
def test_images_are_taken(shape, channels):
    require_images(np.zeros(shape), "a layer", channels)
    require_image_shape(shape[1:], "a layer", channels)
    require_image_shape(None, "a layer", channels)


def fit(network, x):
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), capture=False)
    return trainer.fit(Dataset(x, np.arange(len(x)) % 2), epochs=1, batch_size=4, rng=0)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((8, 6, 5), 1), ((8, 6, 5, 1), 1), ((8, 6, 5, 3), 3), ((8, 36), 1), ((8, 108), 3)],
)
def test_fit_and_predict_name_the_call_before_any_work(shape, channels):
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    network = of_channels(channels)
    with pytest.raises(nnxp.InputError, match="the training data do not suit: .*; give ") as fitted:
        fit(network, x)
    with pytest.raises(nnxp.InputError, match="; give ") as predicted:
        network.predict(x)
    codes = [
        re.search(r"give (\S+\(?.*?\)?)(, or|$)", str(e.value))[1] for e in (fitted, predicted)
    ]
    assert codes[0] == codes[1]
    images = eval(codes[0], {"x": x, "numpy": np})
    fit(network, images)
    assert network.predict(images).shape == (8, 2)
    if layer := re.search(r"put (nnxp.Reshape\(.*\)) before", str(fitted.value)):
        fit(nnxp.Sequential([eval(layer[1]), *of_channels(channels)]), x)


def test_a_network_whose_layers_do_not_fit_is_told_the_layer_between():
    affine, last = nnxp.Affine(4, 48, rng=0), nnxp.Affine(3, 2, rng=0)
    with pytest.raises(
        nnxp.InputError, match=r"\(3, height, width\), got \(48,\); put nnxp.Reshape\(\(3, 4, 4\)\)"
    ) as raised:
        nnxp.Sequential([affine, ChannelMeans(3), last])
    layer = eval(re.search(r"put (.*) before it", str(raised.value))[1])
    network = nnxp.Sequential([affine, layer, ChannelMeans(3), last])
    assert network.predict(np.ones((5, 4), "float32")).shape == (5, 2)
    with pytest.raises(nnxp.InputError, match=r"\(3, height, width\), got \(1, 4, 12\)$"):
        nnxp.Sequential([affine, nnxp.Reshape((1, 4, 12)), ChannelMeans(3)])
    with pytest.raises(nnxp.InputError, match=r"\(3, height, width\), got \(47,\)$"):
        nnxp.Sequential([nnxp.Affine(4, 47, rng=0), ChannelMeans(3)])


# Reshape


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((12,), (12,)),
        ((3, 4), (3, 4)),
        ([1, -1, 4], (1, 3, 4)),
        ((-1,), (12,)),
        (np.array([12]),) * 2,
    ],
)
def test_reshape_and_back_is_the_identity(shape, wanted):
    x = np.arange(60.0).reshape(5, 2, 6)
    layer = nnxp.Reshape(shape)
    y = layer.forward(x, training=True)
    assert y.shape == (5, *wanted)
    np.testing.assert_array_equal(y.ravel(), x.ravel())
    np.testing.assert_array_equal(layer.backward(y), x)
    assert layer.output_shape((2, 6)) == tuple(wanted)
    assert layer.output_shape(None) == (None if -1 in shape else tuple(wanted))
    flat = nnxp.Flatten().forward(y)
    np.testing.assert_array_equal(layer.forward(flat), y)


def test_reshape_takes_batches_of_any_size():
    for batch in (0, 1, 7):
        assert nnxp.Reshape((2, -1)).forward(np.zeros((batch, 6))).shape == (batch, 2, 3)


@pytest.mark.parametrize(
    ("shape", "given", "message"),
    [
        (
            (3, 5),
            (2, 6),
            r"Reshape\(\(3, 5\)\) expects examples of 15 numbers, got 12, of .*\(2, 6",
        ),
        (
            (5, -1),
            (2, 6),
            r"expects examples of a multiple of 5 numbers, got 12, of shape \(2, 6\)",
        ),
        ((24, -1), (2, 6), "a multiple of 24 numbers, got 12"),
        ((3, -1), (0, 6), "a multiple of 3 numbers, got 0"),
    ],
)
def test_reshape_refuses_examples_that_do_not_fit(shape, given, message):
    with pytest.raises(nnxp.InputError, match=message):
        nnxp.Reshape(shape).forward(np.zeros((4, *given)))
    with pytest.raises(nnxp.InputError, match=message):
        nnxp.Reshape(shape).output_shape(given)


def test_reshape_refuses_a_single_number():
    with pytest.raises(nnxp.InputError, match=r"Reshape\(.*expects .*\(batch, …\), got a single"):
        nnxp.Reshape((1,)).forward(np.array(1.0))


@pytest.mark.parametrize(
    "shape",
    [
        (-1, -1),
        (0, 4),
        (4, 0),
        (2.0, 3),
        (True, 3),
        (),
        "34",
        None,
        ("3", 4),
        (-2, 3),
        np.array(3),
    ],
)
def test_reshape_refuses_what_is_no_shape(shape):
    with pytest.raises(
        nnxp.InputError, match=r"shape must be a tuple of whole.*\(1, 28, 28\), got"
    ):
        nnxp.Reshape(shape)


def test_reshape_tells_how_to_give_one_length():
    with pytest.raises(nnxp.InputError, match=r"got 784; give \(784,\)$") as raised:
        nnxp.Reshape(784)
    nnxp.Reshape(eval(str(raised.value).rpartition("give ")[2]))


# Data sets


def test_mnist_and_digits_come_as_images(idx_folder):
    for load in (lambda **kind: nnxp.data.load_mnist(idx_folder, **kind), nnxp.data.load_digits):
        for rows, images in zip(load(), load(images=True), strict=True):
            assert images.inputs.shape == (len(rows), 1, 8, 8)
            assert images.scale == 255
            np.testing.assert_array_equal(images.inputs.reshape(len(rows), -1), rows.inputs)
            np.testing.assert_array_equal(images.labels, rows.labels)
        fit(nnxp.Sequential([ChannelMeans(1), nnxp.Affine(1, 2, rng=0)]), images.inputs)


@pytest.mark.parametrize("images", [False, True])
def test_images_take_no_more_memory_than_the_file(idx_folder, images):
    train, _ = nnxp.data.load_mnist(idx_folder, images=images)
    assert train.inputs.base is not None  # a view of what was read
    assert train.inputs.flags.c_contiguous


def test_emnists_images_are_upright(idx_folder, tmp_path):
    for path in idx_folder.iterdir():
        values = read_idx(path)
        if values.ndim == 3:
            values = values.transpose(0, 2, 1)
        name = "emnist-digits-" + path.name.replace("t10k", "test")
        (tmp_path / name).write_bytes(idx_bytes(values))
    train, _ = nnxp.data.load_mnist(tmp_path, images=True)
    np.testing.assert_array_equal(train.inputs, nnxp.data.load_digits(images=True)[0].inputs)
    assert train.inputs.flags.c_contiguous  # captured steps read rows of such arrays fast


def test_pixels_of_a_csv_file_become_images_by_a_layer(digits_csv):
    train = nnxp.data.load_csv(digits_csv)
    network = nnxp.Sequential([nnxp.Reshape((1, 8, 8)), *of_channels(1)])
    with pytest.raises(nnxp.InputError, match=r"put nnxp.Reshape\(\(1, 8, 8\)\) before it"):
        of_channels(1).predict(train.inputs)
    assert network.predict(train.inputs).shape == (1438, 2)
