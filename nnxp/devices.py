"""Devices: where arrays live, and the one border between them and the host.

This is the only module that imports CuPy, and it does so only when a GPU is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import Array, Namespace, is_odd_numpy
from nnxp.errors import DeviceError, InputError, unknown_name

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
    """

    spec: str
    description: str = field(compare=False)
    xp: Namespace = field(compare=False, repr=False)
    _array_type: type | tuple[type, ...] = field(compare=False, repr=False)
    _handle: Any = field(compare=False, repr=False)
    _from_host: Callable[[npt.NDArray[Any]], Array] = field(compare=False, repr=False)
    _to_host: Callable[[Array], npt.NDArray[Any]] = field(compare=False, repr=False)
    reason: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.spec} ({self.description})"

    def __reduce__(self) -> tuple[Callable[[str], Device], tuple[str]]:
        return device, (self.spec,)  # copies and other processes open it anew

    def holds(self, x: object) -> bool:
        """Tell whether `x` is an array of this device's library, on this device."""
        # A JAX array that is being traced has no device.
        return isinstance(x, self._array_type) and getattr(x, "device", None) in (
            self._handle,
            None,
        )

    def require(self, x: Array, owner: object) -> None:
        """Raise a `DeviceError` that names both devices unless this device holds `x`."""
        if not self.holds(x):
            here = f'nnxp.device("{self.spec}").asarray(x)'
            remedy = here if _on_host(x) else f"its own device's to_host(x), then {here}"
            raise DeviceError(
                f"{owner} is on {self.spec}, got {_describe(x)}; convert with {remedy}"
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
            If `host` is no array of numbers, or `dtype` no name of a dtype.
        """
        if dtype is not None and dtype not in _CARRIED:
            raise unknown_name("dtype", dtype, _CARRIED)
        if self.holds(host) and not isinstance(host, np.ndarray):
            wanted = host.dtype if dtype is None else getattr(self.xp, dtype)
            return self.xp.astype(host, wanted, copy=False)
        if not _on_host(host):
            raise DeviceError(
                f"asarray carries arrays from the host to {self.spec}, got {_describe(host)}; "
                "bring it to the host first with its own device's to_host(x)"
            )
        if is_odd_numpy(host):
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
        data = given.astype(name, copy=False)
        if data.dtype != given.dtype and data.dtype.kind in "biu" and (data != given).any():
            raise InputError(f"asarray got {given.dtype} values that {name} cannot hold")
        return self._from_host(data)

    def to_host(self, x: Array) -> npt.NDArray[Any]:
        """Bring an array of this device to the host, as NumPy; it waits for the device."""
        if not self.holds(x):
            raise DeviceError(
                f"to_host of {self.spec} expects an array of that device, got {_describe(x)}"
            )
        return self._to_host(x)


def device(spec: str | Device = "auto") -> Device:
    """Open a device by name.

    Parameters
    ----------
    spec : str or Device
        ``"cpu"`` (NumPy), ``"cuda"`` or ``"cuda:N"`` (CuPy, GPU number N), ``"strict"`` or
        ``"strict:deviceN"`` (array-api-strict and its simulated devices, for tests), or
        ``"auto"``: the GPU if a usable one is there, else the CPU, with why in `Device.reason`.
        A `Device` is returned as it is.

    Raises
    ------
    InputError
        If no device has this name.
    DeviceError
        If the device cannot be used, with the reason and the remedy.

    Examples
    --------
    >>> import nnxp
    >>> nnxp.device("cpu").asarray([1, 2], dtype="float32")
    array([1., 2.], dtype=float32)
    """
    if isinstance(spec, Device):
        return spec
    if not isinstance(spec, str):
        raise InputError(
            f'device expects a name such as "cpu" or "cuda:0", got {type(spec).__name__}'
        )
    if spec == "auto":
        try:
            return _open_cuda("")
        except DeviceError as error:
            return _open_cpu("", reason=str(error))
    library, _, index = spec.partition(":")
    if library == "gpu":
        raise InputError(f'unknown device {spec!r}; GPUs are "cuda", "cuda:0", "cuda:1", …')
    if library not in _OPENERS:
        raise unknown_name("device", spec, ["auto", *_OPENERS])
    return _OPENERS[library](index)


def _open_cpu(index: str, *, reason: str = "") -> Device:
    if index:
        raise InputError(f'the CPU has no number, got "cpu:{index}"; use "cpu"')
    import array_api_compat.numpy as xp

    return Device(
        spec="cpu",
        description=f"NumPy {np.__version__}",
        xp=xp,
        _array_type=(np.ndarray, np.generic),  # a reduction of NumPy returns a scalar, not 0-d
        _handle="cpu",
        _from_host=lambda x: x,
        _to_host=lambda x: x,
        reason=reason,
    )


def _open_strict(index: str) -> Device:
    try:
        strict = importlib.import_module("array_api_strict")
    except ModuleNotFoundError:
        raise DeviceError(
            "array-api-strict is not installed; pip install array-api-strict"
        ) from None
    host = strict.Device("CPU_DEVICE")
    try:
        handle = strict.Device(index or "CPU_DEVICE")
    except ValueError:
        raise DeviceError(
            f'array-api-strict has no device "{index}"; use "strict", "strict:device1" or '
            '"strict:device2"'
        ) from None
    return Device(
        spec=f"strict:{index}" if index else "strict",
        description=f"array-api-strict {strict.__version__}",
        xp=strict,
        _array_type=type(strict.empty(0)),
        _handle=handle,
        _from_host=lambda x: strict.asarray(x, device=handle, copy=True),  # as a GPU does
        _to_host=lambda x: np.array(x.to_device(host)),
    )


# CUDA runtime status codes: docs.nvidia.com/cuda/cuda-runtime-api, cudaError_t.
_CUDA_INSUFFICIENT_DRIVER, _CUDA_NO_DEVICE = 35, 100


def _open_cuda(index: str) -> Device:
    if index and not index.isdecimal():
        raise InputError(f'a GPU has a number, got "cuda:{index}"; use "cuda" or "cuda:0"')
    number = int(index or 0)
    # A broken CuPy raises more than ImportError (AttributeError, OSError), and a missing CUDA
    # library shows only when a kernel is compiled: every step is tried, and named when it fails.
    try:
        cupy = importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            raise DeviceError(
                "CuPy is not installed; pip install 'nnxp[cuda13]', or 'nnxp[cuda12]' for an "
                "older NVIDIA driver"
            ) from None
        raise _broken_cupy(error) from error
    except Exception as error:
        raise _broken_cupy(error) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        status = getattr(error, "status", None)
        if status == _CUDA_INSUFFICIENT_DRIVER:
            raise DeviceError(
                "CuPy finds no NVIDIA driver, or one too old for its CUDA version; install or "
                "update the driver, or try 'nnxp[cuda12]' in place of 'nnxp[cuda13]'"
            ) from error
        if status != _CUDA_NO_DEVICE:
            raise DeviceError(
                f"CuPy cannot count the GPUs ({_one_line(error)}); does nvidia-smi run?"
            ) from error
        count = 0
    if count == 0:
        raise DeviceError(
            "the NVIDIA driver shows no GPU; does nvidia-smi list one, and is "
            "CUDA_VISIBLE_DEVICES unset?"
        )
    if number >= count:
        raise DeviceError(
            f"cuda:{number} does not exist: this machine has {count} GPU(s), "
            f"cuda:0 to cuda:{count - 1}"
        )
    try:
        handle = cupy.cuda.Device(number)
        handle.use()
        trial = cupy.ones((2, 2), dtype="float32")
        float((trial @ trial + trial).sum())
    except Exception as error:
        raise DeviceError(
            f"CuPy cannot compute on cuda:{number} ({_one_line(error)}); if CUDA libraries are "
            "missing, pip install 'nnxp[cuda13]' or 'nnxp[cuda12]' brings them"
        ) from error
    xp: Namespace = importlib.import_module("array_api_compat.cupy")
    name = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()
    return Device(
        spec=f"cuda:{number}",
        description=f"{name}, CuPy {cupy.__version__}",
        xp=xp,
        _array_type=cupy.ndarray,
        _handle=handle,
        _from_host=lambda x: xp.asarray(x, device=handle),
        _to_host=cupy.asnumpy,
    )


_OPENERS: dict[str, Callable[[str], Device]] = {
    "cpu": _open_cpu,
    "cuda": _open_cuda,
    "strict": _open_strict,
}


def _broken_cupy(error: Exception) -> DeviceError:
    return DeviceError(
        f"CuPy is installed but does not import ({_one_line(error)}); reinstall it alone: "
        "pip uninstall every cupy package, then pip install 'nnxp[cuda13]' or 'nnxp[cuda12]'"
    )


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _on_host(x: object) -> bool:
    """Tell whether `x` is host data: NumPy, or anything that is no array of another library."""
    return isinstance(x, (np.ndarray, np.generic)) or not hasattr(x, "__dlpack__")


def _describe(x: object) -> str:
    if not hasattr(x, "__dlpack__"):
        return f"a {type(x).__name__}"
    library = type(x).__module__.partition(".")[0]
    return f"an array of {library} on {getattr(x, 'device', 'cpu')}"
