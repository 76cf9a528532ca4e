"""History: the records of all finished epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MAX_RECORDS = 10_000
"""The largest number of records in a history."""


class Figures(Mapping[str, float]):
    """Measured numbers by name, which are attributes too: ``x["loss"]`` and ``x.loss``.

    Parameters
    ----------
    figures : float
        By name.
    """

    def __init__(self, **figures: float) -> None:
        self._figures = figures

    def __getitem__(self, name: str) -> float:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._figures[name]
        except KeyError:
            raise AttributeError(
                f"{name} was not measured; there are {', '.join(self._figures)}"
            ) from None

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={x!r}" for name, x in self._figures.items())
        return f"{type(self).__name__}({shown})"


class Record(Figures):
    """The figures of one epoch, by name and as attributes.

    Parameters
    ----------
    epoch : int
        Counted from 1.
    train_loss : float
        The mean over the training examples, the penalty included; see ``train_metrics`` of
        `Trainer.fit`.
    train_accuracy : float, optional
        The share of correct examples; missing if there are no classes.
    validation_loss, validation_accuracy : float, optional
        On the validation examples, after the epoch; missing if there are none.
    penalty : float, optional
        How much of the losses the penalty is.
    seconds : float
        Wall time of the epoch and its evaluation, and of dropped records before it.
    figures : float
        What else was measured, such as ``train_top5_accuracy``.
    """

    __slots__ = ()

    def __init__(self, epoch: int, *, train_loss: float, seconds: float, **figures: float) -> None:
        super().__init__(epoch=epoch, train_loss=train_loss, **figures, seconds=seconds)

    def __str__(self) -> str:
        shown = [
            f"{name.replace('_', ' ')} {x:.4f}"
            for name, x in self.items()
            if name not in ("epoch", "seconds")
        ]
        return "  ".join([f"epoch {self.epoch:3d}", *shown, f"{self.seconds:.2f} s"])


def append_record(history: list[Record], record: Record) -> None:
    """Append a record; if there are more than `MAX_RECORDS`, drop every second one.

    The first and the last are always kept. So memory and checkpoints stay small in a long training,
    and the history still covers all of it, with fewer records of old epochs.
    """
    history.append(record)
    while len(history) > MAX_RECORDS:
        start = 2 - len(history) % 2  # so that an even number follows
        history[start:] = [
            Record(**{**kept, "seconds": dropped.seconds + kept.seconds})
            for dropped, kept in zip(history[start::2], history[start + 1 :: 2], strict=True)
        ]
