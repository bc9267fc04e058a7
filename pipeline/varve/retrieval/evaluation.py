"""Asks the questions of a file and compares the answers with judgements.

Invariant: documents are identified by a kept column, or by `shard/row`; of a document with several vectors, the best
one ranks it.
"""

import logging

import pyarrow as pa

from varve.errors import JobError
from varve.indexing.query_file import Questions
from varve.indexing.rows import ROW, SHARD
from varve.retrieval.judgements import Judgements
from varve.retrieval.relevance import NEEDED, Relevance, measure
from varve.retrieval.retriever import QUERY, Retriever

_VECTORS_PER_ROW = 10  # of windows and chunks: so many more vectors are ranked
_FUSED_DEPTH = 100

logger = logging.getLogger("varve")


def evaluate(retriever: Retriever, questions: Questions, judgements: Judgements, key: str | None) -> Relevance:
    """Rank the documents of every question and measure the rankings.

    Args:
        retriever: what answers.
        questions: with the ids that the judgements use.
        judgements: question → document → relevance.
        key: kept column with the ids of documents; None: `shard/row`.

    Raises:
        JobError: no question has a relevant document, or `key` is not a kept column.
        RunError: the output, the index or the model failed.
    """
    columns = [key] if key else []
    has_items = retriever.partner is None and retriever.collection.column.form != "vector"
    depth = NEEDED * _VECTORS_PER_ROW if has_items and retriever.collection.is_dense else NEEDED
    answers = retriever.answer(questions.texts, depth, columns, depth=_FUSED_DEPTH)
    rankings: dict[str, list[str]] = {question: [] for question in questions.ids}
    for question, document in zip(answers[QUERY].to_pylist(), _documents(answers, key), strict=True):
        rankings[questions.ids[question]].append(document)
    result = measure(rankings, judgements)
    if result is None:
        examples = f"{questions.ids[0]!r:.30} and {next(iter(judgements.of_question))!r:.30}"
        msg = f"none of the {len(questions):,} questions has a relevant document: are the ids the same ({examples})?"
        raise JobError(msg)
    if not result.num_found:
        judged = next(iter(next(iter(judgements.of_question.values()))))
        example = next((ranked[0] for ranked in rankings.values() if ranked), "none")
        logger.warning(
            "no document that was found is judged: is --key right? A judged document is %r, one that was found %r",
            judged, example,
        )  # fmt: skip
    return result


def _documents(answers: pa.Table, key: str | None) -> list[str]:
    if key:
        return [str(value) for value in answers[key].to_pylist()]
    pairs = zip(answers[SHARD].to_pylist(), answers[ROW].to_pylist(), strict=True)
    return [f"{shard}/{row}" for shard, row in pairs]
