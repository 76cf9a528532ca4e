"""Tables that tests run over: backends, layers and losses."""

from __future__ import annotations

import os

import numpy as np
import pytest

import nnxp
from nnxp.data import one_hot
from nnxp.optimizers import OPTIMIZERS

BACKENDS = {
    "numpy": ("cpu", ()),
    "numpy-readonly": ("cpu", ()),
    "strict": ("strict:device1", ()),
    "torch": ("torch:cpu", pytest.mark.interop),
    "jax": ("jax:cpu", pytest.mark.interop),
    "cupy": ("cuda", pytest.mark.gpu),
    "torch-cuda": ("torch:cuda", pytest.mark.gpu),
    "jax-cuda": ("jax:cuda", pytest.mark.gpu),
}

devices = pytest.mark.parametrize(
    "spec",
    [
        "cpu",
        "strict:device1",
        pytest.param("torch:cpu", marks=pytest.mark.interop),
        pytest.param("jax:cpu", marks=pytest.mark.interop),
    ],
)


def device_or_skip(spec: str) -> nnxp.Device:
    """Return a device; skip the test without it, or fail where $NNXP_REQUIRE_GPU promises one.

    The promise is CuPy's: PyTorch and JAX may be builds for the CPU beside it.
    """
    try:
        return nnxp.device(spec)
    except nnxp.DeviceError as error:
        if spec == "cuda" and os.environ.get("NNXP_REQUIRE_GPU"):
            raise
        pytest.skip(f"{spec}: {error}")


def affine(device, dtype):
    return nnxp.Affine(4, 3, rng=np.random.default_rng(1), dtype=dtype, device=device)


def widen(device, dtype):
    return nnxp.Affine(3, 4, rng=np.random.default_rng(2), dtype=dtype, device=device)


def standardize(device, dtype):
    layer = nnxp.Standardize(dtype=dtype, device=device)
    layer.adapt(np.random.default_rng(3).normal(2.0, 3.0, size=(20, 4)))
    return layer


def drawing(kind, *settings):
    """Return what makes a layer that draws random numbers."""
    return lambda device, dtype: kind(*settings, rng=1, dtype=dtype, device=device)


def varied(layer):
    """Return the layer with random parameters: a wrong gradient could hide behind a gamma of 1."""
    rng = np.random.default_rng(4)
    for name, x in layer.params.items():
        layer.params[name] = layer.device.asarray(rng.normal(size=x.shape), dtype=layer.dtype)
    return layer


def plain(kind):
    return lambda device, dtype: kind()


def convolution(*sizes, **settings):
    def make(device, dtype):
        rng = np.random.default_rng(1)
        return nnxp.Conv2D(*sizes, **settings, rng=rng, dtype=dtype, device=device)

    return make


# name: (makes the layer, shape of its inputs, shape of its outputs). A name is that of the class,
# and what distinguishes a second row of the class after a comma.
LAYERS = {
    "Affine": (affine, (5, 4), (5, 3)),
    "AveragePool2D": (plain(lambda: nnxp.AveragePool2D(2)), (3, 2, 5, 4), (3, 2, 2, 2)),
    "AveragePool2D, overlapping": (
        plain(lambda: nnxp.AveragePool2D((3, 2), stride=(2, 1), padding=1)),
        (3, 2, 5, 4),
        (3, 2, 3, 5),
    ),
    "BatchNorm": (
        lambda device, dtype: varied(nnxp.BatchNorm(4, dtype=dtype, device=device)),
        (5, 4),
        (5, 4),
    ),
    "BatchNorm, images": (
        lambda device, dtype: varied(nnxp.BatchNorm(2, dtype=dtype, device=device)),
        (3, 2, 2, 3),
        (3, 2, 2, 3),
    ),
    "Conv2D": (convolution(2, 3, 3), (2, 2, 5, 4), (2, 3, 3, 2)),
    "Conv2D, odd sizes": (
        convolution(1, 2, (2, 3), stride=(2, 1), padding=(0, 2)),
        (3, 1, 7, 4),
        (3, 2, 3, 6),
    ),
    "Conv2D, strides beyond the kernel": (
        convolution(2, 2, 2, stride=(3, 4), padding=1),
        (2, 2, 6, 7),
        (2, 2, 3, 2),
    ),
    "Conv2D, one pixel": (convolution(3, 2, 1), (2, 3, 1, 1), (2, 2, 1, 1)),
    "Dropout": (drawing(nnxp.Dropout, 0.3), (5, 4), (5, 4)),
    "ElasticDistortion": (
        drawing(nnxp.ElasticDistortion, 8.0, 1.5),
        (3, 2, 5, 4),
        (3, 2, 5, 4),
    ),
    "ELU": (lambda device, dtype: nnxp.ELU(0.7), (5, 4), (5, 4)),
    "Flatten": (plain(nnxp.Flatten), (5, 2, 3), (5, 6)),
    "GlobalAveragePool2D": (plain(nnxp.GlobalAveragePool2D), (3, 2, 4, 3), (3, 2)),
    "RandomFlip": (drawing(nnxp.RandomFlip), (3, 2, 5, 4), (3, 2, 5, 4)),
    "RandomRotation": (drawing(nnxp.RandomRotation, 60), (3, 2, 5, 4), (3, 2, 5, 4)),
    "RandomShift": (drawing(nnxp.RandomShift, 2), (3, 2, 5, 4), (3, 2, 5, 4)),
    "MaxPool2D": (plain(lambda: nnxp.MaxPool2D(2)), (3, 2, 5, 4), (3, 2, 2, 2)),
    "MaxPool2D, overlapping": (
        plain(lambda: nnxp.MaxPool2D(3, stride=(2, 1), padding=1)),
        (3, 2, 5, 4),
        (3, 2, 3, 4),
    ),
    "GELU": (plain(nnxp.GELU), (5, 4), (5, 4)),
    "GELU, tanh": (lambda device, dtype: nnxp.GELU("tanh"), (5, 4), (5, 4)),
    "Identity": (plain(nnxp.Identity), (5, 4), (5, 4)),
    "LayerNorm": (
        lambda device, dtype: varied(nnxp.LayerNorm(4, dtype=dtype, device=device)),
        (5, 4),
        (5, 4),
    ),
    "LayerNorm, images": (
        lambda device, dtype: varied(nnxp.LayerNorm((2, 3, 4), dtype=dtype, device=device)),
        (5, 2, 3, 4),
        (5, 2, 3, 4),
    ),
    "LeakyReLU": (lambda device, dtype: nnxp.LeakyReLU(0.3), (5, 4), (5, 4)),
    "ReLU": (plain(nnxp.ReLU), (5, 4), (5, 4)),
    "Reshape": (lambda device, dtype: nnxp.Reshape((2, -1)), (5, 6), (5, 2, 3)),
    "Residual": (
        lambda device, dtype: nnxp.Residual([affine(device, dtype), widen(device, dtype)]),
        (5, 4),
        (5, 4),
    ),
    "Sequential": (
        lambda device, dtype: nnxp.Sequential([affine(device, dtype), nnxp.Tanh()]),
        (5, 4),
        (5, 3),
    ),
    "SiLU": (plain(nnxp.SiLU), (5, 4), (5, 4)),
    "Sigmoid": (plain(nnxp.Sigmoid), (5, 4), (5, 4)),
    "Softmax": (plain(nnxp.Softmax), (5, 2, 4), (5, 2, 4)),
    "Softplus": (plain(nnxp.Softplus), (5, 4), (5, 4)),
    "Standardize": (standardize, (5, 4), (5, 4)),
    "Tanh": (plain(nnxp.Tanh), (5, 4), (5, 4)),
}
SCORES = np.random.default_rng(0).normal(size=(5, 3))
CLASSES = np.array([2, 0, 1, 1, 2])

PROBABILITIES = np.array(
    [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5], [0.0, 0.5, 0.5]]
)


layers = pytest.mark.parametrize(
    ("make", "inputs", "outputs"), list(LAYERS.values()), ids=list(LAYERS)
)


def smooth():
    return nnxp.SoftmaxWithLoss(label_smoothing=0.1, class_weights=(1.0, 2.0, 0.5))


# name: (makes the loss, scores, labels)
LOSSES = {
    "softmax, class numbers": (nnxp.SoftmaxWithLoss, SCORES, CLASSES),
    "softmax, one-hot": (nnxp.SoftmaxWithLoss, SCORES, nnxp.data.one_hot(CLASSES, 3)),
    "softmax, one-hot floats": (nnxp.SoftmaxWithLoss, SCORES, np.eye(3)[CLASSES]),
    "sigmoid, one output": (nnxp.SigmoidWithLoss, SCORES[:, :1], CLASSES == 2),
    "sigmoid, three outputs": (nnxp.SigmoidWithLoss, SCORES, nnxp.data.one_hot(CLASSES, 3)),
    "squared error": (nnxp.MeanSquaredError, SCORES, SCORES[::-1].copy()),
    "squared error, one-hot": (
        lambda: nnxp.MeanSquaredError(classes=True),
        SCORES,
        nnxp.data.one_hot(CLASSES, 3),
    ),
    "softmax, probabilities": (nnxp.SoftmaxWithLoss, SCORES, PROBABILITIES),
    "softmax, column": (nnxp.SoftmaxWithLoss, SCORES, CLASSES[:, None]),
    "softmax, smoothed": (lambda: nnxp.SoftmaxWithLoss(0.1), SCORES, CLASSES),
    "softmax, class weights": (
        lambda: nnxp.SoftmaxWithLoss(class_weights=[1, 2, 0.5]),
        SCORES,
        nnxp.data.one_hot(CLASSES, 3),
    ),
    "softmax, both": (smooth, SCORES, CLASSES),
    "softmax, both, probabilities": (smooth, SCORES, PROBABILITIES),
    "sigmoid, probabilities": (nnxp.SigmoidWithLoss, SCORES, PROBABILITIES),
    "sigmoid, column": (nnxp.SigmoidWithLoss, SCORES[:, :1], (CLASSES == 2)[:, None]),
    "squared error, one output": (nnxp.MeanSquaredError, SCORES[:, :1], CLASSES),
    "Huber": (lambda: nnxp.Huber(0.7), SCORES, SCORES[::-1].copy()),
    "absolute error": (nnxp.AbsoluteError, SCORES, SCORES[[1, 2, 3, 4, 0]]),
    "absolute error, one output": (nnxp.AbsoluteError, SCORES[:, :1], CLASSES),
}

# Labels of fifty examples in three classes that each loss takes.
TARGETS = {
    nnxp.SoftmaxWithLoss: np.arange(50) % 3,
    nnxp.SigmoidWithLoss: one_hot(np.arange(50) % 3, 3),
    nnxp.MeanSquaredError: np.linspace(-1, 1, 150).reshape(50, 3),
    nnxp.Huber: np.linspace(-3, 3, 150).reshape(50, 3),
    nnxp.AbsoluteError: np.linspace(-1, 1, 150).reshape(50, 3),
}

# Each loss with SGD, each optimizer with SoftmaxWithLoss; the other pairs in `nox -s tests-long`.
losses_and_optimizers = pytest.mark.parametrize(
    ("loss", "optimizer"),
    [
        pytest.param(loss, optimizer, marks=() if usual else pytest.mark.long)
        for loss in TARGETS
        for optimizer in OPTIMIZERS
        for usual in [loss is nnxp.SoftmaxWithLoss or optimizer == "sgd"]
    ],
)


def halve(params, grads):
    """A transform as users write them."""
    return {name: g * 0.5 for name, g in grads.items()}


# name: the options of a trainer or an optimizer that add it to a training
PENALTIES = {
    "L1": nnxp.L1(0.01),
    "L2": nnxp.L2(0.1),
    "L2, all": nnxp.L2(0.1, "all"),
    "L2, by name": nnxp.L2(0.1, ["W1", "b*"]),
    "ElasticNet": nnxp.ElasticNet(0.01, 0.1),
}
TRANSFORMS = {
    "ClipNorm": (nnxp.ClipNorm(0.1),),
    "ClipValue": (nnxp.ClipValue(0.01),),
    "ClipNorm, not reached": (nnxp.ClipNorm(1e3),),
    "both": (nnxp.ClipNorm(0.1), nnxp.ClipValue(0.01)),
    "a function": (halve,),
}
SCHEDULES = {
    "Constant": nnxp.schedules.Constant(0.05),
    "StepDecay": nnxp.schedules.StepDecay(0.1, 2, 0.5),
    "Exponential": nnxp.schedules.Exponential(0.1, 0.9),
    "Cosine": nnxp.schedules.Cosine(0.1, 5),
    "LinearWarmup": nnxp.schedules.LinearWarmup(0.1, 3),
    "OneCycle": nnxp.schedules.OneCycle(0.1, 8),
    "Chain": nnxp.schedules.Chain(
        [nnxp.schedules.LinearWarmup(0.1, 3), nnxp.schedules.Cosine(0.1, 4)], [3]
    ),
}
