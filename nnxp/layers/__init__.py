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
from nnxp.layers.dropout import Dropout
from nnxp.layers.nodes import Add, Multiply
from nnxp.layers.normalization import BatchNorm, Standardize
from nnxp.layers.shape import Flatten, Reshape

__all__ = [
    "Add",
    "Affine",
    "BatchNorm",
    "Dropout",
    "ElasticDistortion",
    "Flatten",
    "Identity",
    "Layer",
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
