"""Libraries: how a device of each array library is opened, and each way in which that can fail.

CuPy, PyTorch, JAX and array-api-strict are imported here, each when it is asked for, and where
`nnxp.capture` prepares steps for one of them. An opening is a generator: it yields what has worked,
raises at the step that fails, and returns the device; so opening a device and explaining it are the
same code.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from nnxp.arrays import NUMPY, Array, Namespace
from nnxp.devices.base import Device
from nnxp.errors import DeviceError, InputError

Opening: TypeAlias = Generator[str, None, Device]


def open_cpu(place: str) -> Opening:
    """Open NumPy."""
    if place:
        raise InputError(f'the CPU has no number, got "cpu:{place}"; use "cpu"')
    yield f"NumPy {np.__version__} imports"
    return Device(
        spec="cpu",
        description=f"NumPy {np.__version__}",
        xp=NUMPY,
        _array_type=(np.ndarray, np.generic),  # a reduction of NumPy returns a scalar, not 0-d
        _handle="cpu",
        _from_host=lambda x: x,
        _to_host=lambda x: cast(npt.NDArray[Any], x),
        is_host=True,
    )


# CUDA runtime status codes: docs.nvidia.com/cuda/cuda-runtime-api, cudaError_t.
_CUDA_INSUFFICIENT_DRIVER, _CUDA_NO_DEVICE = 35, 100


def open_cuda(place: str) -> Opening:
    """Open CuPy on an NVIDIA GPU."""
    number = _number("cuda", place)
    extra = "pip install 'nnxp[cuda13]', or 'nnxp[cuda12]' for an older NVIDIA driver"
    cupy = _import("cupy", "CuPy", extra)
    yield f"CuPy {cupy.__version__} imports"
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
    _require_gpu("cuda", number, count)
    yield f"the driver shows {count} GPU(s)"
    handle = cupy.cuda.Device(number)
    # A missing CUDA library shows only when a kernel is compiled or cuBLAS is called.
    trials: dict[str, Callable[[Array], Array]] = {
        "a kernel": lambda x: x + x,
        "a matrix product (cuBLAS)": lambda x: x @ x,
    }
    for step, trial in trials.items():
        try:
            handle.use()
            result = float(trial(cupy.ones((2, 2), dtype="float32"))[0, 0])
        except Exception as error:
            raise DeviceError(
                f"CuPy cannot compute {step} on cuda:{number} ({_one_line(error)}); if CUDA "
                "libraries are missing, pip install 'nnxp[cuda13]' or 'nnxp[cuda12]' brings them"
            ) from error
        _require_two(result, step)
        yield f"{step} runs on cuda:{number}"
    xp: Namespace = importlib.import_module("array_api_compat.cupy")
    name = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()

    def free_memory() -> int:
        with handle:
            # What CuPy keeps for later is free as well.
            pool = cupy.get_default_memory_pool()
            free: int = handle.mem_info[0] + pool.free_bytes()
            limit = pool.get_limit()
            return min(free, limit - pool.used_bytes()) if limit else free

    def release() -> None:
        with handle:
            cupy.get_default_memory_pool().free_all_blocks()

    return Device(
        spec=f"cuda:{number}",
        description=f"{name}, CuPy {cupy.__version__}",
        xp=xp,
        _array_type=cupy.ndarray,
        _handle=handle,
        _from_host=lambda x: xp.asarray(x, device=handle),
        _to_host=cupy.asnumpy,
        _working=lambda: handle,
        _free_memory=free_memory,
        _release=release,
        _is_memory_error=lambda error: (
            isinstance(error, MemoryError)
            or any(x in str(error) for x in ("MemoryAllocation", "ALLOC_FAILED"))
        ),
    )


def open_torch(place: str) -> Opening:
    """Open PyTorch, on its CPU by default."""
    kind, _, index = (place or "cpu").partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and kind != "cuda"):
        raise InputError(
            f'PyTorch\'s devices are "torch:cpu", "torch:cuda", "torch:cuda:N" and "torch:mps", '
            f'got "torch:{place}"'
        )
    number = _number("torch:cuda", index)
    torch = _import("torch", "PyTorch", "pip install torch")
    yield f"PyTorch {torch.__version__} imports"
    name = ""
    if kind == "cuda":
        built = "" if torch.version.cuda else " (this PyTorch is built without CUDA)"
        _require_gpu("torch:cuda", number, torch.cuda.device_count(), built)
        name = f"{torch.cuda.get_device_name(number)}, "
        yield f"PyTorch shows {torch.cuda.device_count()} GPU(s)"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("PyTorch shows no Apple GPU (MPS); it takes macOS on Apple silicon")
    spec = f"cuda:{number}" if kind == "cuda" else kind
    try:
        trial = torch.ones((2, 2), device=spec)
        result = float((trial @ trial)[0, 0])
    except Exception as error:
        raise DeviceError(f"PyTorch cannot compute on {spec} ({_one_line(error)})") from error
    _require_two(result, "a matrix product")
    yield f"a matrix product runs on torch:{spec}"
    xp: Namespace = importlib.import_module("array_api_compat.torch")

    def from_host(x: npt.NDArray[Any]) -> Array:
        if kind == "mps" and x.dtype == np.float64:
            raise InputError('torch:mps holds no float64; use dtype="float32"')
        tensor: Array = torch.tensor(np.array(x, order="C"), device=trial.device)
        return tensor

    def to_host(x: Any) -> npt.NDArray[Any]:
        host: npt.NDArray[Any] = x.detach().cpu().numpy()
        return host

    return Device(
        spec=f"torch:{spec}",
        description=f"{name}PyTorch {torch.__version__}",
        xp=xp,
        _array_type=torch.Tensor,
        _handle=trial.device,
        _from_host=from_host,
        _to_host=to_host,
        _free_memory=lambda: (
            torch.cuda.mem_get_info(number)[0] if kind == "cuda" else _free_on_host()
        ),
        _release=lambda: torch.cuda.empty_cache() if kind == "cuda" else None,
        _is_memory_error=lambda error: (
            isinstance(error, (torch.OutOfMemoryError, MemoryError))
            or any(x in str(error) for x in ("can't allocate memory", "out of memory"))
        ),
    )


def open_jax(place: str) -> Opening:
    """Open JAX, on its own default device."""
    kind, _, index = place.partition(":")
    if kind not in ("", "cpu", "cuda"):
        raise InputError(
            f'JAX\'s devices are "jax", "jax:cpu", "jax:cuda" and "jax:cuda:N", got "jax:{place}"'
        )
    number = _number(f"jax:{kind}", index)
    jax = _import("jax", "JAX", "pip install jax")
    jnp: Namespace = importlib.import_module("jax.numpy")
    yield f"JAX {jax.__version__} imports"
    try:
        devices = jax.devices(kind or None)
    except Exception as error:
        raise DeviceError(
            f"JAX shows no {kind or 'default'} device ({_one_line(error)}); on an NVIDIA GPU, "
            "pip install 'jax[cuda13]'"
        ) from error
    _require_gpu(f"jax:{kind}", number, len(devices))
    handle = devices[number]
    yield f"JAX shows {len(devices)} device(s) of kind {handle.platform}"
    try:
        trial = jax.device_put(np.ones((2, 2), dtype="float32"), handle)
        result = float((trial @ trial)[0, 0])
    except Exception as error:
        raise DeviceError(f"JAX cannot compute on {handle} ({_one_line(error)})") from error
    _require_two(result, "a matrix product")
    yield f"a matrix product runs on {handle}"

    def from_host(x: npt.NDArray[Any]) -> Array:
        if x.dtype.itemsize == 8 and not jax.config.jax_enable_x64:
            if x.dtype == np.float64:
                raise InputError(
                    "JAX holds float64 only if JAX_ENABLE_X64=1 is set in the environment before "
                    'Python starts; else use dtype="float32"'
                )
            narrow = x.astype("int32" if x.dtype.kind == "i" else "uint32")
            if (narrow != x).any():
                raise InputError(f"JAX holds {x.dtype} only if JAX_ENABLE_X64=1 is set")
            x = narrow
        array: Array = jax.device_put(np.array(x), handle)  # JAX might share the host's memory
        return array

    def working() -> AbstractContextManager[object]:
        # By itself JAX multiplies float32 in fewer bits on GPUs.
        if jax.config.jax_default_matmul_precision is not None:
            return nullcontext()
        precise: AbstractContextManager[object] = jax.default_matmul_precision("highest")
        return precise

    def free_memory() -> int | None:
        counted = handle.memory_stats()
        if counted is None:  # as on the CPU
            return _free_on_host()
        return int(counted["bytes_limit"] - counted["bytes_in_use"])

    spec = kind or handle.platform.replace("gpu", "cuda")
    return Device(
        spec=f"jax:{spec}:{number}" if spec == "cuda" or number else f"jax:{spec}",
        description=f"{handle.device_kind}, JAX {jax.__version__}",
        xp=jnp,
        _array_type=jax.Array,
        _handle=handle,
        _from_host=from_host,
        _to_host=np.asarray,
        _working=working,
        _free_memory=free_memory,
        _is_memory_error=lambda error: (
            isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        ),
    )


def open_strict(place: str) -> Opening:
    """Open array-api-strict, on one of its simulated devices."""
    strict = _import("array_api_strict", "array-api-strict", "pip install array-api-strict")
    yield f"array-api-strict {strict.__version__} imports"
    host = strict.Device("CPU_DEVICE")
    try:
        handle = strict.Device(place or "CPU_DEVICE")
    except ValueError:
        raise DeviceError(
            f'array-api-strict has no device "{place}"; use "strict", "strict:device1" or '
            '"strict:device2"'
        ) from None

    def to_host(x: Any) -> npt.NDArray[Any]:
        return np.array(x.to_device(host))

    return Device(
        spec=f"strict:{place}" if place else "strict",
        description=f"array-api-strict {strict.__version__}",
        xp=strict,
        _array_type=type(strict.empty(0)),
        _handle=handle,
        _from_host=lambda x: strict.asarray(x, device=handle, copy=True),  # as a GPU does
        _to_host=to_host,
        _free_memory=_free_on_host,
    )


LIBRARIES: dict[str, Callable[[str], Opening]] = {
    "cpu": open_cpu,
    "cuda": open_cuda,
    "torch": open_torch,
    "jax": open_jax,
    "strict": open_strict,
}
"""The openings by the first part of a device's name."""


def _import(module: str, name: str, install: str) -> ModuleType:
    # A broken installation raises more than ImportError (AttributeError, OSError), and one half
    # removed imports as an empty namespace.
    try:
        imported = importlib.import_module(module)
        _ = imported.__version__
        return imported
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise DeviceError(f"{name} is not installed; {install}") from None
        sys.modules.pop(module, None)  # array-api-compat would stumble over what is left of it
        raise DeviceError(
            f"{name} is installed but does not import ({_one_line(error)}); reinstall it alone: "
            f"pip uninstall every {module} package, then {install}"
        ) from error


def _free_on_host() -> int | None:
    """Return the bytes that are free on the host; None where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _number(library: str, index: str) -> int:
    if index and not index.isdecimal():
        raise InputError(
            f'a GPU has a number, got "{library}:{index}"; use "{library}" or "{library}:0"'
        )
    return int(index or 0)


def _require_gpu(library: str, number: int, count: int, why: str = "") -> None:
    if count == 0:
        raise DeviceError(
            f"the NVIDIA driver shows no GPU{why}; does nvidia-smi list one, and is "
            "CUDA_VISIBLE_DEVICES unset?"
        )
    if number >= count:
        raise DeviceError(
            f"{library}:{number} does not exist: this machine shows {count} device(s), "
            f"{library}:0 to {library}:{count - 1}"
        )


def _require_two(result: float, step: str) -> None:
    if result != 2:
        raise DeviceError(f"{step} came out as {result}, not 2: the installation is broken")


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
