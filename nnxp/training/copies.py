"""Copies: independent copies of parts, for trials that do not affect training."""

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
    """Return a copy of `parts` that shares no mutable object with them, such as arrays.

    Parameters
    ----------
    parts : object
        An object that refers to the network, such as a trainer.
    network : Sequential
        The network, whose arrays are copied on the device.
    device : Device
        The network's device.
    others : iterable of array, optional
        Other arrays to copy on the device, such as the optimizer's state.

    Raises
    ------
    InputError
        If an attribute of a part cannot be copied.
    """
    arrays = [
        x for layer in network.leaves() for held in (layer.params, layer.grads, layer.state)
        for x in held.values()
    ]  # fmt: skip
    # copy.deepcopy does not work for the arrays of every library.
    memo = {id(x): device.xp.asarray(x, copy=True) for x in (*arrays, *others)}
    try:
        return copy.deepcopy(parts, memo | {id(device): device})
    except Exception as error:
        raise InputError(
            f"{network!r} or a part that it is trained with cannot be copied ({error}); define "
            "__deepcopy__ for that part"
        ) from error
