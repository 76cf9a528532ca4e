"""Measure steps and the exchange between processes, and model when several processes are faster.

``mpiexec -n 2 python -m mpi4py scripts/distributed_cost.py`` measures on two processes, and prints
what a model of a step predicts for two and for more processes. Without mpi4py, it measures one
process.
"""

from __future__ import annotations

from cli import Parser, program_ranks, run, whole_number

import math
import statistics
import time
from typing import NamedTuple

import numpy as np

import nnxp
from nnxp.ranks import ONE_RANK, Ranks

RANKS: Ranks = ONE_RANK
NETWORKS = {
    "small": lambda rng: nnxp.mlp([784, 50, 10], rng=rng),
    "wide": lambda rng: nnxp.mlp([784, 512, 256, 10], rng=rng),
    "lenet": lambda rng: nnxp.lenet(rng=rng),
}
ROWS = 6000
ON_PAPER = (4, 16, 64, 256, 1000)
# A current interconnect: seconds per message, bytes per second.
LATENCY, BANDWIDTH = 2e-6, 12.5e9


class Cost(NamedTuple):
    """The time of a step: fixed seconds, and seconds per row."""

    fixed: float
    row: float

    def step(self, rows: float, exchange: float = 0.0) -> float:
        """Return the seconds of a step of this many rows."""
        return self.fixed + self.row * rows + exchange


def exchange_time(ranks: int, nbytes: int, latency: float, bandwidth: float) -> float:
    """Return the seconds of an all-reduce (Thakur et al. 2005, section 4.5).

    Recursive halving and doubling needs 2 log2(n) messages, and each rank sends 2 (n - 1) / n of
    the vector.
    """
    if ranks == 1:
        return 0.0
    return 2 * math.log2(ranks) * latency + 2 * (ranks - 1) / ranks * nbytes / bandwidth


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--batch-size", type=whole_number, default=100, help="rows of a global batch (default: 100)"
    )
    parser.add_argument(
        "--epochs", type=whole_number, default=7, help="epochs that are timed (default: 7)"
    )
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    for name, make in NETWORKS.items():
        measure(name, make, args.batch_size, args.epochs, rng)


def measure(name: str, make: object, batch_size: int, epochs: int, rng: object) -> None:
    # Only rank 0 computes; the others wait.
    sizes = [batch_size // 2, batch_size, 4 * batch_size]
    times = {n: step_time(make, n, epochs, ONE_RANK) if RANKS.rank == 0 else 0.0 for n in sizes}
    RANKS.exchange()
    nbytes = 4 * sum(x.size for x in make(np.random.default_rng(0)).parameters().values())
    short, exchange = all_reduce_time(4), all_reduce_time(nbytes)
    several = {n: step_time(make, n, epochs, RANKS) for n in sizes} if RANKS.size > 1 else {}
    if RANKS.rank:
        return
    row = (times[sizes[2]] - times[sizes[0]]) / (sizes[2] - sizes[0])
    cost = Cost(max(0.0, times[sizes[0]] - row * sizes[0]), row)
    print(f"{name}: {nbytes / 4:,.0f} parameters; a step of one process: "
          + ", ".join(f"{n} rows {x * 1e6:,.0f} µs" for n, x in times.items()))  # fmt: skip
    if RANKS.size == 1:
        return
    print(f"  all-reduce on {RANKS.size} processes: 4 bytes {short * 1e6:.1f} µs, the gradients "
          f"({nbytes:,} bytes) {exchange * 1e6:,.0f} µs")  # fmt: skip
    for n, x in several.items():
        expected = cost.step(n / RANKS.size, exchange)
        print(f"  {n} rows on {RANKS.size} processes: {x * 1e6:,.0f} µs, the model "
              f"{expected * 1e6:,.0f} µs; efficiency {times[n] / x / RANKS.size:.0%}")  # fmt: skip
    for accumulate in (1, 16):
        rows = accumulate * batch_size  # a rank's
        line = []
        for ranks in ON_PAPER:
            t = cost.step(rows, exchange_time(ranks, nbytes, LATENCY, BANDWIDTH))
            line.append(f"{ranks}: {cost.step(rows) / t:.0%}")
        print(f"  on paper, {rows} rows a rank, efficiency by ranks: {', '.join(line)}")


def step_time(make: object, batch_size: int, epochs: int, ranks: Ranks) -> float:
    """Return the seconds of a captured step, as median over the epochs."""
    rng = np.random.default_rng(0)
    network = make(rng)
    shape = (1, 28, 28) if isinstance(network[0], nnxp.Conv2D) else (784,)
    inputs = rng.integers(0, 256, (ROWS, *shape), np.uint8)
    data = nnxp.data.Dataset(inputs, rng.integers(0, 10, ROWS))
    trainer = nnxp.Trainer(
        network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.01), ranks=ranks, compiled=False
    )
    batches = nnxp.data.Batches(data, batch_size, device="cpu", dtype="float32", rng=rng)
    times = []
    for _ in range(epochs + 1):  # the first epoch prepares the step and is not counted
        ranks.exchange()
        start = time.perf_counter()
        trainer.train_epoch(batches)
        times.append((time.perf_counter() - start) / len(batches))
    return statistics.median(times[1:])


def all_reduce_time(nbytes: int) -> float:
    """Return the median seconds of an all-reduce of a vector."""
    vector, times = np.zeros(nbytes // 4, np.float32), []
    for _ in range(200):
        RANKS.any(False)  # synchronizes the ranks
        start = time.perf_counter()
        RANKS.all_reduce(vector)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    RANKS = program_ranks()
    run(main, RANKS)
