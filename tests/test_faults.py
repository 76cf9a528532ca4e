"""Faults: killed processes, full disks, unwritable folders and concurrent processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from builders import Stopping, new_trainer

import nnxp
from nnxp.data import Dataset

pytest.importorskip("safetensors")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="signals, forks and limits are tried on Linux"
)

COMMON = """
import os, random, signal, sys
from pathlib import Path
import filelock, safetensors.numpy, threadpoolctl  # or each child would import them
import numpy as np
import nnxp
path = Path(sys.argv[1])
rng = np.random.default_rng(5)
data = nnxp.data.Dataset(rng.integers(0, 256, (60, 6), np.uint8), rng.integers(0, 3, 60))

class Stopping(nnxp.callbacks.Callback):
    every_step = True

    def __init__(self, function):
        self.function = function

    def step(self, trainer):
        return self.function()

def new():
    rng = np.random.default_rng(0)
    network = nnxp.mlp([6, 5, 3], rng=rng)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam())
    trainer.rng = rng
    return trainer

def fit(trainer, epochs, **options):
    left = epochs - trainer.epochs
    trainer.fit(data, epochs=left, batch_size=9, rng=trainer.rng, **options)
"""


def run(
    code: str, *arguments: object, shell: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [*shell, sys.executable, "-c", COMMON + textwrap.dedent(code), *map(str, arguments)],
        capture_output=True, text=True,
        env={
            "OPENBLAS_NUM_THREADS": "1",
            "PATH": os.defpath,
            "PYTHONPATH": str(Path(nnxp.__file__).parents[1]),
        },
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.long)])
def test_resume_after_any_number_of_kills_gives_the_same_bits(tmp_path, kills):
    """Processes are killed by SIGKILL; each resumes the checkpoint that the last one left.

    Each reports its steps through a pipe, and is killed after a random number of them.
    """
    code = """
    chance = random.Random(0)
    steps = trained = 0
    for kill in range(int(sys.argv[2])):
        every, wanted = 1 + kill % 5, chance.randrange(13)
        reports, pipe = os.pipe()
        child = os.fork()  # after the imports, which would take most of the time
        if child == 0:
            os.close(reports)
            trainer = nnxp.Trainer.resume(path) if path.exists() else new()
            reported = trainer.optimizer.steps

            def report():
                global reported
                if trainer.optimizer.steps > reported:
                    reported = trainer.optimizer.steps
                    os.write(pipe, b".")
                return False

            options = {"checkpoint": path, "checkpoint_every": every}
            fit(trainer, 10**6, **options, callbacks=[Stopping(report)])
            os._exit(7)
        os.close(pipe)
        seen = 0
        while seen < wanted:
            seen += len(os.read(reports, wanted - seen)) or sys.exit("the child ended by itself")
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reports)
        assert os.WIFSIGNALED(status), status
        trained += wanted
        if path.exists():
            reached = nnxp.Trainer.resume(path).optimizer.steps
            # A step is reported before it is saved, if it is.
            assert reached >= steps + max(0, wanted - every)
            steps = reached
    done = nnxp.Trainer.resume(path)
    fit(done, done.epochs + 1, checkpoint=path)
    whole = new()
    fit(whole, done.epochs)
    for mine, other in ((done.network.parameters(), whole.network.parameters()),
                        *((done.optimizer.state[s], whole.optimizer.state[s])
                          for s in ("mean", "square_mean"))):
        for name, x in mine.items():
            np.testing.assert_array_equal(x, other[name])
    for one, other in zip(done.history, whole.history, strict=True):
        assert one.train_loss == other.train_loss
    print(steps, *sorted(x.name for x in path.parent.iterdir()))
    """
    steps, *files = run(code, tmp_path / "a.safetensors", kills).stdout.split()
    assert int(steps) > kills  # so kills fall between steps, not only before the first one
    assert files == [".a.safetensors.lock", "a.safetensors"]  # no temporary file is left


def test_full_disk_raises_and_keeps_the_last_checkpoint(tmp_path):
    # A limit on the size of files fails a write in its middle, as a full disk does.
    code = """
    import resource
    trainer = new()
    fit(trainer, 1, checkpoint=path)
    before = path.read_bytes()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, resource.RLIM_INFINITY))
    try:
        fit(trainer, 3, checkpoint=path, checkpoint_every=2)
    except nnxp.CheckpointError as error:
        print(error)
    reached = trainer.optimizer.steps
    assert path.read_bytes() == before
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(*sorted(x.name for x in path.parent.iterdir()))
    other = path.with_name("b.safetensors")
    trainer.save(other)  # as the error says
    assert nnxp.Trainer.resume(other).optimizer.steps == reached > 7
    fit(nnxp.Trainer.resume(path), 3, checkpoint=path)
    """
    path = tmp_path / "a.safetensors"
    error, files = run(code, path).stdout.splitlines()
    assert error == (
        f"{path} cannot be written (File too large); the trainer in memory is complete, and an "
        "existing file is unchanged: free disk space, or save to another path"
    )
    assert files == ".a.safetensors.lock a.safetensors"
    assert len(nnxp.Trainer.resume(path).history) == 3


def test_full_disk_raises_and_the_training_goes_on_elsewhere(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=256k none {disk}"
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    try:
        subprocess.run([*unshare, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted: {error}")
    code = """
    trainer = new()
    fit(trainer, 1, checkpoint=path)
    before = path.read_bytes()
    with path.with_name("filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            pass
    for options in ({}, {"checkpoint_every": 2}):
        try:
            fit(trainer, trainer.epochs + 1, checkpoint=path, **options)
        except nnxp.CheckpointError as error:
            print(error)
        assert path.read_bytes() == before
        print(trainer.optimizer.steps)
    print(*sorted(x.name for x in path.parent.iterdir()))
    trainer.save(sys.argv[2])
    trainer = nnxp.Trainer.resume(sys.argv[2])
    fit(trainer, 3)
    whole = new()
    fit(whole, 3)
    for name, x in trainer.network.parameters().items():
        np.testing.assert_array_equal(x, whole.network.parameters()[name])
    """
    path = disk / "a.safetensors"
    shell = [*unshare, f'{mount} && exec "$@"', "sh"]
    lines = run(code, path, tmp_path / "b.safetensors", shell=shell).stdout.splitlines()
    for error in (lines[0], lines[2]):
        assert error.startswith(f"{path} cannot be written (No space left on device); the trainer")
    assert [lines[1], lines[3]] == ["14", "16"]  # of 7 steps each epoch
    assert lines[4] == ".a.safetensors.lock a.safetensors filler"


def test_saves_beside_trainings_into_the_same_file_succeed(tmp_path):
    code = """
    stop = path.with_name("stop")
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            trainer = new()
            while not stop.exists():
                trainer.save(path)
            os._exit(0)
    for _ in range(30):
        fit(new(), 1, checkpoint=path)
    stop.touch()
    for child in children:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    nnxp.Trainer.resume(path)
    print(*sorted(x.name for x in path.parent.iterdir()))
    """
    files = run(code, tmp_path / "a.safetensors").stdout.split()
    assert files == [".a.safetensors.lock", "a.safetensors", "stop"]


def test_file_that_is_truncated_while_it_is_read_does_not_end_the_process(tmp_path):
    # The header is read before the arrays are, the metadata in it before they are used.
    code = """
    import json
    read = json.loads

    def truncate(*arguments, **options):
        global texts
        texts += 1
        if texts == last:
            os.truncate(path, 0)
        return read(*arguments, **options)

    for last in (1, 2):
        new().save(path)
        json.loads = truncate
        for load in (nnxp.load_network, nnxp.Trainer.resume):
            texts = 0
            try:
                print(load(path))
            except nnxp.CheckpointError as error:
                print(error)
        json.loads = read
    """
    path = tmp_path / "a.safetensors"
    first, *others = run(code, path).stdout.splitlines()
    assert first.startswith(f"{path} is not a checkpoint, or is damaged (it has 0 bytes, and its h")
    assert others[1].startswith("Sequential(Affine(6, 5)")
    for line in (others[0], others[2]):
        assert line.startswith(f"{path} is not a checkpoint, or is damaged (")


def test_unwritable_folder_is_refused_before_the_first_step():
    # /proc takes no file, whoever asks.
    trainer = new_trainer()
    data = Dataset(np.zeros((4, 6)), np.zeros(4, int))
    options = {"epochs": 1, "batch_size": 2, "rng": np.random.default_rng(0)}
    for folder in ("/proc", "/no/such/folder"):
        with pytest.raises(nnxp.CheckpointError, match=f"{folder}/a cannot be written"):
            trainer.fit(data, **options, checkpoint=f"{folder}/a")
    assert trainer.optimizer.steps == 0


def test_second_process_on_the_same_checkpoint_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    code = """
    fit(new(), 10**6, checkpoint=path)
    """
    first = subprocess.Popen(
        [sys.executable, "-c", COMMON + textwrap.dedent(code), path],
        env={"PYTHONPATH": str(Path(nnxp.__file__).parents[1])},
    )
    try:
        while not path.exists():
            assert first.poll() is None
            time.sleep(0.01)
        trainer = nnxp.Trainer.resume(path)
        data = Dataset(np.zeros((4, 6)), np.zeros(4, int))
        options = {"epochs": 1, "batch_size": 2, "rng": trainer.rng, "checkpoint": path}
        with pytest.raises(nnxp.CheckpointError, match="another process is training into"):
            trainer.fit(data, **options)
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    trainer.fit(data, **options)  # a lock does not outlive its process


def test_jumps_of_the_system_clock_do_not_affect_training(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    trainer = new_trainer()
    jumps, ticks = itertools.cycle([1e9, 5.0, 2e9, -3.0]), itertools.count()
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))  # each call a second
    data = Dataset(np.zeros((4, 6)), np.zeros(4, int))
    options = {"batch_size": 2, "rng": np.random.default_rng(0), "checkpoint": path}
    trainer.fit(data, epochs=3, **options, checkpoint_every=1)
    trainer.fit(
        data, epochs=1, **options, callbacks=[Stopping(lambda: trainer.optimizer.steps == 7)]
    )
    resumed = nnxp.Trainer.resume(path)
    assert (resumed.optimizer.steps, resumed.epochs) == (7, 3)
    resumed.fit(data, epochs=1, **options | {"rng": resumed.rng})
    # Seconds are those of the clock that does not jump.
    assert all(0 < record.seconds < next(ticks) for record in resumed.history)
