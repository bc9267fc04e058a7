"""The texts of all jobs: different docstrings, as files, as rows of tables, and with their vectors."""

from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from varve.cli.corpus import docstrings, model_folder

ROWS = 160  # of a source
RESERVE = 40  # texts that writers add
SHARDS = 4
ROWS_PER_PART = 10
MAX_TOKENS = 128


class Corpus:
    """Texts, of which no two are equal, so that a text identifies its vectors."""

    def __init__(self) -> None:
        different = dict.fromkeys(text for _, text in islice(docstrings(), 2 * (ROWS + RESERVE)))
        self.texts = list(islice(different, ROWS + RESERVE))

    def write(self, folder: Path) -> None:
        """Write all texts as files."""
        folder.mkdir()
        for shard in range(SHARDS):
            pq.write_table(pa.table({"text": self.texts[shard::SHARDS]}), folder / f"{shard}.parquet")


def model() -> dict:
    """The section of a job file."""
    return {"name": str(model_folder()), "max_tokens": MAX_TOKENS}
