"""Checkpoint: everything that a training run needs to resume, in one file.

A file is in the safetensors format; docs/checkpoint.md specifies its contents. `saving` and
`loading` write and read files, `format` has the code that both share, and `target` resolves and
locks the file's path.
"""

from nnxp.checkpoint.format import FORMAT, Checkpoint
from nnxp.checkpoint.loading import load, load_network
from nnxp.checkpoint.saving import require_saveable, save, save_network
from nnxp.checkpoint.target import lock_target, resolve_target

__all__ = [
    "FORMAT",
    "Checkpoint",
    "load",
    "load_network",
    "lock_target",
    "require_saveable",
    "resolve_target",
    "save",
    "save_network",
]
