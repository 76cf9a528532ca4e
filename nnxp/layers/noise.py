"""Noise: random bits for layers, equal on every array library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnxp.arrays import Array, DType, Namespace, device_of
from nnxp.checks import Rng, require_rng
from nnxp.devices import Device, open_device, require_dtype
from nnxp.layers.base import Layer

# The odd constant of the golden ratio, and the constants of MurmurHash3's finalizer, as int32.
_GOLDEN, _FIRST, _SECOND = -1640531527, -2048144789, -1028477387


class Noise(Layer, base=True):
    """Base class of layers that draw random numbers in training.

    Each number is a hash of a seed, a counter that each training forward increments, and the
    number's index (Salmon et al. 2011), so the same `rng` gives the same numbers on every library
    and in captured steps.

    Parameters
    ----------
    rng : numpy.random.Generator, SeedSequence or int
        Draws the seed.
    dtype : str or dtype, optional
        The network's dtype, ``"float32"`` or ``"float64"``.
    device : Device or str, optional
        The network's device, where the state is stored.

    Attributes
    ----------
    state : dict of str to int32 array
        ``seed`` and ``counter``, each of shape (1,).
    row_offset : int
        The index of the batch's first example in the global batch, if several processes divide one;
        0 by default.
    """

    def __init__(self, *, rng: Rng, dtype: DType = "float32", device: Device | str = "cpu") -> None:
        generator = require_rng(rng)
        opened = open_device(device)
        self.device, self.dtype = opened, require_dtype(dtype)
        self.row_offset = 0
        seed = generator.integers(-(2**31), 2**31, 1, dtype=np.int32)
        self.state["seed"] = opened.asarray(seed)
        self.state["counter"] = opened.asarray(np.zeros(1, np.int32))

    @classmethod
    def array_size(cls, config: Mapping[str, Any]) -> int:
        """Return the number of elements of the state."""
        return 2

    def draw_bits(self, xp: Namespace, shape: tuple[int, ...]) -> Array:
        """Return 32 random bits for each element of a batch, and increment the counter.

        Parameters
        ----------
        xp : namespace
        shape : tuple of int
            The shape of the batch, ``(batch, …)``.

        Returns
        -------
        int32 array of this shape
        """
        counter = self.state["counter"]
        index = xp.arange(math.prod(shape), dtype=xp.int32, device=device_of(counter))
        if start := self.row_offset * math.prod(shape[1:]):
            index = index + ((start + 2**31) % 2**32 - 2**31)  # as an int32, which wraps around
        # Hash the seed before combining it with the counter: otherwise seed k at step 1 and seed 1
        # at step k would give the same numbers.
        key = _hash(_hash(self.state["seed"]) ^ counter)
        self.state["counter"] = counter + 1
        return xp.reshape(_hash(index * _GOLDEN + key), shape)


def _hash(h: Array) -> Array:
    """Return a hash of each element of an int32 array: two rounds of MurmurHash3's finalizer.

    Products wrap around. Right shifts are masked, since a shift of int32 copies the sign bit.
    """
    for first, second in ((_FIRST, _SECOND), (_SECOND, _FIRST)):
        h = h ^ ((h >> 16) & 0xFFFF)
        h = h * first
        h = h ^ ((h >> 13) & 0x7FFFF)
        h = h * second
        h = h ^ ((h >> 16) & 0xFFFF)
    return h
