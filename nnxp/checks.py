"""Checks: validation of arguments, and imports of optional packages."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib
import inspect
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from numbers import Real
from types import ModuleType
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np

from nnxp.arrays import Array
from nnxp.errors import ArgumentError, InputError, MissingExtraError

_WORDS = {
    "lr": "learning_rate", "alpha": "learning_rate", "eta": "learning_rate", "eps": "epsilon",
    "beta_1": "beta1", "beta_2": "beta2", "rho": "decay", "l2": "weight_decay",
    "seed": "rng", "random_state": "rng", "generator": "rng", "p": "rate", "prob": "rate",
    "in_features": "inputs", "out_features": "outputs", "units": "outputs",
    "num_features": "features", "normalized_shape": "features", "negative_slope": "slope",
    "weight": "class_weights", "class_weight": "class_weights",
    "validation_data": "validation", "validation_split": "validation", "n_epochs": "epochs",
    "max_iter": "epochs", "weight_init_std": "initializer", "batch": "batch_size",
    "num_epochs": "epochs", "model": "network", "criterion": "loss", "sample_weight": "weights",
    "test_size": "share", "num_classes": "classes", "max_norm": "limit", "clip": "limit",
    "gamma": "factor", "step_size": "every", "T_max": "steps", "total_steps": "steps",
    "max_lr": "peak", "top_k": "k", "X": "inputs", "x": "inputs", "y": "labels",
    "filepath": "path", "filename": "path", "Dense": "Affine", "Linear": "Affine",
    "CrossEntropyLoss": "SoftmaxWithLoss", "BCEWithLogitsLoss": "SigmoidWithLoss",
    "MSELoss": "MeanSquaredError", "L1Loss": "AbsoluteError", "HuberLoss": "Huber",
    "SmoothL1Loss": "Huber", "BatchNorm1d": "BatchNorm", "BatchNormalization": "BatchNorm",
    "Model": "Sequential", "Module": "Layer",
}  # fmt: skip
"""Names in other libraries, and the equivalent names in nnxp."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
    """Return the error for an unknown `name`, with the equivalent or most similar known name."""
    known = list(known)
    hint = own_word(name, known)
    if not hint.startswith("nnxp"):
        hint = f"{hint} known: {', '.join(known)}".lstrip()
    return InputError(f"unknown {kind} {name!r}; {hint}")


def own_word(name: object, known: Iterable[str]) -> str:
    """Return a hint for an error: nnxp's name of a thing, or the most similar known name."""
    known = list(known)
    if (own := _WORDS.get(str(name))) in known:
        return f"nnxp calls it {own!r}"
    import difflib  # takes longer to import than most modules

    by_lower = {each.lower(): each for each in known}
    said = str(getattr(name, "__name__", name)).lower()
    near = difflib.get_close_matches(said, by_lower, n=1, cutoff=0.5)
    return f"did you mean {by_lower[near[0]]!r}?" if near else ""


P = ParamSpec("P")
R = TypeVar("R")


def explained(remedy: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator: a call with wrong arguments raises an error with a call that works.

    Parameters
    ----------
    remedy : str
        A call that works, such as ``mlp([784, 50, 10], rng=0)``.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except TypeError:
                require_arguments(function, args, kwargs, name, remedy)
                raise

        return call

    return decorate


def require_arguments(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    name: str,
    remedy: str,
) -> None:
    """Raise an `ArgumentError` with `remedy`, a call that works, if the arguments do not fit."""
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        said = f"{name}: {error}".replace("keyword-only argument", "argument")  # Python 3.12
        for given in kwargs.keys() - signature.parameters.keys():
            if word := own_word(given, signature.parameters):
                word = word.rstrip("?")
                said += f"; {word}" if repr(given) in said else f", got {given!r}; {word}"
                break
        raise ArgumentError(f"{said}; call {remedy}") from None


def missing_attribute(owner: object, name: str, elsewhere: Mapping[str, str]) -> Any:
    """Raise the error for a missing attribute; for use in ``__getattr__``.

    `elsewhere` maps attribute names of other libraries to the equivalent call in nnxp.
    """
    if name in elsewhere:
        kind = type(owner).__name__
        raise AttributeError(f"a {kind} has no {name!r}; use {elsewhere[name]}", name=name)
    return object.__getattribute__(owner, name)  # raises again, also a property's own error


def require_count(name: str, value: object, least: int = 1) -> int:
    """Return `value` as an int; raise unless it is a whole number of at least `least`."""
    count = least - 1
    with contextlib.suppress(TypeError):
        count = count if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    if count < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return count


Range: TypeAlias = tuple[Callable[[float], bool], str]

POSITIVE: Range = (lambda x: 0 < x < math.inf, "a positive number")
NOT_NEGATIVE: Range = (lambda x: 0 <= x < math.inf, "a number of at least 0")
FRACTION: Range = (lambda x: 0 <= x < 1, "a number of at least 0 and below 1")


def require_number(name: str, value: object, range_: Range) -> float:
    """Return `value` as a Python float; raise unless it is in `range_`.

    A NumPy float64 would promote float32 arrays.
    """
    accepts, expected = range_
    if isinstance(value, Real):
        try:
            if accepts(float(value)):
                return float(value)
        except OverflowError:
            pass
    raise InputError(f"{name} must be {expected}, got {value!r}")


Selection: TypeAlias = "str | tuple[str, ...]"
"""A selection of parameters: "all", "matrices", or patterns of names."""


def require_selection(name: str, value: object) -> Selection:
    """Return `value` as a `Selection`; raise if it is none."""
    if value in ("all", "matrices"):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        patterns = tuple(value)
        if patterns and all(isinstance(x, str) for x in patterns):
            return patterns
    raise InputError(
        f'{name} must be "all", "matrices" or a list of names such as ["W1", "residual1.*"], got '
        f"{value!r}"
    )


def is_selected(selection: Selection, name: str, x: Array) -> bool:
    """Return whether a selection contains the parameter `x` with this name."""
    if selection == "all":
        return True
    if selection == "matrices":
        return x.ndim >= 2
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in selection)


# What gets the warnings of a method that several processes call.
_RECEIVER: ContextVar[Callable[[str], None] | None] = ContextVar("receiver", default=None)


@contextlib.contextmanager
def warnings_go_to(receiver: Callable[[str], None]) -> Iterator[None]:
    """Give the messages of `warn` to a function."""
    token = _RECEIVER.set(receiver)
    try:
        yield
    finally:
        _RECEIVER.reset(token)


def warn(message: str) -> None:
    """Issue a warning at the caller's line outside nnxp; see `warnings_go_to`."""
    receiver = _RECEIVER.get()
    if receiver is None:
        issue_warning(message)
    else:
        receiver(message)


def issue_warning(message: str) -> None:
    """Issue a warning at the caller's line outside nnxp."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] in (
        "nnxp", "contextlib"
    ):  # fmt: skip
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def shows_bars() -> bool:
    """Return whether standard error is a terminal; it is None in a process without a console."""
    return not getattr(sys.stderr, "closed", True) and sys.stderr.isatty()


def optional_import(package: str, extra: str) -> ModuleType:
    """Import an optional `package`; if it is missing, raise an error that names the `extra`."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        from nnxp.extras import install_extra

        raise MissingExtraError(
            f"{error.name} is not installed; {install_extra(extra)}", name=error.name
        ) from None


Rng: TypeAlias = "np.random.Generator | np.random.SeedSequence | int"  # a string: import is slow
"""A generator, or a seed that makes a new one."""


def require_rng(rng: object) -> np.random.Generator:
    """Return a generator: `rng` itself, or a new one from a seed or a SeedSequence (SPEC 7).

    None raises an error, since results must be reproducible.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, np.random.SeedSequence):
        return np.random.default_rng(rng)
    is_number = isinstance(rng, (int, np.integer)) and not isinstance(rng, bool)
    if is_number and int(rng) >= 0:  # type: ignore[call-overload]
        return np.random.default_rng(int(rng))  # type: ignore[call-overload]
    raise InputError(f"rng must be a seed such as 0, or a numpy.random.Generator, got {rng!r}")


def object_remedy(given: object) -> str:
    """Return the end of an error if a class was passed instead of an object; otherwise ""."""
    return f"; make an object: {given.__name__}(…)" if isinstance(given, type) else ""


def require_list(name: str, values: object) -> tuple[Any, ...]:
    """Return the values of an iterable as a tuple; raise if `values` is not iterable."""
    if not isinstance(values, Iterable) or isinstance(values, str):
        remedy = object_remedy(values)
        if not remedy and not isinstance(values, str):
            is_code = not repr(values).startswith("<")
            remedy = f"; use [{values!r}]" if is_code else "; give it in a list"
        raise InputError(f"{name} must be a list, got {values!r}{remedy}")
    return tuple(values)
