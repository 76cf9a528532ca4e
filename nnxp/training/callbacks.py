"""Callbacks: objects that `fit` calls at its start, after steps and epochs, and at its end."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnxp.arrays import Array, namespace_of
from nnxp.checkpoint import resolve_target
from nnxp.checks import (
    NOT_NEGATIVE,
    Range,
    explained,
    require_count,
    require_number,
    shows_bars,
    warn,
)
from nnxp.errors import DivergenceError, InputError
from nnxp.history import Record
from nnxp.network import Sequential
from nnxp.training.callback import Callback
from nnxp.training.watching import WatchLayers
from nnxp.training.writing import WriteCSV, WriteJSONLines, WriteTensorBoard

if TYPE_CHECKING:
    from nnxp.training.trainer import Trainer

__all__ = [
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "Progress",
    "ReduceOnPlateau",
    "StopOnSignal",
    "WatchLayers",
    "WeightAverage",
    "WriteCSV",
    "WriteJSONLines",
    "WriteTensorBoard",
]

_DELAY = 1.0  # seconds; mpiexec sends a signal to all ranks within this time
_SHARE: Range = (lambda x: 0 < x < 1, "a number between 0 and 1")


class _Monitor(Callback):
    """Base class of callbacks that monitor a figure.

    Parameters
    ----------
    patience : int
        The number of epochs without an improvement, at least 1.
    monitor : str
        The name of a figure in the records. Larger is better for names that end with ``accuracy``
        or ``r2``; smaller is better for others.
    min_delta : float
        A change counts as an improvement if it is larger than this; at least 0.
    """

    def __init__(self, patience: int, monitor: str, min_delta: float) -> None:
        self.patience = require_count("patience", patience)
        self.monitor = monitor
        self.min_delta = require_number("min_delta", min_delta, NOT_NEGATIVE)
        self.state = {"best": None, "waited": 0}

    def start(self, trainer: Trainer) -> bool | None:
        """Check that the figure will be measured."""
        require_measured(self, self.monitor, trainer)
        return None

    def improves(self, record: Record) -> bool:
        """Return whether a record has the best figure so far, and store the figure."""
        value = record[self.monitor]
        if is_better(self.monitor, value, self.state["best"], self.min_delta):
            self.state.update(best=value, waited=0)
            return True
        self.state["waited"] += 1
        return False


class EarlyStopping(_Monitor):
    """Stop training when a figure has not improved for some epochs.

    Parameters
    ----------
    patience : int, optional
        Training stops after this many epochs without an improvement; at least 1.
    restore_best : bool, optional
        Restore the parameters and the state of the best epoch at the end.
    monitor : str, optional
        The name of the figure in the records. Larger is better for names that end with ``accuracy``
        or ``r2``; smaller is better for others.
    min_delta : float, optional
        A change counts as an improvement if it is larger than this; at least 0.
    """

    @explained("nnxp.callbacks.EarlyStopping(patience=5)")
    def __init__(
        self,
        patience: int = 5,
        restore_best: bool = False,
        *,
        monitor: str = "validation_loss",
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(patience, monitor, min_delta)
        self.restore_best = restore_best

    def epoch(self, trainer: Trainer, record: Record) -> bool | None:
        """Compare the record with the best one."""
        if self.improves(record):
            self.state["best_epoch"] = record.epoch
            if self.restore_best:
                self.state["parameters"] = _host_copies(trainer, trainer.network.parameters())
                self.state["states"] = _host_copies(trainer, trainer.network.states())
        return bool(self.state["waited"] >= self.patience)

    def finish(self, trainer: Trainer, error: BaseException | None) -> None:
        """Restore the best epoch."""
        if error is None and "parameters" in self.state and trainer.epoch_is_finished:
            network = trainer.network
            network.load_arrays(self.state["parameters"], self.state.get("states", {}))


class ReduceOnPlateau(_Monitor):
    """Multiply the learning rate when a figure has not improved for some epochs.

    Parameters
    ----------
    factor : float, optional
        The factor, between 0 and 1.
    patience : int, optional
        The rate is reduced after this many epochs without an improvement, at least 1; then the
        count starts again.
    minimum : float, optional
        The smallest rate, at least 0.
    monitor : str, optional
        The name of the figure in the records. Larger is better for names that end with ``accuracy``
        or ``r2``; smaller is better for others.
    min_delta : float, optional
        A change counts as an improvement if it is larger than this; at least 0.
    """

    @explained("nnxp.callbacks.ReduceOnPlateau(patience=2)")
    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        *,
        minimum: float = 1e-8,
        monitor: str = "validation_loss",
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(patience, monitor, min_delta)
        self.factor = require_number("factor", factor, _SHARE)
        self.minimum = require_number("minimum", minimum, NOT_NEGATIVE)

    def start(self, trainer: Trainer) -> bool | None:
        """Check that the figure is measured, and that the learning rate is a number."""
        super().start(trainer)
        rate = vars(trainer.optimizer).get("learning_rate")
        if not isinstance(rate, float):
            raise InputError(
                f"ReduceOnPlateau needs a learning rate that is a number, got {rate!r}; use either "
                "a schedule or ReduceOnPlateau"
            )
        return None

    def epoch(self, trainer: Trainer, record: Record) -> bool | None:
        """Compare the record with the best one, and reduce the rate."""
        if not self.improves(record) and self.state["waited"] >= self.patience:
            self.state["waited"] = 0
            rate = trainer.optimizer.learning_rate
            trainer.optimizer.learning_rate = min(rate, max(rate * self.factor, self.minimum))
        return None


class Checkpoint(Callback):
    """Write a checkpoint after each epoch, and at the end; see `Trainer.save`.

    Parameters
    ----------
    path : str or Path
        The file. It is locked: no other process may write to it during training.
    every : int, optional
        Write also after every `every` steps.
    best : str, optional
        The name of a figure in the records, such as ``"validation_loss"``: write only after an
        epoch with the best figure so far. An interrupted training run then resumes from that epoch.
    """

    @explained('nnxp.callbacks.Checkpoint("training.safetensors")')
    def __init__(
        self, path: str | Path, *, every: int | None = None, best: str | None = None
    ) -> None:
        if every is not None:
            require_count("every", every)
            if best is not None:
                raise InputError("Checkpoint takes every or best, not both")
        self.path, self.every, self.best = path, every, best
        self.every_step = every is not None
        self._lock = contextlib.ExitStack()
        self._saved = -1  # the number of steps in the file

    def start(self, trainer: Trainer) -> bool | None:
        """Lock the file, and check that the training can be saved."""
        if self.best is not None:
            require_measured(self, self.best, trainer)
        self._target = resolve_target(self.path)  # a change of the working directory has no effect
        self._lock.enter_context(trainer.lock(self._target))
        return None

    def step(self, trainer: Trainer) -> bool | None:
        """Save after every `every` steps."""
        if self.every is not None and trainer.optimizer.steps % self.every == 0:
            self._save(trainer)
        return None

    def epoch(self, trainer: Trainer, record: Record) -> bool | None:
        """Save, if the figure is the best one or none is monitored."""
        if self.best is not None:
            if not is_better(self.best, record[self.best], self.state.get("best")):
                return None
            self.state["best"] = record[self.best]
        self._save(trainer)
        return None

    def finish(self, trainer: Trainer, error: BaseException | None) -> None:
        """Save if training was stopped within an epoch, and unlock the file."""
        try:
            if error is None and self.best is None and self._saved != trainer.optimizer.steps:
                self._save(trainer)
        finally:
            self._lock.close()

    def _save(self, trainer: Trainer) -> None:
        trainer.save(self._target)
        self._saved = trainer.optimizer.steps


class Progress(Callback):
    """Print each epoch's record, and show a progress bar on a terminal or in a notebook.

    If this fails, for example because the disk is full, a warning is issued once, and training
    continues without it.
    """

    only_rank_0 = True
    _holds_arrays = False

    @explained("nnxp.callbacks.Progress()")
    def __init__(self) -> None:
        self._shown = True
        self._bar: Any = None
        self._make: Any = None

    def start(self, trainer: Trainer) -> bool | None:
        """Find out whether a bar can be shown."""
        import tqdm
        import tqdm.auto

        in_notebook = tqdm.auto.tqdm.__mro__[1] is not tqdm.std.tqdm
        self.every_step = in_notebook or shows_bars()
        self._shown = True
        self._make = tqdm.auto.tqdm
        return None

    def step(self, trainer: Trainer) -> bool | None:
        """Advance the bar."""
        done, total = trainer.epoch_steps
        with self._showing():
            if self._bar is None:
                name = f"epoch {trainer.epochs + 1:3d}"
                self._bar = self._make(
                    desc=name, total=total, initial=done - 1, leave=False, unit="batch"
                )
            self._bar.update()
        return None

    def epoch(self, trainer: Trainer, record: Record) -> bool | None:
        """Print the record."""
        self._close()
        with self._showing():
            try:
                print(record, flush=True)
            except UnicodeEncodeError:  # a non-ASCII name of a figure on an ASCII terminal
                print(str(record).encode("ascii", "backslashreplace").decode(), flush=True)
        return None

    def finish(self, trainer: Trainer, error: BaseException | None) -> None:
        """Remove the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            with self._showing():
                self._bar.close()
        self._bar = None

    @contextlib.contextmanager
    def _showing(self) -> Iterator[None]:
        """Issue a warning once if the output cannot be written."""
        try:
            yield
        except (OSError, ValueError) as error:  # a ValueError if the stream is closed
            if self._shown:
                self._shown = False
                warn(f"the progress cannot be printed ({error}); the training continues without it")


class StopOnSignal(Callback):
    """Stop training after the step in which the process receives a signal, such as Ctrl-C.

    Parameters
    ----------
    *signals : int
        The numbers of the signals; by default SIGINT, SIGTERM and, where it exists, SIGHUP, which a
        terminal sends when it is closed. A second signal has its usual effect.

    Attributes
    ----------
    received : int
        The number of the signal; 0 if there was none. It is the same on all ranks.
    """

    every_step = True

    def __init__(self, *signals: int) -> None:
        hangup = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # not on Windows
        self.signals = signals or (signal.SIGINT, signal.SIGTERM, *hangup)
        self.received = 0
        self._previous: dict[int, Any] = {}

    def start(self, trainer: Trainer) -> bool | None:
        """Install the signal handlers."""
        if threading.current_thread() is not threading.main_thread():
            raise InputError(
                "StopOnSignal works only in the main thread, since other threads receive no "
                "signals; train in the main thread, or leave StopOnSignal out"
            )
        for number in self.signals:
            if signal.getsignal(number) is not signal.SIG_IGN:  # keep the effect of nohup
                self._previous[number] = signal.signal(number, self._receive)
        return None

    def step(self, trainer: Trainer) -> bool | None:
        """Return whether a signal was received."""
        return bool(self.received)

    def epoch(self, trainer: Trainer, record: Record) -> bool | None:
        """Return whether a signal was received."""
        return bool(self.received)

    def finish(self, trainer: Trainer, error: BaseException | None) -> None:
        """Restore the previous signal handlers, once all ranks have received the signal."""
        if error is None and trainer.ranks.size > 1:
            received = max(map(int, trainer.ranks.exchange(str(self.received))))
            end = time.monotonic() + _DELAY
            while received and not self.received and time.monotonic() < end:
                time.sleep(_DELAY / 1000)
            self.received = received
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _receive(self, number: int, _: object) -> None:
        self.received = number
        if number in self._previous:
            signal.signal(number, self._previous.pop(number))


class WeightAverage(Callback):
    """Keep an exponential average of the parameters (Polyak and Juditsky 1992).

    After each step, ``average = decay * average + (1 - decay) * parameter``. `network` returns a
    network with the average.

    Parameters
    ----------
    decay : float, optional
        The weight of the previous average, between 0 and 1.
    """

    every_step = True

    @explained("nnxp.callbacks.WeightAverage(0.999)")
    def __init__(self, decay: float = 0.999) -> None:
        self.decay = require_number("decay", decay, _SHARE)
        self._average: dict[str, Array] = {}
        self._epoch_average: dict[str, Array] = {}  # at the end of the last epoch

    def start(self, trainer: Trainer) -> bool | None:
        """Start from the parameters, or from the average of a checkpoint or an earlier `fit`."""
        copy = trainer.network.parameters()
        device = trainer.network.device
        if device is None:
            return None
        kept = self.state.get("average", {})
        self._average = {
            name: device.xp.asarray(device.asarray(kept[name]) if name in kept else x, copy=True)
            for name, x in copy.items()
        }
        self._keep()
        return None

    def epoch(self, trainer: Trainer, record: Record) -> bool | None:
        """Copy the average, in case the next epoch diverges."""
        self._keep()
        return None

    def finish(self, trainer: Trainer, error: BaseException | None) -> None:
        """Restore the average before a diverged epoch."""
        if isinstance(error, DivergenceError):
            self._average = self._epoch_average

    def _keep(self) -> None:
        average = self._average.items()
        self._epoch_average = {n: namespace_of(x, self).asarray(x, copy=True) for n, x in average}

    def step(self, trainer: Trainer) -> bool | None:
        """Update the average."""
        for name, x in trainer.network.parameters().items():
            self._average[name] *= self.decay
            self._average[name] += (1 - self.decay) * x
        return None

    def saved_state(self, trainer: Trainer) -> dict[str, Any]:
        """Return the average on the host."""
        return {"average": _host_copies(trainer, self._average)}

    def network(self, network: Sequential) -> Sequential:
        """Return a copy of a network with the averaged parameters.

        State is not averaged: the running statistics of a `BatchNorm` are those of `network`.
        """
        copied = network.to(network.device) if network.device is not None else network
        copied.load_parameters(self._average)
        return copied


def require_measured(callback: Callback, name: str, trainer: Trainer) -> None:
    """Raise an `InputError` if a figure that a callback monitors is not measured."""
    if name not in trainer.measured:
        kind = type(callback).__name__
        remedy = "give fit validation=…, or " if name.startswith("validation_") else ""
        raise InputError(
            f"{kind} monitors {name}, which is not measured; {remedy}monitor one of "
            f"{', '.join(trainer.measured)}"
        )


def is_better(name: str, value: float, best: float | None, min_delta: float = 0.0) -> bool:
    """Return whether a figure is better than the best one so far, by more than `min_delta`.

    Larger is better for names that end with ``accuracy`` or ``r2``; smaller is better for others. A
    value that is not finite is never better.
    """
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    gain = value - best if name.endswith(("accuracy", "r2")) else best - value
    return gain > min_delta


def _host_copies(trainer: Trainer, arrays: Any) -> dict[str, Any]:
    device = trainer.network.device
    return {} if device is None else {n: np.array(device.to_host(x)) for n, x in arrays.items()}


CALLBACKS: dict[str, type[Callback]] = {
    "earlystopping": EarlyStopping,
    "reduceonplateau": ReduceOnPlateau,
    "checkpoint": Checkpoint,
    "progress": Progress,
    "stoponsignal": StopOnSignal,
    "watchlayers": WatchLayers,
    "weightaverage": WeightAverage,
    "writecsv": WriteCSV,
    "writejsonlines": WriteJSONLines,
    "writetensorboard": WriteTensorBoard,
}
"""The callbacks by name."""


def __dir__() -> list[str]:
    return __all__
