"""Capture: compiled JAX steps against plain ones, and the reasons for not capturing."""

from __future__ import annotations

import numpy as np
import pytest
from builders import small_trainer, train_epoch, trainer_with
from tables import TARGETS, device_or_skip

import nnxp
from nnxp.data import Dataset
from nnxp.optimizers import OPTIMIZERS
from nnxp.step import Step

# The network of `trained` has a layer of each kind; it ends with Softmax.
pytestmark = pytest.mark.filterwarnings("ignore:the network ends with Softmax")


def trained(capture, *, spec="jax:cpu", loss=nnxp.SoftmaxWithLoss, optimizer="adam", change=None):
    rng = np.random.default_rng(0)
    device = nnxp.device(spec)
    place = {"rng": rng, "dtype": "float64", "device": device}
    first, second, last = (nnxp.Affine(i, o, **place) for i, o in [(12, 9), (9, 7), (7, 3)])
    layers = [nnxp.Flatten(), first, nnxp.Tanh(), second, nnxp.Sigmoid(), nnxp.Identity(), last]
    network = nnxp.Sequential([*layers, nnxp.Softmax()])
    trainer = nnxp.Trainer(network, loss(), OPTIMIZERS[optimizer](), capture=capture)
    data = Dataset(np.random.default_rng(1).normal(size=(50, 3, 4)), TARGETS[loss])
    for _ in range(2):
        train_epoch(trainer, data, 16, rng)
        if change is not None:
            change(trainer)
    numbers = {n: device.to_host(x) for n, x in network.parameters().items()}
    for slot, kept in trainer.optimizer.state.items():
        numbers |= {f"{slot} {n}": device.to_host(x) for n, x in kept.items()}
    return trainer, numbers


# A step is a chain of sums of at most 16 terms over eight layers forward and backward, below 500
# roundings in a row, of numbers below 10: plain and compiled, each is off by 500 * 10 * 2^-53. It
# moves by the gradient times the learning rate, or divided by the root of a mean square too, which
# is at most 1000 times (see below; 923 for Huber's small gradients with Adam), and seven more such
# steps leave the sum below ten times as much.
BOUND = 2 * 500 * 10 * 2.0**-53 * 1000 * 10


def assert_close(mine, plain, learning_rate):
    squares = [x.min() for name, x in plain.items() if name.startswith("square")]
    assert all(learning_rate / np.sqrt(x) < 1000 for x in squares)
    for name, x in mine.items():
        assert abs(x - plain[name]).max() <= BOUND * max(1, abs(x).max()), name


def slower(trainer):
    trainer.optimizer.learning_rate /= 2


def other_start(trainer):
    host = np.full((12, 9), 0.1)
    trainer.network.load_parameters(dict(trainer.network.parameters()) | {"W1": host})


@pytest.mark.interop
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", TARGETS)
@pytest.mark.parametrize("change", [slower, other_start])
def test_compiled_step_equals_the_plain_step_up_to_rounding(loss, optimizer, change):
    (one, mine), (other, plain) = (
        trained(capture, loss=loss, optimizer=optimizer, change=change)
        for capture in ("auto", False)
    )
    assert one.optimizer.steps == other.optimizer.steps == 8
    assert mine.keys() == plain.keys()
    moved = trained(False, loss=loss, optimizer=optimizer)[1]
    assert_close(mine, plain, one.optimizer.learning_rate)
    assert any(abs(mine[n] - moved[n]).max() > 1e-6 for n in mine)


@pytest.mark.interop
def test_jax_compiles_one_step_for_each_batch_size():
    trainer, _ = trained("auto", change=slower)
    assert trainer._stepper.captured._compiled._cache_size() == 2
    with pytest.raises(nnxp.CallOrderError, match="no gradients yet"):
        trainer.network.gradients()


@pytest.mark.interop
def test_no_jax_tracer_leaks():
    import jax

    with jax.checking_leaks():
        trainer, _ = trained("auto")
    state = trainer.optimizer.state["mean"]
    train_epoch(trainer, Dataset(np.zeros((50, 3, 4)), np.arange(50) % 3), 16, trainer.rng)
    assert trainer.optimizer.state["mean"] is state


@pytest.mark.interop
@pytest.mark.parametrize("chosen", [None, "bfloat16"])
def test_jax_computes_in_full_precision_unless_asked_otherwise(small, chosen, monkeypatch):
    import jax

    trainer = small_trainer(device=device_or_skip("jax:cpu"))
    before = jax.config.jax_default_matmul_precision
    seen = []
    gradients = Step.gradients

    def watched(*args):
        seen.append(jax.config.jax_default_matmul_precision)
        return gradients(*args)

    monkeypatch.setattr(Step, "gradients", watched)
    with jax.default_matmul_precision(chosen):
        device = trainer.network.device
        inputs = device.asarray(small.inputs, dtype="float32")
        trainer.step(inputs, device.asarray(small.labels, dtype="int32"))
        trainer.fit(small, epochs=1, batch_size=16, rng=np.random.default_rng(0))
    assert set(seen) == {chosen or "highest"}
    assert jax.config.jax_default_matmul_precision == before


@pytest.mark.interop
def test_interrupted_compiled_epoch_keeps_its_steps(monkeypatch):
    trainer, _ = trained("auto")
    before = {n: np.array(x) for n, x in trainer.network.parameters().items()}
    steps = trainer.optimizer.steps
    from nnxp.capture.jax import JaxSteps

    step = JaxSteps._step

    def interrupted(*args):
        if trainer.optimizer.steps == steps + 3:
            raise KeyboardInterrupt
        step(*args)

    monkeypatch.setattr(JaxSteps, "_step", interrupted)
    data = Dataset(np.random.default_rng(1).normal(size=(50, 3, 4)), np.arange(50) % 3)
    with pytest.raises(KeyboardInterrupt):
        train_epoch(trainer, data, 16, np.random.default_rng(0))
    assert all(
        abs(np.array(x) - before[n]).max() > 0 for n, x in trainer.network.parameters().items()
    )


class Counting(nnxp.Tanh):
    """Changes an attribute that is not in its state."""

    calls = 0

    def forward(self, x, training=False):
        self.calls += training
        return super().forward(x, training)


class Stepping(nnxp.Trainer):
    def step(self, inputs, labels):
        return super().step(inputs, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "strict:device1"}, "there are no captured steps for strict:device1"),
        (
            {"layer": Counting()},
            r"Counting\(\): a step changes calls of Counting\(\)",
        ),
        ({"kind": Stepping}, "the trainer's class overrides step"),
        ({"widths": (6, 6, 6), "tied": True}, "two layers of the network share an array"),
    ],
)
def test_unavailable_capture_warns_with_the_reason(small, options, message):
    tied = options.pop("tied", False)
    trainer = small_trainer(**options) if "device" in options else trainer_with(**options)
    if tied:
        trainer.network.layers[2].params["W"] = trainer.network.layers[0].params["W"]
    trainer.capture = True
    with pytest.warns(UserWarning, match="^no step is captured: " + message):
        train_epoch(trainer, small, 16, np.random.default_rng(0))
    trainer.capture = "auto"  # or silently
    train_epoch(trainer, small, 16, np.random.default_rng(0))


def test_without_capture_steps_are_plain(small, monkeypatch):
    trainer = trainer_with()
    trainer.capture = False
    monkeypatch.setattr("nnxp.capture.choose", None)
    train_epoch(trainer, small, 16, np.random.default_rng(0))
    assert trainer._stepper.captured is None


@pytest.mark.parametrize("capture", ["yes", None, 0, 1, 2, "True"])
def test_capture_other_than_true_false_auto_is_refused(capture):
    trainer = small_trainer()
    with pytest.raises(nnxp.InputError, match='capture must be True, False or "auto", got '):
        nnxp.Trainer(trainer.network, trainer.loss, trainer.optimizer, capture=capture)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", TARGETS)
def test_graph_equals_the_plain_step_up_to_rounding(loss, optimizer):
    device_or_skip("cuda")
    (one, mine), (other, plain) = (
        trained(capture, spec="cuda", loss=loss, optimizer=optimizer, change=slower)
        for capture in (True, False)
    )
    assert one.optimizer.steps == other.optimizer.steps == 8
    assert_close(mine, plain, one.optimizer.learning_rate)
