"""Checkpoint: all that a training is, in one file, from which it goes on as if never stopped.

A file is in the safetensors format: arrays named ``parameters/…``, ``state/…`` and ``history/…``,
and in the metadata, under the key ``nnxp``, a JSON text that says what they belong to.
docs/checkpoint.md describes it in full. `format` is what `saving` and `loading` share, and `target`
the file itself.
"""

from nnxp.checkpoint.format import FORMAT, Checkpoint
from nnxp.checkpoint.loading import load, load_network
from nnxp.checkpoint.saving import require_saveable, save
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
]
