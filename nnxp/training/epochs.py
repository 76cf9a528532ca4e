"""Epochs: an epoch's steps with the callbacks between them, and its figures."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nnxp.arrays import Array
from nnxp.data.batches import Batches
from nnxp.data.epoch import EpochProgress
from nnxp.errors import DivergenceError, InputError
from nnxp.history import Record
from nnxp.parts import numbers_of
from nnxp.ranks import is_common
from nnxp.step import DoSteps
from nnxp.training.callback import Callback
from nnxp.training.divergence import Snapshot, parameters_and_state, raise_at_divergence
from nnxp.training.evaluation import evaluate, evaluation_batch_size
from nnxp.training.preparation import flush_denormals
from nnxp.training.stepping import repays_compiling

if TYPE_CHECKING:
    from nnxp.training.trainer import Trainer


class EpochRunner:
    """Trains the epochs of a call of `Trainer.fit` or `Trainer.train_epoch`.

    Parameters
    ----------
    trainer : Trainer
        Keeps the progress within an epoch and the sums of its steps.
    data : list of Batches
        Training examples, and validation examples if there are any.
    observers : list of Callback
        The callbacks to call after each step.
    observed : bool
        Whether there are observers on any rank.
    first_sums : dict of str to array
        Zeros to which the steps' figures are added; empty if the training examples are evaluated
        after the epoch.
    keeps : bool
        Whether captured steps may stay bound between epochs; then no code of the user may see the
        arrays.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: list[Batches],
        observers: list[Callback],
        observed: bool,
        first_sums: dict[str, Array],
        *,
        keeps: bool,
    ) -> None:
        self._trainer, self._data = trainer, data
        self._observers, self._observed = observers, observed
        self._first_sums, self._keeps = first_sums, keeps

    def train(self, progress: EpochProgress) -> None:
        """Do the remaining steps of an epoch, without figures."""
        with self._steps(progress, restores=False) as do_steps:
            self._train(do_steps, progress)

    def train_and_evaluate(self) -> Record | None:
        """Train an epoch, evaluate, and return the epoch's record; None if it was stopped."""
        trainer = self._trainer
        progress = trainer._progress or EpochProgress.start(self._data[0])
        start = time.perf_counter() - progress.seconds
        trainer._sums = self._resumed_sums(progress) if progress.batch else dict(self._first_sums)
        numbers = changeable_numbers(trainer) if self._observed else []
        try:
            with self._steps(progress, restores=True) as do_steps:
                if not self._train(do_steps, progress):
                    return None
                figures = self._evaluate()
        except DivergenceError:
            trainer._sums = {}
            trainer._progress = None
            if not self._observed or changeable_numbers(trainer) == numbers:  # else not repeatable
                self._search_divergence(progress)
            trainer._progress = progress if progress.batch else None
            raise
        finally:
            trainer._sums = {}
        return Record(trainer.epochs + 1, **figures, seconds=time.perf_counter() - start)

    def _evaluate(self) -> dict[str, float]:
        """Return the epoch's figures by the names in records; raise if one is not finite."""
        trainer, batches = self._trainer, self._data[0]
        evaluated = self._data[1:] if trainer._sums else self._data
        vectors = [] if self._observed else trainer._stepper.vectors()
        measured = evaluate(
            trainer._whole_step(),
            [x.in_order(evaluation_batch_size(trainer.network, x.dataset)) for x in evaluated],
            trainer._device,
            batches.total_weight,
            vectors or parameters_and_state(trainer.network, trainer.optimizer).values(),
            trainer.ranks,
        )
        evaluations = measured.evaluations
        on_train = measured.running if measured.running is not None else evaluations.pop(0)
        if not (measured.finite and math.isfinite(on_train.loss)):
            loss = f"the loss is {on_train.loss}"
            what = loss if measured.finite else "parameters or state are not finite"
            raise DivergenceError(
                f"{what} after epoch {trainer.epochs + 1}; start from new weights with a lower "
                f"learning rate, now {trainer.optimizer.learning_rate:g}"
            )
        figures = {f"train_{name}": x for name, x in on_train.items()}
        for evaluation in evaluations:
            figures |= {f"validation_{name}": x for name, x in evaluation.items()}
        if trainer.penalty is not None:
            figures["penalty"] = measured.penalty
        return figures

    def _search_divergence(self, progress: EpochProgress) -> None:
        """Repeat the epoch with plain steps, and raise at the first one that diverges, if any."""
        trainer, batches = self._trainer, self._data[0]
        before = Snapshot(trainer.network, trainer.optimizer, trainer._device)
        plain_step, step = trainer._plain_step(batches), trainer._whole_step()
        raise_at_divergence(plain_step, step, batches, progress, trainer.epochs + 1)
        before.restore()

    def _resumed_sums(self, progress: EpochProgress) -> dict[str, Array]:
        """Return the sums over the finished steps of an epoch to resume.

        None if these steps were not summed: the examples are then evaluated after the epoch.
        """
        if not progress.sums or not self._first_sums:
            return {}
        sizes = {name: x.shape[0] for name, x in self._first_sums.items()}
        if {name: len(x) for name, x in progress.sums.items()} != sizes:
            raise InputError(
                "this trainer was stopped within an epoch with other metrics; resume it with the "
                "same"
            )
        trainer = self._trainer
        factor = 1 if trainer.ranks.rank == 0 else 0  # they already are sums over all ranks
        return {
            name: trainer._device.asarray(np.array(x) * factor, dtype=trainer._dtype)
            for name, x in progress.sums.items()
        }

    def _train(self, do_steps: DoSteps, progress: EpochProgress) -> bool:
        """Do the remaining updates of an epoch; return False if a callback stopped it."""
        trainer, batches = self._trainer, self._data[0]
        start = time.perf_counter() - progress.seconds
        rows = progress.remaining_rows(batches)
        if not self._observed:
            do_steps(rows)
            return True
        current = replace(progress)
        total = len(batches)
        for done, batch in enumerate(rows, progress.batch + 1):
            do_steps([batch])
            current.batch, current.seconds = done, time.perf_counter() - start
            trainer._progress, trainer._epoch_steps = current, (done, total)  # for a save
            stops: list[bool | None] = []
            error: BaseException | None = None
            try:
                stops = [callback.step(trainer) for callback in self._observers]
            except BaseException as raised:
                # The other ranks may do something else meanwhile, and then there are no sums.
                current.sums = trainer._host_sums() if trainer.ranks.size == 1 else {}
                if trainer.ranks.size == 1 or is_common(raised):
                    raise
                error = raised
            if trainer._meet(stops=any(stops), error=error):
                current.sums, current.seconds = trainer._host_sums(), time.perf_counter() - start
                return False
            trainer._progress = None
        return True

    @contextlib.contextmanager
    def _steps(self, progress: EpochProgress, *, restores: bool) -> Iterator[DoSteps]:
        """Provide the function that does steps, given the batches' rows; see `Stepper.bind`.

        The progress of an interrupted epoch is kept if resuming fails before its first step.
        """
        trainer, batches = self._trainer, self._data[0]
        optimizer, steps = trainer.optimizer, trainer.optimizer.steps
        # Those before the epoch and its own, not those planned: a training that was stopped may be
        # resumed for another number of epochs, and still gives the same bits.
        until_end = steps - progress.batch + len(batches)
        trainer._compiles = trainer.compiled is True or (
            trainer.compiled == "auto"
            and repays_compiling(trainer._whole_step(), batches, until_end)
        )
        trainer._progress = None
        if not progress.batch:
            flush_denormals(optimizer, len(batches))
        try:
            with trainer._stepper.bind(
                trainer._plain_step(batches),
                trainer._whole_step,
                batches,
                capture=trainer.capture,
                compiled=trainer._compiles,
                own_step=trainer._has_own_step(),
                observed=self._observed,
                restores=restores,
                keeps=self._keeps,
            ) as do_steps:
                yield do_steps
        except BaseException:
            if progress.batch and optimizer.steps == steps:
                trainer._progress = progress
            raise


def changeable_numbers(trainer: Trainer) -> list[dict[str, Any]]:
    """Return the values that a callback may change between steps: numbers, and frozen layers."""
    parts = [x for x in (trainer.optimizer, trainer.penalty) if x is not None]
    leaves = trainer.network.leaves()
    named = [(x, sorted(numbers_of(x))) for x in (*parts, *leaves)]
    numbers: list[dict[str, Any]] = [{name: vars(x)[name] for name in y} for x, y in named]
    return [*numbers, {"trainable": [layer.trainable for layer in leaves]}]
