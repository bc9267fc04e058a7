"""A table for notebooks: one self-contained fragment of HTML.

Invariant: every text is escaped and cut; the style is inline and works on light and dark backgrounds.
"""

from collections.abc import Sequence
from html import escape

from varve.pages import label

MAX_ROWS, _MAX_COLUMNS, _MAX_CHARACTERS = 100, 30, 120
_TABLE = "border-collapse: collapse; font: 13px system-ui, sans-serif; font-variant-numeric: tabular-nums"
_CELL = (
    "text-align: left; vertical-align: top; padding: 4px 12px 4px 0; border-bottom: 1px solid rgb(128 128 128 / .35)"
)


def html_table(caption: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table of plain texts.

    Args:
        caption: above the table.
        header: titles of the columns.
        rows: cells; at most 100 rows and 30 columns are shown, with the number of the others.
    """
    titles = "".join(
        f'<th scope="col" style="{_CELL}; opacity: .7">{_text(cell)}</th>' for cell in header[:_MAX_COLUMNS]
    )
    lines = "".join(f"<tr>{_cells(row)}</tr>" for row in rows[:MAX_ROWS])
    more = f"<p>{len(rows) - MAX_ROWS:,} more rows</p>" if len(rows) > MAX_ROWS else ""
    return (
        f'<table style="{_TABLE}"><caption style="text-align: left; padding: 4px 0; font-weight: 600">{_text(caption)}'
        f"</caption><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table>{more}"
    )


def _cells(row: Sequence[object]) -> str:
    return "".join(f'<td style="{_CELL}">{_text(cell)}</td>' for cell in row[:_MAX_COLUMNS])


def _text(text: object) -> str:
    return f"<bdi>{escape(label.label(text, _MAX_CHARACTERS))}</bdi>"
