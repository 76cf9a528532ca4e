"""Compare SGD, Momentum, AdaGrad and Adam, each at its best learning rate.

Which optimizer reduces the loss fastest: SGD, Momentum, AdaGrad or Adam? A network of four hidden
layers of 100 ReLUs is trained with each optimizer and each of several learning rates. A comparison
at a single rate would show little, since a rate that suits one optimizer is too small or too large
for another. So each optimizer is judged at the rate with the lowest final training loss; the table
also has the rate of a textbook's comparison.

The left side of the picture shows how fast the training loss falls at each optimizer's best rate.
The right side shows the final loss for every rate. A star marks the best rate; a missing point
means that training diverged. The wider the valley, the less the choice of the rate matters. The
legend has the final test accuracy.
"""

from __future__ import annotations

from cli import run

import numpy as np
from comparisons import (
    Comparison,
    best_rates,
    draw_best_rates,
    mean_and_deviation,
    print_table,
    seeds_in_which,
)

import nnxp

HIDDEN = [100, 100, 100, 100]
IMAGES, BATCH_SIZE, EPOCHS = 10_000, 100, 4
RATES = [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]
OPTIMIZERS = {
    "SGD": nnxp.SGD, "Momentum": nnxp.Momentum, "AdaGrad": nnxp.AdaGrad, "Adam": nnxp.Adam,
}  # fmt: skip
TEXTBOOK = {"SGD": 0.01, "Momentum": 0.01, "AdaGrad": 0.01, "Adam": 0.001}


def main() -> None:
    comparison = Comparison(__doc__, epochs=EPOCHS)
    data, device = comparison.data, comparison.device

    def new_trainer(setting: tuple[str, float], seed: int) -> nnxp.Trainer:
        name, rate = setting
        network = nnxp.mlp(data.widths(HIDDEN), rng=seed, device=device)
        return nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), OPTIMIZERS[name](rate))

    settings = {(name, rate): (name, rate) for name in OPTIMIZERS for rate in RATES}
    results = comparison.train(settings, new_trainer, batch_size=BATCH_SIZE, images=IMAGES)
    best = best_rates(results)
    rows = [
        [
            name,
            what,
            f"{rate:g}",
            mean_and_deviation(results[name, rate].last("train_loss")),
            mean_and_deviation(results[name, rate].last("test_accuracy")),
        ]
        for name in OPTIMIZERS
        for what, rate in (("textbook", TEXTBOOK[name]), ("best", best[name]))
    ]
    print_table(["optimizer", "rate of", "rate", "training loss", "test accuracy"], rows, left=2)
    comparison.draw(
        lambda figure: draw_best_rates(figure, results, best),
        title="Optimizers: training loss",
        width=12,
        height=4.2,
    )

    def loss(name: str, rate: float) -> float:
        return float(results[name, rate].last("train_loss").mean())

    textbook_order = sorted(OPTIMIZERS, key=lambda name: loss(name, TEXTBOOK[name]))
    order = sorted(OPTIMIZERS, key=lambda name: loss(name, best[name]))
    first, second, last = (results[order[i], best[order[i]]].last("train_loss") for i in (0, 1, -1))
    comparison.finish(
        f"lowest training loss first, at the textbook's rates: {', '.join(textbook_order)}",
        f"at the best rates: {', '.join(order)}; the loss of {order[0]} is below that of "
        f"{order[1]} {seeds_in_which(first < second)} and below that of {order[-1]} "
        f"{seeds_in_which(first < last)}, by factors of {np.mean(second) / np.mean(first):.2f} "
        f"and {np.mean(last) / np.mean(first):.2f} on average",
    )


if __name__ == "__main__":
    run(main)
