"""Networks: sequences of layers, and their parameters as one mapping."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Self

from nnxp.arrays import Array, namespace_of
from nnxp.checks import unknown_name
from nnxp.devices import Device, open_device
from nnxp.errors import CallOrderError, DeviceError, InputError
from nnxp.layers import Layer


class Parameters(MutableMapping[str, Array]):
    """The parameters of a network as one ordered mapping; an assignment changes the layer.

    So ``parameters["W1"] -= step`` changes the network both if arrays can be changed in place
    (NumPy) and if they cannot (JAX).
    """

    def __init__(self, slots: Mapping[str, tuple[Layer, str]]) -> None:
        self._slots = slots

    def __getitem__(self, name: str) -> Array:
        layer, key = self._slots[name]
        return layer.params[key]

    def __setitem__(self, name: str, value: Array) -> None:
        if name not in self._slots:
            raise unknown_name("parameter", name, self._slots)
        layer, key = self._slots[name]
        if value is not layer.params[key]:  # an in-place change assigns the same array
            layer.params[key] = _checked_copy(name, value, layer, key)

    def place(self, name: str, array: Array) -> None:
        """Assign `array` itself, without a check or a copy."""
        layer, key = self._slots[name]
        layer.params[key] = array

    def __delitem__(self, name: str) -> None:
        raise InputError(f"a network keeps all its parameters; {name} cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {tuple(x.shape)} {x.dtype}" for name, x in self.items())


class Sequential:
    """A network whose layers are applied one after another.

    Parameters
    ----------
    layers : iterable of Layer
        From input to output. Each object may occur only once, because it saves what its own
        backward needs.

    Attributes
    ----------
    layers : tuple of Layer
        From input to output.
    device : Device or None
        The device of the parameters; None for a network without parameters.
    dtype : str or None
        The dtype of parameters and inputs; None for a network without parameters.

    Raises
    ------
    InputError
        If there is no layer, a layer occurs twice, shapes do not fit, or dtypes differ.
    DeviceError
        If the layers are on different devices.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        if isinstance(layers, Layer):
            raise InputError(f"Sequential expects a list of layers, got {layers!r} alone")
        self.layers = tuple(layers)
        self._slots: dict[str, tuple[Layer, str]] = {}
        if not self.layers:
            raise InputError("Sequential expects at least one layer, got none")
        seen: dict[int, int] = {}
        counts: dict[str, int] = {}
        shape: tuple[int, ...] | None = None
        for position, layer in enumerate(self.layers, start=1):
            if not isinstance(layer, Layer):
                raise InputError(
                    f"Sequential expects layers, got {type(layer).__name__} at position {position}"
                )
            if id(layer) in seen:
                raise InputError(
                    f"the same {layer!r} object is at positions {seen[id(layer)]} and "
                    f"{position}; make one object for each position"
                )
            seen[id(layer)] = position
            shape = layer.output_shape(shape)
            for key in layer.params:
                counts[key] = counts.get(key, 0) + 1
                self._slots[f"{key}{counts[key]}"] = layer, key
        with_parameters = [layer for layer in self.layers if layer.params]
        for layer in with_parameters:
            if layer.device is None or layer.dtype is None:
                raise InputError(
                    f"{layer!r} has parameters but no device or no dtype; set both in its __init__"
                )
            for attribute in ("device", "dtype"):
                first, other = getattr(with_parameters[0], attribute), getattr(layer, attribute)
                if first != other:
                    raise (DeviceError if attribute == "device" else InputError)(
                        f"all layers must be on one device in one dtype: {with_parameters[0]!r} "
                        f"has {first}, {layer!r} has {other}; move one with "
                        "layer.to(device, dtype=…)"
                    )
        self.device = with_parameters[0].device if with_parameters else None
        self.dtype = with_parameters[0].dtype if with_parameters else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the outputs (scores) for inputs `x`.

        Parameters
        ----------
        x : (batch, inputs) array
            On the network's device and in its dtype.
        training : bool, optional
            Save in each layer what `backward` needs.
        """
        y = x
        for layer in self.layers:
            y = layer.forward(y, training)
        return y

    def backward(self, dy: Array) -> Array:
        """Return the gradient at the inputs, given the gradient `dy` at the outputs.

        Afterwards, `gradients` returns the gradients of all parameters.
        """
        gradient = dy
        for layer in reversed(self.layers):
            gradient = layer.backward(gradient)
        return gradient

    def backward_parameters(self, dy: Array) -> None:
        """Compute only the gradients of the parameters, which is all that training needs.

        The first layer with parameters skips the gradient at its inputs, a third of its work, and
        layers before it are skipped.
        """
        first = next((i for i, layer in enumerate(self.layers) if layer.params), None)
        if first is None:
            return
        gradient = dy
        for layer in reversed(self.layers[first + 1 :]):
            gradient = layer.backward(gradient)
        self.layers[first].backward_parameters(gradient)

    def to(self, device: Device | str, *, dtype: str | None = None) -> Self:
        """Return a copy of the network on another device or in another dtype.

        Parameters
        ----------
        device : Device or str
            As in `nnxp.device`.
        dtype : str, optional
            ``"float32"`` or ``"float64"``; the network's own by default.

        Examples
        --------
        >>> import numpy as np
        >>> import nnxp
        >>> network = nnxp.mlp([4, 3, 2], rng=np.random.default_rng(0))
        >>> network.to("strict:device1", dtype="float64").parameters()["b1"].device
        array_api_strict.Device('device1')
        """
        copied = copy.copy(self)
        opened = open_device(device)
        Sequential.__init__(copied, [layer.to(opened, dtype=dtype) for layer in self.layers])
        return copied

    def predict(self, x: Array) -> Array:
        """Return the outputs for inputs `x`, like ``forward(x)``."""
        return self.forward(x)

    def parameters(self) -> Parameters:
        """Return the parameters by name, in the layers' order: W1, b1, W2, b2 and so on."""
        return Parameters(self._slots)

    def gradients(self) -> dict[str, Array]:
        """Return the gradients of the last backward under the parameters' names.

        Raises
        ------
        CallOrderError
            If there was no backward yet.
        """
        try:
            return {name: layer.grads[key] for name, (layer, key) in self._slots.items()}
        except KeyError:
            raise CallOrderError(
                "there are no gradients yet: call forward(x, training=True), then backward"
            ) from None

    def load_parameters(self, parameters: Mapping[str, Array]) -> None:
        """Replace all parameters by copies of `parameters`; after an error, none is changed.

        Parameters
        ----------
        parameters : mapping of str to array
            Names, shapes and dtypes as in `Sequential.parameters`; on the host or on the network's
            device.

        Raises
        ------
        InputError
            If a name is missing or unknown, or a shape or dtype is wrong.
        DeviceError
            If an array is on another device.
        """
        for name in parameters:
            if name not in self._slots:
                raise unknown_name("parameter", name, self._slots)
        if self.device is None:
            return
        loaded = []
        for name, (layer, key) in self._slots.items():
            if name not in parameters:
                raise InputError(f"parameter {name} is missing; got {', '.join(parameters)}")
            new = self.device.asarray(parameters[name])
            loaded.append((layer, key, _checked_copy(name, new, layer, key)))
        for layer, key, new in loaded:
            layer.params[key] = new

    def summary(self) -> str:
        """Return a table of layers, output shapes and parameter counts, as text to print."""
        rows = [("layer", "output", "parameters", "count")]
        shape: tuple[int, ...] | None = None
        total = 0
        for layer in self.layers:
            shape = layer.output_shape(shape)
            output = "(batch, …)" if shape is None else f"(batch, {', '.join(map(str, shape))})"
            parameters = {
                name: layer.params[key]
                for name, (owner, key) in self._slots.items()
                if owner is layer
            }
            count = sum(math.prod(x.shape) for x in parameters.values())
            total += count
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in parameters.items())
            rows.append((repr(layer), output, shapes, f"{count:,}"))
        a, b, c, d = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [f"{row[0]:<{a}}  {row[1]:<{b}}  {row[2]:<{c}}  {row[3]:>{d}}" for row in rows]
        suffix = f" of {self.dtype} on {self.device}" if self.device else ""
        return "\n".join([*lines, f"{total:,} parameters{suffix}"])


def _checked_copy(name: str, new: Array, layer: Layer, key: str) -> Array:
    """Return a copy of `new`; raise if it does not fit the parameter `key` of `layer`."""
    old = layer.params[key]
    if layer.device is not None:
        layer.device.require(new, f"parameter {name}")
    if tuple(new.shape) != tuple(old.shape) or new.dtype != old.dtype:
        convert = "; convert it with astype" if tuple(new.shape) == tuple(old.shape) else ""
        raise InputError(
            f"parameter {name} expects {tuple(old.shape)} {old.dtype}, got {tuple(new.shape)} "
            f"{new.dtype}{convert}"
        )
    # Copied: training changes parameters in place, and `new` belongs to the caller.
    return namespace_of(new, name).asarray(new, copy=True)
