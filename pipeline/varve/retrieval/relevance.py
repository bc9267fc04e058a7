"""How well rankings agree with judgements: nDCG@10, recall@100 and MRR@10, each with a 95 % interval.

    nDCG@10     sum over the ranks i = 1..10 of (2^relevance - 1) / log2(i + 1), divided by that of the best ranking of
                all judged documents (Burges et al. 2005, Learning to Rank using Gradient Descent, section 7)
    recall@100  share of the relevant documents that are among the first 100
    MRR@10      1 / rank of the first relevant document, 0 if it is not among the first 10

A document without a judgement has the relevance 0, as have negative ones. The interval is the mean plus and minus 1.96
standard errors over the questions. Knows nothing of vectors and files. Invariant: only questions with a relevant
document count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varve.retrieval.judgements import Judgements

NEEDED = 100  # documents of each ranking
_AT, _RECALL_AT = 10, 100
_QUANTILE = 1.96


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over questions with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> "Mean":
        """The mean of one value per question."""
        mean = float(values.mean())
        error = _QUANTILE * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        return cls(mean, mean - error, mean + error)


@dataclass(frozen=True, slots=True)
class Relevance:
    """The result.

    Attributes:
        ndcg_at_10, recall_at_100, mrr_at_10: means over the judged questions.
        num_questions: that count.
        num_unjudged: questions without a relevant document, which are left out.
        num_found: judged documents, relevant or not, among all ranked ones.
    """

    ndcg_at_10: Mean
    recall_at_100: Mean
    mrr_at_10: Mean
    num_questions: int
    num_unjudged: int
    num_found: int


def measure(rankings: Mapping[str, Sequence[str]], judgements: Judgements) -> Relevance | None:
    """Compare rankings with judgements.

    Args:
        rankings: question → documents, the best first; a document that occurs again is ignored.
        judgements: of the questions.

    Returns:
        The measures; None if no question has a relevant document.
    """
    judged = {question: list(dict.fromkeys(ranked)) for question, ranked in rankings.items()}
    counted = {question: ranked for question, ranked in judged.items() if judgements.relevant(question)}
    if not counted:
        return None
    values = np.array([_measure(ranked, judgements.relevant(question)) for question, ranked in counted.items()])
    found = (len(judgements.of_question[question].keys() & set(ranked)) for question, ranked in counted.items())
    return Relevance(
        *(Mean.of(column) for column in values.T),
        num_questions=len(counted),
        num_unjudged=len(rankings) - len(counted),
        num_found=sum(found),
    )


def _measure(ranked: Sequence[str], relevant: Mapping[str, int]) -> tuple[float, float, float]:
    """(nDCG@10, recall@100, MRR@10) of one question."""
    grades = np.array([relevant.get(document, 0) for document in ranked[:_AT]])
    best = np.sort(list(relevant.values()))[::-1][:_AT]
    first = np.flatnonzero(grades > 0)
    recall = len(relevant.keys() & set(ranked[:_RECALL_AT])) / len(relevant)
    return _gain(grades) / _gain(best), recall, 1 / (1 + int(first[0])) if len(first) else 0.0


def _gain(grades: NDArray) -> float:
    """Discounted cumulative gain, the best document first."""
    return float(((2.0**grades - 1) / np.log2(np.arange(len(grades)) + 2)).sum())
