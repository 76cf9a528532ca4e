"""Gradients of layers and losses against differences, PyTorch's autograd and JAX's.

The automatic derivatives are those of the very same forward code, run on their arrays.
"""

from __future__ import annotations

import numpy as np
import pytest
from tables import LAYERS, LOSSES

import nnxp

pytestmark = pytest.mark.interop


def scalar_layer(make, outputs):
    """Return layer and function (x, params) → one number, a weighted sum of the outputs."""
    weights = np.random.default_rng(5).normal(size=outputs)

    def judge_on(device):
        layer = make(device, "float64")
        w = device.asarray(weights)
        states = [(leaf, dict(leaf.state)) for leaf in layer.leaves()]

        def value(x, params):
            layer.params.update(params)
            for leaf, state in states:  # so that dropout repeats its mask
                leaf.state.update(state)
            return device.xp.sum(layer.forward(x, training=True) * w)

        return layer, value

    return judge_on, weights


def by_backward(judge_on, weights, x):
    layer, _ = judge_on(nnxp.device("cpu"))
    layer.forward(x, training=True)
    return {"inputs": layer.backward(weights), **layer.grads}


def by_differences(judge_on, x):
    layer, value = judge_on(nnxp.device("cpu"))
    params = dict(layer.params)
    found = {"inputs": nnxp.numerical_gradient(lambda x: value(x, params), x)}
    for name, p in params.items():
        found[name] = nnxp.numerical_gradient(lambda p, name=name: value(x, params | {name: p}), p)
    return found


def by_torch(judge_on, x):
    device = nnxp.device("torch:cpu")
    layer, value = judge_on(device)
    leaves = {"inputs": device.asarray(x)} | dict(layer.params)
    for leaf in leaves.values():
        leaf.requires_grad_(True)
    value(leaves["inputs"], {k: v for k, v in leaves.items() if k != "inputs"}).backward()
    return {name: leaf.grad.numpy() for name, leaf in leaves.items()}


def by_jax(judge_on, x):
    import jax

    device = nnxp.device("jax:cpu")
    layer, value = judge_on(device)
    dx, dparams = jax.grad(value, argnums=(0, 1))(device.asarray(x), dict(layer.params))
    return {name: np.asarray(g) for name, g in ({"inputs": dx} | dparams).items()}


def disagreements(judge_on, weights, x):
    """Return each judge's largest difference from our backward, relative to the largest entry."""
    ours = by_backward(judge_on, weights, x)
    judges = {
        "differences": by_differences(judge_on, x),
        "torch": by_torch(judge_on, x),
        "jax": by_jax(judge_on, x),
    }
    for theirs in judges.values():
        assert theirs.keys() == ours.keys()
    return {
        judge: max(float(np.abs(theirs[n] - ours[n]).max() / np.abs(theirs[n]).max()) for n in ours)
        for judge, theirs in judges.items()
    }


# Differences leave 1e-16 / 8e-6 = 3e-11 of numbers near 1; the others a few roundings.
TOLERANCES = {"differences": 1e-8, "torch": 1e-13, "jax": 1e-13}

layers = pytest.mark.parametrize(
    ("make", "inputs", "outputs"), list(LAYERS.values()), ids=list(LAYERS)
)


@layers
def test_layer_gradients_agree_with_differences_torch_and_jax(make, inputs, outputs):
    x = np.random.default_rng(4).normal(size=inputs)
    for judge, error in disagreements(*scalar_layer(make, outputs), x).items():
        assert error < TOLERANCES[judge], judge


@layers
def test_wrong_layer_backward_disagrees_with_all_three(make, inputs, outputs, monkeypatch):
    x = np.random.default_rng(4).normal(size=inputs)
    judge_on, weights = scalar_layer(make, outputs)
    kind = type(make(nnxp.device("cpu"), "float64"))
    right = kind.backward
    monkeypatch.setattr(kind, "backward", lambda self, dy: right(self, dy) * 1.001)
    for judge, error in disagreements(judge_on, weights, x).items():
        assert error > 5e-4, judge


def loss_judge(make, labels):
    def judge_on(device):
        loss = make()
        carried = device.asarray(labels)
        return loss, lambda x, params: loss.forward(x, carried)

    return judge_on


@pytest.mark.parametrize(("make", "scores", "labels"), list(LOSSES.values()), ids=list(LOSSES))
@pytest.mark.parametrize("factor", [1.0, 1.001], ids=["right", "wrong"])
def test_loss_gradients_agree_with_differences_torch_and_jax(make, scores, labels, factor):
    judge_on = loss_judge(make, labels)
    loss, value = judge_on(nnxp.device("cpu"))
    value(scores, {})
    ours = loss.backward() * factor
    judges = {"differences": nnxp.numerical_gradient(lambda s: value(s, {}), scores)}
    torch_device, jax_device = nnxp.device("torch:cpu"), nnxp.device("jax:cpu")
    leaf = torch_device.asarray(scores).requires_grad_(True)
    judge_on(torch_device)[1](leaf, {}).backward()
    judges["torch"] = leaf.grad.numpy()
    import jax

    judges["jax"] = np.asarray(jax.grad(judge_on(jax_device)[1])(jax_device.asarray(scores), {}))
    for judge, theirs in judges.items():
        error = np.abs(theirs - ours).max() / np.abs(theirs).max()
        assert (error < TOLERANCES[judge]) if factor == 1 else (error > 5e-4), judge
