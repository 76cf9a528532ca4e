"""Train a network with SoftmaxWithLoss on MNIST, on the CPU or a GPU: --device says which."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from cli import Parser, Stopping, name_of, run, whole_number
from runs import (
    Data,
    add_data_options,
    class_count,
    load_dataset,
    new_run_folder,
    write_config,
    write_json,
)

import nnxp
from nnxp.checkpoint import lock_target
from nnxp.checks import optional_import
from nnxp.devices import DTYPES
from nnxp.initializers import INITIALIZERS
from nnxp.layers.activations import ACTIVATIONS
from nnxp.optimizers import OPTIMIZERS

CHECKPOINT = "checkpoint.safetensors"
# What a run goes on with, as its checkpoint has it, and what may be given anew.
KEPT = {
    "hidden": list, "activation": str, "init": (str, type(None)), "optimizer": str,
    "learning_rate": float, "batch_size": int, "seed": int, "dtype": str,
}  # fmt: skip
GIVEN_ANEW = {
    "dataset": str, "epochs": int, "device": str, "capture": (bool, str),
    "checkpoint_every": (int, type(None)),
}  # fmt: skip


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
    option(
        "--checkpoint-every",
        type=whole_number,
        metavar="STEPS",
        help="save after so many steps too (default: after each epoch, and when stopped)",
    )
    option(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with the run in this folder; --epochs counts all of them",
    )
    option("--quiet", action="store_true", help="print errors alone")
    option("-v", "--verbose", action="store_true", help="say why auto chose the CPU")
    args = parser.parse_args()
    if args.resume:
        config = read_config(args.resume)
        parser.set_defaults(**{name: config[name] for name in (KEPT | GIVEN_ANEW)})
        args = parser.parse_args()
        for name in KEPT:
            if getattr(args, name) != config[name]:
                parser.error(
                    f"argument --{name.replace('_', '-')}: the run in {args.resume} has "
                    f"{config[name]}, and goes on with it"
                )
        if args.out:
            parser.error("argument --out: a run that goes on stays in its folder")
        source = config["data_source"]
        if args.dataset in ("auto", "mnist") and source and Path(source).is_dir():
            args.data_dir = args.data_dir or Path(source)
    if args.seed < 0:
        parser.error(f"argument --seed: must be 0 or more, got {args.seed}")
    return args


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings of a run."""
    try:
        config = nnxp.Trainer.resume(folder / CHECKPOINT).config
    except nnxp.CheckpointError as error:
        raise nnxp.InputError(f"{folder} holds no run to go on with ({error})") from error
    kinds = KEPT | GIVEN_ANEW | {"data_source": (str, type(None)), "data_sha256": str}
    for name, kind in kinds.items():
        if not isinstance(config.get(name, ...), kind):
            raise nnxp.InputError(
                f"{folder} holds no run to go on with (its checkpoint does not say {name})"
            )
    return config


def main() -> int:
    args = parse()
    device = nnxp.device(args.device)
    if args.verbose and device.reason:
        print(f"no GPU: {device.reason}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        if args.resume:
            folder = args.resume
            checkpoint = folder / CHECKPOINT
            stack.enter_context(lock_target(checkpoint))  # or it might be written after it is read
            data = load_dataset(args.dataset, args.data_dir)
            trainer = resumed(args, device, data)
            if trainer.epochs >= args.epochs:
                write_results(trainer, data, folder)  # it may have been killed before it did
                raise nnxp.InputError(
                    f"the run in {folder} has its {trainer.epochs} epochs; for more, give --epochs "
                    "with their number in all"
                )
            trainer.config = config_of(args, trainer, data)
            write_config(folder, trainer.config)
        else:
            saves = can_save(required=bool(args.checkpoint_every))
            optimizer = OPTIMIZERS[args.optimizer](
                **({} if args.learning_rate is None else {"learning_rate": args.learning_rate})
            )
            data = load_dataset(args.dataset, args.data_dir)
            trainer = new(args, device, data, optimizer)
            made = not (args.out and args.out.exists())
            trainer.config = config_of(args, trainer, data)
            folder = new_run_folder(args.out, trainer.config)
            checkpoint = folder / CHECKPOINT if saves else None
        status = train(trainer, data, args, folder, checkpoint)
        if status and not trainer.history and not (checkpoint and checkpoint.exists()):
            print("interrupted: no epoch was finished", file=sys.stderr)
            (folder / "config.json").unlink()
            if made and not any(folder.iterdir()):
                folder.rmdir()
        elif status and checkpoint and checkpoint.exists():
            steps = nnxp.Trainer.resume(checkpoint).optimizer.steps
            print(f"stopped after {steps} steps; to go on: --resume {folder}", file=sys.stderr)
        elif status:
            print("interrupted: keeping the finished epochs", file=sys.stderr)
    if trainer.history and not args.quiet:
        report(trainer.history, folder)
    return status


def config_of(args: argparse.Namespace, trainer: nnxp.Trainer, data: Data) -> dict[str, Any]:
    """Return everything needed to repeat the run, or to go on with it, as JSON can have it."""
    device = trainer.network.device
    assert device is not None
    config = vars(args) | data.config() | {
        "device": device.spec,
        "device_description": device.description,
        "learning_rate": trainer.optimizer.learning_rate,
    }  # fmt: skip
    return {key: str(x.resolve()) if isinstance(x, Path) else x for key, x in config.items()}


def new(
    args: argparse.Namespace, device: nnxp.Device, data: Data, optimizer: nnxp.Optimizer
) -> nnxp.Trainer:
    """Return a trainer of a new network."""
    rng = np.random.default_rng(args.seed)
    network = nnxp.mlp(
        [data.train.inputs.shape[1], *args.hidden, class_count(data.train, data.test)],
        rng=rng,
        activation=args.activation,
        initializer=INITIALIZERS[args.init] if args.init else None,
        dtype=args.dtype,
        device=device,
    )
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), optimizer, capture=args.capture)
    trainer.rng = rng
    return trainer


def resumed(args: argparse.Namespace, device: nnxp.Device, data: Data) -> nnxp.Trainer:
    """Return the trainer of the run in a folder, which must be of the same data."""
    trainer = nnxp.Trainer.resume(args.resume / CHECKPOINT, device=device, capture=args.capture)
    if trainer.rng is None:
        raise nnxp.InputError(f"{args.resume / CHECKPOINT} has no generator to go on with")
    was, given = trainer.config["data_sha256"], data.config()["data_sha256"]
    if was != given:
        raise nnxp.InputError(
            f"the run in {args.resume} was of other data than {data.name} (SHA-256 {was[:8]}…, "
            f"here {given[:8]}…); give its own with --data-dir"
        )
    return trainer


def can_save(*, required: bool) -> bool:
    """Tell whether the packages for checkpoints are there; raise without, if they are required."""
    try:
        for package in ("safetensors", "filelock"):
            optional_import(package, "checkpoint")
    except nnxp.MissingExtraError as error:
        if required:
            raise
        print(f"no {CHECKPOINT}: {error}", file=sys.stderr)
        return False
    return True


def train(
    trainer: nnxp.Trainer,
    data: Data,
    args: argparse.Namespace,
    folder: Path,
    checkpoint: Path | None,
) -> int:
    """Train the epochs that are left, keep each as soon as it is finished; return the status."""
    if not args.quiet:
        print(f"nnxp {nnxp.__version__} on {trainer.network.device}")
        print(f"{data.name}: {len(data.train)} training and {len(data.test)} test images")
        print(trainer.network.summary())
    assert trainer.rng is not None
    status = 0
    try:
        with Stopping() as stop:
            if checkpoint and not checkpoint.exists():
                trainer.save(checkpoint)  # so that there is one to go on from at any time
            trainer.fit(
                data.train,
                epochs=args.epochs - trainer.epochs,
                batch_size=args.batch_size,
                validation=data.test,
                rng=trainer.rng,
                verbose=not args.quiet,
                checkpoint=checkpoint,
                checkpoint_every=args.checkpoint_every,
                after_epoch=lambda history: write_history(folder / "history.json", history),
                stop=stop,
            )
        if stop() and trainer.epochs < args.epochs:
            status = 128 + stop.signal
    except KeyboardInterrupt:
        status = 130
    finally:
        write_results(trainer, data, folder)
    return status


def write_results(trainer: nnxp.Trainer, data: Data, folder: Path) -> None:
    """Write and draw the finished epochs, if there are any."""
    if not trainer.history:
        return
    write_history(folder / "history.json", trainer.history)
    weights = [x.shape for x in trainer.network.parameters().values() if x.ndim == 2]
    widths = [str(inputs) for inputs, _ in weights] + [str(weights[-1][1])]
    title = f"{data.name}, {'-'.join(widths)}, {trainer.optimizer!r}"
    try:
        nnxp.plots.plot_histories({"": trainer.history}, folder / "curves.png", title=title)
    except nnxp.MissingExtraError as error:
        print(f"no curves.png: {error}", file=sys.stderr)


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


def report(history: list[nnxp.Record], folder: Path) -> None:
    """Print the final summary."""
    best = max(history, key=lambda record: record.validation_accuracy or 0.0)
    last = history[-1]
    seconds = sum(record.seconds for record in history)
    print(
        f"test accuracy {last.validation_accuracy:.4f} after {last.epoch} epoch(s) in "
        f"{seconds:.1f} s (best {best.validation_accuracy:.4f}, epoch {best.epoch})"
    )
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    print(f"files in {folder}: {', '.join(names)}")


if __name__ == "__main__":
    run(main)
