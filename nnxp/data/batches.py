"""Batches: shuffled on the host, carried once over the border, scaled on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from nnxp.arrays import Array
from nnxp.data.dataset import Dataset
from nnxp.devices import Device, require_dtype
from nnxp.devices import device as open_device
from nnxp.errors import require_count, require_rng

Rows: TypeAlias = Any
"""What picks examples: their numbers in an array, or a slice."""


class Batches:
    """All examples of a data set, in batches on a device; each iteration is one epoch.

    Parameters
    ----------
    dataset : Dataset
    batch_size : int
        The last batch of an epoch is shorter when the examples do not divide evenly.
    device : Device or str
    dtype : str
        Dtype of the batches' inputs.
    rng : numpy.random.Generator, optional
        Draws a new order of all examples for each epoch; without it they keep their order.

    Yields
    ------
    inputs : (batch, …) array
        On the device; images are scaled from 0 … 255 to 0 … 1.
    labels : (batch,) or (batch, outputs) array
        On the device; integers as int32, floating-point targets in `dtype`.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        device: Device | str,
        dtype: str,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = require_count("batch_size", batch_size)
        self.device = open_device(device)
        self.dtype = require_dtype(dtype)
        if rng is not None:
            require_rng(rng)
        self.rng = rng

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Array, Array]]:
        return map(self.take, self.rows())

    def rows(self) -> Iterator[Rows]:
        """Yield which examples are in each batch of an epoch: their numbers, or a slice."""
        count = len(self.dataset)
        order = None if self.rng is None else self.rng.permutation(count)
        for start in range(0, count, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield rows if order is None else order[rows]

    def take(self, rows: Rows) -> tuple[Array, Array]:
        """Return the batch of these examples."""
        return carry(self.dataset.inputs[rows], self.dataset.labels[rows], self.device, self.dtype)


def carry(inputs: Array, labels: Array, device: Device, dtype: str) -> tuple[Array, Array]:
    """Return a batch on `device`, as `Batches` yields it."""
    xp = device.xp
    label_dtype = dtype if labels.dtype.kind == "f" else "int32"
    if inputs.dtype == np.uint8:
        # A quarter of float32's bytes cross the border; scaling is the device's work.
        x = xp.astype(device.asarray(inputs), getattr(xp, dtype))
        x *= 1 / 255  # faster than a division
    else:
        x = device.asarray(inputs, dtype=dtype)
    return x, device.asarray(labels, dtype=label_dtype)
