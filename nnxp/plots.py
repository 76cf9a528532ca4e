"""Plots: learning curves as PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnxp.checks import optional_import
from nnxp.errors import InputError
from nnxp.files import expand_home, write_atomically
from nnxp.history import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = [f"C{i}" for i in range(10)]  # matplotlib's ten; further curves are dashed


def _shown_sets(records: Sequence[Record], single: bool) -> tuple[str, ...]:
    """Return the data sets whose curves are drawn for a run."""
    if not records:
        return ()
    if "validation_loss" not in records[0]:
        return ("train",)
    return ("train", "validation") if single else ("validation",)


def plot_histories(
    histories: Mapping[str, Sequence[Record]], path: str | Path, *, title: str = ""
) -> None:
    """Draw learning curves, loss and accuracy side by side, as PNG.

    Parameters
    ----------
    histories : mapping of str to sequence of Record
        The records of each run under its name. A single run has training and validation curves; of
        several runs, only the validation curves are drawn, or the training curves if there are no
        others. Without accuracies, only the losses are drawn.
    path : str or Path
        The file to write.
    title : str, optional
        Printed above the curves; none by default.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    InputError
        If there is no record.
    """
    if not any(histories.values()):
        raise InputError("there is nothing to plot: no epoch was finished")
    known = {name for records in histories.values() for record in records for name in record}
    quantities = (
        ["loss", "accuracy"] if known & {"train_accuracy", "validation_accuracy"} else ["loss"]
    )
    figure = new_figure(5 * len(quantities), 4.2)
    all_axes = figure.subplots(1, len(quantities), squeeze=False)[0]
    single = len(histories) == 1
    curves = [
        (run, shown, records)
        for run, records in histories.items()
        for shown in _shown_sets(records, single)
    ]
    for axes, quantity in zip(all_axes, quantities, strict=True):
        for i, (run, shown, records) in enumerate(curves):
            axes.plot(
                [record.epoch for record in records if f"{shown}_{quantity}" in record],
                [x for record in records if (x := record.get(f"{shown}_{quantity}")) is not None],
                "-" if i < len(_COLOURS) else "--",
                color=_COLOURS[i % len(_COLOURS)],
                marker="o" if len(records) <= 30 else None,
                markersize=3,
                label=shown if single else run,
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = all_axes[-1].get_legend_handles_labels()
    if single:
        all_axes[0].set_ylim(bottom=0)
        all_axes[-1].legend(handles, labels, loc="best")
    else:
        all_axes[0].set_yscale("log")  # separates the good runs
        figure.legend(handles, labels, loc="outside right center", fontsize="small")
    if title:
        title = title.encode(errors="replace").decode()  # a file's name may have surrogates
        figure.suptitle(title, fontsize="medium", parse_math=False)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty matplotlib figure of `width` x `height` inches.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    # Not pyplot, which chooses a window system and changes global state.
    figure_module = optional_import("matplotlib.figure", "plot")
    figure: Figure = figure_module.Figure(figsize=(width, height), layout="constrained")
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure to a PNG file, atomically."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_atomically(expand_home(path), picture.getvalue())
