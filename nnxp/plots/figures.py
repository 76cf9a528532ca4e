"""Figures: matplotlib figures without pyplot, their colours, titles and legends, and PNG files."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnxp.checks import optional_import
from nnxp.errors import InputError
from nnxp.files import expand_home, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# The colours of Okabe and Ito, which colour-blind readers can distinguish, without yellow, which is
# too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#707070")
_LINES = ("-", "--", "-.", ":")
_LETTER = 0.085  # inches; the width of a letter in a title
_MARKERS = "osDv^PX"


def curve_style(number: int) -> dict[str, Any]:
    """Return the colour, line and marker of curve `number`, from 0; the first 21 colours differ."""
    group, hue = divmod(number, len(COLOURS))
    rgb = np.array([int(COLOURS[hue][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    shade = [rgb, 0.55 * rgb, 0.4 + 0.6 * rgb][group % 3]
    return {
        "color": tuple(shade.tolist()),
        "linestyle": _LINES[group % len(_LINES)],
        "marker": _MARKERS[hue],
    }


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


def plain_text(text: object, limit: int = 1000) -> str:
    """Return text for a figure, on one line, shortened to `limit` characters."""
    # The name of a file may contain surrogates.
    line = " ".join(str(text).encode(errors="replace").decode().split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def add_title(figure: Figure, *lines: str) -> None:
    """Print the nonempty lines above a figure, wrapped to its width."""
    width = max(20, int(figure.get_figwidth() / _LETTER))
    shown = [part for line in lines for part in textwrap.wrap(plain_text(line), width)]
    if shown:
        figure.suptitle("\n".join(shown), fontsize="medium", parse_math=False)


def add_legend(place: Axes | Figure, lines: Iterable[Line2D], **options: Any) -> None:
    """Add a legend with the unchanged labels of all lines.

    By itself, matplotlib omits labels that begin with an underscore, and sets text between dollar
    signs as a formula.
    """
    handles = list(lines)
    legend = place.legend(handles, [str(i) for i in range(len(handles))], **options)
    for line, text in zip(handles, legend.get_texts(), strict=True):
        text.set_parse_math(False)
        text.set_text(plain_text(line.get_label(), 40))


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure to a PNG file, atomically.

    Raises
    ------
    InputError
        If `path` is not a path, or cannot be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    file = expand_home(path)
    try:
        write_atomically(file, picture.getvalue())
    except (OSError, ValueError) as error:  # ValueError for a NUL
        reason = getattr(error, "strerror", error)
        raise InputError(f"{file} cannot be written ({reason}); choose another path") from error
