"""Full-batch descent of the mean squared error, sigmoid everywhere: how slow learning once was."""

from __future__ import annotations

import numpy as np
from cli import Parser, run, whole_number
from runs import add_data_options, class_count, load_dataset

import nnxp
from nnxp.data import Dataset, one_hot

# Large, since the gradient is small: it is a mean over all outputs, and each sigmoid on its way
# takes three quarters of it or more.
LEARNING_RATE = 30.0


def main() -> None:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument("--hidden", type=whole_number, nargs="+", default=[128, 64],
                        metavar="WIDTH", help="(default: 128 64)")  # fmt: skip
    parser.add_argument("--epochs", type=whole_number, default=300, help="(default: 300)")
    args = parser.parse_args()
    name, train, test, _ = load_dataset(args.dataset, args.data_dir)
    classes = class_count(train, test)
    train, test = (Dataset(part.inputs, one_hot(part.labels, classes)) for part in (train, test))
    rng = np.random.default_rng(0)
    widths = [train.inputs.shape[1], *args.hidden, classes]
    layers = nnxp.mlp(widths, rng=rng, activation="sigmoid").layers
    network = nnxp.Sequential([*layers, nnxp.Sigmoid()])
    trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), nnxp.SGD(LEARNING_RATE))
    print(f"{name}: {network!r}, all {len(train)} examples a step")
    trainer.fit(
        train, epochs=args.epochs, batch_size=len(train), validation=test, rng=rng, verbose=True
    )


if __name__ == "__main__":
    run(main)
