"""Recipes: the networks of train_mnist.py, and the settings for their training."""

from __future__ import annotations

from typing import Any

import numpy as np
from runs import Data

import nnxp
from nnxp.initializers import INITIALIZERS
from nnxp.optimizers import OPTIMIZERS
from nnxp.schedules import OneCycle

# Nesterov momentum 0.9. The learning rate rises linearly from 4 % of the peak during the first
# fifth of the steps, and then falls to 0. Weights decay; biases and the parameters of
# normalizations do not. With this momentum, a decay has the same effect as a tenth of it in
# PyTorch's SGD, where it passes through the velocity. The settings were chosen on the last 10,000
# training images of MNIST, after training on the others.
_RECIPE: dict[str, Any] = {
    "batch_norm": True, "optimizer": "nesterov", "learning_rate": 0.1, "schedule": "onecycle",
    "weight_decay": 5e-3, "batch_size": 128, "label_smoothing": 0.0,
}  # fmt: skip
# The defaults of the options of train_mnist.py; `shift` is in pixels.
MODELS: dict[str, dict[str, Any]] = {
    "plain": {
        "hidden": [50, 30], "shift": 0, "epochs": 10, "batch_norm": False, "optimizer": "sgd",
        "learning_rate": 0.1, "schedule": "constant", "weight_decay": 0.0, "batch_size": 100,
        "label_smoothing": 0.0,
    },
    "mlp": _RECIPE | {
        "hidden": [512, 256], "shift": 1, "epochs": 6, "learning_rate": 0.2, "weight_decay": 0.01,
        "label_smoothing": 0.05,
    },
    "lenet": _RECIPE | {"hidden": None, "shift": 2, "epochs": 4},
}  # fmt: skip
SCHEDULES = ("constant", "onecycle")
FEW, EPOCHS_OF_FEW = 10_000, 50  # more epochs for few images, since an epoch has few steps


def needs_images(settings: dict[str, Any]) -> bool:
    """Return whether the network takes images instead of rows of pixels."""
    return settings["model"] == "lenet" or settings["shift"] > 0


def padding_of(image: tuple[int, int, int]) -> int:
    """Return the padding of LeNet's convolutions for an image (channels, height, width)."""
    return 0 if min(image[1:]) >= 16 else 2


def new_network(
    settings: dict[str, Any], data: Data, rng: np.random.Generator, device: nnxp.Device
) -> nnxp.Sequential:
    """Return the network for settings with the names of the options of train_mnist.py."""
    place = {"dtype": settings["dtype"], "device": device}
    options = place | {
        "rng": rng, "activation": settings["activation"], "batch_norm": settings["batch_norm"],
        "initializer": INITIALIZERS[settings["init"]] if settings["init"] else None,
        "dropout": settings["dropout"],
    }  # fmt: skip
    if settings["model"] == "lenet":
        image = data.train.inputs.shape[1:]
        padding = padding_of(image)
        layers = [*nnxp.lenet(data.classes, image=image, padding=padding, **options)]
    else:
        layers = [*nnxp.mlp(data.widths(settings["hidden"]), **options)]
        if settings["shift"]:
            layers.insert(0, nnxp.Flatten())
    if settings["shift"]:
        layers.insert(0, nnxp.RandomShift(settings["shift"], rng=rng, **place))
    network = nnxp.Sequential(layers)
    network.output_shape(data.train.inputs.shape[1:])  # raises an error if the images do not fit
    return network


def new_loss(settings: dict[str, Any]) -> nnxp.SoftmaxWithLoss:
    """Return the loss of a run's settings."""
    return nnxp.SoftmaxWithLoss(label_smoothing=settings["label_smoothing"])


def new_optimizer(settings: dict[str, Any], examples: int) -> nnxp.Optimizer:
    """Return the optimizer of a run's settings; a one-cycle schedule ends with the last epoch."""
    rate = settings["learning_rate"]
    if settings["schedule"] == "onecycle":
        steps = -(-examples // settings["batch_size"]) * settings["epochs"]
        rate = OneCycle(rate, steps)
    return OPTIMIZERS[settings["optimizer"]](
        rate, weight_decay=settings["weight_decay"], decayed="matrices"
    )
