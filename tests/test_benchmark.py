"""scripts/benchmark.py, growth.py, compare_commits.py: what they compute and print."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
from script_runner import SCRIPTS, run

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
    "nnxp, plain steps": (None, ()),
    "tutorial": (None, ()),
    "PyTorch, foreach": ("torch", pytest.mark.interop),
    "PyTorch, fused": ("torch", pytest.mark.interop),
    "PyTorch, compiled": ("torch", pytest.mark.interop),
    "JAX, step": ("jax", pytest.mark.interop),
    "JAX, scan": ("jax", pytest.mark.interop),
    "scikit-learn": ("sklearn", pytest.mark.interop),
    "thinc": ("thinc", pytest.mark.interop),
}


def test_every_peer_is_tested(peers):
    # The CUDA graph's capture takes steps of its own, so its steps are the eager peers' only.
    assert peers.PEERS.keys() - {"products", "nnxp", "PyTorch, CUDA graph"} == OTHERS.keys()


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=marks) for name, (_, marks) in OTHERS.items()]
)
@pytest.mark.filterwarnings("ignore")  # of the other libraries
def test_peers_take_the_step_that_nnxp_takes(peers, name, optimizer):
    if module := OTHERS[name][0]:
        pytest.importorskip(module)
    if (name, optimizer) == ("scikit-learn", "Adam"):
        pytest.skip("scikit-learn: the step that makes its weights leaves Adam's moments behind")
    # The one batch of the epoch holds all examples, in whatever order.
    rng = np.random.default_rng(0)
    inputs, labels = rng.integers(0, 256, (40, 9), np.uint8), np.arange(40) % 5
    task = peers.Task((8, 6), 40, optimizer, "cpu")
    x = peers.scale_images(inputs)
    probabilities = []
    for make in (peers.PEERS["nnxp"], peers.PEERS[name]):
        peer = make(task, inputs, labels)
        before = softmax(peer.to_host(peer.predict(peer.asarray(x))))
        peer.epoch()
        after = softmax(peer.to_host(peer.predict(peer.asarray(x))))
        assert abs(after - before).max() > 1e-4
        probabilities.append(after)
    np.testing.assert_allclose(probabilities[1], probabilities[0], atol=2e-6)


def softmax(y: np.ndarray) -> np.ndarray:
    """Return probabilities; those of libraries that predict them already stay."""
    if np.allclose(y.sum(axis=1), 1, atol=1e-5):
        return y
    e = np.exp(y - y.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_products_peer_computes_the_products_of_a_step(peers):
    inputs, labels = np.zeros((4, 7), np.uint8), np.array([0, 1, 2, 0])
    peer = peers.Products(peers.Task((6, 5), 4, "SGD", "cpu"), inputs, labels)
    shapes = [(*left.shape, right.shape[1]) for left, right, _ in peer.products]
    forward, weights = [(4, 7, 6), (4, 6, 5), (4, 5, 3)], [(7, 4, 6), (6, 4, 5), (5, 4, 3)]
    assert sorted(shapes) == sorted([*forward, *weights, (4, 3, 5), (4, 5, 6)])
    peer.epoch()
    for left, right, out in peer.products:
        np.testing.assert_allclose(left @ right, out, rtol=1e-5)


@pytest.mark.long
def test_benchmark_compares_a_device_with_the_cpu(tmp_path, idx_folder, one_core):
    # The CPU itself stands for the device: what is measured is the same, and so is the table.
    code = (
        "import argparse, pathlib, sys\n"
        "import benchmark\n"
        "out, data = map(pathlib.Path, sys.argv[1:])\n"
        "args = argparse.Namespace(device='cpu', dataset='mnist', data_dir=data, quick=True)\n"
        "report = benchmark.Report()\n"
        "benchmark.measure_against_cpu(report, args, 2, out)\n"
        "assert {len(x['nnxp']) for x in report.measured['all cores'].values()} == {2}\n"
        "assert list(report.measured['all cores']) == [\n"
        "    f'{network}, batch {size}' for network in ('small', 'wide') for size in (16, 64)]\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, tmp_path, idx_folder], cwd=SCRIPTS,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.count("cpu is faster than this CPU from batch size ") == 2
    assert result.stdout.count(" after 1 epoch(s) in ") == 2
    assert (tmp_path / "batches.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_benchmark_measures_and_skips_by_name(tmp_path, idx_folder, one_core):
    (tmp_path / "thinc.py").write_text("raise ImportError('thinc is broken\\nbadly')\n")
    out = tmp_path / "out"
    result = run(
        "benchmark.py", "--quick", "--peers", "products", "tutorial", "thinc", "--data-dir",
        idx_folder, "--out", out, env={"PYTHONPATH": f"{tmp_path}:{SCRIPTS.parent}"},
    )  # fmt: skip
    assert "not run: thinc: thinc is broken\n" in result.stdout
    report = json.loads((out / "benchmark.json").read_text())
    assert report["not_run"] == {"thinc": "thinc is broken"}
    assert report["machine"]["versions"]["numpy"] == np.__version__
    assert report["machine"]["cores"] >= 1
    steps = {"small, SGD", "small, Adam"}
    predictions = {"predict 1 row", "predict 100 rows", "predict 10000 rows"}
    cold = {"cold start to one epoch", "peak memory of the cold start"}
    measured = report["measured"]
    assert measured["one core"].keys() == steps | predictions
    assert measured["all cores"].keys() == steps | predictions | cold
    for cores, measures in measured.items():
        for measure, rounds in measures.items():
            names = {"nnxp", "tutorial"} | (set() if measure in cold else {"products"})
            assert rounds.keys() == names
            assert all(len(values) == 2 and min(values) > 0 for values in rounds.values())
            assert f"| {measure}, {cores} |" in result.stdout
    assert report["accuracy"]["one core"]["small, SGD"].keys() == {"nnxp", "tutorial"}
    targets = {(row["measure"], row["against"], row["cores"]): row for row in report["targets"]}
    row = targets["small, SGD", "the bare products", "one core"]
    ours, limits = (measured["one core"]["small, SGD"][name] for name in ("nnxp", "products"))
    assert row["ratios"] == [a / b for a, b in zip(ours, limits, strict=True)]
    assert row["met"] == (row["ratio"] <= row["limit"])
    assert targets["small, SGD", "PyTorch, eager", "one core"]["met"] is None
    assert (out / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_benchmark_remarks_on_an_accuracy_that_differs_and_does_not_fail(
    tmp_path, idx_folder, one_core
):
    code = (
        "import sys\n"
        "import benchmark, cli\n"
        "benchmark.ACCURACY_TOLERANCE = -1\n"  # every peer differs
        "benchmark.ROUNDS, benchmark.STEPS = 2, {'small': 3}\n"
        "benchmark.NETWORKS = {'cpu': ('small',)}\n"
        "cli.run(benchmark.main)\n"
    )
    options = ["--peers", "tutorial", "--data-dir", idx_folder, "--out", tmp_path / "out"]
    result = subprocess.run(
        [sys.executable, "-c", code, *options], cwd=SCRIPTS, check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "30 minutes" in result.stderr
    remarks = json.loads((tmp_path / "out" / "benchmark.json").read_text())["remarks"]
    assert len(remarks) == 8  # of two peers, two optimizers, on one core and all
    for remark in remarks:
        assert f"remark: {remark}\n" in result.stdout
    assert "tutorial reached a validation accuracy of 0." in remarks[1]


def test_growth_picture_has_titles_and_one_legend(tmp_path):
    code = (
        "import pathlib, sys\n"
        "import growth, matplotlib.figure\n"
        "rows = [growth.Row(n, n * 2.0, n * 1.0, 0.5, n * 1.0) for n in (32, 64, 128)]\n"
        "saved = []\n"
        "growth.save_figure = lambda figure, path: saved.append(figure)\n"
        "growth.draw(dict.fromkeys(growth.SERIES, rows), [0.1, 0.2], pathlib.Path(sys.argv[1]))\n"
        "(figure,) = saved\n"
        "assert len({axes.get_title() for axes in figure.axes} - {''}) == 6\n"
        "assert len(figure.legends) == 1\n"
        "assert not any(axes.get_legend() for axes in figure.axes)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=SCRIPTS, check=True)


def test_unknown_peer_gives_a_one_line_error():
    result = run("benchmark.py", "--peers", "torhc", status=2)
    assert "torhc" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.long
def test_memory_does_not_grow_with_data_or_epochs(tmp_path, one_core):
    result = run("growth.py", "--quick", "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert report["series"].keys() == {"batch size", "width", "depth", "examples"}
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
    """A repository of one commit: this checkout's package and scripts."""
    if not shutil.which("git"):
        pytest.skip("git: not installed")
    for folder in (SCRIPTS, SCRIPTS.parent / "nnxp"):
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
