"""Compare a network with and without batch normalization, for several initial weights.

Does batch normalization speed up training, and does it make training less sensitive to the initial
weights? A network of five hidden layers of 100 ReLUs is trained on 1,000 images, with and without
batch normalization before each activation, from initial weights of several standard deviations. The
weights, the order of the images and the learning rate are the same for both.

In the picture, the panel of each standard deviation has the training accuracy of both networks by
epoch. With batch normalization, the curves rise early in all panels; without it, they rise only if
the initial weights suit the network.
"""

from __future__ import annotations

from cli import run

from typing import TYPE_CHECKING

from comparisons import Comparison, Result, draw_curve, draw_legend, mean_and_deviation, print_table

import nnxp

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HIDDEN = [100] * 5
IMAGES, BATCH_SIZE, EPOCHS = 1000, 100, 20
RATE = 0.01
DEVIATIONS = [1.0, 0.5, 0.2, 0.1, 0.01, 0.001]
LEARNED = 0.8  # training accuracy; the epochs until it is reached measure the speed of training

Key = tuple[str, float]  # a network, and the standard deviation of its initial weights


def main() -> None:
    comparison = Comparison(__doc__, epochs=EPOCHS)
    data, device = comparison.data, comparison.device

    def new_trainer(setting: tuple[bool, float], seed: int) -> nnxp.Trainer:
        batch_norm, deviation = setting
        network = nnxp.mlp(
            data.widths(HIDDEN), rng=seed, initializer=nnxp.initializers.normal(deviation),
            batch_norm=batch_norm, device=device,
        )  # fmt: skip
        return nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(RATE))

    networks = {"without": False, "batch norm": True}
    results = comparison.train(
        {(name, deviation): (uses, deviation) for deviation in DEVIATIONS
         for name, uses in networks.items()},
        new_trainer, batch_size=BATCH_SIZE, images=IMAGES,
    )  # fmt: skip
    print_table(
        [
            "initial weights",
            "network",
            f"epochs to {LEARNED}",
            "training accuracy",
            "test accuracy",
            "diverged",
        ],
        [
            [
                f"std {deviation:g}",
                name,
                str(epochs_to_learn(result) or "never"),
                mean_and_deviation(result.last("train_accuracy")),
                mean_and_deviation(result.last("test_accuracy")),
                str(result.diverged),
            ]
            for (name, deviation), result in results.items()
        ],
        left=2,
    )
    comparison.draw(
        lambda figure: draw(figure, results, list(networks)),
        title="Batch normalization: training accuracy for first weights of several deviations",
        width=11, height=6,
    )  # fmt: skip
    never = comparison.epochs + 1
    speeds = {
        name: [epochs_to_learn(results[name, deviation]) or never for deviation in DEVIATIONS]
        for name in networks
    }
    learned = {name: sum(speed < never for speed in speeds[name]) for name in networks}
    slower = [
        f"{deviation:g}"
        for deviation in DEVIATIONS
        if results["batch norm", deviation].last("train_accuracy").mean()
        <= results["without", deviation].last("train_accuracy").mean()
    ]
    comparison.finish(
        f"a training accuracy of {LEARNED} is reached for {learned['batch norm']} of "
        f"{len(DEVIATIONS)} standard deviations with batch normalization, and for "
        f"{learned['without']} without",
        f"the final training accuracy is higher with batch normalization for "
        f"{len(DEVIATIONS) - len(slower)} of {len(DEVIATIONS)} standard deviations"
        + (f", but not for {', '.join(slower)}" if slower else ""),
    )


def epochs_to_learn(result: Result) -> int | None:
    """Return the first epoch with a mean training accuracy of at least `LEARNED`, or None."""
    means = result.figures["train_accuracy"].mean(axis=0)
    return next((e for e, x in zip(result.epochs, means, strict=True) if x >= LEARNED), None)


def draw(figure: Figure, results: dict[Key, Result], networks: list[str]) -> None:
    panels = figure.subplots(2, len(DEVIATIONS) // 2, sharex=True, sharey=True)
    for axes, deviation in zip(panels.flat, DEVIATIONS, strict=True):
        for number, name in enumerate(networks):
            result = results[name, deviation]
            draw_curve(axes, number, name, result.epochs, result.figures["train_accuracy"])
        axes.axhline(LEARNED, color="0.5", linewidth=0.8, linestyle=":")
        axes.set_title(f"std {deviation:g}", fontsize="medium")
        axes.grid(alpha=0.3)
        axes.set_ylim(0, 1.03)
        axes.locator_params(axis="x", integer=True)
    figure.supxlabel("epoch")
    figure.supylabel("training accuracy")
    draw_legend(figure, panels.flat[0])


if __name__ == "__main__":
    run(main)
