"""Callbacks that write the history: CSV, JSON lines, and TensorBoard's own reader of its events."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from builders import Stopping
from pairs import trainer
from remedies import installs

import nnxp
from nnxp import callbacks, metrics
from nnxp.training.history_files import JSONLinesFile

TRAIN, TEST = nnxp.data.load_digits()
PART = nnxp.data.Dataset(TRAIN.inputs[:400], TRAIN.labels[:400])  # four steps an epoch


def fit(one, epochs, *given, **options):
    options = {"batch_size": 100, "rng": 1, "validation": TEST} | options
    return one.fit(PART, epochs=epochs, callbacks=given, **options)


def csv_rows(path):
    with path.open(newline="") as file:
        rows = [{n: float(x) for n, x in row.items() if x} for row in csv.DictReader(file)]
    return [row | {"epoch": int(row["epoch"])} for row in rows]


def json_rows(path):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def event_rows(path):
    """Return the figures of each epoch as TensorBoard reads them."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(path))
    events.Reload()
    rows, times = {}, {}
    for tag in events.Tags()["scalars"]:
        figure, _, part = tag.rpartition("/")
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps))
        for event in events.Scalars(tag):
            row = rows.setdefault(event.step, {"epoch": event.step})
            row[f"{part}_{figure}" if figure else tag] = event.value
            times[event.step] = event.wall_time
    assert [times[x] for x in sorted(times)] == sorted(times.values())
    return [rows[x] for x in sorted(rows)]


def as_written(record, kind):
    rounded = np.float32 if kind is callbacks.WriteTensorBoard else float
    return {name: x if name == "epoch" else rounded(x) for name, x in record.items()}


READERS = {
    callbacks.WriteCSV: csv_rows,
    callbacks.WriteJSONLines: json_rows,
    callbacks.WriteTensorBoard: event_rows,
}
TEXT = [callbacks.WriteCSV, callbacks.WriteJSONLines]
kinds = pytest.mark.parametrize(
    "kind",
    [*TEXT, pytest.param(callbacks.WriteTensorBoard, marks=pytest.mark.interop)],
    ids=lambda kind: kind.__name__,
)
texts = pytest.mark.parametrize("kind", TEXT, ids=lambda kind: kind.__name__)


def assert_rows(kind, path, history):
    rows = READERS[kind](path)
    assert rows == [as_written(record, kind) for record in history]


def contents(path):
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {file.name: file.read_bytes() for file in files}


@kinds
def test_each_epoch_can_be_read_as_soon_as_it_is_over(tmp_path, kind):
    path, seen = tmp_path / "history", []

    class Reader(callbacks.Callback):
        def epoch(self, trainer, record):
            assert_rows(kind, path, trainer.history)
            seen.append(record.epoch)

    one = trainer(metrics=[metrics.TopAccuracy(3)], penalty=nnxp.L2(1e-3))
    fit(one, 3, kind(path), Reader())
    assert seen == [1, 2, 3]
    fit(one, 2, kind(path), Reader())  # continued by another call, and by a new callback
    assert seen == [1, 2, 3, 4, 5]


@kinds
def test_a_training_that_was_not_written_from_its_start_is_written_whole(tmp_path, kind):
    one, path = trainer(), tmp_path / "history"
    fit(one, 2)
    fit(one, 1, kind(path))
    fit(one, 1)
    fit(one, 1, kind(path))
    assert_rows(kind, path, one.history)
    assert one.epochs == 5


@kinds
def test_resumed_training_cuts_off_epochs_that_its_checkpoint_does_not_have(tmp_path, kind):
    pytest.importorskip("safetensors")
    path, saved = tmp_path / "history", tmp_path / "a.safetensors"
    stopped, whole = trainer(), trainer()
    fit(whole, 6)
    fit(stopped, 2, kind(path), checkpoint=saved)
    fit(stopped, 3, kind(path))  # epochs 3 to 5, which the checkpoint does not have
    before = contents(path)
    resumed = nnxp.Trainer.resume(saved)
    fit(resumed, 1, Stopping(lambda: True), kind(path), rng=None)
    assert contents(path) == before  # nothing is cut before there is something to write
    fit(resumed, 4, kind(path), rng=None)
    assert_rows(kind, path, resumed.history)
    for mine, other in zip(resumed.history, whole.history, strict=True):
        assert mine.validation_loss == other.validation_loss


@kinds
def test_training_resumed_in_its_first_epoch_continues_its_file(tmp_path, kind):
    pytest.importorskip("safetensors")
    path, saved = tmp_path / "history", tmp_path / "a.safetensors"
    one = trainer()

    def stop_after_the_file_is_written():
        if one.epochs == 1:
            raise KeyboardInterrupt

    stopping = Stopping(stop_after_the_file_is_written)
    with pytest.raises(KeyboardInterrupt):
        fit(one, 3, kind(path), stopping, checkpoint=saved, checkpoint_every=3)
    assert_rows(kind, path, one.history)
    other = nnxp.Trainer.resume(saved)
    assert (other.epochs, other.optimizer.steps) == (0, 3)
    with pytest.raises(nnxp.InputError, match="found 1 epochs of another training run: choose"):
        fit(trainer(), 1, kind(path))
    fit(other, 2, kind(path), rng=None)
    assert_rows(kind, path, other.history)
    again = nnxp.Trainer.resume(saved)
    with pytest.raises(nnxp.InputError, match="found 2 epochs of another training run: choose"):
        fit(again, 1, Stopping(bool), kind(tmp_path / "other"), kind(path), rng=None)


@kinds
def test_files_of_another_training_are_refused_and_left(tmp_path, kind):
    path, writer = tmp_path / "history", kind(tmp_path / "history")
    fit(trainer(), 2, writer)
    before = contents(path)
    other = trainer(optimizer=nnxp.SGD(0.01))
    for callback in (writer, kind(path)):
        with pytest.raises(nnxp.InputError, match="found 2 epochs of another training run: ch"):
            fit(other, 1, callback)
    assert other.optimizer.steps == 0
    fit(other, 2)
    with pytest.raises(
        nnxp.InputError,
        match=r"is of another training run \(its train_\w+ is [\d.]+, here [\d.]+\): choose "
        rf"another path than {path}, or remove it",
    ):
        fit(other, 1, kind(path))
    assert other.optimizer.steps == 8
    assert contents(path) == before
    fit(other, 1, kind(tmp_path / "another"))  # as the error says
    assert_rows(kind, tmp_path / "another", other.history)


@texts
@pytest.mark.parametrize(
    "content",
    [b"hello", b"hello\n", b"a,b\n1,2\n", b"[1]\n", b"{}\n", b"\xff\n", b"x" * (1 << 20),
     b"[" * 100_000 + b"\n", b'{"epoch": 1e999}\n', b'{"epoch": 1.5, "train_loss": 1}\n',
     b"epoch,train_loss\n1\n", b"epoch,train_loss\n2,1\n1,1\n", b'"\n',
     b"epoch,price\n"],
    ids=range(14),
)  # fmt: skip
def test_files_of_something_else_are_refused_and_left(tmp_path, kind, content):
    path = tmp_path / "history"
    path.write_bytes(content)
    one = trainer()
    with pytest.raises(nnxp.InputError, match=f"{path} (is not a file|has no whole).*; choose"):
        fit(one, 1, kind(path))
    assert path.read_bytes() == content
    assert one.optimizer.steps == 0


@texts
def test_a_line_that_a_killed_process_left_is_replaced(tmp_path, kind):
    path, one = tmp_path / "history", trainer()
    fit(one, 2, kind(path))
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[-1][:9])
    fit(one, 1, kind(path))
    assert_rows(kind, path, one.history)


def test_new_figures_need_another_csv_file_and_not_another_one_of_json(tmp_path):
    pytest.importorskip("safetensors")
    table, lines, saved = (tmp_path / x for x in ("a.csv", "a.jsonl", "a.safetensors"))
    fit(trainer(), 2, callbacks.WriteCSV(table), callbacks.WriteJSONLines(lines), checkpoint=saved)
    resumed = nnxp.Trainer.resume(saved, metrics=[metrics.TopAccuracy(3)])
    before, steps = table.read_bytes(), resumed.optimizer.steps
    message = (
        f"{table} has no column for train_top3_accuracy, validation_top3_accuracy; choose another "
        "path, which gets all epochs, or use nnxp.callbacks.WriteJSONLines"
    )
    with pytest.raises(nnxp.InputError, match=message):
        fit(resumed, 1, callbacks.WriteCSV(table), rng=None)
    assert (table.read_bytes(), resumed.optimizer.steps) == (before, steps)
    other = tmp_path / "b.csv"
    fit(resumed, 1, callbacks.WriteCSV(other), callbacks.WriteJSONLines(lines), rng=None)
    assert_rows(callbacks.WriteCSV, other, resumed.history)
    assert_rows(callbacks.WriteJSONLines, lines, resumed.history)
    fit(resumed, 1, callbacks.WriteCSV(other), rng=None, validation=None)  # fewer are empty cells
    assert_rows(callbacks.WriteCSV, other, resumed.history)


@kinds
def test_epochs_that_a_long_history_has_dropped_remain_in_the_file(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("nnxp.history.MAX_RECORDS", 4)
    path, one = tmp_path / "history", trainer()
    fit(one, 6, kind(path))
    fit(one, 1, kind(path))
    assert [row["epoch"] for row in READERS[kind](path)] == [1, 2, 3, 4, 5, 6, 7]
    assert len(one.history) <= 4


def test_figures_that_are_not_finite_are_null_in_json(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [
        nnxp.Record(1, train_loss=math.inf, validation_loss=math.nan, seconds=0.5),
        nnxp.Record(2, train_loss=1e300, validation_loss=-math.inf, seconds=0.5),
    ]
    for i, record in enumerate(records):
        file = JSONLinesFile(path)
        file.open(records[:i], [], False)
        file.append(record)
        file.close()
    assert json_rows(path) == [
        {"epoch": 1, "train_loss": None, "validation_loss": None, "seconds": 0.5},
        {"epoch": 2, "train_loss": 1e300, "validation_loss": None, "seconds": 0.5},
    ]


@texts
def test_a_file_is_written_by_one_training_at_a_time(tmp_path, kind):
    pytest.importorskip("fcntl", reason="no locks on Windows")
    path, one = tmp_path / "history", trainer()
    with pytest.raises(nnxp.InputError, match=f"another process writes {path}; wait for it, or"):
        fit(one, 1, kind(path), kind(path))
    assert one.optimizer.steps == 0
    fit(one, 1, kind(path))  # both have left it
    assert_rows(kind, path, one.history)


@kinds
def test_paths(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)

    class Leaving(callbacks.Callback):
        def epoch(self, trainer, record):
            os.chdir(tmp_path)

    one = trainer()
    fit(one, 2, kind("~/home"), kind("here"), Leaving())
    assert_rows(kind, tmp_path / "home", one.history)
    assert_rows(kind, folder / "here", one.history)
    for path, message in [
        (3, "a path must be a string or a pathlib.Path, got 3"),
        ("a\0b", "null"),
        ("x" * 300, "File name too long"),
    ]:
        with pytest.raises(nnxp.InputError, match=message):
            fit(trainer(), 1, kind(path))
    (tmp_path / "file").touch()
    where = ["file/history"] + ["none/history"] * (kind in TEXT)
    for name in where:
        with pytest.raises(nnxp.InputError, match=f"{tmp_path / name} cannot be written .*choose"):
            fit(trainer(), 1, kind(tmp_path / name))
    with pytest.raises(nnxp.InputError, match=r"WriteCSV: .*; call nnxp.callbacks.WriteCSV\(.hist"):
        callbacks.WriteCSV()


@pytest.mark.skipif(sys.platform != "linux", reason="limits are tried on Linux")
@kinds
def test_full_disk_names_the_file_and_loses_nothing(tmp_path, kind):
    # A limit on the size of files fails a write in its middle, as a full disk does.
    if kind is callbacks.WriteTensorBoard:
        pytest.importorskip("tensorboardX")
    code = f"""
    import resource, signal, sys
    from pathlib import Path
    import numpy as np
    import nnxp
    path = Path(sys.argv[1])
    data = nnxp.data.load_digits()[1]
    network = nnxp.mlp([64, 10], rng=0)
    trainer = nnxp.Trainer(network, nnxp.SoftmaxWithLoss(), nnxp.SGD(0.1))
    writer = nnxp.callbacks.{kind.__name__}(path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
    try:
        trainer.fit(data, epochs=9, batch_size=100, rng=0, callbacks=[writer])
    except nnxp.InputError as error:
        print(error)
    print(trainer.epochs)
    if path.is_file():
        assert path.read_bytes().endswith(b"\\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    trainer.fit(data, epochs=1, batch_size=100, rng=0, callbacks=[writer])
    """
    path = tmp_path / "history"
    out = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), path],
        check=True, capture_output=True, text=True, cwd=Path(nnxp.__file__).parent.parent,
    )  # fmt: skip
    error, epochs = out.stdout.splitlines()
    assert out.stderr == ""
    assert error == (
        f"{path} cannot be written (File too large); the trainer in memory is complete: free disk "
        "space and call fit again, which also writes the missing epochs"
    )
    assert 1 < int(epochs) < 9
    rows = READERS[kind](path)
    assert [row["epoch"] for row in rows] == list(range(1, int(epochs) + 2))
    assert all(len(row) == 4 for row in rows)


@pytest.mark.interop
def test_tags_of_tensorboard(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    one = trainer(metrics=[metrics.TopAccuracy(3)], penalty=nnxp.L2(1e-3))
    fit(one, 1, callbacks.WriteTensorBoard(tmp_path / "runs" / "first"))
    events = reader.EventAccumulator(str(tmp_path / "runs" / "first"))
    events.Reload()
    names = ("loss", "accuracy", "top3_accuracy")
    tags = {f"{name}/{part}" for name in names for part in ("train", "validation")}
    assert set(events.Tags()["scalars"]) == tags | {"penalty", "seconds"}


@pytest.mark.interop
@pytest.mark.parametrize("content", [b"hello", b"\x02" + bytes(11) + b"\xff\xff" + bytes(4)])
def test_event_files_of_something_else_are_refused_and_left(tmp_path, content):
    pytest.importorskip("tensorboardX")
    file, one = tmp_path / "events.out.tfevents.1.a", trainer()
    file.write_bytes(content)
    with pytest.raises(nnxp.InputError, match=f"{tmp_path} .*something else.*; choose another fol"):
        fit(one, 1, callbacks.WriteTensorBoard(tmp_path))
    assert [x.read_bytes() for x in tmp_path.iterdir()] == [content]
    assert one.optimizer.steps == 0


def test_missing_tensorboardx_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    one = trainer()
    message = f"tensorboardX.* {installs('tensorboard')}"
    with pytest.raises(nnxp.MissingExtraError, match=message):
        fit(one, 1, callbacks.WriteTensorBoard(tmp_path / "run"))
    assert one.optimizer.steps == 0
    assert not list(tmp_path.iterdir())
