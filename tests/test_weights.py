"""Weights of examples: a weight of 2 is the example twice, in every way to train and to measure."""

from __future__ import annotations

import numpy as np
import pytest
from builders import numbers
from tables import device_or_skip, devices

import nnxp
from nnxp.data import Dataset

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 6))
LABELS = RNG.integers(0, 3, 40)


def class_weighted():
    return nnxp.SoftmaxWithLoss(0.1, class_weights=[1, 20, 0.1])


TARGETS = {
    nnxp.SoftmaxWithLoss: LABELS,
    class_weighted: LABELS,
    nnxp.SigmoidWithLoss: nnxp.data.one_hot(LABELS, 3),
    nnxp.MeanSquaredError: RNG.normal(size=(40, 3)),
    nnxp.Huber: RNG.normal(size=(40, 3)),
    nnxp.AbsoluteError: RNG.normal(size=(40, 3)),
}
COUNTS = RNG.integers(0, 4, 40)  # how often each example occurs


def weighted(loss):
    return Dataset(INPUTS, TARGETS[loss], weights=COUNTS)


def repeated(loss):
    return Dataset(np.repeat(INPUTS, COUNTS, axis=0), np.repeat(TARGETS[loss], COUNTS, axis=0))


def trained(loss, dataset, spec="cpu", batch_size=None, capture="auto", **options):
    device_or_skip(spec)
    network = nnxp.mlp([6, 5, 3], rng=0, dtype="float64", device=spec)
    metrics = [nnxp.metrics.F1(3)] if TARGETS[loss] is LABELS else [nnxp.metrics.R2()]
    trainer = nnxp.Trainer(
        network, loss(), nnxp.Momentum(0.1), penalty=nnxp.L2(0.01), metrics=metrics, capture=capture
    )
    size = len(dataset) if batch_size is None else batch_size
    trainer.fit(dataset, epochs=4, batch_size=size, rng=0, **options)
    return trainer


def assert_close(one, other):
    """Compare up to rounding in float64, by a unit of 2**-53 = 1.1e-16.

    A gradient has sums of up to 120 terms and some 30 more roundings: 150 units of a parameter's
    size, around 1. Momentum adds those of a step 3.4 times in 4 steps, and the next steps multiply
    them by 10 at most: 150 * 1.1e-16 * 4 * 3.4 * 10 = 2e-12, and 1e-11 with some room. A figure
    depends on 53 parameters, most of them with a smaller share of the error: 10 times as much.
    """
    device, to_host = one.network.device, one.network.device.to_host
    for name, x in one.network.parameters().items():
        y = other.network.parameters()[name]
        np.testing.assert_allclose(to_host(x), to_host(y), rtol=1e-11, atol=1e-11, err_msg=name)
    for mine, its in zip(one.history, other.history, strict=True):
        assert mine.keys() == its.keys()
        for name in mine.keys() - {"seconds"}:
            assert mine[name] == pytest.approx(its[name], rel=1e-10, abs=1e-10), (name, device)


@devices
@pytest.mark.parametrize("loss", TARGETS)
@pytest.mark.parametrize("train_metrics", ["running", "after"])
def test_a_weight_of_two_is_the_example_twice(spec, loss, train_metrics):
    options = {"spec": spec, "train_metrics": train_metrics}
    one = trained(loss, weighted(loss), validation=weighted(loss), **options)
    other = trained(loss, repeated(loss), validation=repeated(loss), **options)
    assert_close(one, other)
    mine, its = one.evaluate(weighted(loss)), other.evaluate(repeated(loss))
    assert dict(mine) == pytest.approx(dict(its), rel=1e-10)  # as in `assert_close`
    assert (one.captured == "captured") == (spec in ("cpu", "jax:cpu"))
    unweighted = trained(loss, Dataset(INPUTS, TARGETS[loss]), validation=0.5, **options)
    with pytest.raises(AssertionError):
        assert_close(one, unweighted)


@pytest.mark.parametrize("loss", TARGETS)
def test_weighted_batches_are_captured_and_accumulated(loss):
    plain = trained(loss, weighted(loss), batch_size=12, capture=False)
    captured = trained(loss, weighted(loss), batch_size=12)
    assert captured.captured == "captured"
    assert_close(captured, plain)
    assert_close(trained(loss, weighted(loss), batch_size=4, accumulate=3), plain)


@devices
@pytest.mark.parametrize("weights", [None, COUNTS])
@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], nnxp.data.one_hot(LABELS, 3)])
def test_class_weights_are_means_over_all_batches(spec, weights, labels):
    device_or_skip(spec)
    dataset = Dataset(INPUTS, labels, weights=weights)
    network = nnxp.mlp([6, 5, 3], rng=0, dtype="float64", device=spec)
    trainer = nnxp.Trainer(network, class_weighted(), nnxp.SGD(1e-9))
    trainer.fit(dataset, epochs=1, batch_size=7, rng=0, validation=dataset)
    device = network.device
    whole = float(
        trainer.loss.forward(
            network.predict(INPUTS),
            device.asarray(labels.astype("int32")),
            weights=None if weights is None else device.asarray(weights, dtype="float64"),
        )
    )
    # Scores are sums of 6 and 5 terms, a loss is one of 3, and the mean one of 40, in other orders:
    # 100 units of 2**-53 of numbers up to 10 times the loss, 1e-13, with some room for exp and log.
    assert trainer.evaluate(dataset, batch_size=7).loss == pytest.approx(whole, rel=1e-12)
    assert trainer.history[0].validation_loss == pytest.approx(whole, rel=1e-12)
    # Six steps change the loss by 1e-9 times the product of a batch's gradient, whose norm is up to
    # 11, and that of all, of norm 1.4: 9e-8.
    assert trainer.history[0].train_loss == pytest.approx(whole, rel=1e-7)


def test_split_and_share_keep_weights(tmp_path):
    dataset = weighted(nnxp.SoftmaxWithLoss)
    for part in dataset.split(0.25, rng=0):
        for x, weight in zip(part.inputs, part.weights, strict=True):
            assert weight == COUNTS[(x == INPUTS).all(axis=1).argmax()]
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    trained(nnxp.SoftmaxWithLoss, dataset, validation=0.25, checkpoint=path)
    resumed = nnxp.Trainer.resume(path)
    resumed.fit(dataset, epochs=2, batch_size=40, rng=resumed.rng, validation=0.25)
    one = nnxp.Trainer.resume(path)
    one.fit(dataset, epochs=1, batch_size=40, rng=one.rng, validation=0.25)
    one.fit(dataset, epochs=1, batch_size=40, validation=0.25)
    np.testing.assert_equal(numbers(one), numbers(resumed))


@pytest.mark.parametrize("capture", ["auto", False])
def test_batch_without_weight_leaves_the_gradients_at_0(capture):
    dataset = Dataset(INPUTS, LABELS, weights=np.where(np.arange(40) < 20, 1.0, 0.0))
    network = nnxp.mlp([6, 5, 3], rng=0)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), capture=capture)
    trainer.fit(dataset, epochs=1, batch_size=1, rng=0)
    assert np.isfinite(trainer.history[0].train_loss)


class OwnLoss(nnxp.Loss):
    def forward(self, scores, labels, training=True):
        self.scores = scores
        return (scores**2).mean()

    def backward(self):
        return self.scores * (2 / self.scores.size)


class OwnMetric(nnxp.metrics.Metric):
    name = "own"

    def measure(self, scores, labels):
        return scores.sum()


class OwnStep(nnxp.Trainer):
    def step(self, inputs, labels):
        return super().step(inputs, labels)


def test_parts_that_know_no_weights_are_named():
    dataset = weighted(nnxp.SoftmaxWithLoss)
    loss = nnxp.SoftmaxWithLoss()
    for trainer, message in [
        (
            nnxp.Trainer(nnxp.mlp([6, 3], rng=0), OwnLoss(), nnxp.SGD(0.1)),
            r"OwnLoss.*forward does not take; give it",
        ),
        (
            nnxp.Trainer(nnxp.mlp([6, 3], rng=0), loss, nnxp.SGD(0.1), metrics=[OwnMetric()]),
            r"OwnMetric.*measure does not take; give it a parameter weights=None",
        ),
        (OwnStep(nnxp.mlp([6, 3], rng=0), loss, nnxp.SGD(0.1)), "this trainer's own step"),
    ]:
        with pytest.raises(nnxp.InputError, match=message):
            trainer.fit(dataset, epochs=1, batch_size=10, rng=0)
        batches = nnxp.data.Batches(dataset, 10, device="cpu", dtype="float32", rng=0)
        with pytest.raises(nnxp.InputError, match=message):
            trainer.train_epoch(batches)
        assert trainer.optimizer.steps == 0


def test_parts_that_take_any_arguments_take_weights():
    class AnyLoss(nnxp.MeanSquaredError):
        def forward(self, scores, labels, **options):
            return super().forward(scores, labels, **options)

    class AnyStep(nnxp.Trainer):
        def step(self, *batch):
            return super().step(*batch)

    dataset = weighted(nnxp.MeanSquaredError)
    for kind, loss in ((nnxp.Trainer, AnyLoss()), (AnyStep, nnxp.MeanSquaredError())):
        trainers = []
        for made in (kind, nnxp.Trainer):
            network = nnxp.mlp([6, 3], rng=0, dtype="float64")
            own = loss if made is kind else nnxp.MeanSquaredError()
            trainers.append(made(network, own, nnxp.SGD(0.1), capture=False))
            trainers[-1].fit(dataset, epochs=1, batch_size=10, rng=0)
        W1, expected = (trainer.network.parameters()["W1"] for trainer in trainers)
        np.testing.assert_array_equal(W1, expected)  # the same steps


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(39), "a weight for each example, got 39 weights for 40 examples"),
        (np.ones((40, 2)), r"of shape \(examples,\), got float64 of shape \(40, 2\)"),
        (np.where(np.arange(40) == 3, -1.0, 1.0), "at least 0, got -1, first for example 3"),
        (np.full(40, np.nan), "finite and at least 0, got nan, first for example 0"),
        (np.full(40, np.inf), "finite and at least 0, got inf"),
        (np.zeros(40), "not all 0"),
        (np.zeros(40, "M8[s]"), r"as numbers of shape \(examples,\), got datetime64\[s\]"),
        (np.array(["a"] * 40), "got <U1"),
        ([1.0] * 40, "weights as a plain NumPy array or a DataFrame, got list"),
    ],
)
def test_wrong_weights_are_refused(weights, message):
    with pytest.raises(nnxp.InputError, match=message):
        Dataset(INPUTS, LABELS, weights=weights)


@pytest.mark.parametrize("size", [1e-310, 1e-50, 1e-20, 1e19, 1e38, 1e308])
def test_weights_beyond_float32_are_refused_and_the_remedy_works(size):
    weights = COUNTS * (size / 4)
    with pytest.raises(nnxp.InputError, match=r"weights around 1, .*; give (.*)$") as caught:
        Dataset(INPUTS, LABELS, weights=weights)
    remedy = str(caught.value).rpartition("give ")[2]
    dataset = Dataset(INPUTS, LABELS, weights=eval(remedy, {"weights": weights}))
    # Two quotients are rounded; the denormal numbers of 1e-310 have steps of 2e-13 of the smallest.
    np.testing.assert_allclose(dataset.weights, COUNTS / COUNTS.max(), rtol=1e-12)


@pytest.mark.parametrize("size", [1e-19, 1.0, 1e16])
def test_weights_within_float32_train(size):
    loss, scaled = nnxp.SoftmaxWithLoss, COUNTS * size
    one = trained(loss, Dataset(INPUTS, LABELS, weights=scaled))
    network = nnxp.mlp([6, 5, 3], rng=0)
    trainer = nnxp.Trainer(network, loss(), nnxp.Momentum(0.1), penalty=nnxp.L2(0.01))
    trainer.fit(Dataset(INPUTS, LABELS, weights=scaled), epochs=4, batch_size=40, rng=0)
    expected = one.history[-1].train_loss  # in float64
    # Scores, losses and their mean, a sum of 40 terms, have some 80 roundings by a unit of 2**-24,
    # 5e-6. Those of the parameters enter times the rate of 0.1 and the gradient.
    assert trainer.history[-1].train_loss == pytest.approx(expected, rel=1e-5)


def test_weights_of_one_column_are_taken():
    weights = COUNTS[:, None].astype(np.uint8)
    assert Dataset(INPUTS, LABELS, weights=weights).weights.tolist() == COUNTS.tolist()


def test_split_leaves_weights_in_both_sets():
    weights = np.zeros(40)
    weights[0] = 1
    with pytest.raises(nnxp.InputError, match="one of both sets would have only weights of 0"):
        Dataset(INPUTS, LABELS, weights=weights).split(0.5, rng=0)
