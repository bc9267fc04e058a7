"""One Iceberg table in two catalogs: that of Spark, and that of pyiceberg and Varve.

Spark's Hadoop catalog and a SQL catalog share no pointer to the current metadata, so a test moves it from one to the
other. Paths in metadata are absolute: the files are the same.
"""

import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path

from pyiceberg.exceptions import NoSuchTableError

from tests.engines.engine import Engine
from varve.lake.iceberg.catalog import open_catalog

_NUMBERS = count()


def shadow(spark: Engine, metadata: str) -> str:
    """Show Spark a table of another catalog; returns its name in SQL."""
    name = f"shadow_{next(_NUMBERS)}"
    folder = spark.folder / "warehouse/shadows" / name / "metadata"
    folder.mkdir(parents=True)
    shutil.copy(metadata.removeprefix("file://"), folder / "v1.metadata.json")
    (folder / "version-hint.text").write_text("1")
    return f"local.shadows.{name}"


def metadata_of(spark: Engine, table: str) -> str:
    """The current metadata file of a table of Spark, `local.NAMESPACE.NAME`."""
    folder = spark.folder.joinpath("warehouse", *table.split(".")[1:], "metadata")
    return str(folder / f"v{(folder / 'version-hint.text').read_text()}.metadata.json")


def move_to_catalog(spark: Engine, table: str, name: str) -> None:
    """Let the catalog `lake` have the current metadata of a table of Spark under `name`."""
    lake = open_catalog("lake")
    lake.create_namespace_if_not_exists(name.partition(".")[0])
    with suppress(NoSuchTableError):
        lake.drop_table(name)
    lake.register_table(name, f"file://{Path(metadata_of(spark, table))}")
