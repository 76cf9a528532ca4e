"""XOR: a single layer cannot learn it, a network with a hidden layer can.

XOR is 1 if exactly one of two inputs is 1. A single layer divides the plane with one straight line,
and no line separates (0, 1) and (1, 0) from (0, 0) and (1, 1). Its best prediction is 0.5 for every
point, with the loss log 2 = 0.6931. Four hidden units draw four lines, which together separate the
points. Compare the losses, and the predictions with the right answers.
"""

from __future__ import annotations

from cli import Parser, file_path, optional_output, run, whole_number

import numpy as np

import nnxp
from nnxp.data import Dataset
from nnxp.plots import new_figure, save_figure

POINTS = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
ANSWERS = np.array([0, 1, 1, 0])


def train(widths: list[int], epochs: int) -> nnxp.Sequential:
    """Train a network of these widths on the four points, and print losses and predictions."""
    network = nnxp.mlp(widths, rng=0, activation="sigmoid", dtype="float64")
    trainer = nnxp.Trainer(network, nnxp.SigmoidWithLoss(), nnxp.SGD(learning_rate=1.0))
    history = trainer.fit(Dataset(POINTS, ANSWERS), epochs=epochs, batch_size=4, rng=0)
    for record in history[:: max(1, epochs // 5)]:
        print(f"  epoch {record.epoch:5d}  loss {record.train_loss:.4f}")
    for (x, y), answer, (p,) in zip(POINTS, ANSWERS, network.predict_proba(POINTS), strict=True):
        print(f"  {x:.0f} xor {y:.0f} = {answer}  predicted {p:.4f}")
    print(f"  final loss {history[-1].train_loss:.4f}")
    return network


def draw(networks: dict[str, nnxp.Sequential], path: str) -> None:
    """Draw the predictions of each network in the plane around the four points."""
    x, y = np.meshgrid(np.linspace(-0.5, 1.5, 100), np.linspace(-0.5, 1.5, 100))
    figure = new_figure(8, 4)
    for axes, (name, network) in zip(figure.subplots(1, 2), networks.items(), strict=True):
        predicted = network.predict_proba(np.stack([x.ravel(), y.ravel()], axis=1))
        areas = axes.contourf(x, y, predicted.reshape(x.shape), np.linspace(0, 1, 12), cmap="PuOr")
        axes.scatter(*POINTS.T, c=ANSWERS, cmap="PuOr", vmin=0, vmax=1, edgecolors="black", s=90)
        axes.set_title(name)
    figure.colorbar(areas, label="prediction")
    save_figure(figure, path)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--epochs", type=whole_number, default=3000,
                        help="passes over the four points (default: 3000)")  # fmt: skip
    parser.add_argument("--picture", type=file_path, metavar="FILE",
                        help="PNG file to draw the predictions of both into")  # fmt: skip
    args = parser.parse_args()
    networks = {}
    for name, widths in {"a single layer": [2, 1], "four hidden units": [2, 4, 1]}.items():
        print(f"{name}:")
        networks[name] = train(widths, args.epochs)
    if args.picture:
        with optional_output():
            draw(networks, args.picture)


if __name__ == "__main__":
    run(main)
