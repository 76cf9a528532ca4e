"""MPI: several processes train as one does, and none waits for ever for one that has ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from script_runner import ENVIRONMENT, SCRIPTS

import nnxp

PROGRAM = Path(__file__).with_name("mpi_program.py")
TRAIN = SCRIPTS / "train_mnist.py"

pytestmark = pytest.mark.mpi


@pytest.fixture(autouse=True, scope="module")
def mpiexec():
    pytest.importorskip("mpi4py", reason="mpi4py is not installed; nox -s tests-mpi")
    for folder in (Path(sys.executable).parent, None):
        if found := shutil.which("mpiexec", path=folder and str(folder)):
            return found
    return pytest.skip("there is no mpiexec; pip install mpich")


def start(mpiexec, size, *command, cwd=None, way=("-m", "mpi4py")):
    return popen([mpiexec, "-n", str(size), sys.executable, *way, *command], cwd=cwd)


def popen(program, cwd=None):
    # MPICH's mpiexec may end by an error if its standard input is at its end, so it gets a pipe. A
    # session of its own, so that what is left of it can be found.
    stdin, writer = os.pipe()
    process = subprocess.Popen(
        [*map(str, program)], cwd=cwd, env=ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}, text=True,
        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    os.close(stdin)
    weakref.finalize(process, os.close, writer)
    return process


def end(process):
    """Return the status and the outputs; a hang is not timed, and hangs the test."""
    try:
        out, err = process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def run(mpiexec, size, *command, cwd=None):
    return end(start(mpiexec, size, *command, cwd=cwd))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The numbers of one process, for each way of stepping."""
    out = tmp_path_factory.mktemp("one") / "one.npz"
    command = [sys.executable, PROGRAM, "equal", out, "plain", "captured", "compiled"]
    subprocess.run(command, env=ENVIRONMENT, check=True)
    return np.load(out)


@pytest.mark.parametrize(
    ("size", "ways"),
    [
        (1, ["captured"]),
        (2, ["plain", "captured", "compiled"]),
        pytest.param(3, ["captured", "compiled"], marks=pytest.mark.long),
        pytest.param(4, ["captured", "plain"], marks=pytest.mark.long),
    ],
)
def test_processes_equal_one_after_1210_steps_of_every_optimizer(
    mpiexec, one, size, ways, tmp_path
):
    """A short last batch of 3 rows, of which one of 4 ranks has none; weights, masks, penalty,
    clipping and the statistics of a BatchNorm. The program compares the ranks' bits.

    Sums in another order differ by some units of rounding, 1.1e-16, and 1,210 steps add them up,
    so that some 1e-13 are to be expected.
    """
    out = tmp_path / "some.npz"
    status, _, err = run(mpiexec, size, PROGRAM, "equal", out, *ways)
    assert status == 0, err
    found = np.load(out)
    assert len(found) == len(one) * len(ways) // 3
    for name, x in found.items():
        np.testing.assert_allclose(x, one[name], rtol=1e-12, atol=1e-12, err_msg=name)


def test_the_script_divides_batches_and_resumes_on_another_number(mpiexec, tmp_path):
    options = ["--dataset", "digits", "--batch-size", 100, "--dtype", "float64"]
    status, out, err = run(mpiexec, 2, TRAIN, *options, "--epochs", 2, "--out", "a", cwd=tmp_path)
    assert (status, err) == (0, "")
    assert "2 processes" in out
    assert sum(x.startswith("epoch ") for x in out.splitlines()) == 2  # rank 0 alone prints
    status, out, err = run(mpiexec, 3, TRAIN, "--resume", "a", "--epochs", 4, cwd=tmp_path)
    assert (status, err) == (0, "")
    subprocess.run(
        [sys.executable, TRAIN, *map(str, options), "--epochs", "4", "--out", "b", "--quiet"],
        cwd=tmp_path, env=ENVIRONMENT, check=True,
    )  # fmt: skip
    several, alone = (
        nnxp.Trainer.resume(tmp_path / x / "checkpoint.safetensors") for x in ("a", "b")
    )
    for name, x in several.network.parameters().items():  # as above, of 60 steps
        np.testing.assert_allclose(x, alone.network.parameters()[name], rtol=1e-12, atol=1e-12)
    assert several.history[-1].validation_loss == pytest.approx(
        alone.history[-1].validation_loss, rel=1e-12
    )


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--epochs", "none"], 2, "argument --epochs: must be a whole number"),
        (["--learning-rate", "1e30", "--epochs", 1], 1, "training diverged at step 2 of epoch 1"),
        (["--out", "used"], 1, "used already holds a run"),  # rank 0 alone sees it
        (["--resume", "none"], 1, "none holds no run to resume"),
    ],
)
def test_an_error_is_one_line_and_one_status(mpiexec, options, status, message, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    got, _, err = run(mpiexec, 3, TRAIN, "--dataset", "digits", *options, cwd=tmp_path)
    assert got == status
    (line,) = err.splitlines()  # MPI says nothing: no rank aborts it
    assert line.startswith("train_mnist.py: error: ")
    assert message in line


def test_a_rank_with_other_arguments_ends_all(mpiexec, tmp_path):
    command = [sys.executable, "-m", "mpi4py", TRAIN, "--dataset", "digits", "--epochs"]
    program = [mpiexec, "-n", "1", *command, "1", ":", "-n", "1", *command, "none"]
    status, _, err = end(popen(program, cwd=tmp_path))
    assert status == 2
    (line,) = err.splitlines()
    assert "rank 1 ended with" in line
    assert "argument --epochs: must be a whole number" in line


def test_a_script_without_mpi4py_under_mpiexec_is_refused(mpiexec, tmp_path):
    status, _, err = end(start(mpiexec, 2, TRAIN, "--dataset", "digits", cwd=tmp_path, way=()))
    assert status == 2
    (line,) = err.splitlines()
    assert "start them with mpiexec -n 2 python -m mpi4py" in line
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_all_ranks_by_the_same_error(mpiexec, tmp_path):
    """Files have a size limit, which only rank 0 reaches."""
    status, _, err = run(mpiexec, 3, PROGRAM, "full", tmp_path)
    assert status == 1
    said = {Path(tmp_path, f"error{rank}").read_text() for rank in range(3)}
    assert len(said) == 1, err
    assert "training.safetensors cannot be written" in said.pop()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_stops_all_ranks_after_the_same_step(mpiexec, number, status, tmp_path):
    options = ["--dataset", "digits", "--epochs", 100_000, "--out", "a"]
    process = start(mpiexec, 2, TRAIN, *options, cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("epoch   2"):
            break
    os.kill(process.pid, number)
    got, _, err = end(process)
    assert got == status, err
    assert "Traceback" not in err
    (line,) = err.splitlines()
    trainer = nnxp.Trainer.resume(tmp_path / "a" / "checkpoint.safetensors")
    assert f"stopped after {trainer.optimizer.steps} steps" in line


def test_a_signal_of_one_rank_is_that_of_all(mpiexec, tmp_path):
    status, _, err = run(mpiexec, 3, PROGRAM, "interrupt", tmp_path)
    assert (status, err) == (0, "")
    said = [Path(tmp_path, f"rank{rank}").read_text() for rank in range(3)]
    assert said == ["15 7"] * 3


@pytest.mark.parametrize("way", ["-m mpi4py", ""])
@pytest.mark.parametrize(("action", "said"), [("raise", 1), ("exit", 0), ("kill", 0)])
def test_a_rank_that_ends_alone_within_a_step_ends_all(mpiexec, action, said, way):
    process = start(mpiexec, 3, PROGRAM, "act", action, 20, way=way.split())
    status, _, err = end(process)
    assert status != 0
    assert err.count("DataError: row 7 cannot be read") == said


def test_an_error_of_a_callback_on_one_rank_is_raised_on_all(mpiexec, tmp_path):
    status, _, _ = run(mpiexec, 3, PROGRAM, "callback", tmp_path)
    assert status == 1
    said = [Path(tmp_path, f"error{rank}").read_text() for rank in range(3)]
    assert said == ["row 7 cannot be read"] * 3


@pytest.mark.long
@pytest.mark.parametrize("part", range(5))
def test_none_hangs_when_one_rank_is_killed_at_random_moments_50_times(mpiexec, part, tmp_path):
    rng = np.random.default_rng()
    for i in range(10):
        folder = tmp_path / str(i)
        folder.mkdir()
        process = start(mpiexec, 2, PROGRAM, "forever", folder)
        files = [folder / f"rank{rank}" for rank in range(2)]
        while not all(x.exists() and x.read_text() for x in files):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        numbers = [int(x.read_text()) for x in files]
        time.sleep(rng.random())
        os.kill(numbers[rng.integers(2)], signal.SIGKILL)
        status, _, err = end(process)
        assert status != 0, err
        while any(is_running(x) for x in numbers):  # mpiexec has ended them, or does now
            time.sleep(0.01)
        if (folder / "training.safetensors").exists():  # whole
            assert nnxp.Trainer.resume(folder / "training.safetensors").optimizer.steps > 0


def is_running(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["plain", "captured"])
def test_two_gpus_equal_one(mpiexec, way, tmp_path):
    """By NCCL, in float64; the sums differ as those of CPUs do."""
    cupy = pytest.importorskip("cupy")
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    subprocess.run(
        [sys.executable, PROGRAM, "gpus", tmp_path / "one.npz", way], env=ENVIRONMENT, check=True
    )
    status, _, err = run(mpiexec, 2, PROGRAM, "gpus", tmp_path / "two.npz", way)
    assert status == 0, err
    found, expected = np.load(tmp_path / "two.npz"), np.load(tmp_path / "one.npz")
    for name, x in found.items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-12, atol=1e-12, err_msg=name)
