"""Elements of SVG as text: the document, texts, lines, rectangles, marks. Pure.

Invariant: every text is escaped here, so callers pass plain text. Colour is never the only difference of marks: their
shapes differ too.
"""

from html import escape
from zlib import crc32

from varve.pages.label import width_px
from varve.pages.plot_style import NUM_COLOURS

DASHES = ("", "7 4", "2 3", "9 3 2 3")  # of lines: another one after each round of shapes
_NUM_SHAPES = 4
LEGEND_ROW_PX = 21


def document(width: float, height: float, title: str, content: str) -> str:
    """An SVG element of class `plot` with a title for screen readers."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {px(width)} {px(height)}" role="img" '
        f'aria-label="{escape(title)}">{content}</svg>'
    )


def px(value: float) -> str:
    """A pixel position with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def text(content: object, x: float, y: float, style: str = "", anchor: str = "middle", extra: str = "") -> str:
    """A text; `extra` holds further attributes."""
    of_class = f' class="{style}"' if style else ""
    return f'<text{of_class} x="{px(x)}" y="{px(y)}" text-anchor="{anchor}"{extra}>{escape(str(content))}</text>'


def turned_text(content: object, x: float, y: float, style: str = "", anchor: str = "middle") -> str:
    """A text that runs upwards through a point."""
    of_class = f' class="{style}"' if style else ""
    place = f'transform="translate({px(x)} {px(y)}) rotate(-90)" text-anchor="{anchor}"'
    return f"<text{of_class} {place}>{escape(str(content))}</text>"


def line(x1: float, y1: float, x2: float, y2: float, style: str = "grid", hint: str = "") -> str:
    """A line with an optional text on hover."""
    ends = f'class="{style}" x1="{px(x1)}" y1="{px(y1)}" x2="{px(x2)}" y2="{px(y2)}"'
    return f"<line {ends}>{tooltip(hint)}</line>" if hint else f"<line {ends}/>"


def rect(x: float, y: float, width: float, height: float, attributes: str, hint: str = "") -> str:
    """A rectangle with an optional text on hover."""
    place = f'x="{px(x)}" y="{px(y)}" width="{px(max(width, 0))}" height="{px(max(height, 0))}"'
    return f"<rect {place} {attributes}>{tooltip(hint)}</rect>" if hint else f"<rect {place} {attributes}/>"


def tooltip(hint: str) -> str:
    """The text that a mark shows on hover."""
    return f"<title>{escape(hint)}</title>"


def colour(number: int) -> str:
    """The CSS colour of the series with this number."""
    return f"var(--c{number % NUM_COLOURS})"


def dash(number: int) -> str:
    """The attribute that dashes lines of the second and further rounds of shapes."""
    pattern = DASHES[number // _NUM_SHAPES % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def mark(number: int, x: float, y: float, hint: str) -> str:
    """A dot whose shape and colour belong to the series with this number."""
    size = 4.5
    tag, shape = (
        ("circle", f'cx="{px(x)}" cy="{px(y)}" r="{size}"'),
        ("rect", f'x="{px(x - size)}" y="{px(y - size)}" width="{2 * size}" height="{2 * size}"'),
        ("path", f'd="M{px(x)} {px(y - 5.5)}l5.5 10h-11z"'),
        ("path", f'd="M{px(x)} {px(y - 6)}l6 6-6 6-6-6z"'),
    )[number % _NUM_SHAPES]
    return f'<{tag} {shape} fill="{colour(number)}">{tooltip(hint)}</{tag}>'


def legend(keys: list[tuple[str, str]], left: float, right: float) -> tuple[str, float]:
    """Keys and their names in rows.

    Args:
        keys: (markup of a key around the origin, name) of each entry.
        left: where rows begin, pixels.
        right: where rows end.

    Returns:
        The markup and its height in pixels.
    """
    drawn, x, y = [], left, 16.0
    for key, name in keys:
        width = 36 + width_px(name)
        if x > left and x + width > right:
            x, y = left, y + LEGEND_ROW_PX
        drawn.append(f'<g transform="translate({px(x + 7)} {px(y)})">{key}</g>{text(name, x + 20, y + 4, "", "start")}')
        x += width
    return "".join(drawn), y + LEGEND_ROW_PX - 8 if keys else 0.0


def hatch(seed: str) -> tuple[str, str]:
    """A pattern of diagonal lines: its definition, and its fill; a page may hold many of different `seed`."""
    name = f"hatch-{crc32(seed.encode('utf-8', 'replace')):08x}"
    pattern = (
        f'<defs><pattern id="{name}" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><path d="M0 0v6" stroke="var(--ground)" stroke-width="3"/></pattern></defs>'
    )
    return pattern, f"url(#{name})"
