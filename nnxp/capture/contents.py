"""Contents: the objects that parts hold and refer to, to find and undo a step's changes."""

from __future__ import annotations

import contextlib
import datetime
import enum
import functools
import logging
import operator
import random
import re
import weakref
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from numbers import Number
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from nnxp.arrays import namespace_of
from nnxp.errors import InputError
from nnxp.parts import Part, is_own_class

Form: TypeAlias = Any
"""An object's contents, as nested lists and dictionaries that can be compared with ``==``."""


class Contents:
    """The current contents of parts: attributes, objects within them, and methods' variables.

    Parameters
    ----------
    roots : iterable of object
        Parts and functions. Parts within them are found.
    skipped : callable
        Returns the names of a part's attributes to skip.

    Attributes
    ----------
    parts : list of Part
        All parts: those in `roots` and the parts within them.
    foreign : list of object
        The parts that are not nnxp's own or have a replaced method, and the functions.
    unreadable : list of object
        Objects that the parts refer to, and whose contents cannot be compared.
    """

    def __init__(self, roots: Iterable[object], skipped: Callable[[Part], Container[str]]) -> None:
        self.parts: list[Part] = []
        self.foreign: list[object] = []
        self.unreadable: list[object] = []
        self._classes: list[type] = []  # of the parts
        self._skipped = skipped
        # By id. The value keeps the object alive, so that no other one gets its id.
        self._seen: dict[int, tuple[Any, _Kind | None, Any]] = {}
        # The contents of each owner (a part, a class, a function and so on) by the owner's id.
        self._held: dict[int, tuple[object, dict[str, Form]]] = {}
        roots = tuple(roots)
        for function in [x for x in roots if not isinstance(x, Part)]:
            self._add(function, {"a variable": function})
            self.foreign.append(function)
        self._add("the step", {"parts": roots})
        is_own: dict[Any, bool] = {Part: True, object: True}
        for part in self.parts:  # the loop adds parts within to the list
            self._add(part, {"its class": type(part)} | self._seen[id(part)][2])
            kinds = type(part).__mro__
            self._classes.append(type(part))
            for kind in kinds:
                if kind not in is_own:
                    is_own[kind] = is_own_class(kind)
                    self._add_class(kind, is_own[kind])
            replaced = any(callable(getattr(type(part), name, None)) for name in vars(part))
            if replaced or not all(map(is_own.__getitem__, kinds)):
                self.foreign.append(part)
        if self.foreign:
            self._add_others()

    def _add(self, owner: object, held: Mapping[str, Any]) -> None:
        self._held[id(owner)] = owner, {name: self._form(x) for name, x in held.items()}

    def _add_class(self, kind: type, is_own: bool) -> None:
        """Add the attributes of a class; and the variables of its methods, if it is not nnxp's."""
        forms: dict[str, Form] = {}
        if not is_own:
            held = _read_class(kind)
            self._seen[id(kind)] = kind, _CLASS, held
            for name, x in held.items():
                is_method = isinstance(x, _METHODS)
                forms[f"a variable of {name}" if is_method else name] = self._form(x)
        self._held[id(kind)] = kind, forms

    def _add_others(self) -> None:
        """Add the global generators, and the classes of users' objects within foreign parts."""
        generators = {"NumPy": np.random.random, "Python": random.random}
        objects = {name: getattr(x, "__self__", None) for name, x in generators.items()}
        self._add("the global generators", objects)
        packages = {_package(x if isinstance(x, FunctionType) else type(x)) for x in self.foreign}
        for x, kind, _ in list(self._seen.values()):
            for each in type(x).__mro__ if kind is _OBJECT else ():
                if _package(each) in packages and id(each) not in self._held:
                    self._add_class(each, is_own=False)

    def is_current(self) -> bool:
        """Return whether parts and classes hold the same objects, and none can change in place.

        This is fast, and may return False although nothing has changed.
        """
        parts, classes = self._part_attributes, self._class_attributes
        # Each line is one loop in C over all parts or classes.
        return (
            not self._is_mutable
            and all(map(operator.is_, map(type, self.parts), self._classes))
            and all(map(operator.ge, parts.possible, map(dict.keys, parts.attributes)))
            and all(map(operator.is_, map(dict.get, parts.owners, parts.names), parts.values))
            and all(map(operator.eq, map(len, classes.attributes), classes.sizes))
            and all(map(operator.is_, chain.from_iterable(classes.attributes), classes.names))
            and all(
                map(
                    operator.is_,
                    chain.from_iterable(map(_values, classes.attributes)),
                    classes.values,
                )
            )
        )

    @functools.cached_property
    def _is_mutable(self) -> bool:
        """Whether a part refers to something, other than a part, that can change in place."""
        return any(
            kind is not None and not isinstance(x, (Part, type))
            for x, kind, _ in self._seen.values()
        )

    @functools.cached_property
    def _part_attributes(self) -> _PartAttributes:
        kept = [(vars(x), self._seen[id(x)][2]) for x in self.parts]
        return _PartAttributes(
            [attributes for attributes, _ in kept],
            [{*held, *vars(x), *x.changing} for x, (_, held) in zip(self.parts, kept, strict=True)],
            [attributes for attributes, held in kept for _ in held],
            [name for _, held in kept for name in held],
            [x for _, held in kept for x in held.values()],
        )

    @functools.cached_property
    def _class_attributes(self) -> _ClassAttributes:
        owners = [vars(owner) for owner, _ in self._held.values() if isinstance(owner, type)]
        return _ClassAttributes(
            owners,
            [len(x) for x in owners],
            [name for x in owners for name in x],
            [value for x in owners for value in x.values()],
        )

    def changes(self, later: Contents) -> list[tuple[object, list[str]]]:
        """Return the owners (parts, classes and so on) with other contents in `later`.

        Each owner comes with the names that differ.
        """
        found = []
        for key, (owner, held) in self._held.items():
            _, other = later._held.get(key, (None, {}))
            names = [name for name in held | other if held.get(name) != other.get(name)]
            if names or key not in later._held:
                found.append((owner, sorted(names)))
        return found

    def restore(self) -> None:
        """Restore the contents of all objects; no attribute may have been skipped."""
        for x, kind, held in self._seen.values():
            if kind is not None and not _is_same(kind.read(x), held):
                kind.write(x, held)

    def _form(self, x: Any, depth: int = 0) -> Form:
        if x is None or isinstance(x, (bool, int, str, bytes)):
            return type(x), x
        if isinstance(x, (Number, np.generic)):
            return type(x), repr(x)  # so that NaN equals NaN
        if id(x) in self._seen:
            return id(x)
        kind = _kind(x)
        if kind is _UNREADABLE or depth > _MAX_DEPTH:
            self.unreadable.append(x)
            kind = None
        held: Any = None if kind is None else kind.read(x)
        if isinstance(x, Part):
            skipped = self._skipped(x)
            held = {name: value for name, value in held.items() if name not in skipped}
            self.parts.append(x)
        if not isinstance(x, (tuple, MethodType)):  # they are compared by their items
            self._seen[id(x)] = x, kind, held
        if kind is None or isinstance(x, Part):
            return id(x)
        inner: Form = held
        if isinstance(held, dict):
            inner = {name: self._form(value, depth + 1) for name, value in held.items()}
            if isinstance(x, dict):
                inner = list(inner.items())  # in order
        elif isinstance(held, list):
            inner = [self._form(value, depth + 1) for value in held]
        return type(x), inner, id(x) if kind.by_identity else 0


class _PartAttributes(NamedTuple):
    """The attributes of all parts, and the possible names of attributes.

    For each attribute: the index of its part, its name and its value.
    """

    attributes: list[dict[str, Any]]
    possible: list[set[str]]
    owners: list[dict[str, Any]]
    names: list[str]
    values: list[Any]


class _ClassAttributes(NamedTuple):
    """The attributes of all classes, and their numbers, names and values, in order."""

    attributes: Sequence[Mapping[str, Any]]
    sizes: list[int]
    names: list[str]
    values: list[Any]


_values = operator.methodcaller("values")


def name_of(x: object) -> str:
    """Return the name of a part or a function for messages."""
    return str(getattr(x, "__qualname__", x if isinstance(x, str) else repr(x)))


class _Copy:
    """A copy of an array's numbers or of a generator's state.

    Only NumPy's numbers are compared, since other libraries would wait for the device.
    """

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Copy) and _plain(self.held) == _plain(other.held)

    __hash__ = None  # type: ignore[assignment]


def _plain(x: Any) -> Any:
    """Return numbers as a value that ``==`` can compare."""
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, dict):
        return {name: _plain(value) for name, value in x.items()}
    if isinstance(x, tuple):
        return [_plain(value) for value in x]
    return None if hasattr(x, "__dlpack__") else x


class _Kind(NamedTuple):
    """How to read an object's contents, and how to restore them.

    `read` returns a dictionary, a list or a frozenset of objects, or a `_Copy`.
    """

    read: Callable[[Any], Any]
    write: Callable[[Any, Any], object] = lambda x, held: None
    by_identity: bool = False  # whether another object with equal contents is a change


def _write_entries(x: Any, held: Iterable[Any]) -> None:
    x.clear()
    (x.update if isinstance(x, set) else x.extend)(held)


def _read_object(x: Any) -> dict[str, Any]:
    """Return an object's attributes, also those in slots."""
    kinds = type(x).__mro__
    slots = [name for kind in kinds for name in _names(vars(kind).get("__slots__", ()))]
    missing = object()
    held = {name: getattr(x, name, missing) for name in slots}
    return {n: y for n, y in held.items() if y is not missing} | getattr(x, "__dict__", {})


def _names(slots: str | Iterable[str]) -> Iterable[str]:
    names = [slots] if isinstance(slots, str) else slots
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _write_object(x: Any, held: Mapping[str, Any]) -> None:
    for name in _read_object(x).keys() - held.keys():
        object.__delattr__(x, name)
    for name, value in held.items():
        if name in getattr(x, "__dict__", {}):
            vars(x)[name] = value
        else:
            object.__setattr__(x, name, value)


def _write_part(x: Part, held: Mapping[str, Any]) -> None:
    vars(x).clear()
    vars(x).update(held)


def _write_numbers(x: Any, copied: _Copy) -> None:
    with contextlib.suppress(TypeError, ValueError):  # immutable or read-only: unchanged
        x[...] = copied.held


def _read_variables(function: FunctionType) -> dict[str, Any]:
    """Return the variables that a function uses and does not define.

    Functions among them are returned only if they belong to the same package.
    """
    held = {}
    for name in _global_names(function.__code__) & function.__globals__.keys():
        value = function.__globals__[name]
        foreign = isinstance(value, FunctionType) and _package(value) != _package(function)
        if not foreign and not isinstance(value, _CONSTANT):
            held[name] = value
    held["its default arguments"] = function.__defaults__, function.__kwdefaults__
    for name, cell in _cells(function):
        with contextlib.suppress(ValueError):  # an empty cell
            held[name] = cell.cell_contents
    return held


def _write_variables(function: FunctionType, held: Mapping[str, Any]) -> None:
    cells = dict(_cells(function))
    for name in _read_variables(function).keys() - held.keys() - cells.keys():
        del function.__globals__[name]
    for name, value in held.items():
        if name == "its default arguments":
            function.__defaults__, function.__kwdefaults__ = value
        elif name in cells:
            cells[name].cell_contents = value
        else:
            function.__globals__[name] = value


def _package(x: type | FunctionType) -> str:
    return str(x.__module__).partition(".")[0]


def _cells(function: FunctionType) -> Iterator[tuple[str, Any]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)


def _global_names(code: CodeType) -> set[str]:
    inner = [_global_names(x) for x in code.co_consts if isinstance(x, CodeType)]
    return set(code.co_names).union(*inner)


_METHODS = FunctionType, staticmethod, classmethod, property


def _read_class(kind: type) -> dict[str, Any]:
    """Return a class's methods and attributes."""
    return {
        name: x for name, x in vars(kind).items()
        if isinstance(x, _METHODS)
        or not (name.startswith("__") or name == "_defined" or isinstance(x, _CONSTANT))
    }  # fmt: skip


def _write_class(kind: type, held: Mapping[str, Any]) -> None:
    for name in _read_class(kind).keys() - held.keys():
        delattr(kind, name)
    for name, x in held.items():
        if vars(kind).get(name) is not x:
            setattr(kind, name, x)


_MAX_DEPTH = 100
_CLASS = _Kind(_read_class, _write_class)
_OBJECT = _Kind(_read_object, _write_object, by_identity=True)
_ARRAY = _Kind(
    lambda x: _Copy(namespace_of(x, "a step").asarray(x, copy=True)), _write_numbers, True
)
_UNREADABLE = _Kind(lambda x: x)

# Objects of these types do not change in a step.
_CONSTANT = (
    type, ModuleType, BuiltinFunctionType, np.ufunc, np.dtype, enum.Enum, range, slice, PurePath,
    re.Pattern, datetime.date, datetime.time, datetime.timedelta, logging.Logger, weakref.ref,
    type(Ellipsis), type(NotImplemented), MethodDescriptorType, GetSetDescriptorType,
    MemberDescriptorType, WrapperDescriptorType, MethodWrapperType,
)  # fmt: skip
_KINDS: dict[type | tuple[type, ...], _Kind] = {
    dict: _Kind(dict, lambda x, held: (x.clear(), x.update(held))),
    (list, deque): _Kind(list, _write_entries),
    tuple: _Kind(list),
    set: _Kind(frozenset, _write_entries),
    frozenset: _Kind(frozenset),
    bytearray: _Kind(lambda x: _Copy(bytes(x)), lambda x, copied: _write_entries(x, copied.held)),
    np.ndarray: _Kind(lambda x: _Copy(x.copy()), _write_numbers, by_identity=True),
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
    (staticmethod, classmethod): _Kind(lambda x: [x.__func__]),
    property: _Kind(lambda x: [x.fget, x.fset, x.fdel]),
    functools.partial: _Kind(lambda x: [x.func, x.args, x.keywords]),
    Part: _Kind(lambda x: dict(vars(x)), _write_part),
}


def _kind(x: Any) -> _Kind | None:
    """Return how to read an object; None if it is compared only by identity."""
    if isinstance(x, _CONSTANT):
        return None
    for types, kind in _KINDS.items():
        if isinstance(x, types):
            return kind
    if _package(type(x)) == "nnxp":
        return None
    if hasattr(type(x), "__dlpack__"):
        with contextlib.suppress(InputError):  # of an unknown library
            namespace_of(x, "a step")
            return _ARRAY
        return _UNREADABLE
    if hasattr(x, "__dict__") or _read_object(x):
        return _OBJECT
    return None if callable(x) or type(x) is object else _UNREADABLE


def _is_same(held: Any, other: Any) -> bool:
    """Return whether the same objects are held; False for copies of numbers."""
    if isinstance(held, dict):
        return held.keys() == other.keys() and all(x is other[name] for name, x in held.items())
    if isinstance(held, list):
        return len(held) == len(other) and all(x is y for x, y in zip(held, other, strict=True))
    return isinstance(held, frozenset) and held == other
