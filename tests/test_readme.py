"""README: its code runs as printed, and its commands and options exist."""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path

import pytest
from file_samples import write_digits_as_mnist
from script_runner import PATHS, run

import nnxp

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "README.md").exists(), reason="README.md: not beside the tests"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.mark.parametrize("data", ["digits", pytest.param("mnist", marks=pytest.mark.long)])
def test_readme_code_runs_as_printed(tmp_path, data, request):
    environment = {}
    if data == "mnist":
        request.getfixturevalue("mnist")  # skips where it is not at hand
    else:
        environment["NNXP_DATA_DIR"] = str(write_digits_as_mnist(tmp_path))
    codes = blocks("python")
    assert codes
    for number, code in enumerate(codes):
        strict = "import warnings\nwarnings.simplefilter('error')\n"
        (tmp_path / "code.py").write_text(strict + code)
        importing = {"PYTHONPATH": PATHS} if number == 0 else {}  # in a new process
        result = run(tmp_path / "code.py", cwd=tmp_path, env=environment | importing)
        if "validation_accuracy" in code:
            assert 0.5 < float(result.stdout.split()[0]) <= 1


def test_ci_runs_the_second_command():
    commands = blocks("sh")
    assert commands[1].strip() in (ROOT / ".ci" / "run").read_text()


def texts() -> list[Path]:
    """Return README and the pages of docs/."""
    pages = (x for x in (ROOT / "docs").rglob("*.md") if "_build" not in x.parts)
    return [ROOT / "README.md", *sorted(pages)]


def test_every_script_and_option_in_a_command_exists():
    helps = {}
    found = [
        (path.name, script, options)
        for path in texts()
        for script, options in re.findall(r"scripts/(\w+\.py)([^`\n]*)", path.read_text())
    ]
    assert len(found) > 30
    for page, script, options in found:
        assert (ROOT / "scripts" / script).exists(), (page, script)
        for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", options):
            if script not in helps:
                helps[script] = run(script, "--help").stdout
            assert option in helps[script], (page, script, option)


def test_the_readme_is_short_and_its_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.split()) <= 900
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def rows(page: str) -> str:
    return "\n".join(re.findall(r"^\| .* \|$", (ROOT / page).read_text(), re.M))


def code(text: str) -> set[str]:
    """Return the names in code: the last one of ``nnxp.metrics.Metric``."""
    return set(re.findall(r"`(?:[\w.]+\.)?(\w+)(?:\(.*?\))?`", text))


def test_the_tables_of_parts_name_all_of_them_and_no_others():
    readme, reference = rows("README.md"), rows("docs/reference/index.md")
    parts = [line for line in readme.splitlines() if re.match(r"\| (layers|losses|optim)", line)]
    assert {x for x in code("\n".join(parts)) if x[0].isupper()} <= set(nnxp.__all__)
    public = {
        name: getattr(module, name)
        for module in [nnxp, *(getattr(nnxp, name) for name in nnxp.__all__)]
        if inspect.ismodule(module)
        for name in module.__all__
        if module is not nnxp.sklearn  # without scikit-learn
    }
    wanted = {
        name for name, x in public.items()
        if not inspect.ismodule(x) and not (inspect.isclass(x) and issubclass(x, nnxp.NnxpError))
    }  # fmt: skip
    assert sorted(wanted - code(reference)) == []
    (named,) = re.findall(r"^\| activations \| (.*) \|$", reference, re.M)
    defined = {x for x in nnxp.layers.__all__ if f"{getattr(nnxp, x).__module__}" == ACTIVATIONS}
    assert code(named) == defined
    assert f"{NUMBERS[len(defined)]} activations" in readme


ACTIVATIONS = "nnxp.layers.activations"
NUMBERS = {9: "nine", 10: "ten", 11: "eleven", 12: "twelve"}


@pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="pyproject.toml: not here")
def test_the_texts_name_the_extras_and_versions_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    table = rows("docs/reference/index.md").partition("| extra | packages | for |")[2]
    listed = [line.split(" | ")[:2] for line in table.splitlines() if line.startswith("| `")]
    extras = [name for names, _ in listed for name in re.findall(r"\w+", names)]
    assert extras == list(project["optional-dependencies"])
    packages = [name for _, names in listed for name in names.split(", ")]
    bounds = [x for found in project["optional-dependencies"].values() for x in found]
    assert packages == [re.match(r"[\w-]+", x)[0] for x in bounds]
    wanted = {"Python": project["requires-python"]}
    wanted |= {"NumPy": project["dependencies"][0], "CuPy": bounds[packages.index("cupy-cuda13x")]}
    found = []
    for path in [*texts(), ROOT / "CONTRIBUTING.md"]:
        text = path.read_text()
        pairs = re.findall(r"(Python|NumPy|CuPy) ≥ ([\d.]*\d)", text)
        pairs += re.findall(r"(Python) ([\d.]*\d)\s+or newer", text)
        found += [(path.name, library, version) for library, version in pairs]
    assert len(found) >= 5
    assert [x for x in found if wanted[x[1]].rpartition(">=")[2] != x[2]] == []
