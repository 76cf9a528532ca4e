"""Run the scripts as a user does, in processes of their own."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

CPU_SECONDS = 600  # far more than a run of a test takes
SCRIPTS = Path(__file__).parent.parent / "scripts"


# The scripts find nnxp as the tests do, be it installed or not.
PATHS = os.pathsep.join(filter(None, [str(SCRIPTS.parent), os.environ.get("PYTHONPATH")]))


ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS}


def run(name, *options, cwd=None, env=None, status=0):
    """Run a script and return what it printed, after checking its exit status.

    On Linux it runs in a fork of a process that has imported nnxp (see fork_server.py); in a new
    process, if `env` says how Python is to import.
    """
    # Elsewhere libraries may not survive a fork, or there is none.
    fresh = sys.platform != "linux" or any(key.startswith("PYTHON") for key in env or {})
    command = [str(SCRIPTS / name), *map(str, options)]
    result = (run_fresh if fresh else run_forked)(command, cwd, ENVIRONMENT | (env or {}))
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


SAVE_FIGURE = """
import json, matplotlib.figure as f
save = f.Figure.savefig
def savefig(self, *args, **options):
    axes = [
        {"title": x.get_title(), "bands": len(x.collections),
         "curves": [[y.get_label(), list(map(float, y.get_ydata()))] for y in x.lines]}
        for x in self.axes
    ]
    with open(PATH, "w") as file:
        json.dump({"title": self.get_suptitle(), "axes": axes}, file)
    save(self, *args, **options)
f.Figure.savefig = savefig
"""


def saved_figures(folder):
    """Return variables with which a script also saves what its last figure shows, and the file."""
    path = folder / "drawn.json"
    code = SAVE_FIGURE.replace("PATH", repr(str(path)))
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{PATHS}"}, path


def run_code(code, folder, *arguments, env=None):
    """Run Python code with the warnings as errors, and return what it printed; as `run` does.

    It is written into the folder, in which it runs.
    """
    path = Path(folder, "code.py")
    path.write_text(f"import warnings; warnings.simplefilter('error')\n{code}", encoding="utf-8")
    command = [str(path), *map(str, arguments)]
    function = run_forked if sys.platform == "linux" else run_fresh
    result = function(command, folder, ENVIRONMENT | (env or {}))
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_fresh(command, cwd, environment):
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@functools.cache
def fork_server():
    # One thread: a process of several threads cannot be forked safely.
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("fork_server.py")],
        env=ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    atexit.register(server.communicate)
    return server


def run_forked(command, cwd, environment):
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, "stdout"), Path(folder, "stderr")]
        request = {"command": command, "folder": str(cwd or Path.cwd()),
                   "environment": environment, "outputs": list(map(str, outputs))}  # fmt: skip
        server = fork_server()
        print(json.dumps(request), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, status, *(path.read_text() for path in outputs))


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


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
    if sys.platform == "linux":  # where a run that ignores its signal ends nevertheless
        import resource

        resource.prlimit(process.pid, resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    try:
        next(line for line in process.stdout if line.startswith(until))
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def drawing_page(model):
    """Serve draw.py's page; yield its port and the process."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in `training`
    try:
        process = subprocess.Popen(
            [sys.executable, SCRIPTS / "draw.py", model, "--port", "0"],
            env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        line = process.stdout.readline()
        assert line.startswith("draw at http://127.0.0.1:"), process.communicate()
        yield int(line.split("/")[2].rpartition(":")[2]), process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def script_modules():
    """Make the modules of scripts/ importable."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield
    finally:
        sys.path.remove(str(SCRIPTS))
