"""Captured steps: the interface of the faster ways to train, which prepare a step once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from nnxp.arrays import Array
from nnxp.data.batches import Batches
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer


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
        self._prepared_for = _signature(network, loss, optimizer, batches)

    def matches(
        self, network: Sequential, loss: Loss, optimizer: Optimizer, batches: Batches
    ) -> bool:
        """Return whether the prepared steps are those of these parts and examples."""
        return self._prepared_for == _signature(network, loss, optimizer, batches)

    @abstractmethod
    def bind(self, batches: Batches) -> AbstractContextManager[Callable[[Array], None]]:
        """Return a context that provides a function: it does one step, given row indices.

        Network and optimizer hold the current parameters and state after each step.
        """


def _signature(
    network: Sequential, loss: Loss, optimizer: Optimizer, batches: Batches
) -> list[tuple[Any, Any]]:
    """Return what a captured step depends on: the parts, their settings, shapes and dtypes."""
    examples = batches.dataset
    arrays = [*network.parameters().values(), examples.inputs[:0], examples.labels[:0]]
    changing = {"steps": None, "_learning_rate": None}  # read anew at each step
    own = [(part, vars(part)) for part in (network, *network.layers, loss)]
    return [(x.shape, x.dtype) for x in arrays] + [
        (id(part), {k: v for k, v in kept.items() if isinstance(v, (int, float, str, np.generic))})
        for part, kept in [*own, (optimizer, vars(optimizer) | changing)]
    ]
