"""python -m nnxp doctor: report what works, what does not, and the remedy."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import numpy as np

import nnxp
from nnxp.devices import one_line, opening
from nnxp.extras import Requirement, import_package, install_extra, pip, requirements

# Modules whose names differ from those of their packages by more than a hyphen.
MODULES = {
    "cupy-cuda12x": "cupy", "cupy-cuda13x": "cupy", "scikit-learn": "sklearn", "pillow": "PIL",
}  # fmt: skip
DEVICES = ["cpu", "cuda", "torch:cpu", "torch:cuda", "torch:mps", "jax:cpu", "jax:cuda", "strict"]
THREADS = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m nnxp", description=__doc__)
    parser.add_argument("command", choices=["doctor"])
    parser.parse_args()
    try:
        status = doctor()
        if sys.stdout is not None:  # closed
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("nnxp doctor: interrupted", file=sys.stderr)
        status = 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # the reader has closed the pipe
            message = f"standard output cannot be written: {error.strerror}"
            print(f"nnxp doctor: error: {message}", file=sys.stderr)
        status = 1
    return status


def doctor() -> int:
    """Print what works; return 0 if training on the CPU works, and 1 otherwise."""
    print(f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")
    print(f"\nBLAS\n  {_blas()}")  # before other packages load BLAS libraries of their own
    print(f"\nnnxp {nnxp.__version__} in {Path(nnxp.__file__).parent}")
    for extra, group in itertools.groupby(requirements(), lambda requirement: requirement.extra):
        _packages(extra, list(group))
    print("\ndevices")
    for spec in DEVICES:
        _device(spec)
    print("\nMNIST")
    try:
        folder = os.path.commonpath(nnxp.data.find_mnist().values())
        print(f"  ok    in {folder}")
    except nnxp.NnxpError as error:
        print(f"  --    {error}")
    print("\ntraining on the CPU")
    if failure := _failure(_train):
        print(f"  FAIL  {failure}")
        return 1
    print("  ok    a small network learns the embedded digits")
    return 0


def _packages(extra: str, group: list[Requirement]) -> None:
    """Print whether each package of an extra can be used, and a remedy if one cannot."""
    print(f"  extra {extra}" if extra else "  always needed")
    broken, unsuitable = [], []
    for requirement in group:
        package, text = requirement.package, requirement.text
        try:
            installed: str | None = version(package)
        except PackageNotFoundError:
            print(f"    --    {package} is not installed")
            unsuitable.append(text)
            continue
        except Exception:  # noqa: BLE001 (its class depends on the version of Python)
            installed = None
        if installed is None:
            folder = distribution(package).locate_file("")
            print(
                f"    FAIL  {package} was installed in part; delete its .dist-info folders that "
                f"have no file METADATA, in {folder}"
            )
            broken.append(text)
            continue
        if not requirement.accepts(installed):
            print(f"    FAIL  {package} {installed} is installed, and {text} is needed")
            unsuitable.append(text)
            continue
        module = MODULES.get(package, package.replace("-", "_"))
        if failure := _failure(import_package, module):
            print(f"    FAIL  {package} {installed} does not import ({failure})")
            broken.append(text)
            continue
        print(f"    ok    {package} {installed}")
    if unsuitable:
        command = install_extra(extra) if extra else pip("install", *unsuitable)
        print(f"    remedy: {command}")
    if broken:
        print(f"    remedy: {pip('install', '--force-reinstall', *broken)}")


def _failure(call: Callable[..., object], *arguments: object) -> str:
    """Return the error that a call raises, on one line; "" if it raises none."""
    try:
        call(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (also an exit, or a panic of Rust)
        return one_line(error)
    return ""


def _blas() -> str:
    """Return NumPy's BLAS and its number of threads."""
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    if blas["name"] == "none":
        return "none: this NumPy was built without a BLAS, and its matrix products are slow"
    text = f"{blas['name']} {blas['version']}"
    settings = [f"{name}={os.environ[name]}" for name in THREADS if name in os.environ]
    try:
        import threadpoolctl
    except ImportError:
        text += ", its default number of threads"
    else:
        pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
        # The loaded library may differ from the one that NumPy was built with.
        text += "".join(
            f", {pool['num_threads']} threads of {pool['internal_api']} {pool['version']}"
            for pool in pools
        )
    return ", ".join([text, *settings])


def _device(spec: str) -> None:
    """Print each step of opening a device, and the remedy if one fails."""
    print(f"  {spec}")
    if failure := _failure(_open, spec):
        print(f"    FAIL  {failure}")


def _open(spec: str) -> None:
    try:
        for step in opening(spec):
            print(f"    ok    {step}")
    except nnxp.DeviceError as error:
        print(f"    --    {error}")


def _train() -> None:
    rng = np.random.default_rng(0)
    train, test = nnxp.data.load_digits()
    network = nnxp.ThreeLayerNet(64, 50, 30, 10, rng=rng)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(learning_rate=0.1))
    record = trainer.fit(train, epochs=10, batch_size=50, validation=test, rng=rng)[-1]
    if not record.validation_accuracy > 0.8:
        raise nnxp.DivergenceError(f"the digits were not learned: {record}")


if __name__ == "__main__":
    sys.exit(main())
