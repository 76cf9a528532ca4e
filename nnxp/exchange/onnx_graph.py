"""ONNX graphs: the values of a graph, and their conversion to layers in a row.

An operator's value is the output of a layer, or a formula of other values (see `onnx_operators`).
A formula is then recognized: as an activation by its numbers, since each exporter writes it in its
own way; as a scaling; or as the sum of a residual block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nnxp.errors import InputError
from nnxp.initializers import zeros
from nnxp.layers import (
    ELU,
    GELU,
    Affine,
    Conv2D,
    Flatten,
    Identity,
    Layer,
    LeakyReLU,
    ReLU,
    Reshape,
    Sigmoid,
    SiLU,
    Softplus,
    Standardize,
    Tanh,
)
from nnxp.network import Residual

Host: TypeAlias = npt.NDArray[Any]

_MOST_OPERATORS = 64  # of a formula
_SMALL = 1024  # numbers that an array may have even if the file has fewer


@dataclass(eq=False)
class Value:
    """A value of the graph that depends on the inputs.

    Attributes
    ----------
    number : int
        Greater than those of the values that it depends on.
    operator, name : str
        The type and the name of the node that computes it, for error messages.
    shape : tuple of int
        The shape for one example.
    layer : Layer or None
        The layer that computes it from its only operand; None for inputs and formulas.
    operands : list of Value or array
        The operands of a formula, or the layer's inputs; empty for the inputs of the graph.
    bare : bool
        Whether a bias may follow.
    """

    number: int
    operator: str
    name: str
    shape: tuple[int, ...]
    layer: Layer | None = None
    operands: Sequence[Value | Host] = field(default_factory=list)
    bare: bool = False

    def __str__(self) -> str:
        return f"{self.operator} (node {self.name!r:.60})"

    @property
    def parents(self) -> list[Value]:
        """The operands that depend on the inputs."""
        return [x for x in self.operands if isinstance(x, Value)]


@dataclass
class Node:
    """An operator of the file, with its operands and attributes."""

    operator: str
    name: str
    operands: list[Value | Host | None]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.operator} (node {self.name!r:.60})"

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)

    def require(self, **allowed: Any) -> None:
        """Raise an `InputError` unless attributes are these, or are not given."""
        for name, value in allowed.items():
            given = self.attributes.get(name, value)
            if given != value:
                raise InputError(f"{self} has {name}={given!r:.60}, and nnxp computes {value!r}")

    def operand(self, index: int) -> Value | Host | None:
        """Return an operand; None if it is not given."""
        return self.operands[index] if index < len(self.operands) else None

    def value(self, index: int = 0) -> Value:
        """Return an operand that must depend on the inputs."""
        x = self.operand(index)
        if not isinstance(x, Value):
            raise InputError(f"{self} has constant inputs; nnxp needs the outputs of a layer")
        return x

    def array(self, index: int) -> Host | None:
        """Return an operand that must be constant; None if it is not given."""
        x = self.operand(index)
        if isinstance(x, Value):
            raise InputError(f"{self} has weights that depend on the inputs; nnxp needs constants")
        return x

    def weights(self, index: int, ndim: int) -> Host:
        """Return an operand that must be a constant array with `ndim` axes."""
        x = self.array(index)
        if x is None or x.ndim != ndim:
            got = "none" if x is None else f"shape {x.shape}"
            raise InputError(f"{self} must have weights of {ndim} axes, got {got}")
        return x

    def integers(self, index: int, attribute: str) -> list[int] | None:
        """Return whole numbers from an operand, or from an attribute in older opsets."""
        x = self.array(index)
        given = self.attributes.get(attribute) if x is None else x.reshape(-1).tolist()
        return None if given is None else [int(n) for n in given]


class Tracer:
    """Converts a graph's operators to values, and the values to layers.

    Parameters
    ----------
    shape : tuple of int
        The shape of one example.
    batch : int or None
        The number of examples, if the graph has a fixed one.
    dtype : str
        The dtype of the layers.
    size : int
        How many numbers the file has; no layer may be larger.

    Attributes
    ----------
    scale : float or None
        The number that divides the inputs first; None if they are not divided.
    """

    def __init__(self, shape: tuple[int, ...], batch: int | None, dtype: str, size: int) -> None:
        self.inputs = Value(0, "the input", "", shape)
        self.batch, self.dtype = batch, dtype
        self.scale: float | None = None
        self._size, self._count = max(size, _SMALL), 0

    def layers(self, value: Value) -> list[Layer]:
        """Return the layers from the inputs to a value.

        Raises
        ------
        InputError
            If they are not layers in a row.
        """
        with np.errstate(all="ignore"):
            return self._between(self.inputs, value, outermost=True)

    def layer(self, node: Node, x: Value, layer: Layer, *, bare: bool = False) -> Value:
        """Return the outputs of a layer."""
        shape = layer.output_shape(x.shape)
        assert shape is not None
        return self._value(node, shape, layer, [x], bare)

    def formula(self, node: Node, operands: Sequence[Value | Host]) -> Value:
        """Return the result of an operator on each element."""
        shapes = [x.shape for x in operands if isinstance(x, Value)]
        if any(shape != shapes[0] for shape in shapes):
            raise InputError(f"{node} has operands of shapes {shapes}; nnxp cannot combine them")
        return self._value(node, shapes[0], None, operands)

    def _value(
        self,
        node: Node,
        shape: tuple[int, ...],
        layer: Layer | None,
        operands: Sequence[Value | Host],
        bare: bool = False,
    ) -> Value:
        self._count += 1
        return Value(self._count, node.operator, node.name, shape, layer, operands, bare)

    def require_size(self, size: int, what: object) -> None:
        """Raise an `InputError` if an array would be larger than the file's."""
        if size > self._size:
            raise InputError(f"{what} would have {size:,} numbers, more than the file")

    def affine(self, W: Host, b: Host) -> Affine:  # noqa: N803
        """Return an affine layer with these arrays."""
        layer = Affine(*W.shape, rng=0, initializer=zeros, dtype=self.dtype)
        self.filled(layer, W=W, b=b)
        return layer

    def filled(self, layer: Layer, **arrays: Host) -> Layer:
        """Return the layer with these parameters and state."""
        for name, x in arrays.items():
            own = layer.params if name in layer.params else layer.state
            if x.shape != own[name].shape:
                raise InputError(f"{layer!r} has {name} of {own[name].shape}, got {x.shape}")
            new = np.array(x, self.dtype)
            if not np.isfinite(new).all():
                raise InputError(f"{layer!r} has a number in {name} that {self.dtype} cannot hold")
            own[name] = new
        return layer

    def _between(self, start: Value, end: Value, *, outermost: bool = False) -> list[Layer]:
        """Return the layers from a value to another; the outermost ones may begin with a scale."""
        found: list[Layer] = []
        while end is not start:
            if end.number <= start.number:
                raise InputError(
                    f"the outputs of {start} are used beside those of other layers; nnxp has "
                    "layers in a row, and sums x + layers(x)"
                )
            if end.operator == "LogSoftmax":
                raise InputError(f"{end} can be only the last layer in nnxp")
            if end.layer is not None:
                last = end
                (end,) = end.parents
                if isinstance(last.layer, _SHAPES):  # of several, the last one decides
                    while end is not start and isinstance(end.layer, _SHAPES):
                        (end,) = end.parents
                    if end.shape == last.shape:
                        continue
                assert last.layer is not None
                found.append(last.layer)
            elif outermost and (scale := self._scale_of(end)) is not None:
                self.scale, end = scale, self.inputs
            else:
                layers, end = self._formula(start, end)
                found += reversed(layers)
        return found[::-1]

    def _scale_of(self, value: Value) -> float | None:
        """Return the divisor if a value is the inputs divided by a number; else None."""
        if value.operator not in ("Mul", "Div") or value.parents != [self.inputs]:
            return None
        first, second = value.operands
        constant = second if isinstance(first, Value) else first
        assert isinstance(constant, np.ndarray)
        divides = value.operator == "Div" and constant is second
        if (
            constant.size != 1
            or not constant.item() > 0
            or not (divides or value.operator == "Mul")
        ):
            return None
        return float(constant.item()) if divides else as_written(1 / constant.item())

    def _formula(self, start: Value, end: Value) -> tuple[list[Layer], Value]:
        """Return the layers that compute a formula, and the value that they take."""
        for base, inner in _bases(start, end):
            activation = _activation(base, inner, end)
            if activation is not None:
                return [] if isinstance(activation, Identity) else [activation], base
        scaling = self._scaling(start, end)
        if scaling is not None:
            return scaling
        parents = sorted(end.parents, key=lambda x: x.number)
        if end.operator == "Add" and len(parents) == 2:
            x, y = parents
            layers = self._between(x, y) or [Identity()]
            return [Residual(layers)], x
        raise InputError(f"{end} is part of a formula that no layer of nnxp computes")

    def _scaling(self, start: Value, end: Value) -> tuple[list[Layer], Value] | None:
        """Return a layer for sums and products with constants, and the value that it takes."""
        steps = []
        while end is not start and end.layer is None and len(end.parents) == 1:
            if end.operator not in ("Add", "Sub", "Mul", "Div"):
                break
            steps.append(end)
            (end,) = end.parents
            if steps[-1].operator in ("Add", "Sub") and any(
                x.operator in ("Mul", "Div") for x in steps
            ):
                break  # (x - mean) / std is complete; another one may come before it
        if not steps:
            return None
        shape, what = end.shape, steps[0]
        if len(shape) not in (1, 3):
            return None
        features = shape[0]
        self.require_size(features if len(shape) == 1 else features**2, what)
        # y = (x - mean) / std, so far
        mean, std = np.zeros(features), np.ones(features)
        for step in reversed(steps):
            first, second = step.operands
            constant = per_feature(second if isinstance(first, Value) else first, shape, step)
            match step.operator:
                case "Add" | "Sub" if isinstance(first, Value):
                    mean = mean + (constant if step.operator == "Sub" else -constant) * std
                case "Add":
                    mean = mean - constant * std
                case "Sub":  # constant - (x - mean) / std
                    mean, std = mean + constant * std, -std
                case "Mul":
                    std = std / constant
                case "Div" if isinstance(first, Value):
                    std = std * constant
                case _:
                    raise InputError(f"{step} divides by a layer's outputs; nnxp cannot")
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and std.all()):
            raise InputError(f"{what} multiplies by 0, or divides by it")
        if len(shape) == 1:
            layer: Layer = Standardize(features, dtype=self.dtype)
            self.filled(layer, mean=mean, std=std, count=np.ones(1))
        else:
            layer = Conv2D(features, features, 1, rng=0, initializer=zeros, dtype=self.dtype)
            self.filled(layer, W=np.diag(1 / std)[:, :, None, None], b=-mean / std)
            layer.trainable = False
        return [layer], end

    def fold(self, node: Node) -> Host:
        """Return the result of an operator on constants, such as transposed weights."""
        x = node.array(0)
        assert x is not None
        match node.operator:
            case "Identity" | "Cast" | "CastLike":
                return x
            case "Transpose":
                return np.transpose(x, node.get("perm"))
            case "Reshape":
                target = node.integers(1, "shape") or []
                lengths = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
                return x.reshape(lengths)
            case "Flatten":
                axis = node.get("axis", 1)
                return x.reshape(math.prod(x.shape[:axis]), -1)
            case "Unsqueeze":
                return np.expand_dims(x, tuple(node.integers(1, "axes") or ()))
            case "Squeeze":
                axes = node.integers(1, "axes")
                return np.squeeze(x, None if axes is None else tuple(axes))
            case "Concat":
                parts = [x for x in node.operands if isinstance(x, np.ndarray)]
                self.require_size(sum(x.size for x in parts), node)
                return np.concatenate(parts, node.get("axis"))
            case "Gather":
                index = node.array(1)
                assert index is not None
                self.require_size(index.size * x.size, node)
                return np.asarray(np.take(x, index, axis=node.get("axis", 0)))
            case "Slice":
                starts, ends, axes, steps = (node.integers(i, "") for i in range(1, 5))
                assert starts is not None
                assert ends is not None
                for axis, first, last, step in zip(
                    axes or range(len(starts)),
                    starts,
                    ends,
                    steps or [1] * len(starts),
                    strict=True,
                ):
                    x = np.moveaxis(np.moveaxis(x, axis, 0)[first:last:step], 0, axis)
                return x
        raise InputError(f"{node} has only constant inputs; nnxp cannot compute it")


def per_feature(x: object, shape: tuple[int, ...], what: object) -> Host:
    """Return a constant as one number for each feature or channel of an example's shape."""
    assert isinstance(x, np.ndarray)
    x = x.astype("float64")
    lengths = (1,) * (len(shape) + 1 - x.ndim) + x.shape
    if len(lengths) == len(shape) + 1 and all(
        n == 1 or (axis == 1 and n == shape[0]) for axis, n in enumerate(lengths)
    ):
        return np.broadcast_to(x.reshape(-1), (shape[0],))
    raise InputError(
        f"{what} has a constant of shape {x.shape} for inputs of shape {shape}, and nnxp has one "
        "number for each feature or channel"
    )


FORMULAS: dict[str, Callable[..., Any]] = {
    "Abs": np.abs, "Add": np.add, "Div": np.divide, "Erf": np.vectorize(math.erf, otypes="d"),
    "Exp": np.exp, "Greater": np.greater, "Less": np.less, "Log": np.log, "Max": np.maximum,
    "Min": np.minimum, "Mul": np.multiply, "Neg": np.negative, "Pow": np.power,
    "Reciprocal": np.reciprocal, "Sqrt": np.sqrt, "Sub": np.subtract, "Where": np.where,
}  # fmt: skip
_SHAPES = (Flatten, Reshape)
_ELEMENTWISE = (ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh)
_GRID: Any = np.linspace(-6.0, 6.0, 241)
# Constants of float32 are within 6e-8 of the exact ones, relatively, and results are below 10.
# The two kinds of GELU, the most similar ones, differ by 4.7e-4.
_TOLERANCE = 5e-6


def _is_elementwise(value: Value) -> bool:
    """Return whether each number of a value depends only on the number at its place in operands."""
    if value.layer is not None:
        return isinstance(value.layer, _ELEMENTWISE)
    return value.operator in FORMULAS and all(
        isinstance(x, Value) or x.size == 1 for x in value.operands
    )


def _bases(start: Value, end: Value) -> Iterator[tuple[Value, list[Value]]]:
    """Yield values of which `end` is an elementwise function, and the values between."""
    pending, inner = {end}, list[Value]()
    while len(inner) < _MOST_OPERATORS:
        last = max(pending, key=lambda x: x.number)
        if last is start or not _is_elementwise(last):
            return
        pending.remove(last)
        inner.append(last)
        pending.update(last.parents)
        if len(pending) == 1:
            yield next(iter(pending)), inner


def _activation(base: Value, inner: Sequence[Value], end: Value) -> Layer | None:
    """Return the activation that has the values of a formula; None if there is none."""
    known: dict[Value, Any] = {base: _GRID}
    with np.errstate(all="ignore"):
        for value in sorted(inner, key=lambda x: x.number):
            if value.layer is not None:
                known[value] = value.layer.forward(known[value.parents[0]])
            else:
                operands = [
                    known[x] if isinstance(x, Value) else x.astype("float64").reshape(())
                    for x in value.operands
                ]
                known[value] = FORMULAS[value.operator](*operands)
    for layer in (
        SiLU(), GELU(), GELU("tanh"), Softplus(), Sigmoid(), Tanh(), ReLU(), ELU(), Identity()
    ):  # fmt: skip
        expected: Any = layer.forward(_GRID)
        if np.allclose(known[end], expected, rtol=0, atol=_TOLERANCE):
            return layer
    return None


def as_written(x: float) -> float:
    """Return an attribute, stored in float32, as its shortest decimal number, such as 1e-05."""
    return float(str(np.float32(x)))
