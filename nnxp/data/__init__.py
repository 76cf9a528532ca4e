"""Data: data sets of labelled examples on the host, from arrays, files or a download."""

from nnxp.data.batches import Batches
from nnxp.data.csv import load_csv, load_csv_inputs
from nnxp.data.dataset import Dataset, one_hot
from nnxp.data.digits import load_digits
from nnxp.data.drawings import center_drawing, read_drawing
from nnxp.data.idx import read_idx
from nnxp.data.mnist import find_mnist, load_mnist

__all__ = [
    "Batches",
    "Dataset",
    "center_drawing",
    "find_mnist",
    "load_csv",
    "load_csv_inputs",
    "load_digits",
    "load_mnist",
    "one_hot",
    "read_drawing",
    "read_idx",
]


def __dir__() -> list[str]:
    return __all__
