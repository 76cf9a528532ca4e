"""Step: one training step: prepare the batch, forward, loss, backward, update."""

from __future__ import annotations

from nnxp.arrays import Array
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer


class Step:
    """The training step of a network, a loss and an optimizer.

    `Trainer.step`, captured steps and the search for a divergence all do this step.

    Parameters
    ----------
    network : Sequential
    loss : Loss
    optimizer : Optimizer
    """

    def __init__(self, network: Sequential, loss: Loss, optimizer: Optimizer) -> None:
        self.network, self.loss, self.optimizer = network, loss, optimizer

    def __call__(self, inputs: Array, labels: Array) -> Array:
        """Do one update and return the loss before it, as a 0-d array."""
        value = self.gradients(inputs, labels)
        self.update()
        return value

    def gradients(self, inputs: Array, labels: Array) -> Array:
        """Compute the gradients of all parameters, and return the loss as a 0-d array.

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

    def update(self) -> None:
        """Update the parameters by the gradients, and count the step."""
        steps = self.optimizer.steps
        self.optimizer.update(self.network.parameters(), self.network.gradients())
        if self.optimizer.steps is steps:  # an optimizer of the user's that does not count
            self.optimizer.steps += 1
