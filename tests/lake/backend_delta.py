"""A Delta source table and a place for its features, changed by delta-rs as its users would."""

from dataclasses import dataclass

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

PLAIN = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


@dataclass(frozen=True)
class Backend:
    """Tables below a folder or URI; credentials of a store are in the environment."""

    root: str

    @property
    def address(self) -> str:
        return f"delta+{self.root}/docs"

    @property
    def features_address(self) -> str:
        return f"delta+{self.root}/docs_features"

    @property
    def uri(self) -> str:
        return f"{self.root}/docs"

    def create(self, rows: pa.Table, partition: str | None = None) -> None:
        write_deltalake(self.uri, rows, partition_by=[partition] if partition else None)

    def append(self, rows: pa.Table) -> None:
        write_deltalake(self.uri, rows, mode="append")

    def update(self, rows: pa.Table) -> None:
        merge = DeltaTable(self.uri).merge(rows, "s.doc_id = t.doc_id", source_alias="s", target_alias="t")
        merge.when_matched_update_all().execute()

    def delete(self, keys: list[int]) -> None:
        DeltaTable(self.uri).delete(f"doc_id IN ({', '.join(map(str, keys))})")

    def compact(self) -> None:
        DeltaTable(self.uri).optimize.compact()

    def read(self, address: str) -> pa.Table:
        rows = pa.table(DeltaTable(address.removeprefix("delta+")).scan())
        plain = [field.with_type(PLAIN.get(field.type, field.type)) for field in rows.schema]
        return rows.cast(pa.schema(plain))
