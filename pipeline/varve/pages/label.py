"""Short texts of plots: names and labels from outside, numbers, durations.

Invariant: a label is one line of bounded length whose writing direction cannot reach the text around it.
"""

import math
import unicodedata

MAX_CHARACTERS = 32
MINUS, NO_VALUE = "\u2212", "\u2013"  # a real minus, an en dash
# Characters that embed or override a writing direction; without them only the letters decide.
_DIRECTIONS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}
_ISOLATE, _END_ISOLATE = "\u2068", "\u2069"
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"))


def label(text: object, limit: int = MAX_CHARACTERS) -> str:
    """A text as one line of at most `limit` characters, without control characters, isolated if right-to-left."""
    head = str(text)[: 16 * limit]
    kept = "".join(" " if unicodedata.category(c) in {"Cc", "Cs"} else c for c in head if ord(c) not in _DIRECTIONS)
    line = " ".join(kept.split())
    if len(line) > limit or len(str(text)) > len(head):
        line = f"{line[: limit - 1]}…"
    is_rtl = any(unicodedata.bidirectional(c) in {"R", "AL", "AN"} for c in line)
    return f"{_ISOLATE}{line}{_END_ISOLATE}" if is_rtl else line


def width_px(text: str) -> float:
    """About how wide a text is at 13 pixels in a wide font; wide East Asian characters and emoji count twice."""
    return sum(
        13.0 if unicodedata.east_asian_width(c) in {"W", "F"} else 7.6 for c in text if not unicodedata.combining(c)
    )


def number(value: float) -> str:
    """A number with six significant digits and a real minus; a dash if it is not finite."""
    if not math.isfinite(value):
        return NO_VALUE
    is_whole = float(value).is_integer() and abs(value) < 1e15
    large = is_whole or 1e6 <= abs(value) < 1e15
    return (f"{value:,.0f}" if large else f"{value:,.6g}").replace("-", MINUS)


def formatted(value: float, form: str) -> str:
    """A number in a format like `{:.3f}` with a real minus; a dash if it is not finite."""
    return form.format(value).replace("-", MINUS) if math.isfinite(value) else NO_VALUE


def tick_texts(values: list[float]) -> list[str]:
    """Numbers of an axis in equal steps, all with the same decimals and suffix."""
    step = values[1] - values[0] if len(values) > 1 else 0.0
    largest = max(map(abs, values), default=0.0)
    if step == 0:
        return [number(value) for value in values]
    if largest >= 1e15 or step < 1e-4:
        return [formatted(value, "{:.3g}") for value in values]
    size, suffix = next(((size, suffix) for size, suffix in _SUFFIXES if size <= largest), (1.0, ""))
    is_exact = (at for at in range(6) if abs(round(step / size, at) - step / size) < 1e-9 * step / size)
    form = f"{{:,.{next(is_exact, 6)}f}}"
    return [formatted(value / size, form) + suffix if value else "0" for value in values]


def duration(seconds: float) -> str:
    """A time as `5 s`, `3 min 20 s`, `1 h 40 min` or `2 d 4 h`; a dash if it is not finite."""
    if not math.isfinite(seconds):
        return NO_VALUE
    if abs(seconds) < 60:
        return f"{seconds:.3g} s".replace("-", MINUS)
    sign, rest = MINUS if seconds < 0 else "", abs(seconds)
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        whole, part = divmod(round(rest / smaller), size // smaller)
        if whole:
            return f"{sign}{whole:,} {name}" + (f" {part} {smaller_name}" if part else "")
    return f"{sign}{rest:.0f} s"
