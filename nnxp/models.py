"""Models: functions and classes that build networks of affine layers and of convolutions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from nnxp.arrays import DType
from nnxp.checks import (
    FRACTION,
    Rng,
    explained,
    require_count,
    require_number,
    require_rng,
    unknown_name,
)
from nnxp.devices import Device, open_device
from nnxp.errors import InputError
from nnxp.initializers import Initializer, he_normal, xavier_uniform
from nnxp.layers import Affine, BatchNorm, Conv2D, Dropout, Flatten, Layer, MaxPool2D
from nnxp.layers.activations import ACTIVATIONS
from nnxp.network import Sequential


class ThreeLayerNet(Sequential):
    """Three affine layers with an activation after the first two.

    Parameters
    ----------
    inputs, hidden1, hidden2, outputs : int
        Numbers of features from input to output, such as 784, 50, 30, 10.
    rng : numpy.random.Generator, SeedSequence or int
        Draws the weights on the host.
    activation : str, optional
        ``"relu"`` (default), ``"sigmoid"``, ``"tanh"``, ``"identity"``, ``"leaky_relu"``,
        ``"elu"``, ``"gelu"``, ``"silu"`` or ``"softplus"``.
    initializer : str or callable, optional
        ``"he"``, ``"xavier"``, ``"normal"`` (N(0, 0.01²)), ``"zeros"``, or a function as in
        `nnxp.initializers`; by default `xavier_uniform` for sigmoid, tanh and identity, and
        `he_normal` for all other activations.
    dtype : str or dtype, optional
        ``"float32"`` (default) or ``"float64"``.
    device : Device or str, optional
        The device of the parameters, as in `nnxp.device`; the CPU by default.

    Examples
    --------
    >>> import numpy as np
    >>> import nnxp
    >>> network = nnxp.ThreeLayerNet(784, 50, 30, 10, rng=np.random.default_rng(0))
    >>> list(network.parameters())
    ['W1', 'b1', 'W2', 'b2', 'W3', 'b3']
    """

    def __init__(
        self,
        inputs: int,
        hidden1: int,
        hidden2: int,
        outputs: int,
        *,
        rng: Rng,
        activation: str = "relu",
        initializer: Initializer | str | None = None,
        dtype: DType = "float32",
        device: Device | str = "cpu",
    ) -> None:
        self.inputs, self.hidden1, self.hidden2, self.outputs = inputs, hidden1, hidden2, outputs
        self.activation = activation
        widths = [inputs, hidden1, hidden2, outputs]
        maker = _Maker(rng, activation, initializer, dtype, device)
        super().__init__(maker.affine_layers(widths))


class TwoLayerNet(Sequential):
    """Two affine layers with an activation between them.

    Parameters
    ----------
    inputs, hidden, outputs : int
        Numbers of features, such as 784, 50, 10.
    rng, activation, initializer, dtype, device
        As in `ThreeLayerNet`.

    Examples
    --------
    >>> import nnxp
    >>> nnxp.TwoLayerNet(784, 50, 10, rng=0, activation="sigmoid").layers
    (Affine(784, 50), Sigmoid(), Affine(50, 10))
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        rng: Rng,
        activation: str = "relu",
        initializer: Initializer | str | None = None,
        dtype: DType = "float32",
        device: Device | str = "cpu",
    ) -> None:
        self.inputs, self.hidden, self.outputs = inputs, hidden, outputs
        self.activation = activation
        widths = [inputs, hidden, outputs]
        maker = _Maker(rng, activation, initializer, dtype, device)
        super().__init__(maker.affine_layers(widths))


@explained("mlp([784, 50, 10], rng=0), with the widths of all layers in a list")
def mlp(
    widths: Sequence[int],
    *,
    rng: Rng,
    activation: str = "relu",
    initializer: Initializer | str | None = None,
    batch_norm: bool = False,
    dropout: float = 0.0,
    dtype: DType = "float32",
    device: Device | str = "cpu",
) -> Sequential:
    """Return a network of any depth: affine layers with an activation between them.

    Parameters
    ----------
    widths : sequence of int
        Numbers of features from input to output, such as ``[784, 128, 64, 10]``.
    rng, activation, initializer, dtype, device
        As in `ThreeLayerNet`.
    batch_norm : bool, optional
        Put a `BatchNorm` before each activation. The affine layer before it keeps its bias, which
        has no effect.
    dropout : float, optional
        If above 0, put a `Dropout` of this rate after each activation. The rate is below 1. The
        initial weights are the same as without dropout.

    Returns
    -------
    Sequential

    Raises
    ------
    InputError
        If there are fewer than two widths, or an argument is not allowed.

    Examples
    --------
    >>> import numpy as np
    >>> import nnxp
    >>> nnxp.mlp([784, 100, 10], rng=np.random.default_rng(0), activation="tanh")
    Sequential(Affine(784, 100), Tanh(), Affine(100, 10))
    >>> nnxp.mlp([784, 100, 10], rng=0, batch_norm=True, dropout=0.2).layers[1:4]
    (BatchNorm(100, momentum=0.1, epsilon=1e-05), ReLU(), Dropout(0.2))
    """
    maker = _Maker(rng, activation, initializer, dtype, device, batch_norm, dropout)
    return Sequential(maker.affine_layers(widths))


@explained("nnxp.lenet(10, rng=0)")
def lenet(
    outputs: int = 10,
    *,
    image: tuple[int, int, int] = (1, 28, 28),
    padding: int = 0,
    rng: Rng,
    activation: str = "relu",
    initializer: Initializer | str | None = None,
    batch_norm: bool = False,
    dropout: float = 0.0,
    dtype: DType = "float32",
    device: Device | str = "cpu",
) -> Sequential:
    """Return a LeNet: convolutions of 20 and 50 channels with max pooling, and 500 hidden units.

    LeCun et al. 1998, fig. 2, in the wider form with ReLU and max pooling that is usual today.
    Pooling comes before the activation, which is faster, and equivalent for nondecreasing
    activations.

    Parameters
    ----------
    outputs : int, optional
        The number of classes.
    image : (int, int, int), optional
        The shape of an image, (channels, height, width).
    padding : int, optional
        The padding of both convolutions in pixels; their kernels are 5 x 5. Images smaller than
        16 x 16 need it.
    rng, activation, initializer, batch_norm, dtype, device
        As in `mlp`.
    dropout : float, optional
        If above 0, put a `Dropout` of this rate after the hidden units.

    Returns
    -------
    Sequential

    Raises
    ------
    InputError
        If the images are too small, or an argument is not allowed.

    Examples
    --------
    >>> import numpy as np
    >>> import nnxp
    >>> network = nnxp.lenet(rng=0)
    >>> network.forward(np.zeros((64, 1, 28, 28), "float32")).shape
    (64, 10)
    """
    maker = _Maker(rng, activation, initializer, dtype, device, batch_norm, dropout)
    shape: Any = image
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise InputError(
            f"image must be (channels, height, width), such as (1, 28, 28), got {image!r}"
        )
    shape = tuple(require_count("each number of image", x) for x in shape)
    if not require_count("padding", padding, 0) and min(shape[:2]) > 4 >= shape[2]:
        raise InputError(
            f"image must be (channels, height, width), got {image!r}, whose last axis is too short "
            f"for a kernel; use image={(shape[2], *shape[:2])}"
        )
    layers: list[Layer] = []
    for channels in (20, 50):
        layers.append(Conv2D(shape[0], channels, 5, padding=padding, **maker.weights))
        layers.append(MaxPool2D(2))
        for layer in layers[-2:]:
            shape = layer.output_shape(shape)
        layers += maker.hidden(channels, dropout=False)
    units = math.prod(shape)
    return Sequential([*layers, Flatten(), *maker.affine_layers([units, 500, outputs])])


class _Maker:
    """Factory of a model's layers, which share their settings; see `mlp`."""

    def __init__(
        self,
        rng: Rng,
        activation: str,
        initializer: Initializer | str | None,
        dtype: DType,
        device: Device | str,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if str(activation) not in ACTIVATIONS:
            raise unknown_name("activation", activation, ACTIVATIONS)
        if not isinstance(batch_norm, bool):
            raise InputError(f"batch_norm must be True or False, got {batch_norm!r}")
        self.activation, self.batch_norm = ACTIVATIONS[activation], batch_norm
        self.dropout = require_number("dropout", dropout, FRACTION)
        if initializer is None:
            initializer = xavier_uniform if activation in _XAVIER else he_normal
        self.place: dict[str, Any] = {"dtype": dtype, "device": open_device(device)}
        self.rng = require_rng(rng)
        self.weights = self.place | {"rng": self.rng, "initializer": initializer}

    def hidden(self, features: int, dropout: bool = True) -> list[Layer]:
        """Return the layers after an affine layer or a convolution, except the last one."""
        layers: list[Layer] = []
        if self.batch_norm:
            layers.append(BatchNorm(features, **self.place))
        layers.append(self.activation())
        if dropout and self.dropout:
            layers.append(Dropout(self.dropout, rng=self.rng, **self.place))
        return layers

    def affine_layers(self, widths: Sequence[int]) -> list[Layer]:
        """Return affine layers, with the layers of `hidden` between them."""
        given: object = widths
        if hasattr(given, "tolist") and not isinstance(given, type):  # an array
            widths = given.tolist()
        if not isinstance(widths, (list, tuple)) or len(widths) < 2:
            raise InputError(
                f"a network needs a list of at least two widths, inputs and outputs, got {widths!r}"
            )
        first, *others = [Affine(i, o, **self.weights) for i, o in itertools.pairwise(widths)]
        layers: list[Layer] = [first]
        for affine in others:
            layers += [*self.hidden(affine.inputs), affine]
        return layers


# Activations that are linear near 0. The others are 0, or close to 0, for negative numbers.
_XAVIER = {"sigmoid", "tanh", "identity"}
