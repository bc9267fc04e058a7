"""Targets: data sets on disk: Parquet, JSON, CSV, the card of a folder, the state of a saved data set."""

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.target import Target
from varve.config.source import Source
from varve.output.valid_text import replace_invalid
from varve.source.open_dataset import open_dataset

_ROWS = {"text": [f"text {row}" for row in range(20)], "number": list(range(20))}
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
# A card
"""


def _make(folder: Path) -> None:
    table = pa.table(_ROWS)
    (folder / "card/data").mkdir(parents=True)
    pq.write_table(table, folder / "card/data/0.parquet", row_group_size=7)
    (folder / "card/README.md").write_text(CARD)
    for kind in ("json", "csv"):
        (folder / kind).mkdir()
    datasets.Dataset(table).to_json(folder / "json/rows.json")
    datasets.Dataset(table).to_csv(folder / "csv/rows.csv")
    datasets.Dataset(table).save_to_disk(folder / "saved")


def _read(folder: Path, name: str) -> None:
    kind = Path(name).parts[0]
    is_file = kind in {"json", "csv"}
    files = str(folder / name) if is_file else None
    spec = Source(dataset=kind if is_file else str(folder / kind), data_files=files, text="text")
    dataset = open_dataset(spec)
    for shard in range(dataset.num_shards):
        for table in dataset.read(shard):
            replace_invalid(table).validate(full=True)  # a text need not be UTF-8


TARGETS = (Target("source", _make, ("card/**/*", "json/*", "csv/*", "saved/*"), _read, confined=True),)
