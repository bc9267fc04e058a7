"""What the report of an output shows: figures of its run, and statistics of its texts and vectors.

Knows nothing of pages. Invariants: memory is bounded, whatever the size of the output; the same seed gives the same
report; a source or a checkpoint that is gone leaves its part of the report empty.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from varve.exploration.measures.content import Content
from varve.exploration.measures.layer_similarity import LayerSimilarity
from varve.exploration.measures.text_statistics import TextStatistics
from varve.exploration.measures.vector_statistics import VectorStatistics
from varve.output.manifest import Manifest

if TYPE_CHECKING:
    from varve.monitoring.run_history import History


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """The content of a report.

    Attributes:
        path: of the output.
        manifest: of its first feature set.
        histories: one per process that ran the job, the oldest first.
        texts: statistics of all rows and of sampled texts.
        vectors: one per feature, in the order of the output.
        similarity: None with fewer than two features of one vector per row.
        content: None without a feature of one vector per row.
        num_sampled: rows whose vectors were read.
        seed: of all samples.
        price_per_hour: of the machines of the run, in a currency of the user's; None if it is not known.
    """

    path: str
    manifest: Manifest
    histories: "tuple[History, ...]"
    texts: TextStatistics
    vectors: tuple[VectorStatistics, ...]
    similarity: LayerSimilarity | None
    content: Content | None
    num_sampled: int
    seed: int
    price_per_hour: float | None
