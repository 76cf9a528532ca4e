"""Trainer: the way of the data, from batches over network, loss and back to the optimizer."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from nnxp.arrays import Array
from nnxp.checkpoint import Checkpoint, load, lock_target, require_saveable, resolve_target, save
from nnxp.checks import require_count, require_rng
from nnxp.data.batches import Batches, Rows, scale_images, to_device
from nnxp.data.dataset import Dataset
from nnxp.data.epoch import EpochProgress
from nnxp.devices import Device
from nnxp.errors import DivergenceError, InputError
from nnxp.history import Record, append_record
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.training.divergence import Snapshot, first_not_finite, is_finite, parameters_and_state

if TYPE_CHECKING:
    from nnxp.capture import CapturedSteps


_EVALUATED = 1000  # examples that are evaluated at once


class Evaluation(NamedTuple):
    """Mean loss and accuracy on a data set; the accuracy is nan where there are no classes."""

    loss: float
    accuracy: float


class _Plan(NamedTuple):
    """When `fit` saves and stops; see its parameters."""

    checkpoint: Path | None
    every: int | None
    stop: Callable[[], bool] | None


def _require_capture(capture: object) -> None:
    if not isinstance(capture, bool) and capture != "auto":
        raise InputError(f'capture must be True, False or "auto", got {capture!r}')


class Trainer:
    """Trains a network.

    Parameters
    ----------
    network : Sequential
    loss : Loss
    optimizer : Optimizer
    capture : bool or "auto", optional
        Whether `fit` prepares a step of nnxp's own parts once and repeats it: in place on NumPy,
        compiled on JAX, as a CUDA graph on CuPy. "auto" does so where that has been measured to be
        faster, which on CuPy it has not yet; True also does it there, and warns where no step can
        be prepared; False never does. The results agree up to rounding.

    Attributes
    ----------
    history : list of Record
        One record for each finished epoch, over all calls of `fit`; it survives an interrupted one.
        Beyond 10,000 records every second one is dropped, never the first or the last.
    rng : numpy.random.Generator or None
        The generator that `fit` drew orders from last, or that `resume` brought back.
    config : dict
        Whatever you want to have saved with the training: JSON, which has texts for keys and lists
        for tuples.

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
        _require_capture(capture)
        self.network = network
        self.capture = capture
        self.loss = loss
        self.optimizer = optimizer
        self.history: list[Record] = []
        self._device: Device = network.device
        self._dtype: str = network.dtype
        self.config: dict[str, Any] = {}
        self.rng: np.random.Generator | None = None
        self._position: EpochProgress | None = None  # where in an epoch, if it was stopped there
        self._training = False
        self._steps: CapturedSteps | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_steps": None, "_training": False}  # a copy records its own

    @property
    def epochs(self) -> int:
        """How many epochs are finished, over all calls of `fit`."""
        return self.history[-1].epoch if self.history else 0

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
            self.network.backward_parameters(self.loss.backward())
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
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
        after_epoch: Callable[[list[Record]], object] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[Record]:
        """Train for some epochs, each over all examples in a new order.

        Captured steps (see `capture`) change parameters and state as `step` does, and leave no
        gradients behind.

        Parameters
        ----------
        train : Dataset
        epochs, batch_size : int
            At least 1. An epoch that was begun before (see `resume` and `stop`) is finished as the
            first one.
        rng : numpy.random.Generator
            Draws the orders.
        validation : Dataset, optional
            Evaluated after each epoch.
        verbose : bool, optional
            Print a line for each epoch, and show a progress bar on a terminal.
        checkpoint : path, optional
            Written by `save` after each epoch; no other process may train into it meanwhile.
        checkpoint_every : int, optional
            Write it also after so many steps, again and again.
        after_epoch : callable, optional
            Called with `history` after each epoch.
        stop : callable, optional
            Asked after each step and each epoch, and free to evaluate or to save, but not to train
            or to change parameters or state: once it says True, the checkpoint, if there is one, is
            written and `fit` returns. Calling `fit` again goes on from there.

        Returns
        -------
        list of Record
            `history`; calling `fit` again continues it.

        Raises
        ------
        InputError
            Before any training, if a data set does not suit network and loss, or what goes on is
            not what was stopped.
        CheckpointError
            If another process trains into the same checkpoint, or it cannot be written.
        MissingExtraError
            Without safetensors or filelock, where there is to be a checkpoint.
        DivergenceError
            If the loss on the training examples, parameters or state are not finite after an epoch,
            or before they are saved. Parameters and state are then those before the first step to
            blame, which is named with the layer, or those before the epoch where no step is; the
            checkpoint is left as it is.
        OutOfMemoryError
            If training by batches of this size does not fit into the device's memory.
        """
        require_count("epochs", epochs)
        if checkpoint_every is not None:
            require_count("checkpoint_every", checkpoint_every)
            if checkpoint is None:
                raise InputError("checkpoint_every needs a checkpoint to write; give its path")
        require_rng(rng)
        batches = [self._batches(train, batch_size, rng)]
        self._check(train, "training")
        if validation is not None:
            batches.append(self._batches(validation, _EVALUATED))
            self._check(validation, "validation")
        self._require_continuation(batches[0])
        self.rng = rng
        if checkpoint is not None:
            checkpoint = resolve_target(checkpoint)
            require_saveable(self._checkpoint())
        plan = _Plan(checkpoint, checkpoint_every, stop)
        with contextlib.ExitStack() as stack:
            if checkpoint is not None:
                stack.enter_context(lock_target(checkpoint))
            stack.enter_context(self._session(batches, training=True))
            for _ in range(epochs):
                record = self._epoch(*batches, verbose=verbose, plan=plan)
                if record is None:
                    break
                append_record(self.history, record)
                if verbose:
                    print(record, flush=True)
                if after_epoch is not None:
                    after_epoch(self.history)
                if checkpoint is not None:  # last, with what has been changed since
                    self.save(checkpoint)
                if stop is not None and stop():
                    break
        return self.history

    def save(self, path: str | Path) -> None:
        """Write all that this training is into one file: a checkpoint.

        It holds parameters, the optimizer's state, history, `config`, the generator and, where
        `fit` was stopped in the middle of an epoch, the place in it; `resume` goes on from there to
        the bit. After an exception in a step the place is not known, and the epoch would begin
        anew. The file is written whole or not at all.

        Parameters
        ----------
        path : str or Path
            Its name by custom ends in ``.safetensors``, after its format (see docs/checkpoint.md).

        Raises
        ------
        InputError
            If `config` is no JSON or longer than half a megabyte, layers share an array, the
            generator is none of NumPy's, the optimizer's state is of another network, or there are
            thousands of layers, more than a file's header can hold.
        CheckpointError
            If the path is not the name of a file.
        DivergenceError
            If parameters or state are no longer finite; the file is left as it is.
        OSError
            If the file cannot be written.
        MissingExtraError
            Without safetensors.
        """
        save(path, self._checkpoint())

    def _checkpoint(self) -> Checkpoint:
        parts = self.network, self.loss, self.optimizer
        return Checkpoint(*parts, self.history, self.rng, self._position, self.config)

    @classmethod
    def resume(
        cls,
        path: str | Path,
        *,
        device: Device | str | None = None,
        network: Sequential | None = None,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        capture: bool | str = "auto",
    ) -> Self:
        """Return a trainer that goes on where one was saved.

        ``trainer.fit(train, epochs=…, batch_size=…, rng=trainer.rng)`` then ends, on the same
        device with the same `capture`, with the very parameters of a training that was never
        stopped; on another device or library with the same up to rounding. What ``rng.spawn()``
        returns is not kept, nor any generator that a part of your own draws from.

        Parameters
        ----------
        path : str or Path
            A file of `save`.
        device : Device or str, optional
            Where to go on, whatever device it was saved on; the CPU by default.
        network, loss, optimizer : optional
            In place of the saved ones, where those are not nnxp's own; parameters and state are
            still the file's.
        capture : bool or "auto", optional
            As in `Trainer`.

        Raises
        ------
        InputError
            If both a device and a network are given, or something is not what it should be.
        CheckpointError
            If the file cannot be read, is no checkpoint, is damaged, or is of a newer nnxp; or if
            parts are not nnxp's own and not given.
        DeviceError
            If the device cannot be had, or has not the memory.
        MissingExtraError
            Without safetensors.

        Examples
        --------
        >>> import numpy as np, nnxp, pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "digits.safetensors"
        >>> rng = np.random.default_rng(0)
        >>> train, test = nnxp.data.load_digits()
        >>> network = nnxp.mlp([64, 30, 10], rng=rng)
        >>> trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam())
        >>> history = trainer.fit(train, epochs=1, batch_size=50, rng=rng, checkpoint=path)
        >>> trainer = nnxp.Trainer.resume(path)
        >>> history = trainer.fit(train, epochs=1, batch_size=50, rng=trainer.rng)
        >>> [record.epoch for record in history]
        [1, 2]
        """
        _require_capture(capture)  # before any part is changed
        saved = load(path, device=device, network=network, loss=loss, optimizer=optimizer)
        trainer = cls(saved.network, saved.loss, saved.optimizer, capture=capture)
        trainer.history, trainer.config = saved.history, saved.config
        trainer.rng, trainer._position = saved.rng, saved.position
        return trainer

    def _require_continuation(self, batches: Batches) -> None:
        """Raise unless an epoch that was begun, if there is one, can be finished by `batches`."""
        if self._training:
            raise InputError(
                "this trainer is training already; let stop return True, and call fit after it"
            )
        if self._position is None:
            return
        self._position.require_same(batches)
        if batches.rng is not self.rng:
            raise InputError(
                "this training was stopped in the middle of an epoch; go on with rng=trainer.rng, "
                "which knows its order"
            )

    def _epoch(
        self,
        batches: Batches,
        validation: Batches | None = None,
        *,
        verbose: bool,
        plan: _Plan,
    ) -> Record | None:
        """Train for an epoch, evaluate, and return what it came to; None if it was stopped."""
        epoch = self.epochs + 1
        begun = self._position or EpochProgress.start(batches)
        good = Snapshot(self.network, self.optimizer)
        start = time.perf_counter() - begun.seconds
        try:
            progress = f"epoch {epoch:3d}" if verbose else None
            if not self._train(batches, begun, progress, plan):
                return None
            (on_train, *rest), finite = self._evaluate(
                [x.in_order(_EVALUATED) for x in (batches, validation) if x is not None],
                parameters_and_state(self.network, self.optimizer).values(),
            )
            if not (finite and math.isfinite(on_train.loss)):
                loss = f"the loss is {on_train.loss}"
                what = loss if finite else "parameters or state are not finite"
                raise DivergenceError(
                    f"{what} after epoch {epoch}; start from new weights with a lower learning "
                    f"rate, now {self.optimizer.learning_rate:g}"
                )
        except DivergenceError:
            self._find_divergence(batches, begun, good)
            raise
        on_validation = rest[0] if rest else None
        return Record(
            epoch,
            train_loss=on_train.loss,
            train_accuracy=on_train.accuracy,
            validation_loss=on_validation.loss if on_validation else None,
            validation_accuracy=on_validation.accuracy if on_validation else None,
            seconds=time.perf_counter() - start,
        )

    def _find_divergence(self, batches: Batches, begun: EpochProgress, good: Snapshot) -> None:
        """Train an epoch again up to the first step with a number that is not finite, and say so.

        So that no step needs to look, which would wait for the device. Where no step is to blame,
        such as where plain ones round otherwise than the captured ones, nothing is said, and the
        training stands at the start of the epoch again.
        """
        good.restore()
        self._position = None
        with np.errstate(all="ignore"):
            for number, rows in enumerate(begun.rows(batches), begun.batch + 1):
                before = Snapshot(self.network, self.optimizer)
                inputs, labels = batches.take(rows)
                loss = self.step(inputs, labels)
                after = parameters_and_state(self.network, self.optimizer)
                spoiled = [name for name, x in after.items() if not is_finite(x)]
                if not spoiled and is_finite(loss):
                    continue
                before.restore()
                place = first_not_finite(self.network, self.loss, inputs, labels)
                if place is None:
                    place = f"{spoiled[0]} after the optimizer's step" if spoiled else "the loss"
                raise DivergenceError(
                    f"training diverged at step {number} of epoch {self.epochs + 1}: {place} "
                    "is not finite. Parameters are those before that step; start from new weights "
                    f"with a lower learning rate, now {self.optimizer.learning_rate:g}"
                ) from None
        good.restore()
        self._position = begun if begun.batch else None

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
        self._require_continuation(batches)
        self.rng = batches.rng
        with self._session([batches], training=True):
            self._train(batches, self._position or EpochProgress.start(batches))

    def _train(
        self,
        batches: Batches,
        begun: EpochProgress,
        progress: str | None = None,
        plan: _Plan | None = None,
    ) -> bool:
        """Do an epoch's updates that are left, and tell whether none is left then.

        Parameters
        ----------
        batches : Batches
        begun : EpochProgress
            Where the epoch begins, or goes on.
        progress : str, optional
            Show progress under this name.
        plan : _Plan, optional
            When to save and to stop.
        """
        start = time.perf_counter() - begun.seconds
        rows: Iterable[Rows] = begun.rows(batches)
        steps, self._position = self.optimizer.steps, None
        if progress is not None:
            from tqdm import tqdm

            # disable=None: shown on a terminal only.
            rows = tqdm(
                rows, progress, total=len(batches), initial=begun.batch, leave=False, disable=None,
                unit="batch",
            )  # fmt: skip
        here = replace(begun)
        with self._keeping(begun, steps), self._stepping(batches) as step:
            for done, batch in enumerate(rows, begun.batch + 1):
                step(batch)
                if plan is None:
                    continue
                here.batch, here.seconds = done, time.perf_counter() - start
                self._position = here  # for `stop`, which may save, and for `save`
                stopping = plan.stop is not None and plan.stop()
                if stopping or (plan.every and self.optimizer.steps % plan.every == 0):
                    here.seconds = time.perf_counter() - start
                    if plan.checkpoint is not None:
                        self.save(plan.checkpoint)
                    if stopping:
                        return False
                self._position = None
        return True

    @contextlib.contextmanager
    def _keeping(self, begun: EpochProgress, steps: int) -> Iterator[None]:
        """Keep the place in the epoch, if it fails before its first step."""
        try:
            yield
        except BaseException:
            if begun.batch and self.optimizer.steps == steps:
                self._position = begun
            raise

    @contextlib.contextmanager
    def _stepping(self, batches: Batches) -> Iterator[Callable[[Rows], object]]:
        """Provide what does one update for a batch, `step` or the same in a faster way."""
        from nnxp.capture import choose

        parts = self.network, self.loss, self.optimizer
        if type(self) is not Trainer or "step" in vars(self):
            way, why_not = None, "the trainer has a step of its own"
        elif self.capture is False:
            way, why_not = None, "capture is False"
        else:
            way, why_not = choose(self.capture, *parts, batches)
        if way is None:
            if self.capture is True:
                warnings.warn(f"no step is captured: {why_not}", stacklevel=2)
            yield lambda rows: self.step(*batches.take(rows))
            return
        if not isinstance(self._steps, way) or not self._steps.matches(*parts, batches.dataset):
            self._steps = None  # before memory is taken for the new ones
            self._steps = way(*parts, batches.dataset)
        with self._steps.bind(batches) as step:
            yield step

    @contextlib.contextmanager
    def _session(self, batches: list[Batches], *, training: bool = False) -> Iterator[None]:
        """Compute on the device, with as many threads as the first batches are worth there.

        In the end `batches` is empty, so that its data sets leave the device's memory.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._device.session(self._describe(batches[0].batch_size)))
            stack.callback(batches.clear)
            if training:
                self._training = True
                stack.callback(setattr, self, "_training", False)
            if self._device.spec == "cpu":
                from nnxp.devices.threads import one_thread_if_small

                parameters = self.network.parameters().values()
                largest = max(math.prod(x.shape) for x in parameters)
                stack.enter_context(one_thread_if_small(batches[0].batch_size * largest))
            try:
                yield
            except BaseException:
                self._steps = None  # they may be what did not fit into memory
                raise

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
        with self._session(batches):
            (evaluation,), _ = self._evaluate(batches, [])
        return evaluation

    def _evaluate(
        self, batches: list[Batches], arrays: Iterable[Array]
    ) -> tuple[list[Evaluation], bool]:
        """Evaluate data sets that have been checked, and tell whether `arrays` are finite.

        It waits for the device once.
        """
        xp = self._device.xp
        sums: list[Array] = []  # a data set's losses, then its hits, batch by batch
        counts = []  # how many of them there are
        for each in batches:
            losses, hits = [], []
            for inputs, labels in each:
                scores = self.network.predict(inputs)
                loss = self.loss.forward(scores, labels, training=False)
                losses.append(loss * inputs.shape[0])
                hit = self.loss.correct(scores, labels)
                if hit is not None:
                    hits.append(xp.sum(xp.astype(hit, loss.dtype)))
            sums += losses + hits
            counts += [len(losses), len(hits)]
        sums += [xp.astype(xp.all(xp.isfinite(x)), sums[0].dtype) for x in arrays]
        measured = iter(self._device.to_host(xp.stack(sums)).tolist())
        totals = [sum(itertools.islice(measured, n)) if n else math.nan for n in counts]
        evaluations = [
            Evaluation(loss / len(each.dataset), hits / len(each.dataset))
            for each, loss, hits in zip(batches, totals[::2], totals[1::2], strict=True)
        ]
        return evaluations, all(measured)

    def _describe(self, batch_size: int) -> str:
        """Return what training with batches of a size takes, in words."""
        parameters = sum(math.prod(x.shape) for x in self.network.parameters().values())
        return (
            f"{self.network!r} with {parameters:,} parameters and batches of {batch_size:,} "
            f"(evaluated {_EVALUATED:,} at a time)"
        )

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
                first = to_device(dataset.inputs[:1], dataset.labels[:1], self._device, self._dtype)
                scores = self.network.predict(scale_images(first[0], self._device, self._dtype))
            self.loss.check_labels(dataset.labels, tuple(scores.shape[1:]))
        except InputError as error:
            raise InputError(f"the {name} data do not suit: {error}") from error
