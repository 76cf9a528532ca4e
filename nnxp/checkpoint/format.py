"""Format: what a checkpoint holds, and what both saving and loading it go by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.data.epoch import EpochProgress
from nnxp.devices import Device
from nnxp.errors import InputError
from nnxp.history import Record
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer

FORMAT = 1
"""The version of the format that is written; all from 1 on are read."""

KEY, DIGEST = "nnxp", "sha256"  # in the metadata
# Bytes: read as JSON they may take twenty times as much memory, and 0.1 s each million.
MAX_HEADER = 2 << 20
MAX_CONFIG = 1 << 19  # of JSON; in the header a backslash may stand before each of them
# A record's fields, as arrays: as text a history would soon take longer than the rest of a file.
COLUMNS = {
    "epoch": "int64", "train_loss": "float64", "train_accuracy": "float64",
    "validation_loss": "float64", "validation_accuracy": "float64", "seconds": "float64",
}  # fmt: skip
Arrays = dict[str, npt.NDArray[Any]]


@dataclass
class Checkpoint:
    """All that a training is.

    Attributes
    ----------
    network : Sequential
    loss : Loss
    optimizer : Optimizer
    device : Device
        The network's.
    history : list of Record
    rng : numpy.random.Generator or None
        As it was; None if nothing was trained.
    progress : EpochProgress or None
        Within an epoch; None between two epochs.
    config : dict
        What was given with it.
    """

    network: Sequential
    loss: Loss
    optimizer: Optimizer
    device: Device
    history: list[Record]
    rng: np.random.Generator | None
    progress: EpochProgress | None
    config: dict[str, Any]


def require_state(
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


def require_rising(epochs: npt.NDArray[Any]) -> None:
    """Raise unless a history's epochs are in order; it leaves room for some to come."""
    rising = np.all(epochs[:1] > 0) and np.all(epochs[1:] > epochs[:-1])
    if not (rising and np.all(epochs[-1:] < 2**62)):
        raise InputError("the history's epochs are not rising positive numbers")


def header_size(data: bytes) -> int:
    """Return the size of a safetensors file's header."""
    return int.from_bytes(data[:8], "little")


def digest(text: str, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 of all that a file holds."""
    import hashlib

    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {x.dtype} {x.shape}".encode())
        digest.update(x.data)
    return digest.hexdigest()
