"""Fixtures: every backend that a test can run on, and small data in MNIST's layout."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import array_api_strict
import hypothesis
import numpy as np
import pytest

import nnxp

# Before their import, so that a failing assertion in one shows its values.
pytest.register_assert_rewrite("builders", "file_samples", "script_runner", "tables")

from file_samples import write_mnist_layout  # noqa: E402
from script_runner import PATHS  # noqa: E402
from tables import BACKENDS, device_or_skip  # noqa: E402

os.environ.setdefault("JAX_ENABLE_X64", "1")  # before JAX starts: it holds no float64 else
os.environ.setdefault("KERAS_BACKEND", "torch")  # before Keras is imported: else TensorFlow

# How long an example takes depends on what else the machine does. The same commit gets the same
# examples; HYPOTHESIS_PROFILE=random draws new ones.
hypothesis.settings.register_profile("nnxp", deadline=None, derandomize=True)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "nnxp"))

# Processes inherit what is ignored, but no handler: under nohup, scripts would ignore SIGHUP.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

collect_ignore = ["fork_server.py", "fuzz.py"]  # programs of their own

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


@pytest.fixture(params=[pytest.param(name, marks=marks) for name, (_, marks) in BACKENDS.items()])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every library: NumPy also with read-only inputs, array-api-strict on its second device."""
    device = device_or_skip(BACKENDS[request.param][0])
    return Backend(device, read_only=request.param == "numpy-readonly")


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


@pytest.fixture
def data() -> nnxp.data.Dataset:
    """Forty images of 6 pixels in 3 classes."""
    rng = np.random.default_rng(5)
    return nnxp.data.Dataset(rng.integers(0, 256, (40, 6), np.uint8), rng.integers(0, 3, 40))


@pytest.fixture
def digits_csv(tmp_path: Path) -> Path:
    """The embedded digits for training in Kaggle's layout."""
    train, _ = nnxp.data.load_digits()
    table = np.column_stack([train.labels, train.inputs])
    names = ",".join(["label", *(f"pixel{i}" for i in range(64))])
    np.savetxt(tmp_path / "train.csv", table, "%d", ",", header=names, comments="")
    return tmp_path / "train.csv"


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; processes started there find no home folder, as in containers."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import pwd\n\ndef getpwuid(uid):\n    raise KeyError(uid)\n\npwd.getpwuid = getpwuid\n"
    )
    for name in ("HOME", "XDG_CACHE_HOME", "NNXP_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), PATHS]))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # else of sitecustomize.py
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(params=["zlib", "isal"])
def decompressor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read gzipped files with Python's zlib, then with the extra fast."""
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal")
