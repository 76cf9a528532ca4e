"""Trainer: the way of the data, from batches over network, loss and back to the optimizer."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnxp.arrays import Array
from nnxp.data.batches import Batches, Rows
from nnxp.data.dataset import Dataset
from nnxp.devices import Device
from nnxp.errors import DivergenceError, InputError, require_count, require_rng
from nnxp.history import Record
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer

if TYPE_CHECKING:
    from nnxp.fast import Replay


class Evaluation(NamedTuple):
    """Mean loss and accuracy on a data set; the accuracy is nan where there are no classes."""

    loss: float
    accuracy: float


class Trainer:
    """Trains a network.

    Parameters
    ----------
    network : Sequential
    loss : Loss
    optimizer : Optimizer

    Attributes
    ----------
    history : list of Record
        One record for each finished epoch, over all calls of `fit`; it survives an interrupted one.

    Examples
    --------
    >>> import numpy as np
    >>> import nnxp
    >>> rng = np.random.default_rng(0)
    >>> train, test = nnxp.data.load_digits()
    >>> network = nnxp.ThreeLayerNet(64, 50, 30, 10, rng=rng)
    >>> trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(learning_rate=0.1))
    >>> history = trainer.fit(train, epochs=30, batch_size=50, validation=test, rng=rng)
    >>> history[-1].validation_accuracy > 0.9
    True
    """

    def __init__(self, network: Sequential, loss: Loss, optimizer: Optimizer) -> None:
        for thing, kind in [(network, Sequential), (loss, Loss), (optimizer, Optimizer)]:
            if not isinstance(thing, kind):
                raise InputError(f"Trainer expects a {kind.__name__} object, got {thing!r}")
        if network.device is None or network.dtype is None:
            raise InputError(f"{network!r} has no parameters to train")
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.history: list[Record] = []
        self._device: Device = network.device
        self._dtype: str = network.dtype
        self._replay: Replay | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_replay": None}  # a copy records its own

    def step(self, inputs: Array, labels: Array) -> Array:
        """Do one update and return the loss before it, as a 0-d array on the device.

        Parameters
        ----------
        inputs : (batch, …) array
            On the network's device and in its dtype.
        labels : array
            On the same device; what the loss expects.
        """
        scores = self.network.forward(inputs, training=True)
        loss = self.loss.forward(scores, labels)
        self.network.parameter_gradients(self.loss.backward())
        self.optimizer.update(self.network.parameters(), self.network.gradients())
        return loss

    def fit(
        self,
        train: Dataset,
        *,
        epochs: int,
        batch_size: int,
        rng: np.random.Generator,
        validation: Dataset | None = None,
        verbose: bool = False,
    ) -> list[Record]:
        """Train for some epochs, each over all examples in a new order.

        On NumPy the steps of nnxp's own parts are recorded and replayed (see `nnxp.fast`): they
        change parameters and state as `step` does, and leave no gradients behind.

        Parameters
        ----------
        train : Dataset
        epochs, batch_size : int
            At least 1.
        rng : numpy.random.Generator
            Draws the orders.
        validation : Dataset, optional
            Evaluated after each epoch.
        verbose : bool, optional
            Print a line for each epoch, and show a progress bar on a terminal.

        Returns
        -------
        list of Record
            `history`; calling `fit` again continues it.

        Raises
        ------
        InputError
            Before any training, if a data set does not suit network and loss.
        DivergenceError
            If the loss on the training examples is not finite after an epoch.
        """
        require_count("epochs", epochs)
        require_rng(rng)
        batches = self._batches(train, batch_size, rng)
        self._check(train, "training")
        if validation is not None:
            self._check(validation, "validation")
        with self._threads():
            for _ in range(epochs):
                self.history.append(self._epoch(batches, validation, verbose))
                if verbose:
                    print(self.history[-1], flush=True)
        return self.history

    def _epoch(self, batches: Batches, validation: Dataset | None, verbose: bool) -> Record:
        """Train for an epoch, evaluate, and return what it came to."""
        epoch = len(self.history) + 1
        start = time.perf_counter()
        self._train(batches, f"epoch {epoch:3d}" if verbose else None)
        on_train = self._evaluate(batches.dataset)
        if not math.isfinite(on_train.loss):
            raise DivergenceError(
                f"the loss is {on_train.loss} after epoch {epoch}; start from new weights "
                f"with a lower learning rate, now {self.optimizer.learning_rate:g}"
            )
        on_validation = None if validation is None else self._evaluate(validation)
        return Record(
            epoch,
            train_loss=on_train.loss,
            train_accuracy=on_train.accuracy,
            validation_loss=on_validation.loss if on_validation else None,
            validation_accuracy=on_validation.accuracy if on_validation else None,
            seconds=time.perf_counter() - start,
        )

    def train_epoch(self, train: Dataset, *, batch_size: int, rng: np.random.Generator) -> None:
        """Do the updates of one epoch, over all examples in a new order, and nothing else.

        `fit` is this and the evaluations after it, epoch by epoch. Parameters and errors are its.
        """
        require_rng(rng)
        self._check(train, "training")
        batches = self._batches(train, batch_size, rng)
        with self._threads():
            self._train(batches)

    def _train(self, batches: Batches, progress: str | None = None) -> None:
        """Do the updates of one epoch; show progress under that name."""
        rows: Iterable[Rows] = batches.rows()
        if progress is not None:
            from tqdm import tqdm

            # disable=None: shown on a terminal only.
            rows = tqdm(rows, progress, total=len(batches), leave=False, disable=None, unit="batch")
        with self._stepping(batches) as step:
            for batch in rows:
                step(batch)

    def _stepping(
        self, batches: Batches
    ) -> contextlib.AbstractContextManager[Callable[[Rows], object]]:
        """Return what does one update for a batch: `step`, or on NumPy the same, faster."""
        own = type(self) is not Trainer or "step" in vars(self)
        if self._device.spec == "cpu" and not own:
            from nnxp.fast import Replay, is_replayable

            parts = self.network, self.loss, self.optimizer
            if is_replayable(*parts):
                if self._replay is None or not self._replay.serves(*parts, batches.dataset):
                    self._replay = Replay(*parts, batches.dataset)
                return self._replay.over(batches.dataset)
        return contextlib.nullcontext(lambda rows: self.step(*batches.take(rows)))

    def _threads(self) -> contextlib.AbstractContextManager[object]:
        """Return a context with as many threads on NumPy as the network is worth."""
        if self._device.spec != "cpu":
            return contextlib.nullcontext()
        from nnxp.fast import one_thread_if_small

        parameters = self.network.parameters().values()
        return one_thread_if_small(max(math.prod(x.shape) for x in parameters))

    def evaluate(self, dataset: Dataset, batch_size: int = 1000) -> Evaluation:
        """Return mean loss and accuracy over all examples.

        Parameters
        ----------
        dataset : Dataset
        batch_size : int, optional
            How many examples are on the device at once.
        """
        self._check(dataset, "given")
        with self._threads():
            return self._evaluate(dataset, batch_size)

    def _evaluate(self, dataset: Dataset, batch_size: int = 1000) -> Evaluation:
        """Evaluate a data set that has been checked; it waits for the device at the end only."""
        xp = self._device.xp
        losses, counts = [], []
        for inputs, labels in self._batches(dataset, batch_size):
            scores = self.network.predict(inputs)
            losses.append(self.loss.forward(scores, labels, training=False) * inputs.shape[0])
            hits = self.loss.hits(scores, labels)
            if hits is not None:
                counts.append(xp.sum(xp.astype(hits, xp.int32)))
        accuracy = int(sum(counts)) / len(dataset) if counts else math.nan
        return Evaluation(float(sum(losses)) / len(dataset), accuracy)

    def _batches(
        self, dataset: Dataset, batch_size: int, rng: np.random.Generator | None = None
    ) -> Batches:
        if not isinstance(dataset, Dataset):
            raise InputError(
                f"expected a Dataset, got {type(dataset).__name__}; make one with "
                "nnxp.data.Dataset(inputs, labels)"
            )
        return Batches(dataset, batch_size, device=self._device, dtype=self._dtype, rng=rng)

    def _check(self, dataset: Dataset, name: str) -> None:
        """Try the first example, and all numbers on the host, before any work is done."""
        batches = self._batches(dataset, 1)
        for values in (dataset.inputs, dataset.labels):
            if values.dtype.kind == "f" and values.dtype != self._dtype:
                largest = max(abs(float(values.min())), abs(float(values.max())))
                if largest > float(np.finfo(self._dtype).max):
                    raise InputError(
                        f"the {name} data hold {largest:g}, which {self._dtype} cannot; scale them"
                    )
        try:
            inputs, _ = next(iter(batches))
            scores = self.network.predict(inputs)
            self.loss.check_labels(dataset.labels, tuple(scores.shape[1:]))
        except InputError as error:
            raise InputError(f"the {name} data do not suit: {error}") from error
