"""Functions that a layer and a loss share."""

from __future__ import annotations

from nnxp.arrays import Array, Namespace


def sigmoid(xp: Namespace, x: Array) -> Array:
    """Return ``1 / (1 + exp(-x))``; only exp(-|x|) is taken, which cannot overflow."""
    t = xp.exp(-xp.abs(x))
    return xp.where(x >= 0, 1.0, t) / (1.0 + t)
