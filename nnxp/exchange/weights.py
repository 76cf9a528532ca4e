"""Weights: parameters and running statistics from and to the layouts of PyTorch and Keras.

Layers are matched in their order, and shapes are checked. PyTorch's weight of a Linear is (outputs,
inputs), and `Affine`'s is (inputs, outputs); the other arrays have the same layout. Keras has
channels last: kernels are (height, width, in_channels, out_channels), and the matrix after a
`Flatten` of images has its rows in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import to_numpy
from nnxp.checks import explained, require_count
from nnxp.errors import InputError, MissingExtraError
from nnxp.extras import import_package, pip
from nnxp.layers import (
    Affine,
    BatchNorm,
    Conv2D,
    Flatten,
    GlobalAveragePool2D,
    Layer,
    LayerNorm,
    Reshape,
    Standardize,
)
from nnxp.layers.noise import Noise
from nnxp.network import Residual, Sequential

Host = npt.NDArray[Any]

_TORCH = {
    Affine: {"W": "weight", "b": "bias"},
    Conv2D: {"W": "weight", "b": "bias"},
    BatchNorm: {
        "gamma": "weight", "beta": "bias",
        "running_mean": "running_mean", "running_var": "running_var",
    },
    LayerNorm: {"gamma": "weight", "beta": "bias"},
}  # fmt: skip
_KERAS = {
    Affine: {"W": "kernel", "b": "bias"},
    Conv2D: {"W": "kernel", "b": "bias"},
    BatchNorm: {
        "gamma": "gamma", "beta": "beta",
        "running_mean": "moving_mean", "running_var": "moving_variance",
    },
    LayerNorm: {"gamma": "gamma", "beta": "beta"},
}  # fmt: skip
# The numbers of an array that a module of the other library may leave out.
_ABSENT = {"b": 0.0, "beta": 0.0, "gamma": 1.0}
_COUNTER = "num_batches_tracked"  # PyTorch counts batches, nnxp doesn't


@dataclass
class _Slot:
    """An array of a layer: its name in the network, and its name and shape in the other library."""

    own: str
    name: str
    shape: tuple[int, ...]
    outwards: Callable[[Host], Host]
    inwards: Callable[[Host], Host]
    absent: float | None


@explained("nnxp.exchange.load_torch(network, model.state_dict())")
def load_torch(network: Sequential, state: Mapping[str, Any]) -> None:
    """Replace a network's parameters and running statistics with those of a PyTorch model.

    The modules with arrays must match the network's layers, in the same order: Linear for `Affine`,
    Conv2d, BatchNorm1d or BatchNorm2d, and LayerNorm. A module may have no bias. Numbers are
    converted to the network's dtype. A state has no settings, such as an epsilon: set them in the
    network.

    Parameters
    ----------
    network : Sequential
        The network to change; unchanged after an error.
    state : mapping of str to tensor or array
        ``model.state_dict()``.

    Raises
    ------
    InputError
        If the modules or shapes do not match the network, a number is not finite, or the network
        has a layer with arrays that has no counterpart in PyTorch.

    Examples
    --------
    >>> import numpy as np, nnxp
    >>> network = nnxp.Sequential(nnxp.Affine(2, 1, rng=0))
    >>> nnxp.exchange.load_torch(network, {"weight": np.array([[3, 4]]), "bias": np.array([5])})
    >>> network.parameters()["W1"]
    array([[3.],
           [4.]], dtype=float32)
    """
    _require_network(network, "load_torch")
    _load(network, _slots(network, _TORCH, None), _torch_groups(state))


@explained("nnxp.exchange.to_torch(network, model.state_dict())")
def to_torch(network: Sequential, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a network's parameters and running statistics for PyTorch's ``load_state_dict``.

    Parameters
    ----------
    network : Sequential
    like : mapping of str to tensor, optional
        The ``state_dict()`` of the model, which gives the names. By default, the names are those of
        an ``nn.Sequential`` with a module for each layer, such as ``0.weight``.

    Returns
    -------
    dict of str to tensor
        On the CPU, in the network's dtype.

    Raises
    ------
    InputError
        As in `load_torch`; also if the model has no bias and the network has one that is not 0.
    MissingExtraError
        If PyTorch is not installed.
    """
    _require_network(network, "to_torch")
    torch = _torch()
    slots = _slots(network, _TORCH, None)
    groups = _named_groups(network, slots) if like is None else _torch_groups(like)
    arrays = _arrays_like(network, slots, groups)
    tensors = {name: torch.tensor(x) for name, x in arrays.items()}
    if like is None:
        counters = [name for name in tensors if name.endswith(".running_var")]
        for name in counters:
            tensors[name.replace("running_var", _COUNTER)] = torch.tensor(0)
        return tensors
    return {n: tensors[n] if n in tensors else torch.as_tensor(x) for n, x in like.items()}


@explained("nnxp.exchange.load_keras(network, model.weights)")
def load_keras(
    network: Sequential, weights: Iterable[Any], *, shape: tuple[int, ...] | None = None
) -> None:
    """Replace a network's parameters and running statistics with those of a Keras model.

    The layers with weights must match the network's, in the same order: Dense for `Affine`, Conv2D,
    BatchNormalization and LayerNormalization. Images are channels last in Keras, so pass
    ``x.transpose(0, 2, 3, 1)`` to the Keras model. The weights have no settings: Keras' default
    epsilon is 1e-3, and its momentum 0.99 corresponds to 0.01 in nnxp.

    Parameters
    ----------
    network : Sequential
        The network to change; unchanged after an error.
    weights : list of keras.Variable
        ``model.weights``, whose names are read.
    shape : tuple of int, optional
        The shape of one example in nnxp, such as (3, 32, 32); needed for a network that begins with
        `Flatten`, unless it was trained.

    Raises
    ------
    InputError
        If the layers or shapes do not match the network, a number is not finite, or the network has
        a layer with arrays that has no counterpart in Keras.
    """
    _require_network(network, "load_keras")
    _load(network, _slots(network, _KERAS, _orders(network, shape)), _keras_groups(weights))


@explained("nnxp.exchange.to_keras(network, model.weights)")
def to_keras(
    network: Sequential,
    like: Iterable[Any] | None = None,
    *,
    shape: tuple[int, ...] | None = None,
) -> list[npt.NDArray[Any]]:
    """Return a network's parameters and running statistics for Keras' ``model.set_weights``.

    Parameters
    ----------
    network : Sequential
    like : list of keras.Variable, optional
        ``model.weights``; needed if layers of the model have no bias or another order of weights.
    shape : tuple of int, optional
        As in `load_keras`.

    Returns
    -------
    list of NumPy array
        In the order of ``model.weights``, in the network's dtype.

    Raises
    ------
    InputError
        As in `load_keras`; also if the model has no bias and the network has one that is not 0.
    """
    _require_network(network, "to_keras")
    slots = _slots(network, _KERAS, _orders(network, shape))
    groups = _named_groups(network, slots) if like is None else _keras_groups(like)
    return list(_arrays_like(network, slots, groups).values())


def _require_network(network: object, caller: str) -> None:
    if not isinstance(network, Sequential):
        raise InputError(f"{caller} expects a network, got {network!r:.80}")


def _torch() -> ModuleType:
    try:
        return import_package("torch")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed; {pip('install', 'torch')}", name=error.name
        ) from None


_Groups = dict[str, dict[str, tuple[str, Any]]]
"""For each module, the whole name and the array, by the array's name in the module."""


def _torch_groups(state: object) -> _Groups:
    """Return the arrays of a state by module."""
    if not isinstance(state, Mapping):
        raise InputError(f"a state is a mapping, model.state_dict(), got {state!r:.80}")
    groups: _Groups = {}
    for whole, x in state.items():
        module, _, name = str(whole).rpartition(".")
        if name != _COUNTER:
            groups.setdefault(module, {})[name] = whole, x
    return groups


def _keras_groups(weights: Iterable[Any]) -> _Groups:
    """Return the arrays of Keras' variables by layer."""
    groups: _Groups = {}
    for x in weights:
        if not hasattr(x, "path"):
            raise InputError(f"the weights are variables of Keras, model.weights, got {x!r:.80}")
        layer, _, name = x.path.rpartition("/")
        # The variable's value: NumPy warns when it converts the variable itself.
        groups.setdefault(layer, {})[name] = x.path, x.value
    return groups


def _named_groups(network: Sequential, slots: list[tuple[Layer, list[_Slot]]]) -> _Groups:
    """Return the names of an ``nn.Sequential`` with a module for each layer."""
    paths = dict(_paths(network, ""))
    return {
        paths[id(layer)]: {s.name: (f"{paths[id(layer)]}.{s.name}", None) for s in own}
        for layer, own in slots
    }


def _paths(network: Sequential, prefix: str) -> list[tuple[int, str]]:
    found = []
    for i, layer in enumerate(network.layers):
        found.append((id(layer), f"{prefix}{i}"))
        if isinstance(layer, Sequential):
            found += _paths(layer, f"{prefix}{i}.")
    return found


def _slots(
    network: Sequential,
    names: Mapping[type[Layer], Mapping[str, str]],
    orders: Mapping[int, int] | None,
) -> list[tuple[Layer, list[_Slot]]]:
    """Return the layers with arrays, and each array's name in the other library.

    `orders` is the result of `_orders` for Keras, and None for PyTorch.
    """
    parameters, states = network.arrays()
    own_names: dict[tuple[int, str], str] = {}
    for arrays, kind in ((parameters, "params"), (states, "state")):
        keys = [(id(x), key) for x in network.leaves() for key in getattr(x, kind)]
        own_names |= dict(zip(keys, arrays, strict=True))
    found = []
    for layer in network.leaves():
        if isinstance(layer, Noise) or not (layer.params or layer.state):
            continue
        table = next((known for kind, known in names.items() if isinstance(layer, kind)), None)
        if table is None or set(table) != {*layer.params, *layer.state}:
            remedy = ""
            if isinstance(layer, Standardize):
                remedy = "; standardize the inputs before, and use nnxp.Sequential(network[1:])"
            raise InputError(
                f"{layer!r} has arrays without a counterpart in the other library{remedy}"
            )
        own = []
        for key, name in table.items():
            x = layer.params[key] if key in layer.params else layer.state[key]
            outwards, inwards = _conversion(layer, key, orders)
            shape = outwards(np.broadcast_to(np.float32(0), tuple(x.shape))).shape
            own_name = own_names[id(layer), key]
            own.append(_Slot(own_name, name, shape, outwards, inwards, _ABSENT.get(key)))
        found.append((layer, own))
    return found


def _conversion(
    layer: Layer, key: str, orders: Mapping[int, int] | None
) -> tuple[Callable[[Host], Host], Callable[[Host], Host]]:
    """Return functions that convert nnxp's array to the other library's layout, and back."""
    if orders is None:
        if isinstance(layer, Affine) and key == "W":
            return np.transpose, np.transpose
        return _unchanged, _unchanged
    if isinstance(layer, Conv2D) and key == "W":
        return lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
    if isinstance(layer, LayerNorm) and len(layer.params[key].shape) == 3:
        return lambda x: x.transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)
    channels = orders.get(id(layer), 1)
    if channels == 1 or (isinstance(layer, Affine) and key != "W"):
        return _unchanged, _unchanged

    def swap(x: Host, first: int) -> Host:
        parts = x.reshape(first, -1, *x.shape[1:])
        return parts.swapaxes(0, 1).reshape(x.shape)

    return lambda x: swap(x, channels), lambda x: swap(x, len(x) // channels)


def _unchanged(x: Host) -> Host:
    return x


def _orders(network: Sequential, shape: tuple[int, ...] | None) -> dict[int, int]:
    """Return the number of channels for each layer whose inputs are flattened images.

    A flattened image has the pixels of each channel in a row in nnxp, and the channels of each
    pixel in a row in Keras. With one channel, both orders are the same.
    """
    if shape is None and network.data_format is not None:
        shape = network.data_format.shape
    # For flattened images, `channels` is the number of channels before the flattening.
    images, channels = False, 1
    known = shape is not None
    if shape is not None and len(shape) == 3:
        images, channels = True, require_count("each number of shape", shape[0])
    orders: dict[int, int] = {}
    pending: list[Layer] = list(network.layers)
    while pending:
        layer = pending.pop(0)
        if isinstance(layer, Residual) and not images and channels > 1:
            raise InputError(
                f"{layer!r} adds rows of flattened images, whose order differs in Keras; put an "
                "Affine before it"
            )
        if isinstance(layer, Sequential):
            pending[:0] = layer.layers
        elif isinstance(layer, Conv2D):
            images, channels, known = True, layer.out_channels, True
        elif isinstance(layer, Affine):
            orders[id(layer)] = channels
            images, channels, known = False, 1, True
        elif isinstance(layer, GlobalAveragePool2D):
            images, channels, known = False, 1, True
        elif isinstance(layer, Flatten) and not known:
            raise InputError(
                "the order of the rows after Flatten depends on the images; give the shape of one "
                "example, such as shape=(3, 32, 32)"
            )
        elif isinstance(layer, Flatten):
            images = False
        elif isinstance(layer, Reshape):
            if channels > 1 or (len(layer.shape) == 3 and layer.shape[0] != 1):
                raise InputError(
                    f"{layer!r} reorders the numbers of images differently in Keras; nnxp cannot "
                    "convert the weights"
                )
            images, known = len(layer.shape) == 3, True
        elif isinstance(layer, BatchNorm) and not images:
            orders[id(layer)] = channels
        elif isinstance(layer, LayerNorm):
            axes = len(layer.params["gamma"].shape)
            if images and axes != 3:
                raise InputError(f"{layer!r} normalizes images over other axes than Keras")
            orders[id(layer)] = channels
    return orders


def _matched(
    slots: list[tuple[Layer, list[_Slot]]], groups: _Groups
) -> list[tuple[Layer, list[_Slot], str, dict[str, tuple[str, Any]]]]:
    """Return each layer with its module, after a check of names and shapes."""
    if len(slots) != len(groups):
        raise InputError(
            f"the network has {len(slots)} layers with arrays, "
            f"{', '.join(repr(layer) for layer, _ in slots):.200}; the other model has "
            f"{len(groups)}: {', '.join(groups):.200}"
        )
    found = []
    for (layer, own), (module, entries) in zip(slots, groups.items(), strict=True):
        unknown = entries.keys() - {s.name for s in own}
        missing = {s.name for s in own if s.name not in entries and s.absent is None}
        if unknown or missing:
            wanted = ", ".join(s.name for s in own)
            raise InputError(
                f"{layer!r} takes {wanted}; {module!r} has {', '.join(entries)}: give the arrays "
                "in the order of the network's layers"
            )
        for slot in own:
            _, x = entries.get(slot.name, ("", None))
            if x is not None and tuple(x.shape) != slot.shape:
                raise InputError(
                    f"{layer!r} takes {slot.name} of shape {slot.shape}, and {module!r} has shape "
                    f"{tuple(x.shape)}"
                )
        found.append((layer, own, module, entries))
    return found


def _load(network: Sequential, slots: list[tuple[Layer, list[_Slot]]], groups: _Groups) -> None:
    """Replace the network's arrays with those of a model; after an error, none is changed."""
    parameters, states = network.arrays()
    new: dict[str, Any] = {}
    for _, own, _, entries in _matched(slots, groups):
        for slot in own:
            if slot.name in entries:
                whole, x = entries[slot.name]
                host = slot.inwards(to_numpy(x, whole))
                if not np.isfinite(host).all():
                    raise InputError(f"{whole} holds a number that is not finite")
            else:
                like = slot.inwards(np.broadcast_to(np.float32(0), slot.shape))
                host = np.full(like.shape, slot.absent)
            new[slot.own] = np.ascontiguousarray(host, network.dtype)
    network.load_arrays(
        {name: new[name] for name in parameters},
        {name: new.get(name, x) for name, x in states.items()},
    )


def _arrays_like(
    network: Sequential, slots: list[tuple[Layer, list[_Slot]]], groups: _Groups
) -> dict[str, Host]:
    """Return the network's arrays by the names of a model, in the model's order."""
    parameters, states = network.arrays()
    arrays: dict[str, Host] = {}
    for layer, own, module, entries in _matched(slots, groups):
        by_name = {s.name: s for s in own}
        for slot in own:
            x = parameters[slot.own] if slot.own in parameters else states[slot.own]
            host = to_numpy(x, slot.own)
            if slot.name not in entries and (host != slot.absent).any():
                raise InputError(
                    f"{module!r} has no {slot.name}, and {layer!r} has one that is not "
                    f"{slot.absent:g}"
                )
        for name, (whole, _) in entries.items():
            slot = by_name[name]
            x = parameters[slot.own] if slot.own in parameters else states[slot.own]
            arrays[whole] = np.array(slot.outwards(to_numpy(x, slot.own)), order="C")
    return arrays
