"""Callback: the base class of all callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from nnxp.history import Record

if TYPE_CHECKING:
    from nnxp.training.trainer import Trainer


class Callback:
    """Base class of all callbacks of `Trainer.fit`.

    Each method may return True to stop the training. A callback may evaluate, predict and save; the
    learning rate and other settings that it changes take effect at once.

    Attributes
    ----------
    state : dict of str to object
        What the callback remembers: JSON, arrays of NumPy, or dictionaries of these arrays. It is
        saved in checkpoints; after `Trainer.resume`, `fit` gives it back to the callback of the
        same class at the same place.
    every_step : bool
        Whether `step` is called.
    only_rank_0 : bool
        Whether only rank 0 of several processes calls it, as what prints or writes. A callback that
        all ranks call must do the same on each, and may call `Trainer.save`, which is common to
        all.
    """

    every_step: bool = False
    only_rank_0: bool = False
    state: dict[str, Any]
    # False for those of nnxp that keep no array of network or optimizer between two epochs, so that
    # captured steps can stay bound.
    _holds_arrays = True

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make the state, also for a subclass whose __init__ does not call this class's."""
        callback = super().__new__(cls)
        callback.state = {}
        return callback

    def saved_state(self, trainer: Trainer) -> dict[str, Any]:
        """Return what a checkpoint keeps as `state`; by default `state` itself."""
        return self.state

    def start(self, trainer: Trainer) -> bool | None:
        """Run before the first step of a call of `fit`."""

    def step(self, trainer: Trainer) -> bool | None:
        """Run after each step, if `every_step` is True."""

    def epoch(self, trainer: Trainer, record: Record) -> bool | None:
        """Run after each epoch, whose record is in the history."""

    def finish(self, trainer: Trainer, error: BaseException | None) -> None:
        """Run at the end of `fit`; `error` is the exception that ended it, if one did."""
