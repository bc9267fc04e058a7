"""Verifies a feature table against its source: every key once with the features of its text; changes nothing.

The rows are compared like those of a run, by key and hash, over the whole of both tables; each data file that a run
wrote is read in full and compared with the hash in its footer; sampled rows are encoded again by plain transformers.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from varve.backfill.diff import DiffRequest, select_rows
from varve.backfill.in_place.check import check_in_place
from varve.backfill.key_sample import find_rows, sample_rows
from varve.backfill.table_status import read_states
from varve.config.job import Job
from varve.config.table_address import TableAddress, parse_table_address
from varve.engine.parallel import Spread
from varve.errors import JobError, RunError, VarveError
from varve.lake.open_table import open_feature_table, open_table
from varve.lake.table import FeatureTable, Pin, State, Table, TableFile
from varve.output.json_text import parse_object
from varve.output.part_form import PART_KEY
from varve.output.part_layout import COPY_KEY
from varve.planning.saved_job import read_job
from varve.planning.saved_plan import CodePermission
from varve.source.row_selection import RowSelection
from varve.storage.object_store import Storage
from varve.verification.canary import ROWS, Comparison
from varve.verification.check import Check
from varve.verification.reopened_run import reopen_run

_MAX_SHOWN = 5  # keys of one kind of failure


@dataclass(frozen=True, slots=True)
class _Tables:
    """A feature table, and the version of its source that it is in step with."""

    table: FeatureTable
    head: Pin
    state: State
    source: Table
    job: Job

    @property
    def key(self) -> str:
        return self.job.source.key or ""


def check_table(address: TableAddress, permission: CodePermission, spread: Spread) -> list[Check]:
    """Check the features of a table.

    Args:
        address: of the table.
        permission: the code that may run.
        spread: runs work on files in parallel.

    Raises:
        JobError: there is no such table, or it holds no features.
        RunError: a catalog or store failed.
    """
    checks = []
    for state in read_states(address)[1]:
        stored = read_job(Storage(state.folder, patient=False))
        if stored is None:
            msg = f"{state.folder} holds no run: the run of the table's state was deleted, so its job is not known"
            raise JobError(msg)
        job = Job.reopen(stored["job"], where=state.folder)
        if job.source.table == job.output.table:
            checks += check_in_place(job, state, permission, spread)
            continue
        table = open_feature_table(address)
        source = open_table(parse_table_address(job.source.table or ""))
        tables = _Tables(table, table.pin(None), state, source, job)
        checks += [_check_rows(tables, spread), _check_files(tables, spread), _check_canary(tables, permission)]
    return checks


def _check_rows(tables: _Tables, spread: Spread) -> Check:
    """Each key of the source is in the table once, with the hash of its text."""
    job, state = tables.job, tables.state
    if tables.source.pin(state.source_version).uuid != state.source_uuid:
        return Check("rows", (f"{tables.source.address} is another table than the one that the features are of",))
    request = DiffRequest(
        source=tables.source,
        version=state.source_version,
        since=None,
        destination=tables.table,
        head=tables.head.version,
        key=tables.key,
        text_columns=job.source.text_columns,
        deletes=job.output.deletes,
        kept=job.source.keep,
    )
    with tempfile.TemporaryDirectory() as folder:
        selection = select_rows(request, Storage(folder), spread)
        return Check("rows", tuple(_row_failures(tables, request, selection)))


def _row_failures(tables: _Tables, request: DiffRequest, selection: RowSelection) -> Iterator[str]:
    counts, address = selection.counts, tables.table.address
    if counts["new"] or counts["changed"]:
        keys = _selected_keys(tables, selection)
        if counts["new"]:
            yield f"{counts['new']:,} key(s) of the source are missing in {address}, among keys {keys}"
        if counts["changed"]:
            what = "the hash of another text, or other kept values"
            yield f"{counts['changed']:,} row(s) of {address} have {what}, among keys {keys}"
    if counts["removed"]:
        keys = _gone_keys(selection)
        yield f"{counts['removed']:,} row(s) of {address} are not in the source, for example keys {keys}"
    found = sum(file.num_rows or 0 for file in tables.table.files(tables.head.version))
    expected = counts["unchanged"] + counts["changed"] + (counts["removed"] if request.deletes == "follow" else 0)
    if found != expected and request.deletes == "follow":
        yield f"{address} has {found:,} rows with {expected:,} different keys: a key has several rows"


def _selected_keys(tables: _Tables, selection: RowSelection) -> list:
    """Some keys of the rows that a run would encode."""
    files = {file.path: file for file in tables.source.files(tables.state.source_version)}
    keys: list = []
    for shard, selected in enumerate(selection.files):
        positions, first = selection.positions(shard), 0
        for batch in tables.source.read(tables.state.source_version, files[selected.path], [tables.key]):
            wanted = (
                np.arange(len(batch))
                if positions is None
                else positions[slice(*np.searchsorted(positions, (first, first + len(batch))))] - first
            )
            keys += batch[tables.key].take(pa.array(wanted[: _MAX_SHOWN - len(keys)])).to_pylist()
            first += len(batch)
            if len(keys) >= _MAX_SHOWN:
                return keys
    return keys


def _gone_keys(selection: RowSelection) -> list:
    keys: list = []
    for entry in selection.storage.list(selection.prefix):
        if "/gone-" in entry.name and (content := selection.storage.read(entry.name)):
            keys += pq.read_table(pa.BufferReader(content))["key"].slice(0, _MAX_SHOWN - len(keys)).to_pylist()
    return keys


def _check_files(tables: _Tables, spread: Spread) -> Check:
    """Each data file that a run wrote has the bytes that it was written with."""
    files = tables.table.files(tables.head.version)
    results = list(spread(_check_file, files))
    failures = sorted(failure for failure, _ in results if failure)
    foreign = sum(is_foreign for _, is_foreign in results)
    skipped = (f"{foreign:,} file(s) were written by another program, for example a compaction",) if foreign else ()
    return Check("checksums", tuple(failures), skipped)


def _check_file(file: TableFile) -> tuple[str, bool]:
    """(what is wrong with a file, whether another program wrote it)."""
    folder, _, name = file.path.rpartition("/")
    try:
        content = Storage(folder).read(name)
        if content is None:
            return f"{file.path} is gone", False
        found = pq.read_metadata(pa.BufferReader(content)).metadata or {}
        record = found.get(PART_KEY) or found.get(COPY_KEY)
        if record is None:
            return "", True
        recorded = parse_object(record)
        digest = hashlib.sha256(content[: recorded["data_bytes"]]).hexdigest()
    except (RunError, pa.ArrowException, OSError, KeyError, TypeError, ValueError, json.JSONDecodeError) as e:
        return f"{file.path} cannot be read: {type(e).__name__} {e}", False
    return ("" if digest == recorded["data_sha256"] else f"{file.path}: its bytes differ from the written ones"), False


def _check_canary(tables: _Tables, permission: CodePermission) -> Check:
    """Encode the texts of sampled rows again, and compare them with the vectors of the table."""
    stored = read_job(Storage(tables.state.folder, patient=False))
    assert stored is not None
    reopened = reopen_run(stored, tables.state.folder, permission)
    if reopened.failures or reopened.plan is None:
        return Check("canary", reopened.failures, reopened.skipped)
    comparison = Comparison(tables.job.source.model_copy(update={"keep": (), "key": None}), reopened.plan)
    seed = int(tables.state.run[:8], 16)
    try:
        for key, row, text in _sampled_pairs(tables, reopened.plan.schema, seed):
            comparison.add(f"key {key}", row, text)
    except VarveError as e:
        return Check("canary", (str(e),), reopened.skipped)
    result = comparison.report(expected=0)
    return Check("canary", tuple(result["failed"]), reopened.skipped)


def _sampled_pairs(tables: _Tables, schema: pa.Schema, seed: int) -> Iterator[tuple[Any, pa.Table, pa.Table]]:
    """(key, row of the table, row of the source); a key that the source lacks is a failure of another check."""
    fields = [field for field in schema if field.name not in {"shard", "row"}]
    rows = sample_rows(tables.table, tables.head.version, [field.name for field in fields], ROWS, seed)
    texts = find_rows(
        tables.source, tables.state.source_version, tables.key, rows[tables.key], tables.job.source.text_columns
    )
    for position, key in enumerate(rows[tables.key].to_pylist()):
        found = texts.filter(pc.field(tables.key) == pa.scalar(key, texts.schema.field(tables.key).type))
        if len(found) == 1:
            columns = [rows[field.name].slice(position, 1).cast(field.type) for field in fields]
            yield key, pa.table(columns, schema=pa.schema(fields)), found
