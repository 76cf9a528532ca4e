"""Network: layers in a row, forward from first to last, backward from last to first."""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array, DType, namespace_of
from nnxp.checks import (
    explained,
    missing_attribute,
    object_remedy,
    optional_import,
    require_count,
    unknown_name,
)
from nnxp.data_format import DataFormat, prepared_examples, require_examples
from nnxp.devices import Device, open_device
from nnxp.errors import ArgumentError, CallOrderError, DeviceError, InputError
from nnxp.layers import Layer, Softmax
from nnxp.layers.activations import sigmoid
from nnxp.layers.base import Work, require_no_layers
from nnxp.parameters import Parameters, Slots, States
from nnxp.parts import (
    Place,
    constructor_parameters,
    decode_settings,
    encode_setting,
    settings_of,
)
from nnxp.table import Table

# Methods of networks in other libraries, and the nnxp code with the same effect.
_ELSEWHERE = {
    "add": "nnxp.Sequential([*network, layer])",
    "append": "nnxp.Sequential([*network, layer])",
    "compile": "trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam())",
    "fit": "nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam()).fit(dataset, epochs=5, "
    "batch_size=100, rng=0)",
    "evaluate": "trainer.evaluate(dataset)",
    "eval": "network.forward(x)",
    "train": "network.forward(x, training=True)",
    "get_weights": "network.parameters()",
    "weights": "network.parameters()",
    "state_dict": "network.parameters()",
    "load_state_dict": "network.load_parameters(parameters)",
}

_MAX_NUMBERS = 1 << 23  # numbers of an array in predictions and evaluations: 32 MiB of float32


class Sequential(Layer):
    """Layers in a row; itself a layer, so that networks nest.

    Parameters
    ----------
    layers : Layer or iterable of Layer
        From input to output: a list, or one argument for each layer. Each object may occur once
        only, since it saves what its own backward needs.

    Attributes
    ----------
    layers : tuple of Layer
        They can be assigned; the new layers are checked.
    device : Device or None
        The device of the parameters and the state; None for a network without them.
    dtype : str or None
        The name of the dtype of parameters and inputs; None for a network without parameters.
    data_format : DataFormat or None
        The format of the data that `Trainer.fit` trained the network on; None before training.

    Examples
    --------
    >>> import numpy as np
    >>> import nnxp
    >>> rng = np.random.default_rng(0)
    >>> block = nnxp.Sequential([nnxp.Affine(8, 8, rng=rng), nnxp.ReLU()])
    >>> network = nnxp.Sequential([nnxp.Affine(4, 8, rng=rng), block, nnxp.Affine(8, 2, rng=rng)])
    >>> list(network.parameters())
    ['W1', 'b1', 'sequential1.W1', 'sequential1.b1', 'W2', 'b2']
    >>> network[1]
    Sequential(Affine(8, 8), ReLU())
    """

    changing: ClassVar[frozenset[str]] = Layer.changing | {"data_format"}
    data_format: DataFormat | None = None
    _identity: object
    _layers: tuple[Layer, ...] = ()

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Create the object with its identity, by which an optimizer recognizes the network."""
        network = super().__new__(cls, *args, **settings)
        network._identity = object()
        return network

    if not TYPE_CHECKING:  # it would give type checkers every name

        def __getattr__(self, name: str) -> Any:
            return missing_attribute(self, name, _ELSEWHERE)

    def __getstate__(self) -> dict[str, Any]:
        # A copy is another network, with an identity of its own.
        return {name: x for name, x in super().__getstate__().items() if name != "_identity"}

    def __init__(self, layers: Layer | Iterable[Layer], *more: Layer) -> None:
        self.layers = (layers, *more) if isinstance(layers, Layer) else layers
        if more and not isinstance(layers, Layer):
            raise InputError(
                f"{type(self).__name__} expects one list of layers, or one argument for each "
                f"layer, got a list and {more[0]!r}"
            )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers from input to output."""
        return self._layers

    @layers.setter
    def layers(self, layers: Iterable[Layer]) -> None:
        given: object = layers
        if isinstance(given, Layer) or not isinstance(given, Iterable):
            raise InputError(f"the layers of a network must be a list, got {given!r}")
        layers = tuple(layers)
        if not layers:
            raise InputError("Sequential expects at least one layer, got none")
        positions: dict[int, int] = {}
        shape: tuple[int, ...] | None = None
        for position, layer in enumerate(layers, start=1):
            if not isinstance(layer, Layer):
                raise InputError(
                    f"Sequential expects layers, got {layer!r} at position {position}"
                    + object_remedy(layer)
                )
            for each in _within(layer):
                if each is self:
                    raise InputError(f"a {type(self).__name__} cannot have itself as a layer")
                if positions.setdefault(id(each), position) != position:
                    raise InputError(
                        f"the same {each!r} object is at positions {positions[id(each)]} and "
                        f"{position}; make one object for each position"
                    )
            shape = layer.output_shape(shape)
        _require_trainable([each for layer in layers for each in _within(layer)])
        self._layers = layers

    def _owners(self) -> Iterator[Layer]:
        """Yield the layers that have parameters or state."""
        return (x for layer in self.layers for x in layer.leaves() if x.params or x.state)

    @property
    def device(self) -> Device | None:
        """The device of parameters and state; None for a network without them."""
        return next((x.device for x in self._owners()), None)

    @device.setter
    def device(self, device: Device | str) -> None:
        raise InputError(f"a network's device cannot be set; use network.to({str(device)!r})")

    @property
    def dtype(self) -> str | None:
        """The name of the dtype of parameters and state; None for a network without them."""
        return next((x.dtype for x in self._owners()), None)

    @dtype.setter
    def dtype(self, dtype: str) -> None:
        raise InputError(
            f"a network's dtype cannot be set; use network.to(network.device, dtype={dtype!r})"
        )

    def all_layers(self) -> list[Layer]:
        """Return all layers within the network, including inner networks."""
        return list(_within(self))[1:]

    def require_trainable(self) -> None:
        """Raise unless the network, whose layers may have changed, can be trained and saved.

        Raises
        ------
        InputError
            If a layer occurs twice, a layer that is not a network has a layer, a network has arrays
            of its own, or dtypes differ.
        DeviceError
            If devices differ.
        """
        self._slots()
        _require_trainable(list(_within(self)))

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Layer:
        given: object = index
        if isinstance(given, str):
            raise ArgumentError(
                f"a network's layers have numbers, got {index!r}; a parameter is "
                f"network.parameters()[{index!r}]"
            )
        return self.layers[index]

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __repr__(self) -> str:
        names = constructor_parameters(type(self)).keys() & vars(self).keys()
        settings = [f"{name}={vars(self)[name]!r}" for name in sorted(names)]
        return f"{type(self).__name__}({', '.join([*map(repr, self.layers), *settings])})"

    def config(self) -> dict[str, Any]:
        """Return the layers, and a subclass's other settings, as JSON."""
        return {"layers": encode_setting(self.layers, "layers")} | super().config()

    @classmethod
    def build(cls, config: Mapping[str, Any], place: Place) -> Self:
        """Return a network of the described layers.

        A subclass whose ``__init__`` makes the layers itself is made without it: the settings are
        set as attributes.
        """
        settings = settings_of(cls)
        if "layers" in settings:
            sizes = replace(place)
            network = super().build(config, place)
            own = next(kind for kind in cls.__mro__ if "__init__" in vars(kind))
            if own is not Sequential:  # its __init__ may add layers that are already there
                network.layers = decode_settings({"layers": config["layers"]}, sizes)["layers"]
            return network
        if unknown := config.keys() - settings.keys() - {"layers"}:
            raise InputError(f"{cls.__name__} has no settings {', '.join(sorted(unknown))}")
        network = cls.__new__(cls)
        for name, value in decode_settings(config, place).items():
            setattr(network, name, value)
        return network

    @property
    def trainable(self) -> bool:
        """Whether training changes any layer; assigning it freezes or unfreezes all layers."""
        return any(layer.trainable for layer in self.layers)

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        for layer in self.layers:
            layer.trainable = trainable

    def leaves(self) -> list[Layer]:
        """Return all layers without sublayers, from input to output."""
        return [leaf for layer in self.layers for leaf in layer.leaves()]

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return the outputs (scores) for inputs `x`.

        Parameters
        ----------
        x : (batch, inputs) array
            On the network's device and in its dtype.
        training : bool, optional
            Whether layers save the arrays that `backward` needs, and update their state.

        Returns
        -------
        (batch, outputs) array
        """
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, dy: Array) -> Array:
        """Return the gradient at the inputs, given the gradient `dy` at the outputs.

        Afterwards, `gradients` returns the gradients of all parameters.
        """
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        return dy

    def backward_parameters(self, dy: Array) -> None:
        """Compute only the gradients of the parameters; training needs no others.

        The first layer with trainable parameters skips the gradient at its inputs, a third of its
        work, and layers before it are skipped.
        """
        learning = [any(x.params and x.trainable for x in layer.leaves()) for layer in self.layers]
        first = learning.index(True) if any(learning) else len(learning)
        for layer in reversed(self.layers[first + 1 :]):
            dy = layer.backward(dy)
        if first < len(learning):
            layer = self.layers[first]
            skips = layer.skips_inputs()
            (layer.backward_parameters if skips else layer.backward)(dy)
        for layer in self.layers[:first]:
            layer.discard_saved()

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the shape of one example's output for the shape of its input; None if unknown."""
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def work(self, shape: tuple[int, ...] | None) -> Work:
        """Return the largest array and the largest product of all layers for one example."""
        works = [Work(1, 0)]
        with contextlib.suppress(InputError):  # forward raises the error of a wrong shape
            for layer in self.layers:
                works.append(layer.work(shape))
                shape = layer.output_shape(shape)
        return Work(max(x.numbers for x in works), max(x.multiplications for x in works))

    def examples_at_once(self, shape: tuple[int, ...]) -> int:
        """Return how many examples of a shape to compute at once to limit the memory.

        The largest array then has at most 2**23 numbers, 32 MiB in float32.
        """
        return max(1, _MAX_NUMBERS // self.work(shape).numbers)

    @explained('network.to("cpu")')
    def to(self, device: Device | str, *, dtype: DType | None = None) -> Self:
        """Return a copy of the network on another device, or in another dtype.

        Parameters
        ----------
        device : Device or str
            As in `nnxp.device`.
        dtype : str or dtype, optional
            ``"float32"`` or ``"float64"``; by default the network's dtype.

        Returns
        -------
        Sequential
            A network of the same class.

        Examples
        --------
        >>> import numpy as np
        >>> import nnxp
        >>> network = nnxp.mlp([4, 3, 2], rng=np.random.default_rng(0))
        >>> network.to("strict:device1", dtype="float64").parameters()["b1"].device
        array_api_strict.Device('device1')
        """
        opened = open_device(device)
        copied = copy.copy(self)
        copied.params, copied.grads, copied.state = {}, {}, {}
        copied.layers = [layer.to(opened, dtype=dtype) for layer in self.layers]
        # A subclass may have attributes that are layers of the network.
        moved = {id(x): y for x, y in zip(_within(self), _within(copied), strict=True)}
        aliases = {n: moved[id(x)] for n, x in vars(self).items() if id(x) in moved}
        vars(copied).update(aliases)
        return copied

    @explained("network.predict(x, batch_size=100)")
    def predict(self, x: Any, *, batch_size: int | None = None) -> Array:
        """Return the outputs (scores) for inputs in the format of the training data.

        The inputs are moved to the network's device, converted to its dtype and divided by the
        training data's scale (see `DataFormat.scale_of`). A warning is given if the numbers are of
        another magnitude than in training. Several threads may predict at once, also while another
        one trains.

        Parameters
        ----------
        x : (batch, inputs) array or DataFrame
            On the host or on the network's device.
        batch_size : int, optional
            How many examples to compute at a time, which limits the memory; by default the result
            of `examples_at_once`.

        Returns
        -------
        (batch, outputs) array
            On the network's device.

        Raises
        ------
        InputError
            If there are no examples, they have another shape, or a number is not finite.
        DeviceError
            If `x` is on another device.
        """
        known, owner = self.data_format, next(self._owners(), None)
        x = require_examples(x, known)
        device, dtype = (None, None) if owner is None else (owner.device, owner.dtype)
        if device is None or dtype is None:  # a network without arrays accepts any
            return self.forward(x)
        if batch_size is not None:
            size = require_count("batch_size", batch_size)
        elif x.shape[0] == 1:
            size = 1
        else:
            size = self.examples_at_once(tuple(x.shape[1:]))
        parts = [self.forward(part) for part in prepared_examples(x, size, known, device, dtype)]
        return namespace_of(parts[0], self).concat(parts) if len(parts) > 1 else parts[0]

    @explained("network.compiled(x)")
    def compiled(self, x: Any) -> Callable[[Any], npt.NDArray[Any]]:
        """Return a function that predicts as `predict` does now, as machine code.

        It needs the extra ``fast`` and a network on NumPy, and is for predictions of few rows: a
        call takes some microseconds. Compiling takes up to some seconds, or some milliseconds if
        the code is in the cache. Later changes of the network do not change the function. Threads
        may call it at once; it computes for one after the other.

        Parameters
        ----------
        x : (batch, inputs) array or DataFrame
            Inputs of the shape and dtype to predict; their values do not matter.

        Returns
        -------
        callable
            Takes inputs of this shape and dtype, and returns a new (batch, outputs) NumPy array.
            It raises and warns as `predict` does, and raises an `InputError` for another shape.

        Raises
        ------
        InputError
            If the network is not on NumPy or has layers that are not nnxp's, or `x` is wrong.
        MissingExtraError
            If llvmlite is not installed.

        Examples
        --------
        >>> import numpy as np
        >>> import nnxp
        >>> network = nnxp.mlp([4, 8, 3], rng=0)
        >>> predict = network.compiled(np.zeros((1, 4), "float32"))
        >>> predict(np.ones((1, 4), "float32")).shape
        (1, 3)
        """
        if self.device is None or not self.device.is_host:
            place = "has no parameters" if self.device is None else f"is on {self.device.spec}"
            raise InputError(
                f"compiled takes a network with parameters on NumPy, and this one {place}; "
                "call network.predict"
            )
        optional_import("llvmlite", "fast")
        compiled = importlib.import_module("nnxp.capture.predicting").CompiledPredictions
        return cast("Callable[[Any], npt.NDArray[Any]]", compiled(self, x))

    @explained("network.predict_proba(x, batch_size=100)")
    def predict_proba(self, x: Any, *, batch_size: int | None = None) -> Array:
        """Return the probabilities of the classes: softmax or sigmoid of the scores.

        The loss of the training decides which of them.

        Parameters
        ----------
        x, batch_size
            As in `predict`.

        Returns
        -------
        (batch, outputs) array
            On the network's device.

        Raises
        ------
        InputError
            If the network was not trained with a loss for classes.
        """
        probabilities = self._require_classes("predict_proba").probabilities
        scores = self.predict(x, batch_size=batch_size)
        if probabilities == "softmax":
            return Softmax().forward(scores)
        return sigmoid(namespace_of(scores, self), scores)

    @explained("network.predict_classes(x, batch_size=100)")
    def predict_classes(self, x: Any, *, batch_size: int | None = None) -> npt.NDArray[Any]:
        """Return the predicted class of each example, as a label of the training data.

        Parameters
        ----------
        x, batch_size
            As in `predict`.

        Returns
        -------
        (batch,) NumPy array
            Class numbers, or the labels of `Dataset.classes`. For a loss of several labels at once,
            (batch, outputs) numbers 0 and 1.

        Raises
        ------
        InputError
            If the network was not trained with a loss for classes.
        """
        known = self._require_classes("predict_classes")
        scores = self.predict(x, batch_size=batch_size)
        host = np.asarray(scores if self.device is None else self.device.to_host(scores))
        return known.labels_of(host)

    @explained('network.save("network.safetensors")')
    def save(self, path: str | PathLike[str]) -> None:
        """Write the network to one file for predictions; `nnxp.load_network` reads it.

        The file has the parameters, the state and `data_format`. It is written completely or not at
        all.

        Parameters
        ----------
        path : path
            Usually ends in ``.safetensors``.

        Raises
        ------
        InputError
            If the network has no parameters, layers share an array, or a setting is not JSON.
        CheckpointError
            If the path is not a valid file name, or the file cannot be written.
        DivergenceError
            If parameters or state are not finite.
        MissingExtraError
            If safetensors is not installed.
        """
        importlib.import_module("nnxp.checkpoint").save_network(path, self)

    def _require_classes(self, method: str) -> DataFormat:
        known = self.data_format
        if known is None or known.probabilities is None:
            raise InputError(
                f"{method} needs a network that Trainer.fit has trained with SoftmaxWithLoss or "
                "SigmoidWithLoss; predict returns the outputs"
            )
        return known

    @explained("network.activations(x)")
    def activations(self, x: Array) -> dict[str, Array]:
        """Return the outputs of every layer for inputs `x`, by name and in order.

        The names are the classes' names with a number, such as ``affine1``, ``relu1`` and, within
        a network, ``residual1.affine1``. The output of an inner network has the name
        ``residual1``.

        Parameters
        ----------
        x : (batch, inputs) array
            On the network's device and in its dtype.

        Returns
        -------
        dict of str to array
        """
        found: dict[str, Array] = {}
        self._activate(x, found, {id(layer): name for name, layer in self.named_layers().items()})
        return found

    def _activate(self, x: Array, found: dict[str, Array], names: dict[int, str]) -> None:
        for layer in self.layers:
            if isinstance(layer, Sequential):
                layer._activate(x, found, names)
            x = layer.forward(x)
            found[names[id(layer)]] = x

    def named_layers(self, prefix: str = "") -> dict[str, Layer]:
        """Return all layers, including those within networks, by the names of `activations`.

        Parameters
        ----------
        prefix : str, optional
            Text to put before each name.
        """
        found: dict[str, Layer] = {}
        counts: dict[str, int] = {}
        for layer in self.layers:
            kind = type(layer).__name__.lower()
            counts[kind] = counts.get(kind, 0) + 1
            name = f"{prefix}{kind}{counts[kind]}"
            if isinstance(layer, Sequential):
                found |= layer.named_layers(f"{name}.")
            found[name] = layer
        return found

    def parameters(self) -> Parameters:
        """Return the parameters by name, in the layers' order: W1, b1, W2, b2 and so on."""
        return self.arrays()[0]

    def states(self) -> States:
        """Return the layers' state by name, in the layers' order."""
        return self.arrays()[1]

    def arrays(self) -> tuple[Parameters, States]:
        """Return `parameters()` and `states()`, in half the time of both calls."""
        parameters, states = self._slots()
        return Parameters(parameters, self._identity), States(states, self._identity)

    def gradients(self) -> dict[str, Array]:
        """Return the gradients of the last backward pass by the names of the trainable parameters.

        Raises
        ------
        CallOrderError
            If there was no backward pass yet.
        """
        try:
            return {
                name: layer.grads[key]
                for name, (layer, key) in self._slots()[0].items()
                if layer.trainable
            }
        except KeyError:
            raise CallOrderError(
                "there are no gradients yet: call forward(x, training=True), then backward"
            ) from None

    @explained("network.load_parameters(other.parameters())")
    def load_parameters(self, parameters: Mapping[str, Array]) -> None:
        """Replace all parameters with copies of `parameters`; after an error, none is changed.

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
        own = self.parameters()
        own.place_all(self._checked_copies(parameters, own))

    def load_arrays(self, parameters: Mapping[str, Array], states: Mapping[str, Array]) -> None:
        """Replace all parameters and states with copies; after an error, none is changed.

        Parameters
        ----------
        parameters, states : mapping of str to array
            As in `load_parameters`, with the names of `parameters` and of `states`.
        """
        pairs = zip((parameters, states), self.arrays(), strict=True)
        copies = [(own, self._checked_copies(given, own)) for given, own in pairs]
        for own, loaded in copies:
            own.place_all(loaded)

    def _checked_copies(self, given: Mapping[str, Array], own: Parameters) -> dict[str, Array]:
        """Return copies of the given arrays that can replace the network's own."""
        if not hasattr(given, "keys"):
            raise InputError(f"a network's {own.kind}s must be arrays by name, got {given!r:.80}")
        for name in given:
            if name not in own:
                raise unknown_name(own.kind, name, own)
        copies: dict[str, Array] = {}
        device = self.device
        if device is None:
            return copies
        for name in own:
            if name not in given:
                raise InputError(f"{own.kind} {name} is missing; give all of {', '.join(own)}")
            copies[name] = own.matching_copy(name, device.asarray(given[name]))
        return copies

    @explained("network.summary()")
    def summary(self, shape: tuple[int, ...] | None = None) -> Table:
        """Return a table of layers, output shapes and parameter counts, as text.

        Parameters
        ----------
        shape : tuple of int, optional
            The shape of one example; by default that of the training data if the network was
            trained.

        Raises
        ------
        InputError
            If a layer does not accept examples of this shape.
        """
        rows = [("layer", "output", "parameters", "count")]
        if shape is None and self.data_format is not None:
            shape = self.data_format.shape
        parameters = self.parameters()
        for layer in self.layers:
            shape = layer.output_shape(shape)
            output = "(batch, …)" if shape is None else f"(batch, {', '.join(map(str, shape))})"
            leaves = layer.leaves()
            own = {
                name: x
                for name, x in parameters.items()
                if any(parameters.layer(name) is y for y in leaves)
            }
            count = sum(math.prod(x.shape) for x in own.values())
            shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in own.items())
            rows.append((repr(layer), output, shapes, f"{count:,}"))
        total = sum(math.prod(x.shape) for x in parameters.values())
        place = f" of {self.dtype} on {self.device}" if self.device else ""
        return Table(rows, left=3, footer=f"{total:,} parameters{place}")

    def _slots(self) -> tuple[Slots, Slots]:
        """Return the place of each parameter and each state, by name.

        Raises
        ------
        InputError
            If a layer occurs twice: an inner network can get a layer of another one by assignment.
        """
        parameters: Slots = {}
        states: Slots = {}
        named: set[int] = set()
        self._fill_slots(parameters, states, named, "")
        return parameters, states

    def _fill_slots(self, parameters: Slots, states: Slots, named: set[int], prefix: str) -> None:
        counts: dict[str, int] = {}
        for layer in self.layers:
            if id(layer) in named:
                raise InputError(
                    f"{layer!r} is in the network twice; use one object for each position"
                )
            named.add(id(layer))
            if isinstance(layer, Sequential):
                kind = type(layer).__name__.lower()
                counts[kind] = counts.get(kind, 0) + 1
                layer._fill_slots(parameters, states, named, f"{prefix}{kind}{counts[kind]}.")
                continue
            for arrays, slots in ((layer.params, parameters), (layer.state, states)):
                for key in arrays:
                    counts[key] = counts.get(key, 0) + 1
                    name = f"{prefix}{key}{counts[key]}"
                    if name in slots:
                        raise InputError(
                            f"two arrays of the network would be named {name}; rename {key} of "
                            f"{layer!r}, so that it does not end in a digit"
                        )
                    slots[name] = layer, key


def _within(layer: Layer) -> Iterator[Layer]:
    """Yield a layer and all layers within it."""
    yield layer
    if isinstance(layer, Sequential):
        for each in layer.layers:
            yield from _within(each)


def _require_trainable(layers: list[Layer]) -> None:
    """Raise unless these layers can form a network; see `Sequential.require_trainable`."""
    for layer in layers:
        if not isinstance(layer, Sequential):
            require_no_layers(layer)
        elif layer.params or layer.state:
            raise InputError(
                f"{layer!r} has arrays of its own, {', '.join([*layer.params, *layer.state])}, "
                "which would be neither trained nor saved; put them into a layer within it"
            )
    owners = [layer for layer in layers if layer.params or layer.state]
    for layer in owners:
        if layer.device is None or layer.dtype is None:
            raise InputError(
                f"{layer!r} has parameters or state, but no device or no dtype; set both in "
                "its __init__"
            )
        for what in ("device", "dtype"):
            first, other = getattr(owners[0], what), getattr(layer, what)
            if first != other:
                raise (DeviceError if what == "device" else InputError)(
                    f"all layers must be on one device in one dtype: {owners[0]!r} has "
                    f"{first}, {layer!r} has {other}; move one with "
                    "layer.to(device, dtype=…)"
                )


class Residual(Sequential):
    """Layers with a skip connection: ``y = x + layers(x)`` (He et al. 2016, eq. 1).

    Parameters
    ----------
    layers : iterable of Layer
        Layers whose outputs have the shape of the inputs.
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return ``x + layers(x)``, of the shape of `x`."""
        y = super().forward(x, training)
        if y.shape != x.shape:
            raise InputError(
                f"{self!r} expects outputs of its inputs' shape {tuple(x.shape)}, got "
                f"{tuple(y.shape)}"
            )
        return x + y

    def backward(self, dy: Array) -> Array:
        """Return the sum of `dy` and the gradient through the layers."""
        return dy + super().backward(dy)

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return `shape`; the layers must keep it."""
        inner = super().output_shape(shape)
        if None not in (shape, inner) and shape != inner:
            raise InputError(f"{self!r} expects outputs of its inputs' shape {shape}, got {inner}")
        return shape if inner is None else inner
