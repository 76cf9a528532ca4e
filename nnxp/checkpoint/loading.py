"""Loading: a training again, of a file that anybody may have made."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array
from nnxp.checkpoint.format import (
    COLUMNS,
    DIGEST,
    FORMAT,
    KEY,
    MAX_HEADER,
    Arrays,
    Checkpoint,
    digest,
    header_size,
    require_rising,
    require_state,
)
from nnxp.checks import optional_import
from nnxp.data.epoch import EpochProgress
from nnxp.devices import Device, open_device, require_dtype
from nnxp.errors import CheckpointError, DeviceError, InputError, NnxpError
from nnxp.history import MAX_RECORDS, Record
from nnxp.initializers import zeros
from nnxp.layers import Affine, Layer
from nnxp.losses import Loss
from nnxp.models import ThreeLayerNet
from nnxp.network import Sequential
from nnxp.optimizers import OPTIMIZERS, Optimizer
from nnxp.random import generator

_LAYERS = {kind.__name__: kind for kind in Layer.__subclasses__()}
_LOSSES = {kind.__name__: kind for kind in Loss.__subclasses__()}
_OPTIMIZERS = {kind.__name__: kind for kind in OPTIMIZERS.values()}
_NETWORKS = {kind.__name__: kind for kind in (Sequential, ThreeLayerNet)}
# What reading something that only looks like a checkpoint may raise.
_DAMAGE = (
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
) -> Checkpoint:
    """Read a file and make again what it holds.

    Parameters
    ----------
    path : str or Path
    device : Device or str, optional
        Where the network is to live, whatever device it was saved on; the CPU by default.
    network, loss, optimizer : optional
        Those to go on with, where the file's are not nnxp's own; the network takes its parameters.

    Raises
    ------
    InputError
        If both a device and a network are given, or something is not what it should be.
    CheckpointError
        If the file cannot be read, is no checkpoint, is damaged, or is of a newer nnxp; what was
        given is left as it was then.
    DeviceError
        If the device cannot be had, or has not the memory.
    MissingExtraError
        Without safetensors.
    """
    for name, part, kind in (
        ("network", network, Sequential), ("loss", loss, Loss), ("optimizer", optimizer, Optimizer)
    ):  # fmt: skip
        if part is not None and not isinstance(part, kind):
            raise InputError(f"{name} must be of class {kind.__name__}, got {part!r}")
    if network is None:
        place = open_device("cpu" if device is None else device)
    elif network.device is None:
        raise InputError(f"{network!r} has no parameters for those of a checkpoint")
    elif device is not None:
        raise InputError(f"the network given is on {network.device}; give it or a device, not both")
    else:
        place = network.device
    about, arrays = _read(Path(path))
    with _damage_of(path):
        parameters, state, columns = _by_use(arrays)
        made = _network(about, parameters, place) if network is None else network
        if loss is None:
            kind, settings = _kind("loss", about["loss"], _LOSSES)
            loss = kind(**settings)
        if optimizer is None:
            kind, settings = _kind("optimizer", about["optimizer"], _OPTIMIZERS)
            optimizer = kind(**settings)
        rng = None if about["rng"] is None else generator(about["rng"])
        history = _records(columns)
        progress = None if about["position"] is None else _position(about["position"], rng)
        config = dict(about["config"])
        steps = _count("steps", about["steps"])
        optimizer_state = _state(optimizer, steps, state, made, parameters, place)
        made.load_parameters(parameters)
        optimizer.steps, optimizer.state = steps, optimizer_state
        return Checkpoint(made, loss, optimizer, place, history, rng, progress, config)


def load_network(path: str | Path, *, device: Device | str = "cpu") -> Sequential:
    """Read the network of a checkpoint, to predict with it.

    Parameters
    ----------
    path : str or Path
        A file of `Trainer.save`.
    device : Device or str, optional
        Where it is to live, whatever device it was trained on.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is no checkpoint, is damaged, or is of a newer nnxp; or if a
        layer is not nnxp's own.
    DeviceError
        If the device cannot be had, or has not the memory.
    MissingExtraError
        Without safetensors.

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
    place = open_device(device)
    about, arrays = _read(Path(path))
    with _damage_of(path):
        parameters, *_ = _by_use(arrays)
        network = _network(about, parameters, place)
        network.load_parameters(parameters)
        return network


def _read(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return what a file says about its arrays, and the arrays."""
    safetensors = optional_import("safetensors", "checkpoint")
    try:
        if path.exists() and not path.is_file():  # such as a pipe, which would wait for a writer
            raise CheckpointError(f"{path} is no file")
        with path.open("rb") as stream:  # in the system's own words, if it cannot be read
            if header_size(stream.read(8)) > MAX_HEADER:
                raise CheckpointError(
                    f"{path} is no checkpoint, or damaged (its header is too long)"
                )
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise CheckpointError(f"{path} is no checkpoint of nnxp")
            about = json.loads(metadata[KEY])
            version = about["format"]
            if type(version) is not int or version < 1:
                raise CheckpointError(f"{path} is damaged: its format is {version!r:.80}")
            if version > FORMAT:
                raise CheckpointError(
                    f"{path} is of format {version}, and this nnxp reads up to {FORMAT}; "
                    "install a newer nnxp"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get(DIGEST) != digest(metadata[KEY], arrays):
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not that of its contents")
        return about, arrays
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    except CheckpointError:
        raise
    except (*_DAMAGE, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} is no checkpoint, or damaged ({_line(error)})") from error


@contextlib.contextmanager
def _damage_of(path: str | Path) -> Iterator[None]:
    """Turn whatever is wrong with a file's contents into one error that names the file."""
    try:
        yield
    except DeviceError:  # such as one out of memory: nothing is wrong with the file
        raise
    except _DAMAGE as error:
        words = error if isinstance(error, NnxpError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} cannot be used: {_line(words)}") from error


def _line(words: object) -> str:
    """Return words that a file may have written as one short line that no terminal obeys."""
    return "".join(x if x.isprintable() else " " for x in str(words)[:400])


def _by_use(
    arrays: Mapping[str, npt.NDArray[Any]],
) -> tuple[Arrays, dict[str, Arrays], Arrays]:
    """Return parameters, the optimizer's state by slot, and the history's columns."""
    parameters: Arrays = {}
    state: dict[str, Arrays] = {}
    columns: Arrays = {}
    for name, x in arrays.items():
        use, _, rest = name.partition("/")  # of which a layer's own names may have more
        slot, _, parameter = rest.partition("/")
        match use:
            case "parameters":
                parameters[rest] = x
            case "state":
                state.setdefault(slot, {})[parameter] = x
            case "history":
                columns[rest] = x
            case _:
                raise CheckpointError(f"it holds {name!r}, of no known use")
        if use != "history" and not np.isfinite(x).all():
            raise CheckpointError(f"its {name} holds a number that is not finite")
    return parameters, state, columns


def _kind(
    what: str, described: Mapping[str, Any], known: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return the type that `_describe` described, and what it is made of."""
    settings = dict(described)
    name, module = settings.pop("type"), settings.pop("module")
    if module.partition(".")[0] != "nnxp" or name not in known:
        parameter = "network" if what == "layer" else what
        raise CheckpointError(
            f"its {what} {f'{module}.{name}'!r} is not nnxp's own; make that {parameter} yourself "
            f"and give it: Trainer.resume(path, {parameter}=…)"
        )
    return known[name], settings


def _network(
    about: Mapping[str, Any], parameters: Mapping[str, npt.NDArray[Any]], device: Device
) -> Sequential:
    """Return the network described, with parameters of 0."""
    _kind("network", about["network"], _NETWORKS)
    made = []
    count = 0
    for described in about["layers"]:
        kind, settings = _kind("layer", described, _LAYERS)
        if kind is Affine:
            count += 1
            shape = parameters[f"W{count}"].shape
            # Before memory is taken for it.
            if shape != (settings["inputs"], settings["outputs"]):
                raise CheckpointError(f"its W{count} has the shape {shape}, not its layer's")
            settings |= {
                "rng": np.random.default_rng(0),
                "initializer": zeros,
                "dtype": require_dtype(about["dtype"]),
                "device": device,
            }
        made.append(kind(**settings))
    network = Sequential(made)
    if network.device is None:
        raise CheckpointError("its network has no parameters")
    return network


def _state(
    optimizer: Optimizer,
    steps: int,
    state: Mapping[str, Mapping[str, Any]],
    network: Sequential,
    parameters: Mapping[str, npt.NDArray[Any]],
    device: Device,
) -> dict[str, dict[str, Array]]:
    """Return an optimizer's state on the network's device; it must be that of its parameters."""
    require_state(optimizer, steps, state, network.parameters())
    for kept in state.values():
        for name, x in kept.items():
            if (x.shape, x.dtype) != (parameters[name].shape, parameters[name].dtype):
                raise CheckpointError(f"its state of {name} has another shape or dtype than {name}")
    return {
        slot: {name: device.asarray(x) for name, x in state.get(slot, {}).items()}
        for slot in optimizer.state
    }


def _records(columns: Mapping[str, npt.NDArray[Any]]) -> list[Record]:
    """Return the history of which `_table` made columns."""
    wanted = COLUMNS | {"validated": "bool"}
    if {name: x.dtype.name for name, x in columns.items()} != wanted:
        raise CheckpointError(
            f"its history must have the columns {', '.join(wanted)}, each in its dtype"
        )
    if len({x.shape for x in columns.values()}) > 1 or columns["epoch"].ndim != 1:
        raise CheckpointError("its history's columns are not of one length")
    if len(columns["epoch"]) > MAX_RECORDS:
        raise CheckpointError(f"its history has more than {MAX_RECORDS:,} records")
    require_rising(columns["epoch"])
    history = []
    for values in zip(*(columns[name].tolist() for name in wanted), strict=True):
        *fields, validated = values
        record = Record(*fields)
        if not validated:
            record = replace(record, validation_loss=None, validation_accuracy=None)
        history.append(record)
    return history


def _position(described: Mapping[str, Any], rng: np.random.Generator | None) -> EpochProgress:
    position = EpochProgress(**described)
    for name in ("batch", "batch_size", "examples"):
        _count(name, getattr(position, name))
    if position.batch_size == 0:
        raise CheckpointError("its batch size is 0")
    batches = -(-position.examples // position.batch_size)
    if not 0 < position.batch <= batches:
        raise CheckpointError(f"it stands after batch {position.batch} of an epoch of {batches}")
    if type(position.seconds) not in (int, float) or not 0 <= position.seconds < math.inf:
        raise CheckpointError(f"its epoch has lasted {position.seconds!r} seconds")
    if rng is None or type(generator(position.order).bit_generator) is not type(rng.bit_generator):
        raise CheckpointError("its epoch was drawn by another generator than it has")
    return position


def _count(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise CheckpointError(f"it has {value!r:.40} as {name}")
    return value
