"""Resume with custom layers, losses, optimizers and networks."""

from __future__ import annotations

import numpy as np
import pytest
from builders import fit, new_trainer, numbers

import nnxp

pytest.importorskip("safetensors")


class Swish(nnxp.Tanh):
    pass


class MyLoss(nnxp.SoftmaxWithLoss):
    pass


class MySGD(nnxp.SGD):
    pass


@pytest.mark.parametrize("own", ["network", "loss", "optimizer"])
def test_custom_part_must_be_passed_to_resume(tmp_path, data, own):
    path = tmp_path / "a.safetensors"
    whole = new_trainer("sgd")
    parts = {"network": whole.network, "loss": whole.loss, "optimizer": whole.optimizer}
    layers = [Swish() if isinstance(x, nnxp.Tanh) else x for x in whole.network.layers]
    mine = {"network": nnxp.Sequential(layers), "loss": MyLoss(), "optimizer": MySGD(0.1)}[own]
    trainer = nnxp.Trainer(**parts | {own: mine})
    trainer.rng = np.random.default_rng(0)
    fit(trainer, data, 1, checkpoint=path)
    with pytest.raises(
        nnxp.CheckpointError, match=rf"its {own} cannot be made: '\w+' is not registered; .*{own}=…"
    ):
        nnxp.Trainer.resume(path)
    given = nnxp.Sequential(layers) if own == "network" else type(mine)()
    resumed = nnxp.Trainer.resume(path, **{own: given})
    np.testing.assert_equal(numbers(resumed), numbers(trainer))


def test_custom_layer_with_a_builtin_name_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    own = type("Tanh", (nnxp.Tanh,), {})
    layers = [own() if isinstance(x, nnxp.Tanh) else x for x in new_trainer().network.layers]
    nnxp.Trainer(nnxp.Sequential(layers), nnxp.SoftmaxWithLoss(), nnxp.SGD()).save(path)
    with pytest.raises(nnxp.CheckpointError, match="'Tanh' is not registered; import the mo"):
        nnxp.load_network(path)


class Doubling(nnxp.Sequential):
    def forward(self, x, training=False):
        return super().forward(x, training) * 2


def test_custom_network_must_be_passed_to_resume(tmp_path):
    path = tmp_path / "a.safetensors"
    layers = new_trainer().network.layers
    nnxp.Trainer(Doubling(layers), nnxp.SoftmaxWithLoss(), nnxp.SGD()).save(path)
    with pytest.raises(nnxp.CheckpointError, match="'Doubling' is not registered"):
        nnxp.load_network(path)
    given = Doubling(layers)
    assert nnxp.Trainer.resume(path, network=given).network is given
    with pytest.raises(nnxp.InputError, match="the network given is on cpu.*; give it or a device"):
        nnxp.Trainer.resume(path, network=given, device="cpu")


class Gated(nnxp.Tanh):
    """A layer with a parameter whose name has slashes."""

    def __init__(self):
        self.device, self.dtype = "cpu", "float32"
        self.params["gate/a/b"] = np.full(5, 0.5, "float32")

    def backward(self, dy):
        self.grads["gate/a/b"] = np.ones(5, "float32")
        return super().backward(dy)


def test_attributes_set_by_hand_do_not_prevent_saving(tmp_path, data):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    fit(trainer, data, 1)
    trainer.optimizer.steps = np.int64(0)
    trainer.optimizer.beta1 = np.array(0.5)
    trainer.optimizer.warmup = 100
    trainer.network.layers[0].trainable = 1
    trainer.loss.calls = 2
    trainer.save(path)
    resumed = nnxp.Trainer.resume(path)
    np.testing.assert_equal(numbers(resumed), numbers(trainer))
    assert resumed.optimizer.beta1 == 0.5
    layers = new_trainer().network.layers
    gated = nnxp.Sequential([*layers[:1], Gated(), *layers[2:]])
    trainer = nnxp.Trainer(gated, nnxp.SoftmaxWithLoss(), nnxp.Adam())
    trainer.rng = np.random.default_rng(0)
    fit(trainer, data, 1, checkpoint=path)
    layers = new_trainer().network.layers
    given = nnxp.Sequential([*layers[:1], Gated(), *layers[2:]])
    resumed = nnxp.Trainer.resume(path, network=given)
    np.testing.assert_equal(numbers(resumed), numbers(trainer))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network": "mlp"}, "network must be of class Sequential, got 'mlp'"),
        ({"loss": nnxp.MeanSquaredError}, "loss must be of class Loss, got <class"),
        ({"optimizer": "adam"}, "optimizer must be of class Optimizer, got 'adam'"),
        ({"network": nnxp.Sequential([nnxp.ReLU()])}, "has no parameters to load a checkpoint"),
        ({"capture": "yes"}, "capture must be True, False or"),
    ],
)
def test_wrong_arguments_of_resume_raise_input_error(tmp_path, data, given, message):
    path = tmp_path / "a.safetensors"
    fit(new_trainer(), data, 1, checkpoint=path)
    mine = nnxp.Adam()
    with pytest.raises(nnxp.InputError, match=message) as caught:
        nnxp.Trainer.resume(path, **{"optimizer": mine} | given)
    assert not isinstance(caught.value, nnxp.CheckpointError)
    assert mine.steps == 0


def test_failed_resume_leaves_the_given_parts_unchanged(tmp_path, data):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer("momentum")
    fit(trainer, data, 1, checkpoint=path)
    network, optimizer = new_trainer().network, nnxp.Adam()
    before = {name: x.copy() for name, x in network.parameters().items()}
    with pytest.raises(nnxp.CheckpointError, match="is a nnxp.Momentum, and Adam.* cannot take"):
        nnxp.Trainer.resume(path, network=network, optimizer=optimizer)
    other, momentum = nnxp.mlp([6, 9, 9, 3], rng=np.random.default_rng(0)), nnxp.Momentum()
    with pytest.raises(nnxp.CheckpointError, match="W1"):
        nnxp.Trainer.resume(path, network=other, optimizer=momentum)
    assert (momentum.steps, momentum.state) == (0, {"velocity": {}})
    assert optimizer.steps == 0
    assert optimizer.state == {"mean": {}, "square_mean": {}}
    np.testing.assert_equal(dict(network.parameters()), before)
