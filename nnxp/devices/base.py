"""Device: an array library and one of its devices, with all transfers to and from it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import (
    Array,
    DType,
    Namespace,
    code_for_numpy,
    describe,
    device_of,
    is_numpy_subclass,
)
from nnxp.checks import explained, unknown_name
from nnxp.errors import DeviceError, InputError, OutOfMemoryError

DTYPES = ("float32", "float64")
"""The dtypes that networks compute in."""

_ARRAY_DTYPES = (
    *DTYPES, "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip


def require_dtype(dtype: object) -> str:
    """Return the name of a dtype, which is given as a name or as a dtype of any library.

    Raises
    ------
    InputError
        If it is not one of `DTYPES`.
    """
    name = _dtype_name(dtype)
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    return name


def _dtype_name(dtype: object) -> str:
    if isinstance(dtype, type):  # for example numpy.float64
        return np.dtype(dtype).name if dtype in (float, int, bool) else dtype.__name__
    return str(dtype).rpartition(".")[2]  # for example torch.float64


@dataclass(frozen=True)
class Device:
    """An array library and one of its devices.

    `nnxp.device` opens it. Two devices are equal if their `spec` is equal.

    Attributes
    ----------
    spec : str
        The name that opens this device again, such as ``"cpu"`` or ``"cuda:0"``.
    description : str
        Library, version and hardware, as text.
    xp : module
        The library's Array API namespace.
    reason : str
        The reason why ``"auto"`` did not choose a GPU; otherwise empty.
    is_host : bool
        Whether its arrays are NumPy arrays on the host, which need no transfer.
    """

    spec: str
    description: str = field(compare=False)
    xp: Namespace = field(compare=False, repr=False)
    _array_type: type | tuple[type, ...] = field(compare=False, repr=False)
    _handle: Any = field(compare=False, repr=False)
    _from_host: Callable[[npt.NDArray[Any]], Array] = field(compare=False, repr=False)
    _to_host: Callable[[Array], npt.NDArray[Any]] = field(compare=False, repr=False)
    reason: str = field(default="", compare=False, repr=False)
    is_host: bool = field(default=False, compare=False, repr=False)
    _context: Callable[[], AbstractContextManager[object]] = field(
        default=nullcontext, compare=False, repr=False
    )
    # Detaches arrays from PyTorch's autograd, which would otherwise keep a graph in each step.
    _detach: Callable[[Array], Array] = field(default=lambda x: x, compare=False, repr=False)
    _free_memory: Callable[[], int | None] = field(default=lambda: None, compare=False, repr=False)
    _release: Callable[[], object] = field(default=lambda: None, compare=False, repr=False)
    _is_memory_error: Callable[[Exception], bool] = field(
        default=lambda error: isinstance(error, MemoryError), compare=False, repr=False
    )

    def __str__(self) -> str:
        return f"{self.spec} ({self.description})"

    def __reduce__(self) -> tuple[Callable[[str], Device], tuple[str]]:
        return _reopen, (self.spec,)  # open a copied or unpickled device again

    def holds(self, x: object) -> bool:
        """Return whether `x` is an array of this device's library, on this device."""
        return isinstance(x, self._array_type) and device_of(x) in (self._handle, None)

    def require(self, x: Array, owner: object) -> None:
        """Raise a `DeviceError` that names both devices unless this device holds `x`."""
        if not self.holds(x):
            host = "x" if _on_host(x) else code_for_numpy(x) or "own_device.to_host(x)"
            raise DeviceError(
                f"{owner} is on {self.spec}, got {describe(x)}; convert with "
                f'nnxp.device("{self.spec}").asarray({host})'
            )

    @explained("device.asarray(x)")
    def asarray(self, host: Any, *, dtype: DType | None = None) -> Array:
        """Copy a host array (NumPy array, list or number) to this device.

        Parameters
        ----------
        host : array_like
            Data on the host, or an array of this device. On the CPU, and for an array of this
            device, the result may share its memory.
        dtype : str or dtype, optional
            The result's dtype, such as ``"float32"``; by default that of `host`.

        Returns
        -------
        array
            An array of this device.

        Raises
        ------
        DeviceError
            If `host` is an array on another device.
        InputError
            If `host` is not an array of numbers, `dtype` is not a dtype of numbers, or a number
            does not fit into the dtype.
        """
        if dtype is not None:
            dtype = _dtype_name(dtype)
            if dtype not in _ARRAY_DTYPES:
                raise unknown_name("dtype", dtype, _ARRAY_DTYPES)
        if self.holds(host) and not isinstance(host, (np.ndarray, np.generic)):
            target = host.dtype if dtype is None else getattr(self.xp, dtype)
            return self.xp.astype(self._detach(host), target, copy=False)
        if not _on_host(host):
            raise DeviceError(
                f"asarray copies arrays from the host to {self.spec}, got {describe(host)}; "
                f"copy it there first with {code_for_numpy(host) or 'own_device.to_host(x)'}"
            )
        if is_numpy_subclass(host):
            raise InputError(
                f"asarray expects a plain array, got {type(host).__name__}; convert with "
                f"{code_for_numpy(host)}"
            )
        try:
            array = np.asarray(host)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"asarray expects an array of numbers: {error}") from None
        name = dtype or array.dtype.name
        if array.dtype.kind not in "biuf" or name not in _ARRAY_DTYPES:
            code = code_for_numpy(host) if array.dtype.kind == "O" else ""
            remedy = f"convert with {code}" if code else f"supported are {', '.join(_ARRAY_DTYPES)}"
            raise InputError(
                f"asarray expects an array of numbers, got dtype {array.dtype}; {remedy}"
            )
        return self._from_host(_convert(array, np.dtype(name)))

    def to_host(self, x: Array) -> npt.NDArray[Any]:
        """Copy an array of this device to a NumPy array; this waits for the device.

        On the CPU, the array itself is returned.

        Raises
        ------
        DeviceError
            If `x` is not an array of this device.
        """
        if not self.holds(x):
            raise DeviceError(
                f"to_host of {self.spec} expects an array of that device, got {describe(x)}"
            )
        return self._to_host(x)

    def free_memory(self) -> int | None:
        """Return the number of free bytes on the device; None if it is unknown."""
        return self._free_memory()

    def is_memory_error(self, error: Exception) -> bool:
        """Return whether this library raises this error if there is too little memory."""
        return self._is_memory_error(error)

    def current(self) -> AbstractContextManager[object]:
        """Return a context manager that computes on this device, in full precision."""
        return self._context()

    @contextmanager
    def session(self, describe_work: Callable[[], str]) -> Iterator[None]:
        """Compute on this device, and free the library's cached memory at the end.

        Parameters
        ----------
        describe_work : callable
            A function that returns a description of the work and its size, for the error.

        Raises
        ------
        OutOfMemoryError
            If the device has too little memory; it replaces the library's own error.
        """
        try:
            with self.current():
                yield
        except Exception as error:
            if not self.is_memory_error(error):
                raise
            traceback.clear_frames(error.__traceback__)  # frames keep arrays in memory
            self._release()
            free = self.free_memory()
            available = "" if free is None else f", which has {free / 2**20:,.0f} MiB free"
            raise OutOfMemoryError(
                f"{describe_work()} does not fit into the memory of {self.spec}{available}; "
                "use a smaller batch_size"
            ) from None
        finally:
            self._release()


def _reopen(spec: str) -> Device:
    from nnxp.devices import open_device

    return open_device(spec)


def _convert(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return `array` in `dtype` and native byte order; raise if a number does not fit."""
    if array.dtype == dtype:
        return array
    with np.errstate(invalid="ignore", over="ignore"):
        result = array.astype(dtype)
    lost = np.isfinite(array) & ~np.isfinite(result) if dtype.kind == "f" else result != array
    if lost.any():
        raise InputError(
            f"asarray got {array[lost].flat[0]!s} of {array.dtype}, which {dtype} cannot hold"
        )
    return result


def _on_host(x: object) -> bool:
    """Return whether `x` is a NumPy array, or not an array of any library."""
    return isinstance(x, (np.ndarray, np.generic)) or not hasattr(x, "__dlpack__")
