"""Step: one training step: forward, loss, backward, penalty, transforms, update."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from nnxp.arrays import Array
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.penalties import Penalty
from nnxp.transforms import Transform, transform_gradients


class Step:
    """The training step of a network, a loss and an optimizer.

    `Trainer.step`, captured steps and the search for a divergence all do this step.

    Parameters
    ----------
    network : Sequential
    loss : Loss
    optimizer : Optimizer
    penalty : Penalty, optional
    transforms : tuple of Transform, optional
        Applied to the gradients, the penalty's included, one after the other.
    """

    def __init__(
        self,
        network: Sequential,
        loss: Loss,
        optimizer: Optimizer,
        penalty: Penalty | None = None,
        transforms: tuple[Transform, ...] = (),
    ) -> None:
        self.network, self.loss, self.optimizer = network, loss, optimizer
        self.penalty, self.transforms = penalty, transforms

    @property
    def parts(self) -> tuple[object, ...]:
        """All parts, and the transforms that are functions."""
        penalties = () if self.penalty is None else (self.penalty,)
        return self.network, self.loss, self.optimizer, *penalties, *self.transforms

    def with_copies(self, network: Sequential, optimizer: Optimizer) -> Step:
        """Return the same step for a copy of the network and of the optimizer."""
        return Step(network, copy.copy(self.loss), optimizer, self.penalty, self.transforms)

    def __call__(self, inputs: Array, labels: Array) -> Array:
        """Do one update and return the loss before it, the penalty included, as a 0-d array."""
        value = self.backpropagate(inputs, labels)
        if self.penalty is not None:
            value = value + self.penalty.value(self.network.parameters().trainable)
        self.update(self.gradients())
        return value

    def backpropagate(self, inputs: Array, labels: Array) -> Array:
        """Compute the gradients of the loss in the layers, and return the loss as a 0-d array.

        Parameters
        ----------
        inputs : (batch, …) array
        labels : array
            As `nnxp.data.Batches` yields them.
        """
        scores = self.network.forward(inputs, training=True)
        value = self.loss.forward(scores, labels)
        skips = self.network.skips_inputs()
        backward = self.network.backward_parameters if skips else self.network.backward
        backward(self.loss.backward())
        return value

    def gradients(self) -> Mapping[str, Array]:
        """Return the layers' gradients with those of the penalty, after all transforms."""
        grads: Mapping[str, Array] = self.network.gradients()
        params = self.network.parameters()
        if self.penalty is not None:
            grads = self.penalty.add_gradients(params, grads)
        return transform_gradients(self.transforms, params, grads) if self.transforms else grads

    def update(self, gradients: Mapping[str, Array]) -> None:
        """Update the parameters by these gradients, and count the step."""
        steps = self.optimizer.steps
        self.optimizer.update(self.network.parameters(), gradients)
        if self.optimizer.steps is steps:  # an optimizer of the user's that does not count
            self.optimizer.steps += 1
