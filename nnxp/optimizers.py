"""Optimizers: updates of the parameters by their gradients.

Parameters and gradients are mappings of names to arrays. An update is ``params[name] -= step``: it
changes the array in place if its library allows that, and otherwise (JAX) assigns a new array.
``-=`` on a local variable would lose the new array.
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
    """Descriptor of a positive number, or a schedule that returns a number for each step."""

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
    """Descriptor of the weight decay; it also sets `_decays`, whether it is above 0."""

    def __set__(self, part: object, value: object) -> None:
        super().__set__(part, value)
        vars(part)["_decays"] = vars(part)[self._name] > 0


class Decay(TypedDict, total=False):
    """The settings of the weight decay; see `Optimizer`."""

    weight_decay: float
    decayed: str | Iterable[str]


class Optimizer(Part):
    """Base class of all optimizers.

    A subclass lists in `slots` the arrays that it stores for each parameter, returns all numbers of
    a step in `factors`, and defines ``_update_one(params, name, gradient, *factors)``, the update
    of one parameter, which must not use other numbers. Alternatively, it overrides `update`.

    All settings may be changed between updates.

    Parameters
    ----------
    learning_rate : float or Schedule
        A positive number, or a schedule of `nnxp.schedules`. The attribute is the number for the
        next step.
    weight_decay : float, optional
        At least 0; 0 by default. Before each update, parameters are multiplied by
        ``1 - learning_rate * weight_decay`` (decoupled weight decay: Loshchilov and Hutter 2019,
        algorithms 1 and 2). For weight decay in the gradient, use the penalty `nnxp.L2`.
    decayed : str or iterable of str, optional
        The parameters that decay: ``"all"`` (default), ``"matrices"``, or names, as in `nnxp.L2`.

    Attributes
    ----------
    steps : int
        Number of updates so far.
    state : dict of str to dict of str to array
        The arrays that are stored for each parameter, such as ``state["velocity"]["W1"]``.
    slots : tuple of str
        The names of these arrays, such as ``("velocity",)``.
    elementwise : bool
        Whether the update of each element depends only on that element, its gradient and its state,
        and not on the parameter's name or shape. Captured steps then update all parameters as one
        vector.
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
        """Make steps and state, even if a subclass's ``__init__`` does not call ``super()``."""
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
            Parameters and gradients, with the same names and arrays of the same shapes. Parameters
            of a frozen layer have no gradient.

        Raises
        ------
        InputError
            If names, shapes, dtypes or devices differ from each other or from earlier updates, or
            the parameters are those of another network. Nothing is changed in this case.
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
        """Update the parameter `name` with the `numbers` of the step; its state must exist."""
        remaining, *factors = numbers
        if decays:
            params[name] *= remaining
        self._update_one(params, name, gradient, *factors)

    def decays(self, name: str, parameter: Array) -> bool:
        """Return whether a parameter decays."""
        return self._decays and is_selected(self.decayed, name, parameter)

    def numbers(self) -> tuple[float, ...]:
        """Return ``1 - learning_rate * weight_decay``, followed by `factors`."""
        decay = self.learning_rate * self.weight_decay if self._decays else 0.0
        return 1.0 - decay, *self.factors()

    def require(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Raise the errors of `update`, without changing anything."""
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
        """Raise if the state belongs to another network, even one of the same shapes."""
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
        """Return all numbers of the next step, whose index is `steps`; here the learning rate."""
        return (self.learning_rate,)

    def _update_one(self, params: Params, name: str, gradient: Array, *factors: Factor) -> None:
        """Update the parameter `name` with these numbers; its entries in `state` exist."""
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
    """SGD with momentum: ``v = momentum * v + g``, ``w -= learning_rate * v`` (Polyak 1964).

    As in PyTorch, the velocity does not include the learning rate, so a changed learning rate takes
    effect at once.

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
    """Nesterov momentum: ``v = momentum * v + g``, ``w -= learning_rate * (g + momentum * v)``.

    Sutskever et al. 2013, sec. 2, in PyTorch's form, where the parameters are those of the
    lookahead point. The constructor takes the parameters of `Momentum`.
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
        params[name] -= rate * (gradient / (xp.sqrt(square_sum[name]) + epsilon))


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
        square_mean[name] += share * (gradient * gradient)
        params[name] -= rate * (gradient / (xp.sqrt(square_mean[name]) + epsilon))


class Adam(Optimizer):
    """Adam: momentum and RMSprop, both with bias correction.

    Kingma and Ba 2015, algorithm 1, in the more efficient order of operations from section 2.

    Parameters
    ----------
    learning_rate : float or Schedule, optional
        As in `Optimizer`.
    beta1, beta2 : float, optional
        The decay rates of the mean and of the mean square, at least 0 and below 1.
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
        """Return the bias-corrected rate and epsilon, and both betas with ``1 - beta``."""
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
        square_mean[name] += share2 * (gradient * gradient)
        params[name] -= rate * (mean[name] / (xp.sqrt(square_mean[name]) + epsilon))


class AdamW(Adam):
    """Adam with decoupled weight decay: first ``w -= learning_rate * weight_decay * w``.

    Loshchilov and Hutter 2019, algorithm 2; as in PyTorch, biases decay too.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon : optional
        As in `Adam`.
    weight_decay, decayed : optional
        As in `Optimizer`, but `weight_decay` is 0.01 by default.
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
        return same_place and x.dtype == parameter.dtype  # dtypes of two libraries might raise
    except AttributeError:
        kind = type(parameter if hasattr(x, "dtype") else x).__name__
        raise InputError(f"update expects arrays, got {kind}") from None
