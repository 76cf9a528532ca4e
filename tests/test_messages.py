"""Messages: what newcomers try is taken, or named with the remedy, which works as printed."""

from __future__ import annotations

import re

import numpy as np
import pytest
from file_samples import write_mnist_layout
from tables import devices

import nnxp
from nnxp.data import Dataset
from nnxp.parts import Part, constructor_parameters

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
        with pytest.raises(nnxp.InputError, match=r"one list of layers, or one argument .* ReLU"):
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
        (lambda: nnxp.ClipNorm(max_norm=1.0), "unknown setting of ClipNorm 'max_norm'; nnxp calls"),
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


# Calls with wrong arguments


def own_parts(kind=Part):
    for each in kind.__subclasses__():
        if each.__module__.startswith("nnxp."):
            yield each
            yield from own_parts(each)


def required(kind):
    return [
        name
        for name, x in constructor_parameters(kind).items()
        if x.default is x.empty and x.kind is not x.VAR_KEYWORD
    ]


MADE = sorted({kind for kind in own_parts() if kind.__init__ is not object.__init__}, key=str)


@pytest.mark.parametrize("kind", [kind for kind in MADE if required(kind)])
def test_every_constructor_prints_a_call_that_works(kind):
    with pytest.raises(nnxp.ArgumentError, match=f"^{kind.__name__}: .*; call ") as raised:
        kind()
    assert isinstance(raised.value, nnxp.InputError)
    assert isinstance(raised.value, TypeError)
    made = eval(str(raised.value).partition("; call ")[2], {"nnxp": nnxp})
    assert type(made) is kind


@pytest.mark.parametrize("kind", [kind for kind in own_parts() if kind not in MADE])
def test_parts_without_settings_take_none(kind):
    for call in (lambda: kind(0.1), lambda: kind(axis=1)):
        with pytest.raises(
            nnxp.ArgumentError, match="takes no arguments, got (0.1|axis); call"
        ) as e:
            call()
        assert str(e.value).endswith(f"; call {kind.__name__}()")


def test_a_users_part_without_a_constructor_takes_no_arguments():
    class Own(nnxp.Layer):
        pass

    class Mixed(nnxp.Layer, dict):
        pass

    with pytest.raises(TypeError, match=r"Own takes no arguments, got 3; call Own\(\)"):
        Own(3)
    assert Mixed(a=1) == {"a": 1}


FITTED = nnxp.Trainer(network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
WATCH = nnxp.callbacks.WatchLayers(Dataset(X, Y))
FITTED.fit(Dataset(X, Y), epochs=1, batch_size=10, rng=0, callbacks=[WATCH])


@pytest.mark.parametrize(
    "call",
    [
        lambda: nnxp.Trainer(network(), nnxp.SoftmaxWithLoss()),
        lambda: nnxp.Trainer(network(), nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1), lr=0.1),
        lambda: trainer().step(X),
        lambda: trainer().fit(Dataset(X, Y), epochs=1, batch=10, rng=0),
        lambda: trainer().evaluate(),
        lambda: trainer().train_epoch(),
        lambda: trainer().save(),
        nnxp.Trainer.resume,
        lambda: nnxp.Trainer.resume("a.safetensors", network()),
        nnxp.load_network,
        lambda: network().predict(),
        lambda: network().predict(X, batch=3),
        lambda: network().predict(X, 3),
        lambda: FITTED.network.predict_proba(X, verbose=0),
        FITTED.network.predict_classes,
        lambda: network().save(),
        lambda: network().to(),
        lambda: network().activations(),
        lambda: network().load_parameters(),
        lambda: network().summary((4,), 2),
        lambda: nnxp.lenet([1, 28, 28], 10),
        lambda: Dataset(X),
        lambda: Dataset(X, Y, sample_weight=Y),
        lambda: Dataset(X, Y).split(0.2),
        lambda: Dataset(X, Y).split(test_size=0.2, rng=0),
        lambda: nnxp.data.Batches(Dataset(X, Y), 10),
        lambda: nnxp.data.one_hot(Y),
        nnxp.data.load_csv,
        lambda: nnxp.data.load_csv("a.csv", sep=";"),
        nnxp.data.load_csv_inputs,
        lambda: nnxp.data.load_mnist("a", download=True),
        lambda: nnxp.data.load_digits(10),
        lambda: nnxp.plots.plot_histories(FITTED.history),
        lambda: nnxp.plots.plot_confusion_matrix("a.png"),
        lambda: nnxp.plots.plot_mistakes(X, Y),
        lambda: nnxp.plots.plot_weights("a.png"),
        nnxp.plots.plot_layers,
        lambda: nnxp.plots.plot_schedules(nnxp.schedules.Constant(0.1), "a.png"),
        nnxp.plots.plot_learning_rate_range,
        lambda: nnxp.learning_rate_range(trainer()),
        nnxp.callbacks.WatchLayers,
        lambda: nnxp.device("cpu").asarray(),
        nnxp.register,
        lambda: nnxp.check_gradients(network()),
        lambda: nnxp.numerical_gradient(X),
        lambda: nnxp.testing.check_layer(nnxp.ReLU()),
        lambda: nnxp.accuracy(X),
        lambda: nnxp.metrics.confusion_matrix(X),
        lambda: nnxp.mlp([4, 3]),
        nnxp.initializers.normal,
        lambda: nnxp.initializers.he_normal(0.1),
        lambda: nnxp.callbacks.EarlyStopping("validation_loss", patience=3),
        lambda: nnxp.callbacks.ReduceOnPlateau(rate=3),
        nnxp.callbacks.Checkpoint,
        lambda: nnxp.callbacks.Progress(every=2),
        lambda: nnxp.callbacks.WeightAverage(1, 2),
    ],
)
def test_functions_and_methods_print_a_call_that_works(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(nnxp.ArgumentError, match=": .*; call ") as raised:
        call()
    code = str(raised.value).rpartition("; call ")[2]
    code = re.split(r", or give|, with the| with ", code)[0]
    if "safetensors" in code:
        pytest.importorskip("safetensors")
        FITTED.save("training.safetensors")
        FITTED.network.save("network.safetensors")
    if "plots" in code:
        pytest.importorskip("matplotlib")
    if "folder" in code:
        write_mnist_layout(tmp_path / "folder", *nnxp.data.load_digits())
    (tmp_path / "table.csv").write_text("1,2,0\n3,4,1\n")
    inputs = X if "gradient" in code else X.astype("float32")
    dataset = Dataset(X, Y)
    names = {
        "nnxp": nnxp,
        "network": FITTED.network if "predict" in code else network(dtype=str(inputs.dtype)),
        "trainer": FITTED if "history" in code else trainer(),
        "loss": nnxp.SoftmaxWithLoss(),
        "x": inputs,
        "inputs": inputs,
        "labels": Y,
        "scores": X[:, :3],
        "counts": np.eye(3),
        "images": X,
        "watch": WATCH,
        "found": nnxp.LearningRateRange(Y[1:3], Y[1:3], Y[1:3], False),
        "train": dataset,
        "dataset": dataset,
        "batches": nnxp.data.Batches(dataset, 9, device="cpu", dtype="float32", rng=0),
        "other": network(),
        "device": nnxp.device("cpu"),
        "layer": nnxp.ReLU(),
        "rng": RNG,
        "f": np.sum,
        "mlp": nnxp.mlp,
        "MyLayer": type("MyLayer", (nnxp.Layer,), {}),
    }
    eval(code, names)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: network().predict(X, batch=3), "'batch'; nnxp calls it 'batch_size'; call"),
        (lambda: Dataset(X, Y).split(test_size=0.2, rng=0), "got 'test_size'; nnxp .* 'share'; c"),
        (lambda: Dataset(X, Y, lables=Y), "did you mean 'labels'"),
        (lambda: nnxp.schedules.StepDecay(0.1, step_size=3), "nnxp calls it 'every'"),
        (lambda: nnxp.ClipNorm(max_norm=1), "nnxp calls it 'limit'"),
    ],
)
def test_unknown_arguments_are_told_nnxps_word(call, words):
    with pytest.raises(nnxp.ArgumentError, match=words):
        call()


def test_what_other_libraries_have_is_told_nnxps_way():
    own, net = trainer(), network()
    names = {"nnxp": nnxp, "trainer": FITTED, "network": net, "x": X.astype("float32")}
    names |= {"dataset": Dataset(X, Y), "parameters": net.parameters(), "layer": nnxp.ReLU()}
    of_networks = "add append compile fit evaluate eval train weights get_weights state_dict"
    for thing, attributes in (
        (net, f"{of_networks} load_state_dict"),
        (own, "predict predict_classes predict_proba score train"),
    ):
        for name in attributes.split():
            assert not hasattr(thing, name)
            with pytest.raises(AttributeError, match=f"has no '{name}'; use ") as raised:
                getattr(thing, name)
            exec(str(raised.value).partition("; use ")[2], names)
    with pytest.raises(AttributeError, match="'Sequential' object has no attribute 'nothing'"):
        _ = net.nothing
    with pytest.raises(AttributeError, match=r"module 'nnxp' .* 'Dense'; nnxp calls it 'Affine'"):
        _ = nnxp.Dense
    with pytest.raises(AttributeError, match="has no attribute 'Afine'; did you mean 'Affine'"):
        _ = nnxp.Afine

    class Broken(nnxp.Sequential):
        @property
        def width(self):
            return self.nothing_at_all

    with pytest.raises(AttributeError, match="nothing_at_all"):
        _ = Broken(nnxp.ReLU()).width


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: nnxp.Affine(10**9, 10**9, rng=0), "7,450,580,604.4 GiB"),
        (lambda: nnxp.Affine(10**12, 10**12, rng=0), "GiB"),
        (lambda: nnxp.TwoLayerNet(10**9, 10**9, 2, rng=0), "7,450,580,604.4 GiB"),
        (lambda: nnxp.BatchNorm(10**15), "29,802,322.4 GiB"),
    ],
)
def test_arrays_that_are_too_large_are_named_with_their_size(make, size):
    with pytest.raises(nnxp.OutOfMemoryError, match=f"(Affine|BatchNorm) does not fit .*{size}"):
        make()


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (nnxp.initializers.normal, r"give (nnxp.initializers.normal\(0.01\)), which makes one$"),
        (np.zeros, r"give (nnxp.initializers.he_normal) or lambda"),
        (lambda: 3, r" or (lambda rng, shape: rng.normal\(0, 0.1, shape\))$"),
    ],
)
def test_initializers_of_other_arguments_are_named_and_the_remedy_works(wrong, remedy):
    with pytest.raises(nnxp.InputError, match="a function of a generator and a shape, got ") as e:
        nnxp.Affine(4, 3, rng=0, initializer=wrong)
    initializer = eval(re.search(remedy, str(e.value))[1], {"nnxp": nnxp})
    assert nnxp.Affine(4, 3, rng=0, initializer=initializer).params["W"].shape == (4, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: trainer().step(X.tolist(), Y), r"step expects an array, got list; .*asarray\(x\)"),
        (
            lambda: nnxp.data.Batches(X, 9, device="cpu", dtype="float32"),
            "expects a Dataset, got",
        ),
        (lambda: nnxp.data.one_hot([[1], [2, 3]], 3), "one_hot expects an array of class numbers"),
        (
            lambda: network()["W1"],
            r"have numbers, got 'W1'; .*.parameters\(\)\['W1'\]",
        ),
        (lambda: network().load_parameters(None), "parameters must be arrays by name, got None"),
        (
            lambda: nnxp.schedules.Chain(nnxp.schedules.Constant(0.1), [3]),
            "schedules must be a",
        ),
        (lambda: nnxp.schedules.Chain([nnxp.schedules.Constant(0.1)], 3), r"must be a .*use \[3\]"),
        (lambda: trainer(metrics="accuracy"), "metrics must be a list, got 'accuracy'$"),
        (lambda: trainer(transforms=print), "got <built-in function print>; give it in a list$"),
        (lambda: trainer(penalty=nnxp.L2), r"make an object: L2\(…\)"),
        (
            lambda: trainer(transforms=[lambda grads: grads]),
            "take parameters and gradients, ",
        ),
        (lambda: nnxp.plots.plot_histories(trainer(), "a.png"), "such as trainer.history, got Tra"),
        (lambda: nnxp.plots.plot_histories([1, 2], "a.png"), r"as trainer.history, got \[1, 2\]"),
        (lambda: nnxp.plots.plot_histories({"a": [1]}, "a.png"), r"as trainer.history, got \[1\]"),
        (lambda: nnxp.plots.plot_histories("ab", "a.png"), "such as trainer.history, got 'ab'"),
        (lambda: nnxp.plots.plot_histories(None, "a.png"), "such as trainer.history, got None"),
        (lambda: network(activation=nnxp.ReLU), "did you mean 'relu'"),
    ],
)
def test_other_wrong_calls_are_named(call, message):
    with pytest.raises(nnxp.InputError, match=message):
        call()


def test_a_first_loss_that_is_infinite_raises_only_nnxps_error():
    own = nnxp.Trainer(network(), nnxp.MeanSquaredError(), nnxp.SGD(0.1))
    with pytest.raises(nnxp.DivergenceError, match="diverged at step 1"):  # warnings are errors
        own.fit([(X, X[:, :3] * 1e30)], epochs=1)


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
