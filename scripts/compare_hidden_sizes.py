"""Compare numbers of hidden units.

How many hidden units does a network need? Networks of one hidden layer of 5 to 640 ReLUs are
trained in the same way. More units fit the training images better. The gain on the test images
becomes smaller with each doubling, while the number of parameters doubles, and for many units also
the time.

The left side of the picture shows the final training and test accuracy for each number of hidden
units; the area between both curves is the overfitting. The right side shows the seconds of
training.
"""

from __future__ import annotations

from cli import run

import itertools
from typing import TYPE_CHECKING

import numpy as np
from comparisons import (
    OVERFITTING,
    PARTS,
    Comparison,
    Result,
    draw_curve,
    label,
    mean_and_deviation,
    overfitting_row,
    parameter_count,
    print_table,
    seeds_in_which,
)

import nnxp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES, BATCH_SIZE, EPOCHS = 10_000, 100, 10
RATE = 0.1
SIZES = [5, 10, 20, 40, 80, 160, 320, 640]


def main() -> None:
    comparison = Comparison(__doc__, epochs=EPOCHS)
    data, device = comparison.data, comparison.device

    def new_trainer(size: int, seed: int) -> nnxp.Trainer:
        network = nnxp.mlp(data.widths([size]), rng=seed, device=device)
        return nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(RATE))

    settings = {str(size): size for size in SIZES}
    results = comparison.train(settings, new_trainer, batch_size=BATCH_SIZE, images=IMAGES)
    print_table(
        ["hidden units", "parameters", *OVERFITTING,
         "seconds"],
        [
            [
                name,
                f"{parameter_count(result.networks[0]):,}",
                *overfitting_row(result),
                mean_and_deviation(result.last("seconds"), 2),
            ]
            for name, result in results.items()
        ],
        left=0,
    )  # fmt: skip
    comparison.draw(
        lambda figure: draw(figure, results),
        title="Hidden units: accuracy",
        width=11,
        height=4.2,
    )
    gains = [
        results[str(b)].last("test_accuracy") - results[str(a)].last("test_accuracy")
        for a, b in itertools.pairwise(SIZES)
    ]
    widest, before = results[str(SIZES[-1])], results[str(SIZES[-2])]
    comparison.finish(
        f"doubling {SIZES[0]} units adds {np.mean(gains[0]):.4f} to the test accuracy, doubling "
        f"{SIZES[-2]} adds {np.mean(gains[-1]):.4f} (more than 0 {seeds_in_which(gains[-1] > 0)}) "
        f"and takes {widest.last('seconds').mean() / before.last('seconds').mean():.1f} times as "
        "long",
    )


def draw(figure: Figure, results: dict[str, Result]) -> None:
    left, right = figure.subplots(1, 2)
    for number, (part, name) in enumerate(PARTS.items()):
        values = np.stack([results[str(size)].last(f"{part}_accuracy") for size in SIZES], axis=1)
        draw_curve(left, number, name, SIZES, values)
    seconds = np.stack([results[str(size)].last("seconds") for size in SIZES], axis=1)
    draw_curve(right, 2, "seconds", SIZES, seconds)
    right.set_yscale("log")
    label(left, "hidden units", "accuracy at the end")
    label(right, "hidden units", "seconds of training")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(SIZES, [str(size) for size in SIZES])
        axes.tick_params(which="minor", bottom=False)
        axes.yaxis.set_major_formatter("{x:g}")
    left.legend(fontsize="small")


if __name__ == "__main__":
    run(main)
