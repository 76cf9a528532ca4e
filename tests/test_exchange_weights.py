"""Weights from and to PyTorch and Keras: both libraries predict what nnxp predicts."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import nnxp
from nnxp.exchange import load_keras, load_torch, to_keras, to_torch

# In float32, u = 6e-8; sums of n <= 800 terms differ by n u of their magnitudes at most (Higham
# 2002, eq. 3.5), and usually by sqrt(n) u = 1.7e-6.
TOLERANCE = 1e-5


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def assert_close(got, want):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max()


def vary(network, seed=1):
    """Give all arrays random numbers, so that an exchange of two of them is seen."""
    rng = np.random.default_rng(seed)
    for x in network.parameters().values():
        x[...] = rng.normal(size=x.shape)
    for x in network.states().values():
        x[...] = rng.uniform(0.5, 2, x.shape)
    return network


def image_network(seed=0, epsilon=1e-5):
    draw = {"rng": seed}
    return vary(
        nnxp.Sequential(
            nnxp.Conv2D(3, 4, (3, 2), padding=(1, 0), **draw),
            nnxp.BatchNorm(4, epsilon=epsilon),
            nnxp.ReLU(),
            nnxp.LayerNorm((4, 8, 7), epsilon=epsilon),
            nnxp.Sequential(nnxp.MaxPool2D(2), nnxp.Flatten(), nnxp.BatchNorm(48, epsilon=epsilon)),
            nnxp.LayerNorm(48, epsilon=epsilon),
            nnxp.Affine(48, 6, **draw),
            nnxp.Residual([nnxp.Affine(6, 6, **draw), nnxp.Tanh()]),
            nnxp.LayerNorm(6, epsilon=epsilon),
            nnxp.Affine(6, 2, **draw),
        ),
        seed + 1,
    )


def torch_model():
    torch = pytest.importorskip("torch")
    from torch import nn

    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    model = nn.Sequential(
        nn.Conv2d(3, 4, (3, 2), padding=(1, 0)), nn.BatchNorm2d(4), nn.ReLU(),
        nn.LayerNorm((4, 8, 7)),
        nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.BatchNorm1d(48)),
        nn.LayerNorm(48), nn.Linear(48, 6), Residual(nn.Linear(6, 6), nn.Tanh()),
        nn.LayerNorm(6), nn.Linear(6, 2),
    )  # fmt: skip
    with torch.no_grad():
        for i, x in enumerate(model.state_dict().values()):
            if x.ndim:
                x.copy_(torch.rand(x.shape, generator=torch.Generator().manual_seed(i)) + 0.5)
    return model.eval()


def torch_predict(model, x):
    """Return what a model of PyTorch, or of Keras on PyTorch, computes."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.tensor(x)).numpy()


@pytest.mark.interop
def test_pytorch_both_ways():
    model, network, x = torch_model(), image_network(), random(5, 3, 8, 8)
    load_torch(network, model.state_dict())
    assert_close(network.forward(x), torch_predict(model, x))
    network = image_network(3)
    for state in (to_torch(network), to_torch(network, model.state_dict())):
        assert list(state) == list(model.state_dict()) or set(state) == set(model.state_dict())
        other = torch_model()
        other.load_state_dict(state)
        assert_close(torch_predict(other, x), network.forward(x))


@pytest.mark.interop
def test_modules_of_pytorch_with_other_names_and_without_a_bias():
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(4, 5, bias=False)
            self.norm = torch.nn.BatchNorm1d(5, affine=False)
            self.last = torch.nn.Linear(5, 2)

        def forward(self, x):
            return self.last(self.norm(self.first(x)))

    torch.manual_seed(0)
    model, x = Net().eval(), random(6, 4)
    layers = [nnxp.Affine(4, 5, rng=0), nnxp.BatchNorm(5), nnxp.Affine(5, 2, rng=0)]
    network = vary(nnxp.Sequential(layers))
    with pytest.raises(nnxp.InputError, match=r"'first' has no bias, and Affine\(4, 5\)"):
        to_torch(network, model.state_dict())
    load_torch(network, model.state_dict())
    assert_close(network.forward(x), torch_predict(model, x))
    network[2].params["W"][...] *= 2
    model.load_state_dict(to_torch(network, model.state_dict()))
    assert_close(network.forward(x), torch_predict(model, x))


def keras_model():
    keras = pytest.importorskip("keras")
    layers = keras.layers
    keras.utils.set_random_seed(0)
    epsilon = {"epsilon": 1e-5}
    inputs = keras.Input((8, 8, 3))
    x = layers.ZeroPadding2D((1, 0))(inputs)
    x = layers.ReLU()(layers.BatchNormalization(**epsilon)(layers.Conv2D(4, (3, 2))(x)))
    x = layers.LayerNormalization(axis=[1, 2, 3], **epsilon)(x)
    x = layers.BatchNormalization(**epsilon)(layers.Flatten()(layers.MaxPooling2D(2)(x)))
    x = layers.Dense(6)(layers.LayerNormalization(**epsilon)(x))
    x = x + layers.Dense(6, activation="tanh")(x)
    x = layers.Dense(2)(layers.LayerNormalization(**epsilon)(x))
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 2, w.shape) for w in model.weights])
    return model


@pytest.mark.interop
def test_keras_both_ways():
    model, network, x = keras_model(), image_network(), random(5, 3, 8, 8)
    last = x.transpose(0, 2, 3, 1)
    load_keras(network, model.weights)
    assert_close(network.forward(x), torch_predict(model, last))
    network = image_network(3)
    for weights in (to_keras(network), to_keras(network, model.weights)):
        other = keras_model()
        other.set_weights(weights)
        assert_close(torch_predict(other, last), network.forward(x))


@pytest.mark.interop
def test_keras_model_that_begins_with_flatten():
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((5, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2, use_bias=False)]
    )
    network, x = nnxp.Sequential(nnxp.Flatten(), nnxp.Affine(60, 2, rng=0)), random(6, 3, 5, 4)
    with pytest.raises(nnxp.InputError, match=r"give the shape of one example, such as"):
        load_keras(network, model.weights)
    load_keras(network, model.weights, shape=(3, 5, 4))
    assert_close(network.forward(x), torch_predict(model, x.transpose(0, 2, 3, 1)))
    (kernel,) = to_keras(network, model.weights, shape=(3, 5, 4))
    np.testing.assert_array_equal(kernel, model.weights[0].value.detach().numpy())


# Without other libraries: a state may have arrays of NumPy, and variables are anything with a path.


def arrays_of(network):
    """Return a state as PyTorch would name and shape it, with arrays of NumPy."""
    names = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias"}
    state = {}
    for i, layer in enumerate(network.leaves()):
        if isinstance(layer, nnxp.Dropout):
            continue
        for name, x in (layer.params | layer.state).items():
            is_matrix = isinstance(layer, nnxp.Affine)
            state[f"{i}.{names.get(name, name)}"] = (x.T if is_matrix else x).copy()
    return state


def small(seed, dtype="float32"):
    network = nnxp.Sequential(
        nnxp.Affine(3, 4, rng=0, dtype=dtype), nnxp.BatchNorm(4, dtype=dtype),
        nnxp.Dropout(0.5, rng=0, dtype=dtype), nnxp.Affine(4, 2, rng=0, dtype=dtype),
    )  # fmt: skip
    for x in network.parameters().values():
        x[...] = random(*x.shape, seed=seed)
    return network


def test_a_state_of_arrays_is_loaded_in_the_dtype_of_the_network_and_copied():
    one, other, x = small(0), small(1, "float64"), random(5, 3)
    state = arrays_of(one) | {"1.num_batches_tracked": np.array(7)}
    before = {n: y.copy() for n, y in other.states().items() if n.startswith(("seed", "counter"))}
    load_torch(other, state)
    np.testing.assert_allclose(other.forward(x.astype("float64")), one.forward(x), rtol=1e-5)
    assert other.parameters()["W1"].dtype == "float64"
    state["0.weight"][...] = 0
    assert other.parameters()["W1"].all()
    assert all((other.states()[n] == y).all() for n, y in before.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("1.running_mean"), r"BatchNorm\(.* takes weight, .*; '1' has"),
        (lambda s: [s.pop("3.weight"), s.pop("3.bias")], "has 3 layers .*; the other model has 2"),
        (lambda s: s.update({"0.weight": s["0.weight"].T}), r"weight of shape \(4, 3\), .* \(3, 4"),
        (lambda s: s.update({"0.weight_g": s["0.weight"]}), "'0' has weight, bias, weight_g"),
        (lambda s: s["0.bias"].fill(np.nan), "0.bias holds a number that is not finite"),
        (lambda s: s.update({"0.bias": np.array(list("abcd"))}), "0.bias must be an array of numb"),
    ],
)
def test_states_that_do_not_suit_change_nothing(change, words):
    network = small(0)
    state = arrays_of(small(1))
    change(state)
    before = {n: x.copy() for n, x in network.parameters().items()}
    with pytest.raises(nnxp.InputError, match=words):
        load_torch(network, state)
    for name, x in network.parameters().items():
        np.testing.assert_array_equal(x, before[name])


def test_what_has_no_counterpart_is_named():
    scaled = nnxp.Sequential(nnxp.Standardize(3), nnxp.Affine(3, 2, rng=0))
    with pytest.raises(nnxp.InputError, match=r"Standardize\(features=3\) has arrays .* before"):
        to_keras(scaled)
    arrays = to_keras(nnxp.Sequential(scaled[1:]))  # the remedy
    np.testing.assert_array_equal(arrays[0], scaled.parameters()["W1"])
    images = nnxp.Conv2D(3, 2, 3, rng=0)
    rows = [nnxp.Flatten(), nnxp.Residual([nnxp.Affine(72, 72, rng=0)])]
    with pytest.raises(nnxp.InputError, match="adds rows of flattened images"):
        to_keras(nnxp.Sequential(images, *rows))
    with pytest.raises(nnxp.InputError, match="over other axes than Keras"):
        to_keras(nnxp.Sequential(nnxp.Conv2D(3, 2, 3, rng=0), nnxp.LayerNorm(6)))
    with pytest.raises(nnxp.InputError, match="reorders the numbers of images"):
        to_keras(nnxp.Sequential(nnxp.Reshape((2, 3, 3)), nnxp.Conv2D(2, 2, 3, rng=0)))
    for call in (load_torch, load_keras):
        with pytest.raises(nnxp.InputError, match=f"{call.__name__} expects a network, got"):
            call(nnxp.ReLU(), {})
    network = nnxp.Sequential(nnxp.Affine(3, 2, rng=0))
    with pytest.raises(nnxp.InputError, match="a state is a mapping, model.state_dict"):
        load_torch(network, [1])
    with pytest.raises(nnxp.InputError, match="variables of Keras, model.weights, got array"):
        load_keras(network, [np.zeros((3, 2))])


def test_without_pytorch_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        nnxp.MissingExtraError, match=r"^torch is not installed; .*install.* torch$"
    ):
        to_torch(nnxp.Sequential(nnxp.Affine(3, 2, rng=0)))
