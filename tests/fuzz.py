"""Fuzzing: files of whatever bytes libFuzzer finds to reach new code with (`nox -s fuzz`).

``python fuzz.py KIND FOLDER -max_total_time=SECONDS``; KIND is one of file_samples.py's, or
``signed``: what a checkpoint says of its arrays, under a SHA-256 that is right.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nnxp", "safetensors"]):
    import file_samples

    import nnxp

wanted, corpus, *options = sys.argv[1:]
kind = "safetensors" if wanted == "signed" else wanted
make, read = file_samples.KINDS[kind]
path = Path(tempfile.mkdtemp()) / f"a.{kind}"
# A file as it should be, to begin with.
whole = make(path)
if wanted == "signed":
    text, arrays = file_samples.contents(path)
    whole = text.encode()
Path(corpus).mkdir(exist_ok=True)
(Path(corpus) / "whole").write_bytes(whole)


def try_one(data: bytes) -> None:
    """Load a file of these bytes: it loads, or is refused by a named error."""
    if wanted == "signed":
        file_samples.signed(path, data.decode(errors="replace"), arrays)
    else:
        path.write_bytes(data)
    try:
        read(path)
    except (nnxp.DataError, nnxp.CheckpointError):
        return
    except nnxp.InputError:
        if kind == "safetensors":
            raise


atheris.Setup([sys.argv[0], corpus, *options], try_one)
atheris.Fuzz()
