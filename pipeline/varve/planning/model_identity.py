"""The checkpoint of a job: inspected for the role of its texts, and the hashes of the files that decide its features.

Knows nothing of sources and outputs.
"""

from pathlib import Path

from varve.config.model import Model
from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.heads import head_files
from varve.encoder.checkpoint.inspection import hash_files, inspect_checkpoint
from varve.encoder.feature_plan import FeaturePlan


def inspect_model(model: Model, commit: str | None) -> Checkpoint:
    """Inspect the checkpoint of a job.

    Args:
        model: section of the job.
        commit: of a Hub id, or another revision; None: the newest.

    Raises:
        JobError: see `inspect_checkpoint`.
    """
    return inspect_checkpoint(
        model.name, commit, trust_remote_code=model.trust_remote_code, role=model.role, prompt=model.prompt
    )


def hash_heads(model: Model, feature_plan: FeaturePlan, checkpoint: Checkpoint) -> dict[str, str] | None:
    """File → SHA-256, of the declaration and the heads that a job uses; None if it uses neither."""
    files = head_files(model, feature_plan, checkpoint)
    return {file: hash_files([Path(checkpoint.root, file)]) for file in files} or None
