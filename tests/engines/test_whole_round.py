"""Tables that Spark and Sail write, change and compact: a run encodes what changed, and the engine reads the result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from tests.engines.engine import Engine
from tests.engines.shadow import move_to_catalog, shadow
from varve import Encoder, Job, embed
from varve.lake.iceberg.catalog import open_catalog
from varve.lake.text_hash import hash_texts

CREATE = "CREATE TABLE {table} (doc_id BIGINT, lang STRING, body STRING) USING "
INSERT = """INSERT INTO {table} SELECT id, CASE id % 3 WHEN 0 THEN 'de' WHEN 1 THEN 'en' END,
    CASE WHEN id % 40 = 5 THEN NULL ELSE concat('text ', id) END FROM range(0, 200)"""
# 20 rows leave, 8 of the others get another text, 10 are new.
CHANGES = (
    "DELETE FROM {table} WHERE doc_id % 10 = 3",
    "UPDATE {table} SET body = concat('new ', body) WHERE doc_id % 25 = 7",
    "INSERT INTO {table} SELECT id, 'fr', concat('late ', id) FROM range(1000, 1010)",
)


@dataclass
class Round:
    """A source of one engine and its features.

    Attributes:
        engine: that writes the source.
        table: name of the source in SQL.
        job: from the source to the features.
        sync: makes the engine's last commit that of the job's source.
        features: the name of the feature table in SQL.
    """

    engine: Engine
    table: str
    job: Job
    sync: Callable[[], None]
    features: Callable[[], str]

    def run(self) -> dict[str, int]:
        """Run the job, check what the engine reads, and return the counts of rows."""
        self.sync()
        counts = embed(self.job).table["rows"]
        self.check()
        return counts

    def change(self, *statements: str) -> None:
        for statement in statements:
            self.engine.sql(statement.format(table=self.table))

    def check(self) -> None:
        """Each row of the source has its key, language, hash and vector in the features, and there is no other."""
        source = self.engine.table(f"SELECT doc_id, lang, body FROM {self.table}").sort_by("doc_id")
        found = self.engine.table(f"SELECT * FROM {self.features()}").sort_by("doc_id").combine_chunks()
        assert found["doc_id"].equals(source["doc_id"])
        assert found["lang"].equals(source["lang"])
        texts = source["body"].cast(pa.string())
        assert found["text_hash"].cast(pa.binary(16)).to_pylist() == hash_texts([texts]).to_pylist()
        assert found["error"].is_null().equals(texts.is_valid())
        encoder = Encoder(self.job.model.name, {"embedding": "mean"})
        expected = encoder(texts.drop_null().to_pylist())["embedding"]
        vectors = found["embedding"].drop_null().combine_chunks().flatten().to_numpy().reshape(expected.shape)
        assert vectors == pytest.approx(expected, abs=1e-5)

    def check_pruned(self) -> None:
        """Partitions and statistics lead to the rows."""
        for condition in ("doc_id = 42", "lang = 'de'", "lang IS NULL", "lang = 'fr' AND doc_id > 1004"):
            rows = self.engine.sql(f"SELECT doc_id FROM {self.table} WHERE {condition} ORDER BY doc_id")
            assert rows
            assert self.engine.sql(f"SELECT doc_id FROM {self.features()} WHERE {condition} ORDER BY doc_id") == rows


def make_job(source: str, features: str, model: str) -> Job:
    return Job.parse(
        {
            "source": {"table": source, "key": "doc_id", "text": "body", "keep": ["lang"]},
            "model": {"name": model, "max_tokens": 64},
            "features": {"embedding": {"pool": "mean"}},
            "output": {"table": features},
        }
    )


@pytest.mark.parametrize("version", [2, 3])
def test_features_of_a_table_of_spark_follow_its_changes(version, spark, catalog, tiny):
    modes = ", ".join(f"'write.{name}.mode'='merge-on-read'" for name in ("delete", "update", "merge"))
    table, name = f"local.rounds.docs_v{version}", f"db.round_v{version}"
    job = make_job(f"iceberg://lake/{name}", f"iceberg://lake/{name}_features", tiny("bert"))

    def features() -> str:
        return shadow(spark, open_catalog("lake").load_table(f"{name}_features").metadata_location)

    tested = Round(spark, table, job, lambda: move_to_catalog(spark, table, name), features)
    properties = f"PARTITIONED BY (lang, bucket(2, doc_id)) TBLPROPERTIES ('format-version'='{version}', {modes})"
    tested.change(f"{CREATE} iceberg {properties}", INSERT)
    assert tested.run() == {"new": 200, "changed": 0, "unchanged": 0, "removed": 0}
    tested.change(*CHANGES)
    assert tested.run() == {"new": 10, "changed": 8, "unchanged": 172, "removed": 20}
    tested.check_pruned()
    tested.change("CALL local.system.rewrite_data_files(table => '{table}', options => map('rewrite-all', 'true'))")
    assert tested.run() == {"new": 0, "changed": 0, "unchanged": 190, "removed": 0}


def test_features_of_a_table_of_sail_follow_its_changes(sail, tmp_path, tiny):
    path: Path = tmp_path / "docs"
    job = make_job(f"delta+{path}", f"delta+{path}_features", tiny("bert"))
    tested = Round(sail, "round_docs", job, lambda: None, lambda: f"delta.`{path}_features`")
    properties = f"PARTITIONED BY (lang) LOCATION '{path}' TBLPROPERTIES ('delta.enableDeletionVectors'='true')"
    tested.change(f"{CREATE} delta {properties}", INSERT)
    assert tested.run() == {"new": 200, "changed": 0, "unchanged": 0, "removed": 0}
    tested.change(*CHANGES)
    assert tested.run() == {"new": 10, "changed": 8, "unchanged": 172, "removed": 20}
    tested.check_pruned()
