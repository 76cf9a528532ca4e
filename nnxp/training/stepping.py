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


class Stepper:
    """Chooses between captured and plain steps, and keeps captured ones for the next call.

    Attributes
    ----------
    captured : CapturedSteps or None
        The captured steps that were used last.
    """

    def __init__(self) -> None:
        self.captured: CapturedSteps | None = None

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
        from nnxp.capture import choose

        parts = network, loss, optimizer
        if own_step:
            kind, reason = None, "the trainer has a step of its own"
        elif capture is False:
            kind, reason = None, "capture is False"
        else:
            kind, reason = choose(capture, *parts, batches)
        if kind is None:
            if capture is True:
                warnings.warn(f"no step is captured: {reason}", stacklevel=2)
            yield lambda rows: step(*batches.take(rows))
            return
        captured = self.captured
        if not isinstance(captured, kind) or not captured.matches(*parts, batches):
            self.captured = captured = None  # frees its memory before the new one takes some
            self.captured = captured = kind(*parts, batches)
        with captured.bind(batches) as captured_step:
            yield captured_step
