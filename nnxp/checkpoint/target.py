"""Target: the path that checkpoints are written to, resolved and locked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from nnxp.checks import optional_import
from nnxp.errors import CheckpointError, InputError
from nnxp.files import remove_temporary, require_writable, resolve_file


def resolve_target(path: str | PathLike[str]) -> Path:
    """Return a path as an absolute path without ``~`` or links, which ``chdir`` does not affect.

    Raises
    ------
    CheckpointError
        If the path is not the name of a file.
    """
    try:
        return resolve_file(path)
    except InputError as error:
        raise CheckpointError(str(error)) from error


@contextlib.contextmanager
def lock_target(path: str | Path) -> Iterator[None]:
    """Lock a checkpoint against other processes, and remove temporary files of killed processes.

    Raises
    ------
    CheckpointError
        If another process has the lock, or the file cannot be written.
    MissingExtraError
        If filelock or safetensors is not installed.
    """
    filelock = optional_import("filelock", "checkpoint")
    optional_import("safetensors.numpy", "checkpoint")  # fail now, not at the first save
    path = resolve_target(path)
    # A singleton: a script may take the lock before `fit` takes it in the same process.
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
        with contextlib.suppress(OSError):  # if the folder cannot be listed
            remove_temporary(path)
        yield
    finally:
        lock.release()
