"""Compare rates of weight decay against overfitting, on 300 images.

Does weight decay reduce overfitting? A network of six hidden layers of 100 ReLUs is trained on only
300 images. It has 130,000 parameters, and soon memorizes these images: the training accuracy
becomes 1, while the test accuracy stays far below. Weight decay adds rate / 2 times the sum of all
squared weights to the loss, which keeps the weights small and the network's outputs smooth.

In the picture, the panel of each rate has the training and the test accuracy; the area between both
curves is the overfitting.
"""

from __future__ import annotations

from cli import run

import math

import numpy as np
from comparisons import (
    OVERFITTING,
    Comparison,
    Result,
    draw_overfitting,
    mean_and_deviation,
    overfitting_changes,
    overfitting_row,
    print_table,
)

import nnxp

HIDDEN = [100] * 6
IMAGES, BATCH_SIZE, EPOCHS = 300, 100, 300
RATE = 0.01
DECAYS = {"no decay": 0.0, "decay 0.01": 0.01, "decay 0.03": 0.03, "decay 0.1": 0.1}


def main() -> None:
    comparison = Comparison(__doc__, epochs=EPOCHS)
    data, device = comparison.data, comparison.device

    def new_trainer(decay: float, seed: int) -> nnxp.Trainer:
        network = nnxp.mlp(data.widths(HIDDEN), rng=seed, device=device)
        loss, optimizer = nnxp.SoftmaxWithLoss(), nnxp.SGD(RATE)
        return nnxp.Trainer(network, loss, optimizer, penalty=nnxp.L2(decay))

    results = comparison.train(DECAYS, new_trainer, batch_size=BATCH_SIZE, images=IMAGES)
    print_table(
        ["setting", *OVERFITTING, "norm of all weights"],
        [
            [name, *overfitting_row(result), mean_and_deviation(norms(result), 1)]
            for name, result in results.items()
        ],
    )
    comparison.draw(
        lambda figure: draw_overfitting(figure, results),
        title="Weight decay: training and test accuracy",
        width=12,
        height=3.6,
    )
    comparison.finish(*overfitting_changes(results))


def norms(result: Result) -> list[float]:
    """Return the square root of the sum of all squared weights, for each seed."""
    return [
        math.sqrt(
            sum(
                float(np.sum(network.device.to_host(w) ** 2))
                for name, w in network.parameters().items()
                if name.startswith("W")
            )
        )
        for network in result.networks
    ]


if __name__ == "__main__":
    run(main)
