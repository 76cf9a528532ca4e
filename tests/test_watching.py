"""WatchLayers and the learning-rate range test: their figures, and that nothing else changes."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
from builders import Stopping
from pairs import Swish, devices, trainer
from tables import BACKENDS, device_or_skip

import nnxp

WatchLayers = nnxp.callbacks.WatchLayers
TRAIN, TEST = nnxp.data.load_digits()
PART = nnxp.data.Dataset(TRAIN.inputs[:400], TRAIN.labels[:400])


def fit(one, epochs=2, **options):
    options = {"batch_size": 100, "rng": 1, "validation": TEST} | options
    return one.fit(PART, epochs=epochs, **options)


def host(one, arrays):
    return {name: np.array(one.network.device.to_host(x)) for name, x in arrays.items()}


def everything(one):
    """Return all that a training has changed, on the host."""
    network, optimizer = one.network, one.optimizer
    return {
        "parameters": host(one, network.parameters()),
        "states": host(one, network.states()),
        "optimizer": {slot: host(one, kept) for slot, kept in optimizer.state.items()},
        "steps": optimizer.steps,
        "rng": None if one.rng is None else one.rng.bit_generator.state,
        "history": [{k: v for k, v in x.items() if k != "seconds"} for x in one.history],
    }


class Noisy(nnxp.Layer):
    """Adds noise in training, from a generator that is no declared state, and counts."""

    def __init__(self):
        self.rng, self.count = np.random.default_rng(7), 0

    def forward(self, x, training=False):
        if training:
            self.count += 1
            x = x + self.rng.normal(size=x.shape)
            self.save_for_backward(x)
        return x

    def backward(self, dy):
        self.saved(dy)
        return dy


# Watching


@devices
@pytest.mark.parametrize("every", [None, 1, 3])
def test_watching_changes_no_bit_of_a_captured_training(spec, every):
    device_or_skip(spec)
    watched, alone = (
        trainer(spec, nnxp.BatchNorm(9, device=spec, dtype="float64")) for _ in range(2)
    )
    watch = WatchLayers(TEST, every=every)
    # The other training is called after each step, too, which a captured step then allows.
    other = Stopping(lambda: False) if every else nnxp.callbacks.Callback()
    fit(watched, callbacks=[watch])
    fit(alone, callbacks=[other])
    np.testing.assert_equal(everything(watched), everything(alone))
    assert watched.captured == alone.captured == "captured"
    steps = {None: [0, 4, 8], 1: list(range(9)), 3: [0, 3, 4, 6, 8]}[every]
    assert watch.steps.tolist() == steps


@pytest.mark.parametrize("every", [None, 1])
def test_watching_changes_no_bit_of_a_layer_with_undeclared_state(every):
    # An own layer whose generator and count are no declared state: steps are plain.
    watched, alone = (trainer("cpu", Noisy(), capture=False) for _ in range(2))
    fit(watched, callbacks=[WatchLayers(TEST, every=every)])
    fit(alone)
    np.testing.assert_equal(everything(watched), everything(alone))
    assert watched.network[1].count == alone.network[1].count == 8
    states = [one.network[1].rng.bit_generator.state for one in (watched, alone)]
    assert states[0] == states[1]


def test_an_own_layer_is_captured_beside_watching():
    watched, alone = trainer("cpu", Swish()), trainer("cpu", Swish())
    fit(watched, callbacks=[WatchLayers(TEST, every=2)])
    fit(alone, callbacks=[Stopping(lambda: False)])
    np.testing.assert_equal(everything(watched), everything(alone))
    assert watched.captured == "captured"


def test_figures_are_those_of_a_forward_and_a_backward(backend):
    device = backend.device
    rng = np.random.default_rng(0)
    place = {"rng": rng, "device": device, "dtype": "float64"}
    layers = [nnxp.Affine(64, 8, **place), nnxp.Sigmoid(), nnxp.Affine(8, 10, **place)]
    inner = nnxp.Residual([nnxp.Affine(8, 8, **place), nnxp.Tanh()])
    network = nnxp.Sequential([*layers[:2], inner, nnxp.ReLU(), layers[2]])
    one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), capture=False)
    before = network.to(device)
    watch = WatchLayers(TEST, 50)
    one.fit(PART, epochs=1, batch_size=400, rng=0, callbacks=[watch])
    names = ["affine1", "sigmoid1", "residual1.affine1", "residual1.tanh1", "relu1", "affine2"]
    assert watch.layers == names
    assert watch.steps.tolist() == [0, 1]
    rows = np.linspace(0, len(TEST) - 1, 50).astype(int)
    x = device.asarray(TEST.inputs[rows] / 255, dtype="float64")
    y = device.asarray(TEST.labels[rows], dtype="int32")
    outputs = {name: device.to_host(out) for name, out in before.activations(x).items()}
    np.testing.assert_allclose(watch.spreads[0], [outputs[name].std() for name in names])
    loss = nnxp.SoftmaxWithLoss()
    loss.forward(before.forward(x, training=True), y)
    dy = loss.backward()
    gradients = {}
    for name, layer in [("affine2", before[4]), ("relu1", before[3])]:
        gradients[name] = device.to_host(dy)
        dy = layer.backward(dy)
    gradients["residual1.tanh1"] = skipped = device.to_host(dy)
    inner = before[2]
    dy = inner[1].backward(dy)
    gradients["residual1.affine1"] = device.to_host(dy)
    dy = inner[0].backward(dy) + device.asarray(np.array(skipped))
    gradients["sigmoid1"] = device.to_host(dy)
    gradients["affine1"] = device.to_host(before[1].backward(dy))
    expected = [np.sqrt(np.mean(gradients[name] ** 2)) for name in names]
    np.testing.assert_allclose(watch.gradients[0], expected, rtol=1e-12)
    blocked = watch.blocked[0]
    assert np.isnan(blocked[[0, 2, 5]]).all()
    assert blocked[4] == pytest.approx(np.mean(outputs["residual1"] <= 0))
    assert blocked[1] == 0


def test_vanished_gradients_have_a_size_although_their_squares_have_none():
    # In float32, the square of 1e-25 is 0.
    network = nnxp.mlp([64, 9, 9, 10], rng=0, activation="identity")
    for name in ("W2", "W3"):
        network.parameters()[name][...] *= np.float32(1e-13)
    one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    watch = WatchLayers(TEST)
    one.fit(PART, epochs=1, batch_size=100, rng=0, callbacks=[watch])
    assert 1e-30 < watch.gradients[0, 0] < 1e-25


def test_a_saturated_sigmoid_and_a_dead_relu_are_blocked():
    for activation, bias in (("sigmoid", 50.0), ("relu", -50.0), ("tanh", -50.0)):
        network = nnxp.mlp([64, 8, 10], rng=0, activation=activation)
        network.parameters()["b1"][...] = bias
        one = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
        watch = WatchLayers(TEST)
        one.fit(PART, epochs=1, batch_size=100, rng=0, callbacks=[watch])
        assert watch.blocked[0, 1] == 1


@pytest.mark.parametrize("every", [None, 3])
def test_watching_is_resumed(tmp_path, every):
    pytest.importorskip("safetensors")
    pytest.importorskip("filelock")
    path = tmp_path / "a.safetensors"
    whole, parts, later = (WatchLayers(TEST, every=every) for _ in range(3))
    fit(trainer(), 4, callbacks=[whole])
    fit(trainer(), 2, callbacks=[parts], checkpoint=path)
    one = nnxp.Trainer.resume(path)
    one.fit(PART, epochs=2, batch_size=100, rng=one.rng, validation=TEST, callbacks=[later])
    for name in ("layers", "steps", "spreads", "gradients", "blocked"):
        np.testing.assert_array_equal(getattr(later, name), getattr(whole, name))


def test_a_later_fit_continues_the_records_and_another_network_is_refused():
    watch, one = WatchLayers(TEST), trainer()
    fit(one, 1, callbacks=[watch])
    fit(one, 1, callbacks=[watch], rng=None)
    assert watch.steps.tolist() == [0, 4, 8]
    other = nnxp.Trainer(nnxp.mlp([64, 10], rng=0), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    with pytest.raises(nnxp.InputError, match="network has others; make a new WatchLayers"):
        fit(other, callbacks=[watch])
    assert other.optimizer.steps == 0


def test_watched_examples_are_scaled_and_numbered_as_those_of_the_training():
    names = np.array([f"digit {i}" for i in range(10)])
    train, test = (nnxp.data.Dataset(x.inputs, names[x.labels]) for x in (PART, TEST))
    records = []
    for data, watched in ((PART, TEST), (train, test)):
        watch = WatchLayers(watched, len(TEST) + 7)
        trainer().fit(data, epochs=1, batch_size=100, rng=0, callbacks=[watch])
        records.append(watch.gradients)
    np.testing.assert_array_equal(*records)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (nnxp.data.Dataset(np.zeros((9, 3)), np.zeros(9, int), scale=255), "the watched data do n"),
        (nnxp.data.Dataset(TEST.inputs, TEST.labels + 5), "the watched data do not suit"),
        (nnxp.data.Dataset(TEST.inputs, TEST.labels, scale=16), "the watched data, uint8, are div"),
    ],
)
def test_examples_that_do_not_suit_are_refused_before_the_first_step(dataset, message):
    one = trainer()
    with pytest.raises(nnxp.InputError, match=message):
        fit(one, callbacks=[WatchLayers(dataset)])
    assert one.optimizer.steps == 0


def test_what_cannot_be_copied_is_named():
    layer = Noisy()
    layer.lock = threading.Lock()
    one = trainer("cpu", layer, capture=False)
    with pytest.raises(nnxp.InputError, match=r"cannot be copied \(cannot pickle .*__deepcopy__"):
        fit(one, callbacks=[WatchLayers(TEST)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WatchLayers(TEST.inputs), "WatchLayers expects a Dataset, got ndarray"),
        (lambda: WatchLayers(TEST, 0), "examples must be a whole number of at least 1, got 0"),
        (lambda: WatchLayers(TEST, every=0), "every must be a whole number of at least 1, got 0"),
    ],
)
def test_wrong_settings_of_watching_are_refused(make, message):
    with pytest.raises(nnxp.InputError, match=message):
        make()


# The range of learning rates


def find(one, **options):
    return nnxp.learning_rate_range(one, PART, **{"batch_size": 100, "rng": 3} | options)


@pytest.mark.parametrize("name", BACKENDS)
def test_range_leaves_the_trainer_as_it_is(name):
    spec = BACKENDS[name][0]
    device_or_skip(spec)
    one, other = (trainer(spec, nnxp.BatchNorm(9, device=spec, dtype="float64")) for _ in range(2))
    for each in (one, other):
        fit(each, 1)
    before, arrays = everything(one), {k: id(v) for k, v in one.network.parameters().items()}
    result = find(one, rng=one.rng, steps=30)
    np.testing.assert_equal(everything(one), before)
    assert {k: id(v) for k, v in one.network.parameters().items()} == arrays
    assert one.optimizer.learning_rate == 0.1
    assert np.isfinite(result.losses).all()
    for each in (one, other):
        fit(each, 1, rng=None)
    np.testing.assert_equal(everything(one), everything(other))


def test_range_leaves_undeclared_state_and_an_interrupted_epoch_as_they_are():
    one, other = (trainer("cpu", Noisy(), capture=False) for _ in range(2))
    for each in (one, other):
        fit(each, 1, callbacks=[Stopping(lambda: each.optimizer.steps == 2)])  # noqa: B023
    find(one)
    for each in (one, other):
        fit(each, 2, rng=each.rng)
    np.testing.assert_equal(everything(one), everything(other))


def test_range_takes_the_losses_of_steps_with_rising_rates():
    one = trainer(penalty=nnxp.L2(1e-3), transforms=[nnxp.ClipNorm(1.0)])
    twin = copy.deepcopy(one)
    result = find(one, lowest=1e-4, highest=1.0, steps=20)
    np.testing.assert_allclose(result.rates, np.geomspace(1e-4, 1, len(result.rates)))
    batches = nnxp.data.Batches(PART, 100, device="cpu", dtype="float64", rng=3)
    expected = []
    for _ in range(5):  # epochs of four batches
        for inputs, labels in batches:
            twin.optimizer.learning_rate = float(result.rates[len(expected)])
            expected.append(float(twin.step(inputs, labels)))
    np.testing.assert_allclose(result.losses, expected, rtol=1e-12)
    means = [np.mean(expected[max(0, i - 1) : i + 2]) for i in range(20)]
    np.testing.assert_allclose(result.smoothed, means)
    assert not result.diverged


@pytest.mark.parametrize("optimizer", [nnxp.SGD, nnxp.Momentum, nnxp.Adam, nnxp.RMSprop])
def test_suggestion_is_a_rate_that_learns(optimizer):
    make = lambda rate: nnxp.Trainer(  # noqa: E731
        nnxp.mlp([64, 50, 10], rng=0), nnxp.SoftmaxWithLoss(), optimizer(rate)
    )
    result = find(make(0.1), highest=100.0, batch_size=50)
    assert result.diverged
    assert result.suggestion == result.rates[result.lowest] / 10
    one = make(result.suggestion)
    accuracy = fit(one, 10, batch_size=50)[-1].validation_accuracy
    assert accuracy > 0.8


def test_range_ends_at_losses_that_are_not_finite():
    network = nnxp.mlp([64, 50, 50, 10], rng=0, activation="relu")
    loss = nnxp.MeanSquaredError(classes=True)
    one = nnxp.Trainer(network, loss, nnxp.SGD(0.1))
    data = nnxp.data.Dataset(PART.inputs, nnxp.data.one_hot(PART.labels, 10))
    result = nnxp.learning_rate_range(
        one, data, batch_size=100, rng=0, lowest=1e3, highest=1e30, steps=20
    )
    assert result.diverged
    assert 0 < len(result.losses) < 20
    assert np.isfinite(result.losses).all()
    assert result.suggestion is None
    network.parameters()["W1"][...] = np.nan
    with pytest.raises(nnxp.DivergenceError, match="first batch is not finite before any step"):
        nnxp.learning_rate_range(one, data, batch_size=100, rng=0)


def test_range_uses_an_own_step_a_schedule_and_weights():
    class Halved(nnxp.Trainer):
        def step(self, inputs, labels, weights=None):
            return super().step(inputs, labels, weights) / 2

    def make(kind):
        rate = nnxp.schedules.Cosine(0.1, 100)
        return kind(nnxp.mlp([64, 10], rng=0), nnxp.SoftmaxWithLoss(), nnxp.SGD(rate))

    data = nnxp.data.Dataset(PART.inputs, PART.labels, weights=np.arange(1.0, 401.0))
    options = {"batch_size": 100, "rng": 0, "steps": 20, "highest": 0.1}
    plain, halved = (
        nnxp.learning_rate_range(make(kind), data, **options) for kind in (nnxp.Trainer, Halved)
    )
    np.testing.assert_allclose(halved.losses, plain.losses / 2)
    alike = nnxp.learning_rate_range(make(nnxp.Trainer), PART, **options)
    assert (alike.losses != plain.losses).any()


def test_range_numbers_classes_and_fits_statistics_of_the_copy():
    data = nnxp.data.Dataset(PART.inputs, np.array(list("abcdefghij"))[PART.labels])
    layers = [nnxp.Standardize(), *nnxp.mlp([64, 10], rng=0).layers]
    one = nnxp.Trainer(nnxp.Sequential(layers), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    result = nnxp.learning_rate_range(one, data, batch_size=50, rng=0)
    assert result.suggestion > 0
    assert not layers[0].is_fitted()
    assert one.network.data_format is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowest": 0.0}, "lowest must be a positive number, got 0.0"),
        ({"highest": np.inf}, "highest must be a positive number, got inf"),
        ({"lowest": 2.0, "highest": 1.0}, "lowest must be below highest, got 2 and 1"),
        ({"lowest": 1e-60}, "learning_rate of .* is too small for float64|lowest"),
        ({"steps": 19}, "steps must be a whole number of at least 20, got 19"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"rng": None}, "rng must be a seed such as 0"),
    ],
)
def test_wrong_settings_of_the_range_are_refused(options, message):
    one = trainer()
    if options == {"lowest": 1e-60}:
        one = nnxp.Trainer(nnxp.mlp([64, 10], rng=0), nnxp.SoftmaxWithLoss(), nnxp.SGD())
        message = "learning_rate of .* is too small for float32"
    before = everything(one)
    with pytest.raises(nnxp.InputError, match=message):
        find(one, **options)
    np.testing.assert_equal(everything(one), before)


def test_range_of_other_things_is_refused():
    one = trainer()
    for args, message in (
        ((one.network, PART), "expects a Trainer, got Sequential"),
        ((one, PART.inputs), "learning_rate_range expects a Dataset, got ndarray"),
        ((one, nnxp.data.Dataset(np.zeros((9, 3)), np.zeros(9, int))), "training data do not suit"),
    ):
        with pytest.raises(nnxp.InputError, match=message):
            nnxp.learning_rate_range(*args, batch_size=10, rng=0)
