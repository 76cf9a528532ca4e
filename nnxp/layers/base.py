"""Layer: what all layers share, their two dictionaries and the memory between two passes."""

from __future__ import annotations

import copy
from typing import Any, Self

from nnxp.arrays import Array, describe, device_of, namespace_of, on_different_devices
from nnxp.devices import Device, open_device, require_dtype
from nnxp.errors import CallOrderError, DeviceError, InputError


class Layer:
    """Base class of all layers.

    A subclass defines `forward` and `backward`. A training forward ends with
    ``self.save_for_backward(y, …)``; backward begins with ``self.saved(dy)``, which returns the
    saved values once. They are not copied: do not change inputs and outputs before backward.
    `nnxp.testing.check_layer` checks a layer of your own.

    Attributes
    ----------
    params, grads : dict of str to array
        Parameters and, after backward, their gradients, under the same names.
    device : Device or None
    dtype : str or None
        Where the parameters live and what they are; a layer that has some sets both. None for a
        layer without parameters, which follows its input.
    """

    device: Device | None = None
    dtype: str | None = None
    _saved: tuple[tuple[int, ...], Any, Any, Any] | None = None

    def __init__(self) -> None:
        self.params: dict[str, Array] = {}
        self.grads: dict[str, Array] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the outputs for inputs `x`; while `training`, keep what backward needs."""
        raise NotImplementedError

    def backward(self, dy: Array) -> Array:
        """Return the gradient at the inputs, given `dy`, the one at the outputs.

        Gradients of parameters go to `grads`. Each training forward serves one backward.

        Raises
        ------
        CallOrderError
            Without a training forward since the last backward.
        InputError
            If `dy` has not the shape and dtype of the outputs.
        DeviceError
            If `dy` is on another device than the outputs.
        """
        raise NotImplementedError

    def backward_parameters(self, dy: Array) -> None:
        """Do backward's work on `grads` alone, for a first layer whose inputs nobody asks about."""
        self.backward(dy)

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the shape of one example's output, given its input's; None is unknown."""
        return shape

    def to(self, device: Device | str, *, dtype: str | None = None) -> Self:
        """Return a copy of the layer with its parameters on another device, or in another dtype."""
        twin = copy.copy(self)
        twin.params, twin.grads, twin._saved = {}, {}, None
        if self.device is not None:
            twin.device = open_device(device)
            twin.dtype = self.dtype if dtype is None else require_dtype(dtype)
            for name, x in self.params.items():
                source = x if twin.device == self.device else self.device.to_host(x)
                carried = twin.device.asarray(source, dtype=twin.dtype)
                twin.params[name] = twin.device.xp.asarray(carried, copy=True)
        return twin

    def save_for_backward(self, y: Array, values: Any = None) -> None:
        """End a training forward: keep `values` for the backward of the outputs `y`."""
        self._saved = y.shape, y.dtype, device_of(y), values

    def saved(self, dy: Array) -> Any:
        """Begin a backward: check `dy` against the outputs, and hand out what was kept, once."""
        if self._saved is None:
            raise CallOrderError(
                f"{self!r}.backward needs forward(x, training=True) first; "
                "each such forward serves one backward"
            )
        shape, dtype, device, values = self._saved
        namespace_of(dy, f"{self!r}.backward")
        # The device before the dtype: dtypes of two libraries may refuse to be compared.
        if on_different_devices(device_of(dy), device):
            raise DeviceError(
                f"{self!r}.backward expects a gradient on {device}, where its outputs are, got "
                f"{describe(dy)}; carry it over with the network's device.asarray(dy)"
            )
        if dy.shape != shape or dy.dtype != dtype:
            raise InputError(
                f"{self!r}.backward expects a gradient of the outputs' shape {shape} and dtype "
                f"{dtype}, got {describe(dy)}"
            )
        self._saved = None
        return values
