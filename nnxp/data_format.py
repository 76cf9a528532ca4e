"""Data format: scaling and columns of the training data, and the meaning of the outputs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array, device_of
from nnxp.checks import warn
from nnxp.devices import Device
from nnxp.errors import InputError
from nnxp.frames import (
    Columns,
    columns_of,
    from_frame,
    host_array,
    require_finite,
    require_numbers,
)

Label = str | int | float | bool

IMAGE_SCALE = 255.0
"""The default divisor of uint8 inputs."""

# A warning is issued if the geometric mean of the examples' largest magnitudes differs from that of
# the training data by more than a factor of 10 plus 5 standard errors: if only one of the two was
# scaled, pixels differ by a factor of 16 or 255. The largest number of all examples would depend on
# outliers.
# Simulation: 1 and 10 columns, 20 to 1,000 training examples, 1 to 1,000 examples to predict, 1,000
# runs each. Distributions: log-normal (sigma 0.5, 1, 2), normal, Cauchy, Pareto (exponent 0.5, 1,
# 2), rows of log-normal scale, and an outlier of 1e6 in training. False warnings: none, except for
# 0.3 % of single examples of the Pareto distributions. If 50 or more examples are multiplied or
# divided by 255, the warning is issued in 95 % of the runs; with 20 training examples and the
# outlier in 79 %.
_FAR, _ERRORS = 10, 5
FEW = 20  # the smallest number of examples from which a standard deviation is estimated
_MANY = 50  # with this many examples, it is unlikely that all are small at random
_EXAMPLES, _NUMBERS = 256, 1 << 20  # about how much is inspected, but at least `_MANY` examples
_SHOWN = 100  # characters of a list of names in an error
_SMALL_IMAGE = 16  # uint8 inputs up to this number are probably not images


@dataclass(frozen=True)
class DataFormat:
    """The format of the data that a network was trained on, which predictions must have, too.

    Attributes
    ----------
    shape : tuple of int
        The shape of one example's inputs.
    images : bool
        Whether the inputs were uint8.
    scale : float or None
        The divisor of the inputs; None if they are not divided.
    largest : float
        The largest magnitude of the divided inputs; 0 if unknown, for batches from an iterable.
    classes : tuple or None
        The label of each class, in the order of the outputs; None if labels are class numbers.
    probabilities : str or None
        The function from scores to probabilities, ``"softmax"`` or ``"sigmoid"``; None if the loss
        is not for classes.
    size : tuple of float or None
        Mean and standard deviation of the natural logarithm of the examples' largest magnitudes
        after the division, without those of 0; None if unknown.
    columns : tuple or None
        The names of the inputs' columns, if they were a DataFrame; see `Dataset`.
    """

    shape: tuple[int, ...]
    images: bool
    scale: float | None
    largest: float
    classes: tuple[Label, ...] | None = None
    probabilities: str | None = None
    size: tuple[float, float] | None = None
    columns: Columns | None = None

    def scale_of(self, x: Array) -> float | None:
        """Return the divisor of inputs of this dtype; None if they are not divided.

        If the training data were uint8, integers are divided by their scale, and floating-point
        inputs are assumed to be divided already. Otherwise all inputs are divided by the scale of
        the training data; if there was none, uint8 inputs are divided by 255.
        """
        if self.images:
            return None if is_floating(x) else self.scale
        return IMAGE_SCALE if self.scale is None and is_image(x) else self.scale

    def warn_of_size(self, sizes: npt.NDArray[np.float64], what: str) -> None:
        """Warn if inputs were probably not scaled like the training data.

        Parameters
        ----------
        sizes : (sizes,) array
            The sizes of the divided inputs; see `sizes_of`.
        what : str
            The name of the inputs in the warning.
        """
        if self.size is None or not len(sizes):
            return
        (mean, deviation), own = self.size, float(sizes.mean())
        limit = math.log(_FAR) + _ERRORS * deviation / math.sqrt(len(sizes))
        if own - mean > limit or (len(sizes) >= _MANY and mean - own > limit):
            divided = "" if self.scale is None else f" after the division by {self.scale:g}"
            warn(
                f"an example of {what} has numbers up to about {_exp(own)}, and one of the "
                f"training data up to about {_exp(mean)}{divided}; scale both in the same way"
            )

    def warn_of_images(self, largest: float, what: str) -> None:
        """Warn if uint8 inputs are divided by 255 although the training data were not.

        `largest` is the largest number before the division. There is no warning if the training
        data were uint8, or if both sets may be images.
        """
        if self.images or self.scale is not None or (self.largest <= 1 and largest > _SMALL_IMAGE):
            return
        warn(
            f"{what} of uint8 are divided by 255 as images are, but the training data were not "
            'divided; give inputs / 255, or inputs.astype("float32") to have them as they are'
        )

    def labels_of(self, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the predicted label of each row of scores; see `Sequential.predict_classes`."""
        if self.classes is not None:  # layers may have been replaced after training
            require_outputs(self.classes, scores.shape[1:])
        numbers: npt.NDArray[Any]
        if self.probabilities == "softmax":
            numbers = np.argmax(scores, axis=1)
        else:
            numbers = (scores > 0).astype("int64")
            numbers = numbers[:, 0] if numbers.shape[1] == 1 else numbers
        if self.classes is None:
            return numbers
        mixed = len({isinstance(x, str) for x in self.classes}) > 1  # NumPy would make all text
        labels: npt.NDArray[Any] = np.array(self.classes, object if mixed else None)[numbers]
        return labels


def read_data_format(described: Mapping[str, Any] | None) -> DataFormat | None:
    """Return the data format that a file describes as JSON; check its values.

    Parameters
    ----------
    described : mapping or None
        ``dataclasses.asdict`` of a `DataFormat`, read from JSON.

    Raises
    ------
    InputError
        If a value is not valid.
    """
    if described is None:
        return None
    scale, classes, kind = (described[name] for name in ("scale", "classes", "probabilities"))
    shape = tuple(described["shape"])
    if not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise InputError(f"its inputs have the shape {shape!r:.40}")
    if type(described["images"]) is not bool or kind not in (None, "softmax", "sigmoid"):
        raise InputError("its data format is damaged")
    if scale is not None and not (type(scale) in (int, float) and 0 < scale <= sys.float_info.max):
        raise InputError(f"its inputs are divided by {scale!r:.40}")
    if classes is not None:
        if not isinstance(classes, list) or not all(
            isinstance(x, (str, int, float)) for x in classes
        ):
            raise InputError("its classes are not a list of labels")
        classes = tuple(classes)
        if len(set(classes)) < len(classes):
            raise InputError("its classes are not different labels")
    largest = described["largest"]
    if type(largest) not in (int, float) or not 0 <= largest <= sys.float_info.max:
        raise InputError("its data format is damaged")
    size = described["size"]
    if size is not None:
        mean, deviation = size  # of logarithms
        if not type(mean) is type(deviation) is float or not (
            abs(mean) < 1000 and 0 <= deviation < 1000
        ):
            raise InputError("its data format is damaged")
        size = mean, deviation
    columns = described["columns"]
    if columns is not None:
        if not isinstance(columns, list) or not all(type(x) in (str, int) for x in columns):
            raise InputError("its columns are not a list of names")
        columns = tuple(columns)
        if len(set(columns)) < len(columns):
            raise InputError("its columns are not different names")
    return DataFormat(
        shape, described["images"], scale, float(largest), classes, kind, size, columns
    )


def require_outputs(classes: tuple[Label, ...], outputs: tuple[int, ...]) -> None:
    """Raise an `InputError` unless there is an output for each of these classes."""
    expected = 2 if outputs == (1,) else outputs[0]  # a single logit distinguishes two classes
    if len(classes) != expected:
        raise InputError(
            f"the network has outputs for {expected} classes, and there are {len(classes)} labels: "
            f"{classes!r:.60}; give the network {len(classes)} outputs"
        )


def require_columns(trained: Columns | None, own: Columns | None, what: str, kept: str) -> None:
    """Raise an `InputError` if a DataFrame's columns are not those of the training, in order.

    Integer names are treated as positions of a table without a header: another order is an error,
    but other numbers are not.

    Parameters
    ----------
    trained, own : tuple or None
        The names in training, and those of the DataFrame; None for other arrays.
    what : str
        The name of the data in the error.
    kept : str
        Code for `trained`, which the error prints if there are many names.
    """
    if trained is None or own is None or own == trained:
        return
    missing = [x for x in trained if x not in set(own)]
    unknown = [x for x in own if x not in set(trained)]
    named = all(isinstance(x, str) for x in (*trained, *own))
    if (missing or unknown) and not named:
        return
    names = repr(list(trained))
    remedy = f"X[{names if len(names) <= _SHOWN else f'list({kept})'}]"
    if missing or unknown:
        lists = (("missing", missing), ("unknown", unknown))
        found = ", ".join(f"{kind} {_shown(found)}" for kind, found in lists if found)
        fault = f"must have the columns of the training: {found}"
    else:
        fault = "have the columns of the training in another order"
    raise InputError(f"{what} {fault}" + ("" if missing else f"; give {remedy}"))


def _exp(logarithm: float) -> str:
    return f"{math.exp(min(logarithm, 709)):.3g}"  # exp of a larger number would overflow


def _shown(names: list[str | int]) -> str:
    """Return a list of names, shortened if it is long."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def sizes_of(
    x: Array, scale: float | None, to_host: Callable[[Array], Any] = np.asarray
) -> npt.NDArray[np.float64]:
    """Return the logarithm of the largest magnitude of evenly spaced examples, except zeros.

    Parameters
    ----------
    x : (examples, …) array
        Finite numbers.
    scale : float or None
        The divisor of the numbers.
    to_host : callable, optional
        Converts an array of another library to a NumPy array.

    Returns
    -------
    (sizes,) array
    """
    count = x.shape[0]
    step = max(1, count // _EXAMPLES, min(math.prod(x.shape) // _NUMBERS, count // _MANY))
    rows = to_host(x[::step, ...])
    axes = tuple(range(1, rows.ndim))  # max and min, since abs would allocate a large array
    ends = rows.max(axis=axes).astype("float64"), -rows.min(axis=axes).astype("float64")
    largest = np.maximum(*ends) / (scale or 1)
    sizes: npt.NDArray[np.float64] = np.log(largest[largest > 0])
    return sizes


def require_examples(x: Any, known: DataFormat | None) -> Any:
    """Return inputs of `Sequential.predict` as an array with a row for each example."""
    if known is not None:
        kept = "network.data_format.columns"
        require_columns(known.columns, columns_of(x), "the inputs", kept)
    given = x
    x = from_frame(x, "inputs")
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack__"):
        x = host_array(x, "inputs", "predict")
        require_numbers(x, "inputs", "predict")
    if known is not None and tuple(x.shape) == known.shape:
        raise InputError(
            f"predict expects examples of shape (batch, {', '.join(map(str, x.shape))}), got "
            f"one of shape {tuple(x.shape)}; give {_as_row(given)}"
        )
    if known is not None and known.shape == (1,) and x.ndim == 1 and x.shape[0] > 0:
        raise InputError(
            f"predict expects examples of shape (batch, 1), got {tuple(x.shape)}; give "
            + as_column(given)
        )
    if x.ndim == 0 or 0 in x.shape:
        raise InputError(f"predict expects examples, got inputs of shape {tuple(x.shape)}")
    return x


def _as_row(x: Any) -> str:
    """Return code that converts one example, an array or a Series, to a table of one row."""
    if hasattr(x, "iloc"):
        return "x.to_frame().T"  # with the names of its columns
    return "x[None]" if hasattr(x, "__dlpack__") else "x.to_numpy()[None]"


def as_column(x: Any) -> str:
    """Return code that converts an array or a Series of one feature to a table of one column."""
    return "x.to_frame()" if hasattr(x, "to_frame") else "x[:, None]"


def prepared_examples(
    x: Array, size: int, known: DataFormat | None, device: Device, dtype: str
) -> Iterator[Array]:
    """Yield inputs of `Sequential.predict` in batches, scaled and on the device.

    Raises
    ------
    InputError
        If a number is not finite.
    DeviceError
        If `x` is on another device.
    """
    if not isinstance(x, np.ndarray):
        device.require(x, "the network")
    scale, checked = scale_for(x, known), needs_check(x, known)
    largest, count = 0.0, x.shape[0]
    for start in range(0, count, size):
        part = prepare_inputs(x[start : min(start + size, count), ...], scale, device, dtype)
        if checked and device_of(part) is not None:  # JAX is tracing
            largest = max(largest, _largest(part, device, start))
        yield part
    if checked and known is not None:
        check_magnitude(x, known, largest, device)


def scale_for(x: Array, known: DataFormat | None) -> float | None:
    """Return the divisor of inputs of this dtype, also for a network that was not trained."""
    if known is None:
        return IMAGE_SCALE if is_image(x) else None
    return known.scale_of(x)


def needs_check(x: Array, known: DataFormat | None) -> bool:
    """Return whether the values of inputs are checked: all but images as in training."""
    return not is_image(x) or (known is not None and not known.images)


def check_magnitude(x: Array, known: DataFormat, largest: float, device: Device) -> None:
    """Warn if inputs were probably not scaled like the training data.

    Parameters
    ----------
    x : array
    known : DataFormat
    largest : float
        The largest magnitude of the divided inputs.
    device : Device
        That of the network.
    """
    scale, images = known.scale_of(x), is_image(x)
    if images:
        known.warn_of_images(largest * (scale or 1), "inputs")
    if known.size is None:
        return
    mean, _ = known.size
    if x.shape[0] < _MANY and (largest == 0 or math.log(largest) <= mean + math.log(_FAR)):
        return  # as `warn_of_size` would, at once
    is_device_array = not isinstance(x, np.ndarray)
    if device_of(x) is not None or not is_device_array:
        to_host = device.to_host if is_device_array else np.asarray
        dtype = str(x.dtype).rpartition(".")[2]
        known.warn_of_size(sizes_of(x, scale, to_host), f"inputs of {dtype}")


def _largest(part: Array, device: Device, first: int) -> float:
    """Return the largest magnitude of prepared inputs; `first` is the index of the first one."""
    if isinstance(part, np.ndarray):
        return require_finite(part, "inputs", first=first)
    largest = float(device.xp.max(device.xp.abs(part)))  # nan if a number is nan
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
    is_ready = device.is_host and type(x) is np.ndarray and x.dtype == target
    if not is_ready and (device.is_host or not device.holds(x)):
        x = device.asarray(x, dtype=stored_dtype(x, dtype))
    if x.dtype != target:
        x = xp.astype(x, target)
        if scale is not None:
            x *= 1 / scale  # faster than a division
        return x
    return x if scale is None else x * (1 / scale)


def stored_dtype(x: Array, dtype: str) -> str:
    """Return the dtype of host inputs on a device: images stay uint8, which needs less memory."""
    return "uint8" if is_image(x) else dtype


def said_scale(scale: float | None) -> str:
    """Return the description of inputs with this scale, for an error."""
    return "not divided" if scale is None else f"divided by {scale:g}"


def is_image(x: Array) -> bool:
    """Return whether an array of any library has the dtype uint8."""
    if isinstance(x, np.ndarray):  # faster than str(dtype)
        return bool(x.dtype == np.uint8)
    return str(x.dtype).rpartition(".")[2] == "uint8"


def is_floating(x: Array) -> bool:
    """Return whether an array of any library has a floating-point dtype."""
    if isinstance(x, np.ndarray):
        return bool(x.dtype.kind == "f")
    return "float" in str(x.dtype)
