"""Testing: checks for your own layers, which all layers of nnxp pass.

The checks need array-api-strict, whose simulated devices stand in for a GPU: a layer that calls a
specific library, mixes devices or leaves the Array API standard fails there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array
from nnxp.checks import explained, optional_import
from nnxp.devices import DTYPES, open_device
from nnxp.errors import CallOrderError, LayerError, NnxpError
from nnxp.gradients import check_gradients
from nnxp.layers import Layer
from nnxp.losses import MeanSquaredError
from nnxp.network import Sequential

__all__ = ["check_layer"]

# For a loss near 1, rounding causes an error of about 2e-16 / 8e-6 = 3e-11 in a finite difference
# (see nnxp.gradients), which is 3e-6 of a gradient of 1e-5. A wrong backward is off by 1 % or more.
_GRADIENT_TOLERANCE = 1e-5


@explained("nnxp.testing.check_layer(layer, (5, 4)) with a layer such as nnxp.ReLU()")
def check_layer(
    layer: Layer, input_shape: tuple[int, ...], *, training_differs: bool = False
) -> None:
    """Check that a layer is correct and portable.

    Parameters
    ----------
    layer : Layer
        A layer on any device; a copy of it is checked.
    input_shape : tuple of int
        The shape of a batch of inputs, such as ``(5, 4)``. Choose one that differs from the shape
        of the outputs.
    training_differs : bool, optional
        Whether outputs may differ between training and inference, as with dropout.

    Raises
    ------
    MissingExtraError
        If array-api-strict is not installed.
    LayerError
        If a check fails; the message has a sentence for each failure. These are the checks:

        - `forward` returns the shape that `output_shape` returns, and the same values in training
          and inference; it does not change its inputs;
        - `backward` returns a gradient of the inputs' shape and stores one for each parameter; it
          does not change `dy`, and raises `CallOrderError` without a training forward and when
          called twice;
        - float32 stays float32 and float64 stays float64;
        - arrays stay on their device, also with array-api-strict, which enforces the standard;
        - all gradients agree with finite differences.

    Examples
    --------
    The swish function ``y = x * sigmoid(x)`` as a layer:

    >>> from array_api_compat import array_namespace
    >>> import nnxp
    >>> class Swish(nnxp.Layer):
    ...     def forward(self, x, training=False):
    ...         xp = array_namespace(x)
    ...         s = (1 + xp.tanh(x / 2)) / 2  # the sigmoid; tanh cannot overflow
    ...         y = x * s
    ...         if training:
    ...             self.save_for_backward(y, (s, y))
    ...         return y
    ...     def backward(self, dy):
    ...         s, y = self.saved(dy)
    ...         return dy * (s + y * (1 - s))
    >>> nnxp.testing.check_layer(Swish(), (5, 4))
    """
    optional_import("array_api_strict", "testing")
    failures: list[str] = []
    for check in (_check_passes, _check_order, _check_gradients):
        before = len(failures)
        try:
            failures.extend(check(layer, input_shape, training_differs))
        except LayerError as error:
            failures.append(str(error))
        except Exception as error:  # noqa: BLE001 (a layer may raise anything)
            if len(failures) == before:  # otherwise an earlier failure causes this error
                failures.append(_describe_error(error))
    if failures:
        raise LayerError(f"{layer!r}: " + "; ".join(dict.fromkeys(failures)))


def _check_passes(layer: Layer, shape: tuple[int, ...], training_differs: bool) -> Iterator[str]:
    """Check the shapes, dtypes and devices of both passes, and that arguments stay unchanged."""
    for spec in ("cpu", "strict:device1"):
        device = open_device(spec)
        for dtype in DTYPES:
            where = f"on {spec} in {dtype}"
            copied = _try(f"to({spec!r})", layer.to, device, dtype=dtype)
            x = device.asarray(_draw(shape), dtype=dtype)
            before = device.to_host(x).copy()
            _make_read_only(x)
            y = _try(f"forward {where}", copied.forward, x, training=True)
            yield from _check_array(f"forward's output {where}", y, dtype, spec)
            for name, state in copied.state.items():
                integer = "int" in str(layer.state[name].dtype)  # it keeps its dtype
                yield from _check_array(
                    f"state {name} {where}", state, "int32" if integer else dtype, spec
                )
            states = {name: device.to_host(state).copy() for name, state in copied.state.items()}
            inferred = _try(f"forward {where}", copied.forward, x)
            if any((device.to_host(copied.state[n]) != state).any() for n, state in states.items()):
                yield f"forward changes the state in inference {where}"
            if not training_differs and not np.array_equal(
                device.to_host(inferred), device.to_host(y), equal_nan=True
            ):
                yield f"outputs in training and in inference differ {where}"
            expected = copied.output_shape(tuple(shape[1:]))
            if tuple(y.shape) != (shape[0], *(expected or ())):
                yield (
                    f"output_shape returns {expected} for an example, but forward returns "
                    f"{tuple(y.shape)} for the batch"
                )
            dy = device.asarray(_draw(tuple(y.shape), seed=1), dtype=dtype)
            dy_before = device.to_host(dy).copy()
            _make_read_only(dy)
            dx = _try(f"backward {where}", copied.backward, dy)
            yield from _check_array(f"backward's gradient {where}", dx, dtype, spec)
            if tuple(dx.shape) != tuple(shape):
                yield f"backward returns shape {tuple(dx.shape)} for inputs of {tuple(shape)}"
            if copied.grads.keys() != copied.params.keys():
                yield (
                    f"backward fills grads {sorted(copied.grads)} for params "
                    f"{sorted(copied.params)}"
                )
            for name, gradient in copied.grads.items():
                yield from _check_array(f"the gradient of {name} {where}", gradient, dtype, spec)
            if not np.array_equal(device.to_host(x), before):
                yield f"the inputs are changed {where}"
            if not np.array_equal(device.to_host(dy), dy_before):
                yield f"backward changes the gradient dy {where}"


def _check_order(layer: Layer, shape: tuple[int, ...], _: bool) -> Iterator[str]:
    """Check that each backward needs a training forward."""
    copied = layer.to("cpu", dtype="float64")
    x = _draw(shape)
    dy = np.ones_like(_try("forward", copied.forward, x))
    for call, repeated in [
        ("backward without a training forward", False),
        ("a second backward", True),
    ]:
        if repeated:
            _try("forward", copied.forward, x, training=True)
            _try("backward", copied.backward, dy)
        try:
            copied.backward(dy)
        except CallOrderError:
            continue
        except Exception as error:  # noqa: BLE001 (a layer may raise anything)
            yield f"{call} raises {_describe_error(error)}, not CallOrderError"
        else:
            yield f"{call} does not raise CallOrderError: use save_for_backward and saved"


def _check_gradients(layer: Layer, shape: tuple[int, ...], _: bool) -> Iterator[str]:
    """Compare all gradients with finite differences."""
    copied = layer.to("cpu", dtype="float64")
    x = _draw(shape)
    targets = _draw(_try("forward", copied.forward, x).shape, seed=1)
    errors = _try(
        "the gradient check",
        check_gradients,
        Sequential([copied]),
        MeanSquaredError(),
        x,
        targets,
    )
    for name, error in errors.items():
        if not error <= _GRADIENT_TOLERANCE:
            yield (
                f"the gradient of {name} differs from the numerical gradient by {error:.1e} of the "
                "largest entry"
            )


def _draw(shape: tuple[int, ...], *, seed: int = 0) -> Array:
    numbers: npt.NDArray[Any] = np.random.default_rng(seed).normal(size=shape)
    return numbers


def _make_read_only(x: Any) -> None:
    if isinstance(x, np.ndarray):
        x.flags.writeable = False  # a change then raises an error


def _check_array(what: str, x: Array, dtype: str, spec: str) -> Iterator[str]:
    device = open_device(spec)
    if not device.holds(x):
        yield f"{what} is on another device or of another library: it is a {type(x).__name__}"
    elif x.dtype != getattr(device.xp, dtype):
        yield f"{what} has dtype {x.dtype}"


def _try(what: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except Exception as error:
        raise LayerError(f"{what} raises {_describe_error(error)}") from error


def _describe_error(error: Exception) -> str:
    if isinstance(error, NnxpError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def __dir__() -> list[str]:
    return __all__
