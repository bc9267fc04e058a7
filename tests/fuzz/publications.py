"""Targets: outputs of Iceberg and Delta tables that `varve publish` brings into a feature table."""

from pathlib import Path

import pyarrow as pa
from deltalake import write_deltalake

from tests.finished_runs import finish
from tests.fuzz.lakes import make_catalog, use_catalog
from tests.fuzz.outputs import save_model
from tests.fuzz.target import Target
from varve import Job
from varve.backfill.finished_output import open_finished
from varve.config.table_address import parse_table_address
from varve.driver.publish_output import publish_output
from varve.engine.parallel import in_threads
from varve.planning.saved_plan import CodePermission

_ROWS = pa.table({"doc_id": range(12), "lang": ["de", "en"] * 6, "body": [f"text {key}" for key in range(12)]})


def _make_delta(folder: Path) -> None:
    write_deltalake(str(folder / "docs"), _ROWS, partition_by=["lang"])
    _run(folder, f"delta+{folder}/docs")


def _make_iceberg(folder: Path) -> None:
    make_catalog(folder, _ROWS)
    _run(folder, "iceberg://fuzz/db.docs")


def _run(folder: Path, table: str) -> None:
    """A finished run of a tiny model over a table."""
    save_model(folder / "model")
    job = {
        "source": {"table": table, "text": "body", "key": "doc_id", "keep": ["lang"]},
        "model": {"name": str(folder / "model"), "max_tokens": 16},
        "output": {"path": str(folder / "out"), "rows_per_part": 5},
    }
    finish(Job.parse(job))


def _publish_delta(folder: Path, _name: str) -> None:
    _publish(folder, f"delta+{folder}/features")


def _publish_iceberg(folder: Path, _name: str) -> None:
    use_catalog(folder)
    _publish(folder, "iceberg://fuzz/db.features")


def _publish(folder: Path, table: str) -> None:
    finished = open_finished(str(folder / "out"), CodePermission())
    publish_output(finished, parse_table_address(table), "doc_id", "source", in_threads)


_RECORDS = ("out/_varve/*.json", "out/data/*.parquet")
_DELTA = (*_RECORDS, "docs/_delta_log/*.json", "docs/*/*.parquet")
_ICEBERG = (*_RECORDS, "warehouse/**/metadata/*.json", "warehouse/**/metadata/*.avro", "warehouse/**/data/*.parquet")
TARGETS = (
    Target("publish-delta", _make_delta, _DELTA, _publish_delta, hang_s=60.0),
    Target("publish-iceberg", _make_iceberg, _ICEBERG, _publish_iceberg, hang_s=60.0),
)
