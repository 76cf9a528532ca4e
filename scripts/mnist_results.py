"""Train the recipes of train_mnist.py with several seeds, in nnxp and in PyTorch.

The table has the accuracy on the test images, as mean and standard deviation over the seeds, and
the CPU seconds of training without evaluations. Each training runs in its own process on one core.
nnxp and PyTorch alternate.
"""

from __future__ import annotations

from cli import Parser, announce, name_of, progress, run, run_worker, spread, whole_number

import itertools
import json
import math
import os
import statistics
import sys
import time
from importlib.util import find_spec
from typing import Any

import numpy as np
from comparisons import count, mean_and_deviation
from recipes import MODELS, new_loss, new_network, new_optimizer, padding_of
from runs import (
    THREADS,
    Data,
    add_data_options,
    add_out_option,
    load_dataset,
    new_run_folder,
    print_files,
    write_json,
)

import nnxp

RECIPES = ("mlp", "lenet")
HELD_OUT = 10_000


def main() -> None:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument("--models", type=name_of("model", RECIPES), nargs="+", default=RECIPES,
                        help="recipes (default: mlp lenet)")  # fmt: skip
    parser.add_argument("--seeds", type=whole_number, default=5,
                        help="number of seeds, counted from 0 (default: 5)")  # fmt: skip
    parser.add_argument("--epochs", type=whole_number, help="epochs (default: the recipe's)")
    parser.add_argument("--held-out", action="store_true",
                        help=f"train without the last {HELD_OUT:,} training images and measure on "
                        "them, to choose settings without the test images")  # fmt: skip
    parser.add_argument("--peer", nargs=2, metavar=("PEER", "SEED"),
                        help="train one peer, nnxp or PyTorch, and print JSON")  # fmt: skip
    add_out_option(parser)
    args = parser.parse_args()
    if args.peer:
        peer, seed = args.peer
        data = held_out(load(args)) if args.held_out else load(args)
        settings = settings_of(args.models[0], args.epochs, int(seed))
        print(json.dumps(PEERS[peer](settings, data)))
        return
    data = load(args)
    peers = list(PEERS)
    if not find_spec("torch"):
        announce("PyTorch is left out: torch is not installed")
        peers.remove("PyTorch")
    folder = new_run_folder(args.out, vars(args) | data.config())
    trainings = len(args.models) * len(peers) * args.seeds
    announce(f"{trainings} trainings, on MNIST of 10 seconds (mlp) to 2 minutes (lenet) each")
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for model in args.models:
        rounds = [
            {peer: train_apart(peer, model, seed, args) for peer in peers}
            for seed in progress(args.seeds, "seed")
        ]
        results[model] = {peer: [each[peer] for each in rounds] for peer in peers}
        write_json(folder / "mnist_results.json", results)
        print_table(model, results[model], args.held_out)
    print_files(folder)


def load(args: Any) -> Data:
    """Return the data set as images; the recipes shift them."""
    return load_dataset(args.dataset, args.data_dir, images=True)


def held_out(data: Data) -> Data:
    """Return the data with the last training images instead of the test images."""
    count = min(HELD_OUT, len(data.train) // 6)
    parts = slice(0, len(data.train) - count), slice(len(data.train) - count, None)
    train, test = (
        nnxp.data.Dataset(data.train.inputs[part], data.train.labels[part], scale=data.train.scale)
        for part in parts
    )
    return data._replace(train=train, test=test)


def settings_of(model: str, epochs: int | None, seed: int) -> dict[str, Any]:
    """Return the settings of a recipe, with the names of the options of train_mnist.py."""
    settings = MODELS[model] | {
        "model": model, "seed": seed, "activation": "relu", "init": None, "dropout": 0.0,
        "dtype": "float32",
    }  # fmt: skip
    return settings | ({"epochs": epochs} if epochs else {})


def train_apart(peer: str, model: str, seed: int, args: Any) -> dict[str, float]:
    """Return the result of a function in `PEERS`, run in its own process with one thread."""
    command = [sys.executable, __file__, "--peer", peer, str(seed), "--models", model,
               "--dataset", args.dataset]  # fmt: skip
    command += ["--data-dir", str(args.data_dir)] if args.data_dir else []
    command += ["--epochs", str(args.epochs)] if args.epochs else []
    command += ["--held-out"] if args.held_out else []
    environment = os.environ | dict.fromkeys(THREADS, "1")
    result: dict[str, float] = run_worker(command, environment, f"{peer} was not trained")
    return result


def print_table(model: str, results: dict[str, list[dict[str, float]]], held_out: bool) -> None:
    """Print the accuracies and times of a recipe."""
    of, seeds = "held-out" if held_out else "test", count(len(results["nnxp"]))
    print(f"\n| {model}, {seeds} | {of} accuracy | each seed | CPU seconds "
          "| nnxp / this (quartiles) |\n|---|---|---|---|---|")  # fmt: skip
    for peer, trained in results.items():
        accuracies = [100 * each["accuracy"] for each in trained]
        ratios = [
            a["seconds"] / b["seconds"] for a, b in zip(results["nnxp"], trained, strict=True)
        ]
        seconds = statistics.median(each["seconds"] for each in trained)
        print(f"| {peer} | {mean_and_deviation(accuracies, 2)} % "
              f"| {', '.join(f'{x:.2f}' for x in accuracies)} | {seconds:.1f} "
              f"| {spread(ratios)} |", flush=True)  # fmt: skip


def train_nnxp(settings: dict[str, Any], data: Data) -> dict[str, float]:
    """Train a recipe with nnxp; return the accuracy and the CPU seconds of the training."""
    rng = np.random.default_rng(settings["seed"])
    start = time.process_time()
    network = new_network(settings, data, rng, nnxp.device("cpu"))
    trainer = nnxp.Trainer(network, new_loss(settings), new_optimizer(settings, len(data.train)))
    trainer.fit(data.train, epochs=settings["epochs"], batch_size=settings["batch_size"], rng=rng)
    seconds = time.process_time() - start
    return {"accuracy": trainer.evaluate(data.test).accuracy, "seconds": seconds}


def train_torch(settings: dict[str, Any], data: Data) -> dict[str, float]:
    """Train a recipe with PyTorch, written as its users would."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(settings["seed"])
    rng = np.random.default_rng(settings["seed"])
    start = time.process_time()
    image = data.train.inputs.shape[1:]
    if settings["model"] == "lenet":
        p = padding_of(image)
        height, width = (((n + 2 * p - 4) // 2 + 2 * p - 4) // 2 for n in image[1:])
        network = nn.Sequential(
            nn.Conv2d(image[0], 20, 5, padding=p, bias=False),
            nn.MaxPool2d(2), nn.BatchNorm2d(20), nn.ReLU(),
            nn.Conv2d(20, 50, 5, padding=p, bias=False),
            nn.MaxPool2d(2), nn.BatchNorm2d(50), nn.ReLU(),
            nn.Flatten(), nn.Linear(50 * height * width, 500, bias=False),
            nn.BatchNorm1d(500), nn.ReLU(), nn.Linear(500, data.classes),
        )  # fmt: skip
    else:
        widths = data.widths(settings["hidden"])
        network = nn.Sequential(nn.Flatten())
        for i, o in itertools.pairwise(widths[:-1]):
            network.extend([nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.ReLU()])
        network.append(nn.Linear(*widths[-2:]))
    matrices = [x for x in network.parameters() if x.ndim > 1]
    others = [x for x in network.parameters() if x.ndim == 1]
    # In PyTorch, the decay passes through the velocity, which multiplies it by 1 / (1 - 0.9).
    decay = settings["weight_decay"] * (1 - 0.9)
    optimizer = torch.optim.SGD(
        [{"params": matrices, "weight_decay": decay}, {"params": others}],
        lr=settings["learning_rate"], momentum=0.9, nesterov=True,
    )  # fmt: skip
    size, shift = settings["batch_size"], settings["shift"]
    steps = -(-len(data.train) // size) * settings["epochs"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings["learning_rate"], steps, pct_start=0.2, anneal_strategy="linear",
        cycle_momentum=False, div_factor=25, final_div_factor=math.inf,
    )  # fmt: skip
    loss = nn.CrossEntropyLoss(label_smoothing=settings["label_smoothing"])
    inputs, labels = data.train.inputs, torch.from_numpy(data.train.labels.astype(np.int64))
    for _ in range(settings["epochs"]):
        order = rng.permutation(len(inputs))
        for first in range(0, len(inputs), size):
            rows = order[first : first + size]
            x = shifted(inputs[rows], shift, rng)
            batch = torch.from_numpy(x).float().mul_(1 / (data.train.scale or 1))
            optimizer.zero_grad()
            loss(network(batch), labels[torch.from_numpy(rows)]).backward()
            optimizer.step()
            schedule.step()
    seconds = time.process_time() - start
    network.eval()
    with torch.no_grad():
        right = 0
        for first in range(0, len(data.test), 1000):
            x = torch.from_numpy(data.test.inputs[first : first + 1000].copy())
            scores = network(x.float().mul_(1 / (data.test.scale or 1)))
            right += int((scores.argmax(1).numpy() == data.test.labels[first : first + 1000]).sum())
    return {"accuracy": right / len(data.test), "seconds": seconds}


def shifted(images: np.ndarray, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """Return images that are shifted at random by at most `pixels`, with one NumPy gather."""
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (pixels, pixels), (pixels, pixels)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    down, across = rng.integers(0, 2 * pixels + 1, (2, len(images)))
    return np.ascontiguousarray(windows[np.arange(len(images)), :, down, across])


PEERS = {"nnxp": train_nnxp, "PyTorch": train_torch}


if __name__ == "__main__":
    run(main)
