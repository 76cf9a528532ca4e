"""The public interface: names and signatures are those of interface.txt, and completion shows them.

`nox -s interface` records a change that is meant.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import rlcompleter
from pathlib import Path

import pytest
from interface import FILE, interface, public_values

import nnxp

WITHOUT = "nnxp.sklearn"  # needs scikit-learn
NAMES = ast.parse(Path(nnxp.__file__).read_text(encoding="utf-8"))


def changes(found: list[str], recorded: list[str]) -> str:
    """Return the lines that differ, and the command that records them; nothing if none does."""
    lines = [
        line for line in difflib.unified_diff(recorded, found, n=0, lineterm="")
        if not line.startswith(("---", "+++", "@@"))
    ]  # fmt: skip
    if not lines:
        return ""
    head = "the public interface has changed (- as recorded, + now):"
    remedy = "if this is meant, say it in CHANGELOG.md and record it: nox -s interface"
    return "\n".join([head, *lines, remedy])


def recorded() -> list[str]:
    return FILE.read_text(encoding="utf-8").splitlines()


def test_the_interface_is_as_recorded():
    expected = [line for line in recorded() if f"{WITHOUT}." not in line]
    assert not (text := changes(interface(without=WITHOUT), expected)), text


@pytest.mark.interop
def test_the_interface_with_scikit_learn_is_as_recorded():
    pytest.importorskip("sklearn")
    assert not (text := changes(interface(), recorded())), text


def test_a_change_of_the_interface_is_named(monkeypatch):
    before = interface(without=WITHOUT)

    def accuracy(scores, labels, ties="first"):
        pass

    monkeypatch.setattr(nnxp.metrics, "accuracy", accuracy)
    monkeypatch.delattr(nnxp.Sequential, "summary")
    assert changes(interface(without=WITHOUT), before).splitlines()[1:-1] == [
        "-nnxp.Sequential.summary(self, shape: tuple[int, ...] | None = None) -> Table",
        "-nnxp.metrics.accuracy(scores: Array, labels: Array) -> Array",
        "+nnxp.metrics.accuracy(scores, labels, ties='first')",
    ]


def test_the_lists_of_public_names_agree():
    # __all__ is for readers and completion, _NAMES for Python, and the imports for type checkers.
    (block,) = (node for node in NAMES.body if isinstance(node, ast.If))
    typed = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in block.body
        for alias in node.names
    }
    assert sorted(typed) == sorted(nnxp.__all__)
    assert nnxp._MODULES.keys() <= set(nnxp.__all__)
    for name in nnxp.__all__:
        module = nnxp._MODULES.get(name, "nnxp")
        assert typed[name][0] == module, name
        if module == "nnxp":
            assert getattr(nnxp, name) is importlib.import_module(f"nnxp.{name}")
        else:
            assert getattr(nnxp, name) is getattr(importlib.import_module(module), typed[name][1])


def test_completion_shows_what_users_use():
    for module in ("capture.choose", "devices.libraries", "checkpoint.format"):  # private rooms
        importlib.import_module(f"nnxp.{module}")
    assert sorted(dir(nnxp)) == sorted([*nnxp.__all__, "__version__"])
    completer = rlcompleter.Completer({"nnxp": nnxp})
    shown = {match.partition("(")[0] for match in completer.attr_matches("nnxp.")}
    assert shown == {f"nnxp.{name}" for name in nnxp.__all__}


MODULES = [name for name in nnxp.__all__ if nnxp._MODULES.get(name, "") == ""]


@pytest.mark.parametrize("name", ["callbacks", "layers", *sorted({*MODULES} - {"distributed"})])
def test_completion_in_a_module_shows_its_public_names(name):
    if name == "sklearn":
        pytest.importorskip("sklearn")
    module = importlib.import_module(f"nnxp.{name}") if name == "layers" else getattr(nnxp, name)
    assert sorted(dir(module)) == sorted(module.__all__)
    assert [each for each in module.__all__ if not hasattr(module, each)] == []


def test_star_import_brings_the_public_names():
    names: dict[str, object] = {}
    exec("from nnxp import *", names)
    assert names.keys() - {"__builtins__"} == set(nnxp.__all__)


CLASSES = {
    path: value
    for path, value in public_values(nnxp, "nnxp", WITHOUT)
    if inspect.isclass(value) and inspect.isfunction(value.__init__)
}


@pytest.mark.parametrize("path", CLASSES)
def test_help_shows_the_parameters_of_the_constructor(path):
    # Not those of __new__, (*args, **settings).
    shown = list(inspect.signature(CLASSES[path]).parameters)
    assert ["self", *shown] == list(inspect.signature(CLASSES[path].__init__).parameters)


def test_help_shows_the_parameters_of_your_own_layer():
    class Scale(nnxp.Layer):
        def __init__(self, factor=2.0):
            self.factor = factor

    class Double(Scale):
        pass

    for kind in (Scale, Double):
        assert str(inspect.signature(kind)) == "(factor=2.0)"
    assert str(inspect.signature(nnxp.ReLU)) == "()"
    assert str(inspect.signature(nnxp.schedules.Constant(0.1))).startswith("(step")
