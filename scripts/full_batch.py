"""Full-batch gradient descent with sigmoid layers and the mean squared error: slow learning."""

from __future__ import annotations

from cli import Parser, run, whole_number

import math

import numpy as np
from runs import add_data_options, load_dataset

import nnxp
from nnxp.data import Dataset, one_hot

# High because the gradient is small: it is a mean over all outputs, and each sigmoid multiplies it
# by 1/4 or less.
LEARNING_RATE = 30.0
LINES = 20


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
        Dataset(x.inputs, one_hot(x.labels, widths[-1])) for x in (data.train, data.test)
    )
    rng = np.random.default_rng(0)
    layers = nnxp.mlp(widths, rng=rng, activation="sigmoid").layers
    network = nnxp.Sequential([*layers, nnxp.Sigmoid()])
    trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(classes=True), nnxp.SGD(LEARNING_RATE))
    print(f"{data.name}: {network!r}, all {len(train)} examples in each step")
    trainer.fit(
        train,
        epochs=args.epochs,
        batch_size=len(train),
        validation=test,
        rng=rng,
        callbacks=[PrintSome(args.epochs)],
    )


class PrintSome(nnxp.callbacks.Callback):
    """Print the first epoch's record, which tells how long an epoch takes, and some 20 others."""

    def __init__(self, epochs: int) -> None:
        every = math.ceil(epochs / LINES)
        self.shown = {1, *range(every, epochs, every), epochs}

    def epoch(self, trainer: nnxp.Trainer, record: nnxp.Record) -> None:
        if record.epoch in self.shown:
            print(record)


if __name__ == "__main__":
    run(main)
