"""ONNX export: write a network as a graph of operators, for other programs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nnxp.checks import explained, optional_import, require_count
from nnxp.data_format import DataFormat
from nnxp.errors import CheckpointError, DivergenceError, InputError
from nnxp.files import resolve_file, write_atomically
from nnxp.layers import (
    ELU,
    GELU,
    Affine,
    AveragePool2D,
    BatchNorm,
    Conv2D,
    Dropout,
    ElasticDistortion,
    Flatten,
    GlobalAveragePool2D,
    Identity,
    Layer,
    LayerNorm,
    LeakyReLU,
    MaxPool2D,
    RandomFlip,
    RandomRotation,
    RandomShift,
    ReLU,
    Reshape,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Standardize,
    Tanh,
)
from nnxp.layers.windows import pair
from nnxp.network import Residual, Sequential
from nnxp.parts import definition

# The first opset with LayerNormalization, and its IR version, which old runtimes can read. The
# defaults of the onnx package change with each release.
OPSET, IR_VERSION = 17, 8
METADATA_KEY, CLASSES_KEY = "nnxp", "classes"
MAX_BYTES = (1 << 31) - 1  # of a protobuf message

Export: TypeAlias = "Callable[[Any, Graph, str], str]"
"""A function that adds the operators of a layer to a graph. It is called with the layer, the graph
and the name of the layer's inputs, and returns the name of the outputs."""


class Graph:
    """The operators and arrays of an ONNX file that is being made.

    A function given to `register_onnx` adds its layer's operators to it.
    """

    def __init__(self, network: Sequential) -> None:
        self._helper = optional_import("onnx.helper", "onnx")
        self._numpy_helper = optional_import("onnx.numpy_helper", "onnx")
        self.nodes: list[Any] = []
        self.arrays: dict[str, Any] = {}
        parameters, states = network.arrays()
        # By identity, since an array cannot be a key. The network keeps the arrays alive.
        self._names = {id(x): name for name, x in (*parameters.items(), *states.items())}

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator of opset 17, and return the name of its output.

        Parameters
        ----------
        operator : str
            Such as ``"Sigmoid"``; see https://onnx.ai/onnx/operators.
        *inputs : str
            Names of values: the layer's inputs, outputs of other operators, or constants.
        **attributes
            Attributes of the operator, such as ``axis=1``.

        Returns
        -------
        str
            The name of the operator's output.
        """
        output = f"{operator.lower()}_{len(self.nodes) + 1}"
        node = self._helper.make_node(operator, list(inputs), [output], name=output, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, values: Any) -> str:
        """Store an array in the file, and return its name.

        A parameter keeps its name in the network.

        Parameters
        ----------
        values : array_like
            On the host. Floating-point numbers become float32, whole numbers int64.

        Returns
        -------
        str
            The name, to be used as an input of `add`.
        """
        host = np.asarray(values)
        host = host.astype("int64" if host.dtype.kind in "biu" else "float32")
        name = self._names.get(id(values), f"constant_{len(self.arrays) + 1}")
        self.arrays[name] = self._numpy_helper.from_array(np.ascontiguousarray(host), name)
        return name

    def export(self, layer: Layer, x: str) -> str:
        """Add the operators of another layer, and return the name of its outputs."""
        return _export_of(layer)(layer, self, x)


_exports: dict[type[Layer], Export] = {}


@explained("nnxp.exchange.register_onnx(MyLayer, function)")
def register_onnx(kind: type[Layer], export: Export) -> None:
    """Register the function with which `export_onnx` exports a class of layers.

    Parameters
    ----------
    kind : type
        A subclass of `Layer`. The function also exports its subclasses, unless they override
        ``forward``.
    export : callable
        Called with a layer on the CPU in float32, the `Graph` and the name of the layer's inputs;
        returns the name of the outputs.

    Raises
    ------
    InputError
        If `kind` is not a subclass of `Layer`, or `export` is not callable.

    Examples
    --------
    >>> import nnxp
    >>> class Cube(nnxp.Layer):
    ...     def forward(self, x, training=False):
    ...         return x * x * x
    >>> nnxp.exchange.register_onnx(Cube, lambda layer, graph, x: graph.add(
    ...     "Mul", x, graph.add("Mul", x, x)))
    """
    given: object = kind
    if not (isinstance(given, type) and issubclass(given, Layer)):
        raise InputError(f"register_onnx expects a subclass of nnxp.Layer, got {kind!r}")
    if not callable(export):
        raise InputError(f"register_onnx expects a function of layer, graph, x, got {export!r}")
    _exports[kind] = export


@explained('nnxp.export_onnx(network, "network.onnx")')
def export_onnx(
    network: Sequential, path: str | os.PathLike[str], *, shape: tuple[int, ...] | None = None
) -> None:
    """Write a network as an ONNX file, for predictions by other programs.

    The file computes in float32, for batches of any size. Its output ``probabilities`` is the
    result of `predict_proba`; for a network without classes, its output ``scores`` is the result of
    `predict`. Its ``input`` has the format of the training data: uint8 if they were uint8, which
    the file scales as `fit` did; else float32. Layers that only training needs, such as `Dropout`,
    are left out. The metadata have the class labels as ``classes``, a JSON list, and the
    `data_format`.

    Parameters
    ----------
    network : Sequential
    path : path
        Usually ends in ``.onnx``. The file is written completely or not at all.
    shape : tuple of int, optional
        The shape of one example; by default that of the training data, or of the first layer's
        inputs.

    Raises
    ------
    InputError
        If a layer cannot be exported, or the shape is unknown or does not fit the network.
    DivergenceError
        If parameters or state are not finite.
    CheckpointError
        If the file cannot be written.
    MissingExtraError
        If onnx is not installed.

    Examples
    --------
    >>> import nnxp
    >>> nnxp.export_onnx(nnxp.mlp([4, 3, 2], rng=0), "network.onnx")  # doctest: +SKIP
    """
    given: object = network
    if not isinstance(given, Sequential):
        raise InputError(f"export_onnx expects a network, got {network!r:.80}")
    onnx = optional_import("onnx", "onnx")
    target = resolve_file(path)
    _require_exports(network)
    known = network.data_format
    if shape is None:
        shape = _shape_of(network) if known is None else known.shape
    else:
        shape = tuple(require_count("each number of shape", n) for n in shape)
    host = network.to("cpu", dtype="float32")
    for name, x in (item for arrays in host.arrays() for item in arrays.items()):
        if not np.isfinite(np.asarray(x)).all():
            raise DivergenceError(
                f"{name} holds a number that is not finite in float32; {path} is not changed"
            )
    data = _model(onnx, host, known, shape).SerializeToString()
    try:
        write_atomically(target, data)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); choose another path"
        ) from error


def _model(onnx: Any, network: Sequential, known: DataFormat | None, shape: tuple[int, ...]) -> Any:
    """Return a network on the CPU as an ONNX model, checked."""
    helper, types = onnx.helper, onnx.TensorProto
    example: npt.NDArray[Any] = np.zeros((1, *shape), "float32")
    outputs = network.forward(example)  # raises the error of a wrong shape
    size = sum(math.prod(x.shape) for arrays in network.arrays() for x in arrays.values())
    if 4 * size > MAX_BYTES - (1 << 20):
        raise InputError(
            f"the network has {size:,} numbers; an ONNX file has at most {MAX_BYTES:,} bytes; use "
            "smaller layers"
        )
    graph = Graph(network)
    x = "input"
    images = known is not None and known.images
    if images:
        x = graph.add("Cast", x, to=types.FLOAT)
    if known is not None and known.scale is not None:
        x = graph.add("Mul", x, graph.constant(1 / known.scale))
    y = graph.export(network, x)
    head = None if known is None else known.probabilities
    if head == "softmax":
        y = graph.add("Softmax", y, axis=-1)
    elif head == "sigmoid":
        y = graph.add("Sigmoid", y)
    if y == "input":
        y = graph.add("Identity", y)
    name = "scores" if head is None else "probabilities"
    _rename(graph, y, name)
    input_type = types.UINT8 if images else types.FLOAT
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "nnxp",
            [helper.make_tensor_value_info("input", input_type, ["batch", *shape])],
            [helper.make_tensor_value_info(name, types.FLOAT, ["batch", *outputs.shape[1:]])],
            list(graph.arrays.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="nnxp",
        producer_version=sys.modules["nnxp"].__version__,
    )
    metadata = {METADATA_KEY: json.dumps({"format": 1, "data": known and asdict(known)})}
    if known is not None and known.classes is not None:
        metadata[CLASSES_KEY] = json.dumps(known.classes)
    helper.set_model_props(model, metadata)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InputError(
            f"the layers do not give a valid graph: {str(error).splitlines()[0]}; check the "
            "functions given to nnxp.exchange.register_onnx"
        ) from error
    return model


def _rename(graph: Graph, old: str, new: str) -> None:
    """Rename the output of an operator."""
    for node in graph.nodes:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def _require_exports(network: Sequential) -> None:
    """Raise an `InputError` that names all layers that cannot be exported."""
    missing: dict[str, None] = {}  # an ordered set
    pending: list[Layer] = [network]
    while pending:
        layer = pending.pop(0)
        try:
            _export_of(layer)
        except InputError:
            missing[type(layer).__name__] = None
        if isinstance(layer, Sequential):
            pending += layer.layers
    if missing:
        raise InputError(
            f"nnxp cannot export {', '.join(missing)} to ONNX; register a function: "
            f"nnxp.exchange.register_onnx({next(iter(missing))}, function), where "
            "function(layer, graph, x) adds operators and returns the name of the outputs"
        )


def _export_of(layer: Layer) -> Export:
    """Return the function of the nearest registered class that has the layer's forward."""
    for position, kind in enumerate(type(layer).__mro__):
        if kind in _exports:
            if definition(layer, "forward") >= position:
                return _exports[kind]
            break
    raise InputError(f"{layer!r} has no export to ONNX")


def _shape_of(network: Sequential) -> tuple[int, ...]:
    """Return the shape of one example, from the arrays of the first layer that determines it."""
    for layer in network.leaves():
        if isinstance(layer, Affine):
            return (layer.inputs,)
        features = getattr(layer, "features", None)
        if isinstance(layer, Standardize) and features is not None:
            return (features,)
        if type(layer) not in _ELEMENTWISE:
            break
    raise InputError(
        "the network was not trained, so that the shape of its inputs is unknown; give the shape "
        'of one example: nnxp.export_onnx(network, "network.onnx", shape=(1, 28, 28))'
    )


def _sequential(layer: Sequential, graph: Graph, x: str) -> str:
    for each in layer.layers:
        x = graph.export(each, x)
    return x


def _residual(layer: Residual, graph: Graph, x: str) -> str:
    return graph.add("Add", x, _sequential(layer, graph, x))


def _affine(layer: Affine, graph: Graph, x: str) -> str:
    W, b = (graph.constant(layer.params[name]) for name in ("W", "b"))
    return graph.add("Gemm", x, W, b)


def _windows(layer: Conv2D | MaxPool2D | AveragePool2D, size: Any) -> dict[str, Any]:
    return {
        "kernel_shape": pair(size), "strides": pair(layer.stride),
        "pads": 2 * pair(layer.padding),  # top, left, bottom, right
    }  # fmt: skip


def _convolution(layer: Conv2D, graph: Graph, x: str) -> str:
    W, b = (graph.constant(layer.params[name]) for name in ("W", "b"))
    return graph.add("Conv", x, W, b, **_windows(layer, layer.kernel_size))


def _max_pool(layer: MaxPool2D, graph: Graph, x: str) -> str:
    return graph.add("MaxPool", x, **_windows(layer, layer.size))


def _average_pool(layer: AveragePool2D, graph: Graph, x: str) -> str:
    return graph.add("AveragePool", x, count_include_pad=1, **_windows(layer, layer.size))


def _global_average_pool(layer: GlobalAveragePool2D, graph: Graph, x: str) -> str:
    return graph.add("Flatten", graph.add("GlobalAveragePool", x), axis=1)


def _batch_norm(layer: BatchNorm, graph: Graph, x: str) -> str:
    arrays = [layer.params["gamma"], layer.params["beta"]]
    arrays += [layer.state["running_mean"], layer.state["running_var"]]
    names = map(graph.constant, arrays)
    # ONNX' momentum is the weight of the old mean.
    settings = {"epsilon": layer.epsilon, "momentum": 1 - layer.momentum}
    return graph.add("BatchNormalization", x, *names, **settings)


def _layer_norm(layer: LayerNorm, graph: Graph, x: str) -> str:
    gamma, beta = layer.params["gamma"], layer.params["beta"]
    settings = {"axis": -gamma.ndim, "epsilon": layer.epsilon}
    names = graph.constant(gamma), graph.constant(beta)
    return graph.add("LayerNormalization", x, *names, **settings)


def _standardize(layer: Standardize, graph: Graph, x: str) -> str:
    centred = graph.add("Sub", x, graph.constant(layer.state["mean"]))
    return graph.add("Div", centred, graph.constant(layer.state["std"]))


def _reshape(layer: Reshape, graph: Graph, x: str) -> str:
    return graph.add("Reshape", x, graph.constant((0, *layer.shape)))  # 0 keeps the batch


def _silu(layer: SiLU, graph: Graph, x: str) -> str:
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def _gelu(layer: GELU, graph: Graph, x: str) -> str:
    # Opset 20 has Gelu; more runtimes support these operators.
    half = graph.add("Mul", x, graph.constant(0.5))
    if layer.approximate == "none":
        part = graph.add("Erf", graph.add("Div", x, graph.constant(math.sqrt(2.0))))
    else:
        cube = graph.add("Mul", graph.add("Mul", x, x), x)
        sum_ = graph.add("Add", x, graph.add("Mul", cube, graph.constant(0.044715)))
        part = graph.add("Tanh", graph.add("Mul", sum_, graph.constant(math.sqrt(2 / math.pi))))
    return graph.add("Mul", half, graph.add("Add", part, graph.constant(1.0)))


def _operator(name: str, **attributes: Any) -> Export:
    return lambda layer, graph, x: graph.add(name, x, **attributes)


def _nothing(layer: Layer, graph: Graph, x: str) -> str:
    return x


_ELEMENTWISE: dict[type[Layer], Export] = {
    Dropout: _nothing,
    ELU: lambda layer, graph, x: graph.add("Elu", x, alpha=layer.alpha),
    GELU: _gelu,
    Identity: _nothing,
    LeakyReLU: lambda layer, graph, x: graph.add("LeakyRelu", x, alpha=layer.slope),
    ReLU: _operator("Relu"),
    Sigmoid: _operator("Sigmoid"),
    SiLU: _silu,
    Softplus: _operator("Softplus"),
    Tanh: _operator("Tanh"),
}
_exports |= _ELEMENTWISE
_exports |= {
    Affine: _affine,
    AveragePool2D: _average_pool,
    BatchNorm: _batch_norm,
    Conv2D: _convolution,
    ElasticDistortion: _nothing,
    Flatten: _operator("Flatten", axis=1),
    GlobalAveragePool2D: _global_average_pool,
    LayerNorm: _layer_norm,
    MaxPool2D: _max_pool,
    RandomFlip: _nothing,
    RandomRotation: _nothing,
    RandomShift: _nothing,
    Reshape: _reshape,
    Residual: _residual,
    Sequential: _sequential,
    Softmax: _operator("Softmax", axis=-1),
    Standardize: _standardize,
}
