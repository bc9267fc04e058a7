"""What a worker needs to know of a plan, small enough to send to each.

Nothing of the source or the plan is imported here, since a replica's start waits for it.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

from varve.config.feature import Feature
from varve.config.model import Model
from varve.encoder.checkpoint.inspection import Checkpoint
from varve.preprocessing.computed_columns import ComputedColumn


class Files(Protocol):
    """The files of a checkpoint."""

    def local_folder(self) -> str:
        """The folder that holds them on this node."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs to know."""

    model: Model
    checkpoint: Checkpoint
    features: dict[str, Feature]
    output_dtype: str
    text_columns: tuple[str, ...]
    computed: tuple[ComputedColumn, ...]
    schema: pa.Schema
    tokens_per_pack: int
    block_rows: int
    device: str  # cpu or cuda
    threads: int
    compiled: bool
    max_errors: int | None
    files: Files | None = None  # of the checkpoint, where nodes may not have its folder

    @property
    def pairs(self) -> bool:
        """Whether a row's text is a sentence pair."""
        return len(self.text_columns) > 1

    def on_this_node(self) -> "WorkerSpec":
        """The same, with the checkpoint's folder on this node."""
        if self.files is None:
            return self
        return replace(self, checkpoint=replace(self.checkpoint, folder=self.files.local_folder()), files=None)
