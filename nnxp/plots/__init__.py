"""Plots: pictures of training and its results, as PNG files.

`histories` draws learning curves; `curves` draws schedules, layers over training, and ranges of
learning rates; `images` draws the confusion matrix, mistakes and weights; `figures` writes the
files.
"""

from nnxp.plots.curves import plot_layers, plot_learning_rate_range, plot_schedules
from nnxp.plots.figures import COLOURS, curve_style, new_figure, save_figure
from nnxp.plots.histories import plot_histories
from nnxp.plots.images import plot_confusion_matrix, plot_mistakes, plot_weights

__all__ = [
    "COLOURS",
    "curve_style",
    "new_figure",
    "plot_confusion_matrix",
    "plot_histories",
    "plot_layers",
    "plot_learning_rate_range",
    "plot_mistakes",
    "plot_schedules",
    "plot_weights",
    "save_figure",
]


def __dir__() -> list[str]:
    return __all__
