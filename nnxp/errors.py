"""Errors: each message names the thing, what was wanted, what came and a remedy."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return text on one line, with control characters escaped."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


class NnxpError(Exception):
    """Base class of nnxp's errors; scripts print only the message."""

    def __str__(self) -> str:
        """Return the message on one line, with control characters escaped.

        Messages contain paths and names from files, which could control the terminal.
        """
        return printable(super().__str__())


class InputError(NnxpError, ValueError):
    """A value, shape, dtype or name that cannot be used."""


class ArgumentError(InputError, TypeError):
    """A call with an argument that is missing, unknown or one too many."""


class CallOrderError(NnxpError, RuntimeError):
    """A call that needs another call before it, such as backward before forward."""


class DeviceError(NnxpError, RuntimeError):
    """A device that cannot be used, or an array on the wrong device."""


class OutOfMemoryError(DeviceError, MemoryError):
    """A device with too little memory; a smaller batch needs less."""


class DivergenceError(NnxpError, ArithmeticError):
    """A loss, parameter or state that is no longer finite."""


class LayerError(NnxpError, AssertionError):
    """A layer that fails `nnxp.testing.check_layer`."""


class DataError(NnxpError, ValueError):
    """A data file with invalid contents."""


class DataUnavailableError(DataError):
    """A data set that is not found or cannot be downloaded."""


class CheckpointError(NnxpError, ValueError):
    """A checkpoint, or another file of a network, that cannot be read, written or resumed."""


class RanksError(NnxpError, RuntimeError):
    """Training on several processes, one of which failed or has other data or settings."""


class MissingExtraError(NnxpError, ImportError):
    """An optional package that is needed but not installed."""
