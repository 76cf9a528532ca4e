"""CapturedSteps: what every faster way to train has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from nnxp.arrays import Array
from nnxp.data.batches import Batches
from nnxp.data.dataset import Dataset
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer


class CapturedSteps(ABC):
    """CapturedSteps of training that were prepared once.

    Parameters
    ----------
    network : Sequential
    loss : Loss
    optimizer : Optimizer
    dataset : Dataset
        Its dtypes and the shape of an example count; it is not kept.
    """

    def __init__(
        self, network: Sequential, loss: Loss, optimizer: Optimizer, dataset: Dataset
    ) -> None:
        self._network, self._loss, self._optimizer = network, loss, optimizer
        self._made_for = _settings(network, loss, optimizer, dataset)

    def matches(
        self, network: Sequential, loss: Loss, optimizer: Optimizer, dataset: Dataset
    ) -> bool:
        """Tell whether what was prepared holds for these."""
        return self._made_for == _settings(network, loss, optimizer, dataset)

    @abstractmethod
    def bind(self, batches: Batches) -> AbstractContextManager[Callable[[Array], None]]:
        """Provide what does one update for the examples of the given numbers.

        Network and optimizer have their present parameters and state after each.
        """


def _settings(
    network: Sequential, loss: Loss, optimizer: Optimizer, dataset: Dataset
) -> list[tuple[Any, Any]]:
    """Return what a recording holds fast: the parts, their numbers, shapes and dtypes."""
    arrays = [*network.parameters().values(), dataset.inputs[:0], dataset.labels[:0]]
    changing = {"steps": None, "_learning_rate": None}  # read anew at each step
    own = [(part, vars(part)) for part in (network, *network.layers, loss)]
    return [(x.shape, x.dtype) for x in arrays] + [
        (id(part), {k: v for k, v in kept.items() if isinstance(v, (int, float, str, np.generic))})
        for part, kept in [*own, (optimizer, vars(optimizer) | changing)]
    ]
