"""Parts: what layers, losses and optimizers share: settings, registration and repr."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self, TypeVar, overload

import numpy as np

from nnxp.checks import Range, require_number
from nnxp.devices import Device
from nnxp.errors import InputError

# Constructor parameters that are not settings: a checkpoint holds the arrays that they make, and
# the device is chosen anew.
_NOT_SETTINGS = {"rng", "initializer", "weights", "device", "dtype"}


_registered: dict[str, type[Part]] = {}


class Place(NamedTuple):
    """Where `Part.build` makes arrays, and how large they may be.

    Attributes
    ----------
    device : Device
    dtype : str
    max_size : int
        The largest number of elements of an array: a damaged file that describes larger ones is
        refused before memory is taken.
    """

    device: Device
    dtype: str
    max_size: int


class Part:
    """Base class of layers, losses and optimizers.

    A subclass stores each constructor parameter as an attribute of the same name; then `config`,
    `build` and ``repr`` need no code. Other subclasses define `config` and `build`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if is_own(cls):
            _registered[type_name(cls)] = cls

    def config(self) -> dict[str, Any]:
        """Return the settings as JSON, from which `build` makes an equal part.

        The settings are all constructor parameters except ``rng``, ``initializer``, ``weights``,
        ``device`` and ``dtype``.

        Raises
        ------
        InputError
            If a setting is not an attribute, or is not JSON, a tuple, or a part.
        """
        config = {}
        for name in settings_of(type(self)):
            try:
                value = getattr(self, name)
            except AttributeError:
                raise InputError(
                    f"{type(self).__name__} cannot be saved: its setting {name!r} is not an "
                    f"attribute; set self.{name} in __init__, or define config and build"
                ) from None
            config[name] = encode_setting(value, f"{type(self).__name__}.{name}")
        return config

    @classmethod
    def build(cls, config: Mapping[str, Any], place: Place) -> Self:
        """Return a part with the settings of `config`.

        Parameters
        ----------
        config : mapping
            A result of `config`.
        place : Place
            Where to make the part's arrays, whose numbers are set afterwards.

        Raises
        ------
        InputError
            If an array would be larger than `place` allows, or a setting is not allowed.
        """
        from nnxp.initializers import zeros

        if (size := cls.array_size(config)) > place.max_size:
            raise InputError(f"{cls.__name__} would have an array of {size:,} numbers")
        others: dict[str, Callable[[], Any]] = {
            "rng": lambda: np.random.default_rng(0), "initializer": lambda: zeros,
            "device": lambda: place.device, "dtype": lambda: place.dtype,
        }  # fmt: skip
        names = others.keys() & _constructor(cls).keys()
        return cls(**decode_settings(config, place), **{name: others[name]() for name in names})

    @classmethod
    def array_size(cls, config: Mapping[str, Any]) -> int:
        """Return the number of elements of the largest array that `build` makes; see `Place`."""
        return 0

    def __repr__(self) -> str:
        shown = []
        for name, parameter in settings_of(type(self)).items():
            value = repr(getattr(self, name, "?"))
            named = parameter.default is not parameter.empty or (
                parameter.kind is parameter.KEYWORD_ONLY
            )
            shown.append(f"{name}={value}" if named else value)
        return f"{type(self).__name__}({', '.join(shown)})"


def settings_of(kind: type[Part]) -> dict[str, inspect.Parameter]:
    """Return the constructor parameters of a class of parts that are settings."""
    return {name: x for name, x in _constructor(kind).items() if name not in _NOT_SETTINGS}


_constructors: dict[type, dict[str, inspect.Parameter]] = {}


def _constructor(kind: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class's ``__init__``, if it has one; reading them takes long."""
    if kind not in _constructors:
        initialize: Any = getattr(kind, "__init__")  # noqa: B009 - mypy doubts kind.__init__
        signature = None if initialize is object.__init__ else inspect.signature(initialize)
        parameters = list(signature.parameters.values())[1:] if signature else []
        _constructors[kind] = {x.name: x for x in parameters}
    return _constructors[kind]


class Setting:
    """A number that a part may change at any time, checked when it is assigned.

    Parameters
    ----------
    range_ : Range
        The numbers that are allowed.
    """

    def __init__(self, range_: Range) -> None:
        self.range = range_

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, part: None, owner: type) -> Self: ...
    @overload
    def __get__(self, part: object, owner: type) -> float: ...
    def __get__(self, part: object, owner: type) -> Self | float:
        if part is None:
            return self
        try:
            value: float = vars(part)[self._name]
        except KeyError:
            raise AttributeError(f"{type(part).__name__} has no {self._name} yet") from None
        return value

    def __set__(self, part: object, value: object) -> None:
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value.item()
        vars(part)[self._name] = require_number(self._name, value, self.range)


Kind = TypeVar("Kind", bound=type[Part])


def register(kind: Kind) -> Kind:
    """Let checkpoints name a class of parts; usable as a decorator.

    A checkpoint holds the name of the class and the settings of each part. Reading one imports no
    code, so the module that defines the class must be imported before.

    Parameters
    ----------
    kind : type
        A subclass of `Layer`, `Loss` or `Optimizer`. A class with the same name and module is
        replaced, as when a notebook cell runs again.

    Raises
    ------
    InputError
        If `kind` is not such a class, or another class has this name.

    Examples
    --------
    >>> import nnxp
    >>> @nnxp.register
    ... class Cube(nnxp.Layer):
    ...     def forward(self, x, training=False):
    ...         y = x * x * x
    ...         if training:
    ...             self.save_for_backward(y, x)
    ...         return y
    ...     def backward(self, dy):
    ...         x = self.saved(dy)
    ...         return 3.0 * x * x * dy
    """
    given: object = kind
    if not (inspect.isclass(given) and issubclass(given, Part)):
        raise InputError(f"register expects a subclass of Layer, Loss or Optimizer, got {kind!r}")
    name = type_name(kind)
    other = _registered.get(name, kind)
    if other.__module__ != kind.__module__:
        raise InputError(
            f"the name {name} is registered for the class of module {other.__module__}; rename the "
            f"class of module {kind.__module__}"
        )
    _registered[name] = kind
    return kind


def registered(name: str) -> type[Part] | None:
    """Return the registered class of a name, or None."""
    return _registered.get(name)


def type_name(kind: type[Part]) -> str:
    """Return the name of a class in checkpoints, such as ``nnxp.Affine`` or ``Cube``."""
    return f"nnxp.{kind.__qualname__}" if is_own(kind) else kind.__qualname__


def is_own(kind: type) -> bool:
    """Return whether nnxp defines a class."""
    return kind.__module__.partition(".")[0] == "nnxp"


def describe_part(part: Part) -> dict[str, Any]:
    """Return the class and the settings of a part as JSON."""
    return {"type": type_name(type(part)), "config": part.config()}


def build_part(described: Mapping[str, Any], place: Place) -> Part:
    """Return the part that `describe_part` described.

    Raises
    ------
    InputError
        If its class is not registered.
    """
    name = described["type"]
    kind = registered(name)
    if kind is None:
        raise InputError(
            f"{name!r} is not registered; import the module that defines it, and call "
            f"nnxp.register({str(name).rpartition('.')[2]})"
        )
    return kind.build(described["config"], place)


def decode_settings(config: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Return the settings that `Part.config` encoded."""
    return {name: _decode(x, place) for name, x in config.items()}


def encode_setting(value: Any, name: str) -> Any:
    """Return a setting as JSON: tuples, dictionaries and parts are marked."""
    match value:
        case None | bool() | str():
            return value
        case np.bool_() | np.integer() | np.floating():
            return encode_setting(value.item(), name)
        case int():
            return value
        case float() if math.isfinite(value):
            return value
        case list():
            return [encode_setting(x, name) for x in value]
        case tuple():
            return {"tuple": [encode_setting(x, name) for x in value]}
        case Part():
            return {"part": describe_part(value)}
        case dict() if all(isinstance(key, str) for key in value):
            return {"dict": {key: encode_setting(x, name) for key, x in value.items()}}
    raise InputError(
        f"{name} cannot be saved: it is {value!r}, which is neither JSON nor a tuple nor a part; "
        "define config and build"
    )


def _decode(value: Any, place: Place) -> Any:
    if isinstance(value, list):
        return [_decode(x, place) for x in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    decoders: dict[str, Callable[[], Any]] = {
        "tuple": lambda: tuple(_decode(x, place) for x in inner),
        "part": lambda: build_part(inner, place),
        "dict": lambda: {key: _decode(x, place) for key, x in inner.items()},
    }
    return decoders[kind]()
