"""Worked examples with printed figures, by number, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from script_runner import run

import nnxp


def close(got, figures):
    """Compare with figures printed to ten decimals: they are right to half a unit of the tenth."""
    assert_allclose(got, figures, rtol=0, atol=5e-11)


def network(*parameters, activation="relu"):
    """Return a network in float64 whose parameters W1, b1, W2, b2, … are the given ones."""
    arrays = [np.array(parameter, dtype="float64") for parameter in parameters]
    widths = [len(arrays[0]), *map(len, arrays[1::2])]
    rng = np.random.default_rng(0)
    net = nnxp.mlp(widths, rng=rng, activation=activation, dtype="float64")
    net.load_parameters(dict(zip(net.parameters(), arrays, strict=True)))
    return net


def sigmoid_network(seed, hidden):
    """Return a network 2-`hidden`-1 with weights drawn in NumPy's legacy stream, biases 0."""
    draw = np.random.RandomState(seed).randn
    return network(
        draw(2, hidden), np.zeros(hidden), draw(hidden, 1), np.zeros(1), activation="sigmoid"
    )


# A. Computational graph


def test_01_apples():
    fruit, taxed = nnxp.Multiply(), nnxp.Multiply()
    close(taxed.forward(fruit.forward(100, 2), 1.1), 220)
    d_fruit, d_tax = taxed.backward(1)
    close([*fruit.backward(d_fruit), d_tax], [2.2, 110, 200])


def test_02_apples_and_oranges():
    apples, oranges, taxed = nnxp.Multiply(), nnxp.Multiply(), nnxp.Multiply()
    total = nnxp.Add()
    price = total.forward(apples.forward(2, 100), oranges.forward(3, 150))
    assert taxed.forward(price, 1.1) == 715.0000000000001
    d_price, d_tax = taxed.backward(1)
    d_apples, d_oranges = total.backward(d_price)
    assert d_tax == 650.0
    assert apples.backward(d_apples) == (110.00000000000001, 2.2)
    assert oranges.backward(d_oranges) == (165.0, 3.3000000000000003)


# B. Layers


def test_03_relu():
    layer = nnxp.ReLU()
    upstream = np.array([[2.0, 3.0], [-3.0, -4.0]])
    y = layer.forward(np.array([[1.0, -0.5], [-2.0, 3.0]]), training=True)
    assert_array_equal(y, [[1, 0], [0, 3]])
    assert_array_equal(layer.backward(upstream), [[2, 0], [0, -4]])
    assert_array_equal(upstream, [[2, 3], [-3, -4]])


def test_03_relu_has_gradient_0_at_0():
    layer = nnxp.ReLU()
    layer.forward(np.zeros((1, 1)), training=True)
    assert_array_equal(layer.backward(np.ones((1, 1))), [[0]])


def test_04_sigmoid():
    layer = nnxp.Sigmoid()
    y = layer.forward(np.array([[2, 4], [-0.3, 0.9]]), training=True)
    close(y, [[0.880797078, 0.98201379], [0.4255574832, 0.7109495026]])
    dx = layer.backward(np.array([[4, 2], [-0.1, 0.8]]))
    close(dx, [[0.4199743416, 0.0353254124], [-0.0244458312, 0.1644002459]])


def test_05_affine_forward():
    (layer,) = network([[1, 3, 4], [2, 4, 6]], [1, 2, 3]).layers
    assert_array_equal(layer.forward(np.array([[1.0, 2.0]])), [[6, 13, 19]])


def test_06_affine_forward_and_backward():
    (layer,) = network([[1, 3, 5], [2, 4, 6]], [1, 1, 1]).layers
    y = layer.forward(np.array([[1.0, 2.0], [3.0, 4.0]]), training=True)
    assert_array_equal(y, [[6, 12, 18], [12, 26, 40]])
    dx = layer.backward(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert_array_equal(dx, [[22, 28], [49, 64]])
    assert_array_equal(layer.grads["W"], [[13, 17, 21], [18, 24, 30]])
    assert_array_equal(layer.grads["b"], [5, 7, 9])


TWO_AFFINES = (
    [[1, 3, 5], [2, 4, 6]], [1, 2, 3],
    [[1, 4], [2, 5], [3, 6]], [1, 2],
)  # fmt: skip
THREE_AFFINES = (*TWO_AFFINES, [[5, 6, 7], [2, 3, 4]], [1, 1, 1])


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_07_two_affines(activation):
    net = network(*TWO_AFFINES, activation=activation)
    x = np.array([[1.0, 2.0]])
    assert_array_equal(net.layers[0].forward(x), [[6, 13, 20]])
    y = net.forward(x, training=True)
    assert_array_equal(y, [[93, 211]])
    assert_array_equal(net.backward(y), [[12385, 16108]])
    gradients = net.gradients()
    assert_array_equal(gradients["W1"], [[937, 1241, 1545], [1874, 2482, 3090]])
    assert_array_equal(gradients["b1"], [937, 1241, 1545])


def test_08_three_affines():
    net = network(*THREE_AFFINES)
    y = net.forward(np.array([[1.0, 2.0]]), training=True)
    assert_array_equal(y, [[888, 1192, 1496]])
    assert_array_equal(net.backward(y), [[1040872, 1343296]])
    gradients = net.gradients()
    assert_array_equal(gradients["W1"], [[67408, 100808, 134208], [134816, 201616, 268416]])
    assert_array_equal(gradients["b1"], [67408, 100808, 134208])


# C. SoftmaxWithLoss


def test_09_softmax_with_loss():
    loss = nnxp.SoftmaxWithLoss()
    scores = np.array([[0.01] * 6 + [0.05, 0.3, 0.1, 0.5]])
    close(loss.forward(scores, np.array([2])), 2.4072809768)
    close(loss.backward()[0, [2, 9]], [-0.9099401632, 0.1470061323])
    better = np.array([[0.01, 0.01, 0.9] + [0.01] * 6 + [0.02]])
    close(loss.forward(better, np.array([2])), 1.5475686648)


# In rows 5 and 8 the last digit is by 50-digit arithmetic: 1.91975355415761, 1.65593135131569.
FALLING = {
    2.2535848015: [0.1, 0.05, 0.1, 0, 0.05, 0.1, 0, 0.1, 0, 0],
    2.2297819537: [0.1, 0.05, 0.2, 0, 0.05, 0.1, 0, 0.6, 0, 0],
    2.1318302507: [0, 0.05, 0.3, 0, 0.05, 0.1, 0, 0.6, 0, 0],
    2.0197535542: [0, 0.05, 0.4, 0, 0.05, 0, 0, 0.5, 0, 0],
    1.9197535542: [0, 0.05, 0.5, 0, 0.05, 0, 0, 0.4, 0, 0],
    1.8225452947: [0, 0.05, 0.6, 0, 0.05, 0, 0, 0.3, 0, 0],
    1.7281332493: [0, 0.05, 0.7, 0, 0.05, 0, 0, 0.2, 0, 0],
    1.6559313513: [0, 0.1, 0.8, 0, 0.1, 0, 0, 0.2, 0, 0],
    1.5477364259: [0, 0.05, 0.9, 0, 0.05, 0, 0, 0, 0, 0],
}


@pytest.mark.parametrize(("figure", "scores"), FALLING.items())
def test_10_falling_errors(figure, scores):
    close(nnxp.SoftmaxWithLoss().forward(np.array([scores]), np.array([2])), figure)


def test_11_three_affines_under_softmax_with_loss():
    net, loss = network(*THREE_AFFINES), nnxp.SoftmaxWithLoss()
    assert loss.forward(net.forward(np.array([[1.0, 2.0]]), training=True), np.array([2])) == 0
    close(net.backward(loss.backward()) / 1e-130, [[2.630762876, 3.3945327432]])
    gradients, row = net.gradients(), [1.6972663716, 2.5458995574, 3.3945327432]
    close(gradients["W1"] / 1e-131, [row, [3.3945327432, 5.0917991148, 6.7890654864]])
    close(gradients["b1"] / 1e-131, row)


def test_labels_are_class_numbers_or_one_hot_rows():
    loss, scores = nnxp.SoftmaxWithLoss(), np.array([*FALLING.values()])
    classes = np.arange(len(scores))
    by_number = loss.forward(scores, classes), loss.backward()
    by_row = loss.forward(scores, nnxp.data.one_hot(classes, 10)), loss.backward()
    assert_array_equal(by_number[0], by_row[0])
    assert_array_equal(by_number[1], by_row[1])


def test_loss_and_gradient_are_divided_by_the_batch_size():
    loss, scores, labels = nnxp.SoftmaxWithLoss(), np.array([*FALLING.values()]), np.full(9, 2)
    close(loss.forward(scores, labels), np.mean([*FALLING]))
    together = loss.backward()
    for i in range(9):
        loss.forward(scores[i : i + 1], labels[i : i + 1])
        assert_allclose(9 * together[i : i + 1], loss.backward(), rtol=1e-15)


# D. Small networks

XOR = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), np.array([0, 1, 1, 0])
POINTS = np.array(
    [
        [0.5, 1.5], [-1.5, -0.5], [1, 1], [1.5, -0.5], [0, 0],
        [0.5, -0.5], [-0.5, 0.5], [-1, -1], [1, -1], [-1.5, 1.5],
    ]
)  # fmt: skip
ANSWERS = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 0])


def test_12_probability_one_half():
    close(nnxp.SigmoidWithLoss().forward(np.zeros((4, 1)), XOR[1]), 0.6931471806)


def test_12_xor_first_gradients():
    net = sigmoid_network(seed=42, hidden=2)
    trainer = nnxp.Trainer(net, nnxp.SigmoidWithLoss(), nnxp.SGD(0.1))
    close(trainer.step(*XOR), 0.7049220984)  # 0.70492209844975 by 40-digit arithmetic
    gradients = net.gradients()
    close(gradients["W1"], [[0.0033611058, 0.0043624338], [0.0033367173, 0.0011966897]])
    close(gradients["b1"], [0.0046275443, 0.0029363982])
    close(gradients["W2"], [[-0.0507438955], [-0.048603025]])
    close(gradients["b2"], [-0.0743541697])


@pytest.mark.long
def test_12_xor_stays_in_a_local_minimum_from_seed_42():
    net = sigmoid_network(seed=42, hidden=2)
    trainer = nnxp.Trainer(net, nnxp.SigmoidWithLoss(), nnxp.SGD(1.0))
    # The figures are of 150,000 steps at 0.1, which take 11 s. A tenth of the steps, each ten times
    # as long, go the same way: loss and outputs differ by 2e-7 at most.
    for _ in range(15_000):
        trainer.step(*XOR)
    loss = trainer.evaluate(nnxp.data.Dataset(*XOR)).loss
    assert_allclose(loss, 0.34694, rtol=0, atol=5e-6)
    predicted = nnxp.Sigmoid().forward(net.predict(XOR[0]))[:, 0]
    assert_allclose(predicted[0], 0.0004, rtol=0, atol=5e-5)
    assert_allclose(predicted[1:], [0.49982, 0.99962, 0.50017], rtol=0, atol=5e-6)


@pytest.mark.parametrize("seed", [0, *(pytest.param(x, marks=pytest.mark.long) for x in (1, 2))])
def test_12_xor_is_learnt(seed):
    rng = np.random.default_rng(seed)
    net = nnxp.mlp([2, 4, 1], rng=rng, activation="sigmoid", dtype="float64")
    trainer = nnxp.Trainer(net, nnxp.SigmoidWithLoss(), nnxp.SGD(1.0))
    for _ in range(3000):
        trainer.step(*XOR)
    evaluation = trainer.evaluate(nnxp.data.Dataset(*XOR))
    assert evaluation.loss < 0.01
    assert evaluation.accuracy == 1


def test_13_logistic_regression():
    net = network(np.zeros((2, 1)), np.zeros(1))
    trainer = nnxp.Trainer(net, nnxp.SigmoidWithLoss(), nnxp.SGD(0.1))
    costs = [trainer.step(POINTS, ANSWERS)]
    close(net.gradients()["W1"], [[-0.35], [-0.1]])
    close(net.gradients()["b1"], [0])
    costs += [trainer.step(POINTS, ANSWERS) for _ in range(9)]
    close(costs[:3], [0.6931471806, 0.6800598224, 0.6676066462])
    close(costs[-1], 0.5956439890)
    close(net.parameters()["W1"], [[0.3126690223], [0.0945038593]])
    close(net.parameters()["b1"], [-0.0010452342])


def test_14_one_hidden_layer():
    net = sigmoid_network(seed=0, hidden=3)
    trainer = nnxp.Trainer(net, nnxp.SigmoidWithLoss(), nnxp.SGD(0.1))
    close(trainer.step(POINTS[:5], ANSWERS[:5]), 0.5515420615)
    gradients = net.gradients()
    close(gradients["W2"], [[-0.1222848805], [-0.0719260862], [-0.0251913280]])
    close(gradients["b2"], [0.0179279410])
    close(
        gradients["W1"],
        [[-0.0191572159, 0.0081488754, 0.0065051745], [0.0014827758, 0.0012840466, 0.0042346121]],
    )
    close(gradients["b1"], [0.0182778946, -0.0027806317, -0.0012932731])
    close(net.parameters()["W2"], [[0.9623169056], [-0.1441645997], [-0.1006997190]])


PUBLISHED_19 = [
    [2.3903022991, 2.3869219369, 4.0564346777, 1.8759301291, 0.3584589615],
    [1.6214891751, 1.6180576778, 4.1177966971, 1.4766076094, 0.6247906198],
    [1.2644927621, 1.2609756106, 4.2205817731, 1.2203566097, 0.7319932998],
    [1.0277598390, 1.0241480602, 4.3341345973, 1.0515668372, 0.7855946399],
    [0.8593016048, 0.8555983432, 4.4439139769, 0.9225946678, 0.8090452261],
]


def figures_19(*options):
    out = run("digits_classifier.py", *options).stdout
    rows = [line.split() for line in out.splitlines()[2:-2]]
    return [[float(x) for x in row[1:]] for row in rows], float(out.split()[-1])


def test_19_classifier_with_penalties():
    figures, score = figures_19()
    assert_allclose(figures, PUBLISHED_19, rtol=0, atol=1e-9)
    assert score == pytest.approx(PUBLISHED_19[-1][-1], abs=1e-9)


def test_19_classifier_trained_by_fit_has_the_same_curve():
    figures, score = figures_19("--ordinary")
    # Other orders: the published losses of neighbouring epochs are 0.17 to 0.77 apart.
    assert_allclose(np.array(figures)[:, :4], np.array(PUBLISHED_19)[:, :4], rtol=0, atol=0.08)
    assert score == pytest.approx(PUBLISHED_19[-1][-1], abs=0.05)
