"""Dropout, with random masks that are equal on every array library."""

from __future__ import annotations

from nnxp.arrays import Array, DType, floating_namespace
from nnxp.checks import FRACTION, Rng
from nnxp.devices import Device
from nnxp.layers.noise import Noise
from nnxp.parts import Setting


class Dropout(Noise):
    """Inverted dropout: in training, ``y = x * mask / (1 - rate)``; otherwise ``y = x``.

    Srivastava et al. 2014, sec. 10. Each element of the mask is 0 with probability `rate` and 1
    otherwise. The mask is a hash of a seed, a counter that each training forward increments, and
    the element's index (Salmon et al. 2011), so the same `rng` gives the same masks on every
    library and in captured steps.

    Parameters
    ----------
    rate : float
        The probability to drop an element, at least 0 and below 1.
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

    rate = Setting(FRACTION)

    def __init__(
        self,
        rate: float,
        *,
        rng: Rng,
        dtype: DType = "float32",
        device: Device | str = "cpu",
    ) -> None:
        super().__init__(rng=rng, dtype=dtype, device=device)
        self.rate = rate

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return `x`; in training, with random elements set to 0 and the others scaled."""
        xp = floating_namespace(x, self)
        if not training:
            return x
        self._require_here(x)
        bits = self.draw_bits(xp, x.shape)
        mask = (bits & 0xFFFFFF) >= round(self.rate * (1 << 24))
        scale = xp.astype(mask, x.dtype) * (1.0 / (1.0 - self.rate))
        y = x * scale
        self.save_for_backward(y, scale)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``dy * mask / (1 - rate)``."""
        scale: Array = self.saved(dy)
        return dy * scale
