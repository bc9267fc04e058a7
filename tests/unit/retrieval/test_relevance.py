"""nDCG, recall and MRR against tables made by hand, scikit-learn and sentence-transformers; files of judgements."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sklearn.metrics import ndcg_score

from varve.errors import JobError
from varve.indexing.query_file import read_queries, read_questions
from varve.retrieval.judgements import Judgements, read_judgements
from varve.retrieval.relevance import measure


def judged(**of_question: dict[str, int]) -> Judgements:
    return Judgements(of_question)


def test_measures_of_one_question_are_those_of_the_table():
    # gains 2^3 - 1 = 7 and 2^1 - 1 = 1: found at ranks 2 and 4, the best ranking has them at 1 and 2
    result = measure({"q": ["x", "a", "y", "b"]}, judged(q={"a": 3, "b": 1, "z": 0, "w": -1}))
    assert result is not None
    best = 7 / np.log2(2) + 1 / np.log2(3)
    np.testing.assert_allclose(result.ndcg_at_10.value, (7 / np.log2(3) + 1 / np.log2(5)) / best)
    assert result.recall_at_100.value == 1
    assert result.mrr_at_10.value == 0.5
    assert (result.num_questions, result.num_unjudged, result.num_found) == (1, 0, 2)
    assert np.isnan(result.mrr_at_10.low)  # one question has no spread


def test_only_ten_documents_count_for_ndcg_and_mrr_and_a_hundred_for_recall():
    others = [f"o{number}" for number in range(200)]
    at_11 = [*others[:10], "a", *others[10:98], "b", "c"]  # b has rank 100, c 101
    result = measure({"q": at_11}, judged(q={"a": 1, "b": 1, "c": 1}))
    assert result is not None
    assert (result.ndcg_at_10.value, result.mrr_at_10.value) == (0, 0)
    np.testing.assert_allclose(result.recall_at_100.value, 2 / 3)


def test_questions_without_a_relevant_document_are_left_out_and_counted():
    judgements = judged(q={"a": 1}, none={"a": 0}, other={"a": 2})
    result = measure({"q": ["a"], "none": ["a"], "unknown": ["a"]}, judgements)
    assert result is not None
    assert (result.num_questions, result.num_unjudged) == (1, 2)
    assert measure({"none": ["a"]}, judgements) is None


def test_document_that_occurs_twice_counts_at_its_first_rank():
    judgements = judged(q={"a": 2, "y": 1}, other={"a": 1})
    once = measure({"q": ["x", "a", "y"], "other": ["a"]}, judgements)
    twice = measure({"q": ["x", "x", "a", "a", "y"], "other": ["a"]}, judgements)
    assert once == twice


def test_interval_is_of_the_standard_error_over_questions():
    rankings = {"one": ["a"], "two": ["x", "a"], "three": ["x", "y", "z", "a"]}
    result = measure(rankings, Judgements({question: {"a": 1} for question in rankings}))
    assert result is not None
    values = np.array([1, 1 / 2, 1 / 4])
    error = 1.96 * values.std(ddof=1) / np.sqrt(3)
    got = [result.mrr_at_10.value, result.mrr_at_10.low, result.mrr_at_10.high]
    np.testing.assert_allclose(got, [values.mean(), values.mean() - error, values.mean() + error])


def test_ndcg_of_graded_judgements_equals_scikit_learn():
    random = np.random.default_rng(0)
    for _ in range(50):
        grades = random.integers(0, 4, 30)
        grades[0] = 3
        order = random.permutation(30)
        result = measure({"q": [str(d) for d in order]}, judged(q={str(d): int(g) for d, g in enumerate(grades)}))
        assert result is not None
        scores = np.empty(30)
        scores[order] = -np.arange(30)
        np.testing.assert_allclose(result.ndcg_at_10.value, ndcg_score([2.0**grades - 1], [scores], k=10))


def test_measures_of_plain_judgements_equal_sentence_transformers():
    random = np.random.default_rng(1)
    questions, documents = [f"q{n}" for n in range(40)], [f"d{n}" for n in range(150)]
    relevant = {q: set(random.choice(documents, random.integers(1, 15), replace=False).tolist()) for q in questions}
    order = {q: random.permutation(documents).tolist()[:100] for q in questions}
    result = measure(order, Judgements({q: dict.fromkeys(found, 1) for q, found in relevant.items()}))
    assert result is not None
    evaluator = InformationRetrievalEvaluator(
        dict.fromkeys(questions, "x"), dict.fromkeys(documents, "x"), relevant,
        mrr_at_k=[10], ndcg_at_k=[10], precision_recall_at_k=[100], map_at_k=[10], accuracy_at_k=[10],
    )  # fmt: skip
    scored = [[{"corpus_id": d, "score": -rank} for rank, d in enumerate(order[q])] for q in evaluator.queries_ids]
    want = evaluator.compute_metrics(scored)
    np.testing.assert_allclose(result.ndcg_at_10.value, want["ndcg@k"][10])
    np.testing.assert_allclose(result.mrr_at_10.value, want["mrr@k"][10])
    np.testing.assert_allclose(result.recall_at_100.value, want["recall@k"][100])


@pytest.mark.parametrize(
    "content",
    [
        "1 0 d1 2\n1 0 d2 0\n7 0 d1 -1\n",
        "1\td1\t2\n1\td2\t0\n\n7\td1\t-1\n",
        "query-id\tcorpus-id\tscore\n1\td1\t2\n1\td2\t0\n7\td1\t-1",
        "\ufeffqid docno rel\r\n1 d1 2\r\n1 d2 0\r\n7 d1 -1\r\n",
    ],
)
def test_every_spelling_of_judgements_is_read(content, tmp_path):
    (tmp_path / "qrels.tsv").write_bytes(content.encode())
    found = read_judgements(str(tmp_path / "qrels.tsv"))
    assert found.of_question == {"1": {"d1": 2, "d2": 0}, "7": {"d1": -1}}
    assert found.relevant("1") == {"d1": 2}
    assert found.relevant("absent") == {}


def test_documents_with_blanks_need_tabs(tmp_path):
    (tmp_path / "q").write_text("1\ta document\t1\n")
    assert read_judgements(str(tmp_path / "q")).of_question == {"1": {"a document": 1}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1 0 d1 2\n1 0 d2 high\n", "line 2: '1 0 d2 high'"),
        (b"1 d1\n", "line 1: '1 d1'"),
        (b"1 d1 0.5\n1 d2 0.5", "line 2"),
        (b"", "no judgement"),
        (b"\xff\xfe", "UTF-8"),
        (b"1 d1 2\n1 d1 1\n", "line 2: d1 has two relevances"),
    ],
)
def test_wrong_judgements_are_one_message(content, message, tmp_path):
    (tmp_path / "q").write_bytes(content)
    with pytest.raises(JobError, match=message):
        read_judgements(str(tmp_path / "q"))
    with pytest.raises(JobError, match="no such file"):
        read_judgements(str(tmp_path / "absent"))


def write_lines(path: Path, rows: list) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_questions_of_json_lines_and_parquet_are_equal(tmp_path):
    rows = [{"id": 3, "text": "one é 日本"}, {"id": 7, "text": " two "}]
    lines = read_questions(write_lines(tmp_path / "q.jsonl", [rows[0], "", rows[1]]))
    pq.write_table(pa.Table.from_pylist([{**row, "more": [1]} for row in rows]), tmp_path / "q.parquet")
    assert lines == read_questions(str(tmp_path / "q.parquet"))
    assert (lines.ids, lines.texts) == (("3", "7"), ("one é 日本", " two "))
    assert read_queries(str(tmp_path / "q.parquet")) == ["one é 日本", " two "]


def test_questions_have_the_numbers_of_their_lines_or_the_ids_of_beir(tmp_path):
    assert read_questions(write_lines(tmp_path / "a", [{"text": "x"}, {"text": "y"}])).ids == ("1", "2")
    assert read_questions(write_lines(tmp_path / "b", [{"_id": "k", "text": "x"}])).ids == ("k",)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no query"),
        (["{", {"text": "x"}], "line 1"),
        (['["text"]'], "line 1: expected an object"),
        ([{"text": "x"}, {"text": "  "}], "query 2 has the text '  '"),
        ([{"id": 1}], "query 1 has the text None"),
        ([{"id": 1, "text": "x"}, {"id": "1", "text": "y"}], "the id '1' occurs 2 times"),
        (['{"text": "\\ud800"}'], "line 1"),
    ],
)
def test_wrong_questions_are_one_message(rows, message, tmp_path):
    with pytest.raises(JobError, match=message):
        read_questions(write_lines(tmp_path / "q.jsonl", rows))


def test_damaged_parquet_of_questions_is_one_message(tmp_path):
    (tmp_path / "q").write_bytes(b"PAR1 is not enough")
    with pytest.raises(JobError, match="cannot be read as Parquet"):
        read_questions(str(tmp_path / "q"))
