"""Schedules: learning rates that change from step to step.

Pass a schedule as the learning rate: ``nnxp.SGD(learning_rate=Cosine(0.1, 1000))``. It returns a
rate for each step, counted from 0. After its last step, it keeps returning its last rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from nnxp.checks import (
    NOT_NEGATIVE,
    POSITIVE,
    Range,
    require_count,
    require_list,
    require_number,
)
from nnxp.errors import InputError
from nnxp.parts import Part

__all__ = [
    "Chain",
    "Constant",
    "Cosine",
    "Exponential",
    "LinearWarmup",
    "OneCycle",
    "Schedule",
    "StepDecay",
]

_SHARE: Range = (lambda x: 0 <= x <= 1, "a number from 0 to 1")


class Schedule(Part):
    """Base class of all schedules; a subclass defines ``__call__``.

    The rate must depend only on the step, so that a resumed training continues with the same rates.
    """

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: a number of at least 0."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


class Constant(Schedule):
    """A constant rate.

    Parameters
    ----------
    rate : float
        At least 0.
    """

    def __init__(self, rate: float) -> None:
        self.rate = require_number("rate", rate, NOT_NEGATIVE)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.rate


class StepDecay(Schedule):
    """The rate is multiplied by `factor` after every `every` steps.

    Parameters
    ----------
    start : float
        The first rate, at least 0.
    every : int
        The number of steps between two changes, at least 1.
    factor : float, optional
        At least 0.
    """

    def __init__(self, start: float, every: int, factor: float = 0.1) -> None:
        self.start = require_number("start", start, NOT_NEGATIVE)
        self.every = require_count("every", every)
        self.factor = require_number("factor", factor, NOT_NEGATIVE)

    def __call__(self, step: int) -> float:
        """Return ``start * factor ** (step // every)``."""
        return float(self.start * self.factor ** (step // self.every))


class Exponential(Schedule):
    """The rate is multiplied by `factor` after each step.

    Parameters
    ----------
    start : float
        The first rate, at least 0.
    factor : float
        Above 0 and at most 1.
    """

    def __init__(self, start: float, factor: float) -> None:
        self.start = require_number("start", start, NOT_NEGATIVE)
        within: Range = (lambda x: 0 < x <= 1, "a number above 0 and at most 1")
        self.factor = require_number("factor", factor, within)

    def __call__(self, step: int) -> float:
        """Return ``start * factor ** step``."""
        return float(self.start * self.factor**step)


class Cosine(Schedule):
    """Half a cosine from `start` down to `end` (Loshchilov and Hutter 2017, eq. 5).

    Parameters
    ----------
    start : float
        The first rate, at least 0.
    steps : int
        The first step with the rate `end`, at least 1.
    end : float, optional
        The last rate, at least 0.
    """

    def __init__(self, start: float, steps: int, end: float = 0.0) -> None:
        self.start = require_number("start", start, NOT_NEGATIVE)
        self.steps = require_count("steps", steps)
        self.end = require_number("end", end, NOT_NEGATIVE)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        angle = math.pi * min(step, self.steps) / self.steps
        return self.end + (self.start - self.end) * (1 + math.cos(angle)) / 2


class LinearWarmup(Schedule):
    """Linear increase from ``start * rate`` to `rate`, and `rate` afterwards; see `Chain`.

    Parameters
    ----------
    rate : float
        The last rate, at least 0.
    steps : int
        The first step with the last rate, at least 1.
    start : float, optional
        The first rate as a share of `rate`, from 0 to 1.
    """

    def __init__(self, rate: float, steps: int, start: float = 0.0) -> None:
        self.rate = require_number("rate", rate, NOT_NEGATIVE)
        self.steps = require_count("steps", steps)
        self.start = require_number("start", start, _SHARE)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.rate * _line(self.start, 1.0, min(step, self.steps) / self.steps)


class OneCycle(Schedule):
    """Linear increase from ``start * peak`` to `peak`, then linear decrease to ``end * peak``.

    Smith and Topin 2019. The rates equal those of PyTorch's ``OneCycleLR`` with linear annealing.

    Parameters
    ----------
    peak : float
        The largest rate, above 0.
    steps : int
        The number of steps of the whole training. The last step has the last rate.
    warmup : float, optional
        The share of the steps before the peak, from 0 to 1.
    start, end : float, optional
        The first and the last rate as shares of `peak`, from 0 to 1.
    """

    def __init__(
        self,
        peak: float,
        steps: int,
        warmup: float = 0.2,
        start: float = 0.04,
        end: float = 0.0,
    ) -> None:
        self.peak = require_number("peak", peak, POSITIVE)
        self.steps = require_count("steps", steps)
        self.warmup = require_number("warmup", warmup, _SHARE)
        self.start = require_number("start", start, _SHARE)
        self.end = require_number("end", end, _SHARE)

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        top, last = max(self.warmup * self.steps - 1, 0.0), self.steps - 1
        if step >= last:
            return self.peak * self.end
        if step < top:
            return self.peak * _line(self.start, 1.0, step / top)
        return self.peak * _line(1.0, self.end, (step - top) / (last - top))


class Chain(Schedule):
    """Several schedules one after the other, each with its own count of steps.

    Parameters
    ----------
    schedules : iterable of Schedule
    steps : iterable of int
        The number of steps of each schedule, except the last, which has no end.

    Examples
    --------
    >>> from nnxp.schedules import Chain, Cosine, LinearWarmup
    >>> schedule = Chain([LinearWarmup(0.1, steps=10), Cosine(0.1, steps=90)], steps=[10])
    >>> [round(schedule(step), 3) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.05, 0.1, 0.05, 0.0]
    """

    def __init__(self, schedules: Iterable[Schedule], steps: Iterable[int]) -> None:
        self.schedules: tuple[Schedule, ...] = require_list("schedules", schedules)
        self.steps = tuple(require_count("steps", each) for each in require_list("steps", steps))
        for each in self.schedules:
            if not isinstance(each, Schedule):
                raise InputError(f"Chain expects schedules, got {each!r}")
        if len(self.schedules) != len(self.steps) + 1:
            raise InputError(
                "Chain expects a number of steps for each schedule but the last, got "
                f"{len(self.schedules)} schedules and {len(self.steps)} numbers"
            )

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        for schedule, steps in zip(self.schedules, self.steps, strict=False):
            if step < steps:
                return schedule(step)
            step -= steps
        return self.schedules[-1](step)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "step": StepDecay,
    "exponential": Exponential,
    "cosine": Cosine,
    "warmup": LinearWarmup,
    "onecycle": OneCycle,
    "chain": Chain,
}
"""The schedules by name."""


def _line(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def __dir__() -> list[str]:
    return __all__
