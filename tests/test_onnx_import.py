"""ONNX files of PyTorch and scikit-learn are imported, and broken ones give one clear error."""

from __future__ import annotations

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
    """Return models by name: a module, the shape of its inputs, and what it is in nnxp."""
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
