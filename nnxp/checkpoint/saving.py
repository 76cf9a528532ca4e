"""Saving: write a checkpoint, after a check that training can be resumed from it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from nnxp.checkpoint.format import (
    DIGEST_KEY,
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
from nnxp.checkpoint.target import resolve_target
from nnxp.checks import optional_import
from nnxp.data.epoch import EpochProgress
from nnxp.devices import Device
from nnxp.errors import CheckpointError, DivergenceError, InputError
from nnxp.files import write_atomically
from nnxp.history import MAX_RECORDS, Record
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.parts import Part, describe_part
from nnxp.random import BIT_GENERATORS, get_state


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; on failure, an existing file at `path` is unchanged.

    Raises
    ------
    InputError
        If `require_saveable` raises, or the file's header is too long.
    DivergenceError
        If parameters or state hold a number that is not finite: training could not be resumed.
    CheckpointError
        If the path is not the name of a file, or the file cannot be written.
    MissingExtraError
        If safetensors is not installed.
    """
    optional_import("safetensors.numpy", "checkpoint")
    path = resolve_target(path)
    require_saveable(checkpoint)
    arrays = _network_arrays(checkpoint.network)
    for slot, state in checkpoint.optimizer.state.items():
        arrays |= {f"state/{slot}/{name}": x for name, x in state.items()}
    for name, state in checkpoint.callbacks.items():
        kept, _ = _divide(state)
        arrays |= {f"callbacks/{name}/{key}": x for key, x in kept.items()}
    columns = _history_columns(checkpoint.history)
    _write(path, _metadata(checkpoint), arrays, columns, checkpoint.device)


def save_network(path: str | PathLike[str], network: Sequential) -> None:
    """Write a network without training state; see `Sequential.save`."""
    optional_import("safetensors.numpy", "checkpoint")
    path = resolve_target(path)
    if network.device is None:
        raise InputError(f"{network!r} has no parameters to save")
    network.require_trainable()
    _require_own_arrays(network)
    _write(path, _network_metadata(network), _network_arrays(network), {}, network.device)


def _network_arrays(network: Sequential) -> dict[str, Any]:
    parameters, states = network.arrays()
    arrays = {f"parameters/{name}": x for name, x in parameters.items()}
    return arrays | {f"layers/{name}": x for name, x in states.items()}


def _write(
    path: Path,
    metadata: dict[str, Any],
    device_arrays: Mapping[str, Any],
    columns: Arrays,
    device: Device,
) -> None:
    """Write metadata, arrays, and the columns of the history; raise if an array is not finite."""
    safetensors = optional_import("safetensors.numpy", "checkpoint")
    try:
        text = json.dumps(metadata, allow_nan=False)
    except ValueError as error:  # from a user's `config`
        raise InputError(f"a checkpoint is JSON, which has no nan and no inf: {error}") from error
    # safetensors ignores strides, so arrays must be contiguous.
    arrays = {
        name: np.asarray(x if isinstance(x, np.ndarray) else device.to_host(x), order="C")
        for name, x in device_arrays.items()
    }
    for name, x in arrays.items():
        if not np.isfinite(x).all():
            raise DivergenceError(
                f"{name} holds a number that is not finite: {path} is unchanged; resume from an "
                "older checkpoint, or start with new weights"
            )
    arrays |= columns
    data = safetensors.save(arrays, {METADATA_KEY: text, DIGEST_KEY: digest(text, arrays)})
    if header_size(data) > MAX_HEADER:
        raise InputError(
            f"the header of this checkpoint would have {header_size(data):,} bytes, but may have "
            f"{MAX_HEADER:,}; use fewer layers or a shorter config"
        )
    try:
        write_atomically(path, data)
    except OSError as error:
        owner = "trainer" if "loss" in metadata else "network"
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); the {owner} in memory is complete, and "
            "an existing file is unchanged: free disk space, or save to another path"
        ) from error


def require_saveable(checkpoint: Checkpoint) -> None:
    """Raise an error if training could not be resumed; the values of arrays are not checked.

    Raises
    ------
    InputError
        If the config is not JSON or is too long, layers share an array, the bit generator is not
        one of NumPy's, the optimizer's state is that of another network, a setting of a part is not
        JSON, or the history is too long or not in order. Views of the same array are only found on
        NumPy.
    """
    config, rng, history = checkpoint.config, checkpoint.rng, checkpoint.history
    require_config(config)
    require_callback_states(_metadata(checkpoint)["callbacks"])
    parameters = checkpoint.network.parameters()
    _require_own_arrays(checkpoint.network)
    if rng is not None and type(rng.bit_generator).__name__ not in BIT_GENERATORS:
        raise InputError(
            f"a checkpoint's generator must be one of {', '.join(BIT_GENERATORS)}, got {rng!r}"
        )
    optimizer = checkpoint.optimizer
    for inner in vars(optimizer).values():
        if isinstance(inner, Optimizer) and any(inner.state.values()):
            raise InputError(
                f"{optimizer!r} has the optimizer {inner!r}, whose state a checkpoint does not "
                "hold; keep all state in the state of the outer optimizer"
            )
    optimizer.require(parameters, parameters.trainable)
    require_state(optimizer, optimizer.steps, optimizer.state, parameters, parameters.trainable)
    if len(history) > MAX_RECORDS:
        raise InputError(f"a history has {MAX_RECORDS:,} records at most, got {len(history):,}")
    require_rising(np.array([record.epoch for record in history]))


def _require_own_arrays(network: Sequential) -> None:
    """Raise an `InputError` if parameters share memory; views are only found on NumPy."""
    parameters = network.parameters()
    arrays: Iterable[Any] = parameters.values()
    host_arrays = [x for x in arrays if isinstance(x, np.ndarray)]
    spans = sorted(np.lib.array_utils.byte_bounds(x) for x in host_arrays)
    if len({id(x) for x in parameters.values()}) < len(parameters) or any(
        start < end for (_, end), (start, _) in itertools.pairwise(spans)
    ):
        raise InputError(
            "two layers share an array, which a checkpoint cannot store; give each its own"
        )


def _network_metadata(network: Sequential) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dtype": network.dtype,
        "network": describe_part(network),
        "frozen": [i for i, layer in enumerate(network.leaves()) if not layer.trainable],
        "data": network.data_format and asdict(network.data_format),
    }


def _metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the metadata of a checkpoint: everything except its arrays."""
    optimizer, rng = checkpoint.optimizer, checkpoint.rng
    return _network_metadata(checkpoint.network) | {
        "device": checkpoint.device.spec,
        "loss": describe_part(checkpoint.loss),
        "optimizer": describe_part(optimizer),
        "penalty": None if checkpoint.penalty is None else describe_part(checkpoint.penalty),
        "transforms": [_describe_transform(x) for x in checkpoint.transforms],
        "metrics": [describe_part(x) for x in checkpoint.metrics],
        "steps": int(optimizer.steps),
        "rng": None if rng is None else get_state(rng),
        "position": checkpoint.progress and _describe_progress(checkpoint.progress),
        "split": checkpoint.split and asdict(checkpoint.split),
        "figures": list(dict.fromkeys(name for record in checkpoint.history for name in record)),
        "callbacks": {name: _divide(state)[1] for name, state in checkpoint.callbacks.items()},
        "config": checkpoint.config,
    }


def _describe_progress(progress: EpochProgress) -> dict[str, Any]:
    sums = {name: [x if math.isfinite(x) else str(x) for x in kept]
            for name, kept in progress.sums.items()}  # fmt: skip
    return asdict(progress) | {"sums": sums}


def _describe_transform(transform: object) -> dict[str, Any]:
    if isinstance(transform, Part):
        return describe_part(transform)
    return {"function": getattr(transform, "__qualname__", repr(transform))}


def _divide(state: dict[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays of a callback's state, and its other entries."""
    arrays: Arrays = {}
    rest: dict[str, Any] = {}
    for key, value in state.items():
        inner = value if isinstance(value, dict) else {}
        if isinstance(value, np.ndarray):
            arrays[key] = value
        elif inner and all(isinstance(x, np.ndarray) for x in inner.values()):
            arrays |= {f"{key}/{name}": x for name, x in inner.items()}
        else:
            rest[key] = value
    return arrays, rest


def _history_columns(history: Sequence[Record]) -> Arrays:
    """Return a history as arrays, one for each figure; nan where a record lacks the figure."""
    names = dict.fromkeys(name for record in history for name in record)
    return {
        f"history/{name}": np.array(
            [record.get(name, math.nan) for record in history],
            "int64" if name == "epoch" else "float64",
        )
        for name in names
    }
