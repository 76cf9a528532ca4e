"""nnxp: neural networks on arrays of many libraries, with explicit backpropagation.

Layers are written once with the functions of the Array API standard; `device` selects the library
and device that they run on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nnxp import data, exchange, initializers, plots, sklearn, testing
from nnxp.checkpoint import load_network
from nnxp.devices import Device
from nnxp.devices import open_device as device
from nnxp.errors import (
    ArgumentError,
    CallOrderError,
    CheckpointError,
    DataError,
    DataUnavailableError,
    DeviceError,
    DivergenceError,
    InputError,
    LayerError,
    MissingExtraError,
    NnxpError,
    OutOfMemoryError,
)
from nnxp.gradients import check_gradients, numerical_gradient
from nnxp.history import Record
from nnxp.layers import (
    ELU,
    GELU,
    Add,
    Affine,
    AveragePool2D,
    BatchNorm,
    Conv2D,
    Dropout,
    ElasticDistortion,
    Flatten,
    GlobalAveragePool2D,
    Identity,
    Layer,
    LayerNorm,
    LeakyReLU,
    MaxPool2D,
    Multiply,
    RandomFlip,
    RandomRotation,
    RandomShift,
    ReLU,
    Reshape,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Standardize,
    Tanh,
)
from nnxp.losses import (
    AbsoluteError,
    Huber,
    Loss,
    MeanSquaredError,
    SigmoidWithLoss,
    SoftmaxWithLoss,
)
from nnxp.metrics import accuracy
from nnxp.models import ThreeLayerNet, TwoLayerNet, lenet, mlp
from nnxp.network import Residual, Sequential
from nnxp.optimizers import (
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    Optimizer,
    RMSprop,
)
from nnxp.parts import register
from nnxp.penalties import L1, L2, ElasticNet
from nnxp.training import Evaluation, LearningRateRange, Trainer, callbacks, learning_rate_range
from nnxp.transforms import ClipNorm, ClipValue

if TYPE_CHECKING:
    from nnxp.exchange import export_onnx, import_onnx

__all__ = [
    "ELU",
    "GELU",
    "L1",
    "L2",
    "SGD",
    "AbsoluteError",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Add",
    "Affine",
    "ArgumentError",
    "AveragePool2D",
    "BatchNorm",
    "CallOrderError",
    "CheckpointError",
    "ClipNorm",
    "ClipValue",
    "Conv2D",
    "DataError",
    "DataUnavailableError",
    "Device",
    "DeviceError",
    "DivergenceError",
    "Dropout",
    "ElasticDistortion",
    "ElasticNet",
    "Evaluation",
    "Flatten",
    "GlobalAveragePool2D",
    "Huber",
    "Identity",
    "InputError",
    "Layer",
    "LayerError",
    "LayerNorm",
    "LeakyReLU",
    "LearningRateRange",
    "Loss",
    "MaxPool2D",
    "MeanSquaredError",
    "MissingExtraError",
    "Momentum",
    "Multiply",
    "Nesterov",
    "NnxpError",
    "Optimizer",
    "OutOfMemoryError",
    "RMSprop",
    "RandomFlip",
    "RandomRotation",
    "RandomShift",
    "ReLU",
    "Record",
    "Reshape",
    "Residual",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SigmoidWithLoss",
    "Softmax",
    "SoftmaxWithLoss",
    "Softplus",
    "Standardize",
    "Tanh",
    "ThreeLayerNet",
    "Trainer",
    "TwoLayerNet",
    "accuracy",
    "callbacks",
    "check_gradients",
    "data",
    "device",
    "exchange",
    "export_onnx",
    "import_onnx",
    "initializers",
    "learning_rate_range",
    "lenet",
    "load_network",
    "metrics",
    "mlp",
    "numerical_gradient",
    "plots",
    "register",
    "schedules",
    "sklearn",
    "testing",
]


def __getattr__(name: str) -> Any:
    if name in ("export_onnx", "import_onnx"):  # which few need
        return getattr(exchange, name)
    # Read on demand, because importlib.metadata takes longer to import than all of nnxp.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("nnxp")
        except PackageNotFoundError:
            return "not installed"
    from nnxp.checks import own_word

    hint = "" if name.startswith("_") else own_word(name, __all__)
    message = f"module 'nnxp' has no attribute {name!r}; {hint}".rstrip("; ")
    raise AttributeError(message, name=name)
