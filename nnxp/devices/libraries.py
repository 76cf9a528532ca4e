"""Libraries: open a device of each array library, with an error and a remedy for each failure.

CuPy, PyTorch, JAX and array-api-strict are imported here, when one of their devices is opened, and
in `nnxp.capture`. An opening is a generator: it yields a text for each successful step, raises at a
step that fails, and returns the device. So ``python -m nnxp doctor`` shows the same steps that
`open_device` runs.
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
from nnxp.extras import import_package, install_extra, pip

Opening: TypeAlias = Generator[str, None, Device]


def open_cpu(device: str) -> Opening:
    """Open NumPy."""
    if device:
        raise InputError(f'the CPU has no number, got "cpu:{device}"; use "cpu"')
    yield f"NumPy {np.__version__} imports"
    return Device(
        spec="cpu",
        description=f"NumPy {np.__version__}",
        xp=NUMPY,
        _array_type=(np.ndarray, np.generic),  # NumPy's reductions return scalars
        _handle="cpu",
        _from_host=lambda x: x,
        _to_host=lambda x: cast(npt.NDArray[Any], x),
        # Underflow is harmless, and overflow of a loss raises a `DivergenceError`.
        _context=lambda: np.errstate(all="ignore"),
        is_host=True,
    )


# CUDA runtime status codes: docs.nvidia.com/cuda/cuda-runtime-api, cudaError_t.
_CUDA_INSUFFICIENT_DRIVER, _CUDA_NO_DEVICE = 35, 100


def open_cuda(device: str) -> Opening:
    """Open CuPy on an NVIDIA GPU."""
    number = _number("cuda", device)
    cupy = _import(
        "cupy",
        "CuPy",
        lambda: (
            f"{install_extra('cuda13')}, or for an older NVIDIA driver {install_extra('cuda12')}"
        ),
    )
    yield f"CuPy {cupy.__version__} imports"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        status = getattr(error, "status", None)
        if status == _CUDA_INSUFFICIENT_DRIVER:
            raise DeviceError(
                "CuPy finds no NVIDIA driver, or one too old for its CUDA version; install or "
                f"update the driver, or use CUDA 12: {pip('uninstall', 'cupy-cuda13x')}, then "
                f"{install_extra('cuda12')}"
            ) from error
        if status != _CUDA_NO_DEVICE:
            raise DeviceError(
                f"CuPy cannot count the GPUs ({one_line(error)}); does nvidia-smi run?"
            ) from error
        count = 0
    _require_gpu("cuda", number, count)
    yield f"the driver shows {count} GPU(s)"
    handle = cupy.cuda.Device(number)
    # A missing CUDA library causes an error only when a kernel is compiled or cuBLAS is called.
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
                f"CuPy cannot compute {step} on cuda:{number} ({one_line(error)}); if CUDA "
                f"libraries are missing, install them: {install_extra('cuda13')}, or for CuPy for "
                f"CUDA 12 {install_extra('cuda12')}"
            ) from error
        _require_two(result, step)
        yield f"{step} runs on cuda:{number}"
    xp: Namespace = importlib.import_module("array_api_compat.cupy")
    name = cupy.cuda.runtime.getDeviceProperties(number)["name"].decode()

    def free_memory() -> int:
        with handle:
            # Unused memory in CuPy's pool is free, too.
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
        _context=lambda: handle,
        _free_memory=free_memory,
        _release=release,
        _is_memory_error=lambda error: (
            isinstance(error, MemoryError)
            or any(x in str(error) for x in ("MemoryAllocation", "ALLOC_FAILED"))
        ),
    )


def open_torch(device: str) -> Opening:
    """Open PyTorch, on its CPU by default."""
    kind, _, index = (device or "cpu").partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and kind != "cuda"):
        raise InputError(
            f'PyTorch\'s devices are "torch:cpu", "torch:cuda", "torch:cuda:N" and "torch:mps", '
            f'got "torch:{device}"'
        )
    number = _number("torch:cuda", index)
    torch = _import("torch", "PyTorch", lambda: pip("install", "torch"))
    yield f"PyTorch {torch.__version__} imports"
    name = ""
    if kind == "cuda":
        reason = "" if torch.version.cuda else " (this PyTorch is built without CUDA)"
        _require_gpu("torch:cuda", number, torch.cuda.device_count(), reason)
        name = f"{torch.cuda.get_device_name(number)}, "
        yield f"PyTorch shows {torch.cuda.device_count()} GPU(s)"
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("PyTorch shows no Apple GPU (MPS); it needs macOS on Apple silicon")
    spec = f"cuda:{number}" if kind == "cuda" else kind
    try:
        trial = torch.ones((2, 2), device=spec)
        result = float((trial @ trial)[0, 0])
    except Exception as error:
        raise DeviceError(f"PyTorch cannot compute on {spec} ({one_line(error)})") from error
    _require_two(result, "a matrix product")
    yield f"a matrix product runs on torch:{spec}"
    xp: Namespace = importlib.import_module("array_api_compat.torch")

    def from_host(x: npt.NDArray[Any]) -> Array:
        if kind == "mps" and x.dtype == np.float64:
            raise InputError('torch:mps has no float64; use dtype="float32"')
        tensor: Array = torch.tensor(np.array(x, order="C"), device=trial.device)
        return tensor

    def to_host(x: Any) -> npt.NDArray[Any]:
        host: npt.NDArray[Any] = x.detach().cpu().numpy()
        return host

    def detach(x: Any) -> Array:
        detached: Array = x.detach()
        return detached

    return Device(
        spec=f"torch:{spec}",
        description=f"{name}PyTorch {torch.__version__}",
        xp=xp,
        _array_type=torch.Tensor,
        _handle=trial.device,
        _from_host=from_host,
        _to_host=to_host,
        _context=torch.no_grad,
        _detach=detach,
        _free_memory=lambda: (
            torch.cuda.mem_get_info(number)[0] if kind == "cuda" else _free_on_host()
        ),
        _release=lambda: torch.cuda.empty_cache() if kind == "cuda" else None,
        _is_memory_error=lambda error: (
            isinstance(error, (torch.OutOfMemoryError, MemoryError))
            or any(x in str(error) for x in ("can't allocate memory", "out of memory"))
        ),
    )


def open_jax(device: str) -> Opening:
    """Open JAX, on its default device by default."""
    kind, _, index = device.partition(":")
    if kind not in ("", "cpu", "cuda"):
        raise InputError(
            f'JAX\'s devices are "jax", "jax:cpu", "jax:cuda" and "jax:cuda:N", got "jax:{device}"'
        )
    number = _number(f"jax:{kind}", index)
    jax = _import("jax", "JAX", lambda: pip("install", "jax"))
    jnp: Namespace = importlib.import_module("jax.numpy")
    yield f"JAX {jax.__version__} imports"
    try:
        devices = jax.devices(kind or None)
    except Exception as error:
        raise DeviceError(
            f"JAX shows no {kind or 'default'} device ({one_line(error)}); on an NVIDIA GPU, "
            f"{pip('install', 'jax[cuda13]')}"
        ) from error
    _require_gpu(f"jax:{kind}", number, len(devices))
    handle = devices[number]
    yield f"JAX shows {len(devices)} device(s) of kind {handle.platform}"
    try:
        trial = jax.device_put(np.ones((2, 2), dtype="float32"), handle)
        result = float((trial @ trial)[0, 0])
    except Exception as error:
        raise DeviceError(f"JAX cannot compute on {handle} ({one_line(error)})") from error
    _require_two(result, "a matrix product")
    yield f"a matrix product runs on {handle}"

    def from_host(x: npt.NDArray[Any]) -> Array:
        if x.dtype.itemsize == 8 and not jax.config.jax_enable_x64:
            if x.dtype == np.float64:
                raise InputError(
                    "JAX has float64 only if JAX_ENABLE_X64=1 is set in the environment before "
                    'Python starts; else use dtype="float32"'
                )
            narrow = x.astype("int32" if x.dtype.kind == "i" else "uint32")
            if (narrow != x).any():
                raise InputError(f"JAX has {x.dtype} only if JAX_ENABLE_X64=1 is set")
            x = narrow
        array: Array = jax.device_put(np.array(x), handle)  # a copy, since JAX might share memory
        return array

    def full_precision() -> AbstractContextManager[object]:
        # By default, JAX multiplies float32 matrices in lower precision on GPUs.
        if jax.config.jax_default_matmul_precision is not None:
            return nullcontext()
        context: AbstractContextManager[object] = jax.default_matmul_precision("highest")
        return context

    def free_memory() -> int | None:
        stats = handle.memory_stats()
        if stats is None:  # on the CPU
            return _free_on_host()
        return int(stats["bytes_limit"] - stats["bytes_in_use"])

    spec = kind or handle.platform.replace("gpu", "cuda")
    return Device(
        spec=f"jax:{spec}:{number}" if spec == "cuda" or number else f"jax:{spec}",
        description=f"{handle.device_kind}, JAX {jax.__version__}",
        xp=jnp,
        _array_type=jax.Array,
        _handle=handle,
        _from_host=from_host,
        _to_host=np.asarray,
        _context=full_precision,
        _free_memory=free_memory,
        _is_memory_error=lambda error: (
            isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
        ),
    )


def open_strict(device: str) -> Opening:
    """Open array-api-strict, on one of its simulated devices."""
    strict = _import("array_api_strict", "array-api-strict", lambda: install_extra("testing"))
    yield f"array-api-strict {strict.__version__} imports"
    host = strict.Device("CPU_DEVICE")
    try:
        handle = strict.Device(device or "CPU_DEVICE")
    except ValueError:
        raise DeviceError(
            f'array-api-strict has no device "{device}"; use "strict", "strict:device1" or '
            '"strict:device2"'
        ) from None

    def to_host(x: Any) -> npt.NDArray[Any]:
        return np.array(x.to_device(host))

    return Device(
        spec=f"strict:{device}" if device else "strict",
        description=f"array-api-strict {strict.__version__}",
        xp=strict,
        _array_type=type(strict.empty(0)),
        _handle=handle,
        _from_host=lambda x: strict.asarray(x, device=handle, copy=True),  # a copy, like on a GPU
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
"""The function that opens a device of each library, by the first part of the device's name."""


def spec_of(x: Any) -> str:
    """Return the name of an array's device; "" if its library is not in `LIBRARIES`."""
    library = type(x).__module__.partition(".")[0]
    if library == "cupy":
        return f"cuda:{x.device.id}"
    if library == "torch":
        return f"torch:{x.device}"
    if library in ("jax", "jaxlib"):
        device = next(iter(x.devices()))
        kind = device.platform.replace("gpu", "cuda")
        return f"jax:{kind}:{device.id}" if kind == "cuda" else f"jax:{kind}"
    if library == "array_api_strict":
        name = str(x.device).removeprefix("array_api_strict.Device('").removesuffix("')")
        return "strict" if name == "CPU_DEVICE" else f"strict:{name}"
    return ""


def _import(module: str, name: str, remedy: Callable[[], str]) -> ModuleType:
    # A broken installation may raise any error, such as AttributeError or OSError. A partly removed
    # package is imported as an empty namespace.
    try:
        imported = import_package(module)
        _ = imported.__version__
        return imported
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise DeviceError(f"{name} is not installed; {remedy()}") from None
        if isinstance(error, OSError) and "CUPY_CACHE_DIR" in str(error):
            raise DeviceError(f"{name} has {error}") from None
        sys.modules.pop(module, None)  # array-api-compat would fail on the broken module
        raise DeviceError(
            f"{name} is installed but does not import ({one_line(error)}); reinstall it: "
            f"uninstall every {module} package, then {remedy()}"
        ) from error


def _free_on_host() -> int | None:
    """Return the number of free bytes of the host's memory; None if it is unknown."""
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


def _require_gpu(library: str, number: int, count: int, reason: str = "") -> None:
    if count == 0:
        raise DeviceError(
            f"the NVIDIA driver shows no GPU{reason}; does nvidia-smi list one, and is "
            "CUDA_VISIBLE_DEVICES unset?"
        )
    if number >= count:
        raise DeviceError(
            f"{library}:{number} does not exist: this machine shows {count} device(s), "
            f"{library}:0 to {library}:{count - 1}"
        )


def _require_two(result: float, step: str) -> None:
    if result != 2:
        raise DeviceError(f"{step} returned {result}, not 2: the installation is broken")


def one_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message, shortened and printable."""
    lines = str(error).strip().splitlines()
    text = "".join(x if x.isprintable() else " " for x in lines[0][:200]) if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
