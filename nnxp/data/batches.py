"""Batches: a data set in batches on a device, shuffled in each epoch."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import mmap
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array, DType
from nnxp.checks import Rng, explained, require_count, require_rng, warn
from nnxp.data.dataset import Dataset
from nnxp.data_format import prepare_inputs, stored_dtype
from nnxp.devices import Device, open_device, require_dtype
from nnxp.errors import InputError


class Batches:
    """All examples of a data set, in batches on a device; each iteration is one epoch.

    The first batch transfers the whole data set to the device, images as uint8. `Batches` keeps
    this copy; later changes of the data set have no effect. Each epoch then transfers only the
    indices of its examples, once. A data set that needs more than half of the device's free memory
    stays on the host, with a warning, and is transferred batch by batch.

    Parameters
    ----------
    dataset : Dataset
        The examples.
    batch_size : int
        The number of examples in a batch. The last batch of an epoch may be shorter.
    device : Device or str
        The device of the batches.
    dtype : str
        The dtype of inputs, weights and floating-point labels, ``"float32"`` or ``"float64"``.
    rng : numpy.random.Generator, SeedSequence or int, optional
        Draws a new order of all examples for each epoch. By default, examples keep their order.

    Yields
    ------
    inputs : (batch, …) array
        On the device, in `dtype`, divided by the data set's `scale`.
    labels : (batch,) or (batch, outputs) array
        On the device; integers as int32, floating-point targets in `dtype`.
    weights : (batch,) array
        Only if the data set has weights; in `dtype`.

    Raises
    ------
    InputError
        If `dataset` is not a `Dataset`, `batch_size` is not a whole number of at least 1, `dtype`
        is not one of `DTYPES`, or `rng` is neither a generator nor a seed.
    DeviceError
        If the device cannot be used.
    """

    @explained('nnxp.data.Batches(dataset, 100, device="cpu", dtype="float32", rng=0)')
    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        device: Device | str,
        dtype: DType,
        rng: Rng | None = None,
    ) -> None:
        if not isinstance(dataset, Dataset):
            raise InputError(
                f"Batches expects a Dataset, got {type(dataset).__name__}; make one with "
                "nnxp.data.Dataset(inputs, labels)"
            )
        self.dataset = dataset
        self.batch_size = require_count("batch_size", batch_size)
        self.device = open_device(device)
        self.dtype = require_dtype(dtype)
        self.rng = None if rng is None else require_rng(rng)

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    @property
    def total_weight(self) -> float:
        """The sum of the weights of all examples; their number if there are no weights."""
        return self.dataset.total_weight

    def __iter__(self) -> Iterator[tuple[Array, ...]]:
        rows = self._slices() if self.rng is None else self.shuffled_rows(self.rng)
        return map(self.take, rows)

    def in_order(self, batch_size: int) -> Self:
        """Return batches of another size in the data set's order, which share the device arrays."""
        _ = self.arrays  # transfer the data set now, so that the copy shares it
        batches = copy.copy(self)
        batches.batch_size, batches.rng = batch_size, None
        return batches

    def part(self, first: int, step: int) -> Iterator[tuple[Array, ...]]:
        """Return batch `first` in the data set's order, and every `step`-th batch after it."""
        return map(self.take, itertools.islice(self._slices(), first, None, step))

    def shuffled_rows(self, rng: np.random.Generator) -> Iterator[Array]:
        """Draw an epoch's order, and return the row indices of each batch."""
        count = len(self.dataset)
        order = self.indices(rng.permutation(count))
        return (order[rows] for rows in self._slices())

    def indices(self, rows: npt.NDArray[Any]) -> Array:
        """Return row indices on the device of the data set's arrays."""
        if self.resident is None:
            return rows
        return self.device.asarray(rows, dtype="int32" if len(self.dataset) < 2**31 else "int64")

    def take(self, rows: Array | slice) -> tuple[Array, ...]:
        """Return the batch of the examples with these indices."""
        arrays = self.arrays
        if self.resident is None or isinstance(rows, slice):
            index: Any = rows if self.resident is None else (rows, ...)
            batch = [x[index] for x in arrays]
        else:
            batch = [self.device.xp.take(x, rows, axis=0) for x in arrays]
        return prepare_batch(batch, self.dataset.scale, self.device, self.dtype)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The data set's arrays: on the device, or on the host if they stay there."""
        return self.resident or self._host_arrays

    @functools.cached_property
    def _host_arrays(self) -> tuple[Array, ...]:
        """The data set's arrays, whose rows can be read at random."""
        if self.rng is None:  # read in order
            return self.dataset.arrays
        names = ("inputs", "labels", "weights")
        arrays = zip(names, self.dataset.arrays, strict=False)
        return tuple(_with_near_rows(name, x) for name, x in arrays)

    @functools.cached_property
    def resident(self) -> tuple[Array, ...] | None:
        """The data set's arrays on the device; None if they stay on the host."""
        if self.device.is_host:
            return None
        inputs, labels = self.dataset.inputs, self.dataset.labels
        itemsize = int(self.dtype[5:]) // 8
        needed = inputs.size * (1 if inputs.dtype == np.uint8 else itemsize)
        needed += labels.size * (itemsize if labels.dtype.kind == "f" else 4)
        free = self.device.free_memory()
        if free is None or needed <= free / 2:
            try:
                return to_device(self.dataset, self.device, self.dtype)
            except Exception as error:
                if not self.device.is_memory_error(error):
                    raise
        available = "" if free is None else f" and {self.device.spec} has {free / 2**20:,.0f} free"
        warn(
            f"the data set takes {needed / 2**20:,.0f} MiB{available}: it stays on the host and is "
            "transferred batch by batch, which is slower"
        )
        return None

    def _slices(self) -> Iterator[slice]:
        """Return the slice of each batch in an epoch's order."""
        count = len(self.dataset)
        starts = range(0, count, self.batch_size)
        return (slice(start, min(start + self.batch_size, count)) for start in starts)


def _with_near_rows(name: str, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array whose rows are contiguous in memory: `x`, or a copy of it.

    In Fortran order, the numbers of a row are far apart, and reading one takes as long as reading
    dozens of contiguous ones. Memory maps are not copied, since they may be larger than the memory.
    """
    column = abs(x.strides[0]) * (len(x) - 1)
    sizes_and_strides = zip(x.shape[1:], x.strides[1:], strict=True)
    far = column > 0 and any(size > 1 and abs(step) >= column for size, step in sizes_and_strides)
    if not far and x.flags.aligned:
        return x
    what = "in Fortran order" if far else "not aligned"
    if _is_memory_map(x):
        warn(f"the {name} are a memory map {what}, which is read slowly; save them in C order")
        return x
    warn(
        f"the {name} are {what} in memory and are copied once to C order; "
        "numpy.ascontiguousarray avoids that"
    )
    return np.array(x, order="C")


def _is_memory_map(x: object) -> bool:
    while isinstance(x, np.ndarray):
        if isinstance(x, np.memmap):
            return True
        x = x.base
    return isinstance(x, mmap.mmap)


def prepare_batch(
    batch: Sequence[Array], scale: float | None, device: Device, dtype: str
) -> tuple[Array, ...]:
    """Return a batch in the form that a network and a loss take.

    Parameters
    ----------
    batch : sequence of array
        Inputs, labels, and weights if there are any, on the host or on `device`.
    scale : float or None
        The divisor of the inputs.
    device : Device
    dtype : str

    Returns
    -------
    tuple of array
        Arrays on `device`. Inputs, weights and floating-point labels have `dtype`, other labels
        int32.
    """
    inputs, *rest = batch
    inputs = prepare_inputs(inputs, scale, device, dtype)
    if device.is_host or not device.holds(rest[0]):  # arrays on the device are already converted
        rest = [device.asarray(x, dtype=_label_dtype(x, dtype)) for x in rest]
    return inputs, *rest


def to_device(dataset: Dataset, device: Device, dtype: str) -> tuple[Array, ...]:
    """Return a data set's arrays on `device`, where images stay uint8."""
    inputs, *rest = dataset.arrays
    return (
        device.asarray(inputs, dtype=stored_dtype(inputs, dtype)),
        *(device.asarray(x, dtype=_label_dtype(x, dtype)) for x in rest),
    )


def _label_dtype(labels: Array, dtype: str) -> str:
    return dtype if labels.dtype.kind == "f" else "int32"
