"""docs/: the Python code of each page runs as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def pages() -> list[object]:
    """Return the pages with code; ``<!-- needs: a, b -->`` names packages and marks interop."""
    cases = []
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        code = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
        needed = [
            x for line in re.findall(r"<!-- needs: (.*?) -->", text) for x in line.split(", ")
        ]
        if code:
            marks = [pytest.mark.interop] if needed else []
            name = path.relative_to(DOCS).with_suffix("").as_posix()
            cases.append(pytest.param("\n".join(code), needed, id=name, marks=marks))
    return cases


@pytest.mark.parametrize(("code", "needed"), pages())
def test_a_page_runs_as_printed(tmp_path, code, needed):
    for name in needed:
        pytest.importorskip(name)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
