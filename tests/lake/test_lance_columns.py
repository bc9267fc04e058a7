"""Features as columns of a Lance dataset: runs, crashes and other writers."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from tests.lake.backend_lance import Backend
from tests.lake.backends import make_backend, rows
from tests.lake.in_place_run import VECTOR, InPlaceRun, missing, vector
from varve.backfill.lance_columns import LanceColumns
from varve.errors import JobError, RunError
from varve.lake.lance_table import LanceTable

STEPS = ("select", "part", "publish", "write_fragment", "verify_fragment")


class CrashError(Exception):
    """Stands for the death of a driver."""


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


def counts(new: int, changed: int, unchanged: int) -> dict[str, int]:
    return {"new": new, "changed": changed, "unchanged": unchanged, "removed": 0}


def data_files(docs: Backend) -> dict[str, str]:
    folder = Path(docs.uri) / "data"
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def commits_of_runs(docs: Backend) -> list[str]:
    """Operations of the commits that a run made, without those of the state alone."""
    found = []
    for version in range(1, docs.open().version + 1):
        transaction = docs.open().read_transaction(version)
        if transaction and "varve.run" in (transaction.transaction_properties or {}):
            found.append(type(transaction.operation).__name__)
    return [name for name in found if name != "UpdateConfig"]


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


@pytest.mark.parametrize("step", STEPS)
def test_lance_first_run_killed_at_a_step_continues(local, tmp_path, step):
    _kill(local, tmp_path, step)
    assert "embedding" not in local.open().schema.names
    _finish(local, tmp_path, counts(35, 0, 0))
    assert commits_of_runs(local) == ["Merge"]


@pytest.mark.parametrize("step", STEPS)
def test_lance_later_run_killed_at_a_step_continues(local, tmp_path, step):
    InPlaceRun(local, tmp_path / "runs").go()
    local.append(rows([40, 41]))
    local.update_text(5, "changed")
    _kill(local, tmp_path, step)
    assert missing(local) == [40, 41, 5]
    _finish(local, tmp_path, counts(2, 1, 34))
    assert commits_of_runs(local) == ["Merge", "Update"]


def _kill(docs: Backend, tmp_path: Path, step: str) -> None:
    def crash() -> None:
        raise CrashError

    with pytest.raises(CrashError):
        InPlaceRun(docs, tmp_path / "runs", on={step: crash}).go()
    assert docs.open().tags.list()  # the version is protected


def _finish(docs: Backend, tmp_path: Path, expected: dict[str, int]) -> None:
    again = InPlaceRun(docs, tmp_path / "runs")
    assert again.go() == expected
    assert missing(docs) == []
    assert again.go() == {}
    assert docs.open().tags.list() == {}


@pytest.mark.parametrize("operation", ["Merge", "Update", "UpdateConfig"])
def test_lance_run_whose_commit_lost_its_answer_is_not_committed_again(local, run, monkeypatch, operation):
    if operation != "Merge":
        run.go()
        local.append(rows([40]))
    with monkeypatch.context() as patched:
        patched.setattr(lance.LanceDataset, "commit", staticmethod(_losing_answer_of(operation)))
        with pytest.raises(RunError, match="connection reset"):
            run.go()
    assert missing(local) == []
    encoded = run.encoded
    run.go()
    assert run.encoded == encoded
    assert missing(local) == []
    assert commits_of_runs(local) == (["Merge"] if operation == "Merge" else ["Merge", "Update"])
    assert run.go() == {}


def _losing_answer_of(operation):
    commit = lance.LanceDataset.commit

    def lose_answer(uri, transaction, **options):
        result = commit(uri, transaction, **options)
        if type(transaction.operation).__name__ == operation:
            msg = "connection reset"
            raise OSError(msg)
        return result

    return lose_answer


CHANGES = {
    "append": (lambda docs: docs.append(rows([70, 71])), {70, 71}),
    "delete": (lambda docs: docs.delete([3, 17]), set()),
    "update": (lambda docs: docs.update_text(4, "changed meanwhile"), {4}),
    "update of another column": (lambda docs: docs.open().update({"lang": "'fr'"}, where="doc_id = 4"), set()),
    "compaction": (lambda docs: docs.compact(), set()),
    "deletes and compaction": (lambda docs: (docs.delete([3, 17]), docs.compact()), set()),
    "column": (lambda docs: docs.open().add_columns({"twice": "doc_id * 2"}), set()),
    "dropped column": (lambda docs: docs.open().drop_columns(["lang"]), set()),
    "renamed text": (lambda docs: docs.open().alter_columns({"path": "lang", "name": "language"}), set()),
    "index": (lambda docs: docs.open().create_scalar_index("doc_id", "BTREE"), set()),
    "all of them": (
        lambda docs: (
            docs.append(rows([70])), docs.open().add_columns({"twice": "doc_id * 2"}), docs.update_text(4, "new"),
            docs.delete([3]), docs.compact(), docs.append(rows([71]).append_column("twice", pa.array([142]))),
        ),
        {70, 71, 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("step", ["publish", "verify_fragment"])
@pytest.mark.parametrize("change", CHANGES)
def test_lance_change_of_another_writer_during_the_first_run_is_kept(local, tmp_path, change, step):
    make_change, left = CHANGES[change]
    _run_beside(local, tmp_path, make_change, step, left)


@pytest.mark.parametrize("change", CHANGES)
def test_lance_change_of_another_writer_during_a_later_run_is_kept(local, tmp_path, change):
    InPlaceRun(local, tmp_path / "runs").go()
    local.append(rows([40, 41]))
    local.update_text(5, "changed before")
    make_change, left = CHANGES[change]
    _run_beside(local, tmp_path, make_change, "verify_fragment", left)


def _run_beside(docs: Backend, tmp_path: Path, change, step: str, left: set[int]) -> None:
    made = []
    run = InPlaceRun(docs, tmp_path / "runs", on={step: lambda: made or made.append((change(docs), _keys(docs)))})
    run.go()
    ((_, keys),) = made
    assert _keys(docs) == keys
    assert set(missing(docs)) == left
    again = InPlaceRun(docs, tmp_path / "runs")
    again.go()
    assert again.encoded == len(left)
    assert missing(docs) == []
    assert _keys(docs) == keys
    assert again.go() == {}


def _keys(docs: Backend) -> list[tuple]:
    """The rows without what Varve wrote."""
    read = docs.read(docs.address)
    names = [name for name in read.column_names if not name.startswith("embedding")]
    return sorted(tuple(row.values()) for row in read.select(names).to_pylist())


def test_lance_vectors_of_rows_that_moved_during_a_later_run_are_found_by_their_text(local, run, tmp_path):
    run.go()
    local.append(rows([40, 41]))
    other = InPlaceRun(local, tmp_path / "runs", on={"publish": local.compact})
    assert other.go() == counts(2, 0, 35)
    assert missing(local) == []


def test_lance_text_column_that_was_renamed_during_the_run_is_read_by_its_id(local, tmp_path):
    def rename() -> None:
        local.open().alter_columns({"path": "body", "name": "content"})
        local.compact()

    InPlaceRun(local, tmp_path / "runs", on={"publish": rename}).go()
    read = local.read(local.address).to_pylist()
    assert all(row["embedding"] == vector(row["content"], "embedding") for row in read)


@pytest.mark.parametrize("round_", range(20))
def test_lance_two_drivers_at_once_make_one_commit(tmp_path, round_):
    docs = Backend(str(tmp_path), stable_row_ids=bool(round_ % 2))
    docs.create(rows(range(25)))
    InPlaceRun(docs, tmp_path).columns.table.pin(None)
    expected = ["Merge"]
    if round_ % 4 > 1:
        InPlaceRun(docs, tmp_path / "runs").go()
        docs.append(rows([40]))
        expected = ["Merge", "Update"]
    barrier = threading.Barrier(2)
    waited = threading.local()

    def meet() -> None:
        if not hasattr(waited, "once"):
            waited.once = True
            with suppress(threading.BrokenBarrierError):  # the other driver has found nothing to do at this step
                barrier.wait(1)

    step = ("select", "publish", "write_fragment", "verify_fragment")[round_ // 4 % 4]
    drivers = [InPlaceRun(docs, tmp_path / "runs", on={step: meet}) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(InPlaceRun.go, drivers))
    assert results[0] == results[1]
    assert missing(docs) == []
    assert commits_of_runs(docs) == expected
    assert docs.open().tags.list() == {}
    assert InPlaceRun(docs, tmp_path / "runs").go() == {}


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


def test_lance_file_that_changed_after_it_was_written_is_found_before_readers_see_it(local, run):
    before = set(data_files(local))

    value = pa.array(vector("text 3", "embedding"), pa.float32()).to_numpy().tobytes()

    def flip() -> None:
        written = (Path(local.uri) / "data" / name for name in set(data_files(local)) - before)
        (file,) = (path for path in written if value in path.read_bytes())
        content = bytearray(file.read_bytes())
        content[content.index(value)] ^= 1
        file.write_bytes(content)

    run.on = {"verify_fragment": flip}
    version = run.columns.table.pin(None).version
    with pytest.raises(RunError, match=r"not those of the parts.*Run the same command again"):
        run.go()
    assert local.open().version == version
    run.on = {}
    run.go()
    assert missing(local) == []
    assert run.encoded == 35  # the second call has repeated no part


def test_lance_file_that_was_removed_after_it_was_written_is_written_again(local, run):
    before = set(data_files(local))

    def remove() -> None:
        (Path(local.uri) / "data" / min(set(data_files(local)) - before)).unlink()

    run.on = {"verify_fragment": remove}
    with pytest.raises(RunError, match="Run the same command again"):
        run.go()
    run.on = {}
    run.go()
    assert missing(local) == []


def test_lance_part_that_changed_is_refused(local, run, tmp_path):
    def flip() -> None:
        file = min((tmp_path / "runs").rglob("part-*.parquet"))
        content = bytearray(file.read_bytes())
        content[20] ^= 1
        file.write_bytes(content)

    run.on = {"publish": flip}
    with pytest.raises(RunError, match="is damaged"):
        run.go()
    assert "embedding" not in local.open().schema.names


def test_lance_pinned_version_outlives_a_cleanup_during_the_run(local, run):
    def clean() -> None:
        local.append(rows([40]))
        options = {"older_than": timedelta(0), "error_if_tagged_old_versions": False}
        local.open().cleanup_old_versions(**options)

    run.on = {"publish": clean}
    assert run.go() == counts(35, 0, 0)
    assert missing(local) == [40]
    run.on = {}
    assert run.go() == counts(1, 0, 35)
    assert missing(local) == []


def test_lance_interrupted_run_keeps_its_version_though_another_writer_commits(local, tmp_path):
    _kill(local, tmp_path, "publish")
    local.append(rows([40]))
    again = InPlaceRun(local, tmp_path / "runs")
    assert again.go() == counts(35, 0, 0)
    assert missing(local) == [40]
    assert again.go() == counts(1, 0, 35)
    assert missing(local) == []


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
