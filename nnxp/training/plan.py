"""Plan: the data and settings of a call of `fit`, checked before training."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import Parameter
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnxp.arrays import Array
from nnxp.checks import require_count, require_rng
from nnxp.data.batches import Batches
from nnxp.data.dataset import Dataset, Split
from nnxp.data.stream import BatchStream
from nnxp.data_format import DataFormat
from nnxp.errors import InputError
from nnxp.layers import Standardize
from nnxp.random import get_state
from nnxp.step import Step
from nnxp.training.divergence import parameters_and_state
from nnxp.training.epochs import changeable_numbers
from nnxp.training.evaluation import evaluation_batch_size
from nnxp.training.preparation import (
    data_format_of,
    fingerprint,
    fit_statistics,
    in_format,
    require_dataset,
    require_suitable,
    require_weights_taken,
    with_class_numbers,
)

if TYPE_CHECKING:
    from nnxp.training.trainer import Trainer


class Plan(NamedTuple):
    """The data that `fit` trains and evaluates on.

    Attributes
    ----------
    data : list of Batches
        Training examples, and validation examples if there are any. This list is the only
        reference to them: emptying it frees the device's memory.
    rng : numpy.random.Generator or None
        Draws the orders; None for an iterable of batches.
    split : Split or None
        The choice of validation examples from the training examples; None if there is none.
    micro_batch_size : int or None
        See `Step`.
    first_sums : dict of str to array
        Zeros to which the steps' figures are added; empty if the training examples are evaluated
        after each epoch.
    measured : tuple of str
        The names of the figures in the records.
    trained_on : DataFormat
    """

    data: list[Batches]
    rng: np.random.Generator | None
    split: Split | None
    micro_batch_size: int | None
    first_sums: dict[str, Array]
    measured: tuple[str, ...]
    trained_on: DataFormat


def plan_training(
    trainer: Trainer,
    train: Dataset | Iterable[Any],
    validation: object,
    *,
    batch_size: object,
    rng: object,
    train_metrics: str,
    accumulate: int,
) -> Plan:
    """Return the plan of a call of `fit` with these arguments.

    If no error is raised, it sets the statistics of `Standardize`, and changes nothing else.

    Raises
    ------
    InputError
        If the data sets do not fit network and loss, or arguments contradict each other.
    """
    require_count("accumulate", accumulate)
    if train_metrics not in ("running", "after"):
        raise InputError(f'train_metrics must be "running" or "after", got {train_metrics!r}')
    network, own_step, split = trainer.network, trainer._has_own_step(), trainer._split
    batches: Batches
    generator: np.random.Generator | None
    if isinstance(train, Dataset):
        if batch_size is None:
            raise InputError("fit needs a batch_size: give batch_size=100, for example")
        size = require_count("batch_size", batch_size)
        generator = _generator(trainer, rng)
        train = with_class_numbers(train, network, trainer.loss)
        if isinstance(validation, Real):
            train, validation, split = _held_out(train, validation, split, generator)
        batches = trainer._batches(train, size * accumulate, generator)
        micro_batch_size = -(-size // trainer.ranks.size) if accumulate > 1 else None
    else:
        batches = BatchStream(
            train, device=trainer._device, dtype=trainer._dtype, ranks=trainer.ranks
        )
        for name, value in (("batch_size", batch_size), ("rng", rng)):
            if value is not None:
                raise InputError(
                    f"fit takes no {name} with an iterable of batches, which has its own; omit "
                    f"{name}"
                )
        if accumulate > 1 or isinstance(validation, Real) or train_metrics == "after":
            raise InputError(
                'accumulate, a share as validation and train_metrics="after" need a Dataset'
            )
        if own_step:
            raise InputError("a trainer whose class overrides step needs a Dataset to train on")
        generator, micro_batch_size = trainer.rng, None
    step = trainer._whole_step()
    step.micro_batch_size = micro_batch_size
    sums = require_suitable_training(trainer, batches, step)
    measured = ["epoch", *(f"train_{name}" for name in sums)]
    running = train_metrics == "running" and not own_step
    # A product with 0 would be nan for a first loss that is infinite.
    zeros = trainer._device.xp.zeros_like
    first_sums = {name: zeros(x) for name, x in sums.items() if running}
    trained_on = data_format_of(batches.dataset, step, isinstance(batches, BatchStream))
    data = [batches]
    if validation is not None:
        held_out = in_format(require_dataset(validation, "validation"), trained_on, "validation")
        data.append(trainer._batches(held_out, evaluation_batch_size(network, held_out)))
        sums = require_suitable(data[1], "validation", step)
        measured += [f"validation_{name}" for name in sums]
    measured += ["seconds"] if trainer.penalty is None else ["penalty", "seconds"]
    return Plan(data, generator, split, micro_batch_size, first_sums, tuple(measured), trained_on)


def _generator(trainer: Trainer, rng: object) -> np.random.Generator:
    """Return the generator that a call of `fit` uses."""
    if rng is None and trainer.rng is None:
        raise InputError("fit needs a seed or a generator: give rng=0, for example")
    return trainer.rng if rng is None and trainer.rng is not None else require_rng(rng)


def _held_out(
    dataset: Dataset, held_out: Real, split: Split | None, rng: np.random.Generator
) -> tuple[Dataset, Dataset, Split]:
    """Return training and validation examples and their split: the last one if possible."""
    share = float(held_out)
    if not 0 < share < 1:
        raise InputError(
            f"validation must be a data set or a share between 0 and 1, got {held_out!r}; "
            "dataset.split(…, rng=0) also takes a number of examples"
        )
    if split is None or (split.share, split.examples) != (share, len(dataset)):
        split = Split(share, len(dataset), int(rng.integers(2**31)))
    try:
        train, rest = dataset.split(share, rng=split.seed)
    except InputError as error:
        raise InputError(f"validation as a share of the training data: {error}") from None
    return train, rest, split


def require_suitable_training(trainer: Trainer, batches: Batches, step: Step) -> dict[str, Array]:
    """Return the first sums, and set statistics if no error is raised; see `require_suitable`."""
    if trainer.ranks.size > 1 and trainer._has_own_step():
        raise InputError("a trainer whose class overrides step cannot divide batches over ranks")
    if trainer._has_own_step() and batches.dataset.weights is not None:
        require_weights_taken(
            trainer.step, "this trainer's own step", "training", Parameter.VAR_POSITIONAL
        )
    layers = [x for x in trainer.network.leaves() if isinstance(x, Standardize)]
    before = [(x, dict(x.state), x.features) for x in layers]
    try:
        fit_statistics(trainer.network, batches, trainer.ranks)
        return require_suitable(batches, "training", step)
    except InputError:
        for layer, state, features in before:
            layer.state, layer.features = state, features
        raise


def require_same_ranks(trainer: Trainer, data: list[Batches], settings: object) -> None:
    """Raise a `RanksError` on all ranks unless all of them start in the same way."""
    if trainer.ranks.size == 1:
        return
    sizes = [(x.batch_size, len(x.dataset), x.dataset.total_weight) for x in data]
    trainer.ranks.require_same(
        {
            "number of examples or batch size": sizes,
            "data set": [fingerprint(x) for x in data],
            "setting of fit": settings,
            **_common_values(trainer),
        },
        "Trainer.fit",
    )


def require_equal_ranks(trainer: Trainer) -> None:
    """Raise a `RanksError` on all ranks unless they are equal to the bit after an epoch."""
    if trainer.ranks.size > 1:
        trainer.ranks.require_same(
            _common_values(trainer),
            f"epoch {trainer.epochs}",
            f"after epoch {trainer.epochs}; a callback that changes network, optimizer or "
            "generator must do so on all ranks, and all need processors that round in the same way",
        )


def _common_values(trainer: Trainer) -> dict[str, Any]:
    """Return what is the same on all ranks, by name."""
    arrays = parameters_and_state(trainer.network, trainer.optimizer).items()
    return {
        "network, optimizer or other part": trainer._whole_step().parts,
        "learning rate or other number": changeable_numbers(trainer),
        "seed or generator": None if trainer.rng is None else get_state(trainer.rng),
        "progress of the training": (trainer.optimizer.steps, trainer.epochs),
        **{name: trainer._device.to_host(x) for name, x in arrays},
    }
