"""Random generators: conversion of their state to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnxp.errors import InputError

BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
"""The bit generators whose state can be saved."""


def get_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return the state of a generator as a dictionary for JSON."""
    state: dict[str, Any] = _to_json(rng.bit_generator.state)
    return state


def set_state(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Set a generator to a state that `get_state` returned for the same bit generator."""
    rng.bit_generator.state = _from_json(state)


def generator(state: Mapping[str, Any]) -> np.random.Generator:
    """Return a new generator in a state that `get_state` returned.

    Raises
    ------
    InputError
        If the bit generator is unknown or its state is invalid.
    """
    name = state["bit_generator"]
    if name not in BIT_GENERATORS:
        raise InputError(f"the generator must be one of {', '.join(BIT_GENERATORS)}, got {name!r}")
    # NumPy does not check a state; an invalid one can make it read out of bounds or loop forever.
    inner = state["state"]
    valid = (
        state.get("has_uint32", 0) in (0, 1)
        and 0 <= state.get("uinteger", 0) < 2**32
        and 0 <= inner.get("pos", 0) <= 624  # of MT19937
        and 0 <= state.get("buffer_pos", 0) <= 4  # of Philox
        and inner.get("inc", 1) % 2 == 1  # of PCG64
    )
    if not valid:
        raise InputError(f"the generator's state is not valid for {name}")
    rng = np.random.Generator(getattr(np.random, name)(0))
    set_state(rng, state)
    return rng


def _to_json(value: Any) -> Any:
    """Replace each array in a state by its dtype and a list."""
    if isinstance(value, dict):
        return {name: x if isinstance(x, (int, str)) else _to_json(x) for name, x in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {"dtype", "values"}:
            return np.array(value["values"], {"uint32": "u4", "uint64": "u8"}[value["dtype"]])
        return {name: _from_json(x) for name, x in value.items()}
    return value
