"""Checkpoint: all that a training is, in one file, from which it goes on as if never stopped.

A file is in the safetensors format: arrays named ``parameters/…``, ``state/…`` and ``history/…``,
and in the metadata, under the key ``nnxp``, a JSON text that says what they belong to.
docs/checkpoint.md describes it in full.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.devices import Device, require_dtype
from nnxp.devices import device as open_device
from nnxp.errors import (
    CheckpointError,
    DeviceError,
    DivergenceError,
    InputError,
    NnxpError,
    optional_import,
)
from nnxp.files import remove_temporary, require_writable, write_whole
from nnxp.generators import KINDS, generator, state_of
from nnxp.history import MAX_RECORDS, Record
from nnxp.initializers import zeros
from nnxp.layers import Affine, Layer
from nnxp.losses import Loss
from nnxp.network import Sequential, ThreeLayerNet
from nnxp.optimizers import OPTIMIZERS, Optimizer
from nnxp.position import Position

FORMAT = 1
"""The version of the format that is written; all from 1 on are read."""

_KEY, _DIGEST = "nnxp", "sha256"  # in the metadata
# Bytes: read as JSON they may take twenty times as much memory, and 0.1 s each million.
_MAX_HEADER = 2 << 20
_MAX_CONFIG = 1 << 19  # which the header may hold with a backslash before each second one
_LAYERS = {kind.__name__: kind for kind in Layer.__subclasses__()}
_LOSSES = {kind.__name__: kind for kind in Loss.__subclasses__()}
_OPTIMIZERS = {kind.__name__: kind for kind in OPTIMIZERS.values()}
_NETWORKS = {kind.__name__: kind for kind in (Sequential, ThreeLayerNet)}
# A record's fields, as arrays: as text a history would soon take longer than the rest of a file.
_COLUMNS = {
    "epoch": "int64", "train_loss": "float64", "train_accuracy": "float64",
    "validation_loss": "float64", "validation_accuracy": "float64", "seconds": "float64",
}  # fmt: skip
_Arrays = dict[str, npt.NDArray[Any]]
# What reading something that only looks like a checkpoint may raise.
_DAMAGE = (
    AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError,
    NnxpError,
)  # fmt: skip


@dataclass
class Checkpoint:
    """All that a training is.

    Attributes
    ----------
    network : Sequential
    loss : Loss
    optimizer : Optimizer
    history : list of Record
    rng : numpy.random.Generator or None
        As it was; None if nothing was trained.
    position : Position or None
        None between two epochs.
    config : dict
        What was given with it.
    """

    network: Sequential
    loss: Loss
    optimizer: Optimizer
    history: list[Record]
    rng: np.random.Generator | None
    position: Position | None
    config: dict[str, Any]


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a file, whole or not at all; what stood there is kept until it is replaced.

    Raises
    ------
    InputError
        As `require_saveable`.
    DivergenceError
        If parameters or state hold a number that is not finite, from which there is no going on.
    CheckpointError
        If the path is not the name of a file.
    OSError
        If the file cannot be written.
    """
    safetensors = optional_import("safetensors.numpy", "checkpoint")
    path = file_of(path)
    require_saveable(checkpoint)
    network, optimizer, rng = checkpoint.network, checkpoint.optimizer, checkpoint.rng
    device = network.device
    assert device is not None
    arrays = {f"parameters/{name}": x for name, x in network.parameters().items()}
    for slot, kept in optimizer.state.items():
        arrays |= {f"state/{slot}/{name}": x for name, x in kept.items()}
    about = {
        "format": FORMAT,
        "device": device.spec,
        "dtype": network.dtype,
        "network": {"type": type(network).__qualname__, "module": type(network).__module__},
        "layers": [_describe(layer) for layer in network.layers],
        "loss": _describe(checkpoint.loss),
        "optimizer": _describe(optimizer),
        "steps": int(optimizer.steps),
        "rng": None if rng is None else state_of(rng),
        "position": checkpoint.position and asdict(checkpoint.position),
        "config": checkpoint.config,
    }
    text = json.dumps(about)
    # Contiguous, since safetensors writes memory as it lies there.
    hosts = {name: np.ascontiguousarray(device.to_host(x)) for name, x in arrays.items()}
    for name, x in hosts.items():
        if not np.isfinite(x).all():
            raise DivergenceError(
                f"{name} holds a number that is not finite: {path} is left as it is; go on from an "
                "older checkpoint, or start from new weights"
            )
    hosts |= _table(checkpoint.history)
    data = safetensors.save(hosts, {_KEY: text, _DIGEST: _digest(text, hosts)})
    if _header_size(data) > _MAX_HEADER:
        raise InputError(f"a checkpoint cannot hold a network of {len(network.layers):,} layers")
    write_whole(path, data)


def require_saveable(checkpoint: Checkpoint) -> None:
    """Raise unless all of a training but its numbers is such that it can be resumed.

    Raises
    ------
    InputError
        If the config is no JSON or too long, layers share an array, the generator is none of
        NumPy's, the optimizer's state is of another network, or the history is none.
    """
    config, rng, history = checkpoint.config, checkpoint.rng, checkpoint.history
    if not isinstance(config, dict):
        raise InputError(f"a trainer's config must be a dict, got {config!r}")
    try:
        length = len(json.dumps(config))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"a checkpoint's config must be JSON: {error}") from error
    if length > _MAX_CONFIG:
        raise InputError(
            f"a checkpoint's config may have {_MAX_CONFIG:,} characters as JSON, got {length:,}; "
            "keep what is large in a file of its own"
        )
    parameters = checkpoint.network.parameters()
    for one, other in itertools.combinations(parameters.values(), 2):
        if one is other or (isinstance(one, np.ndarray) and np.may_share_memory(one, other)):
            raise InputError(
                "two layers share an array, which a checkpoint cannot keep; give each its own"
            )
    if rng is not None and type(rng.bit_generator).__name__ not in KINDS:
        raise InputError(f"a checkpoint keeps {', '.join(KINDS)}, got {rng!r}")
    optimizer = checkpoint.optimizer
    _require_state(optimizer, optimizer.steps, optimizer.state, parameters)
    if len(history) > MAX_RECORDS:
        raise InputError(f"a history has {MAX_RECORDS:,} records at most, got {len(history):,}")
    _require_rising(np.array([record.epoch for record in history]))


def file_of(path: str | Path) -> Path:
    """Return the file that a path means, behind links and wherever the process goes later.

    Raises
    ------
    CheckpointError
        If it is not the name of a file.
    """
    try:
        file = Path(path).resolve()
        if file.name and (file.is_file() or not file.exists()):
            return file
    except (OSError, ValueError, RuntimeError):  # such as too long a name, or links in a circle
        pass
    raise CheckpointError(f"{str(path)!r} is not the name of a file; give one in a folder")


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
        If both a device and a network are given.
    CheckpointError
        If the file cannot be read, is no checkpoint, is damaged, or is of a newer nnxp; what was
        given is left as it was then.
    """
    for name, part, kind in (
        ("network", network, Sequential), ("loss", loss, Loss), ("optimizer", optimizer, Optimizer)
    ):  # fmt: skip
        if part is not None and not isinstance(part, kind):
            raise InputError(f"{name} must be of class {kind.__name__}, got {part!r}")
    if network is not None and network.device is None:
        raise InputError(f"{network!r} has no parameters for those of a checkpoint")
    if device is not None and network is not None:
        raise InputError(f"the network given is on {network.device}; give it or a device, not both")
    place = open_device("cpu" if device is None else device)
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
        position = None if about["position"] is None else _position(about["position"], rng)
        config = dict(about["config"])
        steps = _count("steps", about["steps"])
        state = _state(optimizer, steps, state, made, parameters)
        made.load_parameters(parameters)
        optimizer.steps, optimizer.state = steps, state
        return Checkpoint(made, loss, optimizer, history, rng, position, config)


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


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Let no other process write the checkpoint meanwhile, and clear away what a killed one left.

    Raises
    ------
    CheckpointError
        If another one does, or nothing can be written there.
    """
    filelock = optional_import("filelock", "checkpoint")
    optional_import("safetensors.numpy", "checkpoint")  # or it would be missed at the first save
    path = file_of(path)
    # One lock for all of a process: a script may hold it before `fit` does.
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0, is_singleton=True)
    try:
        require_writable(path)
        lock.acquire()
    except filelock.Timeout:
        raise CheckpointError(
            f"another process is training into {path}; wait for it, or choose another file"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); choose another folder"
        ) from error
    try:
        remove_temporary(path)
        yield
    finally:
        lock.release()


def _describe(part: Layer | Loss | Optimizer) -> dict[str, Any]:
    """Return the type of a layer, loss or optimizer, and the numbers it was made of."""
    kind: Any = type(part)
    own = {name: getattr(part, name, None) for name in _settings(kind)}
    own = {
        name: x.item() if isinstance(x, np.generic | np.ndarray) and x.ndim == 0 else x
        for name, x in own.items()
    }
    numbers = {name: x for name, x in own.items() if type(x) in (int, float)}
    return {"type": kind.__qualname__, "module": kind.__module__, **numbers}


@functools.cache  # since each save asks
def _settings(kind: type) -> tuple[str, ...]:
    """Return the names of what a layer, loss or optimizer is made of."""
    return tuple(inspect.signature(kind).parameters)


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


def _by_use(
    arrays: Mapping[str, npt.NDArray[Any]],
) -> tuple[_Arrays, dict[str, _Arrays], _Arrays]:
    """Return parameters, the optimizer's state by slot, and the history's columns."""
    parameters: _Arrays = {}
    state: dict[str, _Arrays] = {}
    columns: _Arrays = {}
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


def _read(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return what a file says about its arrays, and the arrays."""
    safetensors = optional_import("safetensors", "checkpoint")
    try:
        if path.exists() and not path.is_file():  # such as a pipe, which would wait for a writer
            raise CheckpointError(f"{path} is no file")
        with path.open("rb") as stream:  # in the system's own words, if it cannot be read
            if _header_size(stream.read(8)) > _MAX_HEADER:
                raise CheckpointError(
                    f"{path} is no checkpoint, or damaged (its header is too long)"
                )
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise CheckpointError(f"{path} is no checkpoint of nnxp")
            about = json.loads(metadata[_KEY])
            version = about["format"]
            if type(version) is not int or version < 1:
                raise CheckpointError(f"{path} is damaged: its format is {version!r:.80}")
            if version > FORMAT:
                raise CheckpointError(
                    f"{path} is of format {version}, and this nnxp reads up to {FORMAT}; "
                    "install a newer nnxp"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get(_DIGEST) != _digest(metadata[_KEY], arrays):
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


def _header_size(data: bytes) -> int:
    """Return the size of a safetensors file's header."""
    return int.from_bytes(data[:8], "little")


def _require_state(
    optimizer: Optimizer, steps: int, state: Mapping[str, Iterable[str]], parameters: Iterable[str]
) -> None:
    """Raise unless there is state of just these parameters in each of the optimizer's slots.

    Before the first step there need not be any.
    """
    names = list(parameters) if steps or any(state.values()) else []
    wanted = {f"{slot} of {name}" for slot in optimizer.state for name in names}
    given = {f"{slot} of {name}" for slot, kept in state.items() for name in kept}
    if wanted != given:
        missing, unexpected = (
            ", ".join(sorted(names)[:3]) or "nothing" for names in (wanted - given, given - wanted)
        )
        raise InputError(
            f"the state is not that of {type(optimizer).__name__} for this network: missing "
            f"{missing}, unexpected {unexpected}; make a new optimizer"
        )


def _require_rising(epochs: npt.NDArray[Any]) -> None:
    """Raise unless a history's epochs are in order; it leaves room for some to come."""
    rising = np.all(epochs[:1] > 0) and np.all(epochs[1:] > epochs[:-1])
    if not (rising and np.all(epochs[-1:] < 2**62)):
        raise InputError("the history's epochs are not rising positive numbers")


def _state(
    optimizer: Optimizer,
    steps: int,
    state: Mapping[str, Mapping[str, Any]],
    network: Sequential,
    parameters: Mapping[str, npt.NDArray[Any]],
) -> dict[str, dict[str, Any]]:
    """Return an optimizer's state on the network's device; it must be that of its parameters."""
    device = network.device
    assert device is not None
    _require_state(optimizer, steps, state, network.parameters())
    for kept in state.values():
        for name, x in kept.items():
            if (x.shape, x.dtype) != (parameters[name].shape, parameters[name].dtype):
                raise CheckpointError(f"its state of {name} has another shape or dtype than {name}")
    return {
        slot: {name: device.asarray(x) for name, x in state.get(slot, {}).items()}
        for slot in optimizer.state
    }


def _position(described: Mapping[str, Any], rng: np.random.Generator | None) -> Position:
    position = Position(**described)
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


def _table(history: Sequence[Record]) -> _Arrays:
    """Return a history as arrays: of each number, and of whether there was a validation."""
    table: _Arrays = {
        f"history/{name}": np.array([getattr(record, name) for record in history], dtype)
        for name, dtype in _COLUMNS.items()
    }
    validated = [record.validation_loss is not None for record in history]
    return table | {"history/validated": np.array(validated, bool)}


def _records(columns: Mapping[str, npt.NDArray[Any]]) -> list[Record]:
    """Return the history of which `_table` made columns."""
    wanted = _COLUMNS | {"validated": "bool"}
    if {name: x.dtype.name for name, x in columns.items()} != wanted:
        raise CheckpointError(
            f"its history must have the columns {', '.join(wanted)}, each in its dtype"
        )
    if len({x.shape for x in columns.values()}) > 1 or columns["epoch"].ndim != 1:
        raise CheckpointError("its history's columns are not of one length")
    if len(columns["epoch"]) > MAX_RECORDS:
        raise CheckpointError(f"its history has more than {MAX_RECORDS:,} records")
    _require_rising(columns["epoch"])
    history = []
    for values in zip(*(columns[name].tolist() for name in wanted), strict=True):
        *fields, validated = values
        record = Record(*fields)
        if not validated:
            record = replace(record, validation_loss=None, validation_accuracy=None)
        history.append(record)
    return history


def _count(name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise CheckpointError(f"it has {value!r:.40} as {name}")
    return value


def _digest(text: str, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 of all that a file holds."""
    import hashlib

    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {x.dtype} {x.shape}".encode())
        digest.update(x.data)
    return digest.hexdigest()
