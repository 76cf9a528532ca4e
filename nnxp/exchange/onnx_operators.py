"""ONNX operators: conversion of each operator to a layer or a formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from nnxp.errors import InputError
from nnxp.exchange.onnx_graph import FORMULAS, Host, Node, Tracer, Value, as_written, per_feature
from nnxp.initializers import zeros
from nnxp.layers import (
    ELU,
    GELU,
    Affine,
    AveragePool2D,
    BatchNorm,
    Conv2D,
    Flatten,
    GlobalAveragePool2D,
    Layer,
    LayerNorm,
    LeakyReLU,
    MaxPool2D,
    ReLU,
    Reshape,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Standardize,
    Tanh,
)

_BATCH = -1  # stands for the number of examples in shapes


def read_operator(tracer: Tracer, node: Node) -> Value | Host:
    """Return the value of an operator from `OPERATORS` or `FOLDED`."""
    if node.operands and not any(isinstance(x, Value) for x in node.operands):
        return tracer.fold(node)
    if node.operator not in OPERATORS:
        raise InputError(f"{node} takes the outputs of a layer; nnxp has no layer for it")
    with np.errstate(all="ignore"):  # `filled` refuses numbers that are not finite
        return OPERATORS[node.operator](tracer, node)


def _constant(tracer: Tracer, node: Node) -> Host:
    for name, x in node.attributes.items():
        if name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
            return np.asarray(x, "float32") if "float" in name else np.asarray(x)
    raise InputError(f"{node} has no array")


def _same(tracer: Tracer, node: Node) -> Value:
    return node.value()


_FLOATING = (1, 10, 11)  # of ONNX: float32, float16, float64


def _cast(tracer: Tracer, node: Node) -> Value:
    if node.get("to") not in _FLOATING:
        raise InputError(f"{node} casts to a type that is not floating-point")
    return node.value()


def _gemm(tracer: Tracer, node: Node) -> Value:
    node.require(transA=0)
    W = node.weights(1, 2) * np.float64(node.get("alpha", 1.0))
    W = W.T if node.get("transB", 0) else W
    c = node.array(2)
    bias = np.zeros(W.shape[1]) if c is None else _bias(c, W.shape[1], node) * node.get("beta", 1.0)
    return tracer.layer(node, node.value(), tracer.affine(W, bias))


def _matmul(tracer: Tracer, node: Node) -> Value:
    W = node.weights(1, 2)
    layer = tracer.affine(W, np.zeros(W.shape[1]))
    return tracer.layer(node, node.value(), layer, bare=True)


def _bias(x: Host, size: int, what: object) -> Host:
    """Return a bias of a row of this many outputs."""
    if x.size not in (1, size) or x.size != math.prod(x.shape[-1:]):
        raise InputError(f"{what} has a bias of shape {x.shape} for {size} outputs")
    return np.broadcast_to(x.astype("float64").reshape(-1), (size,))


def _convolution(tracer: Tracer, node: Node) -> Value:
    x, W, b = node.value(), node.weights(1, 4), node.array(2)
    node.require(group=1, dilations=[1, 1], kernel_shape=list(W.shape[2:]))
    size = (W.shape[2], W.shape[3])
    layer = Conv2D(
        W.shape[1], W.shape[0], _short(size), rng=0, initializer=zeros, dtype=tracer.dtype,
        stride=_short(_pair(node, "strides")), padding=_short(_padding(x, node, size)),
    )  # fmt: skip
    tracer.filled(layer, W=W, **({} if b is None else {"b": b}))
    return tracer.layer(node, x, layer, bare=b is None)


def _pair(node: Node, name: str) -> tuple[int, int]:
    given = node.get(name, [1, 1])
    if not isinstance(given, list) or len(given) != 2:
        raise InputError(f"{node} has {name}={given!r:.60}, and nnxp's images have two axes")
    return given[0], given[1]


def _short(pair: tuple[int, int]) -> int | tuple[int, int]:
    """Return a pair of equal numbers as one number."""
    return pair[0] if pair[0] == pair[1] else pair


def _padding(x: Value, node: Node, size: tuple[int, int]) -> tuple[int, int]:
    """Return the padding, which must be the same at both sides."""
    if len(x.shape) != 3:
        raise InputError(f"{node} has inputs of shape {x.shape}, and nnxp's images have 3 axes")
    mode = node.get("auto_pad", b"NOTSET")
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        totals = [
            max((-(-n // step) - 1) * step + window - n, 0)
            for n, step, window in zip(x.shape[1:], _pair(node, "strides"), size, strict=True)
        ]
        pads = [n // 2 for n in totals] + [n - n // 2 for n in totals]
    else:
        pads = [0] * 4 if mode == b"VALID" else node.get("pads", [0] * 4)
    if len(pads) != 4 or pads[:2] != pads[2:]:
        raise InputError(f"{node} has padding {pads!r:.60}, and nnxp pads both sides equally")
    return pads[0], pads[1]


def _pool(kind: type[MaxPool2D | AveragePool2D]) -> Callable[[Tracer, Node], Value]:
    def read(tracer: Tracer, node: Node) -> Value:
        x, size, stride = node.value(), _pair(node, "kernel_shape"), _pair(node, "strides")
        padding = _padding(x, node, size)
        node.require(dilations=[1, 1])
        if node.get("ceil_mode", 0) and any(
            (n + 2 * p - window) % step
            for n, p, window, step in zip(x.shape[1:], padding, size, stride, strict=True)
        ):
            raise InputError(f"{node} has windows beyond the edge; nnxp leaves such windows out")
        counts = kind is MaxPool2D or node.get("count_include_pad", 0)
        if any(padding) and not counts:
            raise InputError(f"{node} does not count the padding; nnxp counts it as zeros")
        settings = {"stride": _short(stride), "padding": _short(padding)}
        return tracer.layer(node, x, kind(_short(size), **settings))

    return read


def _global_average_pool(tracer: Tracer, node: Node) -> Value:
    pooled = tracer.layer(node, node.value(), GlobalAveragePool2D())
    return tracer.layer(node, pooled, Reshape((*pooled.shape, 1, 1)))


def _mean(tracer: Tracer, node: Node) -> Value:
    x = node.value()
    axes = node.integers(1, "axes") or []
    if sorted(n % (len(x.shape) + 1) for n in axes) != [2, 3]:
        raise InputError(
            f"{node} is over the axes {axes!r:.60}; nnxp has only means over the pixels of images"
        )
    pooled = _global_average_pool(tracer, node)
    return pooled if node.get("keepdims", 1) else _reshaped(tracer, node, pooled, x.shape[:1])


def _reshaped(tracer: Tracer, node: Node, x: Value, shape: tuple[int, ...]) -> Value:
    """Return a value in another shape of the examples."""
    if shape == x.shape:
        return x
    if math.prod(shape) != math.prod(x.shape):
        raise InputError(f"{node} reshapes examples of shape {x.shape} to shape {shape}")
    return tracer.layer(node, x, Flatten() if len(shape) == 1 else Reshape(shape))


def _flatten(tracer: Tracer, node: Node) -> Value:
    x = node.value()
    if node.get("axis", 1) not in (1, -len(x.shape)):
        raise InputError(f"{node} flattens from axis {node.get('axis')}; nnxp flattens from axis 1")
    return _reshaped(tracer, node, x, (math.prod(x.shape),))


def _reshape(tracer: Tracer, node: Node) -> Value:
    x, target = node.value(), node.integers(1, "shape") or []
    size = math.prod(x.shape)
    if target[:1] and target[0] in (0, _BATCH, tracer.batch):
        rest = [x.shape[i] if n == 0 else n for i, n in enumerate(target[1:])]
        known = math.prod(n for n in rest if n != -1)
        if rest.count(-1) == 1 and known > 0 and size % known == 0:
            rest[rest.index(-1)] = size // known
        if all(n > 0 for n in rest) and math.prod(rest) == size and rest:
            return _reshaped(tracer, node, x, tuple(rest))
    if size == 1 and target == [-1]:
        return x  # a vector of the batch, which is a column in nnxp
    raise InputError(
        f"{node} reshapes examples of shape {x.shape} to {target!r:.60}; nnxp keeps the batch axis"
    )


def _squeeze(tracer: Tracer, node: Node) -> Value:
    x, axes = node.value(), node.integers(1, "axes")
    ndim = len(x.shape) + 1
    dropped = {n % ndim for n in axes or []} or {i + 1 for i, n in enumerate(x.shape) if n == 1}
    shape = tuple(n for i, n in enumerate(x.shape, 1) if i not in dropped)
    if 0 in dropped or not dropped:
        raise InputError(f"{node} drops the axis of the batch")
    return _reshaped(tracer, node, x, shape) if shape else x


def _unsqueeze(tracer: Tracer, node: Node) -> Value:
    x, axes = node.value(), node.integers(1, "axes") or []
    ndim = len(x.shape) + 1 + len(axes)
    added = {n % ndim for n in axes}
    if 0 in added:
        raise InputError(f"{node} adds an axis before that of the batch")
    lengths = iter(x.shape)
    shape = tuple(1 if i in added else next(lengths) for i in range(1, ndim))
    return _reshaped(tracer, node, x, shape)


def _shape(tracer: Tracer, node: Node) -> Host:
    shape = (_BATCH, *node.value().shape)
    return np.array(shape[node.get("start", 0) : node.get("end")], "int64")


def _batch_norm(tracer: Tracer, node: Node) -> Value:
    node.require(training_mode=0)
    arrays = [node.weights(i, 1) for i in range(1, 5)]
    momentum = 1 - as_written(node.get("momentum", 0.9))
    layer = BatchNorm(
        len(arrays[0]), dtype=tracer.dtype, epsilon=as_written(node.get("epsilon", 1e-5)),
        momentum=round(momentum, 7) if 0 < momentum <= 1 else 0.1,
    )  # fmt: skip
    names = ("gamma", "beta", "running_mean", "running_var")
    tracer.filled(layer, **dict(zip(names, arrays, strict=True)))
    return tracer.layer(node, node.value(), layer)


def _layer_norm(tracer: Tracer, node: Node) -> Value:
    x, axis = node.value(), node.get("axis", -1)
    features = x.shape[axis if axis < 0 else axis - 1 :] if axis else ()
    gamma, beta = node.array(1), node.array(2)
    if gamma is None or gamma.shape != features:
        raise InputError(f"{node} is over features of shape {features}; its scale must have it too")
    epsilon = as_written(node.get("epsilon", 1e-5))
    size = features[0] if len(features) == 1 else features
    layer = LayerNorm(size, epsilon=epsilon, dtype=tracer.dtype)
    tracer.filled(layer, gamma=gamma, **({} if beta is None else {"beta": beta}))
    return tracer.layer(node, x, layer)


def _softmax(tracer: Tracer, node: Node) -> Value:
    x = node.value()
    if node.get("axis", -1) not in (-1, len(x.shape)):
        raise InputError(
            f"{node} is over axis {node.get('axis')}; nnxp's softmax is over the last axis"
        )
    return tracer.layer(node, x, Softmax())


def _gelu(tracer: Tracer, node: Node) -> Value:
    approximate = node.get("approximate", b"none").decode()
    return tracer.layer(node, node.value(), GELU(approximate))


def _swish(tracer: Tracer, node: Node) -> Value:
    node.require(alpha=1.0)
    return tracer.layer(node, node.value(), SiLU())


def _elementwise(kind: type[Layer]) -> Callable[[Tracer, Node], Value]:
    return lambda tracer, node: tracer.layer(node, node.value(), kind())


def _add(tracer: Tracer, node: Node) -> Value:
    x, y = node.operand(0), node.operand(1)
    if isinstance(x, np.ndarray):
        x, y = y, x
    if isinstance(x, Value) and x.bare and isinstance(y, np.ndarray):
        (operand,), old = x.parents, x.layer
        if isinstance(old, Affine):
            bias = _bias(y, old.outputs, node)
            layer: Layer = tracer.affine(np.asarray(old.params["W"]), bias)
        else:
            assert isinstance(old, Conv2D)
            bias = per_feature(y, x.shape, node)
            layer = tracer.filled(
                Conv2D(
                    old.in_channels, old.out_channels, old.kernel_size, stride=old.stride,
                    padding=old.padding, rng=0, initializer=zeros, dtype=tracer.dtype,
                ),
                W=np.asarray(old.params["W"]), b=bias,
            )  # fmt: skip
        return tracer.layer(node, operand, layer)
    return _formula(tracer, node)


def _formula(tracer: Tracer, node: Node) -> Value:
    operands = [x for x in node.operands if x is not None]
    function = FORMULAS[node.operator]
    count = 3 if node.operator == "Where" else getattr(function, "nin", 1)  # of erf, 1
    if len(operands) != len(node.operands) or len(operands) != count:
        raise InputError(f"{node} has {len(node.operands)} operands; nnxp computes it with {count}")
    return tracer.formula(node, operands)


def _concat(tracer: Tracer, node: Node) -> Value:
    """Read the probabilities of two classes, 1 - p and p, as p."""
    operands = node.operands
    if len(operands) == 2 and node.get("axis") in (1, -1):
        q, p = operands
        if isinstance(p, Value) and isinstance(q, Value) and q.operator == "Sub":
            one, other = q.operands
            is_one = isinstance(one, np.ndarray) and one.size == 1 and one.item() == 1
            if is_one and other is p and isinstance(p.layer, Sigmoid) and p.shape == (1,):
                return p
    raise InputError(f"{node} joins the outputs of layers; nnxp has layers in a row")


def _scaler(tracer: Tracer, node: Node) -> Value:
    """Read scikit-learn's StandardScaler: (x - offset) * scale."""
    x = node.value()
    offset, scale = (np.array(node.get(name, []), "float64") for name in ("offset", "scale"))
    if len(x.shape) != 1 or scale.size not in (1, *x.shape) or offset.size not in (1, *x.shape):
        raise InputError(f"{node} does not have one number for each of {x.shape[0]} features")
    tracer.require_size(x.shape[0], node)
    if not scale.all():
        raise InputError(f"{node} multiplies by 0")
    layer = Standardize(x.shape[0], dtype=tracer.dtype)
    mean, std = (np.broadcast_to(a, x.shape) for a in (offset, 1 / scale))
    tracer.filled(layer, mean=mean, std=std, count=np.ones(1))
    return tracer.layer(node, x, layer)


OPERATORS: dict[str, Callable[[Tracer, Node], Value | Host]] = {
    "Add": _add,
    "AveragePool": _pool(AveragePool2D),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "Conv": _convolution,
    "Dropout": _same,
    "Elu": lambda tracer, node: tracer.layer(
        node, node.value(), ELU(as_written(node.get("alpha", 1.0)))
    ),
    "Flatten": _flatten,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": _same,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda tracer, node: tracer.layer(
        node, node.value(), LeakyReLU(as_written(node.get("alpha", 0.01)))
    ),
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "MaxPool": _pool(MaxPool2D),
    "ReduceMean": _mean,
    "Relu": _elementwise(ReLU),
    "Reshape": _reshape,
    "Scaler": _scaler,
    "Shape": _shape,
    "Sigmoid": _elementwise(Sigmoid),
    "Softmax": _softmax,
    "Softplus": _elementwise(Softplus),
    "Squeeze": _squeeze,
    "Swish": _swish,
    "Tanh": _elementwise(Tanh),
    "Unsqueeze": _unsqueeze,
} | dict.fromkeys(FORMULAS.keys() - {"Add"}, _formula)
"""The function that reads each operator. Those in `FOLDED` are read only with constant inputs."""

FOLDED = {"CastLike", "Gather", "Slice", "Transpose"}
