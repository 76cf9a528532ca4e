"""Benchmark: nnxp against the bare matrix products and other libraries, each in its own process.

Within a round the peers take turns, and ratios are computed within rounds, so that a disturbance of
the machine affects both sides. The tables show medians and quartiles.
"""

from __future__ import annotations

from cli import Parser, announce, name_of, optional_output, progress, run, spread

import argparse
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
import time
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
from nnxp.plots import curve_style, new_figure, save_figure

ROUNDS = 7
# One measurement is an epoch of this many steps.
STEPS = {"small": 600, "wide": 100, "deep": 60, "huge": 14}
NETWORKS = {"cpu": ("small", "wide", "deep"), "cuda": ("small", "wide", "deep", "huge")}
EAGER = ("PyTorch, foreach", "PyTorch, fused")
TORCH = (*EAGER, "PyTorch, compiled", "PyTorch, CUDA graph")
JAX = ("JAX, step", "JAX, scan")
ON_CPU = (
    "products",
    "nnxp",
    *EAGER,
    "PyTorch, compiled",
    *JAX,
    "scikit-learn",
    "thinc",
    "tutorial",
)
ON_DEVICE = {"cpu": ON_CPU, "cuda": ("products", "nnxp", "nnxp, plain steps", *TORCH, *JAX)}
# For predictions and cold starts, in which the peers of one library do not differ.
ONE_OF_EACH = (
    "products", "nnxp", "PyTorch, fused", "JAX, step", "scikit-learn", "thinc", "tutorial",
)  # fmt: skip
PREDICTED_ROWS = (1, 100, 10_000)
ACCURACY_TOLERANCE = 0.02  # the order of the examples alone changes it by up to 0.014
COLD_START, PEAK_MEMORY = "cold start to one epoch", "peak memory of the cold start"


class Target(NamedTuple):
    """The largest accepted ratio of nnxp to the fastest peer of a group."""

    measure: str
    against: str  # one of GROUPS
    limits: dict[str, float]  # by the number of cores, ONE or ALL


GROUPS = {
    "the bare products": ("products",),
    "PyTorch, eager": EAGER,
    "JAX, scan": ("JAX, scan",),
    "PyTorch and JAX": TORCH + JAX,
    "PyTorch, CUDA graph": ("PyTorch, CUDA graph",),
    "PyTorch": TORCH,
}
ONE, ALL = "one core", "all cores"
TARGETS = {
    "cpu": [
        Target("small, SGD", "the bare products", {ONE: 1.40}),
        Target("small, SGD", "PyTorch, eager", {ONE: 0.45, ALL: 0.45}),
        Target("small, SGD", "JAX, scan", {ONE: 0.95, ALL: 0.95}),
        Target("small, Adam", "PyTorch, eager", {ONE: 0.50, ALL: 0.50}),
        Target("wide, SGD", "the bare products", {ONE: 1.06, ALL: 1.35}),
        Target("wide, SGD", "PyTorch and JAX", {ONE: 1.0, ALL: 1.0}),
        Target(COLD_START, "PyTorch, eager", {ALL: 0.15}),
        Target(PEAK_MEMORY, "PyTorch, eager", {ALL: 0.4}),
        Target("predict 1 row", "PyTorch, eager", {ONE: 0.5, ALL: 0.5}),
    ],
    "cuda": [
        Target("small, SGD", "PyTorch, eager", {ALL: 0.25}),
        Target("small, SGD", "PyTorch, CUDA graph", {ALL: 1.0}),
        Target("small, SGD", "JAX, scan", {ALL: 1.0}),
        Target("huge, SGD", "the bare products", {ALL: 1.15}),
        Target("huge, SGD", "PyTorch", {ALL: 1.0}),
    ],
}
# For the comparison of a GPU with this CPU: batch sizes, and the accuracy to reach.
BATCHES = (16, 64, 256, 1024, 4096, 16384)
ACCURACY = 0.97

Rounds = dict[str, list[float]]  # a value of each peer for each round


class NotRunError(nnxp.NnxpError):
    """A peer cannot run on this machine."""


class PeerRunner:
    """Trains and times one peer, in a worker process."""

    def __init__(self, name: str) -> None:
        self.new_peer = peers.PEERS[name]

    def load(self, dataset: str, folder: Path | None) -> str:
        """Load the data set and return its name."""
        name, self.train, self.test, _ = load_dataset(dataset, folder)
        return name

    def start(self, task: peers.Task, steps: int) -> None:
        """Build the network and train one epoch, in which libraries compile their functions."""
        rows = min(steps, len(self.train) // task.batch_size) * task.batch_size
        if not rows:
            raise nnxp.InputError(f"{self.train} does not fill a batch of {task.batch_size}")
        self.peer = self.new_peer(task, self.train.inputs[:rows], self.train.labels[:rows])
        self.peer.epoch()

    def step(self) -> float:
        """Return the microseconds of a step."""
        return peers.step_time(self.peer)

    def train_to(self, accuracy: float, device: str) -> tuple[int, float, float]:
        """Train the small network up to an accuracy; return its epochs, seconds and accuracy."""
        peer = self.new_peer(
            peers.TASKS["small"]._replace(device=device), self.train.inputs, self.train.labels
        )
        history = peer.trainer.history
        while not history or (history[-1].validation_accuracy < accuracy and len(history) < 30):
            peer.trainer.fit(
                self.train, epochs=1, batch_size=100, validation=self.test, rng=peer.rng
            )
        seconds = sum(record.seconds for record in history)
        return len(history), seconds, history[-1].validation_accuracy

    def predict(self, rows: int, seconds: float) -> float:
        """Return the microseconds of a prediction of some rows."""
        images = np.resize(self._images(), (rows, self.test.inputs.shape[1]))
        return peers.predict_time(self.peer, images, seconds)

    def accuracy(self) -> float:
        """Return the validation accuracy."""
        scores = self.peer.to_host(self.peer.predict(self.peer.asarray(self._images())))
        return float((scores.argmax(axis=1) == self.test.labels).mean())

    def _images(self) -> np.ndarray:
        return peers.scale_images(self.test.inputs)


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
        The values by number of cores and measure.
    accuracy : dict of dict of dict of float
        The validation accuracy by number of cores, measure and peer.
    missing : dict of str
        Why a peer or a measurement was not run.
    remarks : list of str
        What is striking in the results.
    """

    def __init__(self) -> None:
        self.measured: dict[str, dict[str, Rounds]] = {}
        self.accuracy: dict[str, dict[str, dict[str, float]]] = {}
        self.missing: dict[str, str] = {}
        self.remarks: list[str] = []

    def add(self, cores: str, measure: str, rounds: Rounds, accuracy: dict[str, float]) -> None:
        """Store the rounds of a measure, and print them as a table."""
        self.measured.setdefault(cores, {})[measure] = rounds
        self.accuracy.setdefault(cores, {})[measure] = accuracy
        unit = {COLD_START: "s", PEAK_MEMORY: "MiB"}.get(measure, "µs")
        print(f"\n| {measure}, {cores} | {unit} | nnxp / peer (quartiles) | validation accuracy |")
        print("|---|---|---|---|")
        for name, values in rounds.items():
            ratio = spread(ratios(rounds, (name,)))
            reached = f"{accuracy[name]:.4f}" if name in accuracy else ""
            print(f"| {name} | {statistics.median(values):.4g} | {ratio} | {reached} |", flush=True)

    def check_accuracy(self, task: str, accuracy: dict[str, float]) -> None:
        """Store a remark on each peer whose accuracy differs from the others'."""
        median = statistics.median(accuracy.values())
        self.remarks += [
            f"{name} reached a validation accuracy of {value:.4f} on {task}, and the median is "
            f"{median:.4f}: by chance, unless it differs again in another run"
            for name, value in accuracy.items()
            if abs(value - median) > ACCURACY_TOLERANCE
        ]

    def targets(self, device: str) -> list[dict[str, Any]]:
        """Return each target with the measured ratio, None if it was not measured."""
        rows = []
        for measure, against, limits in TARGETS[device]:
            for cores, limit in limits.items():
                rounds = self.measured.get(cores, {}).get(measure, {})
                measured = ratios(rounds, GROUPS[against])
                ratio = statistics.median(measured) if measured else None
                rows.append(
                    {
                        "measure": measure,
                        "against": against,
                        "cores": cores,
                        "limit": limit,
                        "ratio": ratio,
                        "ratios": measured,
                        "met": None if ratio is None else ratio <= limit,
                    }
                )
        return rows


def main() -> None:
    args = parse()
    requested = {*(args.peers or peers.PEERS), "nnxp"}
    names = [name for name in ON_DEVICE[args.device] if name in requested]
    count = 2 if args.quick else ROUNDS
    # The number of CPU cores has little effect on a GPU's times.
    modes = (ONE, ALL) if args.device == "cpu" else (ALL,)
    device = nnxp.device(args.device)
    folder = new_run_folder(args.out, vars(args))
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['blas']}; {versions}")
    print(f"nnxp on {device.spec}: {device.description}")
    if not args.quick:
        announce("with all peers installed, this takes some 30 minutes")
    report = Report()
    available = available_cores()
    for cores in modes:
        use_cores(cores, available)
        measure_peers(report, cores, names, args, count)
    measure_cold_starts(report, names, args, count)
    if args.device != "cpu":
        try:
            measure_against_cpu(report, args, count, folder)
        except NotRunError as error:
            report.missing["steps by batch size"] = str(error)
    targets = report.targets(args.device)
    print_targets(targets)
    for name, reason in report.missing.items():
        print(f"not run: {name}: {reason}")
    for remark in report.remarks:
        print(f"remark: {remark}")
    results = {
        "machine": machine,
        "device": f"{device.spec}: {device.description}",
        "quick": args.quick,
        "measured": report.measured,
        "accuracy": report.accuracy,
        "targets": targets,
        "not_run": report.missing,
        "remarks": report.remarks,
    }
    write_json(folder / "benchmark.json", results)
    with optional_output():
        title = f"{machine['processor']}, one core" if args.device == "cpu" else device.description
        draw(report.measured[modes[0]], title, folder)
    print_files(folder)


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu",
                        help="where nnxp and its peers train (default: cpu)")  # fmt: skip
    parser.add_argument(
        "--peers", nargs="+", type=name_of("peer", peers.PEERS), metavar="NAME",
        help=f"peers to compare with nnxp, of: {'; '.join(peers.PEERS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two rounds of few steps of the small network, to try the script",
    )
    add_out_option(parser)
    return parser.parse_args()


def measure_peers(
    report: Report, cores: str, names: list[str], args: argparse.Namespace, count: int
) -> None:
    """Measure steps and predictions of all peers on one core or all."""
    workers = {name: Worker(name) for name in names}
    dataset = workers["nnxp"].call("load", args.dataset, args.data_dir)
    print(f"\n{dataset}, {cores}, {count} rounds")
    for name, worker in workers.items():
        if name != "nnxp":
            worker.call("load", dataset, args.data_dir)
    for network in NETWORKS[args.device][: 1 if args.quick else None]:
        for optimizer in ("SGD", "Adam"):
            task = peers.TASKS[network]._replace(optimizer=optimizer, device=args.device)
            start_task(report, workers, task, 3 if args.quick else STEPS[network])
            rounds = in_turn(workers, count, "step")
            accuracy = {
                name: worker.call("accuracy")
                for name, worker in workers.items()
                if name != "products"
            }
            report.add(cores, f"{network}, {optimizer}", rounds, accuracy)
            if not args.quick:  # after a few steps the accuracy is arbitrary
                report.check_accuracy(f"{network}, {optimizer}", accuracy)
            if (network, optimizer) == ("small", "SGD"):
                measure_predictions(report, cores, workers, args, count)
    for worker in workers.values():
        worker.close()


def start_task(report: Report, workers: dict[str, Worker], task: peers.Task, steps: int) -> None:
    """Start a task in all workers, and remove those in which it cannot run."""
    for name, worker in list(workers.items()):
        try:
            worker.call("start", task, steps)
        except NotRunError as error:
            if name == "nnxp":
                raise
            report.missing[name] = str(error)
            workers.pop(name).close()


def measure_predictions(
    report: Report, cores: str, workers: dict[str, Worker], args: argparse.Namespace, count: int
) -> None:
    """Measure predictions of the network that was trained last."""
    predicting = {name: worker for name, worker in workers.items() if name in ONE_OF_EACH}
    for rows in PREDICTED_ROWS:
        rounds = in_turn(predicting, count, "predict", rows, 0.001 if args.quick else 0.05)
        report.add(cores, f"predict {rows} row{'s' if rows > 1 else ''}", rounds, {})


def in_turn(workers: dict[str, Worker], count: int, method: str, *arguments: Any) -> Rounds:
    """Call a method of each worker once per round, in turn, and return all results."""
    rounds: Rounds = {name: [] for name in workers}
    for _ in progress(count, "round"):
        for name, worker in workers.items():
            rounds[name].append(worker.call(method, *arguments))
    return rounds


def measure_cold_starts(
    report: Report, names: list[str], args: argparse.Namespace, count: int
) -> None:
    """Measure whole processes that read MNIST and train the small network for one epoch."""
    try:
        paths = nnxp.data.find_mnist(args.data_dir)
    except nnxp.DataUnavailableError as error:
        report.missing[COLD_START] = str(error)
        return
    folder = Path(os.path.commonpath(paths.values()))
    if any(folder / name != path.with_suffix("") for name, path in paths.items()):
        report.missing[COLD_START] = f"{folder} holds no files of MNIST's own names"
        return
    starting = [
        name
        for name in names
        if name in ONE_OF_EACH and name != "products" and name not in report.missing
    ]
    seconds: Rounds = {name: [] for name in starting}
    memory: Rounds = {name: [] for name in starting}
    for _ in progress(count, "round"):
        for name in starting:
            start = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, peers.__file__, name, folder, args.device],
                process_group=0,  # as in `run_worker`
            )
            # Linux counts the memory of this process for a child until the child executes its own
            # program. That does not raise the child's peak: only the workers hold data sets.
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except KeyboardInterrupt:
                process.kill()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise nnxp.NnxpError(f"the cold start of {name} failed, see above")
            seconds[name].append(time.perf_counter() - start)
            memory[name].append(peers.peak_memory(usage))
    report.add(ALL, COLD_START, seconds, {})
    report.add(ALL, PEAK_MEMORY, memory, {})


def ratios(rounds: Rounds, against: tuple[str, ...]) -> list[float]:
    """Return the ratio of nnxp to the lowest of some peers for each round; [] if none was run."""
    others = [rounds[name] for name in against if name in rounds]
    if not others:
        return []
    return [nnxps / min(values) for nnxps, *values in zip(rounds["nnxp"], *others, strict=True)]


def measure_against_cpu(report: Report, args: argparse.Namespace, count: int, folder: Path) -> None:
    """Measure nnxp on the device and on this CPU, by batch size, and train to an accuracy."""
    workers = {"nnxp": Worker("nnxp"), "nnxp on this CPU": Worker("nnxp")}
    devices = dict(zip(workers, (args.device, "cpu"), strict=True))
    for worker in workers.values():
        worker.call("load", args.dataset, args.data_dir)
    sizes = BATCHES[:2] if args.quick else BATCHES
    medians: dict[str, dict[str, list[float]]] = {}
    for network in ("small", "wide"):
        medians[network] = {name: [] for name in workers}
        for size in sizes:
            for name, worker in workers.items():
                task = peers.TASKS[network]._replace(batch_size=size, device=devices[name])
                worker.call("start", task, 3 if args.quick else max(3, 20_000 // size))
            rounds = in_turn(workers, count, "step")
            report.add(ALL, f"{network}, batch {size}", rounds, {})
            for name, values in rounds.items():
                medians[network][name].append(statistics.median(values))
        print_crossover(network, args.device, sizes, *medians[network].values())
    for name, worker in workers.items():
        epochs, seconds, accuracy = worker.call(
            "train_to", 0.3 if args.quick else ACCURACY, devices[name]
        )
        print(
            f"{name}: validation accuracy {accuracy:.4f} after {epochs} epoch(s) in "
            f"{seconds:.2f} s, evaluations included: {epochs / seconds:.2f} epochs per second"
        )
        worker.close()
    with optional_output():
        draw_against_cpu(sizes, medians, args.device, folder)


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


def print_targets(targets: list[dict[str, Any]]) -> None:
    print("\n| measure | nnxp against | cores | ratio (quartiles) | target | result |")
    print("|---|---|---|---|---|---|")
    for row in targets:
        ratio, result = "", "not measured"
        if row["ratios"]:
            ratio, result = spread(row["ratios"]), "met" if row["met"] else "missed"
        print(
            f"| {row['measure']} | {row['against']} | {row['cores']} | {ratio} "
            f"| ≤ {row['limit']:.2f} | {result} |"
        )


def available_cores() -> set[int]:
    """Return the cores that this process may run on; none if the system cannot restrict them."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def use_cores(cores: str, available: set[int]) -> None:
    """Restrict child processes to one core, or allow all with each library's own default."""
    for name in THREADS:
        os.environ.pop(name, None)
        if cores == ONE:
            os.environ[name] = "1"
    if available:
        os.sched_setaffinity(0, {max(available)} if cores == ONE else available)


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


def draw(measured: dict[str, Rounds], title: str, folder: Path) -> None:
    """Draw the time per step of the small and the wide network as bars, fastest first."""
    figure = new_figure(9, 3.6)
    networks = [network for network in ("small", "wide") if f"{network}, SGD" in measured]
    for axes, network in zip(
        figure.subplots(1, len(networks), squeeze=False).flat, networks, strict=True
    ):
        rounds = measured[f"{network}, SGD"]
        medians = sorted((statistics.median(values), name) for name, values in rounds.items())
        times, names = zip(*medians, strict=True)
        colours = {"nnxp": "C0", "products": "0.4"}
        bars = axes.barh(names, times, color=[colours.get(name, "0.75") for name in names])
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize="small")
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        task = peers.TASKS[network]
        widths = "-".join(map(str, task.hidden))
        axes.set_title(f"{network}: hidden {widths}, batch {task.batch_size}", fontsize="medium")
        axes.set_xlabel("µs per training step")
    figure.suptitle(title, fontsize="medium", parse_math=False)
    save_figure(figure, folder / "benchmark.png")


if __name__ == "__main__":
    run(main)
