"""Benchmark: nnxp against the bare matrix products and other libraries, each in its own process.

Within a round the peers take turns, and ratios are computed within rounds, so that a disturbance of
the machine affects both sides. The tables show medians, and of ratios the quartiles too.
"""

from __future__ import annotations

from cli import Parser, announce, name_of, optional_output, run, run_worker, spread, whole_number

import argparse
import contextlib
import importlib.metadata
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peers
from runs import (
    THREADS,
    add_data_options,
    add_out_option,
    load_dataset,
    new_run_folder,
    print_files,
    write_json,
)

import nnxp
from nnxp.data import Dataset
from nnxp.plots import curve_style, new_figure, save_figure

# The ways of nnxp that ratios are given for, in a table that has them.
OURS = ("nnxp", "nnxp, compiled", "nnxp, captured")
WAYS = ("nnxp, compiled", "nnxp, captured", "nnxp, plain steps")
EAGER = ("PyTorch, foreach", "PyTorch, fused")
JAX = ("JAX, step", "JAX, scan")
LIBRARIES = {  # of which the fastest form counts
    "products": ("products",),
    "PyTorch": (*EAGER, "PyTorch, compiled", "PyTorch, CUDA graph"),
    "PyTorch, channels_last": ("PyTorch, channels_last",),
    "JAX": JAX,
}


class Mode(NamedTuple):
    """How much is measured."""

    rounds: int
    share: float  # of the steps of an epoch
    seconds: float  # of a measurement, at least
    left_out: tuple[str, ...] = ()  # peers, and parts unless they are asked for


WHOLE = Mode(7, 1, 0.2)
SHORT = Mode(
    3, 0.25, 0.05,
    ("PyTorch, foreach", "PyTorch, compiled", "JAX, step", "nnxp on JAX", *peers.DENSE_ONLY,
     "lenet5"),
)  # fmt: skip
QUICK = Mode(2, 0, 0.001)


class Training(NamedTuple):
    """A part of the benchmark that measures steps of training."""

    tasks: dict[str, peers.Task]  # by the heads of their columns
    peers: tuple[str, ...]
    steps: int  # in an epoch
    data: str  # "mnist", which --dataset replaces, or one of GENERATED


def by_optimizer(network: str, *optimizers: str) -> dict[str, peers.Task]:
    task = peers.TASKS[network]
    return {name: task._replace(optimizer=name) for name in optimizers}


def by_batch_size(network: str, *sizes: int) -> dict[str, peers.Task]:
    return {f"batch {n:,}": peers.TASKS[network]._replace(batch_size=n) for n in sizes}


DENSE = ("products", *WAYS, *EAGER, "PyTorch, compiled", *JAX, *peers.DENSE_ONLY)
IMAGES = (
    *WAYS, "nnxp on JAX", "PyTorch, fused", "PyTorch, channels_last", "PyTorch, compiled", *JAX,
)  # fmt: skip
LAYERS = (*WAYS, *EAGER, "PyTorch, compiled")
TRAININGS = {
    "tiny": Training(
        by_batch_size("tiny", 100, 10_000), (*WAYS, *EAGER, "PyTorch, compiled", *JAX), 100, "table"
    ),
    "small": Training(by_optimizer("small", *peers.RATES), DENSE, 600, "mnist"),
    "wide": Training(by_optimizer("wide", *peers.RATES), DENSE, 100, "mnist"),
    "deep": Training(by_optimizer("deep", *peers.RATES), DENSE, 60, "mnist"),
    "lenet": Training(by_batch_size("lenet", 64, 128), IMAGES, 8, "images"),
    "3x3": Training(by_batch_size("3x3", 64, 128), IMAGES, 8, "images"),
    "batch_norm": Training(by_optimizer("batch_norm", "SGD", "Adam"), LAYERS, 100, "mnist"),
    "dropout": Training(by_optimizer("dropout", "SGD", "Adam"), LAYERS, 100, "mnist"),
}
ON_CUDA = (
    "products", "nnxp, captured", "nnxp, plain steps", "PyTorch, fused", "PyTorch, compiled",
    "PyTorch, CUDA graph", "JAX, scan",
)  # fmt: skip
TRAININGS_ON_CUDA = {
    "small": Training(by_optimizer("small", "SGD", "Adam"), ON_CUDA, 600, "mnist"),
    "huge": Training(by_optimizer("huge", "SGD", "Adam"), ON_CUDA, 14, "mnist"),
    "lenet": Training(by_batch_size("lenet", 128), ON_CUDA[1:], 100, "images"),
}
# For parts in which the forms of a library do not differ.
PREDICTING = (
    "products", "nnxp", "PyTorch, fused", "JAX, step", *peers.DENSE_ONLY, "onnxruntime",
)  # fmt: skip
STARTING = ("nnxp", "PyTorch, fused", "JAX, step", *peers.DENSE_ONLY)
FITTING = ("nnxp", *WAYS, *EAGER)
WHOLE_TRAININGS = ("nnxp", *OURS[1:], "PyTorch, fused", "PyTorch, channels_last")
IMPORTED = {"nnxp": "nnxp", "PyTorch": "torch", "JAX": "jax", "scikit-learn": "sklearn"}
PREDICTED_ROWS = (1, 100, 10_000)
PREPARED = ("small", "lenet", "wide", "deep")
LENET5_EPOCHS, LENET5_ROUNDS = 10, 3  # of about a minute for each peer
ACCURACY_TOLERANCE = 0.02  # the order of the examples alone changes it by up to 0.014
DRAWN = (
    ("tiny", "batch 100"), ("small", "SGD"), ("wide", "SGD"), ("wide", "Adam"),
    ("huge", "SGD"), ("lenet", "batch 64"),
)  # fmt: skip
ROUNDS_DRAWN = 3  # at least
# For the comparison of a GPU with this CPU: batch sizes, and the accuracy to reach.
BATCHES = (16, 64, 256, 1024, 4096, 16384)
ACCURACY = 0.97

Rounds = dict[str, list[float]]  # a value of each peer for each round


class NotRunError(nnxp.NnxpError):
    """A peer cannot run on this machine."""


def random_table() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(*(rng.normal(size=(10_000, 4)).astype(np.float32) for _ in range(2)))


def random_images() -> Dataset:
    inputs, labels = peers.random_examples(np.random.default_rng(0), 12_800)
    return Dataset(inputs.reshape(-1, 1, 28, 28), labels)


GENERATED = {"table": random_table, "images": random_images}


class PeerRunner:
    """Trains and times one peer, in a worker process."""

    def __init__(self, name: str) -> None:
        self.name, self.new_peer = name, peers.PEERS[name]

    def load(self, dataset: str, folder: Path | None) -> str:
        """Load the data set and return its name."""
        if dataset in GENERATED:
            self.train = self.test = GENERATED[dataset]()
            return dataset
        name, self.train, self.test, _ = load_dataset(dataset, folder)
        return name

    def start(self, task: peers.Task, steps: int) -> None:
        """Build the network and train one epoch, in which libraries compile their functions."""
        rows = min(steps, len(self.train) // task.batch_size) * task.batch_size
        if not rows:
            raise nnxp.InputError(f"{self.train} does not fill a batch of {task.batch_size}")
        self.peer: Any = None  # frees the last one
        self.peer = self.new_peer(task, self.train.inputs[:rows], self.train.labels[:rows])
        self.memory_before = peak_since_reset(reset=True)
        self.peer.epoch()
        expected = self.name.rpartition(", ")[2]
        if isinstance(self.peer, peers.Nnxp) and expected in ("captured", "compiled"):
            way = self.peer.trainer.captured
            if way != expected:
                raise NotRunError(f"the steps are {way}")

    def step(self, seconds: float) -> float:
        """Return the microseconds of a step."""
        return peers.step_time(self.peer, seconds)

    def fit(self) -> float:
        """Return the milliseconds of an epoch with its figures and those of the validation."""
        start = time.perf_counter()
        self.peer.fit(self.test.inputs, self.test.labels)
        return (time.perf_counter() - start) * 1e3

    def train_to(self, accuracy: float, device: str) -> tuple[int, float, float]:
        """Train the small network up to an accuracy; return its epochs, seconds and accuracy."""
        task = peers.TASKS["small"]._replace(device=device)
        peer = self.new_peer(task, self.train.inputs, self.train.labels)
        reached, epochs, start = 0.0, 0, time.perf_counter()
        while reached < accuracy and epochs < 30:
            reached = peer.fit(self.test.inputs, self.test.labels)[-1]
            epochs += 1
        return epochs, time.perf_counter() - start, reached

    def predict(self, rows: int, seconds: float) -> float:
        """Return the microseconds of a prediction of some rows."""
        images = np.resize(self._images(), (rows, self.test.inputs.shape[1]))
        return peers.predict_time(self.peer, images, seconds)

    def accuracy(self) -> float:
        """Return the validation accuracy."""
        scores = self.peer.to_host(self.peer.predict(self.peer.asarray(self._images())))
        return float((scores.argmax(axis=1) == self.test.labels).mean())

    def memory(self) -> float | None:
        """Return the MiB that training took beside network, data and library; None if unknown."""
        peak = peak_since_reset()
        return None if peak is None else peak - self.memory_before

    def prepare(self, network: str, seconds: float) -> tuple[float, float]:
        """Return the microseconds of preparing a step, and those of a plain step."""
        task = peers.TASKS[network]
        images = any(name == "conv" for name, *_ in task.layers)
        inputs, labels = peers.random_examples(np.random.default_rng(0), 10 * task.batch_size)
        inputs = inputs.reshape(-1, 1, 28, 28) if images else inputs
        plain = peers.step_time(peers.Nnxp(task, inputs, labels, capture=False), seconds)
        # Imports what captured steps need; compiled ones import more, which counts.
        other = peers.Task(peers.dense(3), 10)
        peers.Nnxp(other, inputs[:10, ...].reshape(10, -1), labels[:10], compiled=False).epoch()
        peer = self.new_peer(task, inputs[: task.batch_size], labels[: task.batch_size])
        start = time.perf_counter()
        peer.epoch()
        first = (time.perf_counter() - start) * 1e6
        return max(0.0, first - peers.step_time(peer, seconds)), plain

    def _images(self) -> np.ndarray:
        return peers.as_float(self.test.inputs)


def peak_since_reset(*, reset: bool = False) -> float | None:
    """Return the peak memory of this process since the last reset in MiB; None if not on Linux.

    With `reset`, return the memory that is in use.
    """
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Worker:
    """A process with a `PeerRunner`."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._process = context.Process(target=answer_calls, args=(other_end, name), daemon=True)
        # A terminal's signals are for the main process, which ends this one.
        multiprocessing.resource_tracker.ensure_running()  # its start would unblock SIGINT
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        self._process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other_end.close()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the `PeerRunner`, and return its result.

        Raises
        ------
        NotRunError
            If the method raises an error or the process has ended.
        """
        self._connection.send((method, arguments))
        try:
            result, error = self._connection.recv()
        except EOFError:
            error = "its process ended"
        if error:
            raise NotRunError(error)
        return result

    def close(self) -> None:
        self._connection.close()
        self._process.join()


def answer_calls(connection: multiprocessing.connection.Connection, name: str) -> None:
    """Run the calls of a `Worker`, in its process, until the connection is closed."""
    runner = PeerRunner(name)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((getattr(runner, method)(*arguments), None))
        except (nnxp.NnxpError, ImportError, RuntimeError, OSError) as error:
            text = str(error).strip() or type(error).__name__
            connection.send((None, text.splitlines()[0]))


class Report:
    """All results.

    Attributes
    ----------
    measured : dict of dict of Rounds
        The values by part and measure.
    memory : dict of dict of dict of float
        The MiB of a training by part, measure and peer.
    accuracy : dict of dict of dict of float
        The validation accuracy by part, measure and peer.
    missing : dict of dict of str
        Why a peer or a part was not run, by part and peer.
    remarks : list of str
        What is striking in the results.
    """

    def __init__(self) -> None:
        self.measured: dict[str, dict[str, Rounds]] = {}
        self.memory: dict[str, dict[str, dict[str, float]]] = {}
        self.accuracy: dict[str, dict[str, dict[str, float]]] = {}
        self.missing: dict[str, dict[str, str]] = {}
        self.remarks: list[str] = []

    def add(self, part: str, measure: str, rounds: Rounds) -> None:
        self.measured.setdefault(part, {})[measure] = rounds

    def miss(self, part: str, name: str, reason: str) -> None:
        self.missing.setdefault(part, {})[name] = reason

    def print_part(self, part: str, title: str) -> None:
        """Print the medians of a part as a table, and its ratios as one for each way of nnxp."""
        measures = self.measured.get(part, {})
        names = list(dict.fromkeys(name for rounds in measures.values() for name in rounds))
        print_table(
            [title, *measures],
            [[name, *(self.cell(part, measure, name) for measure in measures)] for name in names],
        )
        for ours in (name for name in OURS if name in names):
            rows = [
                [name, *(spread_of(ratios(x, ours, name)) for x in measures.values())]
                for name in names
                if name != ours
            ]
            if rows:
                print_table([f"{part}: {ours} / this (quartiles)", *measures], rows)

    def cell(self, part: str, measure: str, name: str) -> str:
        """Return a median as text, with memory and accuracy if there are any."""
        values = self.measured[part][measure].get(name)
        if not values:
            return ""
        text = number(statistics.median(values))
        memory = self.memory.get(part, {}).get(measure, {}).get(name)
        reached = self.accuracy.get(part, {}).get(measure, {}).get(name)
        extra = [] if memory is None else [f"{memory:.0f} MiB"]
        extra += [] if reached is None else [f"{100 * reached:.1f} %"]
        return f"{text} ({', '.join(extra)})" if extra else text

    def check_accuracy(self, part: str, measure: str, accuracy: dict[str, float]) -> None:
        """Store a remark on each peer whose accuracy differs from the others'."""
        median = statistics.median(accuracy.values())
        self.remarks += [
            f"{name} reached a validation accuracy of {value:.4f} on {part}, {measure}, and the "
            f"median is {median:.4f}: by chance, unless it differs again in another run"
            for name, value in accuracy.items()
            if abs(value - median) > ACCURACY_TOLERANCE
        ]

    def summary(self) -> list[dict[str, Any]]:
        """Return for each measure and way of nnxp the ratios to the fastest form of each library.

        The fastest is the one of the lowest median, and so is the fastest of all others.
        """
        rows = []
        for part, measures in self.measured.items():
            for measure, rounds in measures.items():
                others = [x for x in rounds if not x.startswith("nnxp") and x != "products"]
                groups = LIBRARIES | {"fastest other": tuple(others)}
                for ours in (name for name in OURS if name in rounds):
                    row: dict[str, Any] = {"part": part, "measure": measure, "nnxp": ours}
                    for library, forms in groups.items():
                        found = [form for form in forms if form in rounds]
                        if found:
                            fastest = min(found, key=lambda x: statistics.median(rounds[x]))
                            row[library] = [fastest, ratios(rounds, ours, fastest)]
                    if len(row) > 3:
                        rows.append(row)
        return rows


def ratios(rounds: Rounds, ours: str, name: str) -> list[float]:
    """Return the ratio of nnxp to a peer for each round; [] if one of them was not run."""
    if ours not in rounds or name not in rounds:
        return []
    return [a / b for a, b in zip(rounds[ours], rounds[name], strict=True)]


def spread_of(values: list[float]) -> str:
    return spread(values) if values else ""


def number(value: float) -> str:
    """Return a number as text with three or more digits, without an exponent."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    lines.insert(1, "|---" * len(heads) + "|")
    print("", *lines, sep="\n", flush=True)


class Benchmark:
    """Measures the parts."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.mode = QUICK if args.quick else SHORT if args.short else WHOLE
        self.rounds = args.rounds or self.mode.rounds
        self.cores = "one core" if args.threads == "one" else "all cores"
        self.report = Report()
        self.started = time.perf_counter()
        self.pool: dict[str, Worker] = {}
        self.data = ""  # of the workers in the pool

    def run_part(self, part: str) -> None:
        """Measure a part and print its tables."""
        trainings = TRAININGS if self.args.device == "cpu" else TRAININGS_ON_CUDA
        if part not in (*trainings, "predict", "fit"):
            self.close_workers()
        if part in trainings:
            self.train(part, trainings[part])
        else:
            OTHER_PARTS[part](self, part)

    def tell(self, part: str, what: str) -> None:
        """Print what is measured now."""
        minutes, seconds = divmod(int(time.perf_counter() - self.started), 60)
        announce(f"{minutes:2}:{seconds:02} {part}: {what}")

    def train(self, part: str, training: Training) -> None:
        """Measure steps of training."""
        workers = self.workers(part, training.peers, training.data)
        for measure, task in self.measures(training.tasks):
            steps = max(3, int(training.steps * self.mode.share))
            started = self.start(part, measure, workers, task, steps)
            rounds = self.in_turn(part, measure, started, "step", self.mode.seconds)
            self.report.add(part, measure, rounds)
            if training.data == "images" and self.args.device == "cpu":
                self.report.memory.setdefault(part, {})[measure] = {
                    name: mebibytes
                    for name, worker in started.items()
                    if (mebibytes := worker.call("memory")) is not None
                }
            if training.data == "mnist" and self.mode is WHOLE:
                # After few steps the accuracy is arbitrary.
                accuracy = {
                    name: worker.call("accuracy")
                    for name, worker in started.items()
                    if name != "products"
                }
                self.report.accuracy.setdefault(part, {})[measure] = accuracy
                self.report.check_accuracy(part, measure, accuracy)
        self.report.print_part(part, f"{part}, {self.cores}, µs a step")

    def measures(self, tasks: dict[str, peers.Task]) -> list[tuple[str, peers.Task]]:
        """Return the tasks to measure: the first alone if the script is only tried."""
        return list(tasks.items())[: 1 if self.mode is QUICK else None]

    def predict(self, part: str) -> None:
        """Measure predictions of the small network."""
        workers = self.workers(part, PREDICTING, "mnist")
        started = self.start(part, "small", workers, peers.TASKS["small"], 10)
        for rows in PREDICTED_ROWS:
            measure = f"{rows:,} row{'s' if rows > 1 else ''}"
            seconds = min(self.mode.seconds, 0.05)
            rounds = self.in_turn(part, measure, started, "predict", rows, seconds)
            self.report.add(part, measure, rounds)
        self.report.print_part(part, f"{part}, {self.cores}, µs")

    def fit(self, part: str) -> None:
        """Measure an epoch of the small network as a user gets it."""
        steps = 3 if self.mode is QUICK else 600
        measure = f"{steps} steps"
        workers = self.workers(part, FITTING, "mnist")
        started = self.start(part, measure, workers, peers.TASKS["small"], steps)
        for worker in started.values():
            worker.call("fit")  # prepares what evaluations need
        self.report.add(part, measure, self.in_turn(part, measure, started, "fit"))
        self.report.print_part(
            part, f"{part}: small, an epoch with figures and validation, {self.cores}, ms"
        )

    def prepare(self, part: str) -> None:
        """Measure how long the preparation of a step takes, each in a new process."""
        heads = {
            "captured": "nnxp, captured",
            "compiled, for the first time": "nnxp, compiled",
            "compiled, again": "nnxp, compiled",
        }
        networks = PREPARED[: 1 if self.mode is QUICK else 2 if self.mode is SHORT else None]
        results: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for network in networks:
            self.tell(part, f"{network}, {self.rounds} rounds")
            measured = results[network] = {head: [] for head in heads}
            for _ in range(self.rounds):
                with tempfile.TemporaryDirectory() as cache, self.cache_folder(cache):
                    for head, name in heads.items():
                        worker = Worker(name)
                        try:
                            times = worker.call("prepare", network, self.mode.seconds)
                            measured[head].append(times)
                        except NotRunError as error:
                            self.report.miss(part, name, str(error))
                        worker.close()
        for head in heads:
            if any(results[network][head] for network in networks):
                for network in networks:
                    values = [a for a, _ in results[network][head]]
                    self.report.measured.setdefault(part, {}).setdefault(network, {})[head] = values
        rows = [
            [head, *(
                f"{number(statistics.median(a for a, _ in x) / 1e3)} ms, "
                f"{spread([a / plain for a, plain in x])}" if (x := results[network][head]) else ""
                for network in networks
            )]
            for head in heads
        ]  # fmt: skip
        print_table([f"{part}: ms, and in plain steps (quartiles)", *networks], rows)

    @contextlib.contextmanager
    def cache_folder(self, folder: str) -> Iterator[None]:
        """Let child processes have another folder for the user's caches."""
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = folder
        try:
            yield
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before

    def imports(self, part: str) -> None:
        """Measure imports, each in a new process, beyond that of NumPy."""
        asked = self.args.peers
        rounds: Rounds = {
            name: []
            for name in IMPORTED
            if asked is None or name == "nnxp" or any(peer.startswith(name) for peer in asked)
        }
        self.tell(part, f"{self.rounds} rounds")
        for round_number in range(-1, self.rounds):  # the first compiles to bytecode
            for name in list(rounds):
                module = IMPORTED[name]
                code = (
                    "import time, numpy\n"
                    "start = time.perf_counter()\n"
                    "try:\n"
                    f"    import {module}\n"
                    "    print((time.perf_counter() - start) * 1e3)\n"
                    "except ImportError:\n"
                    "    print('null')\n"
                )
                command = [sys.executable, "-c", code]
                taken = run_worker(command, os.environ, f"the import of {module} failed")
                if taken is None:
                    self.report.miss(part, name, f"{module} is not installed")
                    del rounds[name]
                elif round_number >= 0:
                    rounds[name].append(taken)
        self.report.add(part, "after NumPy", rounds)
        self.report.print_part(part, f"{part}, ms")

    def wants(self, name: str) -> bool:
        """Return whether to measure a peer: nnxp always, and others as asked for."""
        if self.args.device == "cuda" and name in peers.DENSE_ONLY:
            return False
        if self.args.peers is None:
            return name not in self.mode.left_out
        return name in ("nnxp", *WAYS, *self.args.peers)

    def cold(self, part: str) -> None:
        """Measure whole processes that read MNIST and train the small network for one epoch."""
        self.processes(part, STARTING, "small", 1, self.rounds)

    def lenet5(self, part: str) -> None:
        """Measure whole processes that read MNIST and train LeNet5."""
        epochs = 1 if self.mode is not WHOLE else LENET5_EPOCHS
        rounds = self.args.rounds or min(LENET5_ROUNDS, self.rounds)
        self.processes(part, WHOLE_TRAININGS, "lenet5", epochs, rounds)

    def processes(
        self, part: str, names: tuple[str, ...], task: str, epochs: int, rounds: int
    ) -> None:
        """Measure whole processes that train on MNIST's files."""
        try:
            paths = nnxp.data.find_mnist(self.args.data_dir)
        except nnxp.DataUnavailableError as error:
            self.report.miss(part, part, str(error))
            return
        folder = Path(os.path.commonpath(paths.values()))
        if any(folder / name != path.with_suffix("") for name, path in paths.items()):
            self.report.miss(part, part, f"{folder} holds no files of MNIST's own names")
            return
        seconds: Rounds = {name: [] for name in names if self.wants(name)}
        peaks: Rounds = {name: [] for name in seconds}
        for round_number in range(rounds):
            for name in list(seconds):
                self.tell(part, f"round {round_number + 1} of {rounds}, {name}")
                try:
                    taken, peak = run_process(name, folder, task, epochs, self.args.device)
                except NotRunError as error:
                    if name == "nnxp":
                        raise
                    self.report.miss(part, name, str(error))
                    del seconds[name], peaks[name]
                    continue
                seconds[name].append(taken)
                peaks[name].append(peak)
        what = f"{epochs} epoch{'s' if epochs > 1 else ''}"
        self.report.add(part, f"{what}, s", seconds)
        self.report.add(part, "peak memory, MiB", peaks)
        self.report.print_part(part, f"{part}: {task}, whole process, {self.cores}")

    def batches(self, part: str) -> None:
        """Measure nnxp on the device and on this CPU, by batch size, and train to an accuracy."""
        workers = {"nnxp": Worker("nnxp"), "nnxp on this CPU": Worker("nnxp")}
        devices = dict(zip(workers, (self.args.device, "cpu"), strict=True))
        for worker in workers.values():
            worker.call("load", self.args.dataset, self.args.data_dir)
        sizes = BATCHES[:2] if self.mode is QUICK else BATCHES
        medians: dict[str, dict[str, list[float]]] = {}
        for network in ("small", "wide"):
            medians[network] = {name: [] for name in workers}
            for size in sizes:
                for name, worker in workers.items():
                    self.tell(part, f"{network}, batch {size:,}, {name} starts")
                    task = peers.TASKS[network]._replace(batch_size=size, device=devices[name])
                    worker.call("start", task, max(3, int(self.mode.share * 20_000 // size)))
                measure = f"{network}, batch {size:,}"
                rounds = self.in_turn(part, measure, workers, "step", self.mode.seconds)
                self.report.add(part, measure, rounds)
                for name, values in rounds.items():
                    medians[network][name].append(statistics.median(values))
        self.report.print_part(part, f"{part}, µs a step")
        for network, lines in medians.items():
            print_crossover(network, self.args.device, sizes, *lines.values())
        for name, worker in workers.items():
            epochs, seconds, accuracy = worker.call(
                "train_to", 0.3 if self.mode is QUICK else ACCURACY, devices[name]
            )
            print(
                f"{name}: validation accuracy {accuracy:.4f} after {epochs} epoch(s) in "
                f"{seconds:.2f} s, evaluations included: {epochs / seconds:.2f} epochs per second"
            )
            worker.close()
        with optional_output():
            draw_against_cpu(sizes, medians, self.args.device, self.folder)

    def workers(self, part: str, names: tuple[str, ...], data: str) -> dict[str, Worker]:
        """Return a process with the data set for each peer that is wanted.

        Those of the last part with the same data set are used again.
        """
        if data != self.data:
            self.close_workers()
            self.data = data
        new = [name for name in names if self.wants(name) and name not in self.pool]
        if new:
            self.tell(part, "loading data")
        for name in new:
            worker = self.pool[name] = Worker(name)
            dataset = self.args.dataset if data == "mnist" else data
            try:
                dataset = worker.call("load", dataset, self.args.data_dir)
            except NotRunError as error:
                raise nnxp.DataUnavailableError(str(error)) from None
            if data == "mnist":
                self.args.dataset = dataset  # which was found, if it was "auto"
        return {name: self.pool[name] for name in names if name in self.pool}

    def close_workers(self) -> None:
        """End all processes. After an error they end with this process, and finish no call."""
        for worker in self.pool.values():
            worker.close()
        self.pool.clear()

    def start(
        self, part: str, measure: str, workers: dict[str, Worker], task: peers.Task, steps: int
    ) -> dict[str, Worker]:
        """Start a task; return the workers in which it runs, and remove the others."""
        started = {}
        for name, worker in list(workers.items()):
            if name in peers.DENSE_ONLY and task.optimizer not in ("SGD", "Adam"):
                continue
            self.tell(part, f"{measure}, {name} starts")
            try:
                worker.call("start", task._replace(device=self.args.device), steps)
                started[name] = worker
            except NotRunError as error:
                if name == "nnxp":
                    raise
                self.report.miss(part, name, str(error))
                workers.pop(name)
                self.pool.pop(name).close()
        return started

    def in_turn(
        self, part: str, measure: str, workers: dict[str, Worker], method: str, *arguments: Any
    ) -> Rounds:
        """Call a method of each worker once per round, in turn, and return all results."""
        self.tell(part, f"{measure}, {self.rounds} rounds")
        rounds: Rounds = {name: [] for name in workers}
        for _ in range(self.rounds):
            for name, worker in workers.items():
                rounds[name].append(worker.call(method, *arguments))
        return rounds


OTHER_PARTS: dict[str, Callable[[Benchmark, str], None]] = {
    "predict": Benchmark.predict,
    "fit": Benchmark.fit,
    "prepare": Benchmark.prepare,
    "import": Benchmark.imports,
    "cold": Benchmark.cold,
    "lenet5": Benchmark.lenet5,
    "batches": Benchmark.batches,
}
PARTS = {  # those with the same data follow each other
    "cpu": [
        "tiny", "small", "wide", "deep", "batch_norm", "dropout", "predict", "fit", "lenet", "3x3",
        "prepare", "import", "cold", "lenet5",
    ],
    "cuda": [*TRAININGS_ON_CUDA, "cold", "batches"],
}  # fmt: skip


def main() -> None:
    args = parse()
    device = nnxp.device(args.device)
    folder = new_run_folder(args.out, vars(args))
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['blas']}; {versions}")
    print(f"nnxp on {device.spec}: {device.description}")
    benchmark = Benchmark(args, folder)
    report = benchmark.report
    parts = args.only or [x for x in PARTS[args.device] if x not in benchmark.mode.left_out]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles nnxp anew
    use_cores(args.threads)
    if benchmark.mode is WHOLE:
        announce("all parts with all peers take more than an hour; --short takes five minutes")
    for index, part in enumerate(parts, start=1):
        benchmark.tell(part, f"part {index} of {len(parts)}")
        try:
            benchmark.run_part(part)
        except NotRunError as error:
            report.miss(part, part, str(error))
        results = {
            "machine": machine,
            "device": f"{device.spec}: {device.description}",
            "cores": benchmark.cores,
            "mode": "quick" if args.quick else "short" if args.short else "whole",
            "measured": report.measured,
            "memory": report.memory,
            "accuracy": report.accuracy,
            "summary": report.summary(),
            "not_run": report.missing,
            "remarks": report.remarks,
        }
        write_json(folder / "benchmark.json", results)
    benchmark.close_workers()
    print_summary(results["summary"])
    for line in not_run(report.missing):
        print(f"not run: {line}")
    for remark in report.remarks:
        print(f"remark: {remark}")
    where = benchmark.cores if args.device == "cpu" else device.description
    title = f"{machine['processor']}, {where}" if args.device == "cpu" else where
    with optional_output():
        draw(report.measured, title, folder)
    print_files(folder)


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                        help="where nnxp and its peers train (default: cpu)")  # fmt: skip
    known = list(dict.fromkeys(PARTS["cpu"] + PARTS["cuda"]))
    parser.add_argument("--only", nargs="+", type=name_of("part", known), metavar="PART",
                        help=f"parts to measure, of: {', '.join(known)} (default: all that the "
                        "device has)")  # fmt: skip
    parser.add_argument("--threads", choices=("one", "all"),
                        help="cores to use; with all, each library has its own default (default: "
                        "one, and all beside a GPU)")  # fmt: skip
    parser.add_argument(
        "--short",
        action="store_true",
        help="fewer rounds, steps and peers: five minutes on two cores",
    )
    parser.add_argument(
        "--rounds",
        type=whole_number,
        help=f"rounds (default: {WHOLE.rounds}, with --short {SHORT.rounds})",
    )
    parser.add_argument(
        "--peers", nargs="+", type=name_of("peer", peers.PEERS), metavar="NAME",
        help=f"peers to compare nnxp with, of: {'; '.join(peers.PEERS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of few steps, to try the script"
    )
    add_out_option(parser)
    args = parser.parse_args()
    args.threads = args.threads or ("one" if args.device == "cpu" else "all")
    if unknown := [part for part in args.only or () if part not in PARTS[args.device]]:
        parser.error(f"--device {args.device} has no part {', '.join(unknown)}; it has "
                     f"{', '.join(PARTS[args.device])}")  # fmt: skip
    return args


def run_process(
    name: str, folder: Path, task: str, epochs: int, device: str
) -> tuple[float, float]:
    """Return the seconds and the peak MiB of a process that trains a peer on MNIST's files."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, peers.__file__, name, folder, task, str(epochs), device],
        stderr=subprocess.PIPE, text=True, process_group=0,  # as in `run_worker`
    )  # fmt: skip
    # Linux counts the memory of this process for a child until the child executes its own
    # program. That does not raise the child's peak: only the workers hold data sets.
    try:
        assert process.stderr is not None
        printed = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        process.kill()
        raise
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise NotRunError((printed.strip().splitlines() or ["its process ended"])[-1])
    return seconds, peers.peak_memory(usage)


def print_summary(rows: list[dict[str, Any]]) -> None:
    """Print nnxp's ratios to the fastest form of each library."""
    heads = [*LIBRARIES, "fastest other"]
    used = [head for head in heads if any(head in row for row in rows)]
    if not rows:
        return
    print("\nnnxp / the fastest form of each library, and / the fastest of all others:")
    lines = []
    for row in rows:
        cells = [f"{spread(row[head][1])}, {row[head][0]}" if head in row else "" for head in used]
        lines.append([f"{row['part']}, {row['measure']}", row["nnxp"], *cells])
    print_table(["measure", "nnxp", *used], lines)


def not_run(missing: dict[str, dict[str, str]]) -> list[str]:
    """Return a line for each peer or part that was not run, and why."""
    parts: dict[tuple[str, str], list[str]] = {}
    for part, reasons in missing.items():
        for name, reason in reasons.items():
            parts.setdefault((name, reason), []).append(part)
    return [
        f"{name}: {reason}" if found == [name] else f"{name} in {', '.join(found)}: {reason}"
        for (name, reason), found in parts.items()
    ]


def print_crossover(
    network: str, device: str, sizes: tuple[int, ...], on_device: list[float], on_cpu: list[float]
) -> None:
    """Print the batch size from which the device is faster at this size and all larger ones."""
    faster = [a < b for a, b in zip(on_device, on_cpu, strict=True)]
    first = next((size for i, size in enumerate(sizes) if all(faster[i:])), None)
    print(f"\n{network}: {device} is faster than this CPU from batch size {first or '(none)'}")


def draw_against_cpu(
    sizes: tuple[int, ...], medians: dict[str, dict[str, list[float]]], device: str, folder: Path
) -> None:
    """Draw the time per step by batch size, on the device and on this CPU."""
    figure = new_figure(9, 3.6)
    for axes, (network, lines) in zip(
        figure.subplots(1, len(medians), squeeze=False).flat, medians.items(), strict=True
    ):
        for number, (times, label) in enumerate(
            zip(lines.values(), (device, "this CPU"), strict=True)
        ):
            axes.loglog(sizes, times, label=label, **curve_style(number))
        axes.set_title(network, fontsize="medium")
        axes.set_xlabel("batch size")
        axes.set_ylabel("µs per training step")
        axes.legend()
    save_figure(figure, folder / "batches.png")


def available_cores() -> set[int]:
    """Return the cores that this process may run on; none if the system cannot restrict them."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def use_cores(threads: str) -> None:
    """Restrict child processes to one core, or allow all with each library's own default."""
    for name in THREADS:
        os.environ.pop(name, None)
    if threads == "all":
        return
    os.environ |= dict.fromkeys(THREADS, "1")
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    if cores := available_cores():
        os.sched_setaffinity(0, {max(cores)})


def describe_machine() -> dict[str, Any]:
    processor = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = lines[0].partition(":")[2].strip() if lines else processor
    versions = {"python": platform.python_version(), "nnxp": nnxp.__version__}
    for package in (
        "numpy",
        "cupy-cuda12x",
        "cupy-cuda13x",
        "torch",
        "jax",
        "scikit-learn",
        "thinc",
        "llvmlite",
        "onnxruntime",
    ):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "processor": processor,
        "cores": len(available_cores()) or os.cpu_count(),
        "platform": platform.platform(),
        "blas": f"{blas['name']} {blas['version']}",
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def draw(measured: dict[str, dict[str, Rounds]], title: str, folder: Path) -> None:
    """Draw the time per step as bars, fastest first, of what was measured well enough to show."""
    panels = [
        (part, measure, rounds)
        for part, measure in DRAWN
        if (rounds := measured.get(part, {}).get(measure))
        and any(not name.startswith("nnxp") for name in rounds)
        and min(map(len, rounds.values())) >= ROUNDS_DRAWN
    ]
    if not panels:
        announce(f"no picture: it shows steps of {ROUNDS_DRAWN} or more rounds beside other peers")
        return
    columns = min(3, len(panels))
    figure = new_figure(4.5 * columns, 3.6 * -(-len(panels) // columns))
    axes_of = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat
    for axes, (part, measure, rounds) in zip(axes_of, panels, strict=False):
        medians = sorted((statistics.median(values), name) for name, values in rounds.items())
        times, names = zip(*medians, strict=True)
        colours = ["C0" if x.startswith("nnxp") else "0.4" if x == "products" else "0.75"
                   for x in names]  # fmt: skip
        bars = axes.barh(names, times, color=colours)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize="small")
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"{part}, {measure}", fontsize="medium")
        axes.set_xlabel("µs per training step")
    for axes in figure.axes[len(panels) :]:
        axes.remove()
    figure.suptitle(title, fontsize="medium", parse_math=False)
    save_figure(figure, folder / "benchmark.png")


if __name__ == "__main__":
    run(main)
