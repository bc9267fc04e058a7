"""A Lance dataset, changed by pylance as its users would."""

from dataclasses import dataclass

import lance
import pyarrow as pa

ROWS_PER_FRAGMENT = 10


@dataclass(frozen=True)
class Backend:
    """A dataset below a folder or URI; credentials of a store are in the environment."""

    root: str
    stable_row_ids: bool = False

    @property
    def address(self) -> str:
        return f"lance+{self.uri}"

    @property
    def features_address(self) -> str:
        return f"lance+{self.root}/docs_features.lance"

    @property
    def uri(self) -> str:
        return f"{self.root}/docs.lance"

    def open(self, version: int | None = None) -> lance.LanceDataset:
        return lance.dataset(self.uri, version=version, storage_options=self._options)

    def create(self, rows: pa.Table, partition: str | None = None) -> None:
        """Lance has no partitions; they are ignored."""
        del partition
        options = {"max_rows_per_file": ROWS_PER_FRAGMENT, "enable_stable_row_ids": self.stable_row_ids}
        lance.write_dataset(rows, self.uri, storage_options=self._options, **options)

    def append(self, rows: pa.Table) -> None:
        options = {"max_rows_per_file": ROWS_PER_FRAGMENT, "storage_options": self._options}
        lance.write_dataset(rows, self.uri, mode="append", **options)

    def update(self, rows: pa.Table) -> None:
        self.open().merge_insert("doc_id").when_matched_update_all().execute(rows)

    def update_text(self, key: int, text: str) -> None:
        """Lance writes the row again, with the old values of all other columns."""
        self.open().update({"body": f"'{text}'"}, where=f"doc_id = {key}")

    def delete(self, keys: list[int]) -> None:
        self.open().delete(f"doc_id in ({', '.join(map(str, keys))})")

    def compact(self) -> None:
        self.open().optimize.compact_files(target_rows_per_fragment=1_000_000)

    def read(self, address: str) -> pa.Table:
        return lance.dataset(address.removeprefix("lance+"), storage_options=self._options).to_table()

    @property
    def _options(self) -> dict[str, str]:
        return {"allow_http": "true"} if "://" in self.root else {}
