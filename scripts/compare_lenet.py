"""Compare LeNet with a network of affine layers.

How much do convolutions gain over affine layers? LeNet and a network of one hidden layer (MLP) with
about as many parameters are trained on the same images with the same optimizer. The MLP has
separate weights for each pixel. LeNet's convolutions look for the same small patterns everywhere in
the image, so LeNet learns more from the same number of images, but needs more time for each.

The picture shows the test accuracy of both, on the left by epoch, and on the right by seconds of
training.
"""

from __future__ import annotations

from cli import run

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from comparisons import (
    OVERFITTING,
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

IMAGES, BATCH_SIZE, EPOCHS = 5000, 50, 5
RATE = 0.001  # of Adam


def main() -> None:
    comparison = Comparison(__doc__, epochs=EPOCHS)
    data, device = comparison.data, comparison.device
    pixels = data.train.inputs.shape[1]
    side = math.isqrt(pixels)
    if side * side != pixels:
        raise nnxp.InputError(
            f"{data.name} has {pixels} inputs, which do not form a square image; "
            "choose another --dataset"
        )

    image = (1, side, side)
    padding = 0 if side >= 16 else 2  # the kernels are of 5 x 5 pixels

    def lenet(seed: int) -> nnxp.Sequential:
        layers = nnxp.lenet(data.classes, image=image, padding=padding, rng=seed, device=device)
        return nnxp.Sequential([nnxp.Reshape(image), *layers])

    # A hidden unit has a weight for each pixel and each class, and a bias.
    units = round(parameter_count(lenet(seed=0)) / (pixels + data.classes + 1))

    def mlp(seed: int) -> nnxp.Sequential:
        return nnxp.mlp(data.widths([units]), rng=seed, device=device)

    def new_trainer(new_network: Callable[[int], nnxp.Sequential], seed: int) -> nnxp.Trainer:
        return nnxp.Trainer(new_network(seed), nnxp.SoftmaxWithLoss(), nnxp.Adam(RATE))

    settings = {f"MLP, {units} units": mlp, "LeNet": lenet}
    results = comparison.train(settings, new_trainer, batch_size=BATCH_SIZE, images=IMAGES)
    print_table(
        ["network", "parameters", *OVERFITTING, "seconds"],
        [
            [
                name,
                f"{parameter_count(result.networks[0]):,}",
                *overfitting_row(result),
                mean_and_deviation(result.last("seconds"), 1),
            ]
            for name, result in results.items()
        ],
    )
    comparison.draw(
        lambda figure: draw(figure, results),
        title="MLP and LeNet: test accuracy",
        width=10,
        height=4.2,
    )
    one, other = results.values()
    errors = [1 - result.last("test_accuracy") for result in (one, other)]
    comparison.finish(
        f"LeNet makes {errors[1].mean() / errors[0].mean():.2f} times as many errors on the test "
        f"images as the MLP, fewer {seeds_in_which(errors[1] < errors[0])}, and takes "
        f"{other.last('seconds').mean() / one.last('seconds').mean():.1f} times as long"
    )


def draw(figure: Figure, results: dict[str, Result]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (name, result) in enumerate(results.items()):
        accuracies = result.figures["test_accuracy"][:, 1:]  # without the figure before training
        seconds = result.figures["seconds"].mean(axis=0)
        draw_curve(left, number, name, result.epochs[1:], accuracies)
        draw_curve(right, number, name, seconds[1:], accuracies)
    label(left, "epoch", "test accuracy")
    label(right, "seconds of training", "")
    left.locator_params(axis="x", integer=True)
    left.legend(fontsize="small", loc="lower right")


if __name__ == "__main__":
    run(main)
