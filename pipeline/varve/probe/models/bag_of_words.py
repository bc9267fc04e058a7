"""The texts behind the rows, and the baseline that knows nothing but their words.

Knows nothing of vectors. Texts are read a part at a time from a kept column or, where the run kept none, from the
source again; only a sample of the training texts is held.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import hstack

from varve.errors import JobError, RunError, VarveError
from varve.preprocessing.computed_columns import is_text
from varve.probe.data.dataset import Rows
from varve.probe.data.run_output import Output
from varve.probe.data.split import TEST, TRAIN, VALIDATION
from varve.probe.models.linear import log_loss

_MAX_TRAIN, _MAX_VALIDATION = 100_000, 20_000
_MAX_CHARACTERS = 20_000
_MAX_WORDS = 50_000
_CS = (0.1, 1.0, 10.0, 100.0)
_ALPHAS = (0.1, 1.0, 10.0, 100.0)
_BYTES_PER_TOKEN = 6  # of a text, and twice that as Python strings and as a matrix


@dataclass(frozen=True, slots=True)
class Texts:
    """Where the texts of an output are."""

    output: Output
    columns: tuple[str, ...]
    from_source: bool

    @classmethod
    def find(cls, output: Output, name: str | None) -> "Texts":
        """The texts of an output.

        Args:
            output: of a run.
            name: a kept column; None: the job's own texts, kept or in the source.

        Raises:
            JobError: the column is not there or holds no text.
        """
        job = output.manifest.job["source"]["text"]
        names = (name,) if name else ((job,) if isinstance(job, str) else tuple(job))
        from_source = name is None and not set(names) <= set(output.kept)
        if name and name not in output.kept:
            msg = f"--text {name}: the run has kept no such column: it has {', '.join(output.kept) or 'kept none'}"
            raise JobError(msg)
        if name and not is_text(output.schema.field(name).type):
            msg = f"--text {name}: it holds {output.schema.field(name).type}, not text"
            raise JobError(msg)
        return cls(output, names, from_source)

    def tables(self) -> Iterator[pa.Table]:
        """The text columns of all rows of the run, in its order.

        Raises:
            VarveError: the source can't be opened as it was, or has changed.
        """
        if not self.from_source:
            for _, table in self.output.tables(self.columns):
                yield table
            return
        from varve.planning.saved_plan import recall_source  # noqa: PLC0415 (transformers, which only this needs)

        dataset = recall_source(self.output.storage)
        for shard in range(dataset.num_shards):
            for table in dataset.read(shard):
                yield table.select(list(self.columns))

    def of(self, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, list[tuple[str, ...]]]]:
        """(how many came before, texts of each row) for the wanted rows of the run, a table at a time.

        Raises:
            RunError: the source has another number of rows now.
        """
        at = given = 0
        for table in self.tables():
            chosen = np.flatnonzero(wanted[at : at + table.num_rows])
            at += table.num_rows
            if not len(chosen):
                continue
            cells = [_cells(table[name].take(pa.array(chosen))) for name in self.columns]
            yield given, list(zip(*cells, strict=True))
            given += len(chosen)
        if at != len(wanted):
            msg = f"the source has {at:,} rows now, the run had {len(wanted):,}"
            raise RunError(msg)


def _cells(column: pa.ChunkedArray) -> list[str]:
    cells = column.cast(pa.large_binary()).to_pylist()
    return [(cell or b"").decode(errors="replace")[:_MAX_CHARACTERS] for cell in cells]


def _spread(rows: Rows, side: int, most: int, seed: int) -> NDArray[np.bool_]:
    """(rows of the run,) at most so many rows of one split, at random."""
    numbers = np.flatnonzero(rows.of(side))
    if len(numbers) > most:
        numbers = np.sort(np.random.default_rng([seed, 2, side]).choice(numbers, most, replace=False))
    chosen = np.zeros(len(rows.split), np.bool_)
    chosen[numbers] = True
    return chosen


def score_words(
    texts: Texts, rows: Rows, seed: int, memory_bytes: int
) -> tuple[NDArray[np.float32], dict[str, float], list[str]]:
    """TF-IDF of the training rows' words, and a linear model on it.

    Returns:
        (scores of all test rows, the regularisation that the validation rows chose, notes).

    Raises:
        VarveError: the texts can't be read.
    """
    tokens = texts.output.manifest.num_tokens / texts.output.manifest.num_rows
    most = int(np.clip(memory_bytes / (4 * _BYTES_PER_TOKEN * 2 * max(tokens, 1)), 1000, _MAX_TRAIN))
    sampled = {
        TRAIN: _spread(rows, TRAIN, most, seed),
        VALIDATION: _spread(rows, VALIDATION, min(most, _MAX_VALIDATION), seed),
    }
    held = _read(texts, rows, sampled)
    notes = []
    if sampled[TRAIN].sum() < rows.sizes["train"]:
        notes.append(f"bag of words: trained on a sample of {int(sampled[TRAIN].sum()):,} training rows")
    bags = _Bags(len(texts.columns))
    model, chosen = _fit(bags, held, rows, sampled)
    seen = {hash(text) for text in held[TRAIN]}
    scores, known = [], 0
    for _, some in texts.of(_in_run(rows, rows.of(TEST))):
        known += sum(hash(text) in seen for text in some)
        scores.append(_scores(model, bags.transform(some), rows))
    if known:
        notes.append(
            f"{known:,} of {rows.sizes['test']:,} test rows have a text that stands in a training row too: "
            "--groups with a column that they share keeps them together"
        )
    return np.concatenate(scores), chosen, notes


def _in_run(rows: Rows, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(rows of the run,) from (rows that take part,)."""
    found = np.zeros(len(rows.used), np.bool_)
    found[np.flatnonzero(rows.used)[chosen]] = True
    return found


def _read(texts: Texts, rows: Rows, sampled: dict[int, NDArray[np.bool_]]) -> dict[int, list[tuple[str, ...]]]:
    either = sampled[TRAIN] | sampled[VALIDATION]
    sides = rows.split[either]
    held: dict[int, list[tuple[str, ...]]] = {TRAIN: [], VALIDATION: []}
    for before, some in texts.of(_in_run(rows, either)):
        for side, text in zip(sides[before : before + len(some)].tolist(), some, strict=True):
            held[side].append(text)
    return held


class _Bags:
    """TF-IDF of each text column, side by side."""

    def __init__(self, num_columns: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415 (an extra)

        self._each = [TfidfVectorizer(max_features=_MAX_WORDS, sublinear_tf=True) for _ in range(num_columns)]

    def fit(self, texts: Sequence[tuple[str, ...]]) -> Any:
        made = [bag.fit_transform(column) for bag, column in zip(self._each, zip(*texts, strict=True), strict=True)]
        return hstack(made, format="csr")

    def transform(self, texts: Sequence[tuple[str, ...]]) -> Any:
        made = [bag.transform(column) for bag, column in zip(self._each, zip(*texts, strict=True), strict=True)]
        return hstack(made, format="csr")


def _fit(
    bags: _Bags, held: dict[int, list[tuple[str, ...]]], rows: Rows, sampled: dict[int, NDArray[np.bool_]]
) -> tuple[Any, dict[str, float]]:
    from sklearn.linear_model import LogisticRegression, Ridge  # noqa: PLC0415 (an extra)

    try:
        train = bags.fit(held[TRAIN])
    except ValueError as e:  # an empty vocabulary
        msg = f"the texts hold no words: {e}"
        raise JobError(msg) from e
    validation = bags.transform(held[VALIDATION])
    target, other = rows.target[sampled[TRAIN]], rows.target[sampled[VALIDATION]]
    weights = None if rows.class_weights is None else rows.class_weights[target]
    found: list[tuple[float, Any, dict[str, float]]] = []
    for strength in _CS if rows.is_classification else _ALPHAS:
        model = LogisticRegression(C=strength, max_iter=300) if rows.is_classification else Ridge(alpha=strength)
        model.fit(train, target, sample_weight=weights)
        scores = _scores(model, validation, rows)
        if rows.is_classification:
            off = log_loss(scores, other, rows.class_weights)
        else:
            off = np.mean((scores[:, 0] - other) ** 2)
        found.append((float(off), model, {"C" if rows.is_classification else "alpha": strength}))
    _, model, chosen = min(found, key=lambda entry: entry[0])
    return model, chosen


def _scores(model: Any, bags: Any, rows: Rows) -> NDArray[np.float32]:
    if not rows.is_classification:
        return model.predict(bags).astype(np.float32)[:, None]
    scores = np.zeros((bags.shape[0], len(rows.classes)), np.float32)
    scores[:, model.classes_] = model.predict_proba(bags)
    return scores


def read_texts(texts: Texts, rows: Rows, numbers: NDArray[np.integer]) -> tuple[dict[int, str], str]:
    """(number → text of some test rows, why there are none).

    Args:
        texts: where they are.
        rows: of the probe.
        numbers: among the test rows, in any order.
    """
    numbers = np.unique(numbers)
    chosen = np.zeros(len(rows.split), np.bool_)
    chosen[np.flatnonzero(rows.of(TEST))[numbers]] = True
    try:
        ordered = ["\n".join(text) for _, some in texts.of(_in_run(rows, chosen)) for text in some]
    except VarveError as e:
        return {}, str(e)
    return dict(zip(numbers.tolist(), ordered, strict=True)), ""
