"""Logistic regression on ten points: one affine layer, a sigmoid loss, full-batch descent."""

from __future__ import annotations

import numpy as np
from common import Parser, run, whole_number

import nnxp
from nnxp.initializers import zeros

POINTS = [
    [0.5, 1.5], [-1.5, -0.5], [1.0, 1.0], [1.5, -0.5], [0.0, 0.0],
    [0.5, -0.5], [-0.5, 0.5], [-1.0, -1.0], [1.0, -1.0], [-1.5, 1.5],
]  # fmt: skip
LABELS = [1, 0, 1, 1, 0, 0, 1, 0, 1, 0]


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--steps", type=whole_number, default=10, help="(default: 10)")
    args = parser.parse_args()
    device = nnxp.device("cpu")
    rng = np.random.default_rng(0)
    layer = nnxp.Affine(2, 1, rng=rng, initializer=zeros, dtype="float64", device=device)
    trainer = nnxp.Trainer(nnxp.Sequential([layer]), nnxp.SigmoidWithLoss(), nnxp.SGD(0.1))
    inputs, labels = device.asarray(POINTS), device.asarray(LABELS)
    for step in range(1, args.steps + 1):
        print(f"step {step:3d}  cost {float(trainer.step(inputs, labels)):.10f}")
    print(f"w = {layer.params['W'][:, 0]}, b = {layer.params['b']}")


if __name__ == "__main__":
    run(main)
