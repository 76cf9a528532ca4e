"""Estimators: MLPClassifier and MLPRegressor with scikit-learn's interface."""

# ruff: noqa: N803 - X is scikit-learn's name

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, column_or_1d, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from nnxp.arrays import Array, describe
from nnxp.checks import (
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    require_count,
    require_number,
    unknown_name,
    warn,
)
from nnxp.data.dataset import Dataset
from nnxp.devices import Device, device_holding, open_device, require_dtype
from nnxp.errors import DivergenceError, InputError
from nnxp.layers import Dropout
from nnxp.layers.activations import ACTIVATIONS
from nnxp.losses import AbsoluteError, Huber, Loss
from nnxp.models import mlp
from nnxp.network import Sequential
from nnxp.optimizers import OPTIMIZERS, SGD, AdamW, Momentum, Nesterov, Optimizer
from nnxp.penalties import L2, ElasticNet, Penalty
from nnxp.schedules import Schedule
from nnxp.sklearn.fitting import Order, PlainAdam, Watch, minimize
from nnxp.sklearn.losses import SigmoidLosses, SoftmaxLoss, SquaredErrors
from nnxp.step import Step
from nnxp.training.trainer import Trainer

Builder: TypeAlias = Callable[..., Sequential]

_SHARE = (lambda x: 0 <= x <= 1, "a number from 0 to 1")
_RATES = ("constant", "invscaling", "adaptive")
_MAX_SEED = 2**31 - 1


class _Trainer(Trainer):
    """A trainer that takes inputs of any size, as estimators of scikit-learn do."""

    _hints_at_scale = False


class _MLP(BaseEstimator):
    """What both estimators have in common; see `MLPClassifier`."""

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
            Numbers. With array API dispatch, the device of this array is the one that is trained
            on, unless `device` is given.
        y : (examples,) or (examples, outputs) array_like
            Classes, rows of several labels 0 and 1, or targets.
        sample_weight : (examples,) array_like, optional
            How much each example counts, at least 0.

        Raises
        ------
        InputError
            If a parameter of the estimator is wrong, or the training diverges.
        ValueError, TypeError
            If scikit-learn does not take the data, such as sparse ones.
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
        y, sample_weight = _on_host(y), _on_host(sample_weight)
        X, y = self._validated(X, y, place, reset=not continues)
        X = np.ascontiguousarray(_on_host(X))
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
        """Make a new network with weights as scikit-learn draws them."""
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
        """Return the optimizer of the last training, or a new one."""
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
        """Return the penalty, divided by the weight of a batch, as scikit-learn's is."""
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
        trainer = self._trainer
        if trainer is None:
            trainer = _Trainer(self.network_, self._make_loss(), optimizer)
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
            self._trainer = None  # it is within an epoch
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
            warnings.warn(f"the training diverged: {error}", ConvergenceWarning, stacklevel=4)
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
        """Return the examples to train on, and those to validate on."""
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
        """Return a function that scores the network on examples, which it keeps on the device."""
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
                f"{name} are those of the estimator's own network; those of another one are "
                "estimator.network_.parameters()"
            )
        parameters = self.network_.parameters()
        return [self._from_network(x) for name, x in parameters.items() if name.startswith(letter)]

    def _from_network(self, x: Array) -> Array:
        """Return an array of the network in the library and on the device of fit's X."""
        return self._placed(x, self._place)

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
        moved = copy.copy(self)  # its arrays are those of copies on the host
        moved.network_ = moved.network_.to(target)
        moved._optimizer = _moved(moved._optimizer, open_device("cpu"), target)
        moved._place = target
        return moved

    def __sklearn_array_api_convert__(self, converter: Callable[[Any], Any]) -> Self:
        return self.to(device_holding(converter(np.zeros(1))))

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes with arrays of NumPy, so that a pickle needs no other library."""
        state: dict[str, Any] = super().__getstate__().copy()
        if "network_" in state:
            host = open_device("cpu")
            state["network_"] = self.network_.to(host)
            state["_optimizer"] = _moved(self._optimizer, self._device, host)
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
        X = validate_data(self, X, dtype=_dtypes(place), reset=False)
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
            _require_host(X)
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

    # Parameters.

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
                "dropout and batch_norm belong to the estimator's own network; put the layers into "
                "the network that network= returns"
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

    def _has_partial_fit(self) -> bool:
        if self.solver == "lbfgs":
            raise AttributeError(
                "partial_fit needs a solver that does single steps, which lbfgs does not"
            )
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags


class MLPClassifier(ClassifierMixin, _MLP):
    """A network of affine layers for classes, with the interface of scikit-learn's own.

    Parameters up to `max_fun` have the names, the defaults and the meaning of
    `sklearn.neural_network.MLPClassifier`, and the same random numbers are drawn from
    `random_state`. The differences are listed in docs/sklearn.md.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, optional
        The width of each hidden layer; none for a linear classifier.
    activation : str, optional
        ``"relu"``, ``"tanh"``, ``"logistic"`` or ``"identity"``; or another name that `nnxp.mlp`
        knows, such as ``"gelu"``.
    solver : str or Optimizer, optional
        ``"adam"``, ``"sgd"`` (with `momentum`) or ``"lbfgs"`` (of scipy); ``"momentum"``,
        ``"nesterov"``, ``"adagrad"``, ``"rmsprop"`` or ``"adamw"``; or an optimizer of nnxp, which
        is copied, and whose learning rate and other numbers are used.
    alpha : float, optional
        The L2 penalty of the weights, ``alpha / 2 * sum(w²)``, divided by the examples of a batch.
    batch_size : int or "auto", optional
        "auto" is 200, or all examples if they are fewer.
    learning_rate : str or Schedule, optional
        ``"constant"``; ``"invscaling"``, ``learning_rate_init / t ** power_t`` after `t` examples;
        ``"adaptive"``, a fifth each time that the training would stop, not below 1e-6; or a
        schedule of `nnxp.schedules`, by steps. Adam ignores the names.
    learning_rate_init, power_t : float, optional
        See `learning_rate`.
    max_iter : int, optional
        Epochs at most; iterations for lbfgs.
    shuffle : bool, optional
        Whether each epoch has a new order.
    random_state : int, numpy.random.RandomState or None, optional
        Draws weights, validation examples and orders; None draws other ones each time.
    tol, n_iter_no_change : float, optional
        The training ends once the loss (or the validation score) has not improved by `tol` for more
        than `n_iter_no_change` epochs. `tol` is that of the gradient for lbfgs.
    verbose : bool, optional
        Print loss and validation score of each epoch.
    warm_start : bool, optional
        Whether `fit` continues with the weights of the last call.
    momentum, nesterovs_momentum : optional
        Of ``"sgd"``; `momentum` is below 1.
    early_stopping, validation_fraction : optional
        Hold out a share of the examples, stratified unless there are several labels, score it after
        each epoch, and keep the weights with the best score.
    beta_1, beta_2, epsilon : float, optional
        Of Adam.
    max_fun : int, optional
        Calls of the loss at most, for lbfgs.
    dropout : float, optional
        The rate of a `nnxp.Dropout` after each activation; 0 for none.
    batch_norm : bool, optional
        Put a `nnxp.BatchNorm` before each activation.
    l1 : float, optional
        The L1 penalty of the weights, ``l1 * sum(|w|)``, divided as `alpha` is.
    network : callable, optional
        Makes another network: ``network(inputs, outputs, rng=…, dtype=…, device=…)`` returns a
        `nnxp.Sequential` from rows of `inputs` numbers to `outputs` scores, one for two classes.
        It takes the place of `hidden_layer_sizes` and `activation`.
    device : str or Device, optional
        Where to train, as in `nnxp.device`; by default where the arrays are, which is the CPU but
        for array API dispatch.
    dtype : str, optional
        ``"float32"`` or ``"float64"``; by default that of X, or float64 for other numbers.
    class_weight : dict, list of dict, "balanced" or None, optional
        How much the examples of each class count, as in other classifiers of scikit-learn.

    Attributes
    ----------
    classes_ : NumPy array
    coefs_, intercepts_ : list of array
        The parameters of the affine layers, where the arrays of `fit` were. They are read from
        `network_`.
    network_ : Sequential
        The network of nnxp.
    loss_, best_loss_ : float
    loss_curve_, validation_scores_ : list of float
    best_validation_score_ : float or None
    n_iter_, t_ : int
        Epochs of the last call, and examples of all calls.
    n_layers_, n_outputs_, n_features_in_ : int
    out_activation_ : str
    feature_names_in_ : array
        Of a DataFrame.

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
            Where X is; of NumPy if the classes are no numbers.
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
            Where X is.
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
            Where X is.
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
            Where X is.
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
        """Do one epoch on these examples.

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
        X, y = validate_data(self, X, y, multi_output=True, dtype=_dtypes(place), reset=reset)
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


class MLPRegressor(RegressorMixin, _MLP):
    """A network of affine layers for numbers, with the interface of scikit-learn's own.

    Parameters
    ----------
    loss : str, optional
        ``"squared_error"``, ``"absolute_error"`` or ``"huber"``.
    hidden_layer_sizes, …
        As in `MLPClassifier`, but for `class_weight`.

    Attributes
    ----------
    coefs_, …
        As in `MLPClassifier`, but for `classes_`.

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
            Where X is.
        """
        outputs, place = self._outputs(X, "predict")
        return self._placed(outputs[:, 0] if self.n_outputs_ == 1 else outputs, place)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the coefficient of determination R² of the predictions.

        It is computed on the host, since that of scikit-learn changes arrays in place.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        """
        predicted = _on_host(self.predict(X))
        return float(r2_score(_on_host(y), predicted, sample_weight=_on_host(sample_weight)))

    @available_if(lambda self: self._has_partial_fit())
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Do one epoch on these examples.

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
            dtype=_dtypes(place),
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


def _dtypes(place: Device) -> list[Any]:
    """Return the dtypes in which a device computes; others are converted to the first."""
    names = ["float32"] if place.spec.endswith(":mps") else ["float64", "float32"]
    return [getattr(place.xp, name) for name in names]


def _on_host(x: Any) -> Any:
    """Return an array of another library as one of NumPy, and anything else as it is."""
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack__"):
        return x
    return device_holding(x).to_host(x)


def _require_host(x: Any) -> None:
    """Raise an `InputError` if an array of another library cannot become one of NumPy."""
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack__"):
        return
    try:
        np.asarray(x)
    except Exception as error:
        raise InputError(
            f"scikit-learn takes {describe(x)} with array API dispatch alone; set "
            "SCIPY_ARRAY_API=1 in the environment before Python starts, and call "
            "sklearn.set_config(array_api_dispatch=True)"
        ) from error


def _moved(optimizer: Optimizer, source: Device, target: Device) -> Optimizer:
    """Return a copy of an optimizer, with its state on another device."""
    moved = copy.copy(optimizer)
    moved.state = {
        slot: {name: target.asarray(source.to_host(x)) for name, x in arrays.items()}
        for slot, arrays in optimizer.state.items()
    }
    return moved
