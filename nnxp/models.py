"""Models: networks of affine layers with activations between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from nnxp.arrays import DType
from nnxp.checks import FRACTION, Rng, explained, require_number, require_rng, unknown_name
from nnxp.devices import Device, open_device
from nnxp.errors import InputError
from nnxp.initializers import Initializer, he_normal, xavier_uniform
from nnxp.layers import Affine, BatchNorm, Dropout, Layer
from nnxp.layers.activations import ACTIVATIONS
from nnxp.network import Sequential


class ThreeLayerNet(Sequential):
    """Three affine layers with an activation after the first two.

    Parameters
    ----------
    inputs, hidden1, hidden2, outputs : int
        Numbers of features, such as 784, 50, 30, 10.
    rng : numpy.random.Generator, SeedSequence or int
        Draws the weights on the host.
    activation : str, optional
        ``"relu"`` (default), ``"sigmoid"``, ``"tanh"``, ``"identity"``, ``"leaky_relu"``,
        ``"elu"``, ``"gelu"``, ``"silu"`` or ``"softplus"``.
    initializer : str or callable, optional
        ``"he"``, ``"xavier"``, ``"normal"`` (N(0, 0.01²)), ``"zeros"``, or a function as in
        `nnxp.initializers`; by default `xavier_uniform` for sigmoid, tanh and identity, and
        `he_normal` for those like ReLU.
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
        super().__init__(_affine_layers(widths, rng, activation, initializer, dtype, device))


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
        super().__init__(_affine_layers(widths, rng, activation, initializer, dtype, device))


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
        the normalization cancels.
    dropout : float, optional
        If above 0, put a `Dropout` of this rate after each activation. The first weights are the
        same as without.

    Examples
    --------
    >>> import numpy as np
    >>> import nnxp
    >>> nnxp.mlp([784, 100, 10], rng=np.random.default_rng(0), activation="tanh")
    Sequential(Affine(784, 100), Tanh(), Affine(100, 10))
    >>> nnxp.mlp([784, 100, 10], rng=0, batch_norm=True, dropout=0.2).layers[1:4]
    (BatchNorm(100, momentum=0.1, epsilon=1e-05), ReLU(), Dropout(0.2))
    """
    return Sequential(
        _affine_layers(widths, rng, activation, initializer, dtype, device, batch_norm, dropout)
    )


def _affine_layers(
    widths: Sequence[int],
    rng: Rng,
    activation: str,
    initializer: Initializer | str | None,
    dtype: str,
    device: Device | str,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> list[Layer]:
    if not isinstance(widths, (list, tuple)) or len(widths) < 2:
        raise InputError(
            f"a network needs a list of at least two widths, inputs and outputs, got {widths!r}"
        )
    if str(activation) not in ACTIVATIONS:
        raise unknown_name("activation", activation, ACTIVATIONS)
    rate = require_number("dropout", dropout, FRACTION)
    if initializer is None:
        initializer = xavier_uniform if activation in _XAVIER else he_normal
    opened, generator = open_device(device), require_rng(rng)
    first, *others = [
        Affine(inputs, outputs, rng=generator, initializer=initializer, dtype=dtype, device=opened)
        for inputs, outputs in itertools.pairwise(widths)
    ]
    layers: list[Layer] = [first]
    for affine in others:
        if batch_norm:
            layers.append(BatchNorm(affine.inputs, dtype=dtype, device=opened))
        layers.append(ACTIVATIONS[activation]())
        if rate:
            layers.append(Dropout(rate, rng=generator, dtype=dtype, device=opened))
        layers.append(affine)
    return layers


# Activations that are linear about 0; the others are 0 for half of the numbers, or nearly so.
_XAVIER = {"sigmoid", "tanh", "identity"}
