"""python -m nnxp doctor: report what works, what does not, and the remedy."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

import nnxp
from nnxp.devices import opening

PACKAGES = [
    "nnxp", "numpy", "array-api-compat", "array-api-strict", "cupy-cuda12x", "cupy-cuda13x",
    "torch", "jax", "matplotlib",
]  # fmt: skip
DEVICES = ["cpu", "cuda", "torch:cpu", "torch:cuda", "torch:mps", "jax:cpu", "jax:cuda", "strict"]
THREADS = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m nnxp", description=__doc__)
    parser.add_argument("command", choices=["doctor"])
    parser.parse_args()
    return doctor()


def doctor() -> int:
    """Print what works; return 0 if training on the CPU works, else 1."""
    print(f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")
    print("\npackages")
    for package in PACKAGES:
        print(f"  {package:<18}{_version(package)}")
    print(f"\nBLAS\n  {_blas()}")
    print("\ndevices")
    for spec in DEVICES:
        _device(spec)
    print("\nMNIST")
    try:
        folder = os.path.commonpath(nnxp.data.find_mnist().values())
        print(f"  ok    in {folder}")
    except nnxp.DataError as error:
        print(f"  --    {error}")
    print("\ntraining on the CPU")
    try:
        _train()
    except Exception as error:  # noqa: BLE001 (every error is reported)
        print(f"  FAIL  {type(error).__name__}: {error}")
        return 1
    print("  ok    a small network learns the embedded digits")
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _blas() -> str:
    """Return NumPy's BLAS and its number of threads."""
    config: Any = np.show_config(mode="dicts")
    blas = config["Build Dependencies"]["blas"]
    text = f"{blas['name']} {blas['version']}"
    settings = [f"{name}={os.environ[name]}" for name in THREADS if name in os.environ]
    if importlib.util.find_spec("threadpoolctl"):
        import threadpoolctl

        pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
        text += "".join(f", {pool['num_threads']} threads" for pool in pools)
    elif not settings:
        text += ", its default number of threads (pip install threadpoolctl shows how many)"
    return ", ".join([text, *settings])


def _device(spec: str) -> None:
    """Print each step of opening a device, and the remedy if one fails."""
    print(f"  {spec}")
    try:
        for step in opening(spec):
            print(f"    ok    {step}")
    except nnxp.DeviceError as error:
        print(f"    --    {error}")
    except Exception as error:  # noqa: BLE001 (every error is reported)
        print(f"    FAIL  {type(error).__name__}: {error}")


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
