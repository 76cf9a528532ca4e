"""Regressor: MLPRegressor, with scikit-learn's interface."""

# ruff: noqa: N803 - X is scikit-learn's name

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy.typing as npt
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data

from nnxp.arrays import Array
from nnxp.checks import (
    unknown_name,
)
from nnxp.data.dataset import Dataset
from nnxp.devices import Device
from nnxp.errors import InputError
from nnxp.losses import AbsoluteError, Huber, Loss
from nnxp.optimizers import Optimizer
from nnxp.schedules import Schedule
from nnxp.sklearn.base import MLP
from nnxp.sklearn.losses import SquaredErrors
from nnxp.sklearn.parameters import Builder
from nnxp.sklearn.places import dtypes, on_host


class MLPRegressor(RegressorMixin, MLP):
    """A regressor: a network of affine layers with scikit-learn's interface.

    Parameters
    ----------
    loss : str, optional
        ``"squared_error"``, ``"absolute_error"`` or ``"huber"``.
    hidden_layer_sizes, …
        As in `MLPClassifier`; there is no `class_weight`.

    Attributes
    ----------
    coefs_, …
        As in `MLPClassifier`; there is no `classes_`.

    Examples
    --------
    >>> from sklearn.datasets import make_regression
    >>> from nnxp.sklearn import MLPRegressor
    >>> X, y = make_regression(n_samples=200, n_features=5, random_state=1)
    >>> regressor = MLPRegressor(solver="lbfgs", tol=0.1, random_state=1).fit(X, y)
    >>> regressor.score(X, y) > 0.99
    True
    """

    def __init__(
        self,
        loss: str = "squared_error",
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
    ) -> None:
        for name, value in locals().copy().items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def predict(self, X: Any) -> Array:
        """Return the predictions.

        Parameters
        ----------
        X : (examples, features) array_like

        Returns
        -------
        (examples,) or (examples, outputs) array
            On the device of X.
        """
        outputs, place = self._outputs(X, "predict")
        return self._placed(outputs[:, 0] if self.n_outputs_ == 1 else outputs, place)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the coefficient of determination R² of the predictions.

        It is computed on the host, since scikit-learn's function changes arrays in place.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        """
        predicted = on_host(self.predict(X))
        return float(r2_score(on_host(y), predicted, sample_weight=on_host(sample_weight)))

    @available_if(lambda self: self._has_partial_fit())
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch on these examples.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        """
        return self._fit(X, y, sample_weight, None, incremental=True)

    def _require_parameters(self) -> None:
        super()._require_parameters()
        if self.loss not in _LOSSES:
            raise unknown_name("loss", self.loss, _LOSSES)

    def _validated(self, X: Any, y: Any, place: Device, *, reset: bool) -> tuple[Any, Any]:
        X, y = validate_data(
            self,
            X,
            y,
            multi_output=True,
            y_numeric=True,
            dtype=dtypes(place),
            reset=reset,
        )
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _targets(
        self, y: npt.NDArray[Any], classes: Any, *, continues: bool, incremental: bool
    ) -> npt.NDArray[Any]:
        outputs = 1 if y.ndim == 1 else y.shape[1]
        if continues and outputs != self.n_outputs_:
            raise InputError(
                f"y had {self.n_outputs_} columns in the first call, and has {outputs} now"
            )
        self.n_outputs_ = outputs
        self.out_activation_ = "identity"
        return y.astype("float64", copy=False)

    def _weights(
        self, y: npt.NDArray[Any], sample_weight: npt.NDArray[Any] | None
    ) -> npt.NDArray[Any] | None:
        return sample_weight

    def _make_loss(self) -> Loss:
        return _LOSSES[self.loss]()

    def _outputs_in_loss(self) -> int:
        return self.n_outputs_ if self.loss == "squared_error" else 1

    def _strata(self, y: npt.NDArray[Any]) -> None:
        return None

    def _score_of(self, outputs: npt.NDArray[Any], held_out: Dataset) -> float:
        return float(r2_score(held_out.labels, outputs, sample_weight=held_out.weights))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


_LOSSES: dict[str, Callable[[], Loss]] = {
    "squared_error": SquaredErrors,
    "absolute_error": AbsoluteError,
    "huber": Huber,
}
