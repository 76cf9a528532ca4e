"""The release: its version has one source, and the files about it agree."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from use_extra import USES

import nnxp

ROOT = Path(__file__).parent.parent


def test_the_version_is_that_of_the_installed_package():
    if (Path(nnxp.__file__).parent.parent / "pyproject.toml").exists():
        pytest.skip("nnxp is imported from a checkout, whose installation may be older")
    assert nnxp.__version__ == importlib.metadata.version("nnxp")


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="pyproject.toml: not here")
def test_the_files_about_the_release_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]  # that of nnxp/__init__.py, by hatchling
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(?!Unreleased)(.*?)\] - (.*)$", changelog, re.M)
    assert newest is not None
    assert newest[1] == nnxp.__version__
    assert f"version: {nnxp.__version__}\n" in citation
    # A release has a date, the same in both.
    date = re.search(r"^date-released: (.*)$", citation, re.M)
    assert newest[2] == (date[1] if date else "not yet released")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d|not yet released", newest[2])
    (author,) = project["authors"]
    assert author == {"name": "The nnxp developers"}
    assert f"  - name: {author['name']}\n" in citation
    assert f"license: {project['license']}\n" in citation
    assert author["name"] in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_every_extra_has_a_use_that_the_session_extras_tries():
    extras = importlib.metadata.metadata("nnxp").get_all("Provides-Extra")
    if (ROOT / "pyproject.toml").exists():  # the installation of a checkout may be older
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        extras = list(tomllib.loads(text)["project"]["optional-dependencies"])
    assert list(USES) == extras


# What the test group installs.
@pytest.mark.parametrize("extra", ["plot", "images", "checkpoint", "fast", "testing"])
def test_an_extra_does_what_it_is_for(tmp_path, extra):
    USES[extra](tmp_path)


@pytest.mark.skipif(not (ROOT / "noxfile.py").exists(), reason="noxfile.py: not here")
def test_contributing_names_every_session():
    text = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    found = re.findall(r"^@nox\.session(.*)\n(?:@.*\n)?def (\w+)", text, re.M)
    names = [re.findall(r'name="(.*?)"', options) or [function] for options, function in found]
    assert len(names) >= 15
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = "\n".join(re.findall(r"^\| .* \|$", contributing, re.M))
    assert [name for (name,) in names if f"`{name}`" not in table] == []
