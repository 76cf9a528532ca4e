"""Generators: their state as JSON, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nnxp.errors import InputError

BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
"""The bit generators whose state is known."""


def get_state(rng: np.random.Generator) -> dict[str, Any]:
    """Return the state of a generator as JSON can have it."""
    state: dict[str, Any] = _plain(rng.bit_generator.state)
    return state


def set_state(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Put a generator into a state that `get_state` returned, of one of its kind."""
    rng.bit_generator.state = _arrays_again(state)


def generator(state: Mapping[str, Any]) -> np.random.Generator:
    """Return a generator in a state that `get_state` returned.

    Raises
    ------
    InputError
        If no generator can be in that state.
    """
    name = state["bit_generator"]
    if name not in BIT_GENERATORS:
        raise InputError(f"the generator must be one of {', '.join(BIT_GENERATORS)}, got {name!r}")
    # NumPy takes any, and some would let it read beyond its memory, or draw for ever.
    inner = state["state"]
    sound = (
        state.get("has_uint32", 0) in (0, 1)
        and 0 <= state.get("uinteger", 0) < 2**32
        and 0 <= inner.get("pos", 0) <= 624  # of MT19937
        and 0 <= state.get("buffer_pos", 0) <= 4  # of Philox
        and inner.get("inc", 1) % 2 == 1  # of PCG64
    )
    if not sound:
        raise InputError(f"the generator's state is not one that {name} can have")
    rng = np.random.Generator(getattr(np.random, name)(0))
    set_state(rng, state)
    return rng


def _plain(value: Any) -> Any:
    """Return a state with lists in place of arrays, marked by their dtype."""
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": value.tolist()}
    return value


def _arrays_again(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {"dtype", "values"}:
            return np.array(value["values"], {"uint32": "u4", "uint64": "u8"}[value["dtype"]])
        return {name: _arrays_again(x) for name, x in value.items()}
    return value
