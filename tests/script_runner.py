"""Run the scripts as a user does, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

CPU_SECONDS = 600  # far more than a run of a test takes
SCRIPTS = Path(__file__).parent.parent / "scripts"


# The scripts find nnxp as the tests do, be it installed or not.
PATHS = os.pathsep.join(filter(None, [str(SCRIPTS.parent), os.environ.get("PYTHONPATH")]))


ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS}


def run(name, *options, cwd=None, env=None, status=0):
    """Run a script and return what it printed, after checking its exit status."""
    result = subprocess.run(
        [sys.executable, SCRIPTS / name, *map(str, options)],
        cwd=cwd, env=ENVIRONMENT | (env or {}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    return result


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
