"""Benchmark: nnxp compared with the bare matrix products and other libraries, in own processes.

In each round the peers take turns, and ratios are computed within rounds, so that a disturbance of
the machine affects both sides. The tables show medians, and the quartiles of ratios.
"""

from __future__ import annotations

from cli import Parser, announce, name_of, optional_output, run, run_worker, spread, whole_number

import argparse
import contextlib
import importlib.metadata
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peers
from benchmark_report import (
    EAGER,
    JAX,
    OURS,
    Report,
    Rounds,
    draw,
    draw_against_cpu,
    not_run,
    number,
    print_crossover,
    print_summary,
    print_table,
)
from benchmark_workers import NotRunError, Worker, run_process
from runs import (
    THREADS,
    add_data_options,
    add_out_option,
    new_run_folder,
    print_files,
    write_json,
)

import nnxp

WAYS = ("nnxp, compiled", "nnxp, captured", "nnxp, plain steps")


class Mode(NamedTuple):
    """How much is measured."""

    rounds: int
    share: float  # of a part's examples
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
    short_steps: int  # with --short
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
        by_batch_size("tiny", 100, 10_000),
        (*WAYS, *EAGER, "PyTorch, compiled", *JAX),
        100,
        100,
        "table",
    ),
    "small": Training(by_optimizer("small", *peers.RATES), DENSE, 600, 150, "mnist"),
    "wide": Training(by_optimizer("wide", *peers.RATES), DENSE, 100, 100, "mnist"),
    "deep": Training(by_optimizer("deep", *peers.RATES), DENSE, 60, 60, "mnist"),
    "lenet": Training(by_batch_size("lenet", 64, 128), IMAGES, 8, 3, "images"),
    "3x3": Training(by_batch_size("3x3", 64, 128), IMAGES, 8, 3, "images"),
    "batch_norm": Training(by_optimizer("batch_norm", "SGD", "Adam"), LAYERS, 100, 25, "mnist"),
    "dropout": Training(by_optimizer("dropout", "SGD", "Adam"), LAYERS, 100, 25, "mnist"),
}
ON_CUDA = (
    "products", "nnxp, captured", "nnxp, plain steps", "PyTorch, fused", "PyTorch, compiled",
    "PyTorch, CUDA graph", "JAX, scan",
)  # fmt: skip
TRAININGS_ON_CUDA = {
    "small": Training(by_optimizer("small", "SGD", "Adam"), ON_CUDA, 600, 150, "mnist"),
    "huge": Training(by_optimizer("huge", "SGD", "Adam"), ON_CUDA, 14, 3, "mnist"),
    "lenet": Training(by_batch_size("lenet", 128), ON_CUDA[1:], 100, 25, "images"),
}
# For parts in which all forms of a library are equal.
PREDICTING = (
    "products", "nnxp", "nnxp, compiled", "PyTorch, fused", "JAX, step", *peers.DENSE_ONLY,
    "onnxruntime",
)  # fmt: skip
STARTING = ("nnxp", "PyTorch, fused", "JAX, step", *peers.DENSE_ONLY)
FITTING = ("nnxp", *WAYS, *EAGER)
WHOLE_TRAININGS = ("nnxp", *OURS[1:], "PyTorch, fused", "PyTorch, channels_last")
IMPORTED = {"nnxp": "nnxp", "PyTorch": "torch", "JAX": "jax", "scikit-learn": "sklearn"}
PREDICTED_ROWS = (1, 100, 10_000)
PREPARED = ("small", "lenet", "wide", "deep")
LENET5_EPOCHS, LENET5_ROUNDS = 10, 3  # of about a minute for each peer
# For the comparison of a GPU with this CPU: batch sizes, and the accuracy to reach.
BATCHES = (16, 64, 256, 1024, 4096, 16384)
ACCURACY = 0.97


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
        """Print the current measurement."""
        minutes, seconds = divmod(int(time.perf_counter() - self.started), 60)
        announce(f"{minutes:2}:{seconds:02} {part}: {what}")

    def train(self, part: str, training: Training) -> None:
        """Measure steps of training."""
        workers = self.workers(part, training.peers, training.data)
        for measure, task in self.measures(training.tasks):
            steps = {WHOLE: training.steps, SHORT: training.short_steps}.get(self.mode, 3)
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
        """Return the tasks to measure: only the first one if the script is only tried."""
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
        """Measure an epoch of `fit` with the small network."""
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
        """Measure imports after NumPy's, each in a new process."""
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
        """Return whether to measure a peer: always nnxp, and the selected others."""
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
            self.report.miss(part, part, f"{folder} has no files with MNIST's names")
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

        Processes of the last part with the same data set are reused.
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
        """End all processes. After an error, they end with this process, in the middle of calls."""
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
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles nnxp again
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
        "isal",
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


if __name__ == "__main__":
    run(main)
