"""Full-batch gradient descent with sigmoid layers and the mean squared error: why it learns slowly.

Each step uses all examples, and follows the gradient of half the mean of (output - target) squared;
the target is 1 for the right class and 0 for the others. Backpropagation multiplies this gradient
by the sigmoid's derivative, 1/4 or less, in each layer. So the gradient is small, and the learning
rate is high. Look at how little the loss falls in a step, and how long the accuracy stays constant
before it rises.
"""

from __future__ import annotations

from cli import Parser, run, whole_number

import math

import numpy as np
from runs import add_data_options, load_dataset

import nnxp
from nnxp.data import Dataset, one_hot

LEARNING_RATE = 30.0
LINES = 20


class PrintSome(nnxp.callbacks.Callback):
    """Print the record of the first epoch, which has the time of an epoch, and about 20 others."""

    def __init__(self, epochs: int) -> None:
        every = math.ceil(epochs / LINES)
        self.shown = {1, *range(every, epochs, every), epochs}

    def epoch(self, trainer: nnxp.Trainer, record: nnxp.Record) -> None:
        if record.epoch in self.shown:
            print(record)


def main() -> None:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument("--hidden", type=whole_number, nargs="+", default=[128, 64],
                        metavar="WIDTH",
                        help="widths of the hidden layers (default: 128 64)")  # fmt: skip
    parser.add_argument("--epochs", type=whole_number, default=300,
                        help="each is one step over all examples (default: 300)")  # fmt: skip
    args = parser.parse_args()
    data = load_dataset(args.dataset, args.data_dir)
    widths = data.widths(args.hidden)
    train, test = (
        Dataset(x.inputs, one_hot(x.labels, data.classes)) for x in (data.train, data.test)
    )
    rng = np.random.default_rng(0)
    layers = nnxp.mlp(widths, rng=rng, activation="sigmoid").layers
    network = nnxp.Sequential([*layers, nnxp.Sigmoid()])
    trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(classes=True), nnxp.SGD(LEARNING_RATE))
    print(f"{data.name}: {network!r}, all {len(train)} examples in each step")
    history = trainer.fit(
        train, epochs=args.epochs, batch_size=len(train), validation=test, rng=rng,
        callbacks=[PrintSome(args.epochs)],
    )  # fmt: skip
    print(
        f"{history[-1].validation_accuracy:.1%} of the {len(test)} test examples are right after "
        f"{len(history)} steps.\nIn batches of 100, the same examples give "
        f"{len(history) * math.ceil(len(train) / 100):,} steps: compare with train_mnist.py."
    )


if __name__ == "__main__":
    run(main)
