"""Logistic regression by gradient descent on ten points, then one step with a hidden layer.

The model predicts the probability sigmoid(x1 * w1 + x2 * w2 + b) that a point's label is 1. The
cost is the mean of -log(probability of the right label). It starts at log 2 = 0.6931, since with
weights of 0 each probability is 0.5, and must fall with each step against the gradient. Look at the
cost, then at the weights: with a positive weight, a larger input raises the probability.
"""

from __future__ import annotations

from cli import Parser, run, whole_number

import numpy as np

import nnxp
from nnxp.initializers import zeros

POINTS = np.array([
    [0.5, 1.5], [-1.5, -0.5], [1.0, 1.0], [1.5, -0.5], [0.0, 0.0],
    [0.5, -0.5], [-0.5, 0.5], [-1.0, -1.0], [1.0, -1.0], [-1.5, 1.5],
])  # fmt: skip
LABELS = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 0], "int32")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--steps", type=whole_number, default=10,
                        help="steps of training (default: 10)")  # fmt: skip
    args = parser.parse_args()

    print("1. logistic regression, all ten points in each step, learning rate 0.1")
    layer = nnxp.Affine(2, 1, rng=0, initializer=zeros, dtype="float64")
    network = nnxp.Sequential([layer])
    trainer = nnxp.Trainer(network, nnxp.SigmoidWithLoss(), nnxp.SGD(learning_rate=0.1))
    for step in range(1, args.steps + 1):
        cost = trainer.step(POINTS, LABELS)
        print(f"step {step:3d}  cost before it {cost:.10f}")
        if step == 1:
            print(f"          gradient dw = {layer.grads['W'][:, 0]}, db = {layer.grads['b']}")
    print(f"w = {layer.params['W'][:, 0]}, b = {layer.params['b']}")
    scores = network.forward(POINTS)[:, 0]
    right = np.sum((scores > 0) == LABELS)  # a score above 0 is a probability above 0.5
    print(f"{right} of the {len(LABELS)} points get the right label.\n")

    print("2. a hidden layer of three sigmoid units, one step on the first five points")
    network = nnxp.mlp([2, 3, 1], rng=0, activation="sigmoid", dtype="float64")
    draw = np.random.RandomState(0).randn  # draws the weights of the published example
    network.load_parameters(
        {"W1": draw(2, 3), "b1": np.zeros(3), "W2": draw(3, 1), "b2": np.zeros(1)}
    )
    trainer = nnxp.Trainer(network, nnxp.SigmoidWithLoss(), nnxp.SGD(learning_rate=0.1))
    points, labels = POINTS[:5], LABELS[:5]
    print(f"cost before the step {trainer.step(points, labels):.10f}")
    print("gradients, from the hidden layer (1) to the output (2):")
    for name, gradient in network.gradients().items():
        print(f"d{name} = {gradient.round(10).tolist()}")
    cost = trainer.loss.forward(network.forward(points), labels)
    print(f"cost after it        {cost:.10f}")


if __name__ == "__main__":
    run(main)
