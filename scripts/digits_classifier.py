"""A classifier with fit, predict and score, penalized by L1 and L2, on the embedded digits.

One sigmoid hidden layer and a softmax; biases are not penalized. The published example reshuffles
the examples by NumPy's global generator, which this script repeats; ``--ordinary`` trains the same
network by `Trainer.fit`, whose order differs.
"""

from __future__ import annotations

from cli import Parser, run, whole_number

from pathlib import Path

import numpy as np

import nnxp
from nnxp.data import Dataset

HIDDEN, CLASSES, BATCH_SIZE, RATE, L1, L2 = 10, 10, 40, 0.5, 0.001, 0.01


class Classifier:
    """A network of one hidden layer.

    Parameters
    ----------
    train, validation : Dataset
    weights : dict of str to array
        ``W1`` and ``W2`` to start from; biases start at 0.
    """

    def __init__(self, train: Dataset, validation: Dataset, weights: dict[str, np.ndarray]) -> None:
        self.train, self.validation = train, validation
        features = train.inputs.shape[1]
        network = nnxp.mlp(
            [features, HIDDEN, CLASSES], rng=0, activation="sigmoid", dtype="float64"
        )
        network.load_parameters(weights | {"b1": np.zeros(HIDDEN), "b2": np.zeros(CLASSES)})
        # The published gradient is the mean over a batch, plus that of R divided by its rows.
        penalty = nnxp.ElasticNet(L1 / BATCH_SIZE, L2 / BATCH_SIZE)
        self.trainer = nnxp.Trainer(
            network, nnxp.SoftmaxWithLoss(), nnxp.SGD(RATE), penalty=penalty
        )

    def fit_epoch(self, order: np.ndarray) -> tuple[float, float, float, float, float]:
        """Train an epoch in this order, and return the figures of the published table."""
        trainer, penalty, total = self.trainer, self.trainer.penalty, 0.0
        for start in range(0, len(order), BATCH_SIZE):
            rows = order[start : start + BATCH_SIZE]
            before = penalty.value(trainer.network.parameters())
            loss = trainer.step(self.train.inputs[rows], self.train.labels[rows])
            total += float(loss - before) * len(rows)
        return self.figures(total / len(order))

    def figures(self, mean: float) -> tuple[float, float, float, float, float]:
        """Return the losses with and without R, R, the validation loss with R, and its score."""
        penalty = float(self.trainer.penalty.value(self.trainer.network.parameters()))
        regularization = penalty * BATCH_SIZE
        evaluation = self.trainer.evaluate(self.validation)
        return (
            mean + regularization / len(self.train),
            mean,
            regularization,
            evaluation.loss - penalty + regularization / len(self.validation),
            evaluation.accuracy,
        )

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Return the class of each example."""
        return np.argmax(self.trainer.network.predict(inputs), axis=1)

    def score(self, dataset: Dataset) -> float:
        """Return the share of examples whose class is predicted."""
        return float(np.mean(self.predict(dataset.inputs) == dataset.labels))


def published_start() -> tuple[Classifier, np.random.RandomState]:
    """Return the classifier of the published example, and the generator of its orders."""
    digits = nnxp.data.load_csv(Path(nnxp.data.__file__).with_name("digits.csv.gz"), scale=16)
    train, validation = (
        Dataset(digits.inputs[part] / 16.0, digits.labels[part])
        for part in (slice(0, 1200), slice(1200, None))
    )
    draw = np.random.RandomState(42)
    weights = {
        "W1": draw.normal(0, 1, (train.inputs.shape[1], HIDDEN)),
        "W2": draw.normal(0, 1, (HIDDEN, CLASSES)),
    }
    return Classifier(train, validation, weights), draw


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--epochs",
        type=whole_number,
        default=5,
        help="passes over the training examples (default: 5)",
    )
    parser.add_argument("--ordinary", action="store_true", help="train by Trainer.fit")
    args = parser.parse_args()
    classifier, draw = published_start()
    train = classifier.train
    print("epoch  loss          without R     R             validation    accuracy")
    for epoch in range(1, args.epochs + 1):
        if args.ordinary:
            rng = 42 if epoch == 1 else None  # then the same generator
            record = classifier.trainer.fit(train, epochs=1, batch_size=BATCH_SIZE, rng=rng)[-1]
            figures = classifier.figures(record.train_loss - record.penalty)
        else:
            figures = classifier.fit_epoch(draw.permutation(np.arange(len(train))))
        print(f"{epoch:5d}  " + "  ".join(f"{x:.10f}" for x in figures))
    print(f"score {classifier.score(classifier.validation):.10f}")


if __name__ == "__main__":
    run(main)
