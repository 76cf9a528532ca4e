"""Trainer: trains a network on batches: forward, loss, backward, update."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from nnxp.arrays import Array
from nnxp.checkpoint import Checkpoint, load, lock_target, require_saveable, resolve_target, save
from nnxp.checks import require_count, require_rng, warn
from nnxp.data.batches import Batches
from nnxp.data.dataset import Dataset
from nnxp.data.epoch import EpochProgress
from nnxp.devices import Device
from nnxp.devices.threads import limit_blas_threads
from nnxp.errors import DivergenceError, InputError
from nnxp.history import Record, append_record
from nnxp.layers import Softmax
from nnxp.losses import Loss, SoftmaxWithLoss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.penalties import Penalty
from nnxp.step import Step
from nnxp.training.divergence import Snapshot, parameters_and_state, raise_at_divergence
from nnxp.training.evaluation import EVALUATION_BATCH_SIZE, Evaluation, evaluate
from nnxp.training.preparation import (
    describe_work,
    flush_denormals,
    replace_unusable_arrays,
    require_dataset,
    require_representable,
    require_suitable,
    require_trainable,
)
from nnxp.training.progress import progress_bar
from nnxp.training.stepping import Stepper, require_capture
from nnxp.transforms import Transform


class _Options(NamedTuple):
    """When `fit` saves and stops, and what it shows; see its parameters."""

    checkpoint: Path | None = None
    checkpoint_every: int | None = None
    stop: Callable[[], bool] | None = None
    verbose: bool = False


class Trainer:
    """Trains a network.

    Parameters
    ----------
    network : Sequential
    loss : Loss
    optimizer : Optimizer
    penalty : Penalty, optional
        Added to the loss, such as ``nnxp.L2(1e-4)``. All losses that are reported include it.
    transforms : iterable of callable, optional
        Applied to the gradients before the update, one after the other, such as
        ``[nnxp.ClipNorm(1.0)]``; or functions of your own, which take parameters and gradients by
        name and return the new gradients.
    capture : bool or "auto", optional
        Whether `fit` prepares a step once and repeats it (a captured step): with fixed buffers on
        NumPy, compiled on JAX, as a CUDA graph on CuPy. They agree with plain steps up to
        rounding; parts of your own are captured if a trial before each epoch agrees. "auto"
        captures where that was measured to be faster, which it was not yet on CuPy; True captures
        there too, and warns if no step can be captured; False never captures.

    Attributes
    ----------
    history : list of Record
        One record for each finished epoch, over all calls of `fit`; an interrupted `fit` keeps it.
        At most 10,000 records are kept; see `nnxp.history.append_record`.
    rng : numpy.random.Generator or None
        The generator that the last `fit` drew its orders from, or the one that `resume` loaded.
    config : dict
        Your own settings, saved in checkpoints. As JSON: keys become strings, tuples lists.

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
        penalty: Penalty | None = None,
        transforms: Iterable[Transform] = (),
        capture: bool | str = "auto",
    ) -> None:
        if not isinstance(transforms, Iterable):
            raise InputError(f"transforms must be a list, got {transforms!r}; use [{transforms!r}]")
        transforms = tuple(transforms)
        require_trainable(Step(network, loss, optimizer, penalty, transforms))
        if network.device is None or network.dtype is None:
            raise InputError(f"{network!r} has no parameters to train")
        replace_unusable_arrays(network, optimizer, network.device)
        if isinstance(network.leaves()[-1], Softmax) and isinstance(loss, SoftmaxWithLoss):
            warn(
                "the network ends with Softmax, and SoftmaxWithLoss applies it again, so that the "
                "network learns slowly; remove the layer"
            )
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.penalty = penalty
        self.transforms = transforms
        self.capture = require_capture(capture)
        self.history: list[Record] = []
        self.config: dict[str, Any] = {}
        self.rng: np.random.Generator | None = None
        self._device: Device = network.device
        self._dtype: str = network.dtype
        self._progress: EpochProgress | None = None  # within an epoch that was stopped
        self._training = False
        self._stepper = Stepper()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_stepper": Stepper(), "_training": False}  # a copy captures its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        replace_unusable_arrays(self.network, self.optimizer, self._device)  # joblib's, read-only

    @property
    def epochs(self) -> int:
        """The number of finished epochs, over all calls of `fit`."""
        return self.history[-1].epoch if self.history else 0

    @property
    def captured(self) -> str:
        """How the last steps were done: "captured", or "plain" with the reason."""
        reason = self._stepper.reason
        return f"plain: {reason}" if reason else "captured"

    def step(self, inputs: Array, labels: Array) -> Array:
        """Do one update and return the loss before it, as a 0-d array on the device.

        Parameters
        ----------
        inputs : (batch, …) array
            On the network's device and in its dtype.
        labels : array
            On the same device; of the shape and dtype that the loss expects.
        """
        with self._device.current():
            return self._whole_step()(inputs, labels)

    def _whole_step(self) -> Step:
        return Step(self.network, self.loss, self.optimizer, self.penalty, tuple(self.transforms))

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
        gradients in the network.

        Parameters
        ----------
        train : Dataset
        epochs, batch_size : int
            At least 1. An epoch that was interrupted (see `stop` and `resume`) is finished first
            and counts as one of them.
        rng : numpy.random.Generator
            Draws the orders.
        validation : Dataset, optional
            Evaluated after each epoch.
        verbose : bool, optional
            Print a line per epoch, and show a progress bar on a terminal.
        checkpoint : path, optional
            File that `save` writes after each epoch; no other process may train into it meanwhile.
        checkpoint_every : int, optional
            Write the checkpoint also each time after this number of steps.
        after_epoch : callable, optional
            Called with `history` after each epoch.
        stop : callable, optional
            Called after each step and each epoch; if it returns True, the checkpoint is written and
            `fit` returns. It may evaluate and save, but neither train nor change parameters or
            state. The next call of `fit` resumes there.

        Returns
        -------
        list of Record
            `history`; another call of `fit` continues it.

        Raises
        ------
        InputError
            Before any training, if a data set does not suit network and loss, or is not the one of
            the epoch to resume.
        CheckpointError
            If another process trains into the same checkpoint, or it cannot be written.
        MissingExtraError
            If a checkpoint is wanted and safetensors or filelock is not installed.
        DivergenceError
            If the training loss, parameters or state are not finite after an epoch or before a
            save. The error names the first step and layer with such a number, and parameters and
            state are those before that step; if no step is found, those before the epoch. The
            checkpoint is not changed.
        OutOfMemoryError
            If training with this batch size does not fit into the device's memory.
        """
        require_count("epochs", epochs)
        if checkpoint_every is not None:
            require_count("checkpoint_every", checkpoint_every)
            if checkpoint is None:
                raise InputError("checkpoint_every needs a checkpoint to write; give its path")
        require_rng(rng)
        data = [self._batches(train, batch_size, rng)]
        require_suitable(data[0], "training", self.network, self.loss)
        if validation is not None:
            data.append(self._batches(validation, EVALUATION_BATCH_SIZE))
            require_suitable(data[1], "validation", self.network, self.loss)
        self._require_resumable(data[0])
        self.rng = rng
        if checkpoint is not None:
            checkpoint = resolve_target(checkpoint)
            require_saveable(self._checkpoint())
        options = _Options(checkpoint, checkpoint_every, stop, verbose)
        with contextlib.ExitStack() as stack:
            if checkpoint is not None:
                stack.enter_context(lock_target(checkpoint))
            stack.enter_context(self._session(data, training=True))
            for _ in range(epochs):
                record = self._epoch(data, options)
                if record is None:
                    break
                append_record(self.history, record)
                if verbose:
                    print(record, flush=True)
                if after_epoch is not None:
                    after_epoch(self.history)
                if checkpoint is not None:  # last, so that it has what `after_epoch` changed
                    self.save(checkpoint)
                if stop is not None and stop():
                    break
        return self.history

    def train_epoch(self, batches: Batches) -> None:
        """Do the updates of one epoch, and nothing else.

        `fit` does the same for each epoch, and evaluates afterwards. The data set stays on the
        device as long as `batches` do.

        Parameters
        ----------
        batches : Batches
            On the network's device and in its dtype, in random order.
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
        progress = self._progress or EpochProgress.start(batches)
        require_suitable(batches, "training", self.network, self.loss)
        self._require_resumable(batches)
        self.rng = batches.rng
        with self._session([batches], training=True):
            self._train(batches, progress, _Options())

    def evaluate(self, dataset: Dataset, batch_size: int = EVALUATION_BATCH_SIZE) -> Evaluation:
        """Return mean loss and accuracy over all examples.

        Parameters
        ----------
        dataset : Dataset
        batch_size : int, optional
            How many examples are evaluated at a time.
        """
        data = [self._batches(dataset, batch_size)]
        require_suitable(data[0], "given", self.network, self.loss)
        with self._session(data):
            (evaluation,), _ = evaluate(self._whole_step(), data)
        return evaluation

    def save(self, path: str | Path) -> None:
        """Write the whole state of the training to one file, a checkpoint.

        The file holds parameters, optimizer state, history, `config`, the generator's state and
        the progress within an epoch; `resume` continues from it with the same bits. If a step
        raised, that progress is unknown and the epoch starts again. The file is written whole or
        not at all.

        Parameters
        ----------
        path : str or Path
            Usually ends in ``.safetensors``, the file format (see docs/checkpoint.md).

        Raises
        ------
        InputError
            If `config` is not JSON or longer than half a megabyte, layers share an array, the
            generator is not one of NumPy's, the optimizer's state belongs to another network, or
            thousands of layers exceed the size of a file's header.
        CheckpointError
            If the path cannot name a file.
        DivergenceError
            If parameters or state are not finite; an existing file is not changed.
        OSError
            If the file cannot be written.
        MissingExtraError
            If safetensors is not installed.
        """
        save(path, self._checkpoint())

    @classmethod
    def resume(
        cls,
        path: str | Path,
        *,
        device: Device | str | None = None,
        network: Sequential | None = None,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        penalty: Penalty | None = None,
        transforms: Iterable[Transform] | None = None,
        capture: bool | str = "auto",
    ) -> Self:
        """Return a trainer in the state that `save` wrote.

        ``trainer.fit(train, epochs=…, batch_size=…, rng=trainer.rng)`` then gives the same bits as
        an uninterrupted training on the same device with the same `capture`; on another device or
        library the same numbers up to rounding. The state of ``rng.spawn()`` is not saved, nor
        that of a generator in a part of your own.

        Parameters
        ----------
        path : str or Path
            A file of `save`.
        device : Device or str, optional
            The device to continue on, independent of the saved one; the CPU by default.
        network, loss, optimizer, penalty, transforms : optional
            Used in place of the saved parts, for example those of a class that is not registered;
            parameters and state are loaded from the file.
        capture : bool or "auto", optional
            As in `Trainer`.

        Raises
        ------
        InputError
            If both a device and a network are given, or an argument has the wrong type.
        CheckpointError
            If the file cannot be read, is not a checkpoint, is damaged, or was written by a newer
            nnxp; or if the class of a part is not registered and the part is not given.
        DeviceError
            If the device cannot be used or has too little memory.
        MissingExtraError
            If safetensors is not installed.

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
        require_capture(capture)  # before a given part is changed
        saved = load(
            path,
            device=device,
            network=network,
            loss=loss,
            optimizer=optimizer,
            penalty=penalty,
            transforms=None if transforms is None else tuple(transforms),
        )
        trainer = cls(saved.network, saved.loss, saved.optimizer, capture=capture)
        trainer.penalty, trainer.transforms = saved.penalty, saved.transforms
        trainer.history, trainer.config = saved.history, saved.config
        trainer.rng, trainer._progress = saved.rng, saved.progress
        return trainer

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self.network, self.loss, self.optimizer, self.penalty, tuple(self.transforms),
            self._device, self.history, self.rng, self._progress, self.config,
        )  # fmt: skip

    def _batches(
        self, dataset: Dataset, batch_size: int, rng: np.random.Generator | None = None
    ) -> Batches:
        dataset = require_dataset(dataset)
        return Batches(dataset, batch_size, device=self._device, dtype=self._dtype, rng=rng)

    def _require_resumable(self, batches: Batches) -> None:
        """Raise unless training can start, or an interrupted epoch can be resumed, with these."""
        if self._training:
            raise InputError(
                "this trainer is training already; let stop return True, and call fit after it"
            )
        if self._progress is None:
            return
        self._progress.require_same(batches)
        if batches.rng is not self.rng:
            raise InputError(
                "this trainer was stopped within an epoch, whose order trainer.rng has drawn; "
                "resume it with rng=trainer.rng"
            )

    @contextlib.contextmanager
    def _session(self, data: list[Batches], *, training: bool = False) -> Iterator[None]:
        """Compute on the device, with a suitable number of threads.

        At the end `data` is emptied, so that the data sets leave the device's memory.
        """
        batch_size = data[0].batch_size
        with contextlib.ExitStack() as stack:
            work = describe_work(self.network, batch_size, EVALUATION_BATCH_SIZE)
            stack.enter_context(self._device.session(work))
            stack.callback(data.clear)
            stack.callback(self._stepper.release)
            if training:
                require_trainable(self._whole_step())
                replace_unusable_arrays(self.network, self.optimizer, self._device)
                require_representable(self.optimizer, self._dtype)
                self._training = True
                stack.callback(setattr, self, "_training", False)
            if self._device.is_host:
                parameters = self.network.parameters().values()
                largest = max(math.prod(x.shape) for x in parameters)
                stack.enter_context(limit_blas_threads(batch_size * largest))
            try:
                yield
            except BaseException:
                self._stepper.captured = None  # it may be what did not fit into memory
                raise

    def _epoch(self, data: list[Batches], options: _Options) -> Record | None:
        """Train an epoch, evaluate, and return the epoch's record; None if `stop` stopped it.

        Parameters
        ----------
        data : list of Batches
            Training examples, and validation examples if there are any.
        options : _Options
        """
        batches = data[0]
        epoch = self.epochs + 1
        progress = self._progress or EpochProgress.start(batches)
        before = Snapshot(self.network, self.optimizer, self._device)
        start = time.perf_counter() - progress.seconds
        try:
            if not self._train(batches, progress, options):
                return None
            (on_train, *rest), finite = evaluate(
                self._whole_step(),
                [x.in_order(EVALUATION_BATCH_SIZE) for x in data],
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
            before.restore()
            self._progress = None
            raise_at_divergence(self.step, self._whole_step(), batches, progress, epoch)
            before.restore()
            self._progress = progress if progress.batch else None
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

    def _train(self, batches: Batches, progress: EpochProgress, options: _Options) -> bool:
        """Do the remaining updates of an epoch; return False if `stop` stopped it.

        Parameters
        ----------
        batches : Batches
        progress : EpochProgress
            Where in the epoch to start.
        options : _Options
        """
        start = time.perf_counter() - progress.seconds
        rows: Iterable[Array] = progress.remaining_rows(batches)
        if options.verbose:
            name = f"epoch {self.epochs + 1:3d}"
            rows = progress_bar(rows, name, total=len(batches), done=progress.batch)
        self._progress = None
        if not progress.batch:
            flush_denormals(self.optimizer)
        current = replace(progress)
        observed = options.stop is not None or options.checkpoint_every is not None
        with self._keep_progress(progress), self._steps(batches, observed) as step:
            for done, batch in enumerate(rows, progress.batch + 1):
                step(batch)
                if not observed:
                    continue
                current.batch, current.seconds = done, time.perf_counter() - start
                self._progress = current  # for a save by `stop`, or the one below
                stopping = options.stop is not None and options.stop()
                every = options.checkpoint_every
                if stopping or (every and self.optimizer.steps % every == 0):
                    current.seconds = time.perf_counter() - start
                    if options.checkpoint is not None:
                        self.save(options.checkpoint)
                    if stopping:
                        return False
                self._progress = None
        return True

    @contextlib.contextmanager
    def _keep_progress(self, progress: EpochProgress) -> Iterator[None]:
        """Keep the progress of an interrupted epoch if resuming fails before its first step."""
        steps = self.optimizer.steps
        try:
            yield
        except BaseException:
            if progress.batch and self.optimizer.steps == steps:
                self._progress = progress
            raise

    @contextlib.contextmanager
    def _steps(self, batches: Batches, observed: bool) -> Iterator[Callable[[Array], object]]:
        """Provide the function that does one step, given a batch's rows; see `Stepper.bind`."""
        own_step = type(self).step is not _STEP or "step" in vars(self)
        with self._stepper.bind(
            self.step,
            self._whole_step(),
            batches,
            capture=self.capture,
            own_step=own_step,
            observed=observed,
        ) as step:
            yield step


_STEP = Trainer.step
