"""Histories: learning curves of one or several training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from nnxp.checks import explained
from nnxp.errors import InputError
from nnxp.history import Record
from nnxp.plots.figures import add_legend, add_title, curve_style, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOG_RANGE = 20  # the axis of losses is logarithmic if losses differ by this factor


class _Curve(NamedTuple):
    """A figure by epoch: its mean and standard deviation over the repetitions of a run."""

    name: str
    epochs: npt.NDArray[Any]
    means: npt.NDArray[Any]
    deviations: npt.NDArray[Any] | None  # None if there is one repetition


@explained('nnxp.plots.plot_histories(trainer.history, "history.png")')
def plot_histories(
    histories: Sequence[Record] | Mapping[str, Sequence[Record] | Sequence[Sequence[Record]]],
    path: str | Path,
    *,
    title: str = "",
) -> None:
    """Draw learning curves, loss and accuracy side by side, as PNG.

    A star marks the best epoch of each validation curve, or of each training curve if there is no
    validation.

    Parameters
    ----------
    histories : sequence of Record, or mapping of str to sequence of Record
        A history, or several histories by name. The history of a name may be a list of histories
        with different seeds: its curve is then the mean, and a band shows the standard deviation.
        For a single history, training and validation curves are drawn; for several, only the
        validation curves, or the training curves if there is no validation. Without accuracies,
        only losses are drawn.
    path : str or Path
        The file to write.
    title : str, optional
        A title above the curves; none by default.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    InputError
        If there is no record, or `path` cannot be written.
    """
    if not isinstance(histories, Mapping):
        histories = {"": histories}
    runs = {name: _repetitions(records) for name, records in histories.items()}
    runs = {name: repetitions for name, repetitions in runs.items() if repetitions}
    if not runs:
        raise InputError("there is nothing to plot: no epoch was finished")
    known = {name for run in runs.values() for record in run[0] for name in record}
    quantities = (
        ["loss", "accuracy"] if known & {"train_accuracy", "validation_accuracy"} else ["loss"]
    )
    single = len(histories) == 1
    rows = 0 if single else min(len(runs), 24)
    figure = new_figure(4.6 * len(quantities) + (0 if single else 2.4), max(4.0, 0.2 * rows))
    all_axes = figure.subplots(1, len(quantities), squeeze=False)[0]
    for axes, quantity in zip(all_axes, quantities, strict=True):
        curves = [
            curve
            for name, repetitions in runs.items()
            for curve in _curves(name, repetitions, quantity, single)
        ]
        _draw(axes, curves, quantity, single)
    # Matplotlib's labels of lines without a label begin with "_child".
    lines = [x for x in all_axes[0].lines if not str(x.get_label()).startswith("_child")]
    if len(lines) > 1:
        if single:
            add_legend(figure, lines, loc="outside lower center", ncols=len(lines))
        else:
            add_legend(figure, lines, loc="outside right center", fontsize="small")
    add_title(figure, title)
    save_figure(figure, path)


def _repetitions(
    records: Sequence[Record] | Sequence[Sequence[Record]],
) -> list[Sequence[Record]]:
    """Return the nonempty histories of a run, given one history or a list with several seeds."""
    given: Any = records
    single = isinstance(given, Sequence) and any(isinstance(x, Record) for x in given[:1])
    repeated = [given] if single else given
    if not isinstance(repeated, Sequence) or not all(
        isinstance(history, Sequence) and all(isinstance(x, Record) for x in history)
        for history in repeated
    ):
        raise InputError(
            f"a history must be a list of records, such as trainer.history, got {given!r:.80}"
        )
    return [history for history in repeated if history]


def _curves(
    name: str, repetitions: list[Sequence[Record]], quantity: str, single: bool
) -> list[_Curve]:
    """Return the curves of a run that are drawn for a quantity."""
    measured = any("validation_loss" in record for record in repetitions[0])
    shown = ("train", "validation") if single and measured else ("validation",)
    curves = []
    for data in shown if measured else ("train",):
        key = f"{data}_{quantity}"
        tables = [
            {record.epoch: record[key] for record in history if key in record}
            for history in repetitions
        ]
        epochs = sorted(set(tables[0]).intersection(*tables))
        values = np.array([[table[epoch] for epoch in epochs] for table in tables])
        deviations = values.std(axis=0, ddof=1) if len(tables) > 1 else None
        label = data if single else name
        curves.append(_Curve(label, np.array(epochs), values.mean(axis=0), deviations))
    return [curve for curve in curves if len(curve.epochs)]


def _draw(axes: Axes, curves: list[_Curve], quantity: str, single: bool) -> None:
    """Draw the curves of a quantity, and mark their best epochs."""
    best = np.argmax if quantity == "accuracy" else np.argmin
    one_epoch = all(len(curve.epochs) == 1 for curve in curves)
    for number, (name, epochs, means, deviations) in enumerate(curves):
        style = curve_style(number)
        # Draw the points of a single epoch side by side.
        shift = 0.8 * (number + 0.5) / len(curves) - 0.4 if one_epoch else 0.0
        line = style if len(epochs) <= 30 else style | {"marker": ""}
        axes.plot(epochs + shift, means, markersize=6 if one_epoch else 3, label=name, **line)
        if deviations is not None and one_epoch:
            axes.errorbar(epochs + shift, means, deviations, color=style["color"], capsize=3)
        elif deviations is not None:
            axes.fill_between(
                epochs, means - deviations, means + deviations, color=style["color"], alpha=0.2,
                linewidth=0,
            )  # fmt: skip
        if single and number < len(curves) - 1:
            continue  # mark the best epoch only on the validation curve
        at = best(means)
        if single:
            axes.set_title(f"{name}: best {means[at]:.4g}, epoch {epochs[at]}", fontsize="medium")
        if not one_epoch:
            star: dict[str, Any] = {
                "marker": "*",
                "markersize": 11,
                "markeredgecolor": "0.2",
                "zorder": 3,
            }
            axes.plot(epochs[at], means[at], color=style["color"], **star)
            if number == len(curves) - 1:  # a grey star for the legend
                axes.plot([], [], color="0.8", linestyle="", label="best epoch", **star)
    values = np.concatenate([curve.means for curve in curves] or [np.ones(1)])
    low, high = values.min(), values.max()
    if quantity == "loss" and 0 < _LOG_RANGE * low <= high:
        axes.set_yscale("log")
        if high < 1000 * low:
            axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))  # type: ignore[call-arg]
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    elif quantity == "loss" and single and low >= 0:
        axes.set_ylim(0, 1.1 * high or None)
    elif quantity == "accuracy" and one_epoch:
        axes.set_ylim(0, 1.05)
    axes.set_xlabel("epoch")
    axes.set_ylabel(quantity)
    axes.grid(alpha=0.3)
    if one_epoch:
        axes.set_xlim(0, 2)
        axes.set_xticks([1])
    else:
        axes.locator_params(axis="x", integer=True)
