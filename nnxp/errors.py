"""Errors: each names the thing, what was wanted, what came and the remedy."""

from __future__ import annotations


class NnxpError(Exception):
    """Base of all errors that nnxp raises on purpose; scripts print it as one line."""


class InputError(NnxpError, ValueError):
    """A value, shape, dtype or name that cannot be used."""


class CallOrderError(NnxpError, RuntimeError):
    """A call that needs another call before it, such as backward before forward."""


class DeviceError(NnxpError, RuntimeError):
    """A device that cannot be used, or an array on another device than wanted."""


class OutOfMemoryError(DeviceError, MemoryError):
    """The work does not fit into a device's memory; a smaller batch may."""


class DivergenceError(NnxpError, ArithmeticError):
    """Training made a number that is not finite."""


class LayerError(NnxpError, AssertionError):
    """A layer that is not what a layer must be."""


class DataError(NnxpError, ValueError):
    """A data file that is not what it should be."""


class DataUnavailableError(DataError):
    """A data set that is neither on this machine nor to be downloaded."""


class CheckpointError(NnxpError, ValueError):
    """A checkpoint that cannot be read, written or gone on from."""


class MissingExtraError(NnxpError, ImportError):
    """An optional package that is needed and not installed."""
