"""Vanishing gradients: deep networks of sigmoid, tanh and ReLU, and the gradient in each layer."""

from __future__ import annotations

from cli import Parser, optional_output, run, whole_number

import math

import numpy as np
from runs import add_data_options, add_out_option, load_dataset, new_run_folder, print_files

import nnxp

LEARNING_RATE, BATCH_SIZE = 0.1, 100
# Activations with their usual initializers. Sigmoid has the same one as tanh, although its slope at
# 0 is 1/4, and that of tanh is 1.
RUNS = {"sigmoid": "xavier", "tanh": "xavier", "relu": "he"}


def main() -> None:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument("--depth", type=whole_number, default=6,
                        help="number of hidden layers (default: 6)")  # fmt: skip
    parser.add_argument("--width", type=whole_number, default=50,
                        help="units of a hidden layer (default: 50)")  # fmt: skip
    parser.add_argument("--epochs", type=whole_number, default=3,
                        help="passes over the training examples (default: 3)")  # fmt: skip
    add_out_option(parser)
    args = parser.parse_args()
    data = load_dataset(args.dataset, args.data_dir)
    folder = new_run_folder(args.out, vars(args) | data.config())
    print(f"{data.name}, {args.depth} hidden layers of {args.width} units, {args.epochs} epochs")
    widths = data.widths([args.width] * args.depth)
    watched = {}
    for activation, initializer in RUNS.items():
        rng = np.random.default_rng(0)
        network = nnxp.mlp(widths, rng=rng, activation=activation, initializer=initializer)
        trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(LEARNING_RATE))
        steps = math.ceil(len(data.train) / BATCH_SIZE) * args.epochs
        watch = nnxp.callbacks.WatchLayers(data.test, every=max(1, steps // 30))
        history = trainer.fit(
            data.train,
            epochs=args.epochs,
            batch_size=BATCH_SIZE,
            validation=data.test,
            rng=rng,
            callbacks=[watch],
        )
        accuracy = history[-1].validation_accuracy
        print(f"\n{activation}, weights by {initializer}: test accuracy {accuracy:.4f}")
        print_table(watch)
        watched[f"{activation}, test accuracy {accuracy:.3f}"] = watch
    title = f"{data.name}, {args.depth} hidden layers of {args.width} units"
    with optional_output("layers.png"):
        nnxp.plots.plot_layers(watched, folder / "layers.png", title=title)
    print()
    print_files(folder)


def print_table(watch: nnxp.callbacks.WatchLayers) -> None:
    """Print the gradients at the outputs of the affine layers, and the ratio to the last one."""
    layers = [name for name in watch.layers if name.startswith("affine")]
    columns = [watch.layers.index(name) for name in layers]
    first, last = watch.gradients[0, columns], watch.gradients[-1, columns]
    header = ("at the start", "of the last", "at the end", "of the last")
    print(f"{'layer':<9}" + "".join(f"  {name:>12}" for name in header))
    for name, start, end in zip(layers, first, last, strict=True):
        ratios = start / first[-1], end / last[-1]
        print(f"{name:<9}  {start:12.1e}  {ratios[0]:12.2g}  {end:12.1e}  {ratios[1]:12.2g}")


if __name__ == "__main__":
    run(main)
