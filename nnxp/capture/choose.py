"""Choice: which faster way to train there is, for these parts on this device."""

from __future__ import annotations

import importlib
import itertools

from nnxp.capture.base import CapturedSteps
from nnxp.data.batches import Batches
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer


def choose(
    capture: bool | str, network: Sequential, loss: Loss, optimizer: Optimizer, batches: Batches
) -> tuple[type[CapturedSteps] | None, str]:
    """Return the faster way to train these by batches; or None, and why there is none.

    Parameters
    ----------
    capture : bool or "auto"
        As in `Trainer`.
    network, loss, optimizer, batches
        What is trained.
    """
    library = batches.device.spec.partition(":")[0]
    # The graph has not yet been measured on a GPU, so nobody gets it unasked.
    if library not in ("cpu", "jax", "cuda") or (library == "cuda" and capture == "auto"):
        return None, f"there is nothing faster on {batches.device.spec}"
    # What parts of other making do may depend on more than arrays, as a random draw does, or on
    # whose parameter it is.
    for part in (network, *network.layers, loss, optimizer):
        if type(part).__module__.partition(".")[0] != "nnxp":
            return None, f"{part!r} is not nnxp's own, and may do otherwise at each step"
    if library != "cpu" and batches.resident is None:
        return None, "the data set is not on the device"
    arrays = network.parameters().values()
    if len({id(x) for x in arrays}) < len(arrays):
        return None, "its layers share parameters"
    if library == "jax":
        from nnxp.capture.jax import JaxSteps

        return JaxSteps, ""
    if not _may_move(network):
        return None, "its parameters overlap in memory, or do not lie there row by row"
    if library == "cpu":
        from nnxp.capture.replay import Replay

        return Replay, ""
    from nnxp.capture.cupy import GraphReplay

    return GraphReplay, ""


def _may_move(network: Sequential) -> bool:
    """Tell whether the parameters may move into other memory, and are computed with alike there.

    What overlaps cannot lie in two places, and in other than C order it would be multiplied in
    another order.
    """
    arrays = list(network.parameters().values())
    library = importlib.import_module(type(arrays[0]).__module__.partition(".")[0])
    return all(x.flags.c_contiguous for x in arrays) and not any(
        library.may_share_memory(x, y) for x, y in itertools.combinations(arrays, 2)
    )
