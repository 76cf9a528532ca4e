"""Trainings whose batches are divided, over ranks or into parts that stay in the cache."""

from __future__ import annotations

import numpy as np

import nnxp

ROWS = 43  # batches of 10, and a last one of 3, smaller than 4 ranks
RNG = np.random.default_rng(0)
INPUTS, LABELS = RNG.normal(size=(ROWS, 6)), RNG.integers(0, 3, ROWS)
WEIGHTS = RNG.random(ROWS) * (np.arange(ROWS) % 3 > 0)
DATA = nnxp.data.Dataset(INPUTS, LABELS)
WEIGHTED = nnxp.data.Dataset(INPUTS, LABELS, weights=WEIGHTS)
# Sums in another order differ by some units of rounding, 1.1e-16 of their size, and the steps of a
# test add up: fewer than 100 of numbers of about 1 remain far below it.
TOLERANCE = 1e-12


def new_network(*, batch_norm=False, dropout=0.0):
    rng = np.random.default_rng(1)
    layers = [nnxp.Affine(6, 8, rng=rng, dtype="float64"), nnxp.Tanh()]
    if batch_norm:  # after the activation: before it, the gradient of a bias is only rounding error
        layers.append(nnxp.BatchNorm(8, dtype="float64"))
    if dropout:
        layers.append(nnxp.Dropout(dropout, rng=rng, dtype="float64"))
    return nnxp.Sequential([*layers, nnxp.Affine(8, 3, rng=rng, dtype="float64")])


def train(ranks, data=DATA, *, optimizer=None, network=None, epochs=3, fit=None, **settings):
    network = network or new_network()
    loss = settings.pop("loss", None) or nnxp.SoftmaxWithLoss()
    trainer = nnxp.Trainer(
        network, loss, optimizer or nnxp.Momentum(0.1), ranks=ranks, **settings
    )  # fmt: skip
    options = {"validation": DATA} | (fit or {})
    trainer.fit(data, epochs=epochs, batch_size=10, rng=3, **options)
    return trainer


def numbers_of(trainer):
    """Return all numbers of a training by name."""
    network = trainer.network
    arrays = dict(network.parameters()) | dict(network.states())
    arrays |= {f"{slot} {n}": x for slot, kept in trainer.optimizer.state.items()
               for n, x in kept.items()}  # fmt: skip
    arrays |= {f"{name} {record.epoch}": np.array(x) for record in trainer.history
               for name, x in record.items() if name != "seconds"}  # fmt: skip
    return {name: np.array(x) for name, x in arrays.items()}


CASES = {
    "plain": lambda: {"capture": False},
    "captured": lambda: {"capture": True, "compiled": False},
    "compiled": lambda: {"capture": True, "compiled": True},
    "all": lambda: {
        "network": new_network(dropout=0.3),
        "penalty": nnxp.L2(1e-2),
        "transforms": [nnxp.ClipNorm(0.3)],
        "metrics": [nnxp.metrics.TopAccuracy(2)],
    },
    "all, plain": lambda: CASES["all"]() | {"capture": False},
    "weights": lambda: {"data": WEIGHTED, "loss": nnxp.SoftmaxWithLoss(class_weights=[1, 2, 5])},
    "weights, plain": lambda: CASES["weights"]() | {"capture": False},
    "batch norm": lambda: {"network": new_network(batch_norm=True)},
    "batch norm, plain": lambda: CASES["batch norm"]() | {"capture": False},
    "batch norm, compiled": lambda: CASES["batch norm"]() | {"compiled": True},
    "accumulate": lambda: {"fit": {"accumulate": 3}, "network": new_network(dropout=0.3)},
    "weights, accumulate": lambda: CASES["weights"]() | {"fit": {"accumulate": 3}},
    "after": lambda: {"fit": {"train_metrics": "after"}},
    "frozen": lambda: {"network": frozen(new_network(batch_norm=True))},
    "by parameter": lambda: {"optimizer": ByParameter(0.1)},
    # In one process, the step of so large a matrix is fused with the product of its gradient.
    "large": lambda: {
        "optimizer": nnxp.SGD(0.1),
        "network": nnxp.mlp([6, 800, 3], rng=1, dtype="float64"),
    },
    "large, compiled": lambda: CASES["large"]() | {"compiled": True},
}


def frozen(network):
    network[0].trainable = False
    return network


class ByParameter(nnxp.SGD):
    """A rule that is not element by element, as it uses the norm of each parameter's gradient."""

    elementwise = False

    def _update_one(self, params, name, gradient, learning_rate):
        xp = gradient.__array_namespace__()
        params[name] -= learning_rate * gradient / (1 + xp.sum(gradient * gradient))
