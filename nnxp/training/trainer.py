"""Trainer: trains a network on batches: forward, loss, backward, update."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import numpy as np

from nnxp.arrays import Array, namespace_of
from nnxp.checkpoint import Checkpoint as SavedTraining
from nnxp.checkpoint import load, lock_target, require_saveable, resolve_target, save
from nnxp.checks import (
    Rng,
    explained,
    missing_attribute,
    require_count,
    require_list,
    warn,
    warnings_go_to,
)
from nnxp.data.batches import Batches
from nnxp.data.dataset import Dataset, Split
from nnxp.data.epoch import EpochProgress
from nnxp.data.stream import BatchStream
from nnxp.data_format import DataFormat
from nnxp.devices import Device
from nnxp.devices.threads import limit_blas_threads
from nnxp.errors import InputError, RanksError
from nnxp.history import History
from nnxp.layers import Softmax
from nnxp.losses import Loss, SoftmaxWithLoss
from nnxp.metrics import Metric
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.parts import is_own
from nnxp.penalties import Penalty
from nnxp.ranks import ONE_RANK, Ranks, Share
from nnxp.step import Step
from nnxp.training.callback import Callback
from nnxp.training.callbacks import Checkpoint, Progress
from nnxp.training.epochs import EpochRunner
from nnxp.training.evaluation import Evaluation, evaluate, evaluation_batch_size
from nnxp.training.plan import (
    plan_training,
    require_equal_ranks,
    require_same_ranks,
    require_suitable_training,
)
from nnxp.training.preparation import (
    data_format_of,
    describe_work,
    hint_at_scale,
    in_format,
    replace_unusable_arrays,
    require_callbacks,
    require_dataset,
    require_ranks,
    require_representable,
    require_state_of_arrays,
    require_suitable,
    require_trainable,
    warn_of_other_scale,
)
from nnxp.training.stepping import (
    Stepper,
    require_capture,
    require_compiled,
)
from nnxp.transforms import Transform

# Names in other libraries, and the call of nnxp that does the same.
_ELSEWHERE = {
    "load": "nnxp.Trainer.resume(path)",
    "predict": "trainer.network.predict(x)",
    "predict_classes": "trainer.network.predict_classes(x)",
    "predict_proba": "trainer.network.predict_proba(x)",
    "score": "trainer.evaluate(dataset)",
    "train": "trainer.fit(dataset, epochs=5, batch_size=100, rng=0)",
}


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _with_common_errors(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a method of a trainer that all ranks call: an error ends it on all of them."""

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        ranks = getattr(args[0], "ranks", ONE_RANK) if args else ONE_RANK
        if ranks.size == 1:
            return method(*args, **kwargs)
        try:
            with warnings_go_to(ranks.warn):
                result = method(*args, **kwargs)
                ranks.exchange(call=f"the end of Trainer.{method.__name__}")
        except BaseException as error:
            ranks.fail(error)
            raise
        return result

    return call


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
    metrics : iterable of Metric, optional
        Measured beside loss and accuracy, such as ``[nnxp.metrics.TopAccuracy(5)]``.
    capture : bool or "auto", optional
        Whether `fit` prepares a step once and repeats it (a captured step): with fixed buffers on
        NumPy, compiled on JAX, as a CUDA graph on CuPy. They agree with plain steps up to
        rounding; parts of your own are captured if a trial before each epoch agrees. "auto"
        captures where the device has captured steps; True warns where it has none; False never
        captures.
    compiled : bool or "auto", optional
        Whether captured steps on NumPy are compiled to machine code by llvmlite (the extra
        ``fast``). Compiling takes about 0.3 seconds, and a tenth of that with the same network
        again. "auto" compiles an epoch if llvmlite is installed and the steps until its end, those
        of earlier epochs included, would have repaid it: about 5,000 of a network of 40,000
        parameters.
    ranks : Ranks, optional
        The processes that divide each batch, such as ``nnxp.distributed.mpi()``; by default this
        one alone. See docs/distributed.md.

    Attributes
    ----------
    ranks : Ranks
        ``trainer.ranks.rank`` is the number of this process, 0 if it is alone, and
        ``trainer.ranks.size`` that of all.
    history : History
        A list with one `Record` for each finished epoch, over all calls of `fit`; an interrupted
        `fit` keeps it. It prints as a table. At most 10,000 records are kept.
    rng : numpy.random.Generator or None
        The generator that the last `fit` drew its orders from, or the one that `resume` loaded.
    measured : tuple of str
        The names of the figures in the records of the last `fit`.
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

    _hints_at_scale = True

    @explained("nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam())")
    def __init__(
        self,
        network: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        *,
        penalty: Penalty | None = None,
        transforms: Iterable[Transform] = (),
        metrics: Iterable[Metric] = (),
        capture: bool | str = "auto",
        compiled: bool | str = "auto",
        ranks: Ranks = ONE_RANK,
    ) -> None:
        transforms = require_list("transforms", transforms)
        metrics = require_list("metrics", metrics)
        require_trainable(Step(network, loss, optimizer, penalty, transforms, metrics))
        require_state_of_arrays(optimizer)
        if network.device is None or network.dtype is None:
            raise InputError(f"{network!r} has no parameters to train")
        replace_unusable_arrays(network, optimizer, network.device)
        self.ranks = require_ranks(ranks)
        if isinstance(network.leaves()[-1], Softmax) and isinstance(loss, SoftmaxWithLoss):
            ranks.warn(
                "the network ends with Softmax, and SoftmaxWithLoss applies it again, so that the "
                "network learns slowly; remove the layer"
            )
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.penalty = penalty
        self.transforms = transforms
        self.metrics = metrics
        self.capture = require_capture(capture)
        self.compiled = require_compiled(compiled, network.device)
        self.history = History()
        self.config: dict[str, Any] = {}
        self.rng: np.random.Generator | None = None
        self.measured: tuple[str, ...] = ()
        self._device: Device = network.device
        self._dtype: str = network.dtype
        self._progress: EpochProgress | None = None  # within an epoch that was stopped
        self._sums: dict[str, Array] = {}  # of the epoch's loss and metrics so far
        self._micro_batch_size: int | None = None
        self._epoch_steps = (0, 0)
        self._split: Split | None = None
        self._callbacks: dict[str, Callback] = {}  # of the last `fit`, by the name in checkpoints
        self._callback_states: dict[str, dict[str, Any]] = {}  # of a checkpoint, not given yet
        self._training = False
        self._stepper = Stepper()
        self._compiles = False  # the steps of the last epoch
        # What `train_epoch` was given last, and the format that it set.
        self._checked: tuple[Callable[[], Batches | None], DataFormat | None]
        self._checked = _no_batches, None

    if not TYPE_CHECKING:  # it would give type checkers every name

        def __getattr__(self, name: str) -> Any:
            return missing_attribute(self, name, _ELSEWHERE)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has its own captured steps, and is not within an epoch that trains.
        own = {"_stepper": Stepper(), "_training": False, "_callbacks": {}, "_sums": {}}
        own["_checked"] = _no_batches, None
        if self._progress is not None and self._sums:  # one rank has no sums of all ranks
            sums = self._host_sums() if self.ranks.size == 1 else {}
            own["_progress"] = replace(self._progress, sums=sums)
        return vars(self) | own

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        replace_unusable_arrays(self.network, self.optimizer, self._device)  # joblib's, read-only

    def __repr__(self) -> str:
        parts = [repr(self.network), repr(self.loss), repr(self.optimizer)]
        parts += [f"{name}={x!r}" for name in _OPTIONAL if (x := getattr(self, name))]
        return f"{type(self).__name__}({', '.join(parts)}) after {self.epochs} epochs"

    @property
    def epochs(self) -> int:
        """The number of finished epochs, over all calls of `fit`."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    @property
    def epoch_steps(self) -> tuple[int, int]:
        """The steps done in the current epoch, and all of its steps, for a callback's `step`."""
        return self._epoch_steps

    @property
    def epoch_is_finished(self) -> bool:
        """Whether the training was not stopped within an epoch."""
        return self._progress is None

    @property
    def captured(self) -> str:
        """How the last steps were done: "captured", "compiled", or "plain" with the reason."""
        reason = self._stepper.reason
        return f"plain: {reason}" if reason else "compiled" if self._compiles else "captured"

    @explained("trainer.step(inputs, labels)")
    def step(self, inputs: Array, labels: Array, weights: Array | None = None) -> Array:
        """Do one update and return the loss before it, as a 0-d array on the device.

        Several `ranks` all give the global batch, and each computes its share of the rows.

        Parameters
        ----------
        inputs : (batch, …) array
            On the network's device and in its dtype.
        labels : array
            On the same device; of the shape and dtype that the loss expects.
        weights : (batch,) array, optional
            How much each example counts, on the same device and in the network's dtype.
        """
        namespace_of(inputs, "step")
        with self._device.current():
            if self.ranks.size == 1:
                return self._whole_step()(inputs, labels, weights)
            share = self.ranks.share(inputs.shape[0])
            given = (inputs, labels) if weights is None else (inputs, labels, weights)
            return self._step_of_share([x[share.rows, ...] for x in given], share)

    def _step_of_share(self, batch: Iterable[Array], share: Share) -> Array:
        inputs, labels, *weights = batch
        with self._device.current():
            return self._whole_step()(inputs, labels, *weights, share=share)

    def _plain_step(self, batches: Batches) -> Callable[[Any], Array]:
        """Return the function that does one plain step, given the row indices of a batch."""
        if self.ranks.size == 1:
            return lambda rows: self.step(*batches.take(rows))

        def step(rows: Any) -> Array:
            share = self.ranks.share(rows.shape[0])
            return self._step_of_share(batches.take(rows[share.rows]), share)

        return step

    def _whole_step(self) -> Step:
        return Step(
            self.network,
            self.loss,
            self.optimizer,
            self.penalty,
            tuple(self.transforms),
            tuple(self.metrics),
            sums=self._sums,
            micro_batch_size=self._micro_batch_size,
            ranks=self.ranks,
        )

    @explained(
        "trainer.fit(train, epochs=5, batch_size=100, rng=0) with train = nnxp.data.Dataset(X, y)"
    )
    @_with_common_errors
    def fit(
        self,
        train: Dataset | Iterable[Any],
        *,
        epochs: int,
        batch_size: int | None = None,
        rng: Rng | None = None,
        validation: Dataset | float | None = None,
        callbacks: Iterable[Callback] = (),
        train_metrics: str = "running",
        accumulate: int = 1,
        verbose: bool = False,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
    ) -> History:
        """Train for several epochs, each over all examples in a new order.

        Several `ranks` all call `fit` with the same arguments, and end together: by the same error
        if one of them has an error.

        Captured steps (see `capture`) change parameters and state as `step` does, and leave no
        gradients in the network.

        Parameters
        ----------
        train : Dataset or iterable
            The examples. For data that do not fit into memory: an iterable of batches, each a pair
            of NumPy arrays, which starts anew each epoch, and gives the order itself.
        epochs : int
            At least 1. An epoch that was interrupted (see `callbacks` and `resume`) is finished
            first and counts as one of them.
        batch_size : int, optional
            At least 1; needed for a data set.
        rng : numpy.random.Generator, SeedSequence or int
            Draws the orders; a seed makes a new generator. Optional once the trainer has one, its
            `rng`.
        validation : Dataset or float, optional
            Evaluated after each epoch. A number between 0 and 1 is the share of the examples of
            each class that are taken from `train`, at random; they stay the same in later calls
            with this share, also after `resume`.
        callbacks : iterable of Callback, optional
            Called before the first step, after each step and epoch, and at the end; see
            `nnxp.callbacks`. If one of them stops the training within an epoch, the next call of
            `fit` resumes there.
        train_metrics : {"running", "after"}, optional
            What the training figures of a record are: means over the epoch's steps, each with its
            own weights; or measured on all training examples after the epoch, with the same weights
            as the validation, which takes longer. Always the latter if `step` is overridden.
        accumulate : int, optional
            Steps of ``accumulate * batch_size`` examples, whose gradients are computed
            `batch_size` examples at a time, which needs less memory. The gradients are those of the
            large batch, except that `BatchNorm` uses the statistics of the small ones.
        verbose : bool, optional
            Add `nnxp.callbacks.Progress`.
        checkpoint : path, optional
            Add `nnxp.callbacks.Checkpoint` with this path.
        checkpoint_every : int, optional
            Its ``every``.

        Returns
        -------
        History
            `history`; another call of `fit` continues it.

        Raises
        ------
        InputError
            Before any training, if a data set does not suit network and loss, or is not the one of
            the epoch to resume.
        CheckpointError
            If another process trains into the same checkpoint, or it cannot be written, for example
            on a full disk; the trainer keeps all that was trained.
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
        self._require_not_training()
        given = _all_callbacks(callbacks, checkpoint, checkpoint_every, verbose)
        plan = plan_training(
            self,
            train,
            validation,
            batch_size=batch_size,
            rng=rng,
            train_metrics=train_metrics,
            accumulate=accumulate,
        )
        data = plan.data
        self._require_resumable(data[0])
        if self._hints_at_scale and not self.optimizer.steps:
            hint_at_scale(self.network, data[0].dataset)
        warn_of_other_scale(self.network.data_format, plan.trained_on)
        self.network.data_format = plan.trained_on
        self.rng, self.measured, self._split = plan.rng, plan.measured, plan.split
        self._micro_batch_size = plan.micro_batch_size
        self._give_states(given)
        own = [x for x in given if self.ranks.rank == 0 or not x.only_rank_0]
        with contextlib.ExitStack() as stack:
            stack.callback(setattr, self, "_micro_batch_size", None)
            stack.enter_context(self._session(data, training=True))
            stack.callback(self._stepper.unbind)
            stopping = False
            for callback in own:
                stack.push(partial(_finish, self, callback))
                stopping = bool(callback.start(self)) or stopping
            require_same_ranks(self, data, (epochs, accumulate, train_metrics))
            observers = [callback for callback in own if callback.every_step]
            observed = self.ranks.any(observers)
            # No user code, such as an iterable's, can see the arrays between epochs. Each rank
            # may have other callbacks, and all ranks must bind, and try the user's parts, together.
            keeps = (
                self.ranks.size == 1
                and not isinstance(data[0], BatchStream)
                and not any(x._holds_arrays or not is_own(type(x)) for x in given)
            )
            runner = EpochRunner(self, data, observers, observed, plan.first_sums, keeps=keeps)
            for _ in range(0 if self.ranks.any(stopping) else epochs):
                record = runner.train_and_evaluate()
                if record is None:
                    break
                self.history.append(record)
                stops = [callback.epoch(self, record) for callback in own]
                require_equal_ranks(self)
                if self.ranks.any(any(stops)):
                    break
        return self.history

    @explained(
        "trainer.train_epoch(batches) with batches = nnxp.data.Batches(dataset, 100, "
        "device=network.device, dtype=network.dtype, rng=0)"
    )
    @_with_common_errors
    def train_epoch(self, batches: Batches) -> None:
        """Do the updates of one epoch. Afterwards the network can predict, as after `fit`.

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
        self._micro_batch_size = None
        self._require_resumable(batches)
        repeats = self._repeats(batches)
        if not repeats:
            step, known = self._whole_step(), self.network.data_format
            require_suitable_training(self, batches, step)
            trained_on = data_format_of(batches.dataset, step, isinstance(batches, BatchStream))
            warn_of_other_scale(known, trained_on)
            self.network.data_format = trained_on
            self._checked = weakref.ref(batches), trained_on
        self.rng = batches.rng
        with self._session([batches], training=True, checked=repeats):
            EpochRunner(self, [batches], [], False, {}, keeps=False).train(progress)

    def _repeats(self, batches: Batches) -> bool:
        """Return whether the last `train_epoch` had the same data and parts, and passed the checks.

        Labels, which may have been changed in place, are checked again.
        """
        checked, trained_on = self._checked
        if checked() is not batches or self.network.data_format is not trained_on:
            return False
        if self.ranks.size > 1:  # all must check, or none
            return False
        step, dataset = self._whole_step(), batches.dataset
        outputs = self.network.output_shape(tuple(dataset.inputs.shape[1:]))
        if outputs is None or not self._stepper.is_same(step, batches):
            return False
        try:
            self.loss.check_labels(dataset.labels, outputs)
        except InputError:  # the full check raises it, with what was checked
            return False
        return True

    @explained("trainer.evaluate(dataset) with dataset = nnxp.data.Dataset(X, y)")
    def evaluate(self, dataset: Dataset, batch_size: int | None = None) -> Evaluation:
        """Return the figures of all examples: loss, accuracy if there are classes, and metrics.

        Parameters
        ----------
        dataset : Dataset
        batch_size : int, optional
            How many examples are evaluated at a time; by default 1000, or fewer if that takes much
            memory.
        """
        if self.network.data_format is not None:
            dataset = in_format(require_dataset(dataset), self.network.data_format, "given")
        if batch_size is None:
            batch_size = evaluation_batch_size(self.network, require_dataset(dataset))
        data = [self._batches(dataset, batch_size)]
        step = self._whole_step()
        step.sums = {}
        require_suitable(data[0], "given", step)
        with self._session(data):
            return evaluate(step, data, self._device).evaluations[0]

    @explained('trainer.save("training.safetensors")')
    def save(self, path: str | Path) -> None:
        """Write the whole state of the training to one file, a checkpoint.

        Of several `ranks`, rank 0 writes. After a step, in a callback's `step`, all ranks must call
        this; elsewhere the others need not.

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
            If the path cannot name a file, or the file cannot be written; an existing file and the
            trainer are not changed.
        DivergenceError
            If parameters or state are not finite; an existing file is not changed.
        MissingExtraError
            If safetensors is not installed.
        """
        checkpoint = self._checkpoint()
        if self.ranks.rank == 0:
            save(path, checkpoint)

    @classmethod
    @explained('nnxp.Trainer.resume("training.safetensors")')
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
        metrics: Iterable[Metric] | None = None,
        capture: bool | str = "auto",
        compiled: bool | str = "auto",
        ranks: Ranks = ONE_RANK,
    ) -> Self:
        """Return a trainer in the state that `save` wrote.

        ``trainer.fit(train, epochs=…, batch_size=…, rng=trainer.rng)`` then gives the same bits as
        an uninterrupted training on the same device with the same `capture` and `compiled`; on
        another device or library the same numbers up to rounding. The state of ``rng.spawn()`` is
        not saved, nor that of a generator in a part of your own.

        Parameters
        ----------
        path : str or Path
            A file of `save`.
        device : Device or str, optional
            The device to continue on, independent of the saved one; the CPU by default.
        network, loss, optimizer, penalty, transforms, metrics : optional
            Used in place of the saved parts, for example those of a class that is not registered;
            parameters and state are loaded from the file.
        capture, compiled : bool or "auto", optional
            As in `Trainer`.
        ranks : Ranks, optional
            As in `Trainer`; there may be more or fewer than before. All of them call this, and
            each reads the file.

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
        require_compiled(compiled, None)
        require_ranks(ranks).exchange(call="Trainer.resume")  # rank 0 has written the file
        saved = load(
            path,
            device=device,
            network=network,
            loss=loss,
            optimizer=optimizer,
            penalty=penalty,
            transforms=None if transforms is None else require_list("transforms", transforms),
            metrics=None if metrics is None else require_list("metrics", metrics),
        )
        trainer = cls(
            saved.network,
            saved.loss,
            saved.optimizer,
            capture=capture,
            compiled=compiled,
            ranks=ranks,
        )
        trainer.penalty, trainer.transforms = saved.penalty, saved.transforms
        trainer.metrics, trainer._split = saved.metrics, saved.split
        trainer._callback_states = saved.callbacks
        trainer.history, trainer.config = History(saved.history), saved.config
        trainer.rng, trainer._progress = saved.rng, saved.progress
        return trainer

    def lock(self, path: str | Path) -> AbstractContextManager[None]:
        """Return a context in which no other process can train into a checkpoint.

        Raises
        ------
        InputError
            If the training cannot be saved; see `save`.
        CheckpointError
            If the path cannot name a file, or another process has the lock.
        """
        path = resolve_target(path)
        require_saveable(self._checkpoint())
        return lock_target(path) if self.ranks.rank == 0 else contextlib.nullcontext()

    def _checkpoint(self) -> SavedTraining:
        states = {name: x.saved_state(self) for name, x in self._callbacks.items()}
        states = {name: state for name, state in states.items() if state}
        progress = self._progress
        if progress is not None and self._sums:
            self._meet(saves=True)
            progress = replace(progress, sums=self._host_sums())
        return SavedTraining(
            self.network, self.loss, self.optimizer, self.penalty, tuple(self.transforms),
            tuple(self.metrics), self._device, self.history, self.rng, progress, self._split,
            self._callback_states | states, self.config,
        )  # fmt: skip

    def _meet(
        self, *, saves: bool = False, stops: bool = False, error: BaseException | None = None
    ) -> bool:
        """Return whether a rank stops; all of them call this, after a step or for a save there.

        Raises
        ------
        BaseException
            On all ranks, if one of them has an error.
        RanksError
            On all ranks, if only some of them save.
        """
        ranks = self.ranks
        doing = np.array([saves, stops, error is not None], "float64")
        saving, stopping, failing = ranks.total(doing).tolist()
        if failing:
            ranks.exchange(error=error)
        if 0 < saving < ranks.size:
            raise ranks.common(
                RanksError(
                    f"after a step, {saving:g} of {ranks.size} ranks save the training, whose "
                    "figures are of all; call Trainer.save on all ranks, in a callback without "
                    "only_rank_0, or save after the epoch"
                )
            )
        return bool(stopping)

    def _host_sums(self) -> dict[str, list[float]]:
        """Return the sums over all ranks."""
        sums = [self._device.to_host(x) for x in self._sums.values()]
        if self.ranks.size == 1 or not sums:
            return {name: x.tolist() for name, x in zip(self._sums, sums, strict=True)}
        total = self.ranks.total(np.concatenate([x.astype("float64") for x in sums]))
        parts = np.split(total, np.cumsum([x.size for x in sums])[:-1])
        return {name: x.tolist() for name, x in zip(self._sums, parts, strict=True)}

    def _give_states(self, callbacks: list[Callback]) -> None:
        """Give callbacks the states of a checkpoint, and warn of states that no callback takes."""
        numbers: Counter[str] = Counter()
        self._callbacks = {}
        for callback in callbacks:
            name = type(callback).__name__
            numbers[name] += 1
            self._callbacks[f"{name}{numbers[name]}"] = callback
        for name in self._callbacks.keys() & self._callback_states.keys():
            self._callbacks[name].state = self._callback_states.pop(name)
        if self._callback_states:
            names = ", ".join(x.rstrip("0123456789") for x in self._callback_states)
            self._callback_states = {}
            warn(f"the checkpoint has the state of {names}, which is not among the callbacks")

    def _batches(
        self, dataset: object, batch_size: int, rng: np.random.Generator | None = None
    ) -> Batches:
        return Batches(
            require_dataset(dataset), batch_size, device=self._device, dtype=self._dtype, rng=rng
        )

    def _require_not_training(self) -> None:
        if self._training:
            raise InputError(
                "this trainer is training already; let the callback return True, and call fit "
                "after it"
            )

    def _require_resumable(self, batches: Batches) -> None:
        """Raise unless training can start, or an interrupted epoch can be resumed, with these."""
        self._require_not_training()
        if self._progress is None:
            return
        self._progress.require_same(batches)
        if batches.rng is not self.rng and not isinstance(batches, BatchStream):
            raise InputError(
                "this trainer was stopped within an epoch, whose order trainer.rng has drawn; "
                "resume it with rng=trainer.rng"
            )

    @contextlib.contextmanager
    def _session(
        self, data: list[Batches], *, training: bool = False, checked: bool = False
    ) -> Iterator[None]:
        """Compute on the device, with a suitable number of threads.

        At the end `data` is emptied, so that the data sets leave the device's memory. If `checked`,
        the parts have not changed since they were trained last.
        """
        batch_size, dataset = data[0].batch_size, data[0].dataset
        with contextlib.ExitStack() as stack:
            work = partial(describe_work, self.network, batch_size, dataset)
            stack.enter_context(self._device.session(work))
            stack.callback(data.clear)
            if not self._training:  # not when a callback evaluates
                stack.callback(self._stepper.release, self._device)
            if training:
                if not checked:
                    require_trainable(self._whole_step())
                require_state_of_arrays(self.optimizer)
                replace_unusable_arrays(self.network, self.optimizer, self._device)
                require_representable(self.optimizer, self._dtype)
                self._training = True
                stack.callback(setattr, self, "_training", False)
            if self._device.is_host:
                work_of_one = self.network.work(tuple(dataset.inputs.shape[1:]))
                multiplications = batch_size * work_of_one.multiplications
                stack.enter_context(
                    limit_blas_threads(0 if self.ranks.shares_machine else multiplications)
                )
            try:
                yield
            except BaseException:
                if training or not self._training:
                    self._stepper.captured = None  # it may be what did not fit into memory
                raise

    def _has_own_step(self) -> bool:
        """Return whether `step` is overridden, in a subclass or on the object."""
        return type(self).step is not _STEP or "step" in vars(self)


def _no_batches() -> None:
    """Stand for a reference to batches that are gone."""


_STEP = Trainer.step
_OPTIONAL = ("penalty", "transforms", "metrics")  # parts, which `repr` shows if there are any


def _all_callbacks(
    callbacks: object,
    checkpoint: str | Path | None,
    checkpoint_every: int | None,
    verbose: bool,
) -> list[Callback]:
    """Return the callbacks of a call of `fit`, with those that its other arguments ask for."""
    found = require_callbacks(callbacks)
    if checkpoint_every is not None:
        require_count("checkpoint_every", checkpoint_every)
    if checkpoint is not None:
        found.append(Checkpoint(checkpoint, every=checkpoint_every))
    elif checkpoint_every is not None:
        raise InputError("checkpoint_every needs a checkpoint to write; give its path")
    if verbose:  # last, so that a line is printed once the checkpoint is written
        found.append(Progress())
    return found


def _finish(
    trainer: Trainer,
    callback: Callback,
    _: type[BaseException] | None,
    error: BaseException | None,
    __: object,
) -> None:
    callback.finish(trainer, error)
