"""History files: the records of a training run as CSV, JSON lines or TensorBoard events.

A file holds the history of one training run. If the run is resumed, it continues the file; the file
of another run raises an error. Nothing is written before the end of an epoch.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnxp.checks import optional_import
from nnxp.errors import InputError
from nnxp.files import expand_home, lock_stream, require_writable, resolve_file
from nnxp.history import Record

_MAX_LINE = 1 << 20  # bytes
# Errors that parsing a line of another format raises.
_PARSE_ERRORS = (
    ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, csv.Error
)  # fmt: skip


class HistoryFile(ABC):
    """Base class of files with the records of a training run.

    Parameters
    ----------
    path : str or Path
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._missing: list[Record] = []  # records before the next one that the file lacks

    @abstractmethod
    def open(self, history: Sequence[Record], measured: Sequence[str], resumed: bool) -> None:
        """Open the file, and read its epochs.

        Parameters
        ----------
        history : sequence of Record
            The records so far. Records that the file lacks are written together with the next one.
        measured : sequence of str
            The names of the figures of future records.
        resumed : bool
            Whether a checkpoint states that its training run wrote this file.

        Raises
        ------
        InputError
            If the file has epochs of another training run or other contents, or cannot be written.
        """

    @abstractmethod
    def append(self, record: Record) -> None:
        """Write a record, so that other processes can read it.

        Raises
        ------
        InputError
            If writing fails, for example because the disk is full.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


class TextFile(HistoryFile):
    """A file with a line for each epoch, locked while it is open.

    Parameters
    ----------
    path : str or Path
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(resolve_file(path))  # a change of the working directory has no effect
        self._stream: io.FileIO | None = None
        self._end = 0  # bytes of this training run; the rest of the file is removed

    def open(self, history: Sequence[Record], measured: Sequence[str], resumed: bool) -> None:
        """Lock the file and read its lines."""
        try:
            self._stream = self.path.open("ab", buffering=0)
            self._lock(self._stream)
            rows, size = self._read()
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}); choose another path"
            ) from error
        kept = _kept(f"{self.path}, or remove it", [row for row, _ in rows], history, resumed)
        if size and not (kept or resumed):
            raise InputError(f"{self.path} has no whole epoch; choose another path, or remove it")
        self._end = rows[kept - 1][1] if kept else 0
        last = rows[kept - 1][0]["epoch"] if kept else 0
        self._missing = [record for record in history if record.epoch > last]
        named = (name for names in (*self._missing, measured) for name in names)
        self._set_figures(list(dict.fromkeys(named)))

    def append(self, record: Record) -> None:
        """Write the record's line, after those that are missing."""
        assert self._stream is not None
        lines = [self._line(each) for each in (*self._missing, record)]
        data = b"".join(lines if self._end else [self._header(), *lines])
        try:
            self._stream.truncate(self._end)
            rest = memoryview(data)
            while rest:
                rest = rest[self._stream.write(rest) :]
        except BaseException as error:
            with contextlib.suppress(OSError):
                self._stream.truncate(self._end)  # remove an incomplete line
            if isinstance(error, OSError):
                raise _not_written(self.path, error) from error
            raise
        self._end += len(data)
        self._missing = []

    def close(self) -> None:
        """Close the file, which unlocks it."""
        if self._stream is not None:
            self._stream.close()

    def _lock(self, stream: io.FileIO) -> None:
        try:
            lock_stream(stream, wait=False)
        except BlockingIOError:
            raise InputError(
                f"another process writes {self.path}; wait for it, or choose another path"
            ) from None
        except OSError:  # a file system without locks
            pass

    def _read(self) -> tuple[list[tuple[dict[str, float], int]], int]:
        """Return each row with the offset of its end, and the file's size."""
        rows: list[tuple[dict[str, float], int]] = []
        end = number = 0
        with self.path.open("rb") as file:
            while line := file.readline(_MAX_LINE):
                number += 1
                if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                    return rows, end + len(line)  # an incomplete line of a killed process
                end += len(line)
                try:
                    row = self._parse(line.decode())
                    if row is None:
                        continue
                    previous = rows[-1][0]["epoch"] if rows else 0
                    if not (row["epoch"] > previous and row["epoch"].is_integer()):
                        raise ValueError("epochs do not rise")
                except _PARSE_ERRORS as error:
                    raise InputError(
                        f"{self.path} is not a file of epochs (line {number}); choose another path"
                    ) from error
                rows.append((row, end))
        return rows, end

    def _set_figures(self, names: list[str]) -> None:
        """Set the names of the figures that are written."""

    def _header(self) -> bytes:
        """Return the line before the first epoch."""
        return b""

    @abstractmethod
    def _line(self, record: Record) -> bytes:
        """Return a record as a line."""

    @abstractmethod
    def _parse(self, line: str) -> dict[str, float] | None:
        """Return the figures of a line; None for the header."""


class CSVFile(TextFile):
    """A file of comma-separated values: a line of names, then a line for each epoch."""

    _names: Sequence[str] = ()

    def _set_figures(self, names: list[str]) -> None:
        if not self._end:
            self._names = names
        if new := [name for name in names if name not in self._names]:
            raise InputError(
                f"{self.path} has no column for {', '.join(new)}; choose another path, which gets "
                "all epochs, or use nnxp.callbacks.WriteJSONLines"
            )

    def _header(self) -> bytes:
        return _csv_line(self._names)

    def _line(self, record: Record) -> bytes:
        return _csv_line([record.get(name, "") for name in self._names])

    def _parse(self, line: str) -> dict[str, float] | None:
        (cells,) = csv.reader([line])
        if not self._names:
            if cells[:1] != ["epoch"]:
                raise ValueError("no names of figures")
            self._names = cells
            return None
        pairs = zip(self._names, cells, strict=True)
        return {name: float(cell) for name, cell in pairs if cell}


class JSONLinesFile(TextFile):
    """A file with a JSON object on a line for each epoch."""

    def _line(self, record: Record) -> bytes:
        figures = {name: x if math.isfinite(x) else None for name, x in record.items()}
        return json.dumps(figures, allow_nan=False).encode() + b"\n"

    def _parse(self, line: str) -> dict[str, float]:
        figures = json.loads(line).items()
        return {name: math.nan if x is None else float(x) for name, x in figures}


class EventFolder(HistoryFile):
    """A folder of event files for TensorBoard.

    tensorboardX provides the format of the file and of its events. Its `SummaryWriter` is not used,
    since it writes in a thread whose errors are lost and for which `flush` does not wait, and two
    writers that start in the same second write to the same file.

    Parameters
    ----------
    path : str or Path
    """

    def __init__(self, path: str | Path) -> None:
        self._tensorboard: Any = optional_import("tensorboardX", "tensorboard")
        self._protocol: Any = optional_import("tensorboardX.proto.event_pb2", "tensorboard")
        super().__init__(expand_home(path).absolute())
        self._writer: Any = None
        self._last = 0  # the last epoch in the folder

    def open(self, history: Sequence[Record], measured: Sequence[str], resumed: bool) -> None:
        """Make the folder, and read the events in it."""
        del measured
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            require_writable(self.path / "events")
            files = sorted(self.path.glob("events.out.tfevents.*"))
            rows = self._read(files)
        except (OSError, ValueError) as error:  # ValueError for a NUL, or for a file of other data
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{self.path} cannot be written ({reason}); choose another folder"
            ) from error
        remedy = f"{self.path}, or remove its events.out.tfevents files"
        kept = _kept(remedy, rows, history, resumed)
        if files and not (kept or resumed):
            raise InputError(f"{self.path} has events of something else; choose another folder")
        self._last = int(rows[kept - 1]["epoch"]) if kept else 0
        self._missing = [record for record in history if record.epoch > self._last]

    def append(self, record: Record) -> None:
        """Write the record's event, after those that are missing."""
        records = [*self._missing, record]
        times = [time.time()]
        for later in records[:0:-1]:
            times.append(times[-1] - later.seconds)
        try:
            if self._writer is None:
                # Sorted by name, the files are in the order of time.
                name = f"events.out.tfevents.{time.time_ns()}"
                self._writer = self._tensorboard.RecordWriter(str(self.path / name))
                self._write(wall_time=times[-1], file_version="brain.Event:2")
                start = self._protocol.SessionLog(status=self._protocol.SessionLog.START)
                # TensorBoard drops events of older files from this step on.
                self._write(wall_time=times[-1], step=self._last + 1, session_log=start)
            for each, when in zip(records, reversed(times), strict=True):
                self._write(wall_time=when, step=each.epoch, summary={"value": _values(each)})
            self._writer.flush()
        except OSError as error:
            raise _not_written(self.path, error) from error
        self._missing = []

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):  # `append` has already raised it
                self._writer.close()

    def _write(self, **contents: Any) -> None:
        self._writer.write(self._protocol.Event(**contents).SerializeToString())

    def _read(self, files: Iterable[Path]) -> list[dict[str, float]]:
        """Return the figures of each epoch, without those that a later file replaces."""
        rows: dict[int, dict[str, float]] = {}
        for event in (event for file in files for event in self._events(file)):
            if event.session_log.status == self._protocol.SessionLog.START:
                rows = {epoch: row for epoch, row in rows.items() if epoch < event.step}
            for value in event.summary.value:
                row = rows.setdefault(event.step, {"epoch": event.step})
                row[_name(value.tag)] = value.simple_value
        return [rows[epoch] for epoch in sorted(rows)]

    def _events(self, file: Path) -> Iterator[Any]:
        """Yield the events of a file, up to an incomplete one.

        Raises
        ------
        ValueError
            If the file does not consist of events.
        """
        decode_error = optional_import("google.protobuf.message", "tensorboard").DecodeError
        whole = file.stat().st_size
        with file.open("rb") as stream:
            # An event is stored as its length (8 bytes), a checksum (4), its data, a checksum (4).
            while len(head := stream.read(12)) == 12:
                length = int.from_bytes(head[:8], "little")
                if stream.tell() + length + 4 > whole:
                    return
                try:
                    yield self._protocol.Event.FromString(stream.read(length))
                except decode_error as error:
                    raise ValueError(f"{file.name} has something else than events") from error
                stream.read(4)


def _kept(
    place: str, rows: Sequence[Mapping[str, float]], history: Sequence[Record], resumed: bool
) -> int:
    """Return the number of leading rows of a file that are records of a history.

    Figures are compared in float32, the precision of event files. Seconds are not compared, since
    `History.append` adds those of dropped records to them.
    """
    records = {record.epoch: record for record in history}
    last = history[-1].epoch if history else 0
    kept = 0
    for row in rows:
        epoch = int(row["epoch"])
        if epoch > last:
            break
        kept += 1
        if epoch not in records:  # dropped from a long history
            continue
        record = records[epoch]
        shared = row.keys() & record.keys() - {"epoch", "seconds"}
        different = [name for name in sorted(shared) if not _same(row[name], record[name])]
        if different or not shared:
            name = different[0] if different else "train_loss"
            raise InputError(
                f"epoch {epoch} is of another training run (its {name} is {row.get(name)}, here "
                f"{record.get(name)}): choose another path than {place}"
            )
    if rows and not (kept or resumed):
        raise InputError(
            f"found {len(rows)} epochs of another training run: choose another path than {place}"
        )
    return kept


def _same(one: float, other: float) -> bool:
    """Return whether two numbers are equal in float32; nan and inf count as equal, as in JSON."""
    with np.errstate(over="ignore"):
        pair = np.array([one, other]).astype("float32")
    return bool(pair[0] == pair[1] or not np.isfinite(pair).any())


def _csv_line(cells: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _values(record: Record) -> list[dict[str, Any]]:
    """Return the figures of an event; the tag of train_loss is loss/train."""
    values = []
    for name, x in record.items():
        part, _, figure = name.partition("_")
        tag = f"{figure}/{part}" if part in ("train", "validation") else name
        if name != "epoch":  # the step
            values.append({"tag": tag, "simple_value": x})
    return values


def _name(tag: str) -> str:
    """Return the name of the figure with this tag."""
    figure, _, part = tag.rpartition("/")
    return f"{part}_{figure}" if part in ("train", "validation") else tag


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written ({error.strerror}); the trainer in memory is complete: free "
        "disk space and call fit again, which also writes the missing epochs"
    )
