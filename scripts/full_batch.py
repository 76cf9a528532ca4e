"""Full-batch gradient descent with sigmoid layers and the mean squared error: slow learning."""

from __future__ import annotations

from cli import Parser, announce, progress, run, whole_number

import math
import time

import numpy as np
from runs import add_data_options, load_dataset

import nnxp
from nnxp.data import Batches, Dataset, one_hot

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
    announce("300 epochs take seconds on the digits, and several minutes on MNIST")
    batches = Batches(train, len(train), device=network.device, dtype=network.dtype, rng=rng)
    every = math.ceil(args.epochs / LINES)
    for done in range(0, args.epochs, every):
        start = time.perf_counter()
        count = min(every, args.epochs - done)
        for _ in progress(count, "step"):
            trainer.train_epoch(batches)
        figures = {
            f"{name}_{key}": x
            for name, dataset in (("train", train), ("validation", test))
            for key, x in trainer.evaluate(dataset).items()
        }
        seconds = time.perf_counter() - start
        print(nnxp.Record(done + count, **figures, seconds=seconds), flush=True)


if __name__ == "__main__":
    run(main)
