"""What is in the sampled rows: neighbours, near duplicates, and positions of a map.

Knows nothing of parts and pages. Invariants: scores are cosines of the stored vectors; neighbours and pairs are exact
within the sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.encoder.feature_plan import Column
from varve.exploration.measures.color_labels import ColorLabels
from varve.exploration.measures.neighbourhoods import NearPairs, near_duplicates, nearest_rows
from varve.exploration.measures.principal_components import PrincipalComponents
from varve.exploration.measures.text_statistics import RowText
from varve.exploration.row_sample import SINGLE, RowSample
from varve.pages.scatter_map import MapLayer

MAP_ROWS = 3000
THRESHOLD = 0.95  # of near duplicates
_NEIGHBOUR_LISTS, _NEIGHBOURS = 8, 5
_PAIRS = 20


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
        num_equal: pairs of equal vectors.
        num_compared: rows of the sample whose pairs were compared.
        threshold: a cosine.
        layers: principal components of the map's rows, one per feature with one vector per row.
        classes: values of the color column in the order of their numbers; empty without a color or for numbers.
        labels: one per row of the map: number of its class, or its value, NaN if it has none; empty without a color.
        texts: one per row of the map.
        rows: (shard, row), one per row of the map.
        color: the kept column; None without one.
    """

    feature: str
    neighbours: tuple[NeighbourList, ...]
    near_duplicates: tuple[DuplicatePair, ...]
    num_near_duplicates: int
    num_equal: int
    num_compared: int
    threshold: float
    layers: tuple[MapLayer, ...]
    classes: tuple[str, ...]
    labels: tuple[float, ...]
    texts: tuple[str, ...]
    rows: tuple[tuple[int, int], ...]
    color: str | None


def describe_content(
    sample: RowSample,
    columns: Sequence[Column],
    components: Mapping[str, PrincipalComponents],
    texts: Mapping[tuple[int, int], str],
    labels: ColorLabels | None,
    color: str | None,
    seed: int,
) -> Content | None:
    """What is in a sample; None without a feature of one vector per row.

    Args:
        sample: rows and vectors.
        columns: features of the output.
        components: of the features that are shown in the map.
        texts: (shard, row) → text.
        labels: of the rows of the sample; None without a color.
        color: name of the kept column.
        seed: of the rows whose neighbours are listed, and of the rows of the map.
    """
    column = main_feature(columns)
    if column is None or not len(sample):
        return None
    vectors, random = sample.vectors[column.name], np.random.default_rng([seed, 4])
    shown = _Rows(sample, texts, labels)
    neighbours = _neighbour_lists(shown, vectors, random)
    pairs = near_duplicates(vectors, THRESHOLD, _PAIRS)
    on_map = np.sort(random.choice(len(sample), min(MAP_ROWS, len(sample)), replace=False))
    of_map = [shown.row(at) for at in on_map]
    return Content(
        feature=column.name,
        neighbours=neighbours,
        near_duplicates=_duplicate_pairs(shown, pairs),
        num_near_duplicates=pairs.num_pairs,
        num_equal=pairs.num_equal,
        num_compared=len(sample),
        threshold=THRESHOLD,
        layers=tuple(_layer(each, sample, components, on_map) for each in columns if each.name in components),
        classes=labels.classes if labels else (),
        labels=tuple(labels.values[at] for at in on_map) if labels else (),
        texts=tuple(row.text for row in of_map),
        rows=tuple((row.shard, row.row) for row in of_map),
        color=color,
    )


def _neighbour_lists(
    shown: "_Rows", vectors: NDArray[np.float32], random: np.random.Generator
) -> tuple[NeighbourList, ...]:
    rows = np.sort(random.choice(len(vectors), min(_NEIGHBOUR_LISTS, len(vectors)), replace=False))
    found = zip(rows, *nearest_rows(vectors, rows, _NEIGHBOURS), strict=True)
    return tuple(NeighbourList(shown.row(at), shown.scored(others, scores)) for at, others, scores in found)


def _duplicate_pairs(shown: "_Rows", pairs: NearPairs) -> tuple[DuplicatePair, ...]:
    found = zip(pairs.one, pairs.other, pairs.scores, strict=True)
    return tuple(DuplicatePair(shown.row(one), shown.row(other), float(score)) for one, other, score in found)


def main_feature(columns: Sequence[Column]) -> Column | None:
    """The first feature with one vector per row, of those the ones with the highest layer; None if there is none."""
    single = [column for column in columns if column.form == SINGLE]
    return max(single, key=lambda column: max(column.layers), default=None)  # of equal ones the first


def _layer(
    column: Column, sample: RowSample, components: Mapping[str, PrincipalComponents], rows: NDArray[np.int64]
) -> MapLayer:
    own = components[column.name]
    layer = column.layers[0] if len(column.layers) == 1 else None
    positions = own.project(sample.vectors[column.name][rows])
    return MapLayer(column.name, column.feature, layer, positions, tuple(own.shares[:2].tolist()))


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows of a sample as they are shown."""

    sample: RowSample
    texts: Mapping[tuple[int, int], str]
    labels: ColorLabels | None

    def row(self, at: int | np.integer) -> RowText:
        """The row at a position of the sample."""
        shard, row = int(self.sample.shards[at]), int(self.sample.rows[at])
        label = self.labels.shown(int(at)) if self.labels else ""
        return RowText(shard, row, self.texts.get((shard, row), ""), label)

    def scored(self, positions: NDArray[np.int64], scores: NDArray[np.float64]) -> tuple[tuple[RowText, float], ...]:
        """Rows with their scores."""
        return tuple((self.row(at), float(score)) for at, score in zip(positions, scores, strict=True))
