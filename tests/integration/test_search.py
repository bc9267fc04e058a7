"""`varve search` and `search`: of outputs and indexes, dense, sparse and late, alone and fused."""

import json
import os
import pickle
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.declared_checkpoints import SHAPES, expected_vectors, load_model
from tests.finished_runs import finish
from tests.index_sources import build, clustered, open_source, write_source
from tests.outputs import column, write_output
from varve import Job, index
from varve.cli.search import main
from varve.errors import JobError
from varve.indexing.open_target import open_target
from varve.indexing.source import IndexSource
from varve.output.run_output import Output
from varve.retrieval.exact_search import search_exact
from varve.retrieval.search import search

WORDS = ("river", "stone", "cloud", "letter", "market", "winter", "garden", "copper", "silver", "forest", "bridge")
QUERIES = ["a stone in the river", "the market of copper and silver", "winter"]


def sentences(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [f"The {' and the '.join(random.choice(WORDS, 4))} of number {row}." for row in range(count)]


TEXTS = sentences(120)


def run(path: Path, model: dict, features: dict, texts=TEXTS, *, dtype="float32", rows_per_part=50) -> str:
    source = path.with_suffix(".parquet")
    pq.write_table(
        pa.table({"doc": [f"d{n}" for n in range(len(texts))], "text": pa.array(texts, pa.string())}), source
    )
    job = {
        "source": {"dataset": "parquet", "data_files": str(source), "text": "text", "keep": ["doc", "text"]},
        "model": model, "features": features,
        "output": {"path": str(path), "dtype": dtype, "rows_per_part": rows_per_part},
    }  # fmt: skip
    finish(Job.parse(job))
    return str(path)


@pytest.fixture(scope="session")
def minilm_run(minilm, tmp_path_factory) -> str:
    texts = [*TEXTS[:60], None, *TEXTS[60:]]  # a row without a vector in the middle of a part
    return run(tmp_path_factory.mktemp("search") / "minilm", {"name": minilm}, {"e": {"pool": "declared"}}, texts)


@pytest.fixture(scope="session")
def hybrid_run(declared, tmp_path_factory) -> str:
    """Dense and sparse vectors from one pass."""
    features = {"e": {"pool": "mean", "normalize": True}, "s": {"pool": "declared"}}
    return run(tmp_path_factory.mktemp("search") / "both", {"name": declared("the real SPLADE")}, features)


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def ranks(table: pa.Table, query: int, name: str = "row") -> list:
    return table.filter(pa.array(table["query"].to_numpy() == query))[name].to_pylist()


def test_answers_have_the_order_and_scores_of_sentence_transformers(minilm_run, minilm):
    table = search(minilm_run, QUERIES, 15)
    model = load_model(minilm, "dense")
    scores = model.similarity(model.encode_query(QUERIES), model.encode_document(TEXTS)).numpy()
    for query in range(len(QUERIES)):
        order = np.argsort(-scores[query], kind="stable")[:15]
        assert ranks(table, query, "text") == [TEXTS[row] for row in order]
        assert ranks(table, query, "row") == [row + (row >= 60) for row in order.tolist()]
        assert ranks(table, query, "position") == order.tolist()
        assert ranks(table, query, "rank") == list(range(1, 16))
        np.testing.assert_allclose(ranks(table, query, "score"), scores[query][order], atol=2e-6)
    kinds = {"query": "int32", "rank": "int32", "score": "float", "position": "int64", "shard": "int32", "row": "int64"}
    assert {field.name: str(field.type) for field in table.schema} == {**kinds, "doc": "string", "text": "string"}


@pytest.mark.parametrize(
    "shape",
    ["prompts without a default", "Router with two bodies", "the real SPLADE", "SPLADE without inference for queries",
     "PyLate with expansion", "MultiVectorEncoder", "Stanford's ColBERT"],
)  # fmt: skip
def test_every_kind_of_checkpoint_ranks_as_sentence_transformers(shape, declared, tmp_path):
    folder, family = declared(shape), SHAPES[shape].family
    role = "document" if "document" in SHAPES[shape].roles else "none"
    texts = TEXTS[:40]
    path = run(tmp_path / "o", {"name": folder, "role": role}, {"e": {"pool": "declared"}}, texts)
    documents = expected_vectors(folder, family, role, texts)
    for query, asked in enumerate(expected_vectors(folder, family, "query", QUERIES)):
        scores = np.array([score(family, asked, document) for document in documents])
        table = search(path, QUERIES, 10)
        found = ranks(table, query, "position")
        np.testing.assert_allclose(ranks(table, query, "score"), scores[found], rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(scores[found], np.sort(scores)[::-1][:10], rtol=2e-5, atol=2e-5)


def score(family: str, query: np.ndarray, document: np.ndarray) -> float:
    if family == "late":
        return float((query @ document.T).max(axis=1).sum())
    product = float(query @ document)
    return product if family == "sparse" else product / float(np.linalg.norm(query) * np.linalg.norm(document))


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_rounded_vectors_rank_nearly_as_exact_ones(dtype, minilm, minilm_run, tmp_path):
    path = run(tmp_path / "o", {"name": minilm}, {"e": {"pool": "declared"}}, dtype=dtype)
    least = {"float16": 10, "int8": 8, "binary": 5}[dtype]
    rounded, exact = search(path, QUERIES, 10), search(minilm_run, QUERIES, 10)
    for query in range(len(QUERIES)):
        common = set(ranks(rounded, query, "text")) & set(ranks(exact, query, "text"))
        assert len(common) >= least


def test_answers_of_chunks_name_their_characters(minilm, tmp_path):
    texts = [" ".join(TEXTS[at : at + 12]) for at in range(0, 36, 12)] + [None, TEXTS[50]]
    windows = {"window": 64, "stride": 8, "chunk": {"by": "sentences", "tokens": 24}}
    path = run(tmp_path / "o", {"name": minilm, "long_text": windows}, {"e": {"pool": "mean"}}, texts, rows_per_part=2)
    table = search(path, TEXTS[17], 5)
    best = table.to_pylist()[0]
    assert best["row"] == 1
    assert best["item"] > 0
    assert TEXTS[17].rstrip(".") in texts[1][best["start"] : best["stop"]]
    located = {(row, item): position for position, row, item in zip(
        *(search(path, "x", 500)[name].to_pylist() for name in ("position", "row", "item")), strict=True
    )}  # fmt: skip
    assert sorted(located.values()) == list(range(len(located)))
    assert [position for _, position in sorted(located.items())] == list(range(len(located)))


def fused_by_hand(*lists: list[int]) -> list[int]:
    scores: dict[int, float] = {}
    for ranked in lists:
        for rank, row in enumerate(ranked, 1):
            scores[row] = scores.get(row, 0) + 1 / (60 + rank)
    return sorted(scores, key=lambda row: (-round(scores[row], 12), row))


def test_hybrid_search_fuses_the_dense_and_the_sparse_ranking_of_one_run(hybrid_run):
    fused = search(hybrid_run, QUERIES, 12, hybrid="")
    dense, sparse = search(hybrid_run, QUERIES, 120), search(hybrid_run, QUERIES, 120, feature="s")
    for query in range(len(QUERIES)):
        want = fused_by_hand(ranks(dense, query), ranks(sparse, query))[:12]
        assert ranks(fused, query) == want
        assert ranks(fused, query, "position") == want
        assert ranks(fused, query, "text") == [TEXTS[row] for row in want]
    assert fused.equals(search(hybrid_run, QUERIES, 12, hybrid="s"))


def test_hybrid_search_with_another_run_fuses_its_rows(hybrid_run, minilm, tmp_path):
    shutil.copy(Path(hybrid_run).with_suffix(".parquet"), tmp_path / "source.parquet")
    source = str(Path(hybrid_run).with_suffix(".parquet"))
    job = {
        "source": {"dataset": "parquet", "data_files": source, "text": "text", "keep": ["doc"]},
        "model": {"name": minilm}, "output": {"path": str(tmp_path / "o"), "rows_per_part": 33},
    }  # fmt: skip
    finish(Job.parse(job))
    path = str(tmp_path / "o")
    fused = search(path, QUERIES, 12, hybrid=f"{hybrid_run}:s")
    assert fused.equals(search(path, QUERIES, 12, hybrid=hybrid_run))
    dense, sparse = search(path, QUERIES, 120), search(hybrid_run, QUERIES, 120, feature="s")
    for query in range(len(QUERIES)):
        assert ranks(fused, query) == fused_by_hand(ranks(dense, query), ranks(sparse, query))[:12]


def test_hybrid_search_with_bm25_fuses_the_ranking_of_its_formula(minilm_run):
    fused = search(minilm_run, QUERIES, 10, hybrid="bm25:text")
    dense = search(minilm_run, QUERIES, 100)
    texts = [*TEXTS[:60], "", *TEXTS[60:]]
    for query, text in enumerate(QUERIES):
        assert ranks(fused, query) == fused_by_hand(ranks(dense, query), bm25(texts, text)[:100])[:10]


def bm25(texts: list[str], query: str) -> list[int]:
    """Rows with a word of the query, the best first."""
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    lengths = np.array([max(sum(count.values()), 1) for count in counts])  # an empty text has one empty word
    found = Counter(word for count in counts for word in count)
    scores = np.zeros(len(texts))
    for word in re.findall(r"\w+", query.lower()):
        rarity = np.log(1 + (len(texts) - found[word] + 0.5) / (found[word] + 0.5))
        occurrences = np.array([count[word] for count in counts])
        saturated = occurrences / (occurrences + 1.2 * (0.25 + 0.75 * lengths / lengths.mean()))
        scores += rarity * saturated * (found[word] > 0)
    order = np.lexsort((np.arange(len(texts)), -np.round(scores, 5)))
    return [int(row) for row in order if scores[row] > 0]


def test_index_is_also_measured_with_the_queries_of_the_user(minilm_run, tmp_path):
    """Queries that are far from all texts: the graph must reach the recall for these too."""
    queries = tmp_path / "queries.jsonl"
    texts = ["how to read a file", "mean of numbers", "open a socket", "parse a date", "sort a list"]
    queries.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    to = f"faiss:{tmp_path / 'index'}"
    record = index(minilm_run, to, kind="HNSW16,Flat", queries=str(queries), recall=0.9)
    measured = {m.queries: m for m in record.measurements if m.setting == record.setting}
    assert set(measured) == {"rows", str(queries)}
    assert measured[str(queries)].num_queries == len(texts)
    assert all(m.low >= 0.9 for m in measured.values())
    with pytest.raises(JobError, match=r"settings\.queries"):
        index(minilm_run, to, kind="HNSW16,Flat", recall=0.9)


@pytest.fixture
def index_of(minilm_run, tmp_path):
    """(target) → folder of an index of the MiniLM run, without a proof; `doc` is stored."""

    def make(target: str, path: str = minilm_run) -> str:
        source = open_source(path, columns=("doc",))
        record = build(open_target(target, str(tmp_path / target)), source, target)[1]
        request = {**json.loads(Path(tmp_path, target, "_varve/index.json").read_text())}
        assert record.request.num_vectors == request["num_vectors"]
        return str(tmp_path / target)

    return make


@pytest.mark.parametrize("target", ["npy", "fbin", "faiss", "usearch", "lance"])
def test_search_of_an_index_equals_that_of_the_output(target, index_of, minilm_run):
    index = index_of(target)
    for path, options in [(index, {}), (f"{target}:{index}", {}), (minilm_run, {"index": index})]:
        found = search(path, QUERIES, 10, show=["doc", "text"], rescore=60, **options)
        assert found.equals(search(minilm_run, QUERIES, 10))


def test_index_alone_shows_its_own_columns_and_approximate_scores(index_of, minilm_run):
    exact = search(minilm_run, QUERIES, 10, show=["doc"])
    assert search(index_of("npy"), QUERIES, 10, show=["doc"]).equals(exact)
    found = search(index_of("npy"), QUERIES, 500, show=[])
    assert found.column_names == ["query", "rank", "score", "position", "shard", "row"]
    assert Counter(found["query"].to_pylist()) == dict.fromkeys(range(3), 120)


def test_hybrid_search_through_an_index_equals_that_of_the_output(index_of, minilm_run):
    found = search(index_of("npy"), QUERIES, 10, hybrid="bm25:text", show=["doc", "text"])
    assert found.equals(search(minilm_run, QUERIES, 10, hybrid="bm25:text"))


def test_index_of_a_moved_output_names_it_or_what_is_needed(minilm_run, index_of, tmp_path):
    moved, kept = tmp_path / "moved", tmp_path / "kept"
    shutil.copytree(minilm_run, moved)
    index = index_of("npy", str(moved))
    record = json.loads(Path(index, "_varve/manifest.json").read_text())
    record["request"]["source"]["path"] = str(moved)
    Path(index, "_varve/manifest.json").write_text(json.dumps(record))
    moved.rename(kept)
    with pytest.raises(JobError, match=rf"{moved}.* varve search PATH --index {index}"):
        search(index, "x")
    found = search(str(kept), QUERIES, 5, index=index, show=["doc"])
    assert found.equals(search(minilm_run, QUERIES, 5, show=["doc"]))


def test_index_of_another_output_is_refused(index_of, hybrid_run):
    with pytest.raises(JobError, match="was made of another output"):
        search(hybrid_run, "x", index=index_of("npy"))


def test_index_whose_parts_are_gone_still_answers(index_of, minilm_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(minilm_run, copy)
    index = index_of("npy", str(copy))
    for part in sorted((copy / "data").iterdir())[1:]:  # the first one has the definition of the feature
        part.unlink()
    found = search(str(copy), QUERIES, 10, index=index, show=["doc"])
    assert found.equals(search(minilm_run, QUERIES, 10, show=["doc"]))


def test_work_on_a_part_can_be_sent_to_another_process(tmp_path):
    source = open_source(write_source(tmp_path / "o"))

    def elsewhere(work, items):
        return [pickle.loads(pickle.dumps(work))(item) for item in items]

    queries = clustered(5, seed=1)
    assert np.array_equal(
        search_exact(source, queries, 9).positions, search_exact(source, queries, 9, elsewhere).positions
    )


def test_command_prints_the_answers_and_their_json(minilm_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    table = search(minilm_run, QUERIES[:2], 3)
    code, out, _ = command(capsys, minilm_run, *QUERIES[:2], "-k", "3")
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == QUERIES[0]
    assert lines[5] == QUERIES[1]
    assert all(len(line) <= 60 for line in lines)
    assert [line.split()[2] for line in lines[1:4]] == [f"0/{row}" for row in ranks(table, 0)]
    assert table["text"][0].as_py()[:20] in lines[1]
    code, out, _ = command(capsys, minilm_run, QUERIES[0], "-k", "3", "--show", "doc", "--json")
    content = json.loads(out)
    assert code == 0
    assert content["feature"] == "e"
    assert [answer["doc"] for answer in content["queries"][0]["answers"]] == ranks(table, 0, "doc")


def test_texts_of_documents_cannot_drive_the_terminal(minilm, tmp_path, capsys):
    texts = ["evil \x1b[31m\x1b]0;title\x07 text\nand\r a second\tline \u202e", "日本語 text", "plain"]
    path = run(tmp_path / "o", {"name": minilm}, {"e": {"pool": "mean"}}, texts)
    code, out, _ = command(capsys, path, "evil é 日本", "-k", "5")
    assert code == 0
    assert len(out.splitlines()) == 3
    assert all(character.isprintable() for character in out.replace("\n", ""))
    assert "evil [31m ]0;title text and a second line" in out


def write_judged(tmp_path: Path) -> tuple[str, str]:
    questions, qrels = tmp_path / "q.jsonl", tmp_path / "qrels.tsv"
    ids = ["a", "b", "c", "unjudged"]
    asked = [*QUERIES, "a question without a judgement"]
    questions.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in zip(ids, asked, strict=True)))
    qrels.write_text("a\td3\t2\na\td50\t1\nb\td7\t3\nc\td11\t1\nc\td12\t0\nabsent\td1\t1\n")
    return str(questions), str(qrels)


def test_relevance_of_the_command_is_that_of_the_ranking(minilm_run, tmp_path, capsys):
    questions, qrels = write_judged(tmp_path)
    judged = {0: {"d3": 2, "d50": 1}, 1: {"d7": 3}, 2: {"d11": 1}}
    table = search(minilm_run, QUERIES, 100)
    ndcg, reciprocal = [], []
    for query, grades in judged.items():
        gains = [2.0 ** grades.get(doc, 0) - 1 for doc in ranks(table, query, "doc")]
        best = sorted((2.0**grade - 1 for grade in grades.values()), reverse=True)
        discounts = 1 / np.log2(np.arange(10) + 2)
        ndcg.append((gains[:10] * discounts).sum() / (best * discounts[: len(best)]).sum())
        first = np.flatnonzero(gains[:10])
        reciprocal.append(1 / (1 + first[0]) if len(first) else 0)
    options = ["--questions", questions, "--qrels", qrels, "--key", "doc"]
    code, out, _ = command(capsys, minilm_run, *options, "--json")
    found = json.loads(out)["relevance"]
    assert code == 0
    np.testing.assert_allclose(found["ndcg_at_10"]["value"], np.mean(ndcg))
    np.testing.assert_allclose(found["mrr_at_10"]["value"], np.mean(reciprocal))
    assert (found["num_questions"], found["num_unjudged"]) == (3, 1)
    code, out, _ = command(capsys, minilm_run, *options)
    assert out.splitlines()[0].startswith(f"nDCG@10     {np.mean(ndcg):.4f}  [")
    assert "3 questions, 1 without a relevant document left out" in out


def test_documents_without_a_key_are_identified_by_shard_and_row(minilm_run, tmp_path, capsys):
    questions, qrels = write_judged(tmp_path)
    content = Path(qrels).read_text()
    rows = re.sub(r"\td(\d+)", lambda m: f"\t0/{int(m[1])}", content)
    Path(qrels).write_text(rows)
    code, out, _ = command(capsys, minilm_run, "--questions", questions, "--qrels", qrels, "--json")
    Path(qrels).write_text(content)
    keyed = command(capsys, minilm_run, "--questions", questions, "--qrels", qrels, "--key", "doc", "--json")[1]
    assert code == 0
    assert json.loads(out) == json.loads(keyed)


def test_judgements_of_other_documents_are_remarked(minilm_run, tmp_path, capsys):
    questions, qrels = write_judged(tmp_path)
    code, _, err = command(capsys, minilm_run, "--questions", questions, "--qrels", qrels)
    assert code == 0
    assert "is --key right? A judged document is 'd3', one that was found '0/" in err


def test_near_duplicates_are_listed_and_written(minilm, tmp_path, capsys):
    texts = [*TEXTS[:30], TEXTS[3], TEXTS[3], TEXTS[9]]
    path = run(tmp_path / "o", {"name": minilm}, {"e": {"pool": "declared"}}, texts)
    file = tmp_path / "pairs.parquet"
    code, out, _ = command(capsys, path, "--near-duplicates", "0.9999", "--output", str(file))
    assert code == 0
    assert out.startswith("4 pairs of 33 vectors with a score of at least 0.9999, 2 groups of 5 rows, the largest of 3")
    assert TEXTS[9][:15] in out
    pairs = pq.read_table(file)
    found = set(zip(pairs["row"].to_pylist(), pairs["other_row"].to_pylist(), strict=True))
    assert found == {(3, 30), (3, 31), (30, 31), (9, 32)}
    content = json.loads(command(capsys, path, "--near-duplicates", "0.9999", "--json")[1])
    assert (content["num_pairs"], content["num_groups"], content["through_index"]) == (4, 2, False)
    code, _, err = command(capsys, path, "--near-duplicates", "0.9999", "--output", str(file))
    assert (code, "exists already" in err) == (2, True)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
    code, _, err = command(capsys, path, "--near-duplicates", "0.9999", "--output", str(tmp_path / ("x" * 300)))
    assert (code, "cannot be written: File name too long" in err) == (1, True)


def test_file_of_near_duplicates_is_not_written_through_a_link(minilm_run, tmp_path, capsys):
    (tmp_path / f".pairs.parquet.{os.getpid()}").symlink_to(tmp_path / "mine")
    code, _, err = command(capsys, minilm_run, "--near-duplicates", "2", "--output", str(tmp_path / "pairs.parquet"))
    assert (code, "cannot be written: File exists" in err) == (1, True)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected texts, or --questions and --qrels, or --near-duplicates"),
        (["--hybrid", "a text"], "'a text' was read as the value of --hybrid"),
        (["x", "--near-duplicates", "0.9"], "expected texts, or"),
        ([" "], "query 1 is empty"),
        (["x", "\udcff"], "query 2 is not valid Unicode"),
        (["x", "-k", "0"], "k: 0 is not allowed"),
        (["x", "--feature", "nope"], "the feature 'nope' is not there; it has: e"),
        (["x", "--show", "nope"], "no kept column 'nope'; it has: doc, text"),
        (["x", "--rescore", "9"], "--rescore 9: it needs an index"),
        (["x", "--hybrid"], "has 0 sparse features"),
        (["x", "--hybrid", "e"], "it is the feature that is searched already"),
        (["x", "--hybrid", "bm25:nope"], "no kept column 'nope'"),
        (["x", "--hybrid", "nope"], "expected a feature of .* PATH:FEATURE"),
        (["x", "--index", "/nowhere"], "/nowhere holds neither a run's output nor an index"),
        (["x", "--output", "f"], "--output needs --near-duplicates"),
        (["--questions", "/nowhere"], "--questions and --qrels need each other"),
        (["--questions", "/nowhere", "--qrels", "/nowhere"], "/nowhere: no such file"),
        (["x", "--key", "doc"], "--key needs --qrels"),
        (["--near-duplicates", "0.9", "--hybrid"], "remove --hybrid and --rescore"),
        (["--near-duplicates", "nan"], "at least nan: expected a score"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(arguments, message, minilm_run, capsys):
    code, out, err = command(capsys, minilm_run, *arguments)
    assert (code, out) == (2, "")
    assert re.search(message, err), err
    assert "Traceback" not in err


def test_paths_that_hold_nothing_to_search_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    vectors = {column("a", 8): clustered(5, 8), column("b", 8): clustered(5, 8)}
    several = write_output(tmp_path / "several", vectors, {"doc": np.arange(5)})
    unfinished = write_output(tmp_path / "unfinished", vectors, {"doc": np.arange(5)})
    Path(unfinished, "_varve/manifest.json").unlink()
    source = open_source(write_source(tmp_path / "o"))
    begun = open_target("npy", str(tmp_path / "begun"))
    begun.begin(build(open_target("npy", str(tmp_path / "i")), source, "npy")[1].request)
    for path, message in {
        str(tmp_path / "empty"): "holds neither a run's output nor an index",
        "/nowhere": "holds neither a run's output nor an index",
        several: r"has 2 features that can be searched: choose one as feature \(a, b\)",
        unfinished: "has not finished: see `varve status`",
        str(tmp_path / "begun"): "holds no published index",
        "faiss:/nowhere": "holds no published index",
    }.items():
        code, _, err = command(capsys, path, "x")
        assert code == 2, path
        assert re.search(message, err), err


def test_damaged_part_is_an_error_of_the_run(minilm_run, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(minilm_run, copy)
    part = sorted((copy / "data").iterdir())[1]
    part.write_bytes(bytes(5000) + part.read_bytes()[5000:])
    code, _, err = command(capsys, str(copy), "x")
    assert code == 1
    assert part.name in err
    assert "varve verify" in err


def test_prompt_of_the_run_is_remarked_once(minilm, tmp_path, capsys):
    path = run(tmp_path / "o", {"name": minilm, "prompt": "passage: "}, {"e": {"pool": "declared"}}, TEXTS[:5])
    code, _, err = command(capsys, path, "x")
    assert (code, err.count("--query-prompt")) == (0, 1)
    code, _, err = command(capsys, path, "x", "--query-prompt", "query: ")
    assert (code, err) == (0, "")


def test_single_text_is_one_query(minilm_run):
    assert search(minilm_run, "winter", 4).equals(search(minilm_run, ["winter"], 4))
    assert IndexSource.open(Output.open(minilm_run)).num_vectors == 120
