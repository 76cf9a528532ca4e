"""Recording: calls of the standard written down once, then replayed in place.

A `Recorded` array belongs to a small array library of its own: immutable, like JAX's, and with
NumPy underneath. What layers, losses and optimizers do with such arrays goes on a tape. `compile`
turns the tape into a list of calls of a library (`calls`) whose arguments and results are laid out
in memory for good: a replay checks nothing, hardly allocates, and rounds as the plain calls do, but
for the products that `_joined` joins and large sums, which BLAS takes in another order. It serves
what nnxp's own parts call.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import numpy as np

from nnxp.arrays import Namespace
from nnxp.devices.base import Device
from nnxp.errors import InputError
from nnxp.fast.calls import Calls, Memory, NumpyCalls, Program, add_product, subtract_product


class Recorded:
    """An array whose calls are written on a tape.

    Attributes
    ----------
    sample : numpy.ndarray
        What the array may hold: its shape and dtype count, its numbers do not.
    owner : Recorded
        Whose memory this one is a view of; itself for most.
    """

    __array_ufunc__ = None  # NumPy arrays leave operators with a Recorded to it

    def __init__(self, tape: Tape, sample: Memory) -> None:
        self.tape = tape
        self.sample = sample
        self.owner = self

    dtype = property(lambda self: self.sample.dtype)
    shape = property(lambda self: self.sample.shape)
    ndim = property(lambda self: self.sample.ndim)
    size = property(lambda self: self.sample.size)
    device = "cpu"

    def __array_namespace__(self, api_version: str | None = None) -> Namespace:
        return self.tape.namespace

    @property
    def T(self) -> Any:  # noqa: N802 - the standard's name
        """The transpose of a matrix."""
        return self.tape.call(np.transpose, self)

    def __getitem__(self, key: Any) -> Any:
        return self.tape.call(operator.getitem, self, key)

    def __neg__(self) -> Any:
        return self.tape.call(np.negative, self)

    def _has_no_value(self, *_: object, **__: object) -> NoReturn:
        raise InputError(
            "a step that is recorded cannot look at its numbers, as float(x), bool(x) or x[...] = "
            "would"
        )

    __bool__ = __float__ = __int__ = __index__ = __iter__ = __setitem__ = _has_no_value
    __array__ = __dlpack__ = _has_no_value


def _operator(ufunc: np.ufunc) -> Callable[[Recorded, Any], Recorded]:
    return lambda self, other: self.tape.call(ufunc, self, other)


def _reflected(ufunc: np.ufunc) -> Callable[[Recorded, Any], Recorded]:
    return lambda self, other: self.tape.call(ufunc, other, self)


for _name, _ufunc in {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.divide,
    "matmul": np.matmul,
}.items():  # fmt: skip
    setattr(Recorded, f"__{_name}__", _operator(_ufunc))
    setattr(Recorded, f"__r{_name}__", _reflected(_ufunc))
for _name, _ufunc in {"eq": np.equal, "gt": np.greater, "ge": np.greater_equal}.items():
    setattr(Recorded, f"__{_name}__", _operator(_ufunc))


class _Call:
    """A call on the tape; `reads` are the recorded arrays among its arguments."""

    result: Recorded

    def __init__(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.reads: list[Recorded] = []
        _each([args, *kwargs.values()], self.reads.append)

    def bind(self, values: Callable[[Recorded], Memory]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments with plain arrays in place of recorded ones."""
        named = {name: _each(x, values) for name, x in self.kwargs.items()}
        return _each(list(self.args), values), named


class _Namespace:
    """The standard's functions, as a tape writes them down."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape

    def asarray(self, x: Recorded, *, copy: bool | None = None) -> Recorded:
        return x  # a copy of what cannot change is the same

    def __getattr__(self, name: str) -> Any:
        member = getattr(np, name)
        if isinstance(member, type) or not callable(member):
            return member  # a dtype or a number
        return partial(self._tape.call, member)


class Tape:
    """The calls between recorded arrays, in their order.

    Parameters
    ----------
    library : Calls, optional
        Does the calls; NumPy by default.

    Attributes
    ----------
    device : Device
        Where recorded arrays live: ``network.to(tape.device)`` is a network whose parameters
        stand for those of `network`.
    """

    def __init__(self, library: Calls | None = None) -> None:
        self._library = library or NumpyCalls()
        self.calls: list[_Call] = []
        self.memory: dict[Recorded, Memory] = {}
        self.namespace = _Namespace(self)
        self.device = Device(
            spec="recording",
            description="NumPy, recorded",
            xp=self.namespace,
            _array_type=Recorded,
            _handle="cpu",
            _from_host=self.read,
            _to_host=Recorded._has_no_value,
        )

    def read(self, memory: Memory) -> Recorded:
        """Return a recorded array that stands for what `memory` holds at each replay."""
        own = isinstance(memory, np.ndarray)
        recorded = Recorded(self, memory if own else np.zeros(memory.shape, memory.dtype))
        self.memory[recorded] = memory
        return recorded

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Try a function on samples, and write it down if it makes an array of arrays."""
        call = _Call(function, args, kwargs)
        sampled, named = call.bind(lambda x: x.sample)
        result = _sample(function, sampled, named)
        if not isinstance(result, (np.ndarray, np.generic)):
            return result
        recorded = call.result = Recorded(self, np.asarray(result))
        if not call.reads:
            return self.read(recorded.sample)
        for arg in call.reads:
            if result is arg.sample:
                return arg
            if np.may_share_memory(recorded.sample, arg.sample):
                recorded.owner = arg.owner
        self.calls.append(call)
        return recorded

    def compile(self, targets: Iterable[tuple[Recorded, Memory]]) -> Program:
        """Return the calls that bring the numbers of recorded arrays into their memories.

        A memory may be one that the tape reads: it is written after it was read for the last time.
        """
        targets = list(targets)
        kept = {recorded for recorded, _ in targets}
        wanted = set(kept)
        calls = []
        for call in reversed(self.calls):
            if call.result in wanted:
                calls.append(call)
                wanted.update(call.reads)
        return _lay_out(_joined(calls[::-1], kept), self.memory, targets, self._library)


def _sample(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Return what the function returns for samples; zeros like it where no work is needed."""
    with np.errstate(all="ignore"):
        if not isinstance(function, np.ufunc) or kwargs:
            return function(*args, **kwargs)
        shapes = [np.shape(x) for x in args]
        dtype = function(*[x[(slice(1),) * x.ndim] if np.ndim(x) else x for x in args]).dtype
        if function.signature is None:
            return np.zeros(np.broadcast_shapes(*shapes), dtype)
        if [len(shape) for shape in shapes] == [2, 2] and shapes[0][1] == shapes[1][0]:
            return np.zeros((shapes[0][0], shapes[1][1]), dtype)  # a matrix product
        return function(*args)


def _each(x: Any, function: Callable[[Recorded], Any]) -> Any:
    """Return `x` with the function's values for recorded arrays, also those in lists."""
    if isinstance(x, Recorded):
        return function(x)
    if isinstance(x, (list, tuple)):
        return type(x)([_each(y, function) for y in x])
    return x


def _joined(calls: list[_Call], kept: set[Recorded]) -> list[_Call]:
    """Join each ``a @ b + row`` to one call, and each ``x - factor * (a @ b)`` that ends in `x`.

    The first is an affine layer. The second is how a weight matrix descends its gradient, which
    then takes no memory and no pass of its own; it is done as early as `x` may be overwritten. What
    is in the middle must serve nothing else.
    """
    made = {call.result: call for call in calls}
    readers = Counter(x.owner for call in calls for x in call.reads)

    def maker(x: Any, function: np.ufunc) -> _Call | None:
        call = made.get(x) if isinstance(x, Recorded) else None
        if call is None or call.function is not function or readers[x] > 1 or x in kept:
            return None
        return call

    for call in [call for call in calls if call.function is np.add]:
        product, row = maker(call.args[0], np.matmul), call.args[1]
        like = product and (product.result.shape[1:], product.result.dtype)
        if product and isinstance(row, Recorded) and (row.shape, row.dtype) == like:
            joined = _Call(add_product, (row, *product.args), {})
            joined.result = call.result
            calls = [joined if c is call else c for c in calls if c is not product]
    for call in [call for call in calls if call.function is np.subtract]:
        x, step = call.args
        scaling = maker(step, np.multiply)
        product = scaling and maker(scaling.args[1], np.matmul)
        if not scaling or not product:
            continue
        factor, (a, b) = scaling.args[0], product.args
        if not all(isinstance(y, Recorded) for y in (x, factor, a, b)):
            continue
        like = x.shape, x.dtype
        if factor.ndim or any((y.shape, y.dtype) != like for y in (product.result, call.result)):
            continue
        # An inner step of a layer is none of a descent.
        if x.ndim != 2 or call.result not in kept or readers[call.result]:
            continue
        if any(y.owner is x.owner for y in (a, b)):
            continue
        joined = _Call(subtract_product, (x, factor, a, b), {})
        joined.result = call.result
        rest = [other for other in calls if other not in (call, scaling)]
        needed = [product, *(c for c in rest if any(r.owner is x.owner for r in c.reads))]
        last = max(map(rest.index, needed))
        calls = [c for c in [*rest[: last + 1], joined, *rest[last + 1 :]] if c is not product]
    return calls


def _lay_out(
    calls: list[_Call],
    memory: Mapping[Recorded, Memory],
    targets: list[tuple[Recorded, Memory]],
    library: Calls,
) -> Program:
    """Give each result its place, in its target or in memory that is free again."""
    made = {call.result: position for position, call in enumerate(calls)}
    last = {x.owner: position for position, call in enumerate(calls) for x in call.reads}
    # What was only read, or is a view, is copied at the end, and must last until then.
    copied = [(x, target) for x, target in targets if x not in made or x.owner is not x]
    last.update({x.owner: len(calls) for x, _ in copied})
    direct: dict[Recorded, Memory] = {}
    for recorded, target in targets:
        if recorded not in made or recorded.owner is not recorded:
            continue
        # A call that may write where it reads is not too early itself.
        first = made[recorded] + _may_overwrite(calls[made[recorded]].function)
        overwritten = (x for x, y in memory.items() if library.share_memory(y, target))
        if recorded not in direct and all(last.get(x, -1) < first for x in overwritten):
            direct[recorded] = target
        else:
            copied.append((recorded, target))
            last[recorded] = len(calls)

    program: Program = []
    read = {x for call in calls for x in call.reads} | {x for x, _ in targets}
    places = {x: library.array(memory[x]) for x in read & memory.keys()}
    blocks: dict[Recorded, Memory] = {}
    free: list[Memory] = []
    for position, call in enumerate(calls):
        result = call.result
        args, kwargs = call.bind(places.__getitem__)
        dying = {x.owner for x in call.reads if last[x.owner] == position} & blocks.keys()
        if isinstance(call.function, np.ufunc) and call.function.signature is None:
            # Element by element, the result may take the place of an argument.
            free += [blocks.pop(x) for x in dying if x.shape == result.shape]
        view = None
        if result.owner is not result:
            view = library.named(call.function)(*args, **kwargs)
        if view is not None and library.share_memory(view, places[result.owner]):
            places[result] = view
        else:  # or a view of the sample that takes a copy here, where strides are others
            if result in direct:
                places[result] = direct[result]
            else:
                size = result.sample.nbytes
                block = _freed(free, size)
                blocks[result] = library.block(size) if block is None else block
                places[result] = library.place(result.shape, result.dtype, blocks[result])
            program += library.replays(call.function, args, kwargs, places[result])
        free += [blocks.pop(x) for x in dying & blocks.keys()]
    # By way of other memory, since one's target may be what another one is read from.
    sources = [library.module.empty_like(target) for _, target in copied]
    for source, (recorded, _) in zip(sources, copied, strict=True):
        program.append(partial(library.module.copyto, source, places[recorded]))
    for source, (_, target) in zip(sources, copied, strict=True):
        program.append(partial(library.module.copyto, target, source))
    return program


def _freed(free: list[Any], size: int) -> Any:
    """Take the block of `size` bytes that was freed last, if there is one."""
    for position in reversed(range(len(free))):
        if free[position].nbytes == size:
            return free.pop(position)
    return None


def _may_overwrite(function: Callable[..., Any]) -> bool:
    return isinstance(function, np.ufunc) or function is subtract_product
