"""Dropout, with random masks that are equal on every array library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nnxp.arrays import Array, DType, Namespace, device_of, floating_namespace
from nnxp.checks import FRACTION, Rng, require_rng
from nnxp.devices import Device, open_device, require_dtype
from nnxp.layers.base import Layer
from nnxp.parts import Setting

# Odd constants of the finalizer of MurmurHash3 and the golden ratio's, as int32.
_GOLDEN, _FIRST, _SECOND = -1640531527, -2048144789, -1028477387


class Dropout(Layer):
    """Inverted dropout: in training, ``y = x * mask / (1 - rate)``; otherwise ``y = x``.

    Srivastava et al. 2014, sec. 10. Each number of the mask is 0 with probability `rate` and 1
    otherwise. The mask is a hash of a seed, of a counter that each training forward increases, and
    of the number's index (as Salmon et al. 2011 propose), so that the same `rng` gives the same
    masks on every library and with captured steps.

    Parameters
    ----------
    rate : float
        At least 0 and below 1.
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

    rate = Setting(FRACTION)

    def __init__(
        self,
        rate: float,
        *,
        rng: Rng,
        dtype: DType = "float32",
        device: Device | str = "cpu",
    ) -> None:
        self.rate = rate
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

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return `x`, in training with random numbers set to 0 and the others scaled."""
        xp = floating_namespace(x, self)
        if not training:
            return x
        counter = self.state["counter"]
        mask = self._mask(xp, x, counter)
        self.state["counter"] = counter + 1
        scale = xp.astype(mask, x.dtype) * (1.0 / (1.0 - self.rate))
        y = x * scale
        self.save_for_backward(y, scale)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``dy * mask / (1 - rate)``."""
        scale: Array = self.saved(dy)
        return dy * scale

    def _mask(self, xp: Namespace, x: Array, counter: Array) -> Array:
        """Return which numbers of `x` to keep, as a boolean array of its shape."""
        index = xp.arange(math.prod(x.shape), dtype=xp.int32, device=device_of(counter))
        if start := self.row_offset * math.prod(x.shape[1:]):
            index = index + ((start + 2**31) % 2**32 - 2**31)  # as an int32, which wraps around
        # The seed is hashed before the counter is added: otherwise seed k at step 1 and seed 1 at
        # step k would give the same mask.
        key = _hash(_hash(self.state["seed"]) ^ counter)
        bits = _hash(index * _GOLDEN + key)
        kept = (bits & 0xFFFFFF) >= round(self.rate * (1 << 24))
        return xp.reshape(kept, x.shape)


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
