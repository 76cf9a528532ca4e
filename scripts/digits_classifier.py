"""A classifier with fit, predict and score, penalized by L1 and L2, on the embedded digits.

The network has one hidden layer with sigmoid, and a softmax. The penalty R = L1 * sum of |W| + L2 /
2 * sum of W squared keeps the weights W small; biases are not penalized. Look at the cross-entropy,
which falls although R grows, and at the validation, on digits that were not trained on. The script
repeats the orders of a published example, which draws them from NumPy's global generator; with
--ordinary, Trainer.fit draws other orders.
"""

from __future__ import annotations

from cli import Parser, run, whole_number

from pathlib import Path

import numpy as np

import nnxp
from nnxp.data import Dataset

FEATURES, HIDDEN, CLASSES = 64, 10, 10
BATCH_SIZE, RATE, L1, L2, SEED = 40, 0.5, 0.001, 0.01, 42


class Classifier:
    """A network with one hidden layer; `random` draws its weights and the orders of `fit`."""

    def __init__(self, random: np.random.RandomState) -> None:
        self.random = random
        widths = [FEATURES, HIDDEN, CLASSES]
        network = nnxp.mlp(widths, rng=0, activation="sigmoid", dtype="float64")
        weights = {f"W{i}": random.normal(0, 1, widths[i - 1 : i + 1]) for i in (1, 2)}
        network.load_parameters(weights | {"b1": np.zeros(HIDDEN), "b2": np.zeros(CLASSES)})
        # The published gradient is the mean over a batch, plus the gradient of R / batch size.
        self.penalty = nnxp.ElasticNet(L1 / BATCH_SIZE, L2 / BATCH_SIZE)
        self.network, self.trainer = network, nnxp.Trainer(
            network, nnxp.SoftmaxWithLoss(), nnxp.SGD(RATE), penalty=self.penalty
        )  # fmt: skip

    def fit(self, train: Dataset) -> float:
        """Train for an epoch in a random order; return the mean cross-entropy of its steps."""
        order, total = self.random.permutation(len(train)), 0.0
        for start in range(0, len(train), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            penalty = self.penalty.value(self.network.parameters())
            loss = self.trainer.step(train.inputs[rows], train.labels[rows])  # with the penalty
            total += float(loss - penalty) * len(rows)
        return total / len(train)

    def fit_ordinary(self, train: Dataset) -> float:
        """Train for an epoch with `Trainer.fit`, whose generator draws the order."""
        rng = self.trainer.rng or SEED
        record = self.trainer.fit(train, epochs=1, batch_size=BATCH_SIZE, rng=rng)[-1]
        return record.train_loss - record.penalty

    def regularization(self) -> float:
        """Return R."""
        return float(self.penalty.value(self.network.parameters())) * BATCH_SIZE

    def cross_entropy(self, dataset: Dataset) -> float:
        """Return the mean cross-entropy of examples."""
        scores = self.network.predict(dataset.inputs)
        return float(nnxp.SoftmaxWithLoss().forward(scores, dataset.labels))

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the class of each example."""
        return np.argmax(self.network.predict(inputs), axis=1)

    def score(self, dataset: Dataset) -> float:
        """Return the accuracy."""
        return float(np.mean(self.predict(dataset.inputs) == dataset.labels))


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--epochs", type=whole_number, default=5,
                        help="passes over the training examples (default: 5)")  # fmt: skip
    parser.add_argument("--ordinary", action="store_true", help="train by Trainer.fit")
    args = parser.parse_args()
    digits = nnxp.data.load_csv(Path(nnxp.data.__file__).with_name("digits.csv.gz"), scale=16)
    inputs, labels = digits.inputs / 16.0, digits.labels
    train, validation = Dataset(inputs[:1200], labels[:1200]), Dataset(inputs[1200:], labels[1200:])
    classifier = Classifier(np.random.RandomState(SEED))
    fit = classifier.fit_ordinary if args.ordinary else classifier.fit

    print(f"{len(train)} digits to train on, {len(validation)} to validate; R is for all weights")
    print("epoch  loss with R   cross-entropy R             validation    accuracy")
    for epoch in range(1, args.epochs + 1):
        mean = fit(train)
        r = classifier.regularization()
        validated = classifier.cross_entropy(validation) + r / len(validation)
        figures = [mean + r / len(train), mean, r, validated, classifier.score(validation)]
        print(f"{epoch:5d}  " + "  ".join(f"{x:.10f}" for x in figures))
    right = round(classifier.score(validation) * len(validation))
    print(f"{right} of {len(validation)} validation digits are predicted right,")
    print(f"score {classifier.score(validation):.10f}")


if __name__ == "__main__":
    run(main)
