"""Table: text in aligned columns, which a notebook shows as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self


class Table(str):
    """The text of a table; its ``repr`` is the text itself.

    Parameters
    ----------
    rows : sequence of sequence of str
        The cells; the first row has the names of the columns.
    left : int, optional
        The number of leading columns that are aligned to the left; others are aligned to the right.
    footer : str, optional
        A line below the table.
    """

    __slots__ = ("_footer", "_rows")
    _rows: Sequence[Sequence[str]]
    _footer: str

    def __new__(cls, rows: Sequence[Sequence[str]], *, left: int = 0, footer: str = "") -> Self:
        """Lay out the text."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                f"{cell:<{width}}" if i < left else f"{cell:>{width}}"
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        table = super().__new__(cls, "\n".join([*lines, footer] if footer else lines))
        table._rows, table._footer = rows, footer
        return table

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)  # a copy is plain text

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        import html

        kinds = ["th", *["td"] * (len(self._rows) - 1)]
        rows = [
            "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row)
            for kind, row in zip(kinds, self._rows, strict=True)
        ]
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table>{body}</table>{html.escape(self._footer)}"
