"""The other scripts, run as a user runs them: their output and files."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import sys

import numpy as np
import pytest
from script_runner import PATHS, SCRIPTS, config_of, run, saved_figures
from tables import device_or_skip

import nnxp

pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests")


# The scripts of the folder; the others are imported by them.
NAMES = [path.name for path in sorted(SCRIPTS.glob("*.py")) if "__main__" in path.read_text()]


def test_every_script_is_run():
    assert {path.name for path in SCRIPTS.glob("*.py")} - set(NAMES) == {
        "benchmark_report.py",
        "benchmark_workers.py",
        "cli.py",
        "comparisons.py",
        "interrupts.py",
        "peers.py",
        "recipes.py",
        "runs.py",
        "trained.py",
    }


@pytest.mark.parametrize("name", NAMES)
def test_help_describes_every_option_and_does_nothing_else(name, tmp_path):
    result = run(name, "--help", cwd=tmp_path, env={"COLUMNS": "100"})
    assert result.stderr == ""
    assert not list(tmp_path.iterdir())
    text = result.stdout
    assert text.startswith(f"usage: {name} [-h]")
    docstring = ast.get_docstring(ast.parse((SCRIPTS / name).read_text()))
    assert " ".join(docstring.splitlines()[0].split()) in " ".join(text.split())
    assert not re.search(r"`|::|\*\*", text)  # reStructuredText
    entries = re.split(r"\n  (?=\S)", text.partition("\n\n")[2])
    options = [entry for entry in entries[1:] if not entry.startswith("-h,")]
    for option in options:
        words = re.split(r"\s{2,}|\n", option.strip(), maxsplit=1)
        described = re.sub(r"\(default:.*", "", words[1], flags=re.S) if len(words) > 1 else ""
        assert re.search(r"[a-z]{2}", described), option
    usage = set(re.findall(r"--[a-z-]+", text.partition("\n\n")[0]))
    assert usage <= set(re.findall(r"--[a-z-]+", "\n".join(options)))


@pytest.mark.parametrize(
    "name",
    ["xor.py", *(pytest.param(x, marks=pytest.mark.long) for x in NAMES if x != "xor.py")],
)
def test_help_in_a_new_process_is_the_same(name):
    # So a script imports all that it uses, and nothing that another has imported before it.
    environment = {"COLUMNS": "100"}
    fresh = run(name, "--help", env=environment | {"PYTHONPATH": PATHS})
    forked = run(name, "--help", env=environment)
    assert (fresh.stdout, fresh.stderr) == (forked.stdout, forked.stderr)


@pytest.mark.parametrize("name", ["train_mnist.py", "compare_mnist.py"])
def test_help_names_every_device(name):
    text = run(name, "--help").stdout
    named = set(re.findall(r'``"(.*?)"``', nnxp.device.__doc__))
    assert len(named) >= 12
    for spec in named:
        assert re.search(rf"(?<![:\w]){spec}(?![:\w])", text), spec


def test_full_batch_learns_from_a_csv_file(digits_csv):
    result = run("full_batch.py", "--dataset", digits_csv, "--hidden", 32, "--epochs", 199)
    out = result.stdout
    assert "Affine(32, 10), Sigmoid()), all 1198 examples in each step" in out
    assert result.stderr == ""
    losses = [float(loss) for loss in re.findall(r"train loss (\S+)", out)]
    epochs = [int(epoch) for epoch in re.findall(r"^epoch +(\d+)", out, re.M)]
    assert epochs == [1, *range(10, 200, 10), 199]
    assert losses[-1] < losses[0] / 2
    accuracy = float(re.findall(r"validation accuracy (\S+)", out)[-1])
    assert accuracy > 0.85
    percent = re.search(r"^(\S+)% of the \d+ test examples are right after 199 steps", out, re.M)
    assert float(percent[1]) == pytest.approx(100 * accuracy, abs=0.06)
    assert "In batches of 100, the same examples give 2,388 steps" in out  # 199 * 12


def test_full_batch_takes_one_step_an_epoch():
    out = run("full_batch.py", "--dataset", "digits", "--hidden", 16, 8, "--epochs", 9).stdout
    train, _ = nnxp.data.load_digits()
    x, targets = train.inputs / np.float32(255), nnxp.data.one_hot(train.labels, 10)
    rng = np.random.default_rng(0)
    layers = nnxp.mlp([64, 16, 8, 10], rng=rng, activation="sigmoid").layers
    network, loss = nnxp.Sequential([*layers, nnxp.Sigmoid()]), nnxp.MeanSquaredError()
    trainer = nnxp.Trainer(network, loss, nnxp.SGD(30.0))
    expected = [float(trainer.step(x, targets)) for _ in range(9)]
    losses = [float(figure) for figure in re.findall(r"train loss (\S+)", out)]
    assert losses == pytest.approx(expected, abs=6e-5)  # printed to four decimals
    assert losses[0] - losses[-1] > 1e-3


def test_fruit_graph():
    first, second = run("fruit_graph.py").stdout.split("\n\n")
    assert "forward:  apples 200.00, total 220.00" in first
    assert "backward: total 1.00, tax 200.00, cost of the apples 1.10,\n" in first
    assert "price of an apple 2.20, number of apples 110.00" in first
    assert "forward:  apples 200.00, oranges 450.00, total 715.00" in second
    figures = re.findall(r"^  (.+?) +([\d.]+) +715.00 \+ \2 = ([\d.]+)$", second, re.M)
    assert figures == [
        ("price of an apple", "2.20", "717.20"), ("apples", "110.00", "825.00"),
        ("price of an orange", "3.30", "718.30"), ("oranges", "165.00", "880.00"),
        ("tax", "650.00", "1365.00"),
    ]  # fmt: skip


def test_logistic_regression():
    out = run("logistic_regression.py").stdout
    assert "step   1  cost before it 0.6931471806" in out
    assert "gradient dw = [-0.35 -0.1 ], db = [0.]" in out
    assert "step   2  cost before it 0.6800598224" in out
    assert "step  10  cost before it 0.5956439890" in out
    assert "w = [0.31266902 0.09450386], b = [-0.00104523]" in out
    assert "8 of the 10 points get the right label" in out
    assert "cost before the step 0.5515420615" in out
    assert "db1 = [0.0182778946, -0.0027806317, -0.0012932731]" in out
    assert "dW2 = [[-0.1222848805], [-0.0719260862], [-0.025191328]]" in out
    assert float(re.search(r"cost after it +(\S+)", out)[1]) < 0.5515420615


def test_xor_is_learned_by_a_hidden_layer_alone(tmp_path):
    out = run("xor.py", "--picture", tmp_path / "xor.png").stdout
    line, hidden = out.split("four hidden units:")
    for part, least, largest in [(line, 0.6931, 0.6932), (hidden, 0, 0.01)]:
        assert least <= float(re.search(r"final loss (\S+)$", part.strip())[1]) < largest
        for x, y, label in [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]:
            predicted = re.search(rf"{x} xor {y} = {label}  predicted (\S+)", part)[1]
            assert abs(float(predicted) - (label if part is hidden else 0.5)) < 0.1
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    assert image.imread(tmp_path / "xor.png").shape == (480, 960, 4)


def test_gradient_check_shows_agreement_and_speed():
    out = run("gradient_check.py", "--dataset", "digits").stdout
    errors = [float(x) for x in re.findall(r"\) +(\d\.\de-\d\d)$", out, re.M)]
    assert len(errors) == 7
    assert max(errors) < 1e-6
    assert float(re.search(r"They agree within (\S+)\.$", out, re.M)[1]) == max(errors)
    assert "for all 5,282 numbers" in out
    assert int(re.search(r"([\d,]+) times as long", out)[1].replace(",", "")) > 100


def test_compare_prints_a_table_and_draws_its_means(tmp_path):
    environment, shown = saved_figures(tmp_path)
    out_folder = tmp_path / "out"
    result = run(
        "compare_mnist.py", "--dataset", "digits", "--epochs", 2, "--seeds", 2, "--out", out_folder,
        env=environment,
    )  # fmt: skip
    assert "22 runs" in result.stderr
    out, drawn = result.stdout, json.loads(shown.read_text())
    tmp_path = out_folder
    rows = re.findall(r"^([23] layers.*?)  +0\.\d{4} ± 0\.\d{4}  ", out, re.M)
    assert len(rows) == 11
    assert {"2 layers, sigmoid", "3 layers, relu", "3 layers, relu, he, adamw"} <= set(rows)
    assert (tmp_path / "compare.png").exists()
    assert len(config_of(tmp_path)["data_sha256"]) == 64
    table = json.loads((tmp_path / "compare.json").read_text())
    assert len(table) == 11
    curves = dict(drawn["axes"][1]["curves"])
    for row in table:
        assert curves[row["run"]][-1] == pytest.approx(np.mean(row["validation_accuracy"]))
    assert drawn["axes"][1]["bands"] == 11
    assert drawn["title"] == "digits, test examples, mean of 2 seed(s); bands: standard deviation"
    results = {tuple(row["train_accuracy"] + row["validation_accuracy"]) for row in table}
    assert len(results) >= 9  # all settings differ, except those that learn nothing in an epoch
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


@pytest.mark.long
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


@pytest.mark.parametrize(
    "held_out", [[], pytest.param(["--held-out"], marks=pytest.mark.interop)]
)  # with PyTorch, where it is installed
def test_mnist_results_of_two_seeds(tmp_path, held_out):
    peers = ["nnxp", "PyTorch"] if importlib.util.find_spec("torch") else ["nnxp"]
    options = ("--dataset", "digits", "--seeds", 2, "--epochs", 2, "--out", tmp_path / "out")
    printed = run("mnist_results.py", *options, *held_out).stdout
    results = json.loads((tmp_path / "out" / "mnist_results.json").read_text())
    assert list(results) == ["mlp", "lenet"]
    for model, trained in results.items():
        assert list(trained) == peers
        assert f"| {model}, 2 seeds | {'held-out' if held_out else 'test'} accuracy |" in printed
        for each in trained.values():
            accuracies = [100 * x["accuracy"] for x in each]
            assert min(accuracies) > 50  # chance is 10, and its deviation over 240 images 2
            assert accuracies[0] != accuracies[1]
            mean, deviation = np.mean(accuracies), np.std(accuracies, ddof=1)
            assert f"| {mean:.2f} ± {deviation:.2f} % |" in printed


@pytest.mark.long
def test_vanishing_gradients_prints_a_table_for_each_activation_and_draws_them(tmp_path):
    options = ("--dataset", "digits", "--depth", 5, "--width", 20, "--epochs", 2)
    out = run("vanishing_gradients.py", *options, "--out", tmp_path / "out").stdout
    assert "digits, 5 hidden layers of 20 units, 2 epochs" in out
    names = re.findall(r"^(\w+), weights by (\w+): test accuracy 0\.\d{4}$", out, re.M)
    assert names == [("sigmoid", "xavier"), ("tanh", "xavier"), ("relu", "he")]
    rows = re.findall(r"^(affine\d) +(\S+) +(\S+) +(\S+) +(\S+)$", out, re.M)
    assert [row[0] for row in rows] == [f"affine{i}" for i in range(1, 7)] * 3
    first = dict(zip(names, (float(row[2]) for row in rows[::6]), strict=True))
    assert first["sigmoid", "xavier"] < 1e-2
    assert min(first["tanh", "xavier"], first["relu", "he"]) > 0.1
    assert (tmp_path / "out" / "layers.png").exists()
    assert config_of(tmp_path / "out")["depth"] == 5


def test_learning_rate_range_prints_a_suggestion_and_draws_it(tmp_path):
    options = ("--dataset", "digits", "--steps", 60, "--optimizer", "momentum", "--hidden", 20)
    out = run("learning_rate_range.py", *options, "--out", tmp_path / "out").stdout
    assert "digits, momentum, batches of 100" in out
    assert "the loss diverged" in out
    suggestion = float(re.search(r"^suggested learning rate (\S+), a tenth of that$", out, re.M)[1])
    assert 1e-4 < suggestion < 1
    result = json.loads((tmp_path / "out" / "range.json").read_text())
    assert result["suggestion"] == pytest.approx(suggestion, rel=0.05)
    assert len(result["rates"]) == len(result["losses"]) <= 60
    assert (tmp_path / "out" / "range.png").exists()


@pytest.mark.parametrize(
    ("name", "picture"),
    [("vanishing_gradients.py", "layers.png"), ("learning_rate_range.py", "range.png")],
)
def test_scripts_without_matplotlib_say_that_there_is_no_picture(tmp_path, name, picture):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')\n")
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PATHS}"}
    epochs = ("--epochs", 1) if name == "vanishing_gradients.py" else ()
    result = run(name, "--dataset", "digits", *epochs, "--out", tmp_path / "out", env=environment)
    assert f"no {picture}: matplotlib is not installed; " in result.stderr
    assert not (tmp_path / "out" / picture).exists()


def test_learning_rate_range_of_few_steps_is_refused_on_one_line(tmp_path):
    options = ("--dataset", "digits", "--steps", 5, "--out", tmp_path / "out")
    result = run("learning_rate_range.py", *options, status=1)
    assert result.stderr == (
        "learning_rate_range.py: error: steps must be a whole number of at least 20, got 5\n"
    )
    assert not (tmp_path / "out").exists()
