"""Copies: independent copies of parts, to try something without a change of the training."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

from nnxp.arrays import Array
from nnxp.devices import Device
from nnxp.errors import InputError
from nnxp.network import Sequential

_T = TypeVar("_T")


def independent_copy(
    parts: _T, network: Sequential, device: Device, others: Iterable[Array] = ()
) -> _T:
    """Return a copy that shares nothing with `parts` that can change: arrays, generators, counts.

    Parameters
    ----------
    parts : object
        What refers to the network, such as a trainer.
    network : Sequential
        Whose arrays are copied on the device.
    device : Device
        The network's.
    others : iterable of array, optional
        Other arrays to be copied on the device, such as the optimizer's state.

    Raises
    ------
    InputError
        If a part has something that cannot be copied.
    """
    arrays = [
        x for layer in network.leaves() for held in (layer.params, layer.grads, layer.state)
        for x in held.values()
    ]  # fmt: skip
    # Not by copy.deepcopy, which not every library's arrays take.
    memo = {id(x): device.xp.asarray(x, copy=True) for x in (*arrays, *others)}
    try:
        return copy.deepcopy(parts, memo | {id(device): device})
    except Exception as error:
        raise InputError(
            f"{network!r} or what it is trained with cannot be copied ({error}); define "
            "__deepcopy__ for the part that has it"
        ) from error
