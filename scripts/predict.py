"""Predict the class of each image file, and of each row of a CSV file, with a trained network.

Images are PNG and JPEG files of one digit, of any size and colour, on a light, dark or transparent
background. The digit is cropped, scaled and centred like the network's training data. The script
prints a line for each image or row: name, class and probability, separated by tabs.
"""

from __future__ import annotations

from cli import Parser, file_path, optional_output, print_failures, run

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from trained import MODEL, Classifier

import nnxp
from nnxp.data import load_csv_inputs, read_drawing
from nnxp.errors import printable
from nnxp.plots.figures import COLOURS, new_figure, plain_text, save_figure

SHOWN = 12  # predictions in a picture
COLUMNS = 4  # of predictions in a picture
BARS = 10  # classes of a prediction


class Prediction(NamedTuple):
    """The probabilities of an example, and its image; None for rows that are not images."""

    name: str
    image: np.ndarray | None
    probabilities: np.ndarray


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("model", type=file_path, metavar="MODEL", help=MODEL)
    parser.add_argument("files", type=file_path, nargs="+", metavar="FILE",
                        help="an image of a digit (PNG, JPEG), or a table without labels (.csv, "
                        ".csv.gz), each row an example")  # fmt: skip
    parser.add_argument("--picture", type=file_path, metavar="FILE",
                        help="PNG file to draw the images into, with bars of the probabilities "
                        f"(of the first {SHOWN})")  # fmt: skip
    args = parser.parse_args()
    classifier = Classifier(args.model)
    failures, shown, count = [], [], 0
    for file in args.files:
        try:
            for prediction in predict(classifier, file):
                best = int(prediction.probabilities.argmax())
                print(printable(prediction.name), printable(str(classifier.classes[best])),
                      f"{prediction.probabilities[best]:.4f}", sep="\t")  # fmt: skip
                shown += [prediction] if args.picture and count < SHOWN else []
                count += 1
        except nnxp.MissingExtraError:
            raise
        except nnxp.NnxpError as error:
            failures.append(f"{parser.prog}: error: {error}")
    if shown:
        with optional_output():
            draw(shown, classifier.classes, count, args.picture)
    return print_failures(failures)


def predict(classifier: Classifier, file: Path) -> Iterator[Prediction]:
    """Yield the prediction of an image file, or of each row of a CSV file."""
    if not file.name.lower().endswith((".csv", ".csv.gz")):
        classifier.require_images()
        field = classifier.field(read_drawing(file))[None]
        (probabilities,) = classifier.probabilities(classifier.examples(field))
        yield Prediction(str(file), field[0], probabilities)
        return
    table, shape = load_csv_inputs(file), classifier.shape
    if table.shape[1] != np.prod(shape):
        remedy = "; remove that of the labels" if table.shape[1] == np.prod(shape) + 1 else ""
        raise nnxp.InputError(
            f"{file} has {table.shape[1]} columns, and the network takes {np.prod(shape)} numbers"
            f"{remedy}"
        )
    rows = classifier.probabilities(table.reshape(-1, *shape))
    side = classifier.side
    for number, (row, probabilities) in enumerate(zip(table, rows, strict=True), start=1):
        image = None if side is None else row.reshape(side, side)
        yield Prediction(f"{file}:{number}", image, probabilities)


def draw(shown: list[Prediction], classes: list[Any], count: int, path: Path) -> None:
    """Draw each image, with bars of the largest probabilities."""
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = new_figure(3.2 * columns, 1.9 * rows)
    figure.set_layout_engine("none")  # the default layout takes seconds for this many axes
    inch = 1 / (1.9 * rows)
    grid = figure.add_gridspec(
        rows, 2 * columns, left=0.02, right=0.98, bottom=0.1 * inch, top=1 - 0.5 * inch,
        wspace=0.25, hspace=0.3,
    )  # fmt: skip
    if count > len(shown):
        figure.suptitle(f"the first {len(shown)} of {count:,}", y=1 - 0.1 * inch, fontsize="medium")
    places = grid.subplots(squeeze=False).reshape(-1, 2)
    for (left, right), prediction in zip(places, shown, strict=False):
        name, image, probabilities = prediction
        left.axis("off")
        left.set_anchor("N")
        if image is not None:
            left.imshow(image, cmap="gray_r")
        # The largest probabilities, in the order of the classes.
        largest = np.sort(np.argsort(-probabilities, kind="stable")[:BARS])
        best = probabilities.argmax()
        bars = right.barh(np.arange(len(largest)), probabilities[largest], color=COLOURS[-1])
        bars[int(np.flatnonzero(largest == best)[0])].set_color(COLOURS[0])
        labels = [plain_text(classes[i], 12) for i in largest]
        right.set_yticks(np.arange(len(largest)), labels, fontsize=6, parse_math=False)
        right.set(xlim=(0, 1), xticks=[])
        right.invert_yaxis()
        right.spines[["top", "right", "bottom"]].set_visible(False)
        title = f"{plain_text(classes[best], 12)} ({probabilities[best]:.1%})"
        right.set_title(title, fontsize=8, parse_math=False)
        left.set_title(plain_text(Path(name).name, 22), fontsize=8, parse_math=False)
    for pair in places[len(shown) :]:
        for axes in pair:
            axes.axis("off")
    save_figure(figure, path)


if __name__ == "__main__":
    run(main)
