"""Base of losses: `forward` returns a mean loss, `backward` its gradient."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from nnxp.arrays import Array, Namespace, namespace_of, require_weights, scores_namespace
from nnxp.errors import CallOrderError, InputError
from nnxp.metrics import correct
from nnxp.parts import Part, constructor_parameters

if TYPE_CHECKING:
    import numpy.typing as npt


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


def is_one_hot(rows: npt.NDArray[Any]) -> bool:
    """Return whether each row is a single 1 and otherwise 0."""
    return bool(((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) == 1).all())
