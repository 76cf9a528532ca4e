"""Contributing: a new layer needs what CONTRIBUTING.md says; tried in a copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nnxp

PACKAGE = Path(nnxp.__file__).parent
TESTS = Path(__file__).parent

LAYER = '''"""Decay: a layer with a parameter and a state, for the test of contributions."""

import numpy as np

from nnxp.arrays import floating_namespace
from nnxp.devices import open_device
from nnxp.layers.base import Layer


class Decay(Layer):
    """y = scale * x; the state counts the training forwards."""

    def __init__(self, features, *, dtype="float32", device="cpu"):
        self.features = features
        self.device, self.dtype = device, dtype
        opened = open_device(device)
        self.params["scale"] = opened.asarray(np.ones(features), dtype=dtype)
        self.state["forwards"] = opened.asarray(np.zeros(1, "int32"))

    def forward(self, x, training=False):
        """Return ``scale * x``."""
        floating_namespace(x, self)
        y = x * self.params["scale"]
        if training:
            self.state["forwards"] = self.state["forwards"] + 1
            self.save_for_backward(y, x)
        return y

    def backward(self, dy):
        """Return ``scale * dy``."""
        x = self.saved(dy)
        xp = floating_namespace(dy, self)
        self.grads["scale"] = xp.sum(dy * x, axis=0)
        return dy * self.params["scale"]
'''
EXPORT = 'from nnxp.layers.decay import Decay\n__all__ += ["Decay"]\n__all__.sort()\n'
# In nnxp/__init__.py: the imports for type checkers, `__all__` and `_NAMES`.
PLACES = {
    "        Conv2D,\n": "        Conv2D,\n        Decay,\n",
    '    "Device",\n': '    "Decay",\n    "Device",\n',
    "Conv2D Dropout": "Conv2D Decay Dropout",
}
ROW = """LAYERS["Decay"] = (
    lambda device, dtype: nnxp.Decay(4, dtype=dtype, device=device), (5, 4), (5, 4)
)
"""
USE = """
import numpy as np, nnxp
train, _ = nnxp.data.load_digits()
path, results = "decay.safetensors", []
for capture in ("auto", False):
    rng = np.random.default_rng(0)
    layers = [nnxp.Affine(64, 9, rng=rng), nnxp.Decay(9), nnxp.Affine(9, 10, rng=rng)]
    network = nnxp.Sequential(layers)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Momentum(), capture=capture)
    trainer.fit(train, epochs=1, batch_size=100, rng=rng, checkpoint=path)
    assert (trainer.captured == "captured") == (capture == "auto"), trainer.captured
    loaded = nnxp.load_network(path)
    np.testing.assert_array_equal(loaded.parameters()["scale1"], network.parameters()["scale1"])
    results.append((network.parameters()["scale1"], int(loaded.states()["forwards1"][0])))
assert results[0][1] == results[1][1] == 15
np.testing.assert_array_equal(results[0][0], results[1][0])
"""


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_a_new_layer_needs_a_class_its_name_and_a_row(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "nnxp", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TESTS, tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "nnxp" / "layers" / "decay.py").write_text(LAYER)
    append(tmp_path / "nnxp" / "layers" / "__init__.py", EXPORT)
    top = tmp_path / "nnxp" / "__init__.py"
    text = top.read_text()
    for old, new in PLACES.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    top.write_text(text)
    append(tmp_path / "tests" / "tables.py", ROW)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def run(*command):
        result = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    # The layer leaves the check of device and dtype to the network.
    chosen = "(Decay or holds) and not device_or_dtype_are_refused"
    options = ("-q", "-p", "no:cacheprovider", "-m", "not interop and not gpu", "-k", chosen)
    out = run("-m", "pytest", *options, "tests/test_layers.py", "tests/test_dtypes.py")
    assert " passed" in out
    out = run("-m", "pytest", *options[:-1], "agree or shows_what", "tests/test_interface.py")
    assert "2 passed" in out
    run("-c", USE)
