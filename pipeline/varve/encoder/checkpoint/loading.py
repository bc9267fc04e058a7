"""Loads a checkpoint into a model in float32.

Knows nothing of texts, batches or outputs. Invariant: no weight that is used is random: a checkpoint that lacks one is
rejected.
"""

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel

from varve.encoder.checkpoint.inspection import Checkpoint
from varve.errors import JobError


def load_model(
    checkpoint: Checkpoint, *, head: bool, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """Load the encoder, and with `head` the classification model around it, in float32 with eager attention.

    Returns:
        (encoder, classification model or None). They share their weights.

    Raises:
        JobError: the checkpoint lacks weights, which transformers would initialize randomly.
    """
    auto = AutoModelForSequenceClassification if head else AutoModel
    model, report = auto.from_pretrained(
        checkpoint.folder,
        dtype=torch.float32,
        use_safetensors=True,
        attn_implementation="eager",
        trust_remote_code=checkpoint.trust_remote_code,
        output_loading_info=True,
    )
    # Without pooler weights and without a head, the pooler is not used.
    ignores_pooler = not head and not checkpoint.shape.has_pooler
    missing = sorted(key for key in report["missing_keys"] if not (ignores_pooler and "pooler." in key))
    if missing:
        msg = (
            f"model.name: {checkpoint.folder} lacks {len(missing)} weights of {type(model).__name__} "
            f"({', '.join(missing[:3])}, ...); they would be random"
        )
        raise JobError(msg)
    model = model.to(device).eval().requires_grad_(requires_grad=False)
    return (model.base_model, model) if head else (model, None)
