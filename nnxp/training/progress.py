"""Progress: a bar over the batches of an epoch, on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def progress_bar(items: Iterable[Item], name: str, *, total: int, done: int) -> Iterable[Item]:
    """Return `items` with a progress bar on standard error, if that is a terminal.

    Parameters
    ----------
    items : iterable
        The batches that are left.
    name : str
        Shown before the bar.
    total, done : int
        The number of all batches, and of those before `items`.
    """
    from tqdm import tqdm

    bar: Iterable[Item] = tqdm(
        items, name, total=total, initial=done, leave=False, unit="batch",
        disable=None,  # shown on a terminal only
    )  # fmt: skip
    return bar
