"""Batches: shuffled on the host, carried once over the border, scaled on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array
from nnxp.data.dataset import Dataset
from nnxp.devices import Device, require_dtype
from nnxp.devices import device as open_device
from nnxp.errors import require_count, require_rng


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
        count = len(self.dataset)
        order = None if self.rng is None else self.rng.permutation(count)
        for start in range(0, count, self.batch_size):
            end = start + self.batch_size
            yield self._carry(slice(start, end) if order is None else order[start:end])

    def _carry(self, rows: slice | npt.NDArray[Any]) -> tuple[Array, Array]:
        inputs, labels = self.dataset.inputs[rows], self.dataset.labels[rows]
        label_dtype = self.dtype if labels.dtype.kind == "f" else "int32"
        if inputs.dtype == np.uint8:
            # A quarter of float32's bytes cross the border; scaling is the device's work.
            xp = self.device.xp
            x = xp.astype(self.device.asarray(inputs), getattr(xp, self.dtype))
            x /= 255.0
        else:
            x = self.device.asarray(inputs, dtype=self.dtype)
        return x, self.device.asarray(labels, dtype=label_dtype)
