"""EpochProgress: where in an epoch a training stands, and how it goes on from there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from nnxp.data.batches import Batches, Rows
from nnxp.errors import InputError
from nnxp.random import get_state, set_state


@dataclass
class EpochProgress:
    """Where in an epoch a training stands.

    Attributes
    ----------
    batch : int
        How many of its batches are done.
    batch_size, examples : int
    order : dict
        State of the generator before it drew the epoch's order.
    seconds : float
        Wall time of the epoch so far.
    """

    batch: int
    batch_size: int
    examples: int
    order: dict[str, Any]
    seconds: float

    @classmethod
    def start(cls, batches: Batches) -> Self:
        """Return the start of the epoch that `batches` would go through next."""
        assert batches.rng is not None
        sizes = batches.batch_size, len(batches.dataset)
        return cls(0, *sizes, order=get_state(batches.rng), seconds=0.0)

    def rows(self, batches: Batches) -> Iterator[Rows]:
        """Return the rows of each batch that is left; the generator has drawn their order then."""
        assert batches.rng is not None
        now = get_state(batches.rng)
        set_state(batches.rng, self.order)
        rows = batches.rows()
        if now != self.order:  # it had been drawn
            set_state(batches.rng, now)
        return itertools.islice(rows, self.batch, None)

    def require_same(self, batches: Batches) -> None:
        """Raise an `InputError` unless the epoch can be finished with these batches."""
        for name, was, given in (
            ("batch_size", self.batch_size, batches.batch_size),
            ("examples", self.examples, len(batches.dataset)),
        ):
            if was != given:
                raise InputError(
                    f"this training was stopped in the middle of an epoch with {name} {was}, got "
                    f"{given}; go on with the same"
                )
