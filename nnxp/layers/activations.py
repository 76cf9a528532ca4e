"""Activations: elementwise functions, and Softmax, a function of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nnxp.arrays import Array, Namespace, floating_namespace
from nnxp.checks import POSITIVE, Range, unknown_name
from nnxp.errors import InputError
from nnxp.layers.base import Layer
from nnxp.parts import Setting

_SLOPE: Range = (lambda x: 0 < x < 1, "a number above 0 and below 1")


def _is_positive(xp: Namespace, x: Array) -> Array:
    """Return 1 where ``x > 0`` and 0 elsewhere; arithmetic with it is faster than ``where``."""
    return xp.astype(x > 0, x.dtype)


def sigmoid(xp: Namespace, x: Array) -> Array:
    """Return ``1 / (1 + exp(-x))``, computed from exp(-|x|), which cannot overflow."""
    t = xp.exp(-xp.abs(x))
    return xp.maximum(_is_positive(xp, x), t) / (1.0 + t)


class Identity(Layer):
    """Identity: ``y = x``."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return `x`, of any shape."""
        floating_namespace(x, self)
        if training:
            self.save_for_backward(x)
        return x

    def backward(self, dy: Array) -> Array:
        """Return `dy`."""
        self.saved(dy)
        return dy


class ReLU(Layer):
    """Rectified linear unit: ``y = max(x, 0)``; its gradient at 0 is 0."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return ``max(x, 0)``, of the shape of `x`."""
        xp = floating_namespace(x, self)
        y = xp.maximum(x, 0.0)
        if training:
            self.save_for_backward(y, y)
        return y

    def backward(self, dy: Array) -> Array:
        """Return `dy` where ``x > 0`` and 0 elsewhere; `dy` is not changed."""
        y: Array = self.saved(dy)
        xp = floating_namespace(dy, self)
        return dy * _is_positive(xp, y)


class LeakyReLU(Layer):
    """Leaky rectified linear unit: ``y = x`` where ``x > 0``, and ``y = slope * x`` elsewhere.

    Maas, Hannun and Ng 2013, sec. 2. The gradient at 0 is `slope`, as in PyTorch.

    Parameters
    ----------
    slope : float, optional
        Above 0 and below 1.
    """

    slope = Setting(_SLOPE)

    def __init__(self, slope: float = 0.01) -> None:
        self.slope = slope

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return ``max(x, slope * x)``, of the shape of `x`."""
        xp = floating_namespace(x, self)
        y = xp.maximum(x, self.slope * x)
        if training:
            self.save_for_backward(y, y)
        return y

    def backward(self, dy: Array) -> Array:
        """Return `dy` where ``x > 0`` and ``slope * dy`` elsewhere."""
        y: Array = self.saved(dy)
        xp = floating_namespace(dy, self)
        return dy * xp.maximum(_is_positive(xp, y), self.slope)


class ELU(Layer):
    """Exponential linear unit: ``y = x`` where ``x > 0``, ``alpha * (exp(x) - 1)`` elsewhere.

    Clevert, Unterthiner and Hochreiter 2016, eq. 15. The gradient at 0 is `alpha`, as in PyTorch.

    Parameters
    ----------
    alpha : float, optional
        A positive number; for x towards minus infinity, the output approaches ``-alpha``.
    """

    alpha = Setting(POSITIVE)

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the activation, of the shape of `x`; it never overflows."""
        xp = floating_namespace(x, self)
        # exp(x) - 1 = 2 t / (1 - t) with t = tanh(x / 2), which is faster than expm1 in NumPy.
        t = xp.tanh(xp.minimum(x, 0.0) * 0.5)
        y = xp.maximum(x, 0.0) + (2.0 * self.alpha) * t / (1.0 - t)
        if training:
            self.save_for_backward(y, x)
        return y

    def backward(self, dy: Array) -> Array:
        """Return `dy` where ``x > 0`` and ``dy * alpha * exp(x)`` elsewhere."""
        x: Array = self.saved(dy)
        xp = floating_namespace(dy, self)
        positive = _is_positive(xp, x)
        return dy * (positive + (1.0 - positive) * (self.alpha * xp.exp(xp.minimum(x, 0.0))))


class Softplus(Layer):
    """Softplus: ``y = log(1 + exp(x))``, a smooth ReLU (Dugas et al. 2001, sec. 3)."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return ``max(x, 0) + log(1 + exp(-|x|))``, of the shape of `x`; it never overflows."""
        xp = floating_namespace(x, self)
        y = xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))
        if training:
            self.save_for_backward(y, x)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``dy / (1 + exp(-x))``."""
        x: Array = self.saved(dy)
        return dy * sigmoid(floating_namespace(dy, self), x)


class _Gate(Layer, base=True):
    """Base class of ``y = x * F(x)`` with a distribution function F for which F(-x) = 1 - F(x).

    It is computed as ``max(x, 0) - a * F(-a)`` with ``a = |x|``, which keeps the precision for
    large negative inputs.
    """

    def _tail(self, xp: Namespace, a: Array) -> tuple[Array, Array]:
        """Return F(-a) and the density F'(a), for a from 0 to 1000."""
        raise NotImplementedError

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the activation, of the shape of `x`; it never overflows."""
        xp = floating_namespace(x, self)
        a = xp.minimum(xp.abs(x), 1000.0)  # F(-1000) is 0; the limit makes infinite x work
        tail, density = self._tail(xp, a)
        y = xp.maximum(x, 0.0) - a * tail
        if training:
            slope = tail - a * density  # dy/dx where x is negative; elsewhere dy/dx is 1 - slope
            positive = _is_positive(xp, x)
            self.save_for_backward(y, positive + (1.0 - 2.0 * positive) * slope)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``dy * (F(x) + x * F'(x))``; forward saved the second factor."""
        slope: Array = self.saved(dy)
        return dy * slope


class SiLU(_Gate):
    """Sigmoid linear unit, or swish: ``y = x / (1 + exp(-x))``.

    Elfwing, Uchibe and Doya 2018, eq. 1; Ramachandran, Zoph and Le 2017.
    """

    def _tail(self, xp: Namespace, a: Array) -> tuple[Array, Array]:
        t = xp.exp(-a)
        tail = t / (1.0 + t)
        return tail, tail / (1.0 + t)


class GELU(_Gate):
    """Gaussian error linear unit: ``y = x * Φ(x)``, where Φ is the normal distribution function.

    Hendrycks and Gimpel 2016, sec. 2. The Array API standard has no erf, so Φ is computed by a
    rational approximation. In 200,000 numbers, the largest relative error of `y` was 1.2e-15 in
    float64 (5.3 eps) and 5.2e-7 in float32 (4.4 eps). This includes large negative numbers for
    which Φ(x) is not subnormal (x above -37 in float64, above -12.9 in float32).

    Parameters
    ----------
    approximate : str, optional
        ``"none"`` (default) for Φ; or ``"tanh"``, which is faster, for
        ``y = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``, as in PyTorch.
    """

    def __init__(self, approximate: str = "none") -> None:
        given: object = approximate
        if not isinstance(given, str) or given not in ("none", "tanh"):
            raise unknown_name("approximate", approximate, ("none", "tanh"))
        self.approximate = approximate

    def _tail(self, xp: Namespace, a: Array) -> tuple[Array, Array]:
        if self.approximate == "none":
            return _normal_tail(xp, a)
        # (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u))
        cubic = (0.044715 * _SCALE) * a * a
        t = xp.exp(-a * (cubic + _SCALE))
        tail = t / (1.0 + t)
        return tail, tail / (1.0 + t) * (3.0 * cubic + _SCALE)


_SCALE = 2.0 * (2.0 / math.pi) ** 0.5

# Numerators and denominators, highest power first, of the best rational approximations of
# exp(a²/2) Φ(-a): the error is below 1e-16 for a <= 38.6 (float64), and below 6e-9 for a <= 14.5
# (float32). For larger a, Φ(-a) is 0 in that dtype. They were computed with the Remez algorithm and
# 60 digits, as in Cody 1969 for erf. All coefficients are positive, so no sum loses digits by
# cancellation.
_DOUBLE = (
    2.0**20,
    (
        1.3813354973593964e-06, 3.715599693934284e-05, 0.0004893354614708768,
        0.004081825357226073, 0.02358713966922274, 0.09758375947162147,
        0.28907489409703296, 0.5936851385632871, 0.7746244647240952, 0.5,
    ),
    (
        3.4624946144432376e-06, 9.313627249805618e-05, 0.0012300445983216665,
        0.01032475511358503, 0.060343848760399846, 0.25465154504078025,
        0.7813092022561128, 1.7132182832864924, 2.560111851141543, 2.347133490251046, 1.0,
    ),
)  # fmt: skip
_SINGLE = (
    2.0**8,
    (
        0.004116308850092285, 0.040633224441589205, 0.18323513160681806,
        0.4382949420949977, 0.5000000029546384,
    ),
    (
        0.010317936406878938, 0.10185883634329847, 0.4694706138836797,
        1.20250311558214, 1.6744748654605728, 1.0,
    ),
)  # fmt: skip


def _normal_tail(xp: Namespace, a: Array) -> tuple[Array, Array]:
    """Return Φ(-a) and φ(a), distribution function and density of N(0, 1), for a from 0 to 1000."""
    grid, numerator, denominator = _DOUBLE if a.dtype == xp.float64 else _SINGLE
    # exp(-a²/2) = exp(-h²/2) exp(-r), where h has so few digits that h² is exact. Since r is below
    # 0.03, a polynomial approximates exp(-r).
    h = xp.floor(a * grid + 0.5) * (1.0 / grid)
    r = (a - h) * (a + h) * 0.5
    e = xp.exp(h * h * -0.5) * (1.0 - r * (1.0 - r * (0.5 - r * (1.0 / 6.0))))
    tail = e * _polynomial(numerator, a) / _polynomial(denominator, a)
    return tail, e * (1.0 / math.sqrt(2.0 * math.pi))


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    """Return a polynomial of `x` by Horner's rule, given its coefficients, highest power first."""
    first, second, *others = coefficients
    y = x * first + second
    for c in others:
        y = y * x + c
    return y


class Sigmoid(Layer):
    """Logistic function: ``y = 1 / (1 + exp(-x))``."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the logistic function of `x`, of the shape of `x`; it never overflows."""
        xp = floating_namespace(x, self)
        y = sigmoid(xp, x)
        if training:
            self.save_for_backward(y, y)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``dy * y * (1 - y)``."""
        y: Array = self.saved(dy)
        return dy * y * (1.0 - y)


class Tanh(Layer):
    """Hyperbolic tangent: ``y = tanh(x)``."""

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return ``tanh(x)``, of the shape of `x`."""
        xp = floating_namespace(x, self)
        y = xp.tanh(x)
        if training:
            self.save_for_backward(y, y)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``dy * (1 - y**2)``."""
        y: Array = self.saved(dy)
        return dy * (1.0 - y * y)


class Softmax(Layer):
    """Softmax over the last axis: converts scores to probabilities.

    To train a classifier, use `nnxp.SoftmaxWithLoss` instead, which is numerically stable.
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return ``exp(x) / sum(exp(x))``, of the shape of `x`.

        Raises
        ------
        InputError
            If `x` has no axis, or an empty last axis.
        """
        xp = floating_namespace(x, self)
        if x.ndim == 0 or x.shape[-1] == 0:
            raise InputError(
                f"Softmax expects rows of scores, got inputs of shape {tuple(x.shape)}"
            )
        e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
        y = e / xp.sum(e, axis=-1, keepdims=True)
        if training:
            self.save_for_backward(y, y)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``y * (dy - sum(dy * y))``: the Jacobian is diag(y) - y yᵀ."""
        y: Array = self.saved(dy)
        xp = floating_namespace(dy, self)
        return y * (dy - xp.sum(dy * y, axis=-1, keepdims=True))


ACTIVATIONS: dict[str, type[Layer]] = {
    "relu": ReLU,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "identity": Identity,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
    "gelu": GELU,
    "silu": SiLU,
    "softplus": Softplus,
}
"""The activations of hidden layers, by name."""
