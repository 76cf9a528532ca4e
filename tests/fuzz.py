"""Fuzzing: files of whatever bytes libFuzzer finds to reach new code with (`nox -s fuzz`).

``python fuzz.py KIND FOLDER -max_total_time=SECONDS``; KIND is one of test_hostile.py's.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nnxp", "safetensors"]):
    import test_hostile

    import nnxp

kind, corpus, *options = sys.argv[1:]
folder = Path(tempfile.mkdtemp())
path = folder / f"a.{kind}"
# A file as it should be, to begin with.
Path(corpus).mkdir(exist_ok=True)
(Path(corpus) / "whole").write_bytes(test_hostile.KINDS[kind][0](path))


def try_one(data: bytes) -> None:
    """Load a file of these bytes: it loads, or is refused by a named error."""
    path.write_bytes(data)
    try:
        test_hostile.KINDS[kind][1](path)
    except (nnxp.DataError, nnxp.CheckpointError):
        return
    except nnxp.InputError:
        if kind == "safetensors":
            raise


atheris.Setup([sys.argv[0], corpus, *options], try_one)
atheris.Fuzz()
