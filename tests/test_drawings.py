"""Drawings: ink of image files, and digits centred as in MNIST."""

from __future__ import annotations

import gzip
import io
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from remedies import installs
from script_runner import ENVIRONMENT

import nnxp
from nnxp.data import center_drawing, read_drawing


@pytest.fixture
def seven():
    """The ink of a seven, off centre on a field of 300 x 240 pixels."""
    ink = np.zeros((300, 240), np.uint8)
    ink[30:55, 20:160] = 255
    for row in range(55, 230):
        x = 150 - (row - 55) // 2
        ink[row, x - 14 : x + 14] = 255
    return ink


def test_an_image_of_mnist_stays_as_it_is(mnist):
    _, test = mnist
    images = test.inputs[:500].reshape(-1, 28, 28)
    differences = [np.abs(center_drawing(x).astype(int) - x).max() for x in images]
    # The largest pixel, 254 in many images, becomes 255, and the others in proportion.
    assert max(differences) <= 1


def test_an_embedded_digit_stays_as_it_is_but_for_a_shift():
    images = nnxp.data.load_digits(images=True)[1].inputs[:, 0]
    tried = 0
    for image in images:
        columns = image[:, image.any(axis=0)]
        # Faint lines at the edge may be cut off.
        if min(image[[0, 7]].max(axis=1)) > 60 and min(columns[:, [0, -1]].max(axis=0)) > 60:
            field = center_drawing(image, 8, box=8)
            expected = np.rint(columns * (255 / image.max()))
            np.testing.assert_array_equal(field[:, field.any(axis=0)], expected)
            tried += 1
    assert tried > 100


@pytest.mark.parametrize("size", [28, 8, 40])
def test_the_digit_fills_the_box_and_its_mass_is_in_the_middle(seven, size):
    box = round(size * 20 / 28)
    field = center_drawing(seven, size)
    assert field.dtype == np.uint8
    assert field.shape == (size, size)
    assert field.max() == 255
    rows, columns = (np.flatnonzero(field.any(axis=axis)) for axis in (1, 0))
    assert np.ptp(rows) + 1 == box
    # The aspect ratio: 200 rows, 140 columns, and what the leg leaves.
    assert abs(np.ptp(columns) + 1 - box * 140 / 200) < 1
    for axis in (0, 1):
        mass = field.sum(axis=1 - axis, dtype=float)
        centre = mass @ (np.arange(size) + 0.5) / mass.sum()
        # The rounding of a pixel to a grey level moves the centre by less than 0.01 pixels.
        assert size // 2 - 0.01 <= centre < size // 2 + 1.01


def test_place_and_strength_of_the_ink_do_not_matter(seven):
    expected = center_drawing(seven).astype(int)
    moved = np.pad(seven, ((70, 5), (3, 90)))
    for ink in (moved, seven > 0, seven / 1000):
        # A number next to a half may be rounded up or down.
        np.testing.assert_allclose(center_drawing(ink), expected, rtol=0, atol=1)


def test_scaling_is_that_of_pillow():
    ink = np.random.default_rng(0).integers(200, 256, (131, 77), dtype=np.uint8)
    scaled = Image.fromarray(ink.astype(np.float32)).resize((12, 20), Image.Resampling.BILINEAR)
    expected = np.rint(np.asarray(scaled) * (255 / np.asarray(scaled).max()))
    field = center_drawing(ink)
    rows, columns = (np.flatnonzero(field.any(axis=axis)) for axis in (1, 0))
    part = field[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(int)
    # Pillow computes in float32; a number next to a half may be rounded up or down.
    np.testing.assert_allclose(part, expected, rtol=0, atol=1)


def test_small_and_thin_drawings():
    dot = np.zeros((9, 9))
    dot[2, 7] = 1
    field = center_drawing(dot)
    assert (field[4:24, 4:24] == 255).all()
    assert field.sum(dtype=int) == 400 * 255
    line = np.zeros((500, 500))
    line[:, 250] = 1
    assert center_drawing(line)[4:24, 14].tolist() == [255] * 20
    wide = np.zeros((50, 50))
    wide[10, 5] = wide[10:20, 40:45] = 1  # its centre of mass is far to the right
    field = center_drawing(wide, 28, box=28)
    assert field.shape == (28, 28)
    assert field.any()


@pytest.mark.parametrize(
    ("ink", "options", "message"),
    [
        (np.zeros((5, 5)), {}, "must show a digit, got a blank image"),
        (np.zeros((5, 5, 3)), {}, r"of shape \(height, width\), got float64 of \(5, 5, 3\)"),
        (np.zeros((0, 5)), {}, r"of shape \(height, width\)"),
        ([["a"]], {}, r"of shape \(height, width\), got <U1"),
        (np.full((5, 5), np.nan), {}, "must be finite"),
        (-np.ones((5, 5)), {}, "at least 0"),
        (np.ones((5, 5)), {"size": 0}, "size must be"),
        (np.ones((5, 5)), {"size": 8, "box": 9}, "box must be at most size, got 9 of 8"),
    ],
)
def test_wrong_ink_is_refused(ink, options, message):
    with pytest.raises(nnxp.InputError, match=message):
        center_drawing(ink, **options)


def grey(ink, ground, digit):
    """Return ink as an image between two grey levels or colours."""
    ground, digit = np.array(ground, float), np.array(digit, float)
    share = ink.astype(float)[(...,) + (None,) * ground.ndim] / 255
    return np.rint(ground + share * (digit - ground)).astype(np.uint8)


IMAGES = {
    "dark on light": lambda ink: Image.fromarray(grey(ink, 255, 0)),
    "light on dark": lambda ink: Image.fromarray(grey(ink, 0, 255)),
    "faint on grey": lambda ink: Image.fromarray(grey(ink, 150, 110)),
    "red on green of one brightness": lambda ink: Image.fromarray(
        grey(ink, (0, 102, 0), (200, 0, 0))
    ),
    "black and white": lambda ink: Image.fromarray(grey(ink, 255, 0)).convert("1"),
    "palette": lambda ink: Image.fromarray(grey(ink, 240, 20)).convert("P"),
    "16 bits": lambda ink: Image.fromarray(65535 - 257 * ink.astype(np.uint16)),
    "dark on transparent": lambda ink: Image.fromarray(
        np.dstack([np.full((*ink.shape, 3), 10, np.uint8), ink])
    ),
    "light on transparent": lambda ink: Image.fromarray(
        np.dstack([np.full((*ink.shape, 3), 250, np.uint8), ink])
    ),
    "grey with alpha": lambda ink: Image.fromarray(np.dstack([255 - ink, ink | 1])),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_image_gives_the_same_ink(seven, tmp_path, name):
    IMAGES[name](seven).save(tmp_path / "seven.png")
    np.testing.assert_array_equal(read_drawing(tmp_path / "seven.png"), seven)


def extent(ink):
    """Return the first and the last row and column of a centred digit with clear ink."""
    field = center_drawing(ink)
    return [edge for axis in (1, 0) for edge in np.flatnonzero(field.max(axis=axis) > 48)[[0, -1]]]


def test_a_photo_with_noise_and_a_shadow_gives_the_same_digit(seven, tmp_path):
    rng = np.random.default_rng(0)
    photo = grey(seven, 210, 60) + rng.normal(0, 4, seven.shape)
    photo -= np.linspace(0, 80, seven.shape[1])  # darker to the right
    photo = np.dstack([photo, photo - 10, photo - 25]).clip(0, 255).astype(np.uint8)
    turned = Image.fromarray(photo).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees clockwise
    turned.save(tmp_path / "photo.jpg", exif=exif, quality=75)
    # JPEG's blocks of 8 pixels are 0.8 pixels of the field, in which 200 become 20.
    np.testing.assert_allclose(extent(read_drawing(tmp_path / "photo.jpg")), extent(seven), atol=1)


def test_large_images_are_reduced(seven, tmp_path):
    large = Image.fromarray(255 - seven).resize((2400, 3000))
    for name in ("large.png", "large.jpg"):
        large.save(tmp_path / name)
        ink = read_drawing(tmp_path / name)
        assert max(ink.shape) <= 1000
        np.testing.assert_allclose(extent(ink), extent(seven), atol=1)


def png(seven, **options):
    stream = io.BytesIO()
    Image.fromarray(255 - seven).save(stream, "PNG", **options)
    return stream.getvalue()


def bomb(side):
    """Return a small PNG file that says it has side x side pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def text_bomb(seven):
    """Return a PNG file with 100 MB of text, compressed to 100 kB."""
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * (100 << 20), zip=True)
    return png(seven, pnginfo=info)


def gif(seven):
    stream = io.BytesIO()
    Image.fromarray(seven).save(stream, "GIF")
    return stream.getvalue()


FILES = {
    "text": (lambda _: b"seven\n" * 100, "is no PNG or JPEG image"),
    "empty": (lambda _: b"", "is no PNG or JPEG image"),
    "another format": (gif, "is no PNG or JPEG image"),
    "truncated": (lambda seven: png(seven)[:300], "cannot be read"),
    "header alone": (lambda seven: png(seven)[:40], "cannot be read|is no PNG"),
    "bomb": (lambda _: bomb(60_000), r"has more than [\d,]+ pixels; make the image smaller"),
    "smaller bomb": (lambda _: bomb(10_000), r"has more than [\d,]+ pixels"),  # Pillow only warns
    "text bomb": (text_bomb, "cannot be read"),
    "gzip": (lambda seven: gzip.compress(png(seven)), "is gzipped; unpack it"),
    "blank": (lambda seven: png(np.zeros_like(seven)), "shows no digit: its pixels hardly differ"),
    "nearly blank": (lambda seven: png(seven // 9), "shows no digit"),
    "one pixel": (lambda seven: png(seven[:1, :1]), "shows no digit"),
}


@pytest.mark.parametrize("name", FILES)
def test_wrong_files_are_refused(seven, tmp_path, name):
    contents, message = FILES[name]
    path = tmp_path / "seven.png"
    path.write_bytes(contents(seven))
    with pytest.raises(nnxp.DataError, match=message) as error:
        read_drawing(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_transparent_image_is_blank(tmp_path):
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "seven.png")
    with pytest.raises(nnxp.DataError, match="shows no digit"):
        read_drawing(tmp_path / "seven.png")


def test_what_is_no_file_is_refused(tmp_path):
    for path, message in [
        (tmp_path, "is a folder"),
        (tmp_path / "absent.png", "cannot be read .No such file"),
    ]:
        with pytest.raises(nnxp.DataError, match=message):
            read_drawing(path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(nnxp.DataError, match="is a pipe"):
            read_drawing(tmp_path / "pipe.png")
    with pytest.raises(nnxp.InputError, match="a path must be"):
        read_drawing(3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_files_raise_no_other_error(seven, tmp_path, kind):
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    Image.fromarray(255 - seven[::4, ::4]).save(stream, kind)
    whole, path, refused = stream.getvalue(), tmp_path / "seven.png", 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 5)):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        try:
            assert read_drawing(path).max() == 255
        except nnxp.DataError:
            refused += 1
    assert refused > 0


def test_without_pillow_the_error_says_how_to_install_it(tmp_path):
    (tmp_path / "PIL.py").write_text("raise ModuleNotFoundError(name='PIL')\n")
    code = "import nnxp; nnxp.data.read_drawing('seven.png')"
    paths = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    result = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT | {"PYTHONPATH": paths}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    last = result.stderr.splitlines()[-1]
    assert re.search(f"MissingExtraError: PIL {installs('images')}", last)
