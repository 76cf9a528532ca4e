"""Losses: scalar objectives on the scores, and their gradients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from array_api_compat import is_numpy_array

from nnxp.arrays import (
    Array,
    Namespace,
    device_of,
    namespace_of,
    scores_namespace,
)
from nnxp.errors import CallOrderError, InputError
from nnxp.layers.activations import sigmoid
from nnxp.metrics import binary_correct, correct
from nnxp.parts import Part

if TYPE_CHECKING:
    import numpy.typing as npt


class Loss(Part):
    """Base class of all losses: `forward` returns a mean loss, `backward` its gradient.

    Attributes
    ----------
    probabilities : str or None
        ``"softmax"`` or ``"sigmoid"``, which turns scores into the probabilities of classes; None
        if the outputs are no classes.
    """

    changing: ClassVar[frozenset[str]] = frozenset({"_saved"})
    probabilities: ClassVar[str | None] = None
    _saved: tuple[Array, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name != "_saved"}

    def forward(self, scores: Array, labels: Array, training: bool = True) -> Array:
        """Return the loss of a batch as a 0-d array; if `training`, save what `backward` needs."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def backward(self) -> Array:
        """Return the gradient at the scores, in their shape.

        Raises
        ------
        CallOrderError
            If there was no training forward since the last backward.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define backward")

    def check_labels(self, labels: Array, outputs: tuple[int, ...]) -> None:
        """Raise an `InputError` unless `labels` fit scores of shape (batch, `*outputs`).

        Shapes and dtypes are always checked, values only in NumPy arrays: reading those of another
        library would wait for the device. The trainer checks all labels before it starts, on the
        host. By default nothing is checked.
        """

    def correct(self, scores: Array, labels: Array) -> Array | None:
        """Return for each row whether the scores are correct; None if there are no classes.

        By default, a row is correct if its largest score is at its class number, or at the 1 of its
        one-hot row. There are no classes if labels are real-valued, scores have one output or more
        axes, or the shapes are others.
        """
        xp = namespace_of(labels, self)
        if xp.isdtype(labels.dtype, "real floating") or scores.ndim != 2 or scores.shape[1] == 1:
            return None
        shapes = (tuple(scores.shape), tuple(scores.shape[:1]))
        return correct(scores, labels) if tuple(labels.shape) in shapes else None

    def _namespace(self, scores: Array, labels: Array) -> Namespace:
        """Check scores and labels, and return their namespace."""
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
        return xp

    def _take_saved(self) -> tuple[Array, ...]:
        if self._saved is None:
            raise CallOrderError(
                f"{self!r}.backward needs forward(scores, labels) first; "
                "each forward allows one backward"
            )
        saved, self._saved = self._saved, None
        return saved


class SoftmaxWithLoss(Loss):
    """Softmax and cross-entropy combined, for labels with one class for each example.

    For a row with scores s and class c, the loss is ``log(sum(exp(s))) - s[c]``, averaged over the
    batch (Bishop 2006, eq. 4.108). The largest score is subtracted first, so nothing overflows and
    no epsilon is needed. The values of labels are checked only in NumPy arrays. In other arrays, a
    class number out of range makes the loss inf, and rows must be one-hot.

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

    def forward(self, scores: Array, labels: Array, training: bool = True) -> Array:
        """Return the mean cross-entropy.

        Parameters
        ----------
        scores : (batch, classes) array
            Logits: any real numbers.
        labels : (batch,) integer array, or (batch, classes) array
            Class numbers, or one-hot rows.
        training : bool, optional
            Save what `backward` needs.
        """
        xp = self._namespace(scores, labels)
        shifted = scores - xp.max(scores, axis=1, keepdims=True)
        e = xp.exp(shifted)
        z = xp.sum(e, axis=1)
        if labels.ndim == 2:
            hot = xp.astype(labels, xp.bool)
        else:
            classes = xp.arange(scores.shape[1], dtype=xp.int32, device=device_of(scores))
            hot = labels[:, None] == classes[None, :]
        label_score = xp.max(xp.where(hot, shifted, -math.inf), axis=1)
        if training:
            self._saved = e / z[:, None], hot
        return xp.mean(xp.log(z) - label_score)

    def backward(self) -> Array:
        """Return ``(softmax(scores) - one_hot(labels)) / batch``."""
        p, hot = self._take_saved()
        xp = namespace_of(p, self)
        return (p - xp.astype(hot, p.dtype)) / p.shape[0]

    def check_labels(self, labels: Array, outputs: tuple[int, ...]) -> None:
        """Require class numbers below the number of outputs, or one-hot rows."""
        xp = namespace_of(labels, self)
        if len(outputs) != 1:
            raise InputError(
                f"{self!r} expects a row of scores for each example, got shape {outputs}"
            )
        classes = outputs[0]
        if labels.ndim == 2:
            if labels.shape[1] != classes or not xp.isdtype(labels.dtype, ("numeric", "bool")):
                raise InputError(
                    f"{self!r} expects one-hot rows of {classes} numbers, got {labels.shape[1]} "
                    f"of dtype {labels.dtype}"
                )
            if is_numpy_array(labels) and not (
                ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()
            ):
                raise InputError(
                    f"{self!r} expects one-hot rows, a single 1 and otherwise 0; probabilities "
                    "as targets are not supported"
                )
            return
        if labels.ndim != 1 or not xp.isdtype(labels.dtype, "integral"):
            raise InputError(
                f"{self!r} expects labels as integer class numbers of shape (batch,) or one-hot "
                f"rows of shape (batch, {classes}), got {labels.dtype} of shape "
                f"{tuple(labels.shape)}; convert class numbers with labels.astype('int64')"
            )
        if is_numpy_array(labels):
            _require_range(self, labels, classes)

    def correct(self, scores: Array, labels: Array) -> Array:
        """Return for each row whether its largest score is at the label."""
        return correct(scores, labels)


class SigmoidWithLoss(Loss):
    """Sigmoid and binary cross-entropy combined, for labels 0 and 1.

    For a logit s and its label t, the loss is ``max(s, 0) - s * t + log(1 + exp(-|s|))``, averaged
    over all logits: the cross-entropy (Bishop 2006, eq. 4.90) in a form that cannot overflow.
    """

    probabilities = "sigmoid"

    def forward(self, scores: Array, labels: Array, training: bool = True) -> Array:
        """Return the mean binary cross-entropy.

        Parameters
        ----------
        scores : (batch, outputs) array
            Logits: any real numbers.
        labels : integer or boolean array
            0 or 1 for each logit, in the shape of `scores`, or (batch,) if there is one output.
        training : bool, optional
            Save what `backward` needs.
        """
        xp = self._namespace(scores, labels)
        t = xp.astype(xp.reshape(labels, scores.shape), scores.dtype)
        if training:
            self._saved = scores, t
        losses = xp.maximum(scores, 0.0) - scores * t + xp.log1p(xp.exp(-xp.abs(scores)))
        return xp.mean(losses)

    def backward(self) -> Array:
        """Return ``(sigmoid(scores) - labels) / number of logits``."""
        scores, t = self._take_saved()
        return (sigmoid(namespace_of(scores, self), scores) - t) / math.prod(t.shape)

    def check_labels(self, labels: Array, outputs: tuple[int, ...]) -> None:
        """Require a 0 or 1 for each output."""
        xp = namespace_of(labels, self)
        if not xp.isdtype(labels.dtype, ("integral", "bool")):
            raise InputError(
                f"{self!r} expects labels of 0 and 1 as integers or booleans, got {labels.dtype}; "
                "convert with labels.astype('int64')"
            )
        if labels.shape[1:] != outputs and not (labels.ndim == 1 and math.prod(outputs) == 1):
            raise InputError(
                f"{self!r} expects labels of shape (batch, {', '.join(map(str, outputs))}) like "
                f"the scores, got {tuple(labels.shape)}"
            )
        if is_numpy_array(labels) and labels.dtype != bool:
            _require_range(self, labels, 2)

    def correct(self, scores: Array, labels: Array) -> Array:
        """Return for each row whether exactly the logits with label 1 are positive."""
        return binary_correct(scores, labels)


class MeanSquaredError(Loss):
    """Half the mean squared error, ``mean((outputs - targets)**2) / 2``, over all outputs."""

    def forward(self, scores: Array, labels: Array, training: bool = True) -> Array:
        """Return half the mean squared error.

        Parameters
        ----------
        scores : (batch, …) array
            The network's outputs.
        labels : array of the outputs' shape
            The targets, in the outputs' dtype, or integers or booleans such as one-hot rows.
        training : bool, optional
            Save what `backward` needs.
        """
        xp = self._namespace(scores, labels)
        if xp.isdtype(labels.dtype, "real floating") and labels.dtype != scores.dtype:
            raise InputError(
                f"{self!r} expects targets of the outputs' dtype {scores.dtype}, got {labels.dtype}"
            )
        difference = scores - xp.astype(labels, scores.dtype, copy=False)
        if training:
            self._saved = (difference,)
        return xp.mean(difference * difference) / 2

    def backward(self) -> Array:
        """Return ``(outputs - targets) / number of outputs``."""
        (difference,) = self._take_saved()
        return difference / math.prod(difference.shape)

    def check_labels(self, labels: Array, outputs: tuple[int, ...]) -> None:
        """Require a target for each output."""
        xp = namespace_of(labels, self)
        if not xp.isdtype(labels.dtype, ("integral", "real floating", "bool")):
            raise InputError(f"{self!r} expects targets of real numbers, got {labels.dtype}")
        if labels.shape[1:] != outputs:
            raise InputError(
                f"{self!r} expects a target for each output, of shape (batch, "
                f"{', '.join(map(str, outputs))}), got {tuple(labels.shape)}; convert "
                "class numbers with nnxp.data.one_hot(labels, classes)"
            )


def _require_range(loss: Loss, labels: npt.NDArray[Any], classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"{loss!r} expects labels from 0 to {classes - 1}, got {low if low < 0 else high}"
        )
