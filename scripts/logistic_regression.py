"""Logistic regression: full-batch training on ten points, then a step with a hidden layer."""

from __future__ import annotations

from cli import Parser, run, whole_number

import numpy as np

import nnxp
from nnxp.initializers import zeros

POINTS = [
    [0.5, 1.5], [-1.5, -0.5], [1.0, 1.0], [1.5, -0.5], [0.0, 0.0],
    [0.5, -0.5], [-0.5, 0.5], [-1.0, -1.0], [1.0, -1.0], [-1.5, 1.5],
]  # fmt: skip
LABELS = [1, 0, 1, 1, 0, 0, 1, 0, 1, 0]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--steps", type=whole_number, default=10, help="steps of training (default: 10)"
    )
    args = parser.parse_args()
    device = nnxp.device("cpu")
    rng = np.random.default_rng(0)
    layer = nnxp.Affine(2, 1, rng=rng, initializer=zeros, dtype="float64", device=device)
    trainer = nnxp.Trainer(nnxp.Sequential([layer]), nnxp.SigmoidWithLoss(), nnxp.SGD(0.1))
    inputs, labels = device.asarray(POINTS), device.asarray(LABELS)
    for step in range(1, args.steps + 1):
        print(f"step {step:3d}  cost {float(trainer.step(inputs, labels)):.10f}")
    print(f"w = {layer.params['W'][:, 0]}, b = {layer.params['b']}")

    network = nnxp.mlp([2, 3, 1], rng=rng, activation="sigmoid", dtype="float64", device=device)
    draw = np.random.RandomState(0).randn  # draws the weights of the published example
    network.load_parameters(
        {"W1": draw(2, 3), "b1": np.zeros(3), "W2": draw(3, 1), "b2": np.zeros(1)}
    )
    trainer = nnxp.Trainer(network, nnxp.SigmoidWithLoss(), nnxp.SGD(0.1))
    print(f"three hidden units  cost {float(trainer.step(inputs[:5], labels[:5])):.10f}")
    for name, gradient in network.gradients().items():
        print(f"d{name} = {gradient.round(10).tolist()}")


if __name__ == "__main__":
    run(main)
