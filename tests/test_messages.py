"""Messages: what newcomers try is taken, or named with the remedy, which works as printed."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tables import devices

import nnxp
from nnxp.data import Dataset

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4))
Y = np.arange(40) % 3


def network(**settings):
    return nnxp.mlp([4, 8, 3], rng=0, **settings)


def trainer(**parts):
    return nnxp.Trainer(network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), **parts)


# Taken


@pytest.mark.parametrize(
    "given", ["float64", np.float64, np.dtype("float64"), float, np.dtype(">f8").newbyteorder("=")]
)
def test_dtypes_are_taken_as_names_and_as_objects(given):
    assert network(dtype=given).dtype == "float64"
    assert network().to("cpu", dtype=given).dtype == "float64"
    assert nnxp.BatchNorm(3, dtype=given).dtype == "float64"
    assert nnxp.Standardize(3, dtype=given).state["mean"].dtype == np.float64
    assert nnxp.Dropout(0.5, rng=0, dtype=given).dtype == "float64"
    assert nnxp.Affine.from_arrays([[1.0]], [0.0], dtype=given).dtype == "float64"
    assert nnxp.device("cpu").asarray([1], dtype=given).dtype == np.float64
    batches = nnxp.data.Batches(Dataset(X, Y), 8, device="cpu", dtype=given)
    assert next(iter(batches))[0].dtype == np.float64


@devices
def test_dtypes_of_the_device_are_taken(spec):
    device = nnxp.device(spec)
    for name in ("float32", "float64"):
        dtype = getattr(device.xp, name)
        assert network(dtype=dtype, device=device).dtype == name
        assert device.asarray([1], dtype=dtype).dtype == dtype


@pytest.mark.parametrize("wrong", ["float16", np.float16, np.int64, int, "double", None, 3])
def test_other_dtypes_are_named(wrong):
    with pytest.raises(nnxp.InputError, match="unknown dtype '.*float32, float64"):
        network(dtype=wrong)


def test_initializers_are_taken_by_name():
    for name, function in nnxp.initializers.INITIALIZERS.items():
        for made in (
            nnxp.Affine(4, 3, rng=0, initializer=name),
            nnxp.TwoLayerNet(4, 3, 2, rng=0, initializer=name)[0],
        ):
            expected = nnxp.Affine(4, 3, rng=0, initializer=function).params["W"]
            np.testing.assert_array_equal(made.params["W"], expected)


def test_sequential_takes_layers_one_by_one(tmp_path):
    layers = [nnxp.Affine(4, 4, rng=0), nnxp.ReLU()]
    for kind in (nnxp.Sequential, nnxp.Residual):
        for made in (kind(*layers), kind(layers), kind(layers=layers), kind(iter(layers))):
            assert made.layers == tuple(layers)
            assert made.config()["layers"]
        assert kind(layers[0]).layers == (layers[0],)
        with pytest.raises(nnxp.InputError, match=r"one list of layers, or all layers, .* ReLU"):
            kind(layers[:1], layers[1])
    pytest.importorskip("safetensors")
    own = nnxp.Sequential(nnxp.Residual(*layers), nnxp.Affine(4, 2, rng=0))
    own.save(tmp_path / "a.safetensors")
    assert repr(nnxp.load_network(tmp_path / "a.safetensors")) == repr(own)
    assert repr(eval(repr(nnxp.Sequential(nnxp.ReLU(), nnxp.Tanh())), vars(nnxp))) == (
        "Sequential(ReLU(), Tanh())"
    )


def test_a_history_is_drawn_alone_or_by_name(tmp_path):
    pytest.importorskip("matplotlib")
    own = trainer()
    own.fit(Dataset(X, Y), epochs=2, batch_size=10, rng=0)
    for i, given in enumerate((own.history, list(own.history), {"run": own.history})):
        nnxp.plots.plot_histories(given, tmp_path / f"{i}.png")
    pictures = {(tmp_path / f"{i}.png").read_bytes() for i in range(3)}
    assert len(pictures) == 1


# Named, with nnxp's own word


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nnxp.SGD(lr=0.1), "unknown setting of SGD 'lr'; nnxp calls it 'learning_rate'"),
        (lambda: nnxp.Adam(lr=0.1), "unknown setting of Adam 'lr'; nnxp calls it 'learning_rate'"),
        (lambda: nnxp.Adam(eps=1e-8), "nnxp calls it 'epsilon'"),
        (lambda: nnxp.Adam(betas=(0.9, 0.999)), "did you mean 'beta2'. known: .*beta1, beta2"),
        (
            lambda: trainer().fit(
                Dataset(X, Y), epochs=1, callbacks=nnxp.callbacks.EarlyStopping, batch_size=9, rng=0
            ),
            r"callbacks must be a list, .*; make an object: EarlyStopping\(…\)",
        ),
        (lambda: nnxp.SGD(0.1, momentum=0.9), r"use nnxp.Momentum\(learning_rate, momentum=0.9\)"),
        (lambda: nnxp.SGD(0.1, nesterov=True), r"use nnxp.Nesterov\(learning_rate, momentum=0.9"),
        (lambda: nnxp.SGD(0.1, weight_decya=1), "did you mean 'weight_decay'"),
        (lambda: nnxp.Affine(in_features=4, out_features=3, rng=0), "nnxp calls it 'inputs'"),
        (lambda: nnxp.Affine(4, 3, seed=0), "nnxp calls it 'rng'"),
        (lambda: nnxp.Dropout(p=0.5, rng=0), "nnxp calls it 'rate'"),
        (lambda: nnxp.BatchNorm(num_features=3), "nnxp calls it 'features'"),
        (lambda: nnxp.SoftmaxWithLoss(weight=[1, 2]), "nnxp calls it 'class_weights'"),
        (lambda: nnxp.L2(lambda_=0.1), "unknown setting of L2 'lambda_'"),
        (lambda: nnxp.ClipNorm(max_norm=1.0), "unknown setting of ClipNorm 'max_norm'"),
        (lambda: nnxp.metrics.TopAccuracy(k=5, top=1), "unknown setting of TopAccuracy 'top'"),
        (lambda: nnxp.TwoLayerNet(4, 3, 2, rng=0, weight_init_std=0.01), "it 'initializer'"),
        (lambda: trainer().fit(X, Y), r"fit: .* call trainer.fit\(train, .*Dataset\(X, y\)"),
        (lambda: trainer().fit(Dataset(X, Y)), "missing a required argument: 'epochs'; call tr"),
        (
            lambda: trainer().fit(Dataset(X, Y), epochs=1, validation_data=(X, Y)),
            "nnxp calls it 'validation'; call trainer.fit",
        ),
        (lambda: trainer().evaluate(X, Y), r"got ndarray; make one with nnxp.data.Dataset"),
        (lambda: trainer().evaluate(X, Y, 10), r"evaluate: .* call trainer.evaluate\(dataset\)"),
        (lambda: nnxp.mlp(4, 8, 3, rng=0), r"mlp: .*call mlp\(\[784, 50, 10\], rng=0\)"),
        (lambda: nnxp.mlp([4, 3], rng=0, lr=1), "unexpected keyword argument 'lr'; call mlp"),
        (lambda: nnxp.mlp([4, 8, 3]), "missing a required argument: 'rng'; call mlp"),
        (
            lambda: nnxp.Trainer(network(), nnxp.SoftmaxWithLoss, nnxp.SGD(0.1)),
            r"object of Loss such as .*got <class.*; make an object: SoftmaxWithLoss\(…\)",
        ),
        (
            lambda: nnxp.Trainer(network(), nnxp.SoftmaxWithLoss(), nnxp.SGD),
            r"object of Optimizer such as nnxp.Adam\(\).*; make an object: SGD\(…\)",
        ),
        (
            lambda: nnxp.Trainer(network(), nnxp.SGD(0.1), nnxp.SoftmaxWithLoss()),
            r"expects network, loss and optimizer: an object of Loss .* got SGD",
        ),
        (lambda: nnxp.Sequential(nnxp.Affine(4, 3, rng=0), nnxp.ReLU), r"object: ReLU\(…\)"),
        (lambda: trainer(metrics=[nnxp.metrics.F1]), r"make an object: F1\(…\)"),
        (lambda: trainer(transforms=[nnxp.ClipNorm]), r"make an object: ClipNorm\(…\)"),
        (
            lambda: nnxp.Affine(4, 3, rng=0, initializer="hee"),
            "unknown initializer 'hee'; did you mean 'he'",
        ),
        (
            lambda: nnxp.Affine(4, 3, rng=0, initializer=0.01),
            r"got 0.01; for that standard deviation, nnxp.initializers.normal\(0.01\)",
        ),
    ],
)
def test_other_words_are_answered_with_nnxps(call, message):
    with pytest.raises(nnxp.InputError, match=message):
        call()


def test_a_fault_within_a_call_is_not_taken_for_its_arguments():
    class Broken(nnxp.SGD):
        def update(self, params, grads):
            raise TypeError("broken")

    own = nnxp.Trainer(network(), nnxp.SoftmaxWithLoss(), Broken(0.1), capture=False)
    with pytest.raises(TypeError, match="^broken$"):
        own.fit(Dataset(X, Y), epochs=1, batch_size=10, rng=0)


def test_settings_of_a_users_part_have_any_names():
    class Scale(nnxp.Layer):
        def __init__(self, lr=1.0):
            self.lr = lr

    class Any(nnxp.SGD):
        def __init__(self, **settings):
            super().__init__(settings["lr"])

    assert Scale(lr=2.0).lr == 2.0
    assert Any(lr=0.5).learning_rate == 0.5
    with pytest.raises(TypeError, match="unexpected keyword argument 'rate'"):
        Scale(rate=1)


# Remedies that are calls


@devices
@pytest.mark.parametrize("kind", ["float64", "int64", "uint8"])
@pytest.mark.parametrize("layer", [nnxp.ReLU(), None])
def test_inputs_of_another_dtype_are_told_a_conversion_that_works(spec, kind, layer):
    own = network(device=spec)
    if layer is None:
        call = own.forward
    elif kind == "float64":
        pytest.skip("ReLU takes every floating-point dtype")
    else:
        call = layer.forward
    x = own.device.asarray(abs(X).astype(kind))
    with pytest.raises(nnxp.InputError, match="convert with ") as raised:
        call(x)
    code = re.search(r"convert with (\S+\(.*\))$", str(raised.value))[1]
    assert call(eval(code, {"x": x, "network": own})).shape[0] == 40


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (network().forward, X[0].astype("float32")),
        (network().predict, X[0]),
        (network().forward, X.reshape(40, 2, 2).astype("float32")),
    ],
)
def test_one_example_and_images_are_told_the_remedy(call, given):
    with pytest.raises(nnxp.InputError, match=r"give x\[None\]|nnxp.Flatten\(\)") as raised:
        call(given)
    if "x[None]" in str(raised.value):
        assert call(given[None]).shape == (1, 3)
    else:
        assert nnxp.Sequential(nnxp.Flatten(), network()).forward(given).shape == (40, 3)


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [
        (Y.astype(float), r'labels.astype\("int64"\)'),
        (np.array(["a", "b", "c", "d"] * 10), r"nnxp.data.Dataset\(inputs, labels\) makes"),
        (Y.astype(object), r"nnxp.data.Dataset\(inputs, labels\) makes"),
        (X[:, 0], r"for real numbers, use a loss such as nnxp.MeanSquaredError\(\)"),
    ],
)
def test_labels_of_other_kinds_are_told_the_remedy(labels, remedy):
    scores = X[:, :3]
    with pytest.raises(nnxp.InputError, match=remedy):
        nnxp.SoftmaxWithLoss().forward(scores, labels)
    if "astype" in remedy:
        nnxp.SoftmaxWithLoss().forward(scores, labels.astype("int64"))
    elif "Dataset" in remedy:
        assert Dataset(X, labels).labels.dtype.kind == "i"
    else:
        nnxp.MeanSquaredError().forward(scores[:, :1], labels)


def test_parts_that_a_checkpoint_cannot_use_are_told_the_remedy(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "a.safetensors"
    own = nnxp.Trainer(network(), nnxp.SoftmaxWithLoss(), nnxp.Adam())
    own.fit(Dataset(X, Y), epochs=1, batch_size=10, rng=0, checkpoint=path)
    other = network(dtype="float64")
    with pytest.raises(
        nnxp.CheckpointError, match=r"network is of float32, .* float64; give "
    ) as e:
        nnxp.Trainer.resume(path, network=other)
    code = re.search(r"give (network.to\(.*\))$", str(e.value))[1]
    nnxp.Trainer.resume(path, network=eval(code, {"network": other}))
    with pytest.raises(
        nnxp.CheckpointError,
        match=r"optimizer is a nnxp.Adam, and SGD\(.*nnxp.load_network\(path\)",
    ):
        nnxp.Trainer.resume(path, optimizer=nnxp.SGD(0.1))
    nnxp.Trainer.resume(path, optimizer=nnxp.Adam(0.1))
    nnxp.Trainer(nnxp.load_network(path), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))


def test_labels_from_1_are_class_numbers():
    own = trainer()
    own.fit(Dataset(X, Y + 1), epochs=1, batch_size=10, rng=0)
    assert own.network.data_format.classes == (1, 2, 3)
    assert set(own.network.predict_classes(X)) <= {1, 2, 3}
    labels = Y + 1
    with pytest.raises(nnxp.InputError, match=r"got 3; .*classes=numpy.unique\(labels\)"):
        nnxp.SoftmaxWithLoss().forward(X[:, :3], labels)
    assert Dataset(X, labels, classes=np.unique(labels)).labels.max() == 2
