"""Captured steps: the interface of the faster ways to train, which prepare a step once."""

from __future__ import annotations

import copy
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from nnxp.arrays import Array
from nnxp.capture.contents import Contents
from nnxp.data.batches import Batches
from nnxp.errors import InputError
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.parts import Part, definition, numbers_of
from nnxp.step import Step


class CapturedSteps(ABC):
    """Steps of training that were prepared once and are repeated.

    Parameters
    ----------
    step : Step
    batches : Batches
        Gives the device, the dtype, and shapes and dtypes of the examples; it is not kept.
    """

    def __init__(self, step: Step, batches: Batches) -> None:
        self._whole_step = step
        self._network, self._optimizer = step.network, step.optimizer
        self._device, self._dtype = batches.device, batches.dtype
        self._contents = contents_of(step)
        self._contents.is_current()  # which takes its memory now, and not in a later epoch
        self._arrays = _shapes_and_dtypes(step, batches)

    def matches(self, step: Step, contents: Contents, batches: Batches) -> bool:
        """Return whether the prepared steps are those of these parts and examples."""
        return not self._contents.changes(contents) and self._arrays == _shapes_and_dtypes(
            step, batches
        )

    def is_same(self, step: Step, batches: Batches) -> bool:
        """Return whether these are the steps of nnxp's own parts, none of which has changed.

        It takes little time, and may return False although `matches` is true.
        """
        return (
            not self._contents.foreign
            and self._has_parts_of(step)
            and self._contents.is_current()
            and self._arrays == _shapes_and_dtypes(step, batches)
        )

    def is_current(self, step: Step) -> bool:
        """Return whether no part has changed since the steps were prepared, but for its arrays."""
        if self._has_parts_of(step) and self._contents.is_current():
            return True
        return not self._contents.changes(contents_of(step))

    def _has_parts_of(self, step: Step) -> bool:
        own, parts = self._whole_step.parts, step.parts
        return len(own) == len(parts) and all(map(operator.is_, own, parts))

    @property
    def nbytes(self) -> int:
        """The bytes of memory that are kept between two calls."""
        return 0

    @abstractmethod
    def bind(
        self, batches: Batches, sums: dict[str, Array]
    ) -> AbstractContextManager[Callable[[Array], None]]:
        """Return a context that provides a function: it does one step, given row indices.

        Network and optimizer hold the current parameters and state after each step, and `sums`
        those of the loss and the metrics; see `Step`.
        """


def contents_of(step: Step) -> Contents:
    """Return what a captured step depends on but for arrays and numbers, which it reads anew."""

    def skipped(part: Part) -> frozenset[str]:
        return part.changing | numbers_of(part) if part is step.optimizer else part.changing

    return Contents(step.parts, skipped)


def _shapes_and_dtypes(step: Step, batches: Batches) -> list[Any]:
    found: list[Any] = [
        (name, x.shape, x.dtype)
        for arrays in (step.network.parameters(), step.network.states(), step.sums)
        for name, x in arrays.items()
    ]
    examples = batches.dataset
    found.append(step.micro_batch_size)
    return [*found, *((x.shape[1:], str(x.dtype)) for x in (examples.inputs, examples.labels))]


def require_states(network: Sequential, names: Mapping[str, object]) -> None:
    """Raise an `InputError` if a forward has made state, which would be forgotten."""
    if made := network.states().keys() - names.keys():
        raise InputError(
            f"a forward made the state {', '.join(sorted(made))}; make state in __init__"
        )


class _Unreadable:
    """Stands for a number of an optimizer while its rule is captured; reading it raises."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __iadd__(self, other: object) -> _Unreadable:  # of the number of steps
        return _Unreadable(self._name)

    def _refuse(self, *_: object) -> NoReturn:
        raise InputError(
            f"the optimizer's rule reads self.{self._name}, whose number changes; return it, or "
            "what depends on it, from factors(), and use the numbers that the rule is given"
        )


_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow lt le gt ge "
    "eq ne neg pos abs bool float int index round array hash divmod rdivmod trunc floor ceil format"
)
for _name in _OPERATORS.split():
    setattr(_Unreadable, f"__{_name}__", _Unreadable._refuse)


def with_numbers(optimizer: Optimizer, numbers: Iterable[Array]) -> Optimizer:
    """Return a copy of an optimizer whose `numbers` are arrays, and whose state is to be set.

    Its numbers cannot be read otherwise: they would be those of the step that is captured.
    """
    copied = copy.copy(optimizer)
    read = tuple(numbers)
    vars(copied)["numbers"] = lambda: read
    vars(copied)["factors"] = lambda: read[1:]
    for name in ("steps", *numbers_of(optimizer)):
        vars(copied)[name] = _Unreadable(name)
    return copied


def is_elementwise(optimizer: Optimizer) -> bool:
    """Return whether a vector of all parameters can be updated in place of each of them.

    A class that overrides the rule must declare ``elementwise`` itself; `update` must be nnxp's.
    """
    inherited = type(optimizer).__mro__.index(Optimizer)
    return (
        optimizer.elementwise
        and definition(optimizer, "update") == inherited
        and definition(optimizer, "elementwise") <= definition(optimizer, "_update_one")
    )
