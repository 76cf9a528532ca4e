"""Epoch: the progress within an epoch, to resume an interrupted epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from nnxp.arrays import Array
from nnxp.data.batches import Batches
from nnxp.data.stream import BatchStream
from nnxp.errors import InputError
from nnxp.random import get_state, set_state


@dataclass
class EpochProgress:
    """The progress within an epoch.

    Attributes
    ----------
    batch : int
        The number of finished batches.
    batch_size, examples : int
        The sizes of a batch and of the data set (0 for a `BatchStream`). They must be the same on
        resume.
    order : dict
        State of the generator before it drew the epoch's order; empty for a `BatchStream`.
    seconds : float
        Wall time of the epoch so far.
    sums : dict of str to list of float
        The sums of the loss and the metrics so far; see `nnxp.step.measured_sums`.
    """

    batch: int
    batch_size: int
    examples: int
    order: dict[str, Any]
    seconds: float
    sums: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def start(cls, batches: Batches) -> Self:
        """Return the progress before the first batch of the next epoch."""
        if isinstance(batches, BatchStream):
            return cls(0, batches.batch_size, 0, order={}, seconds=0.0)
        sizes = batches.batch_size, len(batches.dataset)
        return cls(0, *sizes, order=get_state(_require_shuffled(batches)), seconds=0.0)

    def remaining_rows(self, batches: Batches) -> Iterator[Array]:
        """Return the row indices of each remaining batch.

        The final state of the generator does not depend on whether the epoch is started or resumed.
        """
        if isinstance(batches, BatchStream):
            return batches.rows(self.batch)
        rng = _require_shuffled(batches)
        current = get_state(rng)
        if current == self.order:
            return itertools.islice(batches.shuffled_rows(rng), self.batch, None)
        set_state(rng, self.order)  # draw the epoch's order again
        rows = batches.shuffled_rows(rng)
        set_state(rng, current)
        return itertools.islice(rows, self.batch, None)

    def require_same(self, batches: Batches) -> None:
        """Raise an `InputError` unless `batches` can finish the epoch."""
        for name, expected, actual in (
            ("batch_size", self.batch_size, batches.batch_size),
            ("examples", self.examples, _examples(batches)),
        ):
            if expected != actual:
                raise InputError(
                    f"this trainer was stopped within an epoch with {name} {expected}, got "
                    f"{actual}; resume it with {name} {expected}"
                )


def _examples(batches: Batches) -> int:
    return 0 if isinstance(batches, BatchStream) else len(batches.dataset)


def _require_shuffled(batches: Batches) -> np.random.Generator:
    if batches.rng is None:
        raise InputError("train_epoch expects batches in random order; make them with rng=rng")
    return batches.rng
