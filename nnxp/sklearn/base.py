"""Base: the common code of both estimators: fitting, predicting, and the devices of arrays."""

# ruff: noqa: N803 - X is scikit-learn's name

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from nnxp.arrays import Array
from nnxp.checks import (
    warn,
)
from nnxp.data.dataset import Dataset
from nnxp.devices import Device, device_holding, open_device, require_dtype
from nnxp.errors import DivergenceError, InputError
from nnxp.layers import Dropout
from nnxp.models import mlp
from nnxp.network import Sequential
from nnxp.optimizers import OPTIMIZERS, SGD, AdamW, Momentum, Nesterov, Optimizer
from nnxp.penalties import L2, ElasticNet, Penalty
from nnxp.schedules import Schedule
from nnxp.sklearn.fitting import Order, PlainAdam, Watch, minimize
from nnxp.sklearn.parameters import Parameters
from nnxp.sklearn.places import dtypes, moved_optimizer, on_host, require_host
from nnxp.step import Step
from nnxp.training.trainer import Trainer

_MAX_SEED = 2**31 - 1


class _Trainer(Trainer):
    """A trainer that accepts inputs of any size, as estimators of scikit-learn do."""

    _hints_at_scale = False


class MLP(Parameters):
    """Base class of both estimators; see `MLPClassifier`."""

    network_: Sequential
    n_outputs_: int
    loss_curve_: list[float]
    validation_scores_: Any
    best_validation_score_: Any
    best_loss_: Any
    _place: Device  # that of fit's X
    _optimizer: Optimizer
    _first_rate: float
    _trainer: Trainer | None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new network; with `warm_start`, continue with the last one.

        Parameters
        ----------
        X : (examples, features) array_like
            Numbers. With array API dispatch, the estimator trains on the device of this array,
            unless `device` is given.
        y : (examples,) or (examples, outputs) array_like
            Classes, rows of several labels 0 and 1, or targets.
        sample_weight : (examples,) array_like, optional
            The weight of each example, at least 0.

        Raises
        ------
        InputError
            If a parameter of the estimator is wrong, or the training diverges.
        ValueError, TypeError
            If scikit-learn refuses the data, such as sparse matrices.
        """
        return self._fit(X, y, sample_weight, None, incremental=False)

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        classes: Any,
        *,
        incremental: bool,
    ) -> Self:
        self._require_parameters()
        if incremental and getattr(self, "class_weight", None) == "balanced":
            raise InputError(
                'class_weight="balanced" needs all examples, which partial_fit does not see; give '
                "a dictionary of weights, or sample_weight"
            )
        if incremental and self.early_stopping:
            raise InputError(
                "partial_fit does not support early_stopping=True; use fit, or set_params("
                "early_stopping=False)"
            )
        continues = hasattr(self, "network_") and (self.warm_start or incremental)
        place = self._place_of(X, "partial_fit" if incremental else "fit", known=continues)
        y, sample_weight = on_host(y), on_host(sample_weight)
        X, y = self._validated(X, y, place, reset=not continues)
        X = np.ascontiguousarray(on_host(X))
        dtype = self.network_.dtype if continues else self.dtype
        if dtype is not None:
            X = X.astype(require_dtype(dtype), copy=False)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=X.dtype)
        y = self._targets(y, classes, continues=continues, incremental=incremental)
        weights = self._weights(y, sample_weight)
        random_state = check_random_state(self.random_state)
        if not continues:
            self._place = place
            self.n_iter_ = self.t_ = self._no_improvement_count = 0
            self._make_network(X, random_state)
        network, optimizer = self.network_, self._next_optimizer(incremental)
        if self.solver == "lbfgs":
            self._fit_lbfgs(X, y, weights)
        else:
            self._fit_steps(X, y, weights, random_state, optimizer, incremental)
        network.data_format = None  # X was checked and is not scaled
        return self

    # The steps of `_fit`.

    def _make_network(self, X: npt.NDArray[Any], random_state: Any) -> None:
        """Make a new network with the initial weights that scikit-learn draws."""
        place: dict[str, Any] = {
            "dtype": X.dtype.name,
            "device": self._place if self.device is None else open_device(self.device),
        }
        inputs = X.shape[1]
        if self.network is not None:
            rng = np.random.default_rng(random_state.randint(_MAX_SEED))
            network = self.network(inputs, self.n_outputs_, rng=rng, **place)
            if not isinstance(network, Sequential) or not network.parameters():
                raise InputError(
                    "network must return a network with parameters, such as nnxp.Sequential([…]), "
                    f"got {network!r}"
                )
        else:
            widths = [inputs, *self._hidden(), self.n_outputs_]
            name = self._activation()
            factor = 2.0 if name == "sigmoid" else 6.0  # Glorot and Bengio 2010, eq. 16
            drawn = {}
            for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), 1):
                bound = math.sqrt(factor / (fan_in + fan_out))
                drawn[f"W{i}"] = random_state.uniform(-bound, bound, (fan_in, fan_out))
                drawn[f"b{i}"] = random_state.uniform(-bound, bound, fan_out)
            seed = random_state.randint(_MAX_SEED) if self.dropout else 0
            network = mlp(
                widths,
                rng=np.random.default_rng(seed),
                activation=name,
                initializer="zeros",
                batch_norm=self.batch_norm,
                dropout=self.dropout,
                **place,
            )
            parameters = network.parameters()
            for affine, x in drawn.items():
                parameters[affine] = place["device"].asarray(x.astype(X.dtype))
        self.network_ = network
        self.n_layers_ = 1 + sum("W" in layer.params for layer in network.leaves())
        self.loss_curve_ = []
        self.validation_scores_ = self.best_validation_score_ = self.best_loss_ = None

    def _next_optimizer(self, incremental: bool) -> Optimizer:
        """Return the optimizer of the last call, or a new one."""
        if incremental and hasattr(self, "_optimizer"):
            return self._optimizer
        given, rate = self.solver, self.learning_rate_init
        optimizer: Optimizer
        if isinstance(self.learning_rate, Schedule):
            rate = copy.deepcopy(self.learning_rate)
        if isinstance(given, Optimizer):
            optimizer = copy.deepcopy(given)
            optimizer.steps, optimizer.state = 0, {slot: {} for slot in given.slots}
            if isinstance(self.learning_rate, Schedule):
                optimizer.learning_rate = rate
        elif given == "sgd" and self.momentum:
            kind = Nesterov if self.nesterovs_momentum else Momentum
            optimizer = kind(rate, momentum=self.momentum)
        elif given == "adam":
            optimizer = PlainAdam(rate, self.beta_1, self.beta_2, self.epsilon)
        elif given == "adamw":
            optimizer = AdamW(rate, self.beta_1, self.beta_2, self.epsilon)
        elif given in ("momentum", "nesterov"):
            kind = Nesterov if given == "nesterov" else Momentum
            optimizer = kind(rate, momentum=self.momentum)
        elif given == "lbfgs":
            optimizer = SGD(rate)  # not used
        else:
            optimizer = OPTIMIZERS[given](rate)
        self._first_rate = optimizer.learning_rate
        self._optimizer, self._trainer = optimizer, None
        return optimizer

    def _penalty(self, batch_size: int, weights: npt.NDArray[Any] | None) -> Penalty | None:
        """Return the penalty, divided by the weight of a batch, as in scikit-learn."""
        weight = batch_size * (1.0 if weights is None else float(weights.mean()))
        if not self.alpha and not self.l1:
            return None
        if not self.l1:  # computed faster
            return L2(self.alpha / weight)
        return ElasticNet(self.l1 / weight, self.alpha / weight)

    def _fit_lbfgs(
        self,
        X: npt.NDArray[Any],
        y: npt.NDArray[Any],
        weights: npt.NDArray[Any] | None,
    ) -> None:
        if any(isinstance(layer, Dropout) for layer in self.network_.leaves()):
            raise InputError(
                "lbfgs needs a loss that is the same at each call, which dropout changes; use "
                'solver="adam"'
            )
        dataset = Dataset(X, y, scale=None, weights=weights)
        penalty = self._penalty(len(X), weights)
        step = Step(self.network_, self._make_loss(), self._optimizer, penalty)
        result = minimize(
            step,
            dataset,
            iterations=self.max_iter,
            calls=self.max_fun,
            tolerance=self.tol,
            verbose=bool(self.verbose),
        )
        self._require_finite(np.append(result.x, result.fun))
        self.loss_ = float(result.fun)
        self.n_iter_ = min(int(result.nit), self.max_iter)
        if result.status != 0:
            message = (
                f"lbfgs failed to converge after {self.n_iter_} iterations ({result.message}); "
                "scale the data, or raise max_iter or max_fun"
            )
            warnings.warn(message, ConvergenceWarning, stacklevel=4)

    def _fit_steps(
        self,
        X: npt.NDArray[Any],
        y: npt.NDArray[Any],
        weights: npt.NDArray[Any] | None,
        random_state: Any,
        optimizer: Optimizer,
        incremental: bool,
    ) -> None:
        held_out: Dataset | None = None
        if not self.early_stopping and self.best_loss_ is None:
            self.best_loss_ = math.inf
        if self.early_stopping:
            if self.validation_scores_ is None:
                self.validation_scores_, self.best_validation_score_ = [], -math.inf
            X, y, weights, held_out = self._split(X, y, weights, random_state)
        count = len(X)
        size = min(200, count) if self.batch_size == "auto" else int(self.batch_size)
        if size > count:
            warn(f"batch_size is {size}, and there are {count} examples; they are one batch")
            size = count
        dataset = Dataset(X, y, scale=None, weights=weights)
        trainer = self._trainer or _Trainer(self.network_, self._make_loss(), optimizer)
        penalty = self._penalty(size, weights)
        if repr(penalty) != repr(trainer.penalty):  # captured steps are kept with the old one
            trainer.penalty = penalty
        rate = "constant" if self.solver == "adam" else self.learning_rate
        rate = rate if isinstance(rate, str) else "constant"
        watch = Watch(
            self,
            count,
            rate,
            self._first_rate,
            None if held_out is None else self._scorer(held_out),
        )
        self.n_iter_ = 0
        self._trainer = trainer
        try:
            trainer.fit(
                dataset,
                epochs=1 if incremental else self.max_iter,
                batch_size=size,
                rng=Order(random_state, bool(self.shuffle)),
                callbacks=[watch],
            )
        except KeyboardInterrupt:
            self._trainer = None  # an epoch is unfinished
            warn("Training interrupted by user.")
        except DivergenceError as error:
            self._trainer = None
            if watch.best is None:
                raise InputError(
                    f"Solver produced non-finite parameter weights ({error}). The input data may "
                    "contain large values and need to be preprocessed, such as by "
                    "sklearn.preprocessing.StandardScaler(); or use a lower learning_rate_init"
                ) from None
            self.validation_scores_.append(math.nan)
            warnings.warn(f"training diverged: {error}", ConvergenceWarning, stacklevel=4)
        else:
            if not incremental and not watch.converged and self.n_iter_ == self.max_iter:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the "
                    "optimization hasn't converged yet.",
                    ConvergenceWarning,
                    stacklevel=4,
                )
        if watch.best is not None:
            self.network_.load_arrays(*watch.best)

    def _split(
        self,
        X: npt.NDArray[Any],
        y: npt.NDArray[Any],
        weights: npt.NDArray[Any] | None,
        random_state: Any,
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | None, Dataset]:
        """Return the training examples and the validation examples."""
        arrays = [X, y] if weights is None else [X, y, weights]
        parts = train_test_split(
            *arrays,
            random_state=random_state,
            test_size=self.validation_fraction,
            stratify=self._strata(y),
        )
        train, held_out = parts[::2], parts[1::2]
        if len(held_out[0]) < 2:
            raise InputError(
                "The validation set is too small. Increase 'validation_fraction' or the size of "
                "your dataset."
            )
        X_held, y_held, *held_weights = held_out
        dataset = Dataset(
            X_held, y_held, scale=None, weights=held_weights[0] if held_weights else None
        )
        return train[0], train[1], None if weights is None else train[2], dataset

    def _scorer(self, held_out: Dataset) -> Callable[[], float]:
        """Return a function that scores the network on examples, and keeps them on the device."""
        network, device = self.network_, self._device
        inputs = device.asarray(held_out.inputs, dtype=network.dtype)
        size, count = network.examples_at_once(tuple(inputs.shape[1:])), len(held_out)

        def score() -> float:
            parts = [
                network.forward(inputs[i : min(i + size, count), ...])
                for i in range(0, count, size)
            ]
            outputs = device.to_host(device.xp.concat(parts))
            return self._score_of(outputs, held_out) if np.isfinite(outputs).all() else math.nan

        return score

    # What the arrays and the network are.

    @property
    def coefs_(self) -> list[Array]:
        """The weights of the affine layers, in the library and on the device of fit's X."""
        return self._affine("W")

    @property
    def intercepts_(self) -> list[Array]:
        """The biases of the affine layers, in the library and on the device of fit's X."""
        return self._affine("b")

    def _affine(self, letter: str) -> list[Array]:
        name = "coefs_" if letter == "W" else "intercepts_"
        if "network_" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no {name} before fit")
        if self.network is not None:
            raise AttributeError(
                f"{name} are not available with network=; use estimator.network_.parameters()"
            )
        parameters = self.network_.parameters()
        own = [x for name, x in parameters.items() if name.startswith(letter)]
        return [self._placed(x, self._place) for x in own]

    def to(self, device: Device | str) -> Self:
        """Return a copy of the fitted estimator that predicts on arrays of another device.

        Parameters
        ----------
        device : Device or str
            As in `nnxp.device`: ``"cpu"`` for arrays of NumPy, ``"cuda"`` for those of CuPy,
            ``"torch:cpu"``, ``"torch:cuda"``, ``"jax"`` and so on.
        """
        check_is_fitted(self)
        target = open_device(device)
        moved = copy.copy(self)  # `__getstate__` copies its arrays to the host
        moved.network_ = moved.network_.to(target)
        moved._optimizer = moved_optimizer(moved._optimizer, open_device("cpu"), target)
        moved._place = target
        return moved

    def __sklearn_array_api_convert__(self, converter: Callable[[Any], Any]) -> Self:
        return self.to(device_holding(converter(np.zeros(1))))

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes with NumPy arrays, so that a pickle needs no other library."""
        state: dict[str, Any] = super().__getstate__().copy()
        if "network_" in state:
            host = open_device("cpu")
            state["network_"] = self.network_.to(host)
            state["_optimizer"] = moved_optimizer(self._optimizer, self._device, host)
            state["_place"], state["_trainer"] = host, None
        return state

    @property
    def _device(self) -> Device:
        """The device of the network."""
        device = self.network_.device
        assert device is not None
        return device

    def _require_finite(self, x: npt.NDArray[Any]) -> None:
        if not np.isfinite(x).all():
            raise InputError(
                "Solver produced non-finite parameter weights. The input data may contain large "
                "values and need to be preprocessed, such as by "
                "sklearn.preprocessing.StandardScaler()"
            )

    def _outputs(self, X: Any, method: str) -> tuple[Array, Device]:
        """Return the network's outputs, and the device that predictions belong to."""
        check_is_fitted(self)
        place = self._place_of(X, method, known=True)
        X = validate_data(self, X, dtype=dtypes(place), reset=False)
        network, device = self.network_, self._device
        if place != device:
            X = place.to_host(X)
        elif not place.is_host:
            X = place.asarray(X, dtype=network.dtype)
        if isinstance(X, np.ndarray):
            X = X.astype(network.dtype, copy=False)
        with device.current():
            return network.predict(X), place

    def _place_of(self, X: Any, method: str, known: bool) -> Device:
        """Return the device that an input is on, which must be that of fit if it is `known`."""
        if not sklearn.get_config()["array_api_dispatch"]:
            require_host(X)
            return open_device("cpu")
        if not known:
            return device_holding(X)
        if self._place.holds(X):
            return self._place
        place = device_holding(X)
        if place != self._place:
            name = type(self).__name__
            raise InputError(
                f"Inputs passed to {name}.{method}() must use the same namespace and the same "
                f"device as those passed to fit(): {self._place.spec}, got {place.spec}; use "
                f'estimator.to("{place.spec}")'
            )
        return place

    def _placed(self, outputs: Array, place: Device) -> Array:
        """Return the network's outputs on the device that predictions belong to."""
        device = self._device
        return outputs if device == place else place.asarray(device.to_host(outputs))

    def _has_partial_fit(self) -> bool:
        if self.solver == "lbfgs":
            raise AttributeError(
                'partial_fit needs a solver that does single steps; use solver="adam" instead of '
                "lbfgs"
            )
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags
