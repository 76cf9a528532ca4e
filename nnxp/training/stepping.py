"""Stepping: a trainer's steps, captured if possible and plain otherwise."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from nnxp.arrays import Array
from nnxp.checks import optional_import, warn
from nnxp.data.batches import Batches
from nnxp.devices import Device
from nnxp.errors import DivergenceError, InputError
from nnxp.step import DoSteps, Step
from nnxp.training.divergence import Snapshot

if TYPE_CHECKING:
    from nnxp.capture import CapturedSteps, Contents


def require_capture(capture: object) -> bool | str:
    """Return `capture` if it is True, False or "auto"."""
    if capture != "auto" and not isinstance(capture, bool):
        raise InputError(f'capture must be True, False or "auto", got {capture!r}')
    return capture


def require_compiled(compiled: object, device: Device | None) -> bool | str:
    """Return `compiled` if it is True, False or "auto".

    True needs a network on NumPy. The device is the network's, or None if it is unknown.
    """
    if compiled != "auto" and not isinstance(compiled, bool):
        raise InputError(f'compiled must be True, False or "auto", got {compiled!r}')
    if compiled is True and device is not None and not device.is_host:
        raise InputError(
            f"compiled=True is for NumPy, and the network is on {device.spec}; omit compiled=True"
        )
    if compiled is True:
        optional_import("llvmlite", "fast")
    return compiled


def repays_compiling(step: Step, batches: Batches, steps: int) -> bool:
    """Return whether compiled code saves more time in `steps` steps than compiling takes.

    The result depends only on the network, the data and the number of steps, and not on measured
    times, so that repeated training is bit-identical.
    """
    if not batches.device.is_host:
        return False
    largest = step.network.work(tuple(batches.dataset.inputs.shape[1:])).numbers
    numbers = sum(math.prod(x.shape) for x in step.network.parameters().values()) * len(
        step.optimizer.state
    )
    numbers += batches.batch_size * largest
    saved = steps * (_SAVED_BY_STEP + _SAVED_BY_NUMBER * numbers)
    return saved > _COMPILING and find_spec("llvmlite") is not None  # the slow search comes last


# Seconds, rounded, on a processor of 2.5 GHz.
_COMPILING = 0.4
_SAVED_BY_STEP = 4e-5
_SAVED_BY_NUMBER = 1e-9

_MAX_KEPT = 128 << 20  # bytes
_KEPT_SHARE = 8  # or this part of the device's free memory


class Stepper:
    """Chooses between captured and plain steps, and keeps captured ones for the next call.

    Attributes
    ----------
    captured : CapturedSteps or None
        The last captured steps.
    reason : str
        The reason for plain steps; empty if steps are captured.
    """

    def __init__(self) -> None:
        self.captured: CapturedSteps | None = None
        self.reason = "nothing was trained yet"
        # These are `capture`, whether the data are on the host, and whether to compile.
        self._chosen_for: tuple[bool | str, bool, bool] | None = None
        self._warned: list[object] = []  # reasons and parts of earlier warnings
        self._kept = contextlib.ExitStack()  # unbinds captured steps that stay bound
        self._bound: DoSteps | None = None  # does these steps

    @contextlib.contextmanager
    def bind(
        self,
        plain_step: Callable[[Array], Array],
        make_step: Callable[[], Step],
        batches: Batches,
        *,
        capture: bool | str,
        compiled: bool,
        own_step: bool,
        observed: bool,
        restores: bool,
        keeps: bool,
    ) -> Iterator[DoSteps]:
        """Provide the function that does a step for each batch, given the rows of the batches.

        It takes an iterable of row indices. If steps are observed, call it with one batch at a
        time.

        Parameters
        ----------
        plain_step : callable
            Does one plain step, given the row indices of a batch.
        make_step : callable
            Returns the current parts of a step.
        batches : Batches
        capture : bool or "auto"
            As in `Trainer`.
        compiled : bool
            Whether to compile the steps on NumPy.
        own_step : bool
            Whether a subclass overrides `Trainer.step`; captured steps would ignore its method.
        observed : bool
            Whether other code runs between steps, which may change the parts.
        restores : bool
            Whether to restore parameters and state if a `DivergenceError` is raised.
        keeps : bool
            Whether steps that are not observed may stay bound until the next call of `bind` or
            `unbind`, because no other code can see the arrays until then.
        """
        before: Snapshot | None = None

        def plain_steps(rows: Iterable[Array]) -> None:
            for each in rows:
                plain_step(each)

        def choose() -> AbstractContextManager[DoSteps]:
            nonlocal before
            step = make_step()
            captured = self._choose(plain_step, step, batches, capture, compiled, own_step)
            # Captured steps restore the values at the time of binding.
            if restores and before is None and (observed or captured is None):
                before = Snapshot(step.network, step.optimizer, batches.device)
            if captured is None:
                return contextlib.nullcontext(plain_steps)
            return captured.bind(batches, step.sums)

        try:
            if not observed:
                chosen_for = capture, batches.resident is None, compiled
                bound = self._start_bound(make_step(), chosen_for)
                bound = bound or self._kept.enter_context(choose())
                with self._kept as stack:
                    yield bound
                    if keeps:
                        self._kept, self._bound = stack.pop_all(), bound
                return
            with contextlib.ExitStack() as stack:
                chosen = stack.enter_context(choose())

                def checked_steps(rows: Iterable[Array]) -> None:
                    nonlocal chosen
                    if self.captured is not None and not self.captured.is_current(make_step()):
                        stack.close()
                        chosen = stack.enter_context(choose())
                    chosen(rows)

                yield checked_steps
        except DivergenceError:
            if before is not None:
                before.restore()
            raise

    def is_same(self, step: Step, batches: Batches) -> bool:
        """Return whether the captured steps are for this step; see `CapturedSteps.is_same`."""
        return self.captured is not None and self.captured.is_same(step, batches)

    def unbind(self) -> None:
        """Give network and optimizer their own arrays back if steps stayed bound."""
        self._bound = None
        self._kept.close()

    def _start_bound(self, step: Step, chosen_for: tuple[bool | str, bool, bool]) -> DoSteps | None:
        """Return the steps that stayed bound, for another epoch; None if new ones are needed."""
        bound, captured = self._bound, self.captured
        same = bound is not None and captured is not None and chosen_for == self._chosen_for
        if captured is None or not (same and captured.is_repeatable(step)):
            self.unbind()
            return None
        captured.restart(step.sums)
        self._bound = None
        return bound

    def vectors(self) -> list[Array]:
        """Return the vectors of the captured steps, while bound; see `CapturedSteps.vectors`."""
        return [] if self.captured is None else self.captured.vectors()

    def release(self, device: Device) -> None:
        """Free captured steps that hold much memory; others are kept for the next call."""
        free = device.free_memory() or 0
        if self.captured is not None and self.captured.nbytes > max(_MAX_KEPT, free // _KEPT_SHARE):
            self.captured = None

    def _choose(
        self,
        plain_step: Callable[[Array], Array],
        step: Step,
        batches: Batches,
        capture: bool | str,
        compiled: bool,
        own_step: bool,
    ) -> CapturedSteps | None:
        """Return the captured steps to train with, or None for plain steps; set `reason`."""
        from nnxp.capture import choose, contents_of, disagreement

        self.reason = ""
        if capture is False:
            self.captured, self.reason = None, "capture is False"
            return None
        chosen_for = capture, batches.resident is None, compiled
        kept = None if own_step or chosen_for != self._chosen_for else self.captured
        is_same = kept is not None and kept.is_same(step, batches)
        if not step.ranks.any(not is_same):  # all ranks choose together, and exchange below
            return kept
        self._chosen_for = chosen_for
        kind, reason = choose(step, batches, compiled=compiled)
        causes: list[object] = [reason]
        if kind is not None and own_step:
            reason = "the trainer's class overrides step"
            causes = [reason]
        elif kind is not None:
            contents = contents_of(step)
            prepare = partial(self._prepare, kind, step, batches, contents)
            refusal = disagreement(prepare, plain_step, step, batches) if contents.foreign else None
            if not step.ranks.any(refusal):  # all ranks must exchange in the same way
                return prepare()
            reason, causes = "another rank cannot capture it", ["another rank cannot capture it"]
            if refusal is not None:
                reason, causes = str(refusal), refusal.parts
        self.captured, self.reason = None, reason
        new = [
            x
            for x in causes
            if not any(x is y or (isinstance(x, str) and x == y) for y in self._warned)
        ]
        if (capture is True or kind is not None) and new:
            self._warned += new
            warn(f"no step is captured: {reason}; plain steps are slower")
        return None

    def _prepare(
        self,
        kind: type[CapturedSteps],
        step: Step,
        batches: Batches,
        contents: Contents,
    ) -> CapturedSteps:
        """Return captured steps: those of the last call if they match."""
        captured = self.captured
        if type(captured) is not kind or not captured.matches(step, contents, batches):
            self.captured = captured = None  # frees its memory before the new one is allocated
            self.captured = captured = kind(step, batches)
        return captured
