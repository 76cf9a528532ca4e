"""Settings of the site: `nox -s docs` builds it with Sphinx into docs/_build/html."""

from __future__ import annotations

import inspect
import re
from typing import Any

from sphinx.application import Sphinx

import nnxp

project = "nnxp"
author = "The nnxp developers"
project_copyright = author
release = nnxp.__version__
extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "nnxp"
html_static_path, html_css_files = ["site.css"], ["site.css"]
html_favicon = "favicon.svg"
html_last_updated_fmt = None
html_copy_source = False
html_show_sphinx = False
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"

myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"  # of a console block, copy only the commands

default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have types and shapes
autodoc_default_options = {"members": True}
numpydoc_show_class_members = False
numpydoc_xref_param_type = False


def public_names(where: str) -> list[str]:
    """Return the qualified public names of a namespace, classes before functions.

    Parameters
    ----------
    where : str
        A public module, such as ``"nnxp.data"``; or ``"nnxp: layers losses"``, the names in
        ``nnxp`` that its modules ``layers`` and ``losses`` define.
    """
    space, _, modules = where.partition(":")
    module = _resolved(space)
    names = getattr(module, "__all__", None) or [
        name for name, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__
    ]
    found = {name: getattr(module, name) for name in names if not name.startswith("_")}
    documented = {name: x for name, x in found.items() if inspect.isclass(x) or callable(x)}
    if modules:
        wanted = [f"nnxp.{name}" for name in modules.split()]
        documented = {
            name: x
            for name, x in documented.items()
            if any(f"{x.__module__}.".startswith(f"{start}.") for start in wanted)
        }
    ordered = sorted(documented, key=lambda name: (not inspect.isclass(documented[name]), name))
    return [f"{space}.{name}" for name in ordered]


def write_reference(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace each line ``% reference: WHERE`` of a page by the documentation of its names."""

    def documentation(match: re.Match[str]) -> str:
        lines = ["```{eval-rst}", ".. currentmodule:: nnxp", ""]
        for name in public_names(match[1]):
            space, _, last = name.rpartition(".")
            x = getattr(_resolved(space), last)
            lines += [f".. auto{'class' if inspect.isclass(x) else 'function'}:: {name}", ""]
        return "\n".join([*lines, "```"])

    source[0] = re.sub(r"^% reference: (.*)$", documentation, source[0], flags=re.M)


def _resolved(space: str) -> object:
    module: object = nnxp
    for part in space.split(".")[1:]:
        module = getattr(module, part)
    return module


def show_settings(
    app: Sphinx, what: str, name: str, x: Any, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Show the parameters of a class's ``__init__``, where ``__new__`` takes any.

    Private ones are left out. Defaults are shown by their names, not as
    ``<function he_normal at 0x7f1a8954b060>``.
    """
    function = x.__init__ if what == "class" else x
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return None
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].name == "self":
        del parameters[0]
    shown = [
        parameter.replace(annotation=parameter.empty, default=_Shown.of(parameter.default))
        for parameter in parameters
        if not parameter.name.startswith("_")
    ]
    return str(inspect.Signature(shown)), ""


class _Shown(str):
    """Words that `inspect` prints without quotes."""

    __repr__ = str.__str__

    @classmethod
    def of(cls, default: Any) -> Any:
        if default is inspect.Parameter.empty or not repr(default).startswith("<"):
            return default
        return cls(getattr(default, "__name__", f"{type(default).__name__}()"))


def link_pages(
    app: Sphinx, what: str, name: str, x: object, options: object, lines: list[str]
) -> None:
    """Make a link of each page that a docstring names, such as docs/onnx.md."""
    lines[:] = [re.sub(r"\bdocs/([\w/]+)\.md\b", r":doc:`/\1`", line) for line in lines]


def skip_metadata_requests(
    app: Sphinx, what: str, name: str, x: object, skip: bool, options: object
) -> bool | None:
    """Skip methods that scikit-learn adds: their docstrings refer to scikit-learn's manual."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Sphinx) -> None:
    """Connect the functions above to Sphinx."""
    app.connect("source-read", write_reference)
    app.connect("autodoc-process-signature", show_settings)
    app.connect("autodoc-process-docstring", link_pages)
    app.connect("autodoc-skip-member", skip_metadata_requests)
