"""What the report of an output shows: figures of its run, and statistics of its texts and vectors.

Knows nothing of pages. Invariants: memory is bounded, whatever the size of the output; the same seed gives the same
report; a source or a checkpoint that is gone leaves its part of the report empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from varve.exploration.measures.color_labels import check_color, make_labels
from varve.exploration.measures.content import Content, describe_content
from varve.exploration.measures.cross_products import MAX_WIDTH
from varve.exploration.measures.described_texts import DescribedTexts, describe_texts
from varve.exploration.measures.layer_similarity import LayerSimilarity, compare_layers
from varve.exploration.measures.principal_components import PrincipalComponents
from varve.exploration.measures.text_statistics import ErrorGroup, RowText, TextStatistics
from varve.exploration.measures.token_lengths import RowCounts, count_rows
from varve.exploration.measures.vector_statistics import VectorStatistics, describe_vectors
from varve.exploration.measures.window_effect import MAX_TEXTS
from varve.exploration.row_sample import RowSample, read_sample
from varve.exploration.sampled_texts import RowId, SampledTexts
from varve.monitoring.run_history import History, read_histories
from varve.output.feature_sets import JoinedOutput
from varve.output.feature_sets import open as open_output
from varve.output.manifest import Manifest
from varve.output.run_output import Output


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
    histories: tuple[History, ...]
    texts: TextStatistics
    vectors: tuple[VectorStatistics, ...]
    similarity: LayerSimilarity | None
    content: Content | None
    num_sampled: int
    seed: int
    price_per_hour: float | None


def make_report(path: str, *, seed: int = 0, color: str | None = None, price_per_hour: float | None = None) -> Report:
    """Read what the report of a finished output shows.

    Args:
        path: of the output, or of one of its further feature sets.
        seed: of all samples, 0 or more.
        color: kept column whose values color the map.
        price_per_hour: of the machines of the run.

    Raises:
        JobError: there is no finished output with rows, or the column cannot be shown as colors.
        RunError: a part is missing or damaged.
    """
    output = open_output(path)
    if color is not None:
        check_color(output, color)
    sample = read_sample(output, seed, [] if color is None else [color])
    labels = None if color is None else make_labels(sample.kept[color])
    counts = count_rows(output)
    described = _read_texts(output, sample, counts, seed)
    components = {name: PrincipalComponents.of(each) for name, each in _narrow(sample).items() if len(each)}
    features = list(output.features.values())
    on_map = {name: components[name] for name in sample.vectors if name in components}
    return Report(
        path=output.path,
        manifest=output.manifest,
        histories=tuple(read_histories(output.storage)),
        texts=_text_statistics(output, counts, described),
        vectors=_vector_statistics(output, sample, components, seed),
        similarity=compare_layers(sample.vectors) if len(sample) else None,
        content=describe_content(sample, features, on_map, described.shown, labels, color, seed),
        num_sampled=len(sample),
        seed=seed,
        price_per_hour=price_per_hour,
    )


def _narrow(sample: RowSample) -> Mapping[str, Any]:
    """The vectors of features that are not too wide for principal components."""
    return {name: each for name, each in {**sample.vectors, **sample.lists}.items() if each.shape[1] <= MAX_WIDTH}


def _read_texts(output: Output, sample: RowSample, counts: RowCounts, seed: int) -> DescribedTexts:
    ids = list(zip(sample.shards.tolist(), sample.rows.tolist(), strict=True))
    cut = np.flatnonzero(sample.truncated)
    cut = np.random.default_rng([seed, 5]).permutation(cut)[:MAX_TEXTS]
    failed = [row_id for examples in counts.examples.values() for row_id in examples]
    return describe_texts(SampledTexts(output), ids, [ids[at] for at in cut], failed, seed)


def _text_statistics(output: Output, counts: RowCounts, described: DescribedTexts) -> TextStatistics:
    edges, lengths = counts.histogram()
    max_tokens = output.metadata["max_tokens"]
    return TextStatistics(
        num_encoded=sum(lengths),
        length_edges=edges,
        length_counts=lengths,
        max_tokens=max_tokens if isinstance(max_tokens, int) else 0,  # whoever wrote it
        num_truncated=counts.num_truncated,
        windows=described.windows,
        scripts=described.scripts,
        repeats=described.repeats,
        errors=tuple(_error_groups(counts, described.shown)),
        num_texts=described.num_texts,
        no_texts=described.problem,
    )


def _error_groups(counts: RowCounts, shown: Mapping[RowId, str]) -> Sequence[ErrorGroup]:
    return [
        ErrorGroup(reason, rows, tuple(RowText(*row_id, shown.get(row_id, "")) for row_id in counts.examples[reason]))
        for reason, rows in counts.reasons.most_common()
    ]


def _vector_statistics(
    output: Output, sample: RowSample, components: Mapping[str, PrincipalComponents], seed: int
) -> tuple[VectorStatistics, ...]:
    vectors, figures = {**sample.vectors, **sample.lists}, _canary_figures(output)
    return tuple(
        describe_vectors(column, vectors.get(name), components.get(name), seed, figures.get(name))
        for name, column in output.features.items()
    )


def _canary_figures(output: Output) -> dict[str, dict[str, Any]]:
    """Feature → its figures in the manifest of its set; values of another form are left out, whoever wrote them."""
    listed = [each.manifest.canary.get("features") for each in _sets(output)]
    figures = [item for features in listed if isinstance(features, dict) for item in features.items()]
    return {name: values for name, values in figures if isinstance(values, dict) and _are_numbers(values)}


def _sets(output: Output) -> Sequence[Output]:
    return output.sets if isinstance(output, JoinedOutput) else (output,)


def _are_numbers(values: dict[str, Any]) -> bool:
    return all(isinstance(value, int | float) for value in values.values())
