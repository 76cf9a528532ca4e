"""Peers: one training task, written for each library as its own users would write it.

As a script it is the cold start of one peer: it reads the MNIST files in a folder and trains the
small network for one epoch. A peer imports its library when it is created; the module imports only
NumPy, so that the time and memory of a peer include no other library.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import resource  # not on Windows


class Task(NamedTuple):
    """A training task: a ReLU network with softmax and the mean cross-entropy of the batch."""

    hidden: tuple[int, ...]
    batch_size: int
    optimizer: str  # "SGD" with learning rate 0.1 or "Adam" with 0.001
    device: str  # "cpu" or "cuda"


TASKS = {
    "small": Task((50, 30), 100, "SGD", "cpu"),
    "wide": Task((512, 256), 128, "SGD", "cpu"),
    "deep": Task((256,) * 8, 128, "SGD", "cpu"),
    "huge": Task((4096, 4096), 4096, "SGD", "cpu"),
}


class Peer:
    """A network and its data set in one library.

    Parameters
    ----------
    task : Task
        The network, its optimizer, batch size and device.
    inputs : (examples, pixels) uint8 array
        The images. Their number must be a multiple of the batch size.
    labels : (examples,) integer array
        The class of each image.
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
        self.trainer = nnxp.Trainer(self.network, nnxp.SoftmaxWithLoss(), optimizer, **self.options)
        self.epoch_batches = nnxp.data.Batches(
            nnxp.data.Dataset(inputs, labels), self.task.batch_size,
            device=self.device, dtype="float32", rng=self.rng,
        )  # fmt: skip

    def epoch(self) -> None:
        self.trainer.train_epoch(self.epoch_batches)
        self.wait()

    def asarray(self, x: np.ndarray) -> Any:
        return self.device.asarray(x)

    def predict(self, x: Any) -> Any:
        y = self.network.predict(x)
        self.wait()
        return y

    def to_host(self, y: Any) -> np.ndarray:
        return self.device.to_host(y)


class Torch(Peer):
    """PyTorch, eager; `options` are passed to its optimizer."""

    def __init__(self, *args: Any, **options: bool) -> None:
        self.options = options
        super().__init__(*args)

    def build(self, inputs: np.ndarray, labels: np.ndarray) -> None:
        import torch

        # Passed to each call: a changed default device would slow down all calls of PyTorch.
        self.on_device = {"device": self.task.device}
        self.torch = torch
        self.wait = torch.cuda.synchronize if self.task.device == "cuda" else lambda: None
        layers: list[Any] = []
        for W in self.weights:
            layers += [torch.nn.Linear(*W.shape, **self.on_device), torch.nn.ReLU()]
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
        self.labels = torch.tensor(labels, dtype=torch.int64, **self.on_device)

    def step(self, rows: Any) -> None:
        self.optimizer.zero_grad()
        self.loss(self.forward(self.inputs[rows]), self.labels[rows]).backward()
        self.optimizer.step()

    def epoch(self) -> None:
        order = self.torch.randperm(len(self.inputs), **self.on_device)
        for rows in order.split(self.task.batch_size):
            self.step(rows)
        self.wait()

    def asarray(self, x: np.ndarray) -> Any:
        return self.torch.tensor(x, **self.on_device)

    def predict(self, x: Any) -> Any:
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
        super().__init__(task, *args, **({"capturable": True} if task.optimizer == "Adam" else {}))

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
        scores, self.step = jax_functions(self.task.optimizer)
        self.train = jax.jit(self.step, donate_argnums=0)
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

    def asarray(self, x: np.ndarray) -> Any:
        return self.jax.device_put(x)

    def predict(self, x: Any) -> Any:
        return self.scores(self.state[0], x).block_until_ready()


def jax_functions(optimizer: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return JAX functions for the scores and for a step."""
    import jax
    import jax.numpy as jnp

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

    update = {"SGD": sgd, "Adam": adam}[optimizer]

    def step(state, inputs, labels, rows):
        return update(state, jax.grad(loss)(state[0], inputs[rows], labels[rows]))

    return scores, step


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
    """NumPy as in tutorials: layer objects, dictionaries of float64 arrays, one-hot labels."""

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
    """Return uint8 images as float32, scaled to the range from 0 to 1."""
    x = inputs.astype(np.float32)
    x /= 255
    return x


def step_time(peer: Peer) -> float:
    """Return the mean microseconds of a step in one epoch.

    The epoch before it is not measured: waking the BLAS threads takes some 50 ms, and those of
    another process need some time to fall asleep.
    """
    peer.epoch()
    start = time.perf_counter()
    peer.epoch()
    return (time.perf_counter() - start) / peer.batches * 1e6


def predict_time(peer: Peer, x: np.ndarray, seconds: float = 0.05) -> float:
    """Return the median microseconds of a prediction for `x`, from calls in `seconds` seconds."""
    inputs = peer.asarray(x)
    for _ in range(2):  # first unmeasured, as in `step_time`
        calls: list[float] = []
        end = time.perf_counter() + seconds
        while len(calls) < 2 or time.perf_counter() < end:
            start = time.perf_counter()
            peer.predict(inputs)
            calls.append(time.perf_counter() - start)
    return statistics.median(calls) * 1e6


def cupy_wait(device: str) -> Callable[[], None]:
    """Return a function that waits until the CUDA device has finished; it does nothing on a CPU."""
    if device == "cpu":
        return lambda: None
    import cupy

    return cupy.cuda.get_current_stream().synchronize


def random_examples(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images and labels in the layout of MNIST."""
    return rng.integers(0, 256, (count, 784), np.uint8), np.arange(count) % 10


def peak_memory(usage: resource.struct_rusage) -> float:
    """Return the peak memory of a process in MiB."""
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Train one peer from a cold start."""
    parser = argparse.ArgumentParser(description=__doc__)  # not cli.Parser, which imports nnxp
    parser.add_argument("name", choices=PEERS, metavar="NAME", help=f"one of: {'; '.join(PEERS)}")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the folder of MNIST's files")
    parser.add_argument("device", metavar="DEVICE", help="cpu or cuda")
    args = parser.parse_args()
    if args.name == "nnxp":
        import nnxp

        train, _ = nnxp.data.load_mnist(args.folder)
        inputs, labels = train.inputs, train.labels
    else:
        images, labels = (
            read_idx(next(args.folder.glob(f"train-{part}")))
            for part in ("images-idx3-ubyte*", "labels-idx1-ubyte*")
        )
        inputs = images.reshape(len(images), -1)
    task = TASKS["small"]._replace(device=args.device)
    count = len(inputs) // task.batch_size * task.batch_size
    PEERS[args.name](task, inputs[:count], labels[:count]).epoch()


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: a short header, then the values."""
    data = (gzip.open if path.suffix == ".gz" else open)(path, "rb").read()
    ndim = data[3]
    shape = np.frombuffer(data, ">u4", ndim, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape)


if __name__ == "__main__":
    main()
