"""ONNX files of PyTorch and scikit-learn are imported, and broken ones give one clear error."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest

import nnxp

# As in test_onnx.py: sums of up to 800 terms in float32.
TOLERANCE = 1e-5


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def assert_close(got, want, tolerance=TOLERANCE):
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


# PyTorch


def torch_models():
    """Return models by name: a module, the shape of its inputs, and nnxp's network."""
    torch = pytest.importorskip("torch")
    from torch import nn
    from torch.nn import functional

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.hidden, self.layer_norm = nn.Linear(64, 8), nn.LayerNorm(8)
            self.drop, self.last = nn.Dropout(0.3), nn.Linear(8, 3)

        def forward(self, x):
            x = functional.max_pool2d(torch.relu(self.norm(self.convolution(x))), 2)
            x = self.layer_norm(self.hidden(x.view(x.size(0), -1)))
            return self.last(self.drop(x + functional.gelu(x)))

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3, padding="same", bias=False)
            self.last = nn.Linear(4, 3)

        def forward(self, x):
            x = functional.elu(functional.avg_pool2d(self.convolution(x / 255.0), 2))
            x = functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)
            return torch.softmax(self.last(x), -1)

    class Channels(nn.Module):
        """Standardizes each channel, and has a mean over the pixels."""

        def __init__(self):
            super().__init__()
            self.convolution, self.last = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4, 1)
            self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
            self.register_buffer("std", torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1))

        def forward(self, x):
            x = functional.softplus(self.convolution((x - self.mean) / self.std))
            return self.last(functional.leaky_relu(x, 0.2).mean((2, 3))).squeeze(1)

    activations = nn.Sequential(
        nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 8), nn.GELU(approximate="tanh"), nn.Linear(8, 8),
        nn.Sigmoid(), nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 2), nn.LogSoftmax(-1),
    )  # fmt: skip
    dense = "Conv2D(1, 4, 3, stride=1, padding=1), ReLU(), MaxPool2D(2, stride=2, padding=0), "
    dense += "Flatten(), Affine(64, 8), LayerNorm(8, epsilon=1e-05), "
    dense += "Residual(GELU(approximate='none')), Affine(8, 3)"
    return {
        "all kinds": (Net(), (1, 8, 8), f"Sequential({dense})"),
        "scaled": (
            Scaled(),
            (3, 8, 8),
            "Sequential(Conv2D(3, 4, 3, stride=1, padding=1), AveragePool2D(2, stride=2, "
            "padding=0), ELU(alpha=1.0), GlobalAveragePool2D(), Affine(4, 3))",
        ),
        "channels": (
            Channels(),
            (3, 9, 9),
            "Sequential(Conv2D(3, 3, 1, stride=1, padding=0), Conv2D(3, 4, 3, stride=2, "
            "padding=0), Softplus(), LeakyReLU(slope=0.2), GlobalAveragePool2D(), Affine(4, 1))",
        ),
        "activations": (
            activations,
            (5,),
            "Sequential(Affine(5, 8), SiLU(), Affine(8, 8), GELU(approximate='tanh'), "
            "Affine(8, 8), Sigmoid(), Affine(8, 8), Tanh(), Affine(8, 2))",
        ),
    }


def torch_export(module, path, shape, **options):
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its exporter is deprecated
        torch.onnx.export(module, (torch.zeros(1, *shape),), path, dynamo=False, **options)


@pytest.mark.interop
@pytest.mark.parametrize("opset", [17, None])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["all kinds", "scaled", "channels", "activations"])
def test_files_of_pytorch_predict_and_train(onnx, tmp_path, name, dynamic, opset):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module, shape, expected = torch_models()[name]
    module.eval()
    options = {"input_names": ["x"], "opset_version": opset}
    if dynamic:
        options["dynamic_axes"] = {"x": {0: "batch"}}
    torch_export(module, tmp_path / "a.onnx", shape, **options)
    network = nnxp.import_onnx(tmp_path / "a.onnx")
    assert repr(network) == expected
    x = random(6, *shape) * (100 if name == "scaled" else 1)
    with torch.no_grad():
        want = module(torch.tensor(x)).numpy()
    if name == "scaled":
        assert network.data_format.scale == 255
        assert_close(network.predict_proba(x), want)
    elif name == "activations":
        assert_close(np.log(network.predict_proba(x)), want)
    else:
        assert network.data_format is None
        got = network.predict(x)
        assert_close(got[:, 0] if want.ndim == 1 else got, want)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(1e-3))
    scale = network.data_format and network.data_format.scale
    labels = np.arange(6) % 2
    outputs = network.output_shape(shape)
    if outputs == (1,):
        trainer = nnxp.Trainer(network, nnxp.SigmoidWithLoss(), nnxp.SGD(1e-3))
    data = nnxp.data.Dataset(x, labels, scale=scale)
    before = {n: y.copy() for n, y in network.parameters().items()}
    trainer.fit(data, epochs=1, batch_size=3, rng=0)
    changed = {n for n, y in network.parameters().items() if (y != before[n]).any()}
    frozen = {"W1", "b1"} if name == "channels" else set()
    assert changed == before.keys() - frozen


@pytest.mark.interop
def test_bytes_as_inputs_are_images(onnx, tmp_path):
    torch = pytest.importorskip("torch")

    class Bytes(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.last = torch.nn.Linear(12, 3)

        def forward(self, x):
            return torch.softmax(self.last((x.float() / 255).flatten(1)), 1)

    module = Bytes()
    x = np.random.default_rng(0).integers(0, 256, (5, 3, 2, 2), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.tensor(x),), tmp_path / "a.onnx", dynamo=False)
    network = nnxp.import_onnx(tmp_path / "a.onnx")
    assert (network.data_format.images, network.data_format.scale) == (True, 255)
    with torch.no_grad():
        assert_close(network.predict_proba(x), module(torch.tensor(x)).numpy())


@pytest.mark.interop
def test_newer_exporter_of_pytorch(onnx, tmp_path):
    pytest.importorskip("onnxscript")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    for name, (module, shape, expected) in torch_models().items():
        module.eval()
        x = random(4, *shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(module, (torch.tensor(x),), dynamo=True, verbose=False)
        program.save(tmp_path / f"{name}.onnx")
        network = nnxp.import_onnx(tmp_path / f"{name}.onnx")
        assert repr(network) == expected, name


# scikit-learn


def words(x):
    return np.array(["low", "middle", "high"])[np.digitize(x[:, 0], [-0.5, 0.5])]


@pytest.mark.interop
@pytest.mark.parametrize("zipmap", [False, True])
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (words, ("high", "low", "middle")),
        (lambda x: np.where(x[:, 0] > 0, "yes", "no"), ("no", "yes")),
        (lambda x: 10 * np.digitize(x[:, 0], [-0.5, 0.5]), (0, 10, 20)),
        (lambda x: (x[:, 0] > 0).astype(int), None),
    ],
)
def test_classifiers_of_scikit_learn(onnx, tmp_path, labels, classes, zipmap):
    to_onnx = pytest.importorskip("skl2onnx").to_onnx
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = random(300, 4) * [1, 10, 0.1, 1] + [0, 5, 0, 0]
    x = x.astype("float32")
    mlp = MLPClassifier([9, 6], "tanh", early_stopping=True, random_state=0)
    pipeline = make_pipeline(StandardScaler(), mlp).fit(x, labels(x))
    model = to_onnx(pipeline, x[:1], options={id(pipeline): {"zipmap": zipmap}})
    onnx.save(model, tmp_path / "a.onnx")
    network = nnxp.import_onnx(tmp_path / "a.onnx")
    assert isinstance(network[0], nnxp.Standardize)
    assert network.data_format.classes == classes
    np.testing.assert_array_equal(network.predict_classes(x), pipeline.predict(x))
    want = pipeline.predict_proba(x)
    got = network.predict_proba(x)
    # scikit-learn computes in float32 too; one output is the probability of the second class.
    assert_close(got, want[:, 1:] if got.shape[1] == 1 else want)
    trainer = nnxp.Trainer(
        network,
        nnxp.SoftmaxWithLoss() if got.shape[1] > 1 else nnxp.SigmoidWithLoss(),
        nnxp.Adam(0.01),
    )
    trainer.fit(nnxp.data.Dataset(x, labels(x)), epochs=20, batch_size=50, rng=0)
    assert trainer.evaluate(nnxp.data.Dataset(x, labels(x))).accuracy > 0.9


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")  # it need not converge here
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_regression_and_several_labels_of_scikit_learn(onnx, tmp_path, dtype):
    to_onnx = pytest.importorskip("skl2onnx").to_onnx
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    x = random(200, 4).astype(dtype)
    sizes = {"hidden_layer_sizes": [9], "max_iter": 20, "random_state": 0}
    model = MLPRegressor(activation="logistic", **sizes).fit(x, x[:, 0] * x[:, 1])
    onnx.save(to_onnx(model, x[:1]), tmp_path / "a.onnx")
    network = nnxp.import_onnx(tmp_path / "a.onnx")
    assert (network.dtype, network.data_format) == (dtype, None)
    assert_close(network.predict(x)[:, 0], model.predict(x))
    labels = (x[:, :3] > 0).astype(int)
    model = MLPClassifier(**sizes).fit(x, labels)
    onnx.save(to_onnx(model, x[:1]), tmp_path / "a.onnx")
    network = nnxp.import_onnx(tmp_path / "a.onnx")
    assert_close(network.predict_proba(x), model.predict_proba(x))
    np.testing.assert_array_equal(network.predict_classes(x), model.predict(x))


# What is not as it should be


@pytest.fixture
def whole(onnx, tmp_path):
    """A file of nnxp, and its model to be changed."""
    train, _ = nnxp.data.load_digits(images=True)
    network = nnxp.Sequential(
        nnxp.Conv2D(1, 3, 3, rng=0), nnxp.BatchNorm(3), nnxp.GELU(), nnxp.MaxPool2D(2),
        nnxp.Flatten(), nnxp.Affine(27, 10, rng=1),
    )  # fmt: skip
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    trainer.fit(train, epochs=1, batch_size=100, rng=0)
    nnxp.export_onnx(network, tmp_path / "a.onnx")
    return tmp_path / "a.onnx", onnx.load(tmp_path / "a.onnx")


def node(model, operator):
    return next(x for x in model.graph.node if x.op_type == operator)


def outside(model, onnx):
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def huge(model, onnx):
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([1 << 40, 1, 3, 3])


def twice(model, onnx):
    model.graph.node.append(model.graph.node[0])


def doubled(model, onnx):
    """A constant is joined with itself sixty times."""
    names = ["W1"]
    for i in range(60):
        names.append(f"twice{i}")
        new = onnx.helper.make_node("Concat", [names[-2]] * 2, [names[-1]], axis=0)
        model.graph.node.insert(i, new)
    node(model, "Conv").input[1] = names[-1]


def circle(model, onnx):
    node(model, "Conv").input[0] = node(model, "Gemm").output[0]


def unknown(model, onnx):
    node(model, "MaxPool").op_type = "LpPool"
    node(model, "Conv").op_type = "ConvTranspose"


def foreign(model, onnx):
    node(model, "MaxPool").domain = "com.example"


def old(model, onnx):
    model.opset_import[0].version = 9


def infinite(model, onnx):
    tensor = next(x for x in model.graph.initializer if x.name == "b2")
    tensor.raw_data = np.full(10, np.inf, "float32").tobytes()


def grouped(model, onnx):
    node(model, "Conv").attribute.append(onnx.helper.make_attribute("group", 3))


def other_input(model, onnx):
    extra = onnx.helper.make_tensor_value_info("second", 1, ["batch", 4])
    model.graph.input.append(extra)


def other_metadata(model, onnx):
    entry = next(x for x in model.metadata_props if x.key == "nnxp")
    entry.value = entry.value.replace('"softmax"', '"sigmoid"')


def no_metadata(model, onnx):
    next(x for x in model.metadata_props if x.key == "nnxp").value = "{}"


def uneven(model, onnx):
    pads = next(x for x in node(model, "MaxPool").attribute if x.name == "pads")
    pads.ints[:] = [0, 0, 1, 1]


def branched(model, onnx):
    """The network's outputs are added to other outputs."""
    gemm = node(model, "Gemm")
    model.graph.node.insert(
        len(model.graph.node) - 1, onnx.helper.make_node("Gemm", list(gemm.input), ["other"])
    )
    added = onnx.helper.make_node("Add", [gemm.output[0], "other"], ["sum"])
    model.graph.node.insert(len(model.graph.node) - 1, added)
    node(model, "Softmax").input[0] = "sum"


CHANGES = {
    outside: "its array '.*' is in another file; make one file: onnx.save",
    huge: "is damaged, or not an ONNX file",
    twice: "two operators have the output",
    doubled: "would have .* numbers, more than the file",
    circle: "is damaged, or not an ONNX file",
    unknown: r"no layer for its operators ConvTranspose \(node .*, LpPool \(node 'maxpool_",
    foreign: "no layer for its operators MaxPool",
    old: r"is of opset 9, and opsets 13 to \d+ are read; convert it with onnx.version_conv",
    infinite: "its 'b2' holds a number that is not finite",
    grouped: r"Conv \(node 'conv_3'\) has group=3, and nnxp computes 1",
    other_input: "it has 2 inputs; a network of nnxp has one",
    other_metadata: "its metadata of nnxp do not match its graph; remove the entry 'nnxp'",
    no_metadata: "is damaged, or not an ONNX file .KeyError",
    uneven: r"has padding \[0, 0, 1, 1\], and nnxp pads both sides equally",
    branched: "are used beside those of other layers; nnxp has layers in a row",
}


@pytest.mark.interop
@pytest.mark.parametrize("change", CHANGES, ids=lambda x: x.__name__)
def test_what_cannot_be_imported_is_one_clear_error(onnx, whole, change):
    path, model = whole
    change(model, onnx)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(nnxp.CheckpointError, match=CHANGES[change]) as caught:
        nnxp.import_onnx(path)
    assert str(caught.value).startswith(f"{path} ")


@pytest.mark.interop
def test_the_remedy_for_weights_in_another_file_works(onnx, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, model = whole
    want = nnxp.import_onnx(path).parameters()
    onnx.save(model, "network.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(nnxp.CheckpointError, match="one file: onnx.save") as caught:
        nnxp.import_onnx("network.onnx")
    exec(str(caught.value).partition("one file: ")[2], {"onnx": onnx})
    np.testing.assert_equal(dict(nnxp.import_onnx("one.onnx").parameters()), dict(want))


@pytest.mark.interop
def test_an_imported_network_is_saved_and_loaded(whole, tmp_path):
    pytest.importorskip("safetensors")
    network = nnxp.import_onnx(whole[0])
    network.save(tmp_path / "a.safetensors")
    loaded = nnxp.load_network(tmp_path / "a.safetensors")
    assert (repr(loaded), loaded.data_format) == (repr(network), network.data_format)
    _, test = nnxp.data.load_digits(images=True)
    np.testing.assert_array_equal(loaded.predict(test.inputs), network.predict(test.inputs))


@pytest.mark.interop
def test_no_files(onnx, tmp_path):
    (tmp_path / "text.onnx").write_text("this is no ONNX file" * 100)
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, words in {
        "none.onnx": r"cannot be read \(No such file", ".": "is not a file",
        "text.onnx": "is not an ONNX file, or is damaged", "empty.onnx": "it has no graph",
    }.items():  # fmt: skip
        with pytest.raises(nnxp.CheckpointError, match=words):
            nnxp.import_onnx(tmp_path / name)


@pytest.mark.interop
@pytest.mark.parametrize("seeds", [range(150), pytest.param(range(6000), marks=pytest.mark.long)])
def test_damaged_files_load_or_give_a_named_error(onnx, whole, seeds):
    path, _ = whole
    data = path.read_bytes()
    refused = 0
    for seed in seeds:
        rng = np.random.default_rng(seed)
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 6)):
            i = int(rng.integers(len(damaged)))
            match rng.integers(4):
                case 0:
                    damaged[i] = int(rng.integers(256))
                case 1:
                    del damaged[i : i + int(rng.integers(1, 40))]
                case 2:
                    damaged[i:i] = damaged[: int(rng.integers(1, 60))]
                case 3:
                    damaged[i] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            network = nnxp.import_onnx(path)
        except (nnxp.CheckpointError, nnxp.InputError) as error:
            refused += 1
            assert len(str(error)) < 1000
        else:
            assert all(np.isfinite(x).all() for x in network.parameters().values())
    assert 0 < refused < len(seeds)


@pytest.mark.interop
def test_a_file_of_another_program_may_leave_things_open(onnx, tmp_path):
    helper = onnx.helper
    conv = onnx.numpy_helper.from_array(random(2, 3, 3, 3), "W")
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "W"], ["y"]),
            helper.make_node("Relu", ["y"], ["z"]),
        ],
        "g",
        [info("x", 1, ["n", 3, "h", "w"])],
        [info("y", 1, None), info("z", 1, None)],
        [conv],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "a")
    path = tmp_path / "a"
    with pytest.raises(
        nnxp.InputError, match=r"of its inputs; give .* nnxp.import_onnx\(path, shape=\(3"
    ):
        nnxp.import_onnx(path, shape=None, output="z")
    with pytest.raises(nnxp.CheckpointError, match=r"shape \(3, any, any\), not \(1, 5, 5\)"):
        nnxp.import_onnx(path, shape=(1, 5, 5), output="z")
    with pytest.raises(nnxp.CheckpointError, match=r"2 outputs; choose one: .*output='y'\), or"):
        nnxp.import_onnx(path, shape=(3, 5, 5))
    with pytest.raises(nnxp.CheckpointError, match="has no output 'w'; choose y, z"):
        nnxp.import_onnx(path, shape=(3, 5, 5), output="w")
    network = nnxp.import_onnx(path, shape=(3, 5, 5), output="y")
    assert repr(network) == "Sequential(Conv2D(3, 2, 3, stride=1, padding=0))"
    assert len(nnxp.import_onnx(path, shape=(3, 5, 5), output="z")) == 2
    strict = nnxp.import_onnx(path, shape=(3, 5, 5), output="y", device="strict:device1")
    assert strict.device == nnxp.device("strict:device1")


def test_without_onnx_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(nnxp.MissingExtraError, match=r"^onnx is not installed; .*install.*onnx"):
        nnxp.import_onnx(tmp_path / "a.onnx")
    with pytest.raises(nnxp.MissingExtraError, match=r"^onnx is not installed; .*install.*onnx"):
        nnxp.export_onnx(nnxp.mlp([4, 2], rng=0), tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()
