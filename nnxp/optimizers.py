"""Optimizers: they update parameters by their gradients.

Parameters and gradients are mappings of names to arrays. ``params[name] -= step`` changes the array
in place if its library allows that; if not (JAX), it assigns a new array, which ``-=`` on a local
variable would lose.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, ClassVar, Self, TypeAlias, TypedDict, Unpack

from nnxp.arrays import Array, describe, device_of, namespace_of
from nnxp.checks import (
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Selection,
    is_selected,
    object_remedy,
    require_number,
    require_selection,
)
from nnxp.errors import ArgumentError, InputError
from nnxp.parts import Part, Setting
from nnxp.schedules import Schedule

Params: TypeAlias = MutableMapping[str, Array]
Factor: TypeAlias = float | Array


class _Rate(Setting):
    """A positive number, or a schedule that gives a number for each step."""

    def __get__(self, part: Any, owner: type) -> Any:
        value: Any = super().__get__(part, owner)
        if not isinstance(value, Schedule):
            return value
        rate = value(part.steps)
        return require_number(f"the rate of {value!r} at step {part.steps}", rate, NOT_NEGATIVE)

    def __set__(self, part: object, value: object) -> None:
        if isinstance(value, Schedule):
            vars(part)[self._name] = value
        elif callable(value):
            raise InputError(
                f"learning_rate must be a positive number or a schedule, got {value!r}; use an "
                "object of nnxp.schedules, or of your own subclass of nnxp.schedules.Schedule"
                + object_remedy(value)
            )
        else:
            super().__set__(part, value)


class _DecayRate(Setting):
    """A weight decay; whether there is one is an attribute of its own, which is not a number."""

    def __set__(self, part: object, value: object) -> None:
        super().__set__(part, value)
        vars(part)["_decays"] = vars(part)[self._name] > 0


class Decay(TypedDict, total=False):
    """The settings of the weight decay; see `Optimizer`."""

    weight_decay: float
    decayed: str | Iterable[str]


class Optimizer(Part):
    """Base class of all optimizers.

    A subclass names in `slots` what it stores for each parameter, returns in `factors` all numbers
    of a step, and defines ``_update_one(params, name, gradient, *factors)``, its rule for one
    parameter, which uses no other numbers. Or it overrides `update`.

    Parameters
    ----------
    learning_rate : float or Schedule
        A positive number, or a schedule of `nnxp.schedules`; may be changed between updates, as may
        all settings. As an attribute, it is the number of the coming step.
    weight_decay : float, optional
        At least 0. Before each update, parameters are multiplied by
        ``1 - learning_rate * weight_decay`` (decoupled weight decay: Loshchilov and Hutter 2019,
        algorithms 1 and 2). A decay of the gradient is `nnxp.L2`.
    decayed : str or iterable of str, optional
        Which parameters decay: ``"all"``, ``"matrices"``, or names, as in `nnxp.L2`.

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

    learning_rate = _Rate(POSITIVE)
    weight_decay = _DecayRate(NOT_NEGATIVE)
    decayed: Selection = "all"
    _decays: bool = False
    steps: int
    state: dict[str, dict[str, Array]]
    _trained: object = None  # the identity of the network whose state is stored

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Make steps and state, also for a subclass whose __init__ does not call this class's."""
        optimizer = super().__new__(cls, *args, **settings)
        optimizer.steps = 0
        optimizer.state = {slot: {} for slot in cls.slots}
        return optimizer

    @classmethod
    def _unknown_setting(cls, name: str, known: Iterable[str]) -> ArgumentError:
        if name in ("momentum", "nesterov"):
            other = "Nesterov" if name == "nesterov" else "Momentum"
            return ArgumentError(
                f"{cls.__name__} has no {name}; use nnxp.{other}(learning_rate, momentum=0.9)"
            )
        return super()._unknown_setting(name, known)

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        weight_decay: float = 0.0,
        decayed: str | Iterable[str] = "all",
    ) -> None:
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.decayed = require_selection("decayed", decayed)

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
        numbers = self.numbers()
        for name in grads:
            for slot in self.state.values():
                if name not in slot:
                    slot[name] = namespace_of(params[name], self).zeros_like(params[name])
            self.update_one(params, name, grads[name], numbers, self.decays(name, params[name]))
        self.steps += 1

    def update_one(
        self,
        params: Params,
        name: str,
        gradient: Array,
        numbers: Sequence[Factor],
        decays: bool,
    ) -> None:
        """Update the parameter `name`, whose state exists, by the `numbers` of the step."""
        remaining, *factors = numbers
        if decays:
            params[name] *= remaining
        self._update_one(params, name, gradient, *factors)

    def decays(self, name: str, parameter: Array) -> bool:
        """Return whether a parameter decays."""
        return self._decays and is_selected(self.decayed, name, parameter)

    def numbers(self) -> tuple[float, ...]:
        """Return the share of each parameter that the decay leaves, and `factors`."""
        decay = self.learning_rate * self.weight_decay if self._decays else 0.0
        return 1.0 - decay, *self.factors()

    def require(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Raise the errors of `update`; change nothing."""
        updated = getattr(params, "trainable", params)
        if updated.keys() != grads.keys():
            raise InputError(
                f"update expects a gradient for each parameter, got parameters "
                f"{', '.join(updated)} and gradients {', '.join(grads)}"
            )
        for name, gradient in grads.items():
            parameter = params[name]
            if gradient is not parameter and not _are_alike(gradient, parameter):
                raise InputError(
                    f"update expects {name} and its gradient to have one shape, dtype and device, "
                    f"got {describe(parameter)}; and {describe(gradient)}; convert with the "
                    "network's device.asarray"
                )
            for slot in self.state.values():
                if name in slot and not _are_alike(slot[name], parameter):
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
        """Return all numbers of the coming step, after `steps` others; here the learning rate."""
        return (self.learning_rate,)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Factor) -> None:
        """Update the parameter `name`, whose entries in `state` exist, by these numbers."""
        raise NotImplementedError(f"{type(self).__name__} defines neither _update_one nor update")


class SGD(Optimizer):
    """Stochastic gradient descent: ``w -= learning_rate * g`` (Robbins and Monro 1951).

    Parameters
    ----------
    learning_rate : float or Schedule, optional
        As in `Optimizer`.
    weight_decay, decayed : optional
        As in `Optimizer`.
    """

    elementwise = True

    def __init__(self, learning_rate: float | Schedule = 0.1, **options: Unpack[Decay]) -> None:
        super().__init__(learning_rate, **options)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Factor) -> None:
        (rate,) = factors
        params[name] -= rate * gradient


class Momentum(Optimizer):
    """Heavy ball: ``v = momentum * v + g``, ``w -= learning_rate * v`` (Polyak 1964).

    As in PyTorch, the learning rate is not part of the velocity, so that changing it has an effect
    at once.

    Parameters
    ----------
    learning_rate : float or Schedule, optional
        As in `Optimizer`.
    momentum : float, optional
        At least 0 and below 1.
    weight_decay, decayed : optional
        As in `Optimizer`.
    """

    slots: ClassVar[tuple[str, ...]] = ("velocity",)
    elementwise = True

    momentum = Setting(FRACTION)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        momentum: float = 0.9,
        **options: Unpack[Decay],
    ) -> None:
        super().__init__(learning_rate, **options)
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
    learning_rate : float or Schedule, optional
        As in `Optimizer`.
    epsilon : float, optional
        A positive number.
    weight_decay, decayed : optional
        As in `Optimizer`.
    """

    slots: ClassVar[tuple[str, ...]] = ("square_sum",)
    elementwise = True

    epsilon = Setting(POSITIVE)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.01,
        epsilon: float = 1e-10,
        **options: Unpack[Decay],
    ) -> None:
        super().__init__(learning_rate, **options)
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
    learning_rate : float or Schedule, optional
        As in `Optimizer`.
    decay : float, optional
        At least 0 and below 1.
    epsilon : float, optional
        A positive number.
    weight_decay, decayed : optional
        As in `Optimizer`.
    """

    slots: ClassVar[tuple[str, ...]] = ("square_mean",)
    elementwise = True

    decay = Setting(FRACTION)
    epsilon = Setting(POSITIVE)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        decay: float = 0.99,
        epsilon: float = 1e-8,
        **options: Unpack[Decay],
    ) -> None:
        super().__init__(learning_rate, **options)
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
    learning_rate : float or Schedule, optional
        As in `Optimizer`.
    beta1, beta2 : float, optional
        At least 0 and below 1: the decay of the mean and of the mean square.
    epsilon : float, optional
        A positive number.
    weight_decay, decayed : optional
        As in `Optimizer`.
    """

    slots: ClassVar[tuple[str, ...]] = ("mean", "square_mean")
    elementwise = True

    beta1 = Setting(FRACTION)
    beta2 = Setting(FRACTION)
    epsilon = Setting(POSITIVE)

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        **options: Unpack[Decay],
    ) -> None:
        super().__init__(learning_rate, **options)
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon

    def factors(self) -> tuple[float, ...]:
        """Return rate and epsilon with the corrections, and both betas with ``1 - beta``."""
        beta1, beta2, count = self.beta1, self.beta2, self.steps + 1
        correction = math.sqrt(1 - beta2**count)
        rate = self.learning_rate / (1 - beta1**count)
        return rate * correction, self.epsilon * correction, beta1, 1 - beta1, beta2, 1 - beta2

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
    learning_rate, beta1, beta2, epsilon : optional
        As in `Adam`.
    weight_decay, decayed : optional
        As in `Optimizer`.
    """

    elementwise = True

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        decayed: str | Iterable[str] = "all",
    ) -> None:
        super().__init__(
            learning_rate, beta1, beta2, epsilon, weight_decay=weight_decay, decayed=decayed
        )


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


def _are_alike(x: Array, parameter: Array) -> bool:
    """Return whether a gradient or state has the shape, device and dtype of its parameter."""
    try:
        same_place = x.shape == parameter.shape and device_of(x) == device_of(parameter)
        return same_place and x.dtype == parameter.dtype  # of one library, or it might raise
    except AttributeError:
        kind = type(parameter if hasattr(x, "dtype") else x).__name__
        raise InputError(f"update expects arrays, got {kind}") from None
