"""Trial: compares captured steps with plain ones, for parts that are not nnxp's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from nnxp.arrays import Array
from nnxp.capture.base import CapturedSteps
from nnxp.capture.contents import Contents, name_of
from nnxp.data.batches import Batches
from nnxp.errors import InputError
from nnxp.layers import Layer
from nnxp.optimizers import Optimizer
from nnxp.parts import numbers_of
from nnxp.step import Step

Values = dict[str, dict[str, np.ndarray[Any, Any]]]
"""Copies of arrays on the host, by kind and name."""


class Refusal(NamedTuple):
    """The reason why captured steps must not replace plain ones.

    Attributes
    ----------
    parts : list of object
        The parts that cause it, or may cause it.
    reason : str
        Text for a warning.
    """

    parts: list[object]
    reason: str

    def __str__(self) -> str:
        names = ", ".join(dict.fromkeys(map(name_of, self.parts)))
        return f"{names}: {self.reason}" if names else self.reason


def disagreement(
    captured: Callable[[], CapturedSteps],
    plain_step: Callable[[Array], Array],
    step: Step,
    batches: Batches,
) -> Refusal | None:
    """Return why captured steps must not replace plain ones; None if both agree.

    Four plain steps and four captured ones are done from the same state, with different batches and
    with different numbers of the optimizer. Afterwards everything is as before.

    Parameters
    ----------
    captured : callable
        Returns the captured steps.
    plain_step : callable
        Does one plain step, given the row indices of a batch.
    step : Step
    batches : Batches
    """
    parts, optimizer = step.parts, step.optimizer
    start = _values(step, batches)
    if not _is_finite(start):
        return Refusal([], "the numbers are not finite, so that steps cannot be compared")
    with _restored(step):
        for i, rows in enumerate(_trial_batches(batches)):
            _change_numbers(optimizer, 0.5**i)
            before = Contents(parts, lambda part: part.changing)
            try:
                plain_step(rows)
            except Exception as error:
                if batches.device.is_memory_error(error) or not i:
                    raise
                reason = f"it cannot be tried with other numbers ({type(error).__name__}: {error})"
                return Refusal(before.foreign, reason)
            changes = before.changes(Contents(parts, lambda part: part.changing))
            if before.unreadable:
                kind = type(before.unreadable[0]).__name__
                return Refusal(
                    before.foreign,
                    f"it refers to an object of type {kind}, whose changes cannot be seen",
                )
            if i and changes:  # the first step may create values that stay
                return _refuse_change(*changes[0], before)
        plain = _values(step, batches)
        if not _is_finite(plain):
            return Refusal(
                before.foreign, "plain steps diverge in a trial, so that nothing can be compared"
            )
    try:
        with _restored(step), captured().bind(batches, step.sums) as do_steps:
            for i, rows in enumerate(_trial_batches(batches)):
                _change_numbers(optimizer, 0.5**i)
                do_steps([rows])
            replayed = _values(step, batches)
    except Exception as error:
        if batches.device.is_memory_error(error):
            raise
        return Refusal(
            _parts_in_traceback(error, before.foreign),
            f"it cannot be captured ({type(error).__name__}: {error})",
        )
    name = _first_difference(start, plain, replayed)
    if name is None:
        return None
    return Refusal(
        before.foreign,
        f"{name} differs from that of a plain step; all values that a step uses must be in "
        "parameters, state, settings or factors()",
    )


def _refuse_change(owner: object, names: list[str], before: Contents) -> Refusal:
    """Return the refusal of a step that changes the variables `names` of an owner of `before`."""
    parts = [x for x in before.foreign if x is owner]
    if isinstance(owner, type):
        parts = [x for x in before.foreign if isinstance(x, owner)]
    of = f"the class {owner.__name__}" if isinstance(owner, type) else name_of(owner)
    remedy = "keep it in arguments and results"
    if any(isinstance(x, Layer) for x in parts or before.foreign):
        remedy = (
            "store changing values in self.state, and values for backward with save_for_backward; "
            "compute random numbers from a counter in self.state, as nnxp.Dropout does"
        )
    elif any(isinstance(x, Optimizer) for x in parts):
        remedy = "add a name to slots for each array per parameter, and store it in self.state"
    return Refusal(parts or before.foreign, f"a step changes {', '.join(names)} of {of}; {remedy}")


def _trial_batches(batches: Batches) -> list[Array]:
    """Return the row indices of two batches, and of two of the size of an epoch's last batch.

    There are two of each size: the first one compiles the step with the numbers of that time.
    """
    count = len(batches.dataset)
    size = min(batches.batch_size, count)
    last = count % size or size
    starts_and_sizes = (0, size), (count - last, last), (count - size, size), (0, last)
    return [batches.indices(np.arange(start, start + n)) for start, n in starts_and_sizes]


def _change_numbers(optimizer: Optimizer, factor: float) -> None:
    """Multiply an optimizer's numbers by `factor` if allowed, and set epsilon to 0.1.

    With a tiny epsilon, an optimizer such as Adam divides gradients that are only rounding errors,
    such as that of a bias before a BatchNorm, by their own size.
    """
    for name in numbers_of(optimizer):
        number = 0.1 if name == "epsilon" else getattr(optimizer, name)
        with contextlib.suppress(InputError):  # out of the number's range
            setattr(optimizer, name, number * factor)


def _values(step: Step, batches: Batches) -> Values:
    """Return copies of all arrays that a step changes."""
    network, state = step.network, step.optimizer.state
    kinds: dict[str, Any] = {"parameter": network.parameters(), "state": network.states()}
    kinds |= {f"{slot} of": arrays for slot, arrays in state.items()} | {"the sum of": step.sums}
    values = {
        kind: {name: np.array(batches.device.to_host(x)) for name, x in arrays.items()}
        for kind, arrays in kinds.items()
    }
    return values | {"the number of": {"steps": np.array(step.optimizer.steps)}}


def _is_finite(values: Values) -> bool:
    return all(bool(np.isfinite(x).all()) for arrays in values.values() for x in arrays.values())


def _first_difference(start: Values, plain: Values, replayed: Values) -> str | None:
    """Return the name of an array that differs by more than rounding errors; None if none does.

    With the unit of rounding u, the bound is sqrt(u) times the largest change of the kind of array,
    plus 16 u times the array's largest number. A step's rounding errors are at most a few hundred u
    times the change. A dependence that is missing in the captured step changes a result much more.
    """
    for kind, arrays in plain.items():
        others = replayed.get(kind, {})
        if arrays.keys() != others.keys():
            names = ", ".join(sorted(arrays.keys() ^ others.keys()))
            return f"{kind} {names}"
        floating = {name: x for name, x in arrays.items() if x.dtype.kind == "f"}
        before = {
            name: start.get(kind, {}).get(name, np.zeros_like(x)) for name, x in floating.items()
        }
        changes = [abs(x - before[n]) for n, x in floating.items() if x.shape == before[n].shape]
        change = max((float(x.max()) for x in changes if x.size), default=0.0)
        for name, x in arrays.items():
            other = others[name]
            if x.shape != other.shape:
                return f"{kind} {name}"
            if name not in floating:
                differs = not np.array_equal(x, other)
            else:
                unit = float(np.finfo(x.dtype).eps)
                bound = unit**0.5 * change + 16 * unit * float(abs(x).max(initial=0.0))
                differs = not float(abs(x - other).max(initial=0.0)) <= bound
            if differs:
                return f"{kind} {name}"
    return None


def _parts_in_traceback(error: Exception, foreign: list[object]) -> list[object]:
    """Return the last part whose method raised an error; all parts if none is found."""
    found: list[object] = []
    traceback = error.__traceback__
    while traceback is not None:
        part = traceback.tb_frame.f_locals.get("self")
        # A captured step uses copies of the parts.
        found = [x for x in foreign if type(x) is type(part)] or found
        traceback = traceback.tb_next
    return found or foreign


@contextmanager
def _restored(step: Step) -> Iterator[None]:
    """Restore all parts at the end: arrays, attributes and generators; and the step's sums."""
    contents, sums = Contents(step.parts, lambda part: ()), dict(step.sums)
    try:
        yield
    finally:
        contents.restore()
        step.sums.update(sums)
