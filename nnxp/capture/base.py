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
        self._contents.is_current()  # allocates its memory now instead of in a later epoch
        self._shapes, self._data = _shapes_and_dtypes(step), _data_of(step, batches)

    def matches(self, step: Step, contents: Contents, batches: Batches) -> bool:
        """Return whether the prepared steps are for these parts and examples."""
        return (
            not self._contents.changes(contents)
            and self._data == _data_of(step, batches)
            and self._shapes == _shapes_and_dtypes(step)
        )

    def is_same(self, step: Step, batches: Batches) -> bool:
        """Return whether these steps have only nnxp's own parts, and no part has changed.

        This is fast, and may return False although `matches` is true.
        """
        return (
            not self._contents.foreign
            and self._has_parts_of(step)
            and self._contents.is_current()
            and self._data == _data_of(step, batches)
            and self._has_same_arrays(step)
        )

    def _has_same_arrays(self, step: Step) -> bool:
        """Return whether the step's arrays can replace those of the last call."""
        return self._shapes == _shapes_and_dtypes(step)

    def is_current(self, step: Step) -> bool:
        """Return whether bound steps may go on: no part has changed, and no array was replaced."""
        if not self._holds_arrays():
            return False
        if self._has_parts_of(step) and self._contents.is_current():
            return True
        return not self._contents.changes(contents_of(step))

    def is_repeatable(self, step: Step) -> bool:
        """Return whether bound steps may do another epoch: current, and only nnxp's own parts.

        Steps with the user's parts are tried again in each epoch.
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
        """Return arrays that together hold all bound parameters and state; empty if there are none.

        They may also hold other numbers.
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
        """Return a context that provides a function, which does a step for each given batch.

        After each step, network and optimizer hold the current parameters and state, and `sums` the
        sums of the loss and the metrics; see `Step`. Arrays that other code assigns meanwhile are
        kept at the end. A `DivergenceError` within the context restores the values from before the
        first step, or from the last `restart`.
        """

    @abstractmethod
    def restart(self, sums: dict[str, Array]) -> None:
        """Start another epoch while bound: with other `sums`, and new values to restore.

        Since the call of `bind`, only steps may have been done; see `is_repeatable`.
        """


def contents_of(step: Step) -> Contents:
    """Return the contents a captured step depends on, without arrays and numbers.

    A captured step reads arrays and numbers in each call.
    """

    def skipped(part: Part) -> frozenset[str]:
        return part.changing | numbers_of(part) if part is step.optimizer else part.changing

    return Contents(step.parts, skipped)


def _shapes_and_dtypes(step: Step) -> list[Any]:
    return [
        (name, x.shape, x.dtype) for arrays in step.network.arrays() for name, x in arrays.items()
    ]


def _data_of(step: Step, batches: Batches) -> list[Any]:
    """Return shapes, dtypes and other facts of the examples, the batches and the sums."""
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
    """Raise an `InputError` if a forward pass has created state, which would be lost."""
    if made := network.states().keys() - names.keys():
        raise InputError(
            f"forward created the state {', '.join(sorted(made))}; create state in __init__"
        )


class _Unreadable:
    """Replaces a number of an optimizer while its rule is captured; reading it raises an error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __iadd__(self, other: object) -> _Unreadable:  # of the number of steps
        return _Unreadable(self._name)

    def _refuse(self, *_: object) -> NoReturn:
        raise InputError(
            f"the optimizer's rule reads self.{self._name}, which changes; return it, or numbers "
            "that depend on it, from factors(), and use the numbers that the rule receives"
        )


_OPERATORS = (
    "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow lt le gt ge "
    "eq ne neg pos abs bool float int index round array hash divmod rdivmod trunc floor ceil format"
)
for _name in _OPERATORS.split():
    setattr(_Unreadable, f"__{_name}__", _Unreadable._refuse)


def with_numbers(optimizer: Optimizer, numbers: Iterable[Array]) -> Optimizer:
    """Return a copy of an optimizer with arrays as `numbers`; the caller sets its state.

    Reading its numbers in another way raises an error: they would stay those of the captured step.
    """
    copied = copy.copy(optimizer)
    read = tuple(numbers)
    vars(copied)["numbers"] = lambda: read
    vars(copied)["factors"] = lambda: read[1:]
    for name in ("steps", *numbers_of(optimizer)):
        vars(copied)[name] = _Unreadable(name)
    return copied


def is_elementwise(optimizer: Optimizer) -> bool:
    """Return whether one vector of all parameters can be updated instead of each parameter.

    A class that overrides the rule must declare ``elementwise`` itself; `update` must be nnxp's.
    """
    inherited = type(optimizer).__mro__.index(Optimizer)
    return (
        optimizer.elementwise
        and definition(optimizer, "update") == inherited
        and definition(optimizer, "elementwise") <= definition(optimizer, "_update_one")
    )
