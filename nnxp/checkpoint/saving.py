"""Saving: a training as one file."""

from __future__ import annotations

import functools
import inspect
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from nnxp.checkpoint.format import (
    COLUMNS,
    DIGEST,
    FORMAT,
    KEY,
    MAX_CONFIG,
    MAX_HEADER,
    Arrays,
    Checkpoint,
    digest,
    header_size,
    require_rising,
    require_state,
)
from nnxp.checkpoint.target import resolve_target
from nnxp.checks import optional_import
from nnxp.errors import DivergenceError, InputError
from nnxp.files import write_atomically
from nnxp.history import MAX_RECORDS, Record
from nnxp.layers import Layer
from nnxp.losses import Loss
from nnxp.optimizers import Optimizer
from nnxp.random import BIT_GENERATORS, get_state


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
    path = resolve_target(path)
    require_saveable(checkpoint)
    network, optimizer, rng = checkpoint.network, checkpoint.optimizer, checkpoint.rng
    device = checkpoint.device
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
        "rng": None if rng is None else get_state(rng),
        "position": checkpoint.progress and asdict(checkpoint.progress),
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
    data = safetensors.save(hosts, {KEY: text, DIGEST: digest(text, hosts)})
    if header_size(data) > MAX_HEADER:
        raise InputError(
            f"the header of this checkpoint would have {header_size(data):,} bytes, and may have "
            f"{MAX_HEADER:,}; use fewer layers or a shorter config"
        )
    write_atomically(path, data)


def require_saveable(checkpoint: Checkpoint) -> None:
    """Raise unless a training can be resumed, whatever its numbers are.

    Raises
    ------
    InputError
        If the config is no JSON or too long, layers share an array, the generator is none of
        NumPy's, the optimizer's state is of another network, or the history is too long or not in
        order. A view of another layer's array is seen on NumPy alone.
    """
    config, rng, history = checkpoint.config, checkpoint.rng, checkpoint.history
    if not isinstance(config, dict):
        raise InputError(f"a trainer's config must be a dict, got {config!r}")
    try:
        length = len(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"a checkpoint's config must be JSON: {error}") from error
    if length > MAX_CONFIG:
        raise InputError(
            f"a checkpoint's config may have {MAX_CONFIG:,} characters as JSON, got {length:,}; "
            "keep what is large in a file of its own"
        )
    parameters = checkpoint.network.parameters()
    hosts = [x for x in parameters.values() if isinstance(x, np.ndarray)]
    spans = sorted(np.lib.array_utils.byte_bounds(x) for x in hosts)
    if len({id(x) for x in parameters.values()}) < len(parameters) or any(
        start < end for (_, end), (start, _) in itertools.pairwise(spans)
    ):
        raise InputError(
            "two layers share an array, which a checkpoint cannot keep; give each its own"
        )
    if rng is not None and type(rng.bit_generator).__name__ not in BIT_GENERATORS:
        raise InputError(f"a checkpoint keeps {', '.join(BIT_GENERATORS)}, got {rng!r}")
    optimizer = checkpoint.optimizer
    optimizer.require(parameters, parameters)
    require_state(optimizer, optimizer.steps, optimizer.state, parameters)
    if len(history) > MAX_RECORDS:
        raise InputError(f"a history has {MAX_RECORDS:,} records at most, got {len(history):,}")
    require_rising(np.array([record.epoch for record in history]))


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


def _table(history: Sequence[Record]) -> Arrays:
    """Return a history as arrays: of each number, and of whether there was a validation."""
    table: Arrays = {
        f"history/{name}": np.array([getattr(record, name) for record in history], dtype)
        for name, dtype in COLUMNS.items()
    }
    validated = [record.validation_loss is not None for record in history]
    return table | {"history/validated": np.array(validated, bool)}
