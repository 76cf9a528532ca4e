"""Extras: the optional packages of nnxp, and the commands that install them."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

_ROOT = Path(__file__).resolve().parent.parent


def import_package(module: str) -> ModuleType:
    """Import an optional package.

    Raises
    ------
    OSError
        If there is no home folder: CuPy would make a folder named ~ for its cache.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 - without a home folder, Path.expanduser raises
    has_home = home != "~" or os.environ.get("CUPY_CACHE_DIR")
    if module == "cupy" and not has_home:
        raise OSError("no home folder for its cache; set HOME or CUPY_CACHE_DIR")
    return importlib.import_module(module)


class Requirement(NamedTuple):
    """A package that nnxp or one of its extras needs."""

    extra: str  # "" if nnxp always needs it
    package: str
    text: str  # with the version bounds, as pip takes it

    def accepts(self, version: str) -> bool:
        """Return whether a version is within the bounds."""
        return all(
            (_numbers(version) >= _numbers(bound)) == (operator == ">=")
            for operator, bound in re.findall(r"(>=|<)([\d.]+)", self.text)
        )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version without final zeros: (2, 13) for ``2.13.0+cpu``."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, re.sub(r"(\.0+)*$", "", numbers[0]).split("."))) if numbers else ()


def is_checkout() -> bool:
    """Return whether this nnxp is imported from a checkout, which pip can install with extras."""
    project = _ROOT / "pyproject.toml"
    return project.is_file() and 'name = "nnxp"' in project.read_text(encoding="utf-8")


def requirements() -> list[Requirement]:
    """Return all requirements, of nnxp and of its extras.

    In a checkout they are read from pyproject.toml, since the installed metadata may be older;
    otherwise from the metadata of the installed package.
    """
    if is_checkout():
        import tomllib

        project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras: dict[str, list[str]] = {
            "": project["dependencies"],
            **project["optional-dependencies"],
        }
        pairs = [(extra, text) for extra, texts in extras.items() for text in texts]
    else:
        from importlib.metadata import PackageNotFoundError, requires

        try:
            texts = requires("nnxp") or []
        except PackageNotFoundError:
            texts = []
        # A text is, for example, "matplotlib>=3.9; extra == 'plot'".
        pairs = [
            (re.sub(r".*['\"](.*)['\"].*", r"\1", marker), text.strip())
            for text, _, marker in (text.partition(";") for text in texts)
        ]
    return [
        Requirement(extra, re.split(r"[^\w.-]", text, maxsplit=1)[0], text) for extra, text in pairs
    ]


def install_extra(extra: str) -> str:
    """Return the command that installs the packages of an extra.

    In a checkout it is ``python -m pip install -e '.[plot]'``. Elsewhere it lists the packages,
    since pip's index may not have this nnxp.
    """
    if is_checkout():
        folder = "." if Path.cwd() == _ROOT else _ROOT
        return pip("install", "-e", f"{folder}[{extra}]")
    texts = [each.text for each in requirements() if each.extra == extra]
    return pip("install", *(texts or [f"nnxp[{extra}]"]))


def pip(*arguments: str) -> str:
    """Return a pip command for the running Python."""
    import shutil

    name = Path(sys.executable).name
    python = name if shutil.which(name) == sys.executable else sys.executable
    if PathFinder.find_spec("pip"):  # without setuptools' finder, which may warn
        return shlex.join([python, "-m", "pip", *arguments])
    command, *rest = arguments
    return shlex.join(["uv", "pip", command, "-p", python, *rest])  # uv's environments have no pip
