"""Fixtures: every backend that a test can run on, and small data in MNIST's layout."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import pytest

import nnxp

os.environ.setdefault("JAX_ENABLE_X64", "1")  # before JAX starts: it holds no float64 else

collect_ignore = ["fuzz.py"]  # a program of its own

# The lowest version of the standard that nnxp asks for.
array_api_strict.set_array_api_strict_flags(api_version="2024.12")


@dataclass(frozen=True)
class Backend:
    """A device, and how a test makes arrays for it."""

    device: nnxp.Device
    read_only: bool = False

    def array(self, host: Any, dtype: str | None = None) -> Any:
        x = self.device.asarray(np.array(host, dtype=dtype))
        if self.read_only:
            x.flags.writeable = False
        return x

    def host(self, x: Any) -> np.ndarray:
        return self.device.to_host(x)


BACKENDS = {
    "numpy": ("cpu", ()),
    "numpy-readonly": ("cpu", ()),
    "strict": ("strict:device1", ()),
    "torch": ("torch:cpu", pytest.mark.interop),
    "jax": ("jax:cpu", pytest.mark.interop),
    "cupy": ("cuda", pytest.mark.gpu),
    "torch-cuda": ("torch:cuda", pytest.mark.gpu),
    "jax-cuda": ("jax:cuda", pytest.mark.gpu),
}


def device_or_skip(spec: str) -> nnxp.Device:
    """Return a device; skip the test without it, or fail where $NNXP_REQUIRE_GPU promises one.

    The promise is CuPy's: PyTorch and JAX may be builds for the CPU beside it.
    """
    try:
        return nnxp.device(spec)
    except nnxp.DeviceError as error:
        if spec == "cuda" and os.environ.get("NNXP_REQUIRE_GPU"):
            raise
        pytest.skip(f"{spec}: {error}")


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, (_, marks) in BACKENDS.items()])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every library: NumPy also with read-only inputs, array-api-strict on its second device."""
    device = device_or_skip(BACKENDS[request.param][0])
    return Backend(device, read_only=request.param == "numpy-readonly")


def idx_bytes(values: np.ndarray) -> bytes:
    """Return `values` as an IDX file of unsigned bytes."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_mnist_layout(folder: Path, train: nnxp.data.Dataset, test: nnxp.data.Dataset) -> Path:
    """Write two sets of square images as the four files of MNIST."""
    folder.mkdir(exist_ok=True)
    for prefix, dataset in [("train", train), ("t10k", test)]:
        side = round(dataset.inputs.shape[1] ** 0.5)
        images = dataset.inputs.reshape(-1, side, side)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(dataset.labels))
    return folder


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    """The embedded digits in MNIST's layout."""
    return write_mnist_layout(tmp_path / "idx", *nnxp.data.load_digits())


@pytest.fixture(scope="session")
def mnist() -> tuple[nnxp.data.Dataset, nnxp.data.Dataset]:
    """The real MNIST, where it is at hand; tests download nothing."""
    from platformdirs import user_cache_path

    folder = os.environ.get("NNXP_DATA_DIR") or user_cache_path("nnxp", appauthor=False) / "mnist"
    try:
        return nnxp.data.load_mnist(folder)
    except nnxp.DataUnavailableError as error:
        pytest.skip(f"mnist: {error}")


@pytest.fixture
def small() -> nnxp.data.Dataset:
    """Forty examples of 6 features in 3 classes."""
    rng = np.random.default_rng(0)
    return nnxp.data.Dataset(rng.normal(size=(40, 6)), rng.integers(0, 3, 40))


def small_trainer(**options: Any) -> nnxp.Trainer:
    """Return a trainer of a 6-5-4-3 network for `small`."""
    network = nnxp.ThreeLayerNet(6, 5, 4, 3, rng=np.random.default_rng(0), **options)
    return nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))


def train_epoch(
    trainer: nnxp.Trainer, dataset: nnxp.data.Dataset, batch_size: int, rng: np.random.Generator
) -> None:
    """Let a trainer do the updates of one epoch."""
    place = {"device": trainer.network.device, "dtype": trainer.network.dtype}
    trainer.train_epoch(nnxp.data.Batches(dataset, batch_size, **place, rng=rng))
