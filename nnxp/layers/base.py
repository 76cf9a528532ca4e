"""Layer: the base class of all layers, with parameters, gradients, state and saved values."""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Collection
from typing import Any, ClassVar, NamedTuple, Self

from nnxp.arrays import (
    Array,
    DType,
    conversion,
    describe,
    device_of,
    namespace_of,
    on_different_devices,
)
from nnxp.devices import Device, open_device, require_dtype
from nnxp.errors import CallOrderError, DeviceError, InputError
from nnxp.parts import Part, definition


class _Saved(NamedTuple):
    """The outputs' shape, dtype and device, and the values that backward needs."""

    shape: tuple[int, ...]
    dtype: DType
    device: Any
    values: Any


class Work(NamedTuple):
    """The memory and computation that a forward needs for one example.

    Attributes
    ----------
    numbers : int
        The number of elements of the largest array.
    multiplications : int
        The number of multiplications of the largest matrix product.
    """

    numbers: int
    multiplications: int


class Layer(Part):
    """Base class of all layers.

    A subclass defines `forward` and `backward`. A training forward ends with
    ``self.save_for_backward(y, …)``; backward begins with ``self.saved(dy)``, which returns the
    saved values once. The values are not copied: do not change inputs and outputs before backward.
    `nnxp.testing.check_layer` checks your own layer.

    Attributes
    ----------
    params, grads : dict of str to array
        Parameters and, after backward, their gradients, under the same names.
    state : dict of str to array
        Arrays that a training forward changes and that have no gradient, such as a running mean.
        They are saved, copied and captured like parameters. A forward replaces an entry or changes
        it in place.
    trainable : bool
        False freezes the layer: `Trainer` computes no gradient of its parameters and does not
        update them.
    device : Device or None
        The device of parameters and state; None for a layer without any.
    dtype : str or None
        The dtype of parameters and state; None for a layer without any. A layer with parameters or
        state sets both.
    min_batch_size : int
        The smallest batch that the layer can train on.

    For training on several processes, a layer whose forward depends on the index of a row has two
    more attributes, as `Dropout` does: ``row_offset``, the index of the batch's first row, and
    ``state["counter"]``, the number of batches. A layer with batch statistics sums them with
    ``over_ranks`` if that is not None, as `BatchNorm` does.
    """

    min_batch_size: ClassVar[int] = 1
    changing: ClassVar[frozenset[str]] = frozenset({"params", "grads", "state", "_saved"})

    params: dict[str, Array]
    grads: dict[str, Array]
    state: dict[str, Array]
    _device: Device | None = None
    _dtype: str | None = None
    _trainable: bool = True
    _saved: _Saved | None = None

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Make the dictionaries, even if a subclass's ``__init__`` does not call ``super()``."""
        layer = super().__new__(cls, *args, **settings)
        layer.params, layer.grads, layer.state = {}, {}, {}
        return layer

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in vars(self).items() if name != "_saved"}

    @property
    def device(self) -> Device | None:
        """The device of parameters and state; None for a layer without any."""
        return self._device

    @device.setter
    def device(self, device: Device | str) -> None:
        self._device = open_device(device)

    @property
    def dtype(self) -> str | None:
        """The name of the dtype of parameters and state; None for a layer without any."""
        return self._dtype

    @dtype.setter
    def dtype(self, dtype: str) -> None:
        self._dtype = require_dtype(dtype)

    @property
    def trainable(self) -> bool:
        """Whether training changes the parameters."""
        return self._trainable

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        self._trainable = bool(trainable)

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the outputs for inputs `x`; if `training`, save the values for backward."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def backward(self, dy: Array) -> Array:
        """Return the gradient of the inputs, given `dy`, the gradient of the outputs.

        The gradients of the parameters are stored in `grads`. Each training forward allows one
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
        raise NotImplementedError(f"{type(self).__name__} does not define backward")

    def backward_parameters(self, dy: Array) -> None:
        """Compute the gradients of the parameters only, for the first layer of a network."""
        self.backward(dy)

    def skips_inputs(self) -> bool:
        """Return whether `backward_parameters` may be called instead of `backward`.

        It may not if only `backward` is overridden, in a subclass or on the object.
        """
        return definition(self, "backward_parameters") <= definition(self, "backward")

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the shape of one output example for that of one input example; None if unknown."""
        return shape

    def work(self, shape: tuple[int, ...] | None) -> Work:
        """Return the memory and computation of a forward for one example of this shape.

        It determines the batch size of evaluations and the number of threads. By default, the
        largest array is the inputs or the outputs, and each parameter is used once.
        """
        shapes = [x for x in (shape, self.output_shape(shape)) if x is not None]
        return Work(
            max(map(math.prod, shapes), default=1),
            max((math.prod(x.shape) for x in self.params.values()), default=0),
        )

    def to(self, device: Device | str, *, dtype: DType | None = None) -> Self:
        """Return a copy of the layer on another device, or in another dtype.

        Parameters
        ----------
        device : Device or str
        dtype : str or dtype, optional
            ``"float32"`` or ``"float64"``; by default the layer's. Integer state keeps its dtype.

        Returns
        -------
        Layer
            A layer of the same class, with copies of parameters and state.
        """
        copied = copy.copy(self)
        copied.params, copied.grads, copied.state = {}, {}, {}
        own = self.device
        if own is not None:
            target = open_device(device)
            copied._device = target
            copied._dtype = self.dtype if dtype is None else require_dtype(dtype)

            def copy_array(x: Array) -> Array:
                source = x if target == own else own.to_host(x)
                floating = own.xp.isdtype(x.dtype, "real floating")
                moved = target.asarray(source, dtype=copied._dtype if floating else None)
                return target.xp.asarray(moved, copy=True)

            copied.params = {name: copy_array(x) for name, x in self.params.items()}
            copied.state = {name: copy_array(x) for name, x in self.state.items()}
        return copied

    def _require_here(self, x: Array) -> None:
        """Raise a `DeviceError` unless `x` is on the layer's device."""
        if self._device is not None:
            self._device.require(x, self)

    def _require_dtype(self, x: Array, own: Array) -> None:
        """Raise an `InputError` unless `x` has the dtype of the layer's `own` array."""
        if x.dtype != own.dtype:
            raise InputError(
                f"{self!r} computes in {self.dtype}, got inputs of {x.dtype}; convert with "
                f"{conversion(x, str(self.dtype))}"
            )

    def leaves(self) -> list[Layer]:
        """Return the layers without sublayers: this layer, or all leaf layers of a network."""
        return [self]

    def discard_saved(self) -> None:
        """Free the values that a training forward saved, if no backward follows."""
        for layer in self.leaves():
            layer._saved = None

    def save_for_backward(self, y: Array, values: Any = None) -> None:
        """End a training forward: save `values` for the backward of the outputs `y`."""
        self._saved = _Saved(y.shape, y.dtype, device_of(y), values)

    def saved(self, dy: Array) -> Any:
        """Begin a backward: check `dy` against the outputs, and return the saved values once."""
        if self._saved is None:
            raise CallOrderError(
                f"{self!r}.backward needs forward(x, training=True) first; "
                "each such forward allows one backward"
            )
        shape, dtype, device, values = self._saved
        namespace_of(dy, f"{self!r}.backward")
        # Check the device first: comparing dtypes of two libraries may raise an error.
        if on_different_devices(device_of(dy), device):
            raise DeviceError(
                f"{self!r}.backward expects a gradient on {device}, where its outputs are, got "
                f"{describe(dy)}; move it with the network's device.asarray(dy)"
            )
        if dy.shape != shape or dy.dtype != dtype:
            raise InputError(
                f"{self!r}.backward expects a gradient of the outputs' shape {shape} and dtype "
                f"{dtype}, got {describe(dy)}"
            )
        self._saved = None
        return values


def require_no_layers(part: Part, known: Collection[Layer] = ()) -> None:
    """Raise an `InputError` if a part that is not a network has a layer as an attribute.

    The layer may also be in a container. Its parameters would be neither trained nor saved, unless
    it is one of the network's layers, `known`.
    """
    pending = list(vars(part).values())
    seen: set[int] = set()
    while pending:
        x = pending.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, Layer) and not any(x is layer for layer in known):
            raise InputError(
                f"{part!r} has the layer {x!r} as an attribute, which would be neither trained nor "
                "saved; put it into the network: a Sequential, or a subclass of it"
            )
        if isinstance(x, (list, tuple, set, frozenset, deque)):
            pending += x
        elif isinstance(x, dict):
            pending += x.values()
