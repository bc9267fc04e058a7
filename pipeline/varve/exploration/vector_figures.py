"""The plots of texts and vectors: lengths, scripts, variance, anisotropy and similarity of layers.

Knows nothing of HTML and of runs. Invariant: each plot comes with a table of the same figures.
"""

from collections.abc import Callable, Sequence

from varve.exploration.measures.layer_similarity import LayerSimilarity
from varve.exploration.measures.text_statistics import TextStatistics
from varve.exploration.measures.vector_statistics import VectorStatistics
from varve.pages.bar_plot import bar_plot
from varve.pages.figure import Figure
from varve.pages.heat_map import heat_map
from varve.pages.histogram import histogram
from varve.pages.line_plot import Series, line_plot

_MAX_CURVES = 8  # a reader cannot distinguish more


def length_figure(texts: TextStatistics) -> Figure:
    """Tokens per row, with the number of tokens at which texts were cut."""
    marks = [(float(texts.max_tokens), f"cut at {texts.max_tokens}")] if texts.num_truncated else []
    return histogram("Tokens per row", "Tokens", texts.length_edges, texts.length_counts, marks=marks)


def script_figure(texts: TextStatistics) -> Figure:
    """Shares of the letters of the sampled texts."""
    names, shares = [name for name, _ in texts.scripts], [100 * share for _, share in texts.scripts]
    return bar_plot("Scripts of the sampled texts", "Percent of the letters", names, shares, form="{:.1f} %")


def spectrum_figure(vectors: Sequence[VectorStatistics]) -> Figure:
    """Share of the variance on the first principal components, summed up."""
    series = []
    for each in _spread(vectors):
        sums, total = [], 0.0
        for share in each.spectrum:
            total += 100 * share
            sums.append(total)
        series.append(Series(each.name, list(range(1, len(sums) + 1)), sums))
    title = "Variance on the first principal components"
    return line_plot(title, "Number of components", "Percent of the variance", series)


def _spread(vectors: Sequence[VectorStatistics]) -> Sequence[VectorStatistics]:
    """At most `_MAX_CURVES` features, evenly spread over their order."""
    if len(vectors) <= _MAX_CURVES:
        return vectors
    return [vectors[round(at * (len(vectors) - 1) / (_MAX_CURVES - 1))] for at in range(_MAX_CURVES)]


def anisotropy_figure(vectors: Sequence[VectorStatistics]) -> Figure:
    """Mean cosine of random pairs, by layer or by feature."""
    return _by_layer(vectors, "Mean cosine of random pairs", "Mean cosine", lambda each: each.anisotropy, "{:.3f}")


def rank_figure(vectors: Sequence[VectorStatistics]) -> Figure:
    """Effective rank, by layer or by feature."""
    return _by_layer(vectors, "Effective rank", "Effective rank", lambda each: each.effective_rank, "{:.1f}")


def _by_layer(
    vectors: Sequence[VectorStatistics],
    title: str,
    axis: str,
    value: Callable[[VectorStatistics], float],
    form: str,
) -> Figure:
    """A curve for each feature of several layers; bars if no feature has several."""
    families: dict[str, list[VectorStatistics]] = {}
    for each in vectors:
        if each.layer is not None:
            families.setdefault(each.family, []).append(each)
    curves = {family: members for family, members in families.items() if len(members) > 1}
    if not curves:
        return bar_plot(title, axis, [each.name for each in vectors], [value(each) for each in vectors], form=form)
    alone = [each for each in vectors if each.layer is not None and each.family not in curves]
    curves |= {each.name: [each] for each in alone}
    series = [
        Series(family, [each.layer or 0 for each in members], [value(each) for each in members])
        for family, members in curves.items()
    ]
    return line_plot(f"{title}, by layer", "Layer (0: embeddings)", axis, series)


def norm_figure(vectors: VectorStatistics) -> Figure:
    """Norms of the vectors of one feature."""
    return histogram(f"Norms of {vectors.name}", "Euclidean norm", vectors.norm_edges, vectors.norm_counts)


def similarity_figure(similarity: LayerSimilarity) -> Figure:
    """Linear CKA between features."""
    return heat_map("Similarity of features (linear CKA)", similarity.names, similarity.values)
