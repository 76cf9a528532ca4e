"""ONNX import: read a file, which may be malicious, and convert its graph to a network."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nnxp.checks import explained, optional_import, require_count
from nnxp.data_format import DataFormat, Label, read_data_format, require_outputs
from nnxp.devices import Device, open_device
from nnxp.errors import (
    CheckpointError,
    DeviceError,
    InputError,
    MissingExtraError,
    NnxpError,
)
from nnxp.exchange.onnx_graph import Host, Node, Tracer, Value
from nnxp.exchange.onnx_operators import FOLDED, OPERATORS, read_operator
from nnxp.exchange.onnx_writing import CLASSES_KEY, MAX_BYTES, METADATA_KEY
from nnxp.files import expand_home
from nnxp.layers import Identity
from nnxp.network import Sequential

_OLDEST = 13  # the first opset with today's Softmax and Squeeze
_MOST_NODES = 100_000
_UINT8, _STRING, _DOUBLE = 2, 8, 11  # of ONNX
_FLOATING = (1, 10, 11)
_ARRAYS = (1, 2, 6, 7, 9, 10, 11)  # dtypes that are read: floats, uint8, int32, int64, bool
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


@explained('nnxp.import_onnx("network.onnx")')
def import_onnx(
    path: str | os.PathLike[str],
    *,
    output: str | None = None,
    shape: tuple[int, ...] | None = None,
    device: Device | str = "cpu",
) -> Sequential:
    """Return the network of an ONNX file, for predictions and further training.

    The operators must be layers in a row, or sums ``x + layers(x)`` as in `Residual`. In a file of
    another program, a softmax or sigmoid at the end is not a layer: `predict` returns the scores
    before it, which losses need, and `predict_proba` the file's output. If the file divides the
    inputs by a number, such as 255, `predict` divides by it. Class labels come from the metadata
    ``classes``, a JSON list, or from scikit-learn's operators. A file has no layers that only
    training needs, such as `Dropout`.

    Parameters
    ----------
    path : path
    output : str, optional
        The name of the output to compute; by default the only one with floating-point numbers.
    shape : tuple of int, optional
        The shape of one example; needed if it is not in the file.
    device : Device or str, optional
        As in `nnxp.device`.

    Returns
    -------
    Sequential
        In float64 if the file's inputs are float64, else in float32. For a file of `export_onnx`,
        its `data_format` is that of the exported network.

    Raises
    ------
    CheckpointError
        If the file cannot be read, is not an ONNX file or is damaged, keeps weights in other files,
        or has operators that no layer of nnxp computes; the message names them.
    InputError
        If the shape of the inputs is neither in the file nor given, or differs from the file's.
    DeviceError
        If the device cannot be used.
    MissingExtraError
        If onnx is not installed.
    """
    opened = open_device(device)
    if shape is not None:
        shape = tuple(require_count("each number of shape", n) for n in shape)
    with _as_checkpoint_error(path):
        network = _File(_read(path)).network(output, shape)
    return network if str(opened) == str(network.device) else network.to(opened)


class _OpenShapeError(InputError):
    """The shape of the inputs is not known."""


@contextlib.contextmanager
def _as_checkpoint_error(path: object) -> Iterator[None]:
    """Raise each error about a file's contents as a `CheckpointError` that names the file."""
    try:
        yield
    except (DeviceError, CheckpointError, MissingExtraError, _OpenShapeError):
        raise
    except NnxpError as error:
        raise CheckpointError(f"{path} cannot be imported: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} cannot be read (not enough memory)") from error
    except (
        AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError,
        AssertionError,
    ) as error:  # fmt: skip
        message = f"{type(error).__name__}: {error}"[:300]
        raise CheckpointError(f"{path} is damaged, or not an ONNX file ({message})") from error


def _read(path: str | os.PathLike[str]) -> Any:
    """Return the ONNX model of a file."""
    onnx = optional_import("onnx", "onnx")
    decode_error = optional_import("google.protobuf.message", "onnx").DecodeError
    file = expand_home(path)
    if file.exists() and not file.is_file():  # opening a pipe would wait for a writer
        raise CheckpointError(f"{path} is not a file")
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_BYTES:
            raise CheckpointError(
                f"{path} has {size:,} bytes; an ONNX file has at most {MAX_BYTES:,}"
            )
        data = stream.read(MAX_BYTES)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except decode_error as error:
        raise CheckpointError(f"{path} is not an ONNX file, or is damaged ({error})") from error
    if not model.graph.output or not model.opset_import:
        raise CheckpointError(f"{path} is not an ONNX file, or is damaged (it has no graph)")
    return model


class _File:
    """The contents of an ONNX file."""

    def __init__(self, model: Any) -> None:
        self._helper = optional_import("onnx.helper", "onnx")
        self._numpy_helper = optional_import("onnx.numpy_helper", "onnx")
        self._model, self._graph = model, model.graph
        if len(self._graph.node) > _MOST_NODES:
            raise InputError(f"it has {len(self._graph.node):,} operators")
        newest = optional_import("onnx.defs", "onnx").onnx_opset_version()
        for each in model.opset_import:
            if each.domain in ("", "ai.onnx") and not _OLDEST <= each.version <= newest:
                raise InputError(
                    f"it is of opset {each.version}, and opsets {_OLDEST} to {newest} are read; "
                    "convert it with onnx.version_converter.convert_version(model, 17)"
                )
        self._producers: dict[str, Any] = {}
        for node in self._graph.node:
            for name in node.output:
                if name in self._producers:
                    raise InputError(f"two operators have the output {name!r:.60}")
                if name:
                    self._producers[name] = node
        self._metadata = {x.key: x.value for x in model.metadata_props}
        self._arrays = {x.name: x for x in self._graph.initializer}

    def network(self, output: str | None, given: tuple[int, ...] | None) -> Sequential:
        """Return the network that computes an output, for examples of the given or file's shape."""
        name, labels = self._output(output)
        nodes = self._needed(name)
        arrays = {
            x: self._array(self._arrays[x]) for n in nodes for x in n.input if x in self._arrays
        }
        constants = [
            self._array(a.t)
            for n in nodes
            if n.op_type == "Constant"
            for a in n.attribute
            if a.t.dims
        ]
        size = sum(x.size for x in (*arrays.values(), *constants))
        inputs = self._input()
        tensor = inputs.type.tensor_type
        batch, shape = self._shape(inputs, given, arrays, nodes)
        dtype = "float64" if tensor.elem_type == _DOUBLE else "float32"
        tracer = Tracer(shape, batch, dtype, size)
        values: dict[str, Value | Host] = {inputs.name: tracer.inputs, **arrays}
        for node in nodes:
            operands = [values[x] if x else None for x in node.input]
            attributes = {a.name: self._attribute(a) for a in node.attribute}
            read = Node(node.op_type, node.name or node.output[0], operands, attributes)
            values[node.output[0]] = read_operator(tracer, read)
        value = values[name]
        if not isinstance(value, Value):
            raise InputError(f"its output {name!r:.60} does not depend on the inputs")
        return self._assemble(tracer, value, labels, tensor.elem_type == _UINT8)

    def _assemble(
        self, tracer: Tracer, value: Value, labels: tuple[Label, ...] | None, images: bool
    ) -> Sequential:
        """Return the network that computes a value, with its data format."""
        own = json.loads(self._metadata[METADATA_KEY]) if METADATA_KEY in self._metadata else None
        if own is not None and own["format"] != 1:
            raise InputError(f"it is of format {own['format']!r:.40}; install a newer nnxp")
        known = None if own is None else read_data_format(own["data"])
        heads = {"Softmax": "softmax", "LogSoftmax": "softmax", "Sigmoid": "sigmoid"}
        head = None
        outputs = value.shape
        # In nnxp's own files, the loss decides; without one, a softmax is a layer of the network.
        if len(outputs) == 1 and (own is None or (known is not None and known.probabilities)):
            head = heads.get(value.operator)
        if head is not None:
            (value,) = value.parents
        layers = tracer.layers(value)
        network = Sequential(layers or [Identity()])
        if own is None:
            if head is None and labels is not None:
                head = "softmax" if len(outputs) == 1 and outputs[0] > 1 else "sigmoid"
            if labels == tuple(range(len(labels or ()))) or (head == "sigmoid" and outputs != (1,)):
                labels = None
            if labels is not None:
                require_outputs(labels, outputs)
            if head is not None or images or tracer.scale is not None:
                shape = tracer.inputs.shape
                network.data_format = DataFormat(
                    shape, images, tracer.scale, largest=0.0, classes=labels, probabilities=head
                )
        elif known is not None:
            self._require_agreement(known, tracer, head, images)
            network.data_format = known
        return network

    def _require_agreement(
        self, known: DataFormat, tracer: Tracer, head: str | None, images: bool
    ) -> None:
        """Raise an `InputError` if nnxp's metadata do not match the graph."""
        scale = known.scale
        if scale is not None and tracer.scale is not None and tracer.scale > 0:
            # 1 / scale is stored in float32, and read as its inverse.
            scale = tracer.scale if abs(scale / tracer.scale - 1) < 1e-6 else scale
        graph = replace(
            known, shape=tracer.inputs.shape, images=images, scale=tracer.scale, probabilities=head
        )
        if graph != replace(known, scale=scale):
            raise InputError(
                "its metadata of nnxp do not match its graph; remove the entry "
                f"{METADATA_KEY!r} of model.metadata_props if the graph was changed"
            )

    def _output(self, wanted: str | None) -> tuple[str, tuple[Label, ...] | None]:
        """Return the name of the value to compute, and its class labels or None."""
        names = [x.name for x in self._graph.output]
        if wanted is not None and wanted not in names:
            raise InputError(f"it has no output {wanted!r}; choose {', '.join(names)[:200]}")
        labels = self._labels()
        floating = [
            x.name for x in self._graph.output if x.type.tensor_type.elem_type in _FLOATING
        ]  # fmt: skip
        chosen = [wanted] if wanted else floating or names
        # scikit-learn's probabilities, as a dictionary for each row
        maps = {n.output[0]: n.input[0] for n in self._graph.node if n.op_type == "ZipMap"}
        if not floating and not wanted:
            chosen = [x for x in names if x in maps] or names
        if len(chosen) > 1:
            raise InputError(
                f"it has {len(chosen)} outputs; choose one: nnxp.import_onnx(path, "
                f"output={chosen[0]!r}), or {', '.join(chosen[1:])[:200]}"
            )
        return maps.get(chosen[0], chosen[0]), labels

    def _labels(self) -> tuple[Label, ...] | None:
        """Return the class labels from the metadata or from scikit-learn's operators."""
        labels: Any = None
        if CLASSES_KEY in self._metadata:
            with contextlib.suppress(ValueError):  # from another program, and not JSON
                labels = json.loads(self._metadata[CLASSES_KEY])
        for node in self._graph.node:
            if labels is None and node.op_type == "ZipMap":
                labels = next(iter(map(self._attribute, node.attribute)), None)
            if labels is None and node.op_type == "ArrayFeatureExtractor":
                stored = self._arrays.get(node.input[0])
                if stored is not None and stored.data_type in (*_ARRAYS, _STRING):
                    labels = self._array(stored).reshape(-1).tolist()
        if not isinstance(labels, list) or not labels:
            return None
        labels = [x.decode() if isinstance(x, bytes) else x for x in labels]
        suit = all(isinstance(x, (str, int, float)) for x in labels)
        return tuple(labels) if suit and len(set(labels)) == len(labels) else None

    def _needed(self, output: str) -> list[Any]:
        """Return the operators that an output depends on, each after those that it depends on.

        Raises
        ------
        InputError
            If nnxp does not know an operator; all are named.
        """
        pending, needed = [output], set()
        while pending:
            node = self._producers.get(pending.pop())
            if node is not None and node.output[0] not in needed:
                needed.add(node.output[0])
                pending += node.input
        nodes = [node for node in self._graph.node if node.output and node.output[0] in needed]
        unknown = {
            f"{n.op_type} (node {n.name or n.output[0]!r:.60})": None
            for n in nodes
            if n.op_type not in OPERATORS.keys() | FOLDED or n.domain not in _DOMAINS
        }
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise InputError(
                f"nnxp has no layer for its operators {', '.join(list(unknown)[:5])}{more}"
            )
        return nodes

    def _input(self) -> Any:
        """Return the only input of the graph."""
        inputs = [x for x in self._graph.input if x.name not in self._arrays]
        if len(inputs) != 1:
            raise InputError(f"it has {len(inputs)} inputs; a network of nnxp has one")
        return inputs[0]

    def _shape(
        self,
        inputs: Any,
        given: tuple[int, ...] | None,
        arrays: Mapping[str, Host],
        nodes: list[Any],
    ) -> tuple[int | None, tuple[int, ...]]:
        """Return the fixed number of examples if there is one, and the shape of one example."""
        dims = [d.dim_value or None for d in inputs.type.tensor_type.shape.dim]
        batch, known = (dims[0], dims[1:]) if dims else (None, [])
        for node in nodes:  # a matrix gives the number of features of the inputs
            if not given and None in known and len(known) == 1 and node.input[0] == inputs.name:
                matrix = arrays.get(node.input[1]) if len(node.input) > 1 else None
                if node.op_type in ("Gemm", "MatMul") and matrix is not None and matrix.ndim == 2:
                    flipped = any(a.name == "transB" and a.i for a in node.attribute)
                    known = [matrix.shape[1 if flipped else 0]]
        if given is not None and (
            len(given) != len(known)
            or any(n not in (None, m) for n, m in zip(known, given, strict=True))
        ):
            said = ", ".join("any" if n is None else str(n) for n in known)
            raise InputError(f"its examples have the shape ({said}), not {given}")
        shape = given or known
        if not shape or None in shape:
            raise _OpenShapeError(
                "the file does not have the shape of its inputs; give the shape of one example: "
                "nnxp.import_onnx(path, shape=(3, 224, 224))"
            )
        return batch, tuple(n for n in shape if n is not None)

    def _array(self, tensor: Any) -> Host:
        """Return an array of the file; its numbers must be in the file, and finite."""
        if tensor.data_location or tensor.external_data:
            raise InputError(
                f"its array {tensor.name!r:.60} is in another file; make one file: "
                'onnx.save(onnx.load("network.onnx"), "one.onnx")'
            )
        if tensor.data_type not in (*_ARRAYS, _STRING):
            raise InputError(f"its array {tensor.name!r:.60} has a dtype that nnxp does not read")
        x: Host = self._numpy_helper.to_array(tensor)
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise InputError(f"its {tensor.name!r:.60} holds a number that is not finite")
        return x

    def _attribute(self, attribute: Any) -> Any:
        """Return an attribute: a number, bytes, a list of them, or an array."""
        x = self._helper.get_attribute_value(attribute)
        if hasattr(x, "data_type"):
            return self._array(x)
        return list(x) if attribute.type > 5 else x
