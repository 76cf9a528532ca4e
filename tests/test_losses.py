"""Losses and metrics: gradients, dtypes, devices and errors on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from tables import CLASSES, LOSSES, PROBABILITIES, SCORES, TARGETS, device_or_skip

import nnxp
from nnxp.data import Dataset, one_hot
from nnxp.devices import DTYPES
from nnxp.losses import RegressionLoss

losses = pytest.mark.parametrize(
    ("make", "scores", "labels"), list(LOSSES.values()), ids=list(LOSSES)
)


def labels_as(labels, dtype):
    """Return floating-point targets in `dtype`; class labels as they are."""
    return labels.astype(dtype) if labels.dtype.kind == "f" else labels


def test_rows_of_very_different_scores_are_shifted_each_by_its_own(backend):
    """The largest score of all, taken from the row at -1000, would leave zeros alone."""
    offsets = np.array([[1000.0], [-1000.0], [0.0]])
    rows = np.array([[0.0, -2.0, 1.0]] * 3)
    scores = backend.array(rows + offsets, "float64")
    e = np.exp(rows)
    softmax = e / e.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(backend.host(nnxp.Softmax().forward(scores)), softmax, rtol=1e-12)
    for labels in (backend.array([0, 1, 2]), backend.array(np.eye(3), "float64")):
        loss = nnxp.SoftmaxWithLoss()
        value = float(backend.host(loss.forward(scores, labels)))
        assert value == pytest.approx(-np.log(np.diag(softmax)).mean(), rel=1e-12)
        gradient = backend.host(loss.backward())
        np.testing.assert_allclose(gradient, (softmax - np.eye(3)) / 3, rtol=1e-12, atol=1e-15)


def test_the_table_holds_every_loss():
    kinds = {*nnxp.Loss.__subclasses__(), *RegressionLoss.__subclasses__()} - {RegressionLoss}
    own = {x for x in kinds if x.__module__.startswith("nnxp.losses.")}
    assert {type(make()) for make, _, _ in LOSSES.values()} == own == TARGETS.keys()


@losses
def test_gradient_agrees_with_differences(backend, make, scores, labels):
    network = nnxp.Sequential([nnxp.Identity()])
    errors = nnxp.check_gradients(network, make(), backend.array(scores), backend.array(labels))
    assert errors["inputs"] < 1e-8  # rounding leaves about 3e-11 beside gradients of 1e-2


@pytest.mark.parametrize("dtype", DTYPES)
@losses
def test_dtype_device_and_shape_are_kept(backend, make, scores, labels, dtype):
    loss = make()
    value = loss.forward(backend.array(scores, dtype), backend.array(labels_as(labels, dtype)))
    gradient = loss.backward()
    assert value.shape == ()
    assert tuple(gradient.shape) == scores.shape
    for array in (value, gradient):
        assert backend.device.holds(array)
        assert array.dtype == getattr(backend.device.xp, dtype)


@losses
def test_values_equal_those_on_numpy(backend, make, scores, labels):
    results = []
    for device in (nnxp.device("cpu"), backend.device):
        loss = make()
        value = loss.forward(device.asarray(scores), device.asarray(labels))
        results.append((float(value), device.to_host(loss.backward())))
    (expected, expected_gradient), (value, gradient) = results
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-13, atol=1e-16)


@losses
def test_each_forward_allows_one_backward(make, scores, labels):
    loss = make()
    with pytest.raises(nnxp.CallOrderError, match="needs forward"):
        loss.backward()
    loss.forward(scores, labels)
    loss.backward()
    with pytest.raises(nnxp.CallOrderError, match="each forward allows one backward"):
        loss.backward()


@losses
def test_wrong_shapes_and_devices_are_refused(make, scores, labels):
    loss = make()
    with pytest.raises(nnxp.InputError, match="got 5 rows and 4 labels"):
        loss.forward(scores, labels[:4])
    with pytest.raises(nnxp.InputError, match="at least one row"):
        loss.forward(scores[:0], labels[:0])
    with pytest.raises(nnxp.InputError, match="floating-point arrays, got int64"):
        loss.forward(scores.astype(int), labels)
    elsewhere = nnxp.device("strict:device1").asarray(labels)
    with pytest.raises(
        nnxp.DeviceError, match=r"one device, got an array of numpy on cpu.* an array of array_api"
    ):
        loss.forward(scores, elsewhere)


@pytest.mark.parametrize(
    ("make", "labels", "message"),
    [
        (nnxp.SoftmaxWithLoss, [2, 0, 1, 1, 3], "labels from 0 to 2, got 3"),
        (nnxp.SoftmaxWithLoss, [2, 0, 1, -1, 2], "labels from 0 to 2, got -1"),
        (nnxp.SoftmaxWithLoss, [2.0, 0.0, 1.0, 1.0, 2.0], r'got float64 .*astype\("int64"\)'),
        (
            nnxp.SoftmaxWithLoss,
            np.eye(4)[:5, :][[0, 1, 2, 3, 0]],
            "one-hot rows of 3 numbers, got 4",
        ),
        (nnxp.SoftmaxWithLoss, np.ones((5, 3), int), "a single 1 and otherwise 0"),
        (nnxp.SoftmaxWithLoss, np.zeros((5, 3), int), "a single 1 and otherwise 0"),
        (nnxp.SoftmaxWithLoss, np.eye(5, 3, dtype=int), "a single 1 and otherwise 0"),
        (lambda: nnxp.MeanSquaredError(classes=True), np.eye(5, 3), "a single 1 and otherwise 0"),
        (
            nnxp.SoftmaxWithLoss,
            [[0.5, 0.5, 0], [0.25, 0.25, 0.25], *[[1.0, 0, 0]] * 3],
            r"row 1 .* sums to 0.75; .* labels / labels.sum\(axis=1, keepdims=True\)",
        ),
        (nnxp.SoftmaxWithLoss, [[1.5, -0.5, 0]] * 5, "row 0 has the smallest number -0.5 and sums"),
        (nnxp.SoftmaxWithLoss, [[np.nan] * 3] * 5, "row 0 has the smallest number nan"),
        (nnxp.SigmoidWithLoss, np.full((5, 3), 2), "labels from 0 to 1, got 2"),
        (nnxp.SigmoidWithLoss, np.full((5, 3), 1.5), "labels from 0 to 1, got 1.5"),
        (nnxp.SigmoidWithLoss, np.full((5, 3), np.nan), "labels from 0 to 1, got nan"),
        (nnxp.SigmoidWithLoss, np.full((5, 3), 1j), "from 0 to 1 as real numbers, got complex128"),
        (nnxp.SigmoidWithLoss, [1, 0, 1, 1, 0], r"shape \(batch, 3\) like the scores, got \(5,\)"),
        (nnxp.MeanSquaredError, CLASSES, r"a target for each output.*got \(5,\).*one_hot"),
        (nnxp.MeanSquaredError, SCORES.astype("float32"), "dtype float64, got float32"),
        (nnxp.MeanSquaredError, SCORES.astype(complex), "targets of real numbers, got complex128"),
        (
            lambda: nnxp.MeanSquaredError(classes=True),
            np.arange(15).reshape(5, 3),
            r"classes=True\) expects one-hot rows .* use MeanSquaredError\(\) for other targets",
        ),
        (
            lambda: nnxp.SoftmaxWithLoss(class_weights=[1, 2]),
            CLASSES,
            r"class_weights=\(1.0, 2.0\)\) has 2 class_weights for 3 classes",
        ),
    ],
)
def test_wrong_labels_are_refused(make, labels, message):
    with pytest.raises(nnxp.InputError, match=message):
        make().forward(SCORES, np.asarray(labels))


def test_out_of_range_label_on_a_device_gives_infinite_loss():
    device = nnxp.device("strict:device1")
    value = nnxp.SoftmaxWithLoss().forward(device.asarray(SCORES), device.asarray([2, 0, 1, 1, 3]))
    assert float(value) == np.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_losses_are_stable_at_a_thousand(backend, dtype):
    scores = backend.array([[1000.0, -1000.0]], dtype)  # warnings are errors
    softmax, logistic = nnxp.SoftmaxWithLoss(), nnxp.SigmoidWithLoss()
    assert float(softmax.forward(scores, backend.array([1]))) == 2000
    assert float(softmax.forward(scores, backend.array([0]))) == 0
    assert float(logistic.forward(scores, backend.array([[0, 1]]))) == 1000
    assert float(logistic.forward(scores, backend.array([[1, 0]]))) == 0
    np.testing.assert_array_equal(backend.host(logistic.backward()), [[0, 0]])


def test_accuracy_counts_the_largest_scores(backend):
    scores = backend.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]])
    assert float(nnxp.accuracy(scores, backend.array([1, 0, 0, 1]))) == 0.5
    one_hot = backend.array([[0, 1], [1, 0], [1, 0], [0, 1]])
    assert float(nnxp.accuracy(scores, one_hot)) == 0.5


def test_correct_depends_on_the_loss(backend):
    scores = backend.array([[1.0, -1.0], [-2.0, 3.0]])
    assert backend.host(
        nnxp.SigmoidWithLoss().correct(scores, backend.array([[1, 0], [1, 1]]))
    ).tolist() == [True, False]
    column = scores[:, :1]
    assert backend.host(nnxp.SigmoidWithLoss().correct(column, backend.array([1, 1]))).tolist() == [
        True,
        False,
    ]
    assert nnxp.MeanSquaredError().correct(column, column) is None


@pytest.mark.parametrize(
    "labels", [np.array([[0, 1]]), np.array([0]), np.array(0), np.array([0, 1, 1])]
)
def test_accuracy_refuses_wrong_shapes(labels):
    with pytest.raises(nnxp.InputError, match=r"accuracy expects .* got \(2, 3\) and"):
        nnxp.accuracy(np.ones((2, 3)), labels)


def test_binary_correct_takes_booleans(backend):
    correct = nnxp.SigmoidWithLoss().correct(
        backend.array([[0.3], [-2.0]]), backend.array([True, False])
    )
    assert backend.host(correct).tolist() == [True, True]


def test_labels_on_another_device_of_the_same_library_are_refused():
    first, second = (nnxp.device(f"strict:device{i}") for i in (1, 2))
    with pytest.raises(
        nnxp.DeviceError, match="on one device, got .* on .*device1.* and .*device2.*asarray"
    ):
        nnxp.SoftmaxWithLoss().forward(first.asarray(SCORES), second.asarray(CLASSES))


@pytest.mark.parametrize("metric", [nnxp.accuracy, nnxp.SigmoidWithLoss().correct])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("cpu", "strict:device1"), ("strict:device1", "cpu"), ("strict:device1", "strict:device2")],
)
def test_metrics_refuse_labels_on_another_device(metric, ours, theirs):
    scores = nnxp.device(ours).asarray(SCORES[:, :1])
    labels = nnxp.device(theirs).asarray(CLASSES)
    with pytest.raises(nnxp.DeviceError, match="expects scores and labels on one device, got an"):
        metric(scores, labels)


def test_logit_of_zero_is_predicted_as_0():
    zero = np.zeros((1, 1))
    assert nnxp.SigmoidWithLoss().correct(zero, np.array([0])).tolist() == [True]
    assert nnxp.SigmoidWithLoss().correct(zero, np.array([1])).tolist() == [False]


def test_squared_error_has_accuracy_only_for_classes():
    rows, hot = np.array([[0.2, 0.1], [0.3, 0.9]]), np.eye(2, dtype="int32")
    assert nnxp.MeanSquaredError(classes=True).correct(rows, hot).tolist() == [True, True]
    for loss in (nnxp.MeanSquaredError(), nnxp.Huber(), nnxp.AbsoluteError()):
        for labels in (hot, rows, np.array([[3, 4], [5, 6]])):
            assert loss.correct(rows, labels) is None  # they may be numbers
        assert loss.correct(rows[:, :1], np.array([1, 0])) is None


def test_one_hot_rows_may_be_booleans(backend):
    scores, rows = backend.array(SCORES), np.eye(3)[CLASSES]
    expected = nnxp.SoftmaxWithLoss().forward(scores, backend.array(CLASSES))
    got = nnxp.SoftmaxWithLoss().forward(scores, backend.array(rows.astype(bool)))
    assert float(got) == float(expected)


@losses
def test_loss_forward_without_training_keeps_no_backward(make, scores, labels):
    loss = make()
    loss.forward(scores, labels, training=False)
    with pytest.raises(nnxp.CallOrderError, match=r"needs forward\(scores, labels\) first"):
        loss.backward()
    loss.forward(scores, labels)
    loss.forward(scores[:1], labels[:1], training=False)  # between the two changes nothing
    assert loss.backward().shape == scores.shape


def weighted(backend, make, scores, labels, weights):
    """Return loss and gradient on the host."""
    loss = make()
    given = None if weights is None else backend.array(weights)
    value = loss.forward(backend.array(scores), backend.array(labels), weights=given)
    return float(value), backend.host(loss.backward())


@losses
def test_a_weight_of_two_is_the_example_twice(backend, make, scores, labels):
    weights, counts = [1.0, 2.0, 0.0, 3.0, 0.0], [1, 2, 0, 3, 0]
    rows = np.repeat(np.arange(5), counts)
    value, gradient = weighted(backend, make, scores, labels, weights)
    expected, each = weighted(backend, make, scores[rows], labels[rows], None)
    assert value == pytest.approx(expected, rel=1e-14)
    summed = np.stack([each[rows == i].sum(axis=0) for i in range(5)])
    np.testing.assert_allclose(gradient, summed, rtol=1e-13, atol=1e-16)


@losses
def test_equal_weights_are_no_weights(backend, make, scores, labels):
    value, gradient = weighted(backend, make, scores, labels, [0.25] * 5)
    expected, each = weighted(backend, make, scores, labels, None)
    assert value == pytest.approx(expected, rel=1e-14)
    np.testing.assert_allclose(gradient, each, rtol=1e-13, atol=1e-16)


@losses
def test_weights_of_zero_give_loss_and_gradient_zero(backend, make, scores, labels):
    value, gradient = weighted(backend, make, scores, labels, [0.0] * 5)
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros(scores.shape))


@losses
def test_weighted_gradient_agrees_with_differences(make, scores, labels):
    weights = np.array([0.3, 2.0, 0.0, 1.0, 0.7])
    loss = make()
    loss.forward(scores, labels, weights=weights)
    numerical = nnxp.numerical_gradient(
        lambda x: float(loss.forward(x, labels, training=False, weights=weights)), scores
    )
    error = abs(loss.backward() - numerical).max() / abs(numerical).max()
    assert error < 1e-8


@pytest.mark.parametrize("dtype", DTYPES)
@losses
def test_weights_keep_the_dtype(backend, make, scores, labels, dtype):
    loss = make()
    value = loss.forward(
        backend.array(scores, dtype),
        backend.array(labels_as(labels, dtype)),
        weights=backend.array(np.ones(5), dtype),
    )
    for array in (value, loss.backward()):
        assert array.dtype == getattr(backend.device.xp, dtype)


@losses
def test_wrong_weights_are_refused(make, scores, labels):
    for weights, message in [
        (np.ones(4), r"a weight for each example, of shape \(5,\), got \(4,\)"),
        (np.ones((5, 1)), r"of shape \(5,\), got \(5, 1\)"),
        (np.ones(5, "float32"), r'float64, got float32; convert with weights.astype\("float64"\)'),
        (np.ones(5, int), "dtype float64, got int64"),
        (np.array([1.0, -1.0, 0, 0, 0]), "weights of at least 0, got -1.0 in row 1"),
        (np.array([1.0, 1.0, np.nan, 0, 0]), "weights of at least 0, got nan in row 2"),
    ]:
        with pytest.raises(nnxp.InputError, match=message):
            make().forward(scores, labels, weights=weights)
    elsewhere = nnxp.device("strict:device1").asarray(np.ones(5))
    with pytest.raises(nnxp.DeviceError, match="scores and weights on one device"):
        make().forward(scores, labels, weights=elsewhere)


# Logits 0 and log 3: the probabilities are 1/4 and 3/4, the losses log 4 and log 4 - log 3.
TWO = np.log([[1.0, 3.0], [3.0, 1.0]])
RARE, COMMON = np.log(4), np.log(4 / 3)


@pytest.mark.parametrize(
    ("options", "labels", "expected"),
    [
        ({}, [0, 0], (RARE + COMMON) / 2),
        (
            {},
            [[0.5, 0.5], [0.25, 0.75]],
            (0.5 * RARE + 0.5 * COMMON + 0.75 * RARE + 0.25 * COMMON) / 2,
        ),
        ({"label_smoothing": 0.2}, [0, 0], (RARE + COMMON) / 2),
        ({"label_smoothing": 0.2}, [1, 0], 0.9 * COMMON + 0.1 * RARE),
        ({"class_weights": [1, 3]}, [0, 1], (RARE + 3 * RARE) / 4),
        ({"class_weights": [1, 3]}, [0, 0], (RARE + COMMON) / 2),
        ({"class_weights": [1, 3]}, [1, 0], (3 * COMMON + COMMON) / 4),
        ({"class_weights": [1, 3]}, [[0.0, 1.0], [1.0, 0.0]], (3 * COMMON + COMMON) / 2),
        (
            {"label_smoothing": 0.2, "class_weights": [1, 3]},
            [1, 0],
            (0.9 * 3 * COMMON + 0.1 * RARE + 0.9 * COMMON + 0.1 * 3 * RARE) / 4,
        ),
    ],
)
def test_softmax_by_hand(backend, options, labels, expected):
    value = nnxp.SoftmaxWithLoss(**options).forward(backend.array(TWO), backend.array(labels))
    assert float(value) == pytest.approx(expected, rel=1e-14)


def test_huber_and_absolute_error_by_hand(backend):
    scores, labels = backend.array([[0.0], [2.0], [-3.0]]), backend.array([0, 1, 1])
    for loss, value, gradient in [
        (nnxp.Huber(), (0 + 0.5 + 3.5) / 3, [0, 1 / 3, -1 / 3]),
        (nnxp.Huber(2.0), (0 + 0.5 + 6) / 3, [0, 1 / 3, -2 / 3]),
        (nnxp.AbsoluteError(), 5 / 3, [0, 1 / 3, -1 / 3]),
        (nnxp.MeanSquaredError(), 17 / 6, [0, 1 / 3, -4 / 3]),
    ]:
        assert float(loss.forward(scores, labels)) == pytest.approx(value, rel=1e-15)
        np.testing.assert_allclose(backend.host(loss.backward())[:, 0], gradient, rtol=1e-15)


def test_an_impossible_class_may_have_an_infinite_loss(backend):
    scores, rows = backend.array([[0.0, -np.inf]]), backend.array([[1.0, 0.0]])
    loss = nnxp.SoftmaxWithLoss()
    assert float(loss.forward(scores, rows)) == 0
    np.testing.assert_array_equal(backend.host(loss.backward()), [[0, 0]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("to", DTYPES)
def test_probabilities_may_be_rounded_to_any_dtype(dtype, to):
    rng = np.random.default_rng(0)
    rows = nnxp.Softmax().forward(rng.normal(size=(1000, 10))).astype(dtype).astype(to)
    nnxp.SoftmaxWithLoss().forward(rng.normal(size=(1000, 10)).astype(to), rows)


def test_remedy_for_rows_that_are_no_probabilities_works():
    labels = np.array([[1.0, 2.0], [3.0, 1.0]])
    with pytest.raises(nnxp.InputError, match="row 0 .* sums to 3"):
        nnxp.SoftmaxWithLoss().forward(TWO, labels)
    nnxp.SoftmaxWithLoss().forward(TWO, labels / labels.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nnxp.SoftmaxWithLoss(1.0), "label_smoothing must be .* below 1, got 1.0"),
        (lambda: nnxp.SoftmaxWithLoss(class_weights=3), "list of positive numbers.*got 3"),
        (lambda: nnxp.SoftmaxWithLoss(class_weights={0: 1.0}), "list of positive numbers"),
        (lambda: nnxp.SoftmaxWithLoss(class_weights={5.0, 1.0}), "list of positive numbers"),
        (lambda: nnxp.SoftmaxWithLoss(class_weights=[]), r"positive numbers.*got \[\]"),
        (
            lambda: nnxp.SoftmaxWithLoss(class_weights=[1, 0]),
            r"class_weights\[1\] must be a positive number, got 0",
        ),
        (lambda: nnxp.Huber(0), "delta must be a positive number, got 0"),
        (lambda: nnxp.MeanSquaredError(classes=3), "classes must be True or False, got 3"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(nnxp.InputError, match=message):
        make()


def test_settings_are_checked_on_assignment():
    loss = nnxp.SoftmaxWithLoss()
    loss.class_weights = np.array([1, 2], "float32")
    assert loss.class_weights == (1.0, 2.0)
    assert type(loss.class_weights[0]) is float
    for name in ("label_smoothing", "class_weights"):
        with pytest.raises(nnxp.InputError, match=name):
            setattr(loss, name, -1)
    assert repr(loss) == "SoftmaxWithLoss(class_weights=(1.0, 2.0))"
    assert repr(nnxp.SoftmaxWithLoss()) == "SoftmaxWithLoss()"


def test_subclass_needs_not_call_init_of_softmax():
    class Own(nnxp.SoftmaxWithLoss):
        def __init__(self, factor):
            self.factor = factor

    loss = Own(2.0)
    assert float(loss.forward(TWO, np.array([0, 0]))) == pytest.approx((RARE + COMMON) / 2)
    assert repr(loss).endswith("Own(2.0)")


def test_class_weights_changed_between_two_forwards_are_used(backend):
    loss, scores, labels = nnxp.SoftmaxWithLoss(), backend.array(TWO), backend.array([1, 1])
    for weights, expected in [([1, 1], (RARE + COMMON) / 2), ([1, 7], (RARE + COMMON) / 2)]:
        loss.class_weights = weights
        assert float(loss.forward(scores, labels)) == pytest.approx(expected, rel=1e-14)
    mixed = backend.array([1, 0])
    loss.class_weights = [1, 7]
    first = float(loss.forward(scores[:2, ...] * 0.5, mixed))
    loss.class_weights = [7, 1]
    assert float(loss.forward(scores[:2, ...] * 0.5, mixed)) == pytest.approx(first)
    float32 = backend.device.asarray(TWO, dtype="float32")
    assert loss.forward(float32, labels).dtype == backend.device.xp.float32


@pytest.mark.parametrize(
    "loss",
    [
        nnxp.SoftmaxWithLoss(0.1, [1.0, 2.0, 3.0]),
        nnxp.Huber(0.25),
        nnxp.AbsoluteError(),
        nnxp.MeanSquaredError(classes=True),
    ],
    ids=repr,
)
@pytest.mark.parametrize("spec", ["cpu", pytest.param("jax:cpu", marks=pytest.mark.interop)])
def test_settings_are_in_checkpoints_and_steps_are_captured(tmp_path, loss, spec):
    pytest.importorskip("safetensors")
    device = device_or_skip(spec)
    rng = np.random.default_rng(0)
    rows = one_hot(rng.integers(0, 3, 50), 3)
    data = Dataset(rng.normal(size=(50, 4)), rows)
    results = []
    for capture in ("auto", False):
        place = {"rng": np.random.default_rng(1), "dtype": "float64", "device": device}
        trainer = nnxp.Trainer(nnxp.mlp([4, 5, 3], **place), loss, nnxp.SGD(0.1), capture=capture)
        trainer.fit(data, epochs=1, batch_size=16, rng=2)
        trainer.save(tmp_path / "a.safetensors")
        resumed = nnxp.Trainer.resume(tmp_path / "a.safetensors")
        assert repr(resumed.loss) == repr(loss)
        assert resumed.loss.config() == loss.config()
        assert (trainer.captured == "captured") == (capture == "auto")
        if isinstance(loss, nnxp.SoftmaxWithLoss):  # a change is honoured between two epochs
            trainer.loss = nnxp.SoftmaxWithLoss(0.1, [1.0, 2.0, 3.0])
            trainer.loss.class_weights, trainer.loss.label_smoothing = [9.0, 0.1, 1.0], 0.5
        trainer.fit(data, epochs=1, batch_size=16, rng=2)
        W1 = device.to_host(trainer.network.parameters()["W1"])
        results.append((W1, trainer.history[-1].train_loss))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-12)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-12)


def test_soft_targets_and_columns_train_captured():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(50, 4))
    soft = nnxp.Softmax().forward(rng.normal(size=(50, 3)))
    column = rng.integers(0, 2, (50, 1))
    for loss, labels, outputs, accuracy in [
        (nnxp.SoftmaxWithLoss(), soft, 3, True),
        (nnxp.SoftmaxWithLoss(), soft.astype("float32"), 3, True),
        (nnxp.SoftmaxWithLoss(0.1, [1, 2, 3]), soft, 3, True),
        (nnxp.SoftmaxWithLoss(), column, 3, True),
        (nnxp.SigmoidWithLoss(), column, 1, True),
        (nnxp.SigmoidWithLoss(), soft, 3, True),
        (nnxp.MeanSquaredError(), column, 1, False),
        (nnxp.MeanSquaredError(), column[:, 0], 1, False),
        (nnxp.MeanSquaredError(), rng.integers(0, 9, (50, 3)), 3, False),
        (nnxp.Huber(), column[:, 0], 1, False),
    ]:
        results = []
        for capture in ("auto", False):
            network = nnxp.mlp([4, 5, outputs], rng=np.random.default_rng(1), dtype="float64")
            trainer = nnxp.Trainer(network, loss, nnxp.SGD(0.1), capture=capture)
            trainer.fit(Dataset(inputs, labels), epochs=2, batch_size=16, rng=2)
            assert (trainer.captured == "captured") == (capture == "auto")
            assert ("train_accuracy" in trainer.history[-1]) == accuracy
            results.append(trainer.network.parameters()["W1"])
        np.testing.assert_allclose(results[0], results[1], rtol=1e-12)


def test_labels_of_one_column_are_class_numbers(backend):
    scores, column = backend.array(SCORES), backend.array(CLASSES[:, None])
    loss = nnxp.SoftmaxWithLoss()
    expected = float(loss.forward(scores, backend.array(CLASSES)))
    assert float(loss.forward(scores, column)) == expected
    share = float(nnxp.accuracy(scores, backend.array(CLASSES)))
    assert float(nnxp.accuracy(scores, column)) == share
    np.testing.assert_array_equal(
        backend.host(loss.correct(scores, column)), SCORES.argmax(axis=1) == CLASSES
    )


@pytest.mark.parametrize("labels", [[1, 0, 1], [[1], [0], [1]], [[0.9], [0.1], [0.6]]])
def test_accuracy_of_one_logit_is_that_of_its_sign(backend, labels):
    scores = backend.array([[2.0], [-1.0], [-3.0]])
    for labels_there in (backend.array(labels), backend.array(np.array(labels) > 0.5)):
        assert float(nnxp.accuracy(scores, labels_there)) == pytest.approx(2 / 3)


def test_probabilities_above_one_half_count_as_1(backend):
    loss = nnxp.SigmoidWithLoss()
    rows = loss.correct(backend.array([[1.0, -1.0], [1.0, 1.0]]), backend.array([[0.6, 0.4]] * 2))
    assert backend.host(rows).tolist() == [True, False]
    best = nnxp.SoftmaxWithLoss().correct(backend.array(SCORES), backend.array(PROBABILITIES))
    expected = SCORES.argmax(axis=1) == PROBABILITIES.argmax(axis=1)
    assert backend.host(best).tolist() == expected.tolist()


@pytest.mark.interop
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("labels", [CLASSES, PROBABILITIES, np.eye(3)[CLASSES]])
def test_softmax_equals_torch(weights, smoothing, labels):
    import torch

    scores = torch.tensor(SCORES, requires_grad=True)
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    theirs = torch.nn.CrossEntropyLoss(weight, label_smoothing=smoothing)
    value = theirs(scores, torch.tensor(labels))
    value.backward()
    loss = nnxp.SoftmaxWithLoss(smoothing, weights)
    assert float(loss.forward(SCORES, labels)) == pytest.approx(value.item(), rel=1e-13)
    np.testing.assert_allclose(loss.backward(), scores.grad.numpy(), rtol=1e-12, atol=1e-16)


@pytest.mark.interop
def test_other_losses_equal_torch():
    import torch

    targets = SCORES[[1, 2, 3, 4, 0]].copy()
    targets[0] = SCORES[0]  # errors of 0
    for loss, theirs, labels in [
        (nnxp.Huber(), torch.nn.HuberLoss(), targets),
        (nnxp.Huber(0.3), torch.nn.HuberLoss(delta=0.3), targets),
        (nnxp.AbsoluteError(), torch.nn.L1Loss(), targets),
        (nnxp.SigmoidWithLoss(), torch.nn.BCEWithLogitsLoss(), PROBABILITIES),
    ]:
        scores = torch.tensor(SCORES, requires_grad=True)
        value = theirs(scores, torch.tensor(labels))
        value.backward()
        assert float(loss.forward(SCORES, labels)) == pytest.approx(value.item(), rel=1e-13)
        np.testing.assert_allclose(loss.backward(), scores.grad.numpy(), rtol=1e-12, atol=1e-16)


@pytest.mark.interop
def test_class_weights_do_not_outlive_a_trace_of_jax():
    import jax

    loss, device = nnxp.SoftmaxWithLoss(class_weights=[1, 2, 3]), nnxp.device("jax:cpu")
    scores, labels = device.asarray(SCORES), device.asarray(CLASSES)
    traced = jax.jit(lambda x: loss.forward(x, labels, training=False))(scores)
    assert float(traced) == pytest.approx(float(loss.forward(scores, labels)), rel=1e-14)
