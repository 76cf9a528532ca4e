"""scikit-learn's interface: its own checks of estimators, and what its MLP promises."""

from __future__ import annotations

import doctest
import json
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from script_runner import SCRIPTS, run

import nnxp
from nnxp import schedules

sklearn = pytest.importorskip("sklearn")

from sklearn import neural_network as theirs  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.datasets import (  # noqa: E402
    load_digits,
    load_iris,
    make_multilabel_classification,
    make_regression,
)
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler, scale  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from nnxp.sklearn import MLPClassifier, MLPRegressor  # noqa: E402

IRIS, SPECIES = load_iris(return_X_y=True)
IRIS = scale(IRIS)
DIGITS, NUMBERS = load_digits(return_X_y=True)
DIGITS = DIGITS / 16
BOTH = pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])

# A fit of a few epochs does not converge, and says so.
pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def parameters(estimator):
    return [*estimator.coefs_, *estimator.intercepts_]


def expect_same(got, wanted, rtol=1e-9):
    """Both do the same float64 operations in other orders; 20 steps enlarge 1e-16 by little."""
    for x, y in zip(parameters(got), parameters(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


# scikit-learn's own checks.


@BOTH
def test_scikit_learns_checks_pass(kind):
    pytest.importorskip("pandas")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(kind(max_iter=100), on_fail=None)
    assert len(results) >= 75
    for each in results:
        if each["status"] == "skipped":
            assert "array_api" in each["check_name"], each
        else:
            assert each["status"] == "passed", each


CHECKS = """
import json, sys, warnings
from sklearn.utils.estimator_checks import check_estimator
import nnxp.sklearn
warnings.simplefilter("ignore")
estimator = getattr(nnxp.sklearn, sys.argv[1])(max_iter=100)
results = check_estimator(estimator, on_fail=None)
print(json.dumps([[x["check_name"], x["status"], str(x["exception"])] for x in results]))
"""


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_scikit_learns_checks_of_the_array_api_pass(name):
    pytest.importorskip("torch")
    result = subprocess.run(
        [sys.executable, "-c", CHECKS, name],
        env=os.environ | {"SCIPY_ARRAY_API": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    absent = ("is not installed", "is not available", "is available", "FALLBACK is not set")
    passed = 0
    for check, status, reason in json.loads(result.stdout):
        if status == "skipped":
            assert any(x in reason for x in absent), (check, reason)
            continue
        assert status == "passed", (check, reason)
        passed += "array_api" in check
    assert passed == 7  # of NumPy, array-api-strict and PyTorch on the CPU, and mixed


def test_examples_in_docstrings_run():
    from nnxp.sklearn import classifier, regressor

    results = [doctest.testmod(x) for x in (classifier, regressor)]
    assert sum(x.attempted for x in results) >= 6
    assert sum(x.failed for x in results) == 0


# The same settings and the same seed give the same steps.


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"solver": "sgd"},
        {"solver": "sgd", "nesterovs_momentum": False},
        {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.1},
        {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.5},
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 2},
        {"activation": "logistic", "alpha": 1.0},
        {"activation": "tanh", "batch_size": 50, "alpha": 1.0},
        {
            "activation": "identity",
            "batch_size": 75,
            "shuffle": False,
            "hidden_layer_sizes": (5, 4),
        },
        {"hidden_layer_sizes": (), "epsilon": 1e-3, "beta_1": 0.5, "beta_2": 0.9},
        {"tol": 0.1, "n_iter_no_change": 3},
    ],
    ids=str,
)
def test_a_classifier_takes_scikit_learns_steps(settings):
    settings = {"max_iter": 20, "random_state": 3} | settings
    wanted = theirs.MLPClassifier(**clone(theirs.MLPClassifier(**settings)).get_params())
    got = clone(MLPClassifier(**settings)).fit(IRIS, SPECIES)
    wanted.fit(IRIS, SPECIES)
    expect_same(got, wanted)
    assert (got.n_iter_, got.t_) == (wanted.n_iter_, wanted.t_)
    assert got._no_improvement_count == wanted._no_improvement_count
    names = "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"
    assert [getattr(got, x) for x in names] == [getattr(wanted, x) for x in names]
    np.testing.assert_allclose(got.predict_proba(IRIS), wanted.predict_proba(IRIS), rtol=1e-7)
    # The penalty in a loss is that after the epoch; of one step of at most `learning_rate_init`
    # it is lower or higher by little.
    penalty = settings.get("alpha", 1e-4)
    np.testing.assert_allclose(got.loss_curve_, wanted.loss_curve_, atol=0.02 * penalty, rtol=1e-4)


def test_losses_are_scikit_learns():
    for kind, y in (("MLPClassifier", SPECIES > 0), ("MLPRegressor", IRIS[:, :2])):
        settings = {"max_iter": 10, "alpha": 0.0, "batch_size": 50}
        wanted, got = (
            getattr(x, kind)(random_state=np.random.RandomState(4), **settings).fit(IRIS, y)
            for x in (theirs, nnxp.sklearn)
        )
        np.testing.assert_allclose(got.loss_curve_, wanted.loss_curve_, rtol=1e-9)
        assert got.loss_ == got.loss_curve_[-1]
        assert got.best_loss_ == min(got.loss_curve_)


def test_several_labels_and_weights_take_scikit_learns_steps():
    X, y = make_multilabel_classification(n_samples=60, random_state=0)
    weights = np.random.default_rng(0).random(60)
    settings = {"solver": "sgd", "max_iter": 20, "random_state": 0, "learning_rate_init": 0.01}
    got = MLPClassifier(**settings).fit(X, y, sample_weight=weights)
    wanted = theirs.MLPClassifier(**settings).fit(X, y, sample_weight=weights)
    expect_same(got, wanted)
    assert (got.predict(X) == wanted.predict(X)).all()
    np.testing.assert_allclose(got.predict_proba(X), wanted.predict_proba(X), rtol=1e-7)


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_regressor_takes_scikit_learns_steps(solver, outputs):
    X, y = make_regression(n_samples=60, n_features=4, n_targets=outputs, random_state=0)
    y = y / 100
    settings = {"solver": solver, "max_iter": 20, "random_state": 0, "early_stopping": True}
    got = MLPRegressor(**settings).fit(X, y)
    wanted = theirs.MLPRegressor(**settings).fit(X, y)
    expect_same(got, wanted)
    np.testing.assert_allclose(got.predict(X), wanted.predict(X), rtol=1e-7)
    assert got.predict(X).shape == y.shape
    np.testing.assert_allclose(got.validation_scores_, wanted.validation_scores_, rtol=1e-7)
    assert got.best_loss_ is None


def test_lbfgs_takes_scikit_learns_steps():
    settings = {"solver": "lbfgs", "max_iter": 10, "alpha": 1.0, "random_state": 0}
    got = MLPClassifier(**settings)
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge after 10 iterations"):
        got.fit(IRIS, SPECIES)
    wanted = theirs.MLPClassifier(**settings).fit(IRIS, SPECIES)
    expect_same(got, wanted)
    assert got.loss_ == pytest.approx(wanted.loss_, rel=1e-9)
    assert got.n_iter_ == wanted.n_iter_ == 10
    few = MLPClassifier(solver="lbfgs", max_fun=5, random_state=0).fit(IRIS, SPECIES)
    assert few.n_iter_ < 10
    X, y = make_regression(n_samples=200, n_targets=5, random_state=11)
    several = MLPRegressor(hidden_layer_sizes=50, solver="lbfgs", tol=1e-2, random_state=1)
    several.fit(X, y)
    assert several.score(X, y) > 0.9


# What a fit leaves, and how it ends.


def test_alpha_makes_weights_smaller():
    sizes = [
        np.abs(MLPClassifier(10, alpha=alpha, random_state=1).fit(IRIS, SPECIES).coefs_[0]).sum()
        for alpha in (0.0, 30.0)
    ]
    assert sizes[1] < sizes[0]


def test_l1_makes_weights_zero_and_is_divided_as_alpha_is():
    settings = {"max_iter": 300, "random_state": 0, "learning_rate_init": 0.01, "solver": "sgd"}
    plain, lasso = (
        MLPClassifier(l1=l1, **settings).fit(IRIS, SPECIES).coefs_[0] for l1 in (0.0, 5.0)
    )
    rate = 0.01 * 5.0 / len(IRIS) / (1 - 0.9)  # the step of l1, with momentum
    assert (np.abs(lasso) < 2 * rate).mean() > (np.abs(plain) < 2 * rate).mean() + 0.3


def test_a_training_ends_as_tol_and_n_iter_no_change_say():
    for patience in (2, 5, 10):
        fitted = MLPClassifier(
            tol=0.01, max_iter=3000, solver="sgd", n_iter_no_change=patience, random_state=0
        ).fit(DIGITS[:100], NUMBERS[:100])
        assert fitted._no_improvement_count == patience + 1
        assert fitted.n_iter_ < 3000
    endless = MLPClassifier(4, tol=1e9, max_iter=30, n_iter_no_change=np.inf, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(30\) reached"):
        endless.fit(IRIS, SPECIES)
    assert (endless.n_iter_, endless._no_improvement_count) == (30, 29)


def test_an_adaptive_rate_falls_until_it_is_too_small(capsys):
    fitted = MLPClassifier(
        tol=0.5, max_iter=3000, solver="sgd", learning_rate="adaptive", random_state=0, verbose=True
    ).fit([[3, 2], [1, 6]], [1, 0])
    assert fitted.n_iter_ < 3000
    assert fitted._optimizer.learning_rate <= 1e-6
    printed = capsys.readouterr().out
    assert "Iteration 1, loss = " in printed
    assert "Setting learning rate to 0.000200" in printed
    assert "Learning rate too small. Stopping." in printed


@BOTH
def test_early_stopping_keeps_the_best_weights(kind, capsys):
    y = NUMBERS[:200] if kind is MLPClassifier else DIGITS[:200, 20]
    fitted = kind(
        early_stopping=True, max_iter=30, random_state=0, learning_rate_init=0.02, verbose=True
    ).fit(DIGITS[:200], y)
    scores = fitted.validation_scores_
    assert "Validation score: " in capsys.readouterr().out
    assert len(scores) == fitted.n_iter_
    assert fitted.best_validation_score_ == max(scores)
    assert fitted.best_loss_ is None
    _, X, _, y = sklearn.model_selection.train_test_split(
        DIGITS[:200], y, test_size=0.1,
        random_state=_after_the_weights(fitted), stratify=y if kind is MLPClassifier else None,
    )  # fmt: skip
    # In float32 or float64, a share of 20 examples is one number.
    assert fitted.score(X, y) == pytest.approx(max(scores), rel=1e-12)
    assert kind(max_iter=2).fit(DIGITS[:20], NUMBERS[:20]).validation_scores_ is None


def _after_the_weights(fitted):
    """Return the random state after the weights of a network were drawn."""
    random_state = np.random.RandomState(0)
    random_state.uniform(size=sum(x.size for x in parameters(fitted)))
    return random_state


def test_early_stopping_takes_text_weights_and_few_examples():
    names = np.array(["a", "b", "c"])[SPECIES]
    text = MLPClassifier(early_stopping=True, max_iter=5, random_state=0).fit(IRIS, names)
    assert set(text.predict(IRIS)) <= set(names)
    settings = {"early_stopping": True, "max_iter": 10, "random_state": 0}
    plain = MLPRegressor(**settings).fit(IRIS, SPECIES)
    weighted = MLPRegressor(**settings).fit(IRIS, SPECIES, sample_weight=np.ones(150))
    np.testing.assert_allclose(plain.predict(IRIS), weighted.predict(IRIS), rtol=1e-9)
    with pytest.raises(ValueError, match="The validation set is too small"):
        MLPRegressor(early_stopping=True).fit([[1.0], [2.0]], [1.0, 2.0])
    with pytest.raises(ValueError, match="least populated class"):
        MLPClassifier(early_stopping=True).fit([[1, 2], [2, 3], [3, 4], [4, 5]], [0, 0, 0, 1])
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
        text.partial_fit(IRIS, names)


def test_a_diverging_training_says_so():
    X = np.finfo("float64").max * np.random.default_rng(0).random((10, 2))
    with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
        MLPRegressor(random_state=0).fit(X, np.arange(10.0))
    with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
        MLPRegressor(solver="lbfgs", random_state=0).fit(X, np.arange(10.0))
    early = MLPRegressor(
        activation="identity", solver="sgd", learning_rate_init=1, early_stopping=True,
        random_state=0,
    )  # fmt: skip
    with pytest.warns(ConvergenceWarning, match="diverged"):
        early.fit(IRIS, SPECIES)
    assert np.isnan(early.validation_scores_[-1])
    assert np.isfinite(early.predict(IRIS)).all()


class Interrupting(schedules.Schedule):
    """A rate at which Ctrl-C comes at a step."""

    def __call__(self, step):
        if step == 5:
            raise KeyboardInterrupt
        return 0.1


def test_ctrl_c_keeps_what_is_trained():
    estimator = MLPClassifier(solver="sgd", learning_rate=Interrupting(), random_state=0)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        estimator.fit(IRIS, SPECIES)
    assert estimator.n_iter_ == 5
    assert estimator.predict(IRIS).shape == (150,)


# Continuing.


@BOTH
def test_partial_fits_are_a_fit(kind):
    settings = {"solver": "sgd", "random_state": 1, "learning_rate_init": 0.05}
    whole = kind(max_iter=20, tol=0, **settings).fit(IRIS, SPECIES)
    parts = kind(**settings)
    more = {"classes": [0, 1, 2]} if kind is MLPClassifier else {}
    for _ in range(20):
        parts.partial_fit(IRIS, SPECIES, **more)
    # One batch an epoch: another order of its rows changes sums by rounding.
    expect_same(parts, whole)
    assert (parts.n_iter_, parts.t_) == (1, whole.t_)
    assert len(parts.loss_curve_) == 20
    after = kind(max_iter=5, **settings).fit(IRIS, SPECIES).partial_fit(IRIS, SPECIES)
    assert after.t_ == 6 * 150


def test_partial_fit_checks_classes():
    classifier = MLPClassifier(random_state=0)
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        classifier.partial_fit([[1.0]], [0])
    classifier.partial_fit([[1], [2], [3]], ["a", "b", "c"], classes=["a", "b", "c", "d"])
    classifier.partial_fit([[4]], ["d"])
    assert classifier.predict_proba([[4]]).shape == (1, 4)
    with pytest.raises(ValueError, match="is not the same as on last call"):
        classifier.partial_fit([[4]], ["d"], classes=["d", "e"])
    with pytest.raises(ValueError, match="has classes not in"):
        classifier.partial_fit([[4]], ["z"])
    with pytest.raises(ValueError, match="has classes not in"):
        MLPClassifier().partial_fit([[3, 2], [1, 6]], [1, 0], classes=[2])
    with pytest.raises(ValueError, match="balanced"):
        MLPClassifier(class_weight="balanced").partial_fit([[1.0]], [0], classes=[0, 1])
    assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")
    assert hasattr(MLPClassifier(), "partial_fit")


@BOTH
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
def test_warm_start_continues(kind, solver):
    estimator = kind(5, solver=solver, warm_start=True, max_iter=3, random_state=0)
    if kind is MLPRegressor:
        estimator = kind(
            hidden_layer_sizes=5, solver=solver, warm_start=True, max_iter=3, random_state=0
        )
    first = estimator.fit(IRIS, SPECIES).loss_
    estimator.fit(IRIS, SPECIES)
    assert estimator.loss_ < first
    assert estimator.n_iter_ == 3
    if solver != "lbfgs":
        assert len(estimator.loss_curve_) == 6
        assert estimator.t_ == 6 * 150
    cold = clone(estimator).set_params(warm_start=False).fit(IRIS, SPECIES)
    assert cold.fit(IRIS, SPECIES).loss_ == pytest.approx(first, rel=1e-9)


def test_warm_start_refuses_other_classes():
    estimator = MLPClassifier(3, warm_start=True, max_iter=2, random_state=0).fit(IRIS, SPECIES)
    message = r"Previously got \[0 1 2\], `y` has \[0 1\]"
    with pytest.raises(ValueError, match=message):
        estimator.fit(IRIS, (SPECIES > 0).astype(int))
    with pytest.raises(ValueError, match=r"`y` has \[0 1 3\]"):
        estimator.fit(IRIS, np.where(SPECIES == 2, 3, SPECIES))


# Kinds of labels, weights and dtypes.


def test_probabilities_are_those_of_classes():
    two = MLPClassifier(5, max_iter=5, random_state=0).fit(IRIS, np.where(SPECIES, "yes", "no"))
    p = two.predict_proba(IRIS)
    assert p.shape == (150, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    assert (two.classes_[p.argmax(axis=1)] == two.predict(IRIS)).all()
    np.testing.assert_allclose(two.decision_function(IRIS), np.log(p[:, 1] / p[:, 0]), rtol=1e-9)
    large = two.predict_log_proba(1e6 * IRIS)  # log(exp(x)) would be -inf
    assert np.isfinite(large).all()
    one = MLPClassifier(5, max_iter=5).fit(IRIS, np.full(150, "only"))
    assert (one.predict(IRIS) == "only").all()
    assert (one.predict_proba(IRIS) == 1).all()
    column = MLPClassifier(5, max_iter=5)
    with pytest.warns(sklearn.exceptions.DataConversionWarning):
        column.fit(IRIS, SPECIES[:, None])
    with pytest.raises(ValueError, match="y has several columns of classes"):
        MLPClassifier().fit(IRIS, np.column_stack([SPECIES, SPECIES]))


def test_several_labels_are_learnt_and_may_be_sparse():
    sparse = pytest.importorskip("scipy.sparse")
    X, y = make_multilabel_classification(n_samples=50, random_state=0, return_indicator=True)
    settings = {"solver": "lbfgs", "alpha": 1e-5, "random_state": 0}
    fitted = MLPClassifier(50, **settings).fit(X, y)
    assert fitted.score(X, y) > 0.97
    again = MLPClassifier(50, **settings).fit(X, sparse.csr_array(y))
    assert (again.predict(X) == fitted.predict(X)).all()
    assert (fitted.classes_ == np.arange(5)).all()


@BOTH
def test_sparse_inputs_are_refused(kind):
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"Sparse data was passed.*toarray"):
        kind().fit(sparse.csr_array(IRIS), SPECIES)
    fitted = kind(max_iter=2).fit(IRIS, SPECIES)
    with pytest.raises(TypeError, match="Sparse data was passed"):
        fitted.predict(sparse.csr_array(IRIS))


@BOTH
@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_a_weight_is_as_many_examples(kind, solver):
    settings = {"solver": solver, "max_iter": 20, "random_state": 0, "alpha": 1.0, "tol": 0}
    counts = np.arange(150) % 3
    rows = np.repeat(np.arange(150), counts)
    weighted = kind(**settings).fit(IRIS, SPECIES, sample_weight=counts)
    repeated = kind(**settings).fit(IRIS[rows], SPECIES[rows])
    expect_same(weighted, repeated, rtol=1e-6 if solver == "lbfgs" else 1e-9)  # line searches
    with pytest.raises(ValueError, match="weights"):
        kind().fit(IRIS, SPECIES, sample_weight=-np.ones(150))


def test_class_weights_are_sample_weights():
    settings = {"max_iter": 10, "random_state": 0}
    y = SPECIES[:130]
    expected = MLPClassifier(**settings).fit(
        IRIS[:130], y, sample_weight=(130 / (3 * np.bincount(y)))[y]
    )
    balanced = MLPClassifier(class_weight="balanced", **settings).fit(IRIS[:130], y)
    expect_same(balanced, expected)
    named = MLPClassifier(class_weight={0: 1.0, 1: 2.0, 2: 3.0}, **settings).fit(IRIS, SPECIES)
    expect_same(named, MLPClassifier(**settings).fit(IRIS, SPECIES, sample_weight=SPECIES + 1.0))


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_dtype_is_that_of_x(kind, dtype):
    fitted = kind(early_stopping=True, max_iter=3).fit(DIGITS[:100].astype(dtype), NUMBERS[:100])
    assert {x.dtype.name for x in parameters(fitted)} == {dtype}
    if kind is MLPRegressor:
        assert fitted.predict(DIGITS[:5].astype(dtype)).dtype == dtype
    else:
        assert fitted.predict_proba(DIGITS[:5].astype(dtype)).dtype == dtype
    assert kind(max_iter=1).fit(DIGITS[:9].astype(int), NUMBERS[:9]).coefs_[0].dtype == "float64"
    other = "float64" if dtype == "float32" else "float32"
    given = kind(max_iter=1, dtype=other, warm_start=True).fit(DIGITS[:9], NUMBERS[:9])
    assert given.coefs_[0].dtype == other
    assert given.fit(DIGITS[:9].astype(dtype), NUMBERS[:9]).coefs_[0].dtype == other


def test_float32_agrees_with_float64():
    settings = {"hidden_layer_sizes": (5, 3), "random_state": 1, "max_iter": 50, "tol": 0.1}
    wide = MLPClassifier(**settings).fit(DIGITS[:300], NUMBERS[:300])
    narrow = MLPClassifier(**settings).fit(DIGITS[:300].astype("float32"), NUMBERS[:300])
    a, b = (x.predict_proba(DIGITS[300:]) for x in (wide, narrow))
    np.testing.assert_allclose(a, b, rtol=1e-2)  # as scikit-learn's own test allows


# nnxp's own.


@pytest.mark.parametrize("solver", [*nnxp.optimizers.OPTIMIZERS, "lbfgs"])
def test_every_solver_learns(solver):
    fitted = MLPClassifier(solver=solver, learning_rate_init=0.02, random_state=0, max_iter=100)
    assert fitted.fit(IRIS, SPECIES).score(IRIS, SPECIES) > 0.9
    assert fitted.loss_ < 0.4 if solver == "lbfgs" else fitted.loss_curve_[0]


def test_an_optimizer_is_copied_and_schedules_change_its_rate():
    optimizer = nnxp.RMSprop(0.01, decay=0.8)
    optimizer.steps = 7
    estimator = MLPClassifier(solver=optimizer, random_state=0, max_iter=20).fit(IRIS, SPECIES)
    assert optimizer.steps == 7
    assert optimizer.state == {"square_mean": {}}
    assert estimator._optimizer.steps == 20
    assert estimator._optimizer.decay == 0.8
    assert clone(estimator).solver is not optimizer
    schedule = schedules.Cosine(0.05, steps=20)
    for solver in ("adam", optimizer):
        falling = MLPClassifier(solver=solver, learning_rate=schedule, max_iter=20).fit(
            IRIS, SPECIES
        )
        assert falling._optimizer.learning_rate == 0.0
    still = MLPClassifier(
        learning_rate=schedules.Constant(0.0), max_iter=3, random_state=0
    ).fit(IRIS, SPECIES)  # fmt: skip
    expected = theirs.MLPClassifier(learning_rate_init=1e-300, max_iter=1, random_state=0)
    expect_same(still, expected.fit(IRIS, SPECIES))


def test_dropout_and_batch_norm_are_in_the_network():
    settings = {"hidden_layer_sizes": (8, 6), "max_iter": 3, "random_state": 0}
    fitted = MLPClassifier(dropout=0.3, batch_norm=True, **settings).fit(IRIS, SPECIES)
    kinds = [type(layer).__name__ for layer in fitted.network_]
    hidden = ["Affine", "BatchNorm", "ReLU", "Dropout"]
    assert kinds == [*hidden, *hidden, "Affine"]
    assert len(fitted.coefs_) == 3
    assert (fitted.predict_proba(IRIS) == fitted.predict_proba(IRIS)).all()
    again = MLPClassifier(dropout=0.3, batch_norm=True, **settings).fit(IRIS, SPECIES)
    assert (again.predict_proba(IRIS) == fitted.predict_proba(IRIS)).all()
    with pytest.raises(ValueError, match=r"batches of at least 2.*use batch_size=3"):
        MLPClassifier(batch_norm=True, batch_size=2).fit(IRIS[:3], [0, 1, 2])
    with pytest.raises(ValueError, match="lbfgs needs a loss that is the same at each call"):
        MLPClassifier(dropout=0.3, solver="lbfgs").fit(IRIS, SPECIES)


def lenet(inputs, outputs, **place):
    layers = nnxp.lenet(outputs, image=(1, 8, 8), padding=2, **place)
    return nnxp.Sequential([nnxp.Reshape((1, 8, 8)), *layers])


def test_another_network_is_trained():
    fitted = MLPClassifier(network=lenet, max_iter=3, random_state=0, dtype="float32")
    fitted.fit(DIGITS[:600], NUMBERS[:600])
    assert fitted.score(DIGITS[600:800], NUMBERS[600:800]) > 0.7
    assert not hasattr(fitted, "coefs_")
    assert "conv" in repr(fitted.network_).lower()
    assert (pickle.loads(pickle.dumps(fitted)).predict(DIGITS) == fitted.predict(DIGITS)).all()
    with pytest.raises(ValueError, match="network must return a network"):
        MLPClassifier(network=lambda *_, **__: None).fit(IRIS, SPECIES)
    with pytest.raises(ValueError, match="dropout and batch_norm cannot be used"):
        MLPClassifier(network=lenet, dropout=0.2).fit(DIGITS, NUMBERS)


def test_weights_can_be_read_before_fit_by_nobody():
    with pytest.raises(AttributeError, match="no coefs_ before fit"):
        _ = MLPClassifier().coefs_
    with pytest.raises(sklearn.exceptions.NotFittedError):
        MLPClassifier().predict(IRIS)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_layer_sizes": (5, 0)}, "hidden_layer_sizes must be > 0"),
        ({"hidden_layer_sizes": "5"}, "hidden_layer_sizes must be numbers"),
        ({"activation": "relus"}, "did you mean 'relu'"),
        ({"solver": "adams"}, "did you mean 'adam'"),
        ({"solver": nnxp.Adam}, "unknown solver"),
        ({"learning_rate": 0.1}, "a number is learning_rate_init"),
        ({"learning_rate_init": 0}, "learning_rate_init must be a positive number"),
        ({"alpha": -1}, "alpha must be a number of at least 0"),
        ({"l1": "a"}, "l1 must be a number"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"n_iter_no_change": 0.5}, "n_iter_no_change must be"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"early_stopping": "yes"}, "early_stopping must be True or False"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"network": 3}, "network must be a function"),
        ({"dtype": "float16"}, "unknown dtype"),
        ({"device": "gpu"}, "unknown device"),
        ({"random_state": "a"}, "cannot be used to seed"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        MLPClassifier(**wrong).fit(IRIS, SPECIES)


def test_a_wrong_loss_is_named():
    with pytest.raises(ValueError, match="did you mean 'squared_error'"):
        MLPRegressor(loss="squared").fit(IRIS, SPECIES)
    for loss in ("absolute_error", "huber"):
        fitted = MLPRegressor(loss, solver="lbfgs", random_state=0).fit(IRIS, SPECIES)
        assert fitted.score(IRIS, SPECIES) > 0.9


def test_a_batch_larger_than_the_data_is_one_batch():
    with pytest.warns(UserWarning, match="batch_size is 500, and there are 150 examples"):
        large = MLPClassifier(batch_size=500, max_iter=2, random_state=0).fit(IRIS, SPECIES)
    expect_same(large, MLPClassifier(batch_size=150, max_iter=2, random_state=0).fit(IRIS, SPECIES))


# scikit-learn's tools.


def test_searches_pipelines_and_clones_work():
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(5, max_iter=30, random_state=0))
    grid = {"mlpclassifier__alpha": [1e-4, 1.0], "mlpclassifier__learning_rate_init": [0.001, 0.05]}
    search = GridSearchCV(pipeline, grid, n_jobs=2, cv=3).fit(IRIS, SPECIES)
    assert search.best_params_["mlpclassifier__learning_rate_init"] == 0.05
    assert search.best_score_ > 0.9
    scores = cross_val_score(search.best_estimator_, IRIS, SPECIES, n_jobs=2, cv=3)
    assert scores.mean() > 0.9
    calibrated = CalibratedClassifierCV(search.best_estimator_, cv=3).fit(IRIS, SPECIES)
    assert calibrated.predict_proba(IRIS).shape == (150, 3)
    fitted = pipeline[-1].fit(IRIS, SPECIES)
    cloned = clone(fitted)
    assert cloned.get_params() == fitted.get_params()
    assert not hasattr(cloned, "network_")
    assert repr(cloned) == "MLPClassifier(hidden_layer_sizes=5, max_iter=30, random_state=0)"


def test_parameters_are_scikit_learns():
    for name in ("MLPClassifier", "MLPRegressor"):
        own, wanted = (getattr(x, name)().get_params() for x in (nnxp.sklearn, theirs))
        assert wanted.items() <= own.items()
        assert list(own.keys() - wanted.keys() - {"class_weight"}) != []


def test_data_frames_are_taken():
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame(IRIS, columns=list("abcd"))
    for kind in (MLPClassifier, MLPRegressor):
        settings = {"early_stopping": True, "max_iter": 3, "random_state": 0}
        fitted = kind(**settings).fit(X, pd.Series(SPECIES))
        assert list(fitted.feature_names_in_) == list("abcd")
        expect_same(fitted, kind(**settings).fit(IRIS, SPECIES))
        fitted.predict(X)
        with pytest.raises(ValueError, match="feature names"):
            fitted.predict(X.rename(columns={"a": "z"}))
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            fitted.predict(IRIS)
    scaled = make_pipeline(StandardScaler(), MLPRegressor(max_iter=3)).set_output(
        transform="pandas"
    )
    scaled.fit(X, SPECIES)
    assert list(scaled[-1].feature_names_in_) == list("abcd")


def test_joblib_loads_a_memory_map_that_trains_on(tmp_path):
    joblib = pytest.importorskip("joblib")
    first = MLPRegressor(learning_rate_init=0.01, random_state=0).fit([[2.0]], [4.0])
    joblib.dump(first, tmp_path / "mlp.pkl")
    loaded = joblib.load(tmp_path / "mlp.pkl", mmap_mode="r")
    assert loaded.predict([[2.0]]) == first.predict([[2.0]])
    for _ in range(200):
        loaded.partial_fit([[2.0]], [1.0])
        first.partial_fit([[2.0]], [1.0])
    # It goes on with Adam's state.
    assert loaded.predict([[2.0]]) == pytest.approx(first.predict([[2.0]]), rel=1e-9)
    assert loaded.predict([[2.0]])[0] == pytest.approx(1.0, rel=1e-2)


# Arrays of other libraries.


@pytest.fixture
def dispatch(monkeypatch):
    """Array API dispatch; the variable is read when scikit-learn's setting is made."""
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    pytest.importorskip("scipy._lib._array_api")
    monkeypatch.setattr("scipy._lib._array_api.SCIPY_ARRAY_API", "1", raising=False)
    with sklearn.config_context(array_api_dispatch=True):
        yield


LIBRARIES = pytest.mark.parametrize("spec", ["strict:device1", "torch:cpu", "jax:cpu"])


def opened(spec):
    try:
        return nnxp.device(spec)
    except nnxp.DeviceError as error:
        pytest.skip(str(error))


@BOTH
@LIBRARIES
def test_the_arrays_choose_the_device(dispatch, kind, spec):
    device = opened(spec)
    settings = {"max_iter": 5, "random_state": 0, "early_stopping": True}
    expected = kind(**settings).fit(IRIS, SPECIES)
    X = device.asarray(IRIS)
    fitted = kind(**settings).fit(X, device.asarray(SPECIES))
    assert fitted.network_.device == device
    assert all(device.holds(x) for x in parameters(fitted))
    for x, y in zip(parameters(fitted), parameters(expected), strict=True):
        np.testing.assert_allclose(device.to_host(x), y, rtol=1e-9, atol=1e-9)
    methods = ["predict"]
    if kind is MLPClassifier:
        methods += ["predict_proba", "predict_log_proba", "decision_function"]
    for method in methods:
        got = getattr(fitted, method)(X)
        assert device.holds(got)
        wanted = getattr(expected, method)(IRIS)
        np.testing.assert_allclose(device.to_host(got), wanted, rtol=1e-7, atol=1e-9)
    score = fitted.score(X, device.asarray(SPECIES))
    assert score == pytest.approx(expected.score(IRIS, SPECIES), rel=1e-7)

    # One call predicts on another library; the errors say so.
    with pytest.raises(ValueError, match=r'estimator\.to\("cpu"\)'):
        fitted.predict(IRIS)
    moved = fitted.to("cpu")
    np.testing.assert_allclose(moved.predict(IRIS), expected.predict(IRIS), rtol=1e-7)
    assert fitted.network_.device == device
    back = expected.to(device)
    assert device.holds(back.predict(X))
    with pytest.raises(ValueError, match=f'estimator.to."{spec}"'):
        expected.predict(X)

    # A pickle holds arrays of NumPy, and goes on training.
    dumped = pickle.dumps(fitted)
    assert not any(x in dumped for x in (b"torch", b"jax", b"array_api_strict"))
    loaded = pickle.loads(dumped)
    np.testing.assert_allclose(loaded.predict(IRIS), expected.predict(IRIS), rtol=1e-7)
    loaded.set_params(early_stopping=False).partial_fit(IRIS, SPECIES)
    back.set_params(early_stopping=False).partial_fit(X, device.asarray(SPECIES))


def test_scikit_learns_own_move_works(dispatch):
    from sklearn.utils._array_api import move_estimator_to

    fitted = MLPClassifier(max_iter=2, random_state=0).fit(IRIS, SPECIES)
    device = nnxp.device("strict")
    moved = move_estimator_to(fitted, device.xp, nnxp.arrays.device_of(device.asarray([1.0])))
    assert moved.network_.device == device


@LIBRARIES
def test_text_labels_and_host_arrays_work_beside_other_libraries(dispatch, spec):
    device = opened(spec)
    names = np.array(["a", "b", "c"])[SPECIES]
    fitted = MLPClassifier(max_iter=3, random_state=0)
    fitted.fit(device.asarray(IRIS), names, sample_weight=np.ones(150))
    assert set(fitted.predict(device.asarray(IRIS))) <= {"a", "b", "c"}


@BOTH
@LIBRARIES
def test_a_device_can_be_given(kind, spec):
    device = opened(spec)
    fitted = kind(device=spec, max_iter=3, random_state=0).fit(IRIS, SPECIES)
    assert fitted.network_.device == device
    expect_same(fitted, kind(max_iter=3, random_state=0).fit(IRIS, SPECIES))
    assert isinstance(fitted.predict(IRIS), np.ndarray)
    assert isinstance(fitted.coefs_[0], np.ndarray)


def test_an_array_of_another_device_needs_dispatch():
    x = nnxp.device("strict:device1").asarray(IRIS)
    for call in (lambda: MLPClassifier().fit(x, SPECIES),):
        with pytest.raises(ValueError, match=r"set_config\(array_api_dispatch=True\)"):
            call()


def test_foreign_arrays_have_no_device():
    class Foreign:
        shape, dtype, device = (1,), "float64", "x"

        def __dlpack__(self):
            raise NotImplementedError

    with pytest.raises(nnxp.DeviceError, match="nnxp has no device for an array of"):
        nnxp.devices.device_holding(Foreign())


# The script, and what happens without scikit-learn.


@pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests")
def test_the_comparison_prints_a_table(tmp_path):
    result = run(
        "compare_sklearn.py", "--sets", "iris", "diabetes", "multilabel", "--seeds", 2,
        "--epochs", 5, "--out", tmp_path / "out",
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results) == ["iris", "diabetes", "multilabel"]
    for name, found in results.items():
        assert found["score"] == pytest.approx(found["their score"], abs=1e-6)  # the same steps
        mean = np.mean(found["score"])
        assert f"{name} " in result.stdout
        assert f"{mean:.4f} ± {np.std(found['score'], ddof=1):.4f}" in result.stdout
        assert found["ratio"] == np.median(found["seconds"]) / np.median(found["their seconds"])
    assert "more than the standard deviation: none" in result.stdout
    wrong = run("compare_sklearn.py", "--sets", "irs", status=2)
    assert "did you mean 'iris'?" in wrong.stderr
