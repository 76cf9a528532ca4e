"""Workers of the benchmark: each peer is trained and timed in its own process."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import peers
from runs import load_dataset

import nnxp
from nnxp.data import Dataset


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
        """Return the milliseconds of an epoch with its training and validation figures."""
        start = time.perf_counter()
        self.peer.fit(self.test.inputs, self.test.labels)
        return (time.perf_counter() - start) * 1e3

    def train_to(self, accuracy: float, device: str) -> tuple[int, float, float]:
        """Train the small network to an accuracy; return epochs, seconds and accuracy."""
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
        """Return the MiB of training, without network, data and library; None if unknown."""
        peak = peak_since_reset()
        return None if peak is None else peak - self.memory_before

    def prepare(self, network: str, seconds: float) -> tuple[float, float]:
        """Return the microseconds of preparing a step, and those of a plain step."""
        task = peers.TASKS[network]
        images = any(name == "conv" for name, *_ in task.layers)
        inputs, labels = peers.random_examples(np.random.default_rng(0), 10 * task.batch_size)
        inputs = inputs.reshape(-1, 1, 28, 28) if images else inputs
        plain = peers.step_time(peers.Nnxp(task, inputs, labels, capture=False), seconds)
        # Imports the modules of captured steps; the time of compiled steps includes their imports.
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
        # Only the main process receives a terminal's signals, and ends this one.
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


def run_process(
    name: str, folder: Path, task: str, epochs: int, device: str
) -> tuple[float, float]:
    """Return the seconds and the peak MiB of a process that trains a peer on MNIST's files."""
    start = time.perf_counter()
    # Imported, since Python would compile a script anew in each process.
    scripts = str(Path(peers.__file__).parent)
    code = f"import sys; sys.path.insert(0, {scripts!r}); import peers; peers.main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, name, folder, task, str(epochs), device],
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
