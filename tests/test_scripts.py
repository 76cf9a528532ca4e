"""Scripts, as a user runs them: what they print, write and refuse."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import device_or_skip, write_mnist_layout

import nnxp
from nnxp.data import Dataset

SCRIPTS = Path(__file__).parent.parent / "scripts"
# The scripts find nnxp as the tests do, be it installed or not.
PATHS = os.pathsep.join(filter(None, [str(SCRIPTS.parent), os.environ.get("PYTHONPATH")]))
ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS}
pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests")


def run(name, *options, cwd=None, env=None, status=0):
    """Run a script and return what it printed, after checking its exit status."""
    result = subprocess.run(
        [sys.executable, SCRIPTS / name, *map(str, options)],
        cwd=cwd, env=ENVIRONMENT | (env or {}), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_train_on_the_digits(tmp_path):
    out = tmp_path / "run"
    result = run(
        "train_mnist.py", "--device", "cpu", "--dataset", "digits", "--epochs", 3, "--batch-size",
        20, "--out", out,
    )  # fmt: skip
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"nnxp {nnxp.__version__} on cpu (NumPy")
    epochs = [line for line in lines if line.startswith("epoch")]
    files = "checkpoint.safetensors, config.json, curves.png, history.json"
    assert lines[-1] == f"files in {out}: {files}"
    shown = [path.name for path in out.iterdir() if path.name[0] != "."]
    assert sorted(shown) == files.split(", ")
    history = json.loads((out / "history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2, 3]
    records = [
        nnxp.Record(r["epoch"], r["train_loss"], r["train_accuracy"], r["test_loss"],
                    r["test_accuracy"], r["seconds"])
        for r in history
    ]  # fmt: skip
    assert epochs == [str(record) for record in records]
    best = max(records, key=lambda record: record.validation_accuracy)
    assert lines[-2] == (
        f"test accuracy {records[-1].validation_accuracy:.4f} after 3 epoch(s) in "
        f"{sum(record.seconds for record in records):.1f} s "
        f"(best {best.validation_accuracy:.4f}, epoch {best.epoch})"
    )
    title = "digits, 64-50-30-10, SGD(learning_rate=0.1)"
    nnxp.plots.plot_histories({"": records}, tmp_path / "expected.png", title=title)
    assert (out / "curves.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_config_repeats_the_run(tmp_path):
    options = ["--dataset", "digits", "--epochs", 2, "--hidden", 16, "--optimizer", "adam",
               "--activation", "tanh", "--seed", 5, "--dtype", "float64", "--quiet"]  # fmt: skip
    assert run("train_mnist.py", *options, "--out", tmp_path / "a").stdout == ""
    config = config_of(tmp_path / "a")
    assert config["data_source"] is None
    assert config["versions"]["numpy"] == np.__version__
    assert config["versions"].keys() == {"python", "nnxp", "numpy", "array-api-compat"}
    assert config["device_description"].startswith("NumPy")
    repeated = []
    for key in ("dataset", "device", "activation", "optimizer", "learning_rate", "epochs",
                "batch_size", "seed", "dtype"):  # fmt: skip
        repeated += [f"--{key.replace('_', '-')}", config[key]]
    run("train_mnist.py", *repeated, "--hidden", *config["hidden"], "--out", tmp_path / "b")
    first, second = (
        [{k: v for k, v in record.items() if k != "seconds"} for record in history]
        for history in (json.loads((tmp_path / d / "history.json").read_text()) for d in "ab")
    )
    assert first == second


def test_every_option_reaches_the_training(tmp_path):
    result = run(
        "train_mnist.py", "--dataset", "digits", "--epochs", 6, "--hidden", 16, 8, "--optimizer",
        "adam", "--learning-rate", 0.02, "--activation", "tanh", "--init", "normal", "--seed", 5,
        "--batch-size", 32, "--dtype", "float64", "--device", "cpu", "--out", tmp_path / "a",
    )  # fmt: skip
    rng = np.random.default_rng(5)
    train, test = nnxp.data.load_digits()
    network = nnxp.mlp(
        [64, 16, 8, 10], rng=rng, activation="tanh", dtype="float64",
        initializer=nnxp.initializers.normal(0.01),
    )  # fmt: skip
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam(0.02))
    expected = trainer.fit(train, epochs=6, batch_size=32, validation=test, rng=rng)
    history = json.loads((tmp_path / "a" / "history.json").read_text())
    for got, record in zip(history, expected, strict=True):
        assert got["train_loss"] == record.train_loss
        assert got["train_accuracy"] == record.train_accuracy
        assert got["test_loss"] == record.validation_loss
        assert got["test_accuracy"] == record.validation_accuracy
    best = max(expected, key=lambda record: record.validation_accuracy)
    assert best.epoch < 6  # so the summary's two figures are of two epochs
    assert f"(best {best.validation_accuracy:.4f}, epoch {best.epoch})" in result.stdout


def test_what_cannot_be_captured_is_said_in_one_line(tmp_path):
    options = ("--dataset", "digits", "--epochs", "2", "--device", "strict", "--quiet", "--out")
    result = run("train_mnist.py", *options, tmp_path / "one", "--capture")
    reason = "there are no captured steps for strict"
    assert result.stderr == f"train_mnist.py: no step is captured: {reason}\n"
    assert json.loads((tmp_path / "one" / "config.json").read_text())["capture"] is True
    assert run("train_mnist.py", *options, tmp_path / "two", "--no-capture").stderr == ""
    assert run("train_mnist.py", *options, tmp_path / "three").stderr == ""


def test_v_says_why_auto_chose_the_cpu(tmp_path):
    (tmp_path / "cupy.py").write_text("raise OSError('no')\n")
    options = ["--dataset", "digits", "--epochs", 1, "--quiet", "--out"]
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PATHS}"}
    silent = run("train_mnist.py", *options, tmp_path / "a", env=environment)
    assert silent.stderr == ""
    result = run("train_mnist.py", "-v", *options, tmp_path / "b", env=environment)
    assert result.stderr.startswith("no GPU: CuPy is installed but does not import (OSError: no)")


def test_a_class_of_the_test_images_alone_counts(tmp_path):
    rows = "".join(f"{7 if i == 5 else 0},{i}\n" for i in range(6))
    (tmp_path / "a.csv").write_text("label,pixel0\n" + rows)
    out = run("train_mnist.py", "--dataset", "a.csv", "--epochs", 1, cwd=tmp_path).stdout
    assert "W3 (30, 8)" in out


def test_auto_says_why_it_trains_on_the_digits(tmp_path):
    empty = {"NNXP_DATA_DIR": str(tmp_path)}
    out = tmp_path / "run"
    result = run("train_mnist.py", "--epochs", 1, "--out", out, env=empty)
    assert re.match(
        r"training on the embedded 8 x 8 digits instead of MNIST: .* holds neither train-images",
        result.stderr,
    )
    assert result.stderr.count("\n") == 1
    result = run("train_mnist.py", "--dataset", "mnist", "--out", out / "b", env=empty, status=1)
    assert result.stderr.startswith("train_mnist.py: error: ")
    assert "holds neither" in result.stderr
    result = run("train_mnist.py", "--data-dir", tmp_path / "typo", status=1)
    assert "there is no folder" in result.stderr


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def digits_csv(tmp_path):
    """The embedded digits for training in Kaggle's layout."""
    train, _ = nnxp.data.load_digits()
    table = np.column_stack([train.labels, train.inputs])
    names = ",".join(["label", *(f"pixel{i}" for i in range(64))])
    np.savetxt(tmp_path / "train.csv", table, "%d", ",", header=names, comments="")
    return tmp_path / "train.csv"


def test_train_on_a_folder_and_on_csv(tmp_path, idx_folder, digits_csv):
    options = ["--epochs", 1, "--quiet", "--out"]
    run("train_mnist.py", "--data-dir", "idx", *options, "a", cwd=tmp_path)
    run("train_mnist.py", *options, "b", cwd=tmp_path, env={"NNXP_DATA_DIR": "idx"})
    train, test = nnxp.data.load_digits()
    digest = hashlib.sha256()
    for x in (train.inputs, train.labels, test.inputs, test.labels):
        digest.update(x.astype("uint8").tobytes())
    for out in ("a", "b"):
        config = config_of(tmp_path / out)
        assert config["out"] == str(tmp_path / out)
        assert config["dataset"] == "mnist"
        assert config["data_source"] == str(idx_folder)
        assert config["data_sha256"] == digest.hexdigest()
    result = run("train_mnist.py", "--dataset", digits_csv, "--epochs", 1, cwd=tmp_path)
    assert "1199 training and 239 test images" in result.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    config = config_of(folder)
    assert config["out"] == str(folder)
    assert config["data_source"] == str(digits_csv)
    assert config["data_sha256"] != digest.hexdigest()


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--activation", "relo"], 2, "unknown activation 'relo'; did you mean 'relu'?"),
        (["--optimizer", "adm"], 2, "unknown optimizer 'adm'; did you mean 'adam'?"),
        (["--init", "hee"], 2, "unknown initializer 'hee'; did you mean 'he'?"),
        (["--dtype", "float"], 2, "unknown dtype 'float'; did you mean 'float"),
        (["--epochs", "0"], 2, "argument --epochs: must be a whole number of at least 1, got '0'"),
        (["--batch-size", "-5"], 2, "--batch-size: must be a whole number of at least 1, got"),
        (["--hidden", "50", "x"], 2, "--hidden: must be a whole number of at least 1, got 'x'"),
        (["--seed", "-1"], 2, "--seed: must be 0 or more, got -1"),
        (["--learning-rate", "fast"], 2, "--learning-rate: invalid float value: 'fast'"),
        (["--no-such-option"], 2, "unrecognized arguments: --no-such-option"),
        (["--learning-rate", "0"], 1, "learning_rate must be a positive number, got 0"),
        (["--learning-rate", "nan"], 1, "learning_rate must be a positive number, got nan"),
        (["--dataset", "mnits"], 1, "unknown dataset 'mnits'; did you mean 'mnist'?"),
        (["--dataset", "none.csv"], 1, "none.csv cannot be read"),
        (["--dataset", "digits", "--data-dir", "."], 1, "--data-dir is for MNIST files"),
        (["--device", "cudda"], 1, "unknown device 'cudda'; did you mean 'cuda'?"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, options, status, message):
    result = run("train_mnist.py", *options, cwd=tmp_path, status=status)
    assert result.stderr.startswith("train_mnist.py: error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())  # refused before anything is made


def test_folders_that_cannot_take_a_run_are_refused(tmp_path):
    options = ["--dataset", "digits", "--epochs", 1, "--quiet", "--out"]
    run("train_mnist.py", *options, tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    result = run("train_mnist.py", *options, tmp_path / "a", status=1)
    assert "already holds a run or other files; choose another --out" in result.stderr
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", "/proc/nnxp"):
        result = run("train_mnist.py", *options, out, status=1)
        assert re.search(r"cannot write to .*; choose another --out", result.stderr)


def test_without_matplotlib_training_goes_on(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')\n")
    result = run(
        "train_mnist.py", "--dataset", "digits", "--epochs", 1, "--out", tmp_path / "run",
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{PATHS}"},
    )  # fmt: skip
    assert "no curves.png: matplotlib is not installed; pip install" in result.stderr
    assert (tmp_path / "run" / "history.json").exists()


@contextlib.contextmanager
def training(*options, until, env=None):
    """Train in a process of its own, up to the line that begins with `until`."""
    # A process inherits an ignored Ctrl-C, as from a shell's background, but no handler.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-u", SCRIPTS / "train_mnist.py", "--dataset", "digits", *options],
            env=ENVIRONMENT | (env or {}), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        next(line for line in process.stdout if line.startswith(until))
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_ctrl_c_keeps_the_finished_epochs_and_exits_130(tmp_path):
    out = tmp_path / "run"
    with training("--epochs", "1000000", "--out", out, until="epoch   5") as process:
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    words = re.fullmatch(rf"stopped after (\d+) steps; to resume: --resume {out}\n", err)
    assert int(words[1]) > 5
    history = json.loads((out / "history.json").read_text())
    assert [record["epoch"] for record in history] == list(range(1, len(history) + 1))
    assert len(history) >= 5
    assert (out / "curves.png").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_the_run_goes_on_to_the_same_end(tmp_path, number, status):
    options = ["--epochs", 40, "--hidden", 200, 100, "--optimizer", "adam", "--out"]
    run("train_mnist.py", "--dataset", "digits", *options, tmp_path / "whole")
    out = tmp_path / "run"
    with training(*map(str, options), out, until="epoch   2") as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert err.startswith("stopped after ")
    steps = nnxp.Trainer.resume(out / "checkpoint.safetensors").optimizer.steps
    assert steps == int(err.split()[2]) < 40 * 15
    result = run("train_mnist.py", "--resume", out, "--checkpoint-every", 7)
    assert result.stdout.splitlines()[-2].startswith("test accuracy ")
    for name, drop in (("history.json", "seconds"), ("config.json", None)):
        mine, whole = (json.loads((tmp_path / x / name).read_text()) for x in ("run", "whole"))
        if drop:
            for record in mine + whole:
                del record[drop]
            assert mine == whole
        else:
            same = ("hidden", "optimizer", "epochs", "batch_size", "data_sha256", "learning_rate")
            assert [mine[key] for key in same] == [whole[key] for key in same]
    mine, whole = (
        nnxp.load_network(tmp_path / x / "checkpoint.safetensors").parameters()
        for x in ("run", "whole")
    )
    np.testing.assert_equal(dict(mine), dict(whole))


@pytest.fixture
def without_safetensors(tmp_path):
    """Environment in which it is not installed; a folder ``none`` stands for that."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "safetensors.py").write_text(
        "raise ModuleNotFoundError(name='safetensors')\n"
    )
    return {"PYTHONPATH": f"{tmp_path / 'none'}{os.pathsep}{PATHS}"}


def test_checkpoints_that_cannot_be_had_are_refused_before_a_folder_is_made(
    tmp_path, without_safetensors
):
    options = ["--dataset", "digits", "--checkpoint-every", 5, "--out", tmp_path / "run"]
    result = run("train_mnist.py", *options, env=without_safetensors, status=1)
    assert re.fullmatch(
        r"train_mnist.py: error: safetensors is not installed; pip install .*\n", result.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["none"]


@pytest.mark.parametrize("existing", [False, True])
def test_ctrl_c_in_the_first_epoch_leaves_nothing_behind(tmp_path, existing, without_safetensors):
    out = tmp_path / "run"
    if existing:
        out.mkdir()
    # An epoch of 1,438 steps through a million weights takes most of a second.
    options = ["--hidden", "1000", "1000", "--batch-size", "1", "--out", out]
    with training(*options, until="digits: ", env=without_safetensors) as process:
        if existing:
            (out / "notes.txt").write_text("mine")
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    first, second = err.splitlines()
    assert first.startswith("no checkpoint.safetensors: safetensors is not installed; pip install")
    assert second == "interrupted: no epoch was finished"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none"] + ["run"] * existing
    assert not existing or [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--hidden", 9], 2, r"argument --hidden: the run in .* has \[16\], which cannot change"),
        (["--seed", 9], 2, "argument --seed: the run in .* has 0, which cannot change"),
        (["--out", "there"], 2, "argument --out: a resumed run stays in its own folder"),
        ([], 1, "the run in .* has finished its 2 epochs; for more, give a larger --epochs"),
        (["--epochs", 3, "--data-dir", "."], 1, "--data-dir is for MNIST files, not for --datas"),
    ],
)
def test_what_cannot_go_on_is_one_line(tmp_path, options, status, message):
    out = tmp_path / "run"
    settings = ["--dataset", "digits", "--hidden", 16, "--epochs", 2, "--quiet", "--out", out]
    run("train_mnist.py", *settings)
    result = run("train_mnist.py", "--resume", out, *options, status=status)
    assert re.fullmatch(f"train_mnist.py: error: {message}.*\n", result.stderr)


def test_a_folder_without_a_run_cannot_go_on(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        result = run("train_mnist.py", "--resume", folder, status=1)
        assert f"error: {folder} holds no run to resume" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_run_goes_on_with_its_own_data_alone(tmp_path, idx_folder):
    out, other = tmp_path / "run", tmp_path / "other"
    run("train_mnist.py", "--data-dir", idx_folder, "--epochs", 1, "--quiet", "--out", out)
    train, test = nnxp.data.load_digits()
    options = ["--resume", out, "--epochs", 2]
    for labels in (train.labels[:500], np.roll(train.labels, 1)):
        write_mnist_layout(other, Dataset(train.inputs[: len(labels)], labels), test)
        result = run("train_mnist.py", *options, "--data-dir", other, status=1)
        assert re.search("error: the run in .* was trained on other data than mnist", result.stderr)
    run("train_mnist.py", *options)  # it remembers the folder


def test_a_run_that_is_killed_at_once_goes_on(tmp_path):
    out, whole = tmp_path / "run", tmp_path / "whole"
    # An epoch of 1,438 steps through a million weights takes most of a second.
    options = ["--hidden", "1000", "1000", "--batch-size", "1", "--epochs", "1", "--out"]
    with training(*options, out, until="digits: ") as process:
        while not (out / "checkpoint.safetensors").exists():
            assert process.poll() is None
        process.kill()
        process.wait()
    assert nnxp.Trainer.resume(out / "checkpoint.safetensors").optimizer.steps == 0
    assert "after 1 epoch(s)" in run("train_mnist.py", "--resume", out).stdout
    run("train_mnist.py", "--dataset", "digits", "--quiet", *options, whole)
    mine, other = (
        dict(nnxp.load_network(folder / "checkpoint.safetensors").parameters())
        for folder in (out, whole)
    )
    np.testing.assert_equal(mine, other)


def test_a_run_goes_on_as_it_was_set_up_unless_told_otherwise(tmp_path, digits_csv):
    options = ["--dataset", digits_csv.name, "--no-capture", "--epochs", 1, "--quiet"]
    run("train_mnist.py", *options, "--out", tmp_path / "run", cwd=digits_csv.parent)
    (tmp_path / "run").rename(tmp_path / "moved")
    out = tmp_path / "moved"
    run(
        "train_mnist.py", "--resume", "moved/", "--epochs", 2, "--checkpoint-every", 5, cwd=tmp_path
    )
    config = json.loads((out / "config.json").read_text())
    kept = {"capture": False, "device": "cpu", "epochs": 2, "checkpoint_every": 5}
    assert {name: config[name] for name in kept} == kept
    assert "--resume" in config["command"]
    for name in ("history.json", "config.json"):
        (out / name).unlink()  # as a kill might
    result = run("train_mnist.py", "--resume", out, status=1)
    assert "has finished its 2 epochs" in result.stderr
    assert len(json.loads((out / "history.json").read_text())) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"data_sha256": None}, {"seed": None}, {"dataset": 5}, {"hidden": 5}, {"epochs": "2"},
        {"data_source": 5}, None,
    ],
)  # fmt: skip
def test_a_broken_config_is_one_line(tmp_path, change):
    out = tmp_path / "run"
    run("train_mnist.py", "--dataset", "digits", "--epochs", 1, "--quiet", "--out", out)
    trainer = nnxp.Trainer.resume(out / "checkpoint.safetensors")
    trainer.config = trainer.config | change if change else {}
    trainer.save(out / "checkpoint.safetensors")
    result = run("train_mnist.py", "--resume", out, "--epochs", 2, status=1)
    assert re.fullmatch(
        rf"train_mnist.py: error: {out} holds no run to resume \(.* valid \w+\)\n", result.stderr
    )


def test_a_refused_run_leaves_the_one_that_is_going_on_alone(tmp_path):
    out = tmp_path / "run"
    with training("--epochs", "1000000", "--out", out, until="epoch   2"):
        before = (out / "config.json").read_text()
        result = run("train_mnist.py", "--resume", out, "--epochs", 5, status=1)
        assert (out / "config.json").read_text() == before
        assert not (out / "curves.png").exists()
    assert "error: another process is training into" in result.stderr


@pytest.fixture
def stopping(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from cli import Stopping

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield Stopping()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_first_ctrl_c_asks_and_the_second_insists(stopping):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with stopping as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_ignored_ctrl_c_stays_ignored(stopping):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup, or a shell's background, has it
    with stopping as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_a_kill_keeps_the_finished_epochs(tmp_path):
    out = tmp_path / "run"
    with training("--epochs", "1000000", "--out", out, until="epoch   5") as process:
        process.kill()
        process.communicate(timeout=60)
    assert len(json.loads((out / "history.json").read_text())) >= 4


def test_runs_at_the_same_moment_get_folders_of_their_own(tmp_path):
    command = [sys.executable, SCRIPTS / "train_mnist.py", "--dataset", "digits", "--epochs", "1",
               "--quiet"]  # fmt: skip
    for _ in range(2):
        processes = [subprocess.Popen(command, cwd=tmp_path) for _ in range(4)]
        assert [process.wait(timeout=120) for process in processes] == [0] * 4
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 8
    assert all((folder / "history.json").exists() for folder in folders)


def test_divergence_is_one_line(tmp_path):
    result = run(
        "train_mnist.py", "--dataset", "digits", "--learning-rate", "1e30", "--out",
        tmp_path / "run", status=1,
    )  # fmt: skip
    assert re.fullmatch(
        r"train_mnist.py: error: training diverged at step \d+ of epoch 1: the .* layer .* is not "
        r"finite. Parameters .*; start from new weights with a lower learning rate, now 1e.30\n",
        result.stderr,
    )


def test_too_large_a_network_is_one_line(tmp_path):
    result = run(
        "train_mnist.py", "--dataset", "digits", "--hidden", 10**11, cwd=tmp_path, status=1
    )  # fmt: skip
    assert re.match(r"train_mnist.py: error: not enough memory: .*\n$", result.stderr)


def test_full_batch_learns_from_a_csv_file(digits_csv):
    out = run("full_batch.py", "--dataset", digits_csv, "--hidden", 32, "--epochs", 200).stdout
    assert "Affine(32, 10), Sigmoid()), all 1199 examples in each step" in out
    losses = [float(loss) for loss in re.findall(r"train loss (\S+)", out)]
    assert len(losses) == 200
    assert losses[-1] < losses[0] / 2
    assert float(re.findall(r"test accuracy (\S+)", out)[-1]) > 0.85


def test_full_batch_takes_one_step_an_epoch():
    out = run("full_batch.py", "--dataset", "digits", "--hidden", 16, 8, "--epochs", 9).stdout
    train, _ = nnxp.data.load_digits()
    x, targets = train.inputs / np.float32(255), nnxp.data.one_hot(train.labels, 10)
    rng = np.random.default_rng(0)
    layers = nnxp.mlp([64, 16, 8, 10], rng=rng, activation="sigmoid").layers
    network, loss = nnxp.Sequential([*layers, nnxp.Sigmoid()]), nnxp.MeanSquaredError()
    trainer = nnxp.Trainer(network, loss, nnxp.SGD(30.0))
    expected = [float(trainer.step(x, targets)) for _ in range(10)][1:]
    losses = [float(figure) for figure in re.findall(r"train loss (\S+)", out)]
    assert losses == pytest.approx(expected, abs=6e-5)  # printed to four decimals
    assert losses[0] - losses[-1] > 1e-3


def test_fruit_graph():
    out = run("fruit_graph.py").stdout
    assert "2 apples at 100, tax 1.1: 220.00" in out
    assert "gradients: price 2.20, apples 110.00, tax 200.00" in out
    assert "715.00" in out
    figures = re.findall(r"(apple|orange|apple's price|orange's price|tax) +([\d.]+)$", out, re.M)
    assert dict(figures) == {
        "apple": "110.00", "orange": "165.00", "apple's price": "2.20", "orange's price": "3.30",
        "tax": "650.00",
    }  # fmt: skip


def test_logistic_regression():
    out = run("logistic_regression.py").stdout
    assert "step   1  cost 0.6931471806" in out
    assert "step  10  cost 0.5956439890" in out
    assert "w = [0.31266902 0.09450386], b = [-0.00104523]" in out
    assert "three hidden units  cost 0.5515420615" in out
    assert "db1 = [0.0182778946, -0.0027806317, -0.0012932731]" in out
    assert "dW2 = [[-0.1222848805], [-0.0719260862], [-0.025191328]]" in out


def test_xor_is_learned():
    out = run("xor.py").stdout
    assert float(re.search(r"loss (\S+)$", out.splitlines()[-1])[1]) < 0.01
    for x, y, label in [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]:
        predicted = re.search(rf"{x} xor {y} = {label}  predicted (\S+)", out)[1]
        assert abs(float(predicted) - label) < 0.1


def test_gradient_check_shows_agreement_and_speed():
    out = run("gradient_check.py", "--dataset", "digits").stdout
    errors = [float(x) for x in re.findall(r"\) +(\d\.\de-\d\d)$", out, re.M)]
    assert len(errors) == 7
    assert max(errors) < 1e-6
    assert int(re.search(r"([\d,]+) times as long", out)[1].replace(",", "")) > 100


def test_compare_prints_a_table_and_draws_a_picture(tmp_path):
    out = run(
        "compare_mnist.py", "--dataset", "digits", "--epochs", 1, "--seeds", 2, "--out", tmp_path
    ).stdout
    rows = re.findall(r"^([23] layers.*?)  +0\.\d{4} ± 0\.\d{4}  ", out, re.M)
    assert len(rows) == 11
    assert {"2 layers, sigmoid", "3 layers, relu", "3 layers, relu, he, adamw"} <= set(rows)
    assert (tmp_path / "compare.png").exists()
    assert len(config_of(tmp_path)["data_sha256"]) == 64
    table = json.loads((tmp_path / "compare.json").read_text())
    assert len(table) == 11
    results = {tuple(row["train_accuracy"] + row["test_accuracy"]) for row in table}
    assert len(results) >= 9  # no two settings alike, but for those that learn nothing in an epoch
    assert sum(row["train_accuracy"][0] != row["train_accuracy"][1] for row in table) >= 8  # seeds


@pytest.fixture(scope="module")
def portability(tmp_path_factory):
    """Rows and output of one run for all tests: starting the libraries takes seconds."""
    file = tmp_path_factory.mktemp("portability") / "table.md"
    out = run("portability.py", "--dataset", "digits", "--steps", 10, "--out", file).stdout
    rows = re.findall(r"^\| `(\S+)` \| .*? \| (float\d\d) \|", out, re.M)
    assert {("cpu", "float32"), ("cpu", "float64"), ("strict:device1", "float64")} <= set(rows)
    table = file.read_text().splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == len(rows) + 2
    return rows, out


def test_portability_prints_a_table_and_what_was_not_run(portability):
    rows, out = portability
    for spec in ("cuda", "torch:cpu", "jax:cpu"):
        assert (spec in dict(rows)) or f"not run: {spec}" in out or f"`{spec}" in out


@pytest.mark.interop
def test_portability_on_torch_and_jax(portability):
    assert {("torch:cpu", "float64"), ("jax:cpu", "float32")} <= set(portability[0])


@pytest.mark.gpu
def test_portability_on_the_gpu(portability):
    device_or_skip("cuda")
    assert {("cuda:0", "float32"), ("cuda:0", "float64")} <= set(portability[0])


def test_portability_fails_when_a_library_differs():
    import importlib.util

    spec = importlib.util.spec_from_file_location("portability", SCRIPTS / "portability.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    double = {"spec": "x", "dtype": "float64", "losses": 1e-15, "relu": 1e-15, "tanh": 1e-15}
    single = double | {"dtype": "float32", "losses": 1e-2, "relu": 1e-2, "tanh": 1e-6}
    rows = [double, single]
    assert [text for row in rows for text in module.check_row(row, rows)] == []
    for row, wrong in [
        (double | {"losses": 1e-8}, "x in float64 differs from NumPy by 1.0e-08 (losses), more"),
        (double | {"relu": 1e-8}, "x in float64 differs from NumPy by 1.0e-08 (relu), more"),
        (double | {"tanh": float("nan")}, "x in float64 differs from NumPy by nan (tanh), more"),
        (single | {"tanh": 1e-5}, "x in float32 differs from NumPy by 1.0e-05 (tanh), more"),
    ]:
        (text,) = module.check_row(row, rows)
        assert text.startswith(wrong)
