"""Captured steps: the interface of the faster ways to train, which prepare a step once."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from nnxp.arrays import Array
from nnxp.data.batches import Batches
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.parts import Setting


class CapturedSteps(ABC):
    """Steps of training that were prepared once and are repeated.

    Parameters
    ----------
    network : Sequential
    loss : Loss
    optimizer : Optimizer
    batches : Batches
        Gives the device, the dtype, and shapes and dtypes of the examples; it is not kept.
    """

    def __init__(
        self, network: Sequential, loss: Loss, optimizer: Optimizer, batches: Batches
    ) -> None:
        self._network, self._loss, self._optimizer = network, loss, optimizer
        self._device, self._dtype = batches.device, batches.dtype
        self._prepared_for = _dependencies(network, loss, optimizer, batches)

    def matches(
        self, network: Sequential, loss: Loss, optimizer: Optimizer, batches: Batches
    ) -> bool:
        """Return whether the prepared steps are those of these parts and examples."""
        current = _dependencies(network, loss, optimizer, batches)
        return len(current) == len(self._prepared_for) and all(
            x is y or (type(x) is type(y) and isinstance(x, _COMPARED) and x == y)
            for x, y in zip(current, self._prepared_for, strict=True)
        )

    @property
    def nbytes(self) -> int:
        """The bytes of memory that are kept between two calls."""
        return 0

    @abstractmethod
    def bind(self, batches: Batches) -> AbstractContextManager[Callable[[Array], None]]:
        """Return a context that provides a function: it does one step, given row indices.

        Network and optimizer hold the current parameters and state after each step.
        """

    def _next_factors(self) -> tuple[float, ...]:
        """Return the optimizer's numbers of the coming step, before it is counted."""
        coming = copy.copy(self._optimizer)
        coming.steps += 1
        return coming.factors()


def with_factors(optimizer: Optimizer, factors: Iterable[Array]) -> Optimizer:
    """Return a copy of an optimizer whose `factors` are arrays, and whose state is to be set."""
    copied = copy.copy(optimizer)
    read = tuple(factors)
    vars(copied)["factors"] = lambda: read
    return copied


_UPDATE = Optimizer.update  # to see it replaced on the class


def is_elementwise(optimizer: Optimizer) -> bool:
    """Return whether a vector of all parameters can be updated in place of each of them.

    A class that overrides the rule, or `update`, must declare ``elementwise`` itself.
    """
    kind = type(optimizer)
    if kind.update is not _UPDATE or vars(optimizer).keys() & {"update", "_update_one"}:
        return False
    mro = kind.__mro__
    rule = next(i for i, base in enumerate(mro) if "_update_one" in vars(base))
    declared = next(i for i, base in enumerate(mro) if "elementwise" in vars(base))
    return kind.elementwise and declared <= rule


_COMPARED = (bool, int, float, complex, str, bytes, tuple, np.generic, type(None))


def _dependencies(
    network: Sequential, loss: Loss, optimizer: Optimizer, batches: Batches
) -> list[Any]:
    """Return what a captured step depends on besides arrays' numbers and the optimizer's.

    These are the parts themselves, their settings and replaced methods, shapes and dtypes.
    """
    examples = batches.dataset
    found: list[Any] = []
    for x in (*network.parameters().values(), *network.states().values()):
        found += [tuple(x.shape), str(x.dtype)]
    for host in (examples.inputs, examples.labels):
        found += [host.shape[1:], str(host.dtype)]
    numbers = {
        name for kind in type(optimizer).__mro__ for name, x in vars(kind).items()
        if isinstance(x, Setting)
    }  # fmt: skip
    for part in (network, *network.leaves(), loss):
        found.append(part)
        found += [x for name, x in vars(part).items() if name not in _ARRAYS]
    found.append(optimizer)
    # The numbers come through factors, anew at each step.
    found += [x for name, x in vars(optimizer).items() if name not in (_ARRAYS | numbers)]
    return found


_ARRAYS = {"params", "grads", "state", "steps", "_saved", "_trained", "_leaves",
           "_parameter_slots", "_state_slots"}  # fmt: skip
"""Attributes that a step reads as arrays, or counts."""
