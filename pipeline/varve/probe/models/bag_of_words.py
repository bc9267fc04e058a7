"""The texts of the rows, and the baseline that sees only their words: TF-IDF and a linear model.

Knows nothing of vectors. Texts are read one part at a time from a kept column or, if the run kept none, from the source
again; only a sample of the training texts is kept in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from varve.errors import JobError, RunError, VarveError
from varve.output.run_output import Output
from varve.preprocessing.computed_columns import is_text
from varve.probe.data.dataset import LabelledRows, sample_rows
from varve.probe.data.split import TEST, TRAIN, VALIDATION
from varve.probe.models.linear import log_loss

_MAX_TRAIN, _MAX_VALIDATION = 100_000, 20_000
_MAX_CHARACTERS = 20_000
_MAX_WORDS = 50_000
_STRENGTHS = (0.1, 1.0, 10.0, 100.0)  # C of logistic regression, alpha of ridge regression
_BYTES_PER_TOKEN = 6  # of a text; twice as many as Python strings and as a matrix


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
            JobError: the column is missing or holds no text.
        """
        names = (name,) if name else output.text_columns
        if name and name not in output.kept_columns:
            listed = ", ".join(output.kept_columns) or "none"
            msg = f"--text {name}: the run kept no such column; kept columns: {listed}"
            raise JobError(msg)
        for column in names:
            if column in output.kept_columns and not is_text(output.schema.field(column).type):
                msg = f"--text {column}: it holds {output.schema.field(column).type}, not text"
                raise JobError(msg)
        return cls(output, names, from_source=name is None and not set(names) <= set(output.kept_columns))

    def tables(self) -> Iterator[pa.Table]:
        """The text columns of all rows of the run, in its order.

        Raises:
            VarveError: the source has changed or cannot be opened as before.
        """
        if not self.from_source:
            for _, table in self.output.tables(self.columns):
                yield table
            return
        from varve.planning.saved_plan import load_source  # noqa: PLC0415 (imports transformers, needed only here)

        dataset = load_source(self.output.storage)
        if missing := [name for name in self.columns if name not in dataset.schema.names]:
            msg = f"the source has no column {missing[0]!r}, which the manifest names. See `varve verify`"
            raise RunError(msg)
        for shard in range(dataset.num_shards):
            for table in dataset.read(shard):
                yield table.select(list(self.columns))

    def read(self, rows: NDArray[np.integer]) -> Iterator[NDArray[np.object_]]:
        """(R, text columns) texts of the rows of the run with these numbers, in ascending order, one table at a time.

        Raises:
            RunError: the number of rows of the source has changed.
        """
        first, num_rows = 0, self.output.manifest.num_rows
        for table in self.tables():
            start, stop = np.searchsorted(rows, [first, first + table.num_rows])
            if start < stop:
                chosen = pa.array(rows[start:stop] - first)
                cells = [_decode(table[name].take(chosen)) for name in self.columns]
                yield np.array(list(zip(*cells, strict=True)), dtype=object)
            first += table.num_rows
        if first != num_rows:
            msg = f"the source has {first:,} rows now, the run had {num_rows:,}"
            raise RunError(msg)


def _decode(column: pa.ChunkedArray) -> list[str]:
    cells = column.cast(pa.large_binary()).to_pylist()
    return [(cell or b"").decode(errors="replace")[:_MAX_CHARACTERS] for cell in cells]


def score_bag_of_words(
    texts: Texts, rows: LabelledRows, seed: int, memory_bytes: int
) -> tuple[NDArray[np.float32], dict[str, float], list[str]]:
    """Train a linear model on TF-IDF of the training texts.

    Returns:
        (scores of all test rows, the regularisation that the validation rows chose, notes for the user).

    Raises:
        VarveError: the texts cannot be read.
    """
    tokens = texts.output.manifest.num_tokens / texts.output.manifest.num_rows
    limit = int(np.clip(memory_bytes / (4 * _BYTES_PER_TOKEN * 2 * max(tokens, 1)), 1000, _MAX_TRAIN))
    run_rows = np.flatnonzero(rows.used)
    train = sample_rows(np.flatnonzero(rows.in_split(TRAIN)), limit, [seed, 2, TRAIN])
    limit = min(limit, _MAX_VALIDATION)
    validation = sample_rows(np.flatnonzero(rows.in_split(VALIDATION)), limit, [seed, 2, VALIDATION])
    sampled = np.sort(np.concatenate([train, validation]))  # one pass over the texts reads both
    sample = np.concatenate(list(texts.read(run_rows[sampled])))
    in_train = rows.split[sampled] == TRAIN
    notes = []
    if len(train) < rows.sizes["train"]:
        notes.append(f"bag of words: trained on a sample of {len(train):,} training rows")
    tfidf = _tfidf(len(texts.columns))
    model, chosen = _fit(tfidf, sample[in_train], sample[~in_train], rows, train, validation)
    known = {hash(tuple(text)) for text in sample[in_train]}
    scores, num_known = [], 0
    for batch in texts.read(run_rows[rows.in_split(TEST)]):
        num_known += sum(hash(tuple(text)) in known for text in batch)
        scores.append(_scores(model, tfidf.transform(batch), rows))
    if num_known:
        notes.append(
            f"{num_known:,} of {rows.sizes['test']:,} test rows have a text that also occurs in the training split "
            "(leakage): --groups with a column that these rows share keeps them in one split"
        )
    return np.concatenate(scores), chosen, notes


def _tfidf(num_columns: int) -> Any:
    """TF-IDF of the columns of an array of texts (R, num_columns), side by side."""
    each = [
        (str(column), TfidfVectorizer(max_features=_MAX_WORDS, sublinear_tf=True), column)
        for column in range(num_columns)
    ]
    return ColumnTransformer(each, sparse_threshold=1.0)  # sparse whatever the density


def _fit(
    tfidf: Any,
    train_texts: NDArray[np.object_],
    validation_texts: NDArray[np.object_],
    rows: LabelledRows,
    train: NDArray[np.integer],
    validation: NDArray[np.integer],
) -> tuple[Any, dict[str, float]]:
    try:
        inputs = tfidf.fit_transform(train_texts)
    except ValueError as e:  # an empty vocabulary
        msg = f"the texts hold no words: {e}"
        raise JobError(msg) from e
    validation_inputs = tfidf.transform(validation_texts)
    target, validation_target = rows.target[train], rows.target[validation]
    weights = None if rows.class_weights is None else rows.class_weights[target]
    fits: list[tuple[float, Any, dict[str, float]]] = []
    for strength in _STRENGTHS:
        classify = rows.is_classification
        model = LogisticRegression(C=strength, max_iter=300) if classify else Ridge(alpha=strength)
        model.fit(inputs, target, sample_weight=weights)
        scores = _scores(model, validation_inputs, rows)
        if classify:
            loss = log_loss(scores, validation_target, rows.class_weights)
        else:
            loss = float(np.mean((scores[:, 0] - validation_target) ** 2))
        fits.append((loss, model, {"C" if classify else "alpha": strength}))
    _, model, chosen = min(fits, key=lambda fit: fit[0])
    return model, chosen


def _scores(model: Any, inputs: Any, rows: LabelledRows) -> NDArray[np.float32]:
    if not rows.is_classification:
        return model.predict(inputs).astype(np.float32)[:, None]
    scores = np.zeros((inputs.shape[0], len(rows.classes)), np.float32)
    scores[:, model.classes_] = model.predict_proba(inputs)  # a sample may lack a class
    return scores


def read_texts(texts: Texts, rows: LabelledRows, numbers: NDArray[np.integer]) -> tuple[dict[int, str], str]:
    """(number → text of some test rows, why they cannot be read or "").

    Args:
        texts: of the output.
        rows: of the study.
        numbers: of the test rows, in any order.
    """
    numbers = np.unique(numbers)
    run_rows = np.flatnonzero(rows.used)[rows.in_split(TEST)][numbers]
    try:
        ordered = ["\n".join(text) for batch in texts.read(run_rows) for text in batch]
    except VarveError as e:
        return {}, str(e)
    return dict(zip(numbers.tolist(), ordered, strict=True)), ""
