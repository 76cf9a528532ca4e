"""Build what tests train: networks, trainers and data sets, and run them for some steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tables import device_or_skip

import nnxp
from nnxp.data import Batches, Dataset
from nnxp.optimizers import OPTIMIZERS


class PlainTrainer(nnxp.Trainer):
    """Trains by plain steps."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options | {"capture": False})


class Stopping(nnxp.callbacks.Callback):
    """Calls a function after each step and each epoch, and stops if it returns True."""

    every_step = True

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function

    def step(self, trainer: nnxp.Trainer) -> bool:
        return bool(self.function())

    def epoch(self, trainer: nnxp.Trainer, record: nnxp.Record) -> bool:
        return bool(self.function())


class AfterEpoch(nnxp.callbacks.Callback):
    """Calls a function with the history after each epoch."""

    def __init__(self, function: Callable[[list[nnxp.Record]], Any]) -> None:
        self.function = function

    def epoch(self, trainer: nnxp.Trainer, record: nnxp.Record) -> None:
        self.function(trainer.history)


def new_record(epoch: int, *figures: float | None) -> nnxp.Record:
    """Return a record of loss, accuracy, the same of the validation, and seconds; without None."""
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds")
    given = {name: x for name, x in zip(names, figures, strict=True) if x is not None}
    return nnxp.Record(epoch, **given)


def three_layers(seed: int | np.random.Generator = 0, **options: Any) -> nnxp.ThreeLayerNet:
    """Return a 6-5-4-3 network; a generator in place of a seed draws on."""
    return nnxp.ThreeLayerNet(6, 5, 4, 3, rng=np.random.default_rng(seed), **options)


def new_trainer(
    optimizer: str | nnxp.Optimizer = "adam",
    widths: tuple[int, ...] = (6, 5, 4, 3),
    *,
    activation: str = "tanh",
    seed: int = 0,
    capture: bool | str = "auto",
    **options: Any,
) -> nnxp.Trainer:
    """Return a trainer of an `nnxp.mlp`; its `rng` drew the weights and is there for batches."""
    rng = np.random.default_rng(seed)
    network = nnxp.mlp(widths, rng=rng, activation=activation, **options)
    optimizer = OPTIMIZERS[optimizer]() if isinstance(optimizer, str) else optimizer
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), optimizer, capture=capture)
    trainer.rng = rng
    return trainer


def small_trainer(**options: Any) -> nnxp.Trainer:
    """Return a trainer of a 6-5-4-3 network for `small`."""
    return nnxp.Trainer(three_layers(**options), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))


def trainer_with(
    kind: type[nnxp.Trainer] = nnxp.Trainer,
    *,
    layer: nnxp.Layer | None = None,
    loss: nnxp.Loss | None = None,
    optimizer: nnxp.Optimizer | None = None,
    widths: tuple[int, int, int] = (6, 5, 3),
) -> nnxp.Trainer:
    """Return a trainer with given parts: two affine layers and one between them."""
    rng = np.random.default_rng(0)
    first, last = (nnxp.Affine(i, o, rng=rng) for i, o in itertools.pairwise(widths))
    network = nnxp.Sequential([first, layer or nnxp.Tanh(), last])
    return kind(network, loss or nnxp.SoftmaxWithLoss(), optimizer or nnxp.Momentum(0.1))


def every_layer_trainer(
    kind: type[nnxp.Trainer] = nnxp.Trainer,
    *,
    loss: type[nnxp.Loss] = nnxp.SoftmaxWithLoss,
    optimizer: str = "momentum",
    dtype: str = "float32",
) -> nnxp.Trainer:
    """Return a trainer of a 12-9-8-7-3 network with a layer of every kind."""
    rng = np.random.default_rng(0)
    widths = [nnxp.Affine(i, o, rng=rng, dtype=dtype) for i, o in [(12, 9), (9, 8), (8, 7), (7, 3)]]
    first, second, third, last = widths
    # No bias before a BatchNorm: its gradient is rounding error, which Adam would scale up.
    drawn = {"rng": rng, "dtype": dtype}
    layers = [nnxp.Reshape((1, 3, 4)), nnxp.ElasticDistortion(9, 2, **drawn)]
    layers += [nnxp.RandomRotation(30, **drawn), nnxp.RandomFlip(**drawn)]
    layers += [nnxp.RandomShift(1, **drawn), nnxp.Flatten()]
    layers += [nnxp.Standardize(dtype=dtype), nnxp.BatchNorm(12, dtype=dtype)]
    # No padding: without it, captured convolutions add in the order of plain ones, to the bit.
    layers += [nnxp.Reshape((1, 3, 4)), nnxp.Conv2D(1, 12, 2, **drawn)]
    layers += [nnxp.MaxPool2D((2, 1), stride=1), nnxp.AveragePool2D((1, 2), stride=1)]
    layers += [nnxp.GlobalAveragePool2D()]
    layers += [first, nnxp.LayerNorm(9, dtype=dtype), nnxp.ReLU(), second]
    layers += [nnxp.Sigmoid(), nnxp.Residual([nnxp.Identity()]), third, nnxp.Tanh()]
    layers += [nnxp.LeakyReLU(), nnxp.ELU(), nnxp.GELU(), nnxp.SiLU(), nnxp.Softplus()]
    layers += [nnxp.Dropout(0.2, **drawn), nnxp.Softmax(), last]
    network = nnxp.Sequential(layers)
    public = [getattr(nnxp, name) for name in nnxp.__all__]
    kinds = {x for x in public if isinstance(x, type) and issubclass(x, nnxp.Layer)}
    kinds -= {nnxp.Layer, nnxp.ThreeLayerNet, nnxp.TwoLayerNet}
    assert {type(layer) for layer in (network, *network.all_layers())} == kinds
    trainer = kind(network, loss(), OPTIMIZERS[optimizer]())
    trainer.rng = rng
    return trainer


def mnist_like(examples: int = 2000) -> Dataset:
    """Return images of MNIST's size, of noise."""
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (examples, 784), np.uint8), rng.integers(0, 10, examples))


def train_epoch(
    trainer: nnxp.Trainer, dataset: Dataset, batch_size: int, rng: np.random.Generator
) -> None:
    """Let a trainer do the updates of one epoch."""
    place = {"device": trainer.network.device, "dtype": trainer.network.dtype}
    trainer.train_epoch(Batches(dataset, batch_size, **place, rng=rng))


EPOCHS, STEPS = 3, 4  # of `fit` on `data`: in batches of 12, 12, 12 and 4


def fit(trainer: nnxp.Trainer, data: Dataset, epochs: int, **options: Any) -> list[nnxp.Record]:
    """Train in batches of 12 that the trainer's own generator draws."""
    return trainer.fit(
        data, epochs=epochs, batch_size=12, validation=data, rng=trainer.rng, **options
    )


def train_layer(make, inputs, outputs, spec="cpu", epochs=2, **options):
    """Return a trainer of a layer of `tables.LAYERS` and an affine layer after it, and its data."""
    rng = np.random.default_rng(0)
    place = {"device": device_or_skip(spec), "dtype": "float64"}
    last = nnxp.Affine(math.prod(outputs[1:]), 3, rng=rng, **place)
    network = nnxp.Sequential([make(place["device"], "float64"), nnxp.Flatten(), last])
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Momentum(0.1), **options)
    dataset = Dataset(rng.normal(size=(22, *inputs[1:])), rng.integers(0, 3, 22))
    trainer.fit(dataset, epochs=epochs, batch_size=8, rng=1)
    return trainer, dataset


def stopped_after(steps: int, trainer: nnxp.Trainer) -> Callable[[], bool]:
    """Return a `stop` that ends the training after so many steps in all."""
    return lambda: trainer.optimizer.steps >= steps


def numbers(trainer: nnxp.Trainer) -> dict[str, Any]:
    """Return the whole state of a training, on the host."""
    to_host = trainer.network.device.to_host
    state = trainer.optimizer.state
    return {
        "parameters": {n: to_host(x) for n, x in trainer.network.parameters().items()},
        "state": {s: {n: to_host(x) for n, x in kept.items()} for s, kept in state.items()},
        "steps": trainer.optimizer.steps,
        "history": [dict(r) | {"seconds": 0} for r in trainer.history],
        "rng": trainer.rng and trainer.rng.bit_generator.state,
    }


def assert_same(one: nnxp.Trainer, other: nnxp.Trainer) -> None:
    """Compare histories, steps, parameters and state of two trainers bit by bit."""
    mine, others = ([dict(r) | {"seconds": 0} for r in x.history] for x in (one, other))
    np.testing.assert_equal(mine, others)
    for name in ("steps", "parameters", "state"):
        np.testing.assert_equal(*(numbers(x)[name] for x in (one, other)))


def bound(x, rate, a, b):
    """Return how far two ways of rounding ``x - rate * (a @ b)`` may be apart.

    A sum of n products in any order is off by n * unit * (|a| @ |b|) at most (Higham 2002,
    eq. 3.5); the factor and the difference round once more each, or not, in both ways.
    """
    unit = np.finfo(x.dtype).eps / 2
    x, a, b = (np.abs(y.astype("float64")) for y in (x, a, b))
    return 2 * unit * ((a.shape[1] + 2) * rate * (a @ b) + x)
