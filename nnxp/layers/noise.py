"""Noise: random bits of layers that draw in training, equal on every array library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnxp.arrays import Array, DType, Namespace, device_of
from nnxp.checks import Rng, require_rng
from nnxp.devices import Device, open_device, require_dtype
from nnxp.layers.base import Layer

# Odd constants of the finalizer of MurmurHash3 and the golden ratio's, as int32.
_GOLDEN, _FIRST, _SECOND = -1640531527, -2048144789, -1028477387


class Noise(Layer, base=True):
    """Base class of layers that draw random numbers in training.

    The numbers are a hash of a seed, of a counter that each training forward increases, and of
    their index (as Salmon et al. 2011 propose), so that the same `rng` gives the same numbers on
    every library and with captured steps.

    Parameters
    ----------
    rng : numpy.random.Generator, SeedSequence or int
        Draws the seed.
    dtype : str or dtype, optional
        ``"float32"`` or ``"float64"``, the network's.
    device : Device or str, optional
        Where the state is.

    Attributes
    ----------
    state : dict of str to int32 array
        ``seed`` and ``counter``, each of shape (1,).
    row_offset : int
        The index of the batch's first example within the global batch, if several processes share
        one; 0 by default.
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
        """Return 32 random bits for each number of a batch, and increase the counter.

        Parameters
        ----------
        xp : namespace
        shape : tuple of int
            The batch's size comes first.

        Returns
        -------
        int32 array of this shape
        """
        counter = self.state["counter"]
        index = xp.arange(math.prod(shape), dtype=xp.int32, device=device_of(counter))
        if start := self.row_offset * math.prod(shape[1:]):
            index = index + ((start + 2**31) % 2**32 - 2**31)  # as an int32, which wraps around
        # The seed is hashed before the counter is added: otherwise seed k at step 1 and seed 1 at
        # step k would give the same numbers.
        key = _hash(_hash(self.state["seed"]) ^ counter)
        self.state["counter"] = counter + 1
        return xp.reshape(_hash(index * _GOLDEN + key), shape)


def _hash(h: Array) -> Array:
    """Return well-mixed bits of an int32 array, by two rounds of MurmurHash3's finalizer.

    Products wrap around; a right shift is masked, since int32 shifts copies of the sign in.
    """
    for first, second in ((_FIRST, _SECOND), (_SECOND, _FIRST)):
        h = h ^ ((h >> 16) & 0xFFFF)
        h = h * first
        h = h ^ ((h >> 13) & 0x7FFFF)
        h = h * second
        h = h ^ ((h >> 16) & 0xFFFF)
    return h
