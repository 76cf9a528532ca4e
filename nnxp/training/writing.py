"""Writing: callbacks that write the history into files while a network is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnxp.checks import explained
from nnxp.history import Record
from nnxp.training.callback import Callback
from nnxp.training.history_files import CSVFile, EventFolder, HistoryFile, JSONLinesFile

if TYPE_CHECKING:
    from nnxp.training.trainer import Trainer


class _Writer(Callback):
    """Base class of callbacks that write the record of each epoch into a file.

    The figures are those of the epoch's record, since others would make each step wait for the
    device.

    Parameters
    ----------
    path : str or Path
    """

    _kind: type[HistoryFile]
    only_rank_0 = True

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._file: HistoryFile | None = None

    def saved_state(self, trainer: Trainer) -> dict[str, Any]:
        """Return the file in the first epoch, after which the records say whose file it is."""
        return {} if self._file is None or trainer.epochs else {"path": str(self._file.path)}

    def start(self, trainer: Trainer) -> bool | None:
        """Open the file, and check that it is one of this training."""
        self._file = self._kind(self.path)
        resumed = self.state.pop("path", None) == str(self._file.path)
        self._file.open(trainer.history, trainer.measured, resumed)
        return None

    def epoch(self, trainer: Trainer, record: Record) -> bool | None:
        """Write the record."""
        if self._file is not None:
            self._file.append(record)
        return None

    def finish(self, trainer: Trainer, error: BaseException | None) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = None


class WriteCSV(_Writer):
    """Write the record of each epoch into a CSV file, as soon as the epoch is over.

    The first line has the figures' names. All lines are whole, also after a crash. The file holds
    the trainer's history: `fit` continues it, also after `Trainer.resume`, writes epochs that it
    lacks, and cuts off those that a checkpoint does not have. A file of another training is
    refused before the first step. So is one without a column for a figure, such as a new metric:
    another path then gets all epochs; a figure that a record does not have is an empty cell.

    Parameters
    ----------
    path : str or Path
        In a folder that exists. No other process may write this file meanwhile.
    """

    _kind = CSVFile

    @explained('nnxp.callbacks.WriteCSV("history.csv")')
    def __init__(self, path: str | Path) -> None:
        super().__init__(path)


class WriteJSONLines(_Writer):
    """Write the record of each epoch into a file of JSON lines, as soon as the epoch is over.

    As `WriteCSV`, but each line has its own names, and so may have other figures. JSON has no nan
    and no inf: both are null.

    Parameters
    ----------
    path : str or Path
        In a folder that exists. No other process may write this file meanwhile.
    """

    _kind = JSONLinesFile

    @explained('nnxp.callbacks.WriteJSONLines("history.jsonl")')
    def __init__(self, path: str | Path) -> None:
        super().__init__(path)


class WriteTensorBoard(_Writer):
    """Write the record of each epoch into a folder for TensorBoard, as soon as the epoch is over.

    Figures are scalars by epoch, tagged ``loss/train``, ``loss/validation`` and so on. A resumed
    training continues the folder as `WriteCSV` does its file; TensorBoard drops epochs that the
    checkpoint does not have. Needs the extra ``tensorboard``; ``tensorboard --logdir FOLDER`` shows
    the curves.

    Parameters
    ----------
    path : str or Path
        The folder, which is made if it does not exist. Trainings side by side need one each.
    """

    _kind = EventFolder

    @explained('nnxp.callbacks.WriteTensorBoard("runs/first")')
    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
