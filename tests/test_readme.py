"""README: its code runs as printed, and its commands and options exist."""

from __future__ import annotations

import re
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


def test_names_in_the_table_of_parts_exist():
    names = {
        name
        for path in texts()
        for row in re.findall(
            r"^\| (?:layers|losses|networks|optimizers)\b.*", path.read_text(), re.M
        )
        for name in re.findall(r"`([A-Z]\w+)`", row)
    }
    assert len(names) > 15
    assert sorted(names.difference(nnxp.__all__)) == []
