"""Layers: each computes its outputs in `forward` and its gradients in `backward`."""

from nnxp.layers.activations import Identity, ReLU, Sigmoid, Softmax, Tanh
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
from nnxp.layers.normalization import BatchNorm, Standardize
from nnxp.layers.pooling import AveragePool2D, GlobalAveragePool2D, MaxPool2D
from nnxp.layers.shape import Flatten, Reshape

__all__ = [
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
    "MaxPool2D",
    "Multiply",
    "RandomFlip",
    "RandomRotation",
    "RandomShift",
    "ReLU",
    "Reshape",
    "Sigmoid",
    "Softmax",
    "Standardize",
    "Tanh",
]
