"""Target: the file that a checkpoint is written to, and by whom."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from nnxp.checks import optional_import
from nnxp.errors import CheckpointError
from nnxp.files import remove_temporary, require_writable


def resolve_target(path: str | Path) -> Path:
    """Return the file that a path means, behind links and wherever the process goes later.

    Raises
    ------
    CheckpointError
        If it is not the name of a file.
    """
    try:
        file = Path(path).resolve()
        # What is still a link is one of a circle, which Python 3.13 does not raise for.
        fits = file.name and not file.is_symlink() and (file.is_file() or not file.exists())
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path!r} cannot be written ({error}); choose another") from error
    if not fits:
        raise CheckpointError(f"{str(path)!r} is not the name of a file; give one in a folder")
    return file


@contextlib.contextmanager
def lock_target(path: str | Path) -> Iterator[None]:
    """Let no other process write the checkpoint meanwhile, and clear away what a killed one left.

    Raises
    ------
    CheckpointError
        If another one does, or nothing can be written there.
    """
    filelock = optional_import("filelock", "checkpoint")
    optional_import("safetensors.numpy", "checkpoint")  # or it would be missed at the first save
    path = resolve_target(path)
    # One lock for all of a process: a script may hold it before `fit` does.
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=0, is_singleton=True)
    try:
        require_writable(path)
        lock.acquire()
    except filelock.Timeout:
        raise CheckpointError(
            f"another process is training into {path}; wait for it, or choose another file"
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); choose another folder"
        ) from error
    try:
        remove_temporary(path)
        yield
    finally:
        lock.release()
