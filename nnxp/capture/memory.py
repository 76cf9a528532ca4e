"""Memory: the buffers of a captured step, in which parameters and state lie while bound."""

from __future__ import annotations

from collections import defaultdict
from typing import cast

from nnxp.arrays import Array
from nnxp.capture.base import is_elementwise
from nnxp.capture.ops import Buffer, Ops
from nnxp.capture.vectors import Group, Summed
from nnxp.optimizers import SGD
from nnxp.step import Step

_LARGE = 1 << 12  # numbers of a matrix that gets its own call


class StepMemory:
    """The buffers that a step reads and writes.

    If the optimizer is elementwise, parameters and its state are views of flat vectors, so that a
    few calls update all.

    Parameters
    ----------
    step : Step
    dtype : str
        That of the optimizer's numbers.
    ops : Ops
        Gives the array library.

    Attributes
    ----------
    parameters, states, sums : dict of str to array
    optimizer : dict of str to dict of str to array
        The optimizer's state, by slot and parameter.
    number_vector : (numbers,) array
        The optimizer's numbers in the next step.
    numbers : list of 0-d array
        Its views.
    is_flat : bool
        Whether flat vectors are updated.
    groups : list of Group
        The flat vectors: one group for the parameters that decay, and one for the others.
    fused : list of str
        The parameters outside of the groups that are updated by the product of their gradient.
    exchanged : Summed or None
        What several ranks sum.
    vectors : list of array
        Arrays that together hold all parameters and state.
    """

    def __init__(self, step: Step, dtype: str, ops: Ops) -> None:
        network, optimizer, module = step.network, step.optimizer, ops.module
        parameters = cast(dict[str, Buffer], dict(network.parameters()))
        trainable = network.parameters().trainable
        self.is_flat = is_elementwise(optimizer)
        # SGD's step of a large matrix is fused with the product that computes the gradient.
        several = step.ranks.size > 1  # then the gradient is exchanged before the update
        fuses = ops.accumulates and self.is_flat and type(optimizer) is SGD and not several
        separate = {
            name: module.empty_like(x)
            for name, x in parameters.items()
            if not self.is_flat
            or name not in trainable
            or (fuses and x.ndim == 2 and x.size >= _LARGE)
        }
        self.fused = [name for name in separate if self.is_flat and name in trainable]
        groups: dict[bool, dict[str, Buffer]] = defaultdict(dict)
        for name, x in parameters.items():
            if name not in separate:
                groups[optimizer.decays(name, cast(Array, x))][name] = x
        self.exchanged = Summed(network, list(groups.values()), module) if several else None
        gradients = self.exchanged.groups if self.exchanged else [None] * len(groups)
        self.groups = [
            Group(arrays, optimizer, decays, module, memory)
            for (decays, arrays), memory in zip(groups.items(), gradients, strict=True)
        ]
        if self.exchanged:  # the same views, so that no gradient is copied onto itself
            self.exchanged.views |= {
                f"gradient of {name}": x
                for group in self.groups
                for name, x in group.gradients.views.items()
            }
        self.parameters: dict[str, Buffer] = dict(separate)
        self.optimizer: dict[str, dict[str, Buffer]] = {
            slot: {}
            if self.is_flat
            else {name: module.zeros_like(parameters[name]) for name in trainable}
            for slot in optimizer.state
        }
        for group in self.groups:
            self.parameters |= group.parameters.views
            for slot, flat in group.state.items():
                self.optimizer[slot] |= flat.views
        self.states: dict[str, Buffer] = {
            name: module.empty_like(x) for name, x in network.states().items()
        }
        self.vectors = [
            *separate.values(),
            *(x for x in self.states.values() if x.dtype.kind == "f"),
            *(group.vector for group in self.groups),
        ]
        if not self.is_flat:
            self.vectors += [x for kept in self.optimizer.values() for x in kept.values()]
        self.sums: dict[str, Buffer] = {name: module.empty_like(x) for name, x in step.sums.items()}
        self.number_vector: Buffer = module.empty(len(optimizer.numbers()), dtype)
        self.numbers = [x.reshape(()) for x in self.number_vector.reshape(-1, 1)]

    @property
    def nbytes(self) -> int:
        """The bytes of parameters, gradients and states."""
        held = [self.parameters, self.states, *self.optimizer.values()]
        held += [group.gradients.views for group in self.groups]
        return sum(x.nbytes for each in held for x in each.values())
