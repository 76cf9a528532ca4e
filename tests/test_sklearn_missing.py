"""Without scikit-learn, its estimators are missing with one line that says how to get them."""

from __future__ import annotations

import re
import sys

import pytest
from remedies import installs
from script_runner import SCRIPTS, run

import nnxp


@pytest.fixture
def no_sklearn(monkeypatch, tmp_path):
    """Python without scikit-learn, also in processes of its own."""
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.base", raising=False)
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['sklearn'] = None\n")
    return tmp_path


def test_an_estimator_names_the_extra(no_sklearn):
    for name in nnxp.sklearn.__all__:
        with pytest.raises(nnxp.MissingExtraError, match=installs("sklearn")):
            getattr(nnxp.sklearn, name)


def test_an_unknown_estimator_is_no_missing_package(no_sklearn):
    with pytest.raises(AttributeError, match="no attribute 'SVC'; known: MLPClassifier"):
        _ = nnxp.sklearn.SVC
    assert dir(nnxp.sklearn) == nnxp.sklearn.__all__


@pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests")
def test_the_comparison_is_one_line(no_sklearn):
    path = f"{no_sklearn}:{SCRIPTS.parent}"
    result = run("compare_sklearn.py", cwd=no_sklearn, env={"PYTHONPATH": path}, status=1)
    assert re.search(installs("sklearn"), result.stderr)
    assert result.stderr.count("\n") == 1
    assert {x.name for x in no_sklearn.iterdir()} - {"__pycache__"} == {"sitecustomize.py"}
