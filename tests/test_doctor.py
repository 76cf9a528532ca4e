"""`python -m nnxp doctor`: its report and exit status, with and without CuPy."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys

import pytest


def doctor(*, status=0, **environment):
    result = subprocess.run(
        [sys.executable, "-m", "nnxp", "doctor"],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


def section(out, name):
    """Return the lines of one device."""
    lines = re.search(rf"^  {name}\n((?:    .*\n)+)", out, re.M)[1]
    return [line.strip() for line in lines.splitlines()]


def test_doctor_prints_versions_libraries_blas_and_mnist(idx_folder):
    out = doctor(NNXP_DATA_DIR=str(idx_folder))
    assert "  nnxp              0." in out
    assert f"Python {sys.version.split()[0]} on " in out
    assert f"ok    in {idx_folder}" in out
    assert out.endswith("ok    a small network learns the embedded digits\n")
    assert out.split("BLAS\n")[1].splitlines()[0].strip()
    assert section(out, "cpu")[0].startswith("ok    NumPy")
    assert section(out, "strict")[0].startswith("ok    array-api-strict")


def test_doctor_reports_a_missing_mnist(tmp_path):
    (tmp_path / "file").touch()
    for name, what in [("none", "there is no folder {}"), ("file", "{} is no folder")]:
        out = doctor(NNXP_DATA_DIR=str(tmp_path / name))
        assert f"--    NNXP_DATA_DIR is set, but {what.format(tmp_path / name)}; name" in out
        assert "downloads it" not in out
    out = doctor(NNXP_DATA_DIR="", XDG_CACHE_HOME=str(tmp_path))
    assert f"--    there is no folder {tmp_path}/nnxp/mnist; name the folder that holds" in out
    assert "; nnxp.data.load_mnist() downloads it\n" in out
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_doctor_runs_without_a_home_folder(homeless):
    out = doctor()
    assert "MNIST\n  --    there is no home folder for the cache; set HOME to an" in out
    assert "downloads it" not in out
    assert [path.name for path in homeless.iterdir()] == ["sitecustomize.py"]


@pytest.mark.parametrize("name", ["unreadable", "file"])
def test_doctor_runs_with_a_home_folder_that_cannot_be_used(tmp_path, monkeypatch, name):
    (tmp_path / "unreadable").mkdir(mode=0)
    (tmp_path / "file").touch()
    for variable in ("XDG_CACHE_HOME", "NNXP_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    assert "MNIST\n  --    " in doctor(HOME=str(tmp_path / name))


def test_doctor_reports_an_empty_file_of_mnist(idx_folder):
    path = idx_folder / "train-labels-idx1-ubyte"
    path.write_bytes(b"")
    assert f"--    {path} is empty (0 bytes)" in doctor(NNXP_DATA_DIR=str(idx_folder))


def test_without_cupy():
    if importlib.util.find_spec("cupy"):
        pytest.skip("cupy: installed")
    assert section(doctor(), "cuda") == [
        "--    CuPy is not installed; pip install 'nnxp[cuda13]', or 'nnxp[cuda12]' for an older "
        "NVIDIA driver"
    ]


def test_with_the_real_cupy():
    if not importlib.util.find_spec("cupy"):
        pytest.skip("cupy: not installed")
    steps = section(doctor(), "cuda")
    assert steps[0].startswith("ok    CuPy 1")
    if steps[1].startswith("--"):
        assert "CuPy finds no NVIDIA driver" in steps[1]
    else:
        assert steps[-1].startswith("ok    a matrix product (cuBLAS) runs on cuda:0")


def test_with_a_broken_cupy(tmp_path):
    (tmp_path / "cupy.py").write_text("raise AttributeError('broken\\nin two lines')\n")
    steps = section(doctor(PYTHONPATH=str(tmp_path)), "cuda")
    assert steps[0].startswith(
        "--    CuPy is installed but does not import (AttributeError: broken); reinstall it"
    )


def test_doctor_fails_if_the_cpu_path_fails(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['threadpoolctl'] = None\n")
    out = doctor(PYTHONPATH=str(tmp_path), status=1)
    assert "FAIL  " in out


def test_other_commands_are_refused():
    result = subprocess.run(
        [sys.executable, "-m", "nnxp", "docter"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "invalid choice: 'docter'" in result.stderr
