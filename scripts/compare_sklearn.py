"""Compare nnxp's estimators with scikit-learn's MLP: scores and times, at the same settings.

On each data set, both estimators are trained with the same seeds and scikit-learn's default
settings, for up to 200 epochs (3 on MNIST). The score is the accuracy, or R² for regression, on the
held-out quarter (on MNIST, on the test images). The times are those of fit, medians over the seeds;
a ratio below 1 means that nnxp takes less time. Both draw the same initial weights and orders, so
their scores differ little.
"""

from __future__ import annotations

from cli import Parser, file_path, name_of, progress, run, whole_number

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from runs import add_out_option, new_run_folder, print_files, write_json

import nnxp
from nnxp.checks import optional_import
from nnxp.table import Table

Loader = Callable[[Any, int], tuple[Any, Any]]

# Data sets that scikit-learn ships, or makes from a seed: whether they have classes, and a loader.
SETS: dict[str, tuple[bool, Loader]] = {
    "iris": (True, lambda sets, seed: sets.load_iris(return_X_y=True)),
    "wine": (True, lambda sets, seed: sets.load_wine(return_X_y=True)),
    "breast cancer": (True, lambda sets, seed: sets.load_breast_cancer(return_X_y=True)),
    "digits": (True, lambda sets, seed: sets.load_digits(return_X_y=True)),
    "moons": (True, lambda sets, seed: sets.make_moons(400, noise=0.2, random_state=seed)),
    "circles": (True, lambda sets, seed: sets.make_circles(400, noise=0.1, random_state=seed)),
    "classification": (
        True,
        lambda sets, seed: sets.make_classification(1000, n_informative=8, random_state=seed),
    ),
    "multilabel": (
        True,
        lambda sets, seed: sets.make_multilabel_classification(500, random_state=seed),
    ),
    "diabetes": (False, lambda sets, seed: sets.load_diabetes(return_X_y=True)),
    "regression": (
        False,
        lambda sets, seed: sets.make_regression(500, 10, noise=10.0, random_state=seed),
    ),
    "friedman": (False, lambda sets, seed: sets.make_friedman1(1000, noise=1.0, random_state=seed)),
}


def main() -> None:
    names = [*SETS, "mnist"]
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", type=name_of("data set", names), default=names,
                        metavar="NAME", help=f"of {', '.join(names)} (default: all)")  # fmt: skip
    parser.add_argument("--seeds", type=whole_number, default=5,
                        help="number of seeds, counted from 0 (default: 5)")  # fmt: skip
    parser.add_argument("--epochs", type=whole_number, default=200,
                        help="largest number of epochs, except on MNIST "
                        "(default: 200)")  # fmt: skip
    parser.add_argument("--mnist-epochs", type=whole_number, default=3,
                        help="epochs on MNIST (default: 3)")  # fmt: skip
    parser.add_argument("--data-dir", type=file_path,
                        help="folder with MNIST's files (default: $NNXP_DATA_DIR)")  # fmt: skip
    add_out_option(parser)
    args = parser.parse_args()
    optional_import("sklearn.base", "sklearn")
    from sklearn.exceptions import ConvergenceWarning

    warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is fixed
    mnist = nnxp.data.load_mnist(args.data_dir) if "mnist" in args.sets else None
    folder = new_run_folder(args.out, vars(args))
    work = [(name, seed) for name in args.sets for seed in range(args.seeds)]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in args.sets}
    for number in progress(len(work), "fit"):
        name, seed = work[number]
        runs[name].append(compare(name, seed, args.mnist_epochs if mnist and name == "mnist"
                                  else args.epochs, mnist))  # fmt: skip
    rows = [("data", "score, nnxp", "score, sklearn", "seconds, nnxp", "seconds, sklearn", "ratio")]
    results = {}
    for name, found in runs.items():
        columns = {key: [x[key] for x in found] for key in found[0]}
        own, other = (statistics.median(columns[key]) for key in ("seconds", "their seconds"))
        scores = [with_deviation(columns[key]) for key in ("score", "their score")]
        rows.append((name, *scores, f"{own:.3f}", f"{other:.3f}", f"{own / other:.2f}"))
        results[name] = columns | {"ratio": own / other}
    print(f"mean ± standard deviation over {args.seeds} seeds" if args.seeds > 1 else "1 seed")
    print(Table(rows, left=1))
    lower = [name for name, found in runs.items() if is_lower(found)]
    print(
        "scores below those of scikit-learn by more than the standard deviation: "
        + (", ".join(lower) or "none")
    )
    write_json(folder / "results.json", results)
    print_files(folder)


def compare(
    name: str, seed: int, epochs: int, mnist: tuple[nnxp.data.Dataset, nnxp.data.Dataset] | None
) -> dict[str, float]:
    """Return scores and seconds of both estimators with one seed."""
    import sklearn.datasets
    import sklearn.neural_network
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    import nnxp.sklearn

    of_classes = True
    if name == "mnist":
        assert mnist is not None
        X, X_test = (x.inputs.astype("float32") / 255 for x in mnist)
        y, y_test = (x.labels for x in mnist)
    else:
        of_classes, load = SETS[name]
        inputs, labels = load(sklearn.datasets, seed)
        X, X_test, y, y_test = train_test_split(inputs, labels, random_state=seed)
        scaler = StandardScaler().fit(X)
        X, X_test = scaler.transform(X), scaler.transform(X_test)
        if not of_classes:
            y, y_test = (y - y.mean()) / y.std(), (y_test - y.mean()) / y.std()
    kind = "MLPClassifier" if of_classes else "MLPRegressor"
    found: dict[str, float] = {}
    both = [("", nnxp.sklearn), ("their ", sklearn.neural_network)]
    for prefix, module in both if seed % 2 else both[::-1]:  # alternate the order
        estimator = getattr(module, kind)(max_iter=epochs, random_state=seed)
        start = time.perf_counter()
        estimator.fit(X, y)
        found[f"{prefix}seconds"] = time.perf_counter() - start
        found[f"{prefix}score"] = float(estimator.score(X_test, y_test))
    return found


def with_deviation(values: list[float]) -> str:
    """Return mean and standard deviation as text."""
    mean = f"{np.mean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def is_lower(found: list[dict[str, float]]) -> bool:
    """Return whether the mean score is below scikit-learn's by more than its standard deviation."""
    own, other = ([x[key] for x in found] for key in ("score", "their score"))
    return float(np.mean(other) - np.mean(own)) > (statistics.stdev(other) if len(other) > 1 else 0)


if __name__ == "__main__":
    run(main)
