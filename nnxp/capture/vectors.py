"""Vectors: the memory of many parameters, gradients and optimizer states as a few flat arrays."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import ModuleType
from typing import cast

import numpy as np

from nnxp.capture.ops import Buffer
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer

_ALIGNMENT = 32  # numbers; each vector starts at a cache line, also on GPUs


class Group:
    """Parameters that are updated together, as vectors.

    Attributes
    ----------
    vector : array
        The memory of parameters and state, so that one call can compute with both.
    parameters, gradients : FlatArrays
    state : dict of str to FlatArrays
        The optimizer's state, by slot.
    decays : bool
        Whether the parameters decay.
    """

    def __init__(
        self,
        arrays: Mapping[str, Buffer],
        optimizer: Optimizer,
        decays: bool,
        module: ModuleType,
        gradients: Buffer | None,
    ) -> None:
        self.gradients = FlatArrays(arrays, module, gradients)
        like, size = self.gradients.vector, self.gradients.vector.size
        self.vector: Buffer = module.zeros((1 + len(optimizer.state)) * size, like.dtype)
        memory = iter(self.vector.reshape(1 + len(optimizer.state), size))
        self.parameters = FlatArrays(arrays, module, next(memory))
        self.state = {slot: FlatArrays(arrays, module, next(memory)) for slot in optimizer.state}
        self.decays = decays


class FlatArrays:
    """One vector with space for arrays like the given ones, and a view of it for each.

    Parameters
    ----------
    arrays : mapping of str to array
    module : module
        NumPy or CuPy.
    memory : array, optional
        Zeros to use as the vector; by default new ones.

    Attributes
    ----------
    vector : array
    views : dict of str to array
    """

    def __init__(
        self, arrays: Mapping[str, Buffer], module: ModuleType, memory: Buffer | None = None
    ) -> None:
        sizes = [_aligned(x) for x in arrays.values()]
        dtype = next((x.dtype for x in arrays.values()), np.dtype("float32"))
        # The gaps stay 0.
        self.vector: Buffer = module.zeros(sum(sizes), dtype) if memory is None else memory
        self.views: dict[str, Buffer] = {}
        starts = itertools.accumulate(sizes, initial=0)
        for (name, x), start in zip(arrays.items(), starts, strict=False):
            self.views[name] = self.vector[start : start + x.size].reshape(x.shape)


class Summed:
    """One vector of all numbers to sum over ranks or parts, with the gradients first.

    Parameters
    ----------
    network : Sequential
    groups : list of dict of str to array
        The parameters of each flat vector; the others follow.
    module : module
        NumPy or CuPy.

    Attributes
    ----------
    vector : array
    summed : array
        A view of all numbers except the weight.
    groups : list of array
        The views with the gradients of each group.
    views : dict of str to array
        By the names of `Step.summands`.
    """

    def __init__(
        self, network: Sequential, groups: list[dict[str, Buffer]], module: ModuleType
    ) -> None:
        grouped = {name: x for group in groups for name, x in group.items()}
        trainable = cast(dict[str, Buffer], network.parameters().trainable)
        arrays = {f"gradient of {name}": x for name, x in (grouped | trainable).items()}
        states = cast(dict[str, Buffer], dict(network.states()))
        arrays |= {f"change of {name}": x for name, x in states.items() if x.dtype.kind == "f"}
        weight = module.zeros(1, next(iter(trainable.values())).dtype)
        flat = FlatArrays(arrays | {"weight": weight}, module)
        self.vector, self.summed = flat.vector, flat.vector[: -_aligned(weight)]
        self.views = flat.views
        ends = itertools.accumulate(sum(map(_aligned, group.values())) for group in groups)
        self.groups = [self.vector[a:b] for a, b in itertools.pairwise([0, *ends])]


def _aligned(x: Buffer) -> int:
    """Return how many numbers of a vector an array takes, with the padding."""
    return -(-x.size // _ALIGNMENT) * _ALIGNMENT
