"""Curves: plots of schedules, of layers over training, and of a range of learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nnxp.checks import explained, object_remedy, optional_import, require_count
from nnxp.errors import InputError
from nnxp.plots.figures import (
    COLOURS,
    add_legend,
    add_title,
    curve_style,
    new_figure,
    plain_text,
    save_figure,
)
from nnxp.schedules import Schedule
from nnxp.training import LearningRateRange
from nnxp.training.watching import WatchLayers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 5000  # the largest number of points of a schedule's curve
_LOG_RANGE = 50  # the axis of rates is logarithmic if rates differ by this factor
_NAMED_LAYERS = 12  # the largest number of layers in a legend
_FEW_RECORDS = 30  # up to this number, records are marked by points


@explained('nnxp.plots.plot_schedules(nnxp.schedules.Cosine(0.1, 1000), 1000, "schedule.png")')
def plot_schedules(
    schedules: Schedule | Mapping[str, Schedule],
    steps: int,
    path: str | Path,
    *,
    title: str = "",
) -> None:
    """Draw the learning rates of schedules by step, as PNG.

    The axis of the rates is logarithmic if all rates are above 0 and differ by a factor of 50.

    Parameters
    ----------
    schedules : Schedule or mapping of str to Schedule
        A schedule, or several schedules by name.
    steps : int
        The number of steps to draw: epochs times batches.
    path : str or Path
        The file to write.
    title : str, optional
        A title above the curves; none by default.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    InputError
        If an object is not a schedule, a rate is not a number of at least 0, there is no schedule,
        or `path` cannot be written.
    """
    named = schedules if isinstance(schedules, Mapping) else {"": schedules}
    if not named:
        raise InputError("there is nothing to plot: no schedule was given")
    count = require_count("steps", steps)
    numbers = np.unique(np.linspace(0, count - 1, min(count, _POINTS)).astype("int64"))
    curves = {name: _rates(schedule, numbers) for name, schedule in named.items()}
    single = not isinstance(schedules, Mapping)
    figure = new_figure(6.4 if single else 8.0, max(3.6, 0.2 * min(len(named), 24)))
    axes = figure.subplots()
    for i, (name, rates) in enumerate(curves.items()):
        style = curve_style(i) | {"marker": "o" if count == 1 else ""}
        axes.plot(numbers, rates, label=name, **style)
    every = np.concatenate(list(curves.values()))
    if every.min() > 0 and every.max() >= _LOG_RANGE * every.min():
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.05 * every.max() or None)
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate")
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", integer=True)
    if not single:
        add_legend(figure, axes.lines, loc="outside right center", fontsize="small")
    add_title(figure, title)
    save_figure(figure, path)


def _rates(schedule: object, numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the rates of a schedule at these steps."""
    if not isinstance(schedule, Schedule):
        raise InputError(
            "plot_schedules expects schedules of nnxp.schedules or your own subclass of Schedule, "
            f"got {schedule!r:.80}{object_remedy(schedule)}"
        )
    rates = np.array([float(schedule(int(step))) for step in numbers])
    wrong = np.flatnonzero(~((rates >= 0) & np.isfinite(rates)))
    if wrong.size:
        raise InputError(
            f"the rate of {schedule!r} at step {numbers[wrong[0]]} must be a number of at least 0, "
            f"got {rates[wrong[0]]}"
        )
    return rates


@explained('nnxp.plots.plot_layers(watch, "layers.png") with watch = nnxp.callbacks.WatchLayers(…)')
def plot_layers(
    watched: WatchLayers | Mapping[str, WatchLayers], path: str | Path, *, title: str = ""
) -> None:
    """Draw the sizes of each layer's outputs and gradients over training, as PNG.

    The panels show, from top to bottom, the standard deviation of each layer's outputs, the root
    mean square of the loss's gradient with respect to them, and the share of outputs that pass on
    less than 1 % of their gradient. The first layer has the darkest curve. If gradients vanish, the
    dark curves are far below the bright ones.

    Parameters
    ----------
    watched : WatchLayers or mapping of str to WatchLayers
        A callback after training, or several by name, which are drawn side by side with the same
        axes.
    path : str or Path
        The file to write.
    title : str, optional
        A title above the curves; none by default.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    InputError
        If an object is not a `nnxp.callbacks.WatchLayers`, no callback has records, or `path`
        cannot be written.
    """
    runs = watched if isinstance(watched, Mapping) else {"": watched}
    for run in runs.values():
        if not isinstance(run, WatchLayers):
            raise InputError(
                "plot_layers expects nnxp.callbacks.WatchLayers, or several by name, got "
                f"{run!r:.80}{object_remedy(run)}"
            )
    if not any(len(run.steps) for run in runs.values()):
        raise InputError(
            "there is nothing to plot: no layer was recorded; give the callback to Trainer.fit"
        )
    runs = {name: run for name, run in runs.items() if len(run.steps)}
    rows = ["spreads", "gradients", "blocked"]
    if all(np.isnan(run.blocked).all() for run in runs.values()):
        rows.pop()
    figure = new_figure(max(5.6, 4.2 * len(runs)), 2.6 * len(rows) + 1.2)
    grid = figure.subplots(len(rows), len(runs), squeeze=False, sharex="col", sharey="row")
    for column, (name, run) in enumerate(runs.items()):
        for row, figures in enumerate(rows):
            _draw_layers(grid[row][column], run, figures)
        if name:
            grid[0][column].set_title(plain_text(name, 40), fontsize="medium", parse_math=False)
        grid[-1][column].set_xlabel("step")
        lines = grid[-1][column].lines
        named = np.linspace(0, len(lines) - 1, min(len(lines), _NAMED_LAYERS)).round().astype(int)
        add_legend(
            grid[-1][column], [lines[i] for i in named], loc="upper center",
            bbox_to_anchor=(0.5, -0.28), ncols=3, fontsize="small", frameon=False,
        )  # fmt: skip
    labels = {
        "spreads": "outputs:\nstandard deviation",
        "gradients": "gradients:\nroot mean square",
        "blocked": "outputs that pass on\n< 1 % of their gradient",
    }
    for row, figures in enumerate(rows):
        grid[row][0].set_ylabel(labels[figures])
        if figures == "blocked":
            grid[row][0].set_ylim(-0.03, 1.03)
        elif _positive([getattr(run, figures) for run in runs.values()]):
            grid[row][0].set_yscale("log")
    add_title(figure, title)
    save_figure(figure, path)


def _positive(arrays: list[npt.NDArray[np.float64]]) -> bool:
    """Return whether there is a positive finite number, which a logarithmic axis needs."""
    return any(bool(((x > 0) & np.isfinite(x)).any()) for x in arrays)


def _draw_layers(axes: Axes, run: WatchLayers, figures: str) -> None:
    """Draw one figure of all layers by step."""
    numbers = getattr(run, figures)
    count = len(run.layers)
    colours = optional_import("matplotlib", "plot").colormaps["viridis"]
    for i, layer in enumerate(run.layers):
        with np.errstate(invalid="ignore"):
            shown = np.where(numbers[:, i] > 0, numbers[:, i], np.nan)
        axes.plot(
            run.steps,
            numbers[:, i] if figures == "blocked" else shown,
            color=colours(0.92 * i / max(count - 1, 1)),
            linewidth=1.2,
            marker="o" if len(run.steps) <= _FEW_RECORDS else "",
            markersize=2.5,
            label=layer,
        )
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", integer=True)


@explained(
    'nnxp.plots.plot_learning_rate_range(found, "rates.png") with found = '
    "nnxp.learning_rate_range(trainer, dataset, batch_size=100, rng=0)"
)
def plot_learning_rate_range(
    found: LearningRateRange, path: str | Path, *, title: str = ""
) -> None:
    """Draw the losses of a learning-rate range test, raw and smoothed, as PNG.

    A star marks the lowest smoothed loss. A dashed line marks the suggested rate, a tenth of the
    rate at the star.

    Parameters
    ----------
    found : LearningRateRange
        The result of `nnxp.learning_rate_range`.
    path : str or Path
        The file to write.
    title : str, optional
        A title above the curves; none by default.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    InputError
        If `found` is not a `LearningRateRange`, or `path` cannot be written.
    """
    if not isinstance(found, LearningRateRange):
        raise InputError(
            "plot_learning_rate_range expects what nnxp.learning_rate_range(trainer, dataset, "
            f"batch_size=100, rng=0) returns, got {found!r:.80}"
        )
    rates, at = found.rates, found.lowest
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot(rates, found.losses, color="0.75", linewidth=1, label="each step")
    axes.plot(rates, found.smoothed, color=COLOURS[0], marker="o" if len(rates) == 1 else "",
              label="smoothed")  # fmt: skip
    suggestion = found.suggestion
    if suggestion is None:
        result = "no suggestion: the loss hardly fell"
    else:
        result = f"suggestion {suggestion:.2g}: a tenth of the rate with the lowest loss"
        axes.plot(
            rates[at], found.smoothed[at], "*", markersize=11, color=COLOURS[1],
            markeredgecolor="0.2", label=f"lowest, at {rates[at]:.2g}",
        )  # fmt: skip
        axes.axvline(suggestion, color=COLOURS[1], linestyle="--", label="suggestion")
    # Limit the axis: losses after the divergence would flatten the rest of the curve.
    low = float(min(found.losses.min(), found.smoothed.min()))
    high = float(found.smoothed[: at + 1].max())
    margin = 0.35 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low - 0.2 * margin, high + margin)
    axes.set_title(result, fontsize="medium")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    add_title(figure, title)
    save_figure(figure, path)
