"""What a worker needs to know of a plan, small enough to send to each.

Nothing of the source or the plan is imported here, since a replica's start waits for it.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from pipeline.computed import ComputedColumn
from pipeline.encoder.checkpoint import Checkpoint
from pipeline.spec.feature import Feature
from pipeline.spec.model import Model

if TYPE_CHECKING:
    from pipeline.plan import Plan


class Files(Protocol):
    """The files of a checkpoint."""

    def here(self) -> str:
        """The folder that holds them on this node."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
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

    @classmethod
    def of(cls, plan: "Plan", device: str, threads: int, files: Files | None = None) -> "Work":
        """The work of a plan, on replicas on such a device with so many threads each."""
        return cls(
            model=plan.pinned_model,
            checkpoint=plan.checkpoint,
            features=plan.job.pooled,
            output_dtype=plan.job.output.dtype,
            text_columns=plan.job.source.text_columns,
            computed=plan.computed,
            schema=plan.schema,
            tokens_per_pack=plan.resolved.tokens_per_pack,
            block_rows=plan.resolved.block_rows,
            device=device,
            threads=threads,
            compiled=plan.job.compute.compile,
            max_errors=plan.job.output.max_errors,
            files=files,
        )

    def here(self) -> "Work":
        """The same, with the checkpoint's folder on this node."""
        if self.files is None:
            return self
        return replace(self, checkpoint=replace(self.checkpoint, folder=self.files.here()), files=None)
