"""scripts/benchmark.py, growth.py, compare_commits.py: their results and output."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from file_samples import write_mnist_layout
from script_runner import ENVIRONMENT, SCRIPTS, run

import nnxp

pytestmark = pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests")


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers", SCRIPTS / "peers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_core():
    """Run on one core, where BLAS has one thread: waking more takes longer than these tests."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("one core: this system pins no process")
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(available)})
    yield
    os.sched_setaffinity(0, available)


OTHERS = {
    "nnxp, compiled": (None, ()),
    "nnxp, captured": (None, ()),
    "nnxp, plain steps": (None, ()),
    "nnxp on JAX": ("jax", pytest.mark.interop),
    "tutorial": (None, ()),
    "PyTorch, foreach": ("torch", pytest.mark.interop),
    "PyTorch, fused": ("torch", pytest.mark.interop),
    "PyTorch, channels_last": ("torch", pytest.mark.interop),
    "PyTorch, compiled": ("torch", pytest.mark.interop),
    "JAX, step": ("jax", pytest.mark.interop),
    "JAX, scan": ("jax", pytest.mark.interop),
    "scikit-learn": ("sklearn", pytest.mark.interop),
    "thinc": ("thinc", pytest.mark.interop),
}
NAMES = [pytest.param(name, marks=marks) for name, (_, marks) in OTHERS.items()]


def test_every_peer_is_tested(peers):
    # The CUDA graph's capture takes steps of its own, so its steps are the eager peers' only.
    untrained = {"products", "nnxp", "PyTorch, CUDA graph", "onnxruntime"}
    assert peers.PEERS.keys() - untrained == OTHERS.keys()


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "Adam", "AdamW"])
@pytest.mark.parametrize("name", [x for x in NAMES if "last" not in x.values[0]])
@pytest.mark.filterwarnings("ignore")  # of the other libraries
def test_peers_take_the_steps_that_nnxp_takes(peers, name, optimizer):
    if module := OTHERS[name][0]:
        pytest.importorskip(module)
    if (name, optimizer) == ("scikit-learn", "Adam"):
        pytest.skip("scikit-learn: the step that makes its weights leaves Adam's moments behind")
    if name in peers.DENSE_ONLY and optimizer not in ("SGD", "Adam"):
        pytest.skip(f"{name}: not written for {optimizer}")
    # The one batch of an epoch holds all examples, in whatever order.
    rng = np.random.default_rng(0)
    inputs, labels = rng.integers(0, 256, (40, 9), np.uint8), np.arange(40) % 5
    task = peers.Task(peers.dense(8, 6), 40, optimizer)
    expected, trained = (predictions(peers, x, task, inputs, labels) for x in ("nnxp", name))
    np.testing.assert_allclose(softmax(trained), softmax(expected), atol=2e-6)


@pytest.mark.parametrize("network", ["images", "regression", "batch_norm"])
@pytest.mark.parametrize("name", [x for x in NAMES if x.values[0][:4] in ("nnxp", "PyTo", "JAX,")])
@pytest.mark.filterwarnings("ignore")  # of the other libraries
def test_peers_train_other_networks_as_nnxp_does(peers, name, network):
    if module := OTHERS[name][0]:
        pytest.importorskip(module)
    if name in ("PyTorch, compiled", "PyTorch, channels_last") and network != "images":
        pytest.skip(f"{name}: images try what is its own")
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(40, 9)).astype("float32"), np.arange(40) % 5
    if network == "images":
        inputs = rng.integers(0, 256, (40, 1, 8, 8), np.uint8)
        layers = peers.convolutions(3, "pool", 4, kernel=3, padding=1)
    elif network == "regression":
        labels = rng.normal(size=(40, 2)).astype("float32")
        layers = peers.dense(8, then=(("tanh",),))
    else:
        layers = peers.dense(8, then=(("batch_norm",), ("relu",)))
    task = peers.Task(layers, 40)
    if network == "batch_norm" and name.startswith("JAX,"):
        with pytest.raises(RuntimeError, match="not written for batch_norm"):
            peers.PEERS[name](task, inputs, labels)
        return
    expected, trained = (predictions(peers, x, task, inputs, labels) for x in ("nnxp", name))
    # Predictions of order 1, by sums of some 10 to 100 products, each rounded to 6e-8.
    np.testing.assert_allclose(trained, expected, atol=2e-5)


def predictions(peers, name, task, inputs, labels):
    """Return a peer's predictions after two epochs, which have changed them."""
    peer = peers.PEERS[name](task, inputs, labels)
    x = peers.as_float(inputs)
    before = peer.to_host(peer.predict(peer.asarray(x))).copy()
    for _ in range(2):
        peer.epoch()
    after = peer.to_host(peer.predict(peer.asarray(x)))
    assert abs(after - before).max() > 1e-4
    return after


@pytest.mark.interop
def test_fit_reports_the_same_in_pytorch(peers):
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    inputs, labels = rng.integers(0, 256, (40, 9), np.uint8), np.arange(40) % 5
    task = peers.Task(peers.dense(8), 40)
    ours, theirs = (
        peers.PEERS[name](task, inputs, labels).fit(inputs[:30], labels[:30])
        for name in ("nnxp", "PyTorch, fused")
    )
    assert len(ours) == 4
    np.testing.assert_allclose(theirs, ours, atol=2e-6)


@pytest.mark.interop
def test_onnxruntime_predicts_what_nnxp_predicts(peers):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    inputs, labels = rng.integers(0, 256, (40, 9), np.uint8), np.arange(40) % 5
    x = peers.as_float(inputs)
    expected, predicted = (
        np.asarray(peers.PEERS[name](peers.Task(peers.dense(8, 6), 40), inputs, labels).predict(x))
        for name in ("nnxp", "onnxruntime")
    )
    np.testing.assert_allclose(predicted, expected, atol=2e-6)


def softmax(y: np.ndarray) -> np.ndarray:
    """Return probabilities; those of libraries that predict them already stay."""
    if np.allclose(y.sum(axis=1), 1, atol=1e-5):
        return y
    e = np.exp(y - y.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_products_peer_computes_the_products_of_a_step(peers):
    inputs, labels = np.zeros((4, 7), np.uint8), np.array([0, 1, 2, 0])
    peer = peers.Products(peers.Task(peers.dense(6, 5), 4), inputs, labels)
    shapes = [(*left.shape, right.shape[1]) for left, right, _ in peer.products]
    forward, weights = [(4, 7, 6), (4, 6, 5), (4, 5, 3)], [(7, 4, 6), (6, 4, 5), (5, 4, 3)]
    assert sorted(shapes) == sorted([*forward, *weights, (4, 3, 5), (4, 5, 6)])
    peer.epoch()
    for left, right, out in peer.products:
        np.testing.assert_allclose(left @ right, out, rtol=1e-5)


def in_scripts(code, *arguments):
    """Run code in a process of its own that can import the scripts."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=SCRIPTS, env=ENVIRONMENT,
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_benchmark_prints_medians_ratios_and_the_fastest_form(tmp_path):
    printed = in_scripts(
        "import benchmark_report\n"
        "report = benchmark_report.Report()\n"
        "report.add('deep', 'SGD', {'products': [1000, 1000, 1000], 'nnxp, captured': [2e3] * 3,\n"
        "    'PyTorch, fused': [4000, 4000, 1], 'PyTorch, foreach': [5000, 5000, 0.5]})\n"
        "report.accuracy = {'deep': {'SGD': {'nnxp, captured': 0.97}}}\n"
        "report.print_part('deep', 'deep, one core, µs a step')\n"
        "report.check_accuracy('deep', 'SGD', {'a': 0.90, 'b': 0.97, 'c': 0.97})\n"
        "print(*report.remarks)\n"
        "benchmark_report.print_summary(report.summary())\n"
        "report.miss('deep', 'thinc', 'no such module'); report.miss('wide', 'thinc', 'x')\n"
        "report.miss('small', 'thinc', 'x'); report.miss('cold', 'cold', 'no MNIST')\n"
        "print(*benchmark_report.not_run(report.missing), sep='\\n')\n"
        "print(*map(benchmark_report.number, (0.123, 12.34, 123.4, 12345678.0)))\n"
    )
    assert "| deep, one core, µs a step | SGD |\n|---|---|\n| products | 1,000 |\n" in printed
    assert "| nnxp, captured | 2,000 (97.0 %) |\n" in printed
    assert "| deep: nnxp, captured / this (quartiles) | SGD |\n" in printed
    assert "| products | 2.00 (2.00 to 2.00) |\n" in printed
    assert "a reached a validation accuracy of 0.9000 on deep, SGD, and the median is" in printed
    # The fastest form has the lowest median, even if another was faster once.
    assert "| measure | nnxp | products | PyTorch | fastest other |\n" in printed
    (row,) = (line for line in printed.splitlines() if line.startswith("| deep, SGD |"))
    assert row.endswith("| 0.50 (0.50 to 1000.25), PyTorch, fused |")
    assert row.startswith("| deep, SGD | nnxp, captured | 2.00 (2.00 to 2.00), products | 0.50")
    assert printed.endswith(
        "thinc in deep: no such module\nthinc in wide, small: x\ncold: no MNIST\n"
        "0.12 12.3 123 12,345,678\n"
    )


def test_benchmark_draws_what_has_enough_rounds_beside_other_peers(tmp_path):
    printed = in_scripts(
        "import pathlib, sys\n"
        "import benchmark_report\n"
        "saved = []\n"
        "benchmark_report.save_figure = lambda figure, path: saved.append(figure)\n"
        "enough = {'nnxp, captured': [1, 2, 3], 'JAX, scan': [3, 4, 5]}\n"
        "few = {name: values[:2] for name, values in enough.items()}\n"
        "alone = {'nnxp, captured': [1, 2, 3]}\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "for measured in ({}, {'small': {'SGD': few}, 'wide': {'SGD': alone}}):\n"
        "    benchmark_report.draw(measured, 'machine', folder)\n"
        "assert not saved\n"
        "benchmark_report.draw({'wide': {'SGD': few, 'Adam': enough}}, 'machine', folder)\n"
        "four = {'small': {'SGD': enough}, 'wide': {'SGD': enough, 'Adam': enough},\n"
        "        'lenet': {'batch 64': enough}}\n"
        "benchmark_report.draw(four, 'machine', folder)\n"
        "for figure in saved:\n"
        "    print([axes.get_title() for axes in figure.axes])\n",
        tmp_path,
    )
    assert printed == (
        "['wide, Adam']\n['small, SGD', 'wide, SGD', 'wide, Adam', 'lenet, batch 64']\n"
    )


def test_benchmark_leaves_nnxp_without_an_extra_out_and_says_why(tmp_path, one_core):
    (tmp_path / "llvmlite.py").write_text("raise ImportError('llvmlite is broken')\n")
    out = tmp_path / "out"
    result = run(
        "benchmark.py", "--quick", "--only", "tiny", "--peers", "nnxp, captured", "--out", out,
        env={"PYTHONPATH": f"{tmp_path}:{SCRIPTS.parent}"},
    )  # fmt: skip
    report = json.loads((out / "benchmark.json").read_text())
    assert report["not_run"]["tiny"].keys() == {"nnxp, compiled"}
    assert "not run: nnxp, compiled in tiny: " in result.stdout
    rounds = report["measured"]["tiny"]["batch 100"]
    assert rounds.keys() == {"nnxp, captured", "nnxp, plain steps"}
    assert all(len(values) == 2 and min(values) > 0 for values in rounds.values())
    assert "tiny: part 1 of 1" in result.stderr
    assert not (out / "benchmark.png").exists()
    assert "no picture" in result.stderr


@pytest.mark.long
def test_benchmark_measures_each_part_and_skips_by_name(tmp_path, one_core):
    digits = (
        nnxp.data.Dataset(
            np.pad(x.inputs, ((0, 0), (0, 0), (10, 10), (10, 10))).reshape(len(x), -1), x.labels
        )
        for x in nnxp.data.load_digits(images=True)
    )
    folder = write_mnist_layout(tmp_path / "idx", *digits)
    (tmp_path / "thinc.py").write_text("raise ImportError('thinc is broken\\nbadly')\n")
    out = tmp_path / "out"
    result = run(
        "benchmark.py", "--quick", "--peers", "products", "tutorial", "thinc", "--data-dir",
        folder, "--out", out, env={"PYTHONPATH": f"{tmp_path}:{SCRIPTS.parent}"},
    )  # fmt: skip
    missing = "not run: thinc in small, wide, deep, predict, cold: thinc is broken\n"
    assert missing in result.stdout
    assert result.stdout.count("not run: ") == 1
    report = json.loads((out / "benchmark.json").read_text())
    assert report["machine"]["versions"]["numpy"] == np.__version__
    assert report["machine"]["cores"] >= 1
    ways = {"nnxp, compiled", "nnxp, captured", "nnxp, plain steps"}
    measured = report["measured"]
    expected = {
        "tiny": ways, "lenet": ways, "3x3": ways, "batch_norm": ways, "dropout": ways,
        "small": ways | {"products", "tutorial"}, "wide": ways | {"products", "tutorial"},
        "deep": ways | {"products", "tutorial"},
        "predict": {"nnxp", "nnxp, compiled", "products", "tutorial"},
        "fit": ways | {"nnxp"}, "import": {"nnxp"}, "cold": {"nnxp", "tutorial"},
        "lenet5": {"nnxp", "nnxp, compiled", "nnxp, captured"},
        "prepare": {"captured", "compiled, for the first time", "compiled, again"},
    }  # fmt: skip
    assert measured.keys() == expected.keys()
    for part, measures in measured.items():
        for rounds in measures.values():
            assert rounds.keys() == expected[part], part
            assert all(len(values) == 2 and min(values) >= 0 for values in rounds.values())
        assert f"| {part}" in result.stdout
    if sys.platform == "linux":
        assert report["memory"]["lenet"]["batch 64"]["nnxp, captured"] > 0
    rows = {(row["part"], row["nnxp"]): row for row in report["summary"]}
    ours, limits = (measured["small"]["SGD"][x] for x in ("nnxp, captured", "products"))
    assert rows["small", "nnxp, captured"]["products"] == [
        "products", [a / b for a, b in zip(ours, limits, strict=True)],
    ]  # fmt: skip
    assert "e+" not in result.stdout


@pytest.mark.long
def test_benchmark_compares_a_device_with_the_cpu(tmp_path, idx_folder, one_core):
    # The CPU itself stands for the device: what is measured is the same, and so is the table.
    printed = in_scripts(
        "import argparse, pathlib, sys\n"
        "import benchmark\n"
        "out, data = map(pathlib.Path, sys.argv[1:])\n"
        "args = argparse.Namespace(device='cpu', dataset='mnist', data_dir=data, quick=True,\n"
        "    short=False, rounds=None, threads='all', peers=None)\n"
        "run = benchmark.Benchmark(args, out)\n"
        "run.run_part('batches')\n"
        "measured = run.report.measured['batches']\n"
        "assert {len(x['nnxp']) for x in measured.values()} == {2}\n"
        "assert list(measured) == [\n"
        "    f'{network}, batch {size}' for network in ('small', 'wide') for size in (16, 64)]\n",
        tmp_path, idx_folder,
    )  # fmt: skip
    assert printed.count("cpu is faster than this CPU from batch size ") == 2
    assert printed.count(" after 1 epoch(s) in ") == 2
    assert (tmp_path / "batches.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_benchmark_remarks_on_an_accuracy_that_differs_and_does_not_fail(
    tmp_path, idx_folder, one_core
):
    out = tmp_path / "out"
    code = (
        "import benchmark, benchmark_report, cli\n"
        "benchmark_report.ACCURACY_TOLERANCE = -1\n"  # every peer differs
        "benchmark.WHOLE = benchmark.Mode(2, 0, 0.001)\n"
        "cli.run(benchmark.main)\n"
    )
    options = ["--peers", "tutorial", "--only", "small", "--data-dir", idx_folder, "--out", out]
    printed = in_scripts(code, *options)
    remarks = json.loads((out / "benchmark.json").read_text())["remarks"]
    assert len(remarks) == 4 * 3 + 2  # of nnxp's ways, and of the tutorial with SGD and Adam
    for remark in remarks:
        assert f"remark: {remark}\n" in printed
    assert any(x.startswith("tutorial reached a validation accuracy of 0.") for x in remarks)


def test_growth_picture_has_titles_and_one_legend(tmp_path):
    code = (
        "import pathlib, sys\n"
        "import growth, matplotlib.figure\n"
        "rows = [growth.Row(n, n * 2.0, n * 1.0, 0.5, n * 1.0) for n in (32, 64, 128)]\n"
        "saved = []\n"
        "growth.save_figure = lambda figure, path: saved.append(figure)\n"
        "growth.draw(dict.fromkeys(growth.SERIES, rows), [0.1, 0.2], pathlib.Path(sys.argv[1]))\n"
        "(figure,) = saved\n"
        "assert len({axes.get_title() for axes in figure.axes} - {''}) == len(growth.SERIES) + 2\n"
        "assert len(figure.legends) == 1\n"
        "assert not any(axes.get_legend() for axes in figure.axes)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=SCRIPTS, check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--peers", "torhc"), "torhc"),
        (("--only", "smal"), "small"),
        (("--only", "batches"), "--device cpu has no part batches; it has tiny, small"),
    ],
)
def test_unknown_peer_or_part_gives_a_one_line_error(options, message):
    result = run("benchmark.py", *options, status=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_missing_data_give_a_one_line_error(tmp_path):
    options = ("--only", "small", "--peers", "products", "--data-dir", tmp_path / "absent")
    result = run("benchmark.py", "--quick", *options, "--out", tmp_path / "out", status=1)
    assert result.stderr.splitlines()[-1].startswith("benchmark.py: error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_memory_does_not_grow_with_data_or_epochs(tmp_path, one_core):
    result = run("growth.py", "--quick", "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert report["series"].keys() >= {"batch size", "width", "depth", "examples", "channels"}
    assert len(report["layouts"]) == 5
    few, many = report["series"]["examples"]
    assert many["data"] == 2 * few["data"]
    assert many["memory"] - few["memory"] < 0.1 * few["data"]
    first, *_, last = report["epochs"]
    assert last - first < 0.01
    assert [part["steps"] for part in report["steps"]] == list(range(1000, 10_001, 1000))
    assert report["steps"][-1]["peak"] - report["steps"][0]["peak"] < 1
    assert "| examples | µs per step |" in result.stdout
    assert (tmp_path / "out" / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def repository(tmp_path):
    """A repository of one commit: the package and the scripts."""
    if not shutil.which("git"):
        pytest.skip("git: not installed")
    for folder in (SCRIPTS, Path(nnxp.__file__).parent):
        shutil.copytree(folder, tmp_path / folder.name)
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-q", "-m", "Begin"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def compare(repository, *options):
    return subprocess.run(
        [sys.executable, repository / "scripts" / "compare_commits.py", *options],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(repository)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.long
def test_compare_commits_prints_ratios(repository, one_core):
    result = compare(repository, "HEAD", "--quick")
    assert result.returncode == 0, result.stderr
    head, _, *rows = result.stdout.splitlines()
    assert head == "| µs | HEAD | working tree | second / first (quartiles) |"
    assert len(rows) == 12
    assert rows[0].startswith("| small, SGD, step | ")
    worktrees = subprocess.run(
        ["git", "worktree", "list"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert worktrees.stdout.count("\n") == 1


def test_interrupted_checkout_leaves_no_worktree(repository):
    # A git that makes half a worktree, and interrupts the script.
    tools = repository / "tools"
    tools.mkdir()
    (tools / "git").write_text(
        f'#!/bin/sh\n"{shutil.which("git")}" "$@" || exit 1\n'
        '[ "$4" = add ] || exit 0\nrm "$6/.git"\nkill -TERM $PPID\nexec sleep 60\n'
    )
    (tools / "git").chmod(0o755)
    result = subprocess.run(
        [sys.executable, repository / "scripts" / "compare_commits.py", "HEAD", "--quick"],
        env={"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(repository),
             "TMPDIR": str(repository)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (143, "compare_commits.py: interrupted\n")
    worktrees = subprocess.run(
        ["git", "worktree", "list"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert worktrees.stdout.count("\n") == 1
    assert not list(repository.glob("tmp*"))


def test_commits_that_cannot_be_compared_give_a_one_line_error(repository):
    result = compare(repository, "v9")
    assert result.returncode == 1
    assert result.stderr.startswith("compare_commits.py: error: v9 is not a commit")
    trainer = repository / "nnxp" / "training" / "trainer.py"
    trainer.write_text(trainer.read_text().replace("train_epoch", "do_epoch"))
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qam", "Rename"],
        cwd=repository, check=True,
    )  # fmt: skip
    result = compare(repository, "HEAD")
    assert result.stderr.startswith(
        "compare_commits.py: error: commit HEAD has no Trainer.train_epoch(batches)"
    )
    shutil.rmtree(repository / ".git")
    result = compare(repository, "HEAD")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
