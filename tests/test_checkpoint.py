"""Checkpoints: a training that was stopped and goes on ends as one that never was."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import BACKENDS, device_or_skip, train_epoch

import nnxp
from nnxp.checkpoint import FORMAT
from nnxp.data import Batches, Dataset
from nnxp.history import MAX_RECORDS, append_record
from nnxp.optimizers import OPTIMIZERS
from nnxp.random import generator, get_state
from nnxp.training.divergence import first_not_finite

safetensors = pytest.importorskip("safetensors.numpy")
FIXTURES = Path(__file__).parent / "checkpoints"
EPOCHS, STEPS = 3, 4  # of batches of 12, 12, 12 and 4


@pytest.fixture
def data():
    rng = np.random.default_rng(5)
    return Dataset(rng.integers(0, 256, (40, 6), np.uint8), rng.integers(0, 3, 40))


def new_trainer(optimizer="adam", *, device="cpu", dtype="float32", capture="auto"):
    rng = np.random.default_rng(0)
    network = nnxp.mlp([6, 5, 4, 3], rng=rng, activation="tanh", dtype=dtype, device=device)
    trainer = nnxp.Trainer(
        network, nnxp.SoftmaxWithLoss(), OPTIMIZERS[optimizer](), capture=capture
    )
    trainer.rng = rng
    return trainer


def fit(trainer, data, epochs, **options):
    return trainer.fit(
        data, epochs=epochs, batch_size=12, validation=data, rng=trainer.rng, **options
    )


def stopped_after(steps, trainer):
    return lambda: trainer.optimizer.steps >= steps


def numbers(trainer):
    """Return all that a training is, on the host."""
    to_host = trainer.network.device.to_host
    state = trainer.optimizer.state
    return {
        "parameters": {n: to_host(x) for n, x in trainer.network.parameters().items()},
        "state": {s: {n: to_host(x) for n, x in kept.items()} for s, kept in state.items()},
        "steps": trainer.optimizer.steps,
        "history": [asdict(replace(r, seconds=0)) for r in trainer.history],
        "rng": trainer.rng.bit_generator.state,
    }


@pytest.mark.parametrize("capture", ["auto", False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_stopped_anywhere_ends_as_if_it_never_was(tmp_path, data, optimizer, capture):
    path = tmp_path / "a.safetensors"
    whole = new_trainer(optimizer, capture=capture)
    fit(whole, data, EPOCHS)
    for steps in range(1, EPOCHS * STEPS):
        trainer = new_trainer(optimizer, capture=capture)
        fit(trainer, data, EPOCHS, checkpoint=path, stop=stopped_after(steps, trainer))
        assert trainer.optimizer.steps == steps
        resumed = nnxp.Trainer.resume(path, capture=capture)
        assert resumed.optimizer.steps == steps
        for each in (resumed, trainer):  # from the file, and where it stood
            fit(each, data, EPOCHS - len(each.history))
            np.testing.assert_equal(numbers(each), numbers(whole))


def test_a_bounded_history_goes_on_as_if_it_never_stopped(tmp_path, data, monkeypatch):
    monkeypatch.setattr("nnxp.history.MAX_RECORDS", 4)
    path = tmp_path / "a.safetensors"
    whole, trainer = new_trainer(), new_trainer()
    fit(whole, data, 12)
    for epoch in range(12):
        assert trainer.epochs == epoch
        fit(trainer, data, 1, checkpoint=path, stop=stopped_after(STEPS * epoch + 2, trainer))
        trainer = nnxp.Trainer.resume(path)
        fit(trainer, data, 1, checkpoint=path)
        trainer = nnxp.Trainer.resume(path)
    assert [record.epoch for record in whole.history] == [1, 9, 11, 12]
    np.testing.assert_equal(numbers(trainer), numbers(whole))


def test_a_checkpoint_of_a_long_history_stays_small(tmp_path):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    trainer.save(path)
    without = path.stat().st_size
    for epoch in range(1, MAX_RECORDS + 1):
        append_record(trainer.history, nnxp.Record(epoch, 0.1, 0.2, 0.3, math.nan, 0.4))
    trainer.save(path)
    assert path.stat().st_size - without < 50 * MAX_RECORDS
    assert nnxp.Trainer.resume(path).history[-1].epoch == MAX_RECORDS


def test_saving_again_and_again_changes_nothing(tmp_path, data):
    whole, trainer = new_trainer(), new_trainer()
    fit(whole, data, EPOCHS)
    path = tmp_path / "a.safetensors"
    seen = []

    def look():
        if path.exists():
            seen.append(nnxp.Trainer.resume(path).optimizer.steps)
        return False

    fit(trainer, data, EPOCHS, checkpoint=path, checkpoint_every=3, stop=look)
    np.testing.assert_equal(numbers(trainer), numbers(whole))
    # Saved after steps 3, 6, 9 and 12, and after each epoch of 4; looked at after each step, before
    # that, and after each epoch.
    assert seen == [3, 4, 4, 4, 6, 6, 8, 8, 9, 9, 9, 12]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks) for name, (_, marks) in BACKENDS.items()
             if name != "numpy-readonly"]
)  # fmt: skip
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_it_goes_on_on_another_library(tmp_path, data, optimizer, name):
    # In float64: two libraries' steps differ by units in the last place, which twelve steps and
    # the root of a small mean square amplify by far less than 1e6.
    spec = BACKENDS[name][0]
    device_or_skip(spec)
    path = tmp_path / "a.safetensors"
    whole = new_trainer(optimizer, dtype="float64")
    fit(whole, data, EPOCHS)
    for first, second in (("cpu", spec), (spec, "cpu")):
        trainer = new_trainer(optimizer, device=first, dtype="float64")
        fit(trainer, data, EPOCHS, checkpoint=path, stop=stopped_after(6, trainer))
        resumed = nnxp.Trainer.resume(path, device=second)
        assert resumed.network.device == nnxp.device(second)
        fit(resumed, data, EPOCHS - len(resumed.history))
        mine, wanted = numbers(resumed), numbers(whole)
        assert mine["steps"] == wanted["steps"]
        assert mine["rng"] == wanted["rng"]
        for name_, x in wanted["parameters"].items():
            np.testing.assert_allclose(mine["parameters"][name_], x, rtol=1e-10, atol=1e-10)
        for slot, kept in wanted["state"].items():
            for name_, x in kept.items():
                np.testing.assert_allclose(mine["state"][slot][name_], x, rtol=1e-10, atol=1e-10)


def test_a_file_needs_no_library_that_wrote_it(tmp_path, data):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer(device="strict:device1")
    fit(trainer, data, 1, checkpoint=path)
    code = (
        "import sys; sys.modules['array_api_strict'] = None\n"
        f"import nnxp; print(nnxp.Trainer.resume({str(path)!r}).network)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"{trainer.network!r}\n"


def test_a_network_is_loaded_alone(tmp_path, data, backend):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer("momentum")
    fit(trainer, data, 1, checkpoint=path)
    network = nnxp.load_network(path, device=backend.device)
    x = np.random.default_rng(0).random((3, 6)).astype("float32")
    scores = backend.host(network.predict(backend.array(x)))
    np.testing.assert_allclose(scores, trainer.network.predict(x), rtol=1e-5, atol=1e-6)


def test_a_device_that_is_not_there_is_no_damage(tmp_path):
    path = tmp_path / "a.safetensors"
    new_trainer().save(path)
    for load in (nnxp.load_network, nnxp.Trainer.resume):
        with pytest.raises(nnxp.DeviceError, match="^array-api-strict has no device"):
            load(path, device="strict:device9")


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_generators_go_on(kind):
    rng = np.random.Generator(getattr(np.random, kind)(3))
    rng.permutation(7)
    rng.integers(0, 9, 3, dtype=np.uint8)  # half of a word is left over
    again = generator(json.loads(json.dumps(get_state(rng))))
    np.testing.assert_equal(again.bit_generator.state, rng.bit_generator.state)
    np.testing.assert_array_equal(again.permutation(99), rng.permutation(99))


def test_history_config_and_settings_come_back(tmp_path, data):
    path = tmp_path / "a.safetensors"
    trainer = nnxp.Trainer(
        nnxp.Sequential([nnxp.Flatten(), *new_trainer().network.layers, nnxp.Softmax()]),
        nnxp.MeanSquaredError(),
        nnxp.AdamW(0.01, beta1=np.float32(0.5), epsilon=1e-3, weight_decay=0.25),
    )
    trainer.config = {"note": "für später", "widths": [6, 5]}
    trainer.optimizer.beta2 = np.float32(0.75)
    targets = Dataset(data.inputs, np.linspace(-1, 1, 120).reshape(40, 3))
    rng = np.random.default_rng(1)
    trainer.fit(targets, epochs=2, batch_size=12, rng=rng)
    trainer.fit(targets, epochs=1, batch_size=12, rng=rng, validation=targets)
    # Without classes there is no accuracy, which is not the same as no validation.
    accuracies = [record.validation_accuracy for record in trainer.history]
    assert accuracies[:2] == [None, None]
    assert np.isnan([trainer.history[0].train_accuracy, accuracies[2]]).all()
    extreme = nnxp.Record(7, math.inf, 0.0, math.nan, -0.0, 1e-300)
    trainer.history.append(extreme)
    trainer.save(path)
    resumed = nnxp.Trainer.resume(path)
    assert repr(resumed.network) == repr(trainer.network)
    assert repr(resumed.loss) == "MeanSquaredError()"
    settings = [
        {k: x for k, x in vars(t.optimizer).items() if k != "state"} for t in (resumed, trainer)
    ]
    assert settings[0] == settings[1]
    assert resumed.config == trainer.config
    np.testing.assert_equal([asdict(r) for r in resumed.history],
                            [asdict(r) for r in trainer.history])  # fmt: skip


def test_a_trainer_may_be_saved_before_it_trains(tmp_path, data):
    path = tmp_path / "a.safetensors"
    one, other = new_trainer(), new_trainer()
    other.save(path)
    other = nnxp.Trainer.resume(path)
    fit(one, data, 1)
    fit(other, data, 1)
    np.testing.assert_equal(numbers(other), numbers(one))


def test_arrays_that_lie_otherwise_are_saved_as_they_are(tmp_path):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    parameters = trainer.network.parameters()
    wanted = np.arange(30, dtype="float32").reshape(6, 5)
    trainer.network.layers[0].params["W"] = np.asfortranarray(wanted)
    trainer.network.layers[0].params["b"] = np.arange(10, dtype="float32")[::2]
    trainer.save(path)
    loaded = nnxp.load_network(path).parameters()
    np.testing.assert_array_equal(loaded["W1"], wanted)
    for name, x in parameters.items():
        np.testing.assert_array_equal(loaded[name], x)


class Swish(nnxp.Tanh):
    pass


class MyLoss(nnxp.SoftmaxWithLoss):
    pass


class MySGD(nnxp.SGD):
    pass


@pytest.mark.parametrize("own", ["network", "loss", "optimizer"])
def test_parts_of_ones_own_are_given_again(tmp_path, data, own):
    path = tmp_path / "a.safetensors"
    whole = new_trainer("sgd")
    parts = {"network": whole.network, "loss": whole.loss, "optimizer": whole.optimizer}
    layers = [Swish() if isinstance(x, nnxp.Tanh) else x for x in whole.network.layers]
    mine = {"network": nnxp.Sequential(layers), "loss": MyLoss(), "optimizer": MySGD(0.1)}[own]
    trainer = nnxp.Trainer(**parts | {own: mine})
    trainer.rng = np.random.default_rng(0)
    fit(trainer, data, 1, checkpoint=path)
    what = {"network": "layer", "loss": "loss", "optimizer": "optimizer"}[own]
    with pytest.raises(nnxp.CheckpointError, match=rf"its {what} .*test_checkpoint\.\w+' is not n"):
        nnxp.Trainer.resume(path)
    given = nnxp.Sequential(layers) if own == "network" else type(mine)()
    resumed = nnxp.Trainer.resume(path, **{own: given})
    np.testing.assert_equal(numbers(resumed), numbers(trainer))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 10}, "with batch_size 12, got 10; resume it with batch_size 12"),
        ({"train": slice(0, 39)}, "with examples 40, got 39; resume it with examples 40"),
        ({"rng": np.random.default_rng(0)}, "resume it with rng=trainer.rng"),
    ],
)
def test_an_epoch_is_finished_as_it_was_begun(tmp_path, data, change, message):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    fit(trainer, data, 2, checkpoint=path, stop=stopped_after(5, trainer))
    resumed = nnxp.Trainer.resume(path)
    options = {"epochs": 1, "batch_size": 12, "rng": resumed.rng} | change
    rows = options.pop("train", slice(None))
    examples = Dataset(data.inputs[rows], data.labels[rows])
    with pytest.raises(nnxp.InputError, match=f"within an epoch.*{message}"):
        resumed.fit(examples, **options)
    place = {"device": "cpu", "dtype": "float32"}
    with pytest.raises(nnxp.InputError, match=f"within an epoch.*{message}"):
        resumed.train_epoch(Batches(examples, options["batch_size"], **place, rng=options["rng"]))
    assert resumed.optimizer.steps == 5


def test_train_epoch_finishes_an_epoch_too(tmp_path, data):
    path = tmp_path / "a.safetensors"
    whole, trainer = new_trainer(), new_trainer()
    fit(whole, data, 2)
    fit(trainer, data, 2, checkpoint=path, stop=stopped_after(6, trainer))
    resumed = nnxp.Trainer.resume(path)
    batches = Batches(data, 12, device="cpu", dtype="float32", rng=resumed.rng)
    resumed.train_epoch(batches)
    np.testing.assert_equal(numbers(resumed)["parameters"], numbers(whole)["parameters"])


def test_checkpoint_every_needs_a_checkpoint(data):
    with pytest.raises(nnxp.InputError, match="checkpoint_every needs a checkpoint to write"):
        fit(new_trainer(), data, 1, checkpoint_every=3)
    with pytest.raises(nnxp.InputError, match="checkpoint_every must be a whole number"):
        fit(new_trainer(), data, 1, checkpoint="a", checkpoint_every=0)


def test_a_config_is_json(tmp_path, data):
    trainer = new_trainer()
    trainer.config = {"array": np.zeros(3)}
    with pytest.raises(nnxp.InputError, match="a checkpoint's config must be JSON"):
        trainer.save(tmp_path / "a.safetensors")


def test_what_is_changed_after_an_epoch_is_saved(tmp_path, data):
    path = tmp_path / "a.safetensors"

    def end(*stops):
        trainer = new_trainer()

        def schedule(_):
            trainer.optimizer.learning_rate /= 2
            trainer.rng.random(3)

        for steps in stops:
            stop = stopped_after(steps, trainer)
            left = EPOCHS - len(trainer.history)
            fit(trainer, data, left, checkpoint=path, after_epoch=schedule, stop=stop)
            trainer = nnxp.Trainer.resume(path)
        return numbers(trainer)

    whole = end(99)
    assert len(whole["history"]) == EPOCHS
    np.testing.assert_equal(end(4, 99), whole)
    np.testing.assert_equal(end(3, 8, 99), whole)


def test_a_generator_that_serves_others_too_goes_on(tmp_path, data):
    path = tmp_path / "a.safetensors"

    def end(*stops):
        trainer = new_trainer()

        def draw():
            trainer.rng.random(2)  # as a layer might
            return trainer.optimizer.steps in stops

        for _ in (*stops, None):
            fit(trainer, data, EPOCHS - len(trainer.history), checkpoint=path, stop=draw)
            trainer = nnxp.Trainer.resume(path)
        return numbers(trainer)

    whole = end()
    assert len(whole["history"]) == EPOCHS
    # Asked again at the end of an epoch, it draws again; so not where one ends.
    np.testing.assert_equal(end(2), whole)
    np.testing.assert_equal(end(5, 7), whole)


def test_the_time_of_an_epoch_counts_both_of_its_parts(tmp_path, data):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()

    def slowly():
        time.sleep(0.05)
        return True

    for _ in range(3):
        fit(trainer, data, 1, checkpoint=path, stop=slowly)
        trainer = nnxp.Trainer.resume(path)
    assert fit(trainer, data, 1)[0].seconds > 0.15


@pytest.mark.parametrize(
    ("spec", "way"),
    [
        ("cpu", "replay.Replay"),
        pytest.param("jax", "jax.JaxSteps", marks=BACKENDS["jax"][1]),
    ],
)
@pytest.mark.parametrize("place", ["bind", "compiling"])
def test_a_first_step_that_fails_leaves_the_place_in_the_epoch(data, monkeypatch, spec, way, place):
    device_or_skip(spec)
    whole, trainer = new_trainer(device=spec), new_trainer(device=spec)
    fit(whole, data, 1)
    fit(trainer, data, 1, stop=stopped_after(2, trainer))
    trainer._stepper.captured = None
    # What compiles a step on either: the optimizer's rule is asked for.
    broken = f"nnxp.capture.{way}.bind" if place == "bind" else "nnxp.optimizers.Adam._update_one"
    with monkeypatch.context() as patch:
        patch.setattr(broken, None)
        with pytest.raises(TypeError):
            fit(trainer, data, 1)
    assert (trainer.optimizer.steps, trainer._progress.batch) == (2, 2)
    fit(trainer, data, 1)
    np.testing.assert_equal(numbers(trainer), numbers(whole))


def test_a_layer_of_the_same_name_is_not_nnxps(tmp_path):
    path = tmp_path / "a.safetensors"
    own = type("Tanh", (nnxp.Tanh,), {})
    layers = [own() if isinstance(x, nnxp.Tanh) else x for x in new_trainer().network.layers]
    nnxp.Trainer(nnxp.Sequential(layers), nnxp.SoftmaxWithLoss(), nnxp.SGD()).save(path)
    with pytest.raises(nnxp.CheckpointError, match=r"its layer 'test_checkpoint\.Tanh' is not n"):
        nnxp.load_network(path)


def test_how_to_go_on_is_taken_over(tmp_path, data):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    rng = np.random.default_rng(7)
    train_epoch(trainer, data, 12, rng)
    assert trainer.rng is rng
    trainer.save(path)
    assert nnxp.Trainer.resume(path, capture=False).capture is False


class Residual(nnxp.Sequential):
    def forward(self, x, training=False):
        return super().forward(x, training) * 2


def test_a_network_of_ones_own_is_given_again(tmp_path):
    path = tmp_path / "a.safetensors"
    layers = new_trainer().network.layers
    nnxp.Trainer(Residual(layers), nnxp.SoftmaxWithLoss(), nnxp.SGD()).save(path)
    with pytest.raises(nnxp.CheckpointError, match="its network 'test_checkpoint.Residual' is not"):
        nnxp.load_network(path)
    given = Residual(layers)
    assert nnxp.Trainer.resume(path, network=given).network is given
    with pytest.raises(nnxp.InputError, match="the network given is on cpu.*; give it or a device"):
        nnxp.Trainer.resume(path, network=given, device="cpu")


class Gated(nnxp.Tanh):
    """A layer with a parameter whose name has slashes."""

    def __init__(self):
        super().__init__()
        self.device, self.dtype = nnxp.device("cpu"), "float32"
        self.params["gate/a/b"] = np.full(5, 0.5, "float32")

    def backward(self, dy):
        self.grads["gate/a/b"] = np.ones(5, "float32")
        return super().backward(dy)


def test_what_was_set_by_hand_is_no_obstacle(tmp_path, data):
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
def test_what_is_given_wrongly_is_said_of_it_and_not_of_the_file(tmp_path, data, given, message):
    path = tmp_path / "a.safetensors"
    fit(new_trainer(), data, 1, checkpoint=path)
    mine = nnxp.Adam()
    with pytest.raises(nnxp.InputError, match=message) as caught:
        nnxp.Trainer.resume(path, **{"optimizer": mine} | given)
    assert not isinstance(caught.value, nnxp.CheckpointError)
    assert mine.steps == 0


def test_a_device_without_memory_is_no_damage_of_the_file(tmp_path, data, monkeypatch):
    path = tmp_path / "a.safetensors"
    fit(new_trainer(), data, 1, checkpoint=path)

    def refuse(*_):
        raise nnxp.OutOfMemoryError("no memory for 100 bytes")

    monkeypatch.setattr(nnxp.Sequential, "load_parameters", refuse)
    for load in (nnxp.Trainer.resume, nnxp.load_network):
        with pytest.raises(nnxp.OutOfMemoryError, match="^no memory for 100 bytes$"):
            load(path)


def test_what_is_given_stays_as_it_is_if_the_file_does_not_suit(tmp_path, data):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer("momentum")
    fit(trainer, data, 1, checkpoint=path)
    network, optimizer = new_trainer().network, nnxp.Adam()
    before = {name: x.copy() for name, x in network.parameters().items()}
    with pytest.raises(nnxp.CheckpointError, match="Adam .*missing mean of W1, .*unexpected velo"):
        nnxp.Trainer.resume(path, network=network, optimizer=optimizer)
    other, momentum = nnxp.mlp([6, 9, 9, 3], rng=np.random.default_rng(0)), nnxp.Momentum()
    with pytest.raises(nnxp.CheckpointError, match="W1"):
        nnxp.Trainer.resume(path, network=other, optimizer=momentum)
    assert (momentum.steps, momentum.state) == (0, {"velocity": {}})
    assert optimizer.steps == 0
    assert optimizer.state == {"mean": {}, "square_mean": {}}
    np.testing.assert_equal(dict(network.parameters()), before)


def test_what_could_not_be_resumed_is_not_saved(tmp_path, data):
    path = tmp_path / "a.safetensors"
    tied = new_trainer()
    tied.network = nnxp.mlp([6, 6, 6], rng=np.random.default_rng(0))
    for shared in (tied.network.layers[0].params["W"], tied.network.layers[0].params["W"][:]):
        tied.network.layers[2].params["W"] = shared
        with pytest.raises(nnxp.InputError, match="two layers share an array, which a checkpoint"):
            tied.save(path)

    class Mine(np.random.PCG64):
        pass

    other = new_trainer()
    other.rng = np.random.Generator(Mine(0))
    fit(other, data, 1)  # it trains
    with pytest.raises(
        nnxp.InputError, match=r"generator must be one of PCG64, .* got Generator\(Mine\)"
    ):
        other.save(path)
    remembering = new_trainer("momentum")
    fit(remembering, data, 1)
    remembering.optimizer.state["velocity"]["b2"][1] = np.inf
    with pytest.raises(
        nnxp.DivergenceError, match="state/velocity/b2 holds a number that is not f"
    ):
        remembering.save(path)
    assert not path.exists()


@pytest.mark.parametrize("name", ["", ".", "/", "folder", "a" * 245, "a\0b", "loop"])
def test_a_name_that_cannot_be_written_is_said_before_any_work(tmp_path, data, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    trainer = new_trainer()
    with pytest.raises(nnxp.CheckpointError, match="is not the name of a file|cannot be written"):
        fit(trainer, data, 1, checkpoint=name)
    for config, message in (
        ({"array": np.zeros(3)}, "a checkpoint's config must be JSON"),
        ({"number": math.nan}, "a checkpoint's config must be JSON"),
        (["a"], r"a trainer's config must be a dict, got \['a'\]"),
        ({"text": "a" * 2**19}, "config may have 524,288 characters as JSON, got 524,300"),
    ):
        trainer.config = config
        with pytest.raises(nnxp.InputError, match=message):
            fit(trainer, data, 1, checkpoint="fine")
    trainer.config = {}
    trainer.optimizer.state["mean"] = {"W9": np.zeros(3)}
    with pytest.raises(nnxp.InputError, match="missing .* unexpected mean of W9; make a new opt"):
        fit(trainer, data, 1, checkpoint="fine")
    other = new_trainer()
    fit(other, data, 1)
    wider = nnxp.mlp([6, 9, 4, 3], rng=np.random.default_rng(0))
    trainer = nnxp.Trainer(wider, nnxp.SoftmaxWithLoss(), other.optimizer)
    trainer.rng = np.random.default_rng(0)
    with pytest.raises(nnxp.InputError, match="make a new optimizer for each network"):
        trainer.save("fine")
    trainer = new_trainer()
    trainer.history = [nnxp.Record(1, 1.0, 1.0, None, None, 1.0)] * 2
    with pytest.raises(nnxp.InputError, match="history's epochs are not rising"):
        fit(trainer, data, 1, checkpoint="fine")
    trainer.history = [nnxp.Record(i + 1, 1.0, 1.0, None, None, 1.0) for i in range(10_001)]
    with pytest.raises(nnxp.InputError, match="has 10,000 records at most, got 10,001"):
        fit(trainer, data, 1, checkpoint="fine")
    assert trainer.optimizer.steps == 0


def test_a_checkpoint_stays_where_it_is_and_as_private_as_it_is(tmp_path, data, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    path, link = tmp_path / "elsewhere" / "a.safetensors", tmp_path / "link"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    trainer = new_trainer()
    fit(trainer, data, 1, checkpoint="link")
    path.chmod(0o600)

    def leave(_):
        monkeypatch.chdir("elsewhere")

    fit(trainer, data, 1, checkpoint="link", after_epoch=leave)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    assert nnxp.Trainer.resume(path).epochs == 2
    assert sorted(x.name for x in tmp_path.rglob("*")) == [
        ".a.safetensors.lock", "a.safetensors", "elsewhere", "link"
    ]  # fmt: skip


@pytest.mark.parametrize("capture", ["auto", False])
def test_a_stop_sees_the_training_as_it_is_and_may_save_it(tmp_path, data, backend, capture):
    path = tmp_path / "a.safetensors"
    whole = new_trainer(device=backend.device, capture=capture)
    fit(whole, data, EPOCHS)
    trainer = new_trainer(device=backend.device, capture=capture)
    plain = new_trainer(device=backend.device, capture=False)
    seen = []

    def look():
        seen.append(trainer.evaluate(data).loss)
        if trainer.optimizer.steps == 6:
            trainer.save(path)
        return False

    fit(trainer, data, EPOCHS, stop=look)
    wanted = []
    fit(plain, data, EPOCHS, stop=lambda: wanted.append(plain.evaluate(data).loss))
    # Captured steps are those up to rounding.
    np.testing.assert_allclose(seen, wanted, rtol=1e-4)
    assert len({round(loss, 7) for loss in seen}) > EPOCHS * STEPS / 2
    np.testing.assert_equal(numbers(trainer), numbers(whole))
    resumed = nnxp.Trainer.resume(path, device=backend.device, capture=capture)
    assert resumed.optimizer.steps == 6
    fit(resumed, data, EPOCHS - resumed.epochs)
    np.testing.assert_equal(numbers(resumed), numbers(whole))


@pytest.mark.parametrize("capture", ["auto", False])
def test_a_stop_may_not_train(data, backend, capture):
    whole = new_trainer(device=backend.device, capture=capture)
    trainer = new_trainer(device=backend.device, capture=capture)
    fit(whole, data, EPOCHS)

    def train():
        with pytest.raises(nnxp.InputError, match="is training already; let stop return True"):
            fit(trainer, data, 1)
        with pytest.raises(nnxp.InputError, match="is training already"):
            train_epoch(trainer, data, 12, trainer.rng)
        if trainer.optimizer.steps == 6:
            copies.append(copy.deepcopy(trainer))

    copies = []
    fit(trainer, data, EPOCHS, stop=train)
    (twin,) = copies
    fit(twin, data, EPOCHS - twin.epochs)
    for each in (trainer, twin):
        np.testing.assert_equal(numbers(each), numbers(whole))


def test_a_network_too_deep_for_a_file_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    deep = nnxp.Sequential([nnxp.Affine(1, 1, rng=rng) for _ in range(9_000)])
    trainer = nnxp.Trainer(deep, nnxp.MeanSquaredError(), nnxp.SGD())
    with pytest.raises(nnxp.InputError, match="may have 2,097,152; use fewer layers"):
        trainer.save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_stop_that_fails_leaves_the_place_in_the_epoch(data):
    whole, trainer = new_trainer(), new_trainer()
    fit(whole, data, EPOCHS)

    def fail():
        if trainer.optimizer.steps == 6:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        fit(trainer, data, EPOCHS, stop=fail)
    fit(trainer, data, EPOCHS - trainer.epochs)
    np.testing.assert_equal(numbers(trainer), numbers(whole))


def test_a_step_that_fails_leaves_no_place_in_the_epoch(data):
    trainer = new_trainer(capture=False)
    fit(trainer, data, 1, stop=stopped_after(2, trainer))
    step = trainer.step

    def fail(*batch):
        if trainer.optimizer.steps == 3:
            raise KeyboardInterrupt
        return step(*batch)

    trainer.step = fail
    with pytest.raises(KeyboardInterrupt):
        fit(trainer, data, 1)
    assert trainer._progress is None


def test_only_its_own_leftovers_are_cleared_away(tmp_path, data):
    path = tmp_path / "run[1].safetensors"
    others = [
        ".run[1].safetensors.bak.old",
        ".run[1].safetensors.1.2.keep",
        ".run[1].safetensors.lock.2",
        ".run1.safetensors.1.2",
    ]
    own = ".run[1].safetensors.12.34567"
    for name in [*others, own]:
        (tmp_path / name).touch()
    fit(new_trainer(), data, 1, checkpoint=path)
    left = {x.name for x in tmp_path.iterdir()} - {path.name, f".{path.name}.lock"}
    assert left == set(others)


# NumPy takes such states, and then reads beyond its memory or draws for ever.
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("MT19937", {"state": {"pos": 10**9}}),
        ("MT19937", {"state": {"pos": 625}}),
        ("MT19937", {"state": {"pos": -(2**31)}}),
        ("Philox", {"buffer_pos": -(2**30)}),
        ("Philox", {"buffer_pos": 5}),
        ("PCG64", {"state": {"inc": 2**64}}),
        ("PCG64DXSM", {"state": {"inc": 2**64}}),
        ("PCG64", {"has_uint32": 7}),
        ("PCG64", {"uinteger": 2**32}),
        ("PCG64", {"bit_generator": "default_rng"}),
        ("PCG64", {"bit_generator": "SeedSequence"}),
    ],
)
def test_states_that_there_are_not_are_refused(kind, change):
    state = get_state(np.random.Generator(getattr(np.random, kind)(3)))
    for name, x in change.items():
        state[name] = state[name] | x if isinstance(x, dict) else x
    with pytest.raises(nnxp.InputError, match="the generator('s state is not|.* must be one of)"):
        generator(state)


# Format stability: these were written once and must load for ever.


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_files_of_format_1_load(optimizer, data):
    path = FIXTURES / f"v1-{optimizer}.safetensors"
    resumed = nnxp.Trainer.resume(path)
    assert repr(resumed.network) == (
        "Sequential(Flatten(), Affine(6, 5), ReLU(), Affine(5, 4), Sigmoid(), Affine(4, 4), "
        "Tanh(), Identity(), Affine(4, 3), Softmax())"
    )
    assert type(resumed.optimizer) is OPTIMIZERS[optimizer]
    assert resumed.optimizer.steps == 6
    assert resumed.config == {"written by": "nnxp 0.1.0"}
    assert [record.epoch for record in resumed.history] == [1]
    # What it goes on to, in a file of its own with the figures in full.
    expected = json.loads((FIXTURES / "v1.json").read_text())[optimizer]
    assert resumed.history[0].train_loss == expected["first loss"]
    before = {n: float(x.astype("float64").sum()) for n, x in resumed.network.parameters().items()}
    assert before == expected["sums"]
    resumed.fit(data, epochs=1, batch_size=12, rng=resumed.rng)
    # Other versions of NumPy and its BLAS may round otherwise, in float64.
    assert resumed.history[-1].train_loss == pytest.approx(expected["last loss"], rel=1e-12)


def test_a_newer_format_is_refused_with_its_number(tmp_path):
    path = tmp_path / "a.safetensors"
    metadata = {"nnxp": json.dumps({"format": FORMAT + 1, "anything": "else"})}
    path.write_bytes(safetensors.save({"a": np.zeros(3)}, metadata))
    with pytest.raises(
        nnxp.CheckpointError, match=rf"is of format {FORMAT + 1}, and this nnxp rea"
    ):
        nnxp.load_network(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a checkpoint, or is damaged"),
        (b"\x93NUMPY", "is not a checkpoint, or is damaged"),
        (safetensors.save({"a": np.zeros(3)}), "is not a checkpoint of nnxp"),
        (safetensors.save({"a": np.zeros(3)}, {"nnxp": "{"}), "is not a checkpoint, or is damaged"),
        (safetensors.save({"a": np.zeros(3)}, {"nnxp": "[" * 100_000}), "or is damaged"),
        (safetensors.save({"a": np.zeros(3)}, {"nnxp": "{}"}), "or is damaged"),
        (safetensors.save({"a": np.zeros(3)}, {"nnxp": '{"format": 1}'}), "SHA-256 does not match"),
        *(
            (
                safetensors.save({"a": np.zeros(3)}, {"nnxp": json.dumps({"format": version})}),
                f"is damaged: its format is {version}",
            )
            for version in (True, 1.0, 0.5, 0)
        ),
    ],
)
def test_what_is_no_checkpoint_is_one_error(tmp_path, content, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for load in (nnxp.load_network, nnxp.Trainer.resume):
        with pytest.raises(nnxp.CheckpointError, match=message) as caught:
            load(path)
        assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(nnxp.CheckpointError, match=f"^{path} (cannot be read|is not a file)"):
            nnxp.load_network(path)


def test_without_safetensors_one_line_says_how_to_get_it(tmp_path, data, monkeypatch):
    trainer = new_trainer()
    for package in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, package, None)
    message = r"safetensors.* is not installed; pip install 'nnxp\[checkpoint\]'"
    with pytest.raises(nnxp.MissingExtraError, match=message):
        trainer.save(tmp_path / "a")
    with pytest.raises(nnxp.MissingExtraError, match=message):
        nnxp.load_network(tmp_path / "a")
    with pytest.raises(nnxp.MissingExtraError, match=message):
        fit(trainer, data, 1, checkpoint=tmp_path / "a")
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(nnxp.MissingExtraError, match="filelock is not installed"):
        fit(trainer, data, 1, checkpoint=tmp_path / "a")
    assert trainer.optimizer.steps == 0


# Divergence.


@pytest.mark.parametrize("capture", ["auto", False])
def test_a_divergence_names_step_and_place_and_leaves_the_good_checkpoint(tmp_path, data, capture):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer("sgd", capture=capture)
    fit(trainer, data, 1, checkpoint=path)
    good = path.read_bytes()
    trainer.optimizer.learning_rate = 3e38
    with np.errstate(all="ignore"), pytest.raises(nnxp.DivergenceError) as caught:
        fit(trainer, data, 2, checkpoint=path, checkpoint_every=4)
    assert "training diverged at step " in str(caught.value)
    assert " of epoch 2: " in str(caught.value)
    assert str(caught.value).endswith(
        "start from new weights with a lower learning rate, now 3e+38"
    )
    assert path.read_bytes() == good
    assert trainer._progress is None
    for x in trainer.network.parameters().values():
        assert np.isfinite(x).all()


class Overflowing(nnxp.Tanh):
    """From the given batch on, infinite."""

    def __init__(self, batch):
        super().__init__()
        self.batch, self.count = batch, 0

    def forward(self, x, training=False):
        self.count += training
        y = super().forward(x, training)
        return y * np.float32(np.inf) if self.count >= self.batch else y


def test_a_divergence_is_found_at_its_step(data):
    rng = np.random.default_rng(0)
    layer = Overflowing(6)
    network = nnxp.Sequential([nnxp.Affine(6, 4, rng=rng), layer, nnxp.Affine(4, 3, rng=rng)])
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Momentum(0.1))
    other = nnxp.Trainer(network.to("cpu"), nnxp.SoftmaxWithLoss(), nnxp.Momentum(0.1))
    trainer.rng, other.rng = np.random.default_rng(1), np.random.default_rng(1)

    def rewound():
        # Once it has diverged, the epoch is trained again from its start.
        if layer.count == 8:
            layer.count = 4
        return False

    with (
        np.errstate(all="ignore"),
        pytest.raises(
            nnxp.DivergenceError,
            match=r"at step 2 of epoch 2: the output of layer 2, Overflowing\(\),",
        ),
    ):
        fit(trainer, data, 2, stop=rewound)
    fit(other, data, 2, stop=stopped_after(5, other))
    assert trainer.optimizer.steps == 5
    np.testing.assert_equal(dict(trainer.network.parameters()), dict(other.network.parameters()))


@pytest.mark.parametrize(
    ("poison", "place"),
    [
        ("W1", r"the output of layer 1, Affine\(6, 5\),"),
        ("b3", r"the output of layer 5, Affine\(4, 3\),"),
    ],
)
def test_the_first_number_that_is_not_finite_is_found(data, poison, place):
    trainer = new_trainer()
    trainer.network.parameters()[poison][...] = np.inf
    inputs, labels = data.inputs.astype("float32"), data.labels
    with np.errstate(all="ignore"):
        found = first_not_finite(trainer.network, trainer.loss, inputs, labels)
    assert re.fullmatch(place, found)


class Steep(nnxp.Tanh):
    def backward(self, dy):
        return super().backward(dy) * np.float32(np.inf)


class SteepLoss(nnxp.MeanSquaredError):
    def forward(self, scores, labels, training=True):
        return super().forward(scores, labels, training) * np.float32(np.inf)


def test_a_gradient_or_loss_that_is_not_finite_is_found(data):
    rng = np.random.default_rng(0)
    inputs, labels = data.inputs.astype("float32"), data.labels
    find = nnxp.training.divergence.first_not_finite
    layers = [nnxp.Affine(6, 4, rng=rng), nnxp.Tanh(), nnxp.Affine(4, 3, rng=rng)]
    network = nnxp.Sequential([*layers[:1], Steep(), *layers[2:]])
    with np.errstate(all="ignore"):
        found = find(network, nnxp.SoftmaxWithLoss(), inputs, labels)
        assert found == "the gradient at the inputs of layer 2, Steep(),"
        targets = np.zeros((40, 3), "float32")
        assert find(nnxp.Sequential(layers), SteepLoss(), inputs, targets) == "the loss"
        layers[0].grads.clear()
        fine = find(nnxp.Sequential(layers), nnxp.SoftmaxWithLoss(), inputs, labels)
    assert fine is None


@pytest.mark.parametrize("capture", ["auto", False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_loss_that_overflows_is_found_at_its_step(data, optimizer, capture):
    trainer = new_trainer(optimizer, capture=capture)
    trainer.loss = nnxp.MeanSquaredError()
    targets = np.zeros((40, 3))
    targets[np.random.default_rng(1).permutation(40)[20], 0] = 3e25  # its square is beyond float32
    order = np.random.default_rng(0)
    order.bit_generator.state = trainer.rng.bit_generator.state
    step = 1 + list(order.permutation(40)).index(int(targets[:, 0].argmax())) // 12
    before = numbers(trainer)["parameters"]
    with (
        np.errstate(all="ignore"),
        pytest.raises(
            nnxp.DivergenceError,
            match=f"diverged at step {step} of epoch 1: the loss is not finite",
        ),
    ):
        fit(trainer, Dataset(data.inputs, targets), 1)
    assert trainer.optimizer.steps == step - 1
    assert step > 1 or numbers(trainer)["parameters"] == before
    assert trainer.history == []


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "rmsprop"])
def test_a_state_that_overflows_is_found(tmp_path, data, optimizer, checkpoint):
    """Its steps are 0 from then on, and all else stays finite."""
    rng = np.random.default_rng(0)
    network = nnxp.mlp([6, 3], rng=rng)
    trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), OPTIMIZERS[optimizer]())
    # The loss is about 1e36, a gradient 1e20, and its square beyond float32.
    examples = Dataset(np.full((40, 6), 1e3), np.full((40, 3), 1e18))
    options = {"checkpoint": tmp_path / "a"} if checkpoint else {}
    with (
        np.errstate(all="ignore"),
        pytest.raises(nnxp.DivergenceError, match="1: .* of W1 after the optimizer's") as caught,
    ):
        trainer.fit(examples, epochs=1, batch_size=12, rng=rng, **options)
    # Adam's mean of squares takes a thousandth each time.
    assert trainer.optimizer.steps == (3 if optimizer == "adam" else 0)
    assert f"at step {trainer.optimizer.steps + 1} of" in str(caught.value)
    assert trainer.history == []
    assert not (tmp_path / "a").exists()


class Exploding(nnxp.Sequential):
    def forward(self, x, training=False):
        return super().forward(x, training) * np.float32(np.inf)


class FirstSteep(nnxp.Affine):
    def backward(self, dy):
        return super().backward(dy) * np.float32(np.inf)


def test_only_what_a_step_computes_is_blamed(data):
    rng = np.random.default_rng(0)
    inputs = data.inputs.astype("float32")
    layers = [FirstSteep(6, 4, rng=rng), nnxp.Tanh(), nnxp.Affine(4, 3, rng=rng)]
    with np.errstate(all="ignore"):
        find = nnxp.training.divergence.first_not_finite
        network, loss = nnxp.Sequential(layers), nnxp.SoftmaxWithLoss()
        assert find(network, loss, inputs, data.labels) is None  # it has no gradient at its inputs
        trainer = nnxp.Trainer(Exploding(layers), nnxp.MeanSquaredError(), nnxp.SGD(1e-9))
        trainer.rng = rng
        targets = Dataset(data.inputs, np.zeros((40, 3)))
        with pytest.raises(nnxp.DivergenceError, match=r"at step 1 of epoch 1: \w+ after the opt"):
            fit(trainer, targets, 1)


@pytest.mark.parametrize("before", [0, 3])
def test_an_epoch_without_a_step_to_blame_is_taken_back(before):
    # Squares of 1e36 are fine by batches of 10, and beyond float32 a thousand at once.
    rng = np.random.default_rng(0)
    network = nnxp.mlp([3, 1], rng=rng)
    trainer = nnxp.Trainer(network, nnxp.MeanSquaredError(), nnxp.SGD(1e-20))
    trainer.rng = rng
    examples = Dataset(rng.random((1000, 3)), np.full((1000, 1), 1e18))
    options = {"epochs": 1, "batch_size": 10, "rng": rng}
    if before:
        trainer.fit(examples, **options, stop=stopped_after(before, trainer))
    held = numbers(trainer)["parameters"] | {}
    held = {name: x.copy() for name, x in held.items()}
    with (
        np.errstate(all="ignore"),
        pytest.raises(nnxp.DivergenceError, match="the loss is inf after epoch 1"),
    ):
        trainer.fit(examples, **options)
    np.testing.assert_equal(numbers(trainer)["parameters"], held)
    assert trainer.optimizer.steps == before
    assert (trainer._progress.batch if before else trainer._progress) == (before or None)


def test_parameters_are_those_before_a_divergence_on_every_library(data, backend):
    trainer, other = (
        new_trainer("momentum", device=backend.device, capture=False) for _ in range(2)
    )
    for each in (trainer, other):
        fit(each, data, 1)
        each.optimizer.learning_rate = 3e38  # makes weights of 1e37, and the next loss infinite
    with np.errstate(all="ignore"), pytest.raises(nnxp.DivergenceError, match="step 2 of epoch 2"):
        fit(trainer, data, 1)
    fit(other, data, 1, stop=stopped_after(5, other))
    for what in ("parameters", "state", "steps", "history"):
        np.testing.assert_equal(numbers(trainer)[what], numbers(other)[what])


def test_a_parameter_that_is_not_finite_is_found_where_nothing_shows_it(data):
    trainer = new_trainer("sgd")
    trainer.network.parameters()["b1"][...] = -np.inf  # of which tanh makes -1
    with pytest.raises(nnxp.DivergenceError, match="at step 1 of epoch 1: the output of layer 1"):
        fit(trainer, data, 1)


def test_a_step_is_counted_from_the_start_of_its_epoch(data):
    trainer = new_trainer("sgd")
    trainer.loss = nnxp.MeanSquaredError()
    order = np.random.default_rng(0)
    order.bit_generator.state = trainer.rng.bit_generator.state
    targets = np.zeros((40, 3))
    targets[order.permutation(40)[38]] = 3e25  # its square is beyond float32
    examples = Dataset(data.inputs, targets)
    fit(trainer, examples, 1, stop=stopped_after(2, trainer))
    with np.errstate(all="ignore"), pytest.raises(nnxp.DivergenceError, match="at step 4 of epoch"):
        fit(trainer, examples, 1)


def test_arrays_stay_the_same_objects_after_a_divergence(data):
    trainer = new_trainer("sgd")
    held = dict(trainer.network.parameters())
    trainer.optimizer.learning_rate = 3e38
    with np.errstate(all="ignore"), pytest.raises(nnxp.DivergenceError):
        fit(trainer, data, 2)
    assert all(held[name] is x for name, x in trainer.network.parameters().items())


def test_a_gradient_of_weights_that_is_not_finite_is_found():
    rng = np.random.default_rng(0)
    network = nnxp.Sequential([nnxp.Affine(6, 3, rng=rng, initializer=nnxp.initializers.zeros)])
    inputs, targets = np.full((40, 6), 3e38, "f4"), np.full((40, 3), 1e6, "f4")
    with np.errstate(all="ignore"):
        place = first_not_finite(network, nnxp.MeanSquaredError(), inputs, targets)
    assert place == "the gradient of W1 in layer 1, Affine(6, 3),"


# Determinism.


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_same_seed_gives_the_same_bits(threads):
    code = (
        "import numpy as np, nnxp, hashlib\n"
        "rng = np.random.default_rng(0)\n"
        "train, test = nnxp.data.load_digits()\n"
        "network = nnxp.mlp([64, 600, 300, 10], rng=rng)\n"  # wide enough for threads
        "trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam())\n"
        "trainer.fit(train, epochs=1, batch_size=500, validation=test, rng=rng)\n"
        "digest = hashlib.sha256(repr(trainer.history[0].train_loss).encode())\n"
        "for x in network.parameters().values(): digest.update(x)\n"
        "print(digest.hexdigest())\n"
    )
    environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
            check=True,
        ).stdout
        for _ in range(3)
    }  # fmt: skip
    assert len(digests) == 1
