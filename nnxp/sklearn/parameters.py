"""Parameters: checks of the estimators' parameters; scikit-learn requires them in `fit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
from sklearn.base import BaseEstimator

from nnxp.checks import (
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    require_count,
    require_number,
    unknown_name,
)
from nnxp.errors import InputError
from nnxp.layers.activations import ACTIVATIONS
from nnxp.network import Sequential
from nnxp.optimizers import OPTIMIZERS, Optimizer
from nnxp.schedules import Schedule

Builder: TypeAlias = Callable[..., Sequential]

_RATES = ("constant", "invscaling", "adaptive")


class Parameters(BaseEstimator):
    """The parameters of both estimators; see `MLPClassifier`."""

    def _require_parameters(self) -> None:
        """Raise an `InputError` that names the first wrong parameter."""
        self._hidden()
        self._activation()
        if not isinstance(self.solver, Optimizer) and self.solver not in (*OPTIMIZERS, "lbfgs"):
            raise unknown_name("solver", self.solver, [*OPTIMIZERS, "lbfgs"])
        if not isinstance(self.learning_rate, Schedule) and self.learning_rate not in _RATES:
            raise InputError(
                f"learning_rate must be one of {', '.join(_RATES)}, or a schedule such as "
                f"nnxp.schedules.Cosine(0.1, steps=1000), got {self.learning_rate!r}; a number is "
                "learning_rate_init"
            )
        if self.batch_size != "auto":
            require_count("batch_size", self.batch_size)
        for name in ("max_iter", "max_fun"):
            require_count(name, getattr(self, name))
        if self.n_iter_no_change != math.inf:
            require_count("n_iter_no_change", self.n_iter_no_change)
        for name, range_ in (
            ("alpha", NOT_NEGATIVE),
            ("l1", NOT_NEGATIVE),
            ("learning_rate_init", POSITIVE),
            ("power_t", NOT_NEGATIVE),
            ("tol", NOT_NEGATIVE),
            ("momentum", FRACTION),
            ("validation_fraction", FRACTION),
            ("beta_1", FRACTION),
            ("beta_2", FRACTION),
            ("epsilon", POSITIVE),
            ("dropout", FRACTION),
        ):
            require_number(name, getattr(self, name), range_)
        for name in (
            "shuffle", "warm_start", "nesterovs_momentum", "early_stopping", "batch_norm",
        ):  # fmt: skip
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InputError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.network is not None and not callable(self.network):
            raise InputError(
                "network must be a function of inputs, outputs, rng, dtype and device that returns "
                f"a network, got {self.network!r}"
            )
        if self.network is not None and (self.dropout or self.batch_norm):
            raise InputError(
                "dropout and batch_norm cannot be used with network=; put the layers into the "
                "network that it returns"
            )

    def _hidden(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        if isinstance(sizes, str):
            raise InputError(f"hidden_layer_sizes must be numbers, got {sizes!r}")
        sizes = list(sizes) if isinstance(sizes, Iterable) else [sizes]
        for size in sizes:
            if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 1:
                raise InputError(
                    f"hidden_layer_sizes must be > 0, whole numbers, got {self.hidden_layer_sizes}"
                )
        return [int(size) for size in sizes]

    def _activation(self) -> str:
        """Return nnxp's name of the activation."""
        name = "sigmoid" if self.activation == "logistic" else self.activation
        if name not in ACTIVATIONS:
            raise unknown_name("activation", self.activation, ["logistic", *ACTIVATIONS])
        return str(name)
