"""Writing: callbacks that write the history to files during training."""

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
    """Base class of callbacks that write the record of each epoch to a file.

    Only figures per epoch are written, since figures of each step would wait for the device.

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
        """Return the file's path in the first epoch; later, the records identify the file."""
        return {} if self._file is None or trainer.epochs else {"path": str(self._file.path)}

    def start(self, trainer: Trainer) -> bool | None:
        """Open the file, and check that it belongs to this training run."""
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
    """Write the record of each epoch to a CSV file, at the end of the epoch.

    The first line has the names of the figures. All lines are complete, also after a crash. The
    file holds the trainer's history. `fit`, also after `Trainer.resume`, continues the file: it
    adds missing epochs, and removes epochs that the checkpoint does not have. The file of another
    training run raises an error before the first step. So does a file without a column for a
    figure, such as a new metric; give another path, which gets all epochs. A figure that a record
    lacks is an empty cell.

    Parameters
    ----------
    path : str or Path
        The file, in an existing folder. No other process may write to it during training.
    """

    _kind = CSVFile

    @explained('nnxp.callbacks.WriteCSV("history.csv")')
    def __init__(self, path: str | Path) -> None:
        super().__init__(path)


class WriteJSONLines(_Writer):
    """Write the record of each epoch to a file of JSON lines, at the end of the epoch.

    The file is like that of `WriteCSV`, but each line has its own names, so figures may differ
    between lines. nan and inf are written as null.

    Parameters
    ----------
    path : str or Path
        The file, in an existing folder. No other process may write to it during training.
    """

    _kind = JSONLinesFile

    @explained('nnxp.callbacks.WriteJSONLines("history.jsonl")')
    def __init__(self, path: str | Path) -> None:
        super().__init__(path)


class WriteTensorBoard(_Writer):
    """Write the record of each epoch to a folder for TensorBoard, at the end of the epoch.

    Figures are scalars by epoch, tagged ``loss/train``, ``loss/validation`` and so on. A resumed
    training run continues its folder; TensorBoard drops epochs that the checkpoint does not have.
    This callback needs the extra ``tensorboard``; ``tensorboard --logdir FOLDER`` shows the curves.

    Parameters
    ----------
    path : str or Path
        The folder, which is made if it does not exist. Each training run needs its own folder.
    """

    _kind = EventFolder

    @explained('nnxp.callbacks.WriteTensorBoard("runs/first")')
    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
