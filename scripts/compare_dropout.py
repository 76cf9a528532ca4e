"""Compare rates of dropout against overfitting, on 300 images.

Does dropout reduce overfitting? A network of six hidden layers of 100 ReLUs is trained on only 300
images. It has 130,000 parameters, and soon memorizes these images: the training accuracy becomes 1,
while the test accuracy stays far below. Dropout sets a share of the hidden outputs to 0 at random
in each step, so that no unit can rely on another one.

In the picture, the panel of each dropout rate has the training and the test accuracy; the area
between both curves is the overfitting. The accuracies are measured without dropout.
"""

from __future__ import annotations

from cli import run

from comparisons import (
    OVERFITTING,
    Comparison,
    draw_overfitting,
    overfitting_changes,
    overfitting_row,
    print_table,
)

import nnxp

HIDDEN = [100] * 6
IMAGES, BATCH_SIZE, EPOCHS = 300, 100, 300
RATE = 0.03  # with much dropout, the textbook's 0.01 would need more epochs
SHARES = {"no dropout": 0.0, "dropout 0.1": 0.1, "dropout 0.2": 0.2, "dropout 0.3": 0.3}


def main() -> None:
    comparison = Comparison(__doc__, epochs=EPOCHS)
    data, device = comparison.data, comparison.device

    def new_trainer(share: float, seed: int) -> nnxp.Trainer:
        network = nnxp.mlp(data.widths(HIDDEN), rng=seed, dropout=share, device=device)
        return nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(RATE))

    results = comparison.train(SHARES, new_trainer, batch_size=BATCH_SIZE, images=IMAGES)
    print_table(
        ["setting", *OVERFITTING],
        [[name, *overfitting_row(result)] for name, result in results.items()],
    )
    comparison.draw(
        lambda figure: draw_overfitting(figure, results),
        title="Dropout: training and test accuracy",
        width=12,
        height=3.6,
    )
    comparison.finish(*overfitting_changes(results))


if __name__ == "__main__":
    run(main)
