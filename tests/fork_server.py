"""A process that has imported the packages, and forks to run each script that it is told to.

It reads requests from standard input, a line of JSON each, and prints the exit status of each.
A script so starts several times as fast as in a new process. The modules of scripts/ are its own.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import json
import os
import runpy
import sys
import threading

import nnxp.testing

with contextlib.suppress(nnxp.MissingExtraError):
    figure = nnxp.plots.new_figure(1, 1)
    figure.suptitle("title")
    figure.savefig(io.BytesIO())  # so that the fonts are loaded
gc.freeze()  # the collector of a fork would copy every page
for line in sys.stdin:
    request = json.loads(line)
    if process := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
        continue
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(path, os.O_WRONLY | os.O_CREAT) for path in request["outputs"]]
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = request["command"]
    sys.path[0] = os.path.dirname(sys.argv[0])  # noqa: PTH120
    status = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - as Python ends a script
        sys.excepthook(*sys.exc_info())
        status = 1
    # Python's usual end, without clearing modules, which takes longer than most scripts.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
