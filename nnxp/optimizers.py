"""Optimizers: they update parameters by their gradients.

Parameters and gradients are mappings of names to arrays. ``params[name] -= step`` changes the array
in place if its library allows that; if not (JAX), it assigns a new array, which ``-=`` on a local
variable would lose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import Any, ClassVar, Self, TypeAlias

from nnxp.arrays import Array, describe, device_of, namespace_of
from nnxp.checks import FRACTION, NOT_NEGATIVE, POSITIVE
from nnxp.errors import InputError
from nnxp.parts import Part, Setting

Params: TypeAlias = MutableMapping[str, Array]
Factor: TypeAlias = float | Array


class Optimizer(Part):
    """Base class of all optimizers.

    A subclass names in `slots` what it stores for each parameter, returns in `factors` all numbers
    of a step, and defines ``_update_one(params, name, gradient, *factors)``, its rule for one
    parameter, which uses no other numbers. Or it overrides `update`.

    Parameters
    ----------
    learning_rate : float
        A positive number; may be changed between updates, as may all settings.

    Attributes
    ----------
    steps : int
        Number of updates so far.
    state : dict of str to dict of str to array
        What is stored for each parameter, such as ``state["velocity"]["W1"]``.
    slots : tuple of str
        The names of the arrays that are stored for each parameter.
    elementwise : bool
        Whether the rule changes each number of a parameter by that number, its gradient and its
        state alone, and not by the parameter's name or shape. Captured steps then update all
        parameters as one vector.
    """

    slots: ClassVar[tuple[str, ...]] = ()
    elementwise: ClassVar[bool] = False
    changing: ClassVar[frozenset[str]] = frozenset({"steps", "state", "_trained"})

    learning_rate = Setting(POSITIVE)
    steps: int
    state: dict[str, dict[str, Array]]
    _trained: object = None  # the identity of the network whose state is stored

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make steps and state, also for a subclass whose __init__ does not call this class's."""
        optimizer = super().__new__(cls)
        optimizer.steps = 0
        optimizer.state = {slot: {} for slot in cls.slots}
        return optimizer

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name != "_trained"}

    def update(self, params: Params, grads: Mapping[str, Array]) -> None:
        """Change each of `params` by one step.

        Parameters
        ----------
        params, grads : mapping of str to array
            The same names, with arrays of the same shapes. Parameters of a frozen layer have no
            gradient.

        Raises
        ------
        InputError
            If names, shapes, dtypes or devices differ, from each other or from earlier updates, or
            the parameters are another network's; nothing is changed then.
        """
        self.require(params, grads)
        self.steps += 1
        factors = self.factors()
        for name in grads:
            for slot in self.state.values():
                if name not in slot:
                    slot[name] = namespace_of(params[name], self).zeros_like(params[name])
            self._update_one(params, name, grads[name], *factors)

    def require(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Raise the errors of `update`; change nothing."""
        updated = getattr(params, "trainable", params)
        if updated.keys() != grads.keys():
            raise InputError(
                f"update expects a gradient for each parameter, got parameters "
                f"{', '.join(updated)} and gradients {', '.join(grads)}"
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
        self._require_same_network(params)

    def _require_same_network(self, params: Mapping[str, Array]) -> None:
        """Raise if state of one network would be used for another one of the same widths."""
        identity = getattr(params, "identity", None)
        if identity is None:
            return
        if self._trained not in (None, identity) and any(self.state.values()):
            raise InputError(
                f"{self!r} has already trained another network; make a new optimizer for each "
                "network"
            )
        self._trained = identity

    def factors(self) -> tuple[float, ...]:
        """Return all numbers of the coming step; here the learning rate."""
        return (self.learning_rate,)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Factor) -> None:
        """Update the parameter `name`, whose entries in `state` exist, by these numbers."""
        raise NotImplementedError(f"{type(self).__name__} defines neither _update_one nor update")


class SGD(Optimizer):
    """Stochastic gradient descent: ``w -= learning_rate * g`` (Robbins and Monro 1951).

    Parameters
    ----------
    learning_rate : float, optional
        A positive number.
    """

    elementwise = True

    def __init__(self, learning_rate: float = 0.1) -> None:
        super().__init__(learning_rate)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Factor) -> None:
        (rate,) = factors
        params[name] -= rate * gradient


class Momentum(Optimizer):
    """Heavy ball: ``v = momentum * v + g``, ``w -= learning_rate * v`` (Polyak 1964).

    As in PyTorch, the learning rate is not part of the velocity, so that changing it has an effect
    at once.

    Parameters
    ----------
    learning_rate : float, optional
        A positive number.
    momentum : float, optional
        At least 0 and below 1.
    """

    slots: ClassVar[tuple[str, ...]] = ("velocity",)
    elementwise = True

    momentum = Setting(FRACTION)

    def __init__(self, learning_rate: float = 0.01, momentum: float = 0.9) -> None:
        super().__init__(learning_rate)
        self.momentum = momentum

    def factors(self) -> tuple[float, ...]:
        """Return learning rate and momentum."""
        return self.learning_rate, self.momentum

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Factor) -> None:
        rate, momentum = factors
        velocity = self.state["velocity"]
        velocity[name] *= momentum
        velocity[name] += gradient
        params[name] -= rate * velocity[name]


class Nesterov(Momentum):
    """Nesterov's momentum: ``v = momentum * v + g``, ``w -= learning_rate * (g + momentum * v)``.

    Sutskever et al. 2013, sec. 2, with the gradient at the point looked ahead to, as in PyTorch.
    The parameters are those of `Momentum`.
    """

    elementwise = True

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Factor) -> None:
        rate, momentum = factors
        velocity = self.state["velocity"]
        velocity[name] *= momentum
        velocity[name] += gradient
        params[name] -= rate * (gradient + momentum * velocity[name])


class AdaGrad(Optimizer):
    """AdaGrad: ``s += g²``, ``w -= learning_rate * g / (sqrt(s) + epsilon)``.

    Duchi et al. 2011, the diagonal form of sec. 1.1.

    Parameters
    ----------
    learning_rate : float, optional
        A positive number.
    epsilon : float, optional
        A positive number.
    """

    slots: ClassVar[tuple[str, ...]] = ("square_sum",)
    elementwise = True

    epsilon = Setting(POSITIVE)

    def __init__(self, learning_rate: float = 0.01, epsilon: float = 1e-10) -> None:
        super().__init__(learning_rate)
        self.epsilon = epsilon

    def factors(self) -> tuple[float, ...]:
        """Return learning rate and epsilon."""
        return self.learning_rate, self.epsilon

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Factor) -> None:
        rate, epsilon = factors
        xp = namespace_of(gradient, self)
        square_sum = self.state["square_sum"]
        square_sum[name] += gradient * gradient
        params[name] -= rate * gradient / (xp.sqrt(square_sum[name]) + epsilon)


class RMSprop(Optimizer):
    """RMSprop: ``s = decay * s + (1 - decay) * g²``, then AdaGrad's step.

    Tieleman and Hinton 2012, lecture 6.5.

    Parameters
    ----------
    learning_rate : float, optional
        A positive number.
    decay : float, optional
        At least 0 and below 1.
    epsilon : float, optional
        A positive number.
    """

    slots: ClassVar[tuple[str, ...]] = ("square_mean",)
    elementwise = True

    decay = Setting(FRACTION)
    epsilon = Setting(POSITIVE)

    def __init__(
        self, learning_rate: float = 0.001, decay: float = 0.99, epsilon: float = 1e-8
    ) -> None:
        super().__init__(learning_rate)
        self.decay = decay
        self.epsilon = epsilon

    def factors(self) -> tuple[float, ...]:
        """Return learning rate, decay, ``1 - decay`` and epsilon."""
        return self.learning_rate, self.decay, 1 - self.decay, self.epsilon

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Factor) -> None:
        rate, decay, share, epsilon = factors
        xp = namespace_of(gradient, self)
        square_mean = self.state["square_mean"]
        square_mean[name] *= decay
        square_mean[name] += share * gradient * gradient
        params[name] -= rate * gradient / (xp.sqrt(square_mean[name]) + epsilon)


class Adam(Optimizer):
    """Adam: momentum and RMSprop, both corrected for their start at 0.

    Kingma and Ba 2015, algorithm 1, in the order of the end of its section 2, which is faster.

    Parameters
    ----------
    learning_rate : float, optional
        A positive number.
    beta1, beta2 : float, optional
        At least 0 and below 1: the decay of the mean and of the mean square.
    epsilon : float, optional
        A positive number.
    """

    slots: ClassVar[tuple[str, ...]] = ("mean", "square_mean")
    elementwise = True

    beta1 = Setting(FRACTION)
    beta2 = Setting(FRACTION)
    epsilon = Setting(POSITIVE)

    def __init__(
        self,
        learning_rate: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(learning_rate)
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon

    def factors(self) -> tuple[float, ...]:
        """Return rate and epsilon with the corrections, and both betas with ``1 - beta``."""
        correction = math.sqrt(1 - self.beta2**self.steps)
        rate = self.learning_rate / (1 - self.beta1**self.steps)
        betas = self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2
        return rate * correction, self.epsilon * correction, *betas

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Factor) -> None:
        rate, epsilon, beta1, share1, beta2, share2 = factors
        xp = namespace_of(gradient, self)
        mean, square_mean = self.state["mean"], self.state["square_mean"]
        mean[name] *= beta1
        mean[name] += share1 * gradient
        square_mean[name] *= beta2
        square_mean[name] += share2 * gradient * gradient
        params[name] -= rate * mean[name] / (xp.sqrt(square_mean[name]) + epsilon)


class AdamW(Adam):
    """Adam with decoupled weight decay: first ``w -= learning_rate * weight_decay * w``.

    Loshchilov and Hutter 2019, algorithm 2; as in PyTorch, biases decay too.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon : float, optional
        As in `Adam`.
    weight_decay : float, optional
        At least 0.
    """

    elementwise = True

    weight_decay = Setting(NOT_NEGATIVE)

    def __init__(
        self,
        learning_rate: float = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon)
        self.weight_decay = weight_decay

    def factors(self) -> tuple[float, ...]:
        """Return Adam's, and the share of each parameter that the decay leaves."""
        return *super().factors(), 1 - self.learning_rate * self.weight_decay

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Factor) -> None:
        *adam_factors, remaining = factors
        params[name] *= remaining
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
