"""XOR: a network with four hidden sigmoid units learns it; a single layer cannot."""

from __future__ import annotations

from cli import Parser, run, whole_number

import numpy as np

import nnxp
from nnxp.data import Dataset

TABLE = Dataset(
    inputs=np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), labels=np.array([0, 1, 1, 0])
)


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--epochs",
        type=whole_number,
        default=3000,
        help="passes over the four examples (default: 3000)",
    )
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    network = nnxp.mlp([2, 4, 1], rng=rng, activation="sigmoid", dtype="float64")
    trainer = nnxp.Trainer(network, nnxp.SigmoidWithLoss(), nnxp.SGD(learning_rate=1.0))
    history = trainer.fit(TABLE, epochs=args.epochs, batch_size=4, rng=rng)
    for record in history[:: max(1, len(history) // 10)]:
        print(f"epoch {record.epoch:5d}  loss {record.train_loss:.4f}")
    probabilities = nnxp.Sigmoid().forward(network.predict(TABLE.inputs))
    rows = zip(TABLE.inputs, TABLE.labels, probabilities, strict=True)
    for (x, y), label, (probability,) in rows:
        print(f"{x:.0f} xor {y:.0f} = {label}  predicted {probability:.4f}")
    print(f"final loss {history[-1].train_loss:.4f}")


if __name__ == "__main__":
    run(main)
