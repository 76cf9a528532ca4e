"""scripts/train_mnist.py: options, data, output files and errors, run as a user runs it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from script_runner import PATHS, SCRIPTS, config_of, run

import nnxp

pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests")


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
    records = [nnxp.Record(**figures) for figures in history]
    assert epochs == [str(record) for record in records]
    best = max(records, key=lambda record: record.validation_accuracy)
    assert lines[-2] == (
        f"validation accuracy {records[-1].validation_accuracy:.4f} after 3 epoch(s) in "
        f"{sum(record.seconds for record in records):.1f} s "
        f"(best {best.validation_accuracy:.4f}, epoch {best.epoch})"
    )
    title = "digits, 64-50-30-10, SGD, learning rate 0.1"
    nnxp.plots.plot_histories({"": records}, tmp_path / "expected.png", title=title)
    assert (out / "curves.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_a_recipe_draws_confusion_mistakes_and_weights(tmp_path):
    options = ("--dataset", "digits", "--model", "mlp", "--hidden", 16, "--epochs", 1)
    out = tmp_path / "run"
    result = run("train_mnist.py", *options, "--device", "strict", "--out", out)
    assert "confusion.png, curves.png, " in result.stdout
    network = nnxp.load_network(out / "checkpoint.safetensors", device="cpu")
    _, test = nnxp.data.load_digits(images=True)
    scores = network.predict(test.inputs)
    counts = nnxp.metrics.confusion_matrix(scores, test.labels)
    nnxp.plots.plot_confusion_matrix(counts, tmp_path / "confusion.png", title="digits")
    nnxp.plots.plot_weights(network, tmp_path / "weights.png", title="digits")
    nnxp.plots.plot_mistakes(
        test.inputs, test.labels, scores, tmp_path / "mistakes.png", title="digits"
    )
    for name in ("confusion.png", "weights.png", "mistakes.png"):
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.long
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
        "--batch-size", 32, "--dtype", "float64", "--device", "cpu", "--batch-norm", "--dropout",
        0.1, "--out", tmp_path / "a",
    )  # fmt: skip
    rng = np.random.default_rng(5)
    train, test = nnxp.data.load_digits()
    network = nnxp.mlp(
        [64, 16, 8, 10], rng=rng, activation="tanh", dtype="float64",
        initializer=nnxp.initializers.normal(0.01), batch_norm=True, dropout=0.1,
    )  # fmt: skip
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.Adam(0.02))
    expected = trainer.fit(
        train, epochs=6, batch_size=32, validation=test, rng=rng, train_metrics="after"
    )
    history = json.loads((tmp_path / "a" / "history.json").read_text())
    for got, record in zip(history, expected, strict=True):
        assert got["train_loss"] == record.train_loss
        assert got["train_accuracy"] == record.train_accuracy
        assert got["validation_loss"] == record.validation_loss
        assert got["validation_accuracy"] == record.validation_accuracy
    best = max(expected, key=lambda record: record.validation_accuracy)
    assert best.epoch < 6  # so the summary's two figures are of two epochs
    assert f"(best {best.validation_accuracy:.4f}, epoch {best.epoch})" in result.stdout


@pytest.mark.long
def test_lenet_trains_on_images_and_resumes(tmp_path):
    options = ("--model", "lenet", "--dataset", "digits", "--schedule", "constant", "--quiet",
               "--out")  # fmt: skip
    run("train_mnist.py", *options, tmp_path / "a", "--epochs", 2)
    printed = run("train_mnist.py", *options[:-2], "--out", tmp_path / "b", "--epochs", 1).stdout
    assert "(batch, 50, 2, 2)" in printed  # images of 8 x 8 need padding
    run("train_mnist.py", "--resume", tmp_path / "b", "--epochs", 2, "--quiet")
    network = nnxp.load_network(tmp_path / "a" / "checkpoint.safetensors")
    resumed = nnxp.load_network(tmp_path / "b" / "checkpoint.safetensors")
    for name, x in network.parameters().items():
        assert (resumed.parameters()[name] == x).all(), name
    _, test = nnxp.data.load_digits(images=True)
    # Two epochs of 15 steps reach 0.73; chance is 0.1, and its deviation over 359 images 0.016.
    assert (network.predict_classes(test.inputs) == test.labels).mean() > 0.5


def test_lenet_takes_a_table_of_square_images_only(tmp_path, digits_csv):
    options = ("--model", "lenet", "--epochs", 1, "--quiet", "--out")
    table = tmp_path / "t.csv"
    table.write_text("".join(digits_csv.read_text().splitlines(keepends=True)[:101]))
    run("train_mnist.py", "--dataset", table, *options, tmp_path / "a")
    table.write_text("label,a,b,c\n" + "0,1,2,3\n1,2,3,4\n" * 20)
    result = run("train_mnist.py", "--dataset", table, *options, tmp_path / "b", status=1)
    assert "3 columns of inputs, which do not form a square image; use --model" in result.stderr


def test_unavailable_capture_is_reported_in_one_line(tmp_path):
    options = ("--dataset", "digits", "--epochs", "1", "--device", "strict", "--quiet", "--out")
    result = run("train_mnist.py", *options, tmp_path / "one", "--capture")
    reason = "there are no captured steps for strict; plain steps are slower"
    assert result.stderr == f"train_mnist.py: no step is captured: {reason}\n"
    assert json.loads((tmp_path / "one" / "config.json").read_text())["capture"] is True
    assert run("train_mnist.py", *options, tmp_path / "two", "--no-capture").stderr == ""
    assert run("train_mnist.py", *options, tmp_path / "three").stderr == ""


def test_verbose_says_why_auto_chose_the_cpu(tmp_path):
    (tmp_path / "cupy.py").write_text("raise OSError('no')\n")
    options = ["--dataset", "digits", "--epochs", 1, "--quiet", "--out"]
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PATHS}"}
    silent = run("train_mnist.py", *options, tmp_path / "a", env=environment)
    assert silent.stderr == ""
    result = run("train_mnist.py", "-v", *options, tmp_path / "b", env=environment)
    assert result.stderr.startswith("no GPU: CuPy is installed but does not import (OSError: no)")


def test_class_that_occurs_only_in_the_test_images_counts(tmp_path):
    rows = "".join(f"{7 if i == 5 else 0},{i}\n" for i in range(6))
    (tmp_path / "a.csv").write_text("label,pixel0\n" + rows)
    out = run("train_mnist.py", "--dataset", "a.csv", "--epochs", 1, cwd=tmp_path).stdout
    assert "W3 (30, 8)" in out


def test_auto_says_why_it_trains_on_the_digits(tmp_path):
    (tmp_path / "cache").touch()  # so that nothing is downloaded
    unavailable = {
        "NNXP_DATA_DIR": "",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "MPLCONFIGDIR": str(tmp_path),
    }
    out = tmp_path / "run"
    result = run("train_mnist.py", "--epochs", 1, "--out", out, env=unavailable)
    assert re.match(
        r"training on the embedded 8 x 8 digits instead of MNIST: MNIST cannot be downloaded to ",
        result.stderr,
    )
    assert result.stderr.count("\n") == 1
    options = ["--dataset", "mnist", "--out", out / "b"]
    result = run("train_mnist.py", *options, env=unavailable, status=1)
    assert result.stderr.startswith("train_mnist.py: error: MNIST cannot be downloaded to ")
    result = run("train_mnist.py", "--data-dir", tmp_path / "typo", status=1)
    assert "there is no folder" in result.stderr


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))]
)
def test_digits_are_learned_by_default(tmp_path, seed):
    out = run("train_mnist.py", "--dataset", "digits", "--seed", seed, "--out", tmp_path).stdout
    last, best = re.search(
        r"accuracy (0\.\d+) after 50 .*\(best (0\.\d+), epoch \d+\)", out
    ).groups()
    assert 0.95 < float(last) <= float(best)
    assert config_of(tmp_path)["epochs"] == 50


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "there is no folder"),
        ("file", "is no folder"),
        ("empty", "holds neither train-images"),
        ("a\x1b[31m", r"there is no folder .*a\\x1b\[31m"),
        ("~/none", "there is no folder /"),
    ],
)
@pytest.mark.parametrize("script", ["train_mnist.py", "full_batch.py", "gradient_check.py"])
def test_wrong_folder_in_the_environment_is_an_error(tmp_path, script, name, message):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    folder = name if name.startswith("~") else str(tmp_path / name)
    result = run(script, env={"NNXP_DATA_DIR": folder}, cwd=tmp_path, status=1)
    assert re.match(
        f"{script}: error: NNXP_DATA_DIR is set, but .*{message}.* folder that holds the four",
        result.stderr,
    )
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


@pytest.mark.long
def test_home_folder_is_meant_by_a_tilde(tmp_path, idx_folder, digits_csv):
    home = {"HOME": str(tmp_path), "NNXP_DATA_DIR": "~/idx"}
    (tmp_path / "work").mkdir()
    options = ["--epochs", 1, "--quiet", "--out"]
    for out, more in [("a", []), ("b", ["--data-dir=~/idx"]), ("c", ["--dataset=~/train.csv"])]:
        run("train_mnist.py", *options, out, *more, cwd=tmp_path / "work", env=home)
        source = config_of(tmp_path / "work" / out)["data_source"]
        assert source == str(digits_csv if out == "c" else idx_folder)
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["a", "b", "c"]


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
    assert "1198 training and 240 test images" in result.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    config = config_of(folder)
    assert config["out"] == str(folder)
    assert config["data_source"] == str(digits_csv)
    assert config["data_sha256"] != digest.hexdigest()


RECIPE = {"batch_norm": True, "optimizer": "nesterov", "learning_rate": 0.1, "batch_size": 128,
          "schedule": "onecycle", "weight_decay": 5e-3}  # fmt: skip


SETTINGS = [
    ([], {"model": "plain", "hidden": [50, 30], "optimizer": "sgd", "learning_rate": 0.1,
          "schedule": "constant", "weight_decay": 0.0, "batch_size": 100, "shift": 0,
          "batch_norm": False}),
    (["--model", "mlp"], RECIPE | {"hidden": [512, 256], "shift": 1, "learning_rate": 0.2,
                                   "weight_decay": 0.01, "label_smoothing": 0.05}),
    (["--model", "lenet"], RECIPE | {"hidden": None, "shift": 2, "label_smoothing": 0.0}),
    (["--model", "mlp", "--hidden", 9, "--no-batch-norm", "--shift", 0, "--schedule",
      "constant", "--learning-rate", 0.2, "--weight-decay", 0, "--batch-size", 50,
      "--label-smoothing", 0.1],
     {"hidden": [9], "label_smoothing": 0.1, "batch_norm": False, "shift": 0,
      "schedule": "constant", "learning_rate": 0.2, "weight_decay": 0.0, "batch_size": 50}),
    (["--optimizer", "adamw"], {"learning_rate": 0.001, "weight_decay": 0.01}),
    (["--model", "mlp", "--optimizer", "adam"], {"learning_rate": 0.001, "weight_decay": 0.0,
                                                 "schedule": "onecycle"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "settings"),
    [*SETTINGS[:2], *(pytest.param(*each, marks=pytest.mark.long) for each in SETTINGS[2:])],
)
def test_a_model_has_its_settings_and_options_replace_them(tmp_path, options, settings):
    out = tmp_path / "run"
    run("train_mnist.py", "--dataset", "digits", "--epochs", 1, "--quiet", *options, "--out", out)
    config = config_of(out)
    assert {name: config[name] for name in settings} == settings
    trainer = nnxp.Trainer.resume(out / "checkpoint.safetensors")
    optimizer, layers = trainer.optimizer, trainer.network.leaves()
    assert type(optimizer).__name__.lower() == config["optimizer"]
    assert (optimizer.weight_decay, optimizer.decayed) == (config["weight_decay"], "matrices")
    assert any(isinstance(x, nnxp.BatchNorm) for x in layers) == config["batch_norm"]
    shifts = [x.pixels for x in layers if isinstance(x, nnxp.RandomShift)]
    assert shifts == [config["shift"]] * bool(config["shift"])
    # One cycle ends at 0 with the last step.
    assert optimizer.learning_rate == (
        config["learning_rate"] if config["schedule"] == "constant" else 0
    )


def test_the_epochs_of_a_cycle_cannot_change(tmp_path):
    options = ["--dataset", "digits", "--model", "mlp", "--hidden", 16, "--epochs", 2, "--quiet"]
    run("train_mnist.py", *options, "--out", tmp_path / "run")
    for epochs in (1, 3):
        result = run("train_mnist.py", "--resume", tmp_path / "run", "--epochs", epochs, status=2)
        assert re.search(
            r"--epochs: the learning rate of the run in .* ends with epoch 2, which cannot change",
            result.stderr,
        )


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--shift", "-1"], 2, "--shift: must be a whole number of at least 0, got '-1'"),
        (
            ["--dataset", "digits", "--shift", "9"],
            1,
            "RandomShift(9) expects images that are larger than its shift",
        ),
        (["--schedule", "cosine"], 2, "unknown schedule 'cosine'"),
        (["--weight-decay", "-1"], 1, "weight_decay must be a number of at least 0, got -1"),
        (["--model", "lenet5"], 2, "unknown model 'lenet5'; did you mean 'lenet'?"),
        (["--model", "lenet", "--hidden", "9"], 2, "--hidden: is for --model plain and mlp, not"),
        (["--activation", "relo"], 2, "unknown activation 'relo'; did you mean 'relu'?"),
        (["--optimizer", "adm"], 2, "unknown optimizer 'adm'; did you mean 'adam'?"),
        (["--dropout", "1"], 1, "dropout must be a number of at least 0 and below 1, got 1.0"),
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
def test_wrong_options_give_a_one_line_error(tmp_path, options, status, message):
    result = run("train_mnist.py", *options, cwd=tmp_path, status=status)
    assert result.stderr.startswith("train_mnist.py: error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())  # refused before anything is made


def test_output_folders_in_use_or_unwritable_are_refused(tmp_path):
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


def test_training_without_matplotlib_skips_the_curves(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')\n")
    result = run(
        "train_mnist.py", "--dataset", "digits", "--epochs", 1, "--out", tmp_path / "run",
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{PATHS}"},
    )  # fmt: skip
    assert "no curves.png: matplotlib is not installed; " in result.stderr
    assert (tmp_path / "run" / "history.json").exists()


@pytest.mark.long
def test_simultaneous_runs_get_separate_folders(tmp_path):
    command = [sys.executable, SCRIPTS / "train_mnist.py", "--dataset", "digits", "--epochs", "1",
               "--quiet"]  # fmt: skip
    for _ in range(2):
        processes = [subprocess.Popen(command, cwd=tmp_path) for _ in range(4)]
        assert [process.wait() for process in processes] == [0] * 4
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 8
    assert all((folder / "history.json").exists() for folder in folders)


def test_divergence_gives_a_one_line_error(tmp_path):
    result = run(
        "train_mnist.py", "--dataset", "digits", "--learning-rate", "1e30", "--out",
        tmp_path / "run", status=1,
    )  # fmt: skip
    assert re.fullmatch(
        r"train_mnist.py: error: training diverged at step \d+ of epoch 1: the .* layer .* is not "
        r"finite. Parameters .*; start from new weights with a lower learning rate, now 1e.30\n",
        result.stderr,
    )


def test_too_large_a_network_gives_a_one_line_error(tmp_path):
    result = run(
        "train_mnist.py", "--dataset", "digits", "--hidden", 10**11, cwd=tmp_path, status=1
    )  # fmt: skip
    assert re.match(r"train_mnist.py: error: Affine does not fit into memory: .*\n$", result.stderr)
