"""What is in the sampled rows: neighbours, near duplicates, and positions of a map.

Knows nothing of parts and pages. Invariants: scores are cosines of the stored vectors; neighbours and pairs are exact
within the sample.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from varve.exploration.measures.text_statistics import RowText

if TYPE_CHECKING:
    from varve.pages.scatter_map import MapLayer


@dataclass(frozen=True, slots=True)
class NeighbourList:
    """A row and its nearest rows of the sample with their cosines, the nearest first."""

    row: RowText
    nearest: tuple[tuple[RowText, float], ...]


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two rows and the cosine of their vectors."""

    one: RowText
    other: RowText
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What is in the sample.

    Attributes:
        feature: column whose vectors are compared: the first with one vector per row, of the highest layer.
        neighbours: of rows drawn with the seed.
        near_duplicates: pairs of the highest cosine, at most 20.
        num_near_duplicates: pairs of the sample that reach the threshold, equal vectors among them.
        num_compared: rows of the sample whose pairs were compared.
        threshold: a cosine.
        layers: principal components of the map's rows, one per feature with one vector per row.
        classes: values of the color column in the order of their numbers; empty without a color or for numbers.
        labels: one per row of the map: number of its class, or its value, None if it has none; empty without a color.
        texts: one per row of the map.
        color: the kept column; None without one.
    """

    feature: str
    neighbours: tuple[NeighbourList, ...]
    near_duplicates: tuple[DuplicatePair, ...]
    num_near_duplicates: int
    num_compared: int
    threshold: float
    layers: "tuple[MapLayer, ...]"
    classes: tuple[str, ...]
    labels: tuple[int | float | None, ...]
    texts: tuple[str, ...]
    color: str | None
