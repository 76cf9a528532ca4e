"""Arrays: the part of the Array API standard that nnxp uses, and checks of arrays."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, TypeGuard, TypeVar, cast

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, is_numpy_array

from nnxp.errors import DeviceError, InputError

DType: TypeAlias = Any
"""A dtype; the standard does not define its Python type."""

_bool: TypeAlias = bool  # `Namespace` defines `bool` as a dtype


class Array(Protocol):  # noqa: PLW1641 - hashing is not in the standard
    """An array of any library that follows the Array API standard, version 2024.12.

    The protocol has the members that nnxp uses. Arrays of NumPy, CuPy, PyTorch, JAX and
    array-api-strict have them.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102 - the standard documents the members
    @property
    def ndim(self) -> int: ...  # noqa: D102
    @property
    def dtype(self) -> DType: ...  # noqa: D102
    @property
    def device(self) -> Any: ...  # noqa: D102
    @property
    def T(self) -> Array: ...  # noqa: D102, N802

    def __neg__(self) -> Array: ...
    def __add__(self, other: Array | float, /) -> Array: ...
    def __radd__(self, other: Array | float, /) -> Array: ...
    def __sub__(self, other: Array | float, /) -> Array: ...
    def __rsub__(self, other: Array | float, /) -> Array: ...
    def __mul__(self, other: Array | float, /) -> Array: ...
    def __rmul__(self, other: Array | float, /) -> Array: ...
    def __mod__(self, other: Array | float, /) -> Array: ...
    def __truediv__(self, other: Array | float, /) -> Array: ...
    def __rtruediv__(self, other: Array | float, /) -> Array: ...
    def __matmul__(self, other: Array, /) -> Array: ...
    def __and__(self, other: Array | int, /) -> Array: ...
    def __xor__(self, other: Array | int, /) -> Array: ...
    def __rshift__(self, other: Array | int, /) -> Array: ...
    # These return boolean arrays; typed Any, since NumPy's overloads match no narrower type.
    def __lt__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: Any, /) -> Any: ...
    def __ge__(self, other: Any, /) -> Any: ...
    def __eq__(self, other: object, /) -> Any: ...
    def __getitem__(self, key: Any, /) -> Array: ...
    def __setitem__(self, key: Any, value: Array | float, /) -> None: ...
    def __float__(self) -> float: ...
    def __bool__(self) -> bool: ...


class Namespace(Protocol):
    """The functions of the standard that nnxp calls."""

    bool: DType
    int32: DType
    float64: DType

    def abs(self, x: Array, /) -> Array: ...  # noqa: D102
    def all(self, x: Array, /, *, axis: int | None = None) -> Array: ...  # noqa: D102
    def arange(  # noqa: D102
        self, start: int, /, stop: int | None = None, *, dtype: DType = None, device: Any = None
    ) -> Array: ...
    def argmax(self, x: Array, /, *, axis: int) -> Array: ...  # noqa: D102
    def asarray(  # noqa: D102
        self, x: object, /, *, dtype: DType = None, device: Any = None, copy: _bool | None = None
    ) -> Array: ...
    def astype(self, x: Array, dtype: DType, /, *, copy: _bool = True) -> Array: ...  # noqa: D102
    def broadcast_to(self, x: Array, /, shape: tuple[int, ...]) -> Array: ...  # noqa: D102
    def clip(self, x: Array, /, min: float, max: float) -> Array: ...  # noqa: D102
    def cos(self, x: Array, /) -> Array: ...  # noqa: D102
    def exp(self, x: Array, /) -> Array: ...  # noqa: D102
    def flip(self, x: Array, /, *, axis: int) -> Array: ...  # noqa: D102
    def floor(self, x: Array, /) -> Array: ...  # noqa: D102
    def isdtype(self, dtype: DType, kind: str | tuple[str, ...]) -> _bool: ...  # noqa: D102
    def isfinite(self, x: Array, /) -> Array: ...  # noqa: D102
    def log(self, x: Array, /) -> Array: ...  # noqa: D102
    def log1p(self, x: Array, /) -> Array: ...  # noqa: D102
    def max(  # noqa: D102
        self, x: Array, /, *, axis: int | None = None, keepdims: _bool = False
    ) -> Array: ...
    def maximum(self, x1: Array, x2: Array | float, /) -> Array: ...  # noqa: D102
    def minimum(self, x1: Array, x2: Array | float, /) -> Array: ...  # noqa: D102
    def mean(self, x: Array, /, *, axis: int | None = None) -> Array: ...  # noqa: D102
    def full(  # noqa: D102
        self, shape: tuple[int, ...], fill_value: float, *, dtype: DType = None, device: Any = None
    ) -> Array: ...
    def permute_dims(self, x: Array, /, axes: tuple[int, ...]) -> Array: ...  # noqa: D102
    def reshape(self, x: Array, /, shape: tuple[int, ...]) -> Array: ...  # noqa: D102
    def sign(self, x: Array, /) -> Array: ...  # noqa: D102
    def sin(self, x: Array, /) -> Array: ...  # noqa: D102
    def sqrt(self, x: Array, /) -> Array: ...  # noqa: D102
    def concat(self, arrays: list[Array], /, *, axis: int = 0) -> Array: ...  # noqa: D102
    def stack(self, arrays: list[Array], /, *, axis: int = 0) -> Array: ...  # noqa: D102
    def sum(  # noqa: D102
        self, x: Array, /, *, axis: int | None = None, keepdims: _bool = False
    ) -> Array: ...
    def take(self, x: Array, indices: Array, /, *, axis: int) -> Array: ...  # noqa: D102
    def tanh(self, x: Array, /) -> Array: ...  # noqa: D102
    def where(self, condition: Array, x1: Array | float, x2: Array | float, /) -> Array: ...  # noqa: D102
    def zeros(  # noqa: D102
        self, shape: tuple[int, ...], *, dtype: DType = None, device: Any = None
    ) -> Array: ...
    def zeros_like(self, x: Array, /) -> Array: ...  # noqa: D102


# NumPy follows the standard; array-api-compat's wrapper takes longer to import than NumPy itself.
NUMPY = cast(Namespace, np)
"""NumPy as the namespace of its own arrays."""


def device_of(x: object) -> Any:
    """Return the device of an array; None for a number, or for a JAX array during tracing."""
    return getattr(x, "device", None)


def describe(x: object) -> str:
    """Return the library, shape, dtype and device of an array, for an error message."""
    if not hasattr(x, "__dlpack__"):
        return f"a {type(x).__name__}"
    library = type(x).__module__.partition(".")[0]
    shape, dtype = tuple(getattr(x, "shape", ())), getattr(x, "dtype", "")
    return f"an array of {library} on {device_of(x)}, {shape} {dtype}"


def on_different_devices(device: Any, other: Any) -> bool:
    """Return whether two devices are known and different."""
    return device is not None and other is not None and bool(device != other)


# Code that converts an array of any library, or a list, to a NumPy array. The first code that works
# is used. The order matters: numpy.asarray ignores the mask of a masked array, and fails for
# PyTorch tensors that need a gradient, are on a GPU or sparse, or have a dtype that NumPy lacks.
_TO_NUMPY: dict[str, Callable[[Any], Any]] = {
    "x.filled(0)": lambda x: x.filled(0),
    "numpy.asarray(x)": np.asarray,
    "x.toarray()": lambda x: x.toarray(),
    "x.get()": lambda x: x.get(),
    "x.detach().numpy()": lambda x: x.detach().numpy(),
    "x.detach().cpu().numpy()": lambda x: x.detach().cpu().numpy(),
    "x.detach().cpu().to_dense().numpy()": lambda x: x.detach().cpu().to_dense().numpy(),
    "x.detach().cpu().float().numpy()": lambda x: x.detach().cpu().float().numpy(),
    'numpy.asarray(x.astype("float32"))': lambda x: np.asarray(x.astype("float32")),
}


def code_for_numpy(x: object) -> str:
    """Return code that converts `x` to a NumPy array, for an error message; "" if there is none.

    The code is run first, and returned only if it works.
    """
    for code, function in _TO_NUMPY.items():
        with contextlib.suppress(Exception):
            array = function(x)
            if type(array) is np.ndarray and array.ndim and array.dtype.kind in "biufcUSMm":
                return code
    return ""


def to_numpy(x: Any, what: str) -> npt.NDArray[Any]:
    """Return an array of any library, on any device, or a list of numbers, as a NumPy array.

    Parameters
    ----------
    x : array_like
    what : str
        The name of `x` in the error, such as "counts".

    Returns
    -------
    numpy.ndarray
        An array of real numbers with at least one axis.

    Raises
    ------
    InputError
        If `x` is not an array of real numbers.
    """
    for function in (*_TO_NUMPY.values(), _from_other_device):
        with contextlib.suppress(Exception):
            array = function(x)
            if type(array) is np.ndarray and array.ndim and array.dtype.kind in "biuf":
                return array
    raise InputError(f"{what} must be an array of numbers, got {x!r:.80}")


def _from_other_device(x: Any) -> npt.NDArray[Any]:
    """Copy an array to its library's default device, and return it as a NumPy array."""
    info: Any = array_namespace(x).__array_namespace_info__()
    return np.asarray(x.to_device(info.default_device()))


def is_numpy(x: object) -> TypeGuard[Any]:
    """Return whether `x` is a NumPy array or scalar."""
    # Any: mypy takes seconds to compare the overloads of NumPy's stubs with `Array`.
    return is_numpy_array(x)


def is_numpy_subclass(x: object) -> bool:
    """Return whether `x` is a NumPy matrix or masked array, whose operators differ."""
    return isinstance(x, np.ndarray) and type(x) not in (np.ndarray, np.memmap)


def namespace_of(x: object, owner: object) -> Namespace:
    """Return the namespace of the array `x`.

    Parameters
    ----------
    x : array
    owner : object
        The name in the error, such as a layer.

    Raises
    ------
    InputError
        If `x` is not an array, or is a NumPy matrix or masked array.
    """
    if is_numpy_subclass(x):
        raise InputError(
            f"{owner} expects a plain array, got {type(x).__name__}; convert with "
            f"{code_for_numpy(x)}"
        )
    if isinstance(x, (np.ndarray, np.generic)):
        return NUMPY
    try:
        return cast(Namespace, array_namespace(x))
    except TypeError:
        code = code_for_numpy(x)
        remedy = f"; make one with {code}" if code else ""
        raise InputError(f"{owner} expects an array, got {type(x).__name__}{remedy}") from None


def conversion(x: object, dtype: str, name: str = "x") -> str:
    """Return the call that converts an array to a dtype, for an error message."""
    if hasattr(x, "astype"):
        return f'{name}.astype("{dtype}")'
    return f'network.device.asarray({name}, dtype="{dtype}")'


def floating_namespace(x: Array, owner: object) -> Namespace:
    """Return the namespace of `x`; raise an `InputError` unless `x` has a floating-point dtype."""
    kind: Any = type(x)  # not narrowed by mypy, which checks ndarray against `Array` slowly
    if kind is np.ndarray and x.dtype.kind == "f":  # faster than isdtype
        return NUMPY
    xp = namespace_of(x, owner)
    if not xp.isdtype(x.dtype, "real floating"):
        raise InputError(
            f"{owner} expects floating-point arrays, got {x.dtype}; convert with "
            f"{conversion(x, 'float32')}"
        )
    return xp


def scores_namespace(scores: Array, labels: Array, owner: object) -> Namespace:
    """Return the namespace of floating-point `scores`; `labels` must be on the same device."""
    xp = floating_namespace(scores, owner)
    if namespace_of(labels, owner) is not xp or on_different_devices(
        device_of(scores), device_of(labels)
    ):
        raise DeviceError(
            f"{owner} expects scores and labels on one device, got {describe(scores)}; and "
            f"{describe(labels)}; move the labels with device.asarray(labels)"
        )
    return xp


def require_weights(weights: Array, scores: Array, owner: object) -> None:
    """Raise unless `weights` has one number for each row of `scores`, in the dtype of `scores`.

    Only NumPy arrays are checked for negative and non-finite weights: reading the values of other
    arrays would wait for the device.
    """
    if namespace_of(weights, owner) is not namespace_of(scores, owner) or on_different_devices(
        device_of(scores), device_of(weights)
    ):
        raise DeviceError(
            f"{owner} expects scores and weights on one device, got {describe(scores)}; and "
            f"{describe(weights)}; move the weights with device.asarray(weights)"
        )
    if tuple(weights.shape) != tuple(scores.shape[:1]):
        raise InputError(
            f"{owner} expects a weight for each example, of shape {tuple(scores.shape[:1])}, got "
            f"{tuple(weights.shape)}"
        )
    if weights.dtype != scores.dtype:
        dtype = str(scores.dtype).rpartition(".")[2]
        raise InputError(
            f"{owner} expects weights of the scores' dtype {scores.dtype}, got {weights.dtype}; "
            f"convert with {conversion(weights, dtype, 'weights')}"
        )
    host: Any = weights
    if isinstance(host, np.ndarray):
        wrong = np.flatnonzero(~((host >= 0) & (host < np.inf)))
        if wrong.size:
            raise InputError(
                f"{owner} expects weights of at least 0, got {host[wrong[0]]} in row {wrong[0]}"
            )


_F = TypeVar("_F", bound=Callable[..., Array])


def one_op(function: _F) -> _F:
    """Decorate a function of arrays that a captured step may record as one op.

    The function consists of standard calls. A captured step records these calls, unless its library
    has a faster implementation of the whole function; see `nnxp.capture.ops.Ops.whole`.
    """

    @functools.wraps(function)
    def call(x: Array, *args: Any) -> Array:
        call_whole = getattr(x, "call_whole", None)
        result: Array = function(x, *args) if call_whole is None else call_whole(call, x, *args)
        return result

    return cast(_F, call)


_BLOCK = 1024  # rows


def sum_rows(xp: Namespace, x: Array) -> Array:
    """Return the sum of a matrix's rows, added in blocks to reduce the rounding error.

    The error of adding n rows one after the other is at most n units of rounding (Higham 2002,
    eq. 4.4). In blocks of m rows it is at most about m + n / m units.
    """
    rows, columns = x.shape
    blocks = rows // _BLOCK
    if blocks < 2:
        return xp.sum(x, axis=0)
    whole = xp.reshape(x[: blocks * _BLOCK, ...], (blocks, _BLOCK, columns))
    total = sum_rows(xp, xp.sum(whole, axis=1))
    if blocks * _BLOCK == rows:
        return total
    return total + xp.sum(x[blocks * _BLOCK :, ...], axis=0)
