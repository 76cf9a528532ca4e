"""Conv2D: the convolution of images, as one matrix product for all windows of a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnxp.arrays import Array, DType, namespace_of, one_op
from nnxp.checks import Rng, require_count, require_rng
from nnxp.devices import Device, open_device, require_dtype
from nnxp.errors import InputError
from nnxp.initializers import Initializer, draw_weights, he_normal
from nnxp.layers.base import Layer, Work
from nnxp.layers.images import require_image_shape, require_images
from nnxp.layers.windows import (
    Geometry,
    Pair,
    batch_first,
    batch_last,
    col2im,
    im2col,
    pair,
    require_pair,
    require_windows,
    window_counts,
)


class Conv2D(Layer):
    """2-D convolution: each output is a weighted sum of a window of the inputs, plus a bias.

    ``y[n, o, i, j] = sum(x[n, :, i * stride + p, j * stride + q] * W[o, :, p, q]) + b[o]``, over
    channels, p and q (LeCun et al. 1989; as in PyTorch and ONNX, the kernel is not flipped).

    Parameters
    ----------
    in_channels, out_channels : int
        Numbers of channels of inputs and outputs, at least 1.
    kernel_size : int or (int, int)
        Height and width of the window in pixels.
    stride : int or (int, int), optional
        Distance between two windows in pixels, down and across; 1 by default.
    padding : int or (int, int), optional
        Rows of zeros above and below, and columns of zeros left and right; 0 by default.
    rng : numpy.random.Generator, SeedSequence or int
        Draws ``W`` on the host.
    initializer : str or callable, optional
        As in `nnxp.Affine`, called with the shape of ``W``.
    dtype : str or dtype, optional
        ``"float32"`` (default) or ``"float64"``.
    device : Device or str, optional
        The device of the parameters, as in `nnxp.device`; the CPU by default.

    Attributes
    ----------
    params : dict of str to array
        ``W`` of shape (out_channels, in_channels, kernel height, kernel width), and ``b`` of shape
        (out_channels,), 0 at first.

    Examples
    --------
    >>> import numpy as np
    >>> import nnxp
    >>> layer = nnxp.Conv2D(1, 20, 5, padding=2, rng=0)
    >>> layer.forward(np.zeros((64, 1, 28, 28), "float32")).shape
    (64, 20, 28, 28)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        rng: Rng,
        initializer: Initializer | str = he_normal,
        dtype: DType = "float32",
        device: Device | str = "cpu",
    ) -> None:
        self.in_channels = require_count("in_channels", in_channels)
        self.out_channels = require_count("out_channels", out_channels)
        self.kernel_size = require_pair("kernel_size", kernel_size, 1)
        self.stride = require_pair("stride", stride, 1)
        given: object = padding
        if isinstance(given, str):
            height, width = pair(self.kernel_size)
            known = {"valid": (0, 0)}
            if height % 2 and width % 2:
                known["same"] = height // 2, width // 2
            remedy = f"; use padding={known[given]}" if given in known else ""
            raise InputError(f"padding must be numbers of rows and columns, got {given!r}{remedy}")
        self.padding = require_pair("padding", padding, 0)
        generator = require_rng(rng)
        opened = open_device(device)
        self.device, self.dtype = opened, require_dtype(dtype)
        shape = (self.out_channels, self.in_channels, *pair(self.kernel_size))
        weights = draw_weights(initializer, generator, shape)
        self.params["W"] = opened.asarray(weights, dtype=self.dtype)
        self.params["b"] = opened.asarray(np.zeros(out_channels), dtype=self.dtype)

    @classmethod
    def array_size(cls, config: Mapping[str, Any]) -> int:
        """Return the number of weights and biases."""
        window = math.prod(pair(require_pair("kernel_size", config["kernel_size"], 1)))
        return (int(config["in_channels"]) * window + 1) * int(config["out_channels"])

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the convolved images.

        Parameters
        ----------
        x : (batch, in_channels, height, width) array
            On the layer's device and in its dtype.
        training : bool, optional
            Save the images for `backward`.

        Returns
        -------
        (batch, out_channels, windows down, windows across) array

        Raises
        ------
        InputError
            If the shape or dtype of `x` is wrong, or the kernel is larger than the padded image.
        DeviceError
            If `x` is on another device.
        """
        self._require_inputs(x)
        xp = namespace_of(x, self)
        W, b = self.params["W"], self.params["b"]
        images, geometry = batch_last(xp, x), self._geometry()
        rows = convolve(images, xp.reshape(W, (self.out_channels, -1)), b, geometry)
        counts = window_counts(x.shape[2:], *geometry)
        y = batch_first(xp, xp.reshape(rows, (self.out_channels, *counts, x.shape[0])))
        if training:
            self.save_for_backward(y, images)
        return y

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the images: the sum over all windows of ``W.T @ dy``."""
        images, rows = self._gradients(dy)
        xp = namespace_of(dy, self)
        W = xp.reshape(self.params["W"], (self.out_channels, -1))
        return batch_first(xp, gradient_of_images(rows, W, images.shape, self._geometry()))

    def backward_parameters(self, dy: Array) -> None:
        """Compute only the gradients ``dy @ columns.T`` of ``W`` and ``sum(dy)`` of ``b``."""
        self._gradients(dy)

    def _gradients(self, dy: Array) -> tuple[Array, Array]:
        """Compute the gradients; return the images, and `dy` as a row for each channel."""
        self._require_here(dy)
        images: Array = self.saved(dy)
        xp = namespace_of(dy, self)
        rows = xp.reshape(batch_last(xp, dy), (self.out_channels, -1))
        if self.trainable:
            gradient = gradient_of_weights(rows, images, self._geometry())
            self.grads["W"] = xp.reshape(gradient, self.params["W"].shape)
            self.grads["b"] = xp.sum(rows, axis=1)
        return images, rows

    def _geometry(self) -> Geometry:
        return pair(self.kernel_size), pair(self.stride), pair(self.padding)

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return ``(out_channels, windows down, windows across)``; None if `shape` is unknown.

        Raises
        ------
        InputError
            If `shape` is not ``(in_channels, height, width)``, or the kernel is larger than the
            padded image.
        """
        if shape is None:
            return None
        require_image_shape(shape, self, self.in_channels)
        return (self.out_channels, *require_windows(self, shape, *self._geometry()))

    def work(self, shape: tuple[int, ...] | None) -> Work:
        """Return the size of the largest of inputs, outputs and columns, and of ``W @ columns``."""
        output = self.output_shape(shape)
        if output is None:
            return super().work(shape)
        windows, weights = math.prod(output[1:]), math.prod(self.params["W"].shape)
        columns = windows * weights // self.out_channels
        return Work(max(super().work(shape).numbers, columns), windows * weights)

    def _require_inputs(self, x: Array) -> None:
        self._require_here(x)
        require_images(x, self, self.in_channels)
        require_windows(self, tuple(x.shape[1:]), *self._geometry())
        self._require_dtype(x, self.params["W"])


# A column holds the numbers of one window. Columns need kernel height * kernel width times the
# memory of the images, so they are not saved: backward computes them again.


@one_op
def convolve(
    images: Array,
    W: Array,  # noqa: N803 - the parameter's name
    b: Array,
    geometry: Geometry,
) -> Array:
    """Return ``W @ columns + b``: (out_channels, windows down * windows across * batch).

    Parameters
    ----------
    images : (channels, height, width, batch) array
    W : (out_channels, channels * kernel height * kernel width) array
    b : (out_channels,) array
    geometry : Geometry
    """
    xp = namespace_of(images, "convolve")
    return W @ im2col(xp, images, *geometry) + b[:, None]


@one_op
def gradient_of_weights(dy: Array, images: Array, geometry: Geometry) -> Array:
    """Return ``dy @ columns.T``, given `dy` with a row for each channel."""
    xp = namespace_of(dy, "gradient_of_weights")
    return dy @ im2col(xp, images, *geometry).T


@one_op
def gradient_of_images(
    dy: Array,
    W: Array,  # noqa: N803
    shape: tuple[int, ...],
    geometry: Geometry,
) -> Array:
    """Return images of `shape` that sum the columns of ``W.T @ dy``."""
    xp = namespace_of(dy, "gradient_of_images")
    return col2im(xp, W.T @ dy, shape, *geometry)
