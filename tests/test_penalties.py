"""Penalties, transforms, schedules and weight decay: values, all ways to train, checkpoints."""

from __future__ import annotations

import math

import numpy as np
import pytest
from builders import Stopping, numbers
from pairs import assert_equal, devices, fit, trainer
from tables import BACKENDS, PENALTIES, SCHEDULES, TRANSFORMS, device_or_skip, halve

import nnxp
from nnxp import penalties, schedules, transforms
from nnxp.optimizers import OPTIMIZERS

OPTIONS = {
    **{f"penalty {name}": {"penalty": x} for name, x in PENALTIES.items()},
    **{f"transforms {name}": {"transforms": x} for name, x in TRANSFORMS.items()},
    "all": {"penalty": nnxp.L1(0.01), "transforms": [nnxp.ClipNorm(0.1), halve]},
}
LIBRARIES = pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, marks=mark)
        for name, (spec, mark) in BACKENDS.items()
        if name in ("strict", "torch", "jax", "cupy")
    ],
)


@pytest.mark.parametrize(
    ("base", "table", "own"),
    [
        (penalties.Penalty, PENALTIES, penalties.PENALTIES),
        (transforms.GradientTransform, TRANSFORMS, transforms.TRANSFORMS),
        (schedules.Schedule, SCHEDULES, schedules.SCHEDULES),
    ],
)
def test_tables_have_every_subclass(base, table, own):
    kinds = {x for x in base.__subclasses__() if x.__module__.startswith("nnxp.")}
    tested = {type(y) for x in table.values() for y in (x if isinstance(x, tuple) else [x])}
    assert kinds == set(own.values())
    assert kinds <= tested
    for kind in kinds:
        assert getattr(nnxp, kind.__name__, None) is kind or hasattr(schedules, kind.__name__)


@pytest.mark.parametrize("name", PENALTIES)
def test_gradient_of_a_penalty_is_the_derivative_of_its_value(name):
    penalty = PENALTIES[name]
    params = {"W1": np.array([[1.0, -2.0], [0.5, 3.0]]), "b1": np.array([0.5, -1.0])}
    zeros = {key: np.zeros_like(x) for key, x in params.items()}
    grads = penalty.add_gradients(params, zeros)
    for key, x in params.items():
        numerical = np.zeros_like(x)
        for i in np.ndindex(x.shape):
            sides = []
            for h in (1e-6, -1e-6):
                changed = {k: y.copy() for k, y in params.items()}
                changed[key][i] += h
                sides.append(float(penalty.value(changed)))
            numerical[i] = (sides[0] - sides[1]) / 2e-6
        # Central differences of a quadratic are exact up to rounding, 1e-16 / 1e-6.
        np.testing.assert_allclose(grads[key], numerical, atol=1e-8)


def test_values_of_penalties():
    params = {"W1": np.array([[3.0, -4.0]]), "b1": np.array([2.0])}
    assert float(nnxp.L1(0.5).value(params)) == 3.5
    assert float(nnxp.L2(0.5).value(params)) == 6.25
    assert float(nnxp.L2(0.5, "all").value(params)) == 7.25
    assert float(nnxp.ElasticNet(0.5, 0.5).value(params)) == 9.75
    assert nnxp.L1(0.5, ["V*"]).value(params) == 0.0
    gradient = nnxp.L1(0.5).add_gradients({"W": np.zeros((1, 1))}, {"W": np.ones((1, 1))})["W"]
    assert gradient == [[1.0]]  # 0 at 0


def test_clipping():
    grads = {"W": np.array([[3.0, 0.0]]), "b": np.array([-4.0])}
    clipped = nnxp.ClipNorm(1.0)({}, grads)
    np.testing.assert_allclose(clipped["W"], [[0.6, 0.0]], rtol=1e-15)
    np.testing.assert_allclose(clipped["b"], [-0.8], rtol=1e-15)
    np.testing.assert_equal(nnxp.ClipNorm(5.5)({}, grads), grads)
    np.testing.assert_equal(
        nnxp.ClipValue(3.5)({}, grads), {"W": np.array([[3.0, 0.0]]), "b": np.array([-3.5])}
    )


def on_jax(*cases):
    """Return cases with the device: all on NumPy, and these on JAX, which compiles each of them."""
    return [pytest.param("jax:cpu", *case, marks=pytest.mark.interop) for case in cases]


@pytest.mark.parametrize(
    ("spec", "name", "optimizer"),
    [("cpu", name, "sgd") for name in OPTIONS]
    + [("cpu", "all", "adam")]
    + [
        pytest.param("cpu", name, "adam", marks=pytest.mark.long)
        for name in OPTIONS
        if name != "all"
    ]
    + on_jax(("all", "sgd"), ("penalty ElasticNet", "adam"), ("transforms both", "sgd")),
)
def test_captured_steps_equal_plain_ones(spec, name, optimizer):
    one, other, without = (
        trainer(spec, optimizer=OPTIMIZERS[optimizer](0.1), capture=capture, **options)
        for capture, options in (("auto", OPTIONS[name]), (False, OPTIONS[name]), (False, {}))
    )
    for each in (one, other, without):
        fit(each)
    assert one.captured == "captured"
    assert_equal(one, other)
    if "not reached" not in name:
        with pytest.raises(AssertionError):
            assert_equal(one, without)
    assert one.history[-1].train_loss == pytest.approx(other.history[-1].train_loss, rel=1e-9)


@LIBRARIES
@pytest.mark.parametrize("name", ["penalty ElasticNet", "transforms both", "all"])
def test_all_libraries_train_alike(spec, name):
    device_or_skip(spec)
    one, other = (
        trainer(s, capture=False, optimizer=nnxp.Nesterov(SCHEDULES["OneCycle"]), **OPTIONS[name])
        for s in (spec, "cpu")
    )
    fit(one)
    fit(other)
    to_host = one.network.device.to_host
    for key, x in other.network.parameters().items():
        # As in pairs.assert_equal: sums of 400 terms, 8 steps.
        np.testing.assert_allclose(to_host(one.network.parameters()[key]), x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("spec", "name"), [("cpu", name) for name in SCHEDULES] + on_jax(("OneCycle",))
)
def test_schedules_in_captured_steps(spec, name):
    one, other = (
        trainer(spec, optimizer=nnxp.Momentum(SCHEDULES[name]), capture=c) for c in ("auto", False)
    )
    fit(one)
    fit(other)
    assert one.captured == "captured"
    assert_equal(one, other)
    by_hand = trainer(spec, optimizer=nnxp.Momentum(1.0), capture=False)

    def set_rate():
        by_hand.optimizer.learning_rate = max(SCHEDULES[name](by_hand.optimizer.steps), 1e-300)
        return False

    set_rate()
    fit(by_hand, callbacks=[Stopping(set_rate)])
    assert_equal(one, by_hand)


def test_figures_of_schedules():
    cases = {
        schedules.Constant(0.1): [0.1, 0.1, 0.1, 0.1, 0.1],
        schedules.StepDecay(0.8, 2, 0.5): [0.8, 0.8, 0.4, 0.4, 0.2],
        schedules.Exponential(0.8, 0.5): [0.8, 0.4, 0.2, 0.1, 0.05],
        schedules.Cosine(1.0, 2, 0.5): [1.0, 0.75, 0.5, 0.5, 0.5],
        schedules.LinearWarmup(0.4, 4): [0.0, 0.1, 0.2, 0.3, 0.4],
        schedules.LinearWarmup(0.4, 2, 0.5): [0.2, 0.3, 0.4, 0.4, 0.4],
        schedules.OneCycle(1.0, 5, 0.4, 0.5, 0.25): [0.5, 1.0, 0.75, 0.5, 0.25],
        schedules.Chain([schedules.Constant(1.0), schedules.StepDecay(0.5, 1, 0.5)], [2]): [
            1.0, 1.0, 0.5, 0.25, 0.125,
        ],
    }  # fmt: skip
    for schedule, expected in cases.items():
        assert [schedule(step) for step in range(5)] == pytest.approx(expected, rel=1e-15)
        assert schedule(10**9) >= 0
    assert schedules.OneCycle(1.0, 5)(10**9) == 0
    assert schedules.OneCycle(1.0, 1)(0) == 0


@pytest.mark.interop
def test_schedules_have_pytorchs_figures():
    torch = pytest.importorskip("torch")
    lr = torch.optim.lr_scheduler

    def rates(make, steps=12):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        scheduler, found = make(optimizer), []
        for _ in range(steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    for mine, theirs, steps in (
        (schedules.StepDecay(0.3, 4, 0.5), lambda o: lr.StepLR(o, 4, 0.5), 12),
        (schedules.Exponential(0.3, 0.9), lambda o: lr.ExponentialLR(o, 0.9), 12),
        (schedules.Cosine(0.3, 11, 0.1), lambda o: lr.CosineAnnealingLR(o, 11, 0.1), 12),
        (schedules.LinearWarmup(0.3, 5, 0.2), lambda o: lr.LinearLR(o, 0.2, 1.0, 5), 12),
        (
            schedules.OneCycle(0.3, 12, 0.25, 0.04, 0.01),
            lambda o: lr.OneCycleLR(
                o, 0.3, 12, pct_start=0.25, anneal_strategy="linear", div_factor=25,
                final_div_factor=4,
            ),
            11,
        ),
    ):  # fmt: skip
        assert [mine(step) for step in range(steps)] == pytest.approx(
            rates(theirs, steps), rel=1e-12
        )


@pytest.mark.parametrize(
    ("spec", "name", "decayed"),
    [("cpu", x, "matrices") for x in OPTIMIZERS]
    + [("cpu", "adam", "all"), ("cpu", "adam", ["W1", "b2"])]
    + [
        pytest.param("cpu", x, y, marks=pytest.mark.long)
        for x in OPTIMIZERS
        for y in ("all", ["W1", "b2"])
        if x != "adam"
    ]
    + on_jax(("sgd", "matrices"), ("adamw", "all")),
)
def test_decoupled_decay(spec, name, decayed):
    """By hand: parameters are multiplied before each step of the optimizer without decay."""
    one, other = (
        trainer(
            spec, optimizer=OPTIMIZERS[name](0.05, weight_decay=0.5, decayed=decayed), capture=c
        )
        for c in ("auto", False)
    )
    plain = OPTIMIZERS[name](0.05, **({"weight_decay": 0.0} if name == "adamw" else {}))
    by_hand = trainer(spec, optimizer=plain, capture=False)
    update = plain.update

    def decayed_update(params, grads):
        for key in params:
            matrix = params[key].ndim == 2
            if decayed == "all" or (decayed == "matrices" and matrix) or key in decayed:
                params[key] *= 1 - 0.05 * 0.5
        update(params, grads)

    plain.update = decayed_update
    for each in (one, other, by_hand):
        fit(each)
    assert one.captured == "captured"
    assert_equal(one, other)
    assert_equal(one, by_hand)


@devices
def test_decay_that_begins_within_an_epoch(spec):
    def trained(capture):
        one = trainer(spec, optimizer=nnxp.SGD(0.1, decayed="matrices"), capture=capture)

        def stop():
            if one.optimizer.steps == 2:
                one.optimizer.weight_decay = 1.0
            return False

        fit(one, callbacks=[Stopping(stop)])
        return one

    assert_equal(trained("auto"), trained(False))


@pytest.mark.interop
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_penalized_training_equals_pytorchs_weight_decay(momentum):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    w, x, y = rng.normal(size=(4, 3)), rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    layer = nnxp.Affine(4, 3, rng=rng, dtype="float64")
    layer.params["W"][...] = w
    optimizer = nnxp.Momentum(0.1, momentum)
    one = nnxp.Trainer(
        nnxp.Sequential([layer]), nnxp.MeanSquaredError(), optimizer, penalty=nnxp.L2(0.3, "all")
    )
    theirs = [torch.tensor(w, requires_grad=True), torch.zeros(3, dtype=torch.float64)]
    theirs[1].requires_grad = True
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=momentum, weight_decay=0.3)
    scale = float(one.loss.forward(layer.forward(x), y, training=False)) / float(
        ((torch.tensor(x) @ theirs[0] - torch.tensor(y)) ** 2).mean().detach()
    )
    for _ in range(5):
        one.step(x, y)
        sgd.zero_grad()
        loss = ((torch.tensor(x) @ theirs[0] + theirs[1] - torch.tensor(y)) ** 2).mean() * scale
        loss.backward()
        sgd.step()
    np.testing.assert_allclose(layer.params["W"], theirs[0].detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(layer.params["b"], theirs[1].detach().numpy(), rtol=1e-12)


@devices
def test_reported_losses_include_the_penalty(spec):
    device = device_or_skip(spec)
    one, other = (trainer(spec, penalty=x) for x in (nnxp.L2(0.5), None))
    train, test = nnxp.data.load_digits()
    penalty = float(nnxp.L2(0.5).value(one.network.parameters()))
    assert penalty > 1
    expected = other.evaluate(test).loss + penalty
    assert one.evaluate(test).loss == pytest.approx(expected, rel=1e-12)
    for layer in one.network.leaves():  # a frozen layer is not penalized
        layer.trainable = False
    assert one.evaluate(test).loss == pytest.approx(other.evaluate(test).loss, rel=1e-12)
    one.network.trainable = True
    x, y = (
        device.asarray(train.inputs[:5], dtype="float64") / 255,
        device.asarray(train.labels[:5], dtype="int32"),
    )
    data_loss = float(other.loss.forward(other.network.forward(x), y, training=False))
    one.network.layers = [x for x in one.network if not isinstance(x, nnxp.Dropout)]
    assert float(one.step(x, y)) == pytest.approx(data_loss + penalty, rel=1e-12)


@pytest.mark.parametrize("stop_at", range(1, 8))
def test_resume_from_any_step_gives_the_same_bits(tmp_path, stop_at):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    options = {"penalty": nnxp.ElasticNet(0.01, 0.1), "transforms": [nnxp.ClipNorm(0.1)]}

    def new():
        optimizer = nnxp.AdamW(SCHEDULES["Chain"], weight_decay=0.1, decayed="matrices")
        return trainer(optimizer=optimizer, **options)

    one, other = new(), new()
    fit(one)
    fit(other, callbacks=[Stopping(lambda: other.optimizer.steps == stop_at)], checkpoint=path)
    resumed = nnxp.Trainer.resume(path)
    assert repr(resumed.optimizer) == repr(one.optimizer)
    assert repr(resumed.penalty) == repr(one.penalty)
    assert repr(resumed.transforms) == repr(one.transforms)
    train, _ = nnxp.data.load_digits()
    resumed.fit(train, epochs=2 - resumed.epochs, batch_size=400, rng=resumed.rng)
    np.testing.assert_equal(numbers(resumed), numbers(one))


def test_function_as_transform_is_given_again_on_resume(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    one = trainer(transforms=[halve])
    fit(one)
    one.save(path)
    with pytest.raises(nnxp.CheckpointError, match=r"transform halve is a function.*transforms=\["):
        nnxp.Trainer.resume(path)
    assert nnxp.Trainer.resume(path, transforms=[halve]).transforms == (halve,)


class Trust(penalties.Penalty):
    """A penalty as users write them: a quarter of the fourth powers' sum."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def value_of(self, w):
        import array_api_compat

        return self.rate / 4 * array_api_compat.array_namespace(w).sum(w * w * w * w)

    def gradient_of(self, w):
        return self.rate * w * w * w


@devices
def test_penalty_of_a_user_is_captured_and_saved(spec, tmp_path, monkeypatch):
    one, other = (trainer(spec, penalty=Trust(0.1), capture=c) for c in ("auto", False))
    fit(one)
    fit(other)
    assert one.captured == "captured"
    assert_equal(one, other)
    pytest.importorskip("safetensors")
    one.save(tmp_path / "a.safetensors")
    with pytest.raises(nnxp.CheckpointError, match=r"its penalty cannot be made.*register\(Trust"):
        nnxp.Trainer.resume(tmp_path / "a.safetensors")
    monkeypatch.setattr("nnxp.parts._registered", dict(nnxp.parts._registered))
    nnxp.register(Trust)
    assert nnxp.Trainer.resume(tmp_path / "a.safetensors").penalty.rate == 0.1


class Alone(schedules.Schedule):
    def __call__(self, step):
        return -1.0 if step == 2 else 0.1


def drop_a_name(params, grads):
    return {name: g for name, g in grads.items() if name != "b1"}


def reshape_one(params, grads):
    return grads | {"b1": grads["b1"][None, :]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nnxp.L2(-1), "rate must be a number of at least 0, got -1"),
        (lambda: nnxp.L1(math.inf), "rate must be a number of at least 0, got inf"),
        (lambda: nnxp.ElasticNet(0.1, -0.1), "l2 must be a number of at least 0"),
        (lambda: nnxp.L2(0.1, "weights"), 'parameters must be "all", "matrices" or a list'),
        (lambda: nnxp.L2(0.1, []), 'parameters must be "all", "matrices" or a list'),
        (lambda: nnxp.SGD(0.1, decayed="biases"), 'decayed must be "all", "matrices" or a list'),
        (lambda: nnxp.SGD(0.1, weight_decay=-1), "weight_decay must be a number of at least 0"),
        (lambda: nnxp.ClipNorm(0), "limit must be a positive number, got 0"),
        (lambda: nnxp.ClipValue("a"), "limit must be a positive number, got 'a'"),
        (lambda: schedules.Cosine(0.1, 0), "steps must be a whole number of at least 1, got 0"),
        (lambda: schedules.OneCycle(0.1, steps=0), "steps must be a whole number of at least 1"),
        (lambda: schedules.OneCycle(0.1, 5, warmup=2), "warmup must be a number from 0 to 1"),
        (lambda: schedules.StepDecay(0.1, 0.5), "every must be a whole number"),
        (lambda: schedules.Exponential(0.1, 1.5), "factor must be a number above 0 and at most 1"),
        (lambda: schedules.Chain([schedules.Constant(0.1)], [1]), "got 1 schedules and 1 numbers"),
        (lambda: schedules.Chain([0.1, 0.2], [1]), "Chain expects schedules, got 0.1"),
        (
            lambda: nnxp.SGD(lambda step: 0.1),
            "learning_rate must be a positive number or a schedule",
        ),
        (
            lambda: nnxp.SGD(schedules.Cosine),
            "learning_rate must be a positive number or a schedule",
        ),
        (
            lambda: trainer(penalty=0.1),
            r"penalty must be a Penalty such as nnxp\.L2\(1e-4\), got 0.1",
        ),
        (lambda: trainer(penalty=nnxp.L2), "penalty must be a Penalty"),
        (lambda: trainer(transforms=nnxp.ClipNorm(1)), r"transforms must be a list.*\[ClipNorm"),
        (lambda: trainer(transforms=[nnxp.ClipNorm]), "a transform must be an object such as"),
        (lambda: trainer(transforms=[1]), "a transform must be an object such as"),
        (
            lambda: fit(trainer(transforms=[drop_a_name])),
            "drop_a_name.* a gradient for each of W1, b1",
        ),
        (lambda: fit(trainer(transforms=[lambda p, g: None])), "for each of W1, b1.*got None"),
        (lambda: fit(trainer(transforms=[reshape_one])), r"same shapes and dtypes, got \(1, 9\)"),
        (
            lambda: fit(trainer(optimizer=nnxp.SGD(Alone()))),
            r"the rate of Alone\(\) at step 2 must be",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:no step is captured")
def test_wrong_settings_are_refused_by_name(make, message):
    with pytest.raises(nnxp.InputError, match=message):
        make()


def test_learning_rate_is_that_of_the_coming_step():
    one = trainer(optimizer=nnxp.SGD(schedules.LinearWarmup(0.4, 4)))
    assert one.optimizer.learning_rate == 0.0
    fit(one, callbacks=[Stopping(lambda: one.optimizer.steps == 3)])
    assert one.optimizer.learning_rate == pytest.approx(0.3)
    assert repr(one.optimizer).startswith("SGD(learning_rate=LinearWarmup(0.4, 4, start=0.0)")
    one.optimizer.learning_rate = 0.25
    assert one.optimizer.learning_rate == 0.25


def test_frozen_state_of_an_optimizer_is_saved_within_an_epoch(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    one = trainer()
    fit(one)
    one.network[0].trainable = False
    velocity = one.optimizer.state["velocity"]["W1"].copy()
    fit(one, callbacks=[Stopping(lambda: one.optimizer.steps == 10)], checkpoint=path)
    np.testing.assert_array_equal(
        nnxp.Trainer.resume(path).optimizer.state["velocity"]["W1"], velocity
    )
