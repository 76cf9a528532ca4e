"""Choose: the class of captured steps for a network, a loss and an optimizer on a device."""

from __future__ import annotations

import itertools
from typing import Any

from nnxp.capture.base import CapturedSteps
from nnxp.capture.ops import address
from nnxp.data.batches import Batches
from nnxp.step import Step


def choose(
    step: Step, batches: Batches, *, compiled: bool = False
) -> tuple[type[CapturedSteps] | None, str]:
    """Return the class of captured steps to train with; or None, and the reason.

    Parameters
    ----------
    step : Step
    batches : Batches
    compiled : bool, optional
        Whether to compile the steps on NumPy.
    """
    library = batches.device.spec.partition(":")[0]
    if library not in ("cpu", "jax", "cuda"):
        return None, f"there are no captured steps for {batches.device.spec}"
    if library != "cpu" and batches.resident is None:
        return None, "the data set is not on the device"
    parameters, states = (list(arrays.values()) for arrays in step.network.arrays())
    if len({id(x) for x in [*parameters, *states]}) < len(parameters) + len(states):
        return None, "two layers of the network share an array"
    if library == "jax" and step.ranks.size > 1:
        return None, "a step that JAX has compiled cannot exchange gradients between ranks"
    if library == "jax":
        from nnxp.capture.jax import JaxSteps

        return JaxSteps, ""
    if not _can_move(parameters):
        return None, "parameters of the network overlap in memory, or are not C-contiguous"
    if library == "cpu" and compiled:
        from nnxp.capture.compiled import CompiledReplay

        return CompiledReplay, ""
    if library == "cpu":
        from nnxp.capture.replay import Replay

        return Replay, ""
    if step.exchanges_within():
        return None, "a CUDA graph cannot exchange the statistics of layers between ranks"
    from nnxp.capture.cupy import GraphReplay

    return GraphReplay, ""


def _can_move(arrays: list[Any]) -> bool:
    """Return whether NumPy's or CuPy's arrays can move to other memory without changing a result.

    Overlapping arrays would lose their overlap, and an array that is not in C order would be
    multiplied in another order.
    """
    if not all(x.flags.c_contiguous for x in arrays):
        return False
    spans = sorted((start := address(x), start + x.nbytes) for x in arrays)
    return all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
