"""Growth: nnxp's time and memory by steps, batch, width, depth, images, data set and epochs.

Each row of a table doubles one size. If the time is linear in the work, the time per million
multiplications is constant, or falls while the fixed cost of a step matters. The memory is the peak
of an epoch, without the data set. Set OPENBLAS_NUM_THREADS=1 to measure on one core: with more
threads, small products are slower.
"""

from __future__ import annotations

from cli import Parser, announce, optional_output, progress, run

import argparse
import math
import statistics
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peers
from runs import add_out_option, new_run_folder, print_files, write_json

import nnxp
from nnxp.plots import COLOURS, new_figure, save_figure


class Case(NamedTuple):
    """A network and its data set."""

    size: int  # the value that the series doubles
    layers: peers.Layers
    batch_size: int
    examples: int
    optimizer: str = "SGD"
    shape: tuple[int, ...] = (784,)  # of an example


def dense(size: int, hidden: Sequence[int], *settings: Any) -> Case:
    return Case(size, peers.dense(*hidden), *settings)


def images(size: int, channels: int, side: int, *settings: int) -> Case:
    """Return a network of two convolutions, each with ReLU and pooling."""
    layers = peers.convolutions(channels, "pool", channels, "pool", kernel=5, padding=2)
    return Case(size, layers, *settings, shape=(1, side, side))


SERIES = {
    "batch size": [dense(n, (256, 256), n, 4096) for n in (32, 64, 128, 256, 512, 1024)],
    "width": [dense(n, (n, n), 128, 2560) for n in (64, 128, 256, 512, 1024)],
    "width, Adam": [dense(n, (n, n), 128, 2560, "Adam") for n in (64, 128, 256, 512, 1024)],
    "depth": [dense(n, (256,) * n, 128, 2560) for n in (1, 2, 4, 8, 16)],
    "images in a batch": [images(n, 16, 28, n, 1024) for n in (32, 64, 128, 256, 512)],
    "channels": [images(n, n, 28, 64, 512) for n in (4, 8, 16, 32, 64)],
    "side of images": [images(n, 16, n, 32, 128) for n in (16, 32, 64, 128)],
    "examples": [dense(n, (50, 30), 100, n) for n in (7_500, 15_000, 30_000, 60_000)],
}
LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uint8, row after row": lambda x: x,
    "float32, row after row": lambda x: np.divide(x, 255, dtype="float32"),
    "float32, every second column of a table": lambda x: np.repeat(
        np.divide(x, 255, dtype="float32"), 2, axis=1
    )[:, ::2],
    "float32, column after column": lambda x: np.asfortranarray(np.divide(x, 255, dtype="float32")),
    "float64, row after row": lambda x: x / 255,
}
EPOCHS = 20


class Tenth(NamedTuple):
    """The cost of a tenth of a long training run."""

    steps: int  # since the start of the run
    step: float  # µs
    peak: float  # MiB of the process


class Row(NamedTuple):
    """The cost of a case."""

    size: int
    step: float  # µs
    work: float  # millions of multiplications in a step
    memory: float  # MiB, at the peak of an epoch, beyond the data set
    data: float  # MiB


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two sizes and few examples, to try the script"
    )
    add_out_option(parser)
    args = parser.parse_args()
    folder = new_run_folder(args.out, vars(args))
    if not args.quick:
        announce("a million steps of a tiny network, then the series of sizes: several minutes")
    # This is measured first, because the peak memory of the process never falls.
    tenths = many_steps(1 if args.quick else 100)
    print("| steps of a tiny network | µs per step | peak MiB of the process |\n|---|---|---|")
    for tenth in tenths:
        print(f"| {tenth.steps:,} | {tenth.step:.1f} | {tenth.peak:.1f} |")
    table = {name: measure_series(name, cases, args.quick) for name, cases in SERIES.items()}
    layouts = measure_layouts(2_000 if args.quick else 30_000)
    memory = memory_over_epochs(3 if args.quick else EPOCHS)
    print("\n| epochs of the small network | MiB in use after the epoch |\n|---|---|")
    for epoch in (1, len(memory) // 2, len(memory)):
        print(f"| {epoch} | {memory[epoch - 1]:.3f} |")
    series = {name: [row._asdict() for row in rows] for name, rows in table.items()}
    steps = [tenth._asdict() for tenth in tenths]
    report = {"series": series, "layouts": layouts, "epochs": memory, "steps": steps}
    write_json(folder / "growth.json", report)
    with optional_output():
        draw(table, memory, folder)
    print_files(folder)


def measure_series(name: str, cases: list[Case], quick: bool) -> list[Row]:
    """Measure the cases of a series, and print them as a table."""
    print(f"\n| {name} | µs per step | million multiplications | µs per million "
          "| MiB beyond the data | MiB of data |\n|---|---|---|---|---|---|")  # fmt: skip
    rows = []
    for case in cases[:2] if quick else cases:
        few = max(case.examples // 10, case.batch_size)
        row = measure(case._replace(examples=few) if quick else case)
        rows.append(row)
        print(f"| {row.size:,} | {row.step:,.0f} | {row.work:.2f} | {row.step / row.work:.1f} "
              f"| {row.memory:.2f} | {row.data:.1f} |", flush=True)  # fmt: skip
    return rows


def measure(case: Case) -> Row:
    task = peers.Task(case.layers, case.batch_size, case.optimizer)
    inputs, labels = peers.random_examples(
        np.random.default_rng(0), case.examples, math.prod(case.shape)
    )
    peer = new_peer(task, inputs.reshape(-1, *case.shape), labels)
    step = statistics.median(peers.step_time(peer) for _ in range(5))
    return Row(case.size, step, work_of(peer), peak_of_epoch(peer), inputs.nbytes / 2**20)


def work_of(peer: peers.Nnxp) -> float:
    """Return the millions of multiplications in a step."""
    # Three products for each layer, except two for the first, whose inputs need no gradient.
    shape: tuple[int, ...] | None = peer.examples.inputs.shape[1:]
    products, times = 0, 2
    for layer in peer.network:
        if layer.params:
            # A convolution uses each weight at each position.
            after = layer.output_shape(shape)
            products += times * layer.params["W"].size * math.prod(after[1:])
            times = 3
        shape = layer.output_shape(shape)
    return peer.task.batch_size * products / 1e6


def peak_of_epoch(peer: peers.Nnxp) -> float:
    """Return the peak memory of an epoch in MiB, without the data set."""
    tracemalloc.start()
    peer.epoch()
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return memory / 2**20


def measure_layouts(examples: int) -> dict[str, tuple[float, float]]:
    """Print the cost of a step of the small network for several layouts of the same images."""
    print("\n| images as | µs per step | MiB beyond the data |\n|---|---|---|")
    inputs, labels = peers.random_examples(np.random.default_rng(0), examples)
    measured = {}
    for name, arrange in LAYOUTS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that Fortran order is copied
            peer = new_peer(peers.TASKS["small"], arrange(inputs), labels)
            step = statistics.median(peers.step_time(peer) for _ in range(5))
            measured[name] = step, peak_of_epoch(peer)
        print(f"| {name} | {step:,.0f} | {measured[name][1]:.2f} |", flush=True)
    return measured


def memory_over_epochs(epochs: int) -> list[float]:
    """Return the MiB in use after each epoch, without the network and the data set."""
    peer = new_peer(peers.TASKS["small"], *peers.random_examples(np.random.default_rng(0), 6000))
    used = []
    tracemalloc.start()
    for _ in range(epochs):
        peer.trainer.fit(peer.epoch_batches.dataset, epochs=1, batch_size=100, rng=peer.rng)
        used.append(tracemalloc.get_traced_memory()[0] / 2**20)
    tracemalloc.stop()
    return used


def many_steps(epochs: int) -> list[Tenth]:
    """Train ten times `epochs` epochs of 1,000 steps, and return the cost of each tenth.

    The network is 4-3-2, trained in batches of 10 on 10,000 examples, and evaluated and saved after
    each epoch.
    """
    import resource  # not on Windows

    rng = np.random.default_rng(0)
    dataset = nnxp.data.Dataset(rng.random((10_000, 4)), rng.integers(0, 2, 10_000))
    network = nnxp.mlp([4, 3, 2], rng=rng)
    # Not compiled: compiling in the middle of the run would look like growth.
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam(), compiled=False)
    tenths = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in progress(10, "tenth"):
            start = time.perf_counter()
            trainer.fit(
                dataset, epochs=epochs, batch_size=10, rng=rng,
                checkpoint=Path(folder) / "tiny.safetensors",
            )  # fmt: skip
            step = (time.perf_counter() - start) / (1000 * epochs) * 1e6
            peak = peers.peak_memory(resource.getrusage(resource.RUSAGE_SELF))
            tenths.append(Tenth(trainer.optimizer.steps, step, peak))
    return tenths


def new_peer(task: peers.Task, inputs: np.ndarray, labels: np.ndarray) -> peers.Nnxp:
    return peers.Nnxp(task, inputs, labels, compiled=False)  # compiling would disturb the timings


def draw(table: dict[str, list[Row]], memory: list[float], folder: Path) -> None:
    """Draw the memory, and each series with a line proportional to its work."""
    figure = new_figure(15, 6.8)
    *series, data_axes, epoch_axes = figure.subplots(2, 5).flat
    for axes, (name, rows) in zip(series, table.items(), strict=True):
        sizes = [row.size for row in rows]
        axes.plot(sizes, [row.step for row in rows], "o-", color=COLOURS[0], label="measured")
        last = rows[-1]
        axes.plot(sizes, [row.work / last.work * last.step for row in rows], "--",
                  color=COLOURS[1], label="in proportion to the products")  # fmt: skip
        axes.set(title=f"time by {name}", xlabel=name, ylabel="µs per step")
        axes.set_ylim(0, 1.1 * max(row.step for row in rows))
    handles, labels = series[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    data = table["examples"]
    data_axes.plot([row.data for row in data], [row.memory for row in data], "o-", color=COLOURS[0])
    data_axes.set(title="memory by data", xlabel="MiB of data",
                  ylabel="peak MiB beyond the data")  # fmt: skip
    epoch_axes.plot(range(1, len(memory) + 1), memory, "o-", color=COLOURS[0])
    epoch_axes.set(title="memory by epochs", xlabel="epoch", ylabel="MiB in use after the epoch")
    for axes in (data_axes, epoch_axes):
        axes.set_ylim(0, 2 * max(memory + [row.memory for row in data]))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", integer=True)
    save_figure(figure, folder / "growth.png")


if __name__ == "__main__":
    run(main)
