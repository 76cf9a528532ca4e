"""Fitting: scikit-learn's orders of examples, its stopping rules, and L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array
from nnxp.data.batches import prepare_batch
from nnxp.data.dataset import Dataset
from nnxp.devices.threads import limit_blas_threads
from nnxp.history import Record
from nnxp.network import Sequential
from nnxp.optimizers import Adam, Optimizer
from nnxp.step import Step
from nnxp.training.callback import Callback
from nnxp.training.trainer import Trainer

if TYPE_CHECKING:
    from nnxp.sklearn.base import MLP

_LEAST_RATE = 1e-6  # training ends when the adaptive learning rate reaches it, as in scikit-learn


class Order(np.random.Generator):
    """Draws the same orders of the examples as scikit-learn's estimators.

    Each order is a permutation of the previous one.

    Parameters
    ----------
    random_state : numpy.random.RandomState
    shuffled : bool
        Whether to draw; otherwise the examples keep the order of the data.
    """

    def __init__(self, random_state: np.random.RandomState, shuffled: bool) -> None:
        super().__init__(np.random.PCG64(0))  # its state counts the orders
        self._random_state, self._shuffled = random_state, shuffled
        self._drawn: tuple[object, Any] = (None, None)
        self._rows = np.arange(0)

    def permutation(self, x: Any, axis: int = 0) -> Any:
        """Return the next order of `x` examples.

        If the state was set back to repeat an epoch, it is the last order again.
        """
        drawn = self.bit_generator.random_raw()  # the same again after the state was set back
        known, order = self._drawn
        if drawn != known:
            rows = self._rows if len(self._rows) == x else np.arange(x)
            self._rows = rows
            order = rows if order is None else order
            if self._shuffled:
                chosen = rows.copy()
                self._random_state.shuffle(chosen)
                order = order[chosen]
            self._drawn = drawn, order
        return order


class PlainAdam(Adam):
    """Adam with epsilon added to the square root before the bias correction.

    See Kingma and Ba 2015, end of section 2. scikit-learn computes Adam in this way.
    """

    elementwise = True

    def factors(self) -> tuple[float, ...]:
        """Return the numbers of `Adam.factors`, with epsilon unchanged."""
        numbers = super().factors()
        return numbers[0], self.epsilon, *numbers[2:]


class Watch(Callback):
    """Records an estimator's training, changes its learning rate, and stops it.

    Parameters
    ----------
    estimator : MLP
    examples : int
        The number of examples in an epoch.
    rate : str
        ``"constant"``, ``"invscaling"`` or ``"adaptive"``.
    first_rate : float
        The learning rate from which ``"invscaling"`` falls.
    score : callable or None
        Returns the validation score; None without early stopping.
    """

    _holds_arrays = False

    def __init__(
        self,
        estimator: MLP,
        examples: int,
        rate: str,
        first_rate: float,
        score: Callable[[], float] | None,
    ) -> None:
        self.estimator, self.examples, self.score = estimator, examples, score
        self.rate, self.first_rate = rate, first_rate
        self.best: tuple[dict[str, Array], dict[str, Array]] | None = None
        self.converged = False

    def epoch(self, trainer: Trainer, record: Record) -> bool:
        """Record the epoch, and return whether to stop training."""
        e = self.estimator
        penalty = record.get("penalty", 0.0)
        loss = penalty + (record.train_loss - penalty) / e._outputs_in_loss()
        e.n_iter_ += 1
        e.t_ += self.examples
        e.loss_ = loss
        e.loss_curve_.append(loss)
        if e.verbose:
            print(f"Iteration {e.n_iter_}, loss = {loss:.8f}")
        if self.score is None:
            better = not loss > e.best_loss_ - e.tol
            e.best_loss_ = min(loss, e.best_loss_)
        else:
            score = self.score()
            e.validation_scores_.append(score)
            if e.verbose:
                print(f"Validation score: {score:f}")
            better = not score < e.best_validation_score_ + e.tol
            if score > e.best_validation_score_:
                e.best_validation_score_ = score
                self.best = copies(trainer.network)
        e._no_improvement_count = 0 if better else e._no_improvement_count + 1
        if self.rate == "invscaling":
            self._set_rate(trainer.optimizer, self.first_rate / (e.t_ + 1) ** e.power_t)
        if e._no_improvement_count > e.n_iter_no_change:
            self.converged = self._stops(trainer)
        return self.converged

    def _set_rate(self, optimizer: Optimizer, rate: float) -> None:
        """Change the rate; velocities keep the old rate, since they are parts of past steps."""
        if self.estimator.solver == "sgd":
            velocities = optimizer.state.get("velocity", {})
            for name in velocities:
                velocities[name] = velocities[name] * (optimizer.learning_rate / rate)
        optimizer.learning_rate = rate

    def _stops(self, trainer: Trainer) -> bool:
        e = self.estimator
        figure = "Training loss" if self.score is None else "Validation score"
        message = (
            f"{figure} did not improve more than tol={e.tol:f} for {e.n_iter_no_change} "
            "consecutive epochs."
        )
        optimizer = trainer.optimizer
        stops = self.rate != "adaptive" or optimizer.learning_rate <= _LEAST_RATE
        if stops and self.rate == "adaptive":
            message += " Learning rate too small."
        if not stops:
            self._set_rate(optimizer, optimizer.learning_rate / 5)
            e._no_improvement_count = 0
        if e.verbose:
            end = "Stopping." if stops else f"Setting learning rate to {optimizer.learning_rate:f}"
            print(f"{message} {end}")
        return stops


def copies(network: Sequential) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return copies of a network's parameters and state by name, on its device."""
    assert network.device is not None
    xp = network.device.xp
    parameters, states = (
        {name: xp.asarray(x, copy=True) for name, x in arrays.items()}
        for arrays in network.arrays()
    )
    return parameters, states


def minimize(
    step: Step, dataset: Dataset, *, iterations: int, calls: int, tolerance: float, verbose: bool
) -> Any:
    """Minimize the loss of all examples with L-BFGS, and return scipy's result.

    Parameters
    ----------
    step : Step
        Its network, loss and penalty are used.
    dataset : Dataset
    iterations, calls : int
        The largest numbers of iterations, and of calls of the loss and its gradient.
    tolerance : float
        Minimization ends when no number of the gradient is larger.
    verbose : bool
        Whether to print the loss of each iteration.

    Returns
    -------
    scipy.optimize.OptimizeResult
    """
    from scipy.optimize import minimize as scipy_minimize

    network = step.network
    device, dtype = network.device, network.dtype
    assert device is not None
    assert dtype is not None
    batch = prepare_batch(dataset.arrays, dataset.scale, device, dtype)
    parameters = network.parameters()
    names = list(parameters.trainable)
    shapes = [tuple(parameters[name].shape) for name in names]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def flat(arrays: Any) -> npt.NDArray[np.float64]:
        vectors = [device.xp.reshape(arrays[name], (-1,)) for name in names]
        return device.to_host(device.xp.concat(vectors)).astype("float64")

    def place(vector: npt.NDArray[np.float64]) -> None:
        parts = np.split(vector.astype(dtype), ends)
        for name, part, shape in zip(names, parts, shapes, strict=True):
            parameters.place(name, device.asarray(part.reshape(shape)))

    def value_and_gradient(vector: Any) -> tuple[float, npt.NDArray[np.float64]]:
        place(vector)
        value = step.backpropagate(*batch)
        if step.penalty is not None:
            value = value + step.penalty.value(parameters.trainable)
        return float(value), flat(step.gradients())

    iteration = 0

    def report(intermediate_result: Any) -> None:
        nonlocal iteration
        iteration += 1
        if verbose:
            print(f"Iteration {iteration}, loss = {intermediate_result.fun:.8f}")

    work = network.work(tuple(dataset.inputs.shape[1:])).multiplications
    with device.session(lambda: f"L-BFGS of {network!r}"), limit_blas_threads(len(dataset) * work):
        result = scipy_minimize(
            value_and_gradient,
            flat(parameters),
            method="L-BFGS-B",
            jac=True,
            callback=report,
            options={"maxfun": calls, "maxiter": iterations, "gtol": tolerance},
        )
        place(result.x)
    return result
