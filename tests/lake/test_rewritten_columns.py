"""Features as columns of Iceberg and Delta tables, whose files are written again."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError, local
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.lake import backend_delta
from tests.lake.backends import Backend, make_backend, rows
from tests.lake.in_place_run import InPlaceRun, missing
from varve.backfill.in_place.rewritten_columns import RewrittenColumns
from varve.config.table_address import parse_table_address
from varve.errors import JobError, RunError
from varve.lake.open_table import open_table
from varve.lake.own_columns import add_columns
from varve.storage.object_store import Storage


class DeltaBackend(backend_delta.Backend):
    """Writers that know nothing of the columns of features."""

    def append(self, rows: pa.Table) -> None:
        write_deltalake(self.uri, rows, mode="append", schema_mode="merge")

    def update(self, rows: pa.Table) -> None:
        merge = DeltaTable(self.uri).merge(rows, "s.doc_id = t.doc_id", source_alias="s", target_alias="t")
        merge.when_matched_update({"lang": "s.lang", "body": "s.body"}).execute()


@pytest.fixture(params=["iceberg-sqlite", "iceberg-rest", "delta-disk", "delta-s3"])
def docs(request, tmp_path, monkeypatch) -> Backend:
    """Three files in two partitions."""
    return make_docs(request, request.param, tmp_path, monkeypatch)


@pytest.fixture(params=["iceberg-sqlite", "delta-disk"])
def local_docs(request, tmp_path, monkeypatch) -> Backend:
    return make_docs(request, request.param, tmp_path, monkeypatch)


def make_docs(request, kind: str, tmp_path: Path, monkeypatch) -> Any:
    made = make_backend(kind, tmp_path, lambda: request.getfixturevalue("seaweed"), monkeypatch)
    if isinstance(made, backend_delta.Backend):
        made = DeltaBackend(made.root)
    made.create(rows(range(20)), "lang")
    made.append(rows(range(20, 30, 2)))
    return made


def table_of(docs: Backend):
    table = open_table(parse_table_address(docs.address))
    return table, table.pin(None).version


def files_of(docs: Backend) -> set[str]:
    table, version = table_of(docs)
    return {file.path for file in table.files(version)}


def counts(new: int, changed: int, unchanged: int) -> dict[str, int]:
    return {"new": new, "changed": changed, "unchanged": unchanged, "removed": 0}


def other_columns(docs: Backend) -> list[tuple]:
    read = docs.read(docs.address)
    names = [name for name in read.column_names if not name.startswith(("embedding", "cls"))]
    return sorted(tuple(row.values()) for row in read.select(names).to_pylist())


def test_rewritten_rounds_encode_what_changed_and_keep_all_other_columns(docs):
    run = InPlaceRun(docs)
    before = other_columns(docs)
    assert run.go() == counts(25, 0, 0)
    assert missing(docs) == []
    assert other_columns(docs) == before
    docs.append(rows([40, 41]))
    docs.update(rows([4], "changed {}"))
    docs.delete([6, 8])
    before = other_columns(docs)
    found = run.go()
    assert found["new"] + found["changed"] == 3
    assert missing(docs) == []
    assert other_columns(docs) == before
    docs.compact()
    assert run.go() == counts(0, 0, 25)
    _, version = table_of(docs)
    assert run.go() == {}
    assert table_of(docs)[1] == version
    assert run.encoded == 28


def test_rewritten_files_are_those_with_selected_rows(local_docs):
    run = InPlaceRun(local_docs)
    run.go()
    before = files_of(local_docs)
    local_docs.append(rows([40]))
    (added,) = files_of(local_docs) - before
    run.go()
    after = files_of(local_docs)
    assert before < after
    assert added not in after


def test_rewritten_files_keep_their_partitions(local_docs):
    InPlaceRun(local_docs).go()
    table, version = table_of(local_docs)
    for file in table.files(version):
        read = pa.concat_tables(table.read(version, file, ["lang"]))
        assert len(set(read["lang"].to_pylist())) == 1
        assert read["lang"][0].as_py() in file.partition


def test_rewritten_columns_of_a_second_feature_set_keep_the_first(local_docs):
    first, second = InPlaceRun(local_docs), InPlaceRun(local_docs, features=("cls", "mean"))
    first.go()
    assert second.go() == counts(25, 0, 0)
    assert missing(local_docs) == missing(local_docs, ("cls", "mean")) == []
    assert first.go() == counts(0, 0, 25)  # its files were written again: read, and not encoded
    assert first.go() == second.go() == {}
    assert first.encoded == 25


def test_rewritten_rows_with_errors_are_encoded_once(local_docs):
    local_docs.append(pa.table({"doc_id": [50, 51], "lang": ["de", "de"], "body": pa.array([None, ""])}))
    run = InPlaceRun(local_docs)
    run.go()
    assert missing(local_docs) == []
    local_docs.append(rows([60]))
    run.go()
    assert run.encoded == 28


@pytest.mark.parametrize("step", ["select", "part", "publish", "write_file"])
def test_rewritten_run_killed_at_a_step_continues(local_docs, step):
    class CrashError(Exception):
        pass

    def crash() -> None:
        raise CrashError

    before = local_docs.read(local_docs.address)
    with pytest.raises(CrashError):
        InPlaceRun(local_docs, on={step: crash}).go()
    assert len(local_docs.read(local_docs.address)) == len(before)
    run = InPlaceRun(local_docs)
    run.go()
    assert missing(local_docs) == []
    assert run.go() == {}


CHANGES = {
    "append": (lambda docs: docs.append(rows([70, 71])), {70, 71}),
    "delete": (lambda docs: docs.delete([3, 20]), set()),
    "update": (lambda docs: docs.update(rows([4], "changed meanwhile {}")), {4}),
    "compaction": (lambda docs: docs.compact(), set()),
}


@pytest.mark.parametrize("step", ["publish", "write_file"])
@pytest.mark.parametrize("change", CHANGES)
def test_rewritten_change_of_another_writer_during_the_run_is_kept(local_docs, change, step):
    make_change, left = CHANGES[change]
    made = []

    def once() -> None:
        if not made:
            make_change(local_docs)
            made.append(other_columns(local_docs))

    InPlaceRun(local_docs, on={step: once}).go()
    assert other_columns(local_docs) == made[0]
    assert set(missing(local_docs)) == left
    again = InPlaceRun(local_docs)
    again.go()
    assert again.encoded == len(left)
    assert missing(local_docs) == []
    assert other_columns(local_docs) == made[0]
    assert again.go() == {}


@pytest.mark.parametrize("round_", range(6))
def test_rewritten_rows_of_two_drivers_at_once_are_there_once(local_docs, round_):
    barrier, waited = Barrier(2), local()

    def meet() -> None:
        if not hasattr(waited, "once"):
            waited.once = True
            with suppress(BrokenBarrierError):
                barrier.wait(2)

    step = ("select", "publish", "write_file")[round_ % 3]
    before = other_columns(local_docs)
    with ThreadPoolExecutor(2) as threads:
        drivers = [InPlaceRun(local_docs, on={step: meet}) for _ in range(2)]
        results = list(threads.map(InPlaceRun.go, drivers))
    assert results == [counts(25, 0, 0)] * 2
    assert other_columns(local_docs) == before
    assert missing(local_docs) == []


def test_rewritten_file_that_is_damaged_is_found_before_readers_see_it(local_docs, monkeypatch):
    before = files_of(local_docs)
    create = Storage.create

    def damaged(storage, name, content):
        if name.startswith("rewritten/"):
            at = content.index(b"text") if b"text" in content else len(content) // 2
            content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        return create(storage, name, content)

    run = InPlaceRun(local_docs)
    with monkeypatch.context() as patched:
        patched.setattr(Storage, "create", damaged)
        with pytest.raises(RunError, match="Run the same command again"):
            run.go()
    assert files_of(local_docs) == before
    run.go()
    assert missing(local_docs) == []
    assert run.encoded == 25


def test_rewritten_column_of_the_user_is_never_replaced(local_docs):
    add_columns(parse_table_address(local_docs.address), pa.schema([("embedding", pa.string())]), "0" * 64)
    with pytest.raises(JobError, match="'embedding' is not of this feature set"):
        InPlaceRun(local_docs).go()


def test_rewritten_columns_are_added_once_by_many_drivers(local_docs):
    address = parse_table_address(local_docs.address)
    columns = pa.schema([("embedding", pa.list_(pa.float32())), ("embedding_hash", pa.binary(16))])
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: add_columns(address, columns, "a" * 64), range(4)))
    names = local_docs.read(local_docs.address).column_names
    assert [name for name in names if name.startswith("embedding")] == columns.names
    run = InPlaceRun(local_docs)
    assert isinstance(run.columns, RewrittenColumns)
