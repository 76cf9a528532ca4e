"""README: its code runs as printed, and its commands and options exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from file_samples import write_digits_as_mnist
from script_runner import PATHS, run

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


def test_every_option_in_the_readme_exists():
    help_text = run("train_mnist.py", "--help").stdout
    readme = (ROOT / "README.md").read_text()
    for line in re.findall(r"train_mnist\.py(.*)", readme):
        for option in re.findall(r"(--[a-z-]+)", line):
            assert option in help_text, option
