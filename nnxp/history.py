"""History: what each epoch of training came to, in plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

MAX_RECORDS = 10_000
"""How many records a history keeps."""


@dataclass(frozen=True, slots=True)
class Record:
    """One epoch; its losses and accuracies are measured after it, all with the same weights.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    train_loss, train_accuracy : float
        On all training examples.
    validation_loss, validation_accuracy : float or None
        On the validation examples; None without any.
    seconds : float
        Wall time of the epoch, its evaluation included; that of epochs dropped before it counts in.
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
    """Append a record; of more than `MAX_RECORDS`, drop every second, but never the first or last.

    So memory and checkpoints stay small however long a training lasts, and its curve stays whole:
    the older a part of it is, the fewer of its epochs are left.
    """
    history.append(record)
    while len(history) > MAX_RECORDS:
        start = 2 - len(history) % 2  # so that pairs are left
        history[start:] = [
            replace(kept, seconds=dropped.seconds + kept.seconds)
            for dropped, kept in zip(history[start::2], history[start + 1 :: 2], strict=True)
        ]
