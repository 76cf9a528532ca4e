"""Compare the speed and memory of convolutional networks with PyTorch and JAX, on one CPU core.

Each measurement is a process of its own. Within a round the peers take turns, and ratios are
computed within rounds.
"""

from __future__ import annotations

from cli import Parser, announce, name_of, progress, run, run_worker, spread, whole_number

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from peers import peak_memory
from runs import THREADS, add_out_option, new_run_folder, print_files, write_json

import nnxp

# The layers; Conv: outputs, kernel size, padding. All pools halve the image.
NETWORKS: dict[str, list[tuple[Any, ...]]] = {
    "lenet": [
        ("conv", 20, 5, 0), ("relu",), ("pool",), ("conv", 50, 5, 0), ("relu",), ("pool",),
        ("flatten",), ("affine", 500), ("relu",), ("affine", 10),
    ],
    "3x3": [
        ("conv", 16, 3, 1), ("relu",), ("conv", 16, 3, 1), ("relu",), ("pool",),
        ("conv", 32, 3, 1), ("relu",), ("conv", 32, 3, 1), ("relu",), ("pool",),
        ("flatten",), ("affine", 10),
    ],
}  # fmt: skip
Run = Callable[[int], list[float]]  # trains so many epochs, and returns the seconds of each


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--batch-sizes", type=whole_number, nargs="+", default=[64, 128],
                        help="examples in a step (default: 64 128)")  # fmt: skip
    parser.add_argument("--rounds", type=whole_number, default=5, help="rounds (default: 5)")
    parser.add_argument("--steps", type=whole_number, default=8,
                        help="steps of an epoch, of which the fastest of 5 counts "
                        "(default: 8)")  # fmt: skip
    parser.add_argument("--peer", type=name_of("peer", PEERS), help=f"measure one peer only, and "
                        f"print JSON: {', '.join(PEERS)}")  # fmt: skip
    parser.add_argument("--network", type=name_of("network", NETWORKS), default="lenet",
                        help="the network of --peer (default: lenet)")  # fmt: skip
    add_out_option(parser)
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(measure(args.peer, args.network, args.batch_sizes[0], args.steps)))
        return
    missing = [name for name, library in LIBRARIES.items() if not find_spec(library)]
    names = [name for name in PEERS if name not in missing]
    for name in missing:
        announce(f"{name} is left out: {LIBRARIES[name]} is not installed")
    folder = new_run_folder(args.out, vars(args))
    announce(f"{len(NETWORKS) * len(args.batch_sizes)} tables, each of {args.rounds} rounds of "
             f"{len(names)} processes that take 3 to 10 seconds")  # fmt: skip
    results: dict[str, Any] = {}
    for network in NETWORKS:
        for batch_size in args.batch_sizes:
            rounds = [
                {name: measure_apart(name, network, batch_size, args.steps) for name in names}
                for _ in progress(args.rounds, "round")
            ]
            results[f"{network}, batch {batch_size}"] = rounds
            write_json(folder / "convolution_speed.json", results)
            print_table(f"{network}, batch {batch_size}", rounds)
    print_files(folder)


def measure_apart(name: str, network: str, batch_size: int, steps: int) -> dict[str, float]:
    """Return the results of `measure` in a process of its own, with one thread."""
    command = [sys.executable, __file__, "--peer", name, "--network", network,
               "--batch-sizes", str(batch_size), "--steps", str(steps)]  # fmt: skip
    environment = os.environ | dict.fromkeys(THREADS, "1")
    environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    result: dict[str, float] = run_worker(command, environment, f"{name} was not measured")
    return result


def measure(name: str, network: str, batch_size: int, steps: int) -> dict[str, float]:
    """Return the milliseconds of a step, and the MiB that training takes beside the imports."""
    rng = np.random.default_rng(0)
    images = rng.random((steps * batch_size, 1, 28, 28), dtype="float32")
    labels = rng.integers(0, 10, len(images))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    train, imported = PEERS[name](NETWORKS[network], images, labels, batch_size)
    seconds = train(6)[1:]  # without the first, in which libraries compile
    return {"milliseconds": min(seconds) / steps * 1e3, "mebibytes": used_memory() - imported}


def timed(epoch: Callable[[], object]) -> Run:
    """Return the `Run` of a function that trains an epoch."""

    def run_epochs(count: int) -> list[float]:
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            epoch()
            seconds.append(time.perf_counter() - start)
        return seconds

    return run_epochs


def print_table(title: str, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print medians, and the ratios of nnxp's captured step to each peer."""
    print(f"\n| {title} | ms | captured / this (quartiles) | MiB |")
    print("|---|---|---|---|")
    for name in rounds[0]:
        own = [each[name]["milliseconds"] for each in rounds]
        ratios = [each["nnxp, captured"]["milliseconds"] / each[name]["milliseconds"]
                  for each in rounds]  # fmt: skip
        memory = statistics.median(each[name]["mebibytes"] for each in rounds)
        cells = (name, f"{statistics.median(own):.1f}", spread(ratios), f"{memory:.0f}")
        print(f"| {' | '.join(cells)} |", flush=True)


def used_memory() -> float:
    """Return the most MiB that this process has used so far."""
    import resource  # not on Windows

    return peak_memory(resource.getrusage(resource.RUSAGE_SELF))


def sizes(layers: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the layers with the number of inputs put after the name of those with weights."""
    found: list[tuple[Any, ...]] = []
    channels, side = 1, 28
    for name, *settings in layers:
        found.append((name, channels, *settings) if settings else (name,))
        if name == "conv":
            channels, side = settings[0], side + 2 * settings[2] - settings[1] + 1
        elif name == "pool":
            side //= 2
        elif name == "flatten":
            channels *= side * side
        elif name == "affine":
            channels = settings[0]
    return found


def nnxp_epoch(
    layers: list[tuple[Any, ...]],
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    capture: bool,
    device: str = "cpu",
) -> tuple[Run, float]:
    rng = np.random.default_rng(0)
    place: dict[str, Any] = {"rng": rng, "device": device}
    kinds: dict[str, Callable[..., nnxp.Layer]] = {
        "conv": lambda i, o, size, padding: nnxp.Conv2D(i, o, size, padding=padding, **place),
        "relu": nnxp.ReLU,
        "pool": lambda: nnxp.MaxPool2D(2),
        "flatten": nnxp.Flatten,
        "affine": lambda i, o: nnxp.Affine(i, o, **place),
    }
    network = nnxp.Sequential([kinds[name](*settings) for name, *settings in sizes(layers)])
    imported = used_memory()
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.01), capture=capture)
    data = nnxp.data.Dataset(images, labels)

    def run_epochs(count: int) -> list[float]:  # in one call, which compiles once
        history = trainer.fit(data, epochs=count, batch_size=batch_size, rng=rng)
        return [record.seconds for record in history]

    return run_epochs, imported


def torch_epoch(
    layers: list[tuple[Any, ...]],
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    channels_last: bool,
) -> tuple[Run, float]:
    import torch

    nn = torch.nn
    kinds: dict[str, Callable[..., Any]] = {
        "conv": lambda i, o, size, padding: nn.Conv2d(i, o, size, padding=padding),
        "relu": nn.ReLU,
        "pool": lambda: nn.MaxPool2d(2),
        "flatten": nn.Flatten,
        "affine": nn.Linear,
    }
    form = torch.channels_last if channels_last else torch.contiguous_format
    model = nn.Sequential(*(kinds[name](*settings) for name, *settings in sizes(layers)))
    model = model.to(memory_format=form)
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.01), nn.CrossEntropyLoss()
    x, y = torch.tensor(images), torch.tensor(labels)
    imported = used_memory()

    def epoch() -> None:
        for rows in torch.randperm(len(x)).split(batch_size):
            optimizer.zero_grad()
            loss(model(x[rows].to(memory_format=form)), y[rows]).backward()
            optimizer.step()

    return timed(epoch), imported


def jax_epoch(
    layers: list[tuple[Any, ...]], images: np.ndarray, labels: np.ndarray, batch_size: int
) -> tuple[Run, float]:
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    described = sizes(layers)
    params = []
    for name, *settings in described:
        if name == "conv":
            inputs, outputs, size, _ = settings
            shape: tuple[int, ...] = (outputs, inputs, size, size)
        elif name == "affine":
            shape = inputs, outputs = tuple(settings)
        else:
            continue
        params.append((jnp.asarray(rng.normal(0, 0.05, shape), "float32"), jnp.zeros(outputs)))

    def loss(params: Any, x: Any, y: Any) -> Any:
        own = iter(params)
        for name, *settings in described:
            if name == "conv":
                W, b = next(own)
                edges = [(settings[3],) * 2] * 2
                x = jax.lax.conv_general_dilated(x, W, (1, 1), edges) + b[:, None, None]
            elif name == "relu":
                x = jax.nn.relu(x)
            elif name == "pool":
                window = (1, 1, 2, 2)
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")
            elif name == "flatten":
                x = x.reshape(len(x), -1)
            else:
                W, b = next(own)
                x = x @ W + b
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], axis=1).mean()

    @jax.jit
    def step(params: Any, x: Any, y: Any, rows: Any) -> Any:
        gradients = jax.grad(loss)(params, x[rows], y[rows])
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients)

    x, y = jnp.asarray(images), jnp.asarray(labels)
    imported = used_memory()

    def epoch() -> None:
        nonlocal params
        for rows in rng.permutation(len(images)).reshape(-1, batch_size):
            params = step(params, x, y, rows)
        jax.block_until_ready(params)

    return timed(epoch), imported


PEERS: dict[str, Callable[..., tuple[Run, float]]] = {
    "nnxp, captured": lambda *task: nnxp_epoch(*task, capture=True),
    "nnxp, plain steps": lambda *task: nnxp_epoch(*task, capture=False),
    "nnxp on JAX": lambda *task: nnxp_epoch(*task, capture=True, device="jax:cpu"),
    "PyTorch": lambda *task: torch_epoch(*task, channels_last=False),
    "PyTorch, channels_last": lambda *task: torch_epoch(*task, channels_last=True),
    "JAX": jax_epoch,
}

LIBRARIES = {
    "nnxp on JAX": "jax", "PyTorch": "torch", "PyTorch, channels_last": "torch", "JAX": "jax",
}  # fmt: skip


if __name__ == "__main__":
    run(main)
