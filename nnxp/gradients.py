"""Gradients: finite differences, and the comparison of backpropagation with them."""

from __future__ import annotations

import math
from collections.abc import Callable

from nnxp.arrays import Array, namespace_of
from nnxp.checks import explained
from nnxp.errors import InputError
from nnxp.losses import Loss
from nnxp.network import Sequential

# The error of a central difference is about step² f''' / 6 from truncation and eps |f| / step from
# rounding. Both are equal near step = eps^(1/3) = 6e-6, if f varies on the scale of max(1, |x|).
_STEP = 2.0**-17


@explained("nnxp.numerical_gradient(f, x)")
def numerical_gradient(f: Callable[[Array], Array | float], x: Array) -> Array:
    """Return the gradient of `f` at `x` by central finite differences, element by element.

    Parameters
    ----------
    f : callable
        A function that takes an array of the shape of `x` and returns one number.
    x : float64 array
        It is not changed. float32 raises an error, because its rounding errors are too large.

    Returns
    -------
    array of the shape of `x`

    Raises
    ------
    InputError
        If `x` is not float64, or `f` does not return one number.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp import numerical_gradient
    >>> numerical_gradient(lambda x: (x * x).sum(), np.array([3.0, 4.0])).round(6)
    array([6., 8.])
    """
    xp = namespace_of(x, "numerical_gradient")
    if x.dtype != xp.float64:
        raise InputError(
            f"numerical_gradient needs float64, got {x.dtype}; build the network with "
            'dtype="float64"'
        )
    size = math.prod(x.shape)
    position = xp.reshape(xp.arange(size, device=x.device), x.shape)
    step = _STEP * xp.maximum(xp.abs(x), 1.0)
    # The exact distance of the two arguments of f; rounding may change it from 2 * step.
    widths = xp.reshape((x + step) - (x - step), (size,))
    slopes = []
    for i in range(size):
        offset = xp.astype(position == i, x.dtype) * step
        try:
            difference = float(f(x + offset)) - float(f(x - offset))
        except TypeError as error:
            raise InputError(f"f must return one number: {error}") from error
        slopes.append(difference / float(widths[i]))
    return xp.reshape(xp.asarray(slopes, dtype=x.dtype, device=x.device), x.shape)


@explained("nnxp.check_gradients(network, loss, inputs, labels)")
def check_gradients(
    network: Sequential, loss: Loss, inputs: Array, labels: Array
) -> dict[str, float]:
    """Compare backpropagation with finite differences, for every parameter and the inputs.

    Parameters
    ----------
    network : Sequential
        A network in float64. Its parameters and states are restored afterwards.
    loss : Loss
        A loss of the network's outputs, whose `backward` is checked, too.
    inputs, labels : array
        A batch, on the network's device.

    Returns
    -------
    dict of str to float
        For each parameter, and ``"inputs"``, the largest difference between the two gradients,
        divided by the largest magnitude in either gradient; inf if it is not finite.

    Raises
    ------
    InputError
        If the network is not in float64.
    """
    states = network.states()
    before = dict(states)

    def forward(x: Array) -> Array:
        """Do a training forward from the initial state, so that dropout repeats its mask."""
        for name, state in before.items():
            states.place(name, namespace_of(state, "check_gradients").asarray(state, copy=True))
        return network.forward(x, training=True)

    def loss_at(x: Array) -> float:
        value = float(loss.forward(forward(x), labels, training=False))
        network.discard_saved()
        return value

    loss.forward(forward(inputs), labels)
    analytic = {"inputs": network.backward(loss.backward())}
    numerical = {"inputs": numerical_gradient(loss_at, inputs)}
    parameters = network.parameters()
    analytic |= network.gradients()
    for name, value in parameters.trainable.items():

        def loss_with(changed: Array, name: str = name) -> float:
            parameters[name] = changed
            return loss_at(inputs)

        try:
            numerical[name] = numerical_gradient(loss_with, value)
        finally:
            parameters[name] = value
    for name, state in before.items():
        states.place(name, state)
    return {name: _relative_error(analytic[name], numerical[name]) for name in analytic}


def _relative_error(a: Array, b: Array) -> float:
    xp = namespace_of(a, "check_gradients")
    difference = float(xp.max(xp.abs(a - b)))
    if not math.isfinite(difference):
        return math.inf  # max() of a user may ignore nan
    scale = max(float(xp.max(xp.abs(a))), float(xp.max(xp.abs(b))))
    return difference / scale if scale else 0.0
