"""Measure the exchange between processes beside a step, and model when several processes pay.

``mpiexec -n 2 python -m mpi4py scripts/distributed_cost.py`` measures on two processes, and prints
what a model of a step expects of them and of more. Without mpi4py: one process alone.
"""

from __future__ import annotations

from cli import Parser, name_of, program_ranks, run

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import nnxp
from nnxp.ranks import ONE_RANK, Ranks

RANKS: Ranks = ONE_RANK


class Case(NamedTuple):
    """A network to measure, and the examples of an epoch."""

    make: Callable[[int], nnxp.Sequential]
    shape: tuple[int, ...]
    rows: int


CASES = {
    "small": Case(lambda seed: nnxp.mlp([784, 50, 10], rng=seed), (784,), 25_600),
    "wide": Case(lambda seed: nnxp.mlp([784, 512, 256, 10], rng=seed), (784,), 12_800),
    "lenet": Case(lambda seed: nnxp.lenet(rng=seed), (1, 28, 28), 3_200),
}
BATCH_SIZES = (100, 200, 400)  # of all processes together
ACCUMULATED = (4, 16)  # of batches of 100
EPOCHS = 5  # that are timed
LARGE = 1 << 23  # bytes from which the bandwidth is measured
ON_PAPER = (4, 16, 64, 256, 1000)
WANTED = 0.9  # of a step
# Of a network between machines today: seconds a message, bytes a second.
LATENCY, BANDWIDTH = 2e-6, 12.5e9


class Cost(NamedTuple):
    """What a step of one process takes: seconds whatever the rows, and seconds a row."""

    fixed: float
    row: float

    def step(self, rows: float, exchange: float = 0.0) -> float:
        """Return the seconds of a step of so many rows in each process."""
        return self.fixed + self.row * rows + exchange


def cost_of(times: dict[float, float]) -> Cost:
    """Return the straight line through the seconds of steps by rows, with small relative errors."""
    seconds = np.array(list(times.values()))
    row, fixed = np.polyfit(list(times), seconds, 1, w=1 / seconds)
    return Cost(max(0.0, float(fixed)), float(row))


def exchange_time(ranks: int, nbytes: int, latency: float, bandwidth: float) -> float:
    """Return the seconds of an all-reduce (Thakur et al. 2005, section 4.5).

    Recursive halving and doubling: 2 log2(n) messages, and each rank sends 2 (n - 1) / n of the
    vector.
    """
    if ranks == 1:
        return 0.0
    return 2 * math.log2(ranks) * latency + 2 * (ranks - 1) / ranks * nbytes / bandwidth


def main() -> None:
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "networks", nargs="*", type=name_of("network", CASES), default=list(CASES),
        help=f"those to measure (default: {', '.join(CASES)})",
    )  # fmt: skip
    args = parser.parse_args()
    # All-reduces of 4 bytes are messages alone, and those of many bytes the bandwidth.
    short, long = all_reduce_time(4), all_reduce_time(LARGE)
    n = RANKS.size
    latency = short / (2 * math.log2(n)) if n > 1 else 0.0
    bandwidth = 2 * (n - 1) / n * LARGE / (long - short) if n > 1 else math.inf
    if n > 1:
        print(f"{n} processes: {latency * 1e6:.1f} µs a message, {bandwidth / 1e9:.1f} GB/s")
    for name in args.networks:
        measure(name, CASES[name], latency, bandwidth)


def measure(name: str, case: Case, latency: float, bandwidth: float) -> None:
    n, leads = RANKS.size, RANKS.rank == 0
    nbytes = 4 * sum(x.size for x in case.make(0).parameters().values())
    # Rank 0 has the machine for itself, while the others wait for `exchange`.
    one = {x: step_time(case, x) for x in BATCH_SIZES if leads}
    own = {x: step_time(case, x, Apart(n)) for x in BATCH_SIZES if leads and n > 1}
    accumulated = {a: step_time(case, BATCH_SIZES[0], accumulate=a) for a in ACCUMULATED if leads}
    RANKS.exchange()
    if leads:
        print(f"{name}: {nbytes // 4:,} parameters; one process: {said(one)}")
    if n == 1:
        return
    busy = {x: step_time(case, x, Apart(n)) for x in BATCH_SIZES}
    together = {x: step_time(case, x, RANKS) for x in BATCH_SIZES}
    several = {a: step_time(case, BATCH_SIZES[0], RANKS, accumulate=a) for a in ACCUMULATED}
    exchange = all_reduce_time(nbytes)
    if not leads:
        return
    cost, part = cost_of(one), cost_of({x / n: seconds for x, seconds in own.items()})
    expected = exchange_time(n, nbytes, latency, bandwidth)
    print(f"  all-reduce of {nbytes:,} bytes: {us(exchange)}; the model: {us(expected)}")
    print(f"  a process alone, without an exchange: {said(own)}")
    print(f"  {n} at once, without an exchange: {said(busy)}")
    for x, seconds in together.items():
        model = part.step(x / n, expected)
        print(
            f"  {n} processes, {x} rows: {us(seconds)}; the model: {us(model)}; efficiency "
            f"{one[x] / seconds / n:.0%}; the model: {one[x] / model / n:.0%}"
        )
    for a, seconds in several.items():
        print(
            f"  {n} processes, accumulate={a}: {us(seconds)}; one process: {us(accumulated[a])}; "
            f"efficiency {accumulated[a] / seconds / n:.0%}"
        )
    least = (part.fixed - cost.fixed + expected) / (cost.row * (1 - 1 / n))
    print(f"  the model: {n} processes pay from {math.ceil(max(n, least))} rows")
    paper = {ranks: exchange_time(ranks, nbytes, LATENCY, BANDWIDTH) for ranks in ON_PAPER}
    for rows in (BATCH_SIZES[0], BATCH_SIZES[0] * ACCUMULATED[-1]):
        shares = {ranks: part.step(rows) / part.step(rows, x) for ranks, x in paper.items()}
        line = ", ".join(f"{ranks}: {share:.0%}" for ranks, share in shares.items())
        print(f"  on paper, {rows} rows a process, computation in a step by processes: {line}")
    ranks = ON_PAPER[-1]
    needed = (paper[ranks] * WANTED / (1 - WANTED) - part.fixed) / part.row
    print(
        f"  on paper, {ranks} processes exchange {us(paper[ranks])}, and compute {WANTED:.0%} of a "
        f"step with {math.ceil(max(1, needed))} rows each"
    )


class Apart(Ranks):
    """Ranks that exchange nothing, to time the rest of a step."""

    def __init__(self, size: int) -> None:
        self.size, self.shares_machine = size, True

    def all_reduce(self, vector: object) -> None:
        """Do nothing."""

    def gather(self, text: str, patience: float | None = None) -> list[str]:
        """Return the text as that of all ranks."""
        return [text] * self.size


def said(times: dict[int, float]) -> str:
    """Return times by rows as text."""
    return ", ".join(f"{x} rows {us(seconds)}" for x, seconds in times.items())


def us(seconds: float) -> str:
    """Return seconds as microseconds."""
    return f"{seconds * 1e6:,.0f} µs"


def step_time(
    case: Case, batch_size: int, ranks: Ranks = ONE_RANK, *, accumulate: int = 1
) -> float:
    """Return the seconds of a captured step in `fit`: the median over epochs."""
    trainer = nnxp.Trainer(
        case.make(0), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.01), ranks=ranks, compiled=False
    )
    data = examples(case)
    trainer.fit(data, epochs=1 + EPOCHS, batch_size=batch_size, rng=0, accumulate=accumulate)
    steps = math.ceil(case.rows / (batch_size * accumulate))
    # The first epoch prepares the step.
    return statistics.median(record.seconds for record in trainer.history[1:]) / steps


@functools.cache
def examples(case: Case) -> nnxp.data.Dataset:
    """Return random examples."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (case.rows, *case.shape), np.uint8)
    return nnxp.data.Dataset(inputs, rng.integers(0, 10, case.rows))


def all_reduce_time(nbytes: int) -> float:
    """Return the seconds in which all ranks sum a vector: the median."""
    vector, times = np.zeros(nbytes // 4, np.float32), []
    for _ in range(200):
        RANKS.any(False)  # all start together
        start = time.perf_counter()
        RANKS.all_reduce(vector)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    RANKS = program_ranks()
    run(main, RANKS)
