"""Measure how nnxp's cost grows with steps, batch, width, depth, data set and epochs.

Each row doubles one thing. Where the cost is linear in the work, the time for each million
multiplications stays the same, or falls while the constant cost of a step still shows. The memory
is what an epoch takes beyond the data set, at its peak; after an epoch only its record stays.
``OPENBLAS_NUM_THREADS=1`` measures one core, on which small products cost what they should.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peers
from cli import Parser, run
from runs import new_run_folder, write_json

import nnxp
from nnxp.plots import new_figure, save_figure


class Case(NamedTuple):
    """One network on one data set."""

    size: int  # what the series doubles
    hidden: tuple[int, ...]
    batch_size: int
    examples: int


SERIES = {
    "batch size": [Case(n, (256, 256), n, 4096) for n in (32, 64, 128, 256, 512, 1024)],
    "width": [Case(n, (n, n), 128, 2560) for n in (64, 128, 256, 512, 1024)],
    "depth": [Case(n, (256,) * n, 128, 2560) for n in (1, 2, 4, 8, 16)],
    "examples": [Case(n, (50, 30), 100, n) for n in (7_500, 15_000, 30_000, 60_000)],
}
EPOCHS = 20


class Part(NamedTuple):
    """A tenth of a long training."""

    steps: int  # in all, after it
    step: float  # µs
    peak: float  # MiB of the process


class Row(NamedTuple):
    """What a case costs."""

    size: int
    step: float  # µs
    work: float  # millions of multiplications in a step
    memory: float  # MiB
    data: float  # MiB


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two sizes and few examples: to try it"
    )
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="new folder for table and picture (default: in runs/)")  # fmt: skip
    args = parser.parse_args()
    folder = new_run_folder(args.out, vars(args))
    # First, while the peak of memory is its own.
    parts = many_steps(1 if args.quick else 100)
    print("| steps of a tiny network | µs a step | peak MiB of the process |\n|---|---|---|")
    for part in parts:
        print(f"| {part.steps:,} | {part.step:.1f} | {part.peak:.1f} |")
    table = {}
    for name, cases in SERIES.items():
        print(f"\n| {name} | µs a step | million multiplications | µs for each million "
              "| MiB beyond the data | MiB of data |\n|---|---|---|---|---|---|")  # fmt: skip
        table[name] = []
        for case in cases[:2] if args.quick else cases:
            row = measure(case._replace(examples=case.examples // 10) if args.quick else case)
            table[name].append(row)
            print(f"| {row.size:,} | {row.step:,.0f} | {row.work:.2f} | {row.step / row.work:.1f} "
                  f"| {row.memory:.2f} | {row.data:.1f} |", flush=True)  # fmt: skip
    memory = memory_over_epochs(3 if args.quick else EPOCHS)
    print("\n| epochs of the small network | MiB held after it |\n|---|---|")
    for epoch in (1, len(memory) // 2, len(memory)):
        print(f"| {epoch} | {memory[epoch - 1]:.3f} |")
    rows = {name: [row._asdict() for row in rows] for name, rows in table.items()}
    steps = [part._asdict() for part in parts]
    write_json(folder / "growth.json", {"series": rows, "epochs": memory, "steps": steps})
    try:
        draw(table, memory, folder)
    except nnxp.MissingExtraError as error:
        print(f"no picture: {error}", file=sys.stderr)
    print(f"files in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def measure(case: Case) -> Row:
    task = peers.Task(case.hidden, case.batch_size, "SGD", "cpu")
    peer = make(task, case.examples)
    step = statistics.median(peers.step_time(peer) for _ in range(5))
    # The first layer's inputs need no gradient; every other layer takes three products.
    sizes = [W.size for W in peer.weights]
    work = case.batch_size * (3 * sum(sizes) - sizes[0]) / 1e6
    tracemalloc.start()
    peer.epoch()
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Row(case.size, step, work, memory / 2**20, peer.examples.dataset.inputs.nbytes / 2**20)


def memory_over_epochs(epochs: int) -> list[float]:
    """Return the MiB that training holds after each epoch, beyond network and data set."""
    peer = make(peers.TASKS["small"], 6000)
    held = []
    tracemalloc.start()
    for _ in range(epochs):
        peer.trainer.fit(peer.examples.dataset, epochs=1, batch_size=100, rng=peer.rng)
        held.append(tracemalloc.get_traced_memory()[0] / 2**20)
    tracemalloc.stop()
    return held


def many_steps(epochs: int) -> list[Part]:
    """Train for ten times so many epochs of 1,000 steps, and return what each tenth cost.

    The network is 4-3-2 with batches of 10 of 10,000 examples; it is evaluated and saved after each
    epoch.
    """
    import resource  # not on Windows

    rng = np.random.default_rng(0)
    dataset = nnxp.data.Dataset(rng.random((10_000, 4)), rng.integers(0, 2, 10_000))
    network = nnxp.mlp([4, 3, 2], rng=rng)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam())
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(10):
            start = time.perf_counter()
            trainer.fit(
                dataset, epochs=epochs, batch_size=10, rng=rng,
                checkpoint=Path(folder) / "tiny.safetensors",
            )  # fmt: skip
            step = (time.perf_counter() - start) / (1000 * epochs) * 1e6
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            scale = 2**20 if sys.platform == "darwin" else 2**10
            parts.append(Part(trainer.optimizer.steps, step, peak / scale))
    return parts


def make(task: peers.Task, examples: int) -> peers.Nnxp:
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (examples, 784), np.uint8)
    return peers.Nnxp(task, inputs, np.arange(examples) % 10)


def draw(table: dict[str, list[Row]], memory: list[float], folder: Path) -> None:
    """Draw each series with the line of the work, and the memory."""
    figure = new_figure(12, 6.4)
    *series, of_data, of_epochs = figure.subplots(2, 3).flat
    for axes, (name, rows) in zip(series, table.items(), strict=True):
        sizes = [row.size for row in rows]
        axes.plot(sizes, [row.step for row in rows], "o-", label="measured")
        last = rows[-1]
        axes.plot(sizes, [row.work / last.work * last.step for row in rows], "--", color="0.6",
                  label="in proportion to the products")  # fmt: skip
        axes.set(xlabel=name, ylabel="µs a step")
        axes.set_ylim(0, 1.3 * max(row.step for row in rows))
        axes.legend(loc="upper left")
    data = table["examples"]
    of_data.plot([row.data for row in data], [row.memory for row in data], "o-")
    of_data.set(xlabel="MiB of data", ylabel="MiB at the peak of an epoch, beyond it")
    of_epochs.plot(range(1, len(memory) + 1), memory, "o-")
    of_epochs.set(xlabel="epoch", ylabel="MiB held after it")
    for axes in (of_data, of_epochs):
        axes.set_ylim(0, 2 * max(memory + [row.memory for row in data]))
    save_figure(figure, folder / "growth.png")


if __name__ == "__main__":
    run(main)
