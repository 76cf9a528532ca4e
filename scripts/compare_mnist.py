"""Compare depths, activations and optimizers on MNIST, in a table and a picture."""

from __future__ import annotations

from cli import Parser, announce, optional_output, progress, run, whole_number

import argparse
import statistics
from typing import NamedTuple

import numpy as np
from runs import (
    Data,
    add_data_options,
    add_device_option,
    add_out_option,
    load_dataset,
    new_run_folder,
    print_files,
    write_json,
)

import nnxp
from nnxp.initializers import Initializer, normal
from nnxp.optimizers import OPTIMIZERS


class Settings(NamedTuple):
    """The settings in which the runs differ."""

    hidden: list[int]
    activation: str
    initializer: Initializer | None
    optimizer: type[nnxp.Optimizer]


# The first four are the published settings: weights from N(0, 0.01²), SGD with learning rate 0.1.
# The others differ only in the optimizer: He weights, and its default learning rate.
RUNS = {
    "2 layers, relu": Settings([50], "relu", normal(0.01), nnxp.SGD),
    "2 layers, sigmoid": Settings([50], "sigmoid", normal(0.01), nnxp.SGD),
    "3 layers, relu": Settings([50, 30], "relu", normal(0.01), nnxp.SGD),
    "3 layers, sigmoid": Settings([50, 30], "sigmoid", normal(0.01), nnxp.SGD),
} | {
    f"3 layers, relu, he, {name}": Settings([50, 30], "relu", None, optimizer)
    for name, optimizer in OPTIMIZERS.items()
}


def main() -> None:
    parser = Parser(description=__doc__)
    add_device_option(parser)
    add_data_options(parser)
    parser.add_argument("--epochs", type=whole_number, default=17,
                        help="epochs of each run (default: 17, 10,200 steps on MNIST; published: "
                        "10,000)")  # fmt: skip
    parser.add_argument("--batch-size", type=whole_number, default=100,
                        help="examples in a step (default: 100)")  # fmt: skip
    parser.add_argument("--seeds", type=whole_number, default=1,
                        help="number of seeds, counted from 0 (default: 1)")  # fmt: skip
    add_out_option(parser)
    args = parser.parse_args()
    device = nnxp.device(args.device)
    data = load_dataset(args.dataset, args.data_dir)
    folder = new_run_folder(args.out, vars(args) | data.config() | {"device": str(device)})
    print(f"{data.name} on {device}, {args.epochs} epochs, batches of {args.batch_size}")
    print(f"mean and standard deviation over {args.seeds} seed(s)")
    print(f"{'run':<28}  {'train accuracy':<16}  {'validation accuracy':<16}  seconds per run")
    announce(f"{len(RUNS) * args.seeds} runs, on MNIST each takes 5 to 20 seconds")
    all_histories = {}
    table = []
    for run_name, settings in RUNS.items():
        histories = [
            train(settings, seed, data, device, args) for seed in progress(args.seeds, "seed")
        ]
        all_histories[run_name] = histories
        last = [history[-1] for history in histories]
        row = {
            "run": run_name,
            "train_accuracy": [record.train_accuracy for record in last],
            "validation_accuracy": [record.validation_accuracy for record in last],
            "seconds": statistics.mean(sum(record.seconds for record in h) for h in histories),
        }
        table.append(row)
        write_json(folder / "compare.json", table)
        cells = [mean_and_deviation(row[key]) for key in ("train_accuracy", "validation_accuracy")]
        print(f"{run_name:<28}  {cells[0]:<16}  {cells[1]:<16}  {row['seconds']:.1f}", flush=True)
    title = f"{data.name}, test examples, mean of {args.seeds} seed(s)"
    if args.seeds > 1:
        title += "; bands: standard deviation"
    with optional_output("compare.png"):
        nnxp.plots.plot_histories(all_histories, folder / "compare.png", title=title)
    print_files(folder)


def train(
    settings: Settings, seed: int, data: Data, device: nnxp.Device, args: argparse.Namespace
) -> list[nnxp.Record]:
    rng = np.random.default_rng(seed)
    network = nnxp.mlp(
        data.widths(settings.hidden), rng=rng, activation=settings.activation,
        initializer=settings.initializer, device=device,
    )  # fmt: skip
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), settings.optimizer())
    return trainer.fit(
        data.train,
        epochs=args.epochs,
        batch_size=args.batch_size,
        validation=data.test,
        rng=rng,
        train_metrics="after",
    )


def mean_and_deviation(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


if __name__ == "__main__":
    run(main)
