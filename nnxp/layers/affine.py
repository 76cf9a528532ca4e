"""Affine: the fully connected layer, y = x W + b."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from nnxp.arrays import Array, DType, namespace_of, sum_rows
from nnxp.checks import Rng, require_count, require_rng
from nnxp.devices import Device, open_device, require_dtype
from nnxp.errors import InputError
from nnxp.initializers import Initializer, draw_weights, he_normal, zeros
from nnxp.layers.base import Layer


class Affine(Layer):
    """Fully connected layer: ``y = x @ W + b``.

    Parameters
    ----------
    inputs, outputs : int
        Numbers of features, at least 1. ``W`` has shape (inputs, outputs); ``b`` has shape
        (outputs,) and starts at zero.
    rng : numpy.random.Generator, SeedSequence or int
        Draws ``W`` on the host, so a seed gives the same weights on every device.
    initializer : str or callable, optional
        ``"he"`` (default), ``"xavier"``, ``"normal"`` or ``"zeros"``, or a function:
        ``initializer(rng, (inputs, outputs))`` returns ``W``. See `nnxp.initializers`.
    dtype : str or dtype, optional
        ``"float32"`` (default) or ``"float64"``.
    device : Device or str, optional
        The device of the parameters, as in `nnxp.device`; the CPU by default.

    Examples
    --------
    >>> import numpy as np
    >>> from nnxp import Affine
    >>> layer = Affine(2, 3, rng=np.random.default_rng(0))
    >>> layer.params["W"][...] = [[1, 3, 4], [2, 4, 6]]
    >>> layer.params["b"][...] = [1, 2, 3]
    >>> layer.forward(np.array([[1, 2]], dtype="float32"))
    array([[ 6., 13., 19.]], dtype=float32)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rng: Rng,
        initializer: Initializer | str = he_normal,
        dtype: DType = "float32",
        device: Device | str = "cpu",
    ) -> None:
        self.inputs = require_count("inputs", inputs)
        self.outputs = require_count("outputs", outputs)
        generator = require_rng(rng)
        opened = open_device(device)
        self.device, self.dtype = opened, require_dtype(dtype)
        weights = draw_weights(initializer, generator, (inputs, outputs))
        self.params["W"] = opened.asarray(weights, dtype=self.dtype)
        self.params["b"] = opened.asarray(np.zeros(outputs), dtype=self.dtype)

    @classmethod
    def from_arrays(
        cls,
        W: Any,  # noqa: N803 - the parameter's name
        b: Any,
        *,
        dtype: DType | None = None,
        device: Device | str = "cpu",
    ) -> Self:
        """Return a layer with copies of given weights and biases.

        Parameters
        ----------
        W : (inputs, outputs) array_like
        b : (outputs,) array_like
        dtype : str or dtype, optional
            By default ``"float32"`` if `W` has that dtype, otherwise ``"float64"``.
        device : Device or str, optional
            As in `Affine`.

        Returns
        -------
        Affine

        Raises
        ------
        InputError
            If the shapes do not fit together, or the numbers are not real.

        Examples
        --------
        >>> from nnxp import Affine
        >>> Affine.from_arrays([[1.0, 3.0], [2.0, 4.0]], [1.0, 2.0]).params["W"]
        array([[1., 3.],
               [2., 4.]])
        """
        try:
            weights, biases = np.asarray(W), np.asarray(b)
        except ValueError as error:
            raise InputError(f"from_arrays expects arrays of numbers: {error}") from None
        if weights.ndim != 2 or biases.shape != weights.shape[1:]:
            raise InputError(
                "from_arrays expects W of shape (inputs, outputs) and b of shape (outputs,), got "
                f"{weights.shape} and {biases.shape}"
            )
        if weights.dtype.kind not in "biuf" or biases.dtype.kind not in "biuf":
            raise InputError(
                f"from_arrays expects real numbers, got {weights.dtype} and {biases.dtype}"
            )
        name = dtype or ("float32" if weights.dtype == np.float32 else "float64")
        layer = cls(*weights.shape, rng=0, initializer=zeros, dtype=name, device=device)
        for key, x in (("W", weights), ("b", biases)):
            layer.params[key] = open_device(device).asarray(np.array(x), dtype=name)
        return layer

    @classmethod
    def array_size(cls, config: Mapping[str, Any]) -> int:
        """Return the number of weights and biases."""
        return (int(config["inputs"]) + 1) * int(config["outputs"])

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return ``x @ W + b``.

        Parameters
        ----------
        x : (batch, inputs) array
            On the layer's device and in its dtype.
        training : bool, optional
            Save `x` for `backward`.

        Returns
        -------
        (batch, outputs) array

        Raises
        ------
        InputError
            If the shape or dtype of `x` is wrong.
        DeviceError
            If `x` is on another device.
        """
        W, b = self.params["W"], self.params["b"]
        self._require_inputs(x)
        y = x @ W + b
        if training:
            self.save_for_backward(y, x)
        return y

    def backward(self, dy: Array) -> Array:
        """Return ``dy @ W.T``; store the gradients ``x.T @ dy`` of ``W``, ``sum(dy)`` of ``b``."""
        if self.trainable:
            self.backward_parameters(dy)
        else:
            self.saved(dy)
        return dy @ self.params["W"].T

    def backward_parameters(self, dy: Array) -> None:
        """Compute only the gradients of ``W`` and ``b``."""
        self._require_here(dy)
        x = self.saved(dy)
        xp = namespace_of(dy, self)
        self.grads["W"] = x.T @ dy
        self.grads["b"] = sum_rows(xp, dy)

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """Return ``(outputs,)``; a known input shape must be ``(inputs,)``."""
        if shape not in (None, (self.inputs,)):
            raise InputError(f"{self!r} expects {self.inputs} features, got {shape}")
        return (self.outputs,)

    def _require_inputs(self, x: Array) -> None:
        self._require_here(x)
        if x.ndim != 2 or x.shape[1] != self.inputs:
            remedy = "; flatten the examples first, with nnxp.Flatten()" if x.ndim > 2 else ""
            if tuple(x.shape) == (self.inputs,):
                remedy = "; give x[None] for one example"
            raise InputError(
                f"Affine expects inputs of shape (batch, {self.inputs}), got {tuple(x.shape)}"
                f"{remedy}"
            )
        self._require_dtype(x, self.params["W"])
