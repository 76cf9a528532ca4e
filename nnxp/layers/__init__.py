"""Layers: each computes its outputs in `forward` and its gradients in `backward`."""

from nnxp.layers.activations import (
    ELU,
    GELU,
    Identity,
    LeakyReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from nnxp.layers.affine import Affine
from nnxp.layers.augmentation import (
    ElasticDistortion,
    RandomFlip,
    RandomRotation,
    RandomShift,
)
from nnxp.layers.base import Layer
from nnxp.layers.convolution import Conv2D
from nnxp.layers.dropout import Dropout
from nnxp.layers.nodes import Add, Multiply
from nnxp.layers.normalization import BatchNorm, LayerNorm, Standardize
from nnxp.layers.pooling import AveragePool2D, GlobalAveragePool2D, MaxPool2D
from nnxp.layers.shape import Flatten, Reshape

__all__ = [
    "ELU",
    "GELU",
    "Add",
    "Affine",
    "AveragePool2D",
    "BatchNorm",
    "Conv2D",
    "Dropout",
    "ElasticDistortion",
    "Flatten",
    "GlobalAveragePool2D",
    "Identity",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "MaxPool2D",
    "Multiply",
    "RandomFlip",
    "RandomRotation",
    "RandomShift",
    "ReLU",
    "Reshape",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Standardize",
    "Tanh",
]


def __dir__() -> list[str]:
    return __all__
