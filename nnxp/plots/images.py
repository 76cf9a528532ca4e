"""Images: pictures of the confusion matrix, the most confident mistakes, and weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nnxp.arrays import to_numpy
from nnxp.checks import explained, require_count, require_list
from nnxp.errors import InputError
from nnxp.layers import Layer
from nnxp.network import Sequential
from nnxp.plots.figures import add_title, new_figure, plain_text, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUMBERED = 25  # up to this number of classes, cells have numbers
_NAMED = 50  # up to this number of classes, each class is named
_CELL = 0.46  # inches
_MAX_TILES = 100
_GAP = 0.12  # between tiles, in units of their height
_PICTURE, _CAPTION = 1.15, 0.52  # inches: the width of a mistake, and the height of its caption
_MAX_CHANNELS = 12  # channels of a unit or kernel that are drawn


@explained(
    'nnxp.plots.plot_confusion_matrix(counts, "confusion.png") with counts = '
    "nnxp.metrics.confusion_matrix(scores, labels)"
)
def plot_confusion_matrix(
    counts: Any, path: str | Path, *, classes: Sequence[Any] | None = None, title: str = ""
) -> None:
    """Draw a confusion matrix, as PNG.

    Each cell has the number of examples of a class (row) that are predicted as a class (column).
    Zeros are left out; with more than 25 classes, all numbers are left out. Mistakes are coloured
    by their share of the row's examples, with a separate scale: with that of the diagonal,
    differences between them would not be visible.

    Parameters
    ----------
    counts : (classes, classes) array
        An array of any library; rows are labels and columns are predictions, as in
        `nnxp.metrics.confusion_matrix`.
    path : str or Path
        The file to write.
    classes : sequence, optional
        The name of each class, such as ``dataset.classes``; by default 0, 1 and so on.
    title : str, optional
        A title above the accuracy; none by default.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    InputError
        If `counts` is not a square array of numbers of at least 0, or all are 0; if the number of
        `classes` is another one; or if `path` cannot be written.
    """
    host = to_numpy(counts, "counts").astype("float64")
    size = len(host)
    if host.shape != (size, size) or not size:
        raise InputError(
            f"counts must have the shape (classes, classes), got {host.shape}; make them with "
            "nnxp.metrics.confusion_matrix(scores, labels)"
        )
    wrong = host[~(np.isfinite(host) & (host >= 0))]
    if wrong.size:
        raise InputError(f"counts must be numbers of at least 0, got {wrong[0]:g}")
    total = host.sum()
    if not total:
        raise InputError("there is nothing to plot: all counts are 0")
    names = _class_names(classes, size)
    shares = host / np.maximum(host.sum(axis=1, keepdims=True), 1e-300)
    right = np.eye(size, dtype=bool)
    cell = min(_CELL, 11 / size) if size > _NUMBERED else max(_CELL, 2.4 / size)
    longest = max(map(len, names))
    figure = new_figure(cell * size + 2.2 + 0.08 * longest, cell * size + 1.3 + 0.06 * longest)
    axes = figure.subplots()
    # A pale diagonal makes the mistakes stand out.
    axes.imshow(np.where(right, shares, np.nan), cmap="Blues", vmin=0, vmax=2.5)
    mistakes = np.where(right | (host == 0), np.nan, shares)
    largest = float(np.nan_to_num(mistakes).max())
    if largest:
        drawn = axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=largest)
        bar = figure.colorbar(drawn, ax=axes, shrink=0.8, format=_percent)
        bar.set_label("mistakes: share of the class's examples")
    if size <= _NUMBERED:
        texts = np.array([[f"{x:g}" if x < 1e6 else f"{x:.2g}" for x in row] for row in host])
        widest = max(len(text) for text in texts.flat)
        points = min(10.0, 72 * cell / (0.68 * max(widest, 2)))
        for row, column in np.argwhere(host > 0):
            dark = not right[row, column] and mistakes[row, column] > 0.6 * largest
            axes.text(
                column, row, texts[row, column], ha="center", va="center", fontsize=points,
                color="white" if dark else "black",
            )  # fmt: skip
    ticks = np.arange(0, size, math.ceil(size / _NAMED))
    shown = [names[i] for i in ticks]
    small = min(10.0, 72 * cell * (ticks[1] if len(ticks) > 1 else 1))
    upright: dict[str, Any] = {} if longest * 0.075 <= cell else {"rotation": 90}
    axes.set_xticks(ticks, shown, fontsize=small, parse_math=False, **upright)
    axes.set_yticks(ticks, shown, fontsize=small, parse_math=False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    if size <= _NUMBERED:
        axes.grid(which="minor", color="0.85", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    correct = host[right].sum()
    add_title(
        figure, title, f"accuracy {correct / total:.4f}: {_count(correct)} of {_count(total)} right"
    )
    save_figure(figure, path)


def _count(number: float) -> str:
    """Return a number of examples, or a sum of weights, as text."""
    return f"{number:,.0f}" if number == round(number) else f"{number:,.2f}"


def _percent(share: float, _: object) -> str:
    return f"{100 * share:.3g} %"


def _class_names(classes: Iterable[Any] | None, size: int) -> list[str]:
    """Return the names of all classes, shortened to 20 characters."""
    given = range(size) if classes is None else require_list("classes", classes)
    if len(given) < size or (classes is not None and len(given) != size):
        raise InputError(f"classes must be {size} names, one for each class, got {len(given)}")
    return [plain_text(name, 20) for name in given]


@explained('nnxp.plots.plot_mistakes(images, labels, scores, "mistakes.png")')
def plot_mistakes(
    images: Any,
    labels: Any,
    scores: Any,
    path: str | Path,
    *,
    count: int = 25,
    classes: Sequence[Any] | None = None,
    title: str = "",
) -> None:
    """Draw the most confident mistakes of a network, as PNG.

    The wrong guess with the largest probability comes first. Each image has a caption with the
    label, the guess, and the probability of the guess, which is the softmax of the scores.

    Parameters
    ----------
    images : array
        An array of any library: grey images of shape (examples, 1, height, width) or (examples,
        height, width), colour images (examples, 3, height, width), or square grey images (examples,
        pixels). All are drawn in the same range of brightness: from 0 to 255 for uint8, otherwise
        from the smallest to the largest number of the drawn images.
    labels : (examples,), (examples, 1) or (examples, classes) array
        Class numbers, or one-hot rows.
    scores : (examples, classes) array
        The scores, such as ``network.predict(images)``. A single column is treated as logits of
        class 1.
    path : str or Path
        The file to write.
    count : int, optional
        The largest number of images, at most 100; 25 by default.
    classes : sequence, optional
        The name of each class, such as ``dataset.classes``; by default 0, 1 and so on.
    title : str, optional
        A title above the number of mistakes; none by default.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    InputError
        If no example is wrong, shapes are wrong, or `path` cannot be written.
    """
    logits = to_numpy(scores, "scores").astype("float64")
    if logits.ndim != 2 or not logits.size:
        raise InputError(f"scores must have the shape (examples, classes), got {logits.shape}")
    if not np.isfinite(logits).all():
        raise InputError("scores must be finite, got nan or infinity; the network has diverged")
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    examples, size = logits.shape
    true = _class_numbers(to_numpy(labels, "labels"), examples, size)
    names = _class_names(classes, size)
    wanted = require_count("count", count)
    if wanted > _MAX_TILES:
        raise InputError(f"count must be at most {_MAX_TILES}, got {count}")
    pictures = _pictures(to_numpy(images, "images"), examples)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    guesses = logits.argmax(axis=1)
    confidences = probabilities[np.arange(examples), guesses]
    wrong = np.flatnonzero(guesses != true)
    if not wrong.size:
        raise InputError(f"there is no mistake to plot: all {examples:,} guesses are right")
    rows = wrong[np.argsort(-confidences[wrong], kind="stable")][:wanted]
    captions = [
        f"label {plain_text(names[true[i]], 14)}\n"
        f"guess {plain_text(names[guesses[i]], 14)}\n{_probability(confidences[i])}"
        for i in rows
    ]
    shown = pictures[rows]
    is_bytes = shown.dtype == np.uint8
    shown = shown.astype("float64")
    low, high = (0.0, 255.0) if is_bytes else (float(shown.min()), float(shown.max()))
    shown = (shown - low) / (high - low or 1.0)
    columns = min(len(rows), max(5, math.ceil(math.sqrt(len(rows)))))
    height = _PICTURE * shown.shape[1] / shown.shape[2]  # inches
    down = math.ceil(len(rows) / columns)
    figure = new_figure(
        max(4.0, 0.3 + 1.12 * _PICTURE * columns), 0.8 + (1.12 * height + _CAPTION) * down
    )
    axes = figure.subplots()
    _draw_tiles(
        axes, list(shown), columns, captions, below=_CAPTION / height, cmap="gray", vmin=0, vmax=1
    )
    summary = f"{len(wrong):,} of {examples:,} are wrong; "
    if len(rows) == len(wrong):
        summary += "most confident first"
    else:
        summary += f"the {len(rows)} most confident" if len(rows) > 1 else "the most confident"
    add_title(figure, title, summary)
    save_figure(figure, path)


def _probability(share: float) -> str:
    return "> 0.999" if share > 0.9995 else f"{share:.3f}"


def _class_numbers(labels: npt.NDArray[Any], examples: int, size: int) -> npt.NDArray[np.int64]:
    """Return labels as class numbers of shape (examples,)."""
    if labels.shape == (examples, size) and size > 1:
        labels = labels.argmax(axis=1)
    numbers = labels.reshape(-1) if labels.shape in ((examples,), (examples, 1)) else None
    if numbers is None:
        raise InputError(
            f"labels must be class numbers of shape ({examples},) or one-hot rows of shape "
            f"({examples}, {size}), as there are scores of shape ({examples}, {size}), got "
            f"{labels.shape}"
        )
    wrong = numbers[~((numbers >= 0) & (numbers < size) & (numbers == np.floor(numbers)))]
    if wrong.size:
        raise InputError(f"labels must be class numbers from 0 to {size - 1}, got {wrong[0]}")
    return numbers.astype("int64")


def _pictures(images: npt.NDArray[Any], examples: int) -> npt.NDArray[Any]:
    """Return images as (examples, height, width) or (examples, height, width, 3)."""
    shape = images.shape
    side = math.isqrt(math.prod(shape[1:]))
    if images.ndim == 2 and side * side == shape[1] and side:
        images = images.reshape(-1, side, side)
    elif images.ndim == 4 and shape[1] in (1, 3):
        images = images[:, 0] if shape[1] == 1 else np.moveaxis(images, 1, -1)
    elif images.ndim != 3:
        last = images.ndim == 4 and shape[3] in (1, 3)
        remedy = "; give numpy.moveaxis(images, -1, 1)" if last else ""
        raise InputError(
            "images must have the shape (examples, 1 or 3, height, width), (examples, height, "
            f"width), or (examples, pixels) of square images, got {shape}{remedy}"
        )
    if len(images) != examples:
        raise InputError(
            f"there must be an image for each row of scores, got {len(images)} images and "
            f"{examples} rows"
        )
    if not np.isfinite(images).all():
        raise InputError("images must be finite, got nan or infinity")
    return images


@explained('nnxp.plots.plot_weights(network, "weights.png")')
def plot_weights(
    network: Sequential,
    path: str | Path,
    *,
    image: tuple[int, ...] | None = None,
    title: str = "",
) -> None:
    """Draw the weights of the first layer with weights as images, as PNG.

    For an `Affine`, an image has the weights of a unit; for a `Conv2D`, a kernel. Red is positive,
    blue is negative and white is 0, with the same scale for all. At most the first 100 are drawn.
    If there are several input channels, up to 12 of them are drawn side by side for each unit or
    kernel.

    Parameters
    ----------
    network : Sequential
    path : str or Path
        The file to write.
    image : tuple of int, optional
        The shape of the input images of an `Affine`, (height, width) or (channels, height, width).
        By default that of the training data if they were images, otherwise a square.
    title : str, optional
        A title above the name of the layer; none by default.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    InputError
        If no layer has such weights, `image` has another number of pixels, weights are not finite,
        or `path` cannot be written.
    """
    if not isinstance(network, Sequential):
        raise InputError(f"plot_weights expects a network, got {network!r:.80}")
    layer = next(
        (x for x in network.leaves() if "W" in x.params and x.params["W"].ndim in (2, 4)), None
    )
    if layer is None or layer.device is None:
        raise InputError(f"{network!r:.200} has no layer with weights, such as Affine or Conv2D")
    weights = np.asarray(layer.device.to_host(layer.params["W"])).astype("float64")
    if not np.isfinite(weights).all():
        raise InputError(f"the weights of {layer!r} must be finite; the training has diverged")
    kind = "kernels"
    if weights.ndim == 2:
        kind = "units"
        known = None if network.data_format is None else network.data_format.shape
        shape = _image_shape(image, known, weights.shape[0], layer)
        weights = weights.T.reshape(-1, *shape)
    elif image is not None:
        raise InputError(f"image is for an Affine, and the first layer is {layer!r}; leave it out")
    units, channels = weights.shape[:2]
    seen = min(channels, _MAX_CHANNELS)
    rows = min(units, _MAX_TILES // seen)
    tiles = [tile for unit in weights[:rows, :seen] for tile in unit]
    limit = float(np.abs(np.stack(tiles)).max()) or 1.0
    height, width = weights.shape[2:]
    # Make the picture about as wide as high, with all channels of a unit in one row.
    columns = seen * min(rows, max(1, round(math.sqrt(len(tiles) * height / width) / seen)))
    down = math.ceil(len(tiles) / columns)
    tile = min(0.95, 9 * height / width / columns, 9 / down)  # inches
    figure = new_figure(
        max(4.5, 1.6 + tile * (1 + _GAP) * columns * width / height), 1.0 + tile * down * (1 + _GAP)
    )
    axes = figure.subplots()
    drawn = _draw_tiles(axes, tiles, columns, group=seen, cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="weight")
    kind = kind if units > 1 else kind[:-1]
    said = f"{units} {kind}" if rows == units else f"the first {rows} of {units} {kind}"
    if channels > 1:
        said += f", {seen} of {channels} input channels of each"
    add_title(figure, title, f"{layer!r}: {said}")
    save_figure(figure, path)


def _image_shape(
    image: object, known: tuple[int, ...] | None, inputs: int, layer: Layer
) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images whose pixels are a layer's inputs."""
    side = math.isqrt(inputs)
    if image is None:
        if known is not None and len(known) == 3 and math.prod(known) == inputs:
            return known[0], known[1], known[2]
        if side * side != inputs:
            raise InputError(
                f"{layer!r} has {inputs} inputs, which do not form a square image; give its shape, "
                f"such as image=(1, {inputs})"
            )
        return 1, side, side
    if not isinstance(image, (tuple, list)) or len(image) not in (2, 3):
        raise InputError(
            f"image must be (height, width) or (channels, height, width), got {image!r}"
        )
    sizes = [require_count("each size of image", x) for x in image]
    if math.prod(sizes) != inputs:
        raise InputError(
            f"image must have the {inputs} inputs of {layer!r}, got {tuple(sizes)}, which has "
            f"{math.prod(sizes)}"
        )
    height, width = sizes[-2:]
    return inputs // (height * width), height, width


def _draw_tiles(
    axes: Axes,
    tiles: list[npt.NDArray[Any]],
    columns: int,
    captions: Sequence[str] = (),
    *,
    below: float = 0.0,
    group: int = 1,
    **options: Any,
) -> Any:
    """Draw images in a grid, row by row, and return the last one.

    Parameters
    ----------
    axes : Axes
    tiles : list of (height, width) or (height, width, 3) array
        The images, all of the same shape.
    columns : int
        The number of images in a row.
    captions : sequence of str, optional
        The captions below the images.
    below : float, optional
        The height of a caption, in units of the height of an image.
    group : int, optional
        The number of adjacent images that belong together; a wider gap separates the groups.
    **options
        Arguments of ``imshow``.
    """
    aspect = tiles[0].shape[1] / tiles[0].shape[0]
    wider = 2 * _GAP if group > 1 else 0.0
    places = []  # the upper left corner of each image
    for i in range(len(tiles)):
        row, column = divmod(i, columns)
        places.append(
            (column * (aspect + _GAP) + column // group * wider, -row * (1 + _GAP + below))
        )
    drawn: Any = None
    for tile, (left, top) in zip(tiles, places, strict=True):
        extent = (left, left + aspect, top - 1, top)
        drawn = axes.imshow(tile, extent=extent, interpolation="nearest", **options)
    for caption, (left, top) in zip(captions, places, strict=False):
        axes.text(
            left + aspect / 2, top - 1.03, caption, ha="center", va="top", fontsize=8,
            linespacing=1.1, parse_math=False,
        )  # fmt: skip
    axes.set_xlim(-_GAP, max(left for left, _ in places) + aspect + _GAP)
    axes.set_ylim(places[-1][1] - 1 - below - _GAP, _GAP)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return drawn
