"""Remarks for jobs whose features or prompts differ from what their checkpoint declares.

Knows nothing of sources and outputs.
"""

from varve.config.model import Model
from varve.encoder.checkpoint.checkpoint import Checkpoint
from varve.encoder.checkpoint.declaration import Declaration
from varve.encoder.checkpoint.head import Normalize, Pooling
from varve.encoder.checkpoint.heads import uses_declaration
from varve.encoder.feature_plan import POOL_OF_MODE, POOLED, Column, FeaturePlan


def declared_note(
    model: Model, feature_plan: FeaturePlan, checkpoint: Checkpoint, max_tokens: int | None
) -> str | None:
    """The remark; None if a feature is the declared vector, or no feature is comparable with it.

    Args:
        model: section of the job.
        feature_plan: its features.
        checkpoint: its checkpoint.
        max_tokens: at which the job truncates a text; None if it cuts texts into windows.
    """
    declaration = checkpoint.declaration
    if declaration is None or feature_plan.wants("declared"):
        return None
    last = (feature_plan.num_layers,)
    comparable = [column for column in feature_plan.columns if column.pool in POOLED and column.layers == last]
    same_texts = (model.prompt or "") == declaration.text.prompt and max_tokens in {declaration.text.max_tokens, None}
    if not comparable or (same_texts and any(_is_declared(column, declaration) for column in comparable)):
        return None
    words = declaration.describe(
        declaration.text.max_tokens or checkpoint.max_positions or 512, declaration.text.prompt
    )
    text = f"{model.name} declares another vector: {words}. No feature of this job is that vector; pool: declared is"
    return "".join(filter(str.isprintable, text))  # texts of the checkpoint reach the terminal


def prompt_note(model: Model, feature_plan: FeaturePlan, checkpoint: Checkpoint) -> str | None:
    """The remark on a prompt for passages that is not put before documents; None if there is none."""
    declaration = checkpoint.declaration
    if declaration is None or not declaration.passage_prompt or model.prompt is not None:
        return None
    if not uses_declaration(model, feature_plan):
        return None
    return (
        f"{model.name} declares the prompt {declaration.passage_prompt!r} for passages, but sentence-transformers "
        "puts no prompt before its documents, and neither does this job. "
        f"model.prompt: {declaration.passage_prompt!r} adds it"
    )


def _is_declared(column: Column, declaration: Declaration) -> bool:
    """Whether a pooled column of the last layer is the declared vector."""
    head = declaration.head
    if not isinstance(head.pooling, Pooling) or set(head.row_steps) - {Normalize()}:
        return False
    pools = [POOL_OF_MODE.get(mode, mode) for mode in head.pooling.modes]
    return pools == [column.pool] and bool(head.row_steps) == column.normalize
