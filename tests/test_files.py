"""Files and plots: atomic writes, and the content of the curves."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
from builders import new_record

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

    monkeypatch.setattr(files, "_lock", lambda *_, **__: look(lambda: None)())  # still empty
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
    lock, removed = files._lock, []

    def remove_once(stream, *, wait):
        if wait and not removed:
            removed.append(1)
            remove_temporary(path)
        lock(stream, wait=wait)

    monkeypatch.setattr(files, "_lock", remove_once)
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


RECORDS = [new_record(i, 1 / i, 1 - 1 / i, 2 / i, 1 - 2 / (i + 1), 0.1) for i in range(1, 4)]


def pixels(path):
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    return image.imread(path)


@pytest.mark.parametrize("runs", [1, 3, 12])
def test_curves_are_drawn(tmp_path, runs):
    path = tmp_path / "curves.png"
    nnxp.plots.plot_histories({f"run {i}": RECORDS for i in range(runs)}, path, title="a title")
    picture = pixels(path)
    assert picture.shape[1] > 1000
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 10  # not blank


def test_runs_without_validation_are_drawn(tmp_path):
    records = [new_record(1, 1.0, 0.5, None, None, 0.1)]
    nnxp.plots.plot_histories({"": records}, tmp_path / "one.png", title="a$\\b$ \udcc3")
    nnxp.plots.plot_histories({"a": records, "b": records}, tmp_path / "two.png")
    for name in ("one.png", "two.png"):
        blue = [31 / 255, 119 / 255, 180 / 255]  # matplotlib's first colour
        assert (np.abs(pixels(tmp_path / name)[..., :3] - blue) < 0.02).all(axis=-1).any()


def test_empty_history_and_missing_matplotlib_raise(tmp_path, monkeypatch):
    with pytest.raises(nnxp.InputError, match="no epoch was finished"):
        nnxp.plots.plot_histories({"": []}, tmp_path / "curves.png")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(nnxp.MissingExtraError, match=r"not installed; pip install 'nnxp\[plot\]'"):
        nnxp.plots.plot_histories({"": RECORDS}, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_curves_hold_the_figures_of_the_records(tmp_path, monkeypatch):
    figures = []
    figure_module = pytest.importorskip("matplotlib.figure", reason="matplotlib is not installed")
    save = figure_module.Figure.savefig
    monkeypatch.setattr(
        figure_module.Figure,
        "savefig",
        lambda self, *a, **k: figures.append(self) or save(self, *a, **k),
    )
    nnxp.plots.plot_histories({"": RECORDS}, tmp_path / "a.png", title="what it is")
    nnxp.plots.plot_histories({"x": RECORDS, "y": RECORDS[:2]}, tmp_path / "b.png")
    single, several = (
        [{line.get_label(): list(line.get_ydata()) for line in axes.lines} for axes in figure.axes]
        for figure in figures
    )
    assert single == [
        {
            "train": [r.train_loss for r in RECORDS],
            "validation": [r.validation_loss for r in RECORDS],
        },
        {
            "train": [r.train_accuracy for r in RECORDS],
            "validation": [r.validation_accuracy for r in RECORDS],
        },
    ]
    assert several[1] == {
        "x": [r.validation_accuracy for r in RECORDS],
        "y": [r.validation_accuracy for r in RECORDS[:2]],
    }
    assert figures[0].get_suptitle() == "what it is"
    assert [axes.get_ylabel() for axes in figures[0].axes] == ["loss", "accuracy"]
