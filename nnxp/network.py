"""Networks: layers in a row, forward from first to last, backward from last to first."""

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
    """The parameters of a network as one ordered dictionary, written through to the layers.

    ``parameters["W1"] -= step`` so changes the network whether arrays can be changed in place
    (NumPy) or not (JAX).
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
        if value is not layer.params[key]:  # as it is after a change in place
            layer.params[key] = _fitting(name, value, layer, key)

    def place(self, name: str, array: Array) -> None:
        """Put this very array there, unchecked and not a copy of it."""
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
    """Layers in a row.

    Parameters
    ----------
    layers : iterable of Layer
        From input to output. Each object may stand in one place only: it keeps what its own
        backward needs.

    Attributes
    ----------
    layers : tuple of Layer
    device : Device or None
        Where the parameters live; None for a network that has none.
    dtype : str or None
        Name of the dtype of parameters and inputs.
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
                    f"the same {layer!r} object stands at positions {seen[id(layer)]} and "
                    f"{position}; make one object for each place"
                )
            seen[id(layer)] = position
            shape = layer.output_shape(shape)
            for key in layer.params:
                counts[key] = counts.get(key, 0) + 1
                self._slots[f"{key}{counts[key]}"] = layer, key
        owners = [layer for layer in self.layers if layer.params]
        for layer in owners:
            if layer.device is None or layer.dtype is None:
                raise InputError(
                    f"{layer!r} has parameters but no device or no dtype; set both in its __init__"
                )
            for what in ("device", "dtype"):
                first, other = getattr(owners[0], what), getattr(layer, what)
                if first != other:
                    raise (DeviceError if what == "device" else InputError)(
                        f"all layers must be on one device in one dtype: {owners[0]!r} has "
                        f"{first}, {layer!r} has {other}; move one with layer.to(device, dtype=…)"
                    )
        self.device = owners[0].device if owners else None
        self.dtype = owners[0].dtype if owners else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the outputs (scores) for inputs `x`.

        Parameters
        ----------
        x : (batch, inputs) array
            On the network's device and in its dtype.
        training : bool, optional
            Keep in each layer what `backward` needs.
        """
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dy: Array) -> Array:
        """Return the gradient at the inputs, given `dy`, the one at the outputs.

        Every layer's gradients of its parameters are in `gradients()` afterwards.
        """
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def backward_parameters(self, dy: Array) -> None:
        """Do backward's work as far as training needs it: no gradient at the inputs.

        That one is a third of the first layer's work, and nothing before it has parameters.
        """
        first = next((i for i, layer in enumerate(self.layers) if layer.params), None)
        if first is None:
            return
        for layer in reversed(self.layers[first + 1 :]):
            dy = layer.backward(dy)
        self.layers[first].backward_parameters(dy)

    def to(self, device: Device | str, *, dtype: str | None = None) -> Self:
        """Return a copy of the network on another device, or in another dtype; this one stays.

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
        twin = copy.copy(self)
        device = open_device(device)
        Sequential.__init__(twin, [layer.to(device, dtype=dtype) for layer in self.layers])
        return twin

    def predict(self, x: Array) -> Array:
        """Return the outputs for inputs `x`, as `forward` does when not training."""
        return self.forward(x)

    def parameters(self) -> Parameters:
        """Return the parameters, name → array: W1, b1, W2, b2, … in the layers' order."""
        return Parameters(self._slots)

    def gradients(self) -> dict[str, Array]:
        """Return the gradients of the last backward under the parameters' names.

        Raises
        ------
        CallOrderError
            Before the first backward.
        """
        try:
            return {name: layer.grads[key] for name, (layer, key) in self._slots.items()}
        except KeyError:
            raise CallOrderError(
                "there are no gradients yet: call forward(x, training=True), then backward"
            ) from None

    def load_parameters(self, parameters: Mapping[str, Array]) -> None:
        """Replace all parameters by copies; on an error none is changed.

        Parameters
        ----------
        parameters : mapping of str to array
            The same names, shapes and dtype as `parameters()`, on the host or on this network's
            device.

        Raises
        ------
        InputError
            If a name is missing or unknown, or an array has another shape or dtype.
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
            loaded.append((layer, key, _fitting(name, new, layer, key)))
        for layer, key, new in loaded:
            layer.params[key] = new

    def summary(self) -> str:
        """Return a table of layers, shapes and parameter counts; ``print(network.summary())``."""
        rows = [("layer", "output", "parameters", "count")]
        shape: tuple[int, ...] | None = None
        total = 0
        for layer in self.layers:
            shape = layer.output_shape(shape)
            output = "(batch, …)" if shape is None else f"(batch, {', '.join(map(str, shape))})"
            own = {
                n: owner.params[key] for n, (owner, key) in self._slots.items() if owner is layer
            }
            count = sum(math.prod(x.shape) for x in own.values())
            total += count
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in own.items())
            rows.append((repr(layer), output, shapes, f"{count:,}"))
        a, b, c, d = (max(map(len, column)) for column in zip(*rows, strict=True))
        lines = [f"{row[0]:<{a}}  {row[1]:<{b}}  {row[2]:<{c}}  {row[3]:>{d}}" for row in rows]
        place = f" of {self.dtype} on {self.device}" if self.device else ""
        return "\n".join([*lines, f"{total:,} parameters{place}"])


def _fitting(name: str, new: Array, layer: Layer, key: str) -> Array:
    """Return a copy of `new` to take the place of the parameter `key` of `layer`, if it fits."""
    old = layer.params[key]
    if layer.device is not None:
        layer.device.require(new, f"parameter {name}")
    if tuple(new.shape) != tuple(old.shape) or new.dtype != old.dtype:
        convert = "; convert it with astype" if tuple(new.shape) == tuple(old.shape) else ""
        raise InputError(
            f"parameter {name} expects {tuple(old.shape)} {old.dtype}, got {tuple(new.shape)} "
            f"{new.dtype}{convert}"
        )
    # A copy, since training changes parameters in place and `new` belongs to the caller.
    return namespace_of(new, name).asarray(new, copy=True)
