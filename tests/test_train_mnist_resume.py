"""scripts/train_mnist.py: signals, kills and --resume."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
from file_samples import write_mnist_layout
from script_runner import ENVIRONMENT, PATHS, SCRIPTS, run, training

import nnxp
from nnxp.data import Dataset

pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests")


def test_ctrl_c_keeps_the_finished_epochs_and_exits_130(tmp_path):
    out = tmp_path / "run"
    with training("--epochs", "1000000", "--out", out, until="epoch   5") as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130, err
    words = re.fullmatch(rf"stopped after (\d+) steps; to resume: --resume {out}\n", err)
    assert int(words[1]) > 5
    history = json.loads((out / "history.json").read_text())
    assert [record["epoch"] for record in history] == list(range(1, len(history) + 1))
    assert len(history) >= 5
    assert (out / "curves.png").exists()


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)],
)
def test_signal_finishes_the_step_and_resume_gives_the_same_bits(tmp_path, number, status):
    options = ["--hidden", "200", "100", "--optimizer", "adam", "--out"]
    out = tmp_path / "run"
    with training("--epochs", "1000000", *options, out, until="epoch   2") as process:
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == status, err
    assert err.startswith("stopped after ")
    stopped = nnxp.Trainer.resume(out / "checkpoint.safetensors")
    assert stopped.optimizer.steps == int(err.split()[2])
    epochs = ["--epochs", stopped.epochs + 2]
    result = run("train_mnist.py", "--resume", out, *epochs, "--checkpoint-every", 7)
    run("train_mnist.py", "--dataset", "digits", *epochs, *options, tmp_path / "whole")
    assert result.stdout.splitlines()[-2].startswith("validation accuracy ")
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


def test_missing_safetensors_is_refused_before_a_folder_is_made(tmp_path, without_safetensors):
    options = ["--dataset", "digits", "--checkpoint-every", 5, "--out", tmp_path / "run"]
    result = run("train_mnist.py", *options, env=without_safetensors, status=1)
    assert re.fullmatch(
        r"train_mnist.py: error: safetensors is not installed; .*pip install .*\n", result.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["none"]


@pytest.mark.parametrize(
    ("until", "existing"),
    [
        ("digits: ", False),
        ("handled", True),
        pytest.param("digits: ", True, marks=pytest.mark.long),
        pytest.param("handled", False, marks=pytest.mark.long),
    ],
)
def test_ctrl_c_in_the_first_epoch_leaves_nothing_behind(
    tmp_path, existing, until, without_safetensors
):
    # Prints when `fit` handles signals, before its first step.
    (tmp_path / "none" / "sitecustomize.py").write_text(
        "import signal\n"
        "usual = signal.signal\n"
        "def announced(number, handler):\n"
        "    before = usual(number, handler)\n"
        "    if (number, getattr(handler, '__name__', '')) == (signal.SIGTERM, '_receive'):\n"
        "        print('handled', flush=True)\n"
        "    return before\n"
        "signal.signal = announced\n"
    )
    out = tmp_path / "run"
    if existing:
        out.mkdir()
    # An epoch of 1,438 steps through nine million weights takes far longer than a signal.
    options = ["--hidden", "3000", "3000", "--batch-size", "1", "--out", out]
    with training(*options, until=until, env=without_safetensors) as process:
        if existing:
            (out / "notes.txt").write_text("mine")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130, err
    first, second = err.splitlines()
    assert first.startswith("no checkpoint.safetensors: safetensors is not installed; ")
    assert second == "interrupted: no epoch was finished"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none"] + ["run"] * existing
    assert not existing or [path.name for path in out.iterdir()] == ["notes.txt"]


@pytest.mark.long
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
def test_refused_resume_gives_a_one_line_error(tmp_path, options, status, message):
    out = tmp_path / "run"
    settings = ["--dataset", "digits", "--hidden", 16, "--epochs", 2, "--quiet", "--out", out]
    run("train_mnist.py", *settings)
    result = run("train_mnist.py", "--resume", out, *options, status=status)
    assert re.fullmatch(f"train_mnist.py: error: {message}.*\n", result.stderr)


def test_resume_of_a_folder_without_a_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        result = run("train_mnist.py", "--resume", folder, status=1)
        assert f"error: {folder} holds no run to resume" in result.stderr
        assert result.stderr.count("\n") == 1


def test_resume_with_other_data_is_refused(tmp_path, idx_folder):
    out, other = tmp_path / "run", tmp_path / "other"
    run("train_mnist.py", "--data-dir", idx_folder, "--epochs", 1, "--quiet", "--out", out)
    train, test = nnxp.data.load_digits()
    options = ["--resume", out, "--epochs", 2]
    for labels in (train.labels[:500], np.roll(train.labels, 1)):
        write_mnist_layout(other, Dataset(train.inputs[: len(labels)], labels), test)
        result = run("train_mnist.py", *options, "--data-dir", other, status=1)
        assert re.search("error: the run in .* was trained on other data than mnist", result.stderr)
    run("train_mnist.py", *options)  # it remembers the folder


@pytest.mark.long
def test_run_killed_in_its_first_epoch_resumes(tmp_path):
    out, whole = tmp_path / "run", tmp_path / "whole"
    # The process kills itself as soon as its first checkpoint is in place.
    code = (
        "import os, runpy, signal, sys\n"
        "saved = []\n"
        "def hook(event, args):\n"
        "    if saved and event != 'os.kill':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    if event == 'os.rename' and str(args[1]).endswith('checkpoint.safetensors'):\n"
        "        saved.append(1)\n"
        "sys.addaudithook(hook)\n"
        "sys.path.insert(0, os.path.dirname(sys.argv[1]))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    options = ["--dataset", "digits", "--epochs", "1", "--quiet", "--out"]
    process = subprocess.run(
        [sys.executable, "-c", code, SCRIPTS / "train_mnist.py", *options, out],
        env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL
    assert nnxp.Trainer.resume(out / "checkpoint.safetensors").optimizer.steps == 0
    assert "after 1 epoch(s)" in run("train_mnist.py", "--resume", out).stdout
    run("train_mnist.py", *options, whole)
    mine, other = (
        dict(nnxp.load_network(folder / "checkpoint.safetensors").parameters())
        for folder in (out, whole)
    )
    np.testing.assert_equal(mine, other)


@pytest.mark.long
def test_resume_keeps_the_settings_unless_options_change_them(tmp_path, digits_csv):
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


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        {"data_sha256": None}, {"seed": None}, {"dataset": 5}, {"hidden": 5}, {"epochs": "2"},
        {"data_source": 5}, None,
    ],
)  # fmt: skip
def test_broken_config_gives_a_one_line_error(tmp_path, change):
    out = tmp_path / "run"
    run("train_mnist.py", "--dataset", "digits", "--epochs", 1, "--quiet", "--out", out)
    trainer = nnxp.Trainer.resume(out / "checkpoint.safetensors")
    trainer.config = trainer.config | change if change else {}
    trainer.save(out / "checkpoint.safetensors")
    result = run("train_mnist.py", "--resume", out, "--epochs", 2, status=1)
    assert re.fullmatch(
        rf"train_mnist.py: error: {out} holds no run to resume \(.* valid \w+\)\n", result.stderr
    )


def test_refused_resume_does_not_disturb_the_running_process(tmp_path):
    out = tmp_path / "run"
    with training("--epochs", "1000000", "--out", out, until="epoch   2"):
        before = (out / "config.json").read_text()
        result = run("train_mnist.py", "--resume", out, "--epochs", 5, status=1)
        assert (out / "config.json").read_text() == before
        assert not (out / "curves.png").exists()
    assert "error: another process is training into" in result.stderr


@pytest.fixture
def stop():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield nnxp.callbacks.StopOnSignal()
    for number, handler in before.items():
        signal.signal(number, handler)


# What the callback reads of a trainer.
ALONE = types.SimpleNamespace(ranks=types.SimpleNamespace(size=1))


def test_second_ctrl_c_raises_keyboard_interrupt(stop):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop.start(None)
    assert not stop.step(None)
    signal.raise_signal(signal.SIGINT)
    assert stop.step(None)
    assert stop.received == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    stop.finish(ALONE, None)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_ignored_ctrl_c_stays_ignored(stop):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup, or a shell's background, has it
    stop.start(None)
    signal.raise_signal(signal.SIGINT)
    assert not stop.step(None)
    signal.raise_signal(signal.SIGTERM)
    assert stop.received == signal.SIGTERM
    signal.raise_signal(signal.SIGINT)
    stop.finish(ALONE, None)
    signal.raise_signal(signal.SIGINT)


def test_killed_run_keeps_the_finished_epochs(tmp_path):
    out = tmp_path / "run"
    with training("--epochs", "1000000", "--out", out, until="epoch   5") as process:
        process.kill()
        process.communicate()
    assert len(json.loads((out / "history.json").read_text())) >= 4
