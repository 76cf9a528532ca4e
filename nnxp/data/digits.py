"""Digits: 1,797 real handwritten digits of 8 x 8, inside the package, for machines without network.

The test part of the UCI Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998);
digits.txt beside this file has source and licence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnxp.data.csv import load_csv
from nnxp.data.dataset import Dataset


def load_digits() -> tuple[Dataset, Dataset]:
    """Load the embedded digits as training and test examples, a fifth of each class for the test.

    Returns
    -------
    train, test : Dataset
        1,438 and 359 examples; inputs (examples, 64) uint8 and labels (examples,).

    Examples
    --------
    >>> import nnxp
    >>> nnxp.data.load_digits()[1]
    Dataset(inputs=(359, 64) uint8, labels=(359,) int32)
    """
    digits = load_csv(Path(__file__).with_name("digits.csv.gz"))
    # The file counts ink from 0 to 16; the images of nnxp go from 0 to 255.
    images = np.rint(digits.inputs * (255 / 16)).astype(np.uint8)
    return Dataset(images, digits.labels).split(5)
