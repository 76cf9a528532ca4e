"""Peers: one training task, written for each library in the usual way of its users.

`main` is the whole process of one peer: it reads the MNIST files in a folder and trains a network.
A peer imports its library when it is created; the module imports only NumPy, so that the time and
memory of a peer include no other library.
"""

from __future__ import annotations

import gzip
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import resource  # not on Windows

# A layer is its name and its settings: ("affine", outputs), ("conv", outputs, kernel size,
# padding), ("relu",), ("tanh",), ("pool",), which halves an image, ("flatten",), ("batch_norm",)
# and ("dropout", rate).
Layers = tuple[tuple[Any, ...], ...]


def dense(*hidden: int, then: Layers = (("relu",),)) -> Layers:
    """Return affine layers with the layers `then` after each."""
    return tuple(layer for width in hidden for layer in (("affine", width), *then))


def convolutions(*channels: int | str, kernel: int, padding: int) -> Layers:
    """Return convolutions, each with ReLU, and pools where there is a ``"pool"``; flattened."""
    layers: list[tuple[Any, ...]] = []
    for each in channels:
        layers += [("pool",)] if each == "pool" else [("conv", each, kernel, padding), ("relu",)]
    return (*layers, ("flatten",))


class Task(NamedTuple):
    """A training task.

    An affine layer follows the last of `layers`. It has an output for each class, for softmax and
    the mean cross-entropy; if labels are targets, it has an output for each target, for half the
    squared error.
    """

    layers: Layers
    batch_size: int
    optimizer: str = "SGD"  # one of RATES
    device: str = "cpu"  # or "cuda"
    rate: float | None = None  # None means the rate in RATES


# The optimizers with their learning rates. Their other settings are PyTorch's defaults, and 0.9 for
# Momentum.
RATES = {"SGD": 0.1, "Momentum": 0.01, "Adam": 0.001, "AdamW": 0.001}
WEIGHT_DECAY = 0.01  # of AdamW

TASKS = {
    "small": Task(dense(50, 30), 100),
    "wide": Task(dense(512, 256), 128),
    "deep": Task(dense(*(256,) * 8), 128),
    "huge": Task(dense(4096, 4096), 4096),
    "tiny": Task(dense(32, 16, then=(("tanh",),)), 100, "Adam"),
    "lenet": Task(
        (*convolutions(20, "pool", 50, "pool", kernel=5, padding=0), *dense(500)), 64, rate=0.01
    ),
    "3x3": Task(
        convolutions(16, 16, "pool", 32, 32, "pool", kernel=3, padding=1), 64, rate=0.01
    ),
    "lenet5": Task(
        (*convolutions(6, "pool", 16, "pool", kernel=5, padding=0), *dense(120, 84)),
        128, "Adam", rate=3e-4,
    ),
    "batch_norm": Task(dense(512, 256, then=(("batch_norm",), ("relu",))), 128),
    "dropout": Task(dense(512, 256, then=(("relu",), ("dropout", 0.2))), 128),
}  # fmt: skip


def describe(layers: Layers, shape: tuple[int, ...], outputs: int) -> list[tuple[Any, ...]]:
    """Return the layers and the last one, with the number of inputs after a layer's name.

    Parameters
    ----------
    layers : sequence of tuple
    shape : (int,) or (int, int, int)
        The shape of an example: features, or channels, height and width of a square image.
    outputs : int
        The outputs of the last layer.
    """
    described: list[tuple[Any, ...]] = []
    inputs, side = shape[0], shape[-1]
    for name, *settings in (*layers, ("affine", outputs)):
        has_inputs = name in ("affine", "conv", "batch_norm")
        described.append((name, inputs, *settings) if has_inputs else (name, *settings))
        if name == "conv":
            inputs, side = settings[0], side + 2 * settings[2] - settings[1] + 1
        elif name == "pool":
            side //= 2
        elif name == "flatten":
            inputs *= side * side
        elif name == "affine":
            inputs = settings[0]
    return described


class Peer:
    """A network and its data set in one library.

    Parameters
    ----------
    task : Task
        The network, its optimizer, batch size and device.
    inputs : (examples, features) or (examples, channels, height, width) array
        Images as uint8, which are divided by 255, or float32 numbers. The number of examples must
        be a multiple of the batch size.
    labels : (examples,) integer array or (examples, outputs) float32 array
        The class of each example, or its targets.
    """

    def __init__(self, task: Task, inputs: np.ndarray, labels: np.ndarray) -> None:
        self.task = task
        self.rate = task.rate or RATES[task.optimizer]
        self.rng = np.random.default_rng(0)
        self.batches = len(inputs) // task.batch_size
        self.has_classes = labels.ndim == 1
        outputs = int(labels.max()) + 1 if self.has_classes else labels.shape[1]
        self.layers = describe(task.layers, inputs.shape[1:], outputs)
        self.weights = []  # in PyTorch's shapes; of affine layers (inputs, outputs)
        for name, *settings in self.layers:
            if name == "conv":
                m, n, size, _ = settings
                self.weights.append(self.draw((n, m, size, size), m * size * size))
            elif name == "affine":
                self.weights.append(self.draw(tuple(settings), settings[0]))
        self.build(inputs, labels)

    def draw(self, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        return self.rng.normal(0, (2 / fan_in) ** 0.5, shape).astype(np.float32)

    @property
    def widths(self) -> list[int]:
        """The widths of a network of affine layers."""
        return [len(self.weights[0]), *(W.shape[1] for W in self.weights)]

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        """Build the network from `weights` and zero biases, and prepare the data set."""
        raise NotImplementedError

    def epoch(self) -> None:
        """Train one epoch in a new random order, and wait until the device has finished."""
        raise NotImplementedError

    def asarray(self, x: np.ndarray) -> Any:
        """Return float32 inputs as an array of this library, on its device."""
        return x

    def predict(self, x: Any) -> Any:
        """Return scores or probabilities, after the device has finished."""
        raise NotImplementedError

    def predictor(self, x: Any) -> Callable[[Any], Any]:
        """Return the fastest function that predicts for inputs like these."""
        return self.predict

    def to_host(self, y: Any) -> np.ndarray:
        """Return predictions as a NumPy array."""
        return np.asarray(y)

    def order(self) -> np.ndarray:
        """Return the indices of the examples in a new random order, a row for each batch."""
        rows = self.rng.permutation(self.batches * self.task.batch_size).astype(np.int32)
        return rows.reshape(self.batches, -1)


class Products(Peer):
    """Only the matrix products of a step: a lower bound of its time."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        xp = np
        if self.task.device == "cuda":
            import cupy as xp
        self.xp = xp
        self.wait = cupy_wait(self.task.device)
        W = self.weights = [xp.asarray(W) for W in self.weights]
        batch = self.task.batch_size
        y, dy = (
            [xp.asarray(self.rng.random((batch, n), np.float32)) for n in self.widths]
            for _ in range(2)
        )
        layers = range(len(W))
        self.products = [(y[i], W[i], y[i + 1]) for i in layers]  # left, right, out
        for i in reversed(layers):
            self.products.append((y[i].T, dy[i + 1], xp.empty_like(W[i])))
            if i:  # the inputs of the network need no gradient
                self.products.append((dy[i + 1], W[i].T, dy[i]))

    def epoch(self) -> None:
        for _ in range(self.batches):
            for left, right, out in self.products:
                self.xp.matmul(left, right, out=out)
        self.wait()

    def asarray(self, x: np.ndarray) -> Any:
        self.outputs = [self.xp.empty((len(x), n), np.float32) for n in self.widths[1:]]
        return self.xp.asarray(x)

    def predict(self, x: Any) -> Any:
        for W, out in zip(self.weights, self.outputs, strict=True):
            x = self.xp.matmul(x, W, out=out)
        self.wait()
        return x


class Nnxp(Peer):
    """nnxp, through its public interface; `options` are passed to its trainer."""

    def __init__(self, *args: Any, device: str | None = None, **options: bool) -> None:
        self.own_device, self.options = device, options
        super().__init__(*args)

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        import nnxp

        self.wait = cupy_wait(self.task.device)
        self.device = nnxp.device(self.own_device or self.task.device)
        place = {"rng": self.rng, "device": self.device}
        kinds: dict[str, Callable[..., Any]] = {
            "affine": partial(nnxp.Affine, **place),
            "conv": lambda i, o, size, pad: nnxp.Conv2D(i, o, size, padding=pad, **place),
            "batch_norm": partial(nnxp.BatchNorm, device=self.device),
            "dropout": partial(nnxp.Dropout, **place),
            "pool": partial(nnxp.MaxPool2D, 2),
            "relu": nnxp.ReLU,
            "tanh": nnxp.Tanh,
            "flatten": nnxp.Flatten,
        }
        self.network = nnxp.Sequential([kinds[name](*settings) for name, *settings in self.layers])
        for number, W in enumerate(self.weights, start=1):
            self.network.parameters()[f"W{number}"] = self.device.asarray(W)
        optimizer = getattr(nnxp, self.task.optimizer)(self.rate)
        loss = nnxp.SoftmaxWithLoss() if self.has_classes else nnxp.MeanSquaredError()
        self.trainer = nnxp.Trainer(self.network, loss, optimizer, **self.options)
        self.examples = nnxp.data.Dataset(inputs, labels)
        self.epoch_batches = nnxp.data.Batches(
            self.examples, self.task.batch_size, device=self.device, dtype="float32", rng=self.rng
        )

    def epoch(self) -> None:
        self.trainer.train_epoch(self.epoch_batches)
        self.wait()

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
        """Train an epoch as a user does; return its losses and accuracies."""
        import nnxp

        (*_, record) = self.trainer.fit(
            self.examples, epochs=1, batch_size=self.task.batch_size, rng=self.rng,
            validation=nnxp.data.Dataset(inputs, labels),
        )  # fmt: skip
        return (record.train_loss, record.train_accuracy,
                record.validation_loss, record.validation_accuracy)  # fmt: skip

    def asarray(self, x: np.ndarray) -> Any:
        return self.device.asarray(x)

    def predictor(self, x: Any) -> Callable[[Any], Any]:
        return self.network.compiled(x) if self.options.get("compiled") else self.predict

    def predict(self, x: Any) -> Any:
        y = self.network.predict(x)
        self.wait()
        return y

    def to_host(self, y: Any) -> np.ndarray:
        return self.device.to_host(y)


class Torch(Peer):
    """PyTorch, eager; `options` are passed to its optimizer."""

    def __init__(self, *args: Any, channels_last: bool = False, **options: bool) -> None:
        self.channels_last, self.options = channels_last, options
        super().__init__(*args)

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        import torch

        # Passed to each call: a changed default device would slow down all calls of PyTorch.
        self.on_device = {"device": self.task.device}
        self.torch = torch
        self.wait = torch.cuda.synchronize if self.task.device == "cuda" else lambda: None
        nn = torch.nn
        kinds: dict[str, Callable[..., Any]] = {
            "affine": nn.Linear,
            "conv": lambda i, o, size, pad: nn.Conv2d(i, o, size, padding=pad),
            "batch_norm": nn.BatchNorm1d,
            "dropout": nn.Dropout,
            "pool": partial(nn.MaxPool2d, 2),
            "relu": nn.ReLU,
            "tanh": nn.Tanh,
            "flatten": nn.Flatten,
        }
        layers = [kinds[name](*settings) for name, *settings in self.layers]
        weighted = [x for x in layers if isinstance(x, nn.Linear | nn.Conv2d)]
        with torch.no_grad():
            for layer, W in zip(weighted, self.weights, strict=True):
                layer.weight.copy_(torch.tensor(W.T if W.ndim == 2 else W))
                layer.bias.zero_()
        self.model = nn.Sequential(*layers).to(self.task.device)
        if self.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.forward = self.model
        squared = nn.MSELoss()
        self.loss = nn.CrossEntropyLoss() if self.has_classes else lambda y, t: squared(y, t) / 2
        kind, own = {
            "SGD": (torch.optim.SGD, {}),
            "Momentum": (torch.optim.SGD, {"momentum": 0.9}),
            "Adam": (torch.optim.Adam, {}),
            "AdamW": (torch.optim.AdamW, {"weight_decay": WEIGHT_DECAY}),
        }[self.task.optimizer]
        self.optimizer = kind(self.model.parameters(), lr=self.rate, **own, **self.options)
        self.inputs, self.labels = self.tensors(inputs, labels)

    def tensors(self, inputs: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        x = self.torch.from_numpy(as_float(inputs)).to(self.task.device)
        if self.channels_last:
            x = x.to(memory_format=self.torch.channels_last)
        dtype = self.torch.int64 if self.has_classes else self.torch.float32
        return x, self.torch.tensor(labels, dtype=dtype, **self.on_device)

    def take(self, rows: Any) -> Any:
        x = self.inputs[rows]
        return x.to(memory_format=self.torch.channels_last) if self.channels_last else x

    def step(self, rows: Any) -> None:
        self.optimizer.zero_grad()
        self.loss(self.forward(self.take(rows)), self.labels[rows]).backward()
        self.optimizer.step()

    def epoch(self) -> None:
        self.model.train()
        order = self.torch.randperm(len(self.inputs), **self.on_device)
        for rows in order.split(self.task.batch_size):
            self.step(rows)
        self.wait()

    def fit(self, inputs: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
        """Train an epoch and evaluate as `Nnxp.fit` does; return its losses and accuracies."""
        torch = self.torch
        self.model.train()
        sums = torch.zeros(2, **self.on_device)
        for rows in torch.randperm(len(self.inputs), **self.on_device).split(self.task.batch_size):
            self.optimizer.zero_grad()
            y, right = self.forward(self.take(rows)), self.labels[rows]
            loss = self.loss(y, right)
            loss.backward()
            self.optimizer.step()
            with torch.no_grad():
                sums += torch.stack([loss * len(rows), (y.argmax(1) == right).sum()])
        self.model.eval()
        evaluated = torch.zeros(2, **self.on_device)
        with torch.inference_mode():
            for x, right in zip(
                *(whole.split(1000) for whole in self.tensors(inputs, labels)), strict=True
            ):
                y = self.model(x)
                loss = self.loss(y, right) * len(x)
                evaluated += torch.stack([loss, (y.argmax(1) == right).sum()])
        return (*(sums / len(self.inputs)).tolist(), *(evaluated / len(inputs)).tolist())

    def asarray(self, x: np.ndarray) -> Any:
        return self.torch.tensor(x, **self.on_device)

    def predict(self, x: Any) -> Any:
        if self.model.training:
            self.model.eval()
        with self.torch.inference_mode():
            y = self.model(x)
        self.wait()
        return y

    def to_host(self, y: Any) -> np.ndarray:
        return y.cpu().numpy()


class TorchCompiled(Torch):
    """PyTorch with a compiled model."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        super().build(inputs, labels)
        self.forward = self.torch.compile(self.model)


class TorchGraph(Torch):
    """PyTorch with the whole step captured in a CUDA graph."""

    def __init__(self, task: Task, *args: Any) -> None:
        options = {"capturable": True} if task.optimizer in ("Adam", "AdamW") else {}
        super().__init__(task, *args, **options)

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        super().build(inputs, labels)
        cuda = self.torch.cuda
        self.rows = self.torch.arange(self.task.batch_size, **self.on_device)
        # PyTorch's documentation requires some steps on another stream before the capture.
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(3):
                super().step(self.rows)
        cuda.current_stream().wait_stream(stream)
        self.graph = cuda.CUDAGraph()
        with cuda.graph(self.graph):
            super().step(self.rows)

    def step(self, rows: Any) -> None:
        self.rows.copy_(rows)
        self.graph.replay()


class Jax(Peer):
    """JAX with a compiled step."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_platforms", self.task.device)
        # By default, JAX multiplies float32 on GPUs with fewer bits than the other peers.
        jax.config.update("jax_default_matmul_precision", "highest")
        self.jax = jax
        scores, self.step, state = jax_functions(self.layers, self.task.optimizer, self.rate)
        self.train = jax.jit(self.step, donate_argnums=0)
        self.scores = jax.jit(scores)
        params = []
        for W in self.weights:
            outputs = W.shape[0 if W.ndim == 4 else 1]
            params.append((jnp.asarray(W), jnp.zeros(outputs, "float32")))  # also if x64 is enabled
        self.state: tuple[Any, ...] = state(params)
        self.inputs = jax.device_put(as_float(inputs))
        self.labels = jnp.asarray(labels, dtype="int32" if self.has_classes else "float32")

    def epoch(self) -> None:
        for rows in self.order():
            self.state = self.train(self.state, self.inputs, self.labels, rows)
        self.jax.block_until_ready(self.state)

    def asarray(self, x: np.ndarray) -> Any:
        return self.jax.device_put(x)

    def predict(self, x: Any) -> Any:
        return self.scores(self.state[0], x).block_until_ready()


def jax_functions(
    layers: list[tuple[Any, ...]], optimizer: str, rate: float
) -> tuple[Callable[..., Any], ...]:
    """Return JAX functions for the scores, for a step, and for the state of new parameters."""
    import jax
    import jax.numpy as jnp

    simple = {
        "relu": jax.nn.relu,
        "tanh": jnp.tanh,
        "flatten": lambda x: x.reshape(len(x), -1),
        "pool": lambda x: jax.lax.reduce_window(
            x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"
        ),
    }
    if unknown := {name for name, *_ in layers} - simple.keys() - {"affine", "conv"}:
        raise RuntimeError(f"not written for {', '.join(sorted(unknown))}")

    def scores(params, x):
        own = iter(params)
        for name, *settings in layers:
            if name in simple:
                x = simple[name](x)
                continue
            W, b = next(own)
            if name == "conv":
                edges = [(settings[3],) * 2] * 2
                x = jax.lax.conv_general_dilated(x, W, (1, 1), edges) + b[:, None, None]
            else:
                x = x @ W + b
        return x

    def loss(params, x, labels):
        y = scores(params, x)
        if labels.ndim > 1:
            return ((y - labels) ** 2).mean() / 2
        return -jnp.take_along_axis(jax.nn.log_softmax(y), labels[:, None], axis=1).mean()

    def sgd(state, grads):
        return (jax.tree.map(lambda w, g: w - rate * g, state[0], grads),)

    def momentum(state, grads):
        params, v = state
        v = jax.tree.map(lambda v, g: 0.9 * v + g, v, grads)
        return jax.tree.map(lambda w, v: w - rate * v, params, v), v

    def adam(state, grads, decay=0.0):
        params, m, v, t = state
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        now = rate * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        kept = 1 - rate * decay
        params = jax.tree.map(
            lambda w, m, v: kept * w - now * m / (jnp.sqrt(v) + 1e-8), params, m, v
        )
        return params, m, v, t

    update, slots = {
        "SGD": (sgd, 0),
        "Momentum": (momentum, 1),
        "Adam": (adam, 2),
        "AdamW": (partial(adam, decay=WEIGHT_DECAY), 2),
    }[optimizer]

    def step(state, inputs, labels, rows):
        return update(state, jax.grad(loss)(state[0], inputs[rows], labels[rows]))

    def state(params):
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(slots)]
        return (params, *zeros, *([jnp.float32(0)] if slots == 2 else []))

    return scores, step, state


class JaxScan(Jax):
    """JAX with a compiled epoch: a scan over its steps."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        super().build(inputs, labels)

        def epoch(state, inputs, labels, order):
            def step(state, rows):
                return self.step(state, inputs, labels, rows), None

            return self.jax.lax.scan(step, state, order)[0]

        self.train = self.jax.jit(epoch, donate_argnums=0)

    def epoch(self) -> None:
        self.state = self.train(self.state, self.inputs, self.labels, self.order())
        self.jax.block_until_ready(self.state)


class ScikitLearn(Peer):
    """scikit-learn's MLPClassifier without momentum and weight penalty."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        from sklearn.neural_network import MLPClassifier

        options = (
            {"momentum": 0.0, "nesterovs_momentum": False} if self.task.optimizer == "SGD" else {}
        )
        self.model = MLPClassifier(
            self.widths[1:-1], solver=self.task.optimizer.lower(), alpha=0.0,
            learning_rate_init=self.rate, batch_size=self.task.batch_size,
            random_state=np.random.RandomState(0), **options,
        )  # fmt: skip
        self.inputs = as_float(inputs)
        self.labels = labels
        # scikit-learn creates its weights in the first step.
        first = slice(0, self.task.batch_size)
        self.model.partial_fit(
            self.inputs[first], labels[first], classes=np.arange(self.widths[-1])
        )
        for W, b, start in zip(
            self.model.coefs_, self.model.intercepts_, self.weights, strict=True
        ):
            W[...], b[...] = start, 0

    def epoch(self) -> None:
        self.model.partial_fit(self.inputs, self.labels)

    def predict(self, x: Any) -> Any:
        return self.model.predict_proba(x)


class Thinc(Peer):
    """thinc without weight averages and gradient clipping."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        from thinc import api

        layers = [api.Relu(nO=W.shape[1], nI=W.shape[0]) for W in self.weights[:-1]]
        layers.append(api.Softmax(nO=self.widths[-1], nI=self.widths[-2]))
        self.model = api.chain(*layers)
        self.model.initialize()
        for layer, W in zip(layers, self.weights, strict=True):
            layer.set_param("W", np.ascontiguousarray(W.T))
        kind = {"SGD": api.SGD, "Adam": api.Adam}[self.task.optimizer]
        self.optimizer = kind(self.rate, L2=0.0, grad_clip=0.0, use_averages=False)
        self.loss = api.CategoricalCrossentropy()
        self.inputs = as_float(inputs)
        self.labels = np.eye(self.widths[-1], dtype=np.float32)[labels]

    def epoch(self) -> None:
        batches = self.model.ops.multibatch(
            self.task.batch_size, self.inputs, self.labels, shuffle=True
        )
        for x, labels in batches:
            y, backward = self.model.begin_update(x)
            backward(self.loss.get_grad(y, labels))
            self.model.finish_update(self.optimizer)

    def predict(self, x: Any) -> Any:
        return self.model.predict(x)


class Tutorial(Peer):
    """NumPy as in tutorials: layer objects, dictionaries of float64 arrays, one-hot labels."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        self.params: dict[str, np.ndarray] = {}
        self.grads: dict[str, np.ndarray] = {}
        self.objects: list[Any] = []
        for number, W in enumerate(self.weights, start=1):
            self.params[f"W{number}"] = W.astype(np.float64)
            self.params[f"b{number}"] = np.zeros(W.shape[1])
            self.objects += [_Affine(self.params, self.grads, number), _Relu()]
        self.objects.pop()
        self.loss = _SoftmaxWithLoss()
        self.moments = {
            name: (np.zeros_like(w), np.zeros_like(w)) for name, w in self.params.items()
        }
        self.steps = 0
        self.inputs = inputs / 255
        self.labels = np.eye(self.widths[-1])[labels]

    def epoch(self) -> None:
        for rows in self.order():
            self.loss.forward(self.predict(self.inputs[rows]), self.labels[rows])
            dy = self.loss.backward()
            for layer in reversed(self.objects):
                dy = layer.backward(dy)
            self.update()

    def update(self) -> None:
        self.steps += 1
        for name in self.params:
            grad = self.grads[name]
            if self.task.optimizer == "SGD":
                self.params[name] -= self.rate * grad
            else:
                m, v = self.moments[name]
                m += 0.1 * (grad - m)
                v += 0.001 * (grad**2 - v)
                m_hat, v_hat = m / (1 - 0.9**self.steps), v / (1 - 0.999**self.steps)
                self.params[name] -= self.rate * m_hat / (np.sqrt(v_hat) + 1e-8)

    def predict(self, x: Any) -> Any:
        for layer in self.objects:
            x = layer.forward(x)
        return x


class _Affine:
    def __init__(self, params: dict, grads: dict, number: int) -> None:
        self.params, self.grads = params, grads
        self.W, self.b = f"W{number}", f"b{number}"

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.x = x
        return np.dot(x, self.params[self.W]) + self.params[self.b]

    def backward(self, dy: np.ndarray) -> np.ndarray:
        self.grads[self.W] = np.dot(self.x.T, dy)
        self.grads[self.b] = np.sum(dy, axis=0)
        return np.dot(dy, self.params[self.W].T)


class _Relu:
    def forward(self, x: np.ndarray) -> np.ndarray:
        self.positive = x > 0
        return np.where(self.positive, x, 0)

    def backward(self, dy: np.ndarray) -> np.ndarray:
        return dy * self.positive


class _SoftmaxWithLoss:
    def forward(self, scores: np.ndarray, labels: np.ndarray) -> float:
        e = np.exp(scores - np.max(scores, axis=1, keepdims=True))
        self.p, self.labels = e / np.sum(e, axis=1, keepdims=True), labels
        return -np.sum(labels * np.log(self.p + 1e-7)) / len(labels)

    def backward(self) -> np.ndarray:
        return (self.p - self.labels) / len(self.labels)


class OnnxRuntime(Nnxp):
    """onnxruntime, for predictions, with a file that nnxp exports."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        super().build(inputs, labels)
        import tempfile  # here, since it would count in the time of a process

        import onnxruntime

        import nnxp

        options = onnxruntime.SessionOptions()
        if os.environ.get("OMP_NUM_THREADS"):  # onnxruntime reads none of the variables
            options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            nnxp.export_onnx(self.network, path)
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )

    def epoch(self) -> None:
        """Do nothing: onnxruntime trains no network."""

    def predict(self, x: Any) -> Any:
        return self.session.run(None, {"input": x})[0]


PEERS: dict[str, Callable[..., Peer]] = {
    "products": Products,
    "nnxp": Nnxp,
    "nnxp, compiled": partial(Nnxp, capture=True, compiled=True),
    "nnxp, captured": partial(Nnxp, capture=True, compiled=False),
    "nnxp, plain steps": partial(Nnxp, capture=False),
    "nnxp on JAX": partial(Nnxp, device="jax:cpu", capture=True),
    "PyTorch, foreach": partial(Torch, foreach=True),
    "PyTorch, fused": partial(Torch, fused=True),
    "PyTorch, channels_last": partial(Torch, fused=True, channels_last=True),
    "PyTorch, compiled": partial(TorchCompiled, fused=True),
    "PyTorch, CUDA graph": TorchGraph,
    "JAX, step": Jax,
    "JAX, scan": JaxScan,
    "scikit-learn": ScikitLearn,
    "thinc": Thinc,
    "tutorial": Tutorial,
    "onnxruntime": OnnxRuntime,
}
# Written for networks of affine layers and ReLU, with SGD and Adam.
DENSE_ONLY = ("scikit-learn", "thinc", "tutorial")


def as_float(inputs: np.ndarray) -> np.ndarray:
    """Return inputs as float32, uint8 images scaled to the range from 0 to 1."""
    x = inputs.astype(np.float32)
    if inputs.dtype == np.uint8:
        x /= 255
    return x


def step_time(peer: Peer, seconds: float = 0) -> float:
    """Return the mean microseconds of a step, in epochs of so many seconds but at least one epoch.

    The epoch before is not measured: waking the BLAS threads takes some 50 ms, and those of
    another process need some time to fall asleep.
    """
    peer.epoch()
    epochs, start = 0, time.perf_counter()
    while not epochs or time.perf_counter() < start + seconds:
        peer.epoch()
        epochs += 1
    return (time.perf_counter() - start) / (epochs * peer.batches) * 1e6


def predict_time(peer: Peer, x: np.ndarray, seconds: float = 0.05) -> float:
    """Return the median microseconds of a prediction for `x`, from calls in `seconds` seconds."""
    inputs = peer.asarray(x)
    predict = peer.predictor(inputs)
    for _ in range(2):  # first unmeasured, as in `step_time`
        calls: list[float] = []
        end = time.perf_counter() + seconds
        while len(calls) < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            predict(inputs)
            calls.append(time.perf_counter() - start)
    return float(np.median(calls)) * 1e6  # `statistics` takes long to import


def cupy_wait(device: str) -> Callable[[], None]:
    """Return a function that waits until the CUDA device has finished; it does nothing on a CPU."""
    if device == "cpu":
        return lambda: None
    import cupy

    return cupy.cuda.get_current_stream().synchronize


def random_examples(
    rng: np.random.Generator, count: int, pixels: int = 784
) -> tuple[np.ndarray, np.ndarray]:
    """Return random images and labels in the layout of MNIST."""
    return rng.integers(0, 256, (count, pixels), np.uint8), np.arange(count) % 10


def peak_memory(usage: resource.struct_rusage) -> float:
    """Return the peak memory of a process in MiB."""
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Train the peer of the command line in its own process; if it cannot run, print one line."""
    name, folder, task, epochs, device = sys.argv[1:]
    try:
        train(name, Path(folder), TASKS[task]._replace(device=device), int(epochs))
    except (ImportError, RuntimeError, ValueError) as error:
        sys.exit(str(error).splitlines()[0])


def train(name: str, folder: Path, task: Task, epochs: int) -> None:
    """Read MNIST's files and train a peer."""
    images = any(layer == "conv" for layer, *_ in task.layers)
    if name.startswith("nnxp"):
        import nnxp

        dataset, _ = nnxp.data.load_mnist(folder, images=images)
        inputs, labels = dataset.inputs, dataset.labels
    else:
        for part in ("t10k", "train"):  # the test set, too, as nnxp does
            inputs, labels = (
                read_idx(next(folder.glob(f"{part}-{what}*")))
                for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
            )
        inputs = inputs[:, None] if images else inputs.reshape(len(inputs), -1)
    count = len(inputs) // task.batch_size * task.batch_size
    peer = PEERS[name](task, inputs[:count], labels[:count])
    for _ in range(epochs):
        peer.epoch()


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: a short header, then the values."""
    data = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
    ndim = data[3]
    shape = np.frombuffer(data, ">u4", ndim, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)
