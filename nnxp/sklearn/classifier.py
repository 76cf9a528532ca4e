"""Classifier: MLPClassifier, with scikit-learn's interface."""

# ruff: noqa: N803 - X is scikit-learn's name

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import validate_data

from nnxp.arrays import Array
from nnxp.data.dataset import Dataset
from nnxp.devices import Device
from nnxp.errors import InputError
from nnxp.losses import Loss
from nnxp.optimizers import Optimizer
from nnxp.schedules import Schedule
from nnxp.sklearn.base import MLP
from nnxp.sklearn.losses import SigmoidLosses, SoftmaxLoss
from nnxp.sklearn.parameters import Builder
from nnxp.sklearn.places import dtypes


class MLPClassifier(ClassifierMixin, MLP):
    """A classifier: a network of affine layers with scikit-learn's interface.

    Parameters up to `max_fun` have the names, the defaults and the meaning of
    `sklearn.neural_network.MLPClassifier`, and the same random numbers are drawn from
    `random_state`. docs/sklearn.md lists the differences.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, optional
        The width of each hidden layer; none for a linear classifier.
    activation : str, optional
        ``"relu"``, ``"tanh"``, ``"logistic"`` or ``"identity"``; or another name that `nnxp.mlp`
        accepts, such as ``"gelu"``.
    solver : str or Optimizer, optional
        ``"adam"``, ``"sgd"`` (with `momentum`) or ``"lbfgs"`` (of scipy); ``"momentum"``,
        ``"nesterov"``, ``"adagrad"``, ``"rmsprop"`` or ``"adamw"``; or an optimizer of nnxp, which
        is copied and keeps its learning rate and other numbers.
    alpha : float, optional
        The rate of the L2 penalty of the weights, ``alpha / 2 * sum(w²)``, divided by the number of
        examples in a batch.
    batch_size : int or "auto", optional
        The examples per step; "auto" is 200, or all examples if there are fewer.
    learning_rate : str or Schedule, optional
        ``"constant"``; ``"invscaling"``: ``learning_rate_init / t ** power_t`` after `t` examples;
        ``"adaptive"``: divided by 5 each time that training would stop, not below 1e-6; or a
        schedule of `nnxp.schedules`, by steps. Adam ignores the names.
    learning_rate_init, power_t : float, optional
        See `learning_rate`.
    max_iter : int, optional
        The largest number of epochs; for lbfgs, of iterations.
    shuffle : bool, optional
        Whether each epoch has a new order.
    random_state : int, numpy.random.RandomState or None, optional
        Draws weights, validation examples and orders; with None, each call draws other ones.
    tol, n_iter_no_change : float, optional
        Training ends once the loss (or the validation score) has not improved by `tol` for more
        than `n_iter_no_change` epochs. For lbfgs, `tol` is the tolerance of the gradient.
    verbose : bool, optional
        Print loss and validation score of each epoch.
    warm_start : bool, optional
        Whether `fit` continues with the weights of the last call.
    momentum, nesterovs_momentum : float, bool, optional
        For ``"sgd"``; `momentum` is below 1.
    early_stopping, validation_fraction : bool, float, optional
        Hold out a share of the examples, stratified unless there are several labels, score it after
        each epoch, and keep the weights with the best score.
    beta_1, beta_2, epsilon : float, optional
        Numbers of Adam.
    max_fun : int, optional
        The largest number of calls of the loss, for lbfgs.
    dropout : float, optional
        The rate of a `nnxp.Dropout` after each activation; 0 for none.
    batch_norm : bool, optional
        Put a `nnxp.BatchNorm` before each activation.
    l1 : float, optional
        The rate of the L1 penalty of the weights, ``l1 * sum(|w|)``, divided like `alpha`.
    network : callable, optional
        Makes another network: ``network(inputs, outputs, rng=…, dtype=…, device=…)`` returns a
        `nnxp.Sequential` from rows of `inputs` numbers to `outputs` scores, one for two classes.
        It replaces `hidden_layer_sizes` and `activation`.
    device : str or Device, optional
        Where to train, as in `nnxp.device`; by default the device of the arrays, which is the CPU
        without array API dispatch.
    dtype : str, optional
        ``"float32"`` or ``"float64"``; by default the dtype of X, or float64 if X has another one.
    class_weight : dict, list of dict, "balanced" or None, optional
        The weight of the examples of each class, as in other classifiers of scikit-learn.

    Attributes
    ----------
    classes_ : NumPy array
    coefs_, intercepts_ : list of array
        The parameters of the affine layers, on the device of `fit`'s arrays. They are read from
        `network_`.
    network_ : Sequential
        The network of nnxp.
    loss_, best_loss_ : float
    loss_curve_, validation_scores_ : list of float
    best_validation_score_ : float or None
    n_iter_, t_ : int
        The epochs of the last call, and the examples of all calls.
    n_layers_, n_outputs_, n_features_in_ : int
    out_activation_ : str
    feature_names_in_ : array
        The names of a DataFrame's columns.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from nnxp.sklearn import MLPClassifier
    >>> X, y = make_classification(random_state=0)
    >>> classifier = MLPClassifier(learning_rate_init=0.01, random_state=0).fit(X, y)
    >>> classifier.score(X, y)
    1.0
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str = "relu",
        *,
        solver: str | Optimizer = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str | Schedule = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        batch_norm: bool = False,
        l1: float = 0.0,
        network: Builder | None = None,
        device: Device | str | None = None,
        dtype: str | None = None,
        class_weight: Any = None,
    ) -> None:
        for name, value in locals().copy().items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def predict(self, X: Any) -> Array:
        """Return the class of each example; rows of 0 and 1 for several labels.

        Parameters
        ----------
        X : (examples, features) array_like

        Returns
        -------
        (examples,) or (examples, labels) array
            On the device of X; a NumPy array if the classes are not numbers.
        """
        scores, place = self._outputs(X, "predict")
        device = self._device
        codes = self._codes(device.to_host(scores))
        labels = codes if self._is_multilabel else self.classes_[codes]
        return place.asarray(labels) if labels.dtype.kind in "biuf" else labels

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, or of each label.

        Parameters
        ----------
        X : (examples, features) array_like

        Returns
        -------
        (examples, classes) array
            On the device of X.
        """
        return self._probabilities(X, "predict_proba")

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of `predict_proba`.

        Parameters
        ----------
        X : (examples, features) array_like

        Returns
        -------
        (examples, classes) array
            On the device of X.
        """
        return self._probabilities(X, "predict_log_proba")

    def _probabilities(self, X: Any, method: str) -> Array:
        scores, place = self._outputs(X, method)
        device = self._device
        xp = device.xp
        with device.current():
            if self.out_activation_ == "logistic":
                if not self._is_multilabel:
                    scores = xp.concat([-scores, scores], axis=1)
                # log(sigmoid(s)), for which exp(s) cannot overflow
                logs = xp.minimum(scores, 0.0) - xp.log1p(xp.exp(-xp.abs(scores)))
            else:
                shifted = scores - xp.max(scores, axis=1, keepdims=True)
                logs = shifted - xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))
            if len(self.classes_) == 1:
                logs = logs[:, :1] * 0.0
            return self._placed(logs if method == "predict_log_proba" else xp.exp(logs), place)

    def decision_function(self, X: Any) -> Array:
        """Return the logit of the second of two classes, or the scores of all classes or labels.

        Parameters
        ----------
        X : (examples, features) array_like

        Returns
        -------
        (examples,) or (examples, classes) array
            On the device of X.
        """
        scores, place = self._outputs(X, "decision_function")
        single = self.n_outputs_ == 1 and not self._is_multilabel
        return self._placed(scores[:, 0] if single else scores, place)

    @available_if(lambda self: self._has_partial_fit())
    def partial_fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        classes: Any = None,
    ) -> Self:
        """Train for one epoch on these examples.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes : sequence, optional
            All classes that will occur; needed in the first call.
        """
        return self._fit(X, y, sample_weight, classes, incremental=True)

    @property
    def _is_multilabel(self) -> bool:
        return self._kind == "multilabel"

    def _validated(self, X: Any, y: Any, place: Device, *, reset: bool) -> tuple[Any, Any]:
        X, y = validate_data(self, X, y, multi_output=True, dtype=dtypes(place), reset=reset)
        y = y.toarray() if hasattr(y, "toarray") else y
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _targets(
        self, y: npt.NDArray[Any], classes: Any, *, continues: bool, incremental: bool
    ) -> npt.NDArray[Any]:
        """Return labels as class numbers, or rows of 0 and 1; set or check `classes_`."""
        check_classification_targets(y)
        kind = type_of_target(y)
        if kind == "multiclass-multioutput":
            raise InputError(
                "y has several columns of classes; give one column, or rows of labels 0 and 1"
            )
        several = kind.startswith("multilabel")
        own = np.arange(y.shape[1]) if several else np.unique(y)
        if not continues:
            if incremental and classes is None and not several:
                raise InputError("classes must be passed on the first call to partial_fit")
            self.classes_ = own if classes is None or several else np.unique(classes)
            self._kind = "multilabel" if several else "classes"
            self.n_outputs_ = len(self.classes_) if several or len(self.classes_) > 2 else 1
            logistic = several or self.n_outputs_ == 1
            self.out_activation_ = "logistic" if logistic else "softmax"
        elif several != self._is_multilabel:
            raise InputError(f"y was {self._kind} in the first call, and is {kind} now")
        elif classes is not None and not np.array_equal(self.classes_, np.unique(classes)):
            raise InputError(
                f"`classes={classes!r}` is not the same as on last call to partial_fit, was: "
                f"{self.classes_!r}"
            )
        if self.warm_start and not incremental and not np.array_equal(own, self.classes_):
            raise InputError(
                "warm_start can only be used where `y` has the same classes as in the previous "
                f"call to fit. Previously got {self.classes_}, `y` has {own}"
            )
        if not np.isin(own, self.classes_).all():
            raise InputError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. "
                f"'y' has {own}."
            )
        return y.astype("int64") if several else np.searchsorted(self.classes_, y)

    def _weights(
        self, y: npt.NDArray[Any], sample_weight: npt.NDArray[Any] | None
    ) -> npt.NDArray[Any] | None:
        if self.class_weight is None:
            return sample_weight
        labels = y if self._is_multilabel else self.classes_[y]
        weights: npt.NDArray[Any] = compute_sample_weight(self.class_weight, labels)
        return weights if sample_weight is None else weights * sample_weight

    def _make_loss(self) -> Loss:
        return SoftmaxLoss() if self.out_activation_ == "softmax" else SigmoidLosses()

    def _outputs_in_loss(self) -> int:
        return 1

    def _strata(self, y: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        return None if self._is_multilabel else y

    def _score_of(self, outputs: npt.NDArray[Any], held_out: Dataset) -> float:
        labels = self._codes(outputs)
        right = labels == held_out.labels
        return float(
            np.average(right.all(axis=1) if right.ndim == 2 else right, weights=held_out.weights)
        )

    def _codes(self, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the class numbers of scores, or rows of 0 and 1."""
        if self._is_multilabel:
            return (scores > 0).astype("int64")
        if self.n_outputs_ == 1:
            return ((scores[:, 0] > 0) & (len(self.classes_) > 1)).astype("int64")
        classes: npt.NDArray[Any] = scores.argmax(axis=1)
        return classes

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
