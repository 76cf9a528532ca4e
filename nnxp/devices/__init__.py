"""Devices: where arrays live, opened by name."""

from __future__ import annotations

from dataclasses import replace

from nnxp.checks import unknown_name
from nnxp.devices.base import DTYPES, Device, require_dtype
from nnxp.devices.libraries import LIBRARIES, Opening
from nnxp.errors import DeviceError, InputError

__all__ = ["DTYPES", "Device", "open_device", "opening", "require_dtype"]


def open_device(spec: str | Device = "auto") -> Device:
    """Open a device by name.

    Parameters
    ----------
    spec : str or Device
        - ``"cpu"``: NumPy.
        - ``"cuda"``, ``"cuda:N"``: CuPy on GPU number N.
        - ``"torch"``, ``"torch:cpu"``, ``"torch:cuda"``, ``"torch:cuda:N"``, ``"torch:mps"``:
          PyTorch; its CPU by default.
        - ``"jax"``, ``"jax:cpu"``, ``"jax:cuda"``, ``"jax:cuda:N"``: JAX; its own default device
          without a name. float64 needs ``JAX_ENABLE_X64=1`` in the environment.
        - ``"strict"``, ``"strict:device1"``, ``"strict:device2"``: array-api-strict and its
          simulated devices, for tests.
        - ``"auto"``: CuPy's GPU if a usable one is there, else the CPU, with why in
          `Device.reason`.

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
    if spec != "auto":
        return _finish(opening(spec))
    try:
        return _finish(opening("cuda"))
    except DeviceError as error:
        return replace(_finish(opening("cpu")), reason=str(error))


def opening(spec: str) -> Opening:
    """Return the opening of a device step by step: a generator of what has worked so far.

    It raises a `DeviceError` at the step that fails, and returns the `Device`.
    """
    library, _, place = spec.partition(":")
    if library == "gpu":
        raise InputError(f'unknown device {spec!r}; GPUs are "cuda", "cuda:0", "cuda:1", …')
    if library not in LIBRARIES:
        raise unknown_name("device", spec, ["auto", *LIBRARIES])
    return LIBRARIES[library](place)


def _finish(steps: Opening) -> Device:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            opened: Device = end.value
            return opened
