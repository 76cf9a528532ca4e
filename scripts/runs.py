"""Runs: the data set of a script, and the folder for its results."""

from __future__ import annotations

from cli import file_path

import argparse
import atexit
import contextlib
import hashlib
import json
import math
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import nnxp
from nnxp.checks import unknown_name
from nnxp.data import Dataset
from nnxp.files import expand_home, write_atomically

# Each BLAS library reads its own variable when it is loaded.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--dataset`` and ``--data-dir``, the arguments of `load_dataset`."""
    parser.add_argument(
        "--dataset",
        default="auto",
        metavar="auto|mnist|digits|FILE.csv",
        help="auto: MNIST, or the embedded digits if no folder is given and MNIST cannot be "
        "downloaded; FILE.csv: a file whose first or last column is named label, target or class, "
        "a sixth of each class is used for testing (default: auto)",
    )
    parser.add_argument(
        "--data-dir",
        type=file_path,
        help="folder with the four MNIST files, or with a data set in their format "
        "(default: $NNXP_DATA_DIR)",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``, the argument of `nnxp.device`."""
    parser.add_argument(
        "--device",
        default="auto",
        help="auto (the GPU if it is usable, else the CPU); cpu; cuda, cuda:N (CuPy); torch, "
        "torch:cpu, torch:cuda, torch:cuda:N, torch:mps (PyTorch); jax, jax:cpu, jax:cuda, "
        "jax:cuda:N (JAX); strict, strict:device1, strict:device2 (array-api-strict, for tests) "
        "(default: auto)",
    )


def add_out_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, the `out` of `new_run_folder`."""
    parser.add_argument(
        "--out",
        type=file_path,
        metavar="DIR",
        help="new folder for the results (default: in runs/)",
    )


class Data(NamedTuple):
    """A data set, and its source: a folder or a file, or None for the embedded digits."""

    name: str
    train: Dataset
    test: Dataset
    source: Path | None

    def widths(self, hidden: list[int]) -> list[int]:
        """Return the widths of a network for these data with the `hidden` layers."""
        return [math.prod(self.train.inputs.shape[1:]), *hidden, self.classes]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1

    def config(self) -> dict[str, Any]:
        """Return the name, the source and the SHA-256 of the data, for config.json."""
        digest = hashlib.sha256()
        for dataset in (self.train, self.test):
            digest.update(np.ascontiguousarray(dataset.inputs))
            digest.update(np.ascontiguousarray(dataset.labels))
        is_file = self.source is not None and self.source.is_file()
        return {
            "dataset": str(self.source.resolve()) if is_file else self.name,
            "data_source": self.source,
            "data_sha256": digest.hexdigest(),
        }


def load_dataset(name: str, folder: Path | None, *, images: bool = False) -> Data:
    """Return the data set of ``--dataset`` and ``--data-dir``, as rows or as `images`."""
    if name not in ("auto", "mnist", "digits") and not name.lower().endswith((".csv", ".csv.gz")):
        raise unknown_name("dataset", name, ["auto", "mnist", "digits", "FILE.csv"])
    if folder and name not in ("auto", "mnist"):
        raise nnxp.InputError(f"--data-dir is for MNIST files, not for --dataset {name}")
    if name == "digits":
        return Data("digits", *nnxp.data.load_digits(images=images), None)
    if name not in ("auto", "mnist"):
        file = expand_home(name)
        table = nnxp.data.load_csv(file)
        if images:
            table = square_images(table, file)
        return Data(name, *table.split(1 / 6, rng=0), file)
    try:
        datasets = nnxp.data.load_mnist(folder, images=images)
        found = os.path.commonpath(nnxp.data.find_mnist(folder).values())
        return Data("mnist", *datasets, Path(found))
    except nnxp.DataUnavailableError as error:
        if name == "mnist" or folder or os.environ.get("NNXP_DATA_DIR"):
            raise
        print(f"training on the embedded 8 x 8 digits instead of MNIST: {error}", file=sys.stderr)
        return Data("digits", *nnxp.data.load_digits(images=images), None)


def square_images(table: Dataset, file: Path) -> Dataset:
    """Convert a table whose rows are the pixels of square grey images to a data set of images."""
    pixels = table.inputs.shape[1]
    side = math.isqrt(pixels)
    if side * side != pixels:
        raise nnxp.InputError(
            f"{file} has {pixels} columns of inputs, which do not form a square image; "
            "use --model plain"
        )
    inputs = table.inputs.reshape(-1, 1, side, side)
    return Dataset(inputs, table.labels, scale=table.scale, classes=table.classes)


def new_run_folder(out: Path | None, config: dict[str, Any]) -> Path:
    """Return a new or empty folder that has only config.json (see `write_config`).

    If `out` is None, a new folder is created in runs/. Two processes never get the same folder. If
    the process ends before it writes a result, it removes the folder, unless it existed before.

    Raises
    ------
    InputError
        If the folder is not empty or cannot be written to.
    """
    try:
        is_new = out is None or not out.exists()
        folder = _new_folder() if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise nnxp.InputError(
                f"{folder} already holds a run or other files; choose another --out"
            )
        (folder / "config.json").touch(exist_ok=False)  # fails if another process uses the folder
        atexit.register(_remove_without_result, folder.absolute(), is_new)
    except OSError as error:
        raise nnxp.InputError(
            f"cannot write to {out or 'runs/'} ({error.strerror}); choose another --out"
        ) from error
    write_config(folder, config)
    return folder


def _remove_without_result(folder: Path, is_new: bool) -> None:
    """Remove a run's folder if it holds at most config.json."""
    with contextlib.suppress(OSError):
        if all(file.name == "config.json" for file in folder.iterdir()):
            (folder / "config.json").unlink(missing_ok=True)
            if is_new:
                folder.rmdir()


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write a run's settings and all versions as config.json, with absolute paths."""
    packages = ["numpy", "array-api-compat"]
    write_json(
        folder / "config.json",
        {
            key: str(value.resolve()) if isinstance(value, Path) else value
            for key, value in (config | {"out": folder}).items()
        }
        | {
            "command": sys.argv,
            "versions": {"python": platform.python_version(), "nnxp": nnxp.__version__}
            | {package: version(package) for package in packages},
            "platform": platform.platform(),
            "processors": os.cpu_count(),
            "threads": {name: os.environ[name] for name in THREADS if name in os.environ},
        },
    )


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def print_files(folder: Path) -> None:
    """Print the names of the files in a run's folder."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    print(f"files in {folder}: {', '.join(names)}")


def _new_folder() -> Path:
    """Create a folder in runs/ with a name that no other run has."""
    Path("runs").mkdir(exist_ok=True)
    name = time.strftime("%Y-%m-%d-%H%M%S")
    folder, count = Path("runs") / name, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            count += 1
            folder = Path("runs") / f"{name}-{count}"
