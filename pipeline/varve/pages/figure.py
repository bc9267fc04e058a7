"""A drawn plot with the table behind it.

Knows nothing of runs, nor of the page around it. Invariant: `svg` is safe markup in which every text from outside is
escaped; `header` and `rows` are plain text, which the page escapes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from varve.pages import label, svg_element
from varve.pages.plot_style import STYLE

MAX_TABLE_ROWS = 200
_MAX_TITLE, _MAX_CELL = 200, 400


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot and its values.

    Attributes:
        title: what the plot shows, plain text.
        svg: the markup of the plot.
        header: titles of the table's columns, plain text.
        rows: the table for readers who cannot see the plot, at most MAX_TABLE_ROWS rows of plain text.
        note: what the plot or the table leaves out; empty if nothing.
    """

    title: str
    svg: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def standalone(self) -> str:
        """The plot as an SVG file of its own: with its style and a background."""
        start = self.svg.index(">") + 1
        style = f'<style>{STYLE}</style><rect width="100%" height="100%" fill="var(--ground)"/>'
        return f"{self.svg[:start]}{style}{self.svg[start:]}\n"


def make_figure(
    title: str,
    size: tuple[float, float],
    content: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    note: str = "",
) -> Figure:
    """A figure whose texts are cut.

    Args:
        title: what the plot shows.
        size: width and height of the plot, pixels.
        content: markup inside of the plot.
        header: titles of the table's columns.
        rows: of the table; further rows than MAX_TABLE_ROWS are left out.
        note: what the plot or the table leaves out.
    """
    name = label.label(title, _MAX_TITLE)
    cells = [
        tuple(label.label(cell, _MAX_CELL) for cell in row) for _, row in zip(range(MAX_TABLE_ROWS), rows, strict=False)
    ]
    titles = tuple(label.label(cell, _MAX_CELL) for cell in header)
    return Figure(name, svg_element.document(*size, name, content), titles, tuple(cells), note)
