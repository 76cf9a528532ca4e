"""Devices: array libraries and their devices, opened by name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nnxp.arrays import describe
from nnxp.checks import unknown_name
from nnxp.devices.base import DTYPES, Device, require_dtype
from nnxp.devices.libraries import LIBRARIES, Opening, one_line, spec_of
from nnxp.errors import DeviceError, InputError

__all__ = [
    "DTYPES",
    "Device",
    "device_holding",
    "one_line",
    "open_device",
    "opening",
    "require_dtype",
]


def open_device(spec: str | Device = "auto") -> Device:
    """Open a device by name.

    Parameters
    ----------
    spec : str or Device
        - ``"cpu"``: NumPy.
        - ``"cuda"``, ``"cuda:N"``: CuPy on GPU number N.
        - ``"torch"``, ``"torch:cpu"``, ``"torch:cuda"``, ``"torch:cuda:N"``, ``"torch:mps"``:
          PyTorch; its CPU by default.
        - ``"jax"``, ``"jax:cpu"``, ``"jax:cuda"``, ``"jax:cuda:N"``: JAX; ``"jax"`` is JAX's
          default device. float64 needs ``JAX_ENABLE_X64=1`` in the environment.
        - ``"strict"``, ``"strict:device1"``, ``"strict:device2"``: array-api-strict and its
          simulated devices, for tests.
        - ``"auto"`` (default): ``"cuda"`` if it can be used, otherwise ``"cpu"``, and
          `Device.reason` has the reason.

        A `Device` is returned unchanged.

    Returns
    -------
    Device

    Raises
    ------
    InputError
        If no device has this name.
    DeviceError
        If the device cannot be used; the message has the reason and the remedy.

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


def device_holding(x: object) -> Device:
    """Return the device of an array; the CPU for other objects, such as a list.

    Raises
    ------
    DeviceError
        If nnxp does not support the library or the device of `x`.
    """
    if isinstance(x, (np.ndarray, np.generic)) or not hasattr(x, "__dlpack__"):
        return open_device("cpu")
    spec = spec_of(x)
    if not spec:
        raise DeviceError(f"nnxp has no device for {describe(x)}; give an array of NumPy")
    return open_device(spec)


def opening(spec: str) -> Opening:
    """Return a generator that opens a device step by step.

    It yields a description of each successful step, raises a `DeviceError` at a step that fails,
    and returns the `Device`.
    """
    library, _, device = spec.partition(":")
    if library == "gpu":
        raise InputError(f'unknown device {spec!r}; GPUs are "cuda", "cuda:0", "cuda:1", …')
    if library not in LIBRARIES:
        raise unknown_name("device", spec, ["auto", *LIBRARIES])
    return LIBRARIES[library](device)


def _finish(steps: Opening) -> Device:
    """Run all steps of an opening and return its device."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            opened: Device = end.value
            return opened
