"""nnxp: neural networks on arrays of many libraries, with explicit backpropagation.

Layers are written once with the functions of the Array API standard; `device` selects the library
and device that they run on.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"  # pyproject.toml reads it here

if TYPE_CHECKING:
    from nnxp import (
        data,
        distributed,
        exchange,
        initializers,
        metrics,
        plots,
        schedules,
        sklearn,
        testing,
    )
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
        RanksError,
    )
    from nnxp.exchange import export_onnx, import_onnx
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
    "RanksError",
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
    "distributed",
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


# The names in `__all__` that each module defines. A module is imported when one of its names is
# first used (SPEC 1), so `import nnxp` takes little longer than `import numpy`. Other names are
# modules.
_NAMES = {
    "checkpoint": "load_network",
    "devices": "Device device",
    "errors": (
        "ArgumentError CallOrderError CheckpointError DataError DataUnavailableError "
        "DeviceError DivergenceError InputError LayerError MissingExtraError "
        "NnxpError OutOfMemoryError RanksError"
    ),
    "exchange": "export_onnx import_onnx",
    "gradients": "check_gradients numerical_gradient",
    "history": "Record",
    "layers": (
        "ELU GELU Add Affine AveragePool2D BatchNorm Conv2D Dropout ElasticDistortion "
        "Flatten GlobalAveragePool2D Identity Layer LayerNorm LeakyReLU MaxPool2D "
        "Multiply RandomFlip RandomRotation RandomShift ReLU Reshape Sigmoid SiLU "
        "Softmax Softplus Standardize Tanh"
    ),
    "losses": "AbsoluteError Huber Loss MeanSquaredError SigmoidWithLoss SoftmaxWithLoss",
    "metrics": "accuracy",
    "models": "ThreeLayerNet TwoLayerNet lenet mlp",
    "network": "Residual Sequential",
    "optimizers": "SGD AdaGrad Adam AdamW Momentum Nesterov Optimizer RMSprop",
    "parts": "register",
    "penalties": "L1 L2 ElasticNet",
    "training": "Evaluation LearningRateRange Trainer learning_rate_range",
    "transforms": "ClipNorm ClipValue",
}  # fmt: skip
_MODULES = {name: f"nnxp.{module}" for module, names in _NAMES.items() for name in names.split()}
_MODULES["callbacks"] = "nnxp.training"


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    value: Any
    if name in _MODULES:
        module = import_module(_MODULES[name])
        value = getattr(module, "open_device" if name == "device" else name)
        globals()[name] = value
        return value
    if name in __all__:
        return import_module(f"nnxp.{name}")
    from nnxp.checks import own_word

    hint = "" if name.startswith("_") else own_word(name, __all__)
    message = f"module 'nnxp' has no attribute {name!r}; {hint}".rstrip("; ")
    raise AttributeError(message, name=name)
