"""Callback: the base class of all callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from nnxp.history import Record

if TYPE_CHECKING:
    from nnxp.training.trainer import Trainer


class Callback:
    """Base class of all callbacks of `Trainer.fit`.

    `start`, `step` and `epoch` may return True to stop training. A callback may evaluate, predict
    and save. Changes of the learning rate and of other settings take effect at once.

    Attributes
    ----------
    state : dict of str to object
        The state of the callback: JSON values, NumPy arrays, or dictionaries of NumPy arrays.
        Checkpoints save it. After `Trainer.resume`, `fit` restores the state of the callback of the
        same class at the same position.
    every_step : bool
        Whether `step` is called; False by default.
    only_rank_0 : bool
        Whether, of several processes, only rank 0 calls the callback, for example to print or to
        write. A callback that all ranks call must do the same on each rank, and may call
        `Trainer.save`, which all ranks must call.
    """

    every_step: bool = False
    only_rank_0: bool = False
    state: dict[str, Any]
    # False for nnxp's callbacks that keep no array of network or optimizer between two epochs: then
    # captured steps need not be bound again.
    _holds_arrays = True

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make the state, even if a subclass's ``__init__`` does not call ``super()``."""
        callback = super().__new__(cls)
        callback.state = {}
        return callback

    def saved_state(self, trainer: Trainer) -> dict[str, Any]:
        """Return the state for a checkpoint; by default `state` itself."""
        return self.state

    def start(self, trainer: Trainer) -> bool | None:
        """Run before the first step of a `fit`."""

    def step(self, trainer: Trainer) -> bool | None:
        """Run after each step, if `every_step` is True."""

    def epoch(self, trainer: Trainer, record: Record) -> bool | None:
        """Run after each epoch; `record` is already in the history."""

    def finish(self, trainer: Trainer, error: BaseException | None) -> None:
        """Run at the end of a `fit`; `error` is the exception that ended it, or None."""
