"""Contents: what parts hold and refer to, to see what a step changed, and to undo it."""

from __future__ import annotations

import contextlib
import random
import sys
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from nnxp.arrays import namespace_of
from nnxp.parts import Part, is_own_class

Form: TypeAlias = Any
"""What an object holds, as nested lists and dictionaries that can be compared by ``==``."""


class Contents:
    """What parts hold now: attributes, what these refer to, and variables of the parts' methods.

    Parameters
    ----------
    roots : iterable of object
        Parts and functions. Parts within them are found.
    skipped : callable
        Returns the names of a part's attributes that are not looked at.

    Attributes
    ----------
    parts : list of Part
        All parts, those of `roots` and those within.
    foreign : list of object
        Those of `parts` that are not nnxp's own, or have a method replaced; and the functions.
    """

    def __init__(self, roots: Iterable[object], skipped: Callable[[Part], Container[str]]) -> None:
        self.parts: list[Part] = []
        self.foreign: list[object] = []
        self._skipped = skipped
        # By id, which no other object can have as long as this one is here.
        self._seen: dict[int, tuple[Any, _Kind | None, Any]] = {}
        self._held: dict[int, tuple[object, dict[str, Form]]] = {}  # by parts, classes and so on
        roots = list(roots)
        for function in [x for x in roots if not isinstance(x, Part)]:
            self._add(function, {"a variable": function})
            self.foreign.append(function)
        self._add("the step", {"parts": roots})
        is_own: dict[Any, bool] = {Part: True, object: True}
        for part in self.parts:  # to which parts within are added meanwhile
            self._add(part, self._seen[id(part)][2])
            kinds = type(part).__mro__
            for kind in kinds:
                if kind not in is_own:
                    is_own[kind] = is_own_class(kind)
                    self._add_class(kind, is_own[kind])
            replaced = any(callable(getattr(type(part), name, None)) for name in vars(part))
            if replaced or not all(map(is_own.__getitem__, kinds)):
                self.foreign.append(part)
        if self.foreign:
            generators = {"NumPy": np.random.random, "Python": random.random}
            objects = {name: getattr(x, "__self__", None) for name, x in generators.items()}
            self._add("the global generators", objects)

    def _add(self, owner: object, held: Mapping[str, Any]) -> None:
        self._held[id(owner)] = owner, {name: self._form(x) for name, x in held.items()}

    def _add_class(self, kind: type, is_own: bool) -> None:
        """Add the attributes of a class; and the variables of its methods, if it is not nnxp's."""
        forms: dict[str, Form] = {}
        if not is_own:
            self._seen[id(kind)] = kind, _CLASS, _CLASS.read(kind)
            for name, x in self._seen[id(kind)][2].items():
                is_method = isinstance(x, FunctionType)
                forms[f"a variable of {name}" if is_method else name] = self._form(x)
        self._held[id(kind)] = kind, forms

    @property
    def is_mutable(self) -> bool:
        """Whether a part refers to something, other than a part, that can change in place."""
        return any(
            not (kind is None or isinstance(x, (Part, type, tuple)))
            for x, kind, _ in self._seen.values()
        )

    def attributes(self) -> list[tuple[dict[str, Any], int, dict[str, Any]]]:
        """Return for each part: its dictionary, its number of attributes, and what they are."""
        return [(vars(x), len(vars(x)), self._seen[id(x)][2]) for x in self.parts]

    def changes(self, later: Contents) -> list[tuple[object, list[str]]]:
        """Return what holds something else `later`, a part or a class, and the names of that."""
        found = []
        for key, (owner, held) in self._held.items():
            _, other = later._held.get(key, (None, {}))
            names = [name for name in held | other if held.get(name) != other.get(name)]
            if names or key not in later._held:
                found.append((owner, sorted(names)))
        return found

    def restore(self) -> None:
        """Give all objects back what they held; nothing must have been skipped."""
        for x, kind, held in self._seen.values():
            if kind is not None and not _is_same(kind.read(x), held):
                kind.write(x, held)

    def _form(self, x: Any) -> Form:
        if x is None or isinstance(x, (bool, int, str, bytes)):
            return type(x), x
        if isinstance(x, (float, complex, np.generic)):
            return type(x), repr(x)  # so that NaN equals NaN
        if id(x) in self._seen:
            return id(x)
        kind = _kind(x)
        held: Any = None if kind is None else kind.read(x)
        if isinstance(x, Part):
            skipped = self._skipped(x)
            held = {name: value for name, value in held.items() if name not in skipped}
            self.parts.append(x)
        if not isinstance(x, (tuple, MethodType)):  # which are what they hold
            self._seen[id(x)] = x, kind, held
        if kind is None or isinstance(x, Part):
            return id(x)
        inner: Form = held
        if isinstance(held, dict):
            inner = {name: self._form(value) for name, value in held.items()}
        elif isinstance(held, list):
            inner = [self._form(value) for value in held]
        return type(x), inner, id(x) if kind.by_identity else 0


def name_of(x: object) -> str:
    """Return how a message names a part, or a function."""
    return str(getattr(x, "__qualname__", x if isinstance(x, str) else repr(x)))


class _Copy:
    """A copy of an array's numbers or of a generator's state.

    Numbers of other libraries than NumPy's are not compared, which would wait for the device.
    """

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Copy) and _plain(self.held) == _plain(other.held)

    __hash__ = None  # type: ignore[assignment]


def _plain(x: Any) -> Any:
    """Return numbers as values that ``==`` compares as a whole."""
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, dict):
        return {name: _plain(value) for name, value in x.items()}
    if isinstance(x, tuple):
        return [_plain(value) for value in x]
    return None if hasattr(x, "__dlpack__") else x


class _Kind(NamedTuple):
    """How to read what an object holds, and how to give it back.

    `read` returns a dictionary, a list or a frozenset of objects, or a `_Copy`.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object] = lambda x, held: None
    by_identity: bool = False  # whether another object that holds the same is a change


def _write_entries(x: Any, held: Iterable[Any]) -> None:
    x.clear()
    (x.update if isinstance(x, set) else x.extend)(held)


def _write_attributes(x: Any, held: Mapping[str, Any]) -> None:
    vars(x).clear()
    vars(x).update(held)


def _write_numbers(x: Any, copied: _Copy) -> None:
    with contextlib.suppress(TypeError, ValueError):  # immutable or read-only, and so unchanged
        x[...] = copied.held


def _read_variables(function: FunctionType) -> dict[str, Any]:
    """Return the variables that a function uses and does not define, if they are data."""
    held = {}
    for name in _global_names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, (bool, int, float, list, dict, set, deque, *_GENERATORS, np.ndarray)):
            held[name] = value
    for name, cell in _cells(function):
        with contextlib.suppress(ValueError):  # an empty cell
            held[name] = cell.cell_contents
    return held


def _write_variables(function: FunctionType, held: Mapping[str, Any]) -> None:
    cells = dict(_cells(function))
    for name, value in held.items():
        if name in cells:
            cells[name].cell_contents = value
        else:
            function.__globals__[name] = value


def _cells(function: FunctionType) -> Iterator[tuple[str, Any]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)


def _global_names(code: CodeType) -> set[str]:
    inner = [_global_names(x) for x in code.co_consts if isinstance(x, CodeType)]
    return set(code.co_names).union(*inner)


def _read_class(kind: type) -> dict[str, Any]:
    """Return a class's functions and attributes."""
    return {
        name: x for name, x in vars(kind).items()
        if isinstance(x, FunctionType)
        or not (name.startswith("__") or name == "_defined" or callable(x))
    }  # fmt: skip


def _write_class(kind: type, held: Mapping[str, Any]) -> None:
    for name, x in held.items():
        if vars(kind).get(name) is not x:
            setattr(kind, name, x)


_CLASS = _Kind(_read_class, _write_class)
_OBJECT = _Kind(lambda x: dict(vars(x)), _write_attributes, by_identity=True)
_ARRAY = _Kind(
    lambda x: _Copy(namespace_of(x, "a step").asarray(x, copy=True)), _write_numbers, True
)

_GENERATORS = np.random.Generator, np.random.BitGenerator, np.random.RandomState, random.Random
_KINDS: dict[type | tuple[type, ...], _Kind] = {
    dict: _Kind(dict, lambda x, held: (x.clear(), x.update(held))),
    (list, deque): _Kind(list, _write_entries),
    tuple: _Kind(list),
    set: _Kind(frozenset, _write_entries),
    np.ndarray: _Kind(lambda x: _Copy(np.array(x)), _write_numbers, by_identity=True),
    np.random.Generator: _Kind(
        lambda x: _Copy(x.bit_generator.state),
        lambda x, copied: setattr(x.bit_generator, "state", copied.held),
    ),
    np.random.BitGenerator: _Kind(
        lambda x: _Copy(x.state), lambda x, copied: setattr(x, "state", copied.held)
    ),
    np.random.RandomState: _Kind(
        lambda x: _Copy(x.get_state()), lambda x, copied: x.set_state(copied.held)
    ),
    random.Random: _Kind(lambda x: _Copy(x.getstate()), lambda x, copied: x.setstate(copied.held)),
    FunctionType: _Kind(_read_variables, _write_variables, by_identity=True),
    MethodType: _Kind(lambda x: [x.__self__, x.__func__]),
    Part: _OBJECT,
}


def _kind(x: object) -> _Kind | None:
    """Return how to read an object; None if it is compared by identity alone."""
    for types, kind in _KINDS.items():
        if isinstance(x, types):
            return kind
    if hasattr(type(x), "__dlpack__"):
        return _ARRAY
    module = type(x).__module__.partition(".")[0]
    known = module == "nnxp" or module in sys.stdlib_module_names
    return None if known or not hasattr(x, "__dict__") else _OBJECT


def _is_same(held: Any, other: Any) -> bool:
    """Return whether the same objects are held; False for copies of numbers."""
    if isinstance(held, dict):
        return held.keys() == other.keys() and all(x is other[name] for name, x in held.items())
    if isinstance(held, list):
        return len(held) == len(other) and all(x is y for x, y in zip(held, other, strict=True))
    return isinstance(held, frozenset) and held == other
