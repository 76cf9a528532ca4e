"""The scripts that compare settings: their tables, their pictures and what both are made of."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from script_runner import ENVIRONMENT, SCRIPTS, run, saved_figures

import nnxp

pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests")

# A column of each script's table that the picture shows, and the figure of it in results.json.
SHOWN = {
    "compare_activations.py": ("training loss", "train_loss"),
    "compare_batch_norm.py": ("training accuracy", "train_accuracy"),
    "compare_dropout.py": ("test accuracy", "test_accuracy"),
    "compare_hidden_sizes.py": ("test accuracy", "test_accuracy"),
    "compare_initializers.py": ("test accuracy", "test_accuracy"),
    "compare_lenet.py": ("test accuracy", "test_accuracy"),
    "compare_optimizers.py": ("training loss", "train_loss"),
    "compare_weight_decay.py": ("test accuracy", "test_accuracy"),
}


@pytest.fixture(scope="module")
def comparisons():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import comparisons
    finally:
        sys.path.remove(str(SCRIPTS))
    return comparisons


def test_every_comparison_is_run():
    users = {x.name for x in SCRIPTS.glob("compare_*.py") if "Comparison(" in x.read_text()}
    assert users == set(SHOWN)


def rows_of(printed, column):
    """Return the table with this column, a dictionary for each row."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    start = next(i for i, cells in enumerate(lines) if column in cells)
    header, rows = lines[start], []
    for cells in lines[start + 1 :]:
        if len(cells) != len(header):
            break
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


@pytest.mark.parametrize(
    ("script", "seeds"),
    [
        ("compare_dropout.py", 2),
        *(
            pytest.param(script, seeds, marks=pytest.mark.long)
            for script in SHOWN
            for seeds in (1, 2)
            if (script, seeds) != ("compare_dropout.py", 2)
        ),
    ],
)
def test_table_picture_and_results_agree(script, seeds, tmp_path):
    environment, shown = saved_figures(tmp_path)
    out = tmp_path / "out"
    result = run(
        script, "--dataset", "digits", "--epochs", 1, "--seeds", seeds, "--out", out,
        env=environment,
    )  # fmt: skip
    column, figure = SHOWN[script]
    rows = rows_of(result.stdout, column)
    results = json.loads((out / "results.json").read_text())
    figure_shown = json.loads(shown.read_text())
    suptitle, axes_shown = figure_shown["title"], figure_shown["axes"]
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    spread = "2 seeds, mean ± standard deviation" if seeds > 1 else "1 seed"
    assert suptitle.endswith(f" (digits, {spread})")
    assert len(rows) >= 2
    assert f"{len(results) * seeds} trainings\n" in result.stderr
    assert all(x["epochs"] == [0, 1] for x in results.values())

    last = [[seed[-1] for seed in x[figure]] for x in results.values()]
    assert all(len(x) == seeds for x in last)
    cells = [
        f"{np.mean(x):.4f} ± {np.std(x, ddof=1):.4f}" if seeds > 1 else f"{x[0]:.4f}"
        for x in last
        if None not in x
    ]
    points = {f"{y:.4f}" for axes in axes_shown for _, line in axes["curves"] for y in line}
    for row in rows:
        assert row[column] in cells
        in_title = any(x["title"].endswith(f": {row[column]}") for x in axes_shown)
        assert in_title or row[column].partition(" ")[0] in points, row
    closing = result.stdout.splitlines()[-2]
    assert re.search(r"\d", closing)
    assert f"files in {out}: config.json, picture.png, results.json" in result.stdout


@pytest.mark.long
def test_results_are_the_same_for_the_same_seed(tmp_path):
    options = ["--dataset", "digits", "--epochs", 2, "--seeds", 1]
    found = []
    for out in (tmp_path / "a", tmp_path / "b"):
        printed = run("compare_dropout.py", *options, "--out", out).stdout
        found.append(json.loads((out / "results.json").read_text()))
        for result in found[-1].values():
            del result["seconds"]
    assert found[0] == found[1]
    assert "±" not in printed  # one seed has no deviation


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--seeds", "0"], 2, "--seeds: must be a whole number of at least 1, got '0'"),
        (["--epochs", "-1"], 2, "--epochs: must be a whole number of at least 1, got '-1'"),
        (["--rounds", "3"], 2, "unrecognized arguments: --rounds 3"),
        (["--device", "gpu9"], 1, "gpu9"),
        (["--dataset", "mnits"], 1, "mnits"),
        (["--dataset", "none.csv"], 1, "none.csv"),
        (["--data-dir", "nowhere"], 1, "nowhere"),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(options, status, words, tmp_path):
    result = run("compare_dropout.py", *options, "--out", "run", cwd=tmp_path, status=status)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_folder_that_holds_files_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = run("compare_dropout.py", "--dataset", "digits", "--out", tmp_path, status=1)
    assert result.stderr.count("\n") == 1
    assert "already holds a run or other files; choose another --out" in result.stderr
    assert [x.name for x in tmp_path.iterdir()] == ["notes.txt"]


def test_lenet_refuses_inputs_that_are_no_square_image(tmp_path):
    (tmp_path / "table.csv").write_text("label,a,b\n" + "0,1,2\n1,2,3\n" * 20)
    result = run(
        "compare_lenet.py", "--dataset", "table.csv", "--out", "run", cwd=tmp_path, status=1
    )
    assert result.stderr == (
        "compare_lenet.py: error: table.csv has 2 inputs, which do not form a square image; choose "
        "another --dataset\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_full_standard_output_is_one_line_and_leaves_no_folder(tmp_path):
    command = [sys.executable, SCRIPTS / "compare_dropout.py", "--dataset", "digits"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = subprocess.run(
            [*command, "--out", tmp_path / "run"],
            env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == (
        "compare_dropout.py: error: standard output cannot be written: No space left on device\n"
    )
    assert not list(tmp_path.iterdir())


def test_comparison_takes_any_labelled_table(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"{'ab'[i % 2]},{i % 2 + rng.normal():.3f},{rng.normal():.3f}" for i in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["label,x,y", *lines]))
    options = ["--dataset", "table.csv", "--epochs", 1, "--seeds", 1, "--out", "run"]
    printed = run("compare_hidden_sizes.py", *options, cwd=tmp_path).stdout
    assert ": 50 training images, 10 test images" in printed
    assert len(rows_of(printed, "hidden units")) == 8


def test_measured_epochs_are_few_and_end_with_the_last(comparisons):
    assert comparisons.measured_epochs(1) == [0, 1]
    assert comparisons.measured_epochs(5) == [0, 1, 2, 3, 4, 5]
    assert comparisons.measured_epochs(300) == [*range(0, 301, 10)]
    for epochs in range(1, 200):
        measured = comparisons.measured_epochs(epochs)
        assert measured == sorted(set(measured))
        assert (measured[0], measured[-1]) == (0, epochs)
        assert len(measured) <= 31


def new_trainer(rate=0.1, width=20):
    network = nnxp.mlp([64, width, 10], rng=0)
    return nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(rate))


def test_figures_are_those_of_the_trainer(comparisons):
    train, test = nnxp.data.load_digits()
    figures, diverged = comparisons.train_once(new_trainer(), train, test, [0, 2, 3], 100, seed=5)
    trainer = new_trainer()
    rng = np.random.default_rng((5, 1))
    for point, epochs in enumerate([0, 2, 1]):
        if epochs:
            trainer.fit(train, epochs=epochs, batch_size=100, rng=rng)
        for name, dataset in (("train", train), ("test", test)):
            measured = trainer.evaluate(dataset)
            assert figures[f"{name}_loss"][point] == measured.loss
            assert figures[f"{name}_accuracy"][point] == measured.accuracy
    assert not diverged
    assert figures["seconds"] == sorted(figures["seconds"])


def test_divergence_is_counted_and_later_figures_are_those_before_it(comparisons):
    train, test = nnxp.data.load_digits()
    figures, diverged = comparisons.train_once(
        new_trainer(rate=1e30), train, test, [0, 1, 2], 100, seed=0
    )
    assert diverged
    assert len(figures["test_accuracy"]) == 3
    assert figures["test_accuracy"][1] == figures["test_accuracy"][2]


def result_of(comparisons, train, test, *, loss=(1.0, 1.0), diverged=0):
    """Return a result of two seeds with these last figures."""
    last = {"train_accuracy": train, "test_accuracy": test, "train_loss": loss}
    figures = {name: np.array([[0.1, x] for x in values]) for name, values in last.items()}
    return comparisons.Result([0, 1], figures, [], diverged)


def test_best_rates_have_the_lowest_loss_and_do_not_diverge(comparisons):
    def result(loss, diverged=0):
        return result_of(
            comparisons, (1.0, 1.0), (1.0, 1.0), loss=(loss, loss + 0.2), diverged=diverged
        )

    best = comparisons.best_rates(
        {
            ("a", 0.1): result(0.5),
            ("a", 0.2): result(0.3),
            ("a", 0.4): result(0.1, diverged=1),
            ("b", 0.1): result(0.2),
            ("b", 0.2): result(0.6),
            ("c", 0.1): result(float("nan"), diverged=2),
        }
    )
    assert best == {"a": 0.2, "b": 0.1, "c": 0.1}


def test_overfitting_is_the_difference_for_each_seed(comparisons):
    base = result_of(comparisons, (1.0, 0.9), (0.7, 0.7))
    other = result_of(comparisons, (0.8, 0.9), (0.7, 0.6))
    assert base.overfitting == pytest.approx([0.3, 0.2])
    assert comparisons.overfitting_row(base) == [
        "0.9500 ± 0.0707", "0.7000 ± 0.0000", "0.2500 ± 0.0707"
    ]  # fmt: skip
    assert comparisons.overfitting_changes({"none": base, "some": other}) == [
        "some: the difference changes from 0.2500 (none) to 0.2000, smaller in 1 of 2 seeds; the "
        "test accuracy from 0.7000 to 0.6500, higher in 0 of 2 seeds"
    ]


def test_best_rates_are_drawn_as_curves_and_as_stars_among_all_rates(comparisons):
    losses = {("a", 0.1): 0.5, ("a", 0.2): 0.3, ("b", 0.1): 0.2, ("b", 0.2): 0.6}
    results = {
        key: result_of(comparisons, (0.9, 0.9), (0.7, 0.8), loss=(x, x + 0.2))
        for key, x in losses.items()
    }
    figure = nnxp.plots.new_figure(6, 3)
    comparisons.draw_best_rates(figure, results, comparisons.best_rates(results))
    left, right = figure.axes
    curves = {line.get_label().split("\n")[0]: line.get_ydata() for line in left.lines}
    assert list(curves) == ["a, rate 0.2", "b, rate 0.1"]
    assert curves["a, rate 0.2"] == pytest.approx([0.1, 0.4])  # means of both seeds
    assert curves["b, rate 0.1"] == pytest.approx([0.1, 0.3])
    assert left.lines[0].get_label().endswith("\ntest accuracy 0.7500 ± 0.0707")
    drawn = [(*line.get_xdata(), *line.get_ydata()) for line in right.lines]
    for got, wanted in zip(
        drawn, [(0.1, 0.2, 0.6, 0.4), (0.2, 0.4), (0.1, 0.2, 0.3, 0.7), (0.1, 0.3)], strict=True
    ):
        assert got == pytest.approx(wanted)
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log"]


def test_curve_is_the_mean_with_a_band_of_the_deviation(comparisons):
    axes = nnxp.plots.new_figure(3, 3).subplots()
    values = np.array([[0.1, 0.5], [0.3, 0.9]])
    comparisons.draw_curve(axes, 0, "both", [0, 1], values)
    comparisons.draw_curve(axes, 1, "one", [0, 1], values[:1])
    both, one = axes.lines
    assert both.get_ydata() == pytest.approx([0.2, 0.7])
    assert one.get_ydata() == pytest.approx([0.1, 0.5])
    (band,) = axes.collections
    deviation = values.std(axis=0, ddof=1)
    edges = band.get_paths()[0].vertices[:, 1]
    assert edges.min() == pytest.approx(0.2 - deviation[0])
    assert edges.max() == pytest.approx(0.7 + deviation[1])


def test_mean_and_deviation(comparisons):
    assert comparisons.mean_and_deviation([0.5]) == "0.5000"
    assert comparisons.mean_and_deviation(np.array([0.25, 0.75]), 2) == "0.50 ± 0.35"


def test_numbers_that_json_lacks_are_none(comparisons):
    assert comparisons.finite([[1.0, float("inf")], [float("nan"), 2.0]]) == [
        [1.0, None], [None, 2.0]
    ]  # fmt: skip
