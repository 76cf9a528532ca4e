#!/usr/bin/env -S uv run --script

# /// script
# dependencies = ["nox"]
# ///

"""Checks: `nox` runs lint, types and tests; `nox -l` lists the other sessions.

Arguments after `--` are passed to pytest or to the script: `nox -s tests -- -k affine`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2026.8.10"  # skips pyenv's shims of inactive Pythons
nox.options.default_venv_backend = "virtualenv"  # pip, with the user's index and certificates
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False  # skipped with the reason, also in CI

os.environ.setdefault("PIP_NO_COMPILE", "1")  # Python compiles what it imports
# And keeps it: else each process that a test starts compiles NumPy and matplotlib again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
EXTRAS = PROJECT["project"]["optional-dependencies"]
OLD_EXTRAS = ("plot", "images", "checkpoint", "tensorboard", "onnx", "fast", "sklearn", "testing")
SHORT = "not gpu and not interop and not long and not mpi"
PARALLEL = ("-n", "auto")  # a worker for each core; `-- -n 0` runs the tests in one process
# As there is a worker for each core; tests of BLAS's threads set their number themselves.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
WITHOUT_OLDEST_NUMPY = {"3.14"}  # the oldest NumPy has no wheels for these


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, spelling and the repository's layout."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    texts = sorted(str(path) for path in Path().glob("*.md"))
    session.run("codespell", "nnxp", "tests", "scripts", "docs", "noxfile.py", *texts)
    session.run("sp-repo-review", "--show=err", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, strictly."""
    session.install("-e", ".", *group("types"))
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests that need neither a GPU nor other libraries to compare with, nor long."""
    session.install("-e", ".", *group("test"))
    session.run("pytest", *PARALLEL, "-m", SHORT, *session.posargs, env=ONE_THREAD)


@nox.session(name="tests-long", default=False)
def tests_long(session: nox.Session) -> None:
    """Run the long proofs, of which `tests` tries a few cases each."""
    session.install("-e", ".", *group("test"))
    marks = "long and not gpu and not interop and not mpi"
    session.run("pytest", *PARALLEL, "-m", marks, *session.posargs, env=ONE_THREAD)


@nox.session(name="tests-matrix", python=PYTHONS, default=False)
@nox.parametrize("dependencies", ["oldest", "newest"], ids=["oldest", "newest"])
def tests_matrix(session: nox.Session, dependencies: str) -> None:
    """Run the tests on each Python, with the oldest and the newest dependencies."""
    bounds = [*PROJECT["project"]["dependencies"], *group("test")]
    if dependencies == "oldest":
        bounds = [bound.replace(">=", "==") for bound in bounds]
        if session.python in WITHOUT_OLDEST_NUMPY:
            session.skip(f"{bounds[0]} has no wheel for Python {session.python}")
    session.install("-e", ".", *bounds, "--only-binary=numpy")
    session.run("pytest", *PARALLEL, "-m", SHORT, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def interop(session: nox.Session) -> None:
    """Run the tests that compare with PyTorch, JAX and scikit-learn, or use TensorBoard."""
    session.install("-e", ".", *group("test"), *group("interop"))
    session.run("pytest", *PARALLEL, "-m", "interop", *session.posargs)


@nox.session(name="tests-mpi", default=False)
def tests_mpi(session: nox.Session) -> None:
    """Run the tests that start several processes with MPI, the long ones too."""
    session.install("-e", ".[mpi]", *group("test"), "mpich")
    # One after the other: processes that wait for each other take whole cores.
    session.run("pytest", "-m", "mpi and not gpu", *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """Draw digits on the page of scripts/draw.py, and read the site, in a windowless Chromium.

    An installed one is used, else Playwright's is downloaded.
    """
    session.install("-e", ".", *group("test"), *group("browser"), *group("docs"))
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        session.run("playwright", "install", "chromium")
    files = ("tests/test_browser.py", "tests/test_site.py")
    session.run("pytest", *files, *session.posargs, env=ONE_THREAD)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the site in docs/_build/html, without the network; warnings are errors."""
    session.install("-e", ".", *group("docs"))
    options = ("-b", "html", "-W", "--keep-going", *session.posargs)
    session.run("python", "-m", "sphinx", *options, "docs", "docs/_build/html")
    print(f"site: {Path('docs/_build/html/index.html').resolve()}")


# The tests fail if CuPy finds no GPU. JAX would else take most of the GPU's memory.
GPU = {"NNXP_REQUIRE_GPU": "1", "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_ENABLE_X64": "1"}


def install_cuda(session: nox.Session, *extras: str) -> list[str]:
    """Install nnxp with CuPy, and return the arguments after `cuda12`, an older driver's CuPy."""
    try:
        subprocess.run(["nvidia-smi"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        session.skip(f"no NVIDIA driver: {error}")
    arguments = list(session.posargs)
    cuda = arguments.pop(0) if arguments[:1] == ["cuda12"] else "cuda13"
    session.install("-e", f".[{','.join((cuda, *extras))}]", *group("test"))
    return arguments


@nox.session(name="tests-gpu", default=False)
def tests_gpu(session: nox.Session) -> None:
    """Run the tests on a CUDA device; `-- cuda12` installs CuPy for an older NVIDIA driver."""
    arguments = install_cuda(session)
    session.run("pytest", "-m", "gpu", *arguments, env=GPU)


@nox.session(name="proof-gpu", default=False)
def proof_gpu(session: nox.Session) -> None:
    """Run all that needs a GPU: tests, portability table, recipes and benchmark on MNIST.

    Everything runs, also after a failure. PyTorch's and JAX's builds for CUDA are taken as they are
    installed; `-- cuda12` as in tests-gpu.
    """
    install_cuda(session, "plot", "checkpoint", "bench")
    folder = Path(session.create_tmp())
    commands = [("pytest", "-m", "gpu"), ("python", "scripts/portability.py")]
    for model in ("plain", "mlp", "lenet"):
        out = str(folder / model)
        commands.append(
            ("python", "scripts/train_mnist.py", "--device", "cuda", "--model", model, "--out", out)
        )
    out = str(folder / "benchmark")
    commands.append(("python", "scripts/benchmark.py", "--device", "cuda", "--out", out))
    failed = []
    for command in commands:
        try:
            session.run(*command, env=GPU)
        except CommandFailed:
            failed.append(" ".join(command))
    if failed:
        session.error(f"failed: {'; '.join(failed)}")


@nox.session(name="tests-cupy", default=False)
def tests_cupy(session: nox.Session) -> None:
    """Run the device tests with the real CuPy installed, GPU or not."""
    session.install("-e", ".", *group("test"), *group("cupy"))
    files = ("tests/test_devices.py", "tests/test_doctor.py", "tests/test_cupy.py")
    session.run("pytest", *PARALLEL, "-m", "not interop", *files, *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Fuzz each file reader with atheris for 30 seconds, or for `-- SECONDS`."""
    seconds = session.posargs[0] if session.posargs else "30"
    session.install("-e", ".", *group("test"), *group("fuzz"))
    for kind in ("idx", "csv", "safetensors", "signed"):
        limits = (f"-max_total_time={seconds}", "-timeout=5", "-rss_limit_mb=2048")
        session.run("python", "tests/fuzz.py", kind, f"{session.create_tmp()}/{kind}", *limits)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build sdist and wheel in dist/, and check their metadata and that the wheel is complete."""
    shutil.rmtree("dist", ignore_errors=True)
    session.install("build", "twine")
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    (wheel,) = Path("dist").glob("*.whl")
    files = subprocess.run(
        ["git", "ls-files", "nnxp"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    with zipfile.ZipFile(wheel) as archive:
        if missing := set(files).difference(archive.namelist()):
            session.error(f"{wheel.name} lacks {', '.join(sorted(missing))}")


@nox.session(python=PYTHONS, default=False, requires=["build"])
@nox.parametrize("form", ["wheel", "sdist"], ids=["wheel", "sdist"])
def release(session: nox.Session, form: str) -> None:
    """Install what `build` made on each Python, and run the tests with the wheel, not the checkout.

    The tests are those in the sdist, so that it is complete, too.
    """
    (wheel,) = Path("dist").resolve().glob("*.whl")
    (sdist,) = Path("dist").resolve().glob("*.tar.gz")
    session.install(str(wheel if form == "wheel" else sdist))
    session.chdir(session.create_tmp())
    code = "import nnxp; print(nnxp.__version__, *map(len, nnxp.data.load_digits()))"
    session.run("python", "-I", "-c", code)  # without the packages that tests need
    if form == "wheel":
        session.install(*group("test"))
        shutil.rmtree("nnxp", ignore_errors=True)
        with tarfile.open(sdist) as archive:
            archive.extractall("nnxp", filter="data")
        (unpacked,) = Path("nnxp").iterdir()
        session.chdir(unpacked)
        shutil.rmtree("nnxp")
        tests = session.posargs or ("tests",)
        session.run("pytest", *PARALLEL, "-m", SHORT, *tests, env=ONE_THREAD)


@nox.session(default=False)
@nox.parametrize("extra", [*EXTRAS, "all"], ids=[*EXTRAS, "all"])
def extras(session: nox.Session, extra: str) -> None:
    """Install each extra alone, then all together, and do what each is for (tests/use_extra.py).

    cuda12 and cuda13 exclude each other: all together are those without cuda12.
    """
    chosen = [extra] if extra != "all" else [each for each in EXTRAS if each != "cuda12"]
    session.install(f".[{','.join(chosen)}]")
    session.run("python", "-m", "pip", "check")
    script = Path("tests/use_extra.py").resolve()
    session.chdir(session.create_tmp())
    session.run("python", "-W", "error", str(script), *chosen)


@nox.session(name="extras-oldest", python=PYTHONS[0], default=False)
def extras_oldest(session: nox.Session) -> None:
    """Run the tests of the extras with the oldest packages that the extras allow."""
    tools = ("onnxruntime", "skl2onnx", "pandas", "tensorboard")  # of tests: as pip finds them
    bounds = [each for each in group("test") if not each.startswith("matplotlib")]
    bounds += [each for extra in OLD_EXTRAS for each in EXTRAS[extra]]
    oldest = [each.replace(">=", "==") for each in (*PROJECT["project"]["dependencies"], *bounds)]
    session.install("-e", ".", *oldest, *tools, "--only-binary=:all:")
    session.run("python", "tests/use_extra.py", *OLD_EXTRAS)
    session.install("matplotlib>=3.10.7")  # as the tests need it
    files = ("compiled", "drawings", "history_files", "onnx", "onnx_import", "sklearn")
    tests = session.posargs or [f"tests/test_{name}.py" for name in files]
    session.run("pytest", *PARALLEL, "-m", "not gpu and not long", *tests, env=ONE_THREAD)


@nox.session(default=False)
def interface(session: nox.Session) -> None:
    """Record the public names and signatures in tests/interface.txt, which a test compares."""
    session.install("-e", ".[sklearn]")
    session.run("python", "tests/interface.py")


@nox.session(default=False)
def train(session: nox.Session) -> None:
    """Train on MNIST with scripts/train_mnist.py."""
    session.install("-e", ".[plot,checkpoint]")
    session.run("python", "scripts/train_mnist.py", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Compare the speed of two commits: `-- REV1 REV2` (default: HEAD~1 and the working tree)."""
    session.install("-e", ".")
    session.run("python", "scripts/compare_commits.py", *session.posargs)


if __name__ == "__main__":
    nox.main()
