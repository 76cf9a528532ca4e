"""Preparation: checks data sets against network and loss, before any work is done."""

from __future__ import annotations

import math

import numpy as np

from nnxp.data.batches import Batches, scale_images, to_device
from nnxp.data.dataset import Dataset
from nnxp.errors import InputError
from nnxp.losses import Loss
from nnxp.network import Sequential


def require_dataset(dataset: object) -> Dataset:
    """Return `dataset` if it is a `Dataset`."""
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"expected a Dataset, got {type(dataset).__name__}; make one with "
            "nnxp.data.Dataset(inputs, labels)"
        )
    return dataset


def require_suitable(batches: Batches, name: str, network: Sequential, loss: Loss) -> None:
    """Raise an `InputError` unless network and loss can be computed for all examples.

    The first example is predicted; all labels, and all numbers' ranges, are checked on the host.

    Parameters
    ----------
    batches : Batches
        On the network's device and in its dtype.
    name : str
        Of the data set, for the error: "training" or "validation".
    network : Sequential
    loss : Loss
    """
    dataset, device, dtype = batches.dataset, batches.device, batches.dtype
    for values in (dataset.inputs, dataset.labels):
        if values.dtype.kind == "f" and values.dtype != dtype:
            largest = max(abs(float(values.min())), abs(float(values.max())))
            if largest > float(np.finfo(dtype).max):
                raise InputError(
                    f"the {name} data have the number {largest:g}, which {dtype} cannot hold; "
                    "scale them"
                )
    try:
        with device.current():
            inputs, _ = to_device(dataset.inputs[:1], dataset.labels[:1], device, dtype)
            scores = network.predict(scale_images(inputs, device, dtype))
        loss.check_labels(dataset.labels, tuple(scores.shape[1:]))
    except InputError as error:
        raise InputError(f"the {name} data do not suit: {error}") from error


def describe_work(network: Sequential, batch_size: int, evaluated: int) -> str:
    """Return the sizes of a training, for an error about memory."""
    parameters = sum(math.prod(x.shape) for x in network.parameters().values())
    return (
        f"{network!r} with {parameters:,} parameters and batches of {batch_size:,} "
        f"(evaluated {evaluated:,} at a time)"
    )
