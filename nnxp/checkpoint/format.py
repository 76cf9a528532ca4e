"""Format: the contents of a checkpoint, and the limits and checks of saving and loading."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.data.dataset import Split
from nnxp.data.epoch import EpochProgress
from nnxp.devices import Device
from nnxp.errors import InputError
from nnxp.history import Record
from nnxp.losses import Loss
from nnxp.metrics import Metric
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.penalties import Penalty
from nnxp.transforms import Transform

FORMAT = 1
"""The version of the format that `save` writes; `load` reads the versions from 1 to this one."""

METADATA_KEY, DIGEST_KEY = "nnxp", "sha256"
# Bytes. Parsing a header may need twenty times as much memory, and 0.1 s per million bytes.
MAX_HEADER = 2 << 20
# Characters of JSON. The header may need two for each, since it escapes them with backslashes.
MAX_CONFIG = 1 << 19
# The figures of every record. The history is saved as arrays, one for each figure, since writing a
# long history as JSON would slow down each save.
FIGURES = ("epoch", "train_loss", "seconds")
Arrays = dict[str, npt.NDArray[Any]]


@dataclass
class Checkpoint:
    """The contents of a checkpoint.

    Attributes
    ----------
    network : Sequential
        The network with its parameters.
    loss : Loss
    optimizer : Optimizer
        The optimizer with its state.
    penalty : Penalty or None
    transforms : tuple of callable
        The transforms. A user's functions cannot be loaded, and must be passed again.
    metrics : tuple of Metric
    device : Device
        The network's device.
    history : list of Record
        The records of the finished epochs.
    rng : numpy.random.Generator or None
        The generator that draws each epoch's order; None if nothing was trained.
    progress : EpochProgress or None
        The progress within the current epoch; None between two epochs.
    split : Split or None
        How validation examples were taken from the training data; None if they were not.
    callbacks : dict of str to dict
        The states of the callbacks, by name.
    config : dict
        The trainer's `config`: settings that JSON can represent.
    """

    network: Sequential
    loss: Loss
    optimizer: Optimizer
    penalty: Penalty | None
    transforms: tuple[Transform, ...]
    metrics: tuple[Metric, ...]
    device: Device
    history: list[Record]
    rng: np.random.Generator | None
    progress: EpochProgress | None
    split: Split | None
    callbacks: dict[str, dict[str, Any]]
    config: dict[str, Any]


def require_state(
    optimizer: Optimizer,
    steps: int,
    state: Mapping[str, Iterable[str]],
    parameters: Iterable[str],
    trainable: Iterable[str],
) -> None:
    """Raise an `InputError` unless the optimizer's state fits these parameters.

    All slots must have arrays for the same parameters. A layer that was always frozen has none.
    """
    stored = {name for slot in state.values() for name in slot}
    names = (stored & set(parameters)) | (set(trainable) if steps and not stored else set())
    expected = {f"{slot} of {name}" for slot in optimizer.state for name in names}
    actual = {f"{slot} of {name}" for slot, kept in state.items() for name in kept}
    if expected != actual:
        missing, unexpected = (
            ", ".join(sorted(entries)[:3]) or "nothing"
            for entries in (expected - actual, actual - expected)
        )
        raise InputError(
            f"the state does not match {type(optimizer).__name__} and this network: missing "
            f"{missing}, unexpected {unexpected}; make a new optimizer"
        )


def require_config(config: object) -> None:
    """Raise an `InputError` unless a trainer's config is a dict that JSON can represent."""
    if not isinstance(config, dict):
        raise InputError(f"a trainer's config must be a dict, got {config!r:.80}")
    _require_json("a checkpoint's config", "JSON", config)


def require_callback_states(states: object) -> None:
    """Raise an `InputError` unless JSON can represent the states of callbacks."""
    _require_json("the state of a callback", "JSON or arrays of NumPy", states)


def _require_json(name: str, kind: str, value: object) -> None:
    """Raise an `InputError` unless a value is JSON of at most `MAX_CONFIG` characters."""
    try:
        length = len(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{name} must be {kind}: {error}; for nan and inf, use None or a string"
        ) from error
    if length > MAX_CONFIG:
        raise InputError(
            f"{name} may have {MAX_CONFIG:,} characters as JSON, got {length:,}; store large data "
            "in a separate file"
        )


def require_rising(epochs: npt.NDArray[Any]) -> None:
    """Raise an `InputError` unless a history's epochs are positive and increase.

    They must be less than 2**62, so that later epochs fit into an int64.
    """
    rising = np.all(epochs[:1] > 0) and np.all(epochs[1:] > epochs[:-1])
    if not (rising and np.all(epochs[-1:] < 2**62)):
        raise InputError("the history's epochs are not rising positive numbers")


def header_size(data: bytes) -> int:
    """Return the size in bytes of a safetensors file's header, from the file's first 8 bytes."""
    return int.from_bytes(data[:8], "little")


def digest(text: str, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 of a file's contents: the JSON string of its metadata, and its arrays."""
    import hashlib

    sha256 = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        x = np.asarray(arrays[name], order="C")
        sha256.update(f"{name} {x.dtype} {x.shape}".encode())
        sha256.update(x.reshape(-1).data)
    return sha256.hexdigest()
