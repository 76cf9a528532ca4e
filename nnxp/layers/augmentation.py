"""Augmentation: layers that change images at random in training, and not in inference."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from nnxp.arrays import Array, DType, Namespace, device_of, floating_namespace, namespace_of, one_op
from nnxp.checks import POSITIVE, Range, Rng, require_count
from nnxp.devices import Device
from nnxp.errors import InputError
from nnxp.layers.images import require_image_shape, require_images
from nnxp.layers.noise import Noise
from nnxp.parts import Setting

_ANGLE: Range = (lambda x: 0 <= x <= 180, "a number from 0 to 180")
_STRENGTH: Range = (lambda x: 0 <= x <= 1e6, "a number from 0 to 1e6")  # float32 does not overflow
_NO_SMOOTHING = 0.1  # with this sigma, the next pixel has a weight of 2e-22
_WIDE = 2.0  # with this sigma, the sum of a Gaussian equals its integral up to 1e-34


class Augmentation(Noise, base=True):
    """Base class of layers that change each image in training.

    All channels of an image are changed in the same way. The parameters are those of `Noise`.
    """

    def forward(self, x: Array, training: bool = False) -> Array:
        """Return `x`; in training, with each image changed.

        Parameters
        ----------
        x : (batch, channels, height, width) array
        training : bool, optional
            Change the images; otherwise `x` itself is returned.

        Returns
        -------
        (batch, channels, height, width) array

        Raises
        ------
        InputError
            If `x` has another shape, or images are too small.
        DeviceError
            In training, if `x` is not on the device of the state.
        """
        xp = floating_namespace(x, self)
        require_images(x, self)
        self._require_size(*x.shape[2:])
        if not training:
            return x
        self._require_here(x)
        y, values = self._augment(xp, x)
        self.save_for_backward(y, values)
        return y

    def output_shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return `shape`, which must be that of an image: (channels, height, width)."""
        require_image_shape(shape, self)
        if shape is not None:
            self._require_size(*shape[1:])
        return shape

    def _require_size(self, height: int, width: int) -> None:
        """Raise an `InputError` if images of this size are too small."""

    @abstractmethod
    def _augment(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        """Return the changed images, and the values for `backward`."""


class RandomShift(Augmentation):
    """Shift each image at random in training, and fill with 0.

    All ``(2 * pixels + 1)**2`` shifts are equally likely. All channels of an image are shifted
    together. As with `Dropout`, the same `rng` gives the same shifts on every library.

    Parameters
    ----------
    pixels : int
        The largest shift in pixels, in each direction; at least 1.
    rng : numpy.random.Generator, SeedSequence or int
        Draws the seed.
    dtype : str or dtype, optional
        The network's dtype, ``"float32"`` or ``"float64"``.
    device : Device or str, optional
        The network's device, where the state is stored.

    Attributes
    ----------
    state : dict of str to int32 array
        ``seed`` and ``counter``, each of shape (1,).
    row_offset : int
        As in `Dropout`.
    """

    def __init__(
        self,
        pixels: int,
        *,
        rng: Rng,
        dtype: DType = "float32",
        device: Device | str = "cpu",
    ) -> None:
        super().__init__(rng=rng, dtype=dtype, device=device)
        self.pixels = require_count("pixels", pixels)

    def _augment(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        bits = self.draw_bits(xp, (x.shape[0], 2)) & 0x7FFFFFFF
        moves = bits % (2 * self.pixels + 1) - self.pixels
        return shift(x, moves, self.pixels), (moves, self.pixels)

    def backward(self, dy: Array) -> Array:
        """Return `dy` with each image shifted back."""
        moves, pixels = self.saved(dy)
        return shift(dy, -moves, pixels)

    def _require_size(self, height: int, width: int) -> None:
        if (least := min(height, width)) <= self.pixels:
            remedy = f"; use pixels={least - 1} at most" if least > 1 else ""
            raise InputError(
                f"{self!r} expects images that are larger than its shift, got {height} x {width} "
                f"pixels{remedy}"
            )


class RandomFlip(Augmentation):
    """Mirror each image, left to right, with probability 1/2 in training.

    As with `Dropout`, the same `rng` mirrors the same images on every library.

    Parameters
    ----------
    rng : numpy.random.Generator, SeedSequence or int
        Draws the seed.
    dtype : str or dtype, optional
        The network's dtype, ``"float32"`` or ``"float64"``.
    device : Device or str, optional
        The network's device, where the state is stored.

    Attributes
    ----------
    state : dict of str to int32 array
        ``seed`` and ``counter``, each of shape (1,).
    row_offset : int
        As in `Dropout`.
    """

    def _augment(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        flipped = self.draw_bits(xp, (x.shape[0], 1, 1, 1)) < 0
        return xp.where(flipped, xp.flip(x, axis=3), x), flipped

    def backward(self, dy: Array) -> Array:
        """Return `dy` with the same images mirrored."""
        flipped: Array = self.saved(dy)
        xp = floating_namespace(dy, self)
        return xp.where(flipped, xp.flip(dy, axis=3), dy)


class _Warp(Augmentation, base=True):
    """Base class of layers that move pixels, with bilinear interpolation."""

    @abstractmethod
    def _places(self, xp: Namespace, x: Array) -> tuple[Array, Array]:
        """Return the rows and columns at which to read pixels, (batch, height, width) each."""

    def _augment(self, xp: Namespace, x: Array) -> tuple[Array, Any]:
        rows, columns = self._places(xp, x)
        # All pixels outside the image are 0, so a position can be limited to one pixel outside.
        rows = xp.clip(rows, -1.0, x.shape[2])
        columns = xp.clip(columns, -1.0, x.shape[3])
        return _interpolated(xp, x, rows, columns), (rows, columns)

    def backward(self, dy: Array) -> Array:
        """Return for each pixel the sum of `dy` where the pixel was read, with the same weights.

        This needs memory for ``batch * height * width * (height + width)`` numbers. It is not
        computed in the first layer of a network.
        """
        rows, columns = self.saved(dy)
        return _collected(floating_namespace(dy, self), dy, rows, columns)


class RandomRotation(_Warp):
    """Rotate each image about its centre by a random angle in training.

    Angles are uniform from -`degrees` to `degrees`. Pixels are interpolated bilinearly, and are 0
    outside of the image. All channels of an image are rotated together. As with `Dropout`, the same
    `rng` gives the same angles on every library.

    Parameters
    ----------
    degrees : float
        The largest angle in degrees, from 0 to 180.
    rng : numpy.random.Generator, SeedSequence or int
        Draws the seed.
    dtype : str or dtype, optional
        The network's dtype, ``"float32"`` or ``"float64"``.
    device : Device or str, optional
        The network's device, where the state is stored.

    Attributes
    ----------
    state : dict of str to int32 array
        ``seed`` and ``counter``, each of shape (1,).
    row_offset : int
        As in `Dropout`.
    """

    degrees = Setting(_ANGLE)

    def __init__(
        self,
        degrees: float,
        *,
        rng: Rng,
        dtype: DType = "float32",
        device: Device | str = "cpu",
    ) -> None:
        super().__init__(rng=rng, dtype=dtype, device=device)
        self.degrees = degrees

    def _places(self, xp: Namespace, x: Array) -> tuple[Array, Array]:
        batch, _, height, width = x.shape
        bits = xp.astype(self.draw_bits(xp, (batch, 1, 1)) & 0xFFFFFF, x.dtype)
        angles = (bits * 2.0**-23 - 1.0) * math.radians(self.degrees)
        cos, sin = xp.cos(angles), xp.sin(angles)
        middle, centre = (height - 1) / 2, (width - 1) / 2
        down = xp.reshape(_counted(xp, x, height), (height, 1)) - middle
        right = _counted(xp, x, width) - centre
        return (cos * down + middle) - sin * right, (sin * down + centre) + cos * right


class ElasticDistortion(_Warp):
    """Distort each image elastically in training (Simard et al. 2003, sec. 2).

    Each pixel is displaced. The displacements are uniform from -1 to 1 in both directions, smoothed
    by a Gaussian of sum 1, and multiplied by `alpha`. Their standard deviation is about
    ``alpha / (sigma * sqrt(12 * pi))`` pixels, and smaller near the edges, since displacements
    outside of the image are 0. Pixels are interpolated bilinearly, and are 0 outside of the image.
    All channels of an image are distorted together. As with `Dropout`, the same `rng` gives the
    same displacements on every library, up to rounding.

    Parameters
    ----------
    alpha : float
        The strength, from 0 to 1e6; Simard et al. use 34 for digits of 29 x 29 pixels.
    sigma : float
        The standard deviation of the Gaussian in pixels, a positive number; Simard et al. use 4.
    rng : numpy.random.Generator, SeedSequence or int
        Draws the seed.
    dtype : str or dtype, optional
        The network's dtype, ``"float32"`` or ``"float64"``.
    device : Device or str, optional
        The network's device, where the state is stored.

    Attributes
    ----------
    state : dict of str to int32 array
        ``seed`` and ``counter``, each of shape (1,).
    row_offset : int
        As in `Dropout`.
    """

    alpha = Setting(_STRENGTH)
    sigma = Setting(POSITIVE)

    def __init__(
        self,
        alpha: float,
        sigma: float,
        *,
        rng: Rng,
        dtype: DType = "float32",
        device: Device | str = "cpu",
    ) -> None:
        super().__init__(rng=rng, dtype=dtype, device=device)
        self.alpha, self.sigma = alpha, sigma

    def _places(self, xp: Namespace, x: Array) -> tuple[Array, Array]:
        batch, _, height, width = x.shape
        bits = self.draw_bits(xp, (batch, height, width))
        halves = xp.concat([bits & 0xFFFF, (bits >> 16) & 0xFFFF])
        noise = xp.astype(halves, x.dtype) * (2 * self.alpha / 0xFFFF) - self.alpha
        # Smooth along rows, then along columns, each with one matrix product.
        noise = xp.reshape(noise, (2 * batch * height, width)) @ self._gaussian(xp, x, width)
        noise = xp.permute_dims(xp.reshape(noise, (2 * batch, height, width)), (1, 0, 2))
        noise = self._gaussian(xp, x, height) @ xp.reshape(noise, (height, 2 * batch * width))
        noise = xp.permute_dims(xp.reshape(noise, (height, 2 * batch, width)), (1, 0, 2))
        rows = xp.reshape(_counted(xp, x, height), (height, 1)) + noise[:batch, ...]
        return rows, _counted(xp, x, width) + noise[batch:, ...]

    def _gaussian(self, xp: Namespace, x: Array, size: int) -> Array:
        """Return the matrix that smooths rows or columns of this length."""
        sigma = max(self.sigma, _NO_SMOOTHING)
        if sigma > _WIDE:
            total = sigma * math.sqrt(2 * math.pi)
        else:
            total = sum(math.exp(-((k / sigma) ** 2) / 2) for k in range(-20, 21))
        places = _counted(xp, x, size)
        distances = (xp.reshape(places, (size, 1)) - places) * (1 / sigma)
        return xp.exp(distances * distances * -0.5) * (1 / total)


def _counted(xp: Namespace, x: Array, count: int) -> Array:
    """Return the numbers from 0 to ``count - 1`` in the dtype of `x`."""
    return xp.astype(xp.arange(count, device=device_of(x)), x.dtype)


def _flat(xp: Namespace, images: Array, before: int, after: int) -> tuple[Array, Array]:
    """Return all images in one vector, each padded with zeros, and the start index of each.

    Parameters
    ----------
    images : (batch, channels, pixels) array
    before, after : int
        The numbers of zeros before and after each image.

    Returns
    -------
    vector : (batch * channels * (before + pixels + after),) array
    starts : (batch, channels) integer array
        The index of each image's first pixel.
    """
    batch, channels, pixels = images.shape
    place = device_of(images)
    zeros = [
        xp.zeros((batch, channels, n), dtype=images.dtype, device=place) for n in (before, after)
    ]
    vector = xp.reshape(xp.concat([zeros[0], images, zeros[1]], axis=2), (-1,))
    starts = xp.arange(batch * channels, device=place) * (before + pixels + after) + before
    return vector, xp.reshape(starts, (batch, channels))


@one_op
def shift(x: Array, moves: Array, limit: int) -> Array:
    """Return images whose pixel (i, j) is the pixel (i, j) + move of `x`; 0 outside of `x`.

    Parameters
    ----------
    x : (batch, channels, height, width) array
    moves : (batch, 2) int32 array
        The shifts down and to the right in pixels, of magnitude at most `limit`.
    limit : int
    """
    xp = namespace_of(x, "shift")
    batch, channels, height, width = x.shape
    margin = limit * (width + 1)
    vector, starts = _flat(xp, xp.reshape(x, (batch, channels, height * width)), margin, margin)
    moves = xp.astype(moves, starts.dtype)
    down, right = moves[:, :1], moves[:, 1:]
    # A shift is an offset in the vector. Columns outside of a row are read from the previous or the
    # next row, and set to 0 below.
    pixels = xp.arange(height * width, device=device_of(x))
    index = xp.reshape(starts + (down * width + right), (batch, channels, 1)) + pixels
    y = xp.reshape(xp.take(vector, xp.reshape(index, (-1,)), axis=0), x.shape)
    columns = xp.arange(width, device=device_of(x)) + right
    inside = xp.astype((columns >= 0) & (columns < width), x.dtype)
    return y * xp.reshape(inside, (batch, 1, 1, width))


def _interpolated(xp: Namespace, x: Array, rows: Array, columns: Array) -> Array:
    """Return images whose pixels are read from `x` at given positions, by bilinear interpolation.

    Parameters
    ----------
    x : (batch, channels, height, width) array
    rows, columns : (batch, height, width) array
        The positions: rows from -1 to height and columns from -1 to width. Pixels at these limits
        are 0.
    """
    batch, channels, height, width = x.shape
    zeros = xp.zeros((batch, channels, height, 1), dtype=x.dtype, device=device_of(x))
    # A zero at the end of each row serves as the pixel left of the next row.
    row = width + 1
    wide = xp.reshape(xp.concat([x, zeros], axis=3), (batch, channels, height * row))
    vector, starts = _flat(xp, wide, row + 1, 2 * row + 1)
    top, left = xp.floor(rows), xp.floor(columns)
    down = xp.reshape(rows - top, (batch, 1, height, width))
    right = xp.reshape(columns - left, (batch, 1, height, width))
    # int32: NumPy converts floats to it several times faster than to int64.
    pixels = xp.astype(top, xp.int32) * row + xp.astype(left, xp.int32)
    pixels = xp.reshape(pixels, (batch, 1, height * width))
    index = xp.reshape(xp.reshape(starts, (batch, channels, 1)) + pixels, (-1,))

    def neighbours(offset: int) -> Array:
        return xp.reshape(xp.take(vector[offset:], index, axis=0), x.shape)

    upper, lower = neighbours(0), neighbours(row)
    upper = upper + right * (neighbours(1) - upper)
    lower = lower + right * (neighbours(row + 1) - lower)
    return upper + down * (lower - upper)


def _collected(xp: Namespace, dy: Array, rows: Array, columns: Array) -> Array:
    """Return the gradient of the images that `_interpolated` read, given that of its result.

    The bilinear weight of a row is max(0, 1 - distance), where distance is that between the row and
    the position; likewise for columns.
    """
    batch, channels, height, width = dy.shape
    pixels = height * width
    own_rows = xp.reshape(_counted(xp, dy, height), (height, 1))
    by_row = xp.maximum(1.0 - xp.abs(xp.reshape(rows, (batch, 1, 1, pixels)) - own_rows), 0.0)
    own_columns = _counted(xp, dy, width)
    by_column = xp.reshape(columns, (batch, 1, pixels, 1)) - own_columns
    by_column = xp.maximum(1.0 - xp.abs(by_column), 0.0)
    return by_row @ (xp.reshape(dy, (batch, channels, pixels, 1)) * by_column)
