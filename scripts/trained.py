"""Trained networks: load a network for predict.py and draw.py, and convert digits to inputs."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from train_mnist import CHECKPOINT

import nnxp
from nnxp.data import center_drawing
from nnxp.data_format import IMAGE_SCALE, require_outputs

MODEL = "a run's folder, a checkpoint, a file of network.save, or an ONNX file (.onnx)"
_LEAST = 8  # pixels on a side; smaller squares, such as 4 or 9 columns, are not images
# Shapes to try if a network has no data format: MNIST's and those of the embedded digits.
_KNOWN_SHAPES = [(784,), (1, 28, 28), (64,), (1, 8, 8)]
# The larger side of a digit, by the side of the images; for other sides MNIST's ratio is used.
_BOXES = {8: 8}


class Classifier:
    """A trained network that predicts classes.

    Parameters
    ----------
    path : Path
        A file or folder, as described by `MODEL`.

    Attributes
    ----------
    network : nnxp.Sequential
    classes : list
        The label of each class.
    shape : tuple of int
        The shape of an example.
    side : int or None
        Height and width of the images that the network takes; None for rows that are not images.

    Raises
    ------
    NnxpError
        If the file has no network, or the network does not predict classes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.network = _load(path)
        known = self.network.data_format
        self.shape = self._known_shape() if known is None else known.shape
        outputs = self.network.output_shape(self.shape) or ()
        if known is not None and known.probabilities is None:
            raise nnxp.InputError(
                f"the network in {path} predicts numbers and not classes; train one with "
                "SoftmaxWithLoss"
            )
        is_single = known is not None and known.probabilities == "sigmoid"
        if len(outputs) != 1 or (outputs[0] > 1) == is_single:
            raise nnxp.InputError(
                f"the network in {path} gives several labels at once, or no row of scores; train "
                "one with SoftmaxWithLoss"
            )
        count = max(2, outputs[0])  # one logit distinguishes two classes
        labels = None if known is None else known.classes
        if labels is not None:
            require_outputs(labels, outputs)
        self.classes: list[Any] = list(range(count)) if labels is None else list(labels)
        self.side = _side(self.shape)

    def _known_shape(self) -> tuple[int, ...]:
        for shape in _KNOWN_SHAPES:
            with contextlib.suppress(nnxp.InputError):
                self.network.output_shape(shape)
                return shape
        raise nnxp.InputError(
            f"the network in {self.path} has no data format, and does not accept images of 28 x 28 "
            "or 8 x 8 pixels; train it with Trainer.fit"
        )

    def require_images(self) -> int:
        """Return `side`.

        Raises
        ------
        InputError
            If the network does not take images.
        """
        if self.side is None:
            what = " x ".join(map(str, self.shape))
            raise nnxp.InputError(
                f"the network in {self.path} takes {what} numbers, which do not form a square grey "
                "image; give rows of a CSV file to scripts/predict.py"
            )
        return self.side

    def field(self, ink: np.ndarray) -> np.ndarray:
        """Convert the ink of a digit to a (side, side) uint8 image like the training images.

        Raises
        ------
        InputError
            If the ink is blank, or the network does not take images.
        """
        side = self.require_images()
        return center_drawing(ink, side, box=_BOXES.get(side))

    def examples(self, fields: np.ndarray) -> np.ndarray:
        """Convert images (examples, side, side) to inputs of `network.predict`."""
        known = self.network.data_format
        x = fields.reshape(-1, *self.shape)
        if known is None or known.images:
            largest = IMAGE_SCALE if known is None else _largest(known)
            return np.rint(x * (largest / 255)).astype(np.uint8)
        return x * (_largest(known) / 255)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Return the (examples, classes) probabilities for inputs of `network.predict`."""
        network = self.network
        if network.data_format is None:
            found = nnxp.Softmax().forward(network.predict(x))
        else:
            found = network.predict_proba(x)
        found = np.asarray(found if network.device is None else network.device.to_host(found))
        return found if found.shape[1] > 1 else np.concatenate([1 - found, found], axis=1)


def _largest(known: nnxp.data_format.DataFormat) -> float:
    """Return the largest pixel of the training data before the division."""
    return (known.largest or 1.0) * (known.scale or 1.0)


def _load(path: Path) -> nnxp.Sequential:
    if path.suffix.lower() == ".onnx":
        return nnxp.import_onnx(path)
    return nnxp.load_network(path / CHECKPOINT if path.is_dir() else path)


def _side(shape: tuple[int, ...]) -> int | None:
    """Return the side of square grey images of this shape or of rows of pixels; otherwise None."""
    pixels = math.prod(shape)
    side = math.isqrt(pixels)
    is_square = shape in ((pixels,), (side, side), (1, side, side)) and side * side == pixels
    return side if is_square and side >= _LEAST else None
