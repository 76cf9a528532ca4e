"""Exchange: networks as ONNX files, and weights in the layouts of other libraries.

`onnx_writing` exports a network. `onnx_reading` imports one, with the operators of `onnx_operators`
and the graph of `onnx_graph`. `weights` converts arrays from and to PyTorch and Keras. docs/onnx.md
and docs/weights.md show their use. All of them are imported when they are needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnxp.exchange.onnx_reading import import_onnx
    from nnxp.exchange.onnx_writing import Graph, export_onnx, register_onnx
    from nnxp.exchange.weights import load_keras, load_torch, to_keras, to_torch

__all__ = [
    "Graph",
    "export_onnx",
    "import_onnx",
    "load_keras",
    "load_torch",
    "register_onnx",
    "to_keras",
    "to_torch",
]

_MODULES = {
    "Graph": "onnx_writing", "export_onnx": "onnx_writing", "import_onnx": "onnx_reading",
    "load_keras": "weights", "load_torch": "weights", "register_onnx": "onnx_writing",
    "to_keras": "weights", "to_torch": "weights",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
