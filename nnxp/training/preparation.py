"""Preparation: checks of data sets and parts before the first step."""

from __future__ import annotations

import inspect
import json
import math
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from nnxp.arrays import Array
from nnxp.checks import object_remedy, require_list, warn
from nnxp.data.batches import Batches, prepare_batch
from nnxp.data.dataset import Dataset
from nnxp.data.stream import BatchStream
from nnxp.data_format import (
    FEW,
    DataFormat,
    is_image,
    require_columns,
    require_outputs,
    said_scale,
    sizes_of,
)
from nnxp.devices import Device
from nnxp.errors import InputError
from nnxp.layers import BatchNorm, Flatten, Layer, Standardize
from nnxp.layers.augmentation import Augmentation
from nnxp.layers.base import require_no_layers
from nnxp.layers.images import require_channels_first
from nnxp.losses import Loss
from nnxp.metrics import Metric
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.parts import Part, definition, numbers_of
from nnxp.penalties import Penalty
from nnxp.ranks import ONE_RANK, Ranks
from nnxp.step import Step, evaluated_sums
from nnxp.training.callback import Callback
from nnxp.training.evaluation import evaluation_batch_size

_FLUSHED_STEPS = 500
_COMPARED = 16  # examples
_UNSCALED = 25  # inputs above this magnitude were probably not scaled


def require_dataset(dataset: object, what: str = "evaluate") -> Dataset:
    """Return `dataset`; raise an `InputError`, which names `what`, unless it is a `Dataset`."""
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"{what} expects a Dataset, got {type(dataset).__name__}; make one with "
            "nnxp.data.Dataset(inputs, labels)"
        )
    return dataset


def require_suitable(batches: Batches, name: str, step: Step) -> dict[str, Array]:
    """Check a data set against network, loss and metrics; return the sums of the first example.

    The forward, the loss and the metrics of the first example are computed. All labels, and the
    range of all numbers, are checked on the host.

    Parameters
    ----------
    batches : Batches
        The data set, on the network's device and in its dtype.
    name : str
        The name of the data set in the error: "training" or "validation".
    step : Step

    Returns
    -------
    dict of str to array
        As from `nnxp.step.measured_sums`.

    Raises
    ------
    InputError
        If the network, the loss or a metric does not take the examples.
    """
    dataset, device, dtype = batches.dataset, batches.device, batches.dtype
    if batches.rng is not None:
        _require_large_batches(batches, step)
    if dataset.weights is not None:
        require_weights_taken(step.loss.forward, f"{step.loss!r}.forward", name)
        for metric in step.metrics:
            require_weights_taken(metric.measure, f"{metric!r}.measure", name)
    largest_label = max(abs(float(dataset.labels.min())), abs(float(dataset.labels.max())))
    largest = max(dataset.largest, largest_label)
    if largest > float(np.finfo(dtype).max):
        raise InputError(
            f"the {name} data have the number {largest:g}, which {dtype} cannot hold; scale them"
        )
    try:
        with device.current():
            inputs, labels, *weights = prepare_batch(
                [x[:1] for x in dataset.arrays], dataset.scale, device, dtype
            )
            first = step.network.leaves()[0]
            if isinstance(first, Augmentation):
                require_channels_first(inputs, first)
            scores = step.network.forward(inputs)
            outputs = tuple(scores.shape[1:])
            if dataset.classes is not None and step.loss.probabilities is not None:
                require_outputs(dataset.classes, outputs)
            step.loss.check_labels(dataset.labels, outputs)
            if isinstance(batches, BatchStream):
                batches.check_labels = lambda labels: step.loss.check_labels(labels, outputs)
            sums = evaluated_sums(step, scores, labels, *weights)
            if dataset.classes is not None and "accuracy" not in sums:
                raise InputError(
                    f"the labels are the classes {dataset.classes!r:.60}, and {step.loss!r} takes "
                    "targets; use SoftmaxWithLoss or SigmoidWithLoss"
                )
            return sums
    except InputError as error:
        raise InputError(f"the {name} data do not suit: {error}") from error


def require_weights_taken(
    function: Callable[..., Any], what: str, name: str, kind: object = inspect.Parameter.VAR_KEYWORD
) -> None:
    """Raise an `InputError` unless a function takes example weights.

    Parameters
    ----------
    function : callable
    what : str
        The name of the function in the error.
    name : str
        The name of the data set with weights in the error.
    kind : kind of `inspect.Parameter`, optional
        The kind of parameter that takes any arguments: VAR_KEYWORD (default) if weights are passed
        by name, VAR_POSITIONAL if by position.
    """
    parameters = inspect.signature(function).parameters.values()
    if not any(x.name == "weights" or x.kind is kind for x in parameters):
        raise InputError(
            f"the {name} data have weights, which {what} does not take; give it a parameter "
            "weights=None"
        )


def with_class_numbers(dataset: Dataset, network: Sequential, loss: Loss) -> Dataset:
    """Return a data set whose labels are class numbers, if the classes are known or unambiguous.

    The classes are known after an earlier `fit` of the network. Otherwise, integer labels that are
    not class numbers, such as 1 and 2 or 10, 20 and 30, are converted if the number of different
    labels is the number of the network's classes.
    """
    known = network.data_format
    if known is not None and known.classes is not None:
        dataset = dataset.with_classes(known.classes)
    labels, outputs = dataset.labels, network.output_shape(None)
    if (
        dataset.classes is not None
        or loss.probabilities is None
        or labels.dtype.kind not in "iu"
        or labels.shape[1:] not in ((), (1,))
        or outputs is None
        or len(outputs) != 1
    ):
        return dataset
    expected = max(outputs[0], 2)
    if labels.min() >= 0 and labels.max() < expected:
        return dataset
    values = np.unique(labels)
    return dataset.with_classes(tuple(values.tolist())) if len(values) == expected else dataset


def data_format_of(dataset: Dataset, step: Step, streamed: bool) -> DataFormat:
    """Return the data format of a network that is trained on a data set.

    Parameters
    ----------
    dataset : Dataset
    step : Step
        The step, whose network and loss are used.
    streamed : bool
        Whether the data set is the first batch of a stream. The classes of an earlier `fit` are
        then kept, since the labels of a stream are class numbers.
    """
    inputs, scale, known = dataset.inputs, dataset.scale, step.network.data_format
    classes = known.classes if known is not None and streamed else dataset.classes
    columns = dataset.columns
    if known is not None:
        kept = "trainer.network.data_format.columns"
        require_columns(known.columns, columns, "the new training data", kept)
        columns = columns or known.columns
    sizes = np.zeros(0) if streamed else sizes_of(inputs, scale)
    return DataFormat(
        shape=tuple(inputs.shape[1:]),
        images=is_image(inputs),
        scale=scale,
        largest=0.0 if streamed else dataset.largest / (scale or 1),
        classes=classes,
        probabilities=step.loss.probabilities,
        size=(float(sizes.mean()), float(sizes.std())) if len(sizes) >= FEW else None,
        columns=columns,
    )


def warn_of_other_scale(known: DataFormat | None, trained_on: DataFormat) -> None:
    """Warn if the divisor of the inputs differs from that of an earlier `fit`."""
    if known is None or known.images != trained_on.images or known.scale == trained_on.scale:
        return
    now = "does not divide" if trained_on.scale is None else f"divides by {trained_on.scale:g}"
    warn(
        f"the network was trained on inputs that were {said_scale(known.scale)}, and these are "
        f"{said_scale(trained_on.scale)}; from now on, predict {now}"
    )


def in_format(dataset: Dataset, trained_on: DataFormat, name: str) -> Dataset:
    """Return a data set to evaluate, with the class numbers of the training data.

    Raises
    ------
    InputError
        If the kind of its labels, the divisor of its inputs, or its columns are not those of the
        training data.
    """
    kept = "train.columns" if name == "validation" else "trainer.network.data_format.columns"
    require_columns(trained_on.columns, dataset.columns, f"the {name} data", kept)
    expected, images = trained_on.scale_of(dataset.inputs), is_image(dataset.inputs)
    if dataset.scale not in (expected, trained_on.scale):
        raise InputError(
            f"the {name} data, {dataset.inputs.dtype}, are {said_scale(dataset.scale)}, and the "
            f"training data {said_scale(trained_on.scale)}; give both data sets "
            f"scale={trained_on.scale}"
        )
    if not (images and trained_on.images):
        if images and dataset.scale is not None:
            trained_on.warn_of_images(dataset.largest, f"the {name} data")
        trained_on.warn_of_size(sizes_of(dataset.inputs, dataset.scale), f"the {name} data")
    try:
        return dataset.with_classes(trained_on.classes)
    except InputError as error:
        raise InputError(f"the {name} data do not suit: {error}") from None


def fit_statistics(network: Sequential, batches: Batches, ranks: Ranks = ONE_RANK) -> None:
    """Set the statistics of each `Standardize` that has none from the training data.

    The layers before it compute on the device. If these are only `Flatten`, the statistics are
    computed from the data set's own numbers, which are not rounded to the network's dtype. Of
    several ranks, only rank 0 reads all inputs, and the others get its statistics.
    """
    device, dataset = batches.device, batches.dataset
    scale = dataset.scale or 1.0
    size = evaluation_batch_size(network, dataset)
    for i, layer in enumerate(network.layers):
        if not isinstance(layer, Standardize) or layer.is_fitted():
            continue
        if isinstance(batches, BatchStream):
            raise InputError(
                f"{layer!r} needs all examples before the first step; give fit a Dataset, or call "
                "its adapt(inputs) first"
            )
        before = network.layers[:i]
        parts: Iterable[Any]
        if all(type(x) is Flatten for x in before):
            starts = range(0, len(dataset), size)
            rows: Iterable[Any] = (dataset.inputs[j : j + size] for j in starts)
            parts = (_through(before, x.astype("float64") / scale) for x in rows)
        else:
            given = batches.in_order(size)
            parts = (device.to_host(_through(before, inputs)) for inputs, *_ in given)
        if ranks.rank == 0:
            with device.current():
                layer.adapt(parts, dataset.weights)
        if ranks.size > 1:
            own = {name: device.to_host(x).tolist() for name, x in layer.state.items()}
            first = ranks.exchange(json.dumps(own), call="Standardize")[0]
            for name, x in json.loads(first).items():
                layer.state[name] = device.asarray(np.array(x), dtype=layer.dtype)
            layer.features = int(layer.state["mean"].shape[0])


def _through(layers: Iterable[Layer], x: Array) -> Array:
    for layer in layers:
        x = layer.forward(x)
    return x


def hint_at_scale(network: Sequential, dataset: Dataset) -> None:
    """Warn if inputs were probably not scaled: networks train badly on large numbers."""
    normalized = any(isinstance(layer, (Standardize, BatchNorm)) for layer in network.leaves()[:2])
    if is_image(dataset.inputs) or dataset.scale is not None or normalized:
        return
    if dataset.largest <= _UNSCALED:
        return
    remedy = f"give the Dataset a scale, such as scale={dataset.largest:.4g}"
    flat = isinstance(network[0], Flatten)
    if flat or dataset.inputs.ndim == 2:
        settings = [
            f"{name}={value!r}"
            for name, value, default in (
                ("dtype", network.dtype, "float32"),
                ("device", network.device.spec if network.device else "cpu", "cpu"),
            )
            if value != default
        ]
        layer = f"nnxp.Standardize({', '.join(settings)})"
        layers = f"network[0], {layer}, *network[1:]" if flat else f"{layer}, *network"
        remedy = f"use nnxp.Sequential([{layers}]) with new weights, or {remedy}"
    warn(
        f"the inputs have numbers up to {dataset.largest:.4g}, and networks train best on "
        f"numbers around 1; {remedy}"
    )


def fingerprint(batches: Batches) -> list[int]:
    """Return checksums of some examples: of inputs, labels and weights.

    Of the first batch of a stream, whose inputs may be random, only of labels.
    """
    arrays = batches.dataset.arrays
    rows = np.linspace(0, len(batches.dataset) - 1, _COMPARED).astype("int64")
    streamed = isinstance(batches, BatchStream)
    return [zlib.crc32(x[rows].tobytes()) for x in (arrays[1:2] if streamed else arrays)]


def require_ranks(ranks: object) -> Ranks:
    """Return `ranks`; raise an `InputError` unless it is an object of `Ranks`."""
    if not isinstance(ranks, Ranks):
        raise InputError(
            f"ranks must be an object of nnxp.distributed.Ranks such as nnxp.distributed.mpi(), "
            f"got {ranks!r}"
        )
    return ranks


def require_callbacks(callbacks: object) -> list[Callback]:
    """Return `callbacks` as a list; raise unless they are different objects of `Callback`."""
    found = list(require_list("callbacks", callbacks))
    for callback in found:
        if not isinstance(callback, Callback):
            raise InputError(
                f"a callback must be an object of nnxp.callbacks.Callback, got {callback!r}"
                + object_remedy(callback)
            )
    if len({id(x) for x in found}) < len(found):
        raise InputError("the same callback is given twice; make one object for each")
    return found


def _require_large_batches(batches: Batches, step: Step) -> None:
    """Raise an `InputError` if an epoch has a batch that is too small for a layer."""
    layer = max(step.network.leaves(), key=lambda layer: layer.min_batch_size)
    least, count = layer.min_batch_size, len(batches.dataset)
    size = step.micro_batch_size or batches.batch_size
    smallest = min(size, count % size or size)
    ranks = step.ranks
    if ranks.size > 1 and (ranks.batch_norm != "all" or step.micro_batch_size is not None):
        _require_large_shares(batches, step, layer)
        return
    if smallest >= least:
        return
    remedy = f"use {least} examples or more"
    larger = (n for n in range(max(size, least), count + 1) if (count % n or n) >= least)
    if (better := next(larger, None)) is not None:
        remedy = f"use batch_size={better}"
    raise InputError(
        f"{layer!r} needs batches of at least {least} examples, but with batch_size={size} one of "
        f"the {count} examples' batches has {smallest}; {remedy}"
    )


def _require_large_shares(batches: Batches, step: Step, layer: Layer) -> None:
    """Raise an `InputError` if a rank's part of a batch is too small for a layer."""
    count, ranks = len(batches.dataset), step.ranks.size
    size = min(batches.batch_size, count)
    part = step.micro_batch_size or size
    for rows in {size, count % size or size}:
        for own in {rows // ranks, -(-rows // ranks)}:
            smallest = min(own, own % part or part)
            if smallest < layer.min_batch_size:
                raise InputError(
                    f"{layer!r} needs batches of at least {layer.min_batch_size} examples, but a "
                    f"rank has {smallest} of a batch of {rows}; use a larger batch_size, one that "
                    f"divides the {count} examples, or fewer ranks than {ranks}"
                )


def require_trainable(step: Step) -> None:
    """Raise an `InputError` if the parts of a step cannot be trained in their current state."""
    network, optimizer = step.network, step.optimizer
    for thing, kind, example in (
        (network, Sequential, "nnxp.mlp([784, 50, 10], rng=0)"),
        (step.loss, Loss, "nnxp.SoftmaxWithLoss()"),
        (optimizer, Optimizer, "nnxp.Adam()"),
    ):
        if not isinstance(thing, kind):
            raise InputError(
                f"Trainer expects network, loss and optimizer: an object of {kind.__name__} such "
                f"as {example}, got {thing!r}" + object_remedy(thing)
            )
    if not isinstance(step.penalty, Penalty | None):
        raise InputError(
            f"penalty must be a Penalty such as nnxp.L2(1e-4), got {step.penalty!r}"
            + object_remedy(step.penalty)
        )
    given: tuple[object, ...] = step.metrics
    for metric in given:
        if not isinstance(metric, Metric) or not hasattr(metric, "name"):
            raise InputError(
                "a metric must be an object of nnxp.metrics.Metric with a name, such as "
                f"nnxp.metrics.TopAccuracy(5), got {metric!r}" + object_remedy(metric)
            )
    names = ["loss", "accuracy", *(metric.name for metric in step.metrics)]
    if len(set(names)) < len(names):
        raise InputError(f"each metric needs a name of its own, got {', '.join(names)}")
    for transform in step.transforms:
        if isinstance(transform, type) or not callable(transform):
            raise InputError(
                "a transform must be an object such as nnxp.ClipNorm(1.0), or a function of "
                f"parameters and gradients, got {transform!r}" + object_remedy(transform)
            )
        try:
            inspect.signature(transform).bind({}, {})
        except ValueError:
            continue  # a builtin function without a signature
        except TypeError as error:
            raise InputError(
                f"a transform must take parameters and gradients, such as lambda params, grads: "
                f"grads, got {transform!r} ({error})"
            ) from None
    network.require_trainable()
    if not network.parameters():
        raise InputError(f"{network!r} has no parameters to train")
    for part in step.parts[1:]:
        if isinstance(part, Part):
            require_no_layers(part, [network, *network.all_layers()])


def require_state_of_arrays(optimizer: Optimizer) -> None:
    """Raise an `InputError` if the state of an optimizer is not one of arrays."""
    for slot, kept in optimizer.state.items():
        slot_state: object = kept
        arrays = slot_state.values() if isinstance(slot_state, dict) else [slot_state]
        if not_array := [x for x in arrays if not hasattr(x, "__dlpack__")]:
            raise InputError(
                f"state[{slot!r}] of {optimizer!r} must be a dictionary of one array for each "
                f"parameter, got {not_array[0]!r}"
            )


def replace_unusable_arrays(network: Sequential, optimizer: Optimizer, device: Device) -> None:
    """Replace arrays that training cannot change in place by copies.

    These are read-only NumPy arrays, such as joblib's in shared memory, and PyTorch tensors that
    require a gradient.
    """

    def is_usable(x: Any) -> bool:
        if isinstance(x, np.ndarray):
            return bool(x.flags.writeable)
        return not getattr(x, "requires_grad", False)

    def copied(x: Array) -> Array:
        return device.xp.asarray(device.asarray(x), copy=True)

    for arrays in network.arrays():
        for name, x in arrays.items():
            if not is_usable(x):
                arrays.place(name, copied(x))
    for kept in optimizer.state.values():
        for name, x in kept.items():
            if not is_usable(x):
                kept[name] = copied(x)


def require_representable(optimizer: Optimizer, dtype: str) -> None:
    """Raise an `InputError` if a nonzero number of the optimizer's next step is 0 in `dtype`.

    Subnormal numbers count as 0, as on many devices.
    """
    limits = np.finfo(dtype)
    least = float(limits.smallest_normal)
    if definition(optimizer, "update") != type(optimizer).__mro__.index(Optimizer):
        return  # a user's `update` may not use these numbers
    values = {name: abs(float(getattr(optimizer, name))) for name in numbers_of(optimizer)}
    tiny = [name for name, x in values.items() if 0 < x < least]
    wrong = [x for x in optimizer.numbers() if 0 < abs(x) < least]
    if tiny or (wrong and "epsilon" in values):
        name = tiny[0] if tiny else "epsilon"  # Adam multiplies it by a correction
        raise InputError(
            f"{name} of {optimizer!r} is too small for {dtype}; use "
            f"{name}={2 * least / float(limits.eps):.0e} or more"
        )
    if wrong:
        raise InputError(
            f"factors() of {optimizer!r} has {wrong[0]:g}, which counts as 0 in {dtype}; return 0, "
            f"or at least {least:.0e}"
        )


def flush_denormals(optimizer: Optimizer, epoch_steps: int) -> None:
    """Set subnormal numbers of an optimizer's state on the CPU to 0: they slow down each step.

    If gradients stay 0, their average shrinks to the smallest subnormal number and stays there;
    with a decay of 0.9 this takes about 800 steps. So in epochs of few steps, nothing is done more
    often than once in `_FLUSHED_STEPS` steps.

    Parameters
    ----------
    optimizer : Optimizer
    epoch_steps : int
        The number of steps of the epoch that starts; 0 if unknown.
    """
    if epoch_steps and optimizer.steps % _FLUSHED_STEPS >= epoch_steps:
        return
    for kept in optimizer.state.values():
        arrays: Iterable[Any] = kept.values()
        for x in arrays:
            if isinstance(x, np.ndarray) and x.dtype.kind == "f":
                x[np.abs(x) < np.finfo(x.dtype).smallest_normal] = 0


def describe_work(network: Sequential, batch_size: int, dataset: Dataset) -> str:
    """Return a description of a network and its batches, for an error about memory."""
    evaluated = evaluation_batch_size(network, dataset)
    parameters = sum(math.prod(x.shape) for x in network.parameters().values())
    return (
        f"{network!r} with {parameters:,} parameters and batches of {batch_size:,} "
        f"(evaluated {evaluated:,} at a time)"
    )
