"""Trained networks: what predict.py and draw.py load, and how a digit becomes its input."""

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
_LEAST = 8  # pixels on a side: fewer inputs, such as the 4 or 9 of a table, are no image
# Where a network does not say what it was trained on: MNIST, the embedded digits.
_KNOWN_SHAPES = [(784,), (1, 28, 28), (64,), (1, 8, 8)]
# What a digit's larger side has in the images that a network was trained on; else MNIST's share.
_BOXES = {8: 8}


class Classifier:
    """A trained network that tells classes apart.

    Parameters
    ----------
    path : Path
        As `MODEL` says.

    Attributes
    ----------
    network : nnxp.Sequential
    classes : list
        The label of each class.
    shape : tuple of int
        Of an example.
    side : int or None
        Height and width of the images that the network takes; None for rows that are no image.

    Raises
    ------
    NnxpError
        If there is no network in the file, or it tells no classes apart.
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
        count = max(2, outputs[0])  # one logit tells two classes apart
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
            f"the network in {self.path} does not say what it was trained on, and takes no images "
            "of 28 x 28 or 8 x 8 pixels; train it by Trainer.fit"
        )

    def require_images(self) -> int:
        """Return `side`.

        Raises
        ------
        InputError
            If the network takes no images.
        """
        if self.side is None:
            what = " x ".join(map(str, self.shape))
            raise nnxp.InputError(
                f"the network in {self.path} takes {what} numbers, which are no square grey image; "
                "give rows of a CSV file to scripts/predict.py"
            )
        return self.side

    def field(self, ink: np.ndarray) -> np.ndarray:
        """Return a digit, given as ink, as (side, side) uint8 pixels, like those of the training.

        Raises
        ------
        InputError
            If the ink is blank, or the network takes no images.
        """
        side = self.require_images()
        return center_drawing(ink, side, box=_BOXES.get(side))

    def examples(self, fields: np.ndarray) -> np.ndarray:
        """Return fields (examples, side, side) as inputs that `network.predict` takes."""
        known = self.network.data_format
        x = fields.reshape(-1, *self.shape)
        if known is None or known.images:
            largest = IMAGE_SCALE if known is None else _largest(known)
            return np.rint(x * (largest / 255)).astype(np.uint8)
        return x * (_largest(known) / 255)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Return the (examples, classes) probabilities for inputs that `network.predict` takes."""
        network = self.network
        if network.data_format is None:
            found = nnxp.Softmax().forward(network.predict(x))
        else:
            found = network.predict_proba(x)
        found = np.asarray(found if network.device is None else network.device.to_host(found))
        return found if found.shape[1] > 1 else np.concatenate([1 - found, found], axis=1)


def _largest(known: nnxp.data_format.DataFormat) -> float:
    """Return the largest pixel of the training data, before their division."""
    return (known.largest or 1.0) * (known.scale or 1.0)


def _load(path: Path) -> nnxp.Sequential:
    if path.suffix.lower() == ".onnx":
        return nnxp.import_onnx(path)
    return nnxp.load_network(path / CHECKPOINT if path.is_dir() else path)


def _side(shape: tuple[int, ...]) -> int | None:
    """Return the side of square grey images of this shape, also if it is that of a row."""
    pixels = math.prod(shape)
    side = math.isqrt(pixels)
    is_square = shape in ((pixels,), (side, side), (1, side, side)) and side * side == pixels
    return side if is_square and side >= _LEAST else None
