"""Reports of whole outputs: texts from the source, cut texts, errors, hostile and missing things, feature sets."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from tests.finished_runs import finish
from tests.outputs import column, write_output
from varve import Job
from varve.encoder.ragged import Ragged
from varve.errors import JobError, RunError
from varve.exploration.report import make_report
from varve.exploration.sampled_texts import SampledTexts
from varve.indexing.rows import SparseVectors
from varve.output.feature_sets import open as open_output

TEXTS = ["короткий текст", "same words", "same words", "<script>alert(1)</script>", None, "long " * 60, "long " * 25]
TEXTS += [f"text number {row}" for row in range(33)]
MAX_TOKENS = 16


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """A finished run of two shards, with its source beside it."""
    folder = tmp_path_factory.mktemp("reported")
    (folder / "docs").mkdir()
    for shard, texts in enumerate((TEXTS, TEXTS[::-1])):
        kind = ["a" if row % 3 else "b" for row in range(len(texts))]
        pq.write_table(pa.table({"text": texts, "kind": kind}), folder / f"docs/{shard}.parquet")
    job = {
        "source": {"dataset": str(folder / "docs"), "text": "text", "keep": ["kind"]},
        "model": {"name": tiny("bert"), "max_tokens": MAX_TOKENS},
        "features": {"cls": {"pool": "cls", "layers": [0, 1, 2]}, "mean": {"pool": "mean"}},
        "output": {"path": str(folder / "out"), "rows_per_part": 15},
    }
    finish(Job.parse(job))
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the run and its source."""
    return shutil.copytree(finished, tmp_path / "copy")


def numbered(rows: int, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, width)).astype(np.float32)


def test_report_of_a_run_counts_all_rows_and_reads_texts_from_the_source(finished):
    report = make_report(str(finished / "out"), color="kind")
    lengths, texts = [], report.texts
    for _, table in open_output(str(finished / "out")).tables(["num_tokens"]):
        lengths += table["num_tokens"].drop_null().to_pylist()
    assert texts.no_texts is None
    assert texts.num_encoded == texts.num_texts == report.num_sampled == len(lengths) == 78
    assert sum(texts.length_counts) == 78
    assert dict(zip(texts.length_edges, texts.length_counts, strict=False)) == {
        float(length): lengths.count(length) for length in range(min(lengths), max(lengths) + 1)
    }
    assert (texts.max_tokens, texts.num_truncated) == (MAX_TOKENS, 4)
    assert {(each.text, each.count) for each in texts.repeats if each.count > 2} == {("same words", 4)}
    assert [(group.reason, group.rows) for group in texts.errors] == [("null text in text", 2)]
    assert [(row.shard, row.row) for row in texts.errors[0].examples] == [(0, 4), (1, len(TEXTS) - 5)]
    letters = "".join(text for text in TEXTS if text)
    cyrillic = sum("\u0400" <= letter <= "\u04ff" for letter in letters) / sum(map(str.isalpha, letters))
    assert dict(texts.scripts) == pytest.approx({"Latin": 1 - cyrillic, "Cyrillic": cyrillic})


def test_report_of_cut_texts_says_what_windows_would_change(finished):
    job = json.loads((finished / "out/_varve/job.json").read_text())["job"]
    tokenizer = AutoTokenizer.from_pretrained(job["model"]["name"])
    room = MAX_TOKENS - 2  # [CLS] and [SEP]
    whole = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS if text]
    cut = [tokens for tokens in whole if tokens > room] * 2
    found = make_report(str(finished / "out")).texts.windows
    assert found is not None
    assert found.sampled == len(cut) == 4
    assert found.median_left_out_tokens == np.median([tokens - room for tokens in cut])
    assert found.share_left_out == pytest.approx(sum(tokens - room for tokens in cut) / sum(cut))
    assert found.windows_per_row == np.mean([-(-tokens // room) for tokens in cut])


def test_content_of_a_report_names_rows_texts_and_classes(finished):
    report = make_report(str(finished / "out"), color="kind", seed=2)
    content = report.content
    assert content is not None
    assert content.feature == "mean"  # of the last layer
    assert set(content.classes) == {"a", "b"}
    shards = [pq.read_table(finished / f"docs/{shard}.parquet").to_pylist() for shard in (0, 1)]
    for (shard, row), text, label in zip(content.rows, content.texts, content.labels, strict=True):
        source = shards[shard][row]
        assert text == source["text"][:279] + "…" if len(source["text"]) > 280 else text == source["text"]
        assert content.classes[int(label)] == source["kind"]
    assert [layer.name for layer in content.layers] == ["cls_00", "cls_01", "cls_02", "mean"]
    assert {layer.family for layer in content.layers} == {"cls", "mean"}
    best = content.near_duplicates[0]
    assert best.score == pytest.approx(1, abs=1e-6)
    assert best.one.text == best.other.text
    assert all(list_.row.label == shards[list_.row.shard][list_.row.row]["kind"] for list_ in content.neighbours)
    assert [each.canary is not None for each in report.vectors] == [True] * 4


def test_report_of_equal_seeds_is_equal(finished):
    one, same, other = (make_report(str(finished / "out"), seed=seed) for seed in (1, 1, 2))
    assert one.content is not None
    assert same.content is not None
    assert other.content is not None
    assert one.vectors == same.vectors
    assert one.content.neighbours == same.content.neighbours
    assert one.content.neighbours != other.content.neighbours


@pytest.mark.parametrize("change", ["gone", "replaced"])
def test_report_without_its_source_says_why_and_shows_the_rest(copy, monkeypatch, change):
    job = copy / "out/_varve/job.json"
    job.write_text(job.read_text().replace(str(copy.parent.parent), str(copy.parent)))
    content = json.loads(job.read_text())
    content["job"]["source"]["dataset"] = str(copy / "docs")
    job.write_text(json.dumps(content))
    source = copy / "docs/0.parquet"
    source.unlink()
    if change == "replaced":
        pq.write_table(pa.table({"text": ["other"], "kind": ["a"]}), source)
    report = make_report(str(copy / "out"))
    assert report.texts.no_texts
    assert report.texts.num_texts == 0
    assert report.texts.num_encoded == 78
    assert report.texts.windows is None
    assert report.content is not None
    assert set(report.content.texts) == {""}


def test_report_without_its_checkpoint_has_no_effect_of_windows(copy):
    job = copy / "out/_varve/job.json"
    content = json.loads(job.read_text())
    content["job"]["model"]["name"] = "no/such-model"
    job.write_text(json.dumps(content))
    report = make_report(str(copy / "out"))
    assert report.texts.windows is None
    assert report.texts.num_texts == 78


def test_texts_of_rows_that_are_too_far_apart_are_left_out(finished):
    texts = SampledTexts(open_output(str(finished / "out")), max_rows=10)
    found = [dict(texts.read([(0, 3), (0, 39), (1, 0), (1, 2)], seed)) for seed in range(12)]
    assert texts.problem is None
    of_first, of_second = {(0, 3): ("<script>alert(1)</script>",)}, {(1, 0): (TEXTS[-1],), (1, 2): (TEXTS[-3],)}
    assert of_first in found
    assert of_second in found
    assert all(each in (of_first, of_second) for each in found)


def test_texts_of_json_lines_are_read_from_the_start_of_their_file(tmp_path, tiny):
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": f"text {row}"}) + "\n" for row in range(50)))
    job = {
        "source": {"dataset": "json", "data_files": str(tmp_path / "docs.jsonl"), "text": "text"},
        "model": {"name": tiny("bert"), "max_tokens": MAX_TOKENS},
        "features": {"cls": {"pool": "cls", "layers": [0]}},
        "output": {"path": str(tmp_path / "out")},
    }
    finish(Job.parse(job))
    output = open_output(str(tmp_path / "out"))
    assert dict(SampledTexts(output).read([(0, 40), (0, 7)], seed=0)) == {(0, 7): ("text 7",), (0, 40): ("text 40",)}
    assert dict(SampledTexts(output, max_rows=20).read([(0, 40), (0, 7)], seed=0)) == {(0, 7): ("text 7",)}


def test_report_of_hostile_texts_and_labels_shortens_them(tmp_path):
    texts = ["<script>alert(1)</script>", '"quoted" & more', "\u202eright to left", "x" * 1_000_000, "", None] * 4
    labels = [f"<b>{row}</b>" + "y" * 10_000 for row in range(24)]
    path = write_output(tmp_path, {column("v", 4): numbered(24)}, {"text": texts, "<label>": labels}, errors=[1])
    report = make_report(path, color="<label>")
    content = report.content
    assert content is not None
    assert max(map(len, content.texts)) == 280
    assert "<script>alert(1)</script>" in content.texts
    assert len(content.classes) == 21
    assert content.classes[-1] == "other"
    assert max(map(len, content.classes)) <= 80
    assert sorted(label for label in content.labels if label == 20) == [20] * 3


def test_report_of_numbers_as_colors_keeps_them_and_few_whole_numbers_are_classes(tmp_path):
    kept = {"score": [0.5, None, float("inf")] * 10, "stars": [1, 5, None] * 10, "id": range(30), "when": [[1]] * 30}
    path = write_output(tmp_path, {column("v", 4): numbered(30)}, kept)
    score, stars, number = (make_report(path, color=name).content for name in ("score", "stars", "id"))
    assert score is not None
    assert stars is not None
    assert number is not None
    assert (score.classes, [*map(str, score.labels[:3])]) == ((), ["0.5", "nan", "nan"])
    assert (stars.classes, [*map(str, stars.labels[:3])]) == (("1", "5"), ["0", "1", "nan"])
    assert (number.classes, number.labels) == ((), tuple(map(float, range(30))))
    for name in ("none", "when", "v"):
        with pytest.raises(JobError, match=f"--color {name}: "):
            make_report(path, color=name)


def test_report_of_forms_without_statistics_lists_them(tmp_path):
    lists = Ragged(numbered(60), np.arange(0, 61, 2))
    sparse = SparseVectors(
        Ragged(np.tile([1, 5], 30).astype(np.int32), np.arange(0, 61, 2)),
        Ragged(np.ones(60, np.float32), np.arange(0, 61, 2)),
    )
    features = {
        column("win", 4, form="windows", layer=2): lists,
        column("late", 4, form="late", layer=3): lists,
        column("sparse", 100, form="sparse", layer=3): sparse,
    }
    path = write_output(tmp_path, features, {"id": range(30)}, errors=[3])
    report = make_report(path)
    counts = {each.name: each.num_vectors for each in report.vectors}
    assert counts == {"win": 58, "late": 0, "sparse": 0}
    assert report.content is None
    assert report.similarity is None
    assert report.vectors[0].effective_rank > 3
    assert report.texts.no_texts


def test_report_of_stored_dtypes_uses_the_decoded_vectors(tmp_path):
    vectors = numbered(200, 16)
    names = ("float32", "float16", "int8", "binary")
    features = {column(name, 16, dtype=name): vectors for name in names}
    report = make_report(write_output(tmp_path, features, {"id": range(200)}))
    norms = [np.linalg.norm(vectors, axis=1).mean()] * 3 + [4.0]
    assert [each.mean_norm for each in report.vectors] == pytest.approx(norms, rel=0.01)
    assert report.similarity is not None
    assert report.similarity.values[0, 1:3].min() > 0.99


def test_report_of_several_feature_sets_shows_all_their_columns(tmp_path):
    first, second = numbered(50), numbered(50) * 2
    path = write_output(tmp_path, {column("a", 4): first}, {"id": range(50)}, errors=[1])
    write_output(tmp_path / "sets/more", {column("b", 4, layer=5): second}, {"id": range(50)}, errors=[2])
    report = make_report(path)
    assert [each.name for each in report.vectors] == ["a", "b"]
    assert report.num_sampled == 48
    assert report.content is not None
    assert report.content.feature == "b"
    alone = make_report(f"{path}/sets/more")
    assert [each.name for each in alone.vectors] == ["b"]


def test_report_in_which_all_rows_failed_has_no_vectors(tmp_path):
    path = write_output(tmp_path, {column("v", 4): numbered(5)}, {"id": range(5)}, errors=range(5))
    report = make_report(path)
    assert (report.num_sampled, report.content, report.similarity) == (0, None, None)
    assert (report.texts.num_encoded, report.texts.length_counts) == (0, (0,))
    assert report.vectors[0].num_vectors == 0
    assert [group.rows for group in report.texts.errors] == [5]


def test_report_of_a_missing_part_or_output_is_refused(tmp_path):
    with pytest.raises(JobError, match="holds no output"):
        make_report(str(tmp_path / "none"))
    path = write_output(tmp_path / "out", {column("v", 4): numbered(20)}, {"id": range(20)}, rows_per_part=5)
    next((tmp_path / "out/data").glob("*-000000000005-*")).unlink()
    with pytest.raises(RunError, match="000000000005"):
        make_report(path)
