"""`python -m nnxp doctor`: its report and exit status, with and without CuPy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import packaging.requirements
import pytest

import nnxp
from nnxp.__main__ import MODULES
from nnxp.extras import Requirement, install_extra, pip, requirements

ROOT = Path(nnxp.__file__).parent.parent


def doctor(*, status=0, cwd=None, **environment):
    result = subprocess.run(
        [sys.executable, "-m", "nnxp", "doctor"], cwd=cwd,
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout


@pytest.fixture
def report(monkeypatch, capsys):
    """Return what the doctor prints in this process, with these variables in the environment."""

    def call(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert nnxp.__main__.doctor() == 0
        return capsys.readouterr().out

    return call


def section(out, name):
    """Return the lines of one device."""
    lines = re.search(rf"^  {name}\n((?:    .*\n)+)", out, re.M)[1]
    return [line.strip() for line in lines.splitlines()]


def test_doctor_prints_versions_libraries_blas_and_mnist(idx_folder):
    out = doctor(NNXP_DATA_DIR=str(idx_folder))
    assert f"\nnnxp 0.1.0 in {ROOT / 'nnxp'}\n" in out
    assert f"    ok    numpy {np.__version__}\n" in out
    assert f"Python {sys.version.split()[0]} on " in out
    assert f"ok    in {idx_folder}" in out
    assert out.endswith("ok    a small network learns the embedded digits\n")
    assert out.split("BLAS\n")[1].splitlines()[0].strip()
    assert section(out, "cpu")[0].startswith("ok    NumPy")
    assert section(out, "strict")[0].startswith("ok    array-api-strict")


def test_doctor_reports_a_missing_mnist(tmp_path, report):
    (tmp_path / "file").touch()
    for name, what in [("none", "there is no folder {}"), ("file", "{} is no folder")]:
        out = report(NNXP_DATA_DIR=str(tmp_path / name))
        assert f"--    NNXP_DATA_DIR is set, but {what.format(tmp_path / name)}; name" in out
        assert "downloads it" not in out
    out = report(NNXP_DATA_DIR="", XDG_CACHE_HOME=str(tmp_path))
    assert f"--    there is no folder {tmp_path}/nnxp/mnist; name the folder that holds" in out
    assert "; nnxp.data.load_mnist() downloads it\n" in out
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_doctor_runs_without_a_home_folder(homeless):
    out = doctor()
    assert "MNIST\n  --    there is no home folder for the cache; set HOME to an" in out
    assert "downloads it" not in out
    assert [path.name for path in homeless.iterdir()] == ["sitecustomize.py"]


@pytest.mark.parametrize("name", ["unreadable", "file"])
def test_doctor_runs_with_a_home_folder_that_cannot_be_used(tmp_path, monkeypatch, report, name):
    (tmp_path / "unreadable").mkdir(mode=0)
    (tmp_path / "file").touch()
    for variable in ("XDG_CACHE_HOME", "NNXP_DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    assert "MNIST\n  --    " in report(HOME=str(tmp_path / name))


def test_doctor_reports_an_empty_file_of_mnist(idx_folder, report):
    path = idx_folder / "train-labels-idx1-ubyte"
    path.write_bytes(b"")
    assert f"--    {path} is empty (0 bytes)" in report(NNXP_DATA_DIR=str(idx_folder))


def test_without_cupy(report):
    if importlib.util.find_spec("cupy"):
        pytest.skip("cupy: installed")
    assert section(report(), "cuda") == [
        f"--    CuPy is not installed; {install_extra('cuda13')}, or for an older NVIDIA driver "
        f"{install_extra('cuda12')}"
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


def by_extra(pairs):
    """Return the requirements by extra, as ``packaging`` reads them."""
    found = {}
    for extra, text in pairs:
        found.setdefault(extra, []).append(packaging.requirements.Requirement(text))
    return found


@pytest.fixture
def project():
    """The requirements in pyproject.toml."""
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("pyproject.toml: nnxp is not imported from its checkout")
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"": table["dependencies"], **table["optional-dependencies"]}
    return by_extra((extra, text) for extra, texts in extras.items() for text in texts)


@pytest.fixture
def installed_copy(tmp_path, project):
    """A folder with nnxp as pip installs it: without pyproject.toml, with metadata."""
    shutil.copytree(ROOT / "nnxp", tmp_path / "site" / "nnxp")
    info = tmp_path / "site" / "nnxp-0.1.0.dist-info"
    info.mkdir()
    lines = [
        f"Requires-Dist: {each}" + (f"; extra == '{extra}'" if extra else "")
        for extra, group in project.items()
        for each in group
    ]
    head = ["Metadata-Version: 2.4", "Name: nnxp", "Version: 0.1.0"]
    (info / "METADATA").write_text("\n".join([*head, *lines, ""]))
    return info.parent


def packages_of(out):
    """Return the packages that are listed for each extra."""
    found, extra = {}, None
    for line in out.split("\nnnxp ")[1].split("\n\n")[0].splitlines()[1:]:
        if not line.startswith("    "):
            extra = line.removeprefix("  extra ").replace("  always needed", "")
        elif not line.startswith("    remedy: "):
            found.setdefault(extra, []).append(line.split()[1])
    return found


def test_every_package_of_every_extra_is_listed(project, installed_copy, tmp_path, report):
    expected = {extra: [each.name for each in group] for extra, group in project.items()}
    assert packages_of(report()) == expected
    out = doctor(PYTHONPATH=str(installed_copy), cwd=tmp_path)
    assert f" in {installed_copy / 'nnxp'}\n" in out
    assert packages_of(out) == expected


def test_bounds_are_understood(project):
    assert by_extra((each.extra, each.text) for each in requirements()) == project
    versions = ["0.4", "1", "1.8", "1.16.0", "2.4.6", "2.12.1", "2.13.0+cpu", "2.14", "2.14.1", "3",
                "3.10rc1", "4.60", "14", "14.2.0"]  # fmt: skip
    for each in requirements():
        (expected,) = (x for x in project[each.extra] if x.name == each.package)
        for version in versions:
            accepted = expected.specifier.contains(version, prereleases=True)
            assert each.accepts(version) == accepted, (each, version)
    assert not Requirement("", "a", "a>=3.9").accepts("unknown")


def test_modules_are_those_of_the_packages():
    modules = importlib.metadata.packages_distributions()
    names = {each.package for each in requirements()} & {
        distribution for each in modules.values() for distribution in each
    }
    assert "numpy" in names
    for package in names:
        assert package in modules[MODULES.get(package, package.replace("-", "_"))]


def add_package(folder, package, version, code):
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {package}\nVersion: {version}\n")


def test_unusable_packages_are_reported_with_a_remedy(tmp_path, project):
    add_package(tmp_path, "matplotlib", "3.1", "")
    add_package(tmp_path, "filelock", "9.0", "raise OSError('libc is\\ntoo old')\n")
    out = doctor(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    lines = [line.strip() for line in out.splitlines()]
    start = lines.index("extra plot")
    assert lines[start + 1 : start + 3] == [
        "FAIL  matplotlib 3.1 is installed, and matplotlib>=3.9 is needed",
        f"remedy: {install_extra('plot')}",
    ]
    start = lines.index("extra checkpoint")
    assert lines[start + 2 : start + 4] == [
        "FAIL  filelock 9.0 does not import (OSError: libc is)",
        f"remedy: {pip('install', '--force-reinstall', 'filelock>=3.16')}",
    ]


def test_packages_that_end_the_process_or_are_installed_in_part_are_reported(tmp_path):
    # As a library of Rust panics: its exception is no Exception.
    panic = "class Panic(BaseException): ...\nraise Panic('\\x1b[31m' + 'x' * 999)\n"
    add_package(tmp_path, "safetensors", "9.0", panic)
    add_package(tmp_path, "matplotlib", "9.0", "raise SystemExit(3)\n")
    add_package(tmp_path, "jax", "9.0", "raise SystemExit('no GPU')\n")
    (tmp_path / "filelock-9.0.dist-info").mkdir()
    out = doctor(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert "    FAIL  matplotlib 9.0 does not import (SystemExit: 3)\n" in out
    assert f"    FAIL  safetensors 9.0 does not import (Panic:  [31m{'x' * 195})\n" in out
    assert "jax:cpu\n    FAIL  SystemExit: no GPU\n" in out
    assert (
        "    FAIL  filelock was installed in part; delete its .dist-info folders that have no file "
        f"METADATA, in {tmp_path}\n"
    ) in out
    texts = [x.text for x in requirements() if x.extra == "checkpoint"]
    assert f"    remedy: {pip('install', '--force-reinstall', *texts)}\n" in out
    (tmp_path / "filelock-9.0.dist-info").rmdir()
    assert "filelock was installed in part" not in doctor(
        PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"
    )


def test_numpy_without_blas_is_reported(tmp_path):
    # What NumPy says of itself if it is built with -Dblas=none.
    (tmp_path / "sitecustomize.py").write_text(
        "import numpy\n"
        "built = {'Build Dependencies': {'blas': {'name': 'none'}, 'lapack': {'name': 'none'}}}\n"
        "numpy.show_config = lambda mode: built\n"
    )
    out = doctor(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert "BLAS\n  none: this NumPy was built without a BLAS, and its matrix products are" in out
    assert out.endswith("ok    a small network learns the embedded digits\n")


def test_ctrl_c_is_one_line(tmp_path):
    (tmp_path / "jax.py").write_text("raise KeyboardInterrupt\n")
    result = subprocess.run(
        [sys.executable, "-m", "nnxp", "doctor"], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (130, "nnxp doctor: interrupted\n")


def test_remedies_name_extras_that_exist_and_a_folder_that_has_them(project, monkeypatch, tmp_path):
    sources = [*(ROOT / "nnxp").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    named = {
        extra
        for path in sources
        for extra in re.findall(
            r"""(?:install_extra\(|optional_import\([^()]+, )["']([\w]+)["']\)""", path.read_text()
        )
    }
    assert named == {
        "checkpoint", "cuda12", "cuda13", "fast", "images", "mpi", "onnx", "plot", "sklearn",
        "tensorboard", "testing",
    }  # fmt: skip
    assert named <= project.keys()
    for folder, target in ((ROOT, "."), (tmp_path, str(ROOT))):
        monkeypatch.chdir(folder)
        *command, editable, wanted = shlex.split(install_extra("plot"))
        assert (editable, wanted) == ("-e", f"{target}[plot]")
        if "pip" in command[2:3]:
            help_text = subprocess.run(
                [*command, "--help"], capture_output=True, text=True, check=True
            ).stdout
            assert "-e, --editable" in help_text
    # No other text sends the reader to an index, where nnxp may not be.
    for path in [*sources, ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        assert not re.search(r"pip install ['\"]?nnxp", path.read_text()), path


def test_installed_copy_names_the_packages_themselves(installed_copy, tmp_path):
    code = (
        "import nnxp.extras\n"
        "for extra in ('checkpoint', 'cuda13'):\n"
        "    print(nnxp.extras.install_extra(extra))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(installed_copy)},
    )  # fmt: skip
    checkpoint, cuda13 = (shlex.split(line) for line in result.stdout.splitlines())
    assert checkpoint[-2:] == ["safetensors>=0.5", "filelock>=3.16"]
    assert cuda13[-1] == "cupy-cuda13x[ctk]>=14"


@pytest.mark.parametrize(
    ("spec", "start"),
    [(object(), "python -m pip install"), (None, "uv pip install -p python")],
    ids=["pip", "uv"],
)
def test_command_is_for_the_python_that_runs(monkeypatch, tmp_path, spec, start):
    # An environment that uv made has no pip; which of both runs the tests is not known here.
    monkeypatch.setattr("nnxp.extras.PathFinder.find_spec", lambda name: spec)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sys.executable in shlex.split(pip("install", "torch"))
    (tmp_path / "python").write_text("")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert pip("install", "jax[cuda13]") == f"{start} 'jax[cuda13]'"


def test_reader_that_closes_the_pipe_gets_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "nnxp", "doctor"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), error) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize(
    ("redirect", "status", "message"),
    [
        (">&-", 0, ""),
        ("> /dev/full", 1, "nnxp doctor: error: standard output cannot be written: No space"),
    ],
)
def test_standard_output_that_cannot_be_written_gives_no_traceback(redirect, status, message):
    command = f"{shlex.quote(sys.executable)} -m nnxp doctor {redirect}"
    result = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == status
    assert result.stderr.startswith(message)
    assert "Traceback" not in result.stderr


def test_home_folder_that_is_not_known_is_reported(report):
    assert "the home folder ~nosuchuser is not known" in report(NNXP_DATA_DIR="~nosuchuser/x")
