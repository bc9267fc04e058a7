"""Delta tables that Sail writes and changes, with deletion vectors, as sources of a run."""

import json
from itertools import count
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from tests.engines.engine import Engine
from tests.engines.live_rows import all_rows, check_identities, read_files

NUMBERS = count()
CHANGES = {
    "delete": "DELETE FROM {table} WHERE doc_id % 10 = 3",
    "update": "UPDATE {table} SET body = concat('new ', body) WHERE doc_id % 25 = 7",
    "merge": """
        MERGE INTO {table} t
        USING (SELECT id AS doc_id, 'de' AS lang, concat('merged ', id) AS body FROM range(190, 210)) s
        ON t.doc_id = s.doc_id
        WHEN MATCHED AND s.doc_id < 195 THEN DELETE WHEN MATCHED THEN UPDATE SET body = s.body
        WHEN NOT MATCHED THEN INSERT (doc_id, lang, body) VALUES (s.doc_id, s.lang, s.body)""",
    "second delete of the same files": "DELETE FROM {table} WHERE doc_id % 10 = 4",
    "delete of all rows of a partition": "DELETE FROM {table} WHERE lang = 'en'",
}


class Source:
    """A table of Sail and its address for Varve."""

    def __init__(self, sail: Engine, folder: Path) -> None:
        self.sail, self.path = sail, folder / "docs"
        self.table, self.address = f"docs_{next(NUMBERS)}", f"delta+{self.path}"
        sail.sql(
            f"CREATE TABLE {self.table} (doc_id BIGINT, lang STRING, body STRING) USING delta PARTITIONED BY (lang) "
            f"LOCATION '{self.path}' TBLPROPERTIES ('delta.enableDeletionVectors'='true')"
        )
        for start in (0, 100):
            sail.sql(
                f"INSERT INTO {self.table} SELECT id, CASE id % 3 WHEN 0 THEN 'de' WHEN 1 THEN 'en' END, "
                f"CASE WHEN id % 40 = 5 THEN NULL ELSE concat('text ', id) END FROM range({start}, {start + 100})"
            )

    def rows(self) -> list[tuple]:
        """The rows that Sail reads."""
        return [tuple(row) for row in self.sail.sql(f"SELECT doc_id, lang, body FROM {self.table} ORDER BY doc_id")]

    def deletion_vectors(self) -> int:
        """How many files of the current version have one."""
        return len(pa.table(DeltaTable(str(self.path)).deletion_vectors()))


@pytest.fixture
def source(sail, tmp_path) -> Source:
    return Source(sail, tmp_path)


def test_rows_after_each_change_of_sail_are_those_that_sail_reads(source):
    before = read_files(source.address)
    assert all_rows(before) == source.rows()
    for change, statement in CHANGES.items():
        source.sail.sql(statement.format(table=source.table))
        after = read_files(source.address)
        assert all_rows(after) == source.rows(), change
        check_identities(before, after)
        before = after


def test_change_of_one_row_changes_the_identity_of_its_file_alone(source):
    before = read_files(source.address)
    source.sail.sql(f"DELETE FROM {source.table} WHERE doc_id = 42")
    assert source.deletion_vectors() == 1
    after = read_files(source.address)
    changed = [path for path in before if before[path].identity != after[path].identity]
    assert len(before) == 6
    assert len(changed) == 1
    assert 42 in [key for key, _, _ in before[changed[0]].rows]


def test_compaction_of_a_table_with_deletion_vectors_changes_no_row(source):
    for change in ("delete", "merge"):
        source.sail.sql(CHANGES[change].format(table=source.table))
    before = read_files(source.address)
    DeltaTable(str(source.path)).optimize.compact()
    after = read_files(source.address)
    assert all_rows(after) == all_rows(before) == source.rows()
    assert source.deletion_vectors() == 0


def test_deletion_vectors_are_written_by_every_kind_of_change(source):
    for change in ("delete", "update", "merge"):
        source.sail.sql(CHANGES[change].format(table=source.table))
        last = max((source.path / "_delta_log").glob("*.json"))
        actions = [json.loads(line) for line in last.read_text().splitlines()]
        assert any("deletionVector" in action.get("add", {}) for action in actions), change
