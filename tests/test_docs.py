"""docs/: the Python code of each page runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from file_samples import write_digits_as_mnist
from script_runner import run_code

DOCS = Path(__file__).parent.parent / "docs"


def pages() -> list[object]:
    """Return the pages with code; ``<!-- needs: a, b -->`` names packages, and may mark interop."""
    cases = []
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        code = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
        needed = [
            x for line in re.findall(r"<!-- needs: (.*?) -->", text) for x in line.split(", ")
        ]
        name = path.relative_to(DOCS).with_suffix("").as_posix()
        if code:
            marks = [pytest.mark.interop] if {*needed} - {"llvmlite"} else []
            files = code if name == "start" else ["\n".join(code)]  # it says: save this as …
            cases.append(pytest.param(files, needed, id=name, marks=marks))
    return cases


@pytest.fixture(scope="module")
def small_mnist(tmp_path_factory):
    """Return a folder that `load_mnist` reads: the embedded digits in MNIST's layout."""
    return write_digits_as_mnist(tmp_path_factory.mktemp("mnist"))


@pytest.mark.parametrize(("files", "needed"), pages())
def test_a_page_runs_as_printed(tmp_path, small_mnist, files, needed):
    for name in needed:
        pytest.importorskip(name)
    for code in files:
        run_code(code, tmp_path, env={"NNXP_DATA_DIR": str(small_mnist)})
