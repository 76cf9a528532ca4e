"""Peers: one training task, written for each library as its own users would write it.

Run by itself, it is a cold start: ``python peers.py NAME FOLDER DEVICE`` reads MNIST's files from a
folder and trains the small network for an epoch. Nothing but NumPy is imported before a peer is
made, so that each one pays for its own imports and for no other's.
"""

from __future__ import annotations

import gzip
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Task(NamedTuple):
    """What is trained: a ReLU network with softmax and the batch's mean cross-entropy."""

    hidden: tuple[int, ...]
    batch_size: int
    optimizer: str  # "SGD" with a rate of 0.1, or "Adam" with one of 0.001
    device: str  # "cpu" or "cuda"


TASKS = {
    "small": Task((50, 30), 100, "SGD", "cpu"),
    "wide": Task((512, 256), 128, "SGD", "cpu"),
    "deep": Task((256,) * 8, 128, "SGD", "cpu"),
    "huge": Task((4096, 4096), 4096, "SGD", "cpu"),
}


class Peer:
    """A network with its data set, in one library.

    Parameters
    ----------
    task : Task
    inputs : (examples, pixels) uint8 array
        As many examples as fill their batches.
    labels : (examples,) integer array
    """

    def __init__(self, task: Task, inputs: np.ndarray, labels: np.ndarray) -> None:
        self.task = task
        self.rng = np.random.default_rng(0)
        self.batches = len(inputs) // task.batch_size
        self.widths = [inputs.shape[1], *task.hidden, int(labels.max()) + 1]
        self.weights = [
            self.rng.normal(0, (2 / m) ** 0.5, (m, n)).astype(np.float32)
            for m, n in itertools.pairwise(self.widths)
        ]
        self.build(inputs, labels)

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        """Make the network of `weights` and of biases 0, and prepare the data set for training."""
        raise NotImplementedError

    def epoch(self) -> None:
        """Take a step on each batch, in a new random order, and wait until all are taken."""
        raise NotImplementedError

    def ready(self, x: np.ndarray) -> Any:
        """Return float32 inputs as this library's array."""
        return x

    def predict(self, x: Any) -> Any:
        """Return scores or probabilities, after waiting for them."""
        raise NotImplementedError

    def host(self, y: Any) -> np.ndarray:
        """Return predictions as a NumPy array."""
        return np.asarray(y)

    def order(self) -> np.ndarray:
        """Return the examples' numbers in a new order, a row for each batch."""
        rows = self.rng.permutation(self.batches * self.task.batch_size).astype(np.int32)
        return rows.reshape(self.batches, -1)


class Products(Peer):
    """The matrix products that a step cannot do without, and nothing else: the limit."""

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
            if i:  # the first layer's inputs need no gradient
                self.products.append((dy[i + 1], W[i].T, dy[i]))

    def epoch(self) -> None:
        for _ in range(self.batches):
            for left, right, out in self.products:
                self.xp.matmul(left, right, out=out)
        self.wait()

    def ready(self, x: np.ndarray) -> Any:
        self.outputs = [self.xp.empty((len(x), n), np.float32) for n in self.widths[1:]]
        return self.xp.asarray(x)

    def predict(self, x: Any) -> Any:
        for W, out in zip(self.weights, self.outputs, strict=True):
            x = self.xp.matmul(x, W, out=out)
        self.wait()
        return x


class Nnxp(Peer):
    """nnxp, by its public calls; `options` go to its trainer."""

    def __init__(self, *args: Any, **options: bool) -> None:
        self.options = options
        super().__init__(*args)

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        import nnxp

        self.wait = cupy_wait(self.task.device)
        self.device = nnxp.device(self.task.device)
        self.network = nnxp.mlp(self.widths, rng=self.rng, device=self.device)
        for number, W in enumerate(self.weights, start=1):
            self.network.parameters()[f"W{number}"] = self.device.asarray(W)
        optimizer = {"SGD": nnxp.SGD(0.1), "Adam": nnxp.Adam(0.001)}[self.task.optimizer]
        parts = self.network, nnxp.SoftmaxWithLoss(), optimizer
        self.trainer = nnxp.Trainer(*parts, **self.options)
        self.examples = nnxp.data.Batches(
            nnxp.data.Dataset(inputs, labels), self.task.batch_size,
            device=self.device, dtype="float32", rng=self.rng,
        )  # fmt: skip

    def epoch(self) -> None:
        self.trainer.train_epoch(self.examples)
        self.wait()

    def ready(self, x: np.ndarray) -> Any:
        return self.device.asarray(x)

    def predict(self, x: Any) -> Any:
        y = self.network.predict(x)
        self.wait()
        return y

    def host(self, y: Any) -> np.ndarray:
        return self.device.to_host(y)


class Torch(Peer):
    """PyTorch, eager; `options` go to its optimizer."""

    def __init__(self, *args: Any, **options: bool) -> None:
        self.options = options
        super().__init__(*args)

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        import torch

        # Named each time, since a default other than PyTorch's own slows each of its calls.
        self.place = {"device": self.task.device}
        self.torch = torch
        self.wait = torch.cuda.synchronize if self.task.device == "cuda" else lambda: None
        layers: list[Any] = []
        for W in self.weights:
            layers += [torch.nn.Linear(*W.shape, **self.place), torch.nn.ReLU()]
            with torch.no_grad():
                layers[-2].weight.copy_(torch.tensor(W.T))
                layers[-2].bias.zero_()
        self.model = torch.nn.Sequential(*layers[:-1])
        self.forward = self.model
        self.loss = torch.nn.CrossEntropyLoss()
        kind, rate = {"SGD": (torch.optim.SGD, 0.1), "Adam": (torch.optim.Adam, 0.001)}[
            self.task.optimizer
        ]
        self.optimizer = kind(self.model.parameters(), lr=rate, **self.options)
        self.inputs = torch.from_numpy(scale_images(inputs)).to(self.task.device)
        self.labels = torch.tensor(labels, dtype=torch.int64, **self.place)

    def step(self, rows: Any) -> None:
        self.optimizer.zero_grad()
        self.loss(self.forward(self.inputs[rows]), self.labels[rows]).backward()
        self.optimizer.step()

    def epoch(self) -> None:
        order = self.torch.randperm(len(self.inputs), **self.place)
        for rows in order.split(self.task.batch_size):
            self.step(rows)
        self.wait()

    def ready(self, x: np.ndarray) -> Any:
        return self.torch.tensor(x, **self.place)

    def predict(self, x: Any) -> Any:
        with self.torch.inference_mode():
            y = self.model(x)
        self.wait()
        return y

    def host(self, y: Any) -> np.ndarray:
        return y.cpu().numpy()


class TorchCompiled(Torch):
    """PyTorch, its model compiled."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        super().build(inputs, labels)
        self.forward = self.torch.compile(self.model)


class TorchGraph(Torch):
    """PyTorch, a whole step captured in a CUDA graph."""

    def __init__(self, task: Task, *args: Any) -> None:
        super().__init__(task, *args, **({"capturable": True} if task.optimizer == "Adam" else {}))

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        super().build(inputs, labels)
        cuda = self.torch.cuda
        self.rows = self.torch.arange(self.task.batch_size, **self.place)
        # Its documentation asks for some steps on another stream before the capture.
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
    """JAX, one jitted step a call."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_platforms", self.task.device)
        # Its default for float32 on GPUs has fewer bits than the others compute in.
        jax.config.update("jax_default_matmul_precision", "highest")
        self.jax = jax

        def scores(params, x):
            for W, b in params[:-1]:
                x = jax.nn.relu(x @ W + b)
            W, b = params[-1]
            return x @ W + b

        def loss(params, x, labels):
            logs = jax.nn.log_softmax(scores(params, x))
            return -jnp.take_along_axis(logs, labels[:, None], axis=1).mean()

        def sgd(state, grads):
            return (jax.tree.map(lambda w, g: w - 0.1 * g, state[0], grads),)

        def adam(state, grads):
            params, m, v, t = state
            t = t + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
            rate = 0.001 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            params = jax.tree.map(lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-8), params, m, v)
            return params, m, v, t

        def step(state, inputs, labels, rows):
            return update(state, jax.grad(loss)(state[0], inputs[rows], labels[rows]))

        update = {"SGD": sgd, "Adam": adam}[self.task.optimizer]
        self.step = step
        self.train = jax.jit(step, donate_argnums=0)
        self.scores = jax.jit(scores)
        params = [(jnp.asarray(W), jnp.zeros(W.shape[1])) for W in self.weights]
        self.state: tuple[Any, ...] = (params,)
        if self.task.optimizer == "Adam":
            m, v = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
            self.state = (params, m, v, jnp.float32(0))
        self.inputs = jax.device_put(scale_images(inputs))
        self.labels = jnp.asarray(labels, dtype=jnp.int32)

    def epoch(self) -> None:
        for rows in self.order():
            self.state = self.train(self.state, self.inputs, self.labels, rows)
        self.jax.block_until_ready(self.state)

    def ready(self, x: np.ndarray) -> Any:
        return self.jax.device_put(x)

    def predict(self, x: Any) -> Any:
        return self.scores(self.state[0], x).block_until_ready()


class JaxScan(Jax):
    """JAX, a whole epoch of steps in one jitted scan."""

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
    """scikit-learn's MLPClassifier, without its momentum and weight penalty."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        from sklearn.neural_network import MLPClassifier

        options = (
            {"learning_rate_init": 0.1, "momentum": 0.0, "nesterovs_momentum": False}
            if self.task.optimizer == "SGD"
            else {"learning_rate_init": 0.001}
        )
        self.model = MLPClassifier(
            self.task.hidden, solver=self.task.optimizer.lower(), alpha=0.0,
            batch_size=self.task.batch_size, random_state=np.random.RandomState(0), **options,
        )  # fmt: skip
        self.inputs = scale_images(inputs)
        self.labels = labels
        # Its weights exist after a first step only.
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
    """thinc, without its averages of weights and its clipping of gradients."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        from thinc import api

        layers = [api.Relu(nO=W.shape[1], nI=W.shape[0]) for W in self.weights[:-1]]
        layers.append(api.Softmax(nO=self.widths[-1], nI=self.widths[-2]))
        self.model = api.chain(*layers)
        self.model.initialize()
        for layer, W in zip(layers, self.weights, strict=True):
            layer.set_param("W", np.ascontiguousarray(W.T))
        kind, rate = {"SGD": (api.SGD, 0.1), "Adam": (api.Adam, 0.001)}[self.task.optimizer]
        self.optimizer = kind(rate, L2=0.0, grad_clip=0.0, use_averages=False)
        self.loss = api.CategoricalCrossentropy()
        self.inputs = scale_images(inputs)
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
    """NumPy as books teach it: objects for layers, dictionaries of float64 arrays, one-hot rows."""

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        self.params: dict[str, np.ndarray] = {}
        self.grads: dict[str, np.ndarray] = {}
        self.layers: list[Any] = []
        for number, W in enumerate(self.weights, start=1):
            self.params[f"W{number}"] = W.astype(np.float64)
            self.params[f"b{number}"] = np.zeros(W.shape[1])
            self.layers += [_Affine(self.params, self.grads, number), _Relu()]
        self.layers.pop()
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
            for layer in reversed(self.layers):
                dy = layer.backward(dy)
            self.update()

    def update(self) -> None:
        self.steps += 1
        for name in self.params:
            grad = self.grads[name]
            if self.task.optimizer == "SGD":
                self.params[name] -= 0.1 * grad
            else:
                m, v = self.moments[name]
                m += 0.1 * (grad - m)
                v += 0.001 * (grad**2 - v)
                m_hat, v_hat = m / (1 - 0.9**self.steps), v / (1 - 0.999**self.steps)
                self.params[name] -= 0.001 * m_hat / (np.sqrt(v_hat) + 1e-8)

    def predict(self, x: Any) -> Any:
        for layer in self.layers:
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


PEERS: dict[str, Callable[..., Peer]] = {
    "products": Products,
    "nnxp": partial(Nnxp, capture=True),
    "nnxp, plain steps": partial(Nnxp, capture=False),
    "PyTorch, foreach": partial(Torch, foreach=True),
    "PyTorch, fused": partial(Torch, fused=True),
    "PyTorch, compiled": TorchCompiled,
    "PyTorch, CUDA graph": TorchGraph,
    "JAX, step": Jax,
    "JAX, scan": JaxScan,
    "scikit-learn": ScikitLearn,
    "thinc": Thinc,
    "tutorial": Tutorial,
}


def scale_images(inputs: np.ndarray) -> np.ndarray:
    """Return bytes as float32 from 0 to 1."""
    x = inputs.astype(np.float32)
    x /= 255
    return x


def step_time(peer: Peer) -> float:
    """Return the microseconds of a step, over an epoch.

    An epoch before it wakes BLAS's threads, which takes some 50 ms, and lets those of another
    process fall asleep.
    """
    peer.epoch()
    start = time.perf_counter()
    peer.epoch()
    return (time.perf_counter() - start) / peer.batches * 1e6


def predict_time(peer: Peer, x: np.ndarray, seconds: float = 0.05) -> float:
    """Return the microseconds of a call for the rows of `x`, the median over so many seconds."""
    ready = peer.ready(x)
    for _ in range(2):  # the first time to wake threads, as above
        calls: list[float] = []
        end = time.perf_counter() + seconds
        while len(calls) < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            peer.predict(ready)
            calls.append(time.perf_counter() - start)
    return statistics.median(calls) * 1e6


def cupy_wait(device: str) -> Callable[[], None]:
    """Return what waits until CuPy's work is done; on the CPU there is nothing to wait for."""
    if device == "cpu":
        return lambda: None
    import cupy

    return cupy.cuda.get_current_stream().synchronize


def main() -> None:
    name, folder, device = sys.argv[1:]
    if name == "nnxp":
        import nnxp

        train, _ = nnxp.data.load_mnist(folder)
        inputs, labels = train.inputs, train.labels
    else:
        images, labels = (
            read_idx(next(Path(folder).glob(f"train-{part}")))
            for part in ("images-idx3-ubyte*", "labels-idx1-ubyte*")
        )
        inputs = images.reshape(len(images), -1)
    task = TASKS["small"]._replace(device=device)
    count = len(inputs) // task.batch_size * task.batch_size
    PEERS[name](task, inputs[:count], labels[:count]).epoch()


def read_idx(path: Path) -> np.ndarray:
    """Return an IDX file of bytes as an array: a short header, then the values."""
    data = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
    axes = data[3]
    shape = np.frombuffer(data, ">u4", axes, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


if __name__ == "__main__":
    main()
