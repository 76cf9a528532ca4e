"""Classification: losses of which the labels are classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any, ClassVar, Self

from nnxp.arrays import Array, Namespace, conversion, device_of, is_numpy, namespace_of
from nnxp.checks import FRACTION, POSITIVE, require_number
from nnxp.errors import InputError
from nnxp.layers.activations import sigmoid
from nnxp.losses.base import Loss, is_one_hot
from nnxp.metrics import binary_correct, correct
from nnxp.parts import Setting

if TYPE_CHECKING:
    import numpy.typing as npt


# The tolerance of the sum of a row of probabilities. Rounding to half precision can change the sum
# this much; the dtype of the original labels is unknown, since batches convert them.
_SUM_TOLERANCE = 2.0**-10


class _ClassWeights:
    """Descriptor of a tuple with a positive number for each class, or None."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, part: object, owner: type) -> Any:
        return self if part is None else vars(part).get(self._name)

    def __set__(self, part: object, value: object) -> None:
        if value is not None:
            numbers: tuple[Any, ...] = ()
            if isinstance(value, Iterable) and not isinstance(value, (str, Mapping, Set)):
                numbers = tuple(value)
            if not numbers:
                raise InputError(
                    f"{self._name} must be a list of positive numbers, one for each class, such as "
                    f"[1.0, 5.0], got {value!r}"
                )
            value = tuple(
                require_number(f"{self._name}[{i}]", x, POSITIVE) for i, x in enumerate(numbers)
            )
        vars(part)[self._name] = value


class SoftmaxWithLoss(Loss):
    """Softmax and cross-entropy combined, for examples of exactly one class each.

    For a row with scores s and class c, the loss is ``log(sum(exp(s))) - s[c]``, averaged over the
    batch (Bishop 2006, eq. 4.108). The largest score is subtracted first, so nothing overflows and
    no epsilon is needed. The loss of a row of probabilities t is ``sum(t[c] * loss(c))`` over the
    classes c. All values equal those of PyTorch's ``CrossEntropyLoss``.

    The values of labels are checked only in NumPy arrays. In other arrays, a class number out of
    range makes the loss inf, or nan with class weights or example weights, and integer rows must be
    one-hot.

    Parameters
    ----------
    label_smoothing : float, optional
        A probability e, at least 0 and below 1, that is spread over all k classes: each probability
        t becomes ``t * (1 - e) + e / k`` (Szegedy et al. 2016, section 7). 0 by default.
    class_weights : sequence of float, optional
        A positive number for each class. For class numbers, the loss of an example is multiplied by
        the weight of its class, and the sum over the batch is divided by the sum of these weights.
        For rows of probabilities, the terms ``t[c] * loss(c)`` are multiplied, and the sum over the
        batch is divided by the number of examples.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp import SoftmaxWithLoss
    >>> loss = SoftmaxWithLoss()
    >>> print(loss.forward(np.array([[0.0, 0.0]]), np.array([1])))
    0.6931471805599453
    >>> loss.backward()
    array([[ 0.5, -0.5]])
    """

    probabilities = "softmax"

    changing: ClassVar[frozenset[str]] = frozenset({"_saved", "_placed"})

    label_smoothing = Setting(FRACTION)
    class_weights = _ClassWeights()
    _placed: tuple[Any, ...] = (None,)  # cache: the class weights on the device of the last scores

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Set defaults, even if a subclass's ``__init__`` does not call ``super()``."""
        loss = super().__new__(cls, *args, **settings)
        loss.label_smoothing, loss.class_weights = 0.0, None
        return loss

    def __init__(
        self, label_smoothing: float = 0.0, class_weights: Iterable[float] | None = None
    ) -> None:
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in super().__getstate__().items() if name != "_placed"}

    def forward(
        self, scores: Array, labels: Array, training: bool = True, weights: Array | None = None
    ) -> Array:
        """Return the mean cross-entropy.

        Parameters
        ----------
        scores : (batch, classes) array
            Logits: any real numbers.
        labels : (batch,) or (batch, 1) integer array, or (batch, classes) array
            Class numbers, one-hot rows of integers, or rows of floating-point probabilities.
        training : bool, optional
            Save values for `backward`; True by default.
        weights : (batch,) array, optional
            The weight of each example; see `Loss.forward`.

        Returns
        -------
        0-d array

        Raises
        ------
        InputError
            If labels or weights have a wrong shape, dtype or value.
        DeviceError
            If the arrays are on different devices.
        """
        xp = self._namespace(scores, labels, weights)
        classes, smoothing = scores.shape[1], self.label_smoothing
        shifted = scores - xp.max(scores, axis=1, keepdims=True)
        e = xp.exp(shifted)
        z = xp.sum(e, axis=1)
        scale = self._weights_at(xp, scores)
        norms = sums = None
        if labels.ndim == 2 and xp.isdtype(labels.dtype, "real floating"):
            targets = self._smooth(xp.astype(labels, scores.dtype, copy=False), classes, scale)
            of_classes = xp.log(z)[:, None] - shifted
            # A class of probability 0 does not count, even if its loss is infinite.
            losses = xp.sum(targets * xp.where(targets > 0, of_classes, 0.0), axis=1)
            sums = xp.sum(targets, axis=1)
        else:
            targets = self._hot(xp, labels, classes)
            losses = xp.log(z) - xp.max(xp.where(targets, shifted, -math.inf), axis=1)
            if scale is not None:
                norms = xp.sum(xp.where(targets, scale[None, :], 0.0), axis=1)
                losses = losses * norms
            if smoothing:
                of_classes = xp.log(z)[:, None] - shifted
                of_classes = of_classes if scale is None else of_classes * scale
                spread = xp.sum(of_classes, axis=1)
                losses = losses * (1 - smoothing) + spread * (smoothing / classes)
            if training and (smoothing or scale is not None):
                targets = self._smooth(xp.astype(targets, scores.dtype), classes, scale)
                sums = xp.sum(targets, axis=1)
        mean, shares = self._mean(xp, losses, weights, norms)
        if training:
            self._saved = e / z[:, None], targets, sums, shares
        return mean

    def backward(self) -> Array:
        """Return ``(softmax(scores) - one_hot(labels)) / batch``.

        For rows of probabilities t it is ``(softmax(scores) * sum(t) - t) / batch``.
        """
        p, targets, sums, shares = self._take_saved()
        xp = namespace_of(p, self)
        whole = p if sums is None else p * sums[:, None]
        return self._scale(xp, whole - xp.astype(targets, p.dtype), shares, p.shape[0])

    def example_weights(self, labels: Array, like: Array) -> Array | None:
        """Return the weight of each label's class; None for rows of probabilities."""
        xp = namespace_of(labels, self)
        scale = self._weights_at(xp, like)
        if scale is None or (labels.ndim == 2 and xp.isdtype(labels.dtype, "real floating")):
            return None
        targets = self._hot(xp, labels, scale.shape[0])
        return xp.sum(xp.where(targets, scale[None, :], 0.0), axis=1)

    def _hot(self, xp: Namespace, labels: Array, classes: int) -> Array:
        """Return class numbers or one-hot rows as boolean rows."""
        if labels.ndim == 2 and labels.shape[1] == classes:
            return xp.astype(labels, xp.bool)
        numbers = xp.arange(classes, dtype=xp.int32, device=device_of(labels))
        result: Array = xp.reshape(labels, (-1, 1)) == numbers[None, :]
        return result

    def _smooth(self, targets: Array, classes: int, scale: Array | None) -> Array:
        """Return rows of probabilities, smoothed, times the weights of the classes."""
        if self.label_smoothing:
            targets = targets * (1 - self.label_smoothing) + self.label_smoothing / classes
        return targets if scale is None else targets * scale

    def _weights_at(self, xp: Namespace, scores: Array) -> Array | None:
        """Return the weights of the classes on the scores' device, copied there once."""
        if self.class_weights is None:
            return None
        device = device_of(scores)
        key = self.class_weights, xp, scores.dtype, device
        if self._placed[:-1] != key:
            array = xp.asarray(self.class_weights, dtype=scores.dtype, device=device)
            if device is None:  # JAX is tracing; an array of the trace must not be kept
                return array
            self._placed = (*key, array)
        result: Array = self._placed[-1]
        return result

    def check_labels(self, labels: Array, outputs: tuple[int, ...]) -> None:
        """Require class numbers below the number of outputs, one-hot rows or probabilities."""
        xp = namespace_of(labels, self)
        if len(outputs) != 1:
            raise InputError(
                f"{self!r} expects a row of scores for each example, got shape {outputs}"
            )
        classes = outputs[0]
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise InputError(
                f"{self!r} has {len(self.class_weights)} class_weights for {classes} classes; give "
                "a number for each class"
            )
        if labels.ndim == 2 and (labels.shape[1] != 1 or classes == 1):
            if labels.shape[1] != classes or not xp.isdtype(
                labels.dtype, ("integral", "real floating", "bool")
            ):
                raise InputError(
                    f"{self!r} expects one-hot rows of {classes} numbers, got {labels.shape[1]} "
                    f"of dtype {labels.dtype}"
                )
            if is_numpy(labels):
                self._require_rows(labels)
            return
        if labels.ndim not in (1, 2) or not xp.isdtype(labels.dtype, "integral"):
            remedy = f"convert class numbers with {conversion(labels, 'int64', 'labels')}"
            if is_numpy(labels) and labels.dtype.kind not in "biuf":
                remedy = "nnxp.data.Dataset(inputs, labels) makes class numbers of text"
            elif is_numpy(labels) and not (labels == labels.round()).all():
                remedy = "for real numbers, use a loss such as nnxp.MeanSquaredError()"
            raise InputError(
                f"{self!r} expects labels as integer class numbers of shape (batch,) or one-hot "
                f"rows of shape (batch, {classes}), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}; {remedy}"
            )
        if is_numpy(labels):
            _require_range(self, labels, classes)

    def _require_rows(self, rows: npt.NDArray[Any]) -> None:
        """Raise an `InputError` unless integer rows are one-hot, and others probabilities."""
        if rows.dtype.kind != "f":
            if not is_one_hot(rows):
                raise InputError(
                    f"{self!r} expects integer rows to be one-hot, a single 1 and otherwise 0; "
                    "give probabilities as floating-point numbers"
                )
            return
        sums = rows.sum(axis=1, dtype="float64")
        wrong = ~(abs(sums - 1) <= _SUM_TOLERANCE) | ~(rows >= 0).all(axis=1)
        if wrong.any():
            first = int(wrong.argmax())
            raise InputError(
                f"{self!r} expects rows of probabilities, of at least 0 and with the sum 1, but "
                f"row {first} has the smallest number {rows[first].min():.6g} and sums to "
                f"{sums[first]:.6g}; divide rows of positive numbers by their sums: "
                "labels / labels.sum(axis=1, keepdims=True)"
            )

    def correct(self, scores: Array, labels: Array) -> Array:
        """Return for each row whether its largest score is at the label.

        For a row of probabilities, the label is the most probable class.
        """
        return correct(scores, labels)


class SigmoidWithLoss(Loss):
    """Sigmoid and binary cross-entropy combined, for labels 0 and 1, or probabilities.

    For a logit s and its label t, the loss is ``max(s, 0) - s * t + log(1 + exp(-|s|))``, averaged
    over all logits. This is the cross-entropy (Bishop 2006, eq. 4.90) in a form without overflow.
    """

    probabilities = "sigmoid"

    def forward(
        self, scores: Array, labels: Array, training: bool = True, weights: Array | None = None
    ) -> Array:
        """Return the mean binary cross-entropy.

        Parameters
        ----------
        scores : (batch, outputs) array
            Logits: any real numbers.
        labels : array
            For each logit 0 or 1 (integer or boolean), or a floating-point probability. The shape
            is that of `scores`, or (batch,) if there is one output.
        training : bool, optional
            Save values for `backward`; True by default.
        weights : (batch,) array, optional
            The weight of each example; see `Loss.forward`.

        Returns
        -------
        0-d array

        Raises
        ------
        InputError
            If labels or weights have a wrong shape, dtype or value.
        DeviceError
            If the arrays are on different devices.
        """
        xp = self._namespace(scores, labels, weights)
        t = xp.astype(xp.reshape(labels, scores.shape), scores.dtype)
        losses = xp.maximum(scores, 0.0) - scores * t + xp.log1p(xp.exp(-xp.abs(scores)))
        mean, shares = self._mean(xp, losses, weights)
        if training:
            self._saved = scores, t, shares
        return mean

    def backward(self) -> Array:
        """Return ``(sigmoid(scores) - labels) / number of logits``."""
        scores, t, shares = self._take_saved()
        xp = namespace_of(scores, self)
        return self._scale(xp, sigmoid(xp, scores) - t, shares, math.prod(t.shape))

    def check_labels(self, labels: Array, outputs: tuple[int, ...]) -> None:
        """Require a 0 or 1, or a probability, for each output."""
        xp = namespace_of(labels, self)
        if not xp.isdtype(labels.dtype, ("integral", "bool", "real floating")):
            raise InputError(
                f"{self!r} expects labels from 0 to 1 as real numbers, got {labels.dtype}"
            )
        if labels.shape[1:] != outputs and not (labels.ndim == 1 and math.prod(outputs) == 1):
            raise InputError(
                f"{self!r} expects labels of shape (batch, {', '.join(map(str, outputs))}) like "
                f"the scores, got {tuple(labels.shape)}"
            )
        if is_numpy(labels) and labels.dtype.kind == "f":
            wrong = labels[~((labels >= 0) & (labels <= 1))]
            if wrong.size:
                raise InputError(f"{self!r} expects labels from 0 to 1, got {wrong[0]}")
        elif is_numpy(labels) and labels.dtype != bool:
            _require_range(self, labels, 2)

    def correct(self, scores: Array, labels: Array) -> Array:
        """Return for each row whether exactly the logits with label 1 are positive.

        A probability above 0.5 counts as 1.
        """
        return binary_correct(scores, labels)


def _require_range(loss: Loss, labels: npt.NDArray[Any], classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"{loss!r} expects labels from 0 to {classes - 1}, got {low if low < 0 else high}; "
            "other labels become class numbers in "
            "nnxp.data.Dataset(inputs, labels, classes=numpy.unique(labels))"
        )
