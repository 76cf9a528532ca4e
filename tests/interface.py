"""Write interface.txt: the public names of nnxp with their signatures, one a line.

`nox -s interface` runs it, since the lines of `nnxp.sklearn` need scikit-learn.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nnxp

FILE = Path(__file__).with_name("interface.txt")
SPECIAL = ("__call__", "__contains__", "__enter__", "__exit__", "__getitem__", "__iter__",
           "__len__")  # fmt: skip


class Text(str):
    """Words that `inspect` prints without quotes."""

    __repr__ = str.__str__


def signature(function: Callable[..., Any]) -> str:
    """Return the parameters with their types and defaults, and the type of the result."""
    found = inspect.signature(function)
    parameters = [
        each.replace(
            annotation=words(each.annotation),
            # Without the address of a function.
            default=Text(each.default.__name__) if callable(each.default) else each.default,
        )
        if each.default is not each.empty
        else each.replace(annotation=words(each.annotation))
        for name, each in found.parameters.items()
        if not name.startswith("_")
    ]
    result = words(found.return_annotation)
    return str(found.replace(parameters=parameters, return_annotation=result))


def words(annotation: Any) -> Any:
    return Text(annotation) if isinstance(annotation, str) else annotation


def public_values(module: ModuleType, path: str, without: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each name in ``__all__``, also of public modules."""
    for name in module.__all__:
        value, inner = getattr(module, name), f"{path}.{name}"
        if not isinstance(value, ModuleType):
            yield inner, value
        elif inner != without:
            yield from public_values(value, inner, without)


def interface(without: str = "") -> list[str]:
    """Return a line for each public name, and for each member of public classes."""
    values = list(public_values(nnxp, "nnxp", without))
    classes = {value for _, value in values if inspect.isclass(value)}
    lines = []
    for path, value in values:
        if inspect.isclass(value):
            lines += class_lines(path, value, classes)
        elif inspect.isfunction(value):
            lines.append(path + signature(value))
        else:
            lines.append(f"{path}: {type(value).__name__}")
    return lines


def class_lines(path: str, cls: type, classes: set[type]) -> Iterator[str]:
    """Yield a line for the class, and one for each member that no public base of it has."""
    errors = [base for base in cls.__mro__ if base.__module__ == "builtins"][:-3]
    bases = [base.__name__ for base in cls.__mro__[1:] if base in classes or base in errors]
    made = signature(cls).partition(" -> ")[0] if inspect.isfunction(cls.__init__) else ""
    yield f"class {path}{made}: {', '.join(bases)}".removesuffix(": ")
    members: dict[str, str] = {}
    for base in cls.__mro__:
        if base in classes and base is not cls:
            break
        if base.__module__.startswith("nnxp."):
            members = dict(member_lines(base)) | members
    for name in sorted(members):
        yield f"{path}.{members[name]}"


def member_lines(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the name and the line of each public member that the class itself defines."""
    annotations = inspect.get_annotations(cls)
    for name in {**annotations, **vars(cls)}:
        value = vars(cls).get(name)
        if name.startswith("_") and name not in SPECIAL:
            continue
        if isinstance(value, property):
            result = signature(value.fget).partition(" -> ")[2]
            yield name, f"{name}: {result}" + ("" if value.fset else " (read only)")
        elif isinstance(value, classmethod | staticmethod):
            yield name, f"{name}{signature(value.__func__)} ({type(value).__name__})"
        elif inspect.isfunction(value):
            if value.__module__.startswith("nnxp."):  # not what scikit-learn adds
                yield name, name + signature(value)
        elif name in annotations:
            yield name, f"{name}: {annotations[name]}"
        elif not hasattr(value, "__get__"):
            yield name, f"{name} = {value!r}"


if __name__ == "__main__":
    FILE.write_text("\n".join(interface()) + "\n", encoding="utf-8")
