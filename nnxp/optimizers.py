"""Optimizers: how a gradient becomes a step.

They know dictionaries of arrays and no layer. ``params[name] -= step`` changes the array in place
where its library can and rebinds the name where not (JAX); a loop variable would lose the second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, TypeAlias

from nnxp.arrays import Array, describe, device_of, namespace_of
from nnxp.checks import FRACTION, NOT_NEGATIVE, POSITIVE, require_number
from nnxp.errors import InputError

Params: TypeAlias = MutableMapping[str, Array]


class Optimizer:
    """Base class of all optimizers.

    A subclass names in `slots` what it remembers of each parameter, and writes
    ``_update_one(params, name, gradient, *factors)``, its rule for one parameter; and `factors`,
    where more than the learning rate changes between steps.

    Parameters
    ----------
    learning_rate : float
        May be changed between updates.

    Attributes
    ----------
    steps : int
        Number of updates so far.
    state : dict of str to dict of str to array
        What the optimizer remembers of each parameter, such as ``state["velocity"]["W1"]``.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.steps = 0
        self.state: dict[str, dict[str, Array]] = {slot: {} for slot in self.slots}

    def __repr__(self) -> str:
        settings = {k.lstrip("_"): v for k, v in vars(self).items() if isinstance(v, float)}
        return f"{type(self).__name__}({', '.join(f'{k}={v:g}' for k, v in settings.items())})"

    @property
    def learning_rate(self) -> float:
        """The factor of each step: a positive number."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = require_number("learning_rate", value, POSITIVE)

    def update(self, params: Params, grads: Mapping[str, Array]) -> None:
        """Move each of `params` one step down its gradient.

        Parameters
        ----------
        params, grads : mapping of str to array
            The same names, with arrays of the same shapes.

        Raises
        ------
        InputError
            If names, shapes, dtypes or devices differ, from each other's or from those of the
            updates before; nothing is changed then.
        """
        self.require(params, grads)
        self.steps += 1
        factors = self.factors()
        for name in params:
            for slot in self.state.values():
                if name not in slot:
                    slot[name] = namespace_of(params[name], self).zeros_like(params[name])
            self._update_one(params, name, grads[name], *factors)

    def require(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Raise `update`'s errors, if any."""
        if params.keys() != grads.keys():
            raise InputError(
                f"update expects a gradient for each parameter, got parameters "
                f"{', '.join(params)} and gradients {', '.join(grads)}"
            )
        for name, gradient in grads.items():
            like = _kind(params[name])
            if _kind(gradient) != like:
                raise InputError(
                    f"update expects a gradient of {name} like it, got {describe(params[name])}; "
                    f"and {describe(gradient)}; convert with the network's device.asarray"
                )
            for slot in self.state.values():
                if name in slot and _kind(slot[name]) != like:
                    raise InputError(
                        f"{self!r} has already trained another {name}, "
                        f"{describe(slot[name])}; make a new optimizer for each network"
                    )

    def factors(self) -> tuple[float, ...]:
        """Return the numbers of the coming step that change between steps: the learning rate."""
        return (self.learning_rate,)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        """Move the one parameter `name` by `factors`; its slots of `state` exist."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent: ``w -= learning_rate * g``."""

    def __init__(self, learning_rate: float = 0.1) -> None:
        super().__init__(learning_rate)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        (rate,) = factors
        params[name] -= rate * gradient


class Momentum(Optimizer):
    """Heavy ball: ``v = momentum * v + g``, ``w -= learning_rate * v`` (Polyak 1964).

    As in PyTorch, the learning rate stands outside the velocity, so changing it acts at once.
    """

    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    def __init__(self, learning_rate: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(learning_rate)
        self.momentum = require_number("momentum", momentum, FRACTION)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        (rate,) = factors
        velocity = self.state["velocity"]
        velocity[name] *= self.momentum
        velocity[name] += gradient
        params[name] -= rate * velocity[name]


class Nesterov(Momentum):
    """Nesterov's momentum: ``v = momentum * v + g``, ``w -= learning_rate * (g + momentum * v)``.

    The form of Sutskever et al. 2013, sec. 2, evaluated at the point looked ahead to, as in
    PyTorch.
    """

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        (rate,) = factors
        velocity = self.state["velocity"]
        velocity[name] *= self.momentum
        velocity[name] += gradient
        params[name] -= rate * (gradient + self.momentum * velocity[name])


class AdaGrad(Optimizer):
    """AdaGrad: ``s += g²``, ``w -= learning_rate * g / (sqrt(s) + epsilon)``.

    Duchi et al. 2011, the diagonal form of sec. 1.1.
    """

    slots: ClassVar[tuple[str, ...]] = ("square_sum",)

    def __init__(self, learning_rate: float = 0.01, epsilon: float = 1e-10) -> None:
        super().__init__(learning_rate)
        self.epsilon = require_number("epsilon", epsilon, POSITIVE)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        (rate,) = factors
        xp = namespace_of(gradient, self)
        square_sum = self.state["square_sum"]
        square_sum[name] += gradient * gradient
        params[name] -= rate * gradient / (xp.sqrt(square_sum[name]) + self.epsilon)


class RMSprop(Optimizer):
    """RMSprop: ``s = decay * s + (1 - decay) * g²``, then AdaGrad's step.

    Tieleman and Hinton 2012, lecture 6.5.
    """

    slots: ClassVar[tuple[str, ...]] = ("square_mean",)

    def __init__(
        self, learning_rate: float = 0.001, decay: float = 0.99, epsilon: float = 1e-8
    ) -> None:
        super().__init__(learning_rate)
        self.decay = require_number("decay", decay, FRACTION)
        self.epsilon = require_number("epsilon", epsilon, POSITIVE)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        (rate,) = factors
        xp = namespace_of(gradient, self)
        square_mean = self.state["square_mean"]
        square_mean[name] *= self.decay
        square_mean[name] += (1 - self.decay) * gradient * gradient
        params[name] -= rate * gradient / (xp.sqrt(square_mean[name]) + self.epsilon)


class Adam(Optimizer):
    """Adam: momentum and RMSprop, both corrected for their start at 0.

    Kingma and Ba 2015, algorithm 1, in the order of the end of its section 2, which is faster.
    """

    slots: ClassVar[tuple[str, ...]] = ("mean", "square_mean")

    def __init__(
        self,
        learning_rate: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(learning_rate)
        self.beta1 = require_number("beta1", beta1, FRACTION)
        self.beta2 = require_number("beta2", beta2, FRACTION)
        self.epsilon = require_number("epsilon", epsilon, POSITIVE)

    def factors(self) -> tuple[float, ...]:
        """Return the rate with both means' corrections, and epsilon with the square mean's."""
        correction = math.sqrt(1 - self.beta2**self.steps)
        rate = self.learning_rate / (1 - self.beta1**self.steps)
        return rate * correction, self.epsilon * correction

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        rate, epsilon = factors
        xp = namespace_of(gradient, self)
        mean, square_mean = self.state["mean"], self.state["square_mean"]
        mean[name] *= self.beta1
        mean[name] += (1 - self.beta1) * gradient
        square_mean[name] *= self.beta2
        square_mean[name] += (1 - self.beta2) * gradient * gradient
        params[name] -= rate * mean[name] / (xp.sqrt(square_mean[name]) + epsilon)


class AdamW(Adam):
    """Adam with decoupled weight decay: first ``w -= learning_rate * weight_decay * w``.

    Loshchilov and Hutter 2019, algorithm 2; as in PyTorch, biases decay too.
    """

    def __init__(
        self,
        learning_rate: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon)
        self.weight_decay = require_number("weight_decay", weight_decay, NOT_NEGATIVE)

    def factors(self) -> tuple[float, ...]:
        """Return Adam's, and the share of each parameter that the decay leaves."""
        return *super().factors(), 1 - self.learning_rate * self.weight_decay

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        *adams, kept = factors
        params[name] *= kept
        super()._update_one(params, name, gradient, *adams)


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "momentum": Momentum,
    "nesterov": Nesterov,
    "adagrad": AdaGrad,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
}
"""The optimizers by name."""


def _kind(x: Array) -> tuple[Any, ...]:
    """Return what a parameter, its gradient and its state have in common."""
    try:
        # The device before the dtype: dtypes of two libraries may refuse to be compared.
        return x.shape, device_of(x), x.dtype
    except AttributeError:
        raise InputError(f"update expects arrays, got {type(x).__name__}") from None
