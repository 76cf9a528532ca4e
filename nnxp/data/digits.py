"""Digits: 1,797 handwritten digits of 8 x 8 pixels in the package, for use without a download.

They are the test set of UCI's Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998).
The file digits.txt in this folder states source and licence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnxp.checks import explained
from nnxp.data.csv import load_csv
from nnxp.data.dataset import Dataset


@explained("nnxp.data.load_digits()")
def load_digits(*, images: bool = False) -> tuple[Dataset, Dataset]:
    """Load the embedded digits; a fifth of each class is the test set.

    Parameters
    ----------
    images : bool, optional
        Return inputs as images for convolutions; by default as rows.

    Returns
    -------
    train, test : Dataset
        1,438 and 359 examples. Inputs are an (examples, 64) uint8 array, or (examples, 1, 8, 8)
        with `images`; labels are an (examples,) int32 array.

    Examples
    --------
    >>> import nnxp
    >>> nnxp.data.load_digits()[1]
    Dataset(inputs=(359, 64) uint8, labels=(359,) int32)
    """
    digits = load_csv(Path(__file__).with_name("digits.csv.gz"), scale=16)
    # The pixels in the file are from 0 to 16; uint8 images have pixels from 0 to 255.
    inputs = np.rint(digits.inputs * (255 / 16)).astype(np.uint8)
    if images:
        inputs = inputs.reshape(-1, 1, 8, 8)
    labels = digits.labels.astype(np.int32)
    test = np.zeros(len(inputs), dtype=bool)
    test[np.argsort(labels, kind="stable")[4::5]] = True
    return Dataset(inputs[~test], labels[~test]), Dataset(inputs[test], labels[test])
