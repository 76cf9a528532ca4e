"""Data format: how a network's training data were scaled, and what its outputs mean."""

from __future__ import annotations

from dataclasses import dataclass

from nnxp.arrays import Array
from nnxp.devices import Device

Label = str | int | float | bool

IMAGE_SCALE = 255.0
"""What uint8 inputs are divided by, if nothing else is said."""


@dataclass(frozen=True)
class DataFormat:
    """How the data were that a network was trained on, so that it predicts with the same.

    Attributes
    ----------
    shape : tuple of int
        Of one example's inputs.
    images : bool
        Whether the inputs were uint8.
    scale : float or None
        What they are divided by.
    classes : tuple or None
        The label of each class, in the order of the outputs; None if labels are class numbers.
    probabilities : str or None
        ``"softmax"`` or ``"sigmoid"``, which turns scores into probabilities; None if the outputs
        are no classes.
    """

    shape: tuple[int, ...]
    images: bool
    scale: float | None
    classes: tuple[Label, ...] | None = None
    probabilities: str | None = None


def prepare_inputs(x: Array, scale: float | None, device: Device, dtype: str) -> Array:
    """Return inputs on `device` in `dtype`, divided by `scale`.

    Parameters
    ----------
    x : array
        On the host or on `device`.
    scale : float or None
    device : Device
    dtype : str
    """
    xp = device.xp
    target = getattr(xp, dtype)
    if device.is_host or not device.holds(x):
        x = device.asarray(x, dtype=stored_dtype(x, dtype))
    if x.dtype != target:
        x = xp.astype(x, target)
        if scale is not None:
            x *= 1 / scale  # faster than a division
        return x
    return x if scale is None else x * (1 / scale)


def stored_dtype(x: Array, dtype: str) -> str:
    """Return the dtype of host inputs on a device: images stay uint8, a quarter of the bytes."""
    return "uint8" if is_image(x) else dtype


def is_image(x: Array) -> bool:
    """Return whether an array of any library is of uint8, which is not compared across them."""
    return str(x.dtype).rpartition(".")[2] == "uint8"
