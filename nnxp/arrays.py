"""Arrays: what every layer, loss, metric and optimizer may assume of one."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace

from nnxp.errors import DeviceError, InputError

Array: TypeAlias = Any
"""Any array of the Array API standard; the standard publishes no static type yet."""

Namespace: TypeAlias = Any
"""The functions that come with an array: ``array_namespace(x)``."""


def device_of(x: object) -> Any:
    """Return the device of an array; None for a number, or a JAX array that is being traced."""
    return getattr(x, "device", None)


def describe(x: object) -> str:
    """Return library, shape, dtype and device of an array in words."""
    if not hasattr(x, "__dlpack__"):
        return f"a {type(x).__name__}"
    library = type(x).__module__.partition(".")[0]
    shape, dtype = tuple(getattr(x, "shape", ())), getattr(x, "dtype", "")
    return f"an array of {library} on {device_of(x)}, {shape} {dtype}"


def on_different_devices(device: Any, other: Any) -> bool:
    """Tell whether two devices are known and different."""
    return device is not None and other is not None and bool(device != other)


def is_numpy_subclass(x: object) -> bool:
    """Tell whether `x` is a matrix or masked array, whose operators mean something else."""
    return isinstance(x, np.ndarray) and type(x) not in (np.ndarray, np.memmap)


def array_library(x: Array, owner: object) -> Namespace:
    """Return the namespace of `x`; anything that is no array is refused in `owner`'s name."""
    if is_numpy_subclass(x):
        raise InputError(
            f"{owner} expects a plain array, got {type(x).__name__}; convert with numpy.asarray(x)"
        )
    if isinstance(x, (np.ndarray, np.generic)):
        return np  # it speaks the standard; its wrapper takes longer to import than NumPy itself
    try:
        return array_namespace(x)
    except TypeError:
        raise InputError(
            f"{owner} expects an array, got {type(x).__name__}; make one with device.asarray(x)"
        ) from None


def floating_namespace(x: Array, owner: object) -> Namespace:
    """Return the namespace of `x`, which must be a floating-point array."""
    if type(x) is np.ndarray and x.dtype.kind == "f":  # asking takes longer than computing
        return np
    xp = array_library(x, owner)
    if not xp.isdtype(x.dtype, "real floating"):
        raise InputError(
            f"{owner} expects floating-point arrays, got {x.dtype}; "
            'convert with device.asarray(x, dtype="float32")'
        )
    return xp


def scores_namespace(scores: Array, labels: Array, owner: object) -> Namespace:
    """Return the namespace of floating-point `scores`, with `labels` on their device."""
    xp = floating_namespace(scores, owner)
    if array_library(labels, owner) is not xp or on_different_devices(
        device_of(scores), device_of(labels)
    ):
        raise DeviceError(
            f"{owner} expects scores and labels on one device, got {describe(scores)}; and "
            f"{describe(labels)}; carry the labels over with device.asarray(labels)"
        )
    return xp
