"""ONNX: exports agree with onnx's reference and with ONNX Runtime, imports with their exporters."""

from __future__ import annotations

import contextlib
import json
import math

import numpy as np
import pytest
from tables import LAYERS, layers

import nnxp
from nnxp.exchange import register_onnx

pytestmark = pytest.mark.interop

# In float32, u = 6e-8; a sum of n terms is within n u of the exact one, relatively to the sum of
# the magnitudes (Higham 2002, eq. 3.5). The networks below have up to 12 layers and sums of up to
# 800 terms, whose errors have both signs and so are usually below sqrt(n) u = 1.7e-6. Outputs are
# compared relatively to the largest one.
TOLERANCE = 1e-5


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx")


def run(onnx, path, x, reference=True):
    """Return what ONNX Runtime and onnx's reference compute, after a full check."""
    runtime = pytest.importorskip("onnxruntime")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {"input": x}
    results = [session.run(None, feed)[0]]
    return [*results, evaluator(model).run(None, feed)[0]] if reference else results


def assert_close(got, want, tolerance=TOLERANCE):
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    assert np.abs(got - want).max() <= tolerance * max(np.abs(want).max(), 1e-3)


def assert_agree(onnx, path, x, want, **options):
    for got in run(onnx, path, x, **options):
        assert_close(got, want)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@layers
def test_every_layer_is_computed_by_others_and_comes_back(onnx, tmp_path, make, inputs, outputs):
    network = nnxp.Sequential([make("cpu", "float32")])
    path = tmp_path / "a.onnx"
    nnxp.export_onnx(network, path, shape=inputs[1:])
    back = nnxp.import_onnx(path)
    for batch in (1, 7):
        x = random(batch, *inputs[1:])
        want = network.forward(x)
        assert_agree(onnx, path, x, want)
        np.testing.assert_array_equal(back.forward(x), want)
    lost = {"Dropout", "ElasticDistortion", "RandomFlip", "RandomRotation", "RandomShift"}
    kind = type(network[0])
    if kind is nnxp.Sequential:
        assert repr(back.layers) == repr(network[0].layers)
    elif kind is nnxp.Reshape:
        assert repr(back) == "Sequential(Reshape((2, 3)))"
    else:
        kept = "Sequential(Identity())" if kind.__name__ in lost else repr(network)
        assert repr(back) == kept


def test_table_has_every_layer(onnx):
    from nnxp.exchange.onnx_writing import _exports

    own = {kind for kind in _exports if kind.__module__.startswith("nnxp.")}
    assert {kind.__name__ for kind in own} == {name.partition(",")[0] for name in LAYERS}


def test_files_name_their_versions_and_have_any_batch(onnx, tmp_path):
    nnxp.export_onnx(nnxp.mlp([4, 3, 2], rng=0), tmp_path / "a.onnx")
    model = onnx.load(tmp_path / "a.onnx")
    assert (model.ir_version, model.producer_name) == (8, "nnxp")
    assert [(x.domain, x.version) for x in model.opset_import] == [("", 17)]
    (given,), (result,) = model.graph.input, model.graph.output
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ["batch", 4]
    assert [d.dim_param or d.dim_value for d in result.type.tensor_type.shape.dim] == ["batch", 2]
    assert [x.name for x in model.graph.initializer] == ["W1", "b1", "W2", "b2"]


def trained(network, loss, data, epochs=2):
    trainer = nnxp.Trainer(network, loss, nnxp.Adam(0.01))
    trainer.fit(data, epochs=epochs, batch_size=50, rng=0)
    return network


def digits(images=False, names=False):
    train, test = nnxp.data.load_digits(images=images)
    if names:
        words = np.array([f"a {n}" for n in range(10)])
        train = nnxp.data.Dataset(train.inputs, words[train.labels])
    return train, test.inputs


def labels_of(table):
    return np.where(table[:, 0] > 0, "yes", "no")


def table_network():
    table = random(200, 3) * [1, 50, 0.1] + [0, 100, -1]
    network = nnxp.Sequential([nnxp.Standardize(), *nnxp.mlp([3, 8, 1], rng=0, activation="gelu")])
    data = nnxp.data.Dataset(table.astype("float32"), labels_of(table))
    return trained(network, nnxp.SigmoidWithLoss(), data), data.inputs


def lenet():
    train, images = digits(images=True, names=True)
    network = nnxp.lenet(10, image=(1, 8, 8), padding=2, rng=0, batch_norm=True, dropout=0.2)
    network = nnxp.Sequential([nnxp.RandomShift(1, rng=1), *network])
    return trained(network, nnxp.SoftmaxWithLoss(), train, 1), images


def rows_of_images():
    train, rows = digits()
    return trained(nnxp.mlp([64, 20, 10], rng=0), nnxp.SoftmaxWithLoss(), train), rows


def many_labels():
    x = random(100, 5)
    data = nnxp.data.Dataset(x, (x[:, :3] > 0).astype("int64"))
    return trained(nnxp.mlp([5, 8, 3], rng=0), nnxp.SigmoidWithLoss(), data), x


def regression(loss):
    def make():
        x = 40 * random(100, 5)
        data = nnxp.data.Dataset(x, x @ random(5, 2, seed=1), scale=40.0)
        return trained(nnxp.mlp([5, 8, 2], rng=0, activation="silu"), loss, data), x

    return make


HEADS = {
    "two classes, standardized": table_network,
    "classes of images": lenet,
    "classes of rows of bytes": rows_of_images,
    "several labels": many_labels,
    "squared error, scaled": regression(nnxp.MeanSquaredError()),
    "Huber": regression(nnxp.Huber()),
    "absolute error": regression(nnxp.AbsoluteError()),
}


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_trained_networks_with_scale_head_and_classes(onnx, tmp_path, make):
    network, x = make()
    path = tmp_path / "a.onnx"
    nnxp.export_onnx(network, path)
    known, back = network.data_format, nnxp.import_onnx(path)
    want = network.predict(x) if known.probabilities is None else network.predict_proba(x)
    assert_agree(onnx, path, x, want)
    assert back.data_format == known
    np.testing.assert_array_equal(back.predict(x), network.predict(x))
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    if known.probabilities is not None:
        np.testing.assert_array_equal(back.predict_classes(x), network.predict_classes(x))
    classes = None if known.classes is None else list(known.classes)
    assert json.loads(metadata.get("classes", "null")) == classes


def test_float64_is_exported_in_float32(onnx, tmp_path):
    network = nnxp.lenet(3, image=(1, 8, 8), padding=2, rng=0, dtype="float64")
    nnxp.export_onnx(network, tmp_path / "a.onnx", shape=(1, 8, 8))
    x = random(5, 1, 8, 8)
    want = network.forward(x.astype("float64")).astype("float32")
    assert_agree(onnx, tmp_path / "a.onnx", x, want)


def test_a_network_on_another_device_gives_the_same_file(onnx, tmp_path):
    network = nnxp.Sequential([nnxp.Affine(4, 3, rng=0), nnxp.BatchNorm(3), nnxp.Tanh()])
    nnxp.export_onnx(network, tmp_path / "a.onnx")
    nnxp.export_onnx(network.to("strict:device1"), tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_two_standardizations_come_back_as_two(onnx, tmp_path):
    rng = np.random.default_rng(0)
    network = nnxp.Sequential([adapted(rng, 3), adapted(rng, 3), nnxp.Affine(3, 2, rng=0)])
    nnxp.export_onnx(network, tmp_path / "a.onnx")
    back = nnxp.import_onnx(tmp_path / "a.onnx")
    assert repr(back) == repr(network)
    x = random(5, 3)
    np.testing.assert_array_equal(back.forward(x), network.forward(x))


class Swish(nnxp.Layer):
    def forward(self, x, training=False):
        return x / (1 + np.exp(-3 * x))


class Learned(nnxp.Layer):
    def __init__(self):
        self.device, self.dtype = "cpu", "float32"
        self.params["slopes"] = np.full(3, 0.5, "float32")

    def forward(self, x, training=False):
        return x * self.params["slopes"]


def test_layers_without_an_export_are_named_before_anything_is_written(onnx, tmp_path):
    network = nnxp.Sequential([nnxp.Affine(3, 3, rng=0), nnxp.Residual([Swish()]), Learned()])
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")
    with pytest.raises(
        nnxp.InputError, match=r"export Learned, Swish to ONNX; register a function: nnxp\.exch"
    ):
        nnxp.export_onnx(network, path)
    assert path.read_bytes() == b"old"


def test_registered_layers_are_exported(onnx, tmp_path, monkeypatch):
    from nnxp.exchange import onnx_writing

    monkeypatch.setattr(onnx_writing, "_exports", dict(onnx_writing._exports))
    register_onnx(
        Swish,
        lambda layer, graph, x: graph.add(
            "Mul", x, graph.add("Sigmoid", graph.add("Mul", x, graph.constant(3.0)))
        ),
    )
    register_onnx(
        Learned, lambda layer, graph, x: graph.add("Mul", x, graph.constant(layer.params["slopes"]))
    )
    network = nnxp.Sequential([Swish(), nnxp.Residual([Swish()]), Learned()])
    nnxp.export_onnx(network, tmp_path / "a.onnx", shape=(3,))
    x = random(5, 3)
    assert_agree(onnx, tmp_path / "a.onnx", x, network.forward(x))
    names = [x.name for x in onnx.load(tmp_path / "a.onnx").graph.initializer]
    assert "slopes1" in names
    register_onnx(Swish, lambda layer, graph, x: graph.add("NoSuchOperator", x))
    (tmp_path / "a.onnx").unlink()
    with pytest.raises(
        nnxp.InputError, match="not give a valid graph: No Op registered for NoSuchOp"
    ):
        nnxp.export_onnx(network, tmp_path / "a.onnx", shape=(3,))
    assert not list(tmp_path.iterdir())


def test_another_forward_is_not_exported_as_that_of_the_base_class(onnx, tmp_path):
    class Same(nnxp.Tanh):
        pass

    class Twice(nnxp.Tanh):
        def forward(self, x, training=False):
            return 2 * super().forward(x, training)

    nnxp.export_onnx(nnxp.Sequential([Same()]), tmp_path / "a.onnx", shape=(3,))
    replaced = nnxp.Tanh()
    replaced.forward = lambda x, training=False: x
    for layer in (Twice(), replaced):
        with pytest.raises(nnxp.InputError, match="nnxp cannot export"):
            nnxp.export_onnx(nnxp.Sequential([layer]), tmp_path / "a.onnx", shape=(3,))


def test_exports_that_cannot_be(onnx, tmp_path):
    path = tmp_path / "a.onnx"
    with pytest.raises(nnxp.InputError, match="the shape of one example: nnxp.export_onnx"):
        nnxp.export_onnx(nnxp.lenet(rng=0), path)
    with pytest.raises(nnxp.InputError, match="Affine expects inputs of shape"):
        nnxp.export_onnx(nnxp.mlp([4, 2], rng=0), path, shape=(5,))
    with pytest.raises(nnxp.InputError, match="has no statistics yet"):
        nnxp.export_onnx(nnxp.Sequential([nnxp.Standardize()]), path, shape=(5,))
    with pytest.raises(nnxp.InputError, match="expects a network, got ReLU"):
        nnxp.export_onnx(nnxp.ReLU(), path)
    with pytest.raises(nnxp.InputError, match="register_onnx expects a subclass"):
        register_onnx(Swish(), print)
    network = nnxp.mlp([4, 2], rng=0)
    with pytest.raises(nnxp.CheckpointError, match="cannot be written"):
        nnxp.export_onnx(network, tmp_path / "none" / "a.onnx")
    network.parameters()["W1"][0, 0] = np.nan
    with pytest.raises(nnxp.DivergenceError, match="W1 holds a number that is not finite"):
        nnxp.export_onnx(network, path)
    assert not list(tmp_path.iterdir())


# Random networks


ELEMENTWISE = [
    nnxp.ELU, nnxp.GELU, lambda: nnxp.GELU("tanh"), nnxp.Identity, nnxp.LeakyReLU, nnxp.ReLU,
    nnxp.Sigmoid, nnxp.SiLU, nnxp.Softplus, nnxp.Tanh,
]  # fmt: skip


def random_layer(rng, shape, depth):
    """Return a random layer that takes examples of a shape."""
    draw = {"rng": int(rng.integers(100))}
    every = [
        ELEMENTWISE[int(rng.integers(len(ELEMENTWISE)))],
        lambda: nnxp.Dropout(0.3, **draw),
        lambda: nnxp.LayerNorm(shape if rng.random() < 0.5 else shape[-1], epsilon=0.1),
        nnxp.Flatten,
        lambda: nnxp.Reshape((-1, *shape[1:])),
        nnxp.Softmax,
    ]
    if depth < 3:
        every.append(lambda: nnxp.Sequential(random_layers(rng, shape, 2, depth + 1)))
        every.append(lambda: random_residual(rng, shape, depth))
    rows = [
        lambda: nnxp.Affine(shape[0], int(rng.integers(1, 9)), **draw),
        lambda: nnxp.Reshape((shape[0], 1, 1)),
        lambda: nnxp.BatchNorm(shape[0], epsilon=0.1, momentum=0.3),
        lambda: adapted(rng, shape[0]),
    ]
    window = [int(rng.integers(1, min(n, 3) + 1)) for n in shape[-2:]] if len(shape) == 3 else []
    options = {"stride": int(rng.integers(1, 3)), "padding": tuple(n // 2 for n in window)}
    images = [
        lambda: nnxp.Conv2D(shape[0], int(rng.integers(1, 5)), tuple(window), **draw, **options),
        lambda: nnxp.MaxPool2D(tuple(window), **options),
        lambda: nnxp.AveragePool2D(tuple(window), **options),
        lambda: nnxp.BatchNorm(shape[0], epsilon=0.1),
        nnxp.GlobalAveragePool2D,
        lambda: nnxp.RandomShift(1, **draw),
        lambda: nnxp.RandomFlip(**draw),
        lambda: nnxp.RandomRotation(5, **draw),
        lambda: nnxp.ElasticDistortion(1.0, 1.0, **draw),
    ]
    known = every + (rows if len(shape) == 1 else images)
    return known[int(rng.integers(len(known)))]()


def adapted(rng, features):
    layer = nnxp.Standardize()
    layer.adapt(rng.normal(1, 2, (20, features)))
    return layer


def random_layers(rng, shape, most, depth=0):
    found = []
    for _ in range(rng.integers(1, most + 1)):
        layer = random_layer(rng, shape, depth)
        with contextlib.suppress(nnxp.InputError):  # of images too small to shift
            shape = layer.output_shape(shape)
            found.append(layer)
    return found or [nnxp.Identity()]


def random_residual(rng, shape, depth):
    layers = random_layers(rng, shape, 2, depth + 1)
    end = nnxp.Sequential(layers).output_shape(shape)
    if end != shape:
        layers += [nnxp.Flatten(), nnxp.Affine(math.prod(end), math.prod(shape), rng=0)]
        layers += [nnxp.Reshape(shape)]
    return nnxp.Residual(layers)


def vary(rng, network):
    """Give parameters and statistics random numbers, whose effects are seen."""
    for name, x in network.parameters().items():
        if name.rpartition(".")[2].startswith(("gamma", "beta", "b")):
            x[...] = rng.normal(size=x.shape) + name.startswith("gamma")
    for name, x in network.states().items():
        if "running" in name:
            x[...] = rng.uniform(0.5, 2, x.shape)


def random_network(seed):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 9)),)
    if rng.random() < 0.6:
        shape = tuple(int(n) for n in rng.integers(1, 8, 3))
    network = nnxp.Sequential(random_layers(rng, shape, 8))
    vary(rng, network)
    return network, shape


@pytest.mark.parametrize("seeds", [range(15), pytest.param(range(15, 200), marks=pytest.mark.long)])
def test_random_networks_are_computed_by_others_and_come_back(onnx, tmp_path, seeds):
    kinds = set()
    for seed in seeds:
        network, shape = random_network(seed)
        kinds |= {type(layer).__name__ for layer in network.all_layers()}
        path = tmp_path / "a.onnx"
        nnxp.export_onnx(network, path, shape=shape)
        back = nnxp.import_onnx(path)
        x = random(4, *shape, seed=seed)
        want = network.forward(x)
        # onnx's reference cannot compute all maxima with padding (onnx 1.23.2).
        pools = [x for x in network.all_layers() if isinstance(x, nnxp.MaxPool2D)]
        try:
            assert_agree(onnx, path, x, want, reference=not pools)
            np.testing.assert_array_equal(back.forward(x), want)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {network!r}, {back!r}") from error
    if len(seeds) > 100:
        assert kinds == {name.partition(",")[0] for name in LAYERS}
