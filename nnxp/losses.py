"""Losses: scalar functions of scores and labels, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any, ClassVar, Self

from nnxp.arrays import (
    Array,
    Namespace,
    conversion,
    device_of,
    is_numpy,
    namespace_of,
    require_weights,
    scores_namespace,
)
from nnxp.checks import FRACTION, POSITIVE, require_number
from nnxp.errors import CallOrderError, InputError
from nnxp.layers.activations import sigmoid
from nnxp.metrics import binary_correct, correct
from nnxp.parts import Part, Setting, constructor_parameters

if TYPE_CHECKING:
    import numpy.typing as npt


# The tolerance of the sum of a row of probabilities. Rounding to half precision can change the sum
# this much; the dtype of the original labels is unknown, since batches convert them.
_SUM_TOLERANCE = 2.0**-10


class Loss(Part):
    """Base class of all losses: `forward` returns a mean loss, `backward` its gradient.

    Attributes
    ----------
    probabilities : str or None
        The function from scores to class probabilities, ``"softmax"`` or ``"sigmoid"``; None if the
        loss is not for classes.
    """

    changing: ClassVar[frozenset[str]] = frozenset({"_saved"})
    probabilities: ClassVar[str | None] = None
    _saved: tuple[Any, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name != "_saved"}

    def __repr__(self) -> str:
        """Return the class name and the settings that differ from their defaults."""
        shown = []
        for name, x in constructor_parameters(type(self)).items():
            value = repr(getattr(self, name, x.default))
            if value != repr(x.default):
                named = x.default is not x.empty or x.kind is x.KEYWORD_ONLY
                shown.append(f"{name}={value}" if named else value)
        return f"{type(self).__name__}({', '.join(shown)})"

    def forward(
        self, scores: Array, labels: Array, training: bool = True, weights: Array | None = None
    ) -> Array:
        """Return the loss of a batch as a 0-d array; if `training`, save values for `backward`.

        Parameters
        ----------
        scores : (batch, outputs) array
            The outputs of the network.
        labels : array
            A label or a target for each example; subclasses define shape and dtype.
        training : bool, optional
            Save values for `backward`; True by default.
        weights : (batch,) array, optional
            The weight of each example, at least 0, in the dtype of the scores. The loss is
            ``sum(weights * losses) / sum(weights)``, or 0 if all weights are 0. An example of
            weight 2 counts twice.

        Returns
        -------
        0-d array
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def backward(self) -> Array:
        """Return the gradient of the loss with respect to the scores, in their shape.

        Raises
        ------
        CallOrderError
            If there was no training forward since the last backward.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define backward")

    def check_labels(self, labels: Array, outputs: tuple[int, ...]) -> None:
        """Raise an `InputError` unless `labels` fit scores of shape (batch, `*outputs`).

        Shapes and dtypes are checked for all arrays, values only for NumPy arrays: reading the
        values of other arrays would wait for the device. The trainer checks all labels on the host
        before the first step. By default nothing is checked.
        """

    def example_weights(self, labels: Array, like: Array) -> Array | None:
        """Return the factor with which the loss weights each example, such as its class weight.

        The sum of these factors is the weight of a batch in the mean over several batches.

        Parameters
        ----------
        labels : array
        like : array
            An array of the same library and device, in the dtype of the result.

        Returns
        -------
        (batch,) array or None
            None, the default, if all examples count equally.
        """
        return None

    def correct(self, scores: Array, labels: Array) -> Array | None:
        """Return for each row whether the scores are correct; None if the loss is not for classes.

        By default, a row is correct if its largest score is at its class number, or at the 1 of its
        one-hot row. The result is None if labels are floating-point numbers, there is only one
        output, scores have more than two axes, or the shape of labels does not fit.
        """
        xp = namespace_of(labels, self)
        if xp.isdtype(labels.dtype, "real floating") or scores.ndim != 2 or scores.shape[1] == 1:
            return None
        rows = scores.shape[0]
        shapes = (tuple(scores.shape), (rows,), (rows, 1))
        return correct(scores, labels) if tuple(labels.shape) in shapes else None

    def _namespace(self, scores: Array, labels: Array, weights: Array | None = None) -> Namespace:
        """Check scores, labels and weights, and return their namespace."""
        xp = scores_namespace(scores, labels, self)
        if scores.ndim < 2 or labels.ndim < 1 or scores.shape[0] == 0:
            raise InputError(
                f"{self!r} expects scores of shape (batch, outputs) with at least one row, got "
                f"{tuple(scores.shape)} and labels of shape {tuple(labels.shape)}"
            )
        if scores.shape[0] != labels.shape[0]:
            raise InputError(
                f"{self!r} expects a label for each row of scores, got {scores.shape[0]} rows "
                f"and {labels.shape[0]} labels"
            )
        self.check_labels(labels, tuple(scores.shape[1:]))
        if weights is not None:
            require_weights(weights, scores, self)
        return xp

    @staticmethod
    def _mean(
        xp: Namespace, losses: Array, weights: Array | None, norms: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Return the mean loss, and a factor for each row of its gradient.

        Parameters
        ----------
        losses : (batch,) or (batch, …) array
        weights : (batch,) array or None
            The examples' weights.
        norms : (batch,) array, optional
            The term of each row in the divisor of the mean, its class weight; by default 1.

        Returns
        -------
        mean : 0-d array
        shares : (batch,) or (1,) array, or None
            The factors. None means one divided by the number of losses.
        """
        if weights is None and norms is None:
            return xp.mean(losses), None
        rows, columns = losses.shape[0], math.prod(losses.shape[1:])
        if losses.ndim > 1:
            losses = xp.sum(xp.reshape(losses, (rows, columns)), axis=1) / columns
        if weights is not None:
            losses = losses * weights
            norms = weights if norms is None else norms * weights
        assert norms is not None
        total = xp.sum(norms)
        total = xp.where(total > 0, total, 1.0)  # if it is 0, all weighted losses are 0
        shares = 1.0 / total if weights is None else weights / (total * columns)
        return xp.sum(losses) / total, xp.reshape(shares, (-1,))

    @staticmethod
    def _scale(xp: Namespace, gradient: Array, shares: Array | None, count: int) -> Array:
        """Return the rows of a sum's gradient multiplied by `shares`, or divided by `count`."""
        if shares is None:
            return gradient / count
        return gradient * xp.reshape(shares, (-1, *(1 for _ in gradient.shape[1:])))

    def _take_saved(self) -> tuple[Any, ...]:
        if self._saved is None:
            raise CallOrderError(
                f"{self!r}.backward needs forward(scores, labels) first; "
                "each forward allows one backward"
            )
        saved, self._saved = self._saved, None
        return saved


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
            if not _is_one_hot(rows):
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


class RegressionLoss(Loss):
    """Base class of losses that average a function of the errors, ``output - target``.

    A subclass defines `losses_of` and `slopes_of`.
    """

    _factor: ClassVar[float] = 1.0

    def losses_of(self, xp: Namespace, error: Array) -> Array:
        """Return the loss of each error, ``output - target``."""
        raise NotImplementedError(f"{type(self).__name__} does not define losses_of")

    def slopes_of(self, xp: Namespace, error: Array) -> Array:
        """Return the derivative of each loss."""
        raise NotImplementedError(f"{type(self).__name__} does not define slopes_of")

    def forward(
        self, scores: Array, labels: Array, training: bool = True, weights: Array | None = None
    ) -> Array:
        """Return the mean loss.

        Parameters
        ----------
        scores : (batch, …) array
            The network's outputs.
        labels : array of the outputs' shape, or (batch,) if there is one output
            The targets, in the outputs' dtype, or integers or booleans.
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
            If targets or weights have a wrong shape, dtype or value.
        DeviceError
            If the arrays are on different devices.
        """
        xp = self._namespace(scores, labels, weights)
        if xp.isdtype(labels.dtype, "real floating") and labels.dtype != scores.dtype:
            raise InputError(
                f"{self!r} expects targets of the outputs' dtype {scores.dtype}, got {labels.dtype}"
            )
        if labels.ndim != scores.ndim:
            labels = xp.reshape(labels, scores.shape)
        error = scores - xp.astype(labels, scores.dtype, copy=False)
        mean, shares = self._mean(xp, self.losses_of(xp, error), weights)
        if training:
            self._saved = error, shares
        return mean * self._factor

    def backward(self) -> Array:
        """Return the derivative of each output's loss, divided by the number of outputs."""
        error, shares = self._take_saved()
        xp = namespace_of(error, self)
        return self._scale(xp, self.slopes_of(xp, error), shares, math.prod(error.shape))

    def check_labels(self, labels: Array, outputs: tuple[int, ...]) -> None:
        """Require a target for each output."""
        xp = namespace_of(labels, self)
        if not xp.isdtype(labels.dtype, ("integral", "real floating", "bool")):
            raise InputError(f"{self!r} expects targets of real numbers, got {labels.dtype}")
        if labels.shape[1:] != outputs and not (labels.ndim == 1 and math.prod(outputs) == 1):
            raise InputError(
                f"{self!r} expects a target for each output, of shape (batch, "
                f"{', '.join(map(str, outputs))}), got {tuple(labels.shape)}; convert "
                "class numbers with nnxp.data.one_hot(labels, classes)"
            )

    def correct(self, scores: Array, labels: Array) -> Array | None:
        """Return None: targets are numbers, not classes, even if they are integers."""
        return None


class _Flag:
    """Descriptor of a setting that is True or False."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, part: object, owner: type) -> Any:
        return self if part is None else vars(part).get(self._name, False)

    def __set__(self, part: object, value: object) -> None:
        if not isinstance(value, bool):
            raise InputError(f"{self._name} must be True or False, got {value!r}")
        vars(part)[self._name] = value


class MeanSquaredError(RegressionLoss):
    """Half the mean squared error, ``mean((outputs - targets)**2) / 2``, over all outputs.

    Parameters
    ----------
    classes : bool, optional
        Whether targets are one-hot rows of classes, as from `nnxp.data.one_hot`. If True, records
        have an accuracy: a row is correct if its largest output is at the 1. If False (default),
        targets are numbers, even if they are integers, and there is no accuracy.
    """

    classes = _Flag()
    _factor = 0.5

    def __init__(self, classes: bool = False) -> None:
        self.classes = classes

    def losses_of(self, xp: Namespace, error: Array) -> Array:
        """Return ``error**2``; `forward` halves the mean."""
        return error * error

    def slopes_of(self, xp: Namespace, error: Array) -> Array:
        """Return `error`."""
        return error

    def check_labels(self, labels: Array, outputs: tuple[int, ...]) -> None:
        """Require a target for each output; rows of classes must be one-hot."""
        super().check_labels(labels, outputs)
        if not self.classes:
            return
        has_rows = len(outputs) == 1 and outputs[0] > 1
        if not has_rows or (is_numpy(labels) and not _is_one_hot(labels)):
            raise InputError(
                f"{self!r} expects one-hot rows of two or more classes, a single 1 and otherwise "
                "0; use MeanSquaredError() for other targets"
            )

    def correct(self, scores: Array, labels: Array) -> Array | None:
        """Return for each row whether its largest output is at the 1; None without `classes`."""
        return correct(scores, labels) if self.classes else None


class Huber(RegressionLoss):
    """Huber loss: quadratic for small errors, linear for large ones (Huber 1964, eq. 2.1).

    For an error d it is ``d**2 / 2`` if ``|d| <= delta``, and ``delta * (|d| - delta / 2)``
    otherwise, averaged over all outputs. This equals PyTorch's ``HuberLoss``.

    Parameters
    ----------
    delta : float, optional
        A positive number, in the unit of the targets: the limit between small and large errors.
    """

    delta = Setting(POSITIVE)

    def __init__(self, delta: float = 1.0) -> None:
        self.delta = delta

    def losses_of(self, xp: Namespace, error: Array) -> Array:
        """Return ``c * (error - c / 2)``, where c is the error clipped to ±delta."""
        c = self.slopes_of(xp, error)
        return c * (error - c / 2)

    def slopes_of(self, xp: Namespace, error: Array) -> Array:
        """Return `error` clipped to ±delta."""
        return xp.maximum(xp.minimum(error, self.delta), -self.delta)


class AbsoluteError(RegressionLoss):
    """The mean absolute error, ``mean(|outputs - targets|)``, over all outputs.

    The gradient of an error of 0 is 0. This equals PyTorch's ``L1Loss``.
    """

    def losses_of(self, xp: Namespace, error: Array) -> Array:
        """Return ``|error|``."""
        return xp.abs(error)

    def slopes_of(self, xp: Namespace, error: Array) -> Array:
        """Return the sign of the error, 0 for 0."""
        return xp.sign(error)


def _require_range(loss: Loss, labels: npt.NDArray[Any], classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"{loss!r} expects labels from 0 to {classes - 1}, got {low if low < 0 else high}; "
            "other labels become class numbers in "
            "nnxp.data.Dataset(inputs, labels, classes=numpy.unique(labels))"
        )


def _is_one_hot(rows: npt.NDArray[Any]) -> bool:
    return bool(((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) == 1).all())
