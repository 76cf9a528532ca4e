"""Layer: the base class of all layers."""

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
    `nnxp.testing.check_layer` tests your own layers.

    Attributes
    ----------
    params, grads : dict of str to array
        Parameters and, after backward, their gradients, under the same names.
    device : Device or None
    dtype : str or None
        Of the parameters; a layer with parameters sets both. None for a layer without parameters:
        its outputs have the device and dtype of its inputs.
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
        """Return the outputs for inputs `x`; if `training`, save what `backward` needs."""
        raise NotImplementedError

    def backward(self, dy: Array) -> Array:
        """Return the gradient at the inputs, given the gradient `dy` at the outputs.

        The gradients of parameters are stored in `grads`. Each training forward allows one
        backward.

        Raises
        ------
        CallOrderError
            If there was no training forward since the last backward.
        InputError
            If `dy` does not have the shape and dtype of the outputs.
        DeviceError
            If `dy` is on another device than the outputs.
        """
        raise NotImplementedError

    def backward_parameters(self, dy: Array) -> None:
        """Compute only `grads`, for a first layer, whose gradient at the inputs is not needed."""
        self.backward(dy)

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the shape of one example's output, given that of its input; None if unknown."""
        return shape

    def to(self, device: Device | str, *, dtype: str | None = None) -> Self:
        """Return a copy of the layer with its parameters on another device or in another dtype.

        Parameters
        ----------
        device : Device or str
            As in `nnxp.device`; ignored by a layer without parameters.
        dtype : str, optional
            ``"float32"`` or ``"float64"``; the layer's own by default.
        """
        copied = copy.copy(self)
        copied.params, copied.grads, copied._saved = {}, {}, None
        if self.device is not None:
            copied.device = open_device(device)
            copied.dtype = self.dtype if dtype is None else require_dtype(dtype)
            for name, x in self.params.items():
                source = x if copied.device == self.device else self.device.to_host(x)
                converted = copied.device.asarray(source, dtype=copied.dtype)
                copied.params[name] = copied.device.xp.asarray(converted, copy=True)
        return copied

    def save_for_backward(self, y: Array, values: Any = None) -> None:
        """End a training forward: save `values`, and the shape, dtype and device of outputs `y`."""
        self._saved = y.shape, y.dtype, device_of(y), values

    def saved(self, dy: Array) -> Any:
        """Begin a backward: check `dy` against the outputs and return the saved values, once.

        It raises the errors of `backward`.
        """
        if self._saved is None:
            raise CallOrderError(
                f"{self!r}.backward needs forward(x, training=True) first; "
                "each such forward allows one backward"
            )
        shape, dtype, device, values = self._saved
        namespace_of(dy, f"{self!r}.backward")
        # The device first: comparing dtypes of two libraries may raise.
        if on_different_devices(device_of(dy), device):
            raise DeviceError(
                f"{self!r}.backward expects a gradient on {device}, where its outputs are, got "
                f"{describe(dy)}; copy it with the network's device.asarray(dy)"
            )
        if dy.shape != shape or dy.dtype != dtype:
            raise InputError(
                f"{self!r}.backward expects a gradient of the outputs' shape {shape} and dtype "
                f"{dtype}, got {describe(dy)}"
            )
        self._saved = None
        return values
