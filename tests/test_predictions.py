"""Predictions: what fit took, predict takes, with the same scaling and the user's own labels."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle
import re
import warnings

import numpy as np
import pytest
from tables import device_or_skip, devices

import nnxp
from nnxp.data import Dataset, one_hot
from nnxp.data_format import sizes_of

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 8), np.uint8)
TABLE = RNG.normal(size=(60, 8))
LABELS = (IMAGES[:, 0] > 127).astype(int)
NAMES = np.array(["cat", "dog"])[LABELS]


def trained(inputs, labels, *, loss=None, outputs=2, first=(), spec="cpu", dtype="float32", **more):
    device_or_skip(spec)
    place = {"dtype": dtype, "device": spec}
    network = nnxp.mlp([inputs.shape[1], 6, outputs], rng=0, **place)
    network = nnxp.Sequential([*(kind(**place) for kind in first), *network])
    trainer = nnxp.Trainer(network, loss or nnxp.SoftmaxWithLoss(), nnxp.Adam(0.01))
    dataset = Dataset(inputs, labels, **more)
    trainer.fit(dataset, epochs=3, batch_size=20, rng=0)
    return trainer, dataset


class Frame:
    """A DataFrame or Series as far as nnxp uses it."""

    def __init__(self, values, columns=()):
        self.values, self.columns = values, list(columns)

    def to_numpy(self):
        return self.values


# Scaling


@devices
@pytest.mark.parametrize("scale", ["auto", None, 100.0])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "int64"])
def test_predictions_scale_as_training_did(spec, scale, kind):
    inputs = IMAGES.astype(kind) if kind == "uint8" else (IMAGES // 16).astype(kind)
    trainer, dataset = trained(inputs, LABELS, spec=spec, scale=scale)
    network, device = trainer.network, trainer.network.device
    divisor = dataset.scale or 1.0
    assert divisor == {"auto": 255.0 if kind == "uint8" else 1.0, None: 1.0, 100.0: 100.0}[scale]
    expected = network.forward(device.asarray((inputs / divisor).astype("float32")))
    for given in (inputs, device.asarray(inputs), Frame(inputs)):
        scores = network.predict(given, batch_size=7)
        np.testing.assert_allclose(
            device.to_host(scores), device.to_host(expected), rtol=1e-4, atol=1e-5
        )
    accuracy = (network.predict_classes(inputs) == LABELS).mean()
    assert trainer.evaluate(dataset).accuracy == pytest.approx(accuracy)


def pixels(kind):
    """Return the images as uint8, int64, "raw" floats up to 255, or floats "scaled" to 1."""
    if kind == "scaled":
        return IMAGES / 255
    return IMAGES.astype("float64" if kind == "raw" else kind)


@devices
@pytest.mark.parametrize(
    ("trained_on", "scale", "given", "divisor", "warning"),
    [
        ("uint8", "auto", "uint8", 255, ""),
        ("uint8", "auto", "int64", 255, ""),
        ("uint8", "auto", "scaled", 1, ""),
        ("uint8", "auto", "raw", 1, "up to about 223, .* 0.875 after the division by 255; scale"),
        ("uint8", 51, "int64", 51, ""),
        ("uint8", 51, "raw", 1, "up to about 223, .* 4.38 after the division by 51"),
        ("uint8", None, "uint8", 1, ""),
        ("uint8", None, "int64", 1, ""),
        ("uint8", None, "raw", 1, ""),
        ("scaled", "auto", "scaled", 1, ""),
        ("scaled", "auto", "uint8", 255, ""),
        ("scaled", 1, "uint8", 1, "of uint8 has numbers up to about 223, .* 0.875 after"),
        ("scaled", "auto", "int64", 1, "of int64 has .* about 223, .* about 0.875; scale both"),
        ("scaled", "auto", "raw", 1, "of float64 has .* about 223, .* about 0.875; scale both"),
        ("raw", 255, "uint8", 255, ""),
        ("raw", 255, "int64", 255, ""),
        ("raw", 255, "raw", 255, ""),
        ("raw", 255, "scaled", 255, r"about 0.00343, .* 0.875 after the division by 255"),
    ],
)
def test_predict_divides_every_dtype_by_one_rule(spec, trained_on, scale, given, divisor, warning):
    network = trained(pixels(trained_on), LABELS, scale=scale, dtype="float64", spec=spec)[
        0
    ].network
    device, inputs = network.device, pixels(given)
    expected = device.to_host(network.forward(device.asarray(inputs / divisor)))
    for x in (inputs, device.asarray(inputs)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            scores = network.predict(x, batch_size=7)
        np.testing.assert_allclose(device.to_host(scores), expected, rtol=1e-12, atol=1e-12)
        assert [bool(re.search(warning, str(each.message))) for each in said] == [True] * bool(
            warning
        )


@pytest.mark.parametrize(
    ("trained_on", "given", "scale", "divisor", "message"),
    [
        ("uint8", "uint8", "auto", 255, ""),
        ("uint8", "int64", 255, 255, ""),
        ("uint8", "raw", 255, 255, ""),
        ("uint8", "scaled", "auto", 1, ""),
        ("uint8", "int64", "auto", None, "int64, are not divided.* divided by 255; .*scale=255.0"),
        ("uint8", "uint8", None, None, "uint8, are not divided.* divided by 255; .*scale=255.0"),
        ("uint8", "raw", "auto", 1, "about 223, .* about 0.875 after the division by 255"),
        ("scaled", "scaled", "auto", 1, ""),
        ("scaled", "uint8", "auto", 255, ""),
        ("scaled", "int64", "auto", 1, "about 223, .* about 0.875; scale both"),
        ("scaled", "raw", 255, None, "are divided by 255, .* data not divided; .*scale=None"),
    ],
)
def test_validation_data_are_divided_by_the_same_rule(trained_on, given, scale, divisor, message):
    trainer, _ = trained(pixels(trained_on), LABELS, dtype="float64")
    dataset = Dataset(pixels(given), LABELS, scale=scale)
    if divisor is None:
        with pytest.raises(nnxp.InputError, match=message):
            trainer.evaluate(dataset)
        return
    with pytest.warns(UserWarning, match=message) if message else contextlib.nullcontext():
        measured = trainer.evaluate(dataset).accuracy
    scores = trainer.network.forward(pixels(given) / divisor)
    assert measured == (scores.argmax(axis=1) == LABELS).mean()


def test_untrained_network_divides_images_by_255():
    network = nnxp.mlp([8, 2], rng=0)
    np.testing.assert_allclose(
        network.predict(IMAGES), network.predict(IMAGES / 255), rtol=1e-4, atol=1e-5
    )


def test_small_bytes_are_asked_about_and_the_remedies_work():
    inputs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.uint8)
    with pytest.warns(UserWarning, match=r"divided by 255 .* largest is 1; give scale=None"):
        Dataset(inputs, np.array([0, 1, 1, 0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Dataset(inputs, np.array([0, 1, 1, 0]), scale=None).scale is None
        assert Dataset(inputs, np.array([0, 1, 1, 0]), scale=1).scale == 1
        assert Dataset(np.full((2, 2), 17, np.uint8), np.zeros(2)).scale == 255


@pytest.mark.parametrize("scale", [0, -1.0, np.inf, np.nan, "255", [2]])
def test_wrong_scales_are_refused(scale):
    with pytest.raises(nnxp.InputError, match="scale must be a positive number"):
        Dataset(TABLE, LABELS, scale=scale)


def test_changed_scales_are_refused_or_said():
    trainer, _ = trained(TABLE, LABELS, scale=2)
    other = Dataset(TABLE, LABELS)
    for call in (
        lambda: trainer.evaluate(other),
        lambda: trainer.fit(
            Dataset(TABLE, LABELS, scale=2), epochs=1, batch_size=20, validation=other
        ),
    ):
        with pytest.raises(nnxp.InputError, match="are not divided, .* divided by 2; give"):
            call()
    with pytest.warns(UserWarning, match="divided by 2, .* not divided; .* predict does not"):
        trainer.fit(other, epochs=1, batch_size=20)
    assert trainer.network.data_format.scale is None


def test_large_inputs_get_one_hint_whose_remedies_work():
    inputs = TABLE * 1000
    with pytest.warns(UserWarning, match=r"numbers up to .*Sequential\(\[nnxp.Standardize") as said:
        trainer, dataset = trained(inputs, LABELS)
    assert len(said) == 1
    trainer.fit(dataset, epochs=1, batch_size=20)  # warnings are errors
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(inputs, LABELS, scale=1000)
        trained(inputs, LABELS, first=[nnxp.Standardize])


@devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("flat", [True, False])
def test_the_hint_for_large_inputs_works_as_printed(spec, dtype, flat):
    device_or_skip(spec)
    place = {"dtype": dtype, "device": spec}
    inputs = TABLE.reshape(60, *((8,) if flat else (2, 4))) * 1000
    dataset = Dataset(inputs, LABELS)

    def fit(network, dataset):
        trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
        return trainer.fit(dataset, epochs=1, batch_size=20, rng=0)[0].train_loss

    def new_network():
        layers = nnxp.mlp([8, 6, 2], rng=0, **place)
        return layers if flat else nnxp.Sequential([nnxp.Flatten(), *layers])

    with pytest.warns(
        UserWarning, match=r"use nnxp.Sequential\(.*give the Dataset a scale"
    ) as said:
        fit(new_network(), dataset)
    message = str(said[0].message)
    code = re.search(r"use (nnxp.*) with new weights, or", message)[1]
    scale = float(re.search(r"such as scale=(\S+)", message)[1])
    network = eval(code, {"nnxp": nnxp, "network": new_network()})
    assert fit(network, dataset) < 2  # warnings are errors
    assert fit(new_network(), Dataset(inputs, LABELS, scale=scale)) < 2


# What predict takes


def test_one_example_is_told_the_remedy():
    network = trained(TABLE, LABELS)[0].network
    with pytest.raises(nnxp.InputError, match=r"one of shape \(8,\); give x\[None\]"):
        network.predict(TABLE[0])
    assert network.predict(TABLE[0][None]).shape == (1, 2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            [[1.0] * 8],
            r"plain NumPy array or a DataFrame, got list; .* with numpy.asarray\(x\)$",
        ),
        (np.ones((0, 8)), r"expects examples, got inputs of shape \(0, 8\)"),
        (np.ones((2, 7)), r"expects inputs of shape \(batch, 8\), got \(2, 7\)"),
        (np.array([["a"] * 8]), "predict expects inputs as numbers, got <U1; encode"),
        (np.array([[1.0] * 7 + [None]]), "inputs have a missing value in row 0, column 7"),
        (
            np.array([[1.0] * 8] * 2 + [[1.0] * 3 + [np.nan] * 5]),
            "finite, first in example 2, col.* 3",
        ),
        (np.array([[-np.inf] * 8]), "not finite, first in example 0, column 0"),
        (np.array(1.0), r"got inputs of shape \(\)"),
    ],
)
def test_wrong_inputs_of_predict_are_refused(inputs, message):
    with pytest.raises(nnxp.InputError, match=message):
        trained(TABLE, LABELS)[0].network.predict(inputs)


# Classes


@devices
def test_text_labels_come_back(spec, tmp_path):
    trainer, dataset = trained(IMAGES, NAMES, spec=spec)
    network = trainer.network
    assert dataset.classes == network.data_format.classes == ("cat", "dog")
    predicted = network.predict_classes(IMAGES)
    assert set(predicted) <= {"cat", "dog"}
    assert (predicted == NAMES).mean() == pytest.approx(trainer.evaluate(dataset).accuracy)
    device = network.device
    p = device.to_host(network.predict_proba(IMAGES))
    e = np.exp(device.to_host(network.predict(IMAGES)).astype("float64"))
    np.testing.assert_allclose(p, e / e.sum(axis=1, keepdims=True), rtol=1e-5)
    for copied in (copy.deepcopy(network), network.to("cpu"), pickle.loads(pickle.dumps(network))):
        assert (copied.predict_classes(IMAGES) == predicted).all()
    pytest.importorskip("safetensors")
    network.save(tmp_path / "network.safetensors")
    trainer.save(tmp_path / "trainer.safetensors")
    for name in ("network", "trainer"):
        loaded = nnxp.load_network(tmp_path / f"{name}.safetensors", device=spec)
        assert loaded.data_format == network.data_format
        assert (loaded.predict_classes(IMAGES) == predicted).all()
    with pytest.raises(nnxp.CheckpointError, match=r"only a network.*nnxp.load_network"):
        nnxp.Trainer.resume(tmp_path / "network.safetensors")
    resumed = nnxp.Trainer.resume(tmp_path / "trainer.safetensors")
    assert resumed.network.data_format == network.data_format


def test_validation_and_test_sets_take_the_classes_of_the_training():
    trainer, dataset = trained(IMAGES, NAMES)
    part = Dataset(IMAGES[NAMES == "dog"], NAMES[NAMES == "dog"])
    assert part.classes == ("dog",)  # its number is 0 there, and 1 in training
    accuracy = (trainer.network.predict_classes(part.inputs) == "dog").mean()
    assert trainer.evaluate(part).accuracy == pytest.approx(accuracy)
    trainer.fit(dataset, epochs=1, batch_size=20, validation=part)
    accuracy = (trainer.network.predict_classes(part.inputs) == "dog").mean()
    assert trainer.history[-1].validation_accuracy == pytest.approx(accuracy)
    trainer.fit(part, epochs=1, batch_size=20)  # it stays class 1
    assert trainer.network.data_format.classes == ("cat", "dog")
    with pytest.raises(nnxp.InputError, match="not among the classes .*: 'cow', first in"):
        trainer.evaluate(Dataset(IMAGES, np.where(LABELS == 0, "cow", "dog")))
    with pytest.raises(
        nnxp.InputError, match=r"these numbers; give labels as text, some of \('cat"
    ):
        trainer.evaluate(Dataset(IMAGES, LABELS))
    trainer, _ = trained(IMAGES, LABELS)
    with pytest.raises(nnxp.InputError, match="these text; give labels as numbers, class numbers"):
        trainer.evaluate(dataset)


ONES = np.ones((3, 2))


def text(*labels):
    return np.array(labels, str)


@pytest.mark.parametrize(
    ("own", "classes", "message"),
    [
        # labels, their classes=, the classes of the training, the error
        (text("b", "a", "d"), ("a", "b", "c"), r"the classes \('a', 'b', 'c'\): 'd', .* example 2"),
        (np.array([3, 1, 2]), (1, 2), r"the classes \(1, 2\): 3, first in example 0"),
        (np.array([0, 1, 1]), ("a", "b"), "are text, and these numbers; give labels as text, some"),
        (text("a", "b", "a"), (1, 2), r"are numbers, and these text; .* numbers, some of \(1, 2\)"),
        (text("a", "b", "a"), None, "are numbers, and these text; .* class numbers or targets"),
        (
            Dataset(ONES, np.array([1, 2, 1]), classes=[1, 2]),
            ("a", "b"),
            "are text, and these numb",
        ),
        (
            Dataset(ONES, np.array([1, 2, 1]), classes=[1, 2]),
            None,
            "only these have classes, .*lea",
        ),
        (np.array([0.5, 1.5, 0.5]), (0.5, 1.5), r"float64 of shape \(3,\).*es=\[0.5, 1.5\]\)$"),
        (np.array([True, False, True]), (False, True), r"bool of .*classes=\[False, True\]\)$"),
        (one_hot(np.array([0, 1, 1]), 2), (1, 2), r"uint8 of shape \(3, 2\); give one label for"),
    ],
)
def test_labels_of_another_kind_are_refused(own, classes, message):
    dataset = own if isinstance(own, Dataset) else Dataset(ONES, own)
    with pytest.raises(nnxp.InputError, match=message) as caught:
        dataset.with_classes(classes)
    if "Dataset(" in str(caught.value) and own.ndim == 1:
        remedy = str(caught.value).rpartition("with ")[2]
        other = eval(remedy, {"Dataset": Dataset, "inputs": ONES, "labels": own})
        assert other.with_classes(classes).classes == classes


@pytest.mark.parametrize(
    ("labels", "given", "classes", "expected"),
    [
        (text("b", "a", "b"), None, ("c", "b", "a"), [1, 2, 1]),
        (text("b", "a", "b"), ["x", "a", "b"], ("a", "b"), [1, 0, 1]),  # no example has "x"
        (np.array([2, 1, 2]), [1, 2, 3], (1, 2), [1, 0, 1]),
        (np.array([[2], [1], [2]]), None, (1, 2), [1, 0, 1]),
        (np.array([2, 1, 2]), None, (1.0, 2.0), [1, 0, 1]),
        (text("b", "a", "b"), None, (1, "a", "b"), [2, 1, 2]),
        (np.array([1, 1, 1]), None, (1, "a", "b"), [0, 0, 0]),
        (np.array([0, 1, 1]), None, None, [0, 1, 1]),
    ],
)
def test_labels_become_the_class_numbers_of_the_training(labels, given, classes, expected):
    dataset = Dataset(ONES, labels, classes=given).with_classes(classes)
    assert (dataset.labels.tolist(), dataset.classes) == (expected, classes)


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (np.array([30, 10, 30]), [10, 20, 30], (10, 20, 30)),
        (np.array([-1, 1, -1]), np.array([-1, 1]), (-1, 1)),
        (np.array([0.5, 2.0, 0.5]), [0.5, 2.0], (0.5, 2.0)),
        (np.array(["b", "a", "b"]), ["c", "b", "a"], ("c", "b", "a")),
        (np.array(["b", "a", "b"], object), None, ("a", "b")),
        (np.array([["b"], ["a"], ["b"]]), None, ("a", "b")),
        (np.array([True, False, True]), [False, True], (False, True)),
        (Frame(np.array(["b", "a", "b"], object)), None, ("a", "b")),
    ],
)
def test_labels_become_class_numbers(labels, classes, expected):
    dataset = Dataset(np.ones((3, 2)), labels, classes=classes)
    given = labels.to_numpy() if isinstance(labels, Frame) else labels
    assert dataset.classes == expected
    assert dataset.labels.dtype == np.int32
    assert [dataset.classes[i] for i in dataset.labels] == given.reshape(-1).tolist()


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (np.array([1, 2]), [1], "not among the classes .*: 2, first in example 1"),
        (np.array(["a", "b"]), ["a"], "not among the classes .*: 'b', first in example 1"),
        (np.array([1, 2]), [1, 1, 2], "classes must be different labels"),
        (np.array([1, 2]), [], "classes must be a list of labels"),
        (np.array([1, 2]), 3, "classes must be a list of labels"),
        (np.array([1, 2]), {1, 2}, "classes must be a list of labels"),
        (np.array([1, 2]), {1: "a", 2: "b"}, "classes must be a list of labels"),
        (np.array(["a", "b"]), "ab", "classes must be a list of labels"),
        (np.array([1, 2]), [1, None], "classes must be text or numbers"),
        (np.array([1, 2]), [1, np.nan], "classes must be text or numbers"),
        (np.array([1, 2]), [[1], [2]], "classes must be text or numbers"),
        (np.array([1, 2]), [[1], [2, 3]], "classes must be text or numbers"),
        (np.array([1, 2]), np.array([[1], [2]]), "classes must be text or numbers"),
        (np.array([1, 2]), [b"a", b"b"], "classes must be text or numbers"),
        (np.array([1, 2]), range(3), r"classes must be a list of labels, such as \[10, 20, 30\]"),
        (np.zeros(2, "M8[s]"), [1, 2], r"labels as numbers or text, got datetime64\[s\]; give tim"),
        (np.array([1, 2]), [1, "a"], "not among the classes .*: 2, first in example 1"),
        (np.ones((2, 2), int), [1], "one label for each example"),
        (np.array(["a", None], object), None, "labels have a missing value in row 1"),
        (np.array(["a", np.nan], object), None, "labels have a missing value in row 1"),
        (np.array(["a", 3], object), None, "labels must be numbers, got 'a' in row 0"),
    ],
)
def test_wrong_classes_are_refused(labels, classes, message):
    with pytest.raises(nnxp.InputError, match=message):
        Dataset(np.ones((2, 2)), labels, classes=classes)


@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_one_logit_predicts_two_classes(shape):
    for labels in (LABELS, NAMES):
        trainer, dataset = trained(
            IMAGES, labels.reshape(shape), loss=nnxp.SigmoidWithLoss(), outputs=1
        )
        network = trainer.network
        predicted = network.predict_classes(IMAGES)
        assert predicted.shape == (60,)
        assert (predicted == labels).mean() == pytest.approx(trainer.evaluate(dataset).accuracy)
        p = network.predict_proba(IMAGES)[:, 0]
        np.testing.assert_array_equal(p > 0.5, network.predict(IMAGES)[:, 0] > 0)


def test_several_labels_at_once_are_predicted_as_0_and_1():
    rows = np.stack([LABELS, 1 - LABELS, LABELS], axis=1)
    network = trained(IMAGES, rows, loss=nnxp.SigmoidWithLoss(), outputs=3)[0].network
    predicted = network.predict_classes(IMAGES)
    np.testing.assert_array_equal(predicted, network.predict(IMAGES) > 0)


@pytest.mark.parametrize("method", ["predict_classes", "predict_proba"])
def test_networks_without_classes_say_so(method):
    regression = trained(TABLE, TABLE[:, :2], loss=nnxp.MeanSquaredError())[0].network
    for network in (regression, nnxp.mlp([8, 2], rng=0)):
        with pytest.raises(nnxp.InputError, match=f"{method} needs a network that Trainer.fit"):
            getattr(network, method)(TABLE)


# DataFrames


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, None]], "inputs have a missing value in column 'b', row 0; .*dropna"),
        ([[1.0, 2.0], [np.nan, 1.0]], "inputs have a missing value in column 'a', row 1"),
        ([[1.0, "x"]], "inputs must be numbers, got 'x' in column 'b', row 0; .*get_dummies"),
    ],
)
def test_wrong_frames_name_column_and_row(values, message):
    frame = Frame(np.array(values, object), ["a", "b"])
    with pytest.raises(nnxp.InputError, match=message):
        Dataset(frame, np.zeros(len(values), int))


def test_frames_are_arrays_in_c_order():
    frame = Frame(np.asfortranarray(TABLE), range(8))
    dataset = Dataset(frame, Frame(LABELS), weights=Frame(np.ones(60)))
    assert dataset.inputs.flags.c_contiguous
    np.testing.assert_array_equal(dataset.inputs, TABLE)
    mixed = np.array([[1, 2.5, True], [3, 4.5, False]], object)
    np.testing.assert_array_equal(Dataset(Frame(mixed), np.zeros(2)).inputs, mixed.astype(float))


@pytest.mark.interop
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_real_frames_train_and_predict(library):
    frames = pytest.importorskip(library)
    columns = {f"x{i}": TABLE[:, i] for i in range(7)} | {"n": np.arange(60) % 3}
    frame, labels = frames.DataFrame(columns), frames.Series("animal", NAMES.tolist())
    if library == "pandas":
        labels = frames.Series(NAMES, name="animal", dtype="category")
    network = nnxp.mlp([8, 6, 2], rng=0)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam(0.01))
    trainer.fit(Dataset(frame, labels), epochs=2, batch_size=20, rng=0)
    array = np.column_stack([*TABLE.T[:7], np.arange(60) % 3])
    np.testing.assert_array_equal(network.predict_classes(frame), network.predict_classes(array))
    assert set(network.predict_classes(frame)) <= {"cat", "dog"}


# Standardize


@devices
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_standardized_inputs_have_mean_0_and_deviation_1(spec, dtype, tmp_path):
    inputs = TABLE * RNG.uniform(1, 1000, 8) + RNG.uniform(-1000, 1000, 8)
    inputs[:, 3] = 7.1
    trainer, dataset = trained(inputs, LABELS, first=[nnxp.Standardize], spec=spec, dtype=dtype)
    network, device = trainer.network, trainer.network.device
    layer = network[0]
    mean, std = (device.to_host(layer.state[name]) for name in ("mean", "std"))
    expected = np.where(np.arange(8) == 3, 1.0, inputs.std(axis=0))
    rtol = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(mean, inputs.mean(axis=0), rtol=rtol)
    np.testing.assert_allclose(std, expected, rtol=rtol)
    by_hand = (inputs - inputs.mean(axis=0)) / expected
    rest = nnxp.Sequential(network.layers[1:])
    np.testing.assert_allclose(
        device.to_host(network.predict(inputs)), device.to_host(rest.predict(by_hand)), atol=1e-3
    )
    if spec in ("cpu", "jax:cpu"):
        assert trainer.captured == "captured"
    # Another fit and a copy keep the statistics; so does a file.
    trainer.fit(Dataset(inputs + 50, LABELS), epochs=1, batch_size=20)
    np.testing.assert_array_equal(device.to_host(layer.state["mean"]), mean)
    pytest.importorskip("safetensors")
    trainer.save(tmp_path / "a.safetensors")
    resumed = nnxp.Trainer.resume(tmp_path / "a.safetensors", device=spec)
    resumed.fit(dataset, epochs=1, batch_size=20, rng=resumed.rng)
    np.testing.assert_array_equal(device.to_host(resumed.network[0].state["mean"]), mean)


def test_standardize_within_a_network_takes_what_the_layers_before_give():
    network = nnxp.Sequential(
        [nnxp.Flatten(), nnxp.Identity(), nnxp.Standardize(), *nnxp.mlp([8, 2], rng=0)]
    )
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    images = IMAGES.reshape(60, 2, 4)
    trainer.fit(Dataset(images, LABELS), epochs=1, batch_size=20, rng=0)
    np.testing.assert_allclose(network[2].state["mean"], (IMAGES / 255).mean(axis=0), rtol=1e-5)


def test_standardize_says_what_it_needs():
    layer = nnxp.Standardize()
    with pytest.raises(nnxp.InputError, match=r"no statistics yet: Trainer.fit sets them"):
        layer.forward(TABLE)
    for wrong in (np.ones((2, 2, 2)), np.ones(3), np.ones((0, 3))):
        with pytest.raises(
            nnxp.InputError, match=r"expects inputs of shape \(examples, features\)"
        ):
            layer.adapt(wrong)
    network = nnxp.Sequential([nnxp.Standardize(), *nnxp.mlp([8, 2], rng=0)])
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    with pytest.raises(nnxp.InputError, match="needs all examples before the first step"):
        trainer.fit([(TABLE, LABELS)], epochs=1)
    network[0].adapt(TABLE)
    trainer.fit([(TABLE, LABELS)], epochs=1)
    with pytest.raises(nnxp.InputError, match=r"expects 7 features, got \(8,\)"):
        nnxp.Sequential([nnxp.Standardize(8), nnxp.Affine(7, 2, rng=0)])


# Regression


@pytest.mark.parametrize("kind", [nnxp.MeanSquaredError, nnxp.Huber, nnxp.AbsoluteError])
def test_targets_of_one_axis_and_whole_numbers_are_regression(kind):
    targets = np.arange(60) % 7
    metrics = [nnxp.metrics.R2(), nnxp.metrics.MeanAbsoluteError()]
    records = []
    for labels in (targets, targets[:, None], targets.astype(float), targets[:, None] * 1.0):
        network = nnxp.mlp([8, 5, 1], rng=0, dtype="float64")
        trainer = nnxp.Trainer(network, kind(), nnxp.Adam(0.01), metrics=metrics)
        trainer.fit(Dataset(TABLE, labels), epochs=2, batch_size=20, rng=0)
        assert "train_accuracy" not in trainer.history[-1]
        error = abs(network.predict(TABLE)[:, 0] - targets)
        evaluated = trainer.evaluate(Dataset(TABLE, labels))
        assert evaluated.mean_absolute_error == pytest.approx(error.mean())
        r2 = 1 - (error**2).sum() / ((targets - targets.mean()) ** 2).sum()
        assert evaluated.r2 == pytest.approx(r2)
        records.append({name: x for name, x in trainer.history[-1].items() if name != "seconds"})
    assert all(record == pytest.approx(records[0], rel=1e-12) for record in records)


# From arrays


def test_layer_from_arrays_copies_them():
    W, b = np.array([[1.0, 3.0], [2.0, 4.0]], "float32"), np.array([1.0, 2.0])
    layer = nnxp.Affine.from_arrays(W, b)
    assert (layer.dtype, layer.inputs, layer.outputs) == ("float32", 2, 2)
    np.testing.assert_array_equal(layer.forward(np.ones((1, 2), "float32")), [[4.0, 9.0]])
    layer.params["W"][...] = 0
    assert W[0, 0] == 1.0
    assert nnxp.Affine.from_arrays([[1, 2]], [3, 4]).dtype == "float64"
    for wrong in (([[1, 2]], [1]), ([1, 2], [1, 2]), ([["a"]], ["b"]), ([[1], [2, 3]], [1])):
        with pytest.raises(nnxp.InputError, match="from_arrays expects"):
            nnxp.Affine.from_arrays(*wrong)


@pytest.mark.parametrize("values", [(30, 10, 20), (1, 2, 3), (-1, 0, 1), (0, 1, 3)])
@pytest.mark.parametrize("shape", [(60,), (60, 1)])
def test_labels_with_gaps_become_class_numbers(values, shape, tmp_path):
    labels = np.array(values)[np.arange(60) % 3].reshape(shape)
    trainer, dataset = trained(TABLE, labels, outputs=3)
    network = trainer.network
    assert network.data_format.classes == tuple(sorted(values))
    predicted = network.predict_classes(TABLE)
    assert set(predicted) <= set(values)
    accuracy = (predicted == labels.reshape(-1)).mean()
    assert trainer.evaluate(dataset).accuracy == pytest.approx(accuracy)
    part = Dataset(TABLE[1::3], labels[1::3])  # of one class alone
    accuracy = (network.predict_classes(part.inputs) == values[1]).mean()
    trainer.fit(dataset, epochs=1, batch_size=20, validation=part)
    accuracy = (network.predict_classes(part.inputs) == values[1]).mean()
    assert trainer.history[-1].validation_accuracy == pytest.approx(accuracy)
    with pytest.raises(nnxp.InputError, match="not among the classes"):
        trainer.evaluate(Dataset(TABLE, np.full(60, 99)))


@pytest.mark.parametrize("values", [(1, 2), (-1, 1)])
def test_two_labels_of_one_logit_become_class_numbers(values):
    labels = np.array(values)[LABELS]
    trainer, dataset = trained(IMAGES, labels, loss=nnxp.SigmoidWithLoss(), outputs=1)
    predicted = trainer.network.predict_classes(IMAGES)
    assert set(predicted) <= set(values)
    assert trainer.evaluate(dataset).accuracy == pytest.approx((predicted == labels).mean())


def test_labels_that_are_class_numbers_stay_so():
    network = trained(TABLE, np.array([0, 2])[LABELS], outputs=3)[0].network
    assert network.data_format.classes is None


def test_remedy_for_labels_out_of_range_works():
    inputs, labels = TABLE, np.array([30, 10, 20])[np.arange(60) % 3]
    with pytest.raises(nnxp.InputError, match=r"labels from 0 to 3, got 30; other labels") as error:
        trained(inputs, labels, outputs=4)
    remedy = str(error.value).partition("class numbers in ")[2]
    dataset = eval(remedy, {"nnxp": nnxp, "numpy": np, "inputs": inputs, "labels": labels})
    network = trained(dataset.inputs, labels, outputs=3, classes=dataset.classes)[0].network
    assert set(network.predict_classes(inputs)) <= {10, 20, 30}


class Categorical(Frame):
    """A categorical Series as far as nnxp uses it."""

    class dtype:  # noqa: N801 - pandas' name
        categories = Frame(np.array([9, 3, 5]))


def test_categories_are_classes():
    dataset = Dataset(np.ones((2, 2)), Categorical(np.array([3, 9])))
    assert dataset.classes == (9, 3, 5)
    assert dataset.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("loss", "outputs", "message"),
    [
        (nnxp.SoftmaxWithLoss(), 3, "outputs for 3 classes, and there are 2 labels: .*give"),
        (nnxp.SoftmaxWithLoss(), 1, "outputs for 2 classes, and there are 3 labels"),
        (nnxp.SigmoidWithLoss(), 1, "outputs for 2 classes, and there are 3 labels"),
        (nnxp.MeanSquaredError(), 1, "MeanSquaredError.* takes targets; use SoftmaxWithLoss"),
        (nnxp.Huber(), 1, "takes targets; use SoftmaxWithLoss"),
    ],
)
def test_networks_whose_outputs_are_not_the_classes_are_refused(loss, outputs, message):
    labels = NAMES if "are 3" not in message else np.array(["a", "b", "c"])[np.arange(60) % 3]
    with pytest.raises(nnxp.InputError, match=message):
        trained(TABLE, labels, loss=loss, outputs=outputs)


def test_statistics_of_data_that_are_refused_are_forgotten():
    layer = nnxp.Standardize()
    network = nnxp.Sequential([layer, *nnxp.mlp([8, 2], rng=0)])
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    for wrong in (Dataset(TABLE * 1000, LABELS * 1.0), Dataset(TABLE[:, :3], LABELS)):
        with pytest.raises(nnxp.InputError):
            trainer.fit(wrong, epochs=1, batch_size=20, rng=0)
        assert not layer.state
    weights = np.ones(60)
    trainer.fit(Dataset(TABLE, LABELS, weights=weights), epochs=1, batch_size=20, rng=0)
    np.testing.assert_allclose(layer.state["std"], TABLE.std(axis=0), rtol=1e-5)


def test_batches_keep_the_classes_of_the_training():
    trainer, dataset = trained(IMAGES, NAMES)
    trainer.fit([(IMAGES, dataset.labels)], epochs=1)
    assert set(trainer.network.predict_classes(IMAGES)) <= {"cat", "dog"}


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy has no StringDType")
def test_text_of_any_length_is_text():
    labels = np.array(["a", "bcd"], np.dtypes.StringDType())
    assert Dataset(np.ones((2, 2)), labels).classes == ("a", "bcd")


def test_warnings_of_size_are_not_given_for_streams_and_parts_of_a_data_set():
    small, large = TABLE / 100, TABLE
    network = nnxp.mlp([8, 6, 2], rng=0)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    trainer.fit([(small, LABELS), (large, LABELS)], epochs=1)
    assert network.data_format.largest == 0
    network.predict(large)  # warnings are errors
    outlier = TABLE.copy()
    outlier[0, 0] = 1e6
    parts = Dataset(outlier, LABELS).split(0.5, rng=0)
    assert sorted(part.largest for part in parts) == sorted(abs(x.inputs).max() for x in parts)
    assert min(part.largest for part in parts) < 10


def test_mixed_classes_come_back_as_they_were():
    labels = np.array([1, "a"], object)[LABELS]
    network = trained(TABLE, LABELS)[0].network
    network.data_format = dataclasses.replace(network.data_format, classes=(1, "a"))
    assert set(map(type, network.predict_classes(TABLE).tolist())) <= {int, str}
    assert set(network.predict_classes(TABLE).tolist()) <= set(labels.tolist())


# Sizes

TAILS = {
    "normal": lambda rng, n: rng.normal(size=(n, 4)),
    "log-normal": lambda rng, n: np.exp(2 * rng.normal(size=(n, 4))),
    "log-normal, one column": lambda rng, n: np.exp(2 * rng.normal(size=(n, 1))),
    "Pareto": lambda rng, n: rng.pareto(0.5, (n, 4)) + 1,
    "Cauchy": lambda rng, n: rng.standard_cauchy((n, 4)),
    "rows": lambda rng, n: np.exp(2 * rng.normal(size=(n, 1))) * rng.normal(size=(n, 4)),
    "sparse": lambda rng, n: (rng.random((n, 4)) < 0.05) * rng.normal(size=(n, 4)),
}


def format_of(inputs, scale=None):
    """Return the data format of a network that is trained on these inputs."""
    network = nnxp.mlp([inputs.shape[1], 2], rng=0)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(1e-6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large numbers
        dataset = Dataset(inputs, np.arange(len(inputs)) % 2, scale=scale)
        trainer.fit(dataset, epochs=1, batch_size=len(inputs), rng=0)
    return network.data_format


def is_warned(known, inputs):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        known.warn_of_size(sizes_of(inputs, known.scale), "inputs")
    return len(said) > 0


@pytest.mark.parametrize("kind", TAILS)
@pytest.mark.parametrize(
    "examples", [*(pytest.param(x, marks=pytest.mark.long) for x in (5, 50)), 500]
)
def test_tables_with_outliers_are_not_warned_of_and_wrong_scales_are(kind, examples):
    wrong = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        known = format_of(TAILS[kind](rng, 500))
        later = TAILS[kind](rng, examples)
        assert not is_warned(known, later), seed
        wrong += is_warned(known, later * 255) + is_warned(known, later / 255)
    if examples == 500:
        assert wrong == 40


@pytest.mark.parametrize("outlier", [1e6, -1e12])
def test_an_outlier_in_training_or_later_is_no_other_size(outlier):
    one = TABLE.copy()
    one[3, 2] = outlier
    for trained_on, given in ((one, TABLE), (TABLE, one)):
        known = format_of(trained_on)
        assert not is_warned(known, given)
        assert is_warned(known, given * 255)
        assert is_warned(known, given / 255)


def test_validation_with_a_lighter_tail_is_not_warned_of():
    rng = np.random.default_rng(21)
    heavy = rng.pareto(1.0, (1000, 1))
    light = heavy[rng.permutation(1000)[:50]]
    assert light.max() * 100 < heavy.max()
    network = nnxp.mlp([1, 2], rng=0)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(1e-6))
    train = Dataset(heavy, np.arange(1000) % 2, scale=float(heavy.max()))
    validation = Dataset(light, np.arange(50) % 2, scale=float(heavy.max()))
    trainer.fit(train, epochs=1, batch_size=50, rng=0, validation=validation)  # warnings are errors
    trainer.evaluate(validation)
    network.predict(light)


def test_a_single_image_that_was_not_scaled_is_warned_of():
    network = trained(pixels("scaled"), LABELS)[0].network
    network.predict(pixels("scaled")[:1])  # warnings are errors
    network.predict(pixels("scaled")[:1] / 50)  # one dark image says nothing
    for given in (pixels("raw"), pixels("int64")):
        with pytest.warns(UserWarning, match="scale both in the same way"):
            network.predict(given[:1])
    with pytest.warns(UserWarning, match="scale both in the same way"):
        network.predict(pixels("scaled") / 255)


def test_sizes_of_few_examples_are_unknown():
    assert format_of(TABLE[:19]).size is None
    assert format_of(TABLE[:20]).size is not None
    assert format_of(np.zeros((60, 8))).size is None
    assert not is_warned(format_of(TABLE), np.zeros((60, 8)))


def test_sizes_of_large_inputs_are_those_of_evenly_spaced_examples():
    inputs = np.random.default_rng(0).normal(size=(600, 5000))
    sizes = sizes_of(inputs, 2.0)
    np.testing.assert_array_equal(sizes, sizes_of(inputs[::2] / 2, None))
    assert len(sizes) == 300
    assert len(sizes_of(np.ones((100, 100_000), "uint8"), None)) == 50


@devices
def test_train_epoch_lets_the_network_predict_as_fit_does(spec):
    device_or_skip(spec)
    place = {"dtype": "float32", "device": spec}
    dataset = Dataset(IMAGES.astype("int64"), NAMES, scale=255)
    networks = [nnxp.mlp([8, 6, 2], rng=0, **place) for _ in range(2)]
    for network in networks:
        trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam(0.01))
        if network is networks[0]:
            trainer.fit(dataset, epochs=1, batch_size=20, rng=0)
        else:
            trainer.train_epoch(nnxp.data.Batches(dataset, 20, rng=0, **place))
    one, other = networks
    assert one.data_format == other.data_format
    assert other.predict_classes(IMAGES).tolist() == one.predict_classes(IMAGES).tolist()
