"""Stepping: does a trainer's steps, captured if possible and plain otherwise."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from nnxp.arrays import Array
from nnxp.data.batches import Batches
from nnxp.errors import InputError
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer

if TYPE_CHECKING:
    from nnxp.capture import CapturedSteps


def require_capture(capture: object) -> bool | str:
    """Return `capture` if it is True, False or "auto"."""
    if capture != "auto" and not isinstance(capture, bool):
        raise InputError(f'capture must be True, False or "auto", got {capture!r}')
    return capture


_MAX_KEPT = 32 << 20  # bytes


class Stepper:
    """Chooses between captured and plain steps, and keeps captured ones for the next call.

    Attributes
    ----------
    captured : CapturedSteps or None
        The captured steps that were used last.
    reason : str
        Why steps are plain; empty if they are captured.
    """

    def __init__(self) -> None:
        self.captured: CapturedSteps | None = None
        self.reason = "nothing was trained yet"
        self._warned: set[str] = set()

    @contextlib.contextmanager
    def bind(
        self,
        step: Callable[[Array, Array], Array],
        network: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        batches: Batches,
        *,
        capture: bool | str,
        own_step: bool,
    ) -> Iterator[Callable[[Array], object]]:
        """Provide the function that does one step, given the row indices of a batch.

        Parameters
        ----------
        step : callable
            Does one plain step.
        network, loss, optimizer, batches
            What is trained.
        capture : bool or "auto"
            As in `Trainer`.
        own_step : bool
            Whether the plain step is not `Trainer.step`, so that captured steps would ignore it.
        """
        from nnxp.capture import choose, disagreement, foreign_parts

        parts = network, loss, optimizer
        kind: type[CapturedSteps] | None = None
        if own_step:
            self.reason = "the trainer has a step of its own"
        elif capture is False:
            self.reason = "capture is False"
        else:
            kind, self.reason = choose(capture, *parts, batches)
        foreign = foreign_parts(*parts) if kind else []
        if kind is not None and foreign:
            why = disagreement(lambda: self._prepare(kind, *parts, batches), step, *parts, batches)
            if why:
                names = ", ".join(dict.fromkeys(map(repr, foreign)))
                self.reason = f"{names}: {why}"
        if kind is None or self.reason:
            self.captured = None
            if capture is True or (foreign and self.reason not in self._warned):
                self._warned.add(self.reason)
                warnings.warn(
                    f"no step is captured: {self.reason}; plain steps are slower", stacklevel=2
                )
            yield lambda rows: step(*batches.take(rows))
            return
        with self._prepare(kind, *parts, batches).bind(batches) as captured_step:
            yield captured_step

    def release(self) -> None:
        """Free captured steps that hold much memory; small ones are kept for the next call."""
        if self.captured is not None and self.captured.nbytes > _MAX_KEPT:
            self.captured = None

    def _prepare(
        self,
        kind: type[CapturedSteps],
        network: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        batches: Batches,
    ) -> CapturedSteps:
        """Return captured steps: those of the last call if they match."""
        parts = network, loss, optimizer
        captured = self.captured
        if not isinstance(captured, kind) or not captured.matches(*parts, batches):
            self.captured = captured = None  # frees its memory before the new one takes some
            self.captured = captured = kind(*parts, batches)
        return captured
