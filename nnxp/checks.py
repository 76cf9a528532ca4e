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
from collections.abc import Callable, Iterable
from numbers import Real
from types import ModuleType
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np

from nnxp.arrays import Array
from nnxp.errors import InputError, MissingExtraError

_WORDS = {
    "lr": "learning_rate", "alpha": "learning_rate", "eta": "learning_rate", "eps": "epsilon",
    "beta_1": "beta1", "beta_2": "beta2", "rho": "decay", "l2": "weight_decay",
    "seed": "rng", "random_state": "rng", "generator": "rng", "p": "rate", "prob": "rate",
    "in_features": "inputs", "out_features": "outputs", "units": "outputs",
    "num_features": "features", "normalized_shape": "features", "negative_slope": "slope",
    "weight": "class_weights", "class_weight": "class_weights",
    "validation_data": "validation", "validation_split": "validation", "n_epochs": "epochs",
    "max_iter": "epochs", "weight_init_std": "initializer",
}  # fmt: skip
"""What other libraries call things, and nnxp's own word."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
    """Return the error for a `name` that is not `known`, with the most similar known name."""
    known = list(known)
    if (own := _WORDS.get(str(name))) in known:
        return InputError(f"unknown {kind} {name!r}; nnxp calls it {own!r}")
    import difflib  # takes longer to import than most modules

    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    hint = f"did you mean {by_lower[near[0]]!r}? " if near else ""
    return InputError(f"unknown {kind} {name!r}; {hint}known: {', '.join(by_lower.values())}")


P = ParamSpec("P")
R = TypeVar("R")


def explained(remedy: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator of a function: a call with wrong arguments is told the right one.

    Parameters
    ----------
    remedy : str
        The right call, such as ``mlp([784, 50, 10], rng=0)``.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except TypeError:
                signature = inspect.signature(function)
                try:
                    signature.bind(*args, **kwargs)
                except TypeError as error:
                    unknown = kwargs.keys() - signature.parameters.keys()
                    own = [_WORDS[x] for x in unknown if _WORDS.get(x) in signature.parameters]
                    word = f"; nnxp calls it {own[0]!r}" if own else ""
                    raise InputError(f"{function.__name__}: {error}{word}; call {remedy}") from None
                raise

        return call

    return decorate


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
    """Return `value` as a float; raise unless it is in `range_`.

    Not as a NumPy float64, which would promote float32 arrays.
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
"""Which parameters: "all", "matrices", or patterns of names; see `require_selection`."""


def require_selection(name: str, value: object) -> Selection:
    """Return `value` if it says which parameters: "all", "matrices", or patterns of names."""
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
    """Return whether a selection contains the parameter `x` of this name."""
    if selection == "all":
        return True
    if selection == "matrices":
        return x.ndim >= 2
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in selection)


def warn(message: str) -> None:
    """Warn at the line outside nnxp that led here."""
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
    """Import an optional `package`; if it is missing, name the `extra` of nnxp to install."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        from nnxp.extras import install_extra

        raise MissingExtraError(
            f"{error.name} is not installed; {install_extra(extra)}", name=error.name
        ) from None


Rng: TypeAlias = "np.random.Generator | np.random.SeedSequence | int"  # importing it takes long
"""A generator, or a seed that makes a new one."""


def require_rng(rng: object) -> np.random.Generator:
    """Return a generator: `rng` itself, or a new one from a seed or a SeedSequence (SPEC 7).

    None is refused: nnxp draws nothing that cannot be repeated.
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
    """Return the end of an error for a class that was given in place of an object; else ""."""
    return f"; make an object: {given.__name__}(…)" if isinstance(given, type) else ""


def require_list(name: str, values: object) -> tuple[Any, ...]:
    """Return the values of an iterable as a tuple."""
    if not isinstance(values, Iterable):
        remedy = object_remedy(values) or f"; use [{values!r}]"
        raise InputError(f"{name} must be a list, got {values!r}{remedy}")
    return tuple(values)
