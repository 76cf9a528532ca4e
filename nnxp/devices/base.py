"""Device: where arrays live, and the one border between them and the host."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array, Namespace, describe, device_of, is_numpy_subclass
from nnxp.checks import unknown_name
from nnxp.errors import DeviceError, InputError, OutOfMemoryError

DTYPES = ("float32", "float64")
"""The dtypes that networks compute in."""

_CARRIED = (
    *DTYPES, "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
)  # fmt: skip


def require_dtype(dtype: str) -> str:
    """Return `dtype` if it is one of `DTYPES`."""
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    return dtype


@dataclass(frozen=True)
class Device:
    """A place where arrays live: one library, and one device of that library.

    Made by `nnxp.device`; two are equal when their `spec` is.

    Attributes
    ----------
    spec : str
        The name that opens this device again, such as ``"cpu"`` or ``"cuda:0"``.
    description : str
        Library, version and hardware, for people.
    xp : module
        The library's Array API namespace.
    reason : str
        Why ``"auto"`` did not choose a GPU; empty otherwise.
    is_host : bool
        Whether its arrays are NumPy's, which need no transfer.
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
    _working: Callable[[], AbstractContextManager[object]] = field(
        default=nullcontext, compare=False, repr=False
    )
    _free_memory: Callable[[], int | None] = field(default=lambda: None, compare=False, repr=False)
    _release: Callable[[], object] = field(default=lambda: None, compare=False, repr=False)
    _is_memory_error: Callable[[Exception], bool] = field(
        default=lambda error: isinstance(error, MemoryError), compare=False, repr=False
    )

    def __str__(self) -> str:
        return f"{self.spec} ({self.description})"

    def __reduce__(self) -> tuple[Callable[[str], Device], tuple[str]]:
        return _reopen, (self.spec,)  # copies and other processes open it anew

    def holds(self, x: object) -> bool:
        """Tell whether `x` is an array of this device's library, on this device."""
        return isinstance(x, self._array_type) and device_of(x) in (self._handle, None)

    def require(self, x: Array, owner: object) -> None:
        """Raise a `DeviceError` that names both devices unless this device holds `x`."""
        if not self.holds(x):
            here = f'nnxp.device("{self.spec}").asarray(x)'
            remedy = here if _on_host(x) else f"its own device's to_host(x), then {here}"
            raise DeviceError(
                f"{owner} is on {self.spec}, got {describe(x)}; convert with {remedy}"
            )

    def asarray(self, host: Any, *, dtype: str | None = None) -> Array:
        """Carry a host array (NumPy, list or number) to this device.

        Parameters
        ----------
        host : array_like
            Data on the host, or an array that this device holds already. On the CPU the result
            may share its memory.
        dtype : str, optional
            Name of the wanted dtype, such as ``"float32"``; the data's own by default.

        Raises
        ------
        DeviceError
            If `host` is an array on another device.
        InputError
            If `host` is no array of numbers, `dtype` no name of a dtype, or a number beyond it.
        """
        if dtype is not None and dtype not in _CARRIED:
            raise unknown_name("dtype", dtype, _CARRIED)
        if self.holds(host) and not isinstance(host, (np.ndarray, np.generic)):
            wanted = host.dtype if dtype is None else getattr(self.xp, dtype)
            return self.xp.astype(host, wanted, copy=False)
        if not _on_host(host):
            raise DeviceError(
                f"asarray carries arrays from the host to {self.spec}, got {describe(host)}; "
                "bring it to the host first with its own device's to_host(x)"
            )
        if is_numpy_subclass(host):
            raise InputError(
                f"asarray expects a plain array, got {type(host).__name__}; convert with "
                "numpy.asarray(x)"
            )
        try:
            given = np.asarray(host)
        except (TypeError, ValueError) as error:
            raise InputError(f"asarray expects an array of numbers: {error}") from None
        name = dtype or given.dtype.name
        if given.dtype.kind not in "biuf" or name not in _CARRIED:
            raise InputError(
                f"asarray expects an array of numbers, got dtype {given.dtype}; carried are "
                f"{', '.join(_CARRIED)}"
            )
        return self._from_host(_convert(given, np.dtype(name)))

    def to_host(self, x: Array) -> npt.NDArray[Any]:
        """Bring an array of this device to the host, as NumPy; it waits for the device."""
        if not self.holds(x):
            raise DeviceError(
                f"to_host of {self.spec} expects an array of that device, got {describe(x)}"
            )
        return self._to_host(x)

    def free_memory(self) -> int | None:
        """Return how many bytes are free on the device; None where nobody counts them."""
        return self._free_memory()

    def is_memory_error(self, error: Exception) -> bool:
        """Tell whether an error is this library's word for too little memory."""
        return self._is_memory_error(error)

    def current(self) -> AbstractContextManager[object]:
        """Let what is computed meanwhile be computed here: on this GPU, in full precision."""
        return self._working()

    @contextmanager
    def session(self, work: str) -> Iterator[None]:
        """Be the current device, and afterwards give back the memory that the library keeps.

        Parameters
        ----------
        work : str
            What is done and how large it is, for the error.

        Raises
        ------
        OutOfMemoryError
            In place of the library's own error, which each library names otherwise.
        """
        try:
            with self.current():
                yield
        except Exception as error:
            if not self.is_memory_error(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold what was computed so far
            self._release()
            free = self.free_memory()
            left = "" if free is None else f", which has {free / 2**20:,.0f} MiB free"
            raise OutOfMemoryError(
                f"{work} does not fit into the memory of {self.spec}{left}; "
                "use a smaller batch_size"
            ) from None
        finally:
            self._release()


def _reopen(spec: str) -> Device:
    from nnxp.devices import open_device

    return open_device(spec)


def _convert(given: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return `given` in `dtype`, in this machine's byte order; refuse what would be lost."""
    if given.dtype == dtype:
        return given
    with np.errstate(invalid="ignore", over="ignore"):
        data = given.astype(dtype)
    lost = np.isfinite(given) & ~np.isfinite(data) if dtype.kind == "f" else data != given
    if lost.any():
        raise InputError(
            f"asarray got {given[lost].flat[0]!s} of {given.dtype}, which {dtype} cannot hold"
        )
    return data


def _on_host(x: object) -> bool:
    """Tell whether `x` is host data: NumPy, or anything that is no array of another library."""
    return isinstance(x, (np.ndarray, np.generic)) or not hasattr(x, "__dlpack__")
