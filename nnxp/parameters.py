"""Parameters: the arrays of a network's layers as mappings of names to arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import ClassVar, TypeAlias

from nnxp.arrays import Array, namespace_of
from nnxp.checks import unknown_name
from nnxp.errors import InputError
from nnxp.layers import Layer

Slots: TypeAlias = dict[str, tuple[Layer, str]]
"""The layer and the key of each named array."""


class Parameters(MutableMapping[str, Array]):
    """The parameters of a network as one ordered mapping; assignments change the layers.

    So ``parameters["W1"] -= step`` works for mutable arrays (NumPy) and immutable arrays (JAX).

    Attributes
    ----------
    identity : object
        Identifies the network, also after the network is deleted.
    """

    kind: ClassVar[str] = "parameter"
    _attribute: ClassVar[str] = "params"  # of the layers

    def __init__(self, slots: Slots, identity: object) -> None:
        self._slots = slots
        self.identity = identity

    @property
    def trainable(self) -> dict[str, Array]:
        """The arrays whose layers are not frozen, by name."""
        return {name: self[name] for name, (layer, _) in self._slots.items() if layer.trainable}

    def __getitem__(self, name: str) -> Array:
        layer, key = self._slots[name]
        array: Array = getattr(layer, self._attribute)[key]
        return array

    def __setitem__(self, name: str, value: Array) -> None:
        if name not in self._slots:
            raise unknown_name(self.kind, name, self._slots)
        if value is not self[name]:  # an in-place change assigns the same array
            self.place(name, self.matching_copy(name, value))

    def place(self, name: str, array: Array) -> None:
        """Assign `array` itself, without a check or a copy."""
        layer, key = self._slots[name]
        getattr(layer, self._attribute)[key] = array

    def place_all(self, arrays: Mapping[str, Array]) -> None:
        """Assign these arrays themselves, without checks or copies."""
        for name, x in arrays.items():
            self.place(name, x)

    def hold(self, arrays: Mapping[str, Array]) -> bool:
        """Return whether the layers hold these array objects under these names."""
        attribute = self._attribute
        return all(
            getattr(layer, attribute).get(key) is arrays[name]
            for name, (layer, key) in self._slots.items()
        )

    def matching_copy(self, name: str, new: Array) -> Array:
        """Return a copy of `new`, which must have the shape, dtype and device of the old array."""
        old, layer = self[name], self.layer(name)
        if layer.device is not None:
            layer.device.require(new, f"{self.kind} {name}")
            new = layer.device.asarray(new)  # detached from PyTorch's autograd graph
        if tuple(new.shape) != tuple(old.shape) or new.dtype != old.dtype:
            convert = "; convert it with astype" if tuple(new.shape) == tuple(old.shape) else ""
            raise InputError(
                f"{self.kind} {name} expects {tuple(old.shape)} {old.dtype}, got "
                f"{tuple(new.shape)} {new.dtype}{convert}"
            )
        # A copy, since training changes arrays in place and `new` belongs to the caller.
        return namespace_of(new, name).asarray(new, copy=True)

    def layer(self, name: str) -> Layer:
        """Return the layer of an array."""
        return self._slots[name][0]

    def __delitem__(self, name: str) -> None:
        raise InputError(f"a network keeps all its arrays; {self.kind} {name} cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {tuple(x.shape)} {x.dtype}" for name, x in self.items())


class States(Parameters):
    """The state of a network's layers as one ordered mapping; assignments change the layers."""

    kind = "state"
    _attribute = "state"
