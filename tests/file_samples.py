"""Files of every kind that nnxp reads: whole samples, and how each is loaded for comparison."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
from builders import Stopping, fit, new_trainer

import nnxp
from nnxp.data import Dataset, load_csv, read_idx

IDX_TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(values: np.ndarray) -> bytes:
    """Return `values` as an IDX file of their type."""
    code = IDX_TYPES[values.dtype.str[1:]]
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, code, values.ndim, *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write_mnist_layout(folder: Path, train: nnxp.data.Dataset, test: nnxp.data.Dataset) -> Path:
    """Write two sets of square images as the four files of MNIST."""
    folder.mkdir(exist_ok=True)
    for prefix, dataset in [("train", train), ("t10k", test)]:
        side = round(dataset.inputs.shape[1] ** 0.5)
        images = dataset.inputs.reshape(-1, side, side)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            idx_bytes(dataset.labels.astype(np.uint8))
        )
    return folder


def write_digits_as_mnist(folder: Path) -> Path:
    """Write the embedded digits, enlarged to 28 × 28 pixels, as the four files of MNIST."""
    train, test = (
        Dataset(
            np.kron(d.inputs.reshape(-1, 8, 8), np.ones((1, 4, 4), np.uint8))[:, 2:30, 2:30]
            .reshape(len(d), 784),
            d.labels,
        )
        for d in nnxp.data.load_digits()
    )  # fmt: skip
    return write_mnist_layout(folder, train, test)


def images():
    return np.random.default_rng(0).integers(0, 256, (9, 5, 4), np.uint8)


def csv_bytes():
    lines = [",".join(map(str, [i % 3, *row])) for i, row in enumerate(images().reshape(9, 20))]
    header = ",".join(["label", *(f"pixel{i}" for i in range(20))])
    return ("\n".join([header, *lines]) + "\n").encode()


def checkpoint_bytes(path):
    rng = np.random.default_rng(5)
    data = Dataset(rng.integers(0, 256, (40, 6), np.uint8), rng.integers(0, 3, 40))
    trainer = new_trainer()
    fit(
        trainer,
        data,
        2,
        checkpoint=path,
        callbacks=[Stopping(lambda: trainer.optimizer.steps >= 6)],
    )
    return path.read_bytes()


def as_csv(path):
    data = load_csv(path)
    return data.inputs.tobytes() + data.labels.astype(int).tobytes()


def as_checkpoint(path):
    trainer = nnxp.Trainer.resume(path)
    held = {n: x.tolist() for n, x in trainer.network.parameters().items()}
    held |= {
        f"{s} {n}": x.tolist() for s, k in trainer.optimizer.state.items() for n, x in k.items()
    }
    return json.dumps([held, repr(trainer.history), repr(trainer._progress), trainer.config])


KINDS = {
    "idx": (lambda _: idx_bytes(images()), lambda path: read_idx(path, axes=3).tobytes()),
    "idx.gz": (
        lambda _: gzip.compress(idx_bytes(images()), mtime=0),
        lambda path: read_idx(path, axes=3).tobytes(),
    ),
    "csv": (lambda _: csv_bytes(), as_csv),
    "csv.gz": (lambda _: gzip.compress(csv_bytes(), mtime=0), as_csv),
    "safetensors": (checkpoint_bytes, as_checkpoint),
}


def contents(path):
    """Return what a checkpoint says, as text, and its arrays."""
    import safetensors as library

    with library.safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata()["nnxp"], arrays


def signed(path, about, arrays):
    """Write a malicious file, and return its path.

    Its description of the arrays is a dict, or any text.
    """
    import safetensors.numpy

    from nnxp.checkpoint.format import digest

    text = about if isinstance(about, str) else json.dumps(about)
    path.write_bytes(safetensors.numpy.save(arrays, {"nnxp": text, "sha256": digest(text, arrays)}))
    return path
