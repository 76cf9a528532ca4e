"""Initializers: functions that draw the initial weights.

An initializer takes a generator and the weights' shape, and returns float64 weights:
``initializer(rng, shape)``. Weights are drawn on the host, so a seed gives the same weights on
every device. In your own layer, draw weights with `draw_weights`. In your own initializer, get the
numbers of inputs and outputs from `fans`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nnxp.checks import POSITIVE, explained, require_number, unknown_name
from nnxp.errors import InputError

__all__ = [
    "Initializer",
    "draw_weights",
    "fans",
    "he_normal",
    "normal",
    "xavier_uniform",
    "zeros",
]

Weights: TypeAlias = npt.NDArray[np.float64]
# Quoted, because evaluating it would import numpy.random and slow down `import nnxp`.
Initializer: TypeAlias = "Callable[[np.random.Generator, tuple[int, ...]], Weights]"


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the number of inputs of each output, and the number of outputs of each input.

    Parameters
    ----------
    shape : tuple of int
        The shape of a matrix, ``(inputs, outputs)`` as in `nnxp.Affine`; or of a convolution's
        weights, ``(outputs, inputs, height, width)`` as in PyTorch and ONNX, with any number of
        axes after the first two. If your weights have another order of axes, draw them in one of
        these orders and transpose them.

    Returns
    -------
    tuple of int
        ``(fan_in, fan_out)``: for a matrix (inputs, outputs); for a convolution (inputs · height ·
        width, outputs · height · width) (He et al. 2015, sec. 2.2).

    Raises
    ------
    InputError
        If `shape` is not a tuple or list, or has fewer than two axes.

    Examples
    --------
    >>> from nnxp.initializers import fans
    >>> fans((784, 50)), fans((16, 3, 5, 5))
    ((784, 50), (75, 400))
    """
    given: object = shape
    if not isinstance(given, (tuple, list)) or len(given) < 2:
        raise InputError(
            "fans needs the shape of a matrix, (inputs, outputs), or of a convolution, "
            f"(outputs, inputs, height, width), got {shape!r:.80}"
        )
    if len(shape) == 2:
        return shape[0], shape[1]
    outputs, inputs, *kernel = shape
    return inputs * math.prod(kernel), outputs * math.prod(kernel)


@explained("nnxp.initializers.normal(0.01)")
def normal(std: float) -> Initializer:
    """Return an initializer that draws from N(0, std²).

    Parameters
    ----------
    std : float
        Standard deviation: a positive number.

    Raises
    ------
    InputError
        If `std` is not a positive number.
    """
    require_number("std", std, POSITIVE)

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Weights:
        return rng.normal(0.0, std, shape)

    return draw


@explained("nnxp.initializers.he_normal(rng, (784, 50)), or give it itself as initializer")
def he_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Weights:
    """Draw from N(0, 2 / fan_in), to keep the variance through ReLU (He et al. 2015, eq. 10)."""
    return rng.normal(0.0, math.sqrt(2.0 / fans(shape)[0]), shape)


@explained("nnxp.initializers.xavier_uniform(rng, (784, 50)), or give it itself as initializer")
def xavier_uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> Weights:
    """Draw from U(-a, a) with a² = 6 / (fan_in + fan_out) (Glorot and Bengio 2010, eq. 16)."""
    bound = math.sqrt(6.0 / sum(fans(shape)))
    return rng.uniform(-bound, bound, shape)


@explained("nnxp.initializers.zeros(rng, (784, 50)), or give it itself as initializer")
def zeros(rng: np.random.Generator, shape: tuple[int, ...]) -> Weights:
    """Return zeros; only for a single layer, since hidden units that start equal stay equal."""
    return np.zeros(shape)


INITIALIZERS: dict[str, Initializer] = {
    "he": he_normal,
    "xavier": xavier_uniform,
    "normal": normal(0.01),
    "zeros": zeros,
}
"""The initializers by name; ``"normal"`` is N(0, 0.01²)."""


def _checked(initializer: Initializer) -> Initializer:
    """Return an initializer; an error names it if it does not take a generator and a shape."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Weights:
        try:
            return initializer(rng, shape)
        except TypeError as error:
            remedy = "nnxp.initializers.he_normal or lambda rng, shape: rng.normal(0, 0.1, shape)"
            given: object = initializer
            if given is normal:
                remedy = "nnxp.initializers.normal(0.01), which makes one"
            raise InputError(
                f"initializer must be a function of a generator and a shape, got {initializer!r}, "
                f"for which {shape} fails ({error}); give {remedy}"
            ) from error

    return draw


def require_initializer(initializer: object) -> Initializer:
    """Return the initializer of a name, or a checked version of a function."""
    if callable(initializer):
        return _checked(initializer)
    if isinstance(initializer, str):
        if initializer not in INITIALIZERS:
            raise unknown_name("initializer", initializer, INITIALIZERS)
        return INITIALIZERS[initializer]
    remedy = ""
    if isinstance(initializer, Real):
        remedy = f"; for that standard deviation, nnxp.initializers.normal({initializer})"
    raise InputError(
        f'initializer must be a name such as "he", or a function such as '
        f"nnxp.initializers.he_normal, got {initializer!r}{remedy}"
    )


def draw_weights(initializer: object, rng: np.random.Generator, shape: tuple[int, ...]) -> Weights:
    """Return the initial weights of a layer.

    Parameters
    ----------
    initializer : str or callable
        A name in `INITIALIZERS`, or a function: ``initializer(rng, shape)`` returns the weights.
    rng : numpy.random.Generator
    shape : tuple of int
        The shape of the weights, as in `fans`.

    Returns
    -------
    float array of this shape
        A new array.

    Raises
    ------
    InputError
        If the name is unknown, or the function does not take these arguments or returns another
        shape.
    """
    # A copy: training changes the weights in place, and an initializer may reuse its array.
    weights = np.array(require_initializer(initializer)(rng, shape))
    if weights.shape != shape:
        raise InputError(f"the initializer must return shape {shape}, got {weights.shape}")
    return weights


def __dir__() -> list[str]:
    return __all__
