"""Data format: how a network's training data were scaled, and what its outputs mean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array, device_of
from nnxp.checks import warn
from nnxp.devices import Device
from nnxp.errors import InputError
from nnxp.frames import from_frame, host_array, require_finite, require_numbers

Label = str | int | float | bool

IMAGE_SCALE = 255.0
"""What uint8 inputs are divided by, if nothing else is said."""

# How many times larger or smaller than in training inputs must be for a warning: pixels differ by
# 16 or 255 if one of both was not scaled, and numbers of a table vary more downwards.
_FAR_ABOVE, _FAR_BELOW = 10, 100
_MANY = 50
_SCALED = 16  # the largest number of inputs that were scaled; beyond, tables may have outliers
_SMALL_IMAGE = 16  # the largest pixel, up to which uint8 is hardly an image's


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
    largest : float
        Their largest magnitude after the division; 0 if unknown, as of batches from an iterable.
    classes : tuple or None
        The label of each class, in the order of the outputs; None if labels are class numbers.
    probabilities : str or None
        ``"softmax"`` or ``"sigmoid"``, which turns scores into probabilities; None if the outputs
        are no classes.
    """

    shape: tuple[int, ...]
    images: bool
    scale: float | None
    largest: float
    classes: tuple[Label, ...] | None = None
    probabilities: str | None = None

    def scale_of(self, x: Array) -> float | None:
        """Return what inputs of this dtype are divided by, without more known of them.

        After a training on uint8, that is what uint8 was divided by, for all integers; and
        floating-point numbers are taken as divided already. After another training, everything is
        divided by its scale. If it had none, uint8 is divided by 255.
        """
        if self.images:
            return None if is_floating(x) else self.scale
        return IMAGE_SCALE if self.scale is None and is_image(x) else self.scale

    def warn_of_size(self, largest: float, examples: int, what: str) -> None:
        """Warn of inputs that were hardly scaled as the training data were.

        Parameters
        ----------
        largest : float
            Their largest magnitude after the division.
        examples : int
            How many they are: a few may all be small.
        what : str
            The inputs, for the warning.
        """
        small = examples >= _MANY and 0 < largest * _FAR_BELOW < self.largest
        if small or (0 < self.largest <= _SCALED and largest > _FAR_ABOVE * self.largest):
            divided = "" if self.scale is None else f" after the division by {self.scale:g}"
            warn(
                f"{what} have numbers up to {largest:.4g}, and the training data had numbers up to "
                f"{self.largest:.4g}{divided}; scale both in the same way"
            )

    def warn_of_images(self, largest: float, what: str) -> None:
        """Warn of uint8 that is divided by 255, up to `largest` before, if that is hardly meant.

        The training data were not divided then, and were not of uint8.
        """
        if self.images or self.scale is not None or (self.largest <= 1 and largest > _SMALL_IMAGE):
            return
        warn(
            f"{what} of uint8 are divided by 255 as images are, but the training data were not "
            'divided; give inputs / 255, or inputs.astype("float32") to have them as they are'
        )

    def labels_of(self, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the predicted label of each row of scores; see `Sequential.predict_classes`."""
        if self.classes is not None:  # layers may have been replaced since the training
            require_outputs(self.classes, scores.shape[1:])
        numbers: npt.NDArray[Any]
        if self.probabilities == "softmax":
            numbers = np.argmax(scores, axis=1)
        else:
            numbers = (scores > 0).astype("int64")
            numbers = numbers[:, 0] if numbers.shape[1] == 1 else numbers
        if self.classes is None:
            return numbers
        mixed = len({isinstance(x, str) for x in self.classes}) > 1  # text would be made of numbers
        labels: npt.NDArray[Any] = np.array(self.classes, object if mixed else None)[numbers]
        return labels


def require_outputs(classes: tuple[Label, ...], outputs: tuple[int, ...]) -> None:
    """Raise an `InputError` unless there is an output for each of these classes."""
    expected = 2 if outputs == (1,) else outputs[0]  # a single logit tells two classes apart
    if len(classes) != expected:
        raise InputError(
            f"the network tells {expected} classes apart, and the labels are {len(classes)}: "
            f"{classes!r:.60}; give the network {len(classes)} outputs"
        )


def require_examples(x: Any, known: DataFormat | None) -> Any:
    """Return inputs of `Sequential.predict` as an array with a row for each example."""
    x = from_frame(x, "inputs")
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack__"):
        x = host_array(x, "inputs", "predict")
        require_numbers(x, "inputs", "predict")
    if known is not None and tuple(x.shape) == known.shape:
        raise InputError(
            f"predict expects examples of shape (batch, {', '.join(map(str, x.shape))}), got "
            f"one of shape {tuple(x.shape)}; give x[None]"
        )
    if x.ndim == 0 or x.shape[0] == 0:
        raise InputError(f"predict expects examples, got inputs of shape {tuple(x.shape)}")
    return x


def prepared_examples(
    x: Array, size: int, known: DataFormat | None, device: Device, dtype: str
) -> Iterator[Array]:
    """Yield inputs of `Sequential.predict` in batches, as the layers take them.

    Raises
    ------
    InputError
        If a number is not finite.
    DeviceError
        If `x` is on another device.
    """
    if not isinstance(x, np.ndarray):
        device.require(x, "the network")
    images = is_image(x)
    untrained = IMAGE_SCALE if images else None
    scale = untrained if known is None else known.scale_of(x)
    as_trained = images and (known is None or known.images)  # finite, and of the same size
    largest, count = 0.0, x.shape[0]
    for start in range(0, count, size):
        part = prepare_inputs(x[start : min(start + size, count), ...], scale, device, dtype)
        if not as_trained and device_of(part) is not None:  # JAX is tracing
            largest = max(largest, _largest(part, device, start))
        yield part
    if known is None or as_trained:
        return
    if images:
        known.warn_of_images(largest * (scale or 1), "inputs")
    known.warn_of_size(largest, count, f"inputs of {x.dtype}")


def _largest(part: Array, device: Device, first: int) -> float:
    """Return the largest magnitude of prepared inputs, the first of which has this number."""
    if device.is_host:
        return require_finite(device.to_host(part), "inputs", first=first)
    largest = float(device.xp.max(device.xp.abs(part)))  # nan if a number is
    if not math.isfinite(largest):
        require_finite(device.to_host(part), "inputs", first=first)
    return largest


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


def is_floating(x: Array) -> bool:
    """Return whether an array of any library has a floating-point dtype."""
    return "float" in str(x.dtype)
