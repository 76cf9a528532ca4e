"""Architecture: modules import only lower ones, and importing nnxp is fast and has no effects."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tables import LAYERS, LOSSES

import nnxp
from nnxp.optimizers import OPTIMIZERS

PACKAGE = Path(nnxp.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each room may import of nnxp besides arrays, checks, errors and extras, which all may. Only
# the trainer may import all rooms; losses, metrics and optimizers import only arrays.
ROOMS = {
    "__init__": None,
    "__main__": None,
    "arrays": set(),
    "errors": set(),
    "extras": set(),
    "files": set(),
    "history": {"table"},
    "table": set(),
    "checks": set(),
    "random": set(),
    "initializers": set(),
    "metrics": {"parts"},
    "devices": set(),
    "parts": {"devices", "initializers"},
    "schedules": {"parts"},
    "penalties": {"parts"},
    "transforms": {"parts"},
    "optimizers": {"parts", "schedules"},
    "plots": {"files", "history", "layers", "network", "schedules", "training"},
    "losses": {"layers", "metrics", "parts"},
    "ranks": set(),
    "distributed": {"ranks"},
    "layers": {"devices", "frames", "initializers", "parts", "ranks"},
    "network": {"data_format", "devices", "layers", "parameters", "parts", "table"},
    "parameters": {"layers"},
    "step": {"losses", "metrics", "network", "optimizers", "penalties", "ranks", "transforms"},
    "models": {"devices", "initializers", "layers", "network"},
    "gradients": {"losses", "network"},
    "frames": set(),
    "data_format": {"devices", "frames"},
    "data": {"data_format", "devices", "files", "frames", "random", "ranks"},
    "exchange": {
        "data_format",
        "devices",
        "files",
        "initializers",
        "layers",
        "network",
        "parts",
    },
    "testing": {"devices", "gradients", "layers", "losses", "network"},
    "checkpoint": {
        "data_format",
        "devices",
        "layers",
        "data",
        "files",
        "history",
        "losses",
        "metrics",
        "network",
        "optimizers",
        "parts",
        "penalties",
        "random",
        "transforms",
    },
    "sklearn": {
        "data",
        "devices",
        "history",
        "layers",
        "losses",
        "models",
        "network",
        "optimizers",
        "penalties",
        "schedules",
        "step",
        "training",
    },
    "training": {
        "data_format",
        "metrics",
        "capture",
        "checkpoint",
        "data",
        "devices",
        "files",
        "history",
        "layers",
        "losses",
        "network",
        "optimizers",
        "parts",
        "penalties",
        "random",
        "ranks",
        "step",
        "transforms",
    },
    "capture": {
        "data",
        "data_format",
        "devices",
        "files",
        "frames",
        "layers",
        "network",
        "optimizers",
        "parameters",
        "parts",
        "ranks",
        "step",
    },
}


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(node.module)
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_only_lower_modules(path):
    allowed = ROOMS[room(path)]
    if allowed is None:
        return
    inner = {name.split(".")[1] for name in imports(path) if name.startswith("nnxp.")}
    assert inner <= allowed | {room(path), "arrays", "checks", "errors", "extras"}
    assert "nnxp" not in imports(path)


def test_imports_form_no_circle():
    graph = {name: allowed for name, allowed in ROOMS.items() if allowed is not None}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert {room(path) for path in MODULES} == ROOMS.keys()


def test_only_few_modules_name_array_libraries():
    # They open a library, show what works, compile a step for it, check layers with it, or convert
    # its weights.
    for path in MODULES:
        if room(path) == "exchange" and path.stem in ("__init__", "weights"):
            continue
        known = ("libraries", "__main__", "cupy", "extras", "jax", "choose", "testing")
        if path.stem not in (*known, "distributed"):
            code = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.DOTALL)
            assert not re.search(r"cupy|torch|jax|array_api_strict", code), path


def test_layers_losses_and_optimizers_use_no_library_and_do_not_synchronize():
    for path in MODULES:
        if room(path) in ("losses", "metrics", "optimizers") or (
            room(path) == "layers"
            and path.stem not in ("affine", "convolution", "noise", "normalization")
        ):
            assert "numpy" not in imports(path), path
    for path in MODULES:
        if room(path) in ("layers", "metrics"):
            assert not re.search(
                r"\bfloat\(|\.item\(", path.read_text().replace("``float()``", "")
            ), path


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "loss",
    [
        *sorted({type(make()) for make, _, _ in LOSSES.values()}, key=str),
        lambda: nnxp.SoftmaxWithLoss(0.1, [1.0, 2.0, 3.0, 4.0]),
        lambda: nnxp.MeanSquaredError(classes=True),
    ],
)
def test_step_does_not_synchronize_with_the_device(monkeypatch, loss, optimizer):
    device = nnxp.device("strict:device1")
    rng = np.random.default_rng(0)
    hidden = [
        make(device, "float32") for make, shape, out in LAYERS.values() if shape == out == (5, 4)
    ]
    assert len(hidden) >= 7
    first, last = (nnxp.Affine(4, 4, rng=rng, device=device) for _ in range(2))
    network = nnxp.Sequential([first, *hidden, last])
    trainer = nnxp.Trainer(network, loss(), OPTIMIZERS[optimizer]())
    inputs = device.asarray(rng.random((3, 4)), dtype="float32")
    labels = device.asarray(np.eye(4, dtype="int32")[:3])

    def wait(*_, **__):
        raise AssertionError("this would wait for the device")

    for name in ("__bool__", "__float__", "__int__", "__index__", "__complex__", "to_device"):
        monkeypatch.setattr(type(inputs), name, wait)
    for _ in range(2):
        trainer.step(inputs, labels)


def test_networks_call_only_the_array_api_standard():
    # What NumPy accepts beyond the standard runs on NumPy and fails elsewhere.
    for path in MODULES:
        if room(path) in ("layers", "losses", "metrics", "optimizers", "network"):
            code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)
            assert not re.search(r"xp\.(random|einsum|dot|pad|split)\b|out=", code), path


def test_test_modules_import_helpers_and_not_each_other():
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if re.search(r"(from|import) (conftest|test_)", path.read_text()):  # maybe in a string
            assert not any(re.match("conftest|test_", name) for name in imports(path)), path


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    ).stdout


USE_ALL = "for name in nnxp.__all__: getattr(nnxp, name)"


@pytest.mark.parametrize("use", ["", USE_ALL], ids=["imported", "all names used"])
def test_import_loads_no_heavy_package(use):
    loaded = set(run(f"import sys, nnxp\n{use}\nprint(*sys.modules)").split())
    heavy = {
        "PIL", "array_api_strict", "cupy", "filelock", "google.protobuf", "importlib.metadata",
        "isal", "jax", "llvmlite", "matplotlib", "numpy.random", "onnx", "pandas", "platformdirs",
        "safetensors", "scipy", "sklearn", "tensorboardX", "torch", "tqdm",
    }  # fmt: skip
    assert not loaded & heavy


def test_import_loads_no_other_module_of_nnxp():
    code = "import sys; before = set(sys.modules); import nnxp; print(*set(sys.modules) - before)"
    loaded = run(code).split()
    assert [name for name in loaded if name.startswith("nnxp")] == ["nnxp"]
    assert "numpy" not in loaded


def test_import_has_no_side_effects():
    code = (
        "import threading, warnings, random, numpy as np\n"
        "state = (np.random.get_state()[1].tobytes(), random.getstate(), np.geterr(),\n"
        "         list(warnings.filters), np.get_printoptions())\n"
        "import nnxp\n"
        "after = (np.random.get_state()[1].tobytes(), random.getstate(), np.geterr(),\n"
        "         list(warnings.filters), np.get_printoptions())\n"
        "assert state == after and threading.active_count() == 1\n"
    )
    assert run(code) == ""


def test_all_public_names_exist_and_are_documented():
    assert nnxp.__all__ == sorted(nnxp.__all__, key=lambda name: (name != name.upper(), name))
    for name in nnxp.__all__:
        assert getattr(nnxp, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = nnxp.no_such_name
