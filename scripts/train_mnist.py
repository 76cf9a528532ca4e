"""Train a network with SoftmaxWithLoss on MNIST, on the CPU or a GPU: --device says which."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from common import (
    Parser,
    add_data_options,
    class_count,
    load_dataset,
    name_of,
    new_run_folder,
    run,
    whole_number,
    write_json,
)

import nnxp
from nnxp.devices import DTYPES
from nnxp.initializers import INITIALIZERS
from nnxp.layers.activations import ACTIVATIONS
from nnxp.optimizers import OPTIMIZERS


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    option = parser.add_argument
    option("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add_data_options(parser)
    option("--hidden", type=whole_number, nargs="+", default=[50, 30], metavar="WIDTH",
           help="widths of the hidden layers (default: 50 30)")  # fmt: skip
    option("--activation", type=name_of("activation", ACTIVATIONS), default="relu",
           help=f"{', '.join(ACTIVATIONS)} (default: relu)")  # fmt: skip
    option("--init", type=name_of("initializer", INITIALIZERS),
           help=f"{', '.join(INITIALIZERS)} (default: he for relu, else xavier)")  # fmt: skip
    option("--optimizer", type=name_of("optimizer", OPTIMIZERS), default="sgd",
           help=f"{', '.join(OPTIMIZERS)} (default: sgd)")  # fmt: skip
    option("--learning-rate", type=float, help="(default: the optimizer's own; sgd's is 0.1)")
    option("--epochs", type=whole_number, default=10, help="(default: 10)")
    option("--batch-size", type=whole_number, default=100, help="(default: 100)")
    option("--seed", type=int, default=0, help="of weights and shuffling (default: 0)")
    option("--dtype", type=name_of("dtype", DTYPES), default="float32",
           help="float32 or float64 (default: float32)")  # fmt: skip
    option(
        "--capture",
        action=argparse.BooleanOptionalAction,
        default="auto",
        help="prepare a step once and repeat it (default: where that is known to be faster)",
    )
    option("--out", type=Path, metavar="DIR",
           help="new folder for numbers, picture and settings (default: in runs/)")  # fmt: skip
    option("--quiet", action="store_true", help="print errors alone")
    option("-v", "--verbose", action="store_true", help="say why auto chose the CPU")
    args = parser.parse_args()
    if args.seed < 0:
        parser.error(f"argument --seed: must be 0 or more, got {args.seed}")
    return args


def main() -> int:
    args = parse()
    device = nnxp.device(args.device)
    if args.verbose and device.reason:
        print(f"no GPU: {device.reason}", file=sys.stderr)
    optimizer = OPTIMIZERS[args.optimizer](
        **({} if args.learning_rate is None else {"learning_rate": args.learning_rate})
    )
    data = load_dataset(args.dataset, args.data_dir)
    name, train, test, _ = data
    rng = np.random.default_rng(args.seed)
    widths = [train.inputs.shape[1], *args.hidden, class_count(train, test)]
    network = nnxp.mlp(
        widths,
        rng=rng,
        activation=args.activation,
        initializer=INITIALIZERS[args.init] if args.init else None,
        dtype=args.dtype,
        device=device,
    )
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), optimizer, capture=args.capture)
    made = not (args.out and args.out.exists())
    folder = new_run_folder(
        args.out,
        vars(args)
        | data.config()
        | {
            "device": device.spec,
            "device_description": device.description,
            "learning_rate": optimizer.learning_rate,
        },
    )
    try:
        if not args.quiet:
            print(f"nnxp {nnxp.__version__} on {device}")
            print(f"{name}: {len(train)} training and {len(test)} test images")
            print(network.summary())
        for _ in range(args.epochs):
            trainer.fit(
                train,
                epochs=1,
                batch_size=args.batch_size,
                validation=test,
                rng=rng,
                verbose=not args.quiet,
            )
            write_history(folder / "history.json", trainer.history)
    except KeyboardInterrupt:
        status = 130
        if trainer.history:
            print("interrupted: keeping the finished epochs", file=sys.stderr)
        else:
            print("interrupted: no epoch was finished", file=sys.stderr)
            (folder / "config.json").unlink()
            if made:
                folder.rmdir()
    else:
        status = 0
    finally:
        title = f"{name}, {'-'.join(map(str, widths))}, {optimizer!r}"
        draw(trainer.history, folder / "curves.png", title)
    if trainer.history and not args.quiet:
        report(trainer.history, folder)
    return status


def write_history(path: Path, history: list[nnxp.Record]) -> None:
    """Write the finished epochs as JSON."""
    write_json(
        path,
        [
            {
                "epoch": record.epoch,
                "train_loss": record.train_loss,
                "train_accuracy": record.train_accuracy,
                "test_loss": record.validation_loss,
                "test_accuracy": record.validation_accuracy,
                "seconds": record.seconds,
            }
            for record in history
        ],
    )


def draw(history: list[nnxp.Record], path: Path, title: str) -> None:
    """Draw the finished epochs, if there are any, where matplotlib is installed."""
    if not history:
        return
    try:
        nnxp.plots.plot_histories({"": history}, path, title=title)
    except nnxp.MissingExtraError as error:
        print(f"no {path.name}: {error}", file=sys.stderr)


def report(history: list[nnxp.Record], folder: Path) -> None:
    """Print the final summary."""
    best = max(history, key=lambda record: record.validation_accuracy or 0.0)
    seconds = sum(record.seconds for record in history)
    print(
        f"test accuracy {history[-1].validation_accuracy:.4f} after {len(history)} epoch(s) in "
        f"{seconds:.1f} s (best {best.validation_accuracy:.4f}, epoch {best.epoch})"
    )
    print(f"files in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    run(main)
