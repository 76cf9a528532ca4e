"""Penalties: terms that are added to the loss to keep parameters small."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nnxp.arrays import Array, namespace_of
from nnxp.checks import NOT_NEGATIVE, is_selected, require_selection
from nnxp.parts import Part, Setting


class Penalty(Part):
    """Base class of all penalties; a subclass defines `value_of` and `gradient_of`.

    Parameters
    ----------
    parameters : str or iterable of str, optional
        The parameters that are penalized: ``"matrices"`` (default) for arrays of two or more axes,
        ``"all"``, or a list of names, in which ``*`` matches any characters, such as
        ``["W1", "residual1.*"]``.
    """

    def __init__(self, parameters: str | Iterable[str] = "matrices") -> None:
        self.parameters = require_selection("parameters", parameters)

    def value(self, params: Mapping[str, Array]) -> Array | float:
        """Return the sum over all penalized parameters, as a 0-d array; 0.0 if there are none."""
        return sum((self.value_of(x) for x in self._selected(params).values()), 0.0)

    def add_gradients(
        self, params: Mapping[str, Array], grads: Mapping[str, Array]
    ) -> dict[str, Array]:
        """Return the gradients plus those of the penalty."""
        own = self._selected({name: params[name] for name in grads})
        return {
            name: gradient + self.gradient_of(own[name]) if name in own else gradient
            for name, gradient in grads.items()
        }

    def value_of(self, w: Array) -> Array:
        """Return the penalty of one parameter, as a 0-d array."""
        raise NotImplementedError(f"{type(self).__name__} does not define value_of")

    def gradient_of(self, w: Array) -> Array:
        """Return the gradient of the penalty with respect to one parameter, in its shape."""
        raise NotImplementedError(f"{type(self).__name__} does not define gradient_of")

    def _selected(self, params: Mapping[str, Array]) -> dict[str, Array]:
        return {name: x for name, x in params.items() if is_selected(self.parameters, name, x)}


class L1(Penalty):
    """L1 penalty: ``rate * sum(|w|)``, with the gradient 0 at 0 (Tibshirani 1996).

    Parameters
    ----------
    rate : float
        At least 0.
    parameters : str or iterable of str, optional
        As in `Penalty`.
    """

    rate = Setting(NOT_NEGATIVE)

    def __init__(self, rate: float, parameters: str | Iterable[str] = "matrices") -> None:
        super().__init__(parameters)
        self.rate = rate

    def value_of(self, w: Array) -> Array:
        """Return ``rate * sum(|w|)``."""
        xp = namespace_of(w, self)
        return self.rate * xp.sum(xp.abs(w))

    def gradient_of(self, w: Array) -> Array:
        """Return ``rate * sign(w)``."""
        return self.rate * namespace_of(w, self).sign(w)


class L2(Penalty):
    """L2 penalty: ``rate / 2 * sum(w²)`` (Krogh and Hertz 1991, eq. 2).

    The gradient is ``rate * w``, as in PyTorch's ``weight_decay`` of SGD; but by default only
    matrices are penalized, and not biases.

    Parameters
    ----------
    rate : float
        At least 0.
    parameters : str or iterable of str, optional
        As in `Penalty`.
    """

    rate = Setting(NOT_NEGATIVE)

    def __init__(self, rate: float, parameters: str | Iterable[str] = "matrices") -> None:
        super().__init__(parameters)
        self.rate = rate

    def value_of(self, w: Array) -> Array:
        """Return ``rate / 2 * sum(w²)``."""
        flat = namespace_of(w, self).reshape(w, (-1,))
        return self.rate / 2 * (flat @ flat)

    def gradient_of(self, w: Array) -> Array:
        """Return ``rate * w``."""
        return self.rate * w


class ElasticNet(Penalty):
    """Elastic net: ``l1 * sum(|w|) + l2 / 2 * sum(w²)`` (Zou and Hastie 2005, eq. 3).

    Parameters
    ----------
    l1, l2 : float
        At least 0.
    parameters : str or iterable of str, optional
        As in `Penalty`.
    """

    l1 = Setting(NOT_NEGATIVE)
    l2 = Setting(NOT_NEGATIVE)

    def __init__(self, l1: float, l2: float, parameters: str | Iterable[str] = "matrices") -> None:
        super().__init__(parameters)
        self.l1, self.l2 = l1, l2

    def value_of(self, w: Array) -> Array:
        """Return ``l1 * sum(|w|) + l2 / 2 * sum(w²)``."""
        xp = namespace_of(w, self)
        return self.l1 * xp.sum(xp.abs(w)) + self.l2 / 2 * xp.sum(w * w)

    def gradient_of(self, w: Array) -> Array:
        """Return ``l1 * sign(w) + l2 * w``."""
        return self.l1 * namespace_of(w, self).sign(w) + self.l2 * w


PENALTIES: dict[str, type[Penalty]] = {"l1": L1, "l2": L2, "elasticnet": ElasticNet}
"""The penalties by name."""
