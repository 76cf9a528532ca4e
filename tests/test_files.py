"""Files and plots: atomic writes, and the content of the curves."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from builders import new_record
from remedies import installs

import nnxp
from nnxp import files
from nnxp.files import remove_temporary, write_atomically


def test_file_is_replaced_atomically(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "b").touch()
    assert path.stat().st_mode == (tmp_path / "b").stat().st_mode  # as the umask wants it


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, b"first")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"second")
    assert path.read_bytes() == b"first"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_pipes_folders_and_missing_folders_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # which can be lost, unlike a device of the machine
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none" / "a.json"):
        with pytest.raises(OSError, match=re.escape(repr(str(path)))):
            write_atomically(path, b"x")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("before", "umask", "meanwhile", "after"),
    [
        (0o600, 0o000, 0o600, 0o600),
        (0o640, 0o022, 0o640, 0o640),
        (0o664, 0o077, 0o600, 0o664),
        (0o444, 0o000, 0o644, 0o444),
        (None, 0o027, 0o640, 0o640),
        (None, 0o077, 0o600, 0o600),
    ],
)
def test_file_is_never_readable_by_more_than_it_shall_be(
    tmp_path, monkeypatch, before, umask, meanwhile, after
):
    path = tmp_path / "a.json"
    if before is not None:
        path.touch()
        path.chmod(before)
    modes = []

    def look(function):
        def looking(*arguments):
            (temporary,) = (p for p in tmp_path.iterdir() if p.name.startswith("."))
            modes.append(temporary.stat().st_mode & 0o777)
            return function(*arguments)

        return looking

    monkeypatch.setattr(files, "lock_stream", lambda *_, **__: look(lambda: None)())  # still empty
    monkeypatch.setattr(os, "fsync", look(os.fsync))  # complete
    previous = os.umask(umask)
    try:
        write_atomically(path, b"x")
    finally:
        os.umask(previous)
    assert modes == [meanwhile, meanwhile]
    assert path.stat().st_mode & 0o777 == after


def test_temporary_file_of_a_living_process_is_not_removed(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    fsync = os.fsync

    def begin_to_train(descriptor):
        remove_temporary(path)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", begin_to_train)
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_temporary_file_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    lock, removed = files.lock_stream, []

    def remove_once(stream, *, wait):
        if wait and not removed:
            removed.append(1)
            remove_temporary(path)
        lock(stream, wait=wait)

    monkeypatch.setattr(files, "lock_stream", remove_once)
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


RECORDS = [new_record(i, 1 / i, 1 - 1 / i, 2 / i, 1 - 2 / (i + 1), 0.1) for i in range(1, 4)]


def pixels(path):
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    return image.imread(path)


def test_picture_is_written(tmp_path):
    nnxp.plots.plot_histories({"": RECORDS}, tmp_path / "curves.png", title=r"a$\b$")
    picture = pixels(tmp_path / "curves.png")
    assert picture.shape[1] > 1000
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10  # not blank


def test_empty_history_and_missing_matplotlib_raise(tmp_path, monkeypatch):
    with pytest.raises(nnxp.InputError, match="no epoch was finished"):
        nnxp.plots.plot_histories({"": []}, tmp_path / "curves.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(nnxp.MissingExtraError, match=installs("plot")):
        nnxp.plots.plot_histories({"": RECORDS}, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("", "Not a regular file"), ("none/a.png", "No such file or directory"),
     ("a\0b", "embedded null (byte|character)"), ("x" * 300, "File name too long")],
)  # fmt: skip
def test_picture_that_cannot_be_written_is_named(tmp_path, name, reason):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(nnxp.InputError, match=f"cannot be written .*{reason}.*; choose another"):
        nnxp.plots.plot_histories(RECORDS, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw histories, and return matplotlib's figure with its layout, not rendered."""
    figures = []
    figure_module = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    monkeypatch.setattr(
        figure_module.Figure,
        "savefig",
        lambda self, *a, **k: figures.append(self) or self.draw_without_rendering(),
    )

    def draw(histories, **options):
        nnxp.plots.plot_histories(histories, tmp_path / "curves.png", **options)
        return figures[-1]

    return draw


def lines(axes):
    """Return the curves by label, without the stars of the best epochs."""
    return {x.get_label(): x for x in axes.lines if x.get_marker() != "*"}


def stars(axes):
    """Return the points of the best epochs."""
    found = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "*"]
    return [point for points in found for point in points]


def test_curves_hold_the_figures_of_the_records(draw):
    figure = draw({"": RECORDS}, title="what it is")
    for axes, quantity in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert axes.get_ylabel() == quantity
        assert {name: list(line.get_ydata()) for name, line in lines(axes).items()} == {
            data: [record[f"{data}_{quantity}"] for record in RECORDS]
            for data in ("train", "validation")
        }
    assert figure.get_suptitle() == "what it is"
    assert len(figure.legends) == 1
    several = draw({"x": RECORDS, "y": RECORDS[:2]})
    assert {name: list(line.get_ydata()) for name, line in lines(several.axes[1]).items()} == {
        "x": [r.validation_accuracy for r in RECORDS],
        "y": [r.validation_accuracy for r in RECORDS[:2]],
    }
    assert len(several.legends) == 1
    assert not any(axes.get_legend() for axes in [*figure.axes, *several.axes])


def test_names_in_the_legend_are_as_given(draw):
    names = ["_hidden", r"a$\b$", "two\nlines"]
    figure = draw(dict.fromkeys(names, RECORDS))
    shown = [x.get_text() for x in figure.legends[0].get_texts()]
    assert shown == ["_hidden", r"a$\b$", "two lines", "best epoch"]


def test_best_epochs_are_marked(draw):
    losses, accuracies = (3.0, 1.0, 2.0), (0.5, 0.6, 0.7)
    records = [
        new_record(i + 1, 0.5, 0.9, losses[i], accuracies[i], 0.1) for i in range(len(losses))
    ]
    figure = draw({"": records})
    assert [stars(axes) for axes in figure.axes] == [[[2, 1.0]], [[3, 0.7]]]
    assert [axes.get_title() for axes in figure.axes] == [
        "validation: best 1, epoch 2", "validation: best 0.7, epoch 3",
    ]  # fmt: skip
    assert [stars(axes) for axes in draw({"a": records, "b": records[:1]}).axes] == [
        [[2, 1.0], [1, 3.0]], [[3, 0.7], [1, 0.5]],
    ]  # fmt: skip


def test_runs_without_validation_show_the_training(draw):
    records = [new_record(i, 1.0 / i, 0.5, None, None, 0.1) for i in (1, 2)]
    assert list(lines(draw({"": records}).axes[0])) == ["train"]
    assert list(lines(draw({"a": records, "b": records}).axes[0])) == ["a", "b"]


def test_regression_has_no_accuracy_axes(draw):
    records = [
        nnxp.Record(i, train_loss=1 / i, validation_loss=2 / i, seconds=1.0) for i in (1, 2, 3)
    ]
    for histories in ({"": records}, {"a": records, "b": records}):
        assert [axes.get_ylabel() for axes in draw(histories).axes] == ["loss"]


@pytest.mark.parametrize("runs", [1, 12])
@pytest.mark.parametrize("epochs", [1, 3, 100])
def test_every_point_lies_within_the_axes_and_points_of_few_epochs_have_markers(draw, runs, epochs):
    records = [new_record(i, 1 / i, 1 - 1 / i, 2 / i, 1 - 1 / (i + 1), 0.1)
               for i in range(1, epochs + 1)]  # fmt: skip
    figure = draw({f"run {i}": records for i in range(runs)})
    for axes in figure.axes:
        for line in lines(axes).values():
            assert line.get_marker() == "" if epochs == 100 else line.get_marker() in set("osDv^PX")
            (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
            x, y = line.get_xdata(), line.get_ydata()
            assert left < min(x) <= max(x) < right
            assert low <= min(y) <= max(y) < high
        points = {tuple(line.get_xydata()[0]) for line in lines(axes).values()}
        if epochs == 1:  # of one epoch, no point hides another
            assert len(points) == len(lines(axes)) == max(runs, 2)
            assert axes.get_xticks().tolist() == [1]


def test_twenty_curves_have_twenty_colours_and_several_lines(draw):
    axes = draw({f"run {i}": RECORDS for i in range(21)}).axes[0]
    colours = np.array([line.get_color() for line in lines(axes).values()])
    distances = np.abs(colours[:, None] - colours).max(axis=2) + np.eye(21)
    assert distances.min() > 0.05
    assert {line.get_linestyle() for line in lines(axes).values()} == {"-", "--", "-."}
    styles = [tuple(nnxp.plots.curve_style(i).values()) for i in range(84)]
    assert len(set(styles)) == 84


@pytest.mark.parametrize(("low", "scale"), [(1.5, "linear"), (0.02, "log"), (1e-6, "log")])
def test_loss_is_logarithmic_only_over_a_wide_range_and_ticks_are_plain_numbers(draw, low, scale):
    records = [
        nnxp.Record(i + 1, train_loss=x, validation_loss=x, seconds=1.0)
        for i, x in enumerate((2.0, low))
    ]
    for histories in ({"": records}, {"a": records, "b": records}):
        axes = draw(histories).axes[0]
        assert axes.get_yscale() == scale
        ticks = axes.yaxis.get_ticklabels(which="both")
        texts = [text for tick in ticks if (text := tick.get_text())]
        assert len(texts) >= 3
        assert all(float(text.replace("−", "-")) >= 0 for text in texts)


def test_repeated_runs_show_mean_and_deviation(draw):
    seeds = [
        [new_record(i, 1.0, 0.5, 1.0 + seed * i, 0.5 + seed * i / 100, 0.1) for i in (1, 2, 3)]
        for seed in (0, 1, 5)
    ]
    axes = draw({"a": seeds, "b": [RECORDS]}).axes[1]
    accuracies = np.array([[r.validation_accuracy for r in records] for records in seeds])
    np.testing.assert_allclose(lines(axes)["a"].get_ydata(), accuracies.mean(axis=0))
    (band,) = axes.collections
    edges = np.unique(band.get_paths()[0].vertices.round(9), axis=0)
    deviations = accuracies.std(axis=0, ddof=1)
    for epoch, (mean, deviation) in enumerate(
        zip(accuracies.mean(axis=0), deviations, strict=True), start=1
    ):
        at = edges[edges[:, 0] == epoch, 1]
        np.testing.assert_allclose([at.min(), at.max()], [mean - deviation, mean + deviation])
