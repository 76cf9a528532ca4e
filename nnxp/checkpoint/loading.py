"""Loading: read a checkpoint and check its contents, which may be malicious."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array
from nnxp.checkpoint.format import (
    DIGEST_KEY,
    FIGURES,
    FORMAT,
    MAX_HEADER,
    METADATA_KEY,
    Arrays,
    Checkpoint,
    digest,
    header_size,
    require_callback_states,
    require_config,
    require_rising,
    require_state,
)
from nnxp.checks import explained, optional_import
from nnxp.data.dataset import Split
from nnxp.data.epoch import EpochProgress
from nnxp.data_format import read_data_format
from nnxp.devices import Device, open_device, require_dtype
from nnxp.errors import CheckpointError, DeviceError, InputError, NnxpError
from nnxp.files import expand_home
from nnxp.history import MAX_RECORDS, Record
from nnxp.layers import Layer
from nnxp.losses import Loss
from nnxp.metrics import Metric
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.parts import Part, Place, build_part
from nnxp.penalties import Penalty
from nnxp.random import generator
from nnxp.transforms import GradientTransform, Transform

_LARGEST = sys.float_info.max  # a JSON integer may be larger, and cannot be converted to a float
# Errors that wrong contents of a file may raise.
_CONTENT_ERRORS = (
    AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError,
    NnxpError,
)  # fmt: skip


def load(
    path: str | Path,
    *,
    device: Device | str | None = None,
    network: Sequential | None = None,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    penalty: Penalty | None = None,
    transforms: tuple[Transform, ...] | None = None,
    metrics: tuple[Metric, ...] | None = None,
) -> Checkpoint:
    """Load a checkpoint.

    Parameters
    ----------
    path : str or Path
        A file that `Trainer.save` wrote.
    device : Device or str, optional
        The network's device, which may differ from that of the saved network; the CPU by default.
    network, loss, optimizer, penalty, transforms, metrics : optional
        Parts that replace those of the file; required for a class that is not registered. The
        parameters, state and frozen layers of the file are loaded into the network, and its
        optimizer state into the optimizer.

    Returns
    -------
    Checkpoint

    Raises
    ------
    InputError
        If both a device and a network are given, an argument is of a wrong class, or the network
        has no parameters.
    CheckpointError
        If the file cannot be read, is not a checkpoint, is damaged, or needs a newer nnxp. Network
        and optimizer are unchanged in this case.
    DeviceError
        If the device cannot be used, or has too little memory.
    MissingExtraError
        If safetensors is not installed.
    """
    for name, part, cls in (
        ("network", network, Sequential), ("loss", loss, Loss),
        ("optimizer", optimizer, Optimizer), ("penalty", penalty, Penalty),
    ):  # fmt: skip
        if part is not None and not isinstance(part, cls):
            raise InputError(f"{name} must be of class {cls.__name__}, got {part!r}")
    if network is None:
        opened = open_device("cpu" if device is None else device)
    elif network.device is None:
        raise InputError(f"{network!r} has no parameters to load a checkpoint into")
    elif device is not None:
        raise InputError(f"the network given is on {network.device}; give it or a device, not both")
    else:
        opened = network.device
    metadata, arrays = _read(path)
    if "loss" not in metadata:
        raise CheckpointError(
            f"{path} holds only a network and no training state; load it with nnxp.load_network"
        )
    with _as_checkpoint_error(path):
        sorted_arrays = _sort_arrays(arrays)
        created, given = network is None, optimizer
        if network is not None and network.dtype != (dtype := require_dtype(metadata["dtype"])):
            raise CheckpointError(
                f"its network is of {dtype}, and the network given of {network.dtype}; give "
                f'network.to(network.device, dtype="{dtype}")'
            )
        if network is None:
            network = _create_network(metadata, sorted_arrays, opened)
        place = Place(opened, require_dtype(metadata["dtype"]), 0)
        if loss is None:
            loss = _create("loss", Loss, metadata["loss"], place)
        if optimizer is None:
            optimizer = _create("optimizer", Optimizer, metadata["optimizer"], place)
        if penalty is None and metadata["penalty"] is not None:
            penalty = _create("penalty", Penalty, metadata["penalty"], place)
        if transforms is None:
            transforms = tuple(_create_transform(x, place) for x in metadata["transforms"])
        if metrics is None:
            metrics = tuple(_create("metrics", Metric, x, place) for x in metadata["metrics"])
        rng = None if metadata["rng"] is None else generator(metadata["rng"])
        history = _read_history(metadata["figures"], sorted_arrays.columns)
        split = None if metadata["split"] is None else _read_split(metadata["split"])
        callbacks = _read_callbacks(metadata["callbacks"], sorted_arrays.callbacks)
        position = metadata["position"]
        progress = None if position is None else _read_progress(position, rng)
        config = metadata["config"]
        require_config(config)
        steps = _require_integer("steps", metadata["steps"])
        frozen = _read_frozen(metadata, network)
        try:
            transferred = _transfer_state(optimizer, steps, sorted_arrays, network, frozen, opened)
        except InputError as error:
            if given is None:
                raise
            raise CheckpointError(
                f"its optimizer is a {metadata['optimizer']['type']}, and {given!r} cannot take "
                "its state; give an optimizer of that class, or none, or start a new training of "
                "nnxp.load_network(path)"
            ) from error
        if not created:
            network.load_arrays(sorted_arrays.parameters, sorted_arrays.states)
            network.data_format = read_data_format(metadata["data"])
        for layer in network.leaves():
            layer.trainable = not any(layer is x for x in frozen)
        optimizer.steps, optimizer.state = steps, transferred
        optimizer._trained = None  # the state now belongs to this network
        return Checkpoint(
            network, loss, optimizer, penalty, transforms, metrics, opened, history, rng,
            progress, split, callbacks, config,
        )  # fmt: skip


@explained('nnxp.load_network("network.safetensors")')
def load_network(path: str | Path, *, device: Device | str = "cpu") -> Sequential:
    """Load a network for predictions.

    Parameters
    ----------
    path : str or Path
        A file that `network.save` or `Trainer.save` wrote.
    device : Device or str, optional
        The network's device, which may differ from that of training; the CPU by default.

    Returns
    -------
    Sequential

    Raises
    ------
    CheckpointError
        If the file cannot be read, is not a checkpoint, is damaged, or needs a newer nnxp; or if
        the network or a layer is of a class that is not registered (see `nnxp.register`).
    DeviceError
        If the device cannot be used, or has too little memory.
    MissingExtraError
        If safetensors is not installed.

    Examples
    --------
    >>> import numpy as np, nnxp, tempfile, pathlib
    >>> network = nnxp.mlp([4, 3, 2], rng=np.random.default_rng(0))
    >>> trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam())
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> trainer.save(path)
    >>> nnxp.load_network(path)
    Sequential(Affine(4, 3), ReLU(), Affine(3, 2))
    """
    opened = open_device(device)
    metadata, arrays = _read(path)
    with _as_checkpoint_error(path):
        network = _create_network(metadata, _sort_arrays(arrays), opened)
        for layer in _read_frozen(metadata, network):
            layer.trainable = False
        return network


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return a file's metadata and arrays; check its format and its SHA-256."""
    safetensors = optional_import("safetensors", "checkpoint")
    optional_import("safetensors.numpy", "checkpoint")
    try:
        path = expand_home(path)
    except InputError as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None
    try:
        if path.exists() and not path.is_file():  # opening a pipe waits for a writer
            raise CheckpointError(f"{path} is not a file")
        # Open the file here: Python's `open` raises clearer errors than safetensors.
        with path.open("rb") as stream:
            start = stream.read(8)
            size = header_size(start)
            if size > MAX_HEADER:
                raise CheckpointError(
                    f"{path} is not a checkpoint, or is damaged (its header is too long)"
                )
            start += stream.read(size)
            described = json.loads(start[8:])
            header = described.pop("__metadata__", {})
            stated = 8 + size + max((x["data_offsets"][1] for x in described.values()), default=0)
            # Check the size before the file is read, since it may be huge. Use the open file, since
            # a training run may replace the path.
            length = os.fstat(stream.fileno()).st_size
            if length != stated:
                raise CheckpointError(
                    f"{path} is not a checkpoint, or is damaged (it has {length:,} bytes, and its "
                    f"header states {stated:,})"
                )
            # No memory map: truncating the file in the meantime would crash the process.
            data = start + stream.read(stated - len(start))
        arrays = dict(sorted(safetensors.numpy.load(data).items()))  # safetensors has no order
        if METADATA_KEY not in header:
            raise CheckpointError(f"{path} is not a checkpoint of nnxp")
        metadata = json.loads(header[METADATA_KEY], parse_constant=_refuse_constant)
        version = metadata["format"]
        if type(version) is not int or version < 1:
            raise CheckpointError(f"{path} is damaged: its format is {version!r:.80}")
        if version > FORMAT:
            raise CheckpointError(
                f"{path} is of format {version}, and this nnxp reads up to {FORMAT}; install a "
                "newer nnxp"
            )
        if header.get(DIGEST_KEY) != digest(header[METADATA_KEY], arrays):
            raise CheckpointError(f"{path} is damaged: its SHA-256 does not match its contents")
        return metadata, arrays
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} cannot be read (not enough memory)") from error
    except CheckpointError:
        raise
    except (*_CONTENT_ERRORS, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint, or is damaged ({_printable_line(error)})"
        ) from error


def _refuse_constant(name: str) -> object:
    raise ValueError(f"its metadata have {name}, which is not JSON; use null or a string instead")


@contextlib.contextmanager
def _as_checkpoint_error(path: str | Path) -> Iterator[None]:
    """Raise each error about a file's contents as a `CheckpointError` that names the file."""
    try:
        yield
    except DeviceError:  # for example `OutOfMemoryError`, which the file does not cause
        raise
    except _CONTENT_ERRORS as error:
        message = error if isinstance(error, NnxpError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} cannot be used: {_printable_line(message)}") from error


def _printable_line(message: object) -> str:
    """Return a message as one short line, without control characters from the file."""
    return "".join(x if x.isprintable() else " " for x in str(message)[:400])


class _Arrays(NamedTuple):
    """The arrays of a file: parameters, layers' states, optimizer state by slot, and so on."""

    parameters: Arrays
    states: Arrays
    state: dict[str, Arrays]
    columns: Arrays
    callbacks: Arrays


def _sort_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> _Arrays:
    """Return a file's arrays by their use."""
    parameters: Arrays = {}
    states: Arrays = {}
    state: dict[str, Arrays] = {}
    columns: Arrays = {}
    callbacks: Arrays = {}
    for name, x in arrays.items():
        group, _, rest = name.partition("/")
        slot, _, parameter = rest.partition("/")  # a parameter's name may contain slashes
        match group:
            case "parameters":
                parameters[rest] = x
            case "layers":
                states[rest] = x
            case "state":
                state.setdefault(slot, {})[parameter] = x
            case "history":
                columns[rest] = x
            case "callbacks":
                callbacks[rest] = x
            case _:
                raise CheckpointError(f"it holds an unknown array {name!r}")
        if group != "history" and not np.isfinite(x).all():
            raise CheckpointError(f"its {name} holds a number that is not finite")
    return _Arrays(parameters, states, state, columns, callbacks)


Kind = TypeVar("Kind", bound=Part)


def _create(role: str, kind: type[Kind], description: Mapping[str, Any], place: Place) -> Kind:
    """Return the part that the metadata describe; it must be of this class."""
    try:
        part = build_part(description, place)
    except InputError as error:
        raise CheckpointError(
            f"its {role} cannot be made: {error}; or make that {role} yourself and give it: "
            f"Trainer.resume(path, {role}=…)"
        ) from error
    if not isinstance(part, kind):
        raise CheckpointError(f"its {role} is a {type(part).__name__}")
    return part


def _create_transform(description: Mapping[str, Any], place: Place) -> Transform:
    """Return the transform that the metadata describe."""
    if "function" in description:
        raise CheckpointError(
            f"its transform {description['function']} is a function, which a file cannot hold; "
            "pass all transforms: Trainer.resume(path, transforms=[…])"
        )
    return _create("transforms", GradientTransform, description, place)


def _create_network(metadata: Mapping[str, Any], arrays: _Arrays, device: Device) -> Sequential:
    """Return the network that the metadata describe, with the file's parameters and states."""
    size = sum(x.size for x in (*arrays.parameters.values(), *arrays.states.values()))
    place = Place(device, require_dtype(metadata["dtype"]), size)
    network = _create("network", Sequential, metadata["network"], place)
    if network.device is None:
        raise CheckpointError("its network has no parameters")
    network.load_arrays(arrays.parameters, arrays.states)
    network.data_format = read_data_format(metadata["data"])
    return network


def _read_frozen(metadata: Mapping[str, Any], network: Sequential) -> list[Layer]:
    """Return the layers that are frozen according to the metadata."""
    leaves = network.leaves()
    frozen = {_require_integer("frozen layer", i) for i in metadata["frozen"]}
    if frozen and max(frozen) >= len(leaves):
        raise CheckpointError(f"it has no layer {max(frozen)} to freeze")
    return [leaves[i] for i in sorted(frozen)]


def _transfer_state(
    optimizer: Optimizer,
    steps: int,
    arrays: _Arrays,
    network: Sequential,
    frozen: list[Layer],
    device: Device,
) -> dict[str, dict[str, Array]]:
    """Return an optimizer's state on the device; check that it fits the parameters."""
    own = network.parameters()
    trainable = [name for name in own if not any(own.layer(name) is x for x in frozen)]
    require_state(optimizer, steps, arrays.state, own, trainable)
    for stored in arrays.state.values():
        for name, x in stored.items():
            like = arrays.parameters[name]
            if (x.shape, x.dtype) != (like.shape, like.dtype):
                raise CheckpointError(f"its state of {name} has another shape or dtype than {name}")
    return {
        slot: {name: device.asarray(x) for name, x in arrays.state.get(slot, {}).items()}
        for slot in optimizer.state
    }


def _read_history(names: object, columns: Mapping[str, npt.NDArray[Any]]) -> list[Record]:
    """Return the history of these columns; check their names, dtypes and lengths."""
    if not isinstance(names, list) or not all(
        isinstance(x, str) and x.isidentifier() and not x.startswith("_") for x in names
    ):
        raise CheckpointError("its figures are not a list of names")
    if not columns and not names:
        return []
    if set(names) != columns.keys() or not set(FIGURES) <= set(names):
        raise CheckpointError(
            f"its history must have the figures {', '.join(FIGURES)}, and those of its metadata"
        )
    for name, x in columns.items():
        if x.dtype != ("int64" if name == "epoch" else "float64"):
            raise CheckpointError(f"its history has {name} in {x.dtype}")
    if len({x.shape for x in columns.values()}) > 1 or columns["epoch"].ndim != 1:
        raise CheckpointError("its history's columns are not of one length")
    if len(columns["epoch"]) > MAX_RECORDS:
        raise CheckpointError(f"its history has more than {MAX_RECORDS:,} records")
    require_rising(columns["epoch"])
    rows = zip(*(columns[name].tolist() for name in names), strict=True)
    return [
        Record(**{name: x for name, x in zip(names, row, strict=True) if x == x})  # noqa: PLR0124
        for row in rows
    ]


def _read_split(described: Mapping[str, Any]) -> Split:
    """Return the split of validation examples; check its values."""
    split = Split(**described)
    _require_integer("examples", split.examples)
    _require_integer("seed", split.seed)
    if type(split.share) is not float or not 0 < split.share < 1:
        raise CheckpointError(f"its share of validation examples is {split.share!r:.40}")
    return split


def _read_callbacks(
    described: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> dict[str, dict[str, Any]]:
    """Return the states of the callbacks."""
    require_callback_states(described)
    states = {name: dict(state) for name, state in dict(described).items()}
    for path, x in arrays.items():
        name, key, *inner = path.split("/", 2)
        if inner:
            states[name].setdefault(key, {})[inner[0]] = x
        else:
            states[name][key] = x
    return states


def _read_progress(position: Mapping[str, Any], rng: np.random.Generator | None) -> EpochProgress:
    """Return the progress from the metadata's ``position``; check its values."""
    sums = {
        name: [float(x) if x in ("nan", "inf", "-inf") else x for x in kept]
        for name, kept in position.get("sums", {}).items()
    }
    progress = EpochProgress(**dict(position) | {"sums": sums})
    for name in ("batch", "batch_size", "examples"):
        _require_integer(name, getattr(progress, name))
    if progress.batch_size == 0:
        raise CheckpointError("its batch size is 0")
    streamed = progress.examples == 0 and progress.order == {}
    batches = -(-progress.examples // progress.batch_size)
    if progress.batch == 0 or (progress.batch > batches and not streamed):
        raise CheckpointError(f"it was saved after batch {progress.batch} of an epoch of {batches}")
    for kept in sums.values():
        if len(kept) > MAX_RECORDS or not all(type(x) is float for x in kept):
            raise CheckpointError("its sums of metrics are not numbers")
    if type(progress.seconds) not in (int, float) or not 0 <= progress.seconds <= _LARGEST:
        raise CheckpointError(f"its epoch has lasted {progress.seconds!r:.40} seconds")
    if streamed:
        return progress
    if rng is None or type(generator(progress.order).bit_generator) is not type(rng.bit_generator):
        raise CheckpointError("its epoch's order is of another type of generator than its rng")
    return progress


def _require_integer(name: str, value: object) -> int:
    """Return `value` if it is an integer from 0 to 2**63 - 1."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise CheckpointError(f"its {name} must be from 0 to 2**63 - 1, got {value!r:.40}")
    return value
