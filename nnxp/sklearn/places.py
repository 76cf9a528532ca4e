"""Places: arrays of other libraries and devices, for the estimators."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from nnxp.arrays import describe
from nnxp.devices import Device, device_holding
from nnxp.errors import InputError
from nnxp.optimizers import Optimizer


def dtypes(place: Device) -> list[Any]:
    """Return the dtypes in which a device computes; arrays of others are converted to the first."""
    names = ["float32"] if place.spec.endswith(":mps") else ["float64", "float32"]
    return [getattr(place.xp, name) for name in names]


def on_host(x: Any) -> Any:
    """Return an array of another library as a NumPy array, and anything else unchanged."""
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack__"):
        return x
    return device_holding(x).to_host(x)


def require_host(x: Any) -> None:
    """Raise an `InputError` if an array of another library cannot be converted to NumPy."""
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack__"):
        return
    try:
        np.asarray(x)
    except Exception as error:
        raise InputError(
            f"scikit-learn takes {describe(x)} only with array API dispatch; set "
            "SCIPY_ARRAY_API=1 in the environment before Python starts, and call "
            "sklearn.set_config(array_api_dispatch=True)"
        ) from error


def moved_optimizer(optimizer: Optimizer, source: Device, target: Device) -> Optimizer:
    """Return a copy of an optimizer, with its state on another device."""
    moved = copy.copy(optimizer)
    moved.state = {
        slot: {name: target.asarray(source.to_host(x)) for name, x in arrays.items()}
        for slot, arrays in optimizer.state.items()
    }
    return moved
