"""A checkpoint → a model in float32.

Knows nothing of texts, batches or outputs. Invariants: no weight of the model is random (what the checkpoint lacks is
refused or not used); the base encoder of a checkpoint with a head has the head's checkpoint's own weights.
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
        JobError: the checkpoint lacks weights that the model would then draw at random.
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
    # Without a head nothing stands on a pooler, unless the checkpoint has one.
    spared = "pooler." if not head and not checkpoint.shape.has_pooler else None
    absent = sorted(key for key in report["missing_keys"] if spared is None or spared not in key)
    if absent:
        msg = (
            f"model.name: {checkpoint.folder} lacks {len(absent)} weights of {type(model).__name__} "
            f"({', '.join(absent[:3])}, ...); they would be random"
        )
        raise JobError(msg)
    model = model.to(device).eval().requires_grad_(requires_grad=False)
    return (model.base_model, model) if head else (model, None)
