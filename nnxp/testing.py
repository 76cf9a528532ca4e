"""Testing: the checks that every layer of nnxp passes, for layers of your own.

They need array-api-strict, whose simulated devices stand in for a GPU: what names a library, mixes
devices or leaves the Array API standard fails there, on a laptop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array
from nnxp.devices import DTYPES, open_device
from nnxp.errors import CallOrderError, LayerError, NnxpError
from nnxp.gradients import check_gradients
from nnxp.layers import Layer
from nnxp.losses import MeanSquaredError
from nnxp.network import Sequential

# Rounding leaves about 2e-16 / 8e-6 = 3e-11 of a loss near 1 in a difference (see nnxp.gradients),
# beside gradients down to 1e-5 of it; a wrong backward is off by a per cent or more.
_GRADIENT_TOLERANCE = 1e-5


def check_layer(
    layer: Layer, input_shape: tuple[int, ...], *, training_differs: bool = False
) -> None:
    """Check that a layer is correct, portable and well-behaved.

    Parameters
    ----------
    layer : Layer
        On any device; it is copied and left as it is.
    input_shape : tuple of int
        The shape of a batch of inputs, such as ``(5, 4)``; choose it unlike the outputs' shape.
    training_differs : bool, optional
        Whether outputs while training may differ from those in inference, as with dropout.

    Raises
    ------
    LayerError
        With a sentence for each check that fails:

        - `forward` gives a batch of the shape that `output_shape` says, the same in training and
          inference, and changes no input;
        - `backward` gives a gradient of the inputs' shape and one for each parameter, changes
          nothing it is handed, and is refused without a training forward and a second time;
        - float32 stays float32 and float64 stays float64;
        - arrays stay on their device (array-api-strict's, so that the standard is kept too);
        - all gradients agree with differences.

    Examples
    --------
    A layer of your own, the swish function ``y = x * sigmoid(x)``:

    >>> from array_api_compat import array_namespace
    >>> import nnxp
    >>> class Swish(nnxp.Layer):
    ...     def forward(self, x, training=False):
    ...         xp = array_namespace(x)
    ...         s = (1 + xp.tanh(x / 2)) / 2  # the sigmoid, which so never overflows
    ...         y = x * s
    ...         if training:
    ...             self.save_for_backward(y, (s, y))
    ...         return y
    ...     def backward(self, dy):
    ...         s, y = self.saved(dy)
    ...         return dy * (s + y * (1 - s))
    >>> nnxp.testing.check_layer(Swish(), (5, 4))
    """
    failures: list[str] = []
    for check in (_passes, _order, _gradients):
        before = len(failures)
        try:
            failures.extend(check(layer, input_shape, training_differs))
        except LayerError as error:
            failures.append(str(error))
        except Exception as error:  # noqa: BLE001 (whatever a layer raises is the finding)
            if len(failures) == before:  # else it follows from what was found
                failures.append(_words(error))
    if failures:
        raise LayerError(f"{layer!r}: " + "; ".join(dict.fromkeys(failures)))


def _passes(layer: Layer, shape: tuple[int, ...], training_differs: bool) -> Iterator[str]:
    """Check shapes, dtypes, devices and untouched arrays of a forward and a backward."""
    for spec in ("cpu", "strict:device1"):
        place = open_device(spec)
        for dtype in DTYPES:
            where = f"on {spec} in {dtype}"
            twin = _try(f"to {spec}", layer.to, place, dtype=dtype)
            x = place.asarray(_draw(shape), dtype=dtype)
            before = place.to_host(x).copy()
            _protect(x)
            y = _try(f"forward {where}", twin.forward, x, training=True)
            yield from _kept(f"forward's output {where}", y, dtype, spec)
            if not training_differs:
                again = _try(f"forward {where}", twin.forward, x)
                if tuple(again.shape) != tuple(y.shape) or not np.array_equal(
                    place.to_host(again), place.to_host(y), equal_nan=True
                ):
                    yield f"outputs in training and in inference differ {where}"
            said = twin.output_shape(tuple(shape[1:]))
            if tuple(y.shape) != (shape[0], *(said or ())):
                yield f"output_shape says {said} for an example, but a batch is {tuple(y.shape)}"
            dy = place.asarray(_draw(tuple(y.shape), seed=1), dtype=dtype)
            dy_before = place.to_host(dy).copy()
            _protect(dy)
            dx = _try(f"backward {where}", twin.backward, dy)
            yield from _kept(f"backward's gradient {where}", dx, dtype, spec)
            if tuple(dx.shape) != tuple(shape):
                yield f"backward returns shape {tuple(dx.shape)} for inputs of {tuple(shape)}"
            if twin.grads.keys() != twin.params.keys():
                yield (
                    f"backward fills grads {sorted(twin.grads)} for params {sorted(twin.params)}"
                )
            for name, gradient in twin.grads.items():
                yield from _kept(f"the gradient of {name} {where}", gradient, dtype, spec)
            if not np.array_equal(place.to_host(x), before):
                yield f"the inputs are changed {where}"
            if not np.array_equal(place.to_host(dy), dy_before):
                yield f"backward changes the gradient that it is handed {where}"


def _order(layer: Layer, shape: tuple[int, ...], _: bool) -> Iterator[str]:
    """Check that backward wants a training forward, once."""
    twin = layer.to("cpu", dtype="float64")
    x = _draw(shape)
    dy = np.ones_like(_try("forward", twin.forward, x))
    for call, used in [
        ("without a training forward", False),
        ("a second time", True),
    ]:
        if used:
            _try("forward", twin.forward, x, training=True)
            _try("backward", twin.backward, dy)
        try:
            twin.backward(dy)
        except CallOrderError:
            continue
        except Exception as error:  # noqa: BLE001 (whatever a layer raises is the finding)
            yield f"backward {call} raises {_words(error)}, not CallOrderError"
        else:
            yield f"backward {call} is not refused: call self.save_for_backward and self.saved"


def _gradients(layer: Layer, shape: tuple[int, ...], _: bool) -> Iterator[str]:
    """Check all gradients against differences."""
    twin = layer.to("cpu", dtype="float64")
    x = _draw(shape)
    targets = _draw(_try("forward", twin.forward, x).shape, seed=1)
    errors = _try(
        "the gradient check",
        check_gradients,
        Sequential([twin]),
        MeanSquaredError(),
        x,
        targets,
    )
    for name, error in errors.items():
        if not error <= _GRADIENT_TOLERANCE:
            yield f"the gradient of {name} differs from differences by {error:.1e} of its largest"


def _draw(shape: tuple[int, ...], *, seed: int = 0) -> Array:
    numbers: npt.NDArray[Any] = np.random.default_rng(seed).normal(size=shape)
    return numbers


def _protect(x: Array) -> None:
    if isinstance(x, np.ndarray):
        x.flags.writeable = False  # so that writing to it raises where it happens


def _kept(what: str, x: Array, dtype: str, spec: str) -> Iterator[str]:
    place = open_device(spec)
    if not place.holds(x):
        yield f"{what} has left its device or library: it is a {type(x).__name__}"
    elif x.dtype != getattr(place.xp, dtype):
        yield f"{what} has become {x.dtype}"


def _try(what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except Exception as error:
        raise LayerError(f"{what} raises {_words(error)}") from error


def _words(error: Exception) -> str:
    if isinstance(error, NnxpError):
        return str(error)
    return f"{type(error).__name__}: {error}"
