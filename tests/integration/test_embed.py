"""Whole runs over unusual texts, rows and shards: rows out = rows in."""

import json
import shutil

import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from varve import RunError
from varve.cli.status import read_status
from varve.storage.object_store import Storage
from varve.verification.verify import verify


def awkward(shard: int, rows: int = 250) -> pa.Table:
    texts: list[bytes | None] = [f"row {row} of shard {shard}, text".encode() for row in range(rows)]
    texts[3] = None
    texts[5] = b""
    texts[7] = "emoji 🙂🏳️‍🌈 and \u0000 nul".encode()
    texts[11] = b"not utf-8: \xff\xfe"
    texts[13] = b"word " * 200_000
    texts[17] = b"x" * (1_000_000 if shard == 0 else 1000)  # no cut can be proved in it: it is tokenized whole
    return pa.table({"id": range(rows), "text": pa.array(texts, pa.binary()).view(pa.string())})


KINDS = {
    "text": {
        "text": "text",
        "keep": ["id"],
        "features": {"e": {"pool": "mean", "layers": "all"}, "t": {"pool": "tokens"}},
    },
    "pairs": {"text": ["text", "other"], "keep": ["id", "text"], "features": {"e": {"pool": "mean"}}},
}


@pytest.fixture(scope="module")
def docs(write_shards, tmp_path_factory):
    """Unusual texts as pairs: each with another text, the empty one also with an empty text."""
    tables = []
    for shard in range(4):
        table = awkward(shard)
        others = ["" if row in {4, 5} else str(row) for row in range(len(table))]
        tables.append(table.append_column("other", pa.array(others)))
    return write_shards(tmp_path_factory.mktemp("embed") / "docs", tables)


@pytest.fixture(scope="module")
def made(docs, job_to, run):
    """kind → finished output and manifest, one run each."""
    done = {}

    def make(kind: str):
        output = docs.parent / kind
        if output not in done:
            done[output] = run(job_to(output, docs, **KINDS[kind]))
        return output, done[output]

    return make


def test_unusual_rows_become_rows_of_the_output(made, read):
    path, manifest = made("text")
    output = read(path)
    assert (len(output), manifest.num_rows, manifest.num_errors, manifest.num_null_texts) == (1000, 1000, 4, 4)
    assert list(zip(output["shard"].to_pylist(), output["row"].to_pylist(), strict=True)) == [
        (shard, row) for shard in range(4) for row in range(250)
    ]
    first = output.slice(0, 250)
    assert first["id"].to_pylist() == list(range(250))
    errors = {row: reason for row, reason in enumerate(first["error"].to_pylist()) if reason}
    assert errors == {3: "null text in text", 11: "text is not UTF-8: byte 0xff at 11"}
    assert [row for row, cut in enumerate(first["truncated"].to_pylist()) if cut] == [13]
    assert first["num_tokens"][5].as_py() == 2
    assert all(check.passed for check in verify(str(path)))


def test_sentence_pairs_and_kept_texts(made, read):
    path, manifest = made("pairs")
    output = read(path)
    assert manifest.canary["passed"]
    assert manifest.seconds["first_replica"] > 0
    assert manifest.stages["tokenize"]["work_s"] > 0
    assert output.column_names[:2] == ["id", "text"]
    assert output["num_tokens"][5].as_py() == 3


@pytest.fixture(scope="module")
def uneven(write_shards, job_to, run, tmp_path_factory):
    """Job, manifest and output of three kinds of shards: a multiple of the part size, empty, and one row."""
    folder = tmp_path_factory.mktemp("uneven")
    shards = (["one", "two", "one", "one"] * 50, [], ["x"])
    write_shards(folder / "docs", [pa.table({"text": pa.array(texts, pa.string())}) for texts in shards])
    job = job_to(folder / "out", folder / "docs")
    return job, run(job), folder / "out"


def test_shards_of_whole_parts_end_with_an_empty_part(uneven):
    _, manifest, output = uneven
    assert [(part.shard, part.start, part.stop) for part in manifest.parts] == [
        (0, 0, 100),
        (0, 100, 200),
        (0, 200, 200),
        (1, 0, 0),
        (2, 0, 1),
    ]
    status = read_status(Storage(str(output)))
    assert (status["missing"], status["failed"], status["null_texts"]) == ([], 0, 0)


def test_identical_texts_are_counted_and_a_resumed_run_keeps_the_count(uneven, run):
    job, manifest, output = uneven
    assert manifest.counts == {"repeats": 196, "overflows": 0, "splits": 0, "lost": 0}
    (output / "_varve/manifest.json").unlink()
    (output / "data/part-00000-000000000000-000000000100.parquet").unlink()
    again = run(job)
    assert again.counts == manifest.counts
    assert "bottleneck" in again.stages


def test_failed_rows_above_the_limit_fail_the_run_until_the_limit_is_raised(job, run, write_shards, tmp_path):
    texts = [b"\xff" if row % 5 == 0 else None if row % 5 == 1 else b"good" for row in range(100)]
    folder = write_shards(tmp_path / "docs", [pa.table({"text": pa.array(texts).view(pa.string())})])
    with pytest.raises(RunError, match=r"20 rows failed, more than output\.max_errors: 1% .*20 x text is not UTF-8"):
        run(job(folder))
    assert not (tmp_path / "out/_varve/manifest.json").exists()
    manifest = run(job(folder, output={"max_errors": "20%"}))
    assert (manifest.num_errors, manifest.num_null_texts) == (20, 20)
    assert manifest.error_reasons == {"text is not UTF-8: byte … at …": 20}
    status = read_status(Storage(manifest.path))
    assert (status["state"], status["failed"], status["null_texts"]) == ("complete", 20, 20)


def test_run_without_a_good_row_fails_each_time_and_is_not_published(job, run, write_shards, tmp_path):
    folder = write_shards(tmp_path / "docs", [pa.table({"text": pa.nulls(50)})])
    for _ in range(2):  # the second time all parts are committed
        with pytest.raises(RunError, match="none of 50 rows has features: 50 have a null text"):
            run(job(folder, output={"max_errors": None}))
    status = read_status(Storage(str(tmp_path / "out")))
    assert (status["state"], status["null_texts"], status["published"]) == ("partial", 50, False)


def test_source_that_fails_during_the_run_is_named_in_the_error(job, run, tmp_path):
    (tmp_path / "docs").mkdir()
    good = "".join(json.dumps({"text": f"text {row}"}) + "\n" for row in range(50))
    for shard in range(10):  # of which eight are looked at before the run
        (tmp_path / f"docs/{shard}.jsonl").write_text(good + "{broken\n" * (shard == 4))
    with pytest.raises(RunError, match=r"4\.jsonl"):
        run(job(tmp_path / "docs"))
    assert not (tmp_path / "out/_varve/manifest.json").exists()


def test_windows_of_long_documents_pass_the_canary(job, run, write_shards, tmp_path):
    texts = [f"sentence {row} " * (row * 3 + 1) for row in range(60)]
    folder = write_shards(tmp_path / "docs", [pa.table({"text": texts})])
    long_text = {"window": 48, "stride": 8}
    manifest = run(job(folder, model={"long_text": long_text, "max_tokens": "auto"}))
    assert manifest.canary["passed"]
    assert manifest.num_truncated == 0
    vectors = {**long_text, "vectors": "window"}
    other = {"path": str(tmp_path / "other")}
    assert run(job(folder, model={"long_text": vectors, "max_tokens": "auto"}, output=other)).canary["passed"]


@pytest.mark.parametrize("long_text", ["truncate", {"window": 16, "stride": 4}])
def test_checkpoint_that_truncates_on_the_left_passes_the_canary(
    long_text, job, run, write_shards, tmp_path, tiny, minilm
):
    model = shutil.copytree(tiny("bert"), tmp_path / "left")
    AutoTokenizer.from_pretrained(minilm, truncation_side="left").save_pretrained(model)
    texts = [" ".join(f"{word} by {row}" for word in range(row)) for row in range(30)]
    docs = write_shards(tmp_path / "docs", [pa.table({"text": texts})])
    tokens = 16 if long_text == "truncate" else "auto"
    manifest = run(job(docs, model={"name": str(model), "long_text": long_text, "max_tokens": tokens}))
    assert manifest.canary["passed"]
    assert bool(manifest.num_truncated) == (long_text == "truncate")


def test_canary_of_long_documents_stays_within_its_token_limit(job, run, write_shards, tmp_path):
    texts = [f"sentence {row} " + "word " * 8000 for row in range(10)]
    folder = write_shards(tmp_path / "docs", [pa.table({"text": texts})])
    manifest = run(job(folder, model={"long_text": {"window": 64, "stride": 0}, "max_tokens": "auto"}))
    assert manifest.canary["passed"]
    assert 4 <= manifest.canary["rows"] <= 8


def test_int8_vectors_with_outlying_dimensions_pass_the_canary(job, run, write_shards, tmp_path, minilm):
    texts = [f"text {row}" for row in range(150)]
    docs = write_shards(tmp_path / "docs", [pa.table({"text": texts})])
    features = {"m": {"pool": "max", "layers": [-2, -1], "combine": "concat"}}
    manifest = run(job(docs, model={"name": minilm}, features=features, output={"dtype": "int8"}))
    assert manifest.canary["passed"]
