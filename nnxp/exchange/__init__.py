"""Exchange: networks as ONNX files, and weights in the layouts of other libraries.

`onnx_writing` exports a network, `onnx_reading` imports one, `onnx_graph` traces the layers of a
file's graph, and `weights` converts arrays from and to PyTorch and Keras. docs/onnx.md and
docs/weights.md show their use. The onnx package is imported when it is needed.
"""

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
