"""BatchStream: batches from an iterable, for data that do not fit into memory."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import numpy as np

from nnxp.arrays import Array
from nnxp.data.batches import Batches, to_device
from nnxp.data.dataset import Dataset
from nnxp.data_format import require_columns
from nnxp.devices import Device
from nnxp.errors import InputError, RanksError
from nnxp.ranks import ONE_RANK, Ranks

_END, _FAILED = -1, -2  # of a rank's batches, in place of a checksum


class BatchStream(Batches):
    """Batches from an iterable, each a pair of NumPy arrays, inputs and labels.

    Parameters
    ----------
    items : iterable
        An iterable that can be iterated repeatedly, such as a list or a PyTorch DataLoader, but not
        a generator. Its items are pairs (inputs, labels), as a `Dataset` takes them.
    device, dtype
        As in `Batches`.
    ranks : Ranks, optional
        The processes that divide each batch, and must have the same ones.

    Attributes
    ----------
    examples : int
        The number of examples so far in the current epoch.
    check_labels : callable
        A function that is called with each batch's labels, and raises if they do not fit.

    Raises
    ------
    InputError
        If `items` cannot be iterated twice or is empty, or an item is not a batch.
    """

    def __init__(
        self,
        items: Iterable[Any],
        *,
        device: Device | str,
        dtype: str,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        given: object = items
        known = isinstance(given, Iterable) and not isinstance(given, (str, bytes, np.ndarray))
        if not known or iter(items) is items:
            raise InputError(
                "expected a Dataset, or an iterable of batches that restarts in each epoch, such "
                f"as a list, got {type(items).__name__}; make a data set with "
                "nnxp.data.Dataset(inputs, labels)"
            )
        self.items = items
        first = next(iter(items), None)
        if first is None:
            raise InputError("fit expects batches, got an empty iterable")
        dataset = _require_batch(first, "auto")
        super().__init__(dataset, len(dataset), device=device, dtype=dtype)
        self.examples = 0
        self.ranks = ranks
        self.check_labels: Callable[[Any], object] = lambda labels: None
        self._current = self._on_device(dataset)

    def __len__(self) -> int:
        """Return the number of batches; 0 if the iterable has no length."""
        return len(self.items) if isinstance(self.items, Sized) else 0

    @property
    def total_weight(self) -> float:
        """The number of examples so far in the current epoch."""
        return float(self.examples)

    def rows(self, skipped: int) -> Iterator[Array]:
        """Fetch each batch and yield its row indices; skip the first `skipped` batches."""
        self.examples = 0
        datasets = self._datasets()
        for i in itertools.count():
            dataset = self._next(datasets, i + 1)
            if dataset is None:
                return
            self.examples += len(dataset)
            if i >= skipped:
                self._current = self._on_device(dataset)
                yield self.indices(np.arange(len(dataset)))

    def _next(self, datasets: Iterator[Dataset], number: int) -> Dataset | None:
        """Return the next batch, the same on all ranks, or None after the last one."""
        if self.ranks.size == 1:
            return next(datasets, None)
        dataset: Dataset | None = None
        error: BaseException | None = None
        try:
            dataset = next(datasets, None)
        except BaseException as raised:  # noqa: BLE001 - raised on all ranks
            error = raised
        known = _END if dataset is None else zlib.crc32(dataset.labels.tobytes())
        numbers = self.ranks.numbers(known if error is None else _FAILED)
        if _FAILED in numbers:
            self.ranks.exchange(error=error)
        for rank, x in enumerate(numbers):
            if x != numbers[0]:
                other = f"other labels in batch {number}"
                if _END in (x, numbers[0]):
                    other = f"{'fewer' if x == _END else 'more'} batches"
                raise self.ranks.common(
                    RanksError(
                        f"rank {rank} has {other} than rank 0; all ranks need the same batches in "
                        "the same order, for example by one seed for all"
                    )
                )
        return dataset

    def _datasets(self) -> Iterator[Dataset]:
        """Yield the batches, checked."""
        for i, item in enumerate(self.items):
            dataset = _require_batch(item, self.dataset.scale)
            for name in ("inputs", "labels"):
                first, own = (getattr(x, name) for x in (self.dataset, dataset))
                if (first.shape[1:], first.dtype) != (own.shape[1:], own.dtype):
                    raise InputError(
                        f"all batches must have {name} of one shape and dtype: the first has "
                        f"(batch, *{first.shape[1:]}) {first.dtype}, batch {i + 1} has "
                        f"(batch, *{own.shape[1:]}) {own.dtype}"
                    )
            kept = "trainer.network.data_format.columns"
            require_columns(
                self.dataset.columns, dataset.columns, f"the inputs of batch {i + 1}", kept
            )
            self.check_labels(dataset.labels)
            yield dataset

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the current batch."""
        return self._current

    @property
    def resident(self) -> tuple[Array, ...] | None:
        """The arrays of the current batch; None if the device is the host."""
        return None if self.device.is_host else self._current

    def _on_device(self, dataset: Dataset) -> tuple[Array, ...]:
        if self.device.is_host:
            return dataset.arrays
        return to_device(dataset, self.device, self.dtype)


def _require_batch(item: Any, scale: float | str | None) -> Dataset:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise InputError(
            "a batch must be a pair of NumPy arrays, inputs and labels, got "
            f"{type(item).__name__}; make a data set of whole arrays with "
            "nnxp.data.Dataset(inputs, labels)"
        )
    dataset = Dataset(*item, scale=scale)
    if dataset.classes is not None:
        raise InputError(
            "batches must have numbers as labels, got text; give class numbers, the same for all "
            "batches"
        )
    return dataset
