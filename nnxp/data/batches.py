"""Batches: shuffled on the host, taken from where the data set lives, scaled on the device."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Iterator
from typing import Any, Self, TypeAlias

import numpy as np

from nnxp.arrays import Array
from nnxp.checks import require_count, require_rng
from nnxp.data.dataset import Dataset
from nnxp.devices import Device, open_device, require_dtype

Rows: TypeAlias = Any
"""What picks examples: their numbers in an array, or a slice."""


class Batches:
    """All examples of a data set, in batches on a device; each iteration is one epoch.

    The first batch takes the whole data set to the device, images as uint8, where it stays as long
    as the `Batches` do; from then on the numbers of an epoch's examples cross the border, once, and
    what is changed in the data set does not. A data set that would take more than half of the
    device's free memory stays on the host, with a warning, and crosses batch by batch.

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

    def in_order(self, batch_size: int) -> Self:
        """Return the same examples unshuffled, in batches of another size; none crosses again."""
        _ = self.resident
        twin = copy.copy(self)
        twin.batch_size, twin.rng = batch_size, None
        return twin

    def rows(self) -> Iterator[Rows]:
        """Return which examples are in each batch of an epoch: their numbers, or a slice."""
        count = len(self.dataset)
        order = None if self.rng is None else self.rng.permutation(count)
        if order is not None and self.resident:
            order = self.device.asarray(order, dtype="int32" if count < 2**31 else "int64")
        starts = range(0, count, self.batch_size)
        batches = (slice(start, min(start + self.batch_size, count)) for start in starts)
        return batches if order is None else (order[rows] for rows in batches)

    def take(self, rows: Rows) -> tuple[Array, Array]:
        """Return the batch of these examples."""
        if self.resident is None:
            arrays = self.dataset.inputs[rows], self.dataset.labels[rows]
            inputs, labels = to_device(*arrays, self.device, self.dtype)
        elif isinstance(rows, slice):
            inputs, labels = (x[rows, ...] for x in self.resident)
        else:
            inputs, labels = (self.device.xp.take(x, rows, axis=0) for x in self.resident)
        return scale_images(inputs, self.device, self.dtype), labels

    @functools.cached_property
    def resident(self) -> tuple[Array, Array] | None:
        """Inputs and labels on the device; None where they stay on the host."""
        if self.device.spec == "cpu":
            return None  # it is the host
        inputs, labels = self.dataset.inputs, self.dataset.labels
        width = int(self.dtype[5:]) // 8
        needed = inputs.size * (1 if inputs.dtype == np.uint8 else width)
        needed += labels.size * (width if labels.dtype.kind == "f" else 4)
        free = self.device.free_memory()
        if free is None or needed <= free / 2:
            try:
                return to_device(inputs, labels, self.device, self.dtype)
            except Exception as error:
                if not self.device.is_memory_error(error):
                    raise
        left = "" if free is None else f" and {self.device.spec} has {free / 2**20:,.0f} free"
        warnings.warn(
            f"the data set takes {needed / 2**20:,.0f} MiB{left}: it stays on the host and crosses "
            "batch by batch, which is slower",
            stacklevel=2,
        )
        return None


def to_device(inputs: Array, labels: Array, device: Device, dtype: str) -> tuple[Array, Array]:
    """Carry inputs and labels to `device`; images stay uint8, a quarter of float32's bytes."""
    input_dtype = "uint8" if inputs.dtype == np.uint8 else dtype
    label_dtype = dtype if labels.dtype.kind == "f" else "int32"
    return device.asarray(inputs, dtype=input_dtype), device.asarray(labels, dtype=label_dtype)


def scale_images(inputs: Array, device: Device, dtype: str) -> Array:
    """Return inputs of a network: images from 0 to 1, in `dtype`."""
    xp = device.xp
    if inputs.dtype != xp.uint8:
        return inputs
    x = xp.astype(inputs, getattr(xp, dtype))
    x *= 1 / 255  # faster than a division
    return x
