"""Comparisons: train each setting with several seeds; show the results as a table and a picture.

With the same seed, all settings use the same training examples in the same order, and the same
initial weights if their networks have the same shapes. So only the setting differs.
"""

from __future__ import annotations

from cli import Parser, announce, optional_output, progress, whole_number

import argparse
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from runs import (
    add_data_options,
    add_device_option,
    add_out_option,
    load_dataset,
    new_run_folder,
    print_files,
    write_json,
)

import nnxp
from nnxp.data import Dataset
from nnxp.plots import curve_style, new_figure, save_figure
from nnxp.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 30  # the largest number of points of a curve after the first, which is before training

OVERFITTING = ["training accuracy", "test accuracy", "difference"]  # columns of `overfitting_row`
PARTS = {"train": "training", "test": "test"}

Key = TypeVar("Key", bound=Hashable)
Setting = TypeVar("Setting")
Rows = np.ndarray[Any, np.dtype[np.float64]]


class Result(NamedTuple):
    """The training runs of one setting, one for each seed.

    Attributes
    ----------
    epochs : list of int
        The numbers of epochs after which the figures were measured, from 0.
    figures : dict of str to (seeds, epochs) array
        ``train_loss``, ``train_accuracy``, ``test_loss``, ``test_accuracy``, and ``seconds``, the
        training time so far. All are measured with the weights after the epoch, without dropout.
    networks : list of Sequential
        The trained networks.
    diverged : int
        The number of runs that diverged. Their later figures are those of the weights before the
        step that diverged.
    """

    epochs: list[int]
    figures: dict[str, Rows]
    networks: list[nnxp.Sequential]
    diverged: int

    def last(self, figure: str) -> Rows:
        """Return a figure after the last epoch, one number for each seed."""
        return self.figures[figure][:, -1]

    @property
    def overfitting(self) -> Rows:
        """The training accuracy minus the test accuracy after the last epoch, for each seed."""
        return self.last("train_accuracy") - self.last("test_accuracy")


class Comparison:
    """The options of a script, its data set, and the folder for its results.

    Parameters
    ----------
    lesson : str
        The script's docstring, which ``--help`` prints.
    epochs : int
        The default of ``--epochs``.
    seeds : int, optional
        The default of ``--seeds``.
    """

    def __init__(self, lesson: str | None, *, epochs: int, seeds: int = 3) -> None:
        parser = Parser(description=lesson, formatter_class=argparse.RawDescriptionHelpFormatter)
        add_device_option(parser)
        add_data_options(parser)
        parser.add_argument("--epochs", type=whole_number, default=epochs,
                            help=f"epochs of each training (default: {epochs})")  # fmt: skip
        parser.add_argument("--seeds", type=whole_number, default=seeds,
                            help=f"number of seeds, counted from 0 (default: {seeds})")  # fmt: skip
        add_out_option(parser)
        args = parser.parse_args()
        self.epochs: int = args.epochs
        self.seeds: int = args.seeds
        self.device = nnxp.device(args.device)
        self.data = load_dataset(args.dataset, args.data_dir)
        config = vars(args) | self.data.config() | {"device": str(self.device)}
        self.folder = new_run_folder(args.out, config)

    def train(
        self,
        settings: Mapping[Key, Setting],
        new_trainer: Callable[[Setting, int], nnxp.Trainer],
        *,
        batch_size: int,
        images: int | None = None,
    ) -> dict[Key, Result]:
        """Train each setting with each seed, and write all figures to results.json.

        Parameters
        ----------
        settings : mapping
            The settings by name, or by a tuple of names.
        new_trainer : callable
            ``new_trainer(setting, seed)`` returns a trainer with a new network.
        batch_size : int
        images : int, optional
            The number of training images that each seed draws, stratified by class; by default all.
        """
        train, test = self.data.train, self.data.test
        drawn = len(train) if images is None else min(images, len(train))
        print(f"{self.data.name} on {self.device}: {drawn:,} training images, {len(test):,} test "
              f"images, {self.epochs} epochs, batches of {batch_size}")  # fmt: skip
        print(f"mean ± standard deviation over {count(self.seeds)}" if self.seeds > 1 else "1 seed")
        announce(f"{len(settings) * self.seeds} trainings")
        epochs = measured_epochs(self.epochs)
        runs: dict[Key, list[tuple[dict[str, list[float]], nnxp.Trainer, bool]]]
        runs = {name: [] for name in settings}
        work = [(seed, name) for seed in range(self.seeds) for name in settings]
        for number in progress(len(work), "training"):
            seed, name = work[number]
            trainer = new_trainer(settings[name], seed)
            part = train if drawn == len(train) else train.split(drawn, rng=seed)[1]
            figures, diverged = train_once(trainer, part, test, epochs, batch_size, seed)
            runs[name].append((figures, trainer, diverged))
        results = {
            name: Result(
                epochs,
                {key: np.array([figures[key] for figures, _, _ in done]) for key in done[0][0]},
                [trainer.network for _, trainer, _ in done],
                sum(diverged for _, _, diverged in done),
            )
            for name, done in runs.items()
        }
        write_json(self.folder / "results.json", {
            name if isinstance(name, str) else ", ".join(map(str, name)): {
                "epochs": epochs,
                **{key: finite(values.tolist()) for key, values in result.figures.items()},
                "parameters": parameter_count(result.networks[0]),
                "diverged": result.diverged,
            }
            for name, result in results.items()
        })  # fmt: skip
        return results

    def draw(
        self, draw: Callable[[Figure], None], *, title: str, width: float, height: float
    ) -> None:
        """Write picture.png, if matplotlib is installed.

        Parameters
        ----------
        draw : callable
            A function that draws into a figure.
        title : str
            The title, to which the data set and the number of seeds are appended.
        width, height : float
            The size in inches.
        """
        with optional_output("picture.png"):
            figure = new_figure(width, height)
            draw(figure)
            spread = ", mean ± standard deviation" if self.seeds > 1 else ""
            text = f"{title} ({self.data.name}, {count(self.seeds)}{spread})"
            text = text.encode(errors="replace").decode()  # file names may contain surrogates
            figure.suptitle(text, fontsize="medium", parse_math=False)
            save_figure(figure, self.folder / "picture.png")

    def finish(self, *lines: str) -> None:
        """Print the conclusions, and the names of the files."""
        for line in lines:
            print(line)
        print_files(self.folder)


def parameter_count(network: nnxp.Sequential) -> int:
    """Return the number of elements of all parameters."""
    return sum(math.prod(x.shape) for x in network.parameters().values())


def measured_epochs(epochs: int) -> list[int]:
    """Return the epochs after which figures are measured: 0, at most 30 others, and the last."""
    every = math.ceil(epochs / POINTS)
    return [*range(0, epochs, every), epochs]


def train_once(
    trainer: nnxp.Trainer,
    train: Dataset,
    test: Dataset,
    epochs: Sequence[int],
    batch_size: int,
    seed: int,
) -> tuple[dict[str, list[float]], bool]:
    """Train, and return the figures after each of the `epochs`, and whether it diverged."""
    figures: dict[str, list[float]] = {}
    # A separate generator: the orders do not depend on the number of weights that were drawn.
    rng = np.random.default_rng((seed, 1))
    seconds, diverged = 0.0, False
    for epoch in epochs:
        start = time.perf_counter()
        if epoch > 0 and not diverged:
            try:
                trainer.fit(train, epochs=epoch - trainer.epochs, batch_size=batch_size, rng=rng)
            except nnxp.DivergenceError:
                diverged = True
        seconds += time.perf_counter() - start
        for part, dataset in (("train", train), ("test", test)):
            evaluation = trainer.evaluate(dataset)
            figures.setdefault(f"{part}_loss", []).append(evaluation.loss)
            figures.setdefault(f"{part}_accuracy", []).append(evaluation.accuracy)
        figures.setdefault("seconds", []).append(seconds)
    return figures, diverged


def best_rates(results: Mapping[tuple[str, float], Result]) -> dict[str, float]:
    """Return for each name the learning rate with the lowest final training loss.

    A rate at which a run diverged is chosen only if there is no other.
    """
    best: dict[str, float] = {}
    for name, rate in results:
        losses = {
            other: (result.diverged, float(result.last("train_loss").mean()))
            for (of, other), result in results.items()
            if of == name
        }
        best[name] = min(losses, key=lambda rate: losses[rate])
    return best


def mean_and_deviation(values: Iterable[float], digits: int = 4) -> str:
    """Return the mean of the seeds' values, and the standard deviation if there are several."""
    numbers = [float(x) for x in values]
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return f"{mean} ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else mean


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Print a table; the first `left` columns are aligned to the left."""
    print(Table([columns, *rows], left=left), flush=True)


def overfitting_row(result: Result) -> list[str]:
    """Return the cells of the training accuracy, the test accuracy and their difference."""
    figures = result.last("train_accuracy"), result.last("test_accuracy"), result.overfitting
    return [mean_and_deviation(x) for x in figures]


def overfitting_changes(results: Mapping[str, Result]) -> list[str]:
    """Return for each result after the first a line with its difference from the first."""
    (first, base), *others = results.items()
    return [
        f"{name}: the difference changes from {base.overfitting.mean():.4f} ({first}) to "
        f"{result.overfitting.mean():.4f}, smaller "
        f"{seeds_in_which(result.overfitting < base.overfitting)}; the test accuracy from "
        f"{base.last('test_accuracy').mean():.4f} to {result.last('test_accuracy').mean():.4f}, "
        f"higher {seeds_in_which(result.last('test_accuracy') > base.last('test_accuracy'))}"
        for name, result in others
    ]


def draw_overfitting(figure: Figure, results: Mapping[str, Result]) -> None:
    """Draw a panel for each result: its training and test accuracy, and the area between them."""
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axes, (name, result) in zip(panels, results.items(), strict=True):
        for number, part in enumerate(("train", "test")):
            values = result.figures[f"{part}_accuracy"]
            draw_curve(axes, number, PARTS[part], result.epochs, values, marker="")
        means = [result.figures[f"{part}_accuracy"].mean(axis=0) for part in PARTS]
        axes.fill_between(result.epochs, *means, color="0.5", alpha=0.15, linewidth=0)
        axes.set_title(f"{name}: difference {result.overfitting.mean():.3f}", fontsize="medium")
        label(axes, "epoch", "accuracy" if axes is panels[0] else "")
        axes.set_ylim(0, 1.03)
    draw_legend(figure, panels[0])


def draw_best_rates(
    figure: Figure, results: Mapping[tuple[str, float], Result], best: Mapping[str, float]
) -> None:
    """Draw training losses: over the epochs at the best rates, and at the end over all rates."""
    left, right = figure.subplots(1, 2)
    chosen = {}
    for name, rate in best.items():
        result = results[name, rate]
        accuracy = mean_and_deviation(result.last("test_accuracy"))
        chosen[f"{name}, rate {rate:g}\ntest accuracy {accuracy}"] = result
    draw_curves(left, chosen, "train_loss")
    draw_rates(right, results, best)
    for axes in (left, right):
        axes.set_yscale("log")  # with ticks at 1, 2 and 5
        axes.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    draw_legend(figure, left)


def draw_rates(
    axes: Axes,
    results: Mapping[tuple[str, float], Result],
    best: Mapping[str, float],
) -> None:
    """Draw the final training loss over the rates, with a star at the best rate of each name."""
    for number, (name, star) in enumerate(best.items()):
        rates = [rate for of, rate in results if of == name]
        values = np.stack([results[name, rate].last("train_loss") for rate in rates], axis=1)
        draw_curve(axes, number, name, rates, values)
        y = results[name, star].last("train_loss").mean()
        colour = curve_style(number)["color"]
        axes.plot(star, y, marker="*", markersize=12, color=colour, markeredgecolor="0.2", zorder=3)
    label(axes, "learning rate", "training loss at the end")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")


def said(figure: str) -> str:
    """Return a figure's name in words."""
    part, _, quantity = figure.partition("_")
    return f"{PARTS[part]} {quantity}"


def seeds_in_which(chosen: Rows) -> str:
    """Return as text in how many seeds a comparison of figures is true."""
    return f"in {int(np.sum(chosen))} of {count(len(chosen))}"


def count(seeds: int) -> str:
    """Return a number of seeds as text."""
    return f"{seeds} seed" if seeds == 1 else f"{seeds} seeds"


def finite(values: Any) -> Any:
    """Return nested lists of numbers with None for nan and inf, which JSON lacks."""
    if isinstance(values, list):
        return [finite(x) for x in values]
    return values if math.isfinite(values) else None


def draw_curve(
    axes: Axes, number: int, name: str, x: Sequence[float] | Rows, values: Rows, **style: Any
) -> None:
    """Draw the mean over the seeds as a line, with a band of one standard deviation.

    Parameters
    ----------
    axes : Axes
    number : int
        The index of the curve, from 0, which determines its colour.
    name : str
        The name in the legend.
    x : sequence of float
    values : (seeds, points) array
    **style : optional
        Changes of the line's style.
    """
    look = curve_style(number) | style
    mean = values.mean(axis=0)
    axes.plot(x, mean, markersize=3, label=name, **look)
    if len(values) > 1:
        deviation = values.std(axis=0, ddof=1)
        axes.fill_between(
            x, mean - deviation, mean + deviation, color=look["color"], alpha=0.2, linewidth=0
        )


def draw_curves(axes: Axes, results: Mapping[str, Result], figure: str) -> None:
    """Draw a figure of all results over the epochs."""
    for number, (name, result) in enumerate(results.items()):
        draw_curve(axes, number, name, result.epochs, result.figures[figure])
    label(axes, "epoch", said(figure))
    axes.locator_params(axis="x", integer=True)


def label(axes: Axes, x: str, y: str) -> None:
    """Set the labels of both axes, and draw a grid."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)


def draw_legend(figure: Figure, axes: Axes) -> None:
    """Draw the legend of the curves of `axes` on the right of the figure."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
