"""Iceberg tables through pyiceberg alone: in a catalog on sqlite with files on disk, or in SeaweedFS."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.table import Table
from pyiceberg.transforms import parse_transform
from pyiceberg.typedef import Record
from pyiceberg.utils.config import Config

from tests.lake.backends import new_name
from varve.lake.iceberg.files import make_record


def catalog() -> Catalog:
    """A catalog of its own, as another program has one; by the environment as it is now."""
    return load_catalog("lake", **Config().get_catalog_config("lake"))  # pyright: ignore[reportArgumentType, reportCallIssue]


def is_one_of(keys: list[int]) -> str:
    """The predicate of rows with these keys."""
    return f"doc_id in ({', '.join(map(str, keys))})"


class Backend:
    """The source table and the address of its features, in a namespace of their own.

    Attributes:
        address: of the source.
        features_address: of a table that does not exist yet.
    """

    def __init__(self, _root: str) -> None:
        self.namespace = new_name()
        catalog().create_namespace(self.namespace)
        self.address = f"iceberg://lake/{self.namespace}.docs"
        self.features_address = f"iceberg://lake/{self.namespace}.docs_features"

    def table(self, address: str | None = None) -> Table:
        return catalog().load_table((address or self.address).rpartition("/")[2])

    def create(self, rows: pa.Table, partition: str | None = None) -> None:
        """Partition is the name of a column, or a transform of the key such as bucket[4]."""
        table = catalog().create_table(f"{self.namespace}.docs", rows.schema)
        if partition:
            is_transform = "[" in partition
            with table.update_spec() as spec:
                if is_transform:
                    spec.add_field("doc_id", parse_transform(partition), "doc_id_part")
                else:
                    spec.add_identity(partition)
        if len(rows):
            table.append(rows)

    def append(self, rows: pa.Table) -> None:
        self.table().append(rows)

    def append_file(self, rows: pa.Table, *partition: Any) -> None:
        """Add rows as one file of a partition; pyiceberg itself computes no bucket or day."""
        table = self.table()
        path = f"{table.location()}/data/{new_name()}.parquet"
        stored = pa.Table.from_arrays(rows.columns, schema=schema_to_pyarrow(table.schema(), include_field_ids=True))
        with table.io.new_output(path).create() as stream:
            pq.write_table(stored, stream)
        record = make_record(path, len(rows), len(table.io.new_input(path)), Record(*partition), table.spec().spec_id)
        with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
            append.append_data_file(record)

    def update(self, rows: pa.Table) -> None:
        self.table().overwrite(rows, is_one_of(rows["doc_id"].to_pylist()))

    def delete(self, keys: list[int]) -> None:
        self.table().delete(is_one_of(keys))

    def compact(self) -> None:
        table = self.table()
        table.overwrite(table.scan().to_arrow())

    def read(self, address: str) -> pa.Table:
        return self.table(address).scan().to_arrow()
