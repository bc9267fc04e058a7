"""Features as columns of a Lance dataset: what runs encode, commit and leave alone."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from tests.lake.backend_lance import Backend
from tests.lake.backends import make_backend, rows
from tests.lake.in_place_run import VECTOR, InPlaceRun, missing, vector
from tests.lake.lance_commits import commits_of_runs, counts, data_files
from varve.backfill.in_place.lance_columns import LanceColumns
from varve.errors import JobError
from varve.lake.lance.lance_table import LanceTable


@pytest.fixture(params=["lance-disk", "lance-s3"])
def docs(request, tmp_path, monkeypatch) -> Backend:
    """Four fragments."""
    made = make_backend(request.param, tmp_path, lambda: request.getfixturevalue("seaweed"), monkeypatch)
    assert isinstance(made, Backend)
    made.create(rows(range(35)))
    return made


@pytest.fixture(params=[False, True], ids=["", "stable-row-ids"])
def local(request, tmp_path) -> Backend:
    made = Backend(str(tmp_path), request.param)
    made.create(rows(range(35)))
    return made


@pytest.fixture
def run(local, tmp_path) -> InPlaceRun:
    return InPlaceRun(local, tmp_path / "runs")


def test_lance_first_run_adds_columns_in_one_commit_and_changes_no_file(local, run):
    before = data_files(local)
    version = run.columns.table.pin(None).version
    assert run.go() == counts(35, 0, 0)
    assert missing(local) == []
    schema = local.open().schema
    assert [schema.field(name).type for name in run.columns.own.names] == [VECTOR, pa.binary(16), pa.string()]
    assert local.open().version == version + 1
    assert commits_of_runs(local) == ["Merge"]
    after = data_files(local)
    assert {name: after[name] for name in before} == before
    assert len(after) == 2 * len(before)  # one for each fragment


def test_lance_rounds_on_each_store_encode_what_changed_and_nothing_else(docs, tmp_path):
    run = InPlaceRun(docs, tmp_path / "runs")
    assert run.go() == counts(35, 0, 0)
    docs.append(rows(range(40, 46)))
    docs.update_text(3, "another text")
    docs.update(rows([11, 12], "third {}"))
    docs.delete([20, 21])
    assert run.go() == counts(6, 3, 30)
    assert run.encoded == 35 + 9
    assert missing(docs) == []
    docs.compact()
    assert run.go() == counts(0, 0, 39)
    version = docs.open().version
    assert run.go() == {}
    assert docs.open().version == version
    assert run.encoded == 35 + 9
    assert docs.open().tags.list() == {}


def test_lance_results_of_workers_do_not_grow_with_the_number_of_fragments(tmp_path):
    largest = []
    for number, num_rows in enumerate((100, 800)):  # 10 rows of a fragment
        docs, sizes = Backend(str(tmp_path / str(number))), [0]
        docs.create(rows(range(num_rows)))

        def measured(work, items, sizes=sizes):
            for item in items:
                result = work(item)
                sizes.append(len(pickle.dumps(result)))
                yield result

        run = InPlaceRun(docs, tmp_path / f"runs-{number}", spread=measured)
        assert run.go() == counts(num_rows, 0, 0)
        assert missing(docs) == []
        largest.append(max(sizes))
    assert largest[1] < 1.5 * largest[0]


def test_lance_second_command_makes_no_version_and_opens_no_file(local, run):
    run.go()
    version = local.open().version
    hidden = Path(local.uri) / "data"
    hidden.rename(hidden.with_name("hidden"))
    assert run.go() == {}
    hidden.with_name("hidden").rename(hidden)
    assert local.open().version == version
    assert run.encoded == 35


def test_lance_unchanged_fragments_are_not_opened(local, run):
    run.go()
    kept = local.open().get_fragments()[1].data_files()
    local.append(rows([40, 41]))
    hidden = [Path(local.uri) / "data" / str(file.path) for file in kept]
    for file in hidden:
        file.rename(file.with_suffix(".hidden"))
    assert run.go() == counts(2, 0, 35)
    for file in hidden:
        file.with_suffix(".hidden").rename(file)
    assert missing(local) == []


def test_lance_run_selects_by_all_hashes_where_the_version_is_gone(local, run):
    run.go()
    local.append(rows([40]))
    local.open().cleanup_old_versions(older_than=timedelta(0))
    assert run.go() == counts(1, 0, 35)
    assert run.encoded == 36


def test_lance_rows_with_errors_are_encoded_once(local, run):
    local.append(pa.table({"doc_id": [50, 51], "lang": ["de", "de"], "body": pa.array([None, ""])}))
    run.go()
    read = local.read(local.address).to_pylist()
    assert [row["embedding_error"] for row in read if row["doc_id"] >= 50] == ["null text", None]
    assert missing(local) == []
    local.append(rows([60]))
    assert run.go() == counts(1, 0, 37)


def test_lance_second_feature_set_touches_no_file_of_the_first(local, run, tmp_path):
    run.go()
    before = data_files(local)
    other = InPlaceRun(local, tmp_path / "runs", ("cls", "mean"))
    assert other.go() == counts(35, 0, 0)
    assert {name: data_files(local)[name] for name in before} == before
    assert missing(local) == missing(local, ("cls", "mean")) == []
    assert run.go() == {}
    assert run.encoded == 35
    local.append(rows([40]))
    assert other.go() == run.go() == counts(1, 0, 35)
    assert missing(local) == missing(local, ("cls", "mean")) == []


def test_lance_columns_of_another_feature_set_are_refused(local, run):
    run.go()
    stranger = LanceColumns(run.columns.table, "0" * 64, ("embedding",), ("body",))
    with pytest.raises(JobError, match="'embedding' is not of this feature set"):
        stranger.state()


def test_lance_column_of_the_user_is_never_replaced(local, run):
    local.open().add_columns({"embedding_error": "body"})
    with pytest.raises(JobError, match="'embedding' is missing"):
        run.go()


def test_lance_readers_see_no_or_all_features_of_a_run(local, tmp_path):
    InPlaceRun(local, tmp_path / "runs").go()
    seen, done = set(), threading.Event()

    def poll() -> None:
        while not done.is_set():
            dataset = local.open()
            read = dataset.to_table(columns=["doc_id", *(set(dataset.schema.names) & {"cls_hash"})])
            hashes = read["cls_hash"] if "cls_hash" in read.column_names else None
            seen.add((len(read), len(read) - hashes.null_count if hashes is not None else None))

    with ThreadPoolExecutor(1) as threads:
        polling = threads.submit(poll)
        run = InPlaceRun(local, tmp_path / "runs", ("cls",))
        run.go()
        local.append(rows([40, 41, 42]))
        run.go()
        done.set()
        polling.result()
    assert seen <= {(35, None), (35, 35), (38, 35), (38, 38)}


def test_lance_update_leaves_the_versions_of_other_rows(tmp_path):
    docs = Backend(str(tmp_path), stable_row_ids=True)
    docs.create(rows(range(20)))
    run = InPlaceRun(docs, tmp_path / "runs")
    run.go()
    docs.update_text(3, "changed")
    before = docs.open().version
    run.go()
    read = docs.open().to_table(columns=["doc_id", "_row_last_updated_at_version"]).to_pylist()
    assert {row["doc_id"] for row in read if row["_row_last_updated_at_version"] > before} == {3}


def test_lance_index_on_vectors_leaves_out_the_rows_that_changed(tmp_path):
    docs = Backend(str(tmp_path))
    docs.create(rows(range(300)))
    run = InPlaceRun(docs, tmp_path / "runs")
    run.go()
    docs.open().create_index("embedding", "IVF_FLAT", num_partitions=1, metric="l2")
    docs.update_text(3, "changed")
    run.go()
    query = {"column": "embedding", "q": pa.array(vector("changed", "embedding")).to_numpy(), "k": 1}
    assert docs.open().to_table(nearest=query)["doc_id"].to_pylist() == [3]


def test_lance_restored_version_is_encoded_as_it_is(local, run):
    run.go()
    old = local.open().version
    local.update_text(3, "changed")
    run.go()
    local.open(old).restore()
    assert missing(local) == []
    run.go()
    assert missing(local) == []
    assert run.encoded == 36


def test_lance_empty_dataset_gets_no_columns(tmp_path):
    docs = Backend(str(tmp_path))
    docs.create(rows([]))
    run = InPlaceRun(docs, tmp_path / "runs")
    assert run.go() == counts(0, 0, 0)
    docs.append(rows([1]))
    assert run.go() == counts(1, 0, 0)
    assert missing(docs) == []


def test_lance_dataset_whose_rows_were_deleted_stays_in_step(local, run):
    run.go()
    local.delete(list(range(35)))
    assert run.go() == counts(0, 0, 0)
    assert run.go() == {}


def test_lance_state_names_the_run(local, run):
    assert run.columns.state() is None
    run.go()
    state = run.columns.state()
    assert state is not None
    assert state.source_version == local.open().version
    assert state.source_uuid == LanceTable(run.columns.table.address).pin(None).uuid
    assert Path(state.folder).name == state.run[:16]


@pytest.mark.parametrize("file_format", ["2.0", "2.1"])
def test_lance_columns_are_written_in_the_file_format_of_the_dataset(tmp_path, file_format):
    docs = Backend(str(tmp_path))
    lance.write_dataset(rows(range(25)), docs.uri, data_storage_version=file_format, max_rows_per_file=10)
    run = InPlaceRun(docs, tmp_path / "runs")
    run.go()
    docs.update_text(3, "changed")
    docs.append(rows([40]))
    run.go()
    assert missing(docs) == []
    files = [file for fragment in docs.open().get_fragments() for file in fragment.data_files()]
    assert {f"{file.file_major_version}.{file.file_minor_version}" for file in files} == {file_format}


def test_lance_dataset_of_the_first_file_format_is_refused(tmp_path):
    docs = Backend(str(tmp_path))
    lance.write_dataset(rows(range(3)), docs.uri, data_storage_version="legacy")
    with pytest.raises(JobError, match=r"file format 0\.1.*expected 2\.0 or later"):
        InPlaceRun(docs, tmp_path / "runs").go()
