"""Measure nnxp against the bare matrix products and other libraries, each in its own process.

Within a round all take their turn, so ratios are computed within rounds: what slows the machine
down for a while slows both down. Reported are the medians over the rounds, and the quartiles.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import multiprocessing
import multiprocessing.connection
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
from cli import Parser, name_of, run, spread
from runs import THREADS, add_data_options, load_dataset, new_run_folder, write_json

import nnxp
from nnxp.data.mnist import find_mnist
from nnxp.plots import new_figure, save_figure

ROUNDS = 7
# An epoch of this many steps is one measurement.
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
# The others of a library predict, and start, as these do.
ONE_OF_EACH = (
    "products", "nnxp", "PyTorch, fused", "JAX, step", "scikit-learn", "thinc", "tutorial",
)  # fmt: skip
PREDICTED_ROWS = (1, 100, 10_000)
ACCURACY_TOLERANCE = 0.02  # other orders of the same examples alone move it by up to 0.014
COLD_START, PEAK_MEMORY = "cold start to one epoch", "peak memory of that"


class Target(NamedTuple):
    """The largest ratio wanted of nnxp to the fastest of some peers."""

    measure: str
    against: str  # one of GROUPS
    limits: dict[str, float]


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
# The batches over which a GPU is compared with this CPU, and the accuracy that is trained to.
BATCHES = (16, 64, 256, 1024, 4096, 16384)
ACCURACY = 0.97

Rounds = dict[str, list[float]]  # the values of each peer, one for each round


class NotRunError(nnxp.NnxpError):
    """A peer cannot run here."""


class Session:
    """A peer's side of the measurement, in a process of its own."""

    def __init__(self, name: str) -> None:
        self.make = peers.PEERS[name]

    def load(self, dataset: str, folder: Path | None) -> str:
        """Load the data set and return its name."""
        name, self.train, self.test, _ = load_dataset(dataset, folder)
        return name

    def start(self, task: peers.Task, steps: int) -> None:
        """Build the network and train an epoch, in which libraries compile what they compile."""
        rows = min(steps, len(self.train) // task.batch_size) * task.batch_size
        if not rows:
            raise nnxp.InputError(f"{self.train} does not fill a batch of {task.batch_size}")
        self.peer = self.make(task, self.train.inputs[:rows], self.train.labels[:rows])
        self.peer.epoch()

    def step(self) -> float:
        return peers.step_time(self.peer)

    def train_to(self, accuracy: float, device: str) -> tuple[int, float, float]:
        """Return epochs, seconds and accuracy of training the small network to an accuracy."""
        peer = self.make(
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
        images = np.resize(self._images(), (rows, self.test.inputs.shape[1]))
        return peers.predict_time(self.peer, images, seconds)

    def accuracy(self) -> float:
        """Return the share of test images whose largest score is at their label."""
        scores = self.peer.host(self.peer.predict(self.peer.ready(self._images())))
        return float((scores.argmax(axis=1) == self.test.labels).mean())

    def _images(self) -> np.ndarray:
        return peers.scale_images(self.test.inputs)


class Worker:
    """The process of a peer, as seen from here."""

    def __init__(self, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Return what a method of its `Session` returns."""
        self._connection.send((method, arguments))
        try:
            answer, reason = self._connection.recv()
        except EOFError:
            reason = "its process ended"
        if reason:
            raise NotRunError(reason)
        return answer

    def close(self) -> None:
        self._connection.close()
        self._process.join()


def serve(connection: multiprocessing.connection.Connection, name: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the main process, and that this one
    session = Session(name)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((getattr(session, method)(*arguments), None))
        except (nnxp.NnxpError, ImportError, RuntimeError, OSError) as error:
            text = str(error).strip() or type(error).__name__
            connection.send((None, text.splitlines()[0]))


class Report:
    """All measurements: for each number of cores, each measure and each peer, a value a round."""

    def __init__(self) -> None:
        self.measured: dict[str, dict[str, Rounds]] = {}
        self.accuracy: dict[str, dict[str, dict[str, float]]] = {}
        self.missing: dict[str, str] = {}
        self.failures: list[str] = []

    def add(self, cores: str, measure: str, rounds: Rounds, accuracy: dict[str, float]) -> None:
        """Keep a measure's rounds, and print them as a table."""
        self.measured.setdefault(cores, {})[measure] = rounds
        self.accuracy.setdefault(cores, {})[measure] = accuracy
        unit = {COLD_START: "s", PEAK_MEMORY: "MiB"}.get(measure, "µs")
        print(f"\n| {measure}, {cores} | {unit} | nnxp / it (quartiles) | test accuracy |")
        print("|---|---|---|---|")
        for name, values in rounds.items():
            ratio = spread(ratios(rounds, (name,)))
            hits = f"{accuracy[name]:.4f}" if name in accuracy else ""
            print(f"| {name} | {statistics.median(values):.4g} | {ratio} | {hits} |", flush=True)

    def targets(self, device: str) -> list[dict[str, Any]]:
        """Return each target with the ratio measured, None where it was not."""
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


def main() -> int:
    parser = Parser(description=__doc__)
    add_data_options(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--peers", nargs="+", type=name_of("peer", peers.PEERS), metavar="NAME",
        help=f"besides nnxp, some of: {'; '.join(peers.PEERS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--quick",
        action="store_true",
        help="two rounds of few steps of the small network: to try it, not to measure",
    )
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="new folder for table and picture (default: in runs/)")  # fmt: skip
    args = parser.parse_args()
    chosen = {*(args.peers or peers.PEERS), "nnxp"}
    names = [name for name in ON_DEVICE[args.device] if name in chosen]
    count = 2 if args.quick else ROUNDS
    # Host threads matter little to a GPU.
    modes = ("one core", "all cores") if args.device == "cpu" else ("all cores",)
    device = nnxp.device(args.device)
    folder = new_run_folder(args.out, vars(args))
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['blas']}; {versions}")
    print(f"nnxp on {device.spec}: {device.description}")
    report = Report()
    available = available_cores()
    for cores in modes:
        use_cores(cores, available)
        measure_steps(report, cores, names, args, count)
    measure_cold_starts(report, names, args, count)
    if args.device != "cpu":
        try:
            measure_against_cpu(report, args, count, folder)
        except NotRunError as error:
            report.missing["by batch size"] = str(error)
    targets = report.targets(args.device)
    print_targets(targets)
    for name, reason in report.missing.items():
        print(f"not run: {name}: {reason}")
    write_json(
        folder / "benchmark.json",
        {
            "machine": machine,
            "device": f"{device.spec}: {device.description}",
            "quick": args.quick,
            "measured": report.measured,
            "accuracy": report.accuracy,
            "targets": targets,
            "not_run": report.missing,
        },
    )
    try:
        place = f"{machine['processor']}, one core" if args.device == "cpu" else device.description
        draw(report.measured[modes[0]], place, folder)
    except nnxp.MissingExtraError as error:
        print(f"no picture: {error}", file=sys.stderr)
    print(f"files in {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    for text in report.failures:
        print(text, file=sys.stderr)
    return 1 if report.failures else 0


def measure_steps(
    report: Report, cores: str, names: list[str], args: argparse.Namespace, count: int
) -> None:
    """Measure steps and predictions of all peers with so many cores."""
    workers = {name: Worker(name) for name in names}
    dataset = workers["nnxp"].ask("load", args.dataset, args.data_dir)
    print(f"\n{dataset}, {cores}, {count} rounds")
    for name, worker in workers.items():
        if name != "nnxp":
            worker.ask("load", dataset, args.data_dir)
    for network in NETWORKS[args.device][: 1 if args.quick else None]:
        for optimizer in ("SGD", "Adam"):
            task = peers.TASKS[network]._replace(optimizer=optimizer, device=args.device)
            for name, worker in list(workers.items()):
                try:
                    worker.ask("start", task, 3 if args.quick else STEPS[network])
                except NotRunError as error:
                    if name == "nnxp":
                        raise
                    report.missing[name] = str(error)
                    workers.pop(name).close()
            rounds = in_turn(workers, count, "step")
            accuracy = {
                name: worker.ask("accuracy")
                for name, worker in workers.items()
                if name != "products"
            }
            report.add(cores, f"{network}, {optimizer}", rounds, accuracy)
            if not args.quick:  # a few steps teach nothing
                middle = statistics.median(accuracy.values())
                report.failures += [
                    f"{name} reached an accuracy of {value:.4f} on {network}, {optimizer}, and "
                    f"the others {middle:.4f}: is it the same work?"
                    for name, value in accuracy.items()
                    if abs(value - middle) > ACCURACY_TOLERANCE
                ]
            if (network, optimizer) == ("small", "SGD"):
                predicting = {name: w for name, w in workers.items() if name in ONE_OF_EACH}
                for rows in PREDICTED_ROWS:
                    seconds = 0.001 if args.quick else 0.05
                    rounds = in_turn(predicting, count, "predict", rows, seconds)
                    report.add(cores, f"predict {rows} row{'s' if rows > 1 else ''}", rounds, {})
    for worker in workers.values():
        worker.close()


def in_turn(workers: dict[str, Worker], count: int, method: str, *arguments: Any) -> Rounds:
    """Return what each worker answers in each round; within a round they take turns."""
    rounds: Rounds = {name: [] for name in workers}
    for _ in range(count):
        for name, worker in workers.items():
            rounds[name].append(worker.ask(method, *arguments))
    return rounds


def measure_cold_starts(
    report: Report, names: list[str], args: argparse.Namespace, count: int
) -> None:
    """Measure whole processes that read MNIST and train the small network for an epoch."""
    try:
        folder = next(iter(find_mnist(args.data_dir).values())).parent
    except nnxp.DataUnavailableError as error:
        report.missing[COLD_START] = str(error)
        return
    starting = [
        name
        for name in names
        if name in ONE_OF_EACH and name != "products" and name not in report.missing
    ]
    seconds: Rounds = {name: [] for name in starting}
    mebibytes: Rounds = {name: [] for name in starting}
    for _ in range(count):
        for name in starting:
            start = time.perf_counter()
            process = subprocess.Popen([sys.executable, peers.__file__, name, folder, args.device])
            # Linux counts this process' own memory as the child's before the child is another
            # program; it is less, since the data sets are in the workers.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise nnxp.NnxpError(f"{name} failed from a cold start, see above")
            seconds[name].append(time.perf_counter() - start)
            scale = 2**20 if sys.platform == "darwin" else 2**10
            mebibytes[name].append(usage.ru_maxrss / scale)
    report.add("all cores", COLD_START, seconds, {})
    report.add("all cores", PEAK_MEMORY, mebibytes, {})


def ratios(rounds: Rounds, against: tuple[str, ...]) -> list[float]:
    """Return, for each round, the ratio of nnxp to the lowest of some peers, if one was run."""
    others = [rounds[name] for name in against if name in rounds]
    if not others:
        return []
    return [ours / min(theirs) for ours, *theirs in zip(rounds["nnxp"], *others, strict=True)]


def measure_against_cpu(report: Report, args: argparse.Namespace, count: int, folder: Path) -> None:
    """Measure nnxp on the device and on this CPU, by batch size, and train to an accuracy."""
    workers = {"nnxp": Worker("nnxp"), "nnxp on this CPU": Worker("nnxp")}
    devices = dict(zip(workers, (args.device, "cpu"), strict=True))
    for worker in workers.values():
        worker.ask("load", args.dataset, args.data_dir)
    sizes = BATCHES[:2] if args.quick else BATCHES
    medians: dict[str, dict[str, list[float]]] = {}
    for network in ("small", "wide"):
        medians[network] = {name: [] for name in workers}
        for size in sizes:
            for name, worker in workers.items():
                task = peers.TASKS[network]._replace(batch_size=size, device=devices[name])
                worker.ask("start", task, 3 if args.quick else max(3, 20_000 // size))
            rounds = in_turn(workers, count, "step")
            report.add("all cores", f"{network}, batch {size}", rounds, {})
            for name, values in rounds.items():
                medians[network][name].append(statistics.median(values))
        ours, theirs = medians[network].values()
        # From the first batch on that is faster, and all larger ones too.
        ahead = [a < b for a, b in zip(ours, theirs, strict=True)]
        first = next((size for i, size in enumerate(sizes) if all(ahead[i:])), None)
        print(f"\n{network}: {args.device} is ahead of this CPU from batch {first or '(none)'} on")
    for name, worker in workers.items():
        epochs, seconds, accuracy = worker.ask(
            "train_to", 0.3 if args.quick else ACCURACY, devices[name]
        )
        print(
            f"{name}: test accuracy {accuracy:.4f} after {epochs} epoch(s) in {seconds:.2f} s, "
            f"evaluations included: {epochs / seconds:.2f} epochs a second"
        )
        worker.close()
    try:
        draw_against_cpu(sizes, medians, args.device, folder)
    except nnxp.MissingExtraError as error:
        print(f"no picture: {error}", file=sys.stderr)


def draw_against_cpu(
    sizes: tuple[int, ...], medians: dict[str, dict[str, list[float]]], device: str, folder: Path
) -> None:
    """Draw the time of a step by batch size, on the device and on this CPU."""
    figure = new_figure(9, 3.6)
    for axes, (network, lines) in zip(
        figure.subplots(1, len(medians), squeeze=False).flat, medians.items(), strict=True
    ):
        for (_, times), label in zip(lines.items(), (device, "this CPU"), strict=True):
            axes.loglog(sizes, times, "o-", label=label)
        axes.set_title(network, fontsize="medium")
        axes.set_xlabel("batch size")
        axes.set_ylabel("µs a training step")
        axes.legend()
    save_figure(figure, folder / "batches.png")


def print_targets(targets: list[dict[str, Any]]) -> None:
    print("\n| measure | nnxp against | cores | ratio (quartiles) | target | |")
    print("|---|---|---|---|---|---|")
    for row in targets:
        ratio, verdict = "", "not measured"
        if row["ratios"]:
            ratio, verdict = spread(row["ratios"]), "met" if row["met"] else "missed"
        print(
            f"| {row['measure']} | {row['against']} | {row['cores']} | {ratio} "
            f"| ≤ {row['limit']:.2f} | {verdict} |"
        )


def available_cores() -> set[int]:
    """Return the cores that this process may run on; empty where the system pins none."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def use_cores(cores: str, available: set[int]) -> None:
    """Let this process' children run on one core, or on all with each library's own defaults."""
    for name in THREADS:
        os.environ.pop(name, None)
        if cores == "one core":
            os.environ[name] = "1"
    if available:
        os.sched_setaffinity(0, {max(available)} if cores == "one core" else available)


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
    """Draw the steps of the small and the wide network as bars, fastest first."""
    figure = new_figure(9, 3.6)
    drawn = [network for network in ("small", "wide") if f"{network}, SGD" in measured]
    for axes, network in zip(
        figure.subplots(1, len(drawn), squeeze=False).flat, drawn, strict=True
    ):
        rounds = measured[f"{network}, SGD"]
        medians = sorted((statistics.median(values), name) for name, values in rounds.items())
        times, names = zip(*medians, strict=True)
        special = {"nnxp": "C0", "products": "0.4"}
        bars = axes.barh(names, times, color=[special.get(name, "0.75") for name in names])
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize="small")
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        task = peers.TASKS[network]
        widths = "-".join(map(str, task.hidden))
        axes.set_title(f"{network}: hidden {widths}, batch {task.batch_size}", fontsize="medium")
        axes.set_xlabel("µs a training step")
    figure.suptitle(title, fontsize="medium", parse_math=False)
    save_figure(figure, folder / "benchmark.png")


if __name__ == "__main__":
    run(main)
