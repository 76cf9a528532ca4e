"""Captured steps: the interface of the faster ways to train, which prepare a step once."""

from __future__ import annotations

import copy
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from nnxp.arrays import Array
from nnxp.capture.contents import Contents
from nnxp.data.batches import Batches
from nnxp.errors import InputError
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.parameters import Parameters
from nnxp.parts import Part, definition, numbers_of
from nnxp.step import DoSteps, Step


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
        self._scale = batches.dataset.scale
        self._contents = contents_of(step)
        self._contents.is_current()  # which takes its memory now, and not in a later epoch
        self._shapes, self._data = _shapes_and_dtypes(step), _data_of(step, batches)

    def matches(self, step: Step, contents: Contents, batches: Batches) -> bool:
        """Return whether the prepared steps are those of these parts and examples."""
        return (
            not self._contents.changes(contents)
            and self._data == _data_of(step, batches)
            and self._shapes == _shapes_and_dtypes(step)
        )

    def is_same(self, step: Step, batches: Batches) -> bool:
        """Return whether these are the steps of nnxp's own parts, none of which has changed.

        It takes little time, and may return False although `matches` is true.
        """
        return (
            not self._contents.foreign
            and self._has_parts_of(step)
            and self._contents.is_current()
            and self._data == _data_of(step, batches)
            and self._has_same_arrays(step)
        )

    def _has_same_arrays(self, step: Step) -> bool:
        """Return whether the step's arrays can take the place of those of the last call."""
        return self._shapes == _shapes_and_dtypes(step)

    def is_current(self, step: Step) -> bool:
        """Return whether bound steps may go on: no part has changed, and no array was replaced."""
        if not self._holds_arrays():
            return False
        if self._has_parts_of(step) and self._contents.is_current():
            return True
        return not self._contents.changes(contents_of(step))

    def is_repeatable(self, step: Step) -> bool:
        """Return whether bound steps may do another epoch: they are current, of nnxp's own parts.

        Those with parts of the user's are tried anew in each epoch.
        """
        return not self._contents.foreign and self.is_current(step)

    def _has_parts_of(self, step: Step) -> bool:
        own, parts = self._whole_step.parts, step.parts
        return len(own) == len(parts) and all(map(operator.is_, own, parts))

    @property
    def nbytes(self) -> int:
        """The bytes of memory that are kept between two calls."""
        return 0

    @abstractmethod
    def _holds_arrays(self) -> bool:
        """Return whether network and optimizer hold the arrays that the last step left there."""

    def vectors(self) -> list[Array]:
        """Return arrays that hold all bound parameters and state; empty if there are none such.

        They may hold other numbers too, which do not matter.
        """
        return []

    def _hold(
        self,
        own: Iterable[Parameters],
        arrays: Iterable[Mapping[str, Array]],
        state: Mapping[str, Mapping[str, Array]],
    ) -> bool:
        """Return whether the network holds these `arrays` themselves, and the optimizer `state`."""
        slots = self._optimizer.state
        return all(x.hold(y) for x, y in zip(own, arrays, strict=True)) and all(
            slot in slots and slots[slot].get(name) is x
            for slot, kept in state.items()
            for name, x in kept.items()
        )

    @abstractmethod
    def bind(self, batches: Batches, sums: dict[str, Array]) -> AbstractContextManager[DoSteps]:
        """Return a context that provides a function: it does a step for each of some batches.

        Network and optimizer hold the current parameters and state after each step, and `sums`
        those of the loss and the metrics; see `Step`. Arrays that other code puts in their place
        stay at the end. If a `DivergenceError` is raised within, all is as before the first step,
        or as at the last `restart`.
        """

    @abstractmethod
    def restart(self, sums: dict[str, Array]) -> None:
        """Start another epoch while bound: with other `sums`, and with what a divergence restores.

        Nothing but steps may have been done since; see `is_repeatable`.
        """


def contents_of(step: Step) -> Contents:
    """Return what a captured step depends on but for arrays and numbers, which it reads anew."""

    def skipped(part: Part) -> frozenset[str]:
        return part.changing | numbers_of(part) if part is step.optimizer else part.changing

    return Contents(step.parts, skipped)


def _shapes_and_dtypes(step: Step) -> list[Any]:
    return [
        (name, x.shape, x.dtype) for arrays in step.network.arrays() for name, x in arrays.items()
    ]


def _data_of(step: Step, batches: Batches) -> list[Any]:
    """Return what is known of the examples, of their batches and of the sums over them."""
    dataset = batches.dataset
    sums = [(name, x.shape) for name, x in step.sums.items()]
    return [
        step.micro_batch_size,
        step.ranks,
        dataset.scale,
        *((x.shape[1:], x.dtype) for x in dataset.arrays),
        *sums,
    ]


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
