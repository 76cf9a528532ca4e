"""Train a network with SoftmaxWithLoss on MNIST, on the CPU or a GPU (see --device)."""

from __future__ import annotations

from cli import (
    OutputError,
    Parser,
    file_path,
    name_of,
    optional_output,
    program_ranks,
    run,
    whole_number,
)
from interrupts import status_of

import argparse
import contextlib
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from recipes import (
    EPOCHS_OF_FEW,
    FEW,
    MODELS,
    SCHEDULES,
    needs_images,
    new_loss,
    new_network,
    new_optimizer,
)
from runs import (
    Data,
    add_data_options,
    add_device_option,
    add_out_option,
    load_dataset,
    new_run_folder,
    print_files,
    write_config,
    write_json,
)

import nnxp
from nnxp.checkpoint import lock_target
from nnxp.checks import FRACTION, optional_import, require_number
from nnxp.devices import DTYPES
from nnxp.initializers import INITIALIZERS
from nnxp.layers.activations import ACTIVATIONS
from nnxp.metrics import confusion_matrix
from nnxp.optimizers import OPTIMIZERS
from nnxp.ranks import ONE_RANK

CHECKPOINT = "checkpoint.safetensors"
RANKS = ONE_RANK  # the processes that divide the batches
# The settings in a checkpoint, with their types. With --resume, they are the defaults of the
# options; options can override the changeable settings.
FIXED = {
    "model": str, "hidden": (list, type(None)), "activation": str, "init": (str, type(None)),
    "optimizer": str, "learning_rate": float, "batch_size": int, "seed": int, "dtype": str,
    "batch_norm": bool, "dropout": float, "shift": int, "schedule": str, "weight_decay": float,
    "label_smoothing": float,
}  # fmt: skip
CHANGEABLE = {
    "dataset": str, "epochs": int, "device": str, "capture": (bool, str),
    "compiled": (bool, str), "checkpoint_every": (int, type(None)),
}  # fmt: skip


class Training(NamedTuple):
    """A new or resumed run."""

    trainer: nnxp.Trainer
    rng: np.random.Generator
    data: Data
    folder: Path
    checkpoint: Path | None  # None if the packages for checkpoints are not installed


def main() -> int:
    args = parse()
    device = nnxp.device(args.device)
    if args.verbose and device.reason:
        print(f"no GPU: {device.reason}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        if args.resume:
            if RANKS.rank == 0:
                # Lock the file before reading it, so that no other process writes it in between.
                stack.enter_context(lock_target(args.resume / CHECKPOINT))
            RANKS.exchange()
            training = resume_run(args, device)
        else:
            training = start_run(args, device)
        reason = ""
        try:
            status = train(training, args)
        except OutputError as error:
            if not training.trainer.optimizer.steps:
                raise
            status, reason = error.status, f" ({error})"
        if RANKS.rank:
            return status
        if status:
            report_interruption(training, reason)
        elif args.model != "plain":
            write_pictures(training)
    if training.trainer.history and not args.quiet:
        print_summary(training.trainer.history)
        print_files(training.folder)
    return status


def parse() -> argparse.Namespace:
    """Return the options; with --resume, the defaults are the settings of the resumed run."""
    parser = new_parser()
    args = parser.parse_args()
    if args.resume:
        config = read_config(args.resume)
        parser.set_defaults(**{name: config[name] for name in (FIXED | CHANGEABLE)})
        args = parser.parse_args()
        for name in FIXED:
            if getattr(args, name) != config[name]:
                parser.error(
                    f"argument --{name.replace('_', '-')}: the run in {args.resume} has "
                    f"{config[name]}, which cannot change"
                )
        if args.schedule != "constant" and args.epochs != config["epochs"]:
            parser.error(
                f"argument --epochs: the learning rate of the run in {args.resume} ends with epoch "
                f"{config['epochs']}, which cannot change"
            )
        if args.out:
            parser.error("argument --out: a resumed run stays in its own folder")
        source = config["data_source"]
        if args.dataset in ("auto", "mnist") and source and Path(source).is_dir():
            args.data_dir = args.data_dir or Path(source)
    if args.model == "lenet" and args.hidden:
        parser.error("argument --hidden: is for --model plain and mlp, not for lenet")
    recipe = dict(MODELS[args.model])
    if args.optimizer not in (None, recipe["optimizer"]):
        own = OPTIMIZERS[args.optimizer]()
        recipe |= {name: getattr(own, name) for name in ("learning_rate", "weight_decay")}
    for name, value in recipe.items():
        if name != "epochs" and getattr(args, name) is None:
            setattr(args, name, value)
    if args.seed < 0:
        parser.error(f"argument --seed: must be 0 or more, got {args.seed}")
    return args


def new_parser() -> Parser:
    parser = Parser(description=__doc__)
    option = parser.add_argument
    add_device_option(parser)
    add_data_options(parser)
    option("--model", type=name_of("model", MODELS), default="plain",
           help="plain: affine layers; mlp: wider affine layers; lenet: convolutions; mlp and "
           "lenet use a recipe for high accuracy, which the options below can override, and draw "
           "pictures of mistakes and weights (default: plain)")  # fmt: skip
    option("--hidden", type=whole_number, nargs="+", metavar="WIDTH",
           help=f"widths of the hidden layers of plain and mlp {of_models('hidden')}")  # fmt: skip
    option("--activation", type=name_of("activation", ACTIVATIONS), default="relu",
           help=f"{', '.join(ACTIVATIONS)} (default: relu)")  # fmt: skip
    option("--init", type=name_of("initializer", INITIALIZERS),
           help=f"{', '.join(INITIALIZERS)} (default: xavier for sigmoid, tanh and identity, "
           "else he)")  # fmt: skip
    option("--batch-norm", action=argparse.BooleanOptionalAction, default=None,
           help="normalize the batches before activations (default: in mlp and lenet)")  # fmt: skip
    option("--dropout", type=float, default=0.0, metavar="RATE",
           help="share of hidden outputs set to 0 in a training step (default: 0)")  # fmt: skip
    option("--shift", type=partial(whole_number, least=0), metavar="PIXELS",
           help="shift each training image at random, by at most this much "
           f"{of_models('shift')}")  # fmt: skip
    option("--optimizer", type=name_of("optimizer", OPTIMIZERS),
           help=f"{', '.join(OPTIMIZERS)} {of_models('optimizer')}")  # fmt: skip
    option("--learning-rate", type=float,
           help="a positive number; the largest rate of a schedule "
           f"{of_models('learning_rate')[:-1]}, or another optimizer's own)")  # fmt: skip
    option("--schedule", type=name_of("schedule", SCHEDULES),
           help="constant; or onecycle: the rate rises, and falls to 0 at the last step "
           f"{of_models('schedule')}")  # fmt: skip
    option("--weight-decay", type=float, metavar="RATE",
           help="each step multiplies the weights by 1 - learning rate * this rate "
           f"{of_models('weight_decay')[:-1]}, or another optimizer's own)")  # fmt: skip
    option("--label-smoothing", type=float, metavar="SHARE",
           help="spread this share of a label's probability over all classes; the losses that are "
           f"shown use such labels {of_models('label_smoothing')}")  # fmt: skip
    option("--epochs", type=whole_number,
           help=f"passes over the training images {of_models('epochs')[:-1]}; {EPOCHS_OF_FEW} if "
           f"the images are fewer than {FEW:,})")  # fmt: skip
    option("--batch-size", type=whole_number,
           help=f"images in a step {of_models('batch_size')}")  # fmt: skip
    option("--seed", type=int, default=0, help="for weights and shuffling (default: 0)")
    option("--dtype", type=name_of("dtype", DTYPES), default="float32",
           help="float32 or float64 (default: float32)")  # fmt: skip
    option("--capture", action=argparse.BooleanOptionalAction, default="auto",
           help="use captured steps (default: on devices that support them)")  # fmt: skip
    option("--compiled", action=argparse.BooleanOptionalAction, default="auto",
           help="compile captured steps on the CPU to machine code (default: if llvmlite is "
           "installed and the run is long enough)")  # fmt: skip
    add_out_option(parser)
    option("--checkpoint-every", type=whole_number, metavar="STEPS",
           help="save also every STEPS steps "
           "(default: only after each epoch and when stopped)")  # fmt: skip
    option("--resume", type=file_path, metavar="DIR",
           help="resume the run in this folder; --epochs is the total")  # fmt: skip
    option("--quiet", action="store_true", help="print only errors")
    option("-v", "--verbose", action="store_true", help="print why auto chose the CPU")
    return parser


def of_models(name: str) -> str:
    """Return an option's defaults, for its help."""
    values = {model: defaults[name] for model, defaults in MODELS.items()}
    values = {k: " ".join(map(str, x)) if isinstance(x, list) else x for k, x in values.items()}
    return f"(default: {', '.join(f'{x} in {k}' for k, x in values.items() if x is not None)})"


def read_config(folder: Path) -> dict[str, Any]:
    """Return the settings of the run in a folder, from its checkpoint."""
    try:
        config = nnxp.Trainer.resume(folder / CHECKPOINT).config
    except nnxp.CheckpointError as error:
        raise nnxp.InputError(f"{folder} holds no run to resume ({error})") from error
    kinds = FIXED | CHANGEABLE | {"data_source": (str, type(None)), "data_sha256": str}
    for name, kind in kinds.items():
        if not isinstance(config.get(name, ...), kind):
            raise nnxp.InputError(
                f"{folder} holds no run to resume (its checkpoint has no valid {name})"
            )
    return config


def start_run(args: argparse.Namespace, device: nnxp.Device) -> Training:
    """Return a new run, and create its folder."""
    has_packages = can_save(required=bool(args.checkpoint_every))
    settings = vars(args)
    # Check the settings before the data are loaded.
    new_optimizer(settings | {"epochs": 1}, 1)
    loss = new_loss(settings)
    require_number("dropout", args.dropout, FRACTION)
    data = load_dataset(args.dataset, args.data_dir, images=needs_images(settings))
    if args.epochs is None:
        args.epochs = EPOCHS_OF_FEW if len(data.train) < FEW else MODELS[args.model]["epochs"]
    rng = np.random.default_rng(args.seed)
    network = new_network(settings, data, rng, device)
    optimizer = new_optimizer(settings, len(data.train))
    trainer = nnxp.Trainer(
        network, loss, optimizer, capture=args.capture, compiled=args.compiled, ranks=RANKS
    )
    trainer.config = config_of(args, device, data)
    own = str(new_run_folder(args.out, trainer.config)) if RANKS.rank == 0 else ""
    folder = Path(RANKS.exchange(own)[0])
    checkpoint = folder / CHECKPOINT if has_packages else None
    trainer.rng = rng  # part of the first checkpoint, which is written before the first step
    return Training(trainer, rng, data, folder, checkpoint)


def resume_run(args: argparse.Namespace, device: nnxp.Device) -> Training:
    """Return the run in the folder ``--resume``; its data set must be the same."""
    folder = args.resume
    checkpoint = folder / CHECKPOINT
    data = load_dataset(args.dataset, args.data_dir, images=needs_images(vars(args)))
    trainer = nnxp.Trainer.resume(
        checkpoint, device=device, capture=args.capture, compiled=args.compiled, ranks=RANKS
    )
    if trainer.rng is None:
        raise nnxp.InputError(f"{checkpoint} has no random generator to resume with")
    expected, got = trainer.config["data_sha256"], data.config()["data_sha256"]
    if expected != got:
        raise nnxp.InputError(
            f"the run in {folder} was trained on other data than {data.name} (SHA-256 "
            f"{expected[:8]}…, got {got[:8]}…); give its own data with --data-dir"
        )
    if trainer.epochs >= args.epochs:
        # The run may have been killed between its last checkpoint and its results.
        if RANKS.rank == 0:
            write_results(trainer, data, folder)
        raise nnxp.InputError(
            f"the run in {folder} has finished its {trainer.epochs} epochs; for more, give a "
            "larger --epochs"
        )
    trainer.config = config_of(args, device, data)
    if RANKS.rank == 0:
        write_config(folder, trainer.config)
    return Training(trainer, trainer.rng, data, folder, checkpoint)


def can_save(*, required: bool) -> bool:
    """Return whether the packages for checkpoints are installed; if `required`, raise if not."""
    try:
        for package in ("safetensors", "filelock"):
            optional_import(package, "checkpoint")
    except nnxp.MissingExtraError as error:
        if required:
            raise
        print(f"no {CHECKPOINT}: {error}", file=sys.stderr)
        return False
    return True


def config_of(args: argparse.Namespace, device: nnxp.Device, data: Data) -> dict[str, Any]:
    """Return all settings needed to repeat or resume the run, as JSON values."""
    config = vars(args) | data.config() | {
        "device": device.spec,
        "device_description": device.description,
    }  # fmt: skip
    return {key: str(x.resolve()) if isinstance(x, Path) else x for key, x in config.items()}


def train(training: Training, args: argparse.Namespace) -> int:
    """Train the remaining epochs, save the results after each, and return the exit status."""
    trainer, rng, data, folder, checkpoint = training
    status = 0
    try:
        if not args.quiet:
            ranks = f", {RANKS.size} processes" if RANKS.size > 1 else ""
            print(f"nnxp {nnxp.__version__} on {trainer.network.device}{ranks}")
            print(f"{data.name}: {len(data.train)} training and {len(data.test)} test images")
            print(trainer.network.summary(data.train.inputs.shape[1:]))
        stop = nnxp.callbacks.StopOnSignal()
        exists = checkpoint is not None and checkpoint.exists()
        if checkpoint and not RANKS.any(exists):
            trainer.save(checkpoint)  # a run that is killed in its first epoch can be resumed
        trainer.fit(
            data.train,
            epochs=args.epochs - trainer.epochs,
            batch_size=args.batch_size,
            validation=data.test,
            rng=rng,
            callbacks=[stop, WriteHistory(folder / "history.json")],
            # The recipes shift the training images, so their figures are measured in the steps.
            train_metrics="after" if args.model == "plain" else "running",
            verbose=not args.quiet,
            checkpoint=checkpoint,
            checkpoint_every=args.checkpoint_every,
        )
        if stop.received and trainer.epochs < args.epochs:
            status = 128 + stop.received
    except KeyboardInterrupt as error:
        status = status_of(error)
    finally:
        if RANKS.rank == 0:
            write_results(trainer, data, folder)
    return status


def report_interruption(training: Training, reason: str) -> None:
    """Print the progress and the reason of an interrupted run; if nothing is saved, clean up."""
    folder, checkpoint = training.folder, training.checkpoint
    if checkpoint and checkpoint.exists():
        steps = nnxp.Trainer.resume(checkpoint).optimizer.steps
        print(f"stopped after {steps} steps{reason}; to resume: --resume {folder}", file=sys.stderr)
    elif training.trainer.history:
        print(f"interrupted{reason}: the finished epochs are saved", file=sys.stderr)
    else:
        print(f"interrupted{reason}: no epoch was finished", file=sys.stderr)
        (folder / "config.json").unlink()


def write_results(trainer: nnxp.Trainer, data: Data, folder: Path) -> None:
    """Write and draw the history, if an epoch was finished."""
    if not trainer.history:
        return
    write_history(folder / "history.json", trainer.history)
    config = trainer.config
    model = config["model"]
    if config["hidden"]:
        model = "-".join(map(str, data.widths(config["hidden"])))
    optimizer = f"{type(trainer.optimizer).__name__}, learning rate {config['learning_rate']:g}"
    title = f"{data.name}, {model}, {optimizer}"
    with optional_output("curves.png"):
        nnxp.plots.plot_histories({"": trainer.history}, folder / "curves.png", title=title)


def write_pictures(training: Training) -> None:
    """Draw the confusion matrix of the test images, the mistakes, and the first layer's weights."""
    trainer, _, data, folder, _ = training
    network = trainer.network
    scores = network.device.to_host(network.predict(data.test.inputs))
    labels, classes, title = data.test.labels, data.train.classes, data.name
    with contextlib.suppress(nnxp.MissingExtraError):  # write_results printed it
        counts = confusion_matrix(scores, labels)
        path = folder / "confusion.png"
        nnxp.plots.plot_confusion_matrix(counts, path, classes=classes, title=title)
        pixels = math.prod(data.test.inputs.shape[1:])
        if data.test.inputs.ndim == 2 and math.isqrt(pixels) ** 2 != pixels:
            return  # rows of a table
        nnxp.plots.plot_weights(network, folder / "weights.png", title=title)
        if (scores.argmax(axis=1) != labels).any():
            nnxp.plots.plot_mistakes(
                data.test.inputs, labels, scores, folder / "mistakes.png", classes=classes,
                title=title,
            )  # fmt: skip


def write_history(path: Path, history: list[nnxp.Record]) -> None:
    """Write the history as JSON."""
    write_json(path, [dict(record) for record in history])


class WriteHistory(nnxp.callbacks.Callback):
    """Write the history after each epoch."""

    only_rank_0 = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def epoch(self, trainer: nnxp.Trainer, record: nnxp.Record) -> None:
        """Write all records."""
        write_history(self.path, trainer.history)


def print_summary(history: list[nnxp.Record]) -> None:
    """Print the last and the best validation accuracy."""
    best = max(history, key=lambda record: record.validation_accuracy)
    last = history[-1]
    seconds = sum(record.seconds for record in history)
    print(
        f"validation accuracy {last.validation_accuracy:.4f} after {last.epoch} epoch(s) in "
        f"{seconds:.1f} s (best {best.validation_accuracy:.4f}, epoch {best.epoch})"
    )


if __name__ == "__main__":
    RANKS = program_ranks()
    run(main, RANKS)
