"""Compare initial weights, by the histograms of the activations and by the test accuracy.

How large should the initial weights be, and for which activation? Networks of five hidden layers of
100 units start with weights of standard deviation 1 and 0.01, with Xavier's and with He's weights.
Before training, 1,000 test images pass through each network, and a histogram counts the outputs of
each hidden layer. Then the networks are trained with SGD.

In the picture, each panel has the histograms of one activation and one kind of weights, with layer
1 at the top and layer 5 at the bottom. A network can learn if the histograms of its layers are
similar and wide. Weights that are too large drive sigmoid and tanh to the ends of their range,
where their slope is 0, and make ReLU's outputs grow from layer to layer. Weights that are too small
make all outputs of the deep layers equal. For sigmoid, similar histograms are not enough: its slope
of at most 1/4 shrinks the gradient in each layer. ReLU's zeros are not counted, and outputs above 2
count as 2. The title of each panel has the test accuracy after training.
"""

from __future__ import annotations

from cli import run

from typing import TYPE_CHECKING

import numpy as np
from comparisons import Comparison, Result, Rows, mean_and_deviation, print_table

import nnxp
from nnxp.plots import curve_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HIDDEN = [100] * 5
IMAGES, BATCH_SIZE, EPOCHS = 10_000, 100, 5
RATE = 0.03
ACTIVATIONS = ["sigmoid", "tanh", "relu"]
WEIGHTS = {
    "std 1": nnxp.initializers.normal(1.0),
    "std 0.01": nnxp.initializers.normal(0.01),
    "Xavier": nnxp.initializers.xavier_uniform,
    "He": nnxp.initializers.he_normal,
}
SHOWN = 1000  # images whose activations are counted

Key = tuple[str, str]  # an activation, and the name of initial weights


def main() -> None:
    comparison = Comparison(__doc__, epochs=EPOCHS)
    data, device = comparison.data, comparison.device

    def new_network(key: Key, seed: int) -> nnxp.Sequential:
        activation, weights = key
        return nnxp.mlp(
            data.widths(HIDDEN), rng=seed, activation=activation, initializer=WEIGHTS[weights],
            device=device,
        )  # fmt: skip

    def new_trainer(key: Key, seed: int) -> nnxp.Trainer:
        return nnxp.Trainer(new_network(key, seed), nnxp.SoftmaxWithLoss(), nnxp.SGD(RATE))

    keys = [(activation, weights) for activation in ACTIVATIONS for weights in WEIGHTS]
    results = comparison.train(
        {key: key for key in keys}, new_trainer, batch_size=BATCH_SIZE, images=IMAGES
    )
    images = data.test.inputs[:SHOWN] / (data.test.scale or 1)
    outputs = {
        key: np.stack(
            [hidden_outputs(new_network(key, seed), images) for seed in range(comparison.seeds)]
        )
        for key in keys
    }
    print_table(
        [
            "activation",
            "initial weights",
            "std in layer 1",
            "in layer 5",
            "test accuracy",
            "diverged",
        ],
        [
            [
                *key,
                *(f"{outputs[key][:, layer].std(axis=(1, 2)).mean():.3g}" for layer in (0, -1)),
                mean_and_deviation(results[key].last("test_accuracy")),
                str(results[key].diverged),
            ]
            for key in keys
        ],
        left=2,
    )
    comparison.draw(
        lambda figure: draw(figure, outputs, results),
        title="Outputs of layers 1 (top) to 5 before training, and test accuracy after it",
        width=11,
        height=8,
    )
    comparison.finish(*(conclusion(activation, results) for activation in ACTIVATIONS))


def hidden_outputs(network: nnxp.Sequential, images: Rows) -> Rows:
    """Return the outputs of all hidden layers, (layers, images, units)."""
    x = network.device.asarray(images, dtype=network.dtype)
    outputs = [y for name, y in network.activations(x).items() if not name.startswith("affine")]
    return np.stack([network.device.to_host(y) for y in outputs])


def draw(figure: Figure, outputs: dict[Key, Rows], results: dict[Key, Result]) -> None:
    panels = figure.subplots(len(ACTIVATIONS), len(WEIGHTS), sharex="row")
    ranges = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "relu": (0.0, 2.0)}
    for row, activation in zip(panels, ACTIVATIONS, strict=True):
        for axes, weights in zip(row, WEIGHTS, strict=True):
            key = activation, weights
            shown = outputs[key]
            if activation == "relu":
                shown = np.where(shown > 0, shown, np.nan)
            draw_histograms(axes, shown, *ranges[activation])
            accuracy = mean_and_deviation(results[key].last("test_accuracy"))
            axes.set_title(f"{activation}, {weights}: {accuracy}", fontsize="small")


def draw_histograms(axes: Axes, outputs: Rows, low: float, high: float) -> None:
    """Draw a histogram of each layer, with the first layer at the top.

    Outputs above `high` count as `high`; nan is not counted.
    """
    layers = outputs.shape[1]
    edges = np.linspace(low, high, 41)
    for layer in range(layers):
        counts, _ = np.histogram(outputs[:, layer].clip(low, high), edges)
        base = layers - 1 - layer
        heights = base + 0.9 * counts / max(1, counts.max())
        style = curve_style(layer)
        axes.stairs(heights, edges, baseline=base, fill=True, color=style["color"], alpha=0.8)
    axes.set_xlim(low, high)
    axes.set_yticks(np.arange(layers) + 0.4, [str(layers - i) for i in range(layers)])
    axes.tick_params(labelsize="small")


def conclusion(activation: str, results: dict[Key, Result]) -> str:
    """Return the test accuracies of an activation as text, the highest first."""
    means = {w: float(results[activation, w].last("test_accuracy").mean()) for w in WEIGHTS}
    order = sorted(means, key=lambda w: -means[w])
    return f"{activation}: " + ", ".join(f"{w} {means[w]:.3f}" for w in order)


if __name__ == "__main__":
    run(main)
