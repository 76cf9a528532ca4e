"""Parts: settings, registration and repr of layers, losses, optimizers and the like."""

from __future__ import annotations

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar, overload

import numpy as np

from nnxp.checks import Range, explained, require_arguments, require_number, unknown_name
from nnxp.devices import Device
from nnxp.errors import ArgumentError, InputError, NnxpError, OutOfMemoryError

# Constructor parameters that are not settings: a checkpoint holds the arrays that they make, and
# the device is chosen when it is loaded.
_NOT_SETTINGS = {"rng", "initializer", "device", "dtype"}

# Values of required constructor parameters in the calls that errors print; CLASS.NAME has priority.
_EXAMPLES = {
    "Chain.steps": "[100]",
    "alpha": "36.0", "degrees": "10.0", "every": "100", "factor": "0.9", "features": "50",
    "hidden": "50", "hidden1": "50", "hidden2": "50", "in_channels": "1", "inputs": "784",
    "kernel_size": "5", "l1": "1e-4", "l2": "1e-4",
    "layers": "[nnxp.Affine(50, 50, rng=0), nnxp.ReLU()]", "learning_rate": "0.1", "limit": "1.0",
    "out_channels": "20", "outputs": "10", "peak": "0.1", "pixels": "2", "rate": "0.1", "rng": "0",
    "schedules": "[nnxp.schedules.LinearWarmup(0.1, 100), nnxp.schedules.Cosine(0.1, 900)]",
    "shape": "(1, 28, 28)", "sigma": "6.0", "size": "2", "start": "0.1", "steps": "1000",
}  # fmt: skip


_registered: dict[str, type[Part]] = {}


@dataclass
class Place:
    """The device and dtype for `Part.build`, and a limit of the arrays' size.

    Attributes
    ----------
    device : Device
    dtype : str
    size : int
        The number of elements that may still be allocated. A damaged file that describes larger
        arrays than it contains raises an error before memory is allocated.
    """

    device: Device
    dtype: str
    size: int


class _Signature:
    """The signature of ``__init__`` for `inspect`, which would use that of ``__new__``."""

    def __get__(self, part: Part | None, kind: type[Part]) -> inspect.Signature:
        if part is not None:
            raise AttributeError("objects have the signature of __call__", name="__signature__")
        constructor: Callable[..., None] = kind.__init__
        if constructor is object.__init__:
            return inspect.Signature()
        found = inspect.signature(constructor)
        own = list(found.parameters.values())[1:]
        return found.replace(parameters=own, return_annotation=inspect.Signature.empty)


class Part:
    """Base class of layers, losses, optimizers, penalties, schedules, transforms and metrics.

    If a subclass stores each constructor parameter as an attribute of the same name, `config`,
    `build` and ``repr`` need no code. Otherwise it defines `config` and `build`.

    Attributes
    ----------
    changing : frozenset of str
        The attributes that a training step may change. A step must not change others.
    """

    changing: ClassVar[frozenset[str]] = frozenset()
    _defined: ClassVar[dict[str, Any]]  # the attributes of the class when it was defined
    __signature__ = _Signature()

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Raise an `ArgumentError` for a setting that nnxp's constructor does not take."""
        owner = next(kind for kind in cls.__mro__ if "__init__" in vars(kind))
        if owner is object and (args or settings):
            given = ", ".join([*map(repr, args), *settings])
            raise ArgumentError(
                f"{cls.__name__} takes no arguments, got {given:.80}; call {cls.__name__}()"
            )
        if settings and is_own(owner):
            known = constructor_parameters(cls)
            for name in settings:
                if name not in known:
                    raise cls._unknown_setting(name, known)
        return super().__new__(cls)

    @classmethod
    def _unknown_setting(cls, name: str, known: Iterable[str]) -> ArgumentError:
        return ArgumentError(str(unknown_name(f"setting of {cls.__name__}", name, known)))

    def __init_subclass__(cls, base: bool = False, **kwargs: Any) -> None:
        """Register a class of nnxp, unless it is only a `base` class."""
        super().__init_subclass__(**kwargs)
        if is_own(cls) and "__init__" in vars(cls):
            type.__setattr__(cls, "__init__", _explained(cls))
        cls._defined = dict(vars(cls))
        if is_own(cls) and Part not in cls.__bases__ and not base:
            _registered[type_name(cls)] = cls

    def config(self) -> dict[str, Any]:
        """Return the settings as JSON, from which `build` makes an equal part.

        The settings are all constructor parameters except ``rng``, ``initializer``, ``device`` and
        ``dtype``. A layer's parameter ``weights`` is a setting only if the layer has an attribute
        of that name.

        Returns
        -------
        dict
            Setting names to values.

        Raises
        ------
        InputError
            If a setting is not an attribute, or its value is not JSON, a tuple or a part.
        """
        config = {}
        for name in settings_of(type(self)):
            try:
                value = _setting(self, name)
            except AttributeError:
                if name == "weights" and hasattr(self, "params"):
                    continue  # they are parameters
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
            Device, dtype and size limit of the part's arrays. The caller sets their numbers.

        Raises
        ------
        InputError
            If the arrays would be larger than `place` allows, or a setting is not allowed.
        """
        from nnxp.initializers import zeros

        arguments = decode_settings(config, place)
        size = cls.array_size(arguments)
        if size > place.size:
            raise InputError(
                f"{cls.__name__} would have {size:,} numbers, and {place.size:,} are left for it"
            )
        place.size -= size
        others: dict[str, Callable[[], Any]] = {
            "rng": lambda: np.random.default_rng(0), "initializer": lambda: zeros,
            "device": lambda: place.device, "dtype": lambda: place.dtype,
        }  # fmt: skip
        parameters = constructor_parameters(cls)
        arguments |= {name: others[name]() for name in others.keys() & parameters.keys()}
        positional = [
            arguments.pop(name) for name, x in parameters.items() if x.kind is x.POSITIONAL_ONLY
        ]
        return cls(*positional, **arguments)

    @classmethod
    def array_size(cls, config: Mapping[str, Any]) -> int:
        """Return the number of elements of the arrays that a part with these settings allocates."""
        return 0

    def __repr__(self) -> str:
        shown = []
        for name, x in constructor_parameters(type(self)).items():
            if name in _NOT_SETTINGS or not hasattr(self, name):
                continue
            value = repr(_setting(self, name))
            named = x.default is not x.empty or x.kind is x.KEYWORD_ONLY
            shown.append(f"{name}={value}" if named else value)
        return f"{type(self).__name__}({', '.join(shown)})"


def _explained(cls: type[Part]) -> Callable[..., None]:
    """Return a class's ``__init__`` with errors for wrong arguments and too large arrays."""
    initialize: Callable[..., None] = vars(cls)["__init__"]

    @functools.wraps(initialize)
    def call(self: Part, *args: Any, **settings: Any) -> None:
        try:
            initialize(self, *args, **settings)
        except TypeError:
            kind = type(self) if type(self).__init__ is call else cls  # a subclass may inherit it
            given = (self, *args)
            require_arguments(initialize, given, settings, kind.__name__, _example_call(kind))
            raise
        except (MemoryError, ValueError) as error:
            if isinstance(error, NnxpError):
                raise
            bound = inspect.signature(initialize).bind(self, *args, **settings)
            size = cls.array_size(bound.arguments)
            # NumPy raises a ValueError for sizes beyond the address space.
            if size and (isinstance(error, MemoryError) or 8 * size >= 2**63):
                raise OutOfMemoryError(
                    f"{cls.__name__} does not fit into memory: its {size:,} numbers take "
                    f"{8 * size / 2**30:,.1f} GiB in float64, in which they are made; use smaller "
                    "sizes"
                ) from None
            raise

    return call


def _example_call(cls: type[Part]) -> str:
    """Return a constructor call that works; parameters without an example appear by name."""
    shown = []
    for name, x in inspect.signature(cls.__init__).parameters.items():
        if x.default is x.empty and x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY):
            value = _EXAMPLES.get(f"{cls.__name__}.{name}", _EXAMPLES.get(name, name))
            shown.append(f"{name}={value}" if x.kind is x.KEYWORD_ONLY else value)
        elif isinstance(x.default, (int, float)):
            shown.append(f"{name}={x.default}")
    call = f"{cls.__name__}({', '.join(shown[1:])})"
    if not is_own(cls):
        return call
    public = vars(sys.modules["nnxp"]).get(cls.__name__) is cls
    return f"{'nnxp' if public else cls.__module__}.{call}"


def _setting(part: Part, name: str) -> Any:
    """Return a setting as it was passed: a schedule, not its current number."""
    return vars(part)[name] if name in vars(part) else getattr(part, name)


def settings_of(kind: type[Part]) -> dict[str, inspect.Parameter]:
    """Return the constructor parameters of a class that are settings.

    Raises
    ------
    InputError
        If the constructor takes ``*args`` or ``**kwargs``.
    """
    parameters = constructor_parameters(kind)
    if any(x.kind in (x.VAR_POSITIONAL, x.VAR_KEYWORD) for x in parameters.values()):
        raise InputError(
            f"{kind.__name__} cannot be saved: its __init__ takes arguments without a name; name "
            "them, or define config and build"
        )
    return {name: x for name, x in parameters.items() if name not in _NOT_SETTINGS}


_constructors: dict[type, dict[str, inspect.Parameter]] = {}


def constructor_parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class's ``__init__``, from a cache since `inspect` is slow.

    If ``__init__`` takes ``**kwargs``, the parameters of the next base class replace it, and also
    its ``*args``: both are assumed to be passed on to the base class.
    """
    if kind not in _constructors:
        parameters: dict[str, inspect.Parameter] = {}
        rest: list[inspect.Parameter] = []
        for base in kind.__mro__:
            initialize: Any = vars(base).get("__init__")
            if initialize is None or base is object:
                continue
            own = list(inspect.signature(initialize).parameters.values())[1:]
            if is_own(base):  # Sequential(a, b) sets the setting `layers`
                own = [x for x in own if x.kind is not x.VAR_POSITIONAL]
            rest = [x for x in own if x.kind is x.VAR_KEYWORD]
            names = [x for x in own if x not in rest and not (rest and x.kind is x.VAR_POSITIONAL)]
            parameters = {x.name: x for x in names} | parameters
            if not rest:
                break
        else:  # no base class has named parameters
            parameters |= {x.name: x for x in rest}
        _constructors[kind] = parameters
    return _constructors[kind]


Part._defined = dict(vars(Part))


def definition(part: Part, name: str) -> float:
    """Return the priority of a method's definition; a smaller number overrides a larger one.

    It is the position of the defining class in the method resolution order, minus 0.5 if the method
    was replaced on that class later, or -1 if it was replaced on the object.
    """
    if name in vars(part):
        return -1
    position, kind = next((i, k) for i, k in enumerate(type(part).__mro__) if name in vars(k))
    defined = vars(kind).get("_defined", {})
    return position if vars(kind)[name] is defined.get(name) else position - 0.5


def is_own_class(kind: type) -> bool:
    """Return whether nnxp defines a class, and no attribute of it was replaced since."""
    if not is_own(kind):
        return False
    now, defined = vars(kind), kind._defined if issubclass(kind, Part) else {}
    return all(now.get(name) is x for name, x in defined.items()) and not any(
        name not in defined for name in now if not name.startswith("_")
    )


class Setting:
    """Descriptor of a number that may be changed at any time, and is checked on assignment.

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
            value: float = part.__dict__[self._name]
        except KeyError:
            raise AttributeError(f"{type(part).__name__} has no {self._name} yet") from None
        return value

    def __set__(self, part: object, value: object) -> None:
        if isinstance(value, np.ndarray) and value.ndim == 0:
            value = value.item()
        vars(part)[self._name] = require_number(self._name, value, self.range)


def numbers_of(part: Part) -> frozenset[str]:
    """Return the names of a part's settings that may change at any time; see `Setting`."""
    kinds = type(part).__mro__
    declared = {name for kind in kinds for name, x in vars(kind).items() if isinstance(x, Setting)}
    return frozenset(declared & vars(part).keys())


Kind = TypeVar("Kind", bound=type[Part])


@explained("nnxp.register(MyLayer)")
def register(kind: Kind) -> Kind:
    """Register a class of parts, so that checkpoints can be loaded that name it.

    A checkpoint holds the name of the class and the settings of each part. Loading imports no code,
    so import the module that defines the class first. `register` can be used as a decorator.

    Parameters
    ----------
    kind : type
        A subclass of `Layer`, `Loss`, `Optimizer` or another class of parts. It replaces a
        registered class of the same name and module, for example if a notebook cell runs again.

    Returns
    -------
    type
        `kind`.

    Raises
    ------
    InputError
        If `kind` is not such a class, or a class of another module is registered under its name.

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
    is_part = inspect.isclass(given) and issubclass(given, Part)
    if not is_part or Part in (kind, *kind.__bases__):
        raise InputError(f"register expects a subclass of Layer, Loss or Optimizer, got {kind!r}")
    _require_own_name(kind)
    _registered[type_name(kind)] = kind
    return kind


def _require_own_name(kind: type[Part]) -> None:
    """Raise an `InputError` if a class of another module is registered under this class's name."""
    name = type_name(kind)
    other = _registered.get(name, kind)
    if other.__module__ != kind.__module__:
        raise InputError(
            f"the name {name} is registered for the class of module {other.__module__}; rename the "
            f"class of module {kind.__module__}"
        )


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
    _require_own_name(type(part))
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
    if isinstance(value, np.generic):
        value = value.item()  # NumPy's long doubles remain, and raise the error below
    kind = type(value)  # exact: a subclass, such as an enum, would be loaded as its base class
    if value is None or kind in (bool, str):
        return value
    if (kind is int and abs(value) < 2**63) or (kind is float and math.isfinite(value)):
        return value
    if kind is list:
        return [encode_setting(x, name) for x in value]
    if kind is tuple:
        return {"tuple": [encode_setting(x, name) for x in value]}
    if isinstance(value, Part):
        return {"part": describe_part(value)}
    if kind is dict and all(type(key) is str for key in value):
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
