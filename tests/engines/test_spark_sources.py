"""Tables that Spark writes and changes, with position deletes (v2) and deletion vectors (v3), as sources of a run."""

from collections.abc import Iterator
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.engines.engine import Engine
from tests.engines.feature_rows import FEATURE_SET, SOURCE_UUID
from tests.engines.live_rows import all_rows, check_identities, read_files
from tests.engines.shadow import move_to_catalog
from varve.config.table_address import parse_table_address
from varve.errors import JobError
from varve.lake.open_table import open_feature_table, open_table
from varve.lake.table import Definition

NUMBERS = count()
CHANGES = {
    "delete": "DELETE FROM {table} WHERE doc_id % 10 = 3",
    "update": "UPDATE {table} SET body = concat('new ', body) WHERE doc_id % 25 = 7",
    "update of the partition": "UPDATE {table} SET lang = 'fr' WHERE doc_id = 12",
    "merge": """
        MERGE INTO {table} t
        USING (SELECT id AS doc_id, 'de' AS lang, concat('merged ', id) AS body FROM range(190, 210)) s
        ON t.doc_id = s.doc_id
        WHEN MATCHED AND s.doc_id < 195 THEN DELETE WHEN MATCHED THEN UPDATE SET body = s.body
        WHEN NOT MATCHED THEN INSERT *""",
    "compaction": "CALL local.system.rewrite_data_files(table => '{table}', options => map('rewrite-all', 'true'))",
    "delete of all rows of a partition": "DELETE FROM {table} WHERE lang = 'en'",
}


class Source:
    """A table of Spark and its address for Varve."""

    def __init__(self, spark: Engine, version: int) -> None:
        number = next(NUMBERS)
        self.spark, self.version, self.table = spark, version, f"local.sources.docs_{number}"
        self.address = f"iceberg://lake/spark.docs_{number}"
        modes = ", ".join(f"'write.{name}.mode'='merge-on-read'" for name in ("delete", "update", "merge"))
        spark.sql(
            f"CREATE TABLE {self.table} (doc_id BIGINT, lang STRING, body STRING) USING iceberg PARTITIONED BY (lang) "
            f"TBLPROPERTIES ('format-version'='{version}', {modes})"
        )
        for start in (0, 100):
            spark.sql(
                f"INSERT INTO {self.table} SELECT id, CASE id % 3 WHEN 0 THEN 'de' WHEN 1 THEN 'en' END, "
                f"CASE WHEN id % 40 = 5 THEN NULL ELSE concat('text ', id) END FROM range({start}, {start + 100})"
            )

    def rows(self) -> list[tuple]:
        """The rows that Spark reads."""
        rows = self.spark.sql(f"SELECT doc_id, lang, body FROM {self.table} ORDER BY doc_id")
        return [tuple(row) for row in rows]

    def read(self) -> dict:
        """The files and rows that Varve reads."""
        move_to_catalog(self.spark, self.table, self.address.rpartition("/")[2])
        return read_files(self.address)

    def kinds_of_deletes(self) -> set[tuple]:
        """(content, format) of the delete files of the current snapshot."""
        found = self.spark.sql(f"SELECT content, file_format FROM {self.table}.delete_files")
        return {tuple(row) for row in found}


@pytest.fixture(params=[2, 3], ids=["v2", "v3"])
def source(request, spark, catalog) -> Iterator[Source]:
    made = Source(spark, request.param)
    yield made
    spark.sql(f"DROP TABLE {made.table}")


def test_rows_after_each_change_of_spark_are_those_that_spark_reads(source):
    before = source.read()
    assert all_rows(before) == source.rows()
    for change, statement in CHANGES.items():
        source.spark.sql(statement.format(table=source.table))
        after = source.read()
        assert all_rows(after) == source.rows(), change
        # A Puffin file of deletion vectors leaves a v3 table when all its data files have newer ones.
        check_identities(before, after, exact=source.version == 2)
        before = after


def test_deletes_of_spark_are_position_deletes_or_deletion_vectors(source):
    source.spark.sql(CHANGES["delete"].format(table=source.table))
    assert source.kinds_of_deletes() == {(1, "PARQUET" if source.version == 2 else "PUFFIN")}


def test_change_of_one_row_changes_the_identity_of_its_file_alone(source):
    before = source.read()
    source.spark.sql(f"DELETE FROM {source.table} WHERE doc_id = 42")
    after = source.read()
    changed = [path for path in before if path not in after or before[path].identity != after[path].identity]
    assert len(before) == 6
    assert len(changed) == 1
    assert 42 in [key for key, _, _ in before[changed[0]].rows]


def test_compaction_changes_no_row(source):
    source.spark.sql(CHANGES["delete"].format(table=source.table))
    before = source.read()
    source.spark.sql(CHANGES["compaction"].format(table=source.table))
    after = source.read()
    assert before.keys().isdisjoint(after)
    assert all_rows(after) == all_rows(before) == source.rows()


def test_new_column_with_the_name_of_a_renamed_one_is_null_in_old_files(source):
    source.spark.sql(f"ALTER TABLE {source.table} RENAME COLUMN body TO words")
    source.spark.sql(f"ALTER TABLE {source.table} ADD COLUMN body STRING")
    source.spark.sql(f"INSERT INTO {source.table} VALUES (1000, 'de', 'old', 'new')")
    found = all_rows(source.read())
    assert found == source.rows()
    assert {body for _, _, body in found} == {None, "new"}


def test_equality_deletes_are_refused_by_name(source):
    path = source.spark.folder / f"equality-{next(NUMBERS)}.parquet"
    key = pa.field("doc_id", pa.int64(), metadata={"PARQUET:field_id": "1"})
    pq.write_table(pa.table({"doc_id": [3, 6]}, schema=pa.schema([key])), path, store_schema=False)
    source.spark.operate(
        "add_equality_deletes", table=source.table, path=str(path), partition="lang=de", rows=2, column=1
    )
    assert not {3, 6} & {key for key, _, _ in source.rows()}  # Spark applies them
    with pytest.raises(JobError, match=r"(?i)equality delete"):
        source.read()


def test_feature_table_of_format_version_3_is_refused_by_name(spark, catalog):
    source = Source(spark, 3)
    source.read()
    destination = open_feature_table(parse_table_address(source.address))
    schema = open_table(parse_table_address(source.address)).pin(None).schema
    with pytest.raises(JobError, match=r"(?i)version 3|\bv3\b"):
        destination.prepare(Definition(FEATURE_SET, SOURCE_UUID, "doc_id", schema))
