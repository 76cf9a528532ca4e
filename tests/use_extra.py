"""Do what extras are for: `python use_extra.py plot onnx`. The session `extras` of nox runs it."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import nnxp


def trained(**options: object) -> nnxp.Trainer:
    """Return a trainer after one epoch on the digits."""
    train, _ = nnxp.data.load_digits()
    network = nnxp.mlp([64, 10, 10], rng=0)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD())
    trainer.fit(train, epochs=1, batch_size=100, rng=0, **options)
    return trainer


def plot(folder: Path) -> None:
    nnxp.plots.plot_histories([trained().history], folder / "curves.png")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def images(folder: Path) -> None:
    from PIL import Image

    image = Image.new("L", (20, 20), 255)
    image.paste(0, (8, 4, 12, 16))  # a 1
    image.save(folder / "one.png")
    assert nnxp.data.read_drawing(folder / "one.png").shape == (20, 20)


def checkpoint(folder: Path) -> None:
    path = folder / "run.safetensors"
    weights = trained(checkpoint=path).network.parameters()["W1"]
    np.testing.assert_array_equal(nnxp.load_network(path).parameters()["W1"], weights)


def tensorboard(folder: Path) -> None:
    trained(callbacks=[nnxp.callbacks.WriteTensorBoard(folder / "events")])
    assert any((folder / "events").iterdir())


def onnx(folder: Path) -> None:
    network = trained().network
    nnxp.export_onnx(network, folder / "network.onnx")
    x = np.ones((2, 64), "float32")
    read = nnxp.import_onnx(folder / "network.onnx").predict_classes(x)
    np.testing.assert_array_equal(read, network.predict_classes(x))


def fast(folder: Path) -> None:
    train, _ = nnxp.data.load_digits()
    network = nnxp.mlp([64, 10, 10], rng=0)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(), compiled=True)
    trainer.fit(train, epochs=1, batch_size=100, rng=0)
    assert trainer.captured == "compiled", trainer.captured


def mpi(folder: Path) -> None:
    importlib.import_module("mpi4py")  # imports without an MPI, too


def sklearn(folder: Path) -> None:
    train, _ = nnxp.data.load_digits()
    model = nnxp.sklearn.MLPClassifier((10,), random_state=0)
    model.partial_fit(train.inputs, train.labels, classes=range(10))
    assert model.predict(train.inputs).shape == (len(train),)


def testing(folder: Path) -> None:
    nnxp.testing.check_layer(nnxp.ReLU(), (5, 4))


def cuda(folder: Path) -> None:
    importlib.import_module("cupy")  # imports without a GPU, too


def bench(folder: Path) -> None:
    names = (
        "isal", "jax", "llvmlite", "matplotlib", "onnx", "onnxruntime", "sklearn", "thinc", "torch",
    )  # fmt: skip
    for name in names:
        importlib.import_module(name)


USES: dict[str, Callable[[Path], None]] = {
    "plot": plot, "images": images, "checkpoint": checkpoint, "tensorboard": tensorboard,
    "onnx": onnx, "fast": fast, "mpi": mpi, "sklearn": sklearn, "testing": testing,
    "cuda12": cuda, "cuda13": cuda, "bench": bench,
}  # fmt: skip


if __name__ == "__main__":
    for extra in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            USES[extra](Path(folder))
        print(f"{extra}: works")
