"""Watching: measure the sizes of each layer's outputs and gradients during training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array, namespace_of
from nnxp.checks import explained, require_count
from nnxp.data.batches import Batches
from nnxp.data.dataset import Dataset
from nnxp.errors import InputError
from nnxp.history import Record
from nnxp.layers import Layer
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.step import Step
from nnxp.training.callback import Callback
from nnxp.training.copies import independent_copy
from nnxp.training.preparation import in_format, require_dataset, require_suitable

if TYPE_CHECKING:
    from nnxp.training.trainer import Trainer

_PASSED = 0.01  # an output passes its gradient on if at least this share of it is left
_FIGURES = ("spreads", "gradients", "blocked")


class WatchLayers(Callback):
    """Record the sizes of each layer's outputs and gradients, to see whether gradients vanish.

    Before the first step and after each epoch, a forward and a backward of the same examples run on
    a copy of network and loss. This does not affect training, also with captured steps, unless your
    own layer or loss changes something outside of itself, such as NumPy's global generator.
    `nnxp.plots.plot_layers` draws the records.

    Checkpoints save the records. They continue after `Trainer.resume`, and in a later `fit` with
    the same callback.

    Parameters
    ----------
    dataset : Dataset
        The examples, for example the validation data.
    examples : int, optional
        The number of examples that are used, evenly spaced; 100 by default.
    every : int, optional
        Record also after every `every` steps.

    Attributes
    ----------
    layers : list of str
        The names of the layers, as in `Sequential.activations`, without nested networks.
    steps : (records,) int array
        The number of steps before each record.
    spreads : (records, layers) array
        The standard deviation of each layer's outputs. In all figures, numbers that are not finite
        are recorded as nan.
    gradients : (records, layers) array
        The root mean square of the loss's gradient with respect to each layer's outputs.
    blocked : (records, layers) array
        The share of a layer's outputs that pass on less than a hundredth of their gradient, such as
        saturated sigmoids and ReLUs with output 0. Outputs whose gradient is 0 are not counted. It
        is nan for layers with parameters, and for layers that change the shape.

    Examples
    --------
    >>> import nnxp
    >>> train, test = nnxp.data.load_digits()
    >>> network = nnxp.mlp([64, 30, 30, 10], rng=0, activation="sigmoid")
    >>> trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    >>> watch = nnxp.callbacks.WatchLayers(test)
    >>> history = trainer.fit(train, epochs=2, batch_size=50, rng=0, callbacks=[watch])
    >>> watch.layers
    ['affine1', 'sigmoid1', 'affine2', 'sigmoid2', 'affine3']
    >>> watch.steps
    array([ 0, 29, 58])
    >>> bool(watch.gradients[0, 0] < watch.gradients[0, 2] / 3)
    True
    """

    @explained("nnxp.callbacks.WatchLayers(dataset)")
    def __init__(self, dataset: Dataset, examples: int = 100, *, every: int | None = None) -> None:
        self.dataset = require_dataset(dataset, "WatchLayers")
        self.examples = require_count("examples", examples)
        self.every = every if every is None else require_count("every", every)
        self.every_step = every is not None
        self.state = {
            "layers": [],
            "steps": np.zeros(0, "int64"),
            **{name: np.zeros((0, 0)) for name in _FIGURES},
        }
        self._batch: tuple[Array, ...] = ()

    @property
    def layers(self) -> list[str]:
        """The names of the layers."""
        return list(self.state["layers"])

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """The number of steps before each record."""
        return self._array("steps")

    @property
    def spreads(self) -> npt.NDArray[np.float64]:
        """The standard deviation of each layer's outputs."""
        return self._array("spreads")

    @property
    def gradients(self) -> npt.NDArray[np.float64]:
        """The root mean square of the gradient with respect to each layer's outputs."""
        return self._array("gradients")

    @property
    def blocked(self) -> npt.NDArray[np.float64]:
        """The share of each layer's outputs that pass on less than 1 % of their gradient."""
        return self._array("blocked")

    def _array(self, name: str) -> npt.NDArray[Any]:
        # A checkpoint holds only finite numbers, so other numbers are stored as -1.
        array: npt.NDArray[Any] = self.state[name]
        return array.copy() if name == "steps" else np.where(array < 0, np.nan, array)

    def start(self, trainer: Trainer) -> bool | None:
        """Select the examples, and add the first record."""
        network, device = trainer.network, trainer.network.device
        known, dtype = network.data_format, network.dtype
        if device is None or dtype is None or known is None:
            raise InputError(f"WatchLayers works in Trainer.fit, which has not trained {network!r}")
        names = [name for name, layer in network.named_layers().items() if _is_leaf(layer)]
        if self.layers not in ([], names):
            raise InputError(
                f"WatchLayers has records of the layers {', '.join(self.layers):.60}, and the "
                "network has others; make a new WatchLayers"
            )
        self.state["layers"] = names
        dataset = in_format(self.dataset, known, "watched")
        rows = np.linspace(0, len(dataset) - 1, min(self.examples, len(dataset))).astype("int64")
        inputs, labels, *weights = (x[rows] for x in dataset.arrays)
        part = Dataset(
            inputs, labels, scale=dataset.scale, weights=weights[0] if weights else None
        )  # labels are already class numbers
        batches = Batches(part, len(part), device=device, dtype=dtype)
        copied, loss = self._copies(trainer)
        require_suitable(batches, "watched", Step(copied, loss, trainer.optimizer))
        (self._batch,) = batches
        self._record(trainer)
        return None

    def step(self, trainer: Trainer) -> bool | None:
        """Add a record after every `every` steps."""
        if self.every is not None and trainer.optimizer.steps % self.every == 0:
            self._record(trainer)
        return None

    def epoch(self, trainer: Trainer, record: Record) -> bool | None:
        """Add a record."""
        self._record(trainer)
        return None

    def finish(self, trainer: Trainer, error: BaseException | None) -> None:
        """Free the examples."""
        self._batch = ()

    def _copies(self, trainer: Trainer) -> tuple[Sequential, Loss]:
        network, device = trainer.network, trainer.network.device
        assert device is not None
        return independent_copy((network, trainer.loss), network, device)

    def _record(self, trainer: Trainer) -> None:
        """Add a record, unless there is already one for this step."""
        steps = trainer.optimizer.steps
        if len(self.state["steps"]) and self.state["steps"][-1] == steps:
            return
        with np.errstate(all="ignore"):  # figures that are not finite are recorded
            figures = measure_layers(*self._copies(trainer), *self._batch)
        self.state["steps"] = np.append(self.state["steps"], steps)
        for name, row in zip(_FIGURES, figures, strict=True):
            before = self.state[name].reshape(-1, len(row))
            self.state[name] = np.concatenate([before, np.where(np.isfinite(row), row, -1.0)[None]])


def _is_leaf(layer: Layer) -> bool:
    return not isinstance(layer, Sequential)


def measure_layers(
    network: Sequential, loss: Loss, inputs: Array, labels: Array, weights: Array | None = None
) -> npt.NDArray[np.float64]:
    """Return the figures of each layer in a training forward and a backward of a batch.

    The function waits for the device once.

    Parameters
    ----------
    network : Sequential
        A copy that is not used afterwards, since its layers' methods are replaced.
    loss : Loss
        A copy, too.
    inputs, labels, weights : array
        A batch, on the network's device.

    Returns
    -------
    (3, layers) array
        The spreads, gradients and shares of blocked outputs; see `WatchLayers`.
    """
    figures: dict[tuple[int, int], Array] = {}
    layers = [layer for layer in network.named_layers().values() if _is_leaf(layer)]
    for column, layer in enumerate(layers):
        _watch(layer, column, figures)
    scores = network.forward(inputs, training=True)
    given: dict[str, Any] = {} if weights is None else {"weights": weights}
    loss.forward(scores, labels, **given)
    network.backward(loss.backward())
    device = network.device
    assert device is not None
    host = device.to_host(device.xp.stack(list(figures.values())))
    found = np.full((len(_FIGURES), len(layers)), np.nan)
    for place, number in zip(figures, host.tolist(), strict=True):
        found[place] = number
    return found


def _watch(layer: Layer, column: int, figures: dict[tuple[int, int], Array]) -> None:
    """Replace forward and backward of a layer by functions that also compute its figures."""
    forward, backward = layer.forward, layer.backward

    def watched_forward(x: Array, training: bool = False) -> Array:
        y = forward(x, training)
        xp = namespace_of(y, layer)
        figures[0, column] = _root_mean_square(y - xp.mean(y))
        return y

    def watched_backward(dy: Array) -> Array:
        xp = namespace_of(dy, layer)
        figures[1, column] = _root_mean_square(dy)
        dx = backward(dy)
        if not layer.params and dx.shape == dy.shape:
            size = xp.abs(dy)
            passed = (xp.abs(dx) >= _PASSED * size) & (size > 0)
            total = xp.sum(xp.astype(size > 0, dy.dtype))
            share = xp.sum(xp.astype(passed, dy.dtype)) / xp.where(total > 0, total, 1.0)
            figures[2, column] = 1.0 - share
        return dx

    vars(layer).update(forward=watched_forward, backward=watched_backward)


def _root_mean_square(x: Array) -> Array:
    """Return the root mean square of an array; its squares may underflow in its dtype."""
    xp = namespace_of(x, "WatchLayers")
    largest = xp.max(xp.abs(x))
    ratios = x / xp.where(largest > 0, largest, 1.0)
    return largest * xp.sqrt(xp.mean(ratios * ratios))
