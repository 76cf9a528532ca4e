"""Trainer: the way of the data, from batches over network, loss and back to the optimizer."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nnxp.arrays import Array
from nnxp.data.batches import Batches, Rows, carry, scaled
from nnxp.data.dataset import Dataset
from nnxp.devices import Device
from nnxp.errors import DivergenceError, InputError, require_count, require_rng
from nnxp.history import Record
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer

if TYPE_CHECKING:
    from nnxp.fast import Steps


_EVALUATED = 1000  # examples that are evaluated at once


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
    capture : bool or "auto", optional
        Whether `fit` prepares a step of nnxp's own parts once and repeats it, which is faster and
        the same up to rounding: on NumPy as calls in place, on JAX compiled, on CuPy as a CUDA
        graph, which comes with True alone until it has been measured on a GPU. True warns where
        that is not to be had; False does plain steps everywhere.

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

    def __init__(
        self,
        network: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        *,
        capture: bool | str = "auto",
    ) -> None:
        for thing, kind in [(network, Sequential), (loss, Loss), (optimizer, Optimizer)]:
            if not isinstance(thing, kind):
                raise InputError(f"Trainer expects a {kind.__name__} object, got {thing!r}")
        if network.device is None or network.dtype is None:
            raise InputError(f"{network!r} has no parameters to train")
        if capture not in (True, False, "auto"):
            raise InputError(f'capture must be True, False or "auto", got {capture!r}')
        self.network = network
        self.capture = capture
        self.loss = loss
        self.optimizer = optimizer
        self.history: list[Record] = []
        self._device: Device = network.device
        self._dtype: str = network.dtype
        self._steps: Steps | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_steps": None}  # a copy records its own

    def step(self, inputs: Array, labels: Array) -> Array:
        """Do one update and return the loss before it, as a 0-d array on the device.

        Parameters
        ----------
        inputs : (batch, …) array
            On the network's device and in its dtype.
        labels : array
            On the same device; what the loss expects.
        """
        with self._device.current():
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

        Captured steps (see `capture`) change parameters and state as `step` does, and leave no
        gradients behind.

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
        OutOfMemoryError
            If a batch does not fit into the device's memory.
        """
        require_count("epochs", epochs)
        require_rng(rng)
        batches = [self._batches(train, batch_size, rng)]
        self._check(train, "training")
        if validation is not None:
            batches.append(self._batches(validation, _EVALUATED))
            self._check(validation, "validation")
        with self._at_work(batches):
            for _ in range(epochs):
                self.history.append(self._epoch(*batches, verbose=verbose))
                if verbose:
                    print(self.history[-1], flush=True)
        return self.history

    def _epoch(
        self, batches: Batches, validation: Batches | None = None, *, verbose: bool
    ) -> Record:
        """Train for an epoch, evaluate, and return what it came to."""
        epoch = len(self.history) + 1
        start = time.perf_counter()
        self._train(batches, f"epoch {epoch:3d}" if verbose else None)
        on_train, *rest = self._evaluate(
            [x.in_order(_EVALUATED) for x in (batches, validation) if x is not None]
        )
        on_validation = rest[0] if rest else None
        if not math.isfinite(on_train.loss):
            raise DivergenceError(
                f"the loss is {on_train.loss} after epoch {epoch}; start from new weights "
                f"with a lower learning rate, now {self.optimizer.learning_rate:g}"
            )
        return Record(
            epoch,
            train_loss=on_train.loss,
            train_accuracy=on_train.accuracy,
            validation_loss=on_validation.loss if on_validation else None,
            validation_accuracy=on_validation.accuracy if on_validation else None,
            seconds=time.perf_counter() - start,
        )

    def train_epoch(self, batches: Batches) -> None:
        """Do the updates of one epoch, and nothing else.

        `fit` is this and the evaluations after it, epoch by epoch. The data set stays on the device
        as long as `batches` do.

        Parameters
        ----------
        batches : Batches
            On the network's device and in its dtype.
        """
        if not isinstance(batches, Batches):
            raise InputError(
                f"train_epoch expects Batches, got {type(batches).__name__}; make some with "
                "nnxp.data.Batches(dataset, batch_size, device=…, dtype=…, rng=rng)"
            )
        for what, own in (("device", self._device), ("dtype", self._dtype)):
            if getattr(batches, what) != own:
                raise InputError(
                    f"train_epoch expects batches of the network's {what} {own}, got "
                    f"{getattr(batches, what)}; make them with {what}=network.{what}"
                )
        if batches.rng is None:
            raise InputError("train_epoch expects batches in random order; make them with rng=rng")
        self._check(batches.dataset, "training")
        with self._at_work([batches]):
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
        """Return what does one update for a batch: `step`, or the same in a faster way."""
        from nnxp.fast import faster

        parts = self.network, self.loss, self.optimizer
        if type(self) is not Trainer or "step" in vars(self):
            way, why_not = None, "the trainer has a step of its own"
        elif self.capture is False:
            way, why_not = None, "capture is False"
        else:
            way, why_not = faster(self.capture, *parts, batches)
        if way is None:
            if self.capture is True:
                warnings.warn(f"no step is captured: {why_not}", stacklevel=2)
            return contextlib.nullcontext(lambda rows: self.step(*batches.take(rows)))
        if not isinstance(self._steps, way) or not self._steps.serves(*parts, batches.dataset):
            self._steps = way(*parts, batches.dataset)
        return self._steps.over(batches)

    @contextlib.contextmanager
    def _at_work(self, batches: list[Batches]) -> Iterator[None]:
        """Compute on the device, with as many threads as the first batches are worth there.

        In the end `batches` is empty, so that its data sets leave the device's memory.
        """
        with contextlib.ExitStack() as stack:
            size = max(x.batch_size for x in batches)
            stack.enter_context(self._device.at_work(self._describe(size)))
            stack.callback(batches.clear)
            if self._device.spec == "cpu":
                from nnxp.fast import one_thread_if_small

                parameters = self.network.parameters().values()
                largest = max(math.prod(x.shape) for x in parameters)
                stack.enter_context(one_thread_if_small(batches[0].batch_size * largest))
            yield

    def evaluate(self, dataset: Dataset, batch_size: int = _EVALUATED) -> Evaluation:
        """Return mean loss and accuracy over all examples.

        Parameters
        ----------
        dataset : Dataset
        batch_size : int, optional
            How many examples are computed at once.
        """
        batches = [self._batches(dataset, batch_size)]
        self._check(dataset, "given")
        with self._at_work(batches):
            (evaluation,) = self._evaluate(batches)
        return evaluation

    def _evaluate(self, batches: list[Batches]) -> list[Evaluation]:
        """Evaluate data sets that have been checked; it waits for the device once."""
        xp = self._device.xp
        sums: list[Array] = []  # a data set's losses, then its hits, batch by batch
        counts = []  # how many of them there are
        for each in batches:
            losses, hits = [], []
            for inputs, labels in each:
                scores = self.network.predict(inputs)
                loss = self.loss.forward(scores, labels, training=False)
                losses.append(loss * inputs.shape[0])
                hit = self.loss.hits(scores, labels)
                if hit is not None:
                    hits.append(xp.sum(xp.astype(hit, loss.dtype)))
            sums += losses + hits
            counts += [len(losses), len(hits)]
        numbers = iter(self._device.to_host(xp.stack(sums)).tolist())
        totals = [sum(itertools.islice(numbers, n)) if n else math.nan for n in counts]
        return [
            Evaluation(loss / len(each.dataset), hits / len(each.dataset))
            for each, loss, hits in zip(batches, totals[::2], totals[1::2], strict=True)
        ]

    def _describe(self, batch_size: int) -> str:
        """Return what training with batches of a size takes, in words."""
        parameters = sum(math.prod(x.shape) for x in self.network.parameters().values())
        return f"{self.network!r} with {parameters:,} parameters and batches of {batch_size:,}"

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
        for values in (dataset.inputs, dataset.labels):
            if values.dtype.kind == "f" and values.dtype != self._dtype:
                largest = max(abs(float(values.min())), abs(float(values.max())))
                if largest > float(np.finfo(self._dtype).max):
                    raise InputError(
                        f"the {name} data hold {largest:g}, which {self._dtype} cannot; scale them"
                    )
        try:
            with self._device.current():
                first = carry(dataset.inputs[:1], dataset.labels[:1], self._device, self._dtype)
                scores = self.network.predict(scaled(first[0], self._device, self._dtype))
            self.loss.check_labels(dataset.labels, tuple(scores.shape[1:]))
        except InputError as error:
            raise InputError(f"the {name} data do not suit: {error}") from error
