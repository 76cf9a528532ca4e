"""Plots: learning curves as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnxp.errors import InputError, optional_import
from nnxp.files import write_whole
from nnxp.history import Record


def plot_histories(
    histories: Mapping[str, Sequence[Record]], path: str | Path, *, title: str = ""
) -> None:
    """Draw the learning curves of one or more runs, loss and accuracy side by side, as PNG.

    Parameters
    ----------
    histories : mapping of str to sequence of Record
        The records of each run under its name; each run has a colour, training is dashed and
        validation solid.
    path : str or Path
        The file to write.
    title : str, optional

    Raises
    ------
    MissingExtraError
        Without matplotlib.
    InputError
        If there is no record to draw.
    """
    if not any(histories.values()):
        raise InputError("there is nothing to plot: no epoch was finished")
    # Figure alone: pyplot would choose a window system and change global state.
    figure_module = optional_import("matplotlib.figure", "plot")
    figure = figure_module.Figure(figsize=(10, 4.2), layout="constrained")
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for i, (name, records) in enumerate(histories.items()):
        epochs = [record.epoch for record in records]
        prefix = f"{name}, " if len(histories) > 1 else ""
        for axes, quantity in [(loss_axes, "loss"), (accuracy_axes, "accuracy")]:
            for part, style in [("train", "--"), ("validation", "-")]:
                values = [getattr(record, f"{part}_{quantity}") for record in records]
                if None not in values:
                    label = prefix + {"train": "train", "validation": "test"}[part]
                    few = len(records) <= 30
                    axes.plot(
                        epochs, values, style, color=f"C{i % 10}", label=label,
                        marker="o" if few else None, markersize=3,
                    )  # fmt: skip
    for axes, quantity in [(loss_axes, "loss"), (accuracy_axes, "accuracy")]:
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    loss_axes.set_ylim(bottom=0)
    handles, labels = accuracy_axes.get_legend_handles_labels()
    if len(histories) > 1:
        figure.legend(handles, labels, loc="outside right center", fontsize="small")
    else:
        accuracy_axes.legend(handles, labels, loc="lower right")
    if title:
        figure.suptitle(title, fontsize="medium")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_whole(Path(path), picture.getvalue())
