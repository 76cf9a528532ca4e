"""Transforms: changes of the gradients before the optimizer's update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from nnxp.arrays import Array, namespace_of
from nnxp.checks import POSITIVE
from nnxp.errors import InputError
from nnxp.parts import Part, Setting

Gradients: TypeAlias = dict[str, Array]
Transform: TypeAlias = Callable[[Mapping[str, Array], Mapping[str, Array]], Mapping[str, Array]]
"""A function that takes parameters and gradients by name, and returns new gradients."""


class GradientTransform(Part):
    """Base class of nnxp's transforms; your own transform may be a plain function."""

    def __call__(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> Gradients:
        """Return the new gradients, under the same names."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


class ClipNorm(GradientTransform):
    """Scale all gradients so that their global norm is at most `limit` (Pascanu et al. 2013).

    Parameters
    ----------
    limit : float
        The largest norm, a positive number.
    """

    limit = Setting(POSITIVE)

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> Gradients:
        """Return ``g * limit / max(norm, limit)`` for each gradient g."""
        squares = [namespace_of(g, self).sum(g * g) for g in grads.values()]
        if not squares:
            return {}
        xp = namespace_of(squares[0], self)
        total = sum(squares[1:], squares[0])
        norm = xp.sqrt(total)
        scale = self.limit / xp.maximum(norm, self.limit)
        return {name: g * scale for name, g in grads.items()}


class ClipValue(GradientTransform):
    """Clip each element of the gradients to the range from ``-limit`` to `limit`.

    Parameters
    ----------
    limit : float
        The largest magnitude, a positive number.
    """

    limit = Setting(POSITIVE)

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def __call__(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> Gradients:
        """Return ``min(max(g, -limit), limit)`` for each gradient g."""
        return {
            name: namespace_of(g, self).clip(g, -self.limit, self.limit)
            for name, g in grads.items()
        }


TRANSFORMS: dict[str, type[GradientTransform]] = {"clipnorm": ClipNorm, "clipvalue": ClipValue}
"""The transforms by name."""


def transform_gradients(
    transforms: tuple[Transform, ...], params: Mapping[str, Array], grads: Mapping[str, Array]
) -> Mapping[str, Array]:
    """Return the gradients after all transforms.

    Raises
    ------
    InputError
        If a transform does not return a mapping with the same names, shapes and dtypes.
    """
    for transform in transforms:
        new: object = transform(params, grads)
        if not isinstance(new, Mapping) or new.keys() != grads.keys():
            got = ", ".join(map(str, new)) if isinstance(new, Mapping) else repr(new)
            raise InputError(
                f"the transform {transform!r} must return a gradient for each of "
                f"{', '.join(grads)}; got {got}"
            )
        for name, old in grads.items():
            if (new[name].shape, new[name].dtype) != (old.shape, old.dtype):
                raise InputError(
                    f"the transform {transform!r} must return gradients of the same shapes and "
                    f"dtypes, got {tuple(new[name].shape)} {new[name].dtype} for {name} of "
                    f"{tuple(old.shape)} {old.dtype}"
                )
        grads = new
    return grads
