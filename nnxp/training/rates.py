"""Rates: the learning-rate range test."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array
from nnxp.checks import (
    POSITIVE,
    Rng,
    explained,
    object_remedy,
    require_count,
    require_number,
    require_rng,
)
from nnxp.data.batches import Batches
from nnxp.data.dataset import Dataset
from nnxp.errors import DivergenceError, InputError
from nnxp.ranks import ONE_RANK
from nnxp.training.copies import independent_copy
from nnxp.training.preparation import require_dataset, with_class_numbers
from nnxp.training.trainer import Trainer

_RISE = 4  # the test ends when the smoothed loss is this many times the lowest one
_FALL = 0.01  # a loss has fallen if it is lower than the first one by this share of it,
_NOISES = 3  # and by this many standard deviations of the noise
_MIN_STEPS = 20
_MARGIN = 10  # the rate of the lowest loss is this many times the suggested rate


@dataclass(frozen=True)
class LearningRateRange:
    """The losses of a learning-rate range test.

    Attributes
    ----------
    rates : (steps,) array
        The learning rate of each step.
    losses : (steps,) array
        The loss of each step's batch before its update, including the penalty.
    smoothed : (steps,) array
        The moving average of the losses, over a twentieth of the steps.
    diverged : bool
        Whether the test ended because the smoothed loss rose to four times its lowest value, or a
        loss was not finite; otherwise the highest rate was reached.
    """

    rates: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    smoothed: npt.NDArray[np.float64]
    diverged: bool

    @property
    def lowest(self) -> int:
        """The index of the step with the lowest smoothed loss."""
        return int(np.argmin(self.smoothed))

    @property
    def suggestion(self) -> float | None:
        """A tenth of the rate with the lowest smoothed loss; None if the loss hardly fell.

        The lowest loss must be lower than the first one by 1 % and by three standard deviations of
        the noise.

        At the rate of the lowest loss, the loss stops falling, so this rate is too high for
        training. At a tenth of it, the loss falls fast (Howard and Gugger 2020, ch. 5).
        """
        if self.lowest == 0:
            return None
        # Differences of consecutive losses estimate the noise independently of the trend.
        noise = float(np.std(np.diff(self.losses[: self.lowest + 1]))) / math.sqrt(2)
        first = float(self.smoothed[0])
        fall = first - float(self.smoothed[self.lowest])
        if fall < max(_FALL * abs(first), _NOISES * noise):
            return None
        return float(self.rates[self.lowest]) / _MARGIN


class _Finished(Exception):  # noqa: N818 - no error
    """Ends the epoch of a test."""


@explained("nnxp.learning_rate_range(trainer, dataset, batch_size=100, rng=0)")
def learning_rate_range(
    trainer: Trainer,
    dataset: Dataset,
    *,
    batch_size: int,
    rng: Rng,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
) -> LearningRateRange:
    """Train a copy with a learning rate that rises from step to step (Smith 2017, section 3.3).

    The rate rises exponentially. The trainer and all its parts are unchanged: network, optimizer,
    penalty, transforms and their state are copied, except for transforms that are functions.
    `nnxp.plots.plot_learning_rate_range` draws the result.

    Parameters
    ----------
    trainer : Trainer
        A trainer before or after training. The test uses plain steps (`Trainer.step`, also if it is
        overridden).
    dataset : Dataset
        The training examples. If the steps need more examples, several epochs are trained.
    batch_size : int
        The batch size of the planned training; a larger one allows a higher rate.
    rng : numpy.random.Generator, SeedSequence or int
        Draws the orders of the examples. A generator is copied, so it may be the trainer's.
    lowest, highest : float, optional
        The first and the last rate, positive numbers.
    steps : int, optional
        The number of steps, at least 20.

    Returns
    -------
    LearningRateRange
        It has fewer steps if the smoothed loss rises to four times its lowest value, or a loss is
        not finite.

    Raises
    ------
    InputError
        If an argument is wrong, the examples do not fit the network, or the trainer cannot be
        copied.
    DivergenceError
        If the first loss is not finite.

    Examples
    --------
    >>> import nnxp
    >>> train, test = nnxp.data.load_digits()
    >>> network = nnxp.mlp([64, 50, 10], rng=0)
    >>> trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    >>> found = nnxp.learning_rate_range(trainer, train, batch_size=50, rng=0)
    >>> 0.01 < found.suggestion < 1
    True
    """
    if not isinstance(trainer, Trainer):
        raise InputError(f"learning_rate_range expects a Trainer, got {trainer!r:.80}")
    if isinstance(dataset, type):
        raise InputError(f"learning_rate_range expects a Dataset{object_remedy(dataset)}")
    require_dataset(dataset, "learning_rate_range")
    count = require_count("steps", steps, _MIN_STEPS)
    first = require_number("lowest", lowest, POSITIVE)
    last = require_number("highest", highest, POSITIVE)
    if first >= last:
        raise InputError(f"lowest must be below highest, got {first:g} and {last:g}")
    generator = copy.deepcopy(require_rng(rng))
    network, device, dtype = trainer.network, trainer.network.device, trainer.network.dtype
    assert device is not None  # a trainer's network has parameters
    assert dtype is not None
    state = [x for kept in trainer.optimizer.state.values() for x in kept.values()]
    rates = np.geomspace(first, last, count)
    losses: list[float] = []
    with device.current():
        probe = independent_copy(trainer, network, device, state)
        probe.optimizer.learning_rate = first
        plain_step = probe.step

        @functools.wraps(plain_step)  # it may take no weights
        def recorded_step(*batch: Any) -> Array:
            probe.optimizer.learning_rate = float(rates[len(losses)])
            loss = plain_step(*batch)
            losses.append(float(loss))
            if len(losses) == count or _has_diverged(losses, count):
                raise _Finished
            return loss

        # Ignore the progress of an interrupted epoch of the trainer. Each of several ranks does the
        # whole test, with the same result.
        vars(probe).update(step=recorded_step, capture=False, _progress=None, ranks=ONE_RANK)
        examples = with_class_numbers(dataset, probe.network, probe.loss)
        batches = Batches(examples, batch_size, device=device, dtype=dtype, rng=generator)
        try:
            while True:
                probe.train_epoch(batches)
        except _Finished:
            pass
    diverged = _has_diverged(losses, count)
    if not math.isfinite(losses[-1]):
        losses.pop()
    if not losses:
        raise DivergenceError(
            "the loss of the first batch is not finite before any step; check the network's "
            "parameters, and start from new weights"
        )
    return LearningRateRange(
        rates[: len(losses)], np.array(losses), _smoothed(losses, count), diverged
    )


def _smoothed(losses: list[float], count: int) -> npt.NDArray[np.float64]:
    """Return the moving average of the losses of a test of `count` steps."""
    reach, steps = max(1, count // 40), np.arange(len(losses))
    starts, stops = np.maximum(steps - reach, 0), np.minimum(steps + reach + 1, len(losses))
    sums = np.cumsum([0.0, *losses])
    means: npt.NDArray[np.float64] = (sums[stops] - sums[starts]) / (stops - starts)
    return means


def _has_diverged(losses: list[float], count: int) -> bool:
    """Return whether the last loss is not finite, or the smoothed loss far above its lowest."""
    if not math.isfinite(losses[-1]):
        return True
    smoothed = _smoothed(losses, count)
    lowest = float(smoothed.min())
    return float(smoothed[-1]) > lowest + (_RISE - 1) * abs(lowest)
