"""Dtypes: every public call keeps float32, on every library."""

from __future__ import annotations

import numpy as np
import pytest
from tables import LAYERS, LOSSES

import nnxp
from nnxp.data import Batches, Dataset
from nnxp.initializers import INITIALIZERS
from nnxp.layers.activations import ACTIVATIONS
from nnxp.optimizers import OPTIMIZERS


def arrays_of_every_call(device):
    """Yield the name of each public call and every floating-point array that comes out of it."""

    def x(*shape):
        return device.asarray(np.random.default_rng(0).normal(size=shape), dtype="float32")

    yield "asarray", x(2)
    yield "asarray", device.asarray(np.ones(2, "float32"))
    yield "asarray", device.asarray(device.asarray(np.ones(2)), dtype="float32")
    for name, (make, inputs, outputs) in LAYERS.items():
        layer = make(device, "float32")
        yield name, layer.forward(x(*inputs))
        yield name, layer.forward(x(*inputs), training=True)
        yield name, layer.backward(x(*outputs))
        for array in (*layer.params.values(), *layer.grads.values()):
            yield name, array
        for array in layer.to(device).params.values():
            yield f"{name}.to", array
    for node in (nnxp.Add(), nnxp.Multiply()):
        yield repr(node), node.forward(x(2), x(2))
        for array in node.backward(x(2)):
            yield repr(node), array
    for name, (make, scores, labels) in LOSSES.items():
        loss = make()
        carried = labels.astype("float32") if labels.dtype.kind == "f" else labels
        yield name, loss.forward(device.asarray(scores, dtype="float32"), device.asarray(carried))
        yield name, loss.backward()
    yield "accuracy", nnxp.accuracy(x(4, 3), device.asarray([0, 1, 2, 0]))
    for name, initializer in INITIALIZERS.items():
        rng = np.random.default_rng(0)
        layer = nnxp.Affine(3, 2, rng=rng, initializer=initializer, device=device)
        yield f"initializer {name}", layer.params["W"]
    train = Dataset(np.full((8, 3), 77, np.uint8), np.arange(8) % 2)
    for name, kind in OPTIMIZERS.items():
        for activation in ACTIVATIONS:
            rng = np.random.default_rng(0)
            network = nnxp.mlp([3, 4, 2], rng=rng, activation=activation, device=device)
            # NumPy's float64 numbers promote where plain ones do not.
            optimizer = kind(learning_rate=np.float64(0.1))
            trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), optimizer)
            for inputs, labels in Batches(train, 3, device=device, dtype="float32", rng=rng):
                yield "Batches", inputs
                yield "step", trainer.step(inputs, labels)
            for array in (*network.parameters().values(), *network.gradients().values()):
                yield f"{name}, {activation}", array
            for slot in optimizer.state.values():
                for array in slot.values():
                    yield f"{name}'s state", array
            yield "predict", network.predict(x(2, 3))
            network.load_parameters(dict(network.parameters()))
            yield "load_parameters", network.parameters()["W1"]


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_float32_stays_float32(backend):
    seen = set()
    for call, array in arrays_of_every_call(backend.device):
        assert backend.device.holds(array), call
        assert array.dtype == backend.device.xp.float32, call
        seen.add(call)
    assert len(seen) > 40


def test_half_precision_is_refused():
    with pytest.raises(
        nnxp.InputError, match="unknown dtype 'float16'; .* known: float32, float64"
    ):
        nnxp.mlp([2, 2], rng=np.random.default_rng(0), dtype="float16")
    with pytest.raises(nnxp.InputError, match="got dtype bfloat16|unknown dtype 'bfloat16'"):
        nnxp.device("cpu").asarray([1.0], dtype="bfloat16")
