"""Whole runs from a table to a table, over every format: first, again, after changes, interrupted, refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.finished_runs import finish_table
from tests.lake.backends import KINDS, SCHEMA, Backend, make_backend, rows
from tests.reference_run import rows_of
from varve import Job, JobError, RunError
from varve.backfill import publish as publishing
from varve.backfill.open_backfill import open_backfill
from varve.backfill.table_check import check_table
from varve.config.table_address import parse_table_address
from varve.engine.parallel import in_threads
from varve.lake.delta.log import storage_options
from varve.lake.iceberg.catalog import load_table
from varve.lake.open_table import open_table
from varve.lake.text_hash import hash_texts
from varve.output.part_file import Part
from varve.planning.saved_plan import CodePermission
from varve.storage.object_store import Storage

ROWS = 60


@pytest.fixture
def job_of(tiny):
    def make(backend: Backend, source: dict | None = None, **output) -> Job:
        in_place = backend.address.startswith("lance")
        own = {"text": "body", "keep": ["lang"], **({} if in_place else {"key": "doc_id"})}
        return Job.parse(
            {
                "source": {"table": backend.address, **own, **(source or {})},
                "model": {"name": tiny("bert")},
                "features": {"embedding": {"pool": "mean"}},
                "output": {"table": backend.address if in_place else backend.features_address} | output,
            }
        )

    return make


@pytest.fixture(params=[kind for kind in KINDS if not kind.startswith("lance")])
def sibling(request, tmp_path, monkeypatch):
    """Backends whose features go to a table of their own."""
    return make_backend(request.param, tmp_path, lambda: request.getfixturevalue("seaweed"), monkeypatch)


def features_of(backend: Backend) -> pa.Table:
    """Key, hash and vector of each row with features, sorted by key."""
    in_place = backend.address.startswith("lance")
    table = backend.read(backend.address if in_place else backend.features_address)
    columns = ["doc_id", "embedding_hash" if in_place else "text_hash", "embedding"]
    found = table.select(columns).rename_columns(["doc_id", "text_hash", "embedding"])
    found = found.filter(pc.field("text_hash").is_valid()).sort_by("doc_id")
    vectors = found["embedding"].combine_chunks().cast(pa.list_(pa.float32()))
    return pa.table(
        {"doc_id": found["doc_id"], "text_hash": found["text_hash"].cast(pa.binary()), "embedding": vectors}
    )


def expected_of(job: Job, source: pa.Table, folder: Path) -> pa.Table:
    """The same features from a job over a Parquet file."""
    folder.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(source, folder / "source.parquet")
    plain = Job.parse(
        {
            "source": {
                "dataset": "parquet",
                "data_files": str(folder / "*.parquet"),
                "text": "body",
                "keep": ["doc_id"],
            },
            "model": job.model.model_dump(mode="json"),
            "features": {"embedding": {"pool": "mean"}},
            "output": {"path": str(folder / "unused")},
        }
    )
    found = rows_of(plain).sort_by("doc_id")
    hashes = hash_texts([source.sort_by("doc_id")["body"]]).cast(pa.binary())
    return pa.table(
        {
            "doc_id": found["doc_id"],
            "text_hash": hashes,
            "embedding": found["embedding"].combine_chunks().cast(pa.list_(pa.float32())),
        }
    )


def assert_equal(backend: Backend, job: Job, folder: Path) -> None:
    """The features are those of the source's rows, each once; vectors within the last bits of other packs."""
    found = features_of(backend)
    expected = expected_of(job, backend.read(backend.address).select(SCHEMA.names).cast(SCHEMA), folder)
    assert found["doc_id"].to_pylist() == expected["doc_id"].to_pylist()
    assert found["text_hash"].to_pylist() == expected["text_hash"].to_pylist()
    is_null = [vector is None for vector in found["embedding"].to_pylist()]
    assert is_null == [vector is None for vector in expected["embedding"].to_pylist()]
    got, want = (pc.list_flatten(table["embedding"]).to_numpy() for table in (found, expected))
    assert abs(got - want).max(initial=0.0) < 1e-5


def test_first_backfill_gives_each_row_its_features_once(backend, job_of, tmp_path):
    backend.create(rows(range(ROWS)), partition="lang")
    backend.append(pa.table([[1000], [None], [None]], schema=SCHEMA))
    manifest, _ = finish_table(job_of(backend))
    assert manifest.table["rows"] == {"new": ROWS + 1, "changed": 0, "unchanged": 0, "removed": 0}
    assert_equal(backend, job_of(backend), tmp_path / "plain")


def test_same_command_again_encodes_nothing_and_makes_no_version(backend, job_of):
    backend.create(rows(range(ROWS)))
    job = job_of(backend)
    first, _ = finish_table(job)
    before = open_table(parse_table_address(job.output.table)).pin(None).version
    again, finished_before = finish_table(job)
    assert finished_before
    assert again.sha256 == first.sha256
    assert open_table(parse_table_address(job.output.table)).pin(None).version == before


def test_changes_of_the_source_are_followed_and_other_rows_are_not_encoded(backend, job_of, tmp_path):
    backend.create(rows(range(ROWS)))
    job = job_of(backend)
    finish_table(job)
    backend.append(rows([1000, 1001, 1002]))
    backend.update(rows([3, 5], "changed {}"))
    backend.delete([8])
    manifest, _ = finish_table(job)
    assert manifest.num_rows == 5
    counts = manifest.table["rows"]
    assert (counts["new"], counts["changed"], counts["unchanged"]) == (3, 2, ROWS - 3)
    assert counts["removed"] == (0 if backend.address.startswith("lance") else 1)
    assert_equal(backend, job, tmp_path / "plain")


def test_changed_kept_column_moves_a_row_to_its_new_partition(sibling, job_of):
    sibling.create(rows(range(10)), partition="lang")
    job = job_of(sibling)
    finish_table(job)
    sibling.update(pa.table([[4], ["fr"], ["text 4"]], schema=SCHEMA))
    manifest, _ = finish_table(job)
    assert manifest.table["rows"]["changed"] == 1
    found = sibling.read(sibling.features_address).sort_by("doc_id")
    assert found["doc_id"].to_pylist() == list(range(10))
    assert found["lang"].to_pylist()[4] == "fr"
    assert set(checks_of(job).values()) == {()}


@pytest.mark.parametrize("sibling", ["iceberg-sqlite"], indirect=True)
def test_file_of_an_earlier_partition_is_refused_when_the_job_is_planned(sibling, job_of):
    """Partitions of Delta do not change."""
    sibling.create(rows(range(10)))
    with load_table(parse_table_address(sibling.address)).update_spec() as spec:
        spec.add_identity("lang")
    sibling.append(rows([20]))
    with pytest.raises(JobError, match=r"output\.partition: none"):
        finish_table(job_of(sibling))
    assert finish_table(job_of(sibling, table=sibling.features_address, partition="none"))[0].num_rows == 11


def test_compaction_of_the_source_encodes_nothing(backend, job_of, tmp_path):
    backend.create(rows(range(ROWS)))
    backend.append(rows(range(ROWS, ROWS + 5)))
    job = job_of(backend)
    finish_table(job)
    backend.compact()
    manifest, finished_before = finish_table(job)
    assert not finished_before
    assert manifest.num_rows == 0
    assert manifest.table["rows"]["unchanged"] == ROWS + 5
    assert finish_table(job)[1]
    assert_equal(backend, job, tmp_path / "plain")


def test_all_rows_deleted_leave_an_empty_table(backend, job_of):
    backend.create(rows(range(6)))
    job = job_of(backend)
    finish_table(job)
    backend.delete(list(range(6)))
    manifest, _ = finish_table(job)
    assert manifest.num_rows == 0
    assert features_of(backend).num_rows == 0


def test_rewritten_columns_without_a_key_are_refused_before_a_column_is_added(sibling, job_of):
    """Rows of tables without a key have no hash of their text, so nothing could be published."""
    sibling.create(rows(range(2)))
    with pytest.raises(JobError, match=r"source\.key is missing: .* a row of (iceberg|delta)"):
        finish_table(job_of(sibling, source={"key": None}, table=sibling.address, columns="rewrite"))
    assert sibling.read(sibling.address).schema.names == SCHEMA.names


def test_rewritten_columns_follow_the_source(sibling, job_of, tmp_path):
    """Features as columns of the Iceberg or Delta table that has the texts."""
    sibling.create(rows(range(ROWS)), partition="lang")
    job = job_of(sibling, table=sibling.address, columns="rewrite")
    assert finish_table(job)[0].table["rows"]["new"] == ROWS
    assert finish_table(job)[1]
    columns = sibling.read(sibling.address).slice(0, 0)
    sibling.append(pa.concat_tables([columns, rows([1000, 1001])], promote_options="default"))
    sibling.delete([8])
    assert finish_table(job)[0].num_rows == 2
    sibling.compact()
    assert finish_table(job)[0].num_rows == 0
    found = sibling.read(sibling.address).sort_by("doc_id")
    expected = expected_of(job, found.select(SCHEMA.names).cast(SCHEMA), tmp_path / "plain")
    assert found["embedding_hash"].cast(pa.binary()).to_pylist() == expected["text_hash"].to_pylist()
    got, want = (pc.list_flatten(table["embedding"]).to_numpy() for table in (found, expected))
    assert abs(got - want).max() < 1e-5


def test_source_as_destination_without_rewrite_is_refused(sibling, job_of):
    sibling.create(rows(range(3)))
    with pytest.raises(JobError, match=r"output\.columns: rewrite"):
        finish_table(job_of(sibling, table=sibling.address))


@pytest.mark.parametrize("step", ["copy_live_rows", "check_staged", "manifest"])
def test_interrupted_run_is_continued_by_the_same_command(backend, job_of, monkeypatch, tmp_path, step):
    backend.create(rows(range(ROWS)))
    job = job_of(backend)
    finish_table(job)
    backend.append(rows([1000, 1001]))
    backend.update(rows([3], "changed {}"))
    name = "varve.output.manifest.publish" if step == "manifest" else f"varve.backfill.publish.{step}"
    if backend.address.startswith("lance") and step != "manifest":
        name = "varve.backfill.in_place.lance_columns.verify_fragment"

    def fail(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(name, fail)
        with pytest.raises(KeyboardInterrupt):
            finish_table(job)
    manifest, _ = finish_table(job)
    assert manifest.num_rows == 3
    assert finish_table(job)[1]
    assert_equal(backend, job, tmp_path / "plain")


def test_row_that_cannot_be_encoded_has_key_hash_and_reason_and_is_not_tried_again(backend, job_of):
    backend.create(pa.table([[1, 2], ["de", "de"], ["text", None]], schema=SCHEMA))
    job = job_of(backend)
    finish_table(job)
    backend.append(rows([3]))
    manifest, _ = finish_table(job)
    assert manifest.num_rows == 1
    assert features_of(backend)["embedding"].null_count == 1


@pytest.mark.parametrize(("keys", "problem"), [([1, 2, 1], "1"), ([1, None, 2], "null"), ([4, 5, 4, 5], "4")])
def test_key_that_does_not_identify_a_row_is_refused_with_examples(sibling, job_of, keys, problem):
    sibling.create(pa.table([keys, ["de"] * len(keys), ["text"] * len(keys)], schema=SCHEMA))
    with pytest.raises(JobError, match=rf"source\.key.*{problem}"):
        finish_table(job_of(sibling))


def test_repeated_key_across_unchanged_files_is_refused(sibling, job_of):
    sibling.create(rows(range(10)))
    job = job_of(sibling)
    finish_table(job)
    sibling.append(rows([4], "another row with key {}"))
    with pytest.raises(JobError, match=r"source\.key.*4"):
        finish_table(job)


def test_rows_that_left_the_source_stay_if_the_job_keeps_them(sibling, job_of):
    sibling.create(rows(range(10)))
    job = job_of(sibling, deletes="keep")
    finish_table(job)
    sibling.delete([3, 4])
    manifest, _ = finish_table(job)
    assert manifest.table["rows"]["removed"] in (0, 2)
    assert features_of(sibling)["doc_id"].to_pylist() == list(range(10))


def test_replaced_source_is_refused(sibling, job_of, tmp_path):
    sibling.create(rows(range(10)))
    job = job_of(sibling)
    finish_table(job)
    other = type(sibling)(str(tmp_path / "other"))
    other.create(rows(range(10)))
    moved = job.model_copy(update={"source": job.source.model_copy(update={"table": other.address})})
    with pytest.raises(JobError, match="source"):
        finish_table(moved)


def test_another_feature_set_is_refused_in_the_same_table(sibling, job_of, tiny):
    sibling.create(rows(range(10)))
    job = job_of(sibling)
    finish_table(job)
    other = job.model_copy(update={"model": job.model.model_copy(update={"max_tokens": 16})})
    with pytest.raises(JobError, match="feature set"):
        finish_table(other)


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_types_that_readers_lose_are_refused_when_the_job_is_planned(sibling, job_of, dtype):
    sibling.create(rows(range(10)))
    with pytest.raises(JobError, match=rf"{dtype}.*float32"):
        open_backfill(job_of(sibling, dtype=dtype), create=False)


def checks_of(job: Job) -> dict[str, tuple[str, ...]]:
    found = check_table(parse_table_address(job.output.table), CodePermission(), in_threads)
    return {check.name: check.failures for check in found}


def test_verify_of_a_published_table_finds_nothing(sibling, job_of):
    sibling.create(rows(range(ROWS)), partition="lang")
    job = job_of(sibling)
    finish_table(job)
    sibling.update(rows([3], "changed {}"))
    finish_table(job)
    assert checks_of(job) == {"rows": (), "checksums": (), "canary": ()}


def test_verify_of_columns_in_place_finds_rows_that_changed_since(backend, job_of):
    backend.create(rows(range(ROWS)))
    in_place = backend.address.startswith("lance")
    job = job_of(backend) if in_place else job_of(backend, table=backend.address, columns="rewrite")
    finish_table(job)
    assert checks_of(job) == {"rows": (), "canary": ()}
    backend.delete([3])
    assert checks_of(job) == {"rows": (), "canary": ()}
    stale = backend.read(backend.address).filter(pc.field("doc_id") == 5)
    backend.update(stale.set_column(stale.schema.get_field_index("body"), "body", pa.array(["changed"])))
    assert "1 row(s) have features of another text" in checks_of(job)["rows"][0]


def edit(address: str, deleted: int | None, row: pa.Table | None) -> None:
    """Delete a key from a table and append a row, as another program does."""
    parsed = parse_table_address(address)
    if parsed.format == "iceberg":
        table = load_table(parsed)
        if deleted is not None:
            table.delete(f"doc_id == {deleted}")
        if row is not None:
            table.append(row.cast(table.schema().as_arrow()))
        return
    options = storage_options(parsed.name)
    if deleted is not None:
        DeltaTable(parsed.name, storage_options=options).delete(f"doc_id = {deleted}")
    if row is not None:
        write_deltalake(parsed.name, row, mode="append", storage_options=options)


@pytest.mark.parametrize(
    ("statement", "named"),
    [("missing", "among keys [7]"), ("stale", "among keys [7]"), ("extra", "for example keys [777]")],
)
def test_verify_names_the_keys_of_wrong_rows(sibling, job_of, statement, named):
    sibling.create(rows(range(ROWS)))
    job = job_of(sibling)
    finish_table(job)
    row = sibling.read(sibling.features_address).filter(pc.field("doc_id") == 7)
    if statement == "stale":
        hashes = pa.array([b"0" * 16], row["text_hash"].type)
        row = row.set_column(row.schema.get_field_index("text_hash"), "text_hash", hashes)
    if statement == "extra":
        row = row.set_column(row.schema.get_field_index("doc_id"), "doc_id", pa.array([777], pa.int64()))
    edit(job.output.table, None if statement == "extra" else 7, None if statement == "missing" else row)
    failures = checks_of(job)["rows"]
    assert len(failures) == 1
    assert named in failures[0], failures


def flip_a_bit(storage: Storage, part: Part) -> None:
    """Change a part's bytes in the middle of its data."""
    content = bytearray(storage.read(part.name) or b"")
    content[part.data_bytes // 2] ^= 1
    storage.delete([part.name])
    assert storage.create(part.name, bytes(content))


def test_verify_finds_a_vector_that_changed_on_disk(sibling, job_of):
    sibling.create(rows(range(ROWS)))
    job = job_of(sibling)
    manifest, _ = finish_table(job)
    flip_a_bit(Storage(manifest.path), manifest.parts[0])
    failures = checks_of(job)
    assert any("differ" in failure for failure in failures["checksums"]), failures


def test_part_that_changes_after_it_was_checked_is_not_published(sibling, job_of, monkeypatch):
    sibling.create(rows(range(ROWS)))
    job = job_of(sibling)
    backfill = open_backfill(job)
    before = backfill.run.destination.pin(None).version
    checked = publishing.check_staged

    def change_first(run, change, staged, storage, parts, spread):
        flip_a_bit(storage, parts[0])
        return checked(run, change, staged, storage, parts, spread)

    monkeypatch.setattr(publishing, "check_staged", change_first)
    with pytest.raises(RunError, match="not published"):
        finish_table(job)
    table = backfill.run.destination
    assert table.state(backfill.run.feature_set) is None
    assert [*table.files(table.pin(None).version)] == [*table.files(before)]
