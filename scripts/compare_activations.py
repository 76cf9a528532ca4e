"""Compare activations, each at its best learning rate.

Which activation gives the best accuracy? A network of three hidden layers of 100 units is trained
with each activation and each of several learning rates. The initial weights are Xavier's or He's,
depending on the activation. Each activation is judged at the rate with the lowest final training
loss: sigmoid, whose slope is at most 1/4, needs a larger rate than ReLU.

The left side of the picture shows how fast the training loss falls at each activation's best rate.
The right side shows the final loss for every rate. A star marks the best rate; a missing point
means that training diverged. The legend has the final test accuracy.
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

HIDDEN = [100] * 3
IMAGES, BATCH_SIZE, EPOCHS = 10_000, 100, 4
ACTIVATIONS = ["sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu"]
RATES = [0.03, 0.1, 0.3, 1.0, 3.0]


def main() -> None:
    comparison = Comparison(__doc__, epochs=EPOCHS)
    data, device = comparison.data, comparison.device

    def new_trainer(setting: tuple[str, float], seed: int) -> nnxp.Trainer:
        activation, rate = setting
        network = nnxp.mlp(data.widths(HIDDEN), rng=seed, activation=activation, device=device)
        return nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(rate))

    settings = {(name, rate): (name, rate) for name in ACTIVATIONS for rate in RATES}
    results = comparison.train(settings, new_trainer, batch_size=BATCH_SIZE, images=IMAGES)
    best = best_rates(results)
    chosen = {name: results[name, best[name]] for name in ACTIVATIONS}
    print_table(
        ["activation", "best rate", "training loss", "training accuracy", "test accuracy"],
        [
            [
                name,
                f"{best[name]:g}",
                *(
                    mean_and_deviation(result.last(figure))
                    for figure in ("train_loss", "train_accuracy", "test_accuracy")
                ),
            ]
            for name, result in chosen.items()
        ],
    )
    comparison.draw(
        lambda figure: draw_best_rates(figure, results, best),
        title="Activations: training loss",
        width=12,
        height=4.2,
    )
    accuracies = {name: result.last("test_accuracy") for name, result in chosen.items()}
    order = sorted(accuracies, key=lambda name: -float(np.mean(accuracies[name])))
    first, second, last = (accuracies[order[i]] for i in (0, 1, -1))
    comparison.finish(
        f"highest test accuracy first, each at its best rate: {', '.join(order)}",
        f"{order[0]} is above {order[1]} {seeds_in_which(first > second)} and above {order[-1]} "
        f"{seeds_in_which(first > last)}, by {np.mean(first - second):.4f} and "
        f"{np.mean(first - last):.4f} on average",
    )


if __name__ == "__main__":
    run(main)
