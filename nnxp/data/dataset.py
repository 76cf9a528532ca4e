"""Dataset: inputs and their labels, as NumPy arrays on the host."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import is_numpy_subclass
from nnxp.checks import require_count
from nnxp.errors import InputError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled examples, as NumPy arrays.

    Parameters
    ----------
    inputs : (examples, …) array
        Images as uint8, which are stored as they are and divided by 255 batch by batch; or
        floating-point numbers, which are not changed.
    labels : (examples,) or (examples, outputs) array
        Class numbers or one-hot rows as integers, or targets as floating-point numbers.

    Raises
    ------
    InputError
        If an array is not a plain NumPy array or has another shape or dtype, there are no examples,
        the lengths differ, a number is not finite, or an integer label needs more than 32 bits.
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[Any]

    def __post_init__(self) -> None:
        for name in ("inputs", "labels"):
            values = getattr(self, name)
            if not isinstance(values, np.ndarray) or is_numpy_subclass(values):
                raise InputError(
                    f"Dataset expects {name} as a plain NumPy array, got "
                    f"{type(values).__name__}; convert with numpy.asarray"
                )
        if self.inputs.ndim < 2:
            raise InputError(
                f"Dataset expects inputs of shape (examples, features), got {self.inputs.shape}"
            )
        if self.labels.ndim not in (1, 2):
            raise InputError(
                "Dataset expects labels of shape (examples,) or (examples, outputs), got "
                f"{self.labels.shape}"
            )
        if len(self.inputs) != len(self.labels):
            raise InputError(
                f"Dataset expects a label for each example, got {len(self.inputs)} inputs and "
                f"{len(self.labels)} labels"
            )
        if self.inputs.size == 0:
            raise InputError(f"Dataset expects examples, got inputs of shape {self.inputs.shape}")
        if self.inputs.dtype != np.uint8 and self.inputs.dtype.kind != "f":
            raise InputError(
                "Dataset expects inputs as uint8 images (0 to 255) or floating-point numbers, got "
                f"{self.inputs.dtype}; convert with inputs.astype"
            )
        if self.labels.dtype.kind not in "biuf":
            raise InputError(f"Dataset expects labels as numbers, got {self.labels.dtype}")
        if self.labels.dtype.kind in "iu" and not (
            self.labels.min() >= -(2**31) and self.labels.max() < 2**31
        ):
            raise InputError(
                "Dataset expects integer labels of at most 32 bits, got one that needs more; give "
                "targets as floating-point numbers"
            )
        for name in ("inputs", "labels"):
            values = getattr(self, name)
            if values.dtype.kind == "f" and (row := _first_not_finite(values)) is not None:
                raise InputError(
                    f"{name} hold a number that is not finite, first in example {row}; "
                    "drop or repair such examples"
                )

    def __len__(self) -> int:
        return len(self.inputs)

    def __repr__(self) -> str:
        return (
            f"Dataset(inputs={self.inputs.shape} {self.inputs.dtype}, "
            f"labels={self.labels.shape} {self.labels.dtype})"
        )

    def split_off(self, share: float, seed: int) -> tuple[Dataset, Dataset]:
        """Return a training and a validation set, which are drawn at random.

        Parameters
        ----------
        share : float
            Of the validation set, between 0 and 1: of each class, if labels are class numbers.
        seed : int
            The same seed draws the same examples.

        Raises
        ------
        InputError
            If one of both sets would be empty.
        """
        count = len(self)
        if not 0 < share < 1 or not 0 < round(share * count) < count:
            raise InputError(
                "validation must be a data set, or a share between 0 and 1 of the examples that "
                f"leaves some of the {count} for both sets, got {share!r}"
            )
        order = np.random.default_rng(seed).permutation(count)
        if self.labels.ndim == 1 and self.labels.dtype.kind != "f":
            order = order[np.argsort(self.labels[order], kind="stable")]  # class by class
        # The positions at which the sum of shares reaches the next whole number.
        steps = np.floor((np.arange(count) + 1) * share + 0.5)
        chosen = np.diff(steps, prepend=0.0) > 0
        test = np.zeros(count, dtype=bool)
        test[order[chosen]] = True
        return (
            Dataset(self.inputs[~test], self.labels[~test]),
            Dataset(self.inputs[test], self.labels[test]),
        )

    def split(self, every: int) -> tuple[Dataset, Dataset]:
        """Return a training and a test set; one example of `every` goes to the test set.

        Examples are counted class by class, so that each class has the same share in both sets.
        Labels of two axes are counted in the data set's order.

        Raises
        ------
        InputError
            If `every` is less than 2 or more than the number of examples.
        """
        if require_count("every", every) < 2 or every > len(self):
            raise InputError(f"every must be from 2 to {len(self)} (the examples), got {every}")
        classes = self.labels if self.labels.ndim == 1 else np.zeros(len(self))
        test = np.zeros(len(self), dtype=bool)
        test[np.argsort(classes, kind="stable")[every - 1 :: every]] = True
        return (
            Dataset(self.inputs[~test], self.labels[~test]),
            Dataset(self.inputs[test], self.labels[test]),
        )


@dataclass(frozen=True)
class Split:
    """How validation examples were taken from a data set; see `Dataset.split_off`.

    Attributes
    ----------
    share : float
    examples : int
        The number of all examples.
    seed : int
    """

    share: float
    examples: int
    seed: int


def one_hot(labels: npt.NDArray[Any], classes: int) -> npt.NDArray[np.uint8]:
    """Return class numbers as rows with a single 1.

    Parameters
    ----------
    labels : (examples,) integer array
        Class numbers from 0 to `classes` - 1.
    classes : int
        The number of classes.

    Returns
    -------
    (examples, classes) uint8 array

    Raises
    ------
    InputError
        If labels have another shape or dtype, or a label is not one of the class numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp.data import one_hot
    >>> one_hot(np.array([2, 0]), 3)
    array([[0, 0, 1],
           [1, 0, 0]], dtype=uint8)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(
            f"one_hot expects integer class numbers of shape (examples,), got {labels.dtype} "
            f"of shape {labels.shape}"
        )
    if labels.size and (labels.min() < 0 or labels.max() >= require_count("classes", classes)):
        raise InputError(
            f"one_hot expects labels from 0 to {classes - 1}, got {labels.min()} to {labels.max()}"
        )
    rows = np.zeros((len(labels), classes), np.uint8)
    rows[np.arange(len(labels)), labels] = 1
    return rows


_CHECKED = 1 << 20  # numbers that are checked at a time, to take little memory


def _first_not_finite(values: npt.NDArray[Any]) -> int | None:
    """Return the first row with a number that is not finite; None if there is none."""
    size = max(1, _CHECKED // math.prod(values.shape[1:]))
    for start in range(0, len(values), size):
        finite = np.isfinite(values[start : start + size])
        if not finite.all():
            return start + int(np.argwhere(~finite)[0, 0])
    return None
