"""Dataset: inputs and labels, as NumPy arrays on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from nnxp.checks import POSITIVE, Rng, explained, require_count, require_number, require_rng
from nnxp.data_format import IMAGE_SCALE, Label, as_column
from nnxp.errors import InputError
from nnxp.frames import (
    Columns,
    categories_of,
    columns_of,
    from_frame,
    host_array,
    host_weights,
    require_finite,
    require_numbers,
)
from nnxp.ranks import ONE_RANK, Ranks

_SMALL_IMAGE = 16  # uint8 inputs up to this number are probably not images


class Dataset:
    """Labelled examples, as NumPy arrays.

    Parameters
    ----------
    inputs : (examples, …) array or DataFrame
        Images as uint8, or numbers of another dtype. They are stored unchanged, and converted and
        scaled batch by batch. A DataFrame of pandas or polars becomes an array.
    labels : (examples,) or (examples, outputs) array, or Series
        Class numbers or one-hot rows as integers, targets as floating-point numbers, or text, which
        becomes class numbers.
    scale : float, None or "auto", optional
        The divisor of the inputs, a positive number. ``"auto"`` (default) divides uint8 by 255 and
        other dtypes not at all; None never divides.
    classes : sequence, optional
        All labels that occur, in the order of the network's outputs, such as ``[10, 20, 30]`` or
        ``numpy.unique(labels)``. `labels` are then converted to class numbers. By default, text is
        converted in alphabetical order, and a categorical Series of pandas or an Enum of polars in
        the order of its categories.
    weights : (examples,) or (examples, 1) array, Series or DataFrame, optional
        The weight of each example, at least 0, for the means of losses and metrics. An example of
        weight 2 counts twice, except in the statistics of `BatchNorm`, where all examples count
        equally.
    ranks : Ranks, optional
        The processes that make this data set together, such as ``nnxp.distributed.mpi()``. Each
        checks only its share of the inputs, and so reads less of a memory map.

    Attributes
    ----------
    inputs, labels, weights : array
        The arrays. `weights` is None if all examples count equally.
    scale : float or None
        The divisor of the inputs; None if they are not divided.
    classes : tuple or None
        The label of each class number; None if labels were not converted.
    largest : float
        The largest magnitude of the inputs, before the division, when the data set was made.
    columns : tuple or None
        The names of the inputs' columns, if they were a DataFrame whose column names are different
        strings or whole numbers.

    Raises
    ------
    InputError
        If an array is not a NumPy array, DataFrame or Series, or has a wrong shape or dtype; there
        are no examples; the lengths differ; a number is missing or not finite; an integer label
        needs more than 32 bits; or a label is not among `classes`.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp.data import Dataset
    >>> dataset = Dataset(np.zeros((3, 2)), np.array(["dog", "cat", "dog"]))
    >>> dataset.classes, dataset.labels
    (('cat', 'dog'), array([1, 0, 1], dtype=int32))
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    scale: float | None
    classes: tuple[Label, ...] | None
    weights: npt.NDArray[Any] | None
    largest: float
    columns: Columns | None

    @explained("nnxp.data.Dataset(inputs, labels)")
    def __init__(
        self,
        inputs: Any,
        labels: Any,
        *,
        scale: float | str | None = "auto",
        classes: Sequence[Any] | None = None,
        weights: Any = None,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        if classes is None:
            classes = categories_of(labels)
        columns, given = columns_of(inputs), inputs
        inputs, labels = (
            host_array(x, name, "Dataset") for name, x in (("inputs", inputs), ("labels", labels))
        )
        if inputs.ndim < 2:
            remedy = f"; one feature is {as_column(given)}" if inputs.ndim else ""
            raise InputError(
                f"Dataset expects inputs of shape (examples, features), got {inputs.shape}{remedy}"
            )
        if labels.ndim not in (1, 2):
            raise InputError(
                "Dataset expects labels of shape (examples,) or (examples, outputs), got "
                f"{labels.shape}"
            )
        for name, values in (("inputs", inputs), ("labels", labels)):
            if values.size == 0:
                raise InputError(
                    f"Dataset expects examples, got {name} of shape {values.shape}; give at least "
                    "one row and one column"
                )
        if len(inputs) != len(labels):
            raise InputError(
                f"Dataset expects a label for each example, got {len(inputs)} inputs and "
                f"{len(labels)} labels"
            )
        require_numbers(inputs, "inputs", "Dataset")
        require_numbers(labels, "labels", "Dataset", text=True)
        found: tuple[Label, ...] | None = None
        if classes is not None or labels.dtype.kind == "U":
            labels, found = _encode(labels, classes)
        if labels.dtype.kind in "iu" and not (labels.min() >= -(2**31) and labels.max() < 2**31):
            raise InputError(
                "Dataset expects integer labels of at most 32 bits, got one that needs more; give "
                "targets as floating-point numbers, or all labels with classes=numpy.unique(labels)"
            )
        largest = _largest(inputs, ranks)
        require_finite(labels, "labels")
        if weights is not None:
            weights = host_weights(weights, "Dataset")
            if len(weights) != len(inputs):
                raise InputError(
                    f"Dataset expects a weight for each example, got {len(weights)} weights for "
                    f"{len(inputs)} examples"
                )
        scale = _require_scale(scale, inputs, largest, ranks)
        vars(self).update(
            inputs=inputs,
            labels=labels,
            scale=scale,
            classes=found,
            weights=weights,
            largest=largest,
            columns=columns,
        )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Dataset does not change; make a new one with another {name}")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def total_weight(self) -> float:
        """The sum of the weights; the number of examples if there are none."""
        return float(len(self) if self.weights is None else self.weights.sum())

    @property
    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """Inputs and labels, and the weights if there are any."""
        weights = () if self.weights is None else (self.weights,)
        return self.inputs, self.labels, *weights

    def __repr__(self) -> str:
        classes = "" if self.classes is None else f", {len(self.classes)} classes"
        return (
            f"Dataset(inputs={self.inputs.shape} {self.inputs.dtype}, "
            f"labels={self.labels.shape} {self.labels.dtype}{classes})"
        )

    def with_classes(self, classes: tuple[Label, ...] | None) -> Dataset:
        """Return the same examples with the class numbers of another data set.

        Parameters
        ----------
        classes : tuple or None
            The `classes` of the other data set. Integer labels of this one may be among them.

        Returns
        -------
        Dataset

        Raises
        ------
        InputError
            If only one of the two has text labels, only this one has classes, or a label is not
            among `classes`.
        """
        if classes == self.classes:
            return self
        trained, own = _kinds(classes), _kinds(self.classes)
        if not trained & own:
            wanted = "class numbers or targets" if classes is None else f"some of {classes!r:.80}"
            raise InputError(
                f"labels must be of one kind: those of the training data are {_said(trained)}, and "
                f"these {_said(own)}; give labels as {_said(trained)}, {wanted}"
            )
        if classes is None:
            raise InputError(
                f"labels must be of one kind: only these have classes, {self.classes!r:.80}; leave "
                "out classes= here, or give the training data the same classes="
            )
        if self.classes is not None:
            labels = np.array(self.classes, object)[self.labels]
        elif self.labels.dtype.kind in "iu" and self.labels.shape[1:] in ((), (1,)):
            labels = self.labels.reshape(-1)
        else:
            raise InputError(
                f"labels must be of one kind: those of the training data are classes, and these "
                f"{self.labels.dtype} of shape {self.labels.shape}; give one label for each "
                f"example, with Dataset(inputs, labels, classes={list(classes)!r})"
            )
        return self._with(labels=_class_numbers(labels, classes), classes=classes)

    @explained("dataset.split(0.2, rng=0)")
    def split(self, share: float, *, rng: Rng) -> tuple[Dataset, Dataset]:
        """Split the examples at random into two data sets, which are copies.

        If labels are class numbers, one-hot rows or text, the split is stratified: each class has
        the same share in both sets, up to one example.

        Parameters
        ----------
        share : float or int
            The size of the second set: a share between 0 and 1, or a number of examples.
        rng : numpy.random.Generator, SeedSequence or int
            Draws the examples.

        Returns
        -------
        first, second : Dataset

        Raises
        ------
        InputError
            If one of the sets would be empty or have only weights of 0.

        Examples
        --------
        >>> import nnxp
        >>> digits, _ = nnxp.data.load_digits()
        >>> train, validation = digits.split(0.2, rng=0)
        >>> len(train), len(validation)
        (1150, 288)
        """
        count, given = len(self), cast(object, share)
        size = 0
        if isinstance(given, (int, np.integer)):
            size = 0 if isinstance(given, bool) else int(given)
        elif isinstance(given, (float, np.floating)) and 0 < given < 1:
            size = round(float(given) * count)
        if not 0 < size < count:
            raise InputError(
                "a split needs a share between 0 and 1, or a number of examples, that leaves some "
                f"of the {count} for both sets, got {share!r}"
            )
        order = require_rng(rng).permutation(count)
        order = order[np.argsort(_strata(self.labels)[order], kind="stable")]  # class by class
        # Choose the positions at which the sum of the shares reaches the next whole number.
        steps = np.floor((np.arange(count) + 1) * (size / count) + 0.5)
        chosen = np.diff(steps, prepend=0.0) > 0
        second = np.zeros(count, dtype=bool)
        second[order[chosen]] = True
        return self._rows(~second), self._rows(second)

    def _rows(self, chosen: npt.NDArray[np.bool]) -> Dataset:
        names = ("inputs", "labels", "weights")[: len(self.arrays)]
        arrays = {name: x[chosen] for name, x in zip(names, self.arrays, strict=True)}
        part = self._with(**arrays, largest=require_finite(arrays["inputs"], "inputs"))
        if not part.total_weight > 0:
            raise InputError(
                "one of both sets would have only weights of 0; split with another rng, or drop "
                "such examples first"
            )
        return part

    def _with(self, **attributes: Any) -> Dataset:
        """Return a copy with other attributes, which are not checked again."""
        copied = object.__new__(type(self))
        vars(copied).update(vars(self) | attributes)
        return copied


def _largest(inputs: npt.NDArray[Any], ranks: Ranks) -> float:
    """Return the largest magnitude; each rank checks its rows."""
    share, largest = ranks.share(len(inputs)), 0.0
    error: InputError | None = None
    try:
        if not share.is_empty:
            largest = require_finite(inputs[share.rows], "inputs", first=share.start)
    except InputError as raised:
        error = raised
    return max(map(float, ranks.exchange(repr(largest), error, call="Dataset")))


def _require_scale(
    scale: float | str | None, inputs: npt.NDArray[Any], largest: float, ranks: Ranks
) -> float | None:
    """Return the divisor of the inputs; None if they are not divided."""
    if scale == "auto":
        if inputs.dtype != np.uint8:
            return None
        if 0 < largest <= _SMALL_IMAGE:
            ranks.warn(
                "inputs of uint8 are divided by 255 as images are, but the largest is "
                f"{largest:g}; give scale=None, or the number to divide them by"
            )
        return IMAGE_SCALE
    if scale is None:
        return None
    return require_number("scale", scale, POSITIVE)


def _encode(
    labels: npt.NDArray[Any], classes: Sequence[Any] | None
) -> tuple[npt.NDArray[np.int32], tuple[Label, ...]]:
    """Return labels as class numbers, and the label of each number."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InputError(
            f"Dataset expects one label for each example, of shape (examples,), got {labels.shape}"
        )
    given: object = np.unique(labels) if classes is None else from_frame(classes, "classes")
    values = given.tolist() if isinstance(given, np.ndarray) else given
    if not isinstance(values, (list, tuple)) or not values:
        raise InputError(
            f"classes must be a list of labels, such as [10, 20, 30], got {classes!r:.80}"
        )
    known = tuple(x.item() if isinstance(x, np.generic) else x for x in values)
    if not all(isinstance(x, (str, int, float)) and x == x for x in known):  # noqa: PLR0124 - nan
        raise InputError(f"classes must be text or numbers, got {classes!r:.80}")
    if len(set(known)) < len(known):
        raise InputError(f"classes must be different labels, got {known!r:.80}")
    return _class_numbers(labels, known), known


def _kinds(classes: tuple[Label, ...] | None) -> set[type]:
    """Return the kinds of labels: str for text, float for numbers."""
    return {str if isinstance(x, str) else float for x in classes or (0,)}


def _said(kinds: set[type]) -> str:
    return " or ".join(sorted("text" if kind is str else "numbers" for kind in kinds))


def _class_numbers(labels: npt.NDArray[Any], classes: tuple[Label, ...]) -> npt.NDArray[np.int32]:
    numbers = {label: i for i, label in enumerate(classes)}
    found = np.array([numbers.get(x, -1) for x in labels.tolist()], np.int32)
    if (found < 0).any():
        row = int(np.argmin(found))
        raise InputError(
            f"a label is not among the classes {classes!r:.80}: {labels.tolist()[row]!r:.40}, "
            f"first in example {row}"
        )
    return found


def _strata(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a number for each example, equal for examples of the same class."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        hot = bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())
        return np.argmax(labels, axis=1) if hot else np.zeros(len(labels))
    return np.zeros(len(labels)) if labels.dtype.kind == "f" else labels


@dataclass(frozen=True)
class Split:
    """The arguments of the `Dataset.split` that took validation examples from a data set.

    Attributes
    ----------
    share : float
        The share of validation examples.
    examples : int
        The number of all examples.
    seed : int
        The seed of the split.
    """

    share: float
    examples: int
    seed: int


@explained("nnxp.data.one_hot(labels, 10)")
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
        If labels have another shape or dtype, or a label is not from 0 to `classes` - 1.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp.data import one_hot
    >>> one_hot(np.array([2, 0]), 3)
    array([[0, 0, 1],
           [1, 0, 0]], dtype=uint8)
    """
    try:
        labels = np.asarray(labels)
    except ValueError as error:
        raise InputError(f"one_hot expects an array of class numbers: {error}") from None
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
