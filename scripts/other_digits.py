"""Test networks trained on MNIST on other digits: from fonts, and drawn by strokes.

Each digit is drawn off centre in a large image, dark on light or light on dark, and prepared in the
same way as an image file in scripts/predict.py. Printed digits differ from handwritten ones: for
example, 1 is slanted with a serif, 4 is closed and 9 is straight. Look at the accuracy: it shows
how well a network that was trained on MNIST generalizes.
"""

from __future__ import annotations

from cli import Parser, file_path, run, whole_number

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from trained import MODEL, Classifier

import nnxp
from nnxp.checks import optional_import
from nnxp.data import read_drawing

# Fonts with digits of every matplotlib that nnxp allows; cmti10 is newer than 3.10.
FONTS = {
    "DejaVu Sans": ["DejaVuSans", "DejaVuSans-Oblique", "DejaVuSans-Bold"],
    "DejaVu Serif": ["DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSerif-Bold"],
    "DejaVu Sans Mono": ["DejaVuSansMono", "DejaVuSansMono-Oblique", "DejaVuSansMono-Bold"],
    "Computer Modern": ["cmr10", "cmss10", "cmb10", "cmtt10"],
    "STIX": ["STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol"],
}
# The ways of writing each digit: strokes of points (x, y) in a box of 1 x 1, or arcs (x, y, radius
# in x, radius in y, first and last angle in degrees, clockwise from the right).
STROKES = {
    0: [[[(0.5, 0.5, 0.32, 0.5, -80, 280)]]],
    1: [[[(0.5, 0), (0.5, 1)]], [[(0.3, 0.22), (0.52, 0), (0.52, 1)]]],
    2: [[[(0.5, 0.27, 0.32, 0.27, 190, 395), (0.15, 1), (0.85, 1)]]],
    3: [[[(0.48, 0.25, 0.3, 0.25, 200, 440), (0.48, 0.74, 0.34, 0.26, 280, 520)]]],
    4: [[[(0.3, 0), (0.18, 0.6), (0.85, 0.6)], [(0.68, 0.25), (0.68, 1)]],
        [[(0.65, 1), (0.65, 0), (0.12, 0.68), (0.9, 0.68)]]],
    5: [[[(0.8, 0), (0.3, 0), (0.26, 0.42), (0.47, 0.69, 0.34, 0.31, 240, 510)]]],
    6: [[[(0.68, 0), (0.35, 0.3), (0.46, 0.7, 0.3, 0.3, 190, 560)]]],
    7: [[[(0.15, 0), (0.85, 0), (0.4, 1)]],
        [[(0.15, 0), (0.85, 0), (0.4, 1)], [(0.35, 0.5), (0.8, 0.5)]]],
    8: [[[(0.5, 0.24, 0.26, 0.24, 90, 450), (0.5, 0.75, 0.32, 0.25, 270, 630)]]],
    9: [[[(0.48, 0.28, 0.28, 0.28, 0, 360), (0.7, 1)]],
        [[(0.48, 0.28, 0.28, 0.28, 0, 360), (0.76, 0.7), (0.48, 0.74, 0.28, 0.26, 0, 140)]]],
}  # fmt: skip
FIELD = 300  # the side of an image in pixels
SHOWN = 4  # kinds of mistakes that are printed


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("models", type=file_path, nargs="+", metavar="MODEL", help=MODEL)
    parser.add_argument("--fonts", type=file_path, nargs="+", metavar="FILE", default=[],
                        help="font files (.ttf, .otf) to try as well")  # fmt: skip
    parser.add_argument("--repeats", type=whole_number, default=20,
                        help="drawings of each digit by strokes (default: 20)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="for the drawings (default: 0)")
    args = parser.parse_args()
    classifiers = [Classifier(model) for model in args.models]
    for classifier in classifiers:
        classifier.require_images()
        if classifier.classes != list(range(10)):
            raise nnxp.InputError(f"the network in {classifier.path} does not tell the ten digits")
    matplotlib = optional_import("matplotlib", "plot")
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rng = np.random.default_rng(args.seed)
    sources = {
        name: [digit for font in fonts for digit in font_digits(folder / f"{font}.ttf", rng)]
        for name, fonts in FONTS.items()
    }
    sources |= {font.name: list(font_digits(font, rng)) for font in args.fonts}
    sources["strokes"] = [drawn for _ in range(args.repeats) for drawn in stroke_digits(rng)]
    width = max(map(len, sources))
    names = [plain_name(model) for model in args.models]
    columns = "  ".join(f"{name:>7}  {'wrong':{4 * SHOWN}}" for name in names)
    print(f"{'source':{width}}  digits  {columns.rstrip()}")
    for name, drawings in sources.items():
        print_shares(f"{name:{width}}", drawings, classifiers)


def plain_name(model: Path) -> str:
    """Return the name of a run's folder or a file, without its ending."""
    return (model if model.is_dir() else model.with_suffix("")).name


def print_shares(name: str, drawings: list[np.ndarray], classifiers: list[Classifier]) -> None:
    """Print the accuracy of each network; the drawings are in the order of the digits."""
    labels = np.arange(len(drawings)) % 10
    inks = [through_a_file(image) for image in drawings]
    texts = []
    for classifier in classifiers:
        fields = np.stack([classifier.field(ink) for ink in inks])
        guesses = classifier.probabilities(classifier.examples(fields)).argmax(axis=1)
        wrong = sorted({f"{a}→{b}" for a, b in zip(labels, guesses, strict=True) if a != b})
        share = f"{100 * np.mean(guesses == labels):.1f} %"
        texts.append(f"{share:>7}  {' '.join(wrong[:SHOWN]):{4 * SHOWN}}")
    print(f"{name}  {len(drawings):6}  " + "  ".join(texts).rstrip())


def through_a_file(image: np.ndarray) -> np.ndarray:
    """Write an image as PNG, and return the ink that is read from it."""
    pillow = optional_import("PIL.Image", "images")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digit.png"
        pillow.fromarray(image).save(path)
        return read_drawing(path)


def font_digits(font: Path, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the digits of a font as (FIELD, FIELD) uint8 images, off centre.

    Raises
    ------
    DataError
        If the file is not a font.
    """
    pillow, draws = (optional_import(f"PIL.{x}", "images") for x in ("Image", "ImageDraw"))
    fonts = optional_import("PIL.ImageFont", "images")
    try:
        loaded = fonts.truetype(str(font), 140)
    except OSError as error:
        raise nnxp.DataError(f"{font} cannot be read as a font ({error})") from None
    for digit in range(10):
        image = pillow.new("L", (FIELD, FIELD), 255)
        x, y = rng.uniform(0.3, 0.7, 2) * FIELD
        draws.Draw(image).text((x, y), str(digit), font=loaded, fill=20, anchor="mm")
        yield np.asarray(image)


def stroke_digits(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the ten digits, drawn by strokes with random rotation, slant and tremor."""
    for ways in STROKES.values():
        strokes = [line_of(stroke) for stroke in ways[rng.integers(len(ways))]]
        angle, slant = math.radians(rng.normal(0, 4)), rng.normal(0.1, 0.12)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        shape = turn @ [[rng.uniform(0.6, 1), -slant], [0, 1]] * rng.uniform(90, 190)
        place = FIELD / 2 + rng.uniform(-40, 40, 2)
        lines = []
        for line in strokes:
            # Tremor is slow along a line: noise that is smoothed over a sixth of its length.
            noise = rng.normal(0, 1, line.shape)
            kernel = np.hanning(max(5, len(line) // 6))
            smooth = [np.convolve(column, kernel, mode="same") for column in noise.T]
            trembling = 0.02 * np.stack(smooth, axis=1) / np.linalg.norm(kernel)
            lines.append((line + trembling - 0.5) @ shape.T + place)
        image = drawn(lines, rng.uniform(4, 11))
        yield 255 - image if rng.random() < 0.5 else image


def line_of(stroke: list[tuple[float, ...]]) -> np.ndarray:
    """Return closely spaced points of a stroke in `STROKES`."""
    corners: list[np.ndarray] = []
    for part in stroke:
        if len(part) == 2:
            corners.append(np.array([part]))
        else:
            x, y, across, down, first, last = part
            angles = np.radians(np.linspace(first, last, 40))
            points = [x + across * np.cos(angles), y + down * np.sin(angles)]
            corners.append(np.stack(points, axis=1))
    points = np.concatenate(corners)
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    steps = np.linspace(0, lengths[-1], 120)
    return np.stack([np.interp(steps, lengths, column) for column in points.T], axis=1)


def drawn(lines: list[np.ndarray], radius: float) -> np.ndarray:
    """Return a (FIELD, FIELD) uint8 image of lines, drawn with a round pen; `radius` in pixels."""
    ink = np.zeros((FIELD, FIELD))
    for x, y in np.concatenate(lines):
        rows, columns = (slice(max(0, int(c - radius - 1)), int(c + radius + 3)) for c in (y, x))
        part = ink[rows, columns]
        down, across = np.ogrid[rows, columns]
        reach = (slice(part.shape[0]), slice(part.shape[1]))
        distance = np.hypot(down - y, across - x)[reach]
        np.maximum(part, np.clip(radius + 0.5 - distance, 0, 1), out=part)
    return np.rint(255 * ink).astype(np.uint8)


if __name__ == "__main__":
    run(main)
