"""Random networks of all parts: captured steps against plain ones, with changes in between."""

from __future__ import annotations

import numpy as np
import pytest
from builders import PlainTrainer, Stopping
from tables import device_or_skip

import nnxp
from nnxp.data import Dataset, one_hot
from nnxp.optimizers import OPTIMIZERS
from nnxp.parts import numbers_of
from nnxp.schedules import (
    Chain,
    Constant,
    Cosine,
    Exponential,
    LinearWarmup,
    OneCycle,
    StepDecay,
)


class Compiled(nnxp.Trainer):
    """A trainer whose steps are machine code."""

    def __init__(self, *parts, **settings):
        pytest.importorskip("llvmlite")
        super().__init__(*parts, compiled=True, **settings)


CASES = [
    ("cpu", nnxp.Trainer, range(10)),
    ("cpu", Compiled, range(2)),
    pytest.param("cpu", nnxp.Trainer, range(1000), marks=pytest.mark.long),
    pytest.param("cpu", Compiled, range(100), marks=pytest.mark.long),
    pytest.param("jax:cpu", nnxp.Trainer, range(10), marks=pytest.mark.interop),
    pytest.param(
        "jax:cpu", nnxp.Trainer, range(200), marks=[pytest.mark.interop, pytest.mark.long]
    ),
]
# Rounding of a step is within n u of its numbers (Higham 2002, eq. 3.5), where n, the terms of a
# sum, is below 100 here and u = 1.1e-16; 9 steps through at most 12 layers, each of which amplifies
# an error by at most 1e3, leave more than three digits to this bound.
BOUND = 1e-7

SMOOTH = [nnxp.Sigmoid, nnxp.Tanh, nnxp.Identity, nnxp.ELU, nnxp.GELU, nnxp.SiLU, nnxp.Softplus]


def random_layers(rng, width, place, depth=0):
    """Return up to four random layers from `width` features, and the width of their outputs."""
    layers = []
    for _ in range(rng.integers(1, 5)):
        kind = rng.choice(["affine", "norm", "dropout", "activation", "residual", "block"])
        if kind == "affine":
            outputs = int(rng.integers(1, 12))
            layers.append(nnxp.Affine(width, outputs, rng=rng, **place))
            width = outputs
        elif kind == "norm" and width > 1:
            layers.append(nnxp.BatchNorm(width, momentum=float(rng.uniform(0.05, 1)), **place))
            if rng.random() < 0.5:
                layers[-1] = nnxp.LayerNorm(width, epsilon=float(rng.uniform(0.01, 1)), **place)
        elif kind == "dropout":
            layers.append(nnxp.Dropout(float(rng.uniform(0, 0.6)), rng=rng, **place))
        elif kind == "residual" and depth < 2:
            inner, outputs = random_layers(rng, width, place, depth + 1)
            inner.append(nnxp.Affine(outputs, width, rng=rng, **place))
            layers.append(nnxp.Residual(inner))
        elif kind == "block" and depth < 2:
            inner, width = random_layers(rng, width, place, depth + 1)
            layers.append(nnxp.Sequential(inner))
        else:
            layers.append(rng.choice(SMOOTH)())
    return layers, width


def random_trainer(kind, seed, spec):
    """Return a trainer, its data set and its batch size; the same seed gives the same ones."""
    rng = np.random.default_rng(seed)
    place = {"device": spec, "dtype": "float64"}
    features, classes = int(rng.integers(1, 10)), int(rng.integers(2, 5))
    layers, width = random_layers(rng, features, place)
    network = nnxp.Sequential([*layers, nnxp.Affine(width, classes, rng=rng, **place)])
    for layer in network.leaves()[:-1]:
        layer.trainable = rng.random() > 0.15
    examples = int(rng.integers(12, 30))
    inputs = rng.normal(size=(examples, features))
    labels = rng.integers(0, classes, examples)
    loss = (nnxp.SoftmaxWithLoss, nnxp.SigmoidWithLoss, nnxp.MeanSquaredError)[seed % 3]
    targets = labels if seed % 3 == 0 else one_hot(labels, classes)
    name = list(OPTIMIZERS)[seed % len(OPTIMIZERS)]
    optimizer = OPTIMIZERS[name](learning_rate=float(rng.uniform(0.001, 0.05)))
    if hasattr(optimizer, "epsilon"):
        optimizer.epsilon = 0.01  # so that no gradient of mere rounding errors is scaled up
    optimizer.weight_decay = float(rng.choice([0.0, 0.1]))
    optimizer.decayed = ["all", "matrices", ("W1", "residual*", "b*")][int(rng.integers(3))]
    if rng.random() < 0.3:
        optimizer.learning_rate = random_schedule(rng)
    penalties = [None, nnxp.L1(0.01), nnxp.L2(0.1, "all"), nnxp.ElasticNet(0.01, 0.1, ["W*"])]
    transforms = [(), (nnxp.ClipNorm(0.1),), (nnxp.ClipValue(0.02), halve), (halve,)]
    more = {
        "penalty": penalties[int(rng.integers(4))],
        "transforms": transforms[int(rng.integers(4))],
    }
    sizes = [n for n in range(4, examples + 1) if examples % n != 1]
    trainer = kind(network, loss(), optimizer, **more)
    return trainer, Dataset(inputs, targets), int(rng.choice(sizes))


def random_schedule(rng):
    rate, steps = float(rng.uniform(0.001, 0.05)), int(rng.integers(1, 9))
    return [
        Cosine(rate, steps), OneCycle(rate, steps), StepDecay(rate, steps, 0.5),
        Chain([LinearWarmup(rate, steps), Exponential(rate, 0.9)], [steps]), Constant(rate),
    ][int(rng.integers(5))]  # fmt: skip


def halve(params, grads):
    return {name: g * 0.5 for name, g in grads.items()}


def change_a_number(trainer, rng):
    """Change a number of the optimizer, of the penalty or of a layer."""
    if rng.random() < 0.7:
        names = numbers_of(trainer.optimizer) - {"epsilon"}
        setattr(trainer.optimizer, rng.choice(sorted(names)), float(rng.uniform(0.001, 0.1)))
        return
    parts = [x for x in (trainer.penalty, *trainer.network.leaves()) if x and numbers_of(x)]
    if parts:
        part = parts[int(rng.integers(len(parts)))]
        setattr(part, rng.choice(sorted(numbers_of(part))), float(rng.uniform(0.05, 0.3)))


def train(kind, seed, spec):
    trainer, dataset, batch_size = random_trainer(kind, seed, spec)
    rng = np.random.default_rng(seed)

    def stop():
        if rng.random() < 0.3:
            change_a_number(trainer, rng)
        return False

    for _ in range(3):
        try:
            trainer.fit(
                dataset, epochs=1, batch_size=batch_size, rng=rng, callbacks=[Stopping(stop)]
            )
        except nnxp.DivergenceError:
            return None
        if max(abs(x).max() for x in trainer.network.parameters().values()) > 1e6:
            return None  # on its way to diverge: rounding errors grow beyond the bound
        leaves = trainer.network.leaves()[:-1]
        if leaves and rng.random() < 0.3:
            leaf = leaves[int(rng.integers(len(leaves)))]
            leaf.trainable = not leaf.trainable
    return trainer


@pytest.mark.filterwarnings("ignore:no step is captured.* plain steps diverge in a trial")
@pytest.mark.parametrize(
    ("spec", "kind", "seeds"), CASES, ids=lambda x: len(x) if isinstance(x, range) else str(x)
)
def test_captured_steps_of_random_networks_equal_plain_ones(spec, kind, seeds):
    device = device_or_skip(spec)
    captured = diverged = 0
    for seed in seeds:
        one, other = train(kind, seed, spec), train(PlainTrainer, seed, spec)
        if one is None or other is None:
            assert one is other, seed
            diverged += 1
            continue
        captured += one.captured == ("compiled" if kind is Compiled else "captured")
        kinds = [(one.network.parameters(), other.network.parameters())]
        kinds += [(one.network.states(), other.network.states())]
        kinds += [(x, other.optimizer.state[slot]) for slot, x in one.optimizer.state.items()]
        for mine, plain in kinds:
            assert mine.keys() == plain.keys(), seed
            for name, x in mine.items():
                a, b = device.to_host(x), device.to_host(plain[name])
                assert abs(a - b).max() <= BOUND * max(1.0, abs(b).max()), (seed, name)
    assert captured == len(seeds) - diverged
    assert diverged <= len(seeds) / 20
