"""Terminal: closed, full, broken and ASCII-only output, and signals, of real processes."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from builders import fit, new_trainer
from script_runner import ENVIRONMENT, SCRIPTS, run, training

import nnxp

pytestmark = [
    pytest.mark.skipif(not SCRIPTS.exists(), reason="scripts: not beside the tests"),
    pytest.mark.skipif(sys.platform == "win32", reason="shells, devices and signals are POSIX's"),
]

SIGNALS = [
    signal.SIGINT,
    *(pytest.param(x, marks=pytest.mark.long) for x in (signal.SIGTERM, signal.SIGHUP)),
]
OPTIONS = ["--dataset", "digits", "--epochs", "2", "--out"]
ALL_SCRIPTS = sorted(x.name for x in SCRIPTS.glob("*.py") if "\n    run(main)" in x.read_text())


def shell(script, *options, redirect, env=None, cwd=None):
    """Run a script in a shell that redirects its output; a pipe's status is the script's."""
    command = f'set -o pipefail; "$@" {redirect}'
    result = subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, SCRIPTS / script, *map(str, options)],
        env=ENVIRONMENT | (env or {}), capture_output=True, text=True, check=False, cwd=cwd,
    )  # fmt: skip
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    return result


@pytest.mark.long
@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&-", "2> /dev/full", "<&- >&- 2>&-"])
def test_closed_output_and_full_standard_error_do_not_stop_a_run(tmp_path, redirect):
    result = shell("train_mnist.py", *OPTIONS, tmp_path / "run", redirect=redirect)
    assert result.returncode == 0
    assert result.stderr == ""
    assert ("epoch   2" in result.stdout) == (">&- " not in f" {redirect} ".replace("2>&-", ""))
    assert nnxp.Trainer.resume(tmp_path / "run" / "checkpoint.safetensors").epochs == 2


@pytest.mark.parametrize(
    "script", ["train_mnist.py", pytest.param("compare_mnist.py", marks=pytest.mark.long)]
)
def test_full_standard_output_is_one_line_and_leaves_no_folder(tmp_path, script):
    out = ["--dataset", "digits", "--epochs", 1, "--out", tmp_path / "run"]
    result = shell(script, *out, redirect="> /dev/full")
    assert result.returncode == 1
    assert result.stderr == (
        f"{script}: error: standard output cannot be written: No space left on device\n"
    )
    assert not list(tmp_path.iterdir())
    run(script, *out)


def test_full_standard_output_does_not_matter_to_a_quiet_run(tmp_path):
    result = shell("train_mnist.py", "--quiet", *OPTIONS, tmp_path, redirect="> /dev/full")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.long
@pytest.mark.parametrize("options", [["--help"], []])
@pytest.mark.parametrize("redirect", ["> /dev/full", "| head -0"])
def test_output_that_fails_is_reported_by_every_way_of_printing(options, redirect):
    result = shell("xor.py", *options, redirect=redirect)
    full = redirect == "> /dev/full"
    assert result.returncode == (1 if full else 141)
    error = "xor.py: error: standard output cannot be written: No space left on device\n"
    assert result.stderr == (error if full else "")


def test_run_whose_reader_has_gone_can_be_resumed(tmp_path):
    out = tmp_path / "run"
    options = ["--dataset", "digits", "--epochs", 1000, "--out", out]
    result = shell("train_mnist.py", *options, redirect="| (head -15 > /dev/null; exec <&-)")
    assert result.returncode == 141
    words = re.fullmatch(
        r"stopped after (\d+) steps \(standard output cannot be written: Broken pipe\); to "
        rf"resume: --resume {out}\n",
        result.stderr,
    )
    trainer = nnxp.Trainer.resume(out / "checkpoint.safetensors")
    assert trainer.optimizer.steps == int(words[1])
    run("train_mnist.py", "--resume", out, "--epochs", trainer.epochs + 1)


def test_reader_that_is_gone_before_the_training_leaves_no_folder(tmp_path):
    result = shell("train_mnist.py", *OPTIONS, tmp_path / "run", redirect="| exec true")
    assert (result.returncode, result.stderr) == (141, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_ascii_output_escapes_other_characters(tmp_path, env):
    (tmp_path / "größe.csv").write_text("label,a\n" + "0,1\n1,2\n" * 20)
    options = ["--dataset", "größe.csv", "--epochs", 1, "--out", "läuft"]
    result = shell("train_mnist.py", *options, redirect="", env=env, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "files in " in result.stdout
    if "PYTHONIOENCODING" in env:
        assert "gr\\xf6\\xdfe.csv: " in result.stdout
        result = shell("train_mnist.py", *options, redirect="", env=env, cwd=tmp_path)
        assert "l\\xe4uft already holds a run" in result.stderr


@pytest.mark.parametrize(
    ("script", "number"),
    [
        *(("train_mnist.py", x) for x in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        # That `cli` is each script's first import is a rule of the linter.
        *(
            pytest.param(script, signal.SIGINT, marks=pytest.mark.long)
            for script in ALL_SCRIPTS
            if script != "train_mnist.py"
        ),
    ],
)
def test_signal_during_the_imports_is_one_line(tmp_path, script, number):
    # The first import that takes long; the script waits in it.
    (tmp_path / "numpy.py").write_text(
        "import signal\nprint('importing', flush=True)\nwhile True:\n    signal.pause()\n"
    )
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # see script_runner
    try:
        process = subprocess.Popen(
            [sys.executable, SCRIPTS / script], text=True,
            env=ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{SCRIPTS.parent}"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, handler)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, err = process.communicate()
    assert (process.returncode, err) == (128 + number, f"{script}: interrupted\n")


# Runs a script whose process gets a signal just after it has renamed a file of this name.
SIGNALLED = """
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # see script_runner
number, name, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
events = []
def hook(event, args):
    if events == ["renamed"]:
        events.append("signalled")
        signal.raise_signal(number)
    if event == "os.rename" and str(args[1]).endswith(name):
        events.append("renamed")
sys.addaudithook(hook)
sys.path.insert(0, os.path.dirname(path))
sys.argv = sys.argv[3:]
runpy.run_path(path, run_name="__main__")
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_before_the_first_checkpoint_leaves_no_folder(tmp_path, number):
    options = ["--dataset", "digits", "--epochs", "1", "--out", tmp_path / "run"]
    command = [str(int(number)), "config.json", SCRIPTS / "train_mnist.py", *options]
    result = subprocess.run(
        [sys.executable, "-c", SIGNALLED, *command],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (128 + number, "train_mnist.py: interrupted\n")
    assert not list(tmp_path.iterdir())
    run("train_mnist.py", *options)


@pytest.mark.parametrize("number", SIGNALS)
def test_second_signal_ends_the_process_and_later_ones_are_ignored(tmp_path, number):
    (tmp_path / "a.py").write_text(
        "import cli, signal, sys\n"
        "def main():\n"
        "    try:\n"
        "        signal.raise_signal(int(sys.argv[1]))\n"
        "    finally:\n"
        "        if sys.argv[2] == 'within':\n"
        "            signal.raise_signal(int(sys.argv[1]))\n"
        "        print('removed', flush=True)\n"
        "try:\n"
        "    cli.run(main)\n"
        "finally:\n"
        "    signal.raise_signal(int(sys.argv[1]))\n"
        "    print('ended')\n"
    )
    for name in ("cli.py", "interrupts.py"):
        (tmp_path / name).write_bytes((SCRIPTS / name).read_bytes())
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # see script_runner
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    for place, out in (("within", ""), ("after", "removed\nended\n")):
        result = subprocess.run(
            [sys.executable, "-c", code, tmp_path / "a.py", str(int(number)), place],
            env=ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (result.returncode, result.stdout) == (128 + number, out)
        assert result.stderr == "a.py: interrupted\n"


@pytest.mark.parametrize(
    ("options", "function"),
    [
        (["benchmark.py", "--quick", "--out", "run"], "killpg"),
        (["portability.py", "--steps", "1"], "kill"),
        pytest.param(["benchmark.py", "--quick", "--out", "run"], "kill", marks=pytest.mark.long),
        pytest.param(["portability.py", "--steps", "1"], "killpg", marks=pytest.mark.long),
    ],
)
def test_signal_of_a_terminal_is_reported_once_and_ends_the_workers(tmp_path, options, function):
    # A worker sends the signal, as a terminal does to all processes or `kill` to one, and waits.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if {'--multiprocessing-fork', '--worker'} & set(sys.orig_argv):\n"
        f"    os.{function}(os.getppid(), signal.SIGINT)\n"
        "    while True:\n"
        "        signal.pause()\n"
    )
    cwd = tmp_path / "empty"
    cwd.mkdir()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # see script_runner
    try:
        process = subprocess.Popen(
            [sys.executable, SCRIPTS / options[0], *options[1:], "--dataset", "digits"], cwd=cwd,
            env=ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{SCRIPTS.parent}"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, handler)
    _, err = process.communicate()
    assert process.returncode == 130, err
    *told, last = err.splitlines()
    assert last == f"{options[0]}: interrupted"
    assert all(re.fullmatch(r" 0:\d\d tiny: .*", line) for line in told)  # the progress
    assert not list(cwd.iterdir())


def test_closed_terminal_saves_as_sigterm_does(tmp_path):
    out = tmp_path / "run"
    with training("--epochs", "1000000", "--out", out, until="epoch   2") as process:
        process.send_signal(signal.SIGHUP)
        _, err = process.communicate()
    assert process.returncode == 129, err
    steps = nnxp.Trainer.resume(out / "checkpoint.safetensors").optimizer.steps
    assert err == f"stopped after {steps} steps; to resume: --resume {out}\n"


@pytest.mark.long
def test_home_folder_is_expanded_in_options(tmp_path):
    env = {"HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "a.csv").write_text("label,a\n" + "0,1\n1,2\n" * 20)
    (tmp_path / "cwd").mkdir()
    cwd = tmp_path / "cwd"
    options = ["--dataset", "~/a.csv", "--epochs", 1, "--out", "~/run"]
    run("train_mnist.py", *options, env=env, cwd=cwd)
    run("train_mnist.py", "--resume", "~/run", "--epochs", 2, env=env, cwd=cwd)
    assert nnxp.Trainer.resume(tmp_path / "home" / "run" / "checkpoint.safetensors").epochs == 2
    assert not list(cwd.iterdir())
    result = run("train_mnist.py", "--out", "~no-such-user/run", cwd=cwd, status=2)
    assert result.stderr == (
        "train_mnist.py: error: argument --out: the home folder ~no-such-user is not known; set "
        "HOME, or give the whole path\n"
    )


class Size(nnxp.metrics.Metric):
    name = "größe"

    def measure(self, scores, labels, weights=None):
        return scores[0, :1] * 0 + 1


@pytest.mark.parametrize("errors", ["strict", "backslashreplace"])
def test_progress_is_escaped_where_only_ascii_can_be_printed(data, monkeypatch, errors):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
    monkeypatch.setattr(sys, "stdout", stream)
    trainer = new_trainer()
    trainer.metrics = (Size(),)
    fit(trainer, data, 2, verbose=True)
    lines = stream.buffer.getvalue().decode().splitlines()
    assert [line[:9] for line in lines] == ["epoch   1", "epoch   2"]
    assert "train gr\\xf6\\xdfe" in lines[0]


def test_progress_that_cannot_be_printed_warns_once_and_training_continues(data, monkeypatch):
    closed = io.StringIO()
    closed.close()
    with open("/dev/full", "w") as full:  # noqa: PTH123
        for stream, reason in ((closed, "I/O operation on closed"), (full, "No space left")):
            for name in ("stdout", "stderr"):
                monkeypatch.setattr(sys, name, stream)
            trainer = new_trainer()
            with pytest.warns(
                UserWarning, match=f"cannot be printed .*{reason}.*continues"
            ) as raised:
                fit(trainer, data, 3, verbose=True)
            assert len(raised) == 1
            assert trainer.epochs == 3
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what is left goes there


def test_progress_without_a_console_trains(data, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    trainer = new_trainer()
    fit(trainer, data, 2, verbose=True)
    assert trainer.epochs == 2


def test_library_prints_only_what_verbose_asks_for():
    package = Path(nnxp.__file__).parent
    printing = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"^\s*print\(", path.read_text(), re.M)
    }
    assert printing == {"__main__.py", "sklearn/fitting.py", "training/callbacks.py"}
