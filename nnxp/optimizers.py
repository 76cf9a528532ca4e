"""Optimizers: they update parameters by their gradients.

Parameters and gradients are mappings of names to arrays. ``params[name] -= step`` changes the array
in place if its library allows that; if not (JAX), it assigns a new array, which ``-=`` on a local
variable would lose.
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

    A subclass lists in `slots` the names of its state and defines
    ``_update_one(params, name, gradient, *factors)``, its rule for one parameter. It overrides
    `factors` if more than the learning rate changes between steps.

    Parameters
    ----------
    learning_rate : float
        Factor of each update: a positive number. It may be changed between updates.

    Attributes
    ----------
    steps : int
        Number of updates so far.
    state : dict of str to dict of str to array
        What the optimizer stores for each parameter, such as ``state["velocity"]["W1"]``.
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
        """The factor of each update: a positive number."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = require_number("learning_rate", value, POSITIVE)

    def update(self, params: Params, grads: Mapping[str, Array]) -> None:
        """Change each of `params` by one step.

        Parameters
        ----------
        params, grads : mapping of str to array
            The same names, with arrays of the same shapes.

        Raises
        ------
        InputError
            If names, shapes, dtypes or devices of `params` and `grads` differ, or differ from
            those of earlier updates; nothing is changed then.
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
        """Raise the errors of `update`; change nothing."""
        if params.keys() != grads.keys():
            raise InputError(
                f"update expects a gradient for each parameter, got parameters "
                f"{', '.join(params)} and gradients {', '.join(grads)}"
            )
        for name, gradient in grads.items():
            expected = _shape_device_dtype(params[name])
            if _shape_device_dtype(gradient) != expected:
                raise InputError(
                    f"update expects {name} and its gradient to have one shape, dtype and device, "
                    f"got {describe(params[name])}; and {describe(gradient)}; convert with the "
                    "network's device.asarray"
                )
            for slot in self.state.values():
                if name in slot and _shape_device_dtype(slot[name]) != expected:
                    raise InputError(
                        f"{self!r} has already trained another {name}, "
                        f"{describe(slot[name])}; make a new optimizer for each network"
                    )

    def factors(self) -> tuple[float, ...]:
        """Return the factors of update number `steps`: here the learning rate alone."""
        return (self.learning_rate,)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        """Update the parameter `name`, whose entries in `state` exist."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent: ``w -= learning_rate * g`` (Robbins and Monro 1951).

    Parameters
    ----------
    learning_rate : float, optional
        Factor of each update: a positive number; 0.1 by default.
    """

    def __init__(self, learning_rate: float = 0.1) -> None:
        super().__init__(learning_rate)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        (rate,) = factors
        params[name] -= rate * gradient


class Momentum(Optimizer):
    """Heavy ball: ``v = momentum * v + g``, ``w -= learning_rate * v`` (Polyak 1964).

    As in PyTorch, the velocity does not contain the learning rate, so a change has effect at once.

    Parameters
    ----------
    learning_rate : float, optional
        Factor of each update: a positive number; 0.01 by default.
    momentum : float, optional
        Factor of the velocity in each update: at least 0 and below 1; 0.9 by default.
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

    Sutskever et al. 2013, sec. 2; as in PyTorch, ``w`` is the look-ahead point.

    Parameters
    ----------
    learning_rate : float, optional
        Factor of each update: a positive number; 0.01 by default.
    momentum : float, optional
        Factor of the velocity in each update: at least 0 and below 1; 0.9 by default.
    """

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        (rate,) = factors
        velocity = self.state["velocity"]
        velocity[name] *= self.momentum
        velocity[name] += gradient
        params[name] -= rate * (gradient + self.momentum * velocity[name])


class AdaGrad(Optimizer):
    """AdaGrad: ``s += g²``, ``w -= learning_rate * g / (sqrt(s) + epsilon)``.

    Duchi et al. 2011, sec. 1.1, the diagonal form.

    Parameters
    ----------
    learning_rate : float, optional
        Factor of each update: a positive number; 0.01 by default.
    epsilon : float, optional
        Added to the denominator, which may be 0: a positive number; 1e-10 by default.
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
    """RMSprop: ``s = decay * s + (1 - decay) * g²``, then the step of AdaGrad.

    Tieleman and Hinton 2012, lecture 6.5.

    Parameters
    ----------
    learning_rate : float, optional
        Factor of each update: a positive number; 0.001 by default.
    decay : float, optional
        Factor of the mean of squares in each update: at least 0 and below 1; 0.99 by default.
    epsilon : float, optional
        Added to the denominator, which may be 0: a positive number; 1e-8 by default.
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
    """Adam: means of gradients and of their squares, both with bias correction.

    Kingma and Ba 2015, algorithm 1, in the more efficient order at the end of its section 2.

    Parameters
    ----------
    learning_rate : float, optional
        Factor of each update: a positive number; 0.001 by default.
    beta1 : float, optional
        Factor of the mean in each update: at least 0 and below 1; 0.9 by default.
    beta2 : float, optional
        Factor of the mean of squares in each update: at least 0 and below 1; 0.999 by default.
    epsilon : float, optional
        Added to the denominator, which may be 0: a positive number; 1e-8 by default.
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
        """Return learning rate and epsilon of update number `steps`, with bias correction."""
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

    Parameters
    ----------
    learning_rate : float, optional
        Factor of each update: a positive number; 0.001 by default.
    beta1, beta2, epsilon : float, optional
        As in `Adam`.
    weight_decay : float, optional
        Factor of the decay: a number of at least 0; 0.01 by default.
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
        """Return those of `Adam`, and the factor by which each parameter decays."""
        return *super().factors(), 1 - self.learning_rate * self.weight_decay

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Any) -> None:
        *adam_factors, decay = factors
        params[name] *= decay
        super()._update_one(params, name, gradient, *adam_factors)


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


def _shape_device_dtype(x: Array) -> tuple[Any, ...]:
    """Return what must be equal for a parameter, its gradient and its state."""
    try:
        # The device before the dtype: comparing dtypes of two libraries may raise.
        return x.shape, device_of(x), x.dtype
    except AttributeError:
        raise InputError(f"update expects arrays, got {type(x).__name__}") from None
