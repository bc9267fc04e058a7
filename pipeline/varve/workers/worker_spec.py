"""The settings that every worker receives: the part of a plan that it needs.

Imports nothing of the source or the plan, because the start of a replica waits for its imports.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

from varve.config.feature import Feature
from varve.config.model import Model
from varve.config.output import Output
from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.preprocessing.computed_columns import ComputedColumn


class CheckpointFiles(Protocol):
    """The files of a checkpoint, for nodes that do not have its folder."""

    def local_folder(self) -> str:
        """Return the folder that holds the files on this node."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Settings of replicas; see `planning.plan.Plan.worker_spec`."""

    model: Model
    checkpoint: Checkpoint
    features: dict[str, Feature]
    text_columns: tuple[str, ...]
    computed: tuple[ComputedColumn, ...]
    schema: pa.Schema
    tokens_per_pack: int
    block_rows: int
    device: str  # cpu or cuda
    threads: int
    compiled: bool
    fast_tokenizer: bool
    output: Output
    total_rows: int | None  # of the source; None: not known
    files: CheckpointFiles | None = None  # for nodes without the checkpoint's folder

    @property
    def pairs(self) -> bool:
        """Whether a row's text is a sentence pair."""
        return len(self.text_columns) > 1

    def on_this_node(self) -> "WorkerSpec":
        """Return the same settings with the checkpoint's folder on this node."""
        if self.files is None:
            return self
        return replace(self, checkpoint=replace(self.checkpoint, root=self.files.local_folder()), files=None)
