"""Runs: the data set that a script trains on, and the folder of its files."""

from __future__ import annotations

import argparse
import hashlib
import json
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
from nnxp.files import write_atomically

# Each library reads its own, and only before it starts.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--dataset`` and ``--data-dir``, for `load_dataset`."""
    parser.add_argument(
        "--dataset",
        default="auto",
        metavar="auto|mnist|digits|FILE.csv",
        help="auto: MNIST, or the embedded digits where it cannot be had; FILE.csv: Kaggle's "
        "layout, every sixth example for the test (default: auto)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        help="folder of the four MNIST files, or of a set in their layout; also $NNXP_DATA_DIR",
    )


class Data(NamedTuple):
    """A data set, and the folder or file it was read from; None for the embedded digits."""

    name: str
    train: Dataset
    test: Dataset
    source: Path | None

    def config(self) -> dict[str, Any]:
        """Return what a later run needs to find the same data, and to know that they are."""
        digest = hashlib.sha256()
        for dataset in (self.train, self.test):
            digest.update(np.ascontiguousarray(dataset.inputs))
            digest.update(np.ascontiguousarray(dataset.labels))
        file = self.source is not None and self.source.is_file()
        return {
            "dataset": str(self.source.resolve()) if file else self.name,
            "data_source": self.source,
            "data_sha256": digest.hexdigest(),
        }


def load_dataset(name: str, folder: Path | None) -> Data:
    """Return the data set asked for."""
    if name not in ("auto", "mnist", "digits") and not name.endswith((".csv", ".csv.gz")):
        raise unknown_name("dataset", name, ["auto", "mnist", "digits", "FILE.csv"])
    if folder and name not in ("auto", "mnist"):
        raise nnxp.InputError(f"--data-dir is for MNIST files, not for --dataset {name}")
    if name == "digits":
        return Data("digits", *nnxp.data.load_digits(), None)
    if name not in ("auto", "mnist"):
        return Data(name, *nnxp.data.load_csv(name).split(6), Path(name))
    try:
        examples = nnxp.data.load_mnist(folder)
        found = nnxp.data.find_mnist(folder)["train-images-idx3-ubyte"]
        return Data("mnist", *examples, found.parent)
    except nnxp.DataUnavailableError as error:
        if name == "mnist" or folder:
            raise
        print(f"training on the embedded 8 x 8 digits instead of MNIST: {error}", file=sys.stderr)
        return Data("digits", *nnxp.data.load_digits(), None)


def class_count(train: Dataset, test: Dataset) -> int:
    """Return the number of classes: one more than the largest label."""
    return int(max(train.labels.max(), test.labels.max())) + 1


def new_run_folder(wanted: Path | None, config: dict[str, Any]) -> Path:
    """Return an empty folder for a run's files, with `config` and all versions in config.json.

    Paths are written in full there. Without a wish the folder is a new one in runs/. A folder that
    holds anything is refused, and of two runs that want the same one at the same moment only one
    gets it.
    """
    try:
        folder = _new_folder() if wanted is None else wanted
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise nnxp.InputError(
                f"{folder} already holds a run or other files; choose another --out"
            )
        (folder / "config.json").touch(exist_ok=False)
    except OSError as error:
        raise nnxp.InputError(
            f"cannot write to {wanted or 'runs/'} ({error.strerror}); choose another --out"
        ) from error
    write_config(folder, config)
    return folder


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write a run's settings and all versions as config.json."""
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


def _new_folder() -> Path:
    """Make a folder in runs/ that no other process has made."""
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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
