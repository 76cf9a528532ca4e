"""Checkpoint: the whole state of a training in one file, from which the training is resumed.

A file is in the safetensors format. Its arrays are named ``parameters/…``, ``state/…`` and
``history/…``; its metadata has a JSON text under the key ``nnxp``. docs/checkpoint.md specifies the
format. `format` has what `saving` and `loading` share; `target` resolves and locks the file's path.
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
