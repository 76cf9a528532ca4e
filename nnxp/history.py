"""History: the records of all finished epochs."""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_RECORDS = 10_000
"""The largest number of records in a history."""


@dataclass(frozen=True, slots=True)
class Record:
    """The results of one epoch, all measured after it with the same weights.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    train_loss, train_accuracy : float
        On all training examples.
    validation_loss, validation_accuracy : float or None
        On the validation examples; None if there are none.
    seconds : float
        Wall time of the epoch and its evaluation, and of dropped records before it.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float

    def __str__(self) -> str:
        parts = [
            f"epoch {self.epoch:3d}",
            f"train loss {self.train_loss:.4f}",
            f"train accuracy {self.train_accuracy:.4f}",
        ]
        if self.validation_accuracy is not None:
            parts.append(f"test accuracy {self.validation_accuracy:.4f}")
        return "  ".join([*parts, f"{self.seconds:.2f} s"])


def append_record(history: list[Record], record: Record) -> None:
    """Append a record; if there are more than `MAX_RECORDS`, drop every second one.

    The first and the last are always kept. So memory and checkpoints stay small in a long training,
    and the history still covers all of it, with fewer records of old epochs.
    """
    history.append(record)
    while len(history) > MAX_RECORDS:
        start = 2 - len(history) % 2  # so that an even number follows
        history[start:] = [
            replace(kept, seconds=dropped.seconds + kept.seconds)
            for dropped, kept in zip(history[start::2], history[start + 1 :: 2], strict=True)
        ]
