"""Nodes: addition and multiplication of two inputs, for computational graphs.

Inputs are arrays or plain numbers, so a graph can be checked by hand:

>>> from nnxp import Multiply
>>> price = Multiply()
>>> price.forward(100, 2)
200
>>> price.backward(1.1)
(2.2, 110.00000000000001)
"""

from __future__ import annotations

from numbers import Real
from typing import Any

from nnxp.arrays import device_of, namespace_of, on_different_devices
from nnxp.errors import CallOrderError, DeviceError, InputError


class _Node:
    """A node with two inputs of the same shape, which it saves for one backward."""

    _inputs: tuple[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _save(self, x: Any, y: Any) -> None:
        self._require_alike(x, y, "expects two inputs")
        self._inputs = x, y

    def _take_saved(self, dz: Any) -> tuple[Any, Any]:
        if self._inputs is None:
            raise CallOrderError(
                f"{self!r}.backward needs forward first; each forward allows one backward"
            )
        self._require_alike(self._inputs[0], dz, "expects inputs and a gradient")
        inputs, self._inputs = self._inputs, None
        return inputs

    def _require_alike(self, x: Any, y: Any, expects: str) -> None:
        for value in (x, y):
            if not isinstance(value, Real):
                namespace_of(value, self)
        first, second = getattr(x, "shape", ()), getattr(y, "shape", ())
        if first != second:
            raise InputError(f"{self!r} {expects} of one shape, got {first} and {second}")
        first, second = device_of(x), device_of(y)
        if on_different_devices(first, second):
            raise DeviceError(
                f"{self!r} {expects} on one device, got {first} and {second}; copy one to the "
                "other's device with device.asarray"
            )


class Add(_Node):
    """Addition node: ``z = x + y``."""

    def forward(self, x: Any, y: Any) -> Any:
        """Return ``x + y``, for two numbers or two arrays of the same shape."""
        self._save(x, y)
        return x + y

    def backward(self, dz: Any) -> tuple[Any, Any]:
        """Return the gradients of both inputs, ``(dz, dz)``."""
        self._take_saved(dz)
        return dz, dz


class Multiply(_Node):
    """Multiplication node: ``z = x * y``."""

    def forward(self, x: Any, y: Any) -> Any:
        """Return ``x * y``, for two numbers or two arrays of the same shape."""
        self._save(x, y)
        return x * y

    def backward(self, dz: Any) -> tuple[Any, Any]:
        """Return the gradients of both inputs, ``(dz * y, dz * x)``."""
        x, y = self._take_saved(dz)
        return dz * y, dz * x
