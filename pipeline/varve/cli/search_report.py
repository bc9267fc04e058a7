"""Answers, relevance and near duplicates as text for a terminal and as JSON.

Invariant: texts of documents are printed without control characters, so that no document drives the terminal.
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from varve.output.run_output import Output
from varve.retrieval.near_duplicates import NearDuplicates
from varve.retrieval.relevance import Mean, Relevance
from varve.retrieval.retriever import QUERY, RANK, SCORE
from varve.retrieval.row_numbers import first_numbers, read_rows

_MOST_COLUMNS = 3
_CELL = 24  # most characters of a cell that is not the last one
_LEAST_WIDTH = 20


def columns_to_show(output: Output, columns: Sequence[str]) -> list[str]:
    """A few columns for a terminal: texts and numbers, the run's own text last."""
    types = {name: output.schema.field(name).type for name in columns}
    simple = [name for name, kind in types.items() if _is_text(kind) or pa.types.is_integer(kind)]
    texts = [name for name in simple if name in output.text_columns]
    others = [name for name in simple if name not in texts]
    others.sort(key=lambda name: name in texts or _is_text(types[name]))
    return (others[: _MOST_COLUMNS - len(texts[:1])] + texts[:1])[:_MOST_COLUMNS]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def answers_to_text(texts: Sequence[str], table: pa.Table, columns: Sequence[str]) -> Iterator[str]:
    """Lines: each query, then its answers."""
    width = max(_LEAST_WIDTH, shutil.get_terminal_size().columns)
    queries = table[QUERY].to_numpy()
    for number, text in enumerate(texts):
        if len(texts) > 1:
            yield f"{'' if number == 0 else chr(10)}{clean(text, width)}\n"
        answers = table.filter(pa.array(queries == number)).to_pylist()
        yield from _lines(answers, columns, width)
        if not answers:
            yield "no row\n"


def _lines(answers: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int) -> Iterator[str]:
    """One line per answer: rank, score, shard/row with the window or chunk, and the columns."""
    rows = [
        [f"{answer[RANK]}", f"{answer[SCORE]:.4f}", _row_of(answer), *(clean(answer[name]) for name in columns)]
        for answer in answers
    ]
    cut = [[cell[:_CELL] for cell in row[:-1]] + row[-1:] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    for row in cut:
        cells = [cell.ljust(size) for cell, size in zip(row, widths, strict=True)]
        cells[:2] = [cell.rjust(size) for cell, size in zip(row[:2], widths[:2], strict=True)]  # numbers
        yield "  ".join(cells)[:width].rstrip() + "\n"


def _row_of(answer: Mapping[str, Any]) -> str:
    item = answer.get("item")
    return f"{answer['shard']}/{answer['row']}" + ("" if item is None else f"#{item}")


def clean(value: Any, width: int | None = None) -> str:
    """A value as one line of printable characters."""
    text = "" if value is None else str(value)
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 10 * (width or 1000)]).split())[:width]


def answers_to_json(texts: Sequence[str], table: pa.Table) -> list[dict[str, Any]]:
    """Each query with its answers."""
    found: list[dict[str, Any]] = [{"text": text, "answers": []} for text in texts]
    for answer in table.to_pylist():
        query = answer.pop(QUERY)
        found[query]["answers"].append(_plain(answer))
    return found


def _plain(value: Any) -> Any:
    """A value that JSON has; others as text."""
    match value:
        case dict():
            return {str(key): _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
        case _:
            return str(value)


def relevance_to_json(result: Relevance) -> dict[str, Any]:
    """The measures with their intervals."""
    return {"relevance": _plain(asdict(result))}


def relevance_to_text(result: Relevance) -> Iterator[str]:
    """Lines: the measures, then how many questions there are."""
    measures = {"nDCG@10": result.ndcg_at_10, "recall@100": result.recall_at_100, "MRR@10": result.mrr_at_10}
    for name, mean in measures.items():
        yield f"{name:<11} {mean.value:.4f}  {_interval(mean)}\n"
    left_out = f", {result.num_unjudged:,} without a relevant document left out" if result.num_unjudged else ""
    yield f"{result.num_questions:,} questions{left_out}; 95 % intervals: 1.96 standard errors over the questions\n"


def _interval(mean: Mean) -> str:
    return "" if math.isnan(mean.low) else f"[{mean.low:.4f}, {mean.high:.4f}]"


def duplicates_to_json(result: NearDuplicates, threshold: float, file: str | None) -> dict[str, Any]:
    """Counts, and the first pairs."""
    counts = {name: getattr(result, name) for name in NearDuplicates.__slots__ if name != "first"}
    return {"threshold": threshold, **counts, "first": _plain(result.first.to_pylist()), "file": file}


def texts_of_pairs(output: Output, result: NearDuplicates, columns: Sequence[str]) -> list[tuple[str, str]]:
    """The texts of the first pairs."""
    sides = []
    for prefix in ("", "other_"):
        numbers = _numbers(output, result.first[f"{prefix}shard"].to_numpy(), result.first[f"{prefix}row"].to_numpy())
        rows = read_rows(output, numbers, columns).to_pylist()
        sides.append([" ".join(clean(row[name]) for name in columns) for row in rows])
    return list(zip(*sides, strict=True))


def _numbers(output: Output, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The numbers of rows from their shards and rows."""
    parts = output.manifest.parts.columns
    first_of_shard: dict[int, int] = {}
    for shard, number in zip(parts["shard"].to_pylist(), first_numbers(output).tolist(), strict=False):
        first_of_shard.setdefault(shard, number)
    return np.array([first_of_shard[shard] for shard in shards.tolist()], np.int64) + rows


def duplicates_to_text(
    result: NearDuplicates, threshold: float, texts: Sequence[tuple[str, str]], file: str | None
) -> Iterator[str]:
    """Lines: counts, then the first pairs."""
    yield (
        f"{result.num_pairs:,} pairs of {result.num_vectors:,} vectors with a score of at least {threshold:g}, "
        f"{result.num_groups:,} groups of {result.num_rows:,} rows, the largest of {result.largest:,}\n"
    )
    if result.through_index:
        yield "An index proposed the pairs, so some may be missing; each score is exact\n"
    half = max(_LEAST_WIDTH, (shutil.get_terminal_size().columns - 40) // 2)
    for pair, (one, other) in zip(result.first.to_pylist(), texts, strict=True):
        ids = [f"{pair[f'{prefix}shard']}/{pair[f'{prefix}row']}" for prefix in ("", "other_")]
        yield f"  {pair['score']:.4f}  {ids[0]:<12} {ids[1]:<12} {one[:half]:<{half}}  {other[:half]}".rstrip() + "\n"
    if file:
        yield f"All pairs are in {file}\n"
    elif result.num_pairs > len(texts):
        yield f"and {result.num_pairs - len(texts):,} more: --output FILE writes all\n"
