"""Runs between tables while tables change around them: other writers, older versions, renamed and added columns."""

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Field
from deltalake.schema import PrimitiveType
from pyiceberg.types import LongType

from tests.finished_runs import finish_table
from tests.lake.backends import make_backend, rows
from varve import Job
from varve.backfill import publish as publishing
from varve.backfill.open_backfill import open_backfill
from varve.config.table_address import parse_table_address
from varve.engine.parallel import in_threads
from varve.lake.delta.log import storage_options
from varve.lake.iceberg.catalog import load_table
from varve.lake.open_table import open_table
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage


@pytest.fixture(params=["iceberg-sqlite", "delta-disk"])
def backend(request, tmp_path, monkeypatch):
    return make_backend(request.param, tmp_path, lambda: request.getfixturevalue("seaweed"), monkeypatch)


@pytest.fixture
def job_of(tiny):
    def make(backend, **source) -> Job:
        return Job.parse(
            {
                "source": {"table": backend.address, "key": "doc_id", "text": "body", "keep": ["lang"], **source},
                "model": {"name": tiny("bert")},
                "features": {"embedding": {"pool": "mean"}},
                "output": {"table": backend.features_address},
            }
        )

    return make


def keys_of(backend) -> list[int]:
    return sorted(backend.read(backend.features_address)["doc_id"].to_pylist())


def version_of(backend) -> int | None:
    return open_table(parse_table_address(backend.address)).pin(None).version


class Writer:
    """Another program that changes the feature table."""

    def __init__(self, backend) -> None:
        self.address = parse_table_address(backend.features_address)

    @property
    def delta(self) -> DeltaTable:
        return DeltaTable(self.address.name, storage_options=storage_options(self.address.name))

    def delete(self) -> None:
        if self.address.format == "iceberg":
            load_table(self.address).delete("doc_id == 0")
        else:
            self.delta.delete("doc_id = 0")

    def compact(self) -> None:
        if self.address.format == "iceberg":
            table = load_table(self.address)
            table.overwrite(table.scan().to_arrow())
        else:
            self.delta.optimize.compact()

    def add_column(self) -> None:
        if self.address.format == "iceberg":
            with load_table(self.address).update_schema() as schema:
                schema.add_column("rating", LongType())
        else:
            self.delta.alter.add_columns([Field("rating", PrimitiveType("long"), nullable=True)])


@pytest.mark.parametrize("change", ["delete", "compact", "add_column"])
def test_change_of_another_writer_between_check_and_commit_is_kept(backend, job_of, monkeypatch, change):
    backend.create(rows(range(10)))
    backend.append(rows(range(10, 14)))
    finish_table(job_of(backend))
    backend.append(rows([20, 21]))
    backend.update(rows([3], "changed {}"))
    checked, writer, changed = publishing.check_staged, Writer(backend), []

    def change_after(*arguments):
        failures = checked(*arguments)
        if not changed:
            changed.append(getattr(writer, change)())
        return failures

    monkeypatch.setattr(publishing, "check_staged", change_after)
    manifest, _ = finish_table(job_of(backend))
    assert manifest.num_rows == 3
    expected = [*range(14), 20, 21]
    assert keys_of(backend) == (expected[1:] if change == "delete" else expected)
    if change == "add_column":
        assert "rating" in backend.read(backend.features_address).column_names
    assert finish_table(job_of(backend))[1]


def test_earlier_version_of_the_source_gives_its_rows(backend, job_of):
    backend.create(rows(range(5)))
    first = version_of(backend)
    backend.append(rows([10]))
    backend.update(rows([2], "changed {}"))
    finish_table(job_of(backend))
    assert keys_of(backend) == [*range(5), 10]
    manifest, _ = finish_table(job_of(backend, at=first))
    assert (manifest.num_rows, manifest.table["rows"]["removed"]) == (1, 1)
    assert keys_of(backend) == [*range(5)]


def test_source_that_changes_during_a_run_is_read_at_its_pinned_version(backend, job_of):
    backend.create(rows(range(5)))
    opened = open_backfill(job_of(backend))
    backend.append(rows([10]))
    storage = Storage(opened.job.output.path)
    selection = opened.select(storage, in_threads)
    assert selection.counts["new"] == 5
    assert RowSelection.load(storage) == selection


@pytest.mark.parametrize("backend", ["iceberg-sqlite"], indirect=True)
def test_renamed_text_column_is_compared_by_hash_and_not_encoded(backend, job_of):
    """Delta renames columns with column mapping only, which is refused."""
    backend.create(rows(range(5)))
    finish_table(job_of(backend))
    with load_table(parse_table_address(backend.address)).update_schema() as schema:
        schema.rename_column("body", "content")
    wide = pa.table([[7], ["de"], ["new"]], names=["doc_id", "lang", "content"])
    load_table(parse_table_address(backend.address)).append(wide.cast(wide.schema))
    manifest, _ = finish_table(job_of(backend, text="content"))
    assert manifest.num_rows == 1
    assert keys_of(backend) == [*range(5), 7]


def test_added_kept_column_is_null_for_rows_that_are_not_encoded_again(backend, job_of):
    backend.create(rows(range(5)))
    finish_table(job_of(backend, keep=[]))
    backend.append(rows([7]))
    manifest, _ = finish_table(job_of(backend))
    assert manifest.num_rows == 1
    found = backend.read(backend.features_address).sort_by("doc_id")
    assert found["lang"].to_pylist() == [None] * 5 + ["en"]
