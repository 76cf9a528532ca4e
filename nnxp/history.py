"""History: the records of all finished epochs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nnxp.table import Table

MAX_RECORDS = 10_000
"""The largest number of records in a history."""
_SHOWN = 5  # records at the beginning and at the end of a table


class Figures(Mapping[str, float]):
    """Figures by name, also as attributes: ``x["loss"]`` and ``x.loss``.

    Parameters
    ----------
    **figures : float
        The figures by name.
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
        The number of the epoch, counted from 1.
    train_loss : float
        The mean loss of the training examples, including the penalty; see ``train_metrics`` of
        `Trainer.fit`.
    train_accuracy : float, optional
        The share of correct training examples; missing if the loss is not for classes.
    validation_loss, validation_accuracy : float, optional
        Loss and accuracy of the validation examples after the epoch; missing if there are none.
    penalty : float, optional
        The penalty, which the losses include; missing if there is none.
    seconds : float
        Wall time of the epoch and its evaluation, plus that of dropped records before it.
    **figures : float
        Further figures, such as ``train_top5_accuracy``.
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


class History(list[Record]):
    """The records of a training run, one for each finished epoch.

    At most `MAX_RECORDS` are kept, to limit memory and the size of checkpoints.
    """

    def append(self, record: Record) -> None:
        """Append a record; if there are more than `MAX_RECORDS`, drop every second one.

        The first and the last record are always kept. So the history still covers the whole
        training run, with fewer records of early epochs.
        """
        super().append(record)
        while len(self) > MAX_RECORDS:
            start = 2 - len(self) % 2  # an even number of records follows
            self[start:] = [
                Record(**{**kept, "seconds": dropped.seconds + kept.seconds})
                for dropped, kept in zip(self[start::2], self[start + 1 :: 2], strict=True)
            ]

    def table(self) -> Table:
        """Return a table of the first and the last records."""
        shown = [*self] if len(self) <= 2 * _SHOWN else [*self[:_SHOWN], *self[-_SHOWN:]]
        names = list(dict.fromkeys(name for record in shown for name in record))
        names.sort(key=lambda name: name == "seconds")
        rows = [
            [str(record.epoch), *(_number(record.get(name)) for name in names[1:])]
            for record in shown
        ]
        if len(shown) < len(self):
            rows.insert(_SHOWN, ["…"] * len(names))
        return Table([[name.replace("_", " ") for name in names], *rows])

    def __repr__(self) -> str:
        return repr(self.table()) if self else "no finished epochs"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() if self else "no finished epochs"


def _number(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.4f}"
