"""Trial: compares captured steps with plain ones, for parts that are not nnxp's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from nnxp.arrays import Array, namespace_of
from nnxp.capture.base import CapturedSteps
from nnxp.data.batches import Batches
from nnxp.losses import Loss
from nnxp.network import Sequential
from nnxp.optimizers import Optimizer
from nnxp.parts import Part, Setting, is_own

# Methods that a step calls; a part that replaces one of them is tried like a user's part.
_METHODS = (
    "forward", "backward", "backward_parameters", "save_for_backward", "saved", "update", "require",
    "_update_one", "factors",
)  # fmt: skip
# Arrays and counters that a step is expected to change, and what it saves for backward.
_DECLARED = {"params", "grads", "state", "steps", "_saved", "_trained"}

Values = dict[str, dict[str, np.ndarray[Any, Any]]]


def foreign_parts(network: Sequential, loss: Loss, optimizer: Optimizer) -> list[Part]:
    """Return the parts that are not nnxp's own, or have a replaced method."""
    parts = [*_all_layers(network), loss, optimizer]
    return [part for part in parts if not _is_unchanged(part)]


def _all_layers(network: Sequential) -> Iterator[Part]:
    yield network
    for layer in network.layers:
        yield from _all_layers(layer) if isinstance(layer, Sequential) else [layer]


def _is_unchanged(part: Part) -> bool:
    kind = type(part)
    if not is_own(kind) or vars(part).keys() & set(_METHODS):
        return False
    methods = (getattr(kind, name, None) for name in _METHODS)
    return all(x is None or x.__module__.partition(".")[0] == "nnxp" for x in methods)


def disagreement(
    captured: Callable[[], CapturedSteps],
    step: Callable[[Array, Array], Array],
    network: Sequential,
    loss: Loss,
    optimizer: Optimizer,
    batches: Batches,
) -> str | None:
    """Return why captured steps must not replace plain ones; None if both agree.

    Two plain steps and two captured ones are done from the same state, with different batches and
    with different numbers of the optimizer. Afterwards everything is as before.

    Parameters
    ----------
    captured : callable
        Returns the captured steps.
    step : callable
        Does one plain step.
    network, loss, optimizer, batches
        What is trained.
    """
    parts: list[Part] = [*_all_layers(network), loss, optimizer]
    start = _values(network, optimizer, batches)
    with _restored(parts):
        for i, rows in enumerate(_two_batches(batches)):
            _change_numbers(optimizer, 0.5**i)
            before = [_attributes(part) for part in parts]
            step(*batches.take(rows))
            after = [_attributes(part) for part in parts]
        plain = _values(network, optimizer, batches)
    for part, old, new in zip(parts, before, after, strict=True):
        changed = [name for name in old.keys() | new.keys() if old.get(name) != new.get(name)]
        if changed:
            return (
                f"a step changes {', '.join(sorted(changed))} of {part!r}, which is not in its "
                "state"
            )
    try:
        with _restored(parts), captured().bind(batches) as captured_step:
            for i, rows in enumerate(_two_batches(batches)):
                _change_numbers(optimizer, 0.5**i)
                captured_step(rows)
            replayed = _values(network, optimizer, batches)
    except Exception as error:
        if batches.device.is_memory_error(error):
            raise
        return f"it cannot be captured ({type(error).__name__}: {error})"
    return _difference(start, plain, replayed)


def _two_batches(batches: Batches) -> list[Array]:
    """Return the row indices of two different batches, if there are enough examples."""
    count = len(batches.dataset)
    size = min(batches.batch_size, count)
    return [batches.indices(np.arange(start, start + size)) for start in (0, count - size)]


def _change_numbers(optimizer: Optimizer, factor: float) -> None:
    """Multiply all numbers of an optimizer; an epsilon becomes large.

    A large epsilon keeps gradients that are only rounding errors, such as that of a bias before a
    BatchNorm, from being scaled up to the size of a step.
    """
    for kind in type(optimizer).__mro__:
        for name, x in vars(kind).items():
            if isinstance(x, Setting) and name in vars(optimizer):
                number = 0.1 if name == "epsilon" else getattr(optimizer, name)
                setattr(optimizer, name, number * factor)


def _values(network: Sequential, optimizer: Optimizer, batches: Batches) -> Values:
    """Return copies of all arrays that a step changes, on the host, by kind and name."""
    kinds: dict[str, Any] = {"parameter": network.parameters(), "state": network.states()}
    kinds |= {f"{slot} of": arrays for slot, arrays in optimizer.state.items()}
    return {
        kind: {name: np.array(batches.device.to_host(x)) for name, x in arrays.items()}
        for kind, arrays in kinds.items()
    }


def _difference(start: Values, plain: Values, replayed: Values) -> str | None:
    """Return which array differs by more than rounding errors; None if none does.

    Rounding errors of a step are some hundred units u of the change at most; a forgotten
    dependence changes a result by a share of the change. The bound sqrt(u) lies between.
    """
    for kind, arrays in plain.items():
        if arrays.keys() != replayed[kind].keys():
            return f"captured steps have other names of {kind} than plain ones"
        changes = [abs(x - start[kind].get(name, 0)) for name, x in arrays.items()]
        change = max((float(x.max()) for x in changes if x.size), default=0.0)
        for name, x in arrays.items():
            if x.dtype.kind != "f":
                if not np.array_equal(x, replayed[kind][name]):
                    return f"{kind} {name} differs from that of a plain step"
                continue
            unit = float(np.finfo(x.dtype).eps)
            bound = unit**0.5 * change + 16 * unit * float(abs(x).max(initial=0.0))
            if not float(abs(x - replayed[kind][name]).max(initial=0.0)) <= bound:
                return f"{kind} {name} differs from that of a plain step"
    return None


def _attributes(part: Part) -> dict[str, Any]:
    """Return what a part's undeclared attributes are, in a form that can be compared."""
    return {name: _snapshot(x) for name, x in vars(part).items() if name not in _DECLARED}


def _snapshot(x: Any) -> Any:
    if isinstance(x, np.random.Generator):
        return repr(x.bit_generator.state)
    if isinstance(x, np.ndarray):
        return x.tobytes()
    if isinstance(x, (bool, int, float, complex, str, bytes, type(None))):
        return x
    if isinstance(x, (list, tuple)):
        return [_snapshot(y) for y in x]
    if isinstance(x, dict):
        return {str(name): _snapshot(y) for name, y in x.items()}
    return id(x)


@contextmanager
def _restored(parts: Iterable[Part]) -> Iterator[None]:
    """Restore all parts at the end: arrays, attributes and generators."""
    kept = [(part, _keep(vars(part))) for part in parts]
    try:
        yield
    finally:
        for _, restore in kept:
            restore()


def _keep(x: Any) -> Callable[[], Any]:
    """Return a function that gives a value its present contents again, and returns it."""
    if isinstance(x, np.random.Generator):
        state = x.bit_generator.state

        def restore_generator() -> Any:
            x.bit_generator.state = state
            return x

        return restore_generator
    if isinstance(x, dict):
        items = {name: _keep(y) for name, y in x.items()}

        def restore_dict() -> Any:
            restored = {name: restore() for name, restore in items.items()}
            x.clear()
            x.update(restored)
            return x

        return restore_dict
    if isinstance(x, list):
        entries = [_keep(y) for y in x]

        def restore_list() -> Any:
            x[:] = [restore() for restore in entries]
            return x

        return restore_list
    if hasattr(x, "__dlpack__"):
        copied = namespace_of(x, "a trial").asarray(x, copy=True)

        def restore_array() -> Any:
            with contextlib.suppress(TypeError):  # immutable, and so unchanged
                x[...] = copied
            return x

        return restore_array
    return lambda: x
