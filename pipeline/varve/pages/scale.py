"""Values → pixels, and the round numbers of an axis. Pure.

Invariant: no value breaks a scale: infinities and NaN are left out of ranges, a range of zero is widened, and what is
drawn outside of the range is moved to its end.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_LARGEST = 1e300  # differences of two values stay finite
_STEPS, _WHOLE_STEPS = (1, 2, 2.5, 5, 10), (1, 2, 5, 10)
_TIME_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from [low, high] to pixels [start, stop]; pixels may run backwards."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The pixel of a value, with one decimal; values outside of the range are moved to its end."""
        share = (value - self.low) / (self.high - self.low or 1)
        share = min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
        return round(self.start + share * (self.stop - self.start), 1)


def as_floats(values: ArrayLike) -> NDArray[np.float64]:
    """One-dimensional float64 values; infinities become NaN, and what is too large for a difference is cut."""
    array = np.asarray(values, np.float64).ravel()
    return np.clip(np.where(np.isfinite(array), array, np.nan), -_LARGEST, _LARGEST)


def value_range(arrays: Iterable[ArrayLike], *, margin: float = 0.0, zero: bool = False) -> tuple[float, float]:
    """Smallest and largest finite value of all arrays, widened by a share of their distance.

    Args:
        arrays: of any lengths; (0, 1) if they hold no finite value.
        margin: share of the distance that is added at each end.
        zero: include zero, and add no margin beyond it.
    """
    found = [array[np.isfinite(array)] for array in map(as_floats, arrays)]
    ends = [end for array in found if len(array) for end in (float(array.min()), float(array.max()))]
    if not ends:
        return 0.0, 1.0
    low, high = min(ends), max(ends)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    if high - low <= 1e-12 * max(abs(low), abs(high)) or high - low < 1e-300:
        pad = abs(high) * 0.1 if abs(high) > 1e-290 else 1.0
        return (low, high + pad) if zero and low >= 0 else (low - pad, high + pad)
    extra = margin * (high - low)
    return (low if zero and low == 0 else low - extra), (high if zero and high == 0 else high + extra)


def ticks(low: float, high: float, count: int = 6, *, whole: bool = False) -> list[float]:
    """About `count` round numbers between two values; whole numbers only if `whole`."""
    rough = (high - low) / max(count, 1)
    if not math.isfinite(rough) or rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((power * at for at in (_WHOLE_STEPS if whole else _STEPS) if power * at >= rough * (1 - 1e-9)), rough)
    return _multiples(low, high, max(step, 1.0) if whole else step)


def time_ticks(low: float, high: float, count: int = 8) -> list[float]:
    """About `count` round times in seconds between two times."""
    rough = (high - low) / max(count, 1)
    if rough < 1:
        return ticks(low, high, count)
    days = math.ceil(rough / 86400)
    return _multiples(low, high, next((step for step in _TIME_STEPS_S if step >= rough), days * 86400))


def _multiples(low: float, high: float, step: float) -> list[float]:
    if step <= 0 or not math.isfinite(low / step) or not math.isfinite(high / step):
        return [low]
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    decimals = max(0, 12 - math.floor(math.log10(step)))
    return [round(at * step, min(decimals, 300)) for at in range(first, min(last, first + 60) + 1)]
