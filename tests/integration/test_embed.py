import json

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.status import look
from pipeline import Job, JobError, RunError
from pipeline.storage.objects import Storage
from pipeline.verify import verify


def write_shards(folder, tables):
    folder.mkdir()
    for shard, table in enumerate(tables):
        pq.write_table(table, folder / f"{shard}.parquet")
    return folder


def awkward(shard: int, rows: int = 250) -> pa.Table:
    texts: list[bytes | None] = [f"row {row} of shard {shard}, text".encode() for row in range(rows)]
    texts[3] = None
    texts[5] = b""
    texts[7] = "emoji 🙂🏳️‍🌈 and \u0000 nul".encode()
    texts[11] = b"not utf-8: \xff\xfe"
    texts[13] = b"word " * 200_000
    texts[17] = b"x" * 1_000_000
    return pa.table({"id": range(rows), "text": pa.array(texts, pa.binary()).view(pa.string())})


def read(path) -> pa.Table:
    return ds.dataset(path / "data").to_table().sort_by([("shard", "ascending"), ("row", "ascending")])


@pytest.fixture
def docs(tmp_path):
    tables = [pa.table({"text": [f"text {row} of {shard}" for row in range(150)]}) for shard in range(2)]
    return write_shards(tmp_path / "docs", tables)


def test_awkward_rows_end_as_rows(job, run, tmp_path):
    folder = write_shards(tmp_path / "docs", [awkward(shard) for shard in range(4)])
    manifest = run(job(folder, keep=["id"], features={"e": {"pool": "mean"}, "t": {"pool": "tokens"}}))
    output = read(tmp_path / "out")
    assert (len(output), manifest.num_rows, manifest.num_errors) == (1000, 1000, 8)
    assert list(zip(output["shard"].to_pylist(), output["row"].to_pylist(), strict=True)) == [
        (shard, row) for shard in range(4) for row in range(250)
    ]
    first = output.slice(0, 250)
    assert first["id"].to_pylist() == list(range(250))
    errors = {row: told for row, told in enumerate(first["error"].to_pylist()) if told}
    assert errors == {3: "text is null", 11: "text is not UTF-8: byte 0xff at 11"}
    assert [row for row, cut in enumerate(first["truncated"].to_pylist()) if cut] == [13]
    assert first["num_tokens"][5].as_py() == 2
    assert all(check.passed for check in verify(str(tmp_path / "out")))


def test_finished_job_does_nothing_the_second_time(job, run, docs, tmp_path):
    manifest = run(job(docs))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run(job(docs)) == manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_lost_parts_are_made_again_bit_for_bit(job, run, docs, tmp_path):
    run(job(docs))
    parts = sorted((tmp_path / "out/data").iterdir())
    before = {path.name: pq.read_table(path) for path in parts}
    (tmp_path / "out/_varve/manifest.json").unlink()
    for path in parts[::2]:
        path.unlink()
    assert look(Storage(str(tmp_path / "out")))["state"] == "partial"
    manifest = run(job(docs))
    assert manifest.num_rows == 300
    assert {path.name: pq.read_table(path) for path in (tmp_path / "out/data").iterdir()} == before


def test_shards_that_end_on_the_grid_are_closed_by_an_empty_part(job, run, tmp_path):
    folder = write_shards(tmp_path / "docs", [pa.table({"text": ["x"] * rows}) for rows in (200, 0, 1)])
    manifest = run(job(folder, output={"rows_per_part": 100}))
    assert [(part.shard, part.start, part.stop) for part in manifest.parts] == [
        (0, 0, 100),
        (0, 100, 200),
        (0, 200, 200),
        (1, 0, 0),
        (2, 0, 1),
    ]
    assert look(Storage(str(tmp_path / "out")))["missing"] == []


def test_changed_job_is_refused_with_what_differs(job, run, docs, tmp_path):
    run(job(docs))
    with pytest.raises(JobError) as error:
        run(job(docs, model={"max_tokens": 32}, features={"embedding": {"pool": "cls"}}))
    assert "model.max_tokens: 64 → 32" in str(error.value)
    assert 'features.embedding.pool: "mean" → "cls"' in str(error.value)


def test_changed_source_is_refused(job, run, docs, tmp_path):
    run(job(docs))
    pq.write_table(pa.table({"text": ["another text"] * 7}), docs / "1.parquet")
    with pytest.raises(JobError, match=r"source file 1\.parquet"):
        run(job(docs))


def test_parts_without_their_job_are_not_taken_for_this_jobs(job, run, docs, tmp_path):
    run(job(docs))
    (tmp_path / "out/_varve/job.json").unlink()
    (tmp_path / "out/_varve/manifest.json").unlink()
    with pytest.raises(JobError, match="holds parts, but not the job that wrote them"):
        run(job(docs, features={"embedding": {"pool": "cls"}}))


def test_part_of_another_job_among_the_parts_keeps_the_run_from_publishing(job, run, docs, tmp_path):
    run(job(docs))
    other = job(docs, features={"embedding": {"pool": "cls"}}, output={"path": str(tmp_path / "other")})
    run(other)
    name = "data/part-00000-000000000000-000000000100.parquet"
    (tmp_path / "out" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    (tmp_path / "out/_varve/manifest.json").unlink()
    with pytest.raises(RunError, match=r"1 part\(s\) are of another job: data/part-00000"):
        run(job(docs))


def test_too_many_error_rows_stop_the_run(job, run, tmp_path):
    folder = write_shards(tmp_path / "docs", [pa.table({"text": pa.array([None] * 50, pa.string())})])
    with pytest.raises(RunError, match=r"50 rows ended with an error, more than output\.max_errors: 10"):
        run(job(folder, output={"max_errors": 10}))
    assert not (tmp_path / "out/_varve/manifest.json").exists()


def test_source_that_breaks_while_it_is_read_stops_the_run_with_its_name(job, run, tmp_path):
    (tmp_path / "docs").mkdir()
    good = "".join(json.dumps({"text": f"text {row}"}) + "\n" for row in range(50))
    (tmp_path / "docs/0.jsonl").write_text(good)
    (tmp_path / "docs/1.jsonl").write_text(good + "{broken\n")
    with pytest.raises(RunError, match=r"1\.jsonl"):
        run(job(tmp_path / "docs"))
    assert not (tmp_path / "out/_varve/manifest.json").exists()


def test_stored_vector_that_is_wrong_keeps_the_run_from_publishing(job, run, docs, tmp_path):
    """The canary reads what was stored: a part with other vectors than the model's is found before the manifest."""
    from pipeline.plan import prepare
    from pipeline.ranges import Range
    from pipeline.sink import part_name, write_part

    run(job(docs))
    wanted = job(docs)
    name = part_name(Range(0, 0, 100))
    table = pq.read_table(tmp_path / "out" / name)
    shifted = pa.FixedSizeListArray.from_arrays(
        pa.array(np.stack(table["embedding"].to_numpy()).ravel() + np.float32(0.01)), type=table["embedding"].type
    )
    forged = table.set_column(table.column_names.index("embedding"), table.schema.field("embedding"), shifted)
    (tmp_path / "out" / name).unlink()
    (tmp_path / "out/_varve/manifest.json").unlink()
    write_part(Storage(str(tmp_path / "out")), Range(0, 0, 100), forged, prepare(wanted, device="cpu").fingerprint)
    with pytest.raises(RunError, match=r"not published(.|\n)*embedding of shard 0"):
        run(wanted)
    assert not (tmp_path / "out/_varve/manifest.json").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_output_is_read_by_every_reader_as_plain_lists(dtype, job, run, docs, tmp_path):
    import duckdb
    import polars as pl
    from datasets import load_dataset

    features = {
        "e": {"pool": "mean", "normalize": True},
        "t": {"pool": "tokens"},
        "a": {"pool": "attentions", "layers": 1},
        "c": {"pool": "cls", "layers": [0, 3]},
    }
    manifest = run(job(docs, features=features, output={"dtype": dtype}))
    assert manifest.canary["passed"]
    assert manifest.canary["rows"] >= 8
    files = str(tmp_path / "out/data/*.parquet")
    width = 4 if dtype == "binary" else 32
    table = read(tmp_path / "out")
    assert table.schema.field("e").type.list_size == width
    assert not any(isinstance(field.type, pa.ExtensionType) for field in table.schema)
    first = table["e"][0].as_py()
    frame = table.to_pandas()
    assert frame["e"][0].shape == (width,)
    by_polars = pl.read_parquet(files).sort("shard", "row")
    assert by_polars["e"].to_numpy().shape == (300, width)
    assert by_polars["e"][0].to_list() == first
    by_duckdb = duckdb.sql(f"SELECT e, len(t), c_00 FROM '{files}' ORDER BY shard, row").fetchall()
    assert len(by_duckdb) == 300
    assert list(by_duckdb[0][0]) == first
    by_datasets = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert by_datasets.features["e"].length == width
    assert by_datasets[0]["e"] == first


def test_sentence_pairs_and_kept_text_go_through(job, run, tmp_path):
    premises, hypotheses = ["a man eats"] * 40, ["someone eats"] * 40
    premises[3] = hypotheses[3] = hypotheses[4] = ""
    table = pa.table({"premise": premises, "hypothesis": hypotheses, "label": [1] * 40})
    folder = write_shards(tmp_path / "docs", [table])
    manifest = run(job(folder, text=["premise", "hypothesis"], keep=["label", "premise"]))
    assert manifest.canary["passed"]
    assert read(tmp_path / "out").column_names[:2] == ["label", "premise"]


def test_windows_of_long_documents_pass_the_canary(job, run, tmp_path):
    texts = [f"sentence {row} " * (row * 3 + 1) for row in range(60)]
    folder = write_shards(tmp_path / "docs", [pa.table({"text": texts})])
    long_text = {"window": 48, "stride": 8}
    manifest = run(job(folder, model={"long_text": long_text, "max_tokens": "auto"}))
    assert manifest.canary["passed"]
    assert manifest.num_truncated == 0
    vectors = {**long_text, "vectors": "window"}
    other = {"path": str(tmp_path / "other")}
    assert run(job(folder, model={"long_text": vectors, "max_tokens": "auto"}, output=other)).canary["passed"]


def test_int8_vectors_with_outlying_dimensions_pass_the_canary(job, run, docs, minilm):
    features = {"m": {"pool": "max", "layers": [-2, -1], "combine": "concat"}}
    manifest = run(job(docs, model={"name": minilm}, features=features, output={"dtype": "int8"}))
    assert manifest.canary["passed"]


def test_hub_id_is_pinned_to_its_commit_once(job, docs, monkeypatch):
    """Only the Hub is a stand-in: it answers with a commit, and loading must ask for that commit and no branch."""
    from types import SimpleNamespace

    from pipeline.source import builder
    from pipeline.source.opening import open_dataset

    asked = []

    def load(**arguments):
        asked.append(arguments)
        return real(**{key: value for key, value in arguments.items() if key != "revision"} | {"path": str(docs)})

    real = builder.load_dataset_builder
    monkeypatch.setattr(builder, "load_dataset_builder", load)
    monkeypatch.setattr(
        builder, "HfApi", lambda: SimpleNamespace(dataset_info=lambda *_, **__: SimpleNamespace(sha="c0ffee"))
    )
    dataset = open_dataset(job("someone/corpus", source={"revision": "main"}).source)
    assert dataset.commit == "c0ffee"
    assert {arguments["revision"] for arguments in asked} == {"c0ffee"}


def test_features_of_a_ray_dataset_keep_its_columns(tiny):
    import ray

    from pipeline import Feature, features

    dataset = ray.data.from_items([{"text": f"text {row}", "id": row} for row in range(20)])
    result = features(dataset, text="text", model=tiny("bert"), features={"e": Feature(pool="cls")})
    rows = sorted(result.take_all(), key=lambda row: row["id"])
    assert [row["text"] for row in rows] == [f"text {row}" for row in range(20)]
    assert rows[3]["error"] is None
    assert len(rows[0]["e"]) == 32


def test_run_leaves_the_options_of_a_ray_program_as_they_were(job, run, docs):
    from ray.data import DataContext

    before = DataContext.get_current().target_max_block_size
    run(job(docs))
    assert DataContext.get_current().target_max_block_size == before


def test_two_replicas_write_the_same_rows(job, run, docs, tmp_path):
    manifest = run(job(docs, compute={"replicas": 2}))
    assert manifest.num_rows == 300
    assert manifest.encoder["threads"] >= 1
    assert read(tmp_path / "out")["row"].to_pylist() == [*range(150), *range(150)]


def test_job_from_python_equals_job_from_file(job, docs, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(job(docs).model_dump(mode="json")))
    assert Job.load(str(path)) == job(docs)


@pytest.mark.parametrize("text", ["text", ["text", "other"]])
def test_tokenizers_of_their_own_give_the_rows_of_replicas_that_tokenize(job, run, tmp_path, text):
    tables = [
        table.append_column("other", table["id"].cast(pa.string())) for table in (awkward(0, 120), awkward(1, 30))
    ]
    folder = write_shards(tmp_path / "docs", tables)
    features = {"e": {"pool": "mean", "layers": "all"}, "t": {"pool": "tokens"}}
    outputs = {}
    for tokenizers in (0, 1):
        path = tmp_path / f"out{tokenizers}"
        manifest = run(
            job(
                folder,
                text=text,
                keep=["id"],
                features=features,
                output={"path": str(path)},
                compute={"tokenizers": tokenizers},
            )
        )
        assert manifest.seconds["first_replica"] > 0
        assert manifest.stages["tokenize"]["work_s"] > 0
        outputs[tokenizers] = read(path)
    assert outputs[1].equals(outputs[0])


def test_identical_texts_are_counted_and_a_resumed_run_keeps_the_count(job, run, tmp_path):
    folder = write_shards(tmp_path / "docs", [pa.table({"text": ["one", "two", "one", "one"] * 50})])
    wanted = job(folder, output={"rows_per_part": 100})
    assert run(wanted).counts == {"repeats": 196, "overflows": 0, "splits": 0, "lost": 0}
    (tmp_path / "out/_varve/manifest.json").unlink()
    (tmp_path / "out/data/part-00000-000000000000-000000000100.parquet").unlink()
    again = run(wanted)
    assert again.counts == {"repeats": 196, "overflows": 0, "splits": 0, "lost": 0}
    assert "bottleneck" in again.stages
