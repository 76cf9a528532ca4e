"""Predicting: the forward pass of a network as machine code, for inputs of one shape."""

from __future__ import annotations

import math
import threading
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

from nnxp.capture.compiled import CompiledOps, join
from nnxp.capture.contents import Contents, name_of
from nnxp.capture.ops import Buffer
from nnxp.capture.program import compile_program
from nnxp.capture.recorded import Recorded
from nnxp.capture.tape import Tape
from nnxp.data_format import (
    check_magnitude,
    needs_check,
    prepare_inputs,
    prepared_examples,
    require_examples,
    scale_for,
)
from nnxp.devices import Device
from nnxp.errors import InputError
from nnxp.network import Sequential


class CompiledPredictions:
    """A function that predicts as a network does now; see `Sequential.compiled`."""

    def __init__(self, network: Sequential, x: Any) -> None:
        copied = network.to("cpu")
        foreign = Contents([copied], lambda part: ()).foreign
        if foreign:
            raise InputError(
                f"compiled takes networks of nnxp's own layers, got {name_of(foreign[0])}; "
                "predict with network.predict"
            )
        self._known, self._device = copied.data_format, cast(Device, copied.device)
        self._network_dtype = str(copied.dtype)
        x = self._require(x)
        self._inputs: Buffer = np.zeros(x.shape, x.dtype)
        tape = Tape(CompiledOps.whole)
        scale, dtype = scale_for(x, self._known), self._network_dtype
        inputs = prepare_inputs(tape.read(self._inputs), scale, tape.device, dtype)
        outputs = copied.to(tape.device).forward(inputs)
        self._outputs: Buffer = np.empty(outputs.shape, dtype)
        self._largest: Buffer = np.zeros((), dtype)
        targets = [(cast(Recorded, outputs), self._outputs)]
        if needs_check(x, self._known):
            xp: Any = tape.namespace
            targets.append((xp.max(xp.abs(inputs)), self._largest))
        self._program = join(compile_program(tape, targets, CompiledOps()).program)
        self._lock = threading.Lock()  # of the buffers

    def _require(self, x: Any) -> npt.NDArray[Any]:
        x = require_examples(x, self._known)
        if not isinstance(x, np.ndarray):
            self._device.require(x, "the network")
        return cast("npt.NDArray[Any]", x)

    def __call__(self, x: Any) -> npt.NDArray[Any]:
        """Return the outputs for inputs of the compiled shape and dtype."""
        own, known = self._inputs, self._known
        if type(x) is not np.ndarray or x.shape != own.shape or x.dtype != own.dtype:
            x = self._require(x)
            if x.shape != own.shape or x.dtype != own.dtype:
                raise InputError(
                    f"this function was compiled for inputs of shape {own.shape} and {own.dtype}, "
                    f"got {x.shape} and {x.dtype}; compile another one with network.compiled(x), "
                    "or call network.predict(x)"
                )
        with self._lock:
            own[...] = x
            for call in self._program:
                call()
            largest, y = self._largest.item(), self._outputs.copy()
        if not math.isfinite(largest):  # the preparation of `predict` raises the error
            list(prepared_examples(x, len(x), known, self._device, self._network_dtype))
        if known is not None and needs_check(own, known):
            check_magnitude(x, known, largest, self._device)
        return y

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a function of network.compiled cannot be copied or pickled; copy the network, and "
            "compile the copy"
        )
