"""Losses and metrics: gradients, dtypes, devices and errors on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from tables import CLASSES, LOSSES, SCORES

import nnxp
from nnxp.devices import DTYPES

losses = pytest.mark.parametrize(
    ("make", "scores", "labels"), list(LOSSES.values()), ids=list(LOSSES)
)


def labels_as(labels, dtype):
    """Return floating-point targets in `dtype`; class labels as they are."""
    return labels.astype(dtype) if labels.dtype.kind == "f" else labels


def test_the_table_holds_every_loss():
    own = {x for x in nnxp.Loss.__subclasses__() if x.__module__.startswith("nnxp.")}
    assert {make for make, _, _ in LOSSES.values()} == own


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
        (nnxp.SoftmaxWithLoss, [2.0, 0.0, 1.0, 1.0, 2.0], r"got float64 .*astype\('int64'\)"),
        (
            nnxp.SoftmaxWithLoss,
            np.eye(4)[:5, :][[0, 1, 2, 3, 0]],
            "one-hot rows of 3 numbers, got 4",
        ),
        (nnxp.SoftmaxWithLoss, np.full((5, 3), 1 / 3), "a single 1 and otherwise 0"),
        (nnxp.SoftmaxWithLoss, np.ones((5, 3)), "a single 1 and otherwise 0"),
        (nnxp.SigmoidWithLoss, np.full((5, 3), 2), "labels from 0 to 1, got 2"),
        (nnxp.SigmoidWithLoss, np.full((5, 3), 1.0), r"got float64; convert with .*int64"),
        (nnxp.SigmoidWithLoss, [1, 0, 1, 1, 0], r"shape \(batch, 3\) like the scores, got \(5,\)"),
        (nnxp.MeanSquaredError, CLASSES, r"a target for each output.*got \(5,\).*one_hot"),
        (nnxp.MeanSquaredError, SCORES.astype("float32"), "dtype float64, got float32"),
        (nnxp.MeanSquaredError, SCORES.astype(complex), "targets of real numbers, got complex128"),
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
    "labels", [np.array([[0], [1]]), np.array([0]), np.array(0), np.array([0, 1, 1])]
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


def test_squared_error_has_accuracy_only_for_one_hot_rows():
    rows = np.array([[0.2, 0.1], [0.3, 0.9]])
    loss = nnxp.MeanSquaredError()
    assert loss.correct(rows, np.eye(2, dtype="int32")).tolist() == [True, True]
    assert loss.correct(rows, rows) is None  # several real-valued targets have no class
    assert loss.correct(rows[:, :1], np.ones((2, 1), "int32")) is None


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
